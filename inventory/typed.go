package inventory

import (
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// typer makes typed values of the raw ones. What it cannot make it notes, and leaves zero; the checker then
// passes over it.
type typer struct {
	*collector
	repoDir string // server.repo_dir
}

func (t *typer) config(raw rawConfig) *Config {
	server := t.server(raw.Server)
	t.repoDir = server.RepoDir
	c := &Config{
		Server:  server,
		Network: t.network(raw.Network),
		Install: t.install("install", raw.Install, func(string) bool { return true }),
		Cluster: t.cluster(raw.Cluster),
	}
	for i, m := range raw.Media {
		c.Media = append(c.Media, t.medium(entry("media", i), m))
	}
	for i, m := range raw.Machines {
		c.Machines = append(c.Machines, t.machine(entry("machines", i), m))
	}
	return c
}

func (t *typer) server(raw rawServer) Server {
	if raw.Interface != "" && !interfaceName.MatchString(raw.Interface) {
		t.fault("server.interface", "%q cannot be the name of an interface", raw.Interface)
	}
	if raw.DataDir == "" {
		t.missing("server.data_dir", "is empty")
	}
	return Server{
		Interface:  raw.Interface,
		Address:    t.address("server.address", raw.Address),
		HTTPPort:   t.port("server.http_port", raw.HTTPPort),
		HTTPSPort:  t.port("server.https_port", raw.HTTPSPort),
		SyslogPort: t.port("server.syslog_port", raw.SyslogPort),
		TFTPPort:   t.port("server.tftp_port", raw.TFTPPort),
		DHCPPort:   t.port("server.dhcp_port", raw.DHCPPort),
		DataDir:    t.path("server.data_dir", raw.DataDir),
		LoadersDir: t.path("server.loaders_dir", raw.LoadersDir),
		AgentsDir:  t.path("server.agents_dir", raw.AgentsDir),
		RepoDir:    t.path("server.repo_dir", raw.RepoDir),
		CacheSize:  t.size("server.cache_size", raw.CacheSize, leastCache),
	}
}

func (t *typer) network(raw rawNetwork) Network {
	n := Network{
		Subnet: t.subnet("network", rawSubnet{raw.Subnet, raw.Gateway, raw.DNS, raw.DHCP.Pool}, "dhcp.pool"),
		Domain: raw.Domain,
		NTP:    raw.NTP,

		ProxiedARP: raw.ProxiedARP,
		DHCP: DHCP{
			Mode:          oneOf(t, "network.dhcp.mode", DHCPMode(raw.DHCP.Mode), DHCPServer, DHCPProxy, DHCPOff),
			LeaseTime:     t.duration("network.dhcp.lease_time", raw.DHCP.LeaseTime, time.Minute, maxLease),
			Unknown:       oneOf(t, "network.dhcp.unknown", UnknownPolicy(raw.DHCP.Unknown), UnknownDiscover, UnknownIgnore, UnknownEnroll),
			ProbeInterval: t.duration("network.dhcp.probe_interval", raw.DHCP.ProbeInterval, 0, maxLease),
		},
	}
	if raw.Domain != "" && !isDNSName(raw.Domain) {
		t.fault("network.domain", "%q is not a DNS domain in lower case", raw.Domain)
	}
	for i, server := range raw.NTP {
		path := entry("network.ntp", i)
		if a, err := netip.ParseAddr(server); err == nil {
			t.usable(path, a)
		} else if !isDNSName(strings.ToLower(server)) {
			t.fault(path, "%q is neither a host name nor an address", server)
		}
	}
	for i, s := range raw.Relayed {
		n.Relayed = append(n.Relayed, t.subnet(entry("network.relayed", i), s, "pool"))
	}
	return n
}

// maxLease keeps lease times below what option 51, seconds in 32 bits with all ones for ever, can say.
const maxLease = 10 * 365 * 24 * time.Hour

func (t *typer) subnet(path string, raw rawSubnet, poolKey string) Subnet {
	s := Subnet{Gateway: t.address(path+".gateway", raw.Gateway)}
	if raw.Subnet == "" {
		t.missing(path+".subnet", "is missing: the IPv4 network, such as 10.10.10.0/24")
	} else if s.Prefix = t.prefix(path+".subnet", raw.Subnet); s.Prefix.IsValid() && (s.Prefix.Bits() < 8 || s.Prefix.Bits() > 30) {
		t.fault(path+".subnet", "%v is not a network that machines can boot in: its length must be 8 to 30", s.Prefix)
		s.Prefix = netip.Prefix{}
	}
	for i, server := range raw.DNS {
		if a := t.address(entry(path+".dns", i), server); a.IsValid() {
			s.DNS = append(s.DNS, a)
		}
	}
	s.Pool = t.addressRange(path+"."+poolKey, raw.Pool)
	return s
}

func (t *typer) medium(path string, raw rawMedium) Medium {
	m := Medium{Name: raw.Name, ISO: t.path(path+".iso", raw.ISO), Dir: t.path(path+".dir", raw.Dir), URL: raw.URL, SHA256: strings.ToLower(raw.SHA256)}
	switch {
	case raw.Name == "":
		t.missing(path+".name", "is missing")
	case !mediumName.MatchString(raw.Name):
		t.fault(path+".name", "%q cannot be part of a URL: letters, digits, dots, hyphens and underscores, at most 64", raw.Name)
	}
	sources := 0
	for key, value := range map[string]string{"iso": raw.ISO, "dir": raw.Dir, "url": raw.URL} {
		if value != "" || t.bad[path+"."+key] {
			sources++
		}
	}
	if sources != 1 {
		t.fault(path, "needs exactly one of iso, dir and url")
	}
	t.url(path+".url", raw.URL)
	if raw.SHA256 != "" {
		switch {
		case !sha256Hex.MatchString(m.SHA256):
			t.fault(path+".sha256", "is not a SHA-256 sum of 64 hexadecimal digits")
		case raw.ISO == "" && !t.bad[path+".iso"]:
			t.fault(path+".sha256", "is only for an iso")
		}
	}
	return m
}

// install reads the install section, or a machine's copy of it; only keys that are own to it are checked.
func (t *typer) install(path string, raw rawInstall, own func(key string) bool) Install {
	in := Install{
		Profile: raw.Profile, Medium: raw.Medium, Disk: raw.Disk, Timezone: raw.Timezone,
		RootPasswordHash: raw.RootPasswordHash, SSHAuthorizedKeys: raw.SSHAuthorizedKeys,
		KernelArgs: raw.KernelArgs, Attempts: raw.Attempts,
		SecureBoot: raw.SecureBoot, SecureBootDir: raw.SecureBootDir, LocalBoot: LocalBoot(raw.LocalBoot), Confirm: Confirm(raw.Confirm),
		Kernel: raw.Kernel, SELinux: raw.SELinux, Docker: raw.Docker, Kdump: raw.Kdump, SandboxImage: raw.SandboxImage,
		RegistryMirrors: raw.RegistryMirrors, Proxy: raw.Proxy, BootArgs: raw.BootArgs, ExtraPackages: raw.ExtraPackages,
	}
	check := func(key string, ok bool, format string, args ...any) {
		if !ok && own(key) {
			t.fault(path+"."+key, format, args...)
		}
	}
	check("profile", profileName.MatchString(raw.Profile), "%q is not a name of lower-case letters, digits, dots and hyphens", raw.Profile)
	_, err := ParseDisk(raw.Disk)
	check("disk", err == nil, "%v", err)
	check("timezone", zoneName.MatchString(raw.Timezone), "%q is not a time zone: Area/City, or UTC", raw.Timezone)
	check("root_password_hash", raw.RootPasswordHash == "" || cryptHash.MatchString(raw.RootPasswordHash),
		"is not a crypt(3) hash: `openssl passwd -6` makes one (the value is not shown)")
	check("attempts", raw.Attempts >= 1 && raw.Attempts <= 100, "%d is out of range: 1 to 100", raw.Attempts)
	if own("secure_boot_dir") {
		t.path(path+".secure_boot_dir", raw.SecureBootDir)
	}
	if own("local_boot") {
		oneOf(t, path+".local_boot", in.LocalBoot, LocalAuto, LocalExit, LocalSanboot, LocalGRUB, LocalSkip)
	}
	if own("confirm") {
		oneOf(t, path+".confirm", in.Confirm, ConfirmOff, ConfirmControlPlane, ConfirmAll)
	}
	if own("kernel") {
		oneOf(t, path+".kernel", raw.Kernel, KernelStock, KernelLT, KernelML)
	}
	if own("selinux") {
		oneOf(t, path+".selinux", raw.SELinux, "enforcing", "permissive", "disabled")
	}
	check("sandbox_image", raw.SandboxImage == "" || imageName.MatchString(raw.SandboxImage),
		"%q is not an image, such as registry.example.org/pause:3.9", raw.SandboxImage)
	if own("proxy") {
		t.url(path+".proxy", raw.Proxy)
	}
	for _, host := range slices.Sorted(maps.Keys(raw.RegistryMirrors)) {
		key := "registry_mirrors." + host
		for i, mirror := range raw.RegistryMirrors[host] {
			if own(key) && mirror == "" {
				t.fault(entry(path+"."+key, i), "is empty")
			} else if own(key) {
				t.url(entry(path+"."+key, i), mirror)
			}
		}
	}
	if own("boot_args") {
		t.kernelArgs(path+".boot_args", raw.BootArgs)
	}
	if own("extra_packages") {
		for i, name := range raw.ExtraPackages {
			if !packageName.MatchString(name) {
				t.fault(entry(path+".extra_packages", i), "%q is not the name of a package", name)
			}
		}
	}
	in.Timeout = t.limit(path, "timeout", raw.Timeout, own)
	in.Stall = t.limit(path, "stall", raw.Stall, own)
	for i, value := range raw.PostScripts {
		script, err := parseScript(entry("post_scripts", i), value)
		if err != nil && own("post_scripts") {
			t.fault(entry(path+".post_scripts", i), "%v", err)
		}
		in.PostScripts = append(in.PostScripts, script)
	}
	if own("ssh_authorized_keys") {
		for i, key := range raw.SSHAuthorizedKeys {
			if !sshKey.MatchString(key) || strings.ContainsFunc(key, unicode.IsControl) {
				t.fault(entry(path+".ssh_authorized_keys", i), "is not a public key in one line: `ssh-ed25519 AAAA… comment`")
			}
		}
	}
	if own("kernel_args") {
		t.kernelArgs(path+".kernel_args", raw.KernelArgs)
	}
	for _, name := range slices.Sorted(maps.Keys(raw.Repos)) {
		repo := raw.Repos[name]
		if in.Repos == nil {
			in.Repos = map[string]Repo{}
		}
		key := "repos." + name
		in.Repos[name] = t.repo(path+"."+key, name, repo, own(key))
	}
	return in
}

func (t *typer) kernelArgs(path string, args []string) {
	for i, arg := range args {
		if !kernelArg.MatchString(arg) {
			t.fault(entry(path, i), "%q must be one argument, without blanks, quotes and what a boot loader's script would interpret", arg)
		}
	}
}

// limit reads how long an installation may take.
func (t *typer) limit(path, key, text string, own func(string) bool) time.Duration {
	if own(key) {
		return t.duration(path+"."+key, text, time.Minute, 24*time.Hour)
	}
	d, _ := time.ParseDuration(text) // inherited: checked where it stands
	return d
}

func (t *typer) cluster(raw rawCluster) Cluster {
	const at = "cluster."
	c := Cluster{
		Name: raw.Name, KubernetesVersion: raw.KubernetesVersion, ImageRepository: raw.ImageRepository,
		PodCIDR:              t.prefix(at+"pod_cidr", raw.PodCIDR),
		ServiceCIDR:          t.prefix(at+"service_cidr", raw.ServiceCIDR),
		ControlPlaneEndpoint: raw.ControlPlaneEndpoint,
		CNI:                  oneOf(t, at+"cni", raw.CNI, "flannel", "calico", "none"),
		ProxyMode:            oneOf(t, at+"proxy_mode", raw.ProxyMode, "iptables", "ipvs"),
		CNIManifest:          t.path(at+"cni_manifest", raw.CNIManifest),
		FlannelImage:         t.image(at+"flannel_image", raw.FlannelImage),
		FlannelCNIImage:      t.image(at+"flannel_cni_image", raw.FlannelCNIImage),
		Images:               t.path(at+"images", raw.Images),
		VerifyImage:          t.image(at+"verify_image", raw.VerifyImage),
		Timeouts: Timeouts{
			Init:  t.duration(at+"timeouts.init", raw.Timeouts.Init, time.Second, maxStep),
			Join:  t.duration(at+"timeouts.join", raw.Timeouts.Join, time.Second, maxStep),
			Ready: t.duration(at+"timeouts.ready", raw.Timeouts.Ready, time.Second, maxStep),
		},
	}
	switch {
	case raw.CNI == "calico" && raw.CNIManifest == "":
		t.missing(at+"cni_manifest", "is missing: calico's manifest is not built in, name the file")
	case raw.CNI == "none" && raw.CNIManifest != "":
		t.fault(at+"cni_manifest", "is of no use with cni: none")
	}
	if !isLabel(raw.Name) {
		t.fault(at+"name", "%q is not a name of lower-case letters, digits and hyphens", raw.Name)
	}
	if !kubernetesVersion.MatchString(raw.KubernetesVersion) {
		better := ""
		if v := strings.TrimPrefix(raw.KubernetesVersion, "v"); kubernetesVersion.MatchString(v) {
			better = ": write " + v
		}
		t.fault(at+"kubernetes_version", "%q is not a version like 1.28.2%s", raw.KubernetesVersion, better)
	}
	if !imageRepository.MatchString(raw.ImageRepository) {
		t.fault(at+"image_repository", "%q is not a registry with a path, such as registry.example.org/google_containers (without a scheme)", raw.ImageRepository)
	}
	// kubeadm's own bounds: each node takes a /24 of the pods, and a service network has at most 20 bits.
	if p := c.PodCIDR; p.IsValid() && (p.Bits() < 8 || p.Bits() > 24) {
		t.fault(at+"pod_cidr", "%v has the wrong size: every node takes a /24 of it, so its length must be 8 to 24", p)
	}
	if p := c.ServiceCIDR; p.IsValid() && (p.Bits() < 12 || p.Bits() > 28) {
		t.fault(at+"service_cidr", "%v has the wrong size: its length must be 12 to 28", p)
	}
	if !isEndpoint(raw.ControlPlaneEndpoint) {
		t.fault(at+"control_plane_endpoint", "%q is not host:port, such as k8s-api.lab:6443", raw.ControlPlaneEndpoint)
	}
	return c
}

// maxStep bounds a step of a machine's way into the cluster.
const maxStep = 24 * time.Hour

// image takes a reference to a container image.
func (t *typer) image(path, text string) string {
	if !imageReference.MatchString(text) {
		t.fault(path, "%q is not the reference of an image, such as registry.example.org/web/nginx:1.25", text)
	}
	return text
}

func (t *typer) machine(path string, raw rawMachine) Machine {
	own := func(key string) bool { _, there := t.lines[path+"."+key]; return there }
	m := Machine{
		Name: raw.Name, IP: t.address(path+".ip", raw.IP), Role: RoleWorker,
		Install: t.install(path, raw.rawInstall, own),
	}
	t.hostName(path, raw.Name)
	if raw.IP == "" {
		t.missing(path+".ip", "is missing: every machine has a reserved address")
	}
	if raw.Role != "" {
		m.Role = oneOf(t, path+".role", Role(raw.Role), RoleControlPlane, RoleWorker)
	}
	m.MAC, m.MACs = t.macs(path+".mac", raw.MAC)
	return m
}

// hostName checks for what Kubernetes takes as the name of a node: an RFC 1123 label in lower case.
func (t *typer) hostName(path, name string) {
	switch lower := strings.ToLower(name); {
	case name == "":
		t.missing(path+".name", "is missing")
	case isLabel(name):
	case isLabel(lower):
		t.fault(path+".name", "must be in lower case for Kubernetes: %q", lower)
	default:
		t.fault(path+".name", "%q is not a host name that Kubernetes takes: lower-case letters, digits and hyphens, at most 63, without a domain", name)
	}
}

// macs reads the addresses of a machine's cards: the first, and all of them where there are several.
func (t *typer) macs(path string, texts []string) (first MAC, all []MAC) {
	if texts != nil && len(texts) == 0 {
		t.fault(path, "is an empty list; leave the key out for a free slot")
	}
	for i, text := range texts {
		at := path
		if t.lines[entry(path, i)] != 0 { // written as a list
			at = entry(path, i)
		}
		if t.bad[at] {
			continue
		}
		mac := t.mac(at, text)
		if !mac.IsZero() {
			all = append(all, mac)
		}
	}
	if len(all) > 0 {
		first = all[0]
	}
	if len(all) < 2 {
		all = nil
	}
	return first, all
}

func (t *typer) mac(path, text string) MAC {
	mac, err := ParseMAC(text)
	switch {
	case err != nil:
		t.fault(path, "%v", err)
	case mac.IsZero():
		t.fault(path, "%v is nobody's address; leave the key out for a free slot", mac)
	case mac[0]&1 != 0: // IEEE 802: the group bit
		t.fault(path, "%v is a multicast address, not one of a network card", mac)
	default:
		return mac
	}
	return MAC{}
}

func (t *typer) port(path string, port int) int {
	if port < 0 || port > 65535 {
		t.fault(path, "%d is not a port: 1 to 65535, or 0 for any that is free", port)
	}
	return port
}

// path takes the path of a file; it goes into messages and URLs of the system, so no control characters.
func (t *typer) path(path, value string) string {
	if strings.ContainsFunc(value, unicode.IsControl) || !utf8.ValidString(value) {
		t.fault(path, "%q is not a path", value)
		return ""
	}
	return value
}

// address reads an IPv4 address that a host can have; "" is the zero Addr.
func (t *typer) address(path, text string) netip.Addr {
	if text == "" {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(text)
	if err != nil {
		t.fault(path, "%q is not an IPv4 address", text)
		return netip.Addr{}
	}
	if !t.usable(path, a) {
		return netip.Addr{}
	}
	return a
}

func (t *typer) usable(path string, a netip.Addr) bool {
	if !a.Is4() || a.IsMulticast() || a.IsUnspecified() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		t.fault(path, "%v is not an IPv4 address that a host can have", a)
		return false
	}
	return true
}

// prefix reads an IPv4 network; "" is the zero Prefix.
func (t *typer) prefix(path, text string) netip.Prefix {
	p, err := netip.ParsePrefix(text)
	switch {
	case text == "":
		t.missing(path, "is missing")
	case err != nil || !p.Addr().Is4():
		t.fault(path, "%q is not an IPv4 network like 10.10.10.0/24", text)
	case p.Masked() != p:
		t.fault(path, "%v is an address in the network %v: write %v", p, p.Masked(), p.Masked())
		return p.Masked() // what was meant is clear, so that the rest can be checked against it
	default:
		return p
	}
	return netip.Prefix{}
}

func (t *typer) addressRange(path, text string) Range {
	if text == "" {
		return Range{}
	}
	first, last, _ := strings.Cut(text, "-")
	a, errA := netip.ParseAddr(strings.TrimSpace(first))
	b, errB := netip.ParseAddr(strings.TrimSpace(last))
	switch {
	case errA != nil || errB != nil || !a.Is4() || !b.Is4():
		t.fault(path, "%q is not a range of IPv4 addresses like 10.10.10.200-10.10.10.250", text)
	case b.Less(a):
		t.fault(path, "%v-%v is reversed: write %v-%v", a, b, b, a)
	default:
		return Range{a, b}
	}
	return Range{}
}

func (t *typer) duration(path, text string, least, most time.Duration) time.Duration {
	d, err := time.ParseDuration(text)
	switch {
	case err != nil:
		t.fault(path, "%q is not a time with its unit: 90s, 30m, 12h", text)
	case d < least:
		t.fault(path, "%v is too short: at least %v", d, least)
	case d > most:
		t.fault(path, "%v is too long: at most %v", d, most)
	default:
		return d
	}
	return 0
}

// url checks for an HTTP URL; "" is none. It is not quoted in a fault: it may hold a password.
func (t *typer) url(path, text string) {
	if text == "" {
		return
	}
	u, err := url.Parse(text)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" || strings.ContainsFunc(text, notInURL) {
		t.fault(path, "is not a URL: http://host/path or https://host/path")
	} else if !portInRange(u) {
		t.fault(path, "names a port that there is not: 1 to 65535")
	}
}

