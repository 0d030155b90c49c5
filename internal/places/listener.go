package places

import (
	"crypto/tls"
	"net"
	"net/http"
	"sync"
)

// Listener accepts the connections that there is a place for. Others are reset at once, so that they keep nobody
// waiting; only with all places in use by machines of the list does the next machine wait, in the kernel's queue.
type Listener struct {
	*net.TCPListener
	pool  *Pool
	ended chan struct{}
	once  sync.Once
}

// Listen puts a pool before a listener.
func Listen(l net.Listener, pool *Pool) *Listener {
	return &Listener{TCPListener: l.(*net.TCPListener), pool: pool, ended: make(chan struct{})}
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) { return l.AcceptConn() }

// AcceptConn is Accept with the type that it returns.
func (l *Listener) AcceptConn() (*Conn, error) {
	for {
		tcp, err := l.AcceptTCP()
		if err != nil {
			return nil, err
		}
		if conn := l.place(tcp); conn != nil {
			return conn, nil
		}
		reset(tcp)
	}
}

// place finds a place for a connection; nil: there is none for it.
func (l *Listener) place(tcp *net.TCPConn) *Conn {
	from := tcp.RemoteAddr().(*net.TCPAddr).AddrPort().Addr()
	for {
		place, verdict := l.pool.Take(from, func() { reset(tcp) })
		switch verdict {
		case Granted:
			return &Conn{TCPConn: tcp, Place: place}
		case Refused:
			return nil
		}
		select {
		case <-l.pool.Freed():
		case <-l.ended:
			return nil
		}
	}
}

// Close implements net.Listener.
func (l *Listener) Close() error {
	l.once.Do(func() { close(l.ended) })
	return l.TCPListener.Close()
}

// reset closes a connection without keeping what the peer did not take.
func reset(tcp *net.TCPConn) {
	tcp.SetLinger(0)
	tcp.Close()
}

// Conn is a connection that has a place until it is closed.
type Conn struct {
	*net.TCPConn
	Place *Place
}

// Close implements net.Conn.
func (c *Conn) Close() error {
	c.Place.Release()
	return c.TCPConn.Close()
}

// held is implemented by Conn and by what embeds it.
type held interface{ held() *Place }

func (c *Conn) held() *Place { return c.Place }

// ConnState is for http.Server: a connection is busy from a complete header on until its request is answered. Before and
// in between it gives way: without a TLS handshake, with a header that never ends, without a further request.
func ConnState(c net.Conn, state http.ConnState) {
	if secure, ok := c.(*tls.Conn); ok {
		c = secure.NetConn()
	}
	conn, ok := c.(held)
	if !ok {
		return
	}
	switch state {
	case http.StateActive:
		conn.held().Busy()
	case http.StateIdle:
		conn.held().Idle()
	}
}
