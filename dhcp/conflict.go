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
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// maxChecks is how many conflict checks are under way at the same time, one for each new client. With probeTime it
// bounds how many new clients are answered in a second, and how many ARP or ICMP packets are sent for them.
const maxChecks = 2048

// verdict is what a conflict check found.
type verdict struct {
	ip      netip.Addr // zero: there was none
	inUse   bool
	by      string // who uses it
	refused bool   // too many are under way
	tries   int    // which one of its packet it was, from 1
}

// refuse is the verdict on an address that cannot be checked now.
func (v verdict) refuse(ip netip.Addr) verdict {
	return verdict{ip: ip, refused: true, tries: v.tries + 1}
}

// check asks whether an address is in use. done is called with what was found, unless too many checks are under way:
// false. Nobody waits for it meanwhile, neither a worker nor another packet.
func (s *Server) check(ip netip.Addr, done func(verdict)) bool {
	if s.checks.Add(1) > maxChecks {
		s.checks.Add(-1)
		return false
	}
	s.prober(ip, func(inUse bool, by string) {
		s.checks.Add(-1)
		done(verdict{ip: ip, inUse: inUse, by: by, tries: 1})
	})
	return true
}

// user names who uses an address that was declined, as well as can be told; ok is false if that has to be asked.
func (x *exchange) user(ip netip.Addr) (by string, ok bool) {
	switch {
	case x.known.ip != ip && x.s.prober != nil:
		return "", false
	case x.known.by != "" && x.known.by != x.f.mac.String():
		return x.known.by, true
	}
	return "another host", true
}

// scout asks the network whether an address is in use: with ARP probes (RFC 5227 section 2.1.1) on the
// interface's own network, where every host has to answer them; with ICMP echo (RFC 2131 section 3.1) on
// networks behind relay agents.
type scout struct {
	nic  *net.Interface
	arp  *os.File // AF_PACKET
	icmp *net.IPConn

	echoID uint16
	own    func() netip.Prefix // the interface's network

	mu    sync.Mutex
	asked map[netip.Addr]*inquiry
	line  []*inquiry    // those under way, the next one due first; some are over
	begun chan struct{} // something was put into an empty line
}

// inquiry is a conflict check under way.
type inquiry struct {
	ip    netip.Addr
	times int // that it was asked
	due   time.Time
	done  []func(inUse bool, by string)
}

func newScout(iface string) (*scout, error) {
	nic, err := net.InterfaceByName(iface)
	if err != nil {
		return nil, err
	}
	s := &scout{nic: nic, asked: map[netip.Addr]*inquiry{}, begun: make(chan struct{}, 1), echoID: uint16(os.Getpid())}
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

// run asks, and reads what the network answers, until ctx ends.
func (s *scout) run(ctx context.Context, log *slog.Logger) {
	stop := context.AfterFunc(ctx, func() { s.close() })
	defer stop()
	var readers sync.WaitGroup
	if s.arp != nil {
		readers.Go(func() { listen(ctx, log, "ARP", s.arp.Read, s.heardARP) })
	}
	readers.Go(func() { listen(ctx, log, "ICMP", s.icmp.Read, s.heardICMP) })
	s.askAgain(ctx)
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

// Three times, as in RFC 5227, but in less than its second: firmware does not wait.
const (
	askTimes = 3
	askEvery = probeTime / askTimes
	askTick  = 5 * time.Millisecond // those that are due within it are asked together
)

// probe is the Prober that asks the network.
func (s *scout) probe(ip netip.Addr, done func(inUse bool, by string)) {
	s.mu.Lock()
	if q, underWay := s.asked[ip]; underWay {
		q.done = append(q.done, done)
		s.mu.Unlock()
		return
	}
	q := &inquiry{ip: ip, times: 1, due: time.Now().Add(askEvery), done: []func(bool, string){done}}
	s.asked[ip] = q
	s.line = append(s.line, q)
	s.mu.Unlock()
	s.ask(ip)
	select {
	case s.begun <- struct{}{}:
	default:
	}
}

// ask sends one question. An address that cannot be asked is as good as one that does not answer.
func (s *scout) ask(ip netip.Addr) {
	if s.arp != nil && s.own().Contains(ip) {
		s.askARP(ip)
	} else {
		s.askICMP(ip)
	}
}

// askAgain repeats questions that are not answered, and ends those that were asked often enough, until ctx ends.
func (s *scout) askAgain(ctx context.Context) {
	for {
		again, unanswered, next := s.takeDue(time.Now())
		for _, ip := range again {
			s.ask(ip)
		}
		for _, q := range unanswered {
			q.answer(false, "")
		}
		var due <-chan time.Time
		if !next.IsZero() {
			due = time.After(max(time.Until(next), askTick))
		}
		select {
		case <-ctx.Done():
			return
		case <-due:
			continue
		case <-s.begun:
		}
		if due != nil { // there was something in the line: its turn has not come yet
			select {
			case <-ctx.Done():
				return
			case <-due:
			}
		}
	}
}

// takeDue takes the questions whose time has come off the line: those to be asked again, which go to its end, and
// those that remained unanswered. next is when the first of the others is due; zero: there is none.
func (s *scout) takeDue(now time.Time) (again []netip.Addr, unanswered []*inquiry, next time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for ; n < len(s.line) && !s.line[n].due.After(now); n++ {
		switch q := s.line[n]; {
		case s.asked[q.ip] != q: // answered meanwhile
		case q.times == askTimes:
			delete(s.asked, q.ip)
			unanswered = append(unanswered, q)
		default:
			q.times++
			q.due = now.Add(askEvery)
			again = append(again, q.ip)
			s.line = append(s.line, q)
		}
	}
	s.line = slices.Delete(s.line, 0, n)
	if len(s.line) > 0 {
		next = s.line[0].due
	}
	return again, unanswered, next
}

// heard takes note of who uses an address.
func (s *scout) heard(ip netip.Addr, by string) {
	s.mu.Lock()
	q, asked := s.asked[ip]
	delete(s.asked, ip)
	s.mu.Unlock()
	if asked {
		q.answer(true, by)
	}
}

// answer ends an inquiry that nobody else finds among those asked any more.
func (q *inquiry) answer(inUse bool, by string) {
	for _, done := range q.done {
		done(inUse, by)
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
