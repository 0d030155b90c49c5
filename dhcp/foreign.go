package dhcp

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

// Foreign is another DHCP server on the network, as its OFFER shows it.
type Foreign struct {
	ServerID netip.Addr       // option 54
	From     netip.Addr       // sender: a relay agent's, if it is not ServerID
	MAC      net.HardwareAddr // sender on the link
	Offered  netip.Addr       // zero Addr: a proxyDHCP server
	BootFile string           // what it would boot
}

// String is one line for people.
func (f Foreign) String() string {
	text := fmt.Sprintf("%s (%s)", f.ServerID, f.MAC)
	if f.From != f.ServerID {
		text += fmt.Sprintf(" by way of %s", f.From)
	}
	if f.Offered.IsValid() {
		text += fmt.Sprintf(" offers %s", f.Offered)
	} else {
		text += " offers no address"
	}
	if f.BootFile != "" {
		text += fmt.Sprintf(", boot file %q", f.BootFile)
	}
	return text
}

// How the network is asked.
const (
	foreignTime  = 4500 * time.Millisecond // dnsmasq checks for conflicts for three seconds before it offers
	foreignAgain = time.Second             // a lost packet must not hide a server
)

// ProbeForeign broadcasts a DISCOVER on the interface, as firmware would, and collects the OFFERs of servers
// other than own. It takes a few seconds, less if ctx ends before; what was found until then is returned.
//
// It works on the link layer: no port is needed, and a server on this very host does not hear the DISCOVER.
// Nobody gets an address by it: the station does not exist, and is the same one each time.
func ProbeForeign(ctx context.Context, iface string, own netip.Addr) ([]Foreign, error) {
	ctx, cancel := context.WithTimeout(ctx, foreignTime)
	defer cancel()
	return probeForeign(ctx, iface, own)
}

