package dhcp

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"

	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

// Answer is what one packet gets: a reply and where to send it, or silence and its reason.
type Answer struct {
	Reply *dhcpv4.DHCPv4 // nil: silence
	To    netip.AddrPort
	Drop  Drop   // why there is silence, for metrics; "" for messages that have no reply
	Why   string // the same for people

	check netip.Addr // there is no answer yet: first it has to be known whether this address is in use
}

// Drop is a reason for silence, as the metric names it.
type Drop string

// The reasons for silence.
const (
	DropMalformed   Drop = "malformed"    // not a DHCP request of an Ethernet client
	DropTruncated   Drop = "truncated"    // longer than any datagram that DHCP sends
	DropReply       Drop = "reply"        // a server's reply, not a request
	DropInterface   Drop = "interface"    // came in on a NIC that is not served
	DropOverload    Drop = "overload"     // more packets than we keep up with
	DropPanic       Drop = "panic"        // a fault of ours
	DropMode        Drop = "mode"         // nothing to say in this mode (proxy, off)
	DropNetwork     Drop = "network"      // from a network that is not configured, or not the machine's own
	DropUnknown     Drop = "unknown"      // not in the list, and unknown machines are ignored, or no record of it
	DropOtherServer Drop = "other-server" // the client chose another server
	DropNoAddress   Drop = "no-address"   // no address to give
	DropStore       Drop = "store"        // the lease could not be written
	DropTooBig      Drop = "too-big"      // the reply does not fit into what the client takes
	DropNoLoader    Drop = "no-loader"    // at the PXE port: there is nothing to boot
)

// exchange is one packet and all that concerns it.
type exchange struct {
	s   *Server
	ctx context.Context
	f   *facts
	v   *view
	sub *subnet // of the client
	d   lifecycle.Decision

	known verdict // of the conflict check that the packet waited for
}

// Handle works out what a packet gets. It changes what a DHCP server remembers (leases, offers, what was
// seen), and waits for conflict checks and for the disk, but never sends. Safe for concurrent use.
func (s *Server) Handle(ctx context.Context, req *dhcpv4.DHCPv4, via Arrival) Answer {
	var known verdict
	for {
		a := s.handle(ctx, req, via, known)
		if !a.check.IsValid() {
			return a
		}
		found := make(chan verdict, 1)
		if !s.check(a.check, func(v verdict) { found <- v }) {
			known = known.refuse(a.check)
			continue
		}
		v := <-found
		v.tries += known.tries
		known = v
	}
}

// handle is Handle up to a conflict check, of which the answer names the address, and from there on, once the
// verdict is known.
func (s *Server) handle(ctx context.Context, req *dhcpv4.DHCPv4, via Arrival, known verdict) Answer {
	f, err := gather(req, via)
	switch {
	case err == errNotRequest:
		return Answer{Drop: DropReply, Why: err.Error()}
	case err == errForeignNIC:
		return s.refuseNIC(req, f)
	case err == errNoType:
		s.note(f.mac, lifecycle.Warn, "bootp", "asks by BOOTP, without a DHCP message type: not served")
		return Answer{Drop: DropMalformed, Why: err.Error()}
	case err != nil:
		return Answer{Drop: DropMalformed, Why: err.Error()}
	case f.giaddr == s.address: // we are no relay agent: a loop, or forged
		return Answer{Drop: DropMalformed, Why: errRelay.Error()}
	}
	x := &exchange{s: s, ctx: ctx, f: f, v: s.view(), known: known}
	mode := x.v.config.Network.DHCP.Mode
	if mode == inventory.DHCPOff {
		return Answer{Drop: DropMode, Why: "DHCP is off"}
	}
	if x.sub = x.v.subnetFor(f); x.sub == nil {
		return x.silent(DropNetwork, "relay agent "+f.giaddr.String()+" is in no configured network: add it to network.relayed")
	}
	if f.probe {
		return x.answerProbe(mode)
	}
	x.d = s.rack.DecideSeen(f.mac, uuidText(f.machineID))
	if x.d.Listed {
		s.rack.UseCard(f.mac)
	}
	switch {
	case via.PXE:
		return x.bootServer()
	case mode == inventory.DHCPProxy:
		return x.proxy()
	}
	return x.message()
}

