package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// System is what the lab's installer lays down, made of Debian packages of this host's own sources, and the
// package repositories of a rack. Everything lies in the cache, under a name that changes with its recipe.
type System struct {
	// Tree is the root directory of the system: a lower layer for the roots of namespace machines. It must not
	// be written to.
	Tree string
	// Image is the same as a squashfs: the second stage of the installer, and what it unpacks onto a disk.
	Image string
	// Repositories holds package repositories by the names of the profile: base, updates, extras, docker-ce,
	// kubernetes; and medium, which is part of the ISO.
	Repositories string

	kernel kernel
	hash   string
}

// RepositoryNames are the directories in System.Repositories that stand for a rack's package repositories.
func RepositoryNames() []string {
	return []string{"base", "updates", "extras", "docker-ce", "kubernetes"}
}

// systemRecipe is part of the cached system's name: raise it when what is built changes.
const systemRecipe = "5"

// systemPackages are Debian's packages of the system. Those of rpmSources leave it again, as RPM files; their
// libraries and accounts stay.
var systemPackages = []string{
	"systemd", "systemd-sysv", "dbus", "udev", "kmod", "iproute2", "iputils-ping", "curl", "procps", "ca-certificates", "less",
	"mount", "util-linux", "openssh-server", "sudo", "hostname", "tzdata", "kbd", "passwd", "login", // the system
	"rpm", "initramfs-tools", "busybox", "zstd", "lvm2", "xfsprogs", "e2fsprogs", "dosfstools", "fdisk", "squashfs-tools", // the installer
	"grub2-common", "grub-pc-bin", "grub-efi-amd64-bin", "efibootmgr",
	"chrony", "containerd", "runc", "containernetworking-plugins", "docker.io", "iptables", "conntrack", "ethtool", "socat",
	"ebtables", "ipset", "ipvsadm",
}

// left out of the packages: nobody reads them in the lab, and an emulated machine unpacks every byte.
var excludedPaths = []string{"/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*", "/usr/share/lintian/*",
	"/usr/share/bash-completion/*", "/usr/share/zsh/*", "/usr/share/fish/*", "/usr/share/bug/*"}

// systemModules are the kernel's directories of modules that a virtual node can use; others would double the
// system's size.
var systemModules = []string{
	"kernel/arch/x86/crypto", "kernel/crypto", "kernel/lib", "kernel/block", "kernel/mm",
	"kernel/net/802", "kernel/net/8021q", "kernel/net/bridge", "kernel/net/core", "kernel/net/ipv4", "kernel/net/ipv6", "kernel/net/llc",
	"kernel/net/netfilter", "kernel/net/openvswitch", "kernel/net/packet", "kernel/net/sched", "kernel/net/sctp", "kernel/net/tls", "kernel/net/unix",
	"kernel/net/vmw_vsock", "kernel/net/xfrm", "kernel/net/nsh", "kernel/net/mpls", "kernel/net/psample",
	"kernel/fs/autofs", "kernel/fs/binfmt", "kernel/fs/configfs", "kernel/fs/efivarfs", "kernel/fs/ext4", "kernel/fs/fat", "kernel/fs/fuse",
	"kernel/fs/isofs", "kernel/fs/jbd2", "kernel/fs/mbcache", "kernel/fs/nls", "kernel/fs/overlayfs", "kernel/fs/squashfs", "kernel/fs/xfs", "kernel/fs/pstore",
	"kernel/drivers/block/loop", "kernel/drivers/block/virtio_blk", "kernel/drivers/block/nbd", "kernel/drivers/char/hw_random/virtio-rng",
	"kernel/drivers/md/dm-", "kernel/drivers/md/persistent-data", "kernel/drivers/net/virtio_net", "kernel/drivers/net/veth",
	"kernel/drivers/net/vxlan", "kernel/drivers/net/dummy", "kernel/drivers/net/tun", "kernel/drivers/net/net_failover", "kernel/drivers/net/ipvlan",
	"kernel/drivers/net/macvlan", "kernel/drivers/net/geneve", "kernel/drivers/net/ifb", "kernel/drivers/net/ethernet/intel/e1000",
	"kernel/drivers/scsi/scsi_", "kernel/drivers/scsi/sd_mod", "kernel/drivers/scsi/sr_mod", "kernel/drivers/scsi/sg.", "kernel/drivers/scsi/virtio_scsi",
	"kernel/drivers/virtio", "kernel/drivers/ata/ahci", "kernel/drivers/ata/libahci", "kernel/drivers/ata/libata", "kernel/drivers/input/evdev",
	"kernel/drivers/cdrom", "kernel/drivers/ptp", "kernel/drivers/pps", "kernel/drivers/dax", "kernel/drivers/nvdimm",
}

