package inventory

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// Diff lists what changed between two configurations, a line each, in the order of the file:
// `network.dhcp.lease_time: 12h0m0s -> 1h0m0s`. Secrets are never shown, only that they changed.
func Diff(old, new *Config) []string {
	return diff(old, new, func(string) bool { return true })
}

// NeedsRestart lists the changes that a running daemon cannot follow: its sockets and its state stay where
// they are, and so does the DHCP mode, which decides what is bound. Lines as of Diff.
func NeedsRestart(old, new *Config) []string {
	return diff(old, new, func(key string) bool {
		return strings.HasPrefix(key, "server.") || key == "network.dhcp.mode"
	})
}

func diff(old, new *Config, wanted func(key string) bool) (changes []string) {
	before, after := flatten(old), flatten(new)
	keys := slices.Clone(after.order)
	for _, key := range before.order {
		if _, still := after.values[key]; !still {
			keys = append(keys, key)
		}
	}
	for _, key := range keys {
		was, had := before.values[key]
		is, has := after.values[key]
		if !wanted(key) || was == is {
			continue
		}
		// An address that one side has from its interface is no change of the file.
		if key == "server.address" && (was.text == "" || is.text == "") && old.Server.Interface == new.Server.Interface {
			continue
		}
		if owner := cmp.Or(was.owner, is.owner); owner != "" && owner != key {
			_, stood := before.values[owner]
			_, stands := after.values[owner]
			if !stood || !stands {
				continue // that the entry came or went says it all
			}
			if !had {
				was.text = "inherited"
			}
			if !has {
				is.text = "inherited"
			}
		}
		changes = append(changes, describe(key, was, is))
	}
	return changes
}

// value is one value as text, what of it is compared but never shown, and the entry of a list it is in.
type value struct{ text, secret, owner string }

func describe(key string, was, is value) string {
	switch {
	case was.text == is.text: // the difference is a secret
		return key + ": changed"
	case was.text == "" && is.owner == key:
		return key + ": added"
	case is.text == "" && was.owner == key:
		return key + ": removed"
	}
	return fmt.Sprintf("%s: %s -> %s", key, cmp.Or(was.text, "none"), cmp.Or(is.text, "none"))
}

// flat is a configuration as keys and values.
type flat struct {
	order  []string
	values map[string]value
	owner  string // the entry that put and set are at
}

// begin starts an entry of a list.
func (f *flat) begin(entry string) {
	f.owner = entry
	f.set(entry, value{text: "there"})
}

func (f *flat) put(key string, v any) {
	text := fmt.Sprint(v)
	switch v := v.(type) {
	case netip.Addr:
		if !v.IsValid() {
			text = ""
		}
	case netip.Prefix:
		if !v.IsValid() {
			text = ""
		}
	case []string:
		text = strings.Join(v, " ")
	case []netip.Addr:
		text = strings.Join(texts(v), " ")
	case Range:
		if text = ""; !v.IsZero() {
			text = v.First.String() + "-" + v.Last.String()
		}
	}
	f.set(key, value{text: text})
}

func (f *flat) set(key string, v value) {
	v.owner = f.owner
	f.order = append(f.order, key)
	f.values[key] = v
}

func flatten(c *Config) *flat {
	f := &flat{values: map[string]value{}}
	f.put("server.interface", c.Server.Interface)
	f.put("server.address", c.Server.Address)
	f.put("server.http_port", c.Server.HTTPPort)
	f.put("server.https_port", c.Server.HTTPSPort)
	f.put("server.syslog_port", c.Server.SyslogPort)
	f.put("server.tftp_port", c.Server.TFTPPort)
	f.put("server.dhcp_port", c.Server.DHCPPort)
	f.put("server.data_dir", c.Server.DataDir)
	f.put("server.loaders_dir", c.Server.LoadersDir)
	f.put("server.agents_dir", c.Server.AgentsDir)
	f.put("server.repo_dir", c.Server.RepoDir)
	f.put("server.cache_size", c.Server.CacheSize)

	f.subnet("network", "network.dhcp.pool", c.Network.Subnet)
	f.put("network.ntp", c.Network.NTP)
	f.put("network.domain", c.Network.Domain)
	f.put("network.proxied_arp", c.Network.ProxiedARP)
	f.put("network.dhcp.mode", c.Network.DHCP.Mode)
	f.put("network.dhcp.lease_time", c.Network.DHCP.LeaseTime)
	f.put("network.dhcp.unknown", c.Network.DHCP.Unknown)
	f.put("network.dhcp.probe_interval", c.Network.DHCP.ProbeInterval)
	for _, s := range c.Network.Relayed {
		at := "network.relayed " + s.Prefix.String()
		f.begin(at)
		f.subnet(at, at+".pool", s)
	}
	for _, m := range c.Media {
		at := fmt.Sprintf("media %q", m.Name)
		f.begin(at)
		f.put(at+".iso", m.ISO)
		f.put(at+".dir", m.Dir)
		f.set(at+".url", urlValue(m.URL))
		f.put(at+".sha256", m.SHA256)
	}
	f.owner = ""
	f.install("install", c.Install)
	f.put("cluster.name", c.Cluster.Name)
	f.put("cluster.kubernetes_version", c.Cluster.KubernetesVersion)
	f.put("cluster.image_repository", c.Cluster.ImageRepository)
	f.put("cluster.pod_cidr", c.Cluster.PodCIDR)
	f.put("cluster.service_cidr", c.Cluster.ServiceCIDR)
	f.put("cluster.control_plane_endpoint", c.Cluster.ControlPlaneEndpoint)
	f.put("cluster.cni", c.Cluster.CNI)
	f.put("cluster.cni_manifest", c.Cluster.CNIManifest)
	f.put("cluster.flannel_image", c.Cluster.FlannelImage)
	f.put("cluster.flannel_cni_image", c.Cluster.FlannelCNIImage)
	f.put("cluster.proxy_mode", c.Cluster.ProxyMode)
	f.put("cluster.images", c.Cluster.Images)
	f.put("cluster.verify_image", c.Cluster.VerifyImage)
	f.put("cluster.timeouts.init", c.Cluster.Timeouts.Init)
	f.put("cluster.timeouts.join", c.Cluster.Timeouts.Join)
	f.put("cluster.timeouts.ready", c.Cluster.Timeouts.Ready)

	common := &flat{values: map[string]value{}}
	common.install("", c.Install)
	for _, m := range c.Machines {
		at := fmt.Sprintf("machines %q", m.Name)
		f.begin(at)
		f.put(at+".mac", texts(m.Cards()))
		f.put(at+".ip", m.IP)
		f.put(at+".role", m.Role)
		// Only what differs from the install section: a change there is one change, not one per machine.
		own := &flat{values: map[string]value{}}
		own.install("", m.Install)
		for _, key := range own.order {
			if own.values[key] != common.values[key] {
				f.set(at+key, own.values[key])
			}
		}
	}
	return f
}

