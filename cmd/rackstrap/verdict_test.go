package main

import (
	"bytes"
	"debug/elf"
	"encoding/binary"

	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"rackstrap/internal/repotest"
	"rackstrap/internal/rpm"
)

// site is the files of a small appliance that lacks nothing.
type site struct {
	medium, repo repotest.Tree
	pool         repotest.Tree // beside the directory of the repository's parent
	config       string        // more lines of install
	top          string        // of the configuration
	gpgkey       string
	names        []string                       // of repositories, all of which are the one
	after        func(t *testing.T, dir string) // when the files are written
}

// installedNames are the packages that the plan installs from the repositories, and one that they depend on.
var installedNames = []string{"conntrack-tools-1.4.4-7.el7", "container-selinux-2.119.2-1.el7", "ebtables-2.0.10-16.el7", "ethtool-4.8-10.el7", "iproute-4.11.0-30.el7",
	"ipset-7.1-1.el7", "iptables-1.4.21-35.el7", "ipvsadm-1.27-8.el7", "socat-1.7.3.2-2.el7", "containerd.io-1.6.33-3.1.el7",
	"docker-ce-26.1.4-1.el7", "docker-ce-cli-26.1.4-1.el7", "kubelet-1.28.2-0", "kubeadm-1.28.2-0", "kubectl-1.28.2-0", "kubernetes-cni-1.2.0-0", "unneeded-1-1",
	"iproute-tc-6.2-1.el9", "iptables-nft-1.8-1.el9"}

func rpmPath(name string) string { return "Packages/" + name + ".x86_64.rpm" }

// packages are all of them; made once, for compressing takes time.
func (s *site) packages(packing string) map[string][]byte {
	if made[packing] == nil {
		var paths []string
		for _, name := range installedNames {
			paths = append(paths, rpmPath(name))
		}
		made[packing] = repotest.RPMs(packing, paths...)
	}
	return maps.Clone(made[packing])
}

var made = map[string]map[string][]byte{}

func (s *site) make(packages map[string][]byte, packing string, locate func(string) (string, string)) {
	s.repo = repotest.MakeWith(packages, repotest.Options{Packing: packing, Locate: locate, Requires: map[string][]string{"kubelet": {"kubernetes-cni"}}})
}

func goodSite() *site {
	s := &site{medium: repotest.Medium(), pool: repotest.Tree{}, gpgkey: "none", names: []string{"base", "updates", "extras", "docker-ce", "kubernetes"}}
	s.make(s.packages("gzip"), "gz", nil)
	return s
}

// write writes the site, and returns the path of its configuration.
func (s *site) write(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, tree := range map[string]repotest.Tree{"medium": s.medium, "yum/repos/k": s.repo, "yum/pool": s.pool} {
		require.NoError(t, tree.Write(filepath.Join(dir, name)))
	}
	put(t, filepath.Join(dir, "agents", "linux-amd64"), staticProgram())
	if s.after != nil {
		s.after(t, dir)
	}
	text := "server: {interface: lo, address: 127.0.0.1, data_dir: data, agents_dir: agents, http_port: 18080}\nnetwork: {subnet: 127.0.0.0/8, gateway: 127.0.0.2, dhcp: {mode: \"off\"}}\nmedia: [{name: m, dir: medium}]\n" +
		s.top + "install:\n  root_password_hash: \"$6$saltsalt$xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\"\n" + s.config + "  repos:\n"
	for _, name := range s.names {
		text += fmt.Sprintf("    %s: {dir: yum/repos/k, gpgkey: %s}\n", name, s.gpgkey)
	}
	text += "machines:\n  - {name: kmaster, mac: \"52:54:00:00:00:80\", ip: 127.0.0.80, role: control-plane}\n  - {name: knode1, ip: 127.0.0.81}\n"
	path := filepath.Join(dir, "rackstrap.yaml")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

func put(t *testing.T, path string, text []byte) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, text, 0o600))
}

