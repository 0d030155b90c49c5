package inventory

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// good is a configuration in which every kind of value occurs once; the table edits it.
const good = `server:
  interface: eth1
  address: 10.10.10.1
  http_port: 8080
  https_port: 8443
  tftp_port: 69
  dhcp_port: 67
  data_dir: /var/lib/rackstrap
  loaders_dir: /srv/loaders
  repo_dir: /srv/repos
  cache_size: 30GiB
network:
  subnet: 10.10.10.0/24
  gateway: 10.10.10.121
  dns: [8.8.4.4]
  ntp: [time.lab, 10.10.10.9]
  domain: lab.example
  dhcp:
    mode: server
    pool: 10.10.10.200-10.10.10.250
    lease_time: 12h
    unknown: discover
    probe_interval: 5m
  relayed:
    - subnet: 10.10.20.0/24
      gateway: 10.10.20.1
      dns: [8.8.8.8]
      pool: 10.10.20.200-10.10.20.250
media:
  - name: centos-7.9
    iso: /srv/iso/c7.iso
    sha256: 07b94e6b1a0b0260b94c83d6bb76b26bf7a310dc78d7a9c7432809fb9bc6194a
  - name: mirror
    url: http://mirror.lab/7/
install:
  profile: centos-7.9
  medium: mirror
  disk: sda
  timezone: Asia/Shanghai
  root_password_hash: "$6$saltsalt$abcdefgh"
  ssh_authorized_keys: [ssh-ed25519 AAAAC3Nz me@lab]
  repos:
    base: http://mirror.lab/os/
    docker-ce:
      url: http://mirror.lab/docker/
      via: appliance
    local: {dir: /srv/local}
  kernel_args: [console=ttyS0]
  attempts: 3
  secure_boot: false
  secure_boot_dir: /srv/shim
  local_boot: auto
cluster:
  name: lab
  kubernetes_version: 1.28.2
  image_repository: registry.lab/google_containers
  pod_cidr: 10.244.0.0/16
  service_cidr: 10.1.0.0/16
  control_plane_endpoint: k8s-api.lab:6443
  cni: flannel
  proxy_mode: iptables
machines:
  - name: kmaster
    mac: "52:54:00:00:00:80"
    ip: 10.10.10.80
    role: control-plane
  - name: knode1
    mac: "52:54:00:00:00:81"
    ip: 10.10.10.81
    role: worker
  - name: knode2
    mac: "52:54:00:00:00:82"
    ip: 10.10.20.82
    kernel_args: [nomodeset]
    local_boot: exit
`

func parse(text string, env ...string) (*Config, error) {
	return Parse(strings.NewReader(text), "rackstrap.yaml", env)
}

// edit replaces the one place where old stands.
func edit(t testing.TB, text, old, new string) string {
	t.Helper()
	require.Equal(t, 1, strings.Count(text, old), "%q must be there once", old)
	return strings.Replace(text, old, new, 1)
}

// marks are what the table writes in place of a file and a line.
var marks = regexp.MustCompile(`@: |@\[[^\]]*\]`)

// lineOf is the number of the first line with that text.
func lineOf(text, part string) int {
	return 1 + strings.Count(text[:max(0, strings.Index(text, part))], "\n")
}

func TestGoodHasNoFault(t *testing.T) {
	c, err := parse(good)
	require.NoError(t, err)
	require.Empty(t, c.Warnings)
}

