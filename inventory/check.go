package inventory

import (
	"fmt"
	"net/netip"
)

// checker holds values against one another. Zero values, which have a fault already or are optional, are
// passed over.
type checker struct {
	*collector
	c *Config
}

func (k *checker) all() {
	k.server()
	subnets := k.subnets()
	k.overlaps(subnets)
	k.media()
	k.repos()
	k.machines(subnets)
	k.gateways(subnets)
	k.controlPlanes()
	k.logins()
	k.serverAddress()
}

func (k *checker) server() {
	s := k.c.Server
	if s.Interface == "" && (k.c.Network.DHCP.Mode != DHCPOff || !s.Address.IsValid()) {
		k.missing("server.interface", "is missing: the network card on the provisioning network")
	}
	if s.HTTPPort == s.HTTPSPort && s.HTTPPort != 0 {
		k.fault("server.https_port", "%d is also http_port", s.HTTPSPort)
	}
	switch s.SyslogPort {
	case 0:
	case s.HTTPPort:
		k.fault("server.syslog_port", "%d is also http_port", s.SyslogPort)
	case s.HTTPSPort:
		k.fault("server.syslog_port", "%d is also https_port", s.SyslogPort)
	}
	if s.TFTPPort == s.DHCPPort && s.TFTPPort != 0 {
		k.fault("server.dhcp_port", "%d is also tftp_port", s.DHCPPort)
	}
}

// place is a network and where the file says it.
type place struct {
	path   string
	subnet Subnet
}

func (p place) poolPath() string {
	if p.path == "network" {
		return "network.dhcp.pool"
	}
	return p.path + ".pool"
}

// subnets checks each network by itself, and returns those that are known.
func (k *checker) subnets() (known []place) {
	list := []place{{"network", k.c.Network.Subnet}}
	for i, s := range k.c.Network.Relayed {
		list = append(list, place{entry("network.relayed", i), s})
	}
	for _, p := range list {
		s := p.subnet
		if !s.Prefix.IsValid() {
			continue
		}
		known = append(known, p)
		if s.Gateway.IsValid() {
			k.hostOf(p.path+".gateway", s.Gateway, s.Prefix)
		}
		if s.Pool.IsZero() {
			continue
		}
		for _, end := range []netip.Addr{s.Pool.First, s.Pool.Last} {
			if !k.hostOf(p.poolPath(), end, s.Prefix) {
				break
			}
		}
		if s.Pool.Contains(s.Gateway) {
			k.fault(p.poolPath(), "%v-%v holds the gateway %v", s.Pool.First, s.Pool.Last, s.Gateway)
		}
	}
	return known
}

// hostOf checks that an address can belong to a host of the network.
func (k *checker) hostOf(path string, a netip.Addr, p netip.Prefix) bool {
	switch {
	case !p.Contains(a):
		k.fault(path, "%v is outside of the network %v", a, p)
	case a == p.Addr():
		k.fault(path, "%v is the address of the network %v itself", a, p)
	case a == broadcast(p):
		k.fault(path, "%v is the broadcast address of the network %v", a, p)
	default:
		return true
	}
	return false
}

// broadcast is the last address of an IPv4 network.
func broadcast(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	for bit := p.Bits(); bit < 32; bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	return netip.AddrFrom4(b)
}

// overlaps: nodes, pods and services each need networks of their own, or packets go astray.
func (k *checker) overlaps(subnets []place) {
	type network struct {
		path   string
		prefix netip.Prefix
	}
	var all []network
	for _, p := range subnets {
		all = append(all, network{p.path + ".subnet", p.subnet.Prefix})
	}
	all = append(all, network{"cluster.pod_cidr", k.c.Cluster.PodCIDR}, network{"cluster.service_cidr", k.c.Cluster.ServiceCIDR})
	for i, later := range all {
		for _, earlier := range all[:i] {
			if later.prefix.Overlaps(earlier.prefix) {
				k.fault(later.path, "%v overlaps %v of %s", later.prefix, earlier.prefix, earlier.path)
			}
		}
	}
}

