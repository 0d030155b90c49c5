package dhcp

import (
	"net/netip"
	"time"

	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

// decline takes note that somebody else uses the address that the client was given (RFC 2131 section
// 4.3.3). It never gets a reply. Only what the client was given is believed: others could empty the pool.
func (x *exchange) decline() Answer {
	ip := x.f.wants
	switch {
	case x.f.server.IsValid() && !x.isOurs(x.f.server):
		return x.silent(DropOtherServer, "names another server "+x.f.server.String())
	case !ip.IsValid():
		return x.silent(DropMalformed, "names no address")
	case !x.given() && !(x.d.Listed && x.d.Machine.IP == ip):
		return x.silent(DropUnknown, "declines "+ip.String()+", which it was not given")
	}
	by, ok := x.user(ip)
	if !ok {
		return Answer{check: ip}
	}
	if x.d.Listed && x.d.Machine.IP == ip {
		// The list stays the authority: the machine gets this address again, and the operator has to find
		// the other one.
		level := lifecycle.Alarm
		if other, err := inventory.ParseMAC(by); err == nil && x.d.Machine.Has(other) {
			by, level = "its card "+by+": let the installed system use one of its cards, or bond them", lifecycle.Warn
		}
		x.s.note(x.f.mac, level, "decline", "DECLINE "+ip.String()+": its reserved address is in use by "+by)
		return Answer{}
	}
	rest := x.rest(ip)
	x.s.offers.drop(x.f.mac)
	if err := x.s.rack.Quarantine(x.ctx, lifecycle.Lease{IP: ip, Expires: x.s.now().Add(rest)}); err != nil {
		x.s.fault("quarantine cannot be written", "ip", ip, "err", err)
	}
	text := "DECLINE " + ip.String() + ": in use by " + by + ", kept out of the pool for " + rest.String()
	x.s.note(x.f.mac, lifecycle.Warn, "decline", text)
	x.s.note(inventory.MAC{}, lifecycle.Warn, "decline", x.f.mac.String()+": "+text)
	return Answer{}
}

// rest is how long a declined address is not given out. Whoever makes up MAC addresses could decline a whole pool:
// where nobody else answers from the address, no more than a part of it rests for long.
func (x *exchange) rest(ip netip.Addr) time.Duration {
	sub := x.v.subnetOf(ip)
	seen := x.known.inUse && x.known.by != x.f.mac.String()
	if seen || sub == nil || sub.pool == nil || sub.pool.declines.AllowN(x.s.now(), 1) {
		return quarantineTime
	}
	return offerTime
}

// given tells whether the declined address was offered or leased to the client.
func (x *exchange) given() bool {
	of, _ := x.s.offers.get(x.f.mac)
	l, _ := x.s.rack.LeaseOf(x.f.mac)
	return of.ip == x.f.wants || l.IP == x.f.wants
}
