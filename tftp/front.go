package tftp

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	pin "github.com/pin/tftp/v3"
)

// requestBurst is how many bytes of requests may wait: a rack that is switched on asks all at once.
const requestBurst = 1 << 20

// front is the well-known port as pin/tftp sees it: only requests come out of it that are in normal form and
// admitted. pin/tftp calls ReadFrom from one goroutine.
type front struct {
	*net.UDPConn
	server  *Server
	buf     []byte
	handed  *transfer // the request that pin/tftp got last
	drained chan struct{}
	once    sync.Once
}

func newFront(conn *net.UDPConn, s *Server) *front {
	conn.SetReadBuffer(requestBurst) // the kernel may give less
	return &front{UDPConn: conn, server: s, buf: make([]byte, 1<<16), drained: make(chan struct{})}
}

// ReadFrom waits for the next request that a transfer begins with.
func (f *front) ReadFrom(p []byte) (int, net.Addr, error) {
	f.handed = nil // pin/tftp has begun with it
	for {
		n, from, err := f.ReadFromUDPAddrPort(f.buf)
		if errors.Is(err, net.ErrClosed) {
			f.once.Do(func() { close(f.drained) })
			time.Sleep(time.Millisecond) // pin/tftp asks again at once, until its Shutdown has begun
			return 0, nil, err
		}
		if err != nil { // of this packet or of the NIC: neither ends the server
			f.server.Log.Warn("tftp: read", "err", err)
			time.Sleep(10 * time.Millisecond)
			continue
		}
		client := netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		if client.Port() == 0 {
			continue
		}
		t, err := f.admit(f.buf[:n], client)
		if err != nil {
			f.refuse(client, err)
			continue
		}
		f.handed = t
		return copy(p, t.packet()), net.UDPAddrFromAddrPort(client), nil
	}
}

// admit reads a request and finds a place for it.
func (f *front) admit(packet []byte, client netip.AddrPort) (*transfer, error) {
	r, err := parseRequest(packet, func() int { return f.server.endpoint.blockLimit(client.Addr()) })
	if err != nil {
		return nil, err
	}
	return f.server.transfers.admit(r, client)
}

// refuse answers what became no transfer, from the well-known port.
func (f *front) refuse(client netip.AddrPort, err error) {
	var reply *protocolError
	if errors.Is(err, errNoPlace) {
		f.server.metrics.count(result{ending: endBusy}, 0)
		return
	}
	if !errors.As(err, &reply) {
		f.server.metrics.ignored.Inc()
		return
	}
	f.WriteToUDPAddrPort(reply.packet(), client) // best effort, as all of UDP
	f.server.finish(&transfer{client: client, start: f.server.Now()}, result{ending: reply.ending, told: reply.text})
}

// OnSuccess is of pin/tftp's Hook.
func (f *front) OnSuccess(pin.TransferStats) {}

// OnFailure is of pin/tftp's Hook. It gives the place of a request back that pin/tftp could not begin with,
// for want of a socket: then there is no client in the statistics.
func (f *front) OnFailure(stats pin.TransferStats, err error) {
	if stats.RemoteAddr != nil || f.handed == nil {
		return
	}
	f.server.transfers.release(f.handed)
	f.WriteToUDPAddrPort(errFault.packet(), f.handed.client)
	f.server.finish(f.handed, result{ending: endFault, err: err})
}
