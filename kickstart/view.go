package kickstart

import (
	"cmp"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"rackstrap/inventory"
)

// view is what templates see.
type view struct {
	Title, ClusterName string
	Name, MAC          string
	IP, Netmask        string
	Gateway            string // "" for none
	DNS, NTP           []string
	Timezone           string
	Medium             string
	MediumProxy        string // "" where the medium is reached directly
	RootHash           string // "" locks the password
	Keys               []string
	SELinux            string
	Hosts              string // the lines of a hosts file
	Routes             []route
	AddressPattern     string // finds the machine's address in the configuration of its cards

	Disk        inventory.Disk
	VolumeGroup string // of the machine's own, for a disk of another machine may be put in beside
	BootArgs    []string

	Packages       map[string][]string
	ExtraPackages  []string
	Kubernetes     []string // packages with their versions
	Kernel         string
	KernelPackages []string
	Sysctl         []string
	VendorRepos    []string
	Repos          []repo

	SandboxImage  string
	Mirrors       []mirror
	Docker        bool
	Kdump         bool
	DockerMirrors []string
	Proxy         string
	NoProxy       []string
	CNI           string

	PostScripts []inventory.Script
	Callback    *Callback // nil: report nothing; its URL is the machine's own on the node plane

	AttemptHeader string // of HTTP, as a line
	Server        string // URL of the node plane, without a slash at its end
	Role          string
	Agents        []Agent // none without Callback
}

type repo struct {
	Name, Title, URL, GPGKey, Proxy string
	Exclude                         []string
	Key                             string // text of its key; GPGKey is where the machine has it then
	source                          Source
}

type mirror struct {
	Host, Server string
	URLs         []string
}

// noProxy is how yum and dnf spell that a repository is reached directly.
const noProxy = "_none_"

func newView(in Input, p *profile) (*view, error) {
	c, m, o := in.Config, in.Machine, in.Machine.Install
	disk, err := inventory.ParseDisk(o.Disk)
	if err != nil {
		return nil, fmt.Errorf("disk %w", err)
	}
	if m.MAC.IsZero() {
		return nil, errors.New("its MAC address is not known yet")
	}
	subnet, ok := c.SubnetOf(m.IP)
	if !ok {
		return nil, fmt.Errorf("its address %v is in none of the networks", m.IP)
	}
	if err := httpURL(in.Medium); err != nil {
		return nil, fmt.Errorf("medium: %w", err)
	}
	v := &view{
		Title: p.Title, ClusterName: c.Cluster.Name,
		Name: m.Name, MAC: m.MAC.String(), IP: m.IP.String(), Netmask: netmask(subnet.Prefix),
		NTP: c.Network.NTP, Timezone: o.Timezone, Medium: in.Medium,
		RootHash: o.RootPasswordHash, Keys: o.SSHAuthorizedKeys,
		SELinux: cmp.Or(o.SELinux, "permissive"),
		Disk:    disk, BootArgs: slices.Concat(p.BootArgs, o.BootArgs),
		Packages: p.Packages, ExtraPackages: o.ExtraPackages, Kubernetes: kubernetes(c.Cluster.KubernetesVersion),
		Kernel: cmp.Or(o.Kernel, inventory.KernelStock), VendorRepos: p.VendorRepos,
		SandboxImage: cmp.Or(o.SandboxImage, c.Cluster.ImageRepository+"/"+p.SandboxImage),
		Docker:       o.Docker, Kdump: o.Kdump, DockerMirrors: o.RegistryMirrors["docker.io"],
		CNI: c.Cluster.CNI, PostScripts: o.PostScripts,
	}
	if v.VolumeGroup, err = volumeGroup(p.VolumeGroup, m.Name); err != nil {
		return nil, err
	}
	if v.Hosts, err = hosts(c); err != nil {
		return nil, err
	}
	v.Routes, v.AddressPattern = routesOf(c, subnet), addressPattern(m.IP)
	if subnet.Gateway.IsValid() {
		v.Gateway = subnet.Gateway.String()
	}
	for _, server := range subnet.DNS {
		v.DNS = append(v.DNS, server.String())
	}
	if !slices.Contains([]string{"enforcing", "permissive", "disabled"}, v.SELinux) {
		return nil, fmt.Errorf("selinux: %q is not one of enforcing, permissive, disabled", v.SELinux)
	}
	if !slices.Contains(p.kernels(), v.Kernel) {
		return nil, fmt.Errorf("kernel: %q is not one of %s", v.Kernel, strings.Join(p.kernels(), ", "))
	}
	v.KernelPackages, v.Sysctl = p.Packages[v.Kernel], p.Sysctl[v.Kernel]
	for i, s := range o.PostScripts {
		if !strings.HasPrefix(s.Text, "#!/") {
			return nil, fmt.Errorf("post_scripts[%d] has no interpreter in its first line (#!/bin/bash)", i)
		}
	}
	if err := v.proxies(in); err != nil {
		return nil, err
	}
	if err := v.repositories(in, p); err != nil {
		return nil, err
	}
	if err := v.mirrors(o.RegistryMirrors); err != nil {
		return nil, err
	}
	return v, v.callback(in)
}

