package dhcp

import (
	"net/netip"
	"time"

	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

// maxTries is how many addresses that turn out to be in use one DISCOVER may go through: firmware does not
// wait for more, and asks again.
const maxTries = 3

// Reasons why there is no address to offer.
const (
	noPool    = "the network has no pool"
	exhausted = "the pool is exhausted"
	unchecked = "the address has to be checked first"
	checking  = "the conflict check of an address for it is under way"
	tooBusy   = "too many conflict checks at the same time"
	allInUse  = "the addresses tried are in use by others"
)

// allocate finds a pool address for the client, has it checked that nobody uses it, and keeps it for offerTime.
// Where there is none, why says so; unchecked: there is one, but the packet has to wait for its check.
func (x *exchange) allocate() (ip netip.Addr, why string) {
	if x.sub.pool == nil {
		return netip.Addr{}, noPool
	}
	now := x.s.now()
	x.s.expireOffers(x.v, now)
	if of, ok := x.s.offers.get(x.f.mac); ok {
		switch {
		case !x.assignable(of.ip, now):
			x.withdraw() // it moved to another network, or the configuration changed
		case of.ready:
			x.reserve(of.ip, now)
			return of.ip, ""
		case x.known.ip == of.ip:
			return x.judge(of.ip, now)
		default:
			return netip.Addr{}, checking // its reply will answer this repetition, too
		}
	}
	return x.propose(now)
}

// propose keeps an address for the client that nobody else has by our knowledge.
func (x *exchange) propose(now time.Time) (netip.Addr, string) {
	switch {
	case x.known.tries >= maxTries:
		return netip.Addr{}, allInUse
	case x.s.prober != nil && x.s.checks.Load() >= maxChecks && !x.leases(now):
		return netip.Addr{}, tooBusy // before anything is done for it
	}
	ip, why := x.choose(now)
	switch {
	case why != "":
		return netip.Addr{}, why
	case x.s.prober == nil || x.holds(ip, now): // it may be using the address at this moment
		x.s.offers.confirm(x.f.mac)
		return ip, ""
	}
	return ip, unchecked
}

// judge takes the verdict of the conflict check of the client's offer.
func (x *exchange) judge(ip netip.Addr, now time.Time) (netip.Addr, string) {
	switch {
	case x.known.refused:
		x.withdraw()
		return netip.Addr{}, tooBusy
	case !x.known.inUse || x.known.by == x.f.mac.String():
		x.s.offers.confirm(x.f.mac)
		return ip, ""
	}
	x.s.offers.drop(x.f.mac) // its bit stays: it is somebody's
	x.quarantine(ip, x.known.by)
	return x.propose(now)
}

// choose marks an address as offered to the client: the one it had, else the one it asks for, else the one
// that its MAC leads to.
func (x *exchange) choose(now time.Time) (netip.Addr, string) {
	p := x.sub.pool
	if ip, ok := x.leased(now); ok {
		return ip, ""
	}
	if x.f.wants.IsValid() && x.assignable(x.f.wants, now) && p.take(x.f.wants) {
		if x.reserve(x.f.wants, now) {
			return x.settle(x.f.wants, now)
		}
		p.release(x.f.wants)
	}
	for swept := false; ; {
		ip, ok := p.takeNear(hashMAC(x.f.mac))
		switch {
		case ok && x.assignable(ip, now) && x.reserve(ip, now):
			return x.settle(ip, now)
		case ok && x.s.offers.has(x.f.mac): // the same client, twice at the same time
			p.release(ip)
			return netip.Addr{}, checking
		case ok: // taken while another bitmap was in force: the bit is right, look on
		case swept || !p.dueForSweep(now):
			return netip.Addr{}, exhausted
		default:
			x.s.sweep(x.v, p, now)
			swept = true
		}
	}
}

// leased offers the client the address that it had last.
func (x *exchange) leased(now time.Time) (netip.Addr, bool) {
	l, ok := x.s.rack.LeaseOf(x.f.mac)
	if !ok || !x.assignable(l.IP, now) || !x.reserve(l.IP, now) {
		return netip.Addr{}, false
	}
	x.sub.pool.take(l.IP)
	return l.IP, true
}

// settle confirms a choice that was made because the client had no lease. A repetition of the DISCOVER may have
// been answered, and its lease bound, between that look and the reservation: two addresses for one client, of
// which it uses one and we would give the other away. bind writes the lease before it drops the offer that kept
// reserve from succeeding, so a look after the reservation cannot miss it.
func (x *exchange) settle(ip netip.Addr, now time.Time) (netip.Addr, string) {
	l, ok := x.s.rack.LeaseOf(x.f.mac)
	if !ok || l.IP == ip || !x.assignable(l.IP, now) {
		return ip, ""
	}
	x.withdraw()
	if had, ok := x.leased(now); ok {
		return had, ""
	}
	return netip.Addr{}, checking // the repetition is being answered at this moment
}

// reserve notes the address as offered to the client, in place of the oldest offer if there are too many.
func (x *exchange) reserve(ip netip.Addr, now time.Time) bool {
	evicted, ok := x.s.offers.put(x.f.mac, ip, now.Add(offerTime))
	if evicted.IsValid() {
		x.s.freeUnlessLeased(x.v, evicted)
	}
	return ok
}

// assignable tells whether the pool of the client's network may give it this address: not another
// machine's by the list, by lease or by offer, and not quarantined.
func (x *exchange) assignable(ip netip.Addr, now time.Time) bool {
	if x.sub.pool == nil || !x.sub.pool.contains(ip) || ip == x.s.address || x.sub.kept(ip) {
		return false
	}
	if _, reserved := x.v.reserved[ip]; reserved {
		return false
	}
	if l, ok := x.s.rack.LeaseAt(ip); ok && l.MAC != x.f.mac && l.Expires.After(now) {
		return false
	}
	other, offered := x.s.offers.holder(ip)
	return !offered || other == x.f.mac
}

// holds tells whether the client has an unexpired lease of the address.
func (x *exchange) holds(ip netip.Addr, now time.Time) bool {
	l, ok := x.s.rack.LeaseOf(x.f.mac)
	return ok && l.IP == ip && l.State == lifecycle.LeaseBound && l.Expires.After(now)
}

// leases tells whether the client has an unexpired lease.
func (x *exchange) leases(now time.Time) bool {
	l, ok := x.s.rack.LeaseOf(x.f.mac)
	return ok && x.holds(l.IP, now)
}

// withdraw takes an offer back.
func (x *exchange) withdraw() {
	if of, ok := x.s.offers.drop(x.f.mac); ok {
		x.s.freeUnlessLeased(x.v, of.ip)
	}
}

// quarantine keeps an address out of the pool, because somebody else uses it.
func (x *exchange) quarantine(ip netip.Addr, by string) {
	x.s.note(inventory.MAC{}, lifecycle.Warn, "conflict",
		ip.String()+" is in the pool, but "+by+" uses it: not given to "+x.f.mac.String()+", kept out of the pool for "+quarantineTime.String())
	x.s.metrics.conflicts.Inc()
	if err := x.s.rack.Quarantine(x.ctx, lifecycle.Lease{IP: ip, Expires: x.s.now().Add(quarantineTime)}); err != nil {
		x.s.fault("quarantine cannot be written", "ip", ip, "err", err)
	}
}

// bind leases the address to the client. It returns when that is on disk: only then may the ACK leave. What is on disk
// lasts quietTime longer than what the client is told, so that a repetition within that time costs no write.
func (x *exchange) bind(ip netip.Addr) error {
	before, had := x.s.rack.LeaseOf(x.f.mac)
	until := x.s.now().Add(x.v.leaseFor)
	if had && before.IP == ip && before.State == lifecycle.LeaseBound && !before.Expires.Before(until) {
		return nil
	}
	err := x.s.rack.Bind(x.ctx, lifecycle.Lease{IP: ip, MAC: x.f.mac, State: lifecycle.LeaseBound,
		Expires: until.Add(quietTime)})
	if err != nil {
		return err
	}
	x.sub.pool.take(ip)
	if of, ok := x.s.offers.drop(x.f.mac); ok && of.ip != ip {
		x.s.freeUnlessLeased(x.v, of.ip)
	}
	if had && before.IP != ip {
		x.s.freeUnlessLeased(x.v, before.IP)
	}
	return nil
}

// unbind gives the client's lease back.
func (x *exchange) unbind(ip netip.Addr) error {
	if err := x.s.rack.Unbind(x.ctx, x.f.mac, ip); err != nil {
		return err
	}
	x.s.freeUnlessLeased(x.v, ip)
	return nil
}

func (s *Server) expireOffers(v *view, now time.Time) {
	for _, ip := range s.offers.expire(now) {
		s.freeUnlessLeased(v, ip)
	}
}

// freeUnlessLeased clears the address's bit. An expired lease keeps it, see pool.
func (s *Server) freeUnlessLeased(v *view, ip netip.Addr) {
	if _, leased := s.rack.LeaseAt(ip); leased || ip == s.address {
		return
	}
	if _, reserved := v.reserved[ip]; reserved {
		return
	}
	if sub := v.subnetOf(ip); sub != nil && sub.pool != nil && !sub.kept(ip) {
		sub.pool.release(ip)
	}
}

// sweep gives the addresses of expired leases and quarantines back to an exhausted pool.
func (s *Server) sweep(v *view, p *pool, now time.Time) {
	for _, l := range s.rack.Leases() {
		if _, reserved := v.reserved[l.IP]; reserved || l.Expires.After(now) || l.IP == s.address || !p.contains(l.IP) {
			continue
		}
		if _, offered := s.offers.holder(l.IP); !offered {
			p.release(l.IP)
		}
	}
}
