package inventory

import "net/netip"

// lookup holds the places of the machines in Config.Machines: the listeners ask for each packet.
// The zero lookup knows none.
type lookup struct {
	mac  map[MAC]int
	name map[string]int
	ip   map[netip.Addr]int
}

// index builds the lookup; duplicates were refused before.
func (c *Config) index() {
	l := lookup{mac: map[MAC]int{}, name: map[string]int{}, ip: map[netip.Addr]int{}}
	for i, m := range c.Machines {
		for _, mac := range m.Cards() {
			l.mac[mac] = i
		}
		l.name[m.Name], l.ip[m.IP] = i, i
	}
	c.lookup = l
}

// ByMAC finds a machine by the hardware address of any of its cards.
func (c *Config) ByMAC(mac MAC) (*Machine, bool) {
	if mac.IsZero() {
		return nil, false
	}
	i, ok := c.lookup.mac[mac]
	return c.find(i, ok, func(m *Machine) bool { return m.Has(mac) })
}

// ByName finds a machine by its host name.
func (c *Config) ByName(name string) (*Machine, bool) {
	i, ok := c.lookup.name[name]
	return c.find(i, ok, func(m *Machine) bool { return m.Name == name })
}

// ByIP finds a machine by its reserved address.
func (c *Config) ByIP(ip netip.Addr) (*Machine, bool) {
	if !ip.IsValid() {
		return nil, false
	}
	i, ok := c.lookup.ip[ip]
	return c.find(i, ok, func(m *Machine) bool { return m.IP == ip })
}

// find takes the indexed place, if the machine is really there: a Config made or changed by hand, as tests
// do, is searched instead.
func (c *Config) find(at int, indexed bool, match func(*Machine) bool) (*Machine, bool) {
	if indexed && at < len(c.Machines) && match(&c.Machines[at]) {
		return &c.Machines[at], true
	}
	for i := range c.Machines {
		if match(&c.Machines[i]) {
			return &c.Machines[i], true
		}
	}
	return nil, false
}
