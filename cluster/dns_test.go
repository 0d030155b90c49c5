package cluster

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"rackstrap/inventory"
)

// CoreDNS ends where the node that it is started on has no name server: then kubeadm's configuration is replaced.
func TestDNSManifest(t *testing.T) {
	cfg := inventory.Default()
	require.Empty(t, DNSManifest(cfg), "every machine has one")

	network, err := CNIManifest(cfg)
	require.NoError(t, err)
	all, err := manifests(cfg)
	require.NoError(t, err)
	require.Equal(t, network, all)

	cfg.Network.DNS = nil
	text := DNSManifest(cfg)
	all, err = manifests(cfg)
	require.NoError(t, err)
	require.Equal(t, network+"---\n"+text, all)
	cfg.Cluster.CNI = "none"
	all, err = manifests(cfg)
	require.NoError(t, err)
	require.Equal(t, text, all)
	var object struct {
		Kind     string
		Metadata map[string]string
		Data     map[string]string
	}
	require.NoError(t, yaml.Unmarshal([]byte(text), &object))
	require.Equal(t, "ConfigMap", object.Kind)
	require.Equal(t, map[string]string{"name": "coredns", "namespace": "kube-system"}, object.Metadata)
	require.NotContains(t, strings.ToLower(object.Data["Corefile"]), "forward")
	require.Contains(t, object.Data["Corefile"], "    prometheus :9153\n    cache 30\n")

	two := netip.MustParseAddr("10.10.20.3")
	cfg.Network.Relayed = []inventory.Subnet{{Prefix: netip.MustParsePrefix("10.10.20.0/24"), DNS: []netip.Addr{two, netip.MustParseAddr("10.10.20.2")}}}
	require.NotContains(t, DNSManifest(cfg), "10.10.20.3", "nobody is in that network")
	for _, address := range []string{"10.10.20.80", "10.10.20.81"} {
		cfg.Machines = append(cfg.Machines, inventory.Machine{Name: "far", IP: netip.MustParseAddr(address)})
	}
	require.Contains(t, DNSManifest(cfg), "\n        forward . 10.10.20.2 10.10.20.3\n", "some machines have none: the servers are named")
}
