package dhcp

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"rackstrap/inventory"
)

// view is what every reply needs of one configuration, worked out once: options as bytes, pools, who owns
// which address. It is immutable but for its pools.
type view struct {
	config   *inventory.Config
	subnets  []*subnet // the server's own network first
	lease    []byte    // option 51
	renew    []byte    // option 58
	rebind   []byte    // option 59
	ntp      []byte    // option 42
	domain   []byte    // option 15
	leaseFor time.Duration
	reserved map[netip.Addr]string // whose name each reserved address bears
}

// subnet is one network that clients are on.
type subnet struct {
	prefix    netip.Prefix
	local     bool         // the network of our own interface
	mask      []byte       // option 1
	gateway   []byte       // option 3
	dns       []byte       // option 6
	broadcast []byte       // option 28
	pool      *pool        // nil: reservations only
	fixed     []netip.Addr // never given out: gateway, DNS servers, the network's own two addresses
}

// kept tells whether the address is one that a pool never gives out.
func (sub *subnet) kept(a netip.Addr) bool { return slices.Contains(sub.fixed, a) }

// viewer makes the view of the configuration in force, once for each configuration.
type viewer struct {
	mu      sync.Mutex
	current atomic.Pointer[view]
}

// view is that of the configuration in force: after a reload, the next packet sees the new one.
func (s *Server) view() *view {
	config := s.rack.Config()
	if v := s.views.current.Load(); v != nil && v.config == config {
		return v
	}
	s.views.mu.Lock()
	defer s.views.mu.Unlock()
	if v := s.views.current.Load(); v != nil && v.config == config {
		return v
	}
	v := s.newView(config)
	s.views.current.Store(v)
	return v
}

func (s *Server) newView(config *inventory.Config) *view {
	n := config.Network
	v := &view{
		config:   config,
		leaseFor: n.DHCP.LeaseTime,
		lease:    seconds(n.DHCP.LeaseTime),
		renew:    seconds(n.DHCP.LeaseTime / 2),     // RFC 2131 section 4.4.5: T1
		rebind:   seconds(n.DHCP.LeaseTime * 7 / 8), // and T2
		domain:   []byte(n.Domain),
		reserved: map[netip.Addr]string{},
	}
	for _, host := range n.NTP { // option 42 holds addresses only; names reach machines by their kickstart
		if a, err := netip.ParseAddr(host); err == nil && a.Is4() {
			v.ntp = append(v.ntp, a.AsSlice()...)
		}
	}
	for _, m := range config.Machines {
		v.reserved[m.IP] = m.Name
	}
	for i, sub := range config.Subnets() {
		v.subnets = append(v.subnets, newSubnet(sub, i == 0))
	}
	for _, sub := range v.subnets {
		if sub.pool != nil {
			s.occupy(v, sub)
		}
	}
	return v
}

func newSubnet(sub inventory.Subnet, local bool) *subnet {
	out := &subnet{
		prefix:    sub.Prefix,
		local:     local,
		mask:      net.CIDRMask(sub.Prefix.Bits(), 32),
		broadcast: lastOf(sub.Prefix).AsSlice(),
	}
	if sub.Gateway.Is4() {
		out.gateway = sub.Gateway.AsSlice()
	}
	for _, a := range sub.DNS {
		out.dns = append(out.dns, a.AsSlice()...)
	}
	if !sub.Pool.IsZero() {
		out.pool = newPool(sub.Pool)
		out.fixed = append([]netip.Addr{sub.Gateway, sub.Prefix.Addr(), lastOf(sub.Prefix)}, sub.DNS...)
		for _, a := range out.fixed {
			out.pool.take(a)
		}
	}
	return out
}

// occupy marks what must not be given out of a pool: our own address, reservations, leases, and what was
// offered a moment ago.
func (s *Server) occupy(v *view, sub *subnet) {
	sub.pool.take(s.address)
	for ip := range v.reserved {
		sub.pool.take(ip)
	}
	for _, l := range s.rack.Leases() { // expired ones, too: see pool
		sub.pool.take(l.IP)
	}
	for _, ip := range s.offers.addresses() {
		sub.pool.take(ip)
	}
}

// subnetOf is the configured network that holds an address, or nil.
func (v *view) subnetOf(a netip.Addr) *subnet {
	if !a.IsValid() {
		return nil
	}
	for _, sub := range v.subnets {
		if sub.prefix.Contains(a) {
			return sub
		}
	}
	return nil
}

// subnetFor is the network that the client is on, or nil if that is none of ours.
func (v *view) subnetFor(f *facts) *subnet {
	switch {
	case f.link.IsValid(): // RFC 3527
		return v.subnetOf(f.link)
	case f.giaddr.IsValid():
		return v.subnetOf(f.giaddr)
	case f.ciaddr.IsValid() && f.via.To.IsValid() && unicast(f.via.To) && !v.isBroadcast(f.via.To):
		// A renewal, sent straight to us (RFC 2131 section 4.3.2): routers forwarded it, no relay agent.
		if sub := v.subnetOf(f.ciaddr); sub != nil {
			return sub
		}
	}
	return v.subnets[0]
}

func (v *view) isBroadcast(a netip.Addr) bool {
	return a == lastOf(v.subnets[0].prefix)
}

// seconds is a time as DHCP writes it: 32 bits, all ones meaning for ever.
func seconds(d time.Duration) []byte {
	return binary.BigEndian.AppendUint32(nil, uint32(min(max(d/time.Second, 0), 0xffff_ffff)))
}

// lastOf is the broadcast address of a network.
func lastOf(p netip.Prefix) netip.Addr {
	first := binary.BigEndian.Uint32(p.Masked().Addr().AsSlice())
	return addr4(first | uint32(1<<(32-p.Bits())-1))
}

func addr4(n uint32) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}
