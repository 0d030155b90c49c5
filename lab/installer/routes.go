package installer

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path"
	"strconv"
	"strings"
)

// scriptsDir is where EL7 keeps the configuration of its network cards. %post may add files of static routes, which
// NetworkManager reads there; the installed system of the lab has systemd-networkd, which is given the same.
const scriptsDir = "/etc/sysconfig/network-scripts/"

// connection is a network card's configuration in the installed system.
type connection struct {
	name string // of the card: its files are ifcfg-NAME and route-NAME
	unit string // networkd's file
}

// ifcfg is what Anaconda's NetworkManager leaves for a card.
func (n network) ifcfg(name, mac string) string {
	var f strings.Builder
	put := func(key, value string) { fmt.Fprintf(&f, "%s=%s\n", key, value) }
	put("HWADDR", strings.ToUpper(mac))
	put("TYPE", "Ethernet")
	switch {
	case n.static:
		put("BOOTPROTO", "none")
		put("IPADDR", n.address.Addr().String())
		put("PREFIX", strconv.Itoa(n.address.Bits()))
		if n.gateway.IsValid() {
			put("GATEWAY", n.gateway.String())
		}
		for i, server := range n.nameservers {
			put(fmt.Sprintf("DNS%d", i+1), server)
		}
	case !n.none:
		put("BOOTPROTO", "dhcp")
	}
	put("NAME", name)
	onBoot := "no"
	if n.onBoot {
		onBoot = "yes"
	}
	put("ONBOOT", onBoot)
	return f.String()
}

// setRoutes hands the routes that %post wrote to networkd.
func (j *job) setRoutes(context.Context) error {
	for _, c := range j.connections {
		file := scriptsDir + "route-" + c.name
		text, err := os.ReadFile(j.target.path(file))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		routes, err := parseRoutes(string(text))
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		if err := j.target.write(c.unit+".d/routes.conf", routes.unit(), 0o644); err != nil {
			return err
		}
	}
	return nil
}

type route struct {
	to      netip.Prefix
	gateway netip.Addr
}

type routes []route

// parseRoutes reads a file in the form ADDRESS0=, NETMASK0=, GATEWAY0= as NetworkManager does (read_one_ip4_route in
// nms-ifcfg-rh-reader.c): numbered from 0, the first number that is missing ends it, a gateway may be.
func parseRoutes(text string) (routes, error) {
	values := map[string]string{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok {
			return nil, fmt.Errorf("%q is no KEY=VALUE", line)
		}
		values[key] = strings.Trim(value, `"'`)
	}
	var list routes
	for i := 0; ; i++ {
		number := strconv.Itoa(i)
		take := func(key string) string {
			value := values[key+number]
			delete(values, key+number)
			return value
		}
		address := take("ADDRESS")
		if address == "" {
			break
		}
		to, err := ipv4Prefix(address, take("NETMASK"))
		if err != nil {
			return nil, fmt.Errorf("route %d: %w", i, err)
		}
		if to != to.Masked() { // the kernel's EINVAL
			return nil, fmt.Errorf("route %d: %v is no network", i, to)
		}
		r := route{to: to}
		if gateway := take("GATEWAY"); gateway != "" {
			if r.gateway, err = netip.ParseAddr(gateway); err != nil {
				return nil, fmt.Errorf("route %d: %w", i, err)
			}
		}
		list = append(list, r)
	}
	for key := range values {
		return nil, fmt.Errorf("%s has no reader", key)
	}
	return list, nil
}

// unit are the routes as networkd reads them.
func (list routes) unit() string {
	var u strings.Builder
	u.WriteString("# Routes that %post wrote beside the ifcfg file.\n")
	for _, r := range list {
		fmt.Fprintf(&u, "\n[Route]\nDestination=%s\n", r.to)
		if r.gateway.IsValid() {
			fmt.Fprintf(&u, "Gateway=%s\n", r.gateway)
		} else {
			u.WriteString("Scope=link\n")
		}
	}
	return u.String()
}

// unitOf is networkd's file of the i-th network command.
func unitOf(i int) string {
	return path.Join("/etc/systemd/network", fmt.Sprintf("%02d-kickstart.network", 10+i))
}
