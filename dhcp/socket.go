package dhcp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// receiveBuffer is what a flood may send before we get processor time to read it: the kernel takes twice as much, and
// 1.3 to 2.5 KiB for a packet, so that it is more than half a second at 20,000 packets a second, be they large. It is
// the kernel's memory, and only in use while packets wait.
const receiveBuffer = 16 << 20

// PortError is a port that cannot be bound.
type PortError struct {
	Port   int
	Holder string // who has it, as far as /proc tells; may be ""
	Err    error
}

func (e *PortError) Error() string {
	text := fmt.Sprintf("dhcp: UDP port %d: %v", e.Port, e.Err)
	if e.Holder != "" {
		return text + ": " + e.Holder + " has it: stop it first"
	}
	if errors.Is(e.Err, unix.EADDRINUSE) {
		return text + ": `ss -lunp sport = :" + strconv.Itoa(e.Port) + "` tells who has it"
	}
	return text
}

func (e *PortError) Unwrap() error { return e.Err }

// bind opens a UDP socket for one NIC ("": for all). It is bound to every address, because broadcasts do not
// arrive at one that is bound to a unicast address.
//
// Neither SO_REUSEPORT nor, which has the same effect for UDP on Linux, SO_REUSEADDR is set: a second server
// on the same port must fail, not share the packets with the first one at random.
func bind(iface string, port int) (*net.UDPConn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		ctlErr := c.Control(func(fd uintptr) { err = prepare(int(fd), iface) })
		return errors.Join(ctlErr, err)
	}}
	conn, err := lc.ListenPacket(context.Background(), "udp4", ":"+strconv.Itoa(port))
	if err != nil {
		var errno unix.Errno
		if errors.As(err, &errno) {
			err = errno
		}
		pe := &PortError{Port: port, Err: err}
		if errors.Is(err, unix.EADDRINUSE) {
			pe.Holder = holderOf(port)
		}
		return nil, pe
	}
	return conn.(*net.UDPConn), nil
}

func prepare(fd int, iface string) error {
	if iface != "" {
		if err := unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, iface); err != nil {
			return fmt.Errorf("interface %s: %w", iface, err)
		}
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1); err != nil {
		return err
	}
	for _, buffer := range []struct{ force, option, size int }{
		{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, receiveBuffer}, {unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, sendBuffer},
	} {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, buffer.force, buffer.size); err != nil {
			// without CAP_NET_ADMIN only up to net.core.rmem_max and wmem_max, which is good enough
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, buffer.option, buffer.size); err != nil {
				return err
			}
		}
	}
	return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
}

// pktinfoSpace is the size of a control message that holds an IP_PKTINFO.
var pktinfoSpace = unix.CmsgSpace(unix.SizeofInet4Pktinfo)

// parsePktinfo reads the NIC and the destination out of a received control message.
func parsePktinfo(oob []byte) (ifindex int, to netip.Addr) {
	for len(oob) >= unix.SizeofCmsghdr {
		hdr, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			break
		}
		if hdr.Level == unix.IPPROTO_IP && hdr.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo {
			return int(binary.NativeEndian.Uint32(data)), netip.AddrFrom4([4]byte(data[8:12]))
		}
		oob = rest
	}
	return 0, netip.Addr{}
}

// pktinfo makes a control message that sends from this address out of this NIC. A broadcast has no route, and
// a host with several addresses would choose one that is not option 54.
func pktinfo(ifindex int, from netip.Addr) []byte {
	oob := make([]byte, pktinfoSpace)
	hdr := (*unix.Cmsghdr)(unsafe.Pointer(&oob[0]))
	hdr.Level, hdr.Type = unix.IPPROTO_IP, unix.IP_PKTINFO
	hdr.SetLen(unix.CmsgLen(unix.SizeofInet4Pktinfo))
	data := oob[unix.CmsgLen(0):]
	binary.NativeEndian.PutUint32(data, uint32(ifindex))
	source := from.As4()
	copy(data[4:8], source[:])
	return oob
}

// holderOf names the process that has a UDP port, or "".
func holderOf(port int) string {
	inodes := map[string]bool{}
	table, err := os.ReadFile("/proc/net/udp")
	if err != nil {
		return ""
	}
	for _, line := range strings.Split(string(table), "\n") {
		fields := strings.Fields(line)
		if len(fields) > 9 && strings.HasSuffix(fields[1], fmt.Sprintf(":%04X", port)) {
			inodes["socket:["+fields[9]+"]"] = true
		}
	}
	if len(inodes) == 0 {
		return ""
	}
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, fd := range fds {
		link, err := os.Readlink(fd)
		if err != nil || !inodes[link] {
			continue
		}
		pid := strings.Split(fd, "/")[2]
		comm, _ := os.ReadFile("/proc/" + pid + "/comm")
		return fmt.Sprintf("%s (process %s)", strings.TrimSpace(string(comm)), pid)
	}
	return ""
}