// staticProgram is the header of one: the tests' own program needs libraries.
func staticProgram() []byte {
	header := elf.Header64{Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT), Ehsize: 64, Phentsize: 56, Shentsize: 64}
	copy(header.Ident[:], elf.ELFMAG)
	header.Ident[elf.EI_CLASS], header.Ident[elf.EI_DATA], header.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)
	var out bytes.Buffer
	binary.Write(&out, binary.LittleEndian, header) // a buffer takes everything
	return out.Bytes()
}

// run is a command as people run it: what it prints, warnings included, and its exit code.
func run(t *testing.T, args ...string) (string, int) {
	t.Helper()
	var out bytes.Buffer
	root := rootCommand()
	root.SetArgs(args)
	root.SetOut(&out)
	root.SetErr(&out)
	err := root.ExecuteContext(t.Context())
	if err != nil {
		fmt.Fprintln(&out, "rackstrap:", err)
		return out.String(), exitCode(err)
	}
	return out.String(), 0
}

// judgement is what one command says of one configuration: its faults and warnings.
type judgement struct{ faults, warnings []string }

func (j *judgement) add(warning bool, text string) {
	if warning {
		j.warnings = append(j.warnings, text)
	} else {
		j.faults = append(j.faults, text)
	}
}

// byCheck reads what `check` prints, and byServe what the daemon does before it binds anything.
func byCheck(t *testing.T, config string) (j judgement) {
	out, code := run(t, "--config", config, "check")
	for line := range strings.Lines(strings.TrimPrefix(strings.ReplaceAll(out, "rackstrap: ", ""), "")) {
		line = strings.TrimSuffix(line, "\n")
		text, warning := strings.CutPrefix(line, "warning: ")
		if !strings.HasPrefix(line, config+": good: ") {
			j.add(warning, text)
		}
	}
	require.Equal(t, len(j.faults) > 0, code != 0, out)
	require.Equal(t, len(j.faults) == 0, strings.Contains(out, ": good: "), out)
	return j
}

func byServe(t *testing.T, config string) (j judgement) {
	a := &app{configPath: config}
	cfg, err := a.reloadConfig()
	if err != nil {
		j.faults = strings.Split(err.Error(), "\n")
		cfg, err = a.loadConfig()
		require.NoError(t, err)
		j.warnings = append(cfg.Warnings, verdict(t.Context(), cfg, reach{}).Warnings()...) // serve has none to print then
		return j
	}
	j.warnings = cfg.Warnings
	return j
}

func byDoctor(t *testing.T, config string) (j judgement) {
	out, code := run(t, "--config", config, "doctor", "-o", "json")
	var findings []finding
	require.NoError(t, json.NewDecoder(strings.NewReader(out)).Decode(&findings), out)
	elsewhere := []string{"configuration", "interface", "files", "data directory", "port", "other DHCP servers", "daemon"}
	for _, f := range findings {
		if f.Check == "configuration" && f.Warning {
			j.add(true, f.Text)
			continue
		}
		own := false
		for _, check := range elsewhere {
			own = own || strings.HasPrefix(f.Check, check)
		}
		if !own && (!f.OK || f.Warning) {
			j.add(f.Warning, f.Check+": "+f.Text)
		}
		require.False(t, f.OK && !f.Warning && strings.HasPrefix(f.Check, "packages") && len(j.faults) > 0, "good, and what is missing: %s", out)
	}
	require.Equal(t, len(j.faults) > 0, code != 0, out)
	return j
}

// byMedia are the findings that are about the medium itself.
func byMedia(t *testing.T, config string) (faulty bool, text string) {
	out, code := run(t, "--config", config, "media", "list", "-o", "json")
	require.Zero(t, code, out)
	var list []medium
	require.NoError(t, json.Unmarshal([]byte(out), &list))
	_, code = run(t, "--config", config, "media", "verify", "m")
	require.Equal(t, list[0].Fault != "", code != 0)
	return list[0].Fault != "", list[0].Fault + list[0].Warning
}

