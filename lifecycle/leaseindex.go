package lifecycle

import (
	"net/netip"
	"slices"
	"time"

	"rackstrap/inventory"
)

// leaseIndex finds leases by address and by client. A flood of clients may lease a whole pool of tens of thousands of
// addresses, so that it keeps a fraction of what a Lease takes.
type leaseIndex struct {
	at map[[4]byte]heldLease
	of map[inventory.MAC][4]byte
}

type heldLease struct {
	expires     int64 // seconds since 1970
	nanoseconds uint32
	mac         inventory.MAC
	quarantined bool
}

func newLeaseIndex() leaseIndex {
	return leaseIndex{at: map[[4]byte]heldLease{}, of: map[inventory.MAC][4]byte{}}
}

// put shows a lease: the only one of its client, and of its address.
func (x *leaseIndex) put(l Lease) {
	if !l.IP.Is4() {
		return // no store takes one
	}
	ip := l.IP.As4()
	x.drop(l.IP)
	if !l.MAC.IsZero() {
		if before, ok := x.of[l.MAC]; ok {
			delete(x.at, before)
		}
		x.of[l.MAC] = ip
	}
	x.at[ip] = heldLease{expires: l.Expires.Unix(), nanoseconds: uint32(l.Expires.Nanosecond()), mac: l.MAC, quarantined: l.State == LeaseQuarantined}
}

// drop forgets the lease of an address.
func (x *leaseIndex) drop(ip netip.Addr) {
	if !ip.Is4() {
		return
	}
	if old, ok := x.at[ip.As4()]; ok {
		delete(x.of, old.mac)
		delete(x.at, ip.As4())
	}
}

func (x *leaseIndex) byIP(ip netip.Addr) (Lease, bool) {
	if !ip.Is4() {
		return Lease{}, false
	}
	held, ok := x.at[ip.As4()]
	if !ok {
		return Lease{}, false
	}
	return held.lease(ip), true
}

func (x *leaseIndex) byMAC(mac inventory.MAC) (Lease, bool) {
	ip, ok := x.of[mac]
	if !ok {
		return Lease{}, false
	}
	return x.byIP(netip.AddrFrom4(ip))
}

// all lists the leases by address.
func (x *leaseIndex) all() []Lease {
	list := make([]Lease, 0, len(x.at))
	for ip, held := range x.at {
		list = append(list, held.lease(netip.AddrFrom4(ip)))
	}
	slices.SortFunc(list, func(a, b Lease) int { return a.IP.Compare(b.IP) })
	return list
}

func (h heldLease) lease(ip netip.Addr) Lease {
	state := LeaseBound
	if h.quarantined {
		state = LeaseQuarantined
	}
	return Lease{IP: ip, MAC: h.mac, State: state, Expires: time.Unix(h.expires, int64(h.nanoseconds)).UTC()}
}
