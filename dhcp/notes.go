package dhcp

import (
	"net/netip"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"rackstrap/assets"
	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

const (
	// maxNotes and maxStrayed bound what is remembered in order to leave repetitions out: of listed machines, and of
	// others.
	maxNotes   = 16384
	maxStrayed = 2048
	// notesAtOnce is how many different things of one kind are said about a machine, or the rack, within quietTime.
	notesAtOnce = 8
)

// notes keeps repetitions out of the timeline: firmware retries, and a storm of packets must not become a
// storm of disk writes.
type notes struct {
	max  int
	mu   sync.Mutex
	last map[noteKey]noted
	seen map[inventory.MAC]seen
}

type noteKey struct {
	mac  inventory.MAC
	kind string
}

type noted struct {
	text  string
	at    time.Time
	since time.Time // when count began
	count int       // of what was said within quietTime
}

type seen struct {
	at    time.Time
	role  role
	ip    netip.Addr
	since time.Time // when count began
	count int       // of news within quietTime
}

func newNotes(max int) *notes {
	return &notes{max: max, last: map[noteKey]noted{}, seen: map[inventory.MAC]seen{}}
}

// fresh tells whether this is to be said: it was not within quietTime, nor too much else of its kind. It remembers it.
func (n *notes) fresh(key noteKey, text string, now time.Time) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	last, ok := n.last[key]
	if ok && last.text == text && now.Sub(last.at) < quietTime {
		return false
	}
	if now.Sub(last.since) >= quietTime {
		last.since, last.count = now, 0
	}
	if last.count >= notesAtOnce {
		return false
	}
	if !ok && len(n.last) >= n.max {
		clear(n.last)
	}
	n.last[key] = noted{text, now, last.since, last.count + 1}
	return true
}

// notesOf are those of listed machines and of the rack, or those of others, which cannot displace them.
func (s *Server) notesOf(mac inventory.MAC) *notes {
	if mac.IsZero() || s.rack.Listed(mac) {
		return s.notes
	}
	return s.strayed
}

// note tells the timeline of a machine (the zero MAC: of the rack) what happened.
func (s *Server) note(mac inventory.MAC, level lifecycle.Level, kind, text string) {
	now := s.now()
	if s.notesOf(mac).fresh(noteKey{mac, kind}, text, now) {
		s.rack.Observe(lifecycle.Event{Time: now, MAC: mac, Source: "dhcp", Kind: kind, Level: level, Text: text})
	}
}

// see keeps what the packet told about the machine; ip is the address that it is being given, if any.
func (x *exchange) see(ip netip.Addr) {
	now := x.s.now()
	if !x.s.notesOf(x.f.mac).news(x, ip, now) {
		return
	}
	f := x.f
	s := lifecycle.Sighting{MAC: f.mac, VendorClass: f.vendorClass, UUID: uuidText(f.machineID),
		Relay: f.giaddr, Hostname: f.hostname, Address: ip}
	if f.boots() {
		s.Firmware = x.firmwareSeen()
		if f.kind == dhcpv4.MessageTypeDiscover {
			s.LastBoot = now
		}
	}
	x.s.rack.See(s)
}

// firmwareSeen is the machine's firmware as far as this packet tells. iPXE, once it runs, names the
// architecture of what started it but not how: after an HTTP Boot it comes as PXEClient. So it does not replace
// what the firmware itself said, unless it cannot be the same firmware (BIOS with iPXE in its ROM, where UEFI
// was switched off).
func (x *exchange) firmwareSeen() string {
	if x.f.role == ipxeClient {
		if seen, ok := x.s.rack.Sighting(x.f.mac); ok {
			if before, known := assets.ParseFirmware(seen.Firmware); known && before.EFI() == x.f.firmware.EFI() {
				return "" // as it was
			}
		}
	}
	return string(x.f.firmware)
}

// news tells whether the packet says anything that was not seen within quietTime, nor too much else. A machine whose
// state changed since is always news: the lifecycle compares the times of both.
func (n *notes) news(x *exchange, ip netip.Addr, now time.Time) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	last, ok := n.seen[x.f.mac]
	moved := x.d.Record.Since.After(last.at)
	if ok && last.role == x.f.role && now.Sub(last.at) < quietTime && !moved && (!ip.IsValid() || last.ip == ip) {
		return false
	}
	if now.Sub(last.since) >= quietTime {
		last.since, last.count = now, 0
	}
	if last.count >= notesAtOnce && !moved {
		return false
	}
	if !ip.IsValid() {
		ip = last.ip
	}
	if !ok && len(n.seen) >= n.max {
		clear(n.seen)
	}
	n.seen[x.f.mac] = seen{now, x.f.role, ip, last.since, last.count + 1}
	return true
}
