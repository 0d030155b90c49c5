package cluster

import (
	"bytes"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"rackstrap/inventory"
)

// The kinds of kubeadm's configuration that are rendered, with the fields that are set; see
// k8s.io/kubernetes/cmd/kubeadm/app/apis/kubeadm/v1beta3. It is what kubeadm 1.22 to 1.34 read. They are marshalled, not
// put together from text: no value can break out of its place.
type (
	typeMeta struct {
		APIVersion string `yaml:"apiVersion"`
		Kind       string `yaml:"kind"`
	}
	initConfiguration struct {
		typeMeta         `yaml:",inline"`
		BootstrapTokens  []bootstrapToken `yaml:"bootstrapTokens,omitempty"`
		LocalAPIEndpoint apiEndpoint      `yaml:"localAPIEndpoint"`
		NodeRegistration nodeRegistration `yaml:"nodeRegistration"`
		CertificateKey   string           `yaml:"certificateKey,omitempty"`
	}
	bootstrapToken struct {
		Token       string   `yaml:"token"`
		Description string   `yaml:"description"`
		TTL         string   `yaml:"ttl"`
		Usages      []string `yaml:"usages"`
		Groups      []string `yaml:"groups"`
	}
	apiEndpoint struct {
		AdvertiseAddress string `yaml:"advertiseAddress"`
		BindPort         int    `yaml:"bindPort"`
	}
	nodeRegistration struct {
		Name             string            `yaml:"name"`
		CRISocket        string            `yaml:"criSocket"`
		ImagePullPolicy  string            `yaml:"imagePullPolicy"`
		KubeletExtraArgs map[string]string `yaml:"kubeletExtraArgs"`
	}
	clusterConfiguration struct {
		typeMeta             `yaml:",inline"`
		ClusterName          string     `yaml:"clusterName"`
		KubernetesVersion    string     `yaml:"kubernetesVersion"`
		ControlPlaneEndpoint string     `yaml:"controlPlaneEndpoint"`
		APIServer            apiServer  `yaml:"apiServer"`
		ImageRepository      string     `yaml:"imageRepository"`
		Networking           networking `yaml:"networking"`
	}
	apiServer struct {
		TimeoutForControlPlane string `yaml:"timeoutForControlPlane"`
	}
	networking struct {
		DNSDomain     string `yaml:"dnsDomain"`
		PodSubnet     string `yaml:"podSubnet"`
		ServiceSubnet string `yaml:"serviceSubnet"`
	}
	kubeletConfiguration struct {
		typeMeta     `yaml:",inline"`
		CgroupDriver string `yaml:"cgroupDriver"`
	}
	kubeProxyConfiguration struct {
		typeMeta `yaml:",inline"`
		Mode     string `yaml:"mode"`
	}
	joinConfiguration struct {
		typeMeta         `yaml:",inline"`
		Discovery        discovery         `yaml:"discovery"`
		NodeRegistration nodeRegistration  `yaml:"nodeRegistration"`
		ControlPlane     *joinControlPlane `yaml:"controlPlane,omitempty"`
	}
	discovery struct {
		BootstrapToken discoveryToken `yaml:"bootstrapToken"`
		Timeout        string         `yaml:"timeout"`
	}
	discoveryToken struct {
		Token             string   `yaml:"token"`
		APIServerEndpoint string   `yaml:"apiServerEndpoint"`
		CACertHashes      []string `yaml:"caCertHashes"`
	}
	joinControlPlane struct {
		LocalAPIEndpoint apiEndpoint `yaml:"localAPIEndpoint"`
		CertificateKey   string      `yaml:"certificateKey"`
	}
)

const (
	kubeadmAPI = "kubeadm.k8s.io/v1beta3"
	criSocket  = "unix:///run/containerd/containerd.sock"
	// discoveryTimeout is how long a join looks for the cluster at most before it gives up on the token (kubeadm's
	// default).
	discoveryTimeout = 5 * time.Minute
	// defaultAPIPort is where a master listens if the endpoint is a balancer before it.
	defaultAPIPort = 6443
)

