package kickstart

import (
	"net/netip"
	"regexp"

	"rackstrap/inventory"
)

// route is a network that a machine reaches by its card of the list, whichever card its default route leads through.
type route struct {
	Prefix           netip.Prefix
	Address, Netmask string // of Prefix
	Gateway          string // "" where the network is on the link
}

// routesOf are the routes of a machine in a network. The services' network is one: the kernel routes a packet to a ClusterIP
// before kube-proxy's rules rewrite it, so without any route the host reaches no service; flanneld, which asks the API
// server by its ClusterIP, is a program of the host's network. The rack's other networks, the appliance's among them,
// take the machine for the address of the list.
func routesOf(c *inventory.Config, own inventory.Subnet) []route {
	list := []route{newRoute(c.Cluster.ServiceCIDR, netip.Addr{})}
	for _, s := range c.Subnets() {
		if s.Prefix != own.Prefix && own.Gateway.IsValid() {
			list = append(list, newRoute(s.Prefix, own.Gateway))
		}
	}
	return list
}

func newRoute(p netip.Prefix, via netip.Addr) route {
	r := route{Prefix: p, Address: p.Addr().String(), Netmask: netmask(p)}
	if via.IsValid() {
		r.Gateway = via.String()
	}
	return r
}

// addressPattern finds, as grep -E reads it, the configuration of the card with an address: IPADDR=10.10.10.81 in an ifcfg
// file, with or without quotes, address1=10.10.10.81/24,10.10.10.1 in a keyfile.
func addressPattern(a netip.Addr) string {
	return `^(IPADDR|address)[0-9]*=["']?` + regexp.QuoteMeta(a.String()) + `(["'/,]|$)`
}
