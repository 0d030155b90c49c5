package dhcp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// probe runs the conflict check of an address. ok is false if too many run already. The worker that waits for
// it is replaced meanwhile: others, above all the machines of the list, never wait for it too.
func (s *Server) probe(ctx context.Context, ip netip.Addr) (inUse bool, by string, ok bool) {
	if s.prober == nil {
		return false, "", true
	}
	select {
	case s.probing <- struct{}{}:
		defer func() { <-s.probing }()
	default:
		return false, "", false
	}
	back := make(chan struct{})
	defer close(back)
	s.standIns.Go(func() { s.work(ctx, back) })
	asking, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	inUse, by = s.prober(asking, ip)
	return inUse, by, true
}

// user names who uses an address that was declined, as well as can be told.
func (x *exchange) user(ip netip.Addr) string {
	if _, by, _ := x.s.probe(x.ctx, ip); by != "" && by != x.f.mac.String() {
		return by
	}
	return "another host"
}

// scout asks the network whether an address is in use: with ARP probes (RFC 5227 section 2.1.1) on the
// interface's own network, where every host has to answer them; with ICMP echo (RFC 2131 section 3.1) on
// networks behind relay agents.
type scout struct {
	nic  *net.Interface
	arp  *os.File // AF_PACKET
	icmp *net.IPConn

	mu      sync.Mutex
	waiting map[netip.Addr][]chan string
	echoID  uint16
}

func newScout(iface string) (*scout, error) {
	nic, err := net.InterfaceByName(iface)
	if err != nil {
		return nil, err
	}
	s := &scout{nic: nic, waiting: map[netip.Addr][]chan string{}, echoID: uint16(os.Getpid())}
	if len(nic.HardwareAddr) == 6 {
		if s.arp, err = packetSocket(nic, unix.ETH_P_ARP); err != nil {
			return nil, fmt.Errorf("ARP on %s: %w", iface, err)
		}
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		ctlErr := c.Control(func(fd uintptr) { err = unix.SetsockoptString(int(fd), unix.SOL_SOCKET, unix.SO_BINDTODEVICE, iface) })
		return errors.Join(ctlErr, err)
	}}
	conn, err := lc.ListenPacket(context.Background(), "ip4:icmp", "0.0.0.0")
	if err != nil {
		s.close()
		return nil, fmt.Errorf("ICMP on %s: %w", iface, err)
	}
	s.icmp = conn.(*net.IPConn)
	return s, nil
}

// packetSocket opens an AF_PACKET socket for one protocol of one NIC. A filter spares us the packets that it
// does not accept.
func packetSocket(nic *net.Interface, protocol uint16, filter ...bpf.Instruction) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if err := attach(fd, filter); err != nil { // before bind: until then nothing is received
		unix.Close(fd)
		return nil, fmt.Errorf("filter: %w", err)
	}
	network := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, protocol)) // htons
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: network, Ifindex: nic.Index}); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "packet:"+nic.Name), nil
}

func attach(fd int, filter []bpf.Instruction) error {
	if len(filter) == 0 {
		return nil
	}
	raw, err := bpf.Assemble(filter)
	if err != nil {
		return err
	}
	program := make([]unix.SockFilter, len(raw))
	for i, ins := range raw {
		program[i] = unix.SockFilter{Code: ins.Op, Jt: ins.Jt, Jf: ins.Jf, K: ins.K}
	}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
}

func (s *scout) close() error {
	var errs []error
	if s.arp != nil {
		errs = append(errs, s.arp.Close())
	}
	if s.icmp != nil {
		errs = append(errs, s.icmp.Close())
	}
	return errors.Join(errs...)
}

// run reads what the network answers, until ctx ends.
func (s *scout) run(ctx context.Context, log *slog.Logger) {
	stop := context.AfterFunc(ctx, func() { s.close() })
	defer stop()
	var readers sync.WaitGroup
	if s.arp != nil {
		readers.Go(func() { listen(ctx, log, "ARP", s.arp.Read, s.heardARP) })
	}
	readers.Go(func() { listen(ctx, log, "ICMP", s.icmp.Read, s.heardICMP) })
	readers.Wait()
}

