package inventory

import (
	"encoding/json"
	"errors"
	"flag"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the golden files anew")

// The reference configuration, as the program sees it.
func TestDefaultGolden(t *testing.T) {
	c := Default()
	require.Empty(t, c.Path)
	got, err := json.MarshalIndent(c, "", "  ")
	require.NoError(t, err)
	const golden = "testdata/default.json"
	if *update {
		require.NoError(t, os.WriteFile(golden, append(got, '\n'), 0o644))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	require.Equal(t, strings.TrimSpace(string(want)), string(got), "go test ./inventory -update, if that is meant")
}

// Every key is explained in the reference file: it is there, be it as an example behind a "#".
func TestReferenceNamesEveryKey(t *testing.T) {
	text := string(Reference())
	for _, path := range allPaths(reflect.TypeFor[rawConfig](), "") {
		if section, key, _ := strings.Cut(path, "[]."); section == "machines" {
			if _, shared := scalars(reflect.TypeFor[rawInstall](), "")[key]; shared || strings.HasPrefix(key, "repos") {
				continue // explained under install
			}
		}
		key := path[strings.LastIndex(path, ".")+1:]
		require.Regexp(t, `(?m)[\s#{]`+regexp.QuoteMeta(key)+`:\s`, text, path)
	}
}

// What stands in the reference as a default behind a "#" must be the default, and be valid.
func TestReferenceExamplesAreValid(t *testing.T) {
	text := string(Reference())
	example := regexp.MustCompile(`(?m)^( *)# ((?:- )?[a-z_0-9]+:( [^#\n]*)?)( *#.*)?$`)
	uncommented := example.ReplaceAllStringFunc(text, func(line string) string {
		switch key, _, _ := strings.Cut(strings.TrimLeft(line, " #-"), ":"); key {
		case "dir", "url": // in place of iso
			return line
		}
		return strings.Replace(line, "# ", "", 1)
	})
	uncommented = regexp.MustCompile(`(?m)^  #   ((?:- |  ).*)$`).ReplaceAllString(uncommented, "    $1")
	uncommented = strings.ReplaceAll(uncommented, `"$6$..."`, `"$6$saltsalt$abcdefgh"`)
	uncommented = strings.ReplaceAll(uncommented, `ssh-ed25519 AAAA... you`, `ssh-ed25519 AAAA you`)
	c, err := parse(uncommented)
	require.NoError(t, err, uncommented)
	require.Empty(t, c.Warnings)
	require.Equal(t, 69, c.Server.TFTPPort)
	require.Len(t, c.Network.Relayed, 1)
	require.Equal(t, []string{"console=ttyS0,115200n8"}, c.Install.KernelArgs)
	require.Equal(t, Repo{Dir: "/srv/repos/local", Via: ViaAppliance}, c.Install.Repos["local"])

	d := Default()
	require.Equal(t, d.Server.DHCPPort, c.Server.DHCPPort)
	require.Equal(t, d.Network.DHCP.ProbeInterval, c.Network.DHCP.ProbeInterval)
	require.Equal(t, d.Server.CacheSize, c.Server.CacheSize)
	require.Equal(t, d.Install.Attempts, c.Install.Attempts)
	require.Equal(t, d.Install.LocalBoot, c.Install.LocalBoot)
	require.Equal(t, d.Install.SecureBoot, c.Install.SecureBoot)
}

func TestTypedValues(t *testing.T) {
	c, err := parse(good)
	require.NoError(t, err)
	require.Equal(t, netip.MustParseAddr("10.10.10.1"), c.Server.Address)
	require.Equal(t, 12*time.Hour, c.Network.DHCP.LeaseTime)
	require.Equal(t, "10.10.20.0/24", c.Network.Relayed[0].Prefix.String())
	require.True(t, c.Network.Pool.Contains(netip.MustParseAddr("10.10.10.250")))
	require.Equal(t, map[string]Repo{"base": {URL: "http://mirror.lab/os/", Via: ViaDirect}, "docker-ce": {URL: "http://mirror.lab/docker/", Via: ViaAppliance},
		"local": {Dir: "/srv/local", Via: ViaAppliance}}, c.Install.Repos)
	require.EqualValues(t, 30<<30, c.Server.CacheSize)
	knode2 := c.Machines[2]
	require.Equal(t, RoleWorker, knode2.Role, "the default")
	require.Equal(t, MAC{0x52, 0x54, 0, 0, 0, 0x82}, knode2.MAC)
	require.Equal(t, []string{"nomodeset"}, knode2.Install.KernelArgs, "its own")
	require.Equal(t, LocalExit, knode2.Install.LocalBoot, "its own")
	require.Equal(t, c.Install.RootPasswordHash, knode2.Install.RootPasswordHash, "inherited")
	require.Equal(t, c.Install, c.Machines[0].Install, "all inherited")
}

// The smallest file that can be written; the rest are defaults.
func TestDefaults(t *testing.T) {
	c, err := parse("server: {interface: eth1}\nnetwork: {subnet: 10.0.0.0/24}\nmachines: [{name: m, ip: 10.0.0.2, role: control-plane}]\n")
	require.NoError(t, err)
	require.Equal(t, Server{Interface: "eth1", HTTPPort: 8080, HTTPSPort: 8443, SyslogPort: 5514, TFTPPort: 69, DHCPPort: 67, DataDir: "/var/lib/rackstrap", CacheSize: 20 << 30}, c.Server)
	require.Equal(t, DHCP{Mode: DHCPServer, LeaseTime: 12 * time.Hour, Unknown: UnknownDiscover, ProbeInterval: 5 * time.Minute}, c.Network.DHCP)
	require.Equal(t, Install{Profile: "centos-7.9", Timezone: "UTC", Attempts: 3, LocalBoot: LocalAuto, Confirm: ConfirmOff,
		Kernel: KernelStock, SELinux: "permissive", Docker: true, Timeout: time.Hour, Stall: 15 * time.Minute}, c.Install)
	require.Equal(t, Default().Cluster, c.Cluster)
	require.True(t, c.Network.Pool.IsZero())
	require.True(t, c.Machines[0].MAC.IsZero(), "a free slot")
	require.ErrorContains(t, c.CheckFiles(), "rackstrap.yaml: media: is empty: machines cannot be installed without a medium")

	c, err = parse("server: {address: 10.0.0.1}\nnetwork: {subnet: 10.0.0.0/24, dhcp: {mode: 'off', probe_interval: 0}}\n")
	require.NoError(t, err, "without DHCP an address is enough")
	require.Zero(t, c.Network.DHCP.ProbeInterval)
}

func TestMachineOverridesAnyInstallKey(t *testing.T) {
	own := `    profile: p
    medium: centos-7.9
    disk: nvme0n1
    timezone: Europe/Berlin
    root_password_hash: "$6$other$abcdefgh"
    ssh_authorized_keys: []
    repos: {base: http://own.lab/, k8s.io: {url: http://own.lab/k8s}}
    attempts: 9
    secure_boot: true
    secure_boot_dir: /srv/other
    confirm: all
`
	c, err := parse(good + own)
	require.NoError(t, err)
	got := c.Machines[2].Install
	require.Equal(t, Install{
		Profile: "p", Medium: "centos-7.9", Disk: "nvme0n1", Timezone: "Europe/Berlin", RootPasswordHash: "$6$other$abcdefgh",
		SSHAuthorizedKeys: []string{}, KernelArgs: []string{"nomodeset"}, Attempts: 9, SecureBoot: true,
		SecureBootDir: "/srv/other", LocalBoot: LocalExit, Confirm: ConfirmAll,
		Kernel: KernelStock, SELinux: "permissive", Docker: true, Timeout: time.Hour, Stall: 15 * time.Minute,
		Repos: map[string]Repo{"base": {URL: "http://own.lab/", Via: ViaDirect}, "docker-ce": c.Install.Repos["docker-ce"], "local": c.Install.Repos["local"],
			"k8s.io": {URL: "http://own.lab/k8s", Via: ViaDirect}},
	}, got)
	require.Equal(t, "http://mirror.lab/os/", c.Install.Repos["base"].URL, "the section stays as it is")
}

// A value that is valid as a text is taken as written, whatever YAML makes of it.
func TestTextsAreTakenAsWritten(t *testing.T) {
	text := edit(t, good, `"52:54:00:00:00:82"`, "525400000082")
	text = edit(t, text, "  name: lab\n", "  name: 0123\n")
	text = edit(t, text, "    mode: server", "    mode: off")
	c, err := parse(text)
	require.NoError(t, err)
	require.Equal(t, "52:54:00:00:00:82", c.Machines[2].MAC.String())
	require.Equal(t, "0123", c.Cluster.Name)
	require.Equal(t, DHCPOff, c.Network.DHCP.Mode)
}

func TestEnvironment(t *testing.T) {
	c, err := parse(good,
		"RACKSTRAP_SERVER_INTERFACE=eth7", "RACKSTRAP_SERVER_HTTP_PORT=0", "RACKSTRAP_NETWORK_DHCP_MODE=proxy",
		"RACKSTRAP_NETWORK_DNS=1.1.1.1, 9.9.9.9", "RACKSTRAP_INSTALL_SECURE_BOOT=true", "RACKSTRAP_INSTALL_LOCAL_BOOT=grub",
		"RACKSTRAP_INSTALL_REPOS_DOCKER_CE=http://env.lab/", "RACKSTRAP_CLUSTER_CNI=none",
		"RACKSTRAP_SERVER_ADDRESS=", "RACKSTRAP_CI=1", "RACKSTRAP_CONFIG=x", "RACKSTRAP_SERVER_HTP_PORT=1", "RACKSTRAP_WHAT=1", "PATH=/bin")
	require.NoError(t, err)
	require.Equal(t, "eth7", c.Server.Interface)
	require.Equal(t, 0, c.Server.HTTPPort)
	require.Equal(t, "10.10.10.1", c.Server.Address.String(), "an empty variable is none")
	require.Equal(t, DHCPProxy, c.Network.DHCP.Mode)
	require.Equal(t, []netip.Addr{netip.MustParseAddr("1.1.1.1"), netip.MustParseAddr("9.9.9.9")}, c.Network.DNS)
	require.Equal(t, "http://env.lab/", c.Install.Repos["docker-ce"].URL)
	require.Equal(t, "http://mirror.lab/os/", c.Install.Repos["base"].URL)
	require.True(t, c.Machines[0].Install.SecureBoot, "machines inherit it")
	require.Equal(t, LocalGRUB, c.Machines[0].Install.LocalBoot)
	require.Equal(t, LocalExit, c.Machines[2].Install.LocalBoot, "their own counts more")
	require.Equal(t, "none", c.Cluster.CNI)
	require.Equal(t, []string{
		"the environment variable RACKSTRAP_SERVER_HTP_PORT sets no key of the configuration; did you mean RACKSTRAP_SERVER_HTTP_PORT?",
		"the environment variable RACKSTRAP_WHAT sets no key of the configuration",
	}, c.Warnings)

	_, err = parse(good, "RACKSTRAP_SERVER_HTTP_PORT=x", "RACKSTRAP_INSTALL_SECURE_BOOT=perhaps", "RACKSTRAP_NETWORK_DNS=1.1.1.1,no",
		"RACKSTRAP_NETWORK_GATEWAY=10.9.9.9", "RACKSTRAP_INSTALL_ROOT_PASSWORD_HASH=topsecret")
	require.EqualError(t, err, "RACKSTRAP_INSTALL_SECURE_BOOT: install.secure_boot: must be true or false\n"+
		"RACKSTRAP_SERVER_HTTP_PORT: server.http_port: must be a number\n"+
		`RACKSTRAP_NETWORK_DNS: network.dns[1]: "no" is not an IPv4 address`+"\n"+
		"RACKSTRAP_INSTALL_ROOT_PASSWORD_HASH: install.root_password_hash: is not a crypt(3) hash: `openssl passwd -6` makes one (the value is not shown)\n"+
		"RACKSTRAP_NETWORK_GATEWAY: network.gateway: 10.9.9.9 is outside of the network 10.10.10.0/24")
}

// Each key outside of lists has a variable, and no two share one.
func TestEveryKeyHasAVariable(t *testing.T) {
	seen := map[string]string{}
	for key := range scalars(reflect.TypeFor[rawConfig](), "") {
		require.Empty(t, seen[EnvName(key)], key)
		seen[EnvName(key)] = key
	}
	require.Equal(t, "network.dhcp.lease_time", seen["RACKSTRAP_NETWORK_DHCP_LEASE_TIME"])
	for key := range defaults() {
		require.Contains(t, seen, EnvName(key), "a default of a key that there is not")
	}
}

func TestLoadAndFind(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "rackstrap.yaml")
	_, err := Load(path, nil)
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = find("", path, path+"2")
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.ErrorContains(t, err, "rackstrap init")

	require.NoError(t, WriteReference(path))
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o600), info.Mode().Perm())
	require.ErrorIs(t, WriteReference(path), fs.ErrExist)
	require.ErrorIs(t, WriteReference(dir+"/none/x"), fs.ErrNotExist)
	c, err := Load(path, nil)
	require.NoError(t, err)
	require.Equal(t, path, c.Path)
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, Reference(), got)

	found, err := find("", dir+"/other", path)
	require.NoError(t, err)
	require.Equal(t, path, found)
	found, err = find("given", path)
	require.NoError(t, err)
	require.Equal(t, "given", found)

	text := edit(t, good, "/srv/iso/c7.iso", "iso/c7.iso")
	text = edit(t, text, "/var/lib/rackstrap", "state")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	c, err = Load(path, nil)
	require.NoError(t, err)
	require.Equal(t, dir+"/iso/c7.iso", c.Media[0].ISO)
	require.Equal(t, dir+"/state", c.Server.DataDir)

	require.NoError(t, os.WriteFile(path, []byte(edit(t, good, "cni: flannel", "cni: x")), 0o600))
	_, err = Load(path, nil)
	require.ErrorContains(t, err, path+":60: cluster.cni")
}

