package dhcp

import (
	"errors"
	"net/netip"
	"strings"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"rackstrap/lifecycle"
)

// request answers with ACK, NAK or silence (RFC 2131 section 4.3.2). Which of its states the client is in
// shows in the fields that it filled (table 4 there).
func (x *exchange) request() Answer {
	f := x.f
	switch {
	case f.server.IsValid() && !x.isOurs(f.server): // SELECTING another server
		x.withdraw()
		return x.silent(DropOtherServer, "names another server "+f.server.String())
	case x.ignored():
		return x.silent(DropUnknown, x.d.Reason)
	case f.server.IsValid() && !f.wants.IsValid() && f.ciaddr.IsValid(): // not by the RFC, but clear
		return x.claim(f.ciaddr, true)
	case f.server.IsValid() && !f.wants.IsValid(): // nor this, but it cannot mean anything else
		return x.claim(x.offered(), true)
	case f.server.IsValid(): // SELECTING us
		return x.claim(f.wants, true)
	case f.ciaddr.IsValid(): // RENEWING, REBINDING
		return x.claim(f.ciaddr, false)
	case f.wants.IsValid(): // INIT-REBOOT
		return x.claim(f.wants, false)
	}
	return x.silent(DropMalformed, "names no address")
}

// offered is the address that the client was offered; the zero Addr: none.
func (x *exchange) offered() netip.Addr {
	if x.d.Listed {
		return x.d.Machine.IP
	}
	of, _ := x.s.offers.get(x.f.mac)
	return of.ip
}

// claim judges the address that the client says is its own. chosen: it was offered by us and chosen; else
// the client remembers it, and only a server that has a record of the client may contradict.
func (x *exchange) claim(ip netip.Addr, chosen bool) Answer {
	if a, yes := x.elsewhere(); yes {
		return a
	}
	if x.d.Listed {
		if ip != x.d.Machine.IP {
			return x.nak(ip, "its address is "+x.d.Machine.IP.String())
		}
		x.leavePool()
		return x.ack(ip)
	}
	now := x.s.now()
	lease, recorded := x.s.rack.LeaseOf(x.f.mac)
	switch {
	case !chosen && !recorded:
		return x.silent(DropUnknown, "no record of it, and it asks for "+ip.String())
	case !chosen && lease.IP != ip:
		return x.nak(ip, "its address was "+lease.IP.String())
	case !x.assignable(ip, now):
		return x.nak(ip, "that address is not for it")
	}
	err := x.bind(ip)
	var taken *lifecycle.LeaseTakenError
	switch {
	case errors.As(err, &taken):
		return x.nak(ip, taken.Error())
	case err != nil: // a full disk: what is not written must not be acknowledged
		x.s.fault("lease cannot be written", "mac", x.f.mac, "ip", ip, "err", err)
		return x.warn(DropStore, "the lease cannot be written: silence")
	}
	return x.ack(ip)
}

func (x *exchange) ack(ip netip.Addr) Answer {
	x.see(ip)
	x.seeDiskBoot()
	file, refusal := x.boot()
	reply := x.reply(dhcpv4.MessageTypeAck, x.withAddress(ip), x.withLease(), x.withNetwork(), x.withBoot(file))
	reply.ClientIPAddr = x.f.req.ClientIPAddr // RFC 2131 table 3
	return x.answer("ack", reply, ip, file, refusal)
}

// nak refuses. It carries options 53, 54, 56, 61 and 82 only (RFC 2131 table 3).
func (x *exchange) nak(ip netip.Addr, why string) Answer {
	text := "NAK: " + why
	if ip.IsValid() {
		text = "NAK " + ip.String() + ": " + why
	}
	x.s.note(x.f.mac, lifecycle.Info, "nak", text)
	return x.send(x.reply(dhcpv4.MessageTypeNak, withText(why)))
}

// leavePool gives the pool address back that a machine had before it was in the list.
func (x *exchange) leavePool() {
	l, ok := x.s.rack.LeaseOf(x.f.mac)
	if !ok {
		return
	}
	if err := x.unbind(l.IP); err != nil {
		x.s.fault("lease cannot be given back", "mac", x.f.mac, "ip", l.IP, "err", err)
	}
}

// seeDiskBoot notes the proof that an installed machine's disk boots: its own DHCP client, not firmware and
// not the installer, asks for the address anew.
func (x *exchange) seeDiskBoot() {
	if x.f.boots() || x.f.ciaddr.IsValid() || !x.d.Listed || x.d.Action != lifecycle.ActionLocalDisk || strings.HasPrefix(x.f.vendorClass, "anaconda") {
		return
	}
	x.s.rack.See(lifecycle.Sighting{MAC: x.f.mac, DiskBoot: x.s.now()})
	x.s.note(x.f.mac, lifecycle.Info, "disk-boot", "the installed system asks for its address: the disk boots")
}
