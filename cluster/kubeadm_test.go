package cluster

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"rackstrap/inventory"
)

var update = flag.Bool("update", false, "write the golden files anew")

// renderings are the files of one rack, by the names of their golden files.
func renderings() map[string]string {
	cfg := inventory.Default()
	cfg.Machines = append(cfg.Machines, inventory.Machine{Name: "kmaster2", IP: netip.MustParseAddr("10.10.10.90"), Role: inventory.RoleControlPlane})
	balanced := *cfg
	balanced.Cluster.ControlPlaneEndpoint = "10.10.10.250:8443" // a balancer's address
	balanced.Cluster.ProxyMode = "ipvs"
	balanced.Cluster.ImageRepository = "registry.lab:5000/k8s"
	const token, key = "abcdef.0123456789abcdef", "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
	const hash = "sha256:7c2e69131a36ae2a042a339b33381c6d0d43887e2de83720eff5359e26aec866"
	return map[string]string{
		"init.yaml":          InitConfig(cfg, cfg.Machines[0], token, 15*time.Minute, "node=kmaster attempt=1"),
		"init-balanced.yaml": InitConfig(&balanced, balanced.Machines[0], token, 15*time.Minute, "node=kmaster attempt=1"),
		"upload.yaml":        UploadConfig(cfg, cfg.Machines[0], key),
		"join.yaml":          JoinConfig(cfg, cfg.Machines[1], token, hash, ""),
		"join-master.yaml":   JoinConfig(cfg, cfg.Machines[3], token, hash, key),
	}
}

// The real kubeadm is shown these files by the tests of e2e.
func TestRenderedForKubeadm(t *testing.T) {
	for name, text := range renderings() {
		golden(t, name, text)
	}
	require.NotContains(t, renderings()["join.yaml"], "controlPlane:")
}

func golden(t *testing.T, name, text string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, string(want), text, "%s; go test ./cluster -update, if that is meant", name)
}

func TestFlannel(t *testing.T) {
	c := inventory.Default()
	text, err := CNIManifest(c)
	require.NoError(t, err)
	golden(t, "flannel.yaml", text)
	fitted, err := fitManifest(text, c.Cluster.PodCIDR)
	require.NoError(t, err, "it is held to what others are held to")
	require.Equal(t, text, fitted)
	require.False(t, flannelByRoute(text))
	c.Cluster.CNI = "none"
	text, err = CNIManifest(c)
	require.NoError(t, err)
	require.Empty(t, text)
}

func TestOwnManifest(t *testing.T) {
	dir := t.TempDir()
	cfg := inventory.Default()
	c := &cfg.Cluster
	c.CNI, c.CNIManifest = "calico", dir+"/cni.yaml"
	const object = "apiVersion: v1\nkind: ConfigMap\n"
	for name, m := range map[string]struct{ text, want, fault string }{
		"as it is":          {text: object + "---\n# nothing\n---\n" + object, want: object + "---\n# nothing\n---\n" + object},
		"a word for it":     {text: object + "data: {net: POD_CIDR}\n", want: object + "data: {net: 10.244.0.0/16}\n"},
		"flannel's other":   {text: object + "data:\n  net-conf.json: |\n    {\"Network\": \"10.99.0.0/16\"}\n", fault: "made for the pod network 10.99.0.0/16, but cluster.pod_cidr is 10.244.0.0/16"},
		"flannel's same":    {text: object + "data:\n  net-conf.json: |\n    {\"Network\": \"10.244.0.0/16\"}\n", want: object + "data:\n  net-conf.json: |\n    {\"Network\": \"10.244.0.0/16\"}\n"},
		"calico's default":  {text: object + "env:\n            # - name: CALICO_IPV4POOL_CIDR\n            #   value: \"192.168.0.0/16\"\n", want: object + "env:\n            # - name: CALICO_IPV4POOL_CIDR\n            #   value: \"192.168.0.0/16\"\n"},
		"calico's other":    {text: object + "env:\n            - name: CALICO_IPV4POOL_CIDR\n              value: \"192.168.0.0/16\"\n", fault: "made for the pod network 192.168.0.0/16"},
		"calico's operator": {text: object + "spec:\n  ipPools:\n  - blockSize: 26\n    cidr: 192.168.0.0/16\n", fault: "made for the pod network 192.168.0.0/16"},
		"empty":             {text: "# nothing\n", fault: "holds no Kubernetes object"},
		"no YAML":           {text: "\t}{", fault: "is no YAML"},
		"a web page":        {text: "<!DOCTYPE html>\n<html>404</html>\n", fault: "is no YAML"},
		"half an object":    {text: "kind: ConfigMap\n", fault: "its object 1 has no apiVersion or no kind"},
		"far too large":     {text: object + strings.Repeat("# x\n", maxManifest/4), fault: "is larger than 1024 KiB"},
	} {
		require.NoError(t, os.WriteFile(c.CNIManifest, []byte(m.text), 0o600))
		got, err := CNIManifest(cfg)
		if m.fault != "" {
			require.ErrorContains(t, err, m.fault, name)
			require.ErrorContains(t, err, "cluster.cni_manifest", name)
			continue
		}
		require.NoError(t, err, name)
		require.Equal(t, m.want, got, name)
	}
	c.CNIManifest = ""
	_, err := CNIManifest(cfg)
	require.ErrorContains(t, err, "the manifest of calico is not built in")
}

