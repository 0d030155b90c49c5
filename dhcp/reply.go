package dhcp

import (
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"rackstrap/assets"
	"rackstrap/lifecycle"
)

// Option codes (RFC 2132, unless said otherwise) that replies carry.
const (
	optMask       = 1
	optRouter     = 3
	optDNS        = 6
	optHostname   = 12
	optDomain     = 15
	optBroadcast  = 28
	optNTP        = 42
	optVendor     = 43
	optLease      = 51
	optType       = 53
	optServer     = 54
	optMessage    = 56
	optRenew      = 58
	optRebind     = 59
	optClass      = 60
	optClientID   = 61
	optTFTPServer = 66
	optBootfile   = 67
	optRelay      = 82  // RFC 3046
	optMachineID  = 97  // RFC 4578
	optIPXE       = 175 // iPXE's encapsulated options
)

// modifier adds something to a reply.
type modifier func(*dhcpv4.DHCPv4)

// reply begins every reply: who answers whom. The library's NewReplyFromRequest is not used: it reads random
// bytes for a transaction that it then throws away.
func (x *exchange) reply(kind dhcpv4.MessageType, modifiers ...modifier) *dhcpv4.DHCPv4 {
	req := x.f.req
	r := &dhcpv4.DHCPv4{
		OpCode:        dhcpv4.OpcodeBootReply,
		HWType:        req.HWType,
		TransactionID: req.TransactionID,
		Flags:         req.Flags & broadcastFlag,
		GatewayIPAddr: req.GatewayIPAddr,
		ClientHWAddr:  req.ClientHWAddr,
		Options:       make(dhcpv4.Options, 24), // so many that it never grows
	}
	r.Options[optType] = []byte{byte(kind)}
	r.Options[optServer] = x.s.addressBytes
	if x.f.stands.IsValid() {
		r.Options[optServer] = x.f.stands.AsSlice()
	}
	for _, code := range []uint8{optClientID, optRelay} { // RFC 6842, RFC 3046 section 2.2
		if value, ok := req.Options[code]; ok {
			r.Options[code] = value
		}
	}
	if kind == dhcpv4.MessageTypeNak && x.f.giaddr.IsValid() {
		r.Flags |= broadcastFlag // the relay agent must not send it to an address that is not the client's
	}
	for _, m := range modifiers {
		m(r)
	}
	return r
}

const broadcastFlag = 0x8000

func (x *exchange) withAddress(ip netip.Addr) modifier {
	return func(r *dhcpv4.DHCPv4) { r.YourIPAddr = ip.AsSlice() }
}

func (x *exchange) withLease() modifier {
	return func(r *dhcpv4.DHCPv4) {
		r.Options[optLease], r.Options[optRenew], r.Options[optRebind] = x.v.lease, x.v.renew, x.v.rebind
	}
}

// withNetwork adds what the client needs of its network: mask, router and DNS always, the rest if it asks.
func (x *exchange) withNetwork() modifier {
	return func(r *dhcpv4.DHCPv4) {
		o := r.Options
		o[optMask] = x.sub.mask
		set(o, optRouter, x.sub.gateway)
		set(o, optDNS, x.sub.dns)
		if x.d.Listed {
			x.extra(o, optHostname, []byte(x.d.Machine.Name))
		}
		x.extra(o, optDomain, x.v.domain)
		x.extra(o, optBroadcast, x.sub.broadcast)
		x.extra(o, optNTP, x.v.ntp)
	}
}

// extra sets an option that the client asks for, or that it did not say anything about.
func (x *exchange) extra(o dhcpv4.Options, code uint8, value []byte) {
	if x.f.asked[code] || !x.f.askedAny {
		set(o, code, value)
	}
}

func set(o dhcpv4.Options, code uint8, value []byte) {
	if len(value) > 0 {
		o[code] = value
	}
}

func withText(text string) modifier {
	return func(r *dhcpv4.DHCPv4) { r.Options[optMessage] = []byte(text[:min(len(text), 255)]) }
}

