package installer

import (
	"net/netip"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// What %post writes beside the ifcfg file, networkd is given.
func TestRoutesOfPost(t *testing.T) {
	j := installed(t, &plan{networks: []network{{place: "ks.cfg:1", device: "lo", static: true, onBoot: true,
		address: netip.MustParsePrefix("10.10.10.81/24"), gateway: netip.MustParseAddr("10.10.10.1"), nameservers: []string{"10.10.10.2"}}}})
	require.NoError(t, j.setNetwork(t.Context()))
	ifcfg, err := os.ReadFile(j.target.path(scriptsDir + "ifcfg-lo"))
	require.NoError(t, err)
	require.Equal(t, "HWADDR=\nTYPE=Ethernet\nBOOTPROTO=none\nIPADDR=10.10.10.81\nPREFIX=24\nGATEWAY=10.10.10.1\nDNS1=10.10.10.2\nNAME=lo\nONBOOT=yes\n", string(ifcfg))
	require.NoError(t, j.setRoutes(t.Context()), "%post need not write any")
	const given = "/etc/systemd/network/10-kickstart.network.d/routes.conf"
	require.NoFileExists(t, j.target.path(given))

	require.NoError(t, j.target.write(scriptsDir+"route-lo", "# ours\nADDRESS0=10.1.0.0\nNETMASK0=255.255.0.0\nADDRESS1=\"10.10.20.0\"\nNETMASK1=255.255.255.0\nGATEWAY1=10.10.10.1\n", 0o644))
	require.NoError(t, j.setRoutes(t.Context()))
	routes, err := os.ReadFile(j.target.path(given))
	require.NoError(t, err)
	require.Equal(t, "# Routes that %post wrote beside the ifcfg file.\n\n[Route]\nDestination=10.1.0.0/16\nScope=link\n\n[Route]\nDestination=10.10.20.0/24\nGateway=10.10.10.1\n", string(routes))

	for text, fault := range map[string]string{
		"ADDRESS0=10.1.0.0\n":                                        "route 0: --netmask=: not a netmask",
		"ADDRESS0=10.1.0.1\nNETMASK0=255.255.0.0\n":                  "10.1.0.1/16 is no network",
		"ADDRESS1=10.1.0.0\nNETMASK1=255.255.0.0\n":                  "has no reader",
		"10.1.0.0/16 dev lo\n":                                       "is no KEY=VALUE",
		"ADDRESS0=10.1.0.0\nNETMASK0=255.255.0.0\nX0=\n":             "X0 has no reader",
		"ADDRESS0=10.1.0.0\nNETMASK0=255.255.0.0\nGATEWAY0=nobody\n": "nobody",
	} {
		require.NoError(t, j.target.write(scriptsDir+"route-lo", text, 0o644))
		require.ErrorContains(t, j.setRoutes(t.Context()), fault, text)
	}
}
