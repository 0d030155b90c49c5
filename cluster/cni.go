package cluster

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"text/template"

	"go.yaml.in/yaml/v3"

	"rackstrap/inventory"
)

// maxManifest bounds a CNI manifest; calico's is a quarter of a MiB.
const maxManifest = 1 << 20

// podCIDRWord is what a manifest may write in place of the pods' network.
const podCIDRWord = "POD_CIDR"

//go:embed flannel.yaml
var flannelText string

var flannel = template.Must(template.New("flannel.yaml").Option("missingkey=error").Parse(flannelText))

// CNIManifest is that of the pod network: flannel's, with the cluster's pod network; or the
// file that the configuration names, if that fits the pod network; or nothing.
func CNIManifest(cfg *inventory.Config) (string, error) {
	c := cfg.Cluster
	if c.CNI == "none" {
		return "", nil
	}
	if c.CNIManifest != "" {
		text, err := readManifest(c.CNIManifest)
		if err != nil {
			return "", fmt.Errorf("cluster.cni_manifest: %w", err)
		}
		if text, err = fitManifest(text, c.PodCIDR); err != nil {
			return "", fmt.Errorf("cluster.cni_manifest: %s: %w", c.CNIManifest, err)
		}
		if network, ok := isolated(cfg); ok && flannelByRoute(text) {
			return "", fmt.Errorf("cluster.cni_manifest: %s: flannel looks for its network card by the default route, and %v has no gateway: "+
				"give flanneld --iface=$(NODE_IP), with status.hostIP as NODE_IP", c.CNIManifest, network)
		}
		return text, nil
	}
	if c.CNI != "flannel" {
		return "", fmt.Errorf("cluster.cni_manifest is missing: the manifest of %s is not built in", c.CNI)
	}
	var out bytes.Buffer
	err := flannel.Execute(&out, map[string]string{
		"PodCIDR": c.PodCIDR.String(), "Image": c.FlannelImage, "CNIImage": c.FlannelCNIImage,
	})
	return out.String(), err
}

// isolated finds a network of machines that has no gateway, and so no default route.
func isolated(cfg *inventory.Config) (netip.Prefix, bool) {
	for _, m := range cfg.Machines {
		if s, ok := cfg.SubnetOf(m.IP); ok && !s.Gateway.IsValid() {
			return s.Prefix, true
		}
	}
	return netip.Prefix{}, false
}

// What flanneld is started with when it takes the pods' networks from Kubernetes, and what it finds its card by then, as
// options or in the environment (main.go and FLANNELD_ in flannel 0.22).
var (
	flannelStart = regexp.MustCompile(`(?m)^[^#\n]*--?kube-subnet-mgr`)
	flannelCard  = regexp.MustCompile(`(?m)^[^#\n]*(--?(iface|iface-regex|iface-can-reach|public-ip)|FLANNELD_(IFACE|IFACE_REGEX|IFACE_CAN_REACH|PUBLIC_IP))([^\w-]|$)`)
)

// flannelByRoute tells whether a manifest starts a flannel that takes the card of the default route.
func flannelByRoute(text string) bool {
	return flannelStart.MatchString(text) && !flannelCard.MatchString(text)
}

func readManifest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err != nil {
		return "", err
	}
	if len(text) > maxManifest {
		return "", fmt.Errorf("%s is larger than %d KiB", path, maxManifest>>10)
	}
	return string(text), nil
}

// Where the manifests of CNI plugins say the pods' network: flannel's net-conf.json, calico's pools and its variable
// (commented out in the file that calico publishes: it then asks kubeadm).
var (
	flannelNetwork = regexp.MustCompile(`"Network"\s*:\s*"([^"]+)"`)
	calicoVariable = regexp.MustCompile(`(?m)^\s*- name: CALICO_IPV4POOL_CIDR\s*\n\s*value:\s*"?([^"\s]+)"?`)
	calicoPool     = regexp.MustCompile(`(?m)^\s*cidr:\s*"?([0-9][0-9./]+)"?\s*$`)
)

// fitManifest puts the pods' network into a manifest, and refuses one that is made for another, or is no manifest.
func fitManifest(text string, pods netip.Prefix) (string, error) {
	text = strings.ReplaceAll(text, podCIDRWord, pods.String())
	objects := 0
	for dec := yaml.NewDecoder(strings.NewReader(text)); ; {
		var object struct {
			APIVersion string `yaml:"apiVersion"`
			Kind       string `yaml:"kind"`
		}
		err := dec.Decode(&object)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", fmt.Errorf("is no YAML: %w", err)
		}
		if object.APIVersion == "" && object.Kind == "" {
			continue // an empty document, or a comment
		}
		if object.APIVersion == "" || object.Kind == "" {
			return "", fmt.Errorf("its object %d has no apiVersion or no kind", objects+1)
		}
		objects++
	}
	if objects == 0 {
		return "", errors.New("holds no Kubernetes object")
	}
	for _, place := range []*regexp.Regexp{flannelNetwork, calicoVariable, calicoPool} {
		for _, match := range place.FindAllStringSubmatch(text, -1) {
			if found, err := netip.ParsePrefix(match[1]); err != nil || found != pods {
				return "", fmt.Errorf("is made for the pod network %s, but cluster.pod_cidr is %v: write %s in its place", match[1], pods, podCIDRWord)
			}
		}
	}
	return text, nil
}
