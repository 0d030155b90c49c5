package dhcp

import (
	"net/netip"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// inform answers a client that has an address already and asks for the rest (RFC 2131 section 4.3.5): no
// address, no lease times, straight to the address that it says it has.
func (x *exchange) inform() Answer {
	if from := x.f.via.From.Addr(); !x.f.ciaddr.IsValid() && !x.f.giaddr.IsValid() && unicast(from) {
		x.f.ciaddr = from // some clients leave the field empty, and send from the address: ISC's server takes it
	}
	switch {
	case x.ignored():
		return x.silent(DropUnknown, x.d.Reason)
	case !x.f.ciaddr.IsValid():
		return x.silent(DropMalformed, "has no address")
	}
	if x.sub = x.v.subnetOf(x.f.ciaddr); x.sub == nil {
		return x.silent(DropNetwork, x.f.ciaddr.String()+" is in no configured network")
	}
	file, refusal := x.boot()
	reply := x.reply(dhcpv4.MessageTypeAck, x.withNetwork(), x.withBoot(file))
	reply.ClientIPAddr = x.f.ciaddr.AsSlice()
	return x.answer("ack", reply, netip.Addr{}, file, refusal)
}