func TestCheckFiles(t *testing.T) {
	dir := t.TempDir()
	iso := dir + "/c7.iso"
	require.NoError(t, os.MkdirAll(dir+"/loaders", 0o755))
	text := edit(t, good, "/srv/iso/c7.iso", iso)
	text = edit(t, text, "/srv/loaders", dir+"/loaders")
	text = edit(t, text, "/srv/repos", dir+"/loaders")
	text = edit(t, text, "    local: {dir: /srv/local}\n", "\n")
	text = edit(t, text, "/srv/shim", dir+"/loaders")
	c, err := parse(text + "    secure_boot_dir: " + iso + "\n")
	require.NoError(t, err)
	require.EqualError(t, c.CheckFiles(), `rackstrap.yaml:31: media[0] "centos-7.9": iso `+iso+`: no such file or directory
rackstrap.yaml:76: machines[2] "knode2": secure_boot_dir `+iso+`: no such file or directory`)
	require.NoError(t, os.WriteFile(iso, nil, 0o600))
	require.EqualError(t, c.CheckFiles(), `rackstrap.yaml:31: media[0] "centos-7.9": iso `+iso+`: is empty
rackstrap.yaml:76: machines[2] "knode2": secure_boot_dir `+iso+`: is not a directory`)
	require.NoError(t, os.WriteFile(iso, []byte("x"), 0o600))
	c, err = parse(text)
	require.NoError(t, err)
	require.NoError(t, c.CheckFiles())
	c.Media[0].ISO = dir
	require.ErrorContains(t, c.CheckFiles(), "is not a regular file")

	var faults Faults
	require.ErrorAs(t, (&Config{}).CheckFiles(), &faults, "one made by hand")
}

