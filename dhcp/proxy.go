package dhcp

import (
	"net/netip"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"rackstrap/lifecycle"
)

// proxy answers beside another DHCP server (PXE 2.1 section 2.2.3): an OFFER without an address to the
// DISCOVER of a boot client, and nothing else. Addresses are the other server's business.
func (x *exchange) proxy() Answer {
	switch {
	case x.f.kind == dhcpv4.MessageTypeRequest:
		x.seeAddress()
		return Answer{Drop: DropMode, Why: "proxy mode: addresses are another server's"}
	case x.f.kind != dhcpv4.MessageTypeDiscover || !x.f.boots():
		return Answer{Drop: DropMode, Why: "proxy mode: addresses are another server's"}
	case x.ignored():
		return x.silent(DropUnknown, x.d.Reason)
	}
	x.enroll()
	x.see(netip.Addr{})
	file, refusal := x.boot()
	if file == "" {
		return x.silent(DropNoLoader, refusal)
	}
	return x.answer("offer", x.reply(dhcpv4.MessageTypeOffer, x.withBoot(file)), netip.Addr{}, file, "")
}

// seeAddress takes note of the address that the other server gives a machine of the list: its broadcast REQUEST names
// both. Another one than the list's would end in a kickstart that is refused; the machine is told at its script, and
// the operator here.
func (x *exchange) seeAddress() {
	ip := x.f.wants
	if !ip.IsValid() {
		ip = x.f.ciaddr
	}
	if !x.d.Listed || !ip.IsValid() || x.f.server == x.s.address {
		return
	}
	x.s.rack.SeeAddress(x.f.mac, ip, x.f.server)
	if d := x.s.rack.DecideFrom(x.f.mac, ip); d.Action == lifecycle.ActionWait {
		x.s.note(x.f.mac, lifecycle.Warn, "address", d.Reason)
	}
}

// bootServer answers at the PXE port, in every mode: firmware that was sent there asks the machine's boot
// file and nothing else. Never lease logic.
func (x *exchange) bootServer() Answer {
	switch {
	case !x.f.boots():
		return Answer{Drop: DropMode, Why: "not a boot client"}
	case x.f.kind != dhcpv4.MessageTypeRequest && x.f.kind != dhcpv4.MessageTypeDiscover && x.f.kind != dhcpv4.MessageTypeInform:
		return Answer{Drop: DropMode, Why: x.f.kind.String() + " at the PXE port"}
	case x.ignored():
		return x.silent(DropUnknown, x.d.Reason)
	case !unicast(x.f.via.From.Addr()) && !x.f.via.From.Addr().IsLoopback():
		return x.silent(DropMalformed, "has no address")
	}
	x.see(netip.Addr{})
	file, refusal := x.boot()
	if file == "" {
		return x.silent(DropNoLoader, refusal)
	}
	reply := x.reply(dhcpv4.MessageTypeAck, x.withBoot(file))
	if x.tooBig(reply) {
		return x.warn(DropTooBig, "the reply does not fit into what it takes")
	}
	x.s.note(x.f.mac, lifecycle.Info, "pxe", bootText("PXE", netip.Addr{}, x.f, file, ""))
	return Answer{Reply: reply, To: x.f.via.From}
}