// volumeGroup is the name of a machine's volume group (lvm(8): letters, digits and +_.-; a hyphen would be doubled in
// /dev/mapper).
func volumeGroup(prefix, machine string) (string, error) {
	group, err := name(prefix + "_" + strings.ReplaceAll(machine, "-", "_"))
	if err != nil {
		return "", fmt.Errorf("the volume group of the machine %w", err)
	}
	return group, nil
}

// netmask is the length of a prefix in the form that kickstart wants.
func netmask(p netip.Prefix) string { return net.IP(net.CIDRMask(p.Bits(), 32)).String() }

// kubernetes are the packages of its version. Without a release they match the old and the new repository.
func kubernetes(version string) []string {
	return []string{"kubelet-" + version, "kubeadm-" + version, "kubectl-" + version}
}

// hosts lists all machines, with the name of the API endpoint at every control plane, the first one first: it
// must resolve before there is anything that could serve it, and go on resolving when that machine is lost. Kubelet,
// kubeadm and kubectl are Go programs: net.Dialer goes through all addresses of a name, in the order of this file,
// until one answers. This is not the template's work: there may be thousands of lines.
func hosts(c *inventory.Config) (string, error) {
	endpoint, _, _ := strings.Cut(c.Cluster.ControlPlaneEndpoint, ":")
	if _, err := netip.ParseAddr(endpoint); err == nil {
		endpoint = ""
	}
	var b strings.Builder
	for _, m := range c.Machines {
		names := []string{m.Name}
		if c.Network.Domain != "" {
			names = []string{m.Name + "." + c.Network.Domain, m.Name}
		}
		if m.Role == inventory.RoleControlPlane && endpoint != "" {
			if !slices.Contains(names, endpoint) {
				names = append(names, endpoint)
			}
		}
		b.WriteString(m.IP.String())
		for _, n := range names {
			quoted, err := word(n)
			if err != nil {
				return "", fmt.Errorf("hosts file: a name of %v %w", m.IP, err)
			}
			b.WriteString(" " + quoted)
		}
		b.WriteByte('\n')
	}
	return b.String(), nil
}

// proxies fills in what is reached through the proxy: nothing that is in the rack.
func (v *view) proxies(in Input) error {
	proxy, c := in.Machine.Install.Proxy, in.Config
	if proxy == "" {
		return nil
	}
	if err := httpURL(proxy); err != nil {
		return fmt.Errorf("proxy: %w", err)
	}
	v.Proxy = proxy
	if !onAppliance(in.Medium, c) {
		v.MediumProxy = proxy
	}
	v.NoProxy = []string{"localhost", "127.0.0.1"}
	for _, s := range c.Subnets() {
		v.NoProxy = append(v.NoProxy, s.Prefix.String())
	}
	v.NoProxy = append(v.NoProxy, c.Cluster.PodCIDR.String(), c.Cluster.ServiceCIDR.String(), ".svc", ".cluster.local")
	if c.Network.Domain != "" {
		v.NoProxy = append(v.NoProxy, "."+c.Network.Domain)
	}
	endpoint, _, _ := strings.Cut(c.Cluster.ControlPlaneEndpoint, ":")
	v.NoProxy = append(v.NoProxy, endpoint)
	return nil
}

// onAppliance tells whether a URL leads to this appliance, which is reached without any proxy.
func onAppliance(text string, c *inventory.Config) bool {
	u, err := url.Parse(text)
	return err == nil && c.Server.Address.IsValid() && u.Hostname() == c.Server.Address.String()
}