func TestResolve(t *testing.T) {
	prefixes := func(list ...string) func(string) ([]netip.Prefix, error) {
		return func(name string) (found []netip.Prefix, err error) {
			require.Equal(t, "eth1", name)
			for _, text := range list {
				found = append(found, netip.MustParsePrefix(text))
			}
			return found, nil
		}
	}
	open := edit(t, good, "  address: 10.10.10.1\n", "")
	for _, row := range []struct {
		name, text string
		lookup     func(string) ([]netip.Prefix, error)
		address    string
		fault      string
	}{
		{"first in the network", open, prefixes("fe80::1/64", "192.168.0.1/24", "10.10.10.5/24", "10.10.10.6/24"), "10.10.10.5", ""},
		{"configured", good, prefixes("10.10.10.5/24", "10.10.10.1/24"), "10.10.10.1", ""},
		{"configured, absent", good, prefixes("10.10.10.5/24"), "", "rackstrap.yaml:3: server.address: 10.10.10.1 is not on eth1, which has 10.10.10.5/24"},
		{"other network", open, prefixes("192.168.0.1/24"), "", "rackstrap.yaml:2: server.interface: eth1 has 192.168.0.1/24, none of which is in network.subnet 10.10.10.0/24"},
		{"a machine's", open, prefixes("10.10.10.81/24"), "", `rackstrap.yaml:68: machines[1] "knode1": ip 10.10.10.81 is the server's own`},
		{"in the pool", open, prefixes("10.10.10.222/24"), "", "rackstrap.yaml:19: network.dhcp.pool: 10.10.10.200-10.10.10.250 holds the server's own address 10.10.10.222"},
		{"none", open, prefixes("fe80::1/64"), "", "rackstrap.yaml:2: server.interface: eth1 has no IPv4 address: give it one in 10.10.10.0/24; the interfaces of this host: "},
		{"no such interface", open, func(string) ([]netip.Prefix, error) { return nil, errors.New("no such device") }, "", "rackstrap.yaml:2: server.interface: there is no eth1 on this host (no such device); there are: "},
	} {
		c, err := parse(row.text)
		require.NoError(t, err)
		before := c.Server
		resolved, err := c.Resolve(row.lookup)
		require.Equal(t, before, c.Server, "the original stays")
		if row.fault == "" {
			require.NoError(t, err, row.name)
			require.Equal(t, row.address, resolved.Server.Address.String(), row.name)
			_, found := resolved.ByName("knode1")
			require.True(t, found)
			continue
		}
		require.ErrorContains(t, err, row.fault, row.name)
		if strings.HasSuffix(row.fault, ": ") {
			require.ErrorContains(t, err, "lo", "it lists what there is")
		}
	}
}

