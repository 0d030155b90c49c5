package tftp

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"time"

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

// blockLimit is the largest block that no packet is fragmented for: the MTU without the headers of IP (20
// bytes, 40 for IPv6), UDP (8) and TFTP (4). At 1500 that is 1468, which edk2 asks for; pin/tftp by itself
// forgets its own four bytes and grants 1472.
func (e endpoint) blockLimit() (int, error) {
	mtu, err := e.mtu()
	if err != nil {
		return 0, err
	}
	headers := 20 + 8 + 4
	if e.addr.Is6() {
		headers += 20
	}
	return max(defaultBlock, min(mtu-headers, maxBlock)), nil
}

// ethernetMTU is what is assumed where the interface is not known.
const ethernetMTU = 1500

func (e endpoint) mtu() (int, error) {
	if e.device != "" {
		nic, err := net.InterfaceByName(e.device)
		if err != nil {
			return 0, fmt.Errorf("interface %s: %w", e.device, err)
		}
		return nic.MTU, nil
	}
	nics, err := net.Interfaces()
	if err != nil {
		return 0, fmt.Errorf("list interfaces: %w", err)
	}
	for _, nic := range nics {
		addrs, err := nic.Addrs()
		if err != nil {
			continue // it may be gone by now
		}
		for _, a := range addrs {
			if prefix, err := netip.ParsePrefix(a.String()); err == nil && prefix.Addr() == e.addr {
				return nic.MTU, nil
			}
		}
	}
	return ethernetMTU, nil
}