// answer sends a reply and tells the timeline.
func (x *exchange) answer(kind string, reply *dhcpv4.DHCPv4, ip netip.Addr, file, refusal string) Answer {
	a := x.send(reply)
	if a.Reply != nil {
		level := lifecycle.Info
		if x.f.boots() && x.f.role != ipxeClient && x.f.firmware == assets.Unsupported {
			level = lifecycle.Warn
		}
		x.s.note(x.f.mac, level, kind, bootText(strings.ToUpper(kind), ip, x.f, file, refusal))
	}
	return a
}

// send makes the reply fit and addresses it.
func (x *exchange) send(reply *dhcpv4.DHCPv4) Answer {
	if x.tooBig(reply) {
		return x.warn(DropTooBig, "the reply does not fit into what it takes")
	}
	return Answer{Reply: reply, To: x.destination(reply)}
}

// expendable are the options that a client can do without, the least important first.
var expendable = []uint8{optNTP, optDomain, optBroadcast, optRenew, optRebind, optHostname, optMessage, optTFTPServer}

// tooBig leaves out what the client can do without until the reply fits into what it takes. There is no
// option overload: firmware does not read it.
func (x *exchange) tooBig(r *dhcpv4.DHCPv4) bool {
	size, needed := 240+1, 240+1 // header with the cookie, end option
	for code, value := range r.Options {
		size += sizeOf(value)
		if !slices.Contains(expendable, code) {
			needed += sizeOf(value)
		}
	}
	leaveOut := func(code uint8) {
		if value, ok := r.Options[code]; ok {
			size -= sizeOf(value)
			delete(r.Options, code)
		}
	}
	if r.Options.Has(dhcpv4.OptionRelayAgentInformation) && needed > x.f.limit {
		// RFC 3046 section 2.2: a server that cannot copy it whole sends the reply without it, and counts that.
		leaveOut(optRelay)
		x.s.metrics.deviated.WithLabelValues("relay information does not fit").Inc()
	}
	for _, code := range expendable {
		if size <= x.f.limit {
			break
		}
		leaveOut(code)
	}
	return size > x.f.limit
}

// sizeOf is what an option takes on the wire: beyond 255 bytes it is written in parts (RFC 3396).
func sizeOf(value []byte) int { return len(value) + 2*max(1, (len(value)+254)/255) }

// destination is where a reply goes, by RFC 2131 section 4.1:
//
//	"If the 'giaddr' field in a DHCP message from a client is non-zero, the server sends any return messages
//	to the 'DHCP server' port on the BOOTP relay agent whose address appears in 'giaddr'. If the 'giaddr'
//	field is zero and the 'ciaddr' field is nonzero, then the server unicasts DHCPOFFER and DHCPACK messages
//	to the address in 'ciaddr'. […] In all cases, when 'giaddr' is zero, the server broadcasts any DHCPNAK
//	messages to 0xffffffff."
//
// Else it is broadcast, which every client takes: unicast to yiaddr would need a frame to a host that does
// not answer ARP yet. An INFORM is answered to ciaddr even through a relay agent (section 4.3.5).
func (x *exchange) destination(r *dhcpv4.DHCPv4) netip.AddrPort {
	client := uint16(x.s.clientPort)
	switch {
	case x.f.kind == dhcpv4.MessageTypeInform:
		return netip.AddrPortFrom(x.f.ciaddr, client)
	case x.f.giaddr.IsValid():
		return netip.AddrPortFrom(x.f.giaddr, uint16(x.s.relayPort))
	case r.MessageType() == dhcpv4.MessageTypeNak, !x.f.ciaddr.IsValid(), x.f.kind == dhcpv4.MessageTypeDiscover:
		return netip.AddrPortFrom(broadcast, client)
	}
	return netip.AddrPortFrom(x.f.ciaddr, client)
}

var broadcast = netip.AddrFrom4([4]byte(net.IPv4bcast.To4()))
