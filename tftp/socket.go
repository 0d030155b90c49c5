package tftp

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"

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
