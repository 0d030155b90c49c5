package dhcp

import (
	"net/netip"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"rackstrap/inventory"
)

// urgency is the order in which packets are served when more arrive than can be answered at once.
type urgency int

const (
	// ofListed is a packet of a machine of the list. Nobody else is served before it.
	ofListed urgency = iota
	// ofPromised goes on with what was begun: a REQUEST for an address that was offered or leased, a packet whose
	// conflict check is done. Without it a flood of DISCOVERs would leave nobody time to take what is offered.
	ofPromised
	// ofExcess is what comes in the name of a listed machine beyond its share: others may send it.
	ofExcess
	// ofStranger is all else: MAC addresses that can be made up.
	ofStranger
)

// Sizes of the backlog. What finds no room is dropped: its client asks again.
const (
	maxListed    = 2048 // packets of listed machines that wait for a worker; as many again beyond their shares
	maxPromised  = 4096 // those of clients that an address was promised; more than there are conflict checks
	maxStrangers = 1024 // those of strangers, for each network: they wait a fraction of a second, or not at all
	// listedShare is how many packets of one listed MAC are urgent in a second. A machine needs less; what somebody
	// else sends in its name takes nothing from other machines.
	listedShare = 8
)

// backlog holds the packets that wait for a worker, by urgency. Those of strangers are taken from each network in
// turn, so that a flood through one relay agent leaves the others their part.
type backlog struct {
	mu      sync.Mutex
	work    sync.Cond // for workers that take any packet
	urgent  sync.Cond // for those that only take listed ones
	waiting int       // of the latter
	closed  bool

	listed, promised, excess fifo
	strangers                []fifo // by network
	turn                     int

	// paused tells that no stranger can be answered now, because too many conflict checks are under way. Each that ends
	// wakes a worker, by goOn.
	paused func() bool

	shares map[inventory.MAC]int // packets of listed machines in this second
	second time.Time
}

func newBacklog(paused func() bool) *backlog {
	b := &backlog{paused: paused, shares: map[inventory.MAC]int{}, strangers: make([]fifo, 1)}
	b.work.L, b.urgent.L = &b.mu, &b.mu
	return b
}

// put adds a packet that just arrived, and returns the one that there is no room for, if any.
func (b *backlog) put(p *packet, h header, listed, promised bool, network int) (dropped *packet) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p.urgency = ofStranger
	switch {
	case listed && b.withinShare(h.mac, p.arrived):
		p.urgency = ofListed
	case promised, listed && h.kind == dhcpv4.MessageTypeRequest:
		p.urgency = ofPromised
	case listed:
		p.urgency = ofExcess
	}
	return b.add(p, network)
}

// goOn adds a packet whose conflict check is done, and returns it if there is no room.
func (b *backlog) goOn(p *packet) (dropped *packet) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p.urgency = ofPromised
	return b.add(p, 0)
}

// withinShare counts a packet of a listed machine. The caller holds mu.
func (b *backlog) withinShare(mac inventory.MAC, now time.Time) bool {
	if now.Sub(b.second) >= time.Second {
		b.second = now
		clear(b.shares)
	}
	b.shares[mac]++
	return b.shares[mac] <= listedShare
}

// add puts a packet behind the others of its urgency, and returns the one that there is no room for: a stranger's that
// waits for the longest time, else the new one. The caller holds mu.
func (b *backlog) add(p *packet, network int) (dropped *packet) {
	line, bound := &b.listed, maxListed
	switch p.urgency {
	case ofPromised:
		line, bound = &b.promised, maxPromised
	case ofExcess:
		line = &b.excess
	case ofStranger:
		for network >= len(b.strangers) {
			b.strangers = append(b.strangers, fifo{})
		}
		line, bound = &b.strangers[network], maxStrangers
	}
	switch {
	case b.closed:
		return p
	case line.size < bound:
	case p.urgency == ofStranger:
		dropped = line.pop()
	default:
		return p
	}
	line.push(p, bound)
	if p.urgency == ofListed && b.listed.size <= b.waiting {
		b.urgent.Signal() // there is one for each that waits
	} else {
		b.work.Signal()
	}
	return dropped
}

// take waits for the packet that is served next; nil: the backlog is closed. A worker that only takes listed ones
// is never held up by a disk or a store that strangers keep busy.
func (b *backlog) take(onlyListed bool) *packet {
	b.mu.Lock()
	defer b.mu.Unlock()
	for !b.closed {
		if p := b.next(onlyListed); p != nil {
			return p
		}
		if onlyListed {
			b.waiting++
			b.urgent.Wait()
			b.waiting--
		} else {
			b.work.Wait()
		}
	}
	return nil
}

