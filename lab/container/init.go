package container

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// private is where this package keeps things of its own in a machine's /run.
const private = "run/rackstrap-lab"

// masked are units that would touch the host's kernel or console, or wait for what a container has not.
var masked = []string{
	"systemd-udevd.service", "systemd-udev-trigger.service", "systemd-udevd-control.socket", "systemd-udevd-kernel.socket",
	"systemd-udev-settle.service", "systemd-modules-load.service", "systemd-logind.service", "systemd-remount-fs.service",
	"systemd-timesyncd.service", "systemd-pstore.service", "lvm2-monitor.service", "lvm2-lvmpolld.socket", "dm-event.socket",
	"sys-kernel-debug.mount", "sys-kernel-tracing.mount", "sys-kernel-config.mount", "sys-fs-fuse-connections.mount",
	"dev-hugepages.mount", "proc-sys-fs-binfmt_misc.automount", "proc-sys-fs-binfmt_misc.mount",
	"apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer", "fstrim.timer", "dpkg-db-backup.timer",
	"getty@tty1.service", "console-getty.service", "docker.socket",
}

// runtimeFiles are laid into /run at each boot, where systemd looks for configuration too.
var runtimeFiles = map[string]string{
	// kubelet wants the accounting of both for every unit.
	"run/systemd/system.conf.d/rackstrap-lab.conf": "[Manager]\nDefaultCPUAccounting=yes\nDefaultMemoryAccounting=yes\n",
	// The kernel's messages are the host's. The console is the machine's serial log.
	"run/systemd/journald.conf.d/rackstrap-lab.conf": "[Journal]\nReadKMsg=no\nStorage=volatile\nRuntimeMaxUse=64M\n" +
		"ForwardToConsole=yes\nTTYPath=/dev/console\nMaxLevelConsole=info\n",
	// It may not set the host's clock (-x), but tells how good it is.
	"run/systemd/system/chronyd.service.d/rackstrap-lab.conf": "[Unit]\nConditionCapability=\n" +
		"[Service]\nType=simple\nPIDFile=\nExecStart=\nExecStart=!/usr/sbin/chronyd -n -x -F 0\n",
}

// runcWrapper is for hosts without CAP_SYS_RESOURCE, on which nobody may lower oom_score_adj: runc would fail where
// kubelet asks for it (-998, for the pods of the control plane).
const runcWrapper = `#!/bin/sh
previous=
for argument; do
  case $previous in
  --bundle | -b) file=$argument/config.json ;;
  --process | -p) file=$argument ;;
  *) file= ;;
  esac
  [ -z "$file" ] || [ ! -f "$file" ] || sed -i 's/"oomScoreAdj":-[0-9]*/"oomScoreAdj":0/' "$file"
  previous=$argument
done
exec /run/rackstrap-lab/runc "$@"
`

func (b Boot) path(name string) string { return filepath.Join(b.Root, name) }

