// Package inventory is the configuration file: the machines of the rack, their network, media and cluster.
//
// Raw YAML goes in, typed values come out: addresses are netip.Addr, MACs are comparable. A Config is
// immutable once loaded; a changed file makes a new one. This package alone imports viper.
package inventory

import (
	"net/netip"
	"time"
)

// Config is one valid configuration. Treat it as read-only: it is shared by every part of the daemon.
type Config struct {
	Path     string // the file it came from, absolute; "" for the embedded default
	Server   Server
	Network  Network
	Media    []Medium
	Install  Install // the defaults; a machine's own are in Machine.Install
	Cluster  Cluster
	Machines []Machine // in the order of the file
	Warnings []string  // what is allowed, but probably not meant; for people

	origin *origin // where the values came from; nil if made by hand
	lookup lookup  // empty if made by hand
}

// Server says where the daemon listens and keeps its state.
type Server struct {
	Interface  string     // the NIC on the provisioning network; may be "" with DHCP off
	Address    netip.Addr // IPv4; the zero Addr until resolved from the interface
	HTTPPort   int        // boot plane, plain HTTP; 0, here and below: any free port
	HTTPSPort  int        // node plane, TLS
	SyslogPort int        // where installers send their logs, TCP; 0: they send none
	TFTPPort   int
	DHCPPort   int    // 67 everywhere but in tests
	DataDir    string // state, sockets, CA
	LoadersDir string // boot loaders in place of, or in addition to, the embedded ones; "" for none
	AgentsDir  string // programs for nodes of other architectures: linux-amd64, linux-arm64; "" for none
	RepoDir    string // package repositories, each a directory by its name; "" for none
	CacheSize  int64  // bytes that packages of repositories which are served via the appliance may take
}

// DHCPMode says how DHCP is served.
type DHCPMode string

// The modes of network.dhcp.mode.
const (
	DHCPServer DHCPMode = "server" // the only DHCP server of the network
	DHCPProxy  DHCPMode = "proxy"  // beside one: boot information only, no addresses (PXE 2.1 proxyDHCP)
	DHCPOff    DHCPMode = "off"
)

// UnknownPolicy says what happens to a machine that is not in the list.
type UnknownPolicy string

// The policies of network.dhcp.unknown.
const (
	UnknownDiscover UnknownPolicy = "discover" // show it and boot it into a waiting screen until it is approved
	UnknownIgnore   UnknownPolicy = "ignore"   // silence
	UnknownEnroll   UnknownPolicy = "enroll"   // give it the next free slot of a worker
)

// Network is the provisioning network.
type Network struct {
	Subnet           // the network of the server's own interface
	Domain  string   // DNS domain handed out and written to hosts files; "" for none
	NTP     []string // host names or addresses
	Relayed []Subnet // further networks, reached through DHCP relay agents
	// ProxiedARP: somebody else answers ARP for the machines of the server's own network, so that their hardware addresses
	// are not seen there (RFC 1027).
	ProxiedARP bool
	DHCP       DHCP
}

// Subnet is one IPv4 network on which machines boot.
type Subnet struct {
	Prefix  netip.Prefix // masked
	Gateway netip.Addr   // may be the zero Addr: no router is offered
	DNS     []netip.Addr
	Pool    Range // for unknown machines; the zero Range serves reservations only
}

// Range is an inclusive range of addresses. The zero Range is empty.
type Range struct{ First, Last netip.Addr }

// Contains tells whether the address lies in the range.
func (r Range) Contains(a netip.Addr) bool {
	return r.First.IsValid() && r.First.Compare(a) <= 0 && a.Compare(r.Last) <= 0
}

// IsZero tells whether the range is empty.
func (r Range) IsZero() bool { return !r.First.IsValid() }

// DHCP is how addresses are handed out.
type DHCP struct {
	Mode          DHCPMode
	LeaseTime     time.Duration
	Unknown       UnknownPolicy
	ProbeInterval time.Duration // how often foreign DHCP servers are looked for; 0 only at start
}

// Medium is one installation medium: an ISO image, an unpacked tree in a directory, or a tree on a mirror.
type Medium struct {
	Name   string
	ISO    string // path of the image
	Dir    string // path of an unpacked tree
	URL    string // of an unpacked tree on a mirror; machines fetch from there
	SHA256 string // of the ISO, lower-case hex; "" for unchecked
}

// LocalBoot is the way in which a network boot loader hands over to the local disk.
type LocalBoot string

// The methods of local_boot.
const (
	LocalAuto    LocalBoot = "auto"    // the default for the machine's firmware: sanboot on BIOS, exit on UEFI
	LocalExit    LocalBoot = "exit"    // leave the loader with an error, firmware tries its next boot entry
	LocalSanboot LocalBoot = "sanboot" // iPXE boots the first BIOS drive itself
	LocalGRUB    LocalBoot = "grub"    // chain GRUB, which looks for the disk's own loader
	LocalSkip    LocalBoot = "skip"    // offer no loader at all: firmware gives up on the network by itself
)