func (k *checker) media() {
	first := map[string]int{}
	for i, m := range k.c.Media {
		if j, twice := first[m.Name]; twice && m.Name != "" {
			k.fault(entry("media", i)+".name", "is also that of media[%d]", j)
			continue
		}
		first[m.Name] = i
	}
	refer := func(path, name string) {
		if _, ok := first[name]; name != "" && !ok {
			k.fault(path, "%q is not in media", name)
		}
	}
	refer("install.medium", k.c.Install.Medium)
	for i, m := range k.c.Machines {
		if path := entry("machines", i) + ".medium"; k.lines[path] != 0 {
			refer(path, m.Install.Medium)
		}
	}
}

func (k *checker) machines(subnets []place) {
	names, macs, ips := map[string]int{}, map[MAC]int{}, map[netip.Addr]int{}
	who := func(i int) string {
		if name := k.c.Machines[i].Name; name != "" {
			return name
		}
		return entry("machines", i)
	}
	for i, m := range k.c.Machines {
		path := entry("machines", i)
		if j, twice := names[m.Name]; twice && m.Name != "" {
			k.fault(path+".name", "is also that of machines[%d]", j)
		} else {
			names[m.Name] = i
		}
		for _, mac := range m.Cards() {
			switch j, twice := macs[mac]; {
			case twice && j == i:
				k.fault(path+".mac", "%v is there twice", mac)
			case twice:
				k.fault(path+".mac", "%v is also %s's", mac, who(j))
			default:
				macs[mac] = i
			}
		}
		if !m.IP.IsValid() {
			continue
		}
		if j, twice := ips[m.IP]; twice {
			k.fault(path+".ip", "%v is also %s's", m.IP, who(j))
		} else {
			ips[m.IP] = i
		}
		k.reservation(path+".ip", m.IP, subnets)
	}
}

// reservation checks a machine's address against the networks.
func (k *checker) reservation(path string, ip netip.Addr, subnets []place) {
	for _, p := range subnets {
		s := p.subnet
		switch {
		case !s.Prefix.Contains(ip):
			continue
		case ip == s.Gateway:
			k.fault(path, "%v is the gateway's", ip)
		case s.Pool.Contains(ip):
			k.fault(path, "%v is inside of the pool %v-%v", ip, s.Pool.First, s.Pool.Last)
		default:
			k.hostOf(path, ip, s.Prefix)
		}
		return
	}
	if len(subnets) > 0 && subnets[0].path == "network" { // else the right one may be the faulty one
		k.fault(path, "%v is in none of the networks", ip)
	}
}

func (k *checker) controlPlanes() {
	if len(k.c.Machines) == 0 {
		k.warn("machines: the list is empty: only unknown machines will be seen")
		return
	}
	n := 0
	for i, m := range k.c.Machines {
		if m.Role == RoleControlPlane && m.MAC.IsZero() && k.c.Network.DHCP.Unknown == UnknownEnroll && !k.bad[entry("machines", i)] {
			k.fault("network.dhcp.unknown", "enroll, and %s is a control plane without a mac: whichever machine boots would be given the cluster's keys: "+
				"give %[1]s its mac, or use discover and `rackstrap approve`", m.Name)
		}
		if m.Role == RoleControlPlane || k.bad[entry("machines", i)] {
			n++
		}
	}
	switch {
	case n == 0:
		k.fault("machines", "none has the role control-plane: a cluster needs one")
	case n%2 == 0:
		k.warn("machines: %d have the role control-plane: an even number survives no more failures than %d would", n, n-1)
	}
}

// logins warns where an installed machine could not be entered by anybody.
func (k *checker) logins() {
	if in := k.c.Install; in.RootPasswordHash == "" && len(in.SSHAuthorizedKeys) == 0 {
		k.warn("install: neither root_password_hash nor ssh_authorized_keys: nobody will be able to log in")
	}
}

// serverAddress checks what depends on the server's own address, which may come from its interface.
func (k *checker) serverAddress() {
	address, network := k.c.Server.Address, k.c.Network
	if !address.IsValid() || !network.Prefix.IsValid() {
		return
	}
	if !k.hostOf("server.address", address, network.Prefix) {
		return
	}
	if network.Pool.Contains(address) {
		k.fault("network.dhcp.pool", "%v-%v holds the server's own address %v", network.Pool.First, network.Pool.Last, address)
	}
	for i, m := range k.c.Machines {
		if m.IP == address {
			k.fault(entry("machines", i)+".ip", "%v is the server's own", m.IP)
		}
	}
}

func (k *checker) warn(format string, args ...any) {
	k.c.Warnings = append(k.c.Warnings, fmt.Sprintf(format, args...))
}
