package tftp

import (
	"context"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// endpoint is where the server is on the network: its sockets, that of the well-known port and those of the
// transfers, all have this address and this interface. A client drops blocks from an address that it did
// not ask (RFC 1350 section 4), and a host with several addresses would choose by route.
type endpoint struct {
	device string     // "" for any
	addr   netip.Addr // not valid for any
}

// listen opens a UDP socket on a port, 0 for any. There is no SO_REUSEPORT: a second server must fail.
func (e endpoint) listen(port int) (*net.UDPConn, error) {
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		if e.device == "" {
			return nil
		}
		var failed error
		if err := c.Control(func(fd uintptr) {
			failed = os.NewSyscallError("SO_BINDTODEVICE "+e.device, unix.BindToDevice(int(fd), e.device))
		}); err != nil {
			return err
		}
		return failed
	}}
	network, host := "udp4", ""
	if e.addr.IsValid() {
		host = e.addr.String()
		if e.addr.Is6() {
			network = "udp6"
		}
	}
	conn, err := config.ListenPacket(context.Background(), network, net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return nil, err
	}
	return conn.(*net.UDPConn), nil
}

// line is the socket of one transfer, in which every block waits for its acknowledgement: what is spent for
// each decides the rate.
//
// It is connected to the client in the kernel (not in the net package, whose WriteToUDP pin/tftp calls): that
// spares the search for route and socket, keeps strangers' packets out, and a client that has gone is told by
// its own host's ICMP, as ECONNREFUSED.
//
// While few transfers run, reading blocks: that is one system call, where the runtime's poller takes three (a
// read in vain, epoll, a read) and a change of goroutines. With many the poller gets several acknowledgements
// by one call, and blocked threads would only wait for one another's turn.
type line struct {
	*net.UDPConn
	blocks bool
}

// dedicate makes a socket the line to a client. Patience bounds a read that blocks; after it the runtime looks
// at the deadline that pin/tftp has set, which is as long.
func dedicate(conn *net.UDPConn, client netip.AddrPort, patience time.Duration) (*line, error) {
	wait := unix.NsecToTimeval(patience.Nanoseconds())
	return &line{UDPConn: conn}, control(conn, func(fd int) error {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
			return os.NewSyscallError("SO_RCVTIMEO", err)
		}
		if !client.Addr().Is4() { // the configuration knows no other
			return nil
		}
		return os.NewSyscallError("connect", unix.Connect(fd, &unix.SockaddrInet4{Addr: client.Addr().As4(), Port: int(client.Port())}))
	})
}

// block decides whether the next reads block. It is called by who reads.
func (l *line) block(on bool) {
	if l.blocks == on {
		return
	}
	if control(l.UDPConn, func(fd int) error { return unix.SetNonblock(fd, !on) }) == nil {
		l.blocks = on
	}
}

// hangUp wakes who reads, and closes the line. Close by itself would wait for a reader that blocks.
func hangUp(conn *net.UDPConn) {
	control(conn, func(fd int) error { return unix.Shutdown(fd, unix.SHUT_RD) })
	conn.Close()
}

// control calls f with the descriptor of a socket.
func control(conn *net.UDPConn, f func(fd int) error) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = f(int(fd)) }); err != nil {
		return err
	}
	return failed
}

// blockLimit is the largest block that reaches the client in one piece: what its path carries without the headers of
// IP (20 bytes, 40 for IPv6), UDP (8) and TFTP (4). At 1500 that is 1468, which edk2 asks for; pin/tftp by itself
// forgets its own four bytes and grants 1472. Much firmware does not put fragments together.
func (e endpoint) blockLimit(client netip.Addr) int {
	headers := 20 + 8 + 4
	if client.Is6() {
		headers += 20
	}
	return max(defaultBlock, min(e.pathMTU(client)-headers, maxBlock))
}

// safeMTU is what a path is taken to carry that leads through a router, unless more is known of it: the least of
// IPv6 (RFC 8200 section 5), which every tunnel carries that is in use. The block size is agreed on in the first
// packet, before any router could send "fragmentation needed", and cannot be lowered later.
const safeMTU = 1280

// pathMTU is how long a datagram to the client may be: what the route says (`ip route … mtu`), or what the kernel
// has learnt from routers on the way (RFC 1191), or else what the NIC carries.
func (e endpoint) pathMTU(client netip.Addr) int {
	o := &netlink.RouteGetOptions{Oif: e.device}
	if e.addr.IsValid() {
		o.SrcAddr = e.addr.AsSlice()
	}
	routes, err := netlink.RouteGetWithOptions(client.AsSlice(), o)
	if err != nil || len(routes) == 0 {
		return safeMTU // no answer will arrive, or the route has just changed
	}
	r := routes[0]
	if r.MTU > 0 {
		return r.MTU
	}
	nic, err := net.InterfaceByIndex(r.LinkIndex)
	switch {
	case err != nil, r.Gw != nil:
		return safeMTU
	}
	return nic.MTU
}
