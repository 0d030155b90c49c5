package cluster

import (
	"net/netip"
	"slices"
	"strings"

	"rackstrap/inventory"
)

// corefile is what CoreDNS answers with where kubeadm's own file would end it: that forwards to the servers of the node's
// /etc/resolv.conf, and with none there CoreDNS stops with "no nameservers found" (HostPortOrFile in its
// plugin/pkg/parse/host.go). Without servers of any network only the cluster's names are known.
const corefile = `.:53 {
    errors
    health {
        lameduck 5s
    }
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
    }
    prometheus :9153
FORWARD    cache 30
    reload
    loadbalance
}
`

type configMap struct {
	typeMeta `yaml:",inline"`
	Metadata struct {
		Name      string `yaml:"name"`
		Namespace string `yaml:"namespace"`
	} `yaml:"metadata"`
	Data map[string]string `yaml:"data"`
}

// DNSManifest is what is applied over kubeadm's configuration of CoreDNS; "" where every machine has a name server, so
// that CoreDNS starts on each of them.
func DNSManifest(cfg *inventory.Config) string {
	var servers []netip.Addr
	missing := false
	for _, m := range cfg.Machines {
		s, _ := cfg.SubnetOf(m.IP)
		missing = missing || len(s.DNS) == 0
		servers = append(servers, s.DNS...)
	}
	if !missing {
		return ""
	}
	forward := ""
	if servers = sorted(servers); len(servers) > 0 {
		forward = "    forward ."
		for _, s := range servers {
			forward += " " + s.String()
		}
		forward += "\n"
	}
	object := configMap{typeMeta: typeMeta{"v1", "ConfigMap"}, Data: map[string]string{"Corefile": strings.Replace(corefile, "FORWARD", forward, 1)}}
	object.Metadata.Name, object.Metadata.Namespace = "coredns", "kube-system"
	return documents(object)
}

// manifests are what the first master applies once its API answers: of the pod network, and of the DNS.
func manifests(cfg *inventory.Config) (string, error) {
	network, err := CNIManifest(cfg)
	if err != nil {
		return "", err
	}
	var list []string
	for _, text := range []string{network, DNSManifest(cfg)} {
		if text != "" {
			list = append(list, strings.TrimSuffix(text, "\n")+"\n")
		}
	}
	return strings.Join(list, "---\n"), nil
}

func sorted(list []netip.Addr) []netip.Addr {
	slices.SortFunc(list, netip.Addr.Compare)
	return slices.Compact(list)
}
