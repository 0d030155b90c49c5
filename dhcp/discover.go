package dhcp

import (
	"errors"
	"net/netip"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

// discover answers with an OFFER: the reserved address, or one of the pool (RFC 2131 section 4.3.1).
func (x *exchange) discover() Answer {
	if x.ignored() {
		return x.silent(DropUnknown, x.d.Reason)
	}
	x.enroll()
	x.see(netip.Addr{})
	if a, yes := x.elsewhere(); yes {
		return a
	}
	if x.d.Listed {
		return x.offer(x.d.Machine.IP)
	}
	ip, why := x.allocate()
	switch why {
	case "":
		return x.offer(ip)
	case exhausted:
		x.s.note(inventory.MAC{}, lifecycle.Warn, "pool", "the pool of "+x.sub.prefix.String()+" is exhausted")
	case unchecked:
		return Answer{check: ip}
	case checking:
		return Answer{Drop: DropNoAddress, Why: why} // normal, and soon over
	}
	return x.silent(DropNoAddress, why)
}

func (x *exchange) offer(ip netip.Addr) Answer {
	file, refusal := x.boot()
	return x.answer("offer", x.reply(dhcpv4.MessageTypeOffer, x.withAddress(ip), x.withLease(), x.withNetwork(), x.withBoot(file)),
		ip, file, refusal)
}

// enroll gives an unknown machine the next free slot, if it begins a network boot and the policy is enroll.
// A slot on another network stays free: the machine could not use its address. A further card of a known machine is
// none, though it be the first time that it is seen.
func (x *exchange) enroll() {
	if x.d.Listed || x.d.CardOf != "" || x.v.config.Network.DHCP.Unknown != inventory.UnknownEnroll || !x.f.boots() {
		return
	}
	slot, ok := x.s.rack.FreeSlot()
	if !ok {
		x.s.note(x.f.mac, lifecycle.Info, "enroll", lifecycle.ErrNoFreeSlot.Error())
		return
	}
	if !x.sub.prefix.Contains(slot.IP) {
		x.s.note(x.f.mac, lifecycle.Warn, "enroll", "not enrolled: the next free slot, "+slot.Name+" ("+slot.IP.String()+
			"), is not on its network "+x.sub.prefix.String())
		return
	}
	x.s.rack.See(lifecycle.Sighting{MAC: x.f.mac, UUID: uuidText(x.f.machineID)}) // two cards may ask at the same time
	if _, remembered := x.s.rack.Sighting(x.f.mac); !remembered {
		x.s.note(x.f.mac, lifecycle.Info, "enroll", "not enrolled yet: more machines outside the list are seen than are remembered")
		return
	}
	_, err := x.s.rack.Enroll(x.ctx, x.f.mac)
	var card *lifecycle.FurtherCardError
	switch {
	case errors.As(err, &card): // the other card of this machine was faster
		x.d = x.s.rack.Decide(x.f.mac)
		return
	case errors.Is(err, lifecycle.ErrNoFreeSlot):
		x.s.note(x.f.mac, lifecycle.Info, "enroll", err.Error())
		return
	case err != nil:
		x.s.fault("machine cannot be enrolled", "mac", x.f.mac, "err", err)
		return
	}
	x.d = x.s.rack.Decide(x.f.mac)
}