// probeForeign collects OFFERs until ctx ends.
func probeForeign(ctx context.Context, iface string, own netip.Addr) ([]Foreign, error) {
	nic, err := net.InterfaceByName(iface)
	if err != nil {
		return nil, fmt.Errorf("look for other DHCP servers: %w", err)
	}
	if len(nic.HardwareAddr) != 6 {
		return nil, fmt.Errorf("look for other DHCP servers: %s is no Ethernet interface", iface)
	}
	socket, err := packetSocket(nic, unix.ETH_P_IP, toClientPort...)
	if err != nil {
		return nil, fmt.Errorf("look for other DHCP servers on %s: %w", iface, err)
	}
	defer socket.Close()
	stop := context.AfterFunc(ctx, func() { socket.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()

	discover, err := probeMessage(nic.HardwareAddr)
	if err != nil {
		return nil, err
	}
	frame := frameOf(nic.HardwareAddr, discover.ToBytes())
	if _, err := socket.Write(frame); err != nil {
		return nil, fmt.Errorf("look for other DHCP servers on %s: %w", iface, err)
	}
	again := time.AfterFunc(foreignAgain, func() { socket.Write(frame) })
	defer again.Stop()

	var found []Foreign
	buf := make([]byte, maxPacket)
	for {
		n, err := socket.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return found, nil
		}
		if err != nil {
			return found, fmt.Errorf("look for other DHCP servers on %s: %w", iface, err)
		}
		f, ok := readOffer(buf[:n], discover)
		if !ok || f.ServerID == own {
			continue
		}
		same := func(other Foreign) bool { return other.ServerID == f.ServerID && other.From == f.From }
		if !slices.ContainsFunc(found, same) {
			found = append(found, f)
		}
	}
}

// toClientPort lets only UDP to port 68 through: the NIC may be busy with installing a rack.
var toClientPort = []bpf.Instruction{
	bpf.LoadAbsolute{Off: 14 + 9, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_UDP, SkipTrue: 4},
	bpf.LoadMemShift{Off: 14}, // X = length of the IP header
	bpf.LoadIndirect{Off: 14 + 2, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: portClient, SkipTrue: 1},
	bpf.RetConstant{Val: maxPacket},
	bpf.RetConstant{Val: 0},
}

// probeMessage is the DISCOVER of a UEFI machine that does not exist: its MAC is the NIC's own, marked as
// locally administered. The user class tells another Rackstrap not to enrol it.
func probeMessage(nic net.HardwareAddr) (*dhcpv4.DHCPv4, error) {
	mac := slices.Clone(nic)
	mac[0] = mac[0]&^1 | 2
	mac[1] ^= 0x52 // the NIC's own may be a made-up one, too
	return dhcpv4.NewDiscovery(mac,
		dhcpv4.WithBroadcast(true),
		dhcpv4.WithOption(dhcpv4.OptClassIdentifier("PXEClient:Arch:00007:UNDI:003000")), // proxyDHCP servers answer this one only
		dhcpv4.WithOption(dhcpv4.OptClientArch(iana.EFI_X86_64)),
		dhcpv4.WithOption(dhcpv4.OptUserClass(userClassProbe)),
	)
}

// frameOf wraps a DHCP message into Ethernet, IPv4 and UDP: from a client without an address to everybody.
func frameOf(from net.HardwareAddr, payload []byte) []byte {
	frame := make([]byte, 0, 42+len(payload))
	frame = append(frame, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	frame = append(append(frame, from...), 0x08, 0x00)
	ip := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255}
	binary.BigEndian.PutUint16(ip[2:], uint16(28+len(payload)))
	binary.BigEndian.PutUint16(ip[10:], checksum(ip))
	udp := []byte{0, portClient, 0, portServer, 0, 0, 0, 0} // checksum 0: none (RFC 768)
	binary.BigEndian.PutUint16(udp[4:], uint16(8+len(payload)))
	return append(append(append(frame, ip...), udp...), payload...)
}

// readOffer reads an OFFER to our DISCOVER out of an Ethernet frame.
func readOffer(frame []byte, discover *dhcpv4.DHCPv4) (Foreign, bool) {
	if len(frame) < 14+20+8 || frame[14]>>4 != 4 || frame[14+9] != 17 {
		return Foreign{}, false
	}
	udp := 14 + int(frame[14]&15)*4
	if len(frame) < udp+8 || binary.BigEndian.Uint16(frame[udp+2:]) != portClient {
		return Foreign{}, false
	}
	msg, err := dhcpv4.FromBytes(frame[udp+8:])
	if err != nil || msg.OpCode != dhcpv4.OpcodeBootReply || msg.TransactionID != discover.TransactionID ||
		msg.MessageType() != dhcpv4.MessageTypeOffer || msg.ClientHWAddr.String() != discover.ClientHWAddr.String() {
		return Foreign{}, false
	}
	f := Foreign{
		ServerID: addrOf(msg.Options[optServer]), From: addrOf(frame[14+12 : 14+16]), MAC: slices.Clone(frame[6:12]),
		Offered: addrOf(msg.YourIPAddr), BootFile: printable([]byte(msg.BootFileName)),
	}
	if f.BootFile == "" {
		f.BootFile = printable(msg.Options[optBootfile])
	}
	if !f.ServerID.IsValid() {
		f.ServerID = f.From
	}
	return f, true
}

// foreignList is what the last look found.
type foreignList struct {
	mu    sync.Mutex
	found []Foreign
}

// replace puts another list in place, and tells whether other servers are on it. The address offered does
// not count: it may be another one each time.
func (l *foreignList) replace(found []Foreign) (changed bool) {
	slices.SortFunc(found, func(a, b Foreign) int {
		return cmp.Or(a.ServerID.Compare(b.ServerID), a.From.Compare(b.From))
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	changed = !slices.EqualFunc(found, l.found, func(a, b Foreign) bool {
		return a.ServerID == b.ServerID && a.From == b.From && a.MAC.String() == b.MAC.String()
	})
	l.found = found
	return changed
}

// Foreign lists the other DHCP servers that answered the last time, one line each.
func (s *Server) Foreign() []string {
	s.foreign.mu.Lock()
	defer s.foreign.mu.Unlock()
	var names []string
	for _, f := range s.foreign.found {
		names = append(names, f.String())
	}
	return names
}

// watchForeign looks for other servers now and every network.dhcp.probe_interval, until ctx ends.
func (s *Server) watchForeign(ctx context.Context) error {
	if s.iface == "" {
		return nil
	}
	for last := (time.Time{}); ; {
		config := s.rack.Config().Network.DHCP
		due := last.IsZero() || config.ProbeInterval > 0 && time.Since(last) >= config.ProbeInterval
		if due && config.Mode == inventory.DHCPServer { // beside a proxy one is expected
			s.lookForForeign(ctx)
			last = time.Now()
		}
		wait := time.Minute // then the configuration may be another one
		if config.ProbeInterval > 0 {
			wait = min(wait, config.ProbeInterval)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

func (s *Server) lookForForeign(ctx context.Context) {
	wait, cancel := context.WithTimeout(ctx, s.foreignTime)
	defer cancel()
	found, err := probeForeign(wait, s.iface, s.address)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		s.log.Warn("other DHCP servers cannot be looked for", "err", err)
	default:
		s.setForeign(found)
	}
}

// setForeign tells the operator, when the set of servers changed.
func (s *Server) setForeign(found []Foreign) {
	s.metrics.foreign.Set(float64(len(found)))
	switch {
	case !s.foreign.replace(found):
	case len(found) == 0:
		s.note(inventory.MAC{}, lifecycle.Info, "foreign-dhcp", "no other DHCP server answers any more")
	default:
		s.note(inventory.MAC{}, lifecycle.Alarm, "foreign-dhcp", "another DHCP server answers on this network: "+
			strings.Join(s.Foreign(), "; ")+": switch it off, or set network.dhcp.mode: proxy")
	}
}
