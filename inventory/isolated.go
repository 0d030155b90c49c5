package inventory

import (
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// gateways: machines leave their network by its gateway alone. What a network cannot do without one is a fault, what they
// do not reach is a warning.
func (k *checker) gateways(subnets []place) {
	inhabited := map[string]bool{}
	for _, m := range k.c.Machines {
		for _, p := range subnets {
			if p.subnet.Prefix.Contains(m.IP) {
				inhabited[p.path] = true
			}
		}
	}
	for _, p := range subnets {
		if p.subnet.Gateway.IsValid() || k.bad[p.path+".gateway"] {
			continue
		}
		switch {
		case p.path != "network":
			k.missing(p.path+".gateway", "is missing: the machines of %v reach the appliance through it", p.subnet.Prefix)
		case inhabited[p.path] && len(inhabited) > 1:
			k.missing(p.path+".gateway", "is missing: the machines of %v reach those of the other networks through it", p.subnet.Prefix)
		case inhabited[p.path]:
			k.isolated(p.subnet)
		}
	}
}

// isolated warns of what machines are told to use and do not reach, in a network without a gateway.
func (k *checker) isolated(s Subnet) {
	told := map[string]bool{}
	need := func(key, host string) {
		if text := k.beyond(s, host); text != "" && !told[key] {
			told[key] = true
			k.warn("%s: %s, and network.gateway is not set: machines do not reach it", key, text)
		}
	}
	for i, server := range k.c.Network.NTP {
		need(entry("network.ntp", i), server)
	}
	for i, server := range s.DNS {
		need(entry("network.dns", i), server.String())
	}
	for _, m := range k.c.Machines {
		in := m.Install
		if in.Proxy != "" {
			need("install.proxy", hostOf(in.Proxy))
			continue // it is the proxy's to reach the rest
		}
		for _, name := range slices.Sorted(maps.Keys(in.Repos)) {
			if r := in.Repos[name]; r.Via != ViaAppliance {
				need("install.repos."+name, hostOf(r.URL))
			}
		}
		if medium, ok := k.c.Medium(in.Medium); ok && medium.URL != "" {
			need("media."+medium.Name, hostOf(medium.URL))
		}
		for _, registry := range slices.Sorted(maps.Keys(in.RegistryMirrors)) {
			for _, mirror := range in.RegistryMirrors[registry] {
				need("install.registry_mirrors."+registry, hostOf(mirror))
			}
		}
		if registry, _, _ := strings.Cut(k.c.Cluster.ImageRepository, "/"); k.c.Cluster.Images == "" && len(in.RegistryMirrors[registry]) == 0 {
			host, _, _ := strings.Cut(registry, ":")
			need("cluster.image_repository", host)
		}
	}
}

// beyond tells why a host cannot be reached from a network without a gateway; "" if it can.
func (k *checker) beyond(s Subnet, host string) string {
	if host == "" {
		return "" // a fault of its own
	}
	if address, err := netip.ParseAddr(host); err == nil {
		if s.Prefix.Contains(address) {
			return ""
		}
		return fmt.Sprintf("%v is outside of %v", address, s.Prefix)
	}
	for _, m := range k.c.Machines { // in the hosts file
		if host == m.Name || host == m.Name+"."+k.c.Network.Domain {
			return ""
		}
	}
	if slices.ContainsFunc(s.DNS, s.Prefix.Contains) {
		return ""
	}
	return fmt.Sprintf("%v has no name server that knows %s", s.Prefix, host)
}

func hostOf(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return ""
	}
	return u.Hostname()
}
