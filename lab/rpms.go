package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf16"

	"github.com/google/rpmpack"
)

// rpmSpec is one RPM file of the lab: a real one, with content out of Debian packages, out of Kubernetes's
// programs, or with none, where the system's own file tree has it.
type rpmSpec struct {
	repository string // medium, base, updates, extras, docker-ce, kubernetes
	name       string
	version    string // "": that of the first Debian package
	release    string // default 1.lab.el7
	debian     []string
	keep       bool              // the files stay in the tree: the RPM is but its entry in the database
	only       *regexp.Regexp    // of the Debian packages' files; nil: all
	files      map[string]string // path -> content
	programs   map[string]string // path -> name of a program of Kubernetes
	directory  string            // of these files of the tree, to which /usr/lib/cni of them are moved
	provides   []string
	requires   []string
}

// coreGroup is the group "core" of the medium, EL7's names for packages of Debian that are in the tree.
var coreGroup = map[string]string{
	"audit": "", "basesystem": "", "bash": "bash", "centos-release": "base-files", "coreutils": "coreutils", "curl": "curl",
	"e2fsprogs": "e2fsprogs", "filesystem": "base-files", "glibc": "libc6", "hostname": "hostname", "iproute": "iproute2",
	"iputils": "iputils-ping", "kbd": "kbd", "less": "less", "lvm2": "lvm2", "openssh-server": "openssh-server",
	"openssh-clients": "openssh-client", "passwd": "passwd", "procps-ng": "procps", "rpm": "rpm", "setup": "base-passwd",
	"shadow-utils": "passwd", "sudo": "sudo", "systemd": "systemd", "util-linux": "util-linux", "xfsprogs": "xfsprogs",
	"ca-certificates": "ca-certificates", "kmod": "kmod", "tzdata": "tzdata", "yum": "",
}