// Each row edits the good configuration. What it must lead to are exactly these faults; "@" stands for the
// file and the first changed line, "@[text]" for the file and the first line with that text.
func TestFaults(t *testing.T) {
	const hash = `"$6$saltsalt$abcdefgh"`
	for _, row := range []struct{ old, new, want string }{
		// Shape
		{"  interface: eth1", "  interfce: eth1", "@[server:]server.interface: is missing: the network card on the provisioning network\n@: server.interfce: is not a key that rackstrap knows; did you mean interface?"},
		{"server:\n", "Server:\n", "@: Server: is not a key that rackstrap knows; did you mean server?\nrackstrap.yaml: server.interface: is missing: the network card on the provisioning network"},
		{"  domain: lab.example", "  lease_time: 1h", "@: network.lease_time: is not a key that rackstrap knows; did you mean network.dhcp.lease_time?"},
		{"    role: worker", "    rol: worker", `@: machines[1] "knode1": rol is not a key that rackstrap knows; did you mean role?`},
		{"    role: worker", "    zzz: worker", `@: machines[1] "knode1": zzz is not a key that rackstrap knows`},
		{"  tftp_port: 69", "  http_port: 69", "@: server.http_port: is there twice, first in line 4"},
		{"    role: worker", "    ip: 10.10.10.99", `@: machines[1] "knode1": ip is there twice, first in line 69`},
		{"  http_port: 8080", "  http_port: eighty", "@: server.http_port: must be a number"},
		{"  http_port: 8080", "  http_port: [80]", "@: server.http_port: must be a number"},
		{"  secure_boot: false", "  secure_boot: maybe", "@: install.secure_boot: must be true or false"},
		{"  secure_boot: false", "  secure_boot: {a: 1}", "@: install.secure_boot: must be true or false"},
		{"  dns: [8.8.4.4]", "  dns: 8.8.4.4", "@: network.dns: must be a list of texts: [one, two]"},
		{"  domain: lab.example", "  domain: [a]", "@: network.domain: must be a text"},
		{"    mode: server", "    mode: &a server", "@: network.dhcp.mode: uses a YAML anchor, which is not supported: write the value out"},
		{"  domain: lab.example", "  ? [a]\n  : b", "@: network: a key must be a plain word"},
		{"  repos:\n    base: http://mirror.lab/os/\n", "  repos:\n    Base: http://mirror.lab/os/\n", "@[Base]install.repos.Base: is not a name for a repository: lower-case letters, digits, dots, hyphens and underscores"},
		{"      url: http://mirror.lab/docker/\n      via: appliance\n", "      link: http://mirror.lab/docker/\n", "@[docker-ce:]install.repos.docker-ce.url: is missing: or a dir\n@: install.repos.docker-ce.link: is not a key that rackstrap knows"},
		{good, "", "rackstrap.yaml: the file is empty; `rackstrap init` writes one to start from"},
		{good, "- a\n", "@: the file must hold sections (server, network, …)"},
		{good, "a: b\n---\nc: d\n", "rackstrap.yaml:2: the file holds a second document; only one is read"},
		{"  interface: eth1", "  interface: 'eth1", "rackstrap.yaml:2: not YAML: found unexpected end of stream"},
		// Server
		{"  interface: eth1", "  interface: ethernet/slot-number-one", `@: server.interface: "ethernet/slot-number-one" cannot be the name of an interface`},
		{"  interface: eth1\n", "", "@[server:]server.interface: is missing: the network card on the provisioning network"},
		{"  address: 10.10.10.1", "  address: 10.10.11.1", "@: server.address: 10.10.11.1 is outside of the network 10.10.10.0/24"},
		{"  address: 10.10.10.1", "  address: 10.10.10.0", "@: server.address: 10.10.10.0 is the address of the network 10.10.10.0/24 itself"},
		{"  address: 10.10.10.1", "  address: fe80::1", "@: server.address: fe80::1 is not an IPv4 address that a host can have"},
		{"  address: 10.10.10.1", "  address: ten", `@: server.address: "ten" is not an IPv4 address`},
		{"  address: 10.10.10.1", "  address: 10.10.10.81", `@[ip: 10.10.10.81]machines[1] "knode1": ip 10.10.10.81 is the server's own`},
		{"  address: 10.10.10.1", "  address: 10.10.10.200", "@[pool: 10.10.10.200]network.dhcp.pool: 10.10.10.200-10.10.10.250 holds the server's own address 10.10.10.200"},
		{"  http_port: 8080", "  http_port: 65536", "@: server.http_port: 65536 is not a port: 1 to 65535, or 0 for any that is free"},
		{"  http_port: 8080", "  http_port: -1", "@: server.http_port: -1 is not a port: 1 to 65535, or 0 for any that is free"},
		{"  http_port: 8080", "  http_port: 8443", "@[https_port]server.https_port: 8443 is also http_port"},
		{"  tftp_port: 69", "  syslog_port: 8443", "@: server.syslog_port: 8443 is also https_port"},
		{"  tftp_port: 69", "  syslog_port: 8080", "@: server.syslog_port: 8080 is also http_port"},
		{"  tftp_port: 69", "  tftp_port: 67", "@[dhcp_port]server.dhcp_port: 67 is also tftp_port"},
		{"  data_dir: /var/lib/rackstrap", `  data_dir: ""`, "@: server.data_dir: is empty"},
		{"  loaders_dir: /srv/loaders", `  loaders_dir: "/srv\n"`, `@: server.loaders_dir: "/srv\n" is not a path`},
		{"  loaders_dir: /srv/loaders", `  agents_dir: "/srv\n"`, `@: server.agents_dir: "/srv\n" is not a path`},
		// Networks
		{"  subnet: 10.10.10.0/24\n", "", "@[network:]network.subnet: is missing: the IPv4 network, such as 10.10.10.0/24"},
		{"  subnet: 10.10.10.0/24", "  subnet: 10.10.10.1/24", "@: network.subnet: 10.10.10.1/24 is an address in the network 10.10.10.0/24: write 10.10.10.0/24"},
		{"  subnet: 10.10.10.0/24", "  subnet: 10.10.10.0", `@: network.subnet: "10.10.10.0" is not an IPv4 network like 10.10.10.0/24`},
		{"  subnet: 10.10.10.0/24", "  subnet: fd00::/64", `@: network.subnet: "fd00::/64" is not an IPv4 network like 10.10.10.0/24`},
		{"  subnet: 10.10.10.0/24", "  subnet: 10.10.10.80/31", "@: network.subnet: 10.10.10.80/31 is not a network that machines can boot in: its length must be 8 to 30"},
		{"  gateway: 10.10.10.121", "  gateway: 10.10.11.1", "@: network.gateway: 10.10.11.1 is outside of the network 10.10.10.0/24"},
		{"  gateway: 10.10.10.121", "  gateway: 10.10.10.255", "@: network.gateway: 10.10.10.255 is the broadcast address of the network 10.10.10.0/24"},
		{"  gateway: 10.10.10.121", "  gateway: 10.10.10.80", `@[ip: 10.10.10.80]machines[0] "kmaster": ip 10.10.10.80 is the gateway's`},
		{"  gateway: 10.10.10.121", "  gateway: 10.10.10.210", "@[pool: 10.10.10.200]network.dhcp.pool: 10.10.10.200-10.10.10.250 holds the gateway 10.10.10.210"},
		{"  dns: [8.8.4.4]", "  dns: [8.8.4.4, 224.0.0.1]", "@: network.dns[1]: 224.0.0.1 is not an IPv4 address that a host can have"},
		{"  ntp: [time.lab, 10.10.10.9]", "  ntp: [time lab, '::1']", "@: network.ntp[0]: \"time lab\" is neither a host name nor an address\n@: network.ntp[1]: ::1 is not an IPv4 address that a host can have"},
		{"  domain: lab.example", "  domain: Lab.Example", `@: network.domain: "Lab.Example" is not a DNS domain in lower case`},
		{"    mode: server", "    mode: serve", `@: network.dhcp.mode: "serve" is not one of server, proxy, off`},
		{"    unknown: discover", "    unknown: accept", `@: network.dhcp.unknown: "accept" is not one of discover, ignore, enroll`},
		{"    pool: 10.10.10.200-10.10.10.250", "    pool: 10.10.10.250-10.10.10.200", "@: network.dhcp.pool: 10.10.10.250-10.10.10.200 is reversed: write 10.10.10.200-10.10.10.250"},
		{"    pool: 10.10.10.200-10.10.10.250", "    pool: 10.10.10.200", `@: network.dhcp.pool: "10.10.10.200" is not a range of IPv4 addresses like 10.10.10.200-10.10.10.250`},
		{"    pool: 10.10.10.200-10.10.10.250", "    pool: 10.10.10.200-10.10.11.250", "@: network.dhcp.pool: 10.10.11.250 is outside of the network 10.10.10.0/24"},
		{"    pool: 10.10.10.200-10.10.10.250", "    pool: 10.10.10.200-10.10.10.255", "@: network.dhcp.pool: 10.10.10.255 is the broadcast address of the network 10.10.10.0/24"},
		{"    lease_time: 12h", "    lease_time: 59s", "@: network.dhcp.lease_time: 59s is too short: at least 1m0s"},
		{"    lease_time: 12h", "    lease_time: 43200", `@: network.dhcp.lease_time: "43200" is not a time with its unit: 90s, 30m, 12h`},
		{"    lease_time: 12h", "    lease_time: 1000000h", "@: network.dhcp.lease_time: 1000000h0m0s is too long: at most 87600h0m0s"},
		{"    probe_interval: 5m", "    probe_interval: -5m", "@: network.dhcp.probe_interval: -5m0s is too short: at least 0s"},
		{"    - subnet: 10.10.20.0/24", "    - subnet: 10.10.0.0/16", "@: network.relayed[0].subnet: 10.10.0.0/16 overlaps 10.10.10.0/24 of network.subnet"},
		{"      pool: 10.10.20.200-10.10.20.250", "      pool: 10.10.20.1-10.10.20.250", "@: network.relayed[0].pool: 10.10.20.1-10.10.20.250 holds the gateway 10.10.20.1\n@[ip: 10.10.20.82]machines[2] \"knode2\": ip 10.10.20.82 is inside of the pool 10.10.20.1-10.10.20.250"},
		// Media
		{"  - name: mirror", "  - name: my/mirror", "@: media[1] \"my/mirror\": name \"my/mirror\" cannot be part of a URL: letters, digits, dots, hyphens and underscores, at most 64\n@[medium: mirror]install.medium: \"mirror\" is not in media"},
		{"  - name: mirror", "  - name: centos-7.9", "@: media[1] \"centos-7.9\": name is also that of media[0]\n@[medium: mirror]install.medium: \"mirror\" is not in media"},
		{"    url: http://mirror.lab/7/", "    dir: /srv/x\n    url: http://mirror.lab/7/", `@[name: mirror]media[1] "mirror": needs exactly one of iso, dir and url`},
		{"    url: http://mirror.lab/7/\n", "", `@[name: mirror]media[1] "mirror": needs exactly one of iso, dir and url`},
		{"    url: http://mirror.lab/7/", "    url: mirror.lab/7/", `@: media[1] "mirror": url is not a URL: http://host/path or https://host/path`},
		{"    url: http://mirror.lab/7/", "    url: 'http://user:topsecret@mirror.lab/ 7/'", `@: media[1] "mirror": url is not a URL: http://host/path or https://host/path`},
		{"    iso: /srv/iso/c7.iso", "    dir: /srv/c7", `@[sha256]media[0] "centos-7.9": sha256 is only for an iso`},
		{"bc6194a\n", "bc6194\n", `@: media[0] "centos-7.9": sha256 is not a SHA-256 sum of 64 hexadecimal digits`},
		// Install
		{"  profile: centos-7.9", "  profile: ../x", `@: install.profile: "../x" is not a name of lower-case letters, digits, dots and hyphens`},
		{"  medium: mirror", "  medium: rocky", `@: install.medium: "rocky" is not in media`},
		{"  disk: sda", "  disk: sda --drives=sdb", `@: install.disk: "sda --drives=sdb": "--drives=sdb" is not the name of a disk`},
		{"  timezone: Asia/Shanghai", "  timezone: ../../etc/passwd", `@: install.timezone: "../../etc/passwd" is not a time zone: Area/City, or UTC`},
		{hash, `"topsecret"`, "@: install.root_password_hash: is not a crypt(3) hash: `openssl passwd -6` makes one (the value is not shown)"},
		{hash, `"$6$salt$topsecret\n"`, "@: install.root_password_hash: is not a crypt(3) hash: `openssl passwd -6` makes one (the value is not shown)"},
		{hash, `[topsecret]`, "@: install.root_password_hash: must be a text"},
		{"[ssh-ed25519 AAAAC3Nz me@lab]", `["ssh-ed25519 AAAAC3Nz me@lab", "ssh-ed25519 AAAAC3Nz a\nb"]`, "@: install.ssh_authorized_keys[1]: is not a public key in one line: `ssh-ed25519 AAAA… comment`"},
		{"    local: {dir: /srv/local}", "    local: {dir: /srv/local, via: direct}", "@: install.repos.local: is a directory of the appliance's host: machines reach it via: appliance only"},
		{"    local: {dir: /srv/local}", "    local: {dir: /srv/local, url: http://x/}", "@: install.repos.local: needs one of url and dir, not both"},
		{"    local: {dir: /srv/local}", "    local: {via: direct}", "@: install.repos.local: has no URL"},
		{"    local: {dir: /srv/local}", "    local: {dir: \"a\\u0001b\"}", `@: install.repos.local.dir: "a\x01b" is not a path`},
		{"      via: appliance", "      via: pigeon", `@: install.repos.docker-ce.via: "pigeon" is not one of appliance, direct`},
		{"  cache_size: 30GiB", "  cache_size: 30GB", `@: server.cache_size: "30GB" is not a size with its unit: 512MiB, 20GiB, 2TiB`},
		{"  cache_size: 30GiB", "  cache_size: 10", `@: server.cache_size: "10" is not a size with its unit: 512MiB, 20GiB, 2TiB`},
		{"  cache_size: 30GiB", "  cache_size: 99999999999TiB", `@: server.cache_size: "99999999999TiB" is not a size with its unit: 512MiB, 20GiB, 2TiB`},
		{"  cache_size: 30GiB", "  cache_size: 512MiB", "@: server.cache_size: 512MiB is too little: at least 1024MiB"},
		{"    local_boot: exit", "    repos: {docker-ce: {url: http://other/, via: appliance}}", `@: machines[2] "knode2": repos.docker-ce is another repository than the one which the appliance serves under this name: give it a name of its own`},
		{"    base: http://mirror.lab/os/", "    base: ftp://mirror.lab/os/", "@: install.repos.base: is not a URL: http://host/path or https://host/path"},
		{"    base: http://mirror.lab/os/", "    base: http://mirror.lab:65536/os/", "@: install.repos.base: names a port that there is not: 1 to 65535"},
		{"    base: http://mirror.lab/os/", "    base: http://mirror.lab:/os/", "@: install.repos.base: names a port that there is not: 1 to 65535"},
		{"    base: http://mirror.lab/os/", "    base: http://mirror.lab:80x/os/", "@: install.repos.base: is not a URL: http://host/path or https://host/path"},
		{"    base: http://mirror.lab/os/", "    base: http:///os/", "@: install.repos.base: is not a URL: http://host/path or https://host/path"},
		{"[console=ttyS0]", `["a b"]`, `@: install.kernel_args[0]: "a b" must be one argument, without blanks, quotes and what a boot loader's script would interpret`},
		{"[console=ttyS0]", `["a", "b\nc"]`, `@: install.kernel_args[1]: "b\nc" must be one argument, without blanks, quotes and what a boot loader's script would interpret`},
		{"[console=ttyS0]", `["a='b'"]`, `@: install.kernel_args[0]: "a='b'" must be one argument, without blanks, quotes and what a boot loader's script would interpret`},
		{"[console=ttyS0]", `["${net0/mac}"]`, `@: install.kernel_args[0]: "${net0/mac}" must be one argument, without blanks, quotes and what a boot loader's script would interpret`},
		{"  attempts: 3", "  attempts: 0", "@: install.attempts: 0 is out of range: 1 to 100"},
		{"  local_boot: auto", "  local_boot: disk", `@: install.local_boot: "disk" is not one of auto, exit, sanboot, grub, skip`},
		{"  local_boot: auto", "  confirm: yes", `@: install.confirm: "yes" is not one of off, control-plane, all`},
		{"    local_boot: exit", "    confirm: workers", `@: machines[2] "knode2": confirm "workers" is not one of off, control-plane, all`},
		{"    local_boot: exit", "    local_boot: disk", `@: machines[2] "knode2": local_boot "disk" is not one of auto, exit, sanboot, grub, skip`},
		{"    local_boot: exit", "    medium: rocky", `@: machines[2] "knode2": medium "rocky" is not in media`},
		{"    local_boot: exit", "    repos: {base: nowhere}", `@: machines[2] "knode2": repos.base is not a URL: http://host/path or https://host/path`},
		{"[nomodeset]", "[no modeset]", `@: machines[2] "knode2": kernel_args[0] "no modeset" must be one argument, without blanks, quotes and what a boot loader's script would interpret`},
		// Cluster
		{"  name: lab\n", "  name: Lab\n", `@: cluster.name: "Lab" is not a name of lower-case letters, digits and hyphens`},
		{"  kubernetes_version: 1.28.2", "  kubernetes_version: v1.28.2", `@: cluster.kubernetes_version: "v1.28.2" is not a version like 1.28.2: write 1.28.2`},
		{"  kubernetes_version: 1.28.2", "  kubernetes_version: 1.30", `@: cluster.kubernetes_version: "1.30" is not a version like 1.28.2`},
		{"registry.lab/google_containers", "https://registry.lab/x", `@: cluster.image_repository: "https://registry.lab/x" is not a registry with a path, such as registry.example.org/google_containers (without a scheme)`},
		{"  pod_cidr: 10.244.0.0/16", "  pod_cidr: 10.10.0.0/16", "@: cluster.pod_cidr: 10.10.0.0/16 overlaps 10.10.10.0/24 of network.subnet\n@: cluster.pod_cidr: 10.10.0.0/16 overlaps 10.10.20.0/24 of network.relayed[0].subnet"},
		{"  pod_cidr: 10.244.0.0/16", "  pod_cidr: 10.244.0.0/25", "@: cluster.pod_cidr: 10.244.0.0/25 has the wrong size: every node takes a /24 of it, so its length must be 8 to 24"},
		{"  service_cidr: 10.1.0.0/16", "  service_cidr: 10.244.4.0/24", "@: cluster.service_cidr: 10.244.4.0/24 overlaps 10.244.0.0/16 of cluster.pod_cidr"},
		{"  service_cidr: 10.1.0.0/16", "  service_cidr: 10.0.0.0/10", "@: cluster.service_cidr: 10.0.0.0/10 has the wrong size: its length must be 12 to 28\n@: cluster.service_cidr: 10.0.0.0/10 overlaps 10.10.10.0/24 of network.subnet\n@: cluster.service_cidr: 10.0.0.0/10 overlaps 10.10.20.0/24 of network.relayed[0].subnet"},
		{"  control_plane_endpoint: k8s-api.lab:6443", "  control_plane_endpoint: k8s-api.lab", `@: cluster.control_plane_endpoint: "k8s-api.lab" is not host:port, such as k8s-api.lab:6443`},
		{"  control_plane_endpoint: k8s-api.lab:6443", "  control_plane_endpoint: 10.10.10.300:6443", `@: cluster.control_plane_endpoint: "10.10.10.300:6443" is not host:port, such as k8s-api.lab:6443`},
		{"  control_plane_endpoint: k8s-api.lab:6443", "  control_plane_endpoint: k8s-api.lab:06443", `@: cluster.control_plane_endpoint: "k8s-api.lab:06443" is not host:port, such as k8s-api.lab:6443`},
		{"  cni: flannel", "  cni: cilium", `@: cluster.cni: "cilium" is not one of flannel, calico, none`},
		{"  cni: flannel", "  cni: calico", `@[cluster:]cluster.cni_manifest: is missing: calico's manifest is not built in, name the file`},
		{"  proxy_mode: iptables", "  verify_image: Nginx latest", `@: cluster.verify_image: "Nginx latest" is not the reference of an image, such as registry.example.org/web/nginx:1.25`},
		{"  proxy_mode: iptables", "  timeouts: {join: 1ms}", `@: cluster.timeouts.join: 1ms is too short: at least 1s`},
		{"  proxy_mode: iptables", "  proxy_mode: nftables", `@: cluster.proxy_mode: "nftables" is not one of iptables, ipvs`},
		// Machines
		{"  - name: knode1", "  - name: Knode1", `@: machines[1] "Knode1": name must be in lower case for Kubernetes: "knode1"`},
		{"  - name: knode1", "  - name: knode_1", `@: machines[1] "knode_1": name "knode_1" is not a host name that Kubernetes takes: lower-case letters, digits and hyphens, at most 63, without a domain`},
		{"  - name: knode1", "  - name: knode1.lab", `@: machines[1] "knode1.lab": name "knode1.lab" is not a host name that Kubernetes takes: lower-case letters, digits and hyphens, at most 63, without a domain`},
		{"  - name: knode1", "  - name: " + strings.Repeat("a", 64), fmt.Sprintf(`@: machines[1] "%[1]s": name "%[1]s" is not a host name that Kubernetes takes: lower-case letters, digits and hyphens, at most 63, without a domain`, strings.Repeat("a", 64))},
		{"  - name: knode1\n    mac", "  - mac", `@: machines[1].name: is missing`},
		{"  - name: knode2", "  - name: knode1", `@: machines[2] "knode1": name is also that of machines[1]`},
		{`"52:54:00:00:00:82"`, `52-54-00-00-00-81`, `@: machines[2] "knode2": mac 52:54:00:00:00:81 is also knode1's`},
		{`"52:54:00:00:00:82"`, `"01:00:5e:00:00:01"`, `@: machines[2] "knode2": mac 01:00:5e:00:00:01 is a multicast address, not one of a network card`},
		{`"52:54:00:00:00:82"`, `"ff:ff:ff:ff:ff:ff"`, `@: machines[2] "knode2": mac ff:ff:ff:ff:ff:ff is a multicast address, not one of a network card`},
		{`"52:54:00:00:00:82"`, `"00:00:00:00:00:00"`, `@: machines[2] "knode2": mac 00:00:00:00:00:00 is nobody's address; leave the key out for a free slot`},
		{`"52:54:00:00:00:82"`, `["52:54:00:00:00:92", "52:54:00:00:00:82", "52:54:00:00:00:92"]`, `@: machines[2] "knode2": mac 52:54:00:00:00:92 is there twice`},
		{`"52:54:00:00:00:82"`, `["52:54:00:00:00:82", 52-54-00-00-00-81]`, `@: machines[2] "knode2": mac 52:54:00:00:00:81 is also knode1's`},
		{`"52:54:00:00:00:82"`, `["52:54:00:00:00:82", "eth1"]`, `@: machines[2] "knode2": mac[1] "eth1" is not a MAC address of six octets`},
		{`"52:54:00:00:00:82"`, `["52:54:00:00:00:82", ""]`, `@: machines[2] "knode2": mac[1] "" is not a MAC address of six octets`},
		{`"52:54:00:00:00:82"`, `["52:54:00:00:00:82", "00:00:00:00:00:00"]`, `@: machines[2] "knode2": mac[1] 00:00:00:00:00:00 is nobody's address; leave the key out for a free slot`},
		{`"52:54:00:00:00:82"`, `["52:54:00:00:00:82", [x]]`, `@: machines[2] "knode2": mac[1] must be a text`},
		{`"52:54:00:00:00:82"`, `[]`, `@: machines[2] "knode2": mac is an empty list; leave the key out for a free slot`},
		{`"52:54:00:00:00:82"`, `{eth0: "52:54:00:00:00:82"}`, `@: machines[2] "knode2": mac must be a text, or a list of texts: [one, two]`},
		{`"52:54:00:00:00:82"`, `"52:54:00:00:82"`, `@: machines[2] "knode2": mac "52:54:00:00:82" is not a MAC address of six octets`},
		{"    ip: 10.10.20.82", "    ip: 10.10.10.81", `@: machines[2] "knode2": ip 10.10.10.81 is also knode1's`},
		{"    ip: 10.10.20.82", "    ip: 10.10.30.82", `@: machines[2] "knode2": ip 10.10.30.82 is in none of the networks`},
		{"    ip: 10.10.20.82", "    ip: 10.10.20.1", `@: machines[2] "knode2": ip 10.10.20.1 is the gateway's`},
		{"    ip: 10.10.20.82", "    ip: 10.10.10.1", `@: machines[2] "knode2": ip 10.10.10.1 is the server's own`},
		{"    ip: 10.10.20.82", "    ip: 10.10.20.250", `@: machines[2] "knode2": ip 10.10.20.250 is inside of the pool 10.10.20.200-10.10.20.250`},
		{"    ip: 10.10.20.82", "    ip: 10.10.20.0", `@: machines[2] "knode2": ip 10.10.20.0 is the address of the network 10.10.20.0/24 itself`},
		{"    ip: 10.10.20.82", "    ip: 10.10.20.255", `@: machines[2] "knode2": ip 10.10.20.255 is the broadcast address of the network 10.10.20.0/24`},
		{"    ip: 10.10.20.82", "    ip:", `@: machines[2] "knode2": ip is missing: every machine has a reserved address`},
		{"    role: worker", "    role: master", `@: machines[1] "knode1": role "master" is not one of control-plane, worker`},
		{"    role: control-plane", "    role: worker", "@[machines:]machines: none has the role control-plane: a cluster needs one"},
	} {
		name := row.new
		t.Run(strings.TrimSpace(name[:min(40, len(name))]), func(t *testing.T) {
			checkFault(t, good, row.old, row.new, row.want)
		})
	}
}