func TestLookup(t *testing.T) {
	check := func(c *Config, name string, mac MAC, ip netip.Addr) {
		t.Helper()
		for _, find := range []func() (*Machine, bool){
			func() (*Machine, bool) { return c.ByName(name) },
			func() (*Machine, bool) { return c.ByMAC(mac) },
			func() (*Machine, bool) { return c.ByIP(ip) },
		} {
			m, ok := find()
			require.True(t, ok)
			require.Equal(t, name, m.Name)
		}
	}
	c, err := parse(good)
	require.NoError(t, err)
	for _, m := range c.Machines {
		check(c, m.Name, m.MAC, m.IP)
	}
	absent := func(c *Config) {
		t.Helper()
		_, byMAC := c.ByMAC(MAC{1})
		_, byZero := c.ByMAC(MAC{})
		_, byName := c.ByName("nobody")
		_, byIP := c.ByIP(netip.Addr{})
		require.False(t, byMAC || byZero || byName || byIP)
	}
	absent(c)

	byHand := &Config{Machines: []Machine{{Name: "a", MAC: MAC{2}, IP: netip.MustParseAddr("10.0.0.2")}, {Name: "slot"}}}
	check(byHand, "a", MAC{2}, netip.MustParseAddr("10.0.0.2"))
	absent(byHand)

	changed := *c // as tests do
	changed.Machines = []Machine{c.Machines[1], {Name: "new", MAC: MAC{4}, IP: netip.MustParseAddr("10.0.0.4")}}
	check(&changed, "new", MAC{4}, netip.MustParseAddr("10.0.0.4"))
	check(&changed, "knode1", c.Machines[1].MAC, c.Machines[1].IP)
	_, found := changed.ByName("kmaster")
	require.False(t, found)
}

