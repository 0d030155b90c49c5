package fakekube

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"go.yaml.in/yaml/v3"
)

// The shapes of kubeadm.k8s.io/v1beta3 (kubernetes 1.28, cmd/kubeadm/app/apis/kubeadm/v1beta3/types.go), read strictly:
// a field that does not exist is an error here, where kubeadm only warns.
type initConfiguration struct {
	APIVersion       string            `yaml:"apiVersion"`
	Kind             string            `yaml:"kind"`
	BootstrapTokens  []bootstrapToken  `yaml:"bootstrapTokens"`
	NodeRegistration nodeRegistration  `yaml:"nodeRegistration"`
	LocalAPIEndpoint apiEndpoint       `yaml:"localAPIEndpoint"`
	CertificateKey   string            `yaml:"certificateKey"`
	SkipPhases       []string          `yaml:"skipPhases"`
	Patches          map[string]string `yaml:"patches"`
}

type bootstrapToken struct {
	Token       string   `yaml:"token"`
	Description string   `yaml:"description"`
	TTL         string   `yaml:"ttl"`
	Expires     string   `yaml:"expires"`
	Usages      []string `yaml:"usages"`
	Groups      []string `yaml:"groups"`
}

type nodeRegistration struct {
	Name                  string            `yaml:"name"`
	CRISocket             string            `yaml:"criSocket"`
	Taints                []map[string]any  `yaml:"taints"`
	KubeletExtraArgs      map[string]string `yaml:"kubeletExtraArgs"`
	IgnorePreflightErrors []string          `yaml:"ignorePreflightErrors"`
	ImagePullPolicy       string            `yaml:"imagePullPolicy"`
}

type apiEndpoint struct {
	AdvertiseAddress string `yaml:"advertiseAddress"`
	BindPort         int    `yaml:"bindPort"`
}

type clusterConfiguration struct {
	APIVersion           string           `yaml:"apiVersion"`
	Kind                 string           `yaml:"kind"`
	Etcd                 map[string]any   `yaml:"etcd"`
	Networking           networking       `yaml:"networking"`
	KubernetesVersion    string           `yaml:"kubernetesVersion"`
	ControlPlaneEndpoint string           `yaml:"controlPlaneEndpoint"`
	APIServer            controlComponent `yaml:"apiServer"`
	ControllerManager    controlComponent `yaml:"controllerManager"`
	Scheduler            controlComponent `yaml:"scheduler"`
	DNS                  map[string]any   `yaml:"dns"`
	CertificatesDir      string           `yaml:"certificatesDir"`
	ImageRepository      string           `yaml:"imageRepository"`
	FeatureGates         map[string]bool  `yaml:"featureGates"`
	ClusterName          string           `yaml:"clusterName"`
}

type controlComponent struct {
	ExtraArgs              map[string]string `yaml:"extraArgs"`
	ExtraVolumes           []map[string]any  `yaml:"extraVolumes"`
	CertSANs               []string          `yaml:"certSANs"`
	TimeoutForControlPlane string            `yaml:"timeoutForControlPlane"`
}

type networking struct {
	ServiceSubnet string `yaml:"serviceSubnet"`
	PodSubnet     string `yaml:"podSubnet"`
	DNSDomain     string `yaml:"dnsDomain"`
}

type joinConfiguration struct {
	APIVersion       string            `yaml:"apiVersion"`
	Kind             string            `yaml:"kind"`
	NodeRegistration nodeRegistration  `yaml:"nodeRegistration"`
	CACertPath       string            `yaml:"caCertPath"`
	Discovery        discovery         `yaml:"discovery"`
	ControlPlane     *joinControlPlane `yaml:"controlPlane"`
	SkipPhases       []string          `yaml:"skipPhases"`
	Patches          map[string]string `yaml:"patches"`
}

type discovery struct {
	BootstrapToken    *tokenDiscovery `yaml:"bootstrapToken"`
	File              map[string]any  `yaml:"file"`
	TLSBootstrapToken string          `yaml:"tlsBootstrapToken"`
	Timeout           string          `yaml:"timeout"`
}

type tokenDiscovery struct {
	Token                    string   `yaml:"token"`
	APIServerEndpoint        string   `yaml:"apiServerEndpoint"`
	CACertHashes             []string `yaml:"caCertHashes"`
	UnsafeSkipCAVerification bool     `yaml:"unsafeSkipCAVerification"`
}

type joinControlPlane struct {
	LocalAPIEndpoint apiEndpoint `yaml:"localAPIEndpoint"`
	CertificateKey   string      `yaml:"certificateKey"`
}

// configuration is one file for --config.
type configuration struct {
	Init    *initConfiguration
	Cluster *clusterConfiguration
	Join    *joinConfiguration
}

const kubeadmVersion = "kubeadm.k8s.io/v1beta3"

func parseConfiguration(text string) (configuration, error) {
	var c configuration
	decode := yaml.NewDecoder(strings.NewReader(text))
	for {
		var document yaml.Node
		err := decode.Decode(&document)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return c, err
		}
		var kind struct {
			APIVersion string `yaml:"apiVersion"`
			Kind       string `yaml:"kind"`
		}
		if err := document.Decode(&kind); err != nil {
			return c, err
		}
		var into any
		switch kind.APIVersion + " " + kind.Kind {
		case kubeadmVersion + " InitConfiguration":
			c.Init = &initConfiguration{}
			into = c.Init
		case kubeadmVersion + " ClusterConfiguration":
			c.Cluster = &clusterConfiguration{}
			into = c.Cluster
		case kubeadmVersion + " JoinConfiguration":
			c.Join = &joinConfiguration{}
			into = c.Join
		case "kubelet.config.k8s.io/v1beta1 KubeletConfiguration", "kubeproxy.config.k8s.io/v1alpha1 KubeProxyConfiguration":
			continue
		default:
			return c, fmt.Errorf("no kind %q is registered for version %q", kind.Kind, kind.APIVersion)
		}
		if err := strictly(&document, into); err != nil {
			return c, err
		}
	}
	if c.Init == nil && c.Cluster == nil && c.Join == nil {
		return c, errors.New("no InitConfiguration, ClusterConfiguration or JoinConfiguration kind was found in the YAML file")
	}
	return c, nil
}

// strictly decodes a node; only a decoder knows how to refuse unknown fields.
func strictly(document *yaml.Node, into any) error {
	text, err := yaml.Marshal(document)
	if err != nil {
		return err
	}
	decode := yaml.NewDecoder(strings.NewReader(string(text)))
	decode.KnownFields(true)
	return decode.Decode(into)
}

type kubeconfig struct {
	Clusters []struct {
		Cluster struct {
			Server string `yaml:"server"`
		} `yaml:"cluster"`
	} `yaml:"clusters"`
	Users []struct {
		User struct {
			Key string `yaml:"client-key-data"`
		} `yaml:"user"`
	} `yaml:"users"`
}

func clientKey(text []byte) string {
	var k kubeconfig
	if yaml.Unmarshal(text, &k) != nil || len(k.Users) != 1 {
		return ""
	}
	return k.Users[0].User.Key
}
