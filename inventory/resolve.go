package inventory

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// Resolve completes and checks the server's address with the addresses of its interface, which lookup
// returns (an error: there is no such interface). It returns a copy. Only `serve` needs it: a configuration
// can be checked on another host. The error is Faults.
func (c *Config) Resolve(lookup func(name string) ([]netip.Prefix, error)) (*Config, error) {
	resolved := *c
	k := c.collector()
	if c.Server.Interface != "" {
		resolved.Server.Address = k.serverAddress(c, lookup)
	}
	if k.err() == nil {
		(&checker{collector: k, c: &resolved}).serverAddress()
	}
	if err := k.err(); err != nil {
		return nil, err
	}
	return &resolved, nil
}

// serverAddress is the configured address if the interface has it, else the interface's first in the network.
func (k *collector) serverAddress(c *Config, lookup func(string) ([]netip.Prefix, error)) netip.Addr {
	const path = "server.interface"
	name, configured := c.Server.Interface, c.Server.Address
	prefixes, err := lookup(name)
	if err != nil {
		k.fault(path, "there is no %s on this host (%v); there are: %s", name, err, interfaces())
		return netip.Addr{}
	}
	prefixes = slices.DeleteFunc(slices.Clone(prefixes), func(p netip.Prefix) bool { return !p.Addr().Is4() })
	has := strings.Join(texts(prefixes), ", ")
	if has == "" {
		k.fault(path, "%s has no IPv4 address: give it one in %v; the interfaces of this host: %s", name, c.Network.Prefix, interfaces())
		return netip.Addr{}
	}
	i := slices.IndexFunc(prefixes, func(p netip.Prefix) bool {
		if configured.IsValid() {
			return p.Addr() == configured
		}
		return c.Network.Prefix.Contains(p.Addr())
	})
	switch {
	case i >= 0:
		return prefixes[i].Addr()
	case configured.IsValid():
		k.fault("server.address", "%v is not on %s, which has %s", configured, name, has)
	default:
		k.fault(path, "%s has %s, none of which is in network.subnet %v", name, has, c.Network.Prefix)
	}
	return netip.Addr{}
}

func texts[T fmt.Stringer](values []T) (list []string) {
	for _, v := range values {
		list = append(list, v.String())
	}
	return list
}

// interfaces lists this host's interfaces for people, with their IPv4 addresses.
func interfaces() string {
	all, err := net.Interfaces()
	if err != nil {
		return "unknown (" + err.Error() + ")"
	}
	var list []string
	for _, i := range all {
		text := i.Name
		addrs, _ := i.Addrs()
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() {
				text += " " + p.String()
			}
		}
		list = append(list, text)
	}
	return strings.Join(list, ", ")
}