func TestDiff(t *testing.T) {
	old, err := parse(good)
	require.NoError(t, err)
	require.Empty(t, Diff(old, old))
	text := good
	for _, e := range [][2]string{
		{"  http_port: 8080", "  http_port: 9090"},
		{"    mode: server", "    mode: proxy"},
		{"    lease_time: 12h", "    lease_time: 1h"},
		{"  domain: lab.example\n", ""},
		{"  - name: mirror\n    url: http://mirror.lab/7/", "  - name: other\n    url: http://u:topsecret@mirror.lab/7/"},
		{"  medium: mirror", "  medium: other"},
		{"$6$saltsalt$abcdefgh", "$6$saltsalt$topsecret"},
		{"    base: http://mirror.lab/os/", "    base: http://u:topsecret@mirror.lab/os/"},
		{"    ip: 10.10.10.81", "    ip: 10.10.10.91"},
		{"    local_boot: exit\n", "  - name: knode3\n    ip: 10.10.10.83\n    root_password_hash: $6$saltsalt$topsecret2\n"},
	} {
		text = edit(t, text, e[0], e[1])
	}
	new, err := parse(text)
	require.NoError(t, err)
	changes := Diff(old, new)
	require.Equal(t, []string{
		"server.http_port: 8080 -> 9090",
		"network.domain: lab.example -> none",
		"network.dhcp.mode: server -> proxy",
		"network.dhcp.lease_time: 12h0m0s -> 1h0m0s",
		`media "other": added`,
		"install.medium: mirror -> other",
		"install.root_password_hash: changed",
		"install.repos.base: http://mirror.lab/os/ -> http://u:xxxxx@mirror.lab/os/",
		`machines "knode1".ip: 10.10.10.81 -> 10.10.10.91`,
		`machines "knode3": added`,
		`media "mirror": removed`,
		`machines "knode2".local_boot: exit -> inherited`,
	}, changes)
	require.NotContains(t, strings.Join(changes, "\n"), "topsecret")
	require.Equal(t, []string{"server.http_port: 8080 -> 9090", "network.dhcp.mode: server -> proxy"}, NeedsRestart(old, new))
	require.Empty(t, NeedsRestart(old, old))

	resolved := *old
	old.Server.Address = netip.Addr{}
	require.Empty(t, Diff(&resolved, old), "an address that the interface gave is no change")
	again, err := parse(edit(t, text, "http://u:topsecret@mirror.lab/os/", "http://u:other@mirror.lab/os/"))
	require.NoError(t, err)
	require.Equal(t, []string{"install.repos.base: changed"}, Diff(new, again))
	forgotten, err := parse(edit(t, text, "    root_password_hash: $6$saltsalt$topsecret2\n", ""))
	require.NoError(t, err)
	require.Equal(t, []string{`machines "knode3".root_password_hash: (a secret) -> inherited`}, Diff(new, forgotten))
}