// refuseNIC names what kind of hardware asks in vain. An InfiniBand client has no address of six octets (RFC 4390), and
// nothing here could name it: the message is the whole rack's, and always the same, so that it is said once in a while.
func (s *Server) refuseNIC(req *dhcpv4.DHCPv4, f *facts) Answer {
	why := fmt.Sprintf("a client with hardware type %d (%s) asks for an address: only Ethernet is served", req.HWType, req.HWType)
	if req.HWType == iana.HWTypeInfiniband {
		why += ": let the machine boot by an Ethernet port, or switch the port's link type to Ethernet"
	}
	s.note(inventory.MAC{}, lifecycle.Warn, "hardware-"+strconv.Itoa(int(req.HWType)), why)
	return Answer{Drop: DropMalformed, Why: why}
}

// isOurs tells whether a server identifier means this server: its own address, or that of the relay agent that
// stands for it (RFC 5107).
func (x *exchange) isOurs(server netip.Addr) bool {
	return server == x.s.address || x.f.stands.IsValid() && server == x.f.stands
}

// message is the state machine of RFC 2131 section 4.3: a file for each.
func (x *exchange) message() Answer {
	switch x.f.kind {
	case dhcpv4.MessageTypeDiscover:
		return x.discover()
	case dhcpv4.MessageTypeRequest:
		return x.request()
	case dhcpv4.MessageTypeDecline:
		return x.decline()
	case dhcpv4.MessageTypeRelease:
		return x.release()
	case dhcpv4.MessageTypeInform:
		return x.inform()
	}
	return Answer{Drop: DropMalformed, Why: x.f.kind.String() + " is no client's message"}
}

// ignored tells whether the client is to hear nothing at all. What firmware told is kept all the same, so
// that the operator may approve it.
func (x *exchange) ignored() bool {
	if x.d.Action != lifecycle.ActionIgnore {
		return false
	}
	if x.f.boots() {
		x.see(netip.Addr{})
	}
	return true
}

// elsewhere tells whether a machine of the list asks from a network that its address does not belong to:
// that address would not work there, and another one is not foreseen.
func (x *exchange) elsewhere() (Answer, bool) {
	if !x.d.Listed || x.sub.prefix.Contains(x.d.Machine.IP) {
		return Answer{}, false
	}
	from := x.sub.prefix.String()
	if x.f.giaddr.IsValid() {
		from += " (relay agent " + x.f.giaddr.String() + ")"
	}
	return x.warn(DropNetwork, "asks from network "+from+", but its address "+x.d.Machine.IP.String()+
		" belongs to another one: move it, or change its ip in the list"), true
}

// answerProbe tells another Rackstrap that we are here, without an address.
func (x *exchange) answerProbe(mode inventory.DHCPMode) Answer {
	if x.f.kind != dhcpv4.MessageTypeDiscover || mode != inventory.DHCPServer || x.f.via.PXE {
		return Answer{Drop: DropMode, Why: "looks for DHCP servers"}
	}
	return x.send(x.reply(dhcpv4.MessageTypeOffer, withText("rackstrap")))
}

// silent is silence that the machine's timeline explains.
func (x *exchange) silent(drop Drop, why string) Answer {
	x.s.note(x.f.mac, lifecycle.Info, "silence", x.f.kind.String()+": "+why+": silence")
	return Answer{Drop: drop, Why: why}
}

// warn is silence that an operator has to do something about.
func (x *exchange) warn(drop Drop, why string) Answer {
	x.s.note(x.f.mac, lifecycle.Warn, "silence", x.f.kind.String()+": "+why)
	return Answer{Drop: drop, Why: why}
}