// listen hands every datagram that read returns to heard, until ctx ends.
func listen(ctx context.Context, log *slog.Logger, what string, read func([]byte) (int, error), heard func([]byte)) {
	buf := make([]byte, 2048)
	pause := time.Millisecond
	for ctx.Err() == nil {
		n, err := read(buf)
		if err != nil {
			if ctx.Err() == nil {
				log.Debug("cannot receive", "protocol", what, "err", err) // the NIC is down: nobody answers either
				select {
				case <-ctx.Done():
				case <-time.After(pause):
				}
				pause = min(2*pause, time.Second)
			}
			continue
		}
		pause = time.Millisecond
		heard(buf[:n])
	}
}

// inUse is the Prober that asks the network. own is the interface's network.
func (s *scout) inUse(own func() netip.Prefix) Prober {
	return func(ctx context.Context, ip netip.Addr) (bool, string) {
		ask := s.askICMP
		if s.arp != nil && own().Contains(ip) {
			ask = s.askARP
		}
		heard := s.await(ip)
		defer s.forget(ip, heard)
		// Three times, as in RFC 5227, but in less than its second: firmware does not wait.
		for range 3 {
			ask(ip) // an address that cannot be asked is as good as one that does not answer
			select {
			case by := <-heard:
				return true, by
			case <-ctx.Done():
				return false, ""
			case <-time.After(probeTime / 3):
			}
		}
		return false, ""
	}
}

func (s *scout) await(ip netip.Addr) chan string {
	s.mu.Lock()
	defer s.mu.Unlock()
	ch := make(chan string, 1)
	s.waiting[ip] = append(s.waiting[ip], ch)
	return ch
}

func (s *scout) forget(ip netip.Addr, ch chan string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := s.waiting[ip][:0]
	for _, c := range s.waiting[ip] {
		if c != ch {
			kept = append(kept, c)
		}
	}
	if s.waiting[ip] = kept; len(kept) == 0 {
		delete(s.waiting, ip)
	}
}

// heard tells those that wait for an address who uses it.
func (s *scout) heard(ip netip.Addr, by string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ch := range s.waiting[ip] {
		select {
		case ch <- by:
		default:
		}
	}
}

// ARP over Ethernet (RFC 826): offsets in the frame.
const (
	arpFrame     = 14 + 28
	arpSenderMAC = 14 + 8
	arpSenderIP  = 14 + 14
	arpTargetIP  = 14 + 24
)

// askARP sends an ARP probe: a request from nobody (sender 0.0.0.0), which spoils no neighbour's cache.
func (s *scout) askARP(ip netip.Addr) {
	frame := make([]byte, arpFrame)
	copy(frame, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	copy(frame[6:], s.nic.HardwareAddr)
	copy(frame[12:], []byte{0x08, 0x06, 0, 1, 0x08, 0x00, 6, 4, 0, 1})
	copy(frame[arpSenderMAC:], s.nic.HardwareAddr)
	target := ip.As4()
	copy(frame[arpTargetIP:], target[:])
	s.arp.Write(frame)
}

// heardARP takes every packet that says "this address is mine", reply or not.
func (s *scout) heardARP(frame []byte) {
	if len(frame) < arpFrame || string(frame[14:20]) != "\x00\x01\x08\x00\x06\x04" {
		return
	}
	if ip := addrOf(frame[arpSenderIP : arpSenderIP+4]); ip.IsValid() {
		s.heard(ip, net.HardwareAddr(frame[arpSenderMAC:arpSenderMAC+6]).String())
	}
}

// askICMP sends an echo request (RFC 792).
func (s *scout) askICMP(ip netip.Addr) {
	msg := []byte{8, 0, 0, 0, byte(s.echoID >> 8), byte(s.echoID), 0, 1}
	binary.BigEndian.PutUint16(msg[2:], checksum(msg))
	s.icmp.WriteToIP(msg, &net.IPAddr{IP: ip.AsSlice()})
}

// heardICMP takes the echo replies to us. The socket delivers them with their IP header.
func (s *scout) heardICMP(packet []byte) {
	if len(packet) < 20 {
		return
	}
	from, size := addrOf(packet[12:16]), int(packet[0]&15)*4
	if len(packet) < size+8 || packet[size] != 0 || binary.BigEndian.Uint16(packet[size+4:]) != s.echoID {
		return
	}
	s.heard(from, "a host that answers ping")
}

// checksum is the one of the Internet protocols (RFC 1071).
func checksum(data []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(data); i += 2 {
		sum += uint32(data[i])<<8 | uint32(data[i+1])
	}
	if len(data)%2 == 1 {
		sum += uint32(data[len(data)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