// rpmSpecs are the packages that a kickstart of the profile asks for, and what they depend on.
func rpmSpecs(k kernel, from loaders) []rpmSpec {
	shell := []string{"/bin/sh", "/usr/bin/sh", "/bin/bash", "/usr/bin/bash"}
	var all []rpmSpec
	for _, name := range slices.Sorted(maps.Keys(coreGroup)) {
		s := rpmSpec{repository: "medium", name: name, keep: true, version: "1.0"}
		if from := coreGroup[name]; from != "" {
			s.version, s.debian = "", []string{from}
		}
		if name == "bash" {
			s.provides = shell
		}
		all = append(all, s)
	}
	upstream, _, _ := strings.Cut(k.version, "-")
	all = append(all,
		rpmSpec{repository: "medium", name: "kernel", version: upstream, release: strings.ReplaceAll(strings.TrimPrefix(k.version, upstream+"-"), "-", "."), keep: true},
		rpmSpec{repository: "medium", name: "grub2-pc", debian: []string{"grub-pc-bin"}, keep: true},
		rpmSpec{repository: "medium", name: "grub2-efi-x64", debian: []string{"grub-efi-amd64-bin"}, keep: true},
		rpmSpec{repository: "medium", name: "shim-x64", version: "15", keep: true, files: map[string]string{
			// Where EL's package has them. The entry that fallback makes has another label than Anaconda's.
			"/boot/efi/EFI/BOOT/BOOTX64.EFI":   string(from.shim),
			"/boot/efi/EFI/BOOT/fbx64.efi":     string(from.fallback),
			"/boot/efi/EFI/centos/shimx64.efi": string(from.shim),
			"/boot/efi/EFI/centos/BOOTX64.CSV": utf16Text("shimx64.efi,CentOS Linux,,This is the boot entry for CentOS Linux\n"),
		}},
		rpmSpec{repository: "medium", name: "efibootmgr", debian: []string{"efibootmgr"}, keep: true},
		rpmSpec{repository: "medium", name: "chrony", debian: []string{"chrony"},
			only: regexp.MustCompile(`^/usr/s?bin/|chronyd\.service$|^/usr/libexec|^/etc/logrotate|^/etc/chrony`)},

		rpmSpec{repository: "base", name: "conntrack-tools", debian: []string{"conntrack"}, provides: []string{"conntrack"}},
		rpmSpec{repository: "base", name: "ebtables", debian: []string{"ebtables"}, requires: []string{"iptables"}},
		rpmSpec{repository: "base", name: "ethtool", debian: []string{"ethtool"}},
		rpmSpec{repository: "base", name: "ipset", debian: []string{"ipset"}},
		rpmSpec{repository: "base", name: "iptables", debian: []string{"iptables"}},
		rpmSpec{repository: "base", name: "ipvsadm", debian: []string{"ipvsadm"}},
		rpmSpec{repository: "base", name: "socat", debian: []string{"socat"}},
		rpmSpec{repository: "updates", name: "ca-certificates", debian: []string{"ca-certificates"}, release: "2.lab.el7", keep: true},
		rpmSpec{repository: "extras", name: "container-selinux", version: "2.119.2", requires: nil},

		rpmSpec{repository: "docker-ce", name: "containerd.io", version: "1.6.33", release: "3.1.el7", debian: []string{"containerd", "runc"},
			only:     regexp.MustCompile(`^/usr/bin/(containerd|containerd-shim-runc-v2|ctr)$|^/usr/s?bin/runc$|containerd\.service$`),
			requires: []string{"container-selinux"},
			// As the package of Docker has it: with the interface that kubelet needs switched off.
			files: map[string]string{"/etc/containerd/config.toml": "disabled_plugins = [\"cri\"]\n"}},
		rpmSpec{repository: "docker-ce", name: "docker-ce-cli", version: "26.1.4", release: "1.el7", debian: []string{"docker.io"},
			only: regexp.MustCompile(`^/usr/bin/docker$`)},
		rpmSpec{repository: "docker-ce", name: "docker-ce", version: "26.1.4", release: "1.el7", debian: []string{"docker.io"},
			only:     regexp.MustCompile(`^/usr/sbin/(dockerd|docker-proxy)$|^/usr/bin/docker-init$|/docker\.(service|socket)$|80-docker`),
			requires: []string{"docker-ce-cli", "containerd.io", "container-selinux", "iptables"}},

		rpmSpec{repository: "kubernetes", name: "kubernetes-cni", version: "1.2.0", release: "0", debian: []string{"containernetworking-plugins"},
			directory: "/opt/cni/bin"},
		rpmSpec{repository: "kubernetes", name: "cri-tools", version: "1.26.0", release: "0", programs: map[string]string{"/usr/bin/crictl": "crictl"}},
		rpmSpec{repository: "kubernetes", name: "kubelet", version: "1.28.2", release: "0", programs: map[string]string{"/usr/bin/kubelet": "kubelet"},
			requires: []string{"kubernetes-cni", "iptables", "ethtool", "iproute", "socat", "util-linux", "ebtables", "conntrack"},
			files:    map[string]string{"/usr/lib/systemd/system/kubelet.service": kubeletUnit, "/etc/sysconfig/kubelet": "KUBELET_EXTRA_ARGS=\n"}},
		rpmSpec{repository: "kubernetes", name: "kubectl", version: "1.28.2", release: "0", programs: map[string]string{"/usr/bin/kubectl": "kubectl"}},
		rpmSpec{repository: "kubernetes", name: "kubeadm", version: "1.28.2", release: "0", programs: map[string]string{"/usr/bin/kubeadm": "kubeadm"},
			requires: []string{"kubelet", "kubectl", "kubernetes-cni", "cri-tools"},
			files:    map[string]string{"/usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf": kubeadmDropIn}},
	)
	return all
}

// utf16Text is how shim's files hold text: little endian, with a byte order mark.
func utf16Text(text string) string {
	raw := []byte{0xff, 0xfe}
	for _, unit := range utf16.Encode([]rune(text)) {
		raw = binary.LittleEndian.AppendUint16(raw, unit)
	}
	return string(raw)
}

