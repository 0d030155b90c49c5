package inventory

// The raw structs are the file's shape: every key there is, by its mapstructure name, and the kind of its
// value. The strict reader, the environment variables and the test of the reference file are derived from
// them. Text that means more (addresses, durations) is parsed by typed.go, where faults can name the place.

type rawConfig struct {
	Server   rawServer    `mapstructure:"server"`
	Network  rawNetwork   `mapstructure:"network"`
	Media    []rawMedium  `mapstructure:"media"`
	Install  rawInstall   `mapstructure:"install"`
	Cluster  rawCluster   `mapstructure:"cluster"`
	Machines []rawMachine `mapstructure:"machines"`
}

type rawServer struct {
	Interface  string `mapstructure:"interface"`
	Address    string `mapstructure:"address"`
	HTTPPort   int    `mapstructure:"http_port"`
	HTTPSPort  int    `mapstructure:"https_port"`
	SyslogPort int    `mapstructure:"syslog_port"`
	TFTPPort   int    `mapstructure:"tftp_port"`
	DHCPPort   int    `mapstructure:"dhcp_port"`
	DataDir    string `mapstructure:"data_dir"`
	LoadersDir string `mapstructure:"loaders_dir"`
	AgentsDir  string `mapstructure:"agents_dir"`
	RepoDir    string `mapstructure:"repo_dir"`
	CacheSize  string `mapstructure:"cache_size"`
}

type rawNetwork struct {
	Subnet  string      `mapstructure:"subnet"`
	Gateway string      `mapstructure:"gateway"`
	DNS     []string    `mapstructure:"dns"`
	NTP     []string    `mapstructure:"ntp"`
	Domain  string      `mapstructure:"domain"`
	DHCP    rawDHCP     `mapstructure:"dhcp"`
	Relayed []rawSubnet `mapstructure:"relayed"`

	ProxiedARP bool `mapstructure:"proxied_arp"`
}

type rawDHCP struct {
	Mode          string `mapstructure:"mode"`
	Pool          string `mapstructure:"pool"`
	LeaseTime     string `mapstructure:"lease_time"`
	Unknown       string `mapstructure:"unknown"`
	ProbeInterval string `mapstructure:"probe_interval"`
}

type rawSubnet struct {
	Subnet  string   `mapstructure:"subnet"`
	Gateway string   `mapstructure:"gateway"`
	DNS     []string `mapstructure:"dns"`
	Pool    string   `mapstructure:"pool"`
}

type rawMedium struct {
	Name   string `mapstructure:"name"`
	ISO    string `mapstructure:"iso"`
	Dir    string `mapstructure:"dir"`
	URL    string `mapstructure:"url"`
	SHA256 string `mapstructure:"sha256"`
}

type rawInstall struct {
	Profile           string             `mapstructure:"profile"`
	Medium            string             `mapstructure:"medium"`
	Disk              string             `mapstructure:"disk"`
	Timezone          string             `mapstructure:"timezone"`
	RootPasswordHash  string             `mapstructure:"root_password_hash"`
	SSHAuthorizedKeys []string           `mapstructure:"ssh_authorized_keys"`
	Repos             map[string]rawRepo `mapstructure:"repos"`
	KernelArgs        []string           `mapstructure:"kernel_args"`
	Attempts          int                `mapstructure:"attempts"`
	SecureBoot        bool               `mapstructure:"secure_boot"`
	SecureBootDir     string             `mapstructure:"secure_boot_dir"`
	LocalBoot         string             `mapstructure:"local_boot"`
	Confirm           string             `mapstructure:"confirm"`

	Kernel          string              `mapstructure:"kernel"`
	SELinux         string              `mapstructure:"selinux"`
	Docker          bool                `mapstructure:"docker"`
	Kdump           bool                `mapstructure:"kdump"`
	SandboxImage    string              `mapstructure:"sandbox_image"`
	RegistryMirrors map[string][]string `mapstructure:"registry_mirrors"`
	Proxy           string              `mapstructure:"proxy"`
	BootArgs        []string            `mapstructure:"boot_args"`
	ExtraPackages   []string            `mapstructure:"extra_packages"`
	PostScripts     []string            `mapstructure:"post_scripts"`
	Timeout         string              `mapstructure:"timeout"`
	Stall           string              `mapstructure:"stall"`
}