// next is the packet to be served next, if there is one. The caller holds mu.
func (b *backlog) next(onlyListed bool) *packet {
	if p := b.listed.pop(); p != nil || onlyListed {
		return p
	}
	for _, f := range []*fifo{&b.promised, &b.excess} {
		if p := f.pop(); p != nil {
			return p
		}
	}
	if b.paused() {
		return nil
	}
	for range b.strangers {
		b.turn = (b.turn + 1) % len(b.strangers)
		// The one that came last: it is answered in time, while whoever waits for long has given up or asked again. In
		// the order of their arrival all answers of an overloaded server would come too late.
		if p := b.strangers[b.turn].popLast(); p != nil {
			return p
		}
	}
	return nil
}

// close ends the workers. Packets that wait are dropped: their clients ask again.
func (b *backlog) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	b.work.Broadcast()
	b.urgent.Broadcast()
}

// fifo is a queue of packets: a ring that grows up to its bound. Whoever pushes has looked whether there is room.
type fifo struct {
	ring []*packet
	head int
	size int
}

func (f *fifo) push(p *packet, bound int) {
	if f.size == len(f.ring) {
		ring := make([]*packet, min(max(64, 2*f.size), bound))
		for i := range f.size {
			ring[i] = f.ring[(f.head+i)%len(f.ring)]
		}
		f.ring, f.head = ring, 0
	}
	f.ring[(f.head+f.size)%len(f.ring)] = p
	f.size++
}

func (f *fifo) pop() *packet {
	if f.size == 0 {
		return nil
	}
	p := f.ring[f.head]
	f.ring[f.head] = nil
	f.head = (f.head + 1) % len(f.ring)
	f.size--
	return p
}

// popLast takes the one that was put in last.
func (f *fifo) popLast() *packet {
	if f.size == 0 {
		return nil
	}
	f.size--
	last := (f.head + f.size) % len(f.ring)
	p := f.ring[last]
	f.ring[last] = nil
	return p
}

// header is what is read of a packet before there is time for it.
type header struct {
	mac    inventory.MAC
	giaddr netip.Addr
	kind   dhcpv4.MessageType
}

// Offsets in a DHCP message (RFC 2131 figure 1).
const (
	offHType   = 1
	offHLen    = 2
	offGiaddr  = 24
	offChaddr  = 28
	offSname   = 44
	offFile    = 108
	offCookie  = 236
	offOptions = 240 // behind the magic cookie
)

// peek reads what the urgency depends on, and judges nothing: a packet that is none of DHCP has a zero header.
func peek(data []byte) (h header) {
	if len(data) < offOptions {
		return h
	}
	h.mac = inventory.MAC(data[offChaddr : offChaddr+6])
	h.giaddr = addrOf(data[offGiaddr : offGiaddr+4])
	for rest := data[offOptions:]; len(rest) >= 3 && rest[0] != 255; {
		switch n := 2 + int(rest[1]); {
		case rest[0] == 0: // padding
			rest = rest[1:]
		case rest[0] == optType:
			h.kind = dhcpv4.MessageType(rest[2])
			return h
		case n > len(rest):
			return h
		default:
			rest = rest[n:]
		}
	}
	return h
}

// enqueue finds out how urgent a packet is, and has it wait for a worker. It returns the packet that there is no room
// for, if any.
func (s *Server) enqueue(p *packet) (dropped *packet) {
	h := peek(p.data)
	listed := s.rack.Listed(h.mac)
	promised := !listed && h.kind == dhcpv4.MessageTypeRequest && s.promised(h.mac)
	return s.backlog.put(p, h, listed, promised, s.networkOf(h.giaddr))
}

// promised tells whether a client was offered an address or has one.
func (s *Server) promised(mac inventory.MAC) bool {
	if s.offers.has(mac) {
		return true
	}
	_, leased := s.rack.LeaseOf(mac)
	return leased
}

// networkOf is the place of a relay agent's network in the configuration; 0: our own one, or none.
func (s *Server) networkOf(giaddr netip.Addr) int {
	v := s.views.current.Load() // a reload shows with the next packet that is handled: soon enough
	if v == nil || !giaddr.IsValid() {
		return 0
	}
	for i, sub := range v.subnets {
		if sub.prefix.Contains(giaddr) {
			return i
		}
	}
	return 0
}