// repositories lays the configured repositories over those of the profile.
func (v *view) repositories(in Input, p *profile) error {
	configured := in.Machine.Install.Repos
	names := slices.Collect(maps.Keys(p.Repos))
	for n := range configured {
		if _, known := p.Repos[n]; !known {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	for _, n := range names {
		r := p.Repos[n]
		if !r.wanted(v.Kernel) {
			continue
		}
		version := in.Config.Cluster.KubernetesVersion
		out := repo{
			Name: n, Title: cmp.Or(r.Title, n), Exclude: r.Exclude,
			URL:    cmp.Or(configured[n].URL, expand(r.URL, version)),
			GPGKey: expand(r.GPGKey, version),
		}
		switch key := configured[n].GPGKey; key {
		case "":
		case inventory.NoGPGKey:
			out.GPGKey = ""
		default:
			out.GPGKey = key
		}
		if key := configured[n].Key; key != "" {
			out.Key, out.GPGKey = key, "file:///etc/pki/rpm-gpg/RPM-GPG-KEY-rackstrap-"+n
		}
		out.viaAppliance(in.Config.Server, configured[n], p.Release)
		if err := httpURL(out.URL); err != nil {
			return fmt.Errorf("repos.%s: %w", n, err)
		}
		if v.Proxy != "" {
			out.Proxy = v.Proxy
			if onAppliance(out.URL, in.Config) {
				out.Proxy = noProxy
			}
		}
		v.Repos = append(v.Repos, out)
	}
	return nil
}

var registryHost = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?(:[0-9]{1,5})?$`)

func (v *view) mirrors(configured map[string][]string) error {
	for _, h := range slices.Sorted(maps.Keys(configured)) {
		if !registryHost.MatchString(h) {
			return fmt.Errorf("registry_mirrors: %q is not the host of a registry", h)
		}
		for _, u := range configured[h] {
			if err := httpURL(u); err != nil {
				return fmt.Errorf("registry_mirrors.%s: %w", h, err)
			}
		}
		server := "https://" + h
		if h == "docker.io" { // its images are elsewhere
			server = "https://registry-1.docker.io"
		}
		v.Mirrors = append(v.Mirrors, mirror{h, server, configured[h]})
	}
	return nil
}

var tokenShape = regexp.MustCompile(`^[A-Za-z0-9._~+/=-]{1,512}$`) // RFC 6750, section 2.1

var sha256Sum = regexp.MustCompile(`^[0-9a-f]{64}$`)

func (v *view) callback(in Input) error {
	cb := in.Callback
	if !cb.complete() {
		return nil
	}
	if err := httpURL(cb.URL); err != nil || !strings.HasPrefix(cb.URL, "https://") {
		return errors.New("the node plane's URL is not one of HTTPS")
	}
	if !tokenShape.MatchString(cb.Secret) {
		return errors.New("the token is not fit for a header")
	}
	certificate, rest := pem.Decode([]byte(cb.CA))
	if certificate == nil || certificate.Type != "CERTIFICATE" || len(strings.TrimSpace(string(rest))) > 0 {
		return errors.New("the appliance's CA is not one certificate in PEM")
	}
	cb.CA = string(pem.EncodeToMemory(&pem.Block{Type: certificate.Type, Bytes: certificate.Bytes}))
	for _, a := range cb.Agents {
		if err := httpURL(a.URL); err != nil {
			return fmt.Errorf("agent of %s: %w", a.Arch, err)
		}
		if !sha256Sum.MatchString(a.SHA256) || !plainName.MatchString(a.Arch) {
			return fmt.Errorf("agent of %q has no SHA-256 sum or no architecture", a.Arch)
		}
	}
	v.Server, v.Role, v.Agents = strings.TrimSuffix(cb.URL, "/"), string(in.Machine.Role), cb.Agents
	cb.URL = v.Server + "/api/v1/nodes/" + url.PathEscape(v.Name)
	v.AttemptHeader = fmt.Sprintf("Rackstrap-Attempt: %d", cb.Attempt)
	v.Callback = &cb
	return nil
}

// httpURL checks a URL. It is not quoted in the error: it may hold a password.
func httpURL(text string) error {
	u, err := url.Parse(text)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" || strings.ContainsAny(text, "\"'`\\<> ") || ascii(text) != nil {
		return errors.New("is not a URL: http://host/path or https://host/path")
	}
	if n, err := strconv.ParseUint(u.Port(), 10, 16); u.Port() != "" && (err != nil || n == 0) || strings.HasSuffix(u.Host, ":") {
		return errors.New("names a port that there is not: 1 to 65535")
	}
	return nil
}