// One verdict: each row is a fault made in a good site, and every command tells of it, in the same words.
func TestOneVerdict(t *testing.T) {
	const kernel, initrd, stage2 = "images/pxeboot/vmlinuz", "images/pxeboot/initrd.img", "LiveOS/squashfs.img"
	kubelet := rpmPath("kubelet-1.28.2-0")
	pooled := func(path string) (base, href string) { return "", "../../pool/" + filepath.Base(path) }
	unsummed := func(m repotest.Tree) { // .treeinfo without checksums, so that what is tested is the form
		text, _, _ := strings.Cut(string(m[".treeinfo"]), "[checksums]")
		m[".treeinfo"] = []byte(text)
	}
	for name, row := range map[string]struct {
		change  func(s *site)
		warning string // the one that is expected, or
		fault   string
	}{
		"nothing": {func(*site) {}, "", ""},

		// The medium's boot files.
		"no kernel":             {func(s *site) { delete(s.medium, kernel) }, "", "medium m: " + kernel + " is not there"},
		"empty initrd":          {func(s *site) { s.medium[initrd] = nil }, "", "medium m: " + initrd + " is empty"},
		"empty kernel":          {func(s *site) { s.medium[kernel] = nil }, "", "medium m: " + kernel + " is empty"},
		"kernel is a page":      {func(s *site) { s.medium[kernel] = []byte("<html>404</html>") }, "", "medium m: " + kernel + " is no kernel for x86_64 (bzImage)"},
		"kernel breaks off":     {func(s *site) { s.medium[kernel] = s.medium[kernel][:2000]; unsummed(s.medium) }, "", "medium m: " + kernel + " breaks off: it has 2000 bytes of 2560"},
		"initrd is a page":      {func(s *site) { s.medium[initrd] = []byte("<html>404</html>") }, "", "medium m: " + initrd + " is no initrd (cpio, or compressed)"},
		"stage 2 missing":       {func(s *site) { delete(s.medium, stage2) }, "", "medium m: " + stage2 + " is not there"},
		"stage 2 breaks off":    {func(s *site) { s.medium[stage2] = s.medium[stage2][:4000]; unsummed(s.medium) }, "", "medium m: " + stage2 + " breaks off: it has 4000 bytes of 4096"},
		"stage 2 is none":       {func(s *site) { s.medium[stage2] = make([]byte, 4096) }, "", "medium m: " + stage2 + " is no squashfs image"},
		"stage 2 damaged":       {func(s *site) { s.medium[stage2][100] ^= 1 }, "", "medium m: " + stage2 + " is not the file that .treeinfo has the sha256 of"},
		"kernel damaged":        {func(s *site) { s.medium[kernel][1800] ^= 1 }, "", "medium m: " + kernel + " is not the file that .treeinfo has the sha256 of"},
		"no treeinfo":           {func(s *site) { delete(s.medium, ".treeinfo") }, "medium m: it has neither .treeinfo nor treeinfo", ""},
		"no treeinfo, stage 2":  {func(s *site) { delete(s.medium, ".treeinfo"); delete(s.medium, stage2) }, "", "medium m: " + stage2 + " is not there"},
		"treeinfo is a page":    {func(s *site) { s.medium[".treeinfo"] = []byte("<html>") }, "", "medium m: treeinfo: line 1"},
		"stage 2 is elsewhere":  {func(s *site) { s.medium[".treeinfo"] = []byte("[stage2]\nmainimage = images/other.img\n") }, "", "medium m: images/other.img is not there"},
		"kernel has a blank":    {func(s *site) { s.rename(kernel, "images/my kernel") }, "", `medium m: "images/my kernel" cannot be named in a boot script`},
		"of another machine":    {func(s *site) { s.medium[".treeinfo"] = []byte("[general]\narch = ppc64le\n") }, "", "medium m: it is for ppc64le"},
		"kernel of another":     {func(s *site) { s.medium[".treeinfo"] = []byte("[general]\narch = aarch64\n") }, "", "medium m: " + kernel + " is no kernel for aarch64"},
		"kernel in other case":  {func(s *site) { s.medium["images/pxeboot/VMLINUZ"] = s.medium[kernel]; delete(s.medium, kernel) }, "", ""},
		"kernel is a directory": {func(s *site) { s.medium[kernel+"/x"] = nil; delete(s.medium, kernel) }, "", "medium m: " + kernel + " is no regular file"},
		"initrd is a link out": {func(s *site) {
			delete(s.medium, initrd)
			s.after = func(t *testing.T, dir string) {
				require.NoError(t, os.Symlink("/etc/hosts", filepath.Join(dir, "medium", initrd)))
			}
		}, "", "medium m: " + initrd + " is a symbolic link that leads out of the tree"},
		"no shim": {func(s *site) { s.config = "  secure_boot: true\n"; delete(s.medium, "EFI/BOOT/BOOTX64.EFI") }, "", "boot of kmaster: secure_boot: medium m: find EFI/BOOT/BOOTX64.EFI"},
		"empty grub": {func(s *site) { s.config = "  secure_boot: true\n"; s.medium["EFI/BOOT/grubx64.efi"] = nil }, "",
			"boot of kmaster: secure_boot: shim/m/grubx64.efi: is empty"},

		// The medium's packages.
		"no repodata": {func(s *site) { delete(s.medium, "repodata/repomd.xml") }, "", "medium m: / has no repodata/repomd.xml: createrepo_c makes it"},
		"no comps":    {func(s *site) { s.medium = without(t, s.medium, "group") }, "", "medium m: it has no groups (comps), and @core is installed from it"},
		"comps lost":  {func(s *site) { delete(s.medium, s.medium.Find("group")) }, "", "medium m: repodata/"},
		"chrony not described": {func(s *site) {
			s.medium = repotest.Make("gz", repotest.RPMs("xz", "bash-1-1.x86_64.rpm", "kernel-3-1.x86_64.rpm"))
			maps.Copy(s.medium, repotest.BootFiles())
		}, "", "medium m: it has no package chrony"},
		"no kernel package": {func(s *site) {
			s.medium = repotest.Make("gz", repotest.RPMs("xz", "bash-1-1.x86_64.rpm", "chrony-3-1.x86_64.rpm"))
			maps.Copy(s.medium, repotest.BootFiles())
		}, "", "medium m: it has no package kernel, which the installer adds"},
		"a package of core lost": {func(s *site) { delete(s.medium, "Packages/bash-4.2.46-34.el7.x86_64.rpm") }, "",
			"packages of kmaster: medium m: bash-4.2.46-34.el7.x86_64 is not there"},
		"a package of core packed by zstd": {func(s *site) {
			s.medium = repotest.Make("gz", repotest.RPMs("zstd", "bash-1-1.x86_64.rpm", "chrony-3-1.x86_64.rpm", "kernel-3-1.x86_64.rpm"))
			maps.Copy(s.medium, repotest.BootFiles())
		}, "", "packages of kmaster: medium m: bash-1-1.x86_64 is packed by zstd, which CentOS 7.9 cannot read"},

		// Repositories.
		"packages in the pool": {func(s *site) {
			s.make(s.packages("gzip"), "gz", pooled)
			for _, path := range s.repo.Packages() {
				s.pool[filepath.Base(path)] = s.repo[path]
				delete(s.repo, path)
			}
		}, "", ""},
		"a package of the pool lost": {func(s *site) {
			s.make(s.packages("gzip"), "gz", pooled)
			for _, path := range s.repo.Packages() {
				if path != kubelet {
					s.pool[filepath.Base(path)] = s.repo[path]
				}
				delete(s.repo, path)
			}
		}, "", "packages of kmaster: repository base: kubelet-1.28.2-0.x86_64 at ../../pool/kubelet-1.28.2-0.x86_64.rpm is not there"},
		"packages too far away": {func(s *site) {
			s.make(s.packages("gzip"), "gz", func(path string) (string, string) { return "", "../../../../" + filepath.Base(path) })
			s.after = func(t *testing.T, dir string) {
				for _, name := range installedNames {
					put(t, filepath.Join(dir, "..", name+".x86_64.rpm"), rpm.Magic)
				}
			}
		}, "", "packages of kmaster: repository base: ethtool-4.8-10.el7.x86_64 at ../../../../ethtool-4.8-10.el7.x86_64.rpm is too far outside of the repository to be served"},
		"packages elsewhere": {func(s *site) {
			s.make(s.packages("gzip"), "gz", func(path string) (string, string) { return "file:///etc", "x.rpm" })
		}, "", "packages of kmaster: repository base: ethtool-4.8-10.el7.x86_64 at file:///etc/x.rpm is not there"},
		"packages on a server": {func(s *site) {
			s.make(s.packages("gzip"), "gz", func(path string) (string, string) { return "http://mirror.lab/os", path })
			for _, path := range s.repo.Packages() {
				delete(s.repo, path)
			}
		}, fmt.Sprintf("repository base: %d packages are not here, but on a server by the metadata's xml:base", len(installedNames)), ""},
		"a package lost":              {func(s *site) { delete(s.repo, kubelet) }, "", "packages of kmaster: repository base: kubelet-1.28.2-0.x86_64 is not there"},
		"a package that is needed":    {func(s *site) { delete(s.repo, rpmPath("kubernetes-cni-1.2.0-0")) }, "", "packages of kmaster: repository base: kubernetes-cni-1.2.0-0.x86_64 is not there"},
		"a package that nobody needs": {func(s *site) { delete(s.repo, rpmPath("unneeded-1-1")) }, "repository base: 1 of the 19 packages that its metadata names cannot be had; whoever needs one fails: Packages/unneeded-1-1.x86_64.rpm is not there", ""},
		"a package that is empty":     {func(s *site) { s.repo[kubelet] = nil }, "", "kubelet-1.28.2-0.x86_64 is empty"},
		"a package that breaks off":   {func(s *site) { s.repo[kubelet] = s.repo[kubelet][:500] }, "", "kubelet-1.28.2-0.x86_64 has 500 bytes, and "},
		"a package that is a page": {func(s *site) {
			all := s.packages("gzip")
			all[kubelet] = []byte("<html>404</html>")
			s.make(all, "gz", nil)
		}, "", "kubelet-1.28.2-0.x86_64 is no RPM package"},
		"a package that is another": {func(s *site) {
			all := s.packages("gzip")
			all[kubelet] = repotest.RPM("kubelet-1.27.0-0.x86_64.rpm", "gzip")
			s.make(all, "gz", nil)
		}, "", "kubelet-1.28.2-0.x86_64 is another package, kubelet-1.27.0-0.x86_64"},
		"packages packed by zstd": {func(s *site) { s.make(s.packages("zstd"), "gz", nil) }, "", "ethtool-4.8-10.el7.x86_64 is packed by zstd, which CentOS 7.9 cannot read"},
		"metadata packed by zstd": {func(s *site) { s.make(s.packages("gzip"), "zst", nil) }, "", "repository base: CentOS 7.9 cannot read repodata/"},
		"zstd, for EL9": {func(s *site) {
			s.make(s.packages("zstd"), "zst", nil)
			s.elNine()
		}, "", ""},
		"unsigned packages": {func(s *site) { s.gpgkey = "file:///etc/pki/KEY" }, "", "ethtool-4.8-10.el7.x86_64 is not signed, and the repository has a gpgkey"},
		"metadata lost":     {func(s *site) { delete(s.repo, s.repo.Find("primary")) }, "", "-primary.xml.gz: no such file"},
		"metadata damaged":  {func(s *site) { s.repo[s.repo.Find("primary")][60] ^= 1 }, "", "is not the file that repomd.xml names"},
		"a version lacking": {func(s *site) {
			all := s.packages("gzip")
			delete(all, kubelet)
			all[rpmPath("kubelet-1.28.1-0")] = repotest.RPM("kubelet-1.28.1-0.x86_64.rpm", "gzip")
			s.make(all, "gz", nil)
		}, "", "packages of kmaster: kubelet-1.28.2 is in none of the repositories; of kubelet there is 1.28.1-0"},
		"EL9 on EL7's medium": {func(s *site) { s.elNine(); delete(s.medium, ".treeinfo") }, "", "medium m: images/install.img is not there"},
		"a package is a link out": {func(s *site) {
			delete(s.repo, kubelet)
			s.after = func(t *testing.T, dir string) {
				require.NoError(t, os.Symlink("/etc/hosts", filepath.Join(dir, "yum/repos/k", kubelet)))
			}
		}, "", "kubelet-1.28.2-0.x86_64 is a symbolic link that leads out of the tree"},
		"a package is a pipe": {func(s *site) {
			delete(s.repo, kubelet)
			s.after = func(t *testing.T, dir string) { require.NoError(t, mkfifo(filepath.Join(dir, "yum/repos/k", kubelet))) }
		}, "", "kubelet-1.28.2-0.x86_64 is no regular file"},

		// All else.
		"a faulty manifest": {func(s *site) {
			s.top = "cluster: {cni: calico, cni_manifest: calico.yaml}\n"
			s.after = func(t *testing.T, dir string) {
				require.NoError(t, os.WriteFile(filepath.Join(dir, "calico.yaml"), nil, 0o600))
			}
		}, "", "cni_manifest"},
	} {
		t.Run(name, func(t *testing.T) {
			s := goodSite()
			row.change(s)
			config := s.write(t)
			check := byCheck(t, config)
			if row.fault == "" {
				require.Empty(t, check.faults)
			} else {
				require.Contains(t, strings.Join(check.faults, "\n"), row.fault)
			}
			if row.warning != "" {
				require.Contains(t, strings.Join(check.warnings, "\n"), row.warning)
			} else if row.fault == "" {
				require.Empty(t, check.warnings)
			}
			if name == "a faulty manifest" {
				return // of the configuration's own checks
			}
			require.Equal(t, check, byDoctor(t, config), "doctor")
			require.Equal(t, check, byServe(t, config), "serve")
			if strings.HasPrefix(row.fault+row.warning, "medium m: ") {
				faulty, text := byMedia(t, config)
				require.Equal(t, row.fault != "", faulty)
				require.Contains(t, text, strings.TrimPrefix(row.fault+row.warning, "medium m: "))
			}
		})
	}
}