// portInRange tells whether a URL has no port, or one that can be; net/url wants only digits.
func portInRange(u *url.URL) bool {
	if u.Port() == "" {
		return !strings.HasSuffix(u.Host, ":")
	}
	n, err := strconv.ParseUint(u.Port(), 10, 16)
	return err == nil && n > 0
}

func notInURL(r rune) bool {
	return unicode.IsControl(r) || unicode.IsSpace(r) || strings.ContainsRune("\"'`\\<>", r)
}

// oneOf checks an enumerated value.
func oneOf[T ~string](t *typer, path string, value T, allowed ...T) T {
	if slices.Contains(allowed, value) {
		return value
	}
	names := make([]string, len(allowed))
	for i, a := range allowed {
		names[i] = string(a)
	}
	t.fault(path, "%q is not one of %s", value, strings.Join(names, ", "))
	return ""
}

var (
	interfaceName     = regexp.MustCompile(`^[!-.0-~]{1,15}$`) // Linux: IFNAMSIZ, no blank, no slash
	mediumName        = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	profileName       = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{0,63}$`)
	zoneName          = regexp.MustCompile(`^[A-Za-z0-9+_-]+(/[A-Za-z0-9+_-]+){0,2}$`)
	sha256Hex         = regexp.MustCompile(`^[0-9a-f]{64}$`)
	cryptHash         = regexp.MustCompile(`^\$[0-9a-z]{1,4}\$[A-Za-z0-9./$=,-]{8,200}$`)
	sshKey            = regexp.MustCompile(`^(ssh-|ecdsa-|sk-)[a-z0-9@.-]+ [A-Za-z0-9+/]+={0,3}( .*)?$`)
	kernelArg         = regexp.MustCompile(`^[A-Za-z0-9_./:=,@%+~^*?!()\[\]-]+$`)
	packageName       = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+~:-]{0,199}$`)
	imageName         = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]*(:[0-9]{1,5})?(/[a-z0-9._-]+)+(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?(@sha256:[0-9a-f]{64})?$`)
	kubernetesVersion = regexp.MustCompile(`^[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}$`)
	imageRepository   = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]*(:[0-9]{1,5})?(/[a-z0-9._-]+)*$`)
	imageReference    = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]*(:[0-9]{1,5})?(/[a-z0-9._-]+)*(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?(@sha256:[0-9a-f]{64})?$`)
	label             = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
)

func isLabel(s string) bool { return label.MatchString(s) }

func isDNSName(s string) bool {
	return len(s) <= 253 && !slices.ContainsFunc(strings.Split(s, "."), func(l string) bool { return !isLabel(l) })
}

func isEndpoint(s string) bool {
	host, port, ok := strings.Cut(s, ":")
	var n int
	if _, err := fmt.Sscanf(port, "%d", &n); !ok || err != nil || fmt.Sprint(n) != port || n < 1 || n > 65535 {
		return false
	}
	if a, err := netip.ParseAddr(host); err == nil {
		return a.Is4()
	}
	return isDNSName(host) && strings.ContainsFunc(host, unicode.IsLetter)
}