// rawRepo may also be written as its URL alone.
type rawRepo struct {
	URL    string `mapstructure:"url"`
	Dir    string `mapstructure:"dir"`
	Via    string `mapstructure:"via"`
	GPGKey string `mapstructure:"gpgkey"`
}

type rawCluster struct {
	Name                 string      `mapstructure:"name"`
	KubernetesVersion    string      `mapstructure:"kubernetes_version"`
	ImageRepository      string      `mapstructure:"image_repository"`
	PodCIDR              string      `mapstructure:"pod_cidr"`
	ServiceCIDR          string      `mapstructure:"service_cidr"`
	ControlPlaneEndpoint string      `mapstructure:"control_plane_endpoint"`
	CNI                  string      `mapstructure:"cni"`
	CNIManifest          string      `mapstructure:"cni_manifest"`
	FlannelImage         string      `mapstructure:"flannel_image"`
	FlannelCNIImage      string      `mapstructure:"flannel_cni_image"`
	ProxyMode            string      `mapstructure:"proxy_mode"`
	Images               string      `mapstructure:"images"`
	VerifyImage          string      `mapstructure:"verify_image"`
	Timeouts             rawTimeouts `mapstructure:"timeouts"`
}

type rawTimeouts struct {
	Init  string `mapstructure:"init"`
	Join  string `mapstructure:"join"`
	Ready string `mapstructure:"ready"`
}

type rawMachine struct {
	Name       string    `mapstructure:"name"`
	MAC        oneOrMore `mapstructure:"mac"`
	IP         string    `mapstructure:"ip"`
	Role       string    `mapstructure:"role"`
	rawInstall `mapstructure:",squash"`
}

// oneOrMore is a text, or a list of texts: in the file one may be written without the brackets.
type oneOrMore []string

// defaults are the values of the keys that may be left out.
func defaults() map[string]any {
	return map[string]any{
		"server.http_port":               8080,
		"server.https_port":              8443,
		"server.syslog_port":             5514,
		"server.tftp_port":               69,
		"server.dhcp_port":               67,
		"server.data_dir":                "/var/lib/rackstrap",
		"server.cache_size":              "20GiB",
		"network.proxied_arp":            false,
		"network.dhcp.mode":              string(DHCPServer),
		"network.dhcp.lease_time":        "12h",
		"network.dhcp.unknown":           string(UnknownDiscover),
		"network.dhcp.probe_interval":    "5m",
		"install.profile":                "centos-7.9",
		"install.timezone":               "UTC",
		"install.attempts":               3,
		"install.local_boot":             string(LocalAuto),
		"install.confirm":                string(ConfirmOff),
		"install.kernel":                 KernelStock,
		"install.selinux":                "permissive",
		"install.docker":                 true,
		"install.kdump":                  false,
		"install.timeout":                "60m",
		"install.stall":                  "15m",
		"cluster.name":                   "lab",
		"cluster.kubernetes_version":     "1.28.2",
		"cluster.image_repository":       "registry.aliyuncs.com/google_containers",
		"cluster.pod_cidr":               "10.244.0.0/16",
		"cluster.service_cidr":           "10.1.0.0/16",
		"cluster.control_plane_endpoint": "k8s-api.lab:6443",
		"cluster.cni":                    "flannel",
		"cluster.flannel_image":          "docker.io/flannel/flannel:v0.22.0",
		"cluster.flannel_cni_image":      "docker.io/flannel/flannel-cni-plugin:v1.1.2",
		"cluster.verify_image":           "docker.io/library/nginx:1.25",
		"cluster.timeouts.init":          "15m",
		"cluster.timeouts.join":          "10m",
		"cluster.timeouts.ready":         "15m",
		"cluster.proxy_mode":             "iptables",
	}
}
