package dhcp

import "rackstrap/lifecycle"

// release frees a pool address (RFC 2131 section 4.3.4). It never gets a reply. A reservation stays what it
// is.
func (x *exchange) release() Answer {
	ip := x.f.ciaddr
	switch {
	case x.f.server.IsValid() && !x.isOurs(x.f.server):
		return x.silent(DropOtherServer, "names another server "+x.f.server.String())
	case !ip.IsValid():
		return x.silent(DropMalformed, "names no address")
	}
	if l, ok := x.s.rack.LeaseOf(x.f.mac); ok && l.IP == ip {
		if err := x.unbind(ip); err != nil {
			x.s.fault("lease cannot be given back", "mac", x.f.mac, "ip", ip, "err", err)
			return Answer{Drop: DropStore, Why: err.Error()}
		}
	}
	x.s.note(x.f.mac, lifecycle.Info, "release", "RELEASE "+ip.String())
	return Answer{}
}