func (b Boot) init() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"proc and sys", b.mountKernel}, {"cgroups", b.mountCgroups}, {"run", b.layRun}, {"kernel settings", b.shadowSettings},
		{"dev", b.layDev}, {"modules", b.layModules}, {"runc", b.wrapRunc},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	console, err := os.OpenFile(b.path("dev/console"), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return fmt.Errorf("console: %w", err)
	}
	if err := b.enter(); err != nil {
		return fmt.Errorf("root: %w", err)
	}
	// modprobe reads an index of what the kernel has built in.
	if out, err := exec.Command("/sbin/depmod", release()).CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "depmod: %v: %s\n", err, out)
	}
	if name, err := os.ReadFile("/etc/hostname"); err == nil {
		if err := unix.Sethostname([]byte(strings.TrimSpace(string(name)))); err != nil {
			return fmt.Errorf("host name: %w", err)
		}
	}
	if err := dropCapabilities(); err != nil {
		return fmt.Errorf("capabilities: %w", err)
	}
	for fd := range 3 {
		if err := unix.Dup3(int(console.Fd()), fd, 0); err != nil {
			return fmt.Errorf("console: %w", err)
		}
	}
	return syscall.Exec("/sbin/init", []string{
		"/sbin/init", "systemd.unified_cgroup_hierarchy=0", "systemd.legacy_systemd_cgroup_controller=1", "systemd.show_status=0",
		"systemd.log_color=0",
	}, []string{"container=rackstrap-lab", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=dumb"})
}

func mount(kind, at string, flags uintptr, options string) error {
	if err := os.MkdirAll(at, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(kind, at, kind, flags, options); err != nil {
		return fmt.Errorf("%s on %s (%s): %w", kind, at, options, err)
	}
	return nil
}

func bind(from, to string) error {
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s to %s: %w", from, to, err)
	}
	return nil
}

// mountKernel: a read-only /sys tells systemd that no udev will come.
func (b Boot) mountKernel() error {
	const plain = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := mount("proc", b.path("proc"), plain, ""); err != nil {
		return err
	}
	if err := mount("sysfs", b.path("sys"), plain, ""); err != nil {
		return err
	}
	if err := unix.Mount("", b.path("sys"), "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|plain, ""); err != nil {
		return err
	}
	if _, err := os.Stat(b.path("proc/sysrq-trigger")); err == nil {
		return bind("/dev/null", b.path("proc/sysrq-trigger"))
	}
	return nil
}

// mountCgroups mounts the hierarchies; in a cgroup namespace their roots are the machine's own directories.
func (b Boot) mountCgroups() error {
	at := b.path("sys/fs/cgroup")
	if err := unix.Mount("cgroup", at, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=755"); err != nil {
		return err
	}
	for _, h := range b.Cgroups {
		if err := mount("cgroup", filepath.Join(at, h.Name), unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, h.Options); err != nil {
			return err
		}
		for _, controller := range strings.Split(h.Name, ",") {
			if controller != h.Name {
				if err := os.Symlink(h.Name, filepath.Join(at, controller)); err != nil {
					return err
				}
			}
		}
	}
	// Read-only, so that systemd mounts no hierarchy that the host does not have.
	return unix.Mount("", at, "", unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=755")
}

func (b Boot) layRun() error {
	if err := mount("tmpfs", b.path("run"), unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return err
	}
	if err := mount("tmpfs", b.path("tmp"), unix.MS_NOSUID|unix.MS_NODEV, "mode=1777"); err != nil {
		return err
	}
	for name, text := range runtimeFiles {
		if err := os.MkdirAll(filepath.Dir(b.path(name)), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(b.path(name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	units := b.path("run/systemd/system")
	if err := os.MkdirAll(units, 0o755); err != nil {
		return err
	}
	for _, unit := range masked {
		if err := os.Symlink("/dev/null", filepath.Join(units, unit)); err != nil {
			return err
		}
	}
	return os.MkdirAll(b.path(private), 0o755)
}

// shadowed are the kernel settings that are the host's own: the machine gets a copy to write to. Those below
// /proc/sys/net belong to its network namespace and are real.
var shadowed = []string{"vm", "fs", "kernel"}

// realSettings are per namespace, or give a new value at each reading.
var realSettings = []string{"kernel/hostname", "kernel/domainname", "kernel/random"}

func (b Boot) shadowSettings() error {
	copies := b.path(private + "/sys")
	for _, dir := range shadowed {
		if err := copySettings(b.path("proc/sys/"+dir), filepath.Join(copies, dir)); err != nil {
			return err
		}
	}
	for _, name := range realSettings {
		if _, err := os.Stat(filepath.Join(copies, name)); err != nil {
			continue
		}
		if err := bind(b.path("proc/sys/"+name), filepath.Join(copies, name)); err != nil {
			return err
		}
	}
	for _, dir := range shadowed {
		if err := unix.Mount(filepath.Join(copies, dir), b.path("proc/sys/"+dir), "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return err
		}
	}
	return nil
}

func copySettings(from, to string) error {
	return filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return nil // gone, or not for us
		}
		relative, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, relative)
		if entry.IsDir() {
			if entry.Name() == "binfmt_misc" {
				return fs.SkipDir
			}
			return os.MkdirAll(target, 0o755)
		}
		info, err := entry.Info()
		if err != nil || info.Mode()&0o400 == 0 {
			return nil // write-only, such as vm/compact_memory
		}
		value, err := os.ReadFile(path)
		if err != nil {
			return nil
		}
		return os.WriteFile(target, value, 0o644)
	})
}

func (b Boot) layDev() error {
	if err := unix.Mount("dev", b.path("dev"), "tmpfs", unix.MS_NOSUID, "mode=755"); err != nil {
		return err
	}
	for _, node := range []struct {
		name         string
		major, minor uint32
	}{
		{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}, {"kmsg", 1, 11}, {"fuse", 10, 229},
	} {
		path := b.path("dev/" + node.name)
		if err := unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(node.major, node.minor))); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if err := os.Chmod(path, 0o666); err != nil {
			return err
		}
	}
	for _, m := range []struct{ kind, at, options string }{
		{"devpts", "pts", "newinstance,ptmxmode=0666,mode=620,gid=5"}, {"tmpfs", "shm", "mode=1777"}, {"mqueue", "mqueue", ""},
	} {
		if err := mount(m.kind, b.path("dev/"+m.at), unix.MS_NOSUID, m.options); err != nil {
			return err
		}
	}
	for name, target := range map[string]string{
		"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, b.path("dev/"+name)); err != nil {
			return err
		}
	}
	if err := os.WriteFile(b.path("dev/console"), nil, 0o600); err != nil {
		return err
	}
	return bind(b.Console, b.path("dev/console"))
}

