package inventory

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// Networks cannot do without a gateway where their machines need others, or the appliance is in another.
func TestGatewayIsMissing(t *testing.T) {
	const gateway, relayed = "  gateway: 10.10.10.121\n", "      gateway: 10.10.20.1\n"
	_, err := parse(edit(t, edit(t, good, gateway, ""), relayed, ""))
	require.EqualError(t, err, "rackstrap.yaml:12: network.gateway: is missing: the machines of 10.10.10.0/24 reach those of the other networks through it\n"+
		"rackstrap.yaml:24: network.relayed[0].gateway: is missing: the machines of 10.10.20.0/24 reach the appliance through it")
	_, err = parse(edit(t, edit(t, good, gateway, ""), "    ip: 10.10.20.82", "    ip: 10.10.10.82"))
	require.NoError(t, err, "nobody is in the other network")
	_, err = parse(edit(t, edit(t, good, relayed, ""), "    ip: 10.10.20.82", "    ip: 10.10.10.82"))
	require.ErrorContains(t, err, "network.relayed[0].gateway: is missing", "those that are not in the list boot there")
}

// An isolated rack is told what its machines will not reach; one that has all of it in the rack is told nothing.
func TestIsolatedRack(t *testing.T) {
	const rack = `
server: {interface: eth1, address: 10.10.10.1}
network: {subnet: 10.10.10.0/24, %NETWORK%}
media: [{name: c7, %MEDIUM%}]
install: {%INSTALL% root_password_hash: "$6$saltsalt$abcdefgh"}
cluster: {%CLUSTER%}
machines:
  - {name: kmaster, mac: "52:54:00:00:00:80", ip: 10.10.10.80, role: control-plane, %MACHINE%}
  - {name: knode1, mac: "52:54:00:00:00:81", ip: 10.10.10.81}
`
	write := func(network, medium, install, cluster, machine string) string {
		text := rack
		for place, value := range map[string]string{"%NETWORK%": network, "%MEDIUM%": medium, "%INSTALL%": install, "%CLUSTER%": cluster, "%MACHINE%": machine} {
			text = edit(t, text, place, value)
		}
		return text
	}
	const unreached = ", and network.gateway is not set: machines do not reach it"
	for name, c := range map[string]struct {
		text string
		want []string
	}{
		"all in the rack": {write("ntp: [10.10.10.1, kmaster, time.rack], dns: [10.10.10.2]", "url: http://10.10.10.3/7/", "repos: {base: {dir: /srv/base}, more: 'http://repo.rack/x', own: {url: 'http://far.example/', via: appliance}},",
			"images: /srv/images", ""), nil},
		"no name server":  {write("ntp: [kmaster, time.example]", "iso: /x", "", "images: /srv/images", ""), []string{"network.ntp[1]: 10.10.10.0/24 has no name server that knows time.example" + unreached}},
		"servers outside": {write("ntp: [192.0.2.1], dns: [192.0.2.2]", "iso: /x", "", "images: /srv/images", ""), []string{"network.ntp[0]: 192.0.2.1 is outside of 10.10.10.0/24" + unreached, "network.dns[0]: 192.0.2.2 is outside of 10.10.10.0/24" + unreached}},
		"sources outside": {write("dns: [10.10.10.2]", "url: http://192.0.2.3/7/", "repos: {base: 'http://192.0.2.4/os/'}, registry_mirrors: {docker.io: ['http://192.0.2.5']},", "image_repository: 192.0.2.6:5000/k8s", ""), []string{
			"install.repos.base: 192.0.2.4 is outside of 10.10.10.0/24" + unreached, "media.c7: 192.0.2.3 is outside of 10.10.10.0/24" + unreached,
			"install.registry_mirrors.docker.io: 192.0.2.5 is outside of 10.10.10.0/24" + unreached, "cluster.image_repository: 192.0.2.6 is outside of 10.10.10.0/24" + unreached}},
		"a proxy of the rack": {write("gateway: ''", "url: http://192.0.2.3/7/", "proxy: 'http://10.10.10.9:3128', repos: {base: 'http://192.0.2.4/os/'},", "", ""), nil},
		"one machine's":       {write("dns: [10.10.10.2]", "iso: /x", "", "images: /srv/images", "repos: {extra: 'http://192.0.2.4/x/'}"), []string{"install.repos.extra: 192.0.2.4 is outside of 10.10.10.0/24" + unreached}},
		"with a gateway":      {write("gateway: 10.10.10.9, ntp: [192.0.2.1]", "url: http://192.0.2.3/7/", "repos: {base: 'http://192.0.2.4/os/'},", "", ""), nil},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parse(c.text)
			require.NoError(t, err)
			require.Equal(t, c.want, got.Warnings)
		})
	}
}
