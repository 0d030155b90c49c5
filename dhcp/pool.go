package dhcp

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
	"sync"
	"time"

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
}

func newPool(r inventory.Range) *pool {
	first := binary.BigEndian.Uint32(r.First.AsSlice())
	last := binary.BigEndian.Uint32(r.Last.AsSlice())
	p := &pool{first: first, size: last - first + 1, free: last - first + 1}
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

// maxOffers bounds the memory of what was offered and not yet asked for, whatever MACs are made up.
const maxOffers = 8192

// offer is an address that waits for its client's REQUEST.
type offer struct {
	ip    netip.Addr
	until time.Time
	ready bool // the conflict check is done
}

// offers keeps the addresses that two clients must not be offered at the same time.
type offers struct {
	mu    sync.Mutex
	byMAC map[inventory.MAC]offer
	byIP  map[netip.Addr]inventory.MAC
	queue []expiry // by time
}

type expiry struct {
	mac   inventory.MAC
	until time.Time
}

func newOffers() *offers {
	return &offers{byMAC: map[inventory.MAC]offer{}, byIP: map[netip.Addr]inventory.MAC{}}
}

// get is the offer that a client has.
func (o *offers) get(mac inventory.MAC) (offer, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	of, ok := o.byMAC[mac]
	return of, ok
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

// put notes an offer, unless there are too many, or another client has the address, or this client another
// offer.
func (o *offers) put(mac inventory.MAC, of offer) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if other, ok := o.byIP[of.ip]; ok && other != mac {
		return false
	}
	before, known := o.byMAC[mac]
	if known && before.ip != of.ip || !known && len(o.byMAC) >= maxOffers {
		return false
	}
	if !known || of.until.Sub(before.until) > offerTime/2 { // one entry for a storm of repetitions
		o.compact()
		o.queue = append(o.queue, expiry{mac, of.until})
	} else {
		of.until = before.until
	}
	o.byMAC[mac], o.byIP[of.ip] = of, mac
	return true
}

// compact drops the queue's entries of offers that are gone, when clients ask and go away again and again.
func (o *offers) compact() {
	if len(o.queue) < 4*maxOffers {
		return
	}
	kept := o.queue[:0]
	for _, e := range o.queue {
		if of, ok := o.byMAC[e.mac]; ok && of.until.Equal(e.until) {
			kept = append(kept, e)
		}
	}
	o.queue = kept
}

// confirm notes that the conflict check of a client's offer found nobody.
func (o *offers) confirm(mac inventory.MAC) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if of, ok := o.byMAC[mac]; ok {
		of.ready = true
		o.byMAC[mac] = of
	}
}

// drop forgets a client's offer, and returns it.
func (o *offers) drop(mac inventory.MAC) (offer, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	of, ok := o.byMAC[mac]
	if ok {
		delete(o.byMAC, mac)
		delete(o.byIP, of.ip)
	}
	return of, ok
}

// expire forgets the offers that nobody asked for, and returns their addresses.
func (o *offers) expire(now time.Time) []netip.Addr {
	o.mu.Lock()
	defer o.mu.Unlock()
	var ips []netip.Addr
	n := 0
	for ; n < len(o.queue) && !o.queue[n].until.After(now); n++ {
		mac := o.queue[n].mac
		if of, ok := o.byMAC[mac]; ok && !of.until.After(now) {
			delete(o.byMAC, mac)
			delete(o.byIP, of.ip)
			ips = append(ips, of.ip)
		}
	}
	if n > 0 {
		o.queue = append(o.queue[:0], o.queue[n:]...)
	}
	return ips
}

// full tells whether no further client can be offered an address.
func (o *offers) full() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.byMAC) >= maxOffers
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