// InitConfig is the file with which a machine initialises the cluster. The token is the one that kubeadm init always
// makes: given here, so that it lives no longer than ttl and can be deleted by its ID.
func InitConfig(cfg *inventory.Config, m inventory.Machine, token string, ttl time.Duration, description string) string {
	first := initOf(cfg, m)
	first.BootstrapTokens = []bootstrapToken{{
		Token: token, Description: description, TTL: ttl.String(),
		Usages: []string{"signing", "authentication"},
		Groups: []string{"system:bootstrappers:kubeadm:default-node-token"},
	}}
	return documents(first, clusterOf(cfg),
		kubeletConfiguration{typeMeta{"kubelet.config.k8s.io/v1beta1", "KubeletConfiguration"}, "systemd"},
		kubeProxyConfiguration{typeMeta{"kubeproxy.config.k8s.io/v1alpha1", "KubeProxyConfiguration"}, cfg.Cluster.ProxyMode})
}

// UploadConfig is the file with which a master uploads the control plane's certificates under a key. It names the
// version, which kubeadm would look up on the internet otherwise.
func UploadConfig(cfg *inventory.Config, m inventory.Machine, key string) string {
	first := initOf(cfg, m)
	first.CertificateKey = key
	return documents(first, clusterOf(cfg))
}

// JoinConfig is the file with which a machine joins: with a key as a control plane. caHash is sha256:…, as of CAHash.
func JoinConfig(cfg *inventory.Config, m inventory.Machine, token, caHash, key string) string {
	join := joinConfiguration{
		typeMeta: typeMeta{kubeadmAPI, "JoinConfiguration"},
		Discovery: discovery{
			BootstrapToken: discoveryToken{Token: token, APIServerEndpoint: cfg.Cluster.ControlPlaneEndpoint, CACertHashes: []string{caHash}},
			Timeout:        min(discoveryTimeout, cfg.Cluster.Timeouts.Join/2).String(),
		},
		NodeRegistration: registration(m),
	}
	if m.Role == inventory.RoleControlPlane {
		join.ControlPlane = &joinControlPlane{LocalAPIEndpoint: localAPI(cfg, m), CertificateKey: key}
	}
	return documents(join)
}

func initOf(cfg *inventory.Config, m inventory.Machine) initConfiguration {
	return initConfiguration{typeMeta: typeMeta{kubeadmAPI, "InitConfiguration"},
		LocalAPIEndpoint: localAPI(cfg, m), NodeRegistration: registration(m)}
}

func clusterOf(cfg *inventory.Config) clusterConfiguration {
	c := cfg.Cluster
	return clusterConfiguration{
		typeMeta:    typeMeta{kubeadmAPI, "ClusterConfiguration"},
		ClusterName: c.Name, KubernetesVersion: "v" + c.KubernetesVersion,
		ControlPlaneEndpoint: c.ControlPlaneEndpoint, ImageRepository: c.ImageRepository,
		// kubeadm's four minutes are too short for slow disks; the rest of the time is for the images and the CNI.
		APIServer:  apiServer{TimeoutForControlPlane: (c.Timeouts.Init * 2 / 3).String()},
		Networking: networking{DNSDomain: "cluster.local", PodSubnet: c.PodCIDR.String(), ServiceSubnet: c.ServiceCIDR.String()},
	}
}

// registration names the node as the list does, whatever the machine's own host name has become, and has the kubelet
// take the address of the list, whichever NIC the default route leads through.
func registration(m inventory.Machine) nodeRegistration {
	return nodeRegistration{Name: m.Name, CRISocket: criSocket, ImagePullPolicy: "IfNotPresent",
		KubeletExtraArgs: map[string]string{"node-ip": m.IP.String()}}
}

func localAPI(cfg *inventory.Config, m inventory.Machine) apiEndpoint {
	return apiEndpoint{AdvertiseAddress: m.IP.String(), BindPort: bindPort(cfg)}
}

// bindPort is where masters listen: at the endpoint's port if the endpoint is found at the masters themselves, as its
// name is by the hosts files.
func bindPort(cfg *inventory.Config) int {
	host, port := splitEndpoint(cfg.Cluster.ControlPlaneEndpoint)
	if address, err := netip.ParseAddr(host); err == nil {
		if m, ok := cfg.ByIP(address); !ok || m.Role != inventory.RoleControlPlane {
			return defaultAPIPort
		}
	}
	return port
}

func splitEndpoint(endpoint string) (host string, port int) {
	host, text, _ := strings.Cut(endpoint, ":")
	port, err := strconv.Atoi(text)
	if err != nil {
		port = defaultAPIPort
	}
	return host, port
}

// documents renders one YAML document for each kind.
func documents(kinds ...any) string {
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	for _, kind := range kinds {
		if err := enc.Encode(kind); err != nil {
			panic(fmt.Sprintf("render %T: %v", kind, err)) // structs of texts and numbers always can be
		}
	}
	enc.Close()
	return out.String()
}