// BuildSystem makes the lab's system and repositories, or finds them in the cache (default DefaultCacheDir).
// The first time takes some minutes, and more if Kubernetes has to be built. It needs root.
func BuildSystem(ctx context.Context, cache string, log *slog.Logger) (System, error) {
	if cache == "" {
		cache = DefaultCacheDir()
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	made, err := buildSystem(ctx, cache, log)
	if err != nil {
		return System{}, fmt.Errorf("lab: system: %w", err)
	}
	return made, nil
}

func buildSystem(ctx context.Context, cache string, log *slog.Logger) (System, error) {
	if os.Geteuid() != 0 {
		return System{}, errors.New("making a root file system needs root")
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return System{}, err
	}
	programs, err := kubernetesPrograms(ctx, cache, log)
	if err != nil {
		return System{}, err
	}
	if _, err := preparePayload(ctx, cache); err != nil { // under its own lock: the kernel is in the cache afterwards
		return System{}, err
	}
	var made System
	err = lockedFile(ctx, filepath.Join(cache, "system.lock"), func() error {
		k, err := debian{cache: cache}.kernel(ctx)
		if err != nil {
			return err
		}
		from, err := readLoaders(ctx, debian{cache: cache})
		if err != nil {
			return err
		}
		parts := [][]byte{[]byte(systemRecipe), from.shim, from.fallback, []byte(k.version), []byte(strings.Join(systemPackages, " ")), []byte(strings.Join(systemModules, " ")), []byte(customScript)}
		for _, name := range kubernetesProgramNames {
			parts = append(parts, []byte(filepath.Base(filepath.Dir(programs(name))))) // its name changes with its content
		}
		made.hash, made.kernel = hashOf(parts...), k
		dir := filepath.Join(cache, "system-"+made.hash)
		made.Tree, made.Image, made.Repositories = filepath.Join(dir, "tree"), filepath.Join(dir, "system.squashfs"), filepath.Join(dir, "repositories")
		if _, err := os.Stat(dir); err == nil {
			return nil
		}
		log.Info("making the lab's system; this takes a few minutes, once", "directory", dir)
		return makeSystem(ctx, dir, k, from, programs)
	})
	return made, err
}

// makeSystem fills a temporary directory and renames it: what bears the name is complete.
func makeSystem(ctx context.Context, dir string, k kernel, from loaders, programs func(string) string) (err error) {
	work, err := os.MkdirTemp(filepath.Dir(dir), ".system-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if err := os.Chmod(work, 0o755); err != nil {
		return err
	}
	tree := filepath.Join(work, "tree")
	if err := bootstrap(ctx, work, tree); err != nil {
		return err
	}
	if err := layKernel(ctx, tree, k); err != nil {
		return fmt.Errorf("kernel: %w", err)
	}
	if err := customise(ctx, tree); err != nil {
		return err
	}
	if err := makeRepositories(ctx, tree, filepath.Join(work, "repositories"), k, from, programs); err != nil {
		return fmt.Errorf("repositories: %w", err)
	}
	if err := trim(tree); err != nil {
		return err
	}
	// lz4 costs an emulated machine the least; the image crosses the virtual wire once.
	if _, err := output(ctx, "mksquashfs", tree, filepath.Join(work, "system.squashfs"), "-quiet", "-no-progress", "-noappend",
		"-comp", "lz4", "-Xhc", "-xattrs"); err != nil {
		return err
	}
	return os.Rename(work, dir)
}

// trimmed is what packages depend on for the sake of a few scripts that nobody runs here.
var trimmed = []string{"usr/lib/python3*", "usr/bin/python3*", "usr/share/python3*", "usr/share/perl", "usr/share/perl5", "usr/lib/x86_64-linux-gnu/perl",
	"usr/lib/x86_64-linux-gnu/libperl.so*", "usr/lib/x86_64-linux-gnu/gconv", "usr/lib/grub/x86_64-efi/monolithic",
	"usr/lib/grub/*/*.module", "usr/lib/udev/hwdb.d", "usr/lib/file", "usr/share/maven-repo", "usr/share/common-licenses", "var/lib/dpkg/info",
	"var/lib/apt", "usr/lib/x86_64-linux-gnu/perl-base/unicore", "usr/lib/gcc", "usr/share/gcc", "usr/share/gdb",
	"usr/bin/dnet", "usr/sbin/ovrouter", "usr/share/docker.io", "usr/bin/containerd-shim", "usr/bin/containerd-shim-runc-v1", "etc/init.d/docker"}

// trim halves what an emulated machine has to unpack.
func trim(tree string) error {
	for _, pattern := range trimmed {
		found, err := filepath.Glob(filepath.Join(tree, pattern))
		if err != nil {
			return err
		}
		for _, path := range found {
			if err := os.RemoveAll(path); err != nil {
				return err
			}
		}
	}
	return nil
}

// bootstrap has mmdebstrap install the packages, from this host's own sources of Debian packages.
func bootstrap(ctx context.Context, work, tree string) error {
	sources, err := output(ctx, "apt-get", "indextargets", "Created-By: Packages", "Origin: Debian", "--format", "deb $(REPO_URI) $(RELEASE) $(COMPONENT)")
	if err != nil {
		return err
	}
	first := strings.Fields(sources)
	if len(first) < 4 {
		return errors.New("this host has no lists of Debian packages (try apt-get update)")
	}
	list := filepath.Join(work, "sources.list")
	if err := os.WriteFile(list, []byte(sources), 0o644); err != nil {
		return err
	}
	args := []string{"--variant=minbase", "--quiet", "--include=" + strings.Join(systemPackages, ","), "--aptopt=Acquire::Retries \"3\"",
		"--aptopt=Acquire::Languages \"none\""}
	for _, path := range excludedPaths {
		args = append(args, "--dpkgopt=path-exclude="+path)
	}
	args = append(args, first[2], tree, list)
	if _, err := output(ctx, "mmdebstrap", args...); err != nil {
		return err
	}
	return os.Remove(list)
}

// inTree runs a program in the system that is being made.
func inTree(ctx context.Context, tree string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "chroot", append([]string{tree}, args...)...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive"}
	return outputOf(cmd)
}

// layKernel gives the system the kernel that boots the installer, so that one initramfs, made once, fits all
// machines: an emulated machine would take minutes for its own.
func layKernel(ctx context.Context, tree string, k kernel) error {
	to := filepath.Join(tree, "usr/lib/modules", k.version)
	if err := os.MkdirAll(filepath.Join(tree, "boot"), 0o755); err != nil {
		return err
	}
	if err := copyFile(filepath.Join(tree, "boot", "vmlinuz-"+k.version), k.image); err != nil {
		return err
	}
	config := filepath.Join(filepath.Dir(k.image), "config-"+k.version)
	if err := copyFile(filepath.Join(tree, "boot", "config-"+k.version), config); err != nil {
		return err
	}
	err := filepath.WalkDir(k.modules, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !entry.Type().IsRegular() {
			return err
		}
		relative, err := filepath.Rel(k.modules, path)
		if err != nil {
			return err
		}
		under := func(dir string) bool { return strings.HasPrefix(relative, dir) }
		if under("kernel") && !slices.ContainsFunc(systemModules, under) {
			return nil
		}
		target := filepath.Join(to, relative)
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return err
		}
		return copyPlain(target, path)
	})
	if err != nil {
		return err
	}
	if _, err := inTree(ctx, tree, "depmod", k.version); err != nil {
		return err
	}
	for name, text := range map[string]string{
		// No list of everything: what a machine of the lab has, and what its root can be on.
		"etc/initramfs-tools/initramfs.conf": "MODULES=list\nBUSYBOX=auto\nCOMPRESS=zstd\nCOMPRESSLEVEL=3\nDEVICE=\nNFSROOT=auto\nRUNSIZE=10%\nFSTYPE=auto\n",
		"etc/initramfs-tools/modules":        "virtio_pci\nvirtio_scsi\nvirtio_blk\nsd_mod\nahci\nxfs\next4\ndm_mod\n",
	} {
		if err := os.WriteFile(filepath.Join(tree, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	_, err = inTree(ctx, tree, "mkinitramfs", "-o", "/boot/initrd.img-"+k.version, k.version)
	return err
}

// copyPlain copies a file of a tree that nobody else sees yet.
func copyPlain(to, from string) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, content, info.Mode().Perm())
}

