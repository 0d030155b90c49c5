package dhcp

import (
	"container/list"
	"encoding/binary"
	"math/bits"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"rackstrap/inventory"
)

// pool is the set of addresses of one range that are not free: a bitmap, so that finding one in a full /16
// costs a thousand words, not sixty thousand look-ups. It only helps to choose: whether an address is really
// free is decided by the Rack's leases, each time.
//
// An expired lease keeps its bit until the range runs out: a client that comes back late finds its old
// address (RFC 2131 section 4.3.1).
type pool struct {
	first uint32
	size  uint32

	mu    sync.Mutex
	used  []uint64
	free  uint32
	swept time.Time // when expired leases were last looked for

	declines *rate.Limiter // addresses that clients declined and nobody else was seen to use: an eighth of the pool in an hour
}

func newPool(r inventory.Range) *pool {
	first := binary.BigEndian.Uint32(r.First.AsSlice())
	last := binary.BigEndian.Uint32(r.Last.AsSlice())
	p := &pool{first: first, size: last - first + 1, free: last - first + 1}
	eighth := max(1, int(p.size/8))
	p.declines = rate.NewLimiter(rate.Every(quarantineTime/time.Duration(eighth)), eighth)
	p.used = make([]uint64, (p.size+63)/64)
	for i := p.size; i < uint32(len(p.used))*64; i++ { // beyond the end
		p.used[i/64] |= 1 << (i % 64)
	}
	return p
}

// index is the place of an address in the range; ok is false outside of it.
func (p *pool) index(a netip.Addr) (i uint32, ok bool) {
	if !a.Is4() {
		return 0, false
	}
	b := a.As4()
	i = binary.BigEndian.Uint32(b[:]) - p.first
	return i, i < p.size
}

func (p *pool) contains(a netip.Addr) bool {
	_, ok := p.index(a)
	return ok
}

// take marks an address, and tells whether it was free.
func (p *pool) take(a netip.Addr) bool {
	i, ok := p.index(a)
	if !ok {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.takeIndex(i)
}

func (p *pool) takeIndex(i uint32) bool {
	if p.used[i/64]&(1<<(i%64)) != 0 {
		return false
	}
	p.used[i/64] |= 1 << (i % 64)
	p.free--
	return true
}

// release makes an address free again.
func (p *pool) release(a netip.Addr) {
	i, ok := p.index(a)
	if !ok {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.used[i/64]&(1<<(i%64)) != 0 {
		p.used[i/64] &^= 1 << (i % 64)
		p.free++
	}
}

// takeNear marks the first free address at or behind a place that the seed names, and returns it. The same
// client thus gets the same address, as long as it is free, even from an appliance that forgot it.
func (p *pool) takeNear(seed uint64) (netip.Addr, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.free == 0 {
		return netip.Addr{}, false
	}
	start := uint32(seed % uint64(p.size))
	words := uint32(len(p.used))
	for n := range words + 1 { // the first word twice: its upper part, and at the end its lower one
		w := (start/64 + n) % words
		vacant := ^p.used[w]
		if n == 0 {
			vacant &^= 1<<(start%64) - 1
		}
		if vacant != 0 {
			i := w*64 + uint32(bits.TrailingZeros64(vacant))
			p.takeIndex(i)
			return addr4(p.first + i), true
		}
	}
	return netip.Addr{}, false
}

// dueForSweep tells, at most once a second, that it is time to look for expired leases.
func (p *pool) dueForSweep(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.free > 0 || now.Sub(p.swept) < time.Second {
		return false
	}
	p.swept = now
	return true
}

// hashMAC is a fixed function: the choice of an address outlives the process.
func hashMAC(mac inventory.MAC) uint64 {
	h := uint64(14695981039346656037) // FNV-1a
	for _, b := range mac {
		h = (h ^ uint64(b)) * 1099511628211
	}
	return h ^ h>>29
}

// maxOffers bounds the memory of what was offered and not yet asked for, whatever MACs are made up. Beyond, the oldest
// offer makes room: its client is answered all the same, as long as nobody else was given the address.
const maxOffers = 8192

// offer is an address that waits for its client's REQUEST.
type offer struct {
	mac   inventory.MAC
	ip    netip.Addr
	until time.Time
	ready bool // the conflict check is done
}

// offers keeps the addresses that two clients must not be offered at the same time.
type offers struct {
	mu    sync.Mutex
	byMAC map[inventory.MAC]*list.Element
	byIP  map[netip.Addr]inventory.MAC
	line  list.List // of *offer, by time
}

func newOffers() *offers {
	return &offers{byMAC: map[inventory.MAC]*list.Element{}, byIP: map[netip.Addr]inventory.MAC{}}
}

// get is the offer that a client has.
func (o *offers) get(mac inventory.MAC) (offer, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	e, ok := o.byMAC[mac]
	if !ok {
		return offer{}, false
	}
	return *e.Value.(*offer), true
}

// has tells whether a client has an offer.
func (o *offers) has(mac inventory.MAC) bool {
	_, ok := o.get(mac)
	return ok
}

// holder is the client that an address is offered to.
func (o *offers) holder(ip netip.Addr) (inventory.MAC, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	mac, ok := o.byIP[ip]
	return mac, ok
}

// put notes an offer, or that it was repeated, unless another client has the address, or this client another offer.
// evicted is the address of the offer that it took the place of, if any.
func (o *offers) put(mac inventory.MAC, ip netip.Addr, until time.Time) (evicted netip.Addr, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if other, taken := o.byIP[ip]; taken && other != mac {
		return netip.Addr{}, false
	}
	if e, known := o.byMAC[mac]; known {
		of := e.Value.(*offer)
		if of.ip != ip {
			return netip.Addr{}, false
		}
		of.until = until
		o.line.MoveToBack(e)
		return netip.Addr{}, true
	}
	if o.line.Len() >= maxOffers {
		evicted = o.remove(o.line.Front()).ip
	}
	o.byMAC[mac], o.byIP[ip] = o.line.PushBack(&offer{mac: mac, ip: ip, until: until}), mac
	return evicted, true
}

// remove forgets an offer. The caller holds mu.
func (o *offers) remove(e *list.Element) offer {
	of := o.line.Remove(e).(*offer)
	delete(o.byMAC, of.mac)
	delete(o.byIP, of.ip)
	return *of
}

// confirm notes that the conflict check of a client's offer found nobody.
func (o *offers) confirm(mac inventory.MAC) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if e, ok := o.byMAC[mac]; ok {
		e.Value.(*offer).ready = true
	}
}

// drop forgets a client's offer, and returns it.
func (o *offers) drop(mac inventory.MAC) (offer, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	e, ok := o.byMAC[mac]
	if !ok {
		return offer{}, false
	}
	return o.remove(e), true
}

// expire forgets the offers that nobody asked for, and returns their addresses.
func (o *offers) expire(now time.Time) []netip.Addr {
	o.mu.Lock()
	defer o.mu.Unlock()
	var ips []netip.Addr
	for e := o.line.Front(); e != nil && !e.Value.(*offer).until.After(now); e = o.line.Front() {
		ips = append(ips, o.remove(e).ip)
	}
	return ips
}

// addresses lists what is offered at this moment.
func (o *offers) addresses() []netip.Addr {
	o.mu.Lock()
	defer o.mu.Unlock()
	ips := make([]netip.Addr, 0, len(o.byIP))
	for ip := range o.byIP {
		ips = append(ips, ip)
	}
	return ips
}
