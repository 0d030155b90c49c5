package httpboot

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// listener bounds the connections, and makes each a conn.
//
// With all connections taken, new ones wait in the kernel's queue until one ends: firmware that waits a few
// seconds boots, firmware that is refused may not. One client address cannot take them all: beyond its share
// it is answered 503 and closed. So slow clients hold out themselves only.
type listener struct {
	net.Listener
	stall     time.Duration
	slots     chan struct{}
	perClient int
	metrics   *metrics

	ended chan struct{}
	once  sync.Once

	mu      sync.Mutex
	clients map[netip.Addr]int
}

func newListener(inner net.Listener, maxConns int, stall time.Duration, m *metrics) *listener {
	return &listener{Listener: inner, stall: stall, slots: make(chan struct{}, maxConns), perClient: max(1, maxConns/4),
		metrics: m, ended: make(chan struct{}), clients: map[netip.Addr]int{}}
}

// tooMany is the answer to a client beyond its share.
const tooMany = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: " + retryAfter +
	"\r\nConnection: close\r\nContent-Type: text/plain\r\nContent-Length: 31\r\n\r\ntoo many connections from here\n"

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	for {
		select {
		case l.slots <- struct{}{}:
		case <-l.ended:
			return nil, net.ErrClosed
		}
		accepted, err := l.Listener.Accept()
		if err != nil {
			<-l.slots
			return nil, err
		}
		tcp := accepted.(*net.TCPConn)
		from := tcp.RemoteAddr().(*net.TCPAddr).AddrPort().Addr()
		if !l.take(from) {
			<-l.slots
			l.metrics.refused.Inc()
			io.WriteString(tcp, tooMany) // fits the empty send buffer: never waits
			tcp.Close()
			continue
		}
		l.metrics.conns.Inc()
		raw, _ := tcp.SyscallConn() // fails for nil only
		return &conn{TCPConn: tcp, raw: raw, listener: l, from: from}, nil
	}
}

// Close implements net.Listener.
func (l *listener) Close() error {
	l.once.Do(func() { close(l.ended) })
	return l.Listener.Close()
}

func (l *listener) take(from netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.clients[from] >= l.perClient {
		return false
	}
	l.clients[from]++
	return true
}

func (l *listener) giveBack(from netip.Addr) {
	l.mu.Lock()
	if l.clients[from]--; l.clients[from] == 0 {
		delete(l.clients, from)
	}
	l.mu.Unlock()
	<-l.slots
	l.metrics.conns.Dec()
}

// conn is a connection whose client must take a byte now and then.
type conn struct {
	*net.TCPConn
	raw      syscall.RawConn
	listener *listener
	from     netip.Addr
	once     sync.Once

	join bool   // the next write waits for the one after it; see response.ReadFrom
	held []byte // what waits
}

// errStalled ends the connection of a client that stopped reading.
var errStalled = errors.New("the client takes nothing any more")

// Close implements net.Conn.
func (c *conn) Close() error {
	err := c.TCPConn.Close()
	c.once.Do(func() { c.listener.giveBack(c.from) })
	return err
}

// Write writes all of p for as long as the client takes some of it: net/http's WriteTimeout would end slow
// downloads too.
func (c *conn) Write(p []byte) (int, error) {
	if c.join {
		c.join, c.held = false, append(c.held[:0], p...)
		return len(p), nil
	}
	rest := net.Buffers{p}
	if len(c.held) > 0 {
		rest = net.Buffers{c.held, p}
	}
	held := len(c.held)
	done := 0
	err := c.insist(func() (int, error) {
		n, err := rest.WriteTo(c.TCPConn)
		done += int(n)
		return int(n), err
	})
	c.held = c.held[:0]
	return max(0, done-held), err
}

// insist repeats a write that ran out of time as long as the client takes something within the stall
// timeout, looked at four times in it.
func (c *conn) insist(write func() (n int, err error)) error {
	last, unacknowledged := time.Now(), -1
	for {
		if err := c.SetWriteDeadline(time.Now().Add(c.listener.stall / 4)); err != nil {
			return err
		}
		n, err := write()
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
		before := unacknowledged
		unacknowledged = c.unacknowledged()
		switch now := time.Now(); {
		case n > 0 || unacknowledged < before:
			last = now
		case now.Sub(last) >= c.listener.stall:
			c.listener.metrics.stalled.Inc()
			c.SetLinger(0) // what it did not take is not kept for it
			return errStalled
		}
	}
}

// unacknowledged is how many bytes wait in the kernel for this client. A write succeeds only once a third of
// the send buffer is free, which is more than a megabyte: a slow client takes its time for that, and must not
// be mistaken for one that stopped.
func (c *conn) unacknowledged() (n int) {
	c.raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCOUTQ) })
	return n
}