func checkFault(t *testing.T, base, old, new, faults string) {
	t.Helper()
	edited := edit(t, base, old, new)
	at := lineOf(base, old)
	want := marks.ReplaceAllStringFunc(faults, func(mark string) string {
		line := at
		if text := strings.Trim(mark, "@[]: "); text != "" {
			line = lineOf(edited, text)
		}
		return fmt.Sprintf("rackstrap.yaml:%d: ", line)
	})
	_, err := parse(edited)
	require.Error(t, err)
	require.Equal(t, want, err.Error())
	require.NotContains(t, err.Error(), "topsecret")
	var typed Faults
	require.ErrorAs(t, err, &typed)
}

// All faults of a file are found in one reading, in its order.
func TestAllFaultsAtOnce(t *testing.T) {
	text := good
	for _, e := range [][2]string{
		{"  http_port: 8080", "  http_port: x"},
		{"  gateway: 10.10.10.121", "  gateway: 10.10.11.1"},
		{"    mode: server", "    mod: server"},
		{"  cni: flannel", "  cni: weave"},
		{"  - name: knode1", "  - name: KNODE1"},
		{"    ip: 10.10.20.82", "    ip: 10.10.10.81"},
	} {
		text = edit(t, text, e[0], e[1])
	}
	_, err := parse(text)
	require.Equal(t, `rackstrap.yaml:4: server.http_port: must be a number
rackstrap.yaml:14: network.gateway: 10.10.11.1 is outside of the network 10.10.10.0/24
rackstrap.yaml:19: network.dhcp.mod: is not a key that rackstrap knows; did you mean mode?
rackstrap.yaml:60: cluster.cni: "weave" is not one of flannel, calico, none
rackstrap.yaml:67: machines[1] "KNODE1": name must be in lower case for Kubernetes: "knode1"
rackstrap.yaml:73: machines[2] "knode2": ip 10.10.10.81 is also KNODE1's`, err.Error())
}

