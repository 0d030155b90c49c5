package dhcp

import (
	"net/netip"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// inform answers a client that has an address already and asks for the rest (RFC 2131 section 4.3.5): no
// address, no lease times, straight to the address that it says it has.
func (x *exchange) inform() Answer {
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
	reply.ClientIPAddr = x.f.req.ClientIPAddr
	return x.answer("ack", reply, netip.Addr{}, file, refusal)
}
