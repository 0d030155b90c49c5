package kickstart

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"rackstrap/inventory"
)

const (
	cardKeyfile = "[connection]\nid=ens192\n\n[ethernet]\nmac-address=52:54:00:00:00:81\n\n[ipv4]\naddress1=10.10.10.81/24,10.10.10.121\nmethod=manual\n\n[ipv6]\nmethod=auto\n"
	// Neither of these two is the card's, although the address stands in them.
	otherIfcfg   = "IPADDR=110.10.10.81\nDNS1=10.10.10.81\n"
	otherKeyfile = "[ipv4]\naddress1=10.10.10.8/24\ngateway=10.10.10.81\n"
)

// The routes get to where NetworkManager of each release reads them, whatever the file of the card is called and how the
// address is written.
func TestPostSetsRoutes(t *testing.T) {
	relayed := func(in *Input) {
		in.Config.Network.Relayed = []inventory.Subnet{{Prefix: netip.MustParsePrefix("10.10.20.0/23"), Gateway: netip.MustParseAddr("10.10.20.1")}}
	}
	const (
		scripts = "etc/sysconfig/network-scripts/"
		keys    = "etc/NetworkManager/system-connections/"
		service = "ADDRESS0=10.1.0.0\nNETMASK0=255.255.0.0\n"
	)
	r := newRenderer(t)
	for name, c := range map[string]struct {
		profile string
		change  func(*Input)
		card    string // its file
		text    string
		file    string // where the routes are
		want    string
		fault   string
	}{
		"EL7": {profile: "centos-7.9", card: scripts + "ifcfg-ens192", text: "IPADDR=10.10.10.81\n", file: scripts + "route-ens192", want: service},
		"EL7, quoted, as dracut writes it": {profile: "centos-7.9", card: scripts + "ifcfg-eno1", text: "BOOTPROTO=\"none\"\nIPADDR=\"10.10.10.81\"\n",
			file: scripts + "route-eno1", want: service},
		"EL7, numbered, relayed networks": {profile: "centos-7.9", change: relayed, card: scripts + "ifcfg-ens192", text: "IPADDR0=10.10.10.81\n",
			file: scripts + "route-ens192", want: service + "ADDRESS1=10.10.20.0\nNETMASK1=255.255.254.0\nGATEWAY1=10.10.10.121\n"},
		"EL7, in a relayed network": {profile: "centos-7.9", change: func(in *Input) { relayed(in); in.Machine.IP = netip.MustParseAddr("10.10.21.81") },
			card: scripts + "ifcfg-ens192", text: "IPADDR=10.10.21.81\n", file: scripts + "route-ens192",
			want: service + "ADDRESS1=10.10.10.0\nNETMASK1=255.255.255.0\nGATEWAY1=10.10.20.1\n"},
		"EL9": {profile: "rocky-9", card: keys + "ens192.nmconnection", text: cardKeyfile, file: keys + "ens192.nmconnection",
			want: "[connection]\nid=ens192\n\n[ethernet]\nmac-address=52:54:00:00:00:81\n\n[ipv4]\nroute0=10.1.0.0/16\naddress1=10.10.10.81/24,10.10.10.121\nmethod=manual\n\n[ipv6]\nmethod=auto\n"},
		"EL9, a name with blanks, relayed networks": {profile: "rocky-9", change: relayed, card: keys + "Wired connection 1.nmconnection",
			text: "[ipv4]\naddress1=10.10.10.81/24\n", file: keys + "Wired connection 1.nmconnection",
			want: "[ipv4]\nroute0=10.1.0.0/16\nroute1=10.10.20.0/23,10.10.10.121\naddress1=10.10.10.81/24\n"},
		"no such card, a gateway": {profile: "centos-7.9"},
		"no such card, isolated": {profile: "centos-7.9", change: func(in *Input) { in.Config.Network.Gateway = netip.Addr{} },
			fault: "no network configuration has the address 10.10.10.81, and without a gateway services need a route"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSandbox(t)
			require.NoError(t, os.Remove(filepath.Join(s.root, scripts, "ifcfg-ens192")))
			s.write(scripts+"ifcfg-other", otherIfcfg)
			s.write(keys+"other.nmconnection", otherKeyfile)
			if c.card != "" {
				s.write(c.card, c.text)
				require.NoError(t, os.Chmod(filepath.Join(s.root, c.card), 0o600))
			}
			in := input(c.profile, "knode1")
			if c.change != nil {
				c.change(&in)
			}
			out, status := s.run(script(t, r, in, "%post"))
			if c.fault != "" {
				require.NotZero(t, status)
				require.Contains(t, out, c.fault)
				return
			}
			require.Zero(t, status, out)
			require.False(t, s.exists(scripts+"route-other"))
			require.Equal(t, otherKeyfile, s.read(keys+"other.nmconnection"))
			if c.card == "" {
				require.Contains(t, out, "no network configuration has the address 10.10.10.81")
				return
			}
			require.Equal(t, c.want, s.read(c.file))
			info, err := os.Stat(filepath.Join(s.root, c.card))
			require.NoError(t, err)
			require.Equal(t, os.FileMode(0o600), info.Mode().Perm(), "NetworkManager ignores a keyfile that others can read")
		})
	}
}