// kubernetesProgramNames are those that the RPM files hold.
var kubernetesProgramNames = []string{"kubelet", "kubeadm", "kubectl", "crictl"}

// The units of the packages of kubelet 1.28.2-0.
const kubeletUnit = `[Unit]
Description=kubelet: The Kubernetes Node Agent
Documentation=https://kubernetes.io/docs/
Wants=network-online.target
After=network-online.target

[Service]
ExecStart=/usr/bin/kubelet
Restart=always
StartLimitInterval=0
RestartSec=10

[Install]
WantedBy=multi-user.target
`

const kubeadmDropIn = `# Note: This dropin only works with kubeadm and kubelet v1.11+
[Service]
Environment="KUBELET_KUBECONFIG_ARGS=--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf --kubeconfig=/etc/kubernetes/kubelet.conf"
Environment="KUBELET_CONFIG_ARGS=--config=/var/lib/kubelet/config.yaml"
# This is a file that "kubeadm init" and "kubeadm join" generates at runtime, populating the KUBELET_KUBEADM_ARGS variable dynamically
EnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env
# This is a file that the user can use for overrides of the kubelet args as a last resort. Preferably, the user should use
# the .NodeRegistration.KubeletExtraArgs object in the configuration files instead. KUBELET_EXTRA_ARGS should be sourced from this file.
EnvironmentFile=-/etc/sysconfig/kubelet
ExecStart=
ExecStart=/usr/bin/kubelet $KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS $KUBELET_KUBEADM_ARGS $KUBELET_EXTRA_ARGS
`