// elNine installs EL9 in place of EL7.
// What is allowed but probably not meant is the same to all of them, too.
func TestWarningsOfTheConfiguration(t *testing.T) {
	config := goodSite().write(t)
	text, err := os.ReadFile(config)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(config, bytes.Replace(text, []byte("gateway: 127.0.0.2, "), nil, 1), 0o600))
	check := byCheck(t, config)
	require.Contains(t, strings.Join(check.warnings, "\n"), "network.gateway is not set")
	require.Equal(t, check, byDoctor(t, config), "doctor")
	require.Equal(t, check, byServe(t, config), "serve")
}

func (s *site) elNine() {
	s.config, s.names = "  profile: rocky-9\n", []string{"baseos", "appstream", "extras", "docker-ce", "kubernetes"}
}

// rename gives the kernel another path, and notes it in .treeinfo.
func (s *site) rename(from, to string) {
	s.medium[to] = s.medium[from]
	delete(s.medium, from)
	s.medium[".treeinfo"] = bytes.ReplaceAll(s.medium[".treeinfo"], []byte(from), []byte(to))
}

// without is a repository whose repomd.xml does not name metadata of a kind.
func without(t *testing.T, tree repotest.Tree, kind string) repotest.Tree {
	tree = maps.Clone(tree)
	before, rest, ok := strings.Cut(string(tree["repodata/repomd.xml"]), `<data type="`+kind+`">`)
	require.True(t, ok)
	_, after, _ := strings.Cut(rest, "</data>")
	tree["repodata/repomd.xml"] = []byte(before + after)
	return tree
}

func mkfifo(path string) error { return syscall.Mkfifo(path, 0o600) }