// Confirm is which machines the operator has to confirm before they are handed secrets of the cluster.
type Confirm string

// The values of confirm.
const (
	ConfirmOff          Confirm = "off"
	ConfirmControlPlane Confirm = "control-plane"
	ConfirmAll          Confirm = "all"
)

// NeedsConfirmation tells whether the operator has to confirm the machine before it joins the cluster.
func (m *Machine) NeedsConfirmation() bool {
	return m.Install.Confirm == ConfirmAll || m.Install.Confirm == ConfirmControlPlane && m.Role == RoleControlPlane
}

// Install holds everything that a machine may override: how it boots and what is installed.
type Install struct {
	Profile           string
	Medium            string // name in media; "" for the first
	Disk              string // which disk is erased; see ParseDisk
	Timezone          string
	RootPasswordHash  string `json:"-"` // crypt(3); a secret: never printed
	SSHAuthorizedKeys []string
	Repos             map[string]Repo
	KernelArgs        []string  // appended to the installer's kernel command line
	Attempts          int       // installations tried before the machine is held
	SecureBoot        bool      // offer the distribution's signed shim instead of iPXE
	SecureBootDir     string    // directory with shim and GRUB; "" for the medium's EFI/BOOT
	LocalBoot         LocalBoot // how an installed machine is sent to its disk
	Confirm           Confirm   // whether the operator has to confirm the machine before it joins the cluster

	Kernel          string              // of Kernel…
	SELinux         string              // enforcing, permissive or disabled
	Docker          bool                // Docker CE beside containerd
	Kdump           bool                // the kernel's dumps, for which it reserves memory
	SandboxImage    string              // of pods; "" for the profile's, out of the cluster's image repository
	RegistryMirrors map[string][]string // by registry host: URLs that are tried before it
	Proxy           string              // URL, for packages and images; may hold a password; "" for none
	BootArgs        []string            // kernel arguments of the installed system
	ExtraPackages   []string            // installed last
	PostScripts     []Script            // run last, in this order
	Timeout         time.Duration       // an installation that takes longer has failed
	Stall           time.Duration       // and so has one that gives no sign of life for so long
}

// The kernels of an installed machine.
const (
	KernelStock = "stock" // the release's own
	KernelLT    = "lt"    // ELRepo's long-term kernel
	KernelML    = "ml"    // ELRepo's mainline kernel
)

// Role is what a machine becomes in the cluster.
type Role string

// The roles.
const (
	RoleControlPlane Role = "control-plane"
	RoleWorker       Role = "worker"
)

// Cluster is the Kubernetes cluster that the machines form.
type Cluster struct {
	Name                 string
	KubernetesVersion    string
	ImageRepository      string
	PodCIDR              netip.Prefix
	ServiceCIDR          netip.Prefix
	ControlPlaneEndpoint string // host:port
	CNI                  string
	CNIManifest          string // path of a manifest in place of the built-in one; "" for that
	FlannelImage         string // of the built-in manifest
	FlannelCNIImage      string // of the built-in manifest
	ProxyMode            string
	Images               string // directory with archives of container images; "": machines pull theirs
	VerifyImage          string // of the web server that `verify` runs
	Timeouts             Timeouts
}

// Timeouts are how long a step of a machine's way into the cluster may take before it counts as failed.
type Timeouts struct {
	Init  time.Duration // kubeadm init and the CNI
	Join  time.Duration // kubeadm join
	Ready time.Duration // from there on, until a master saw the node Ready
}

// Machine is one entry of the list.
type Machine struct {
	Name    string
	MAC     MAC   // of the card that boots, the first of several; zero: a free slot for enrolment
	MACs    []MAC `json:",omitempty"` // of all its cards that may boot, in the order of the file; nil: it has no other than MAC
	IP      netip.Addr
	Role    Role
	Install Install // the install section with the machine's own keys laid over it
}

// Medium finds a medium by name; "" is the first one.
func (c *Config) Medium(name string) (*Medium, bool) {
	for i := range c.Media {
		if name == "" || c.Media[i].Name == name {
			return &c.Media[i], true
		}
	}
	return nil, false
}

// Subnets lists the server's own network and then the relayed ones.
func (c *Config) Subnets() []Subnet {
	return append([]Subnet{c.Network.Subnet}, c.Network.Relayed...)
}

// SubnetOf finds the network that an address belongs to.
func (c *Config) SubnetOf(a netip.Addr) (Subnet, bool) {
	for _, s := range c.Subnets() {
		if s.Prefix.Contains(a) {
			return s, true
		}
	}
	return Subnet{}, false
}