func (f *flat) subnet(at, pool string, s Subnet) {
	f.put(at+".subnet", s.Prefix)
	f.put(at+".gateway", s.Gateway)
	f.put(at+".dns", s.DNS)
	f.put(pool, s.Pool)
}

func (f *flat) install(at string, in Install) {
	f.put(at+".profile", in.Profile)
	f.put(at+".medium", in.Medium)
	f.put(at+".disk", in.Disk)
	f.put(at+".timezone", in.Timezone)
	hash := value{secret: in.RootPasswordHash}
	if hash.secret != "" {
		hash.text = "(a secret)"
	}
	f.set(at+".root_password_hash", hash)
	f.put(at+".ssh_authorized_keys", in.SSHAuthorizedKeys)
	for _, name := range slices.Sorted(maps.Keys(in.Repos)) {
		f.set(at+".repos."+name, repoValue(in.Repos[name]))
	}
	f.put(at+".kernel_args", in.KernelArgs)
	f.put(at+".attempts", in.Attempts)
	f.put(at+".secure_boot", in.SecureBoot)
	f.put(at+".secure_boot_dir", in.SecureBootDir)
	f.put(at+".local_boot", in.LocalBoot)
	f.put(at+".confirm", in.Confirm)
	f.put(at+".kernel", in.Kernel)
	f.put(at+".selinux", in.SELinux)
	f.put(at+".docker", in.Docker)
	f.put(at+".kdump", in.Kdump)
	f.put(at+".sandbox_image", in.SandboxImage)
	for _, host := range slices.Sorted(maps.Keys(in.RegistryMirrors)) {
		var all value
		for _, mirror := range in.RegistryMirrors[host] {
			v := urlValue(mirror)
			all.text, all.secret = strings.TrimSpace(all.text+" "+v.text), all.secret+" "+v.secret
		}
		f.set(at+".registry_mirrors."+host, all)
	}
	f.set(at+".proxy", urlValue(in.Proxy))
	f.put(at+".boot_args", in.BootArgs)
	f.put(at+".extra_packages", in.ExtraPackages)
	var scripts value
	for i, s := range in.PostScripts {
		name := s.Path
		if name == "" {
			name = fmt.Sprintf("(text %d)", i)
		}
		scripts.text, scripts.secret = strings.TrimSpace(scripts.text+" "+name), scripts.secret+"\x00"+s.Text
	}
	f.set(at+".post_scripts", scripts)
	f.put(at+".timeout", in.Timeout)
	f.put(at+".stall", in.Stall)
}

// repoValue is where a repository comes from, and by which way.
func repoValue(r Repo) value {
	v := urlValue(r.URL)
	switch {
	case r.Dir != "":
		v.text = r.Dir
	case r.Via == ViaAppliance:
		v.text += " via the appliance"
	}
	if r.GPGKey != "" { // a URL, like the other one
		v.text, v.secret = v.text+", with keys of its own", v.secret+" "+r.GPGKey+" "+r.Key
	}
	return v
}

// urlValue hides a password in a URL.
func urlValue(text string) value {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return value{text: "(no URL)", secret: text}
	case u.User == nil:
		return value{text: text}
	}
	return value{text: u.Redacted(), secret: text}
}