// customScript makes of Debian what a kickstart for CentOS expects: names of units, places of files. It runs in
// the tree.
const customScript = `set -e
# rpm of Debian keeps its database in the home directory of whoever runs it, as it manages nobody's system.
mkdir -p /etc/rpm /var/lib/rpm
echo '%_dbpath /var/lib/rpm' >/etc/rpm/macros
rpm --initdb

# The program of the lab, which the installer brings along, is yum.
ln -s /rackstrap-lab/rackstrap /usr/bin/yum

# Units under the names that they have in EL7. An alias cannot be enabled before it is, so they are renamed.
cd /usr/lib/systemd/system
rename_unit() {
  sed -e '/^Alias=/d' -e 's/ssh.socket/sshd.socket/' "$1" >"$2"
  systemctl disable "$1" 2>/dev/null || :
  rm -f "$1" "/etc/systemd/system/$1" "/etc/systemd/system/$2"
}
rename_unit ssh.service sshd.service
rename_unit chrony.service chronyd.service
rm -f ssh.socket chrony-dnssrv@.* chrony-wait.service
cat >NetworkManager-wait-online.service <<'END'
[Unit]
Description=Network Manager Wait Online (the lab: systemd-networkd)
Documentation=man:systemd-networkd-wait-online.service(8)
Requires=systemd-networkd.service
After=systemd-networkd.service
Before=network-online.target

[Service]
Type=oneshot
ExecStart=/usr/lib/systemd/systemd-networkd-wait-online --timeout=60
RemainAfterExit=yes

[Install]
WantedBy=network-online.target
END
# Host keys are every machine's own, made at its first start.
rm -f /etc/ssh/ssh_host_*
cat >sshd-keygen.service <<'END'
[Unit]
Description=OpenSSH host keys
ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key
Before=sshd.service

[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -A
RemainAfterExit=yes

[Install]
WantedBy=sshd.service
END
systemctl enable systemd-networkd sshd-keygen
systemctl disable systemd-networkd-wait-online

# Nothing runs that the kickstart did not enable, and nothing updates itself.
systemctl disable chronyd containerd docker docker.socket e2scrub_reap e2scrub_all.timer fstrim.timer apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer 2>/dev/null || :
systemctl mask apt-daily.service apt-daily-upgrade.service systemd-resolved.service 2>/dev/null
find /etc/systemd/system -xtype l -delete
find /etc/systemd/system -lname '*docker*' -delete -o -lname '*containerd*' -delete -o -lname '*chrony*' -delete

# chrony's configuration is where EL7 has it.
mv /usr/share/chrony/chrony.conf /etc/chrony.conf
rm -rf /etc/chrony/chrony.conf
ln -s ../chrony.conf /etc/chrony/chrony.conf
sed -i -e '/^pool /d' -e '/^server /d' -e '/^sourcedir /d' -e '/^confdir /d' /etc/chrony.conf
mkdir -p /etc/yum.repos.d /opt/cni/bin
cat >/etc/yum.repos.d/CentOS-Base.repo <<'END'
# As the release package has it: the server is gone.
[base]
name=CentOS-$releasever - Base
mirrorlist=http://mirrorlist.centos.org/?release=$releasever&arch=$basearch&repo=os
gpgcheck=1
END
echo 'CentOS Linux release 7.9.2009 (the lab: Debian)' >/etc/centos-release
rm -f /etc/hostname /etc/resolv.conf /etc/motd /etc/machine-id /var/lib/dbus/machine-id /etc/localtime
: >/etc/machine-id
: >/etc/fstab
rm -rf /var/cache/apt/* /var/lib/apt/lists/* /var/cache/debconf/*-old /var/log/* /usr/share/grub/*.pf2.orig
`

func customise(ctx context.Context, tree string) error {
	_, err := inTree(ctx, tree, "sh", "-c", customScript)
	return err
}
