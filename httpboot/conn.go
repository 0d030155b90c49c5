package httpboot

import (
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"rackstrap/internal/places"
)

// listener makes each connection that has a place a conn.
type listener struct {
	*places.Listener
	stall   time.Duration
	metrics *metrics
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	accepted, err := l.AcceptConn()
	if err != nil {
		return nil, err
	}
	l.metrics.conns.Inc()
	raw, _ := accepted.SyscallConn() // fails for nil only
	return &conn{Conn: accepted, raw: raw, listener: l}, nil
}

// conn is a connection whose client must take a byte now and then.
type conn struct {
	*places.Conn
	raw      syscall.RawConn
	listener *listener
	once     sync.Once

	join bool   // the next write waits for the one after it; see response.ReadFrom
	held []byte // what waits

	waited        time.Duration // in writes, since the client's rate was last looked at
	written, took int64         // to the kernel in all; by the client, when its rate was last looked at
}

// errStalled ends the connection of a client that stopped reading.
var errStalled = errors.New("the client takes nothing any more")

// Close implements net.Conn.
func (c *conn) Close() error {
	c.once.Do(c.listener.metrics.conns.Dec)
	return c.Conn.Close()
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
	for begin := last; ; begin = time.Now() {
		if err := c.SetWriteDeadline(time.Now().Add(c.listener.stall / 4)); err != nil {
			return err
		}
		n, err := write()
		c.rate(n, time.Since(begin))
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

// leastRate is what a client takes in a second, at least, to keep its place when there is no other: the slowest of
// management networks are faster. Otherwise a slow client has all the time it needs.
const leastRate = 16 << 10

// rate notes a write. A client that the server had to wait for too long is as good as idle: its place gives way.
func (c *conn) rate(n int, waited time.Duration) {
	c.written += int64(n)
	c.waited += waited
	if c.waited < c.listener.stall/4 {
		return
	}
	took := c.written - int64(c.unacknowledged())
	if float64(took-c.took) < leastRate*c.waited.Seconds() {
		c.Place.Idle()
	} else {
		c.Place.Busy()
	}
	c.took, c.waited = took, 0
}

// unacknowledged is how many bytes wait in the kernel for this client. A write succeeds only once a third of
// the send buffer is free, which is more than a megabyte: a slow client takes its time for that, and must not
// be mistaken for one that stopped.
func (c *conn) unacknowledged() (n int) {
	c.raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCOUTQ) })
	return n
}