// makeRepositories moves the content of packages out of the tree into RPM files, and has createrepo_c describe
// them.
func makeRepositories(ctx context.Context, tree, out string, k kernel, from loaders, programs func(string) string) error {
	taken := map[string]bool{} // files that are in an RPM now
	for _, s := range rpmSpecs(k, from) {
		if err := writeRPM(ctx, tree, filepath.Join(out, s.repository, "Packages"), s, programs, taken); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	for path := range taken {
		if err := os.Remove(filepath.Join(tree, path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	// A release's own repository has all that its media have.
	if err := os.CopyFS(filepath.Join(out, "base"), os.DirFS(filepath.Join(out, "medium"))); err != nil {
		return err
	}
	for _, name := range append(RepositoryNames(), "medium") {
		args := []string{"--quiet", "--no-database", "--general-compress-type=gz", "--simple-md-filenames"}
		dir := filepath.Join(out, name)
		if name == "medium" {
			comps := filepath.Join(out, "comps.xml")
			if err := os.WriteFile(comps, []byte(comps7()), 0o644); err != nil {
				return err
			}
			args = append(args, "--groupfile", comps)
		}
		if _, err := output(ctx, "createrepo_c", append(args, dir)...); err != nil {
			return err
		}
	}
	return os.Remove(filepath.Join(out, "comps.xml"))
}

// comps7 describes the medium's groups, as the Minimal ISO does.
func comps7() string {
	var members strings.Builder
	for _, name := range slices.Sorted(maps.Keys(coreGroup)) {
		fmt.Fprintf(&members, "      <packagereq type=\"mandatory\">%s</packagereq>\n", name)
	}
	return strings.Replace(compsXML, "    <packagelist/>\n", "    <packagelist>\n"+members.String()+"    </packagelist>\n", 1)
}

var upstreamVersion = regexp.MustCompile(`^(?:\d+:)?([0-9][0-9A-Za-z.]*)`)

func writeRPM(ctx context.Context, tree, dir string, s rpmSpec, programs func(string) string, taken map[string]bool) error {
	if s.version == "" {
		out, err := inTree(ctx, tree, "dpkg-query", "--show", "--showformat", "${Version}", s.debian[0])
		if err != nil {
			return err
		}
		found := upstreamVersion.FindStringSubmatch(out)
		if found == nil {
			return fmt.Errorf("version %q", out)
		}
		s.version = found[1]
	}
	if s.release == "" {
		s.release = "1.lab.el7"
	}
	meta := rpmpack.RPMMetaData{Name: s.name, Version: s.version, Release: s.release, Arch: "x86_64", OS: "linux", Vendor: "the lab of Rackstrap",
		Summary: s.name + " for the lab", Description: "Not the package of that name: its content comes from Debian or from Go modules.",
		Licence: "as its content", BuildTime: time.Unix(1604000000, 0), Compressor: "gzip:1", Epoch: rpmpack.NoEpoch}
	for _, p := range s.provides {
		if err := meta.Provides.Set(p); err != nil {
			return err
		}
	}
	for _, r := range s.requires {
		if err := meta.Requires.Set(r); err != nil {
			return err
		}
	}
	rpm, err := rpmpack.NewRPM(meta)
	if err != nil {
		return err
	}
	if err := s.addDebian(ctx, tree, rpm, taken); err != nil {
		return err
	}
	for name, text := range s.files {
		f := rpmpack.RPMFile{Name: name, Body: []byte(text), Mode: 0o100644, Owner: "root", Group: "root"}
		if strings.HasPrefix(name, "/etc/") {
			f.Type = rpmpack.ConfigFile | rpmpack.NoReplaceFile
		}
		rpm.AddFile(f)
	}
	for name, program := range s.programs {
		body, err := os.ReadFile(programs(program))
		if err != nil {
			return err
		}
		rpm.AddFile(rpmpack.RPMFile{Name: name, Body: body, Mode: 0o100755, Owner: "root", Group: "root"})
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	file := filepath.Join(dir, fmt.Sprintf("%s-%s-%s.x86_64.rpm", s.name, s.version, s.release))
	return writeFile(file, func(w io.Writer) error { return rpm.Write(w) })
}

// addDebian takes the files of Debian packages out of the tree. Each file goes into one RPM, the first that asks.
func (s rpmSpec) addDebian(ctx context.Context, tree string, rpm *rpmpack.RPM, taken map[string]bool) error {
	if s.keep {
		return nil
	}
	for _, pack := range s.debian {
		list, err := inTree(ctx, tree, "dpkg", "--listfiles", pack)
		if err != nil {
			return err
		}
		names := strings.Fields(list)
		if pack == "chrony" { // what customScript has renamed or moved
			names = append(names, "/lib/systemd/system/chronyd.service", "/etc/chrony.conf", "/etc/chrony/chrony.conf")
		}
		for _, name := range names {
			to := usrMerged(name)
			if s.only != nil && !s.only.MatchString(to) || s.files[to] != "" {
				if s.files[to] != "" {
					taken[to] = true
				}
				continue
			}
			if strings.Count(to, "/") < 2 { // /lib, which is a link into /usr
				continue
			}
			path := filepath.Join(tree, to)
			info, err := os.Lstat(path)
			if errors.Is(err, fs.ErrNotExist) || err == nil && info.IsDir() || taken[to] {
				continue
			}
			if err != nil {
				return err
			}
			taken[to] = true
			if s.directory != "" {
				to = filepath.Join(s.directory, filepath.Base(to))
			}
			f := rpmpack.RPMFile{Name: to, Owner: "root", Group: "root", Mode: uint(info.Mode().Perm()) | 0o100000}
			if info.Mode()&fs.ModeSymlink != 0 {
				target, err := os.Readlink(path)
				if err != nil {
					return err
				}
				f.Body, f.Mode = []byte(target), 0o120777
			} else if f.Body, err = os.ReadFile(path); err != nil {
				return err
			}
			if strings.HasPrefix(to, "/etc/") {
				f.Type = rpmpack.ConfigFile | rpmpack.NoReplaceFile
			}
			rpm.AddFile(f)
		}
	}
	return nil
}

// usrMerged: /bin, /sbin and /lib are links into /usr, which an RPM must not replace by directories.
func usrMerged(name string) string {
	for _, dir := range []string{"/bin/", "/sbin/", "/lib/"} {
		if strings.HasPrefix(name, dir) {
			return "/usr" + name
		}
	}
	return name
}