// A flannel that looks for its card by the default route finds none where there is no gateway.
func TestOwnFlannelOfAnIsolatedRack(t *testing.T) {
	cfg := inventory.Default()
	cfg.Cluster.CNIManifest = filepath.Join(t.TempDir(), "flannel.yaml")
	for args, byRoute := range map[string]bool{
		"--ip-masq\n    - --kube-subnet-mgr":                           true,
		"--kube-subnet-mgr\n    - --iface-regex-of-nobody=x # --iface": true,
		"--kube-subnet-mgr\n    # - --iface=eth0":                      true,
		"--kube-subnet-mgr\n    - --iface=$(NODE_IP)":                  false,
		"--kube-subnet-mgr\n    - --iface-can-reach=10.10.10.1":        false,
		"--kube-subnet-mgr\n    - --public-ip=$(NODE_IP)":              false,
		"--kube-subnet-mgr\n    env: [{name: FLANNELD_IFACE}]":         false,
		"--of-another-plugin":                                          false,
	} {
		text := "apiVersion: v1\nkind: Pod\nspec:\n  containers:\n  - args:\n    - " + args + "\n"
		require.NoError(t, os.WriteFile(cfg.Cluster.CNIManifest, []byte(text), 0o600))
		cfg.Network.Gateway = netip.MustParseAddr("10.10.10.121")
		_, err := CNIManifest(cfg)
		require.NoError(t, err, args)
		cfg.Network.Gateway = netip.Addr{}
		_, err = CNIManifest(cfg)
		if byRoute {
			require.ErrorContains(t, err, "flannel looks for its network card by the default route, and 10.10.10.0/24 has no gateway", args)
			continue
		}
		require.NoError(t, err, args)
	}
}

// Whatever the inventory lets through stays one value of the document that it belongs to.
func FuzzRendered(f *testing.F) {
	f.Add("kmaster", "registry.lab/x", "k8s-api.lab:6443", "abcdef.0123456789abcdef")
	f.Add("a: b", "x\n---\nkind: Evil", "'\"", "{}[]&*!|>%@`")
	f.Fuzz(func(t *testing.T, name, repository, endpoint, token string) {
		cfg := inventory.Default()
		cfg.Cluster.ImageRepository, cfg.Cluster.ControlPlaneEndpoint = repository, endpoint
		m := cfg.Machines[0]
		m.Name = name
		for _, text := range []string{InitConfig(cfg, m, token, time.Minute, name), JoinConfig(cfg, m, token, name, repository)} {
			dec := yaml.NewDecoder(strings.NewReader(text))
			kinds := 0
			for {
				var d struct{ Kind string }
				if err := dec.Decode(&d); err != nil {
					break
				}
				kinds++
				if !strings.HasSuffix(d.Kind, "Configuration") {
					t.Fatalf("kind %q", d.Kind)
				}
			}
			if kinds != 4 && kinds != 1 {
				t.Fatalf("%d documents", kinds)
			}
		}
	})
}

func TestCAHash(t *testing.T) {
	for _, bad := range []string{"", "x", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"} {
		_, err := CAHash(bad)
		require.Error(t, err)
	}
}

func TestRedact(t *testing.T) {
	for text, want := range map[string]string{
		"kubeadm join --token abcdef.0123456789abcdef --discovery":                       "kubeadm join --(removed) --discovery",
		"id abcdef.0123456789abcdef.":                                                    "id (removed).",
		"key " + strings.Repeat("ab", 32):                                                "key (removed)",
		"client-key-data: TFMwdExTMUNSVWRKVGlCUw==\nnext":                                "(removed)\nnext",
		"-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\nnext":     "(removed)\nnext",
		"-----BEGIN PRIVATE KEY-----\nMIIE and cut off":                                  "(removed)",
		"error execution phase preflight: [ERROR CRI]: container runtime is not running": "error execution phase preflight: [ERROR CRI]: container runtime is not running",
		"couldn't validate token: the token is not there":                                "couldn't validate token: the token is not there",
	} {
		require.Equal(t, want, Redact(text))
	}
	require.Equal(t, "a b c??", oneLine("a\nb\tc\x1b\x00"))
	require.True(t, strings.HasPrefix(oneLine(strings.Repeat("x", 5000)), "…"))
}