// builtin are modules that a kickstart or kubeadm asks for by name, and that the host's kernel has; there may be no
// module files for it in the machine, or none at all.
var builtin = map[string]string{
	"kernel/net/bridge/br_netfilter.ko":        "/proc/sys/net/bridge",
	"kernel/fs/overlayfs/overlay.ko":           "",
	"kernel/net/netfilter/nf_conntrack.ko":     "/proc/sys/net/netfilter",
	"kernel/net/ipv4/netfilter/ip_tables.ko":   "",
	"kernel/drivers/net/vxlan/vxlan.ko":        "",
	"kernel/net/bridge/bridge.ko":              "",
	"kernel/drivers/net/veth.ko":               "",
	"kernel/net/netfilter/ipvs/ip_vs.ko":       "/proc/net/ip_vs",
	"kernel/net/netfilter/ipvs/ip_vs_rr.ko":    "/proc/net/ip_vs",
	"kernel/net/netfilter/ipvs/ip_vs_wrr.ko":   "/proc/net/ip_vs",
	"kernel/net/netfilter/ipvs/ip_vs_sh.ko":    "/proc/net/ip_vs",
	"kernel/net/netfilter/nf_conntrack_net.ko": "",
}

func (b Boot) layModules() error {
	at := b.path("usr/lib/modules")
	if err := mount("tmpfs", at, unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return err
	}
	dir := filepath.Join(at, release())
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	list := ""
	for name, needs := range builtin {
		if needs == "" || exists(needs) {
			list += name + "\n"
		}
	}
	for name, text := range map[string]string{"modules.order": "", "modules.builtin": list, "modules.builtin.modinfo": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func release() string {
	var name unix.Utsname
	if unix.Uname(&name) != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(name.Release[:])
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// wrapRunc lays the wrapper over runc, if the host needs it and the machine has one.
func (b Boot) wrapRunc() error {
	if has, err := hasCapability(unix.CAP_SYS_RESOURCE); err != nil || has {
		return err
	}
	for _, name := range []string{"usr/sbin/runc", "usr/bin/runc"} {
		if !exists(b.path(name)) {
			continue
		}
		kept, wrapper := b.path(private+"/runc"), b.path(private+"/runc-wrapper")
		if err := os.WriteFile(kept, nil, 0o755); err != nil {
			return err
		}
		if err := bind(b.path(name), kept); err != nil {
			return err
		}
		if err := os.WriteFile(wrapper, []byte(runcWrapper), 0o755); err != nil {
			return err
		}
		return bind(wrapper, b.path(name))
	}
	return nil
}

// enter makes the root the only one there is.
func (b Boot) enter() error {
	if err := os.Chdir(b.Root); err != nil {
		return err
	}
	// pivot_root(".", "."): the old root is stacked upon the new one, and taken off from there (pivot_root(2)).
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return err
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	return unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "")
}

// dropCapabilities: nothing in a machine sets the host's clock or loads modules into its kernel.
func dropCapabilities() error {
	for _, c := range []uintptr{unix.CAP_SYS_TIME, unix.CAP_SYS_MODULE} {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return err
		}
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return err
	}
	data[0].Inheritable, data[1].Inheritable = 0, 0
	return unix.Capset(&header, &data[0])
}

func hasCapability(c int) (bool, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false, err
	}
	return data[c/32].Effective&(1<<(c%32)) != 0, nil
}