func TestMACText(t *testing.T) {
	for text, want := range map[string]string{
		"52:54:00:AB:cd:01": "52:54:00:ab:cd:01", "52-54-00-ab-cd-01": "52:54:00:ab:cd:01",
		"5254.00ab.cd01": "52:54:00:ab:cd:01", "525400abcd01": "52:54:00:ab:cd:01",
		"": "error", "01-52-54-00-ab-cd-01": "error", "52:54:00:ab:cd": "error", "52540gabcd01": "error", "52:54:00:ab:cd:01:02:03": "error",
	} {
		mac, err := ParseMAC(text)
		if want == "error" {
			require.Error(t, err, text)
			continue
		}
		require.NoError(t, err, text)
		require.Equal(t, want, mac.String())
		raw, err := json.Marshal(mac)
		require.NoError(t, err)
		var back MAC
		require.NoError(t, json.Unmarshal(raw, &back))
		require.Equal(t, mac, back)
	}
}

// Whatever the file holds, the answer is a configuration or faults with places, and never a panic. A valid
// one survives all that is done with it.
func FuzzParse(f *testing.F) {
	f.Add(good)
	f.Add(string(Reference()))
	for _, text := range []string{
		"", "\x00", "a: &a [*a]", "server: {interface: e}\nserver: {}", "machines: [{}, null, 1, []]", "install: {repos: {a: null, b: {}, c: [1]}}",
		"? {a: b}\n: c", "!!binary aGk=: 1", "server: !!int x", "<<: {server: {}}", "media: [{name: x, iso: y}]\nmachines:\n- name: m\n  repos: {x: http://h}",
		"install:\n  repos:\n    a.b: http://x/\nmachines:\n  - {repos: {a.b: {url: http://y/}}}", "network: {subnet: 0.0.0.0/0, dhcp: {pool: '-'}}",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := parse(text, "RACKSTRAP_INSTALL_REPOS_A=http://x/", "RACKSTRAP_SERVER_ADDRESS=10.10.10.1")
		if err != nil {
			var faults Faults
			require.ErrorAs(t, err, &faults)
			require.NotEmpty(t, faults)
			return
		}
		require.Empty(t, Diff(c, c))
		for _, m := range c.Machines {
			found, ok := c.ByName(m.Name)
			require.True(t, ok)
			require.Equal(t, m.Name, found.Name)
		}
		_, _ = c.Resolve(func(string) ([]netip.Prefix, error) { return nil, errors.New("none") })
	})
}