func TestWarnings(t *testing.T) {
	for _, row := range []struct{ old, new, want string }{
		{"    role: worker", "    role: control-plane", "machines: 2 have the role control-plane: an even number survives no more failures than 1 would"},
		{`  root_password_hash: "$6$saltsalt$abcdefgh"` + "\n  ssh_authorized_keys: [ssh-ed25519 AAAAC3Nz me@lab]\n", "", "install: neither root_password_hash nor ssh_authorized_keys: nobody will be able to log in"},
		{good[strings.Index(good, "machines:"):], "", "machines: the list is empty: only unknown machines will be seen"},
	} {
		c, err := parse(edit(t, good, row.old, row.new))
		require.NoError(t, err)
		require.Equal(t, []string{row.want}, c.Warnings)
	}
}

// Whatever boots first would be given the keys of the cluster: a slot of a control plane waits for an approval.
func TestNoControlPlaneIsEnrolled(t *testing.T) {
	free := func(name string) string {
		return regexp.MustCompile(`(name: `+name+`\n) +mac: .*\n`).ReplaceAllString(good, "$1")
	}
	text := free("kmaster")
	require.NotEqual(t, good, text)
	_, err := parse(text)
	require.NoError(t, err, "discover: somebody approves it")
	_, err = parse(edit(t, text, "unknown: discover", "unknown: ignore"))
	require.NoError(t, err)
	_, err = parse(edit(t, good, "unknown: discover", "unknown: enroll"))
	require.NoError(t, err, "its mac is known")
	_, err = parse(edit(t, free("knode1"), "unknown: discover", "unknown: enroll"))
	require.NoError(t, err, "a worker")
	_, err = parse(edit(t, text, "unknown: discover", "unknown: enroll"))
	require.ErrorContains(t, err, "network.dhcp.unknown: enroll, and kmaster is a control plane without a mac: whichever machine boots would be "+
		"given the cluster's keys: give kmaster its mac, or use discover and `rackstrap approve`")
}
