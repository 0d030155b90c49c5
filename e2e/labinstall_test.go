package e2e

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/internal/testenv"
	"rackstrap/inventory"
	"rackstrap/lab"
	"rackstrap/lifecycle"
)

// directoryMachine is a machine without firmware and disk: a network namespace on the lab's bridge, and an overlay
// on the lab's system as its root. The lab's installer executes the kickstart there as it does on a disk, so
// what goes wrong in an installation can be tried in seconds.
type directoryMachine struct {
	*virtualRack
	name, mac, netns, root string
	args                   string // the installer's kernel arguments
	system                 lab.System
}

// run runs a tool to its end.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	require.NoError(t, err, "%s %s: %s", name, strings.Join(args, " "), out)
	return string(out)
}

// directory makes the i-th machine of the reference configuration such a one.
func (l *virtualRack) directory(name string, i int) *directoryMachine {
	t := l.t
	t.Helper()
	system, err := lab.BuildSystem(t.Context(), "", slog.New(slog.NewTextHandler(t.Output(), nil)))
	require.NoError(t, err)
	m := &directoryMachine{virtualRack: l, name: name, mac: fmt.Sprintf("52:54:00:00:00:8%d", i), netns: l.name + "-" + name}
	run(t, "ip", "netns", "add", m.netns)
	t.Cleanup(func() { run(t, "ip", "netns", "del", m.netns) })
	port := fmt.Sprintf("port%d", i)
	run(t, "ip", "-n", m.netns, "link", "add", "eth0", "address", m.mac, "type", "veth", "peer", "name", port, "netns", l.name)
	run(t, "ip", "-n", l.name, "link", "set", port, "master", "eth1", "up")
	run(t, "ip", "-n", m.netns, "link", "set", "lo", "up")
	m.system = system
	m.boot()
	return m
}

// blank gives the machine a root that holds the lab's system and nothing else, as a disk that is erased.
func (m *directoryMachine) blank() {
	t := m.t
	t.Helper()
	// An overlay cannot lie on an overlay, which a test's own directory may be on: memory it is.
	memory := t.TempDir()
	run(t, "mount", "-t", "tmpfs", "-o", "size=4g", "tmpfs", memory)
	t.Cleanup(func() { run(t, "umount", "--lazy", memory) })
	root := filepath.Join(memory, "root")
	m.root = root
	for _, dir := range []string{"root", "upper", "work"} {
		require.NoError(t, os.Mkdir(filepath.Join(memory, dir), 0o755))
	}
	run(t, "mount", "-t", "overlay", "-o", "lowerdir="+m.system.Tree+",upperdir="+memory+"/upper,workdir="+memory+"/work", "overlay", root)
	t.Cleanup(func() { run(t, "umount", "--lazy", root) })
}

var kernelLine = regexp.MustCompile(`(?m)^kernel \S+ (.*?)( \|\| .*)?$`)

// firmwareAsks asks by DHCP as iPXE does on BIOS, without taking the address.
func firmwareAsks(t *testing.T, netns, card string) {
	t.Helper()
	run(t, "ip", "netns", "exec", netns, "udhcpc", "-i", card, "-q", "-n", "-f", "-t", "10", "-T", "2", "-s", "/bin/true",
		"-V", "PXEClient:Arch:00000:UNDI:002001", "-x", "0x5d:0000", "-x", "0x4d:"+fmt.Sprintf("%x", "iPXE"))
}

// kickstartOf is the URL of the kickstart that a boot script names.
func kickstartOf(script string) (string, error) {
	found := kickstartArg.FindStringSubmatch(script)
	if found == nil {
		return "", fmt.Errorf("no kickstart in the boot script:\n%s", script)
	}
	return found[1], nil
}

var kickstartArg = regexp.MustCompile(`inst\.ks=(\S+)`)

// boot does what the network boot of a machine leaves behind at the appliance: an address, and the script with the
// arguments.
func (m *directoryMachine) boot() {
	t := m.t
	t.Helper()
	run(t, "ip", "-n", m.netns, "link", "set", "eth0", "up")
	firmwareAsks(t, m.netns, "eth0")
	hyphened := strings.ReplaceAll(m.mac, ":", "-")
	run(t, "ip", "-n", m.netns, "addr", "replace", "10.10.10.8"+m.mac[len(m.mac)-1:]+"/24", "dev", "eth0")
	script := run(t, "ip", "netns", "exec", m.netns, "curl", "-sSf", "http://10.10.10.1:8080/boot/"+hyphened+"/ipxe")
	run(t, "ip", "-n", m.netns, "addr", "flush", "dev", "eth0")
	m.args = ""
	if found := kernelLine.FindStringSubmatch(script); found != nil {
		m.args = found[1]
		m.blank()
	}
}

// installer prepares the installer's process.
func (m *directoryMachine) installer(ctx context.Context) *exec.Cmd {
	return exec.CommandContext(ctx, "ip", "netns", "exec", m.netns, binary, "lab-installer", "--root", m.root, "--interface", "eth0",
		"--mac", m.mac, "--serial", m.name, "--kernel-args", m.args)
}

// install installs, and returns what the installer said.
func (m *directoryMachine) install() (string, error) {
	ctx, cancel := context.WithTimeout(m.t.Context(), 5*time.Minute)
	defer cancel()
	out, err := m.installer(ctx).CombinedOutput()
	return string(out), err
}

func (m *directoryMachine) read(name string) string {
	m.t.Helper()
	text, err := os.ReadFile(filepath.Join(m.root, name))
	require.NoError(m.t, err)
	return string(text)
}

func (m *directoryMachine) chroot(args ...string) string {
	m.t.Helper()
	return run(m.t, "chroot", append([]string{m.root}, args...)...)
}

// machine is what the operator is shown of a machine.
func (l *virtualRack) machine(name string) lifecycle.Status {
	for _, m := range l.status().Machines {
		if m.Name == name {
			return m
		}
	}
	return lifecycle.Status{}
}

func needDirectories(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.NeedTool(t, "mmdebstrap", "createrepo_c", "mksquashfs", "udhcpc", "curl", "ip")
}

// The rendered kickstart, unchanged, makes of the lab's system what the plan prescribes.
func TestInstallIntoADirectory(t *testing.T) {
	needDirectories(t)
	l, _ := labUp(t, "e2edir", "--off")
	m := l.directory("knode1", 1)
	out, err := m.install()
	t.Log(out)
	require.NoError(t, err)
	require.Contains(t, out, "rackstrap-lab: installation finished: reboot")
	require.Equal(t, "installed", string(l.machine("knode1").State))
	require.Contains(t, l.do("events", "knode1"), "packages 100%", "the installer's log")

	// What a real yum refuses is refused.
	yum := func(args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		out, err := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", m.netns, "chroot", m.root, "yum", "--assumeyes"}, args...)...).CombinedOutput()
		return string(out), err
	}
	out, err = yum("install", "emacs")
	require.Error(t, err)
	require.Contains(t, out, "No package emacs available.\nError: Nothing to do")
	out, err = yum("install", "kubelet-1.28.2", "emacs")
	require.NoError(t, err, "it is content with a part: %s", out)
	m.chroot("rpm", "--erase", "--nodeps", "--force-debian", "socat", "kubectl")
	out, err = yum("install", "kubectl")
	require.Error(t, err, "excluded: %s", out)
	out, err = yum("--disableexcludes=kubernetes", "install", "kubectl-1.28.3")
	require.Error(t, err, "another version than there is: %s", out)
	out, err = yum("--disableexcludes=kubernetes", "install", "kubectl-1.28.2")
	require.NoError(t, err, out)
	m.chroot("sed", "-i", "s/^gpgcheck=0/gpgcheck=1/", "/etc/yum.repos.d/rackstrap.repo")
	out, err = yum("install", "socat")
	require.Error(t, err)
	require.Contains(t, out, ".lab.el7.x86_64 is not signed")

	m.boot()
	require.Empty(t, m.args, "an installed machine is not sent to the installer")

	require.Equal(t, "knode1\n", m.read("etc/hostname"))
	require.Contains(t, m.read("etc/hosts"), "10.10.10.80 kmaster")
	require.Contains(t, m.read("etc/systemd/network/10-kickstart.network"), "Address=10.10.10.81/24\n")
	require.Contains(t, m.read("etc/systemd/network/10-kickstart.network"), "\nGateway=10.10.10.1\n")
	require.Contains(t, m.read("etc/containerd/config.toml"), "SystemdCgroup = true")
	require.Contains(t, m.read("etc/modules-load.d/k8s.conf"), "nf_conntrack\n")
	require.Contains(t, m.read("etc/chrony.conf"), "server 10.10.10.1 iburst")
	require.Empty(t, m.read("etc/yum.repos.d/CentOS-Base.repo"))
	require.Equal(t, "SELINUX=permissive", strings.SplitN(m.read("etc/selinux/config"), "\n", 2)[0])
	require.NotContains(t, m.read("etc/fstab"), "swap")
	require.Contains(t, m.chroot("rpm", "--query", "kubelet", "kubeadm", "kubectl", "containerd.io", "docker-ce", "chrony", "conntrack-tools"),
		"kubelet-1.28.2-0.x86_64\nkubeadm-1.28.2-0.x86_64\nkubectl-1.28.2-0.x86_64\ncontainerd.io-1.6.33-")
	require.Contains(t, m.chroot("rpm", "--query", "ca-certificates"), "-2.lab.el7", "yum update ca-certificates")
	for _, unit := range []string{"chronyd", "sshd", "containerd", "docker", "kubelet", "rackstrap-agent", "NetworkManager-wait-online"} {
		require.Equal(t, "enabled\n", m.chroot("systemctl", "is-enabled", unit), unit)
	}
	require.Contains(t, m.chroot("kubeadm", "version", "--output=short"), "v1.28.2")
}

// edited is the reference configuration with some of its lines replaced.
func edited(t *testing.T, lines map[string]string) string {
	t.Helper()
	text := string(inventory.Reference())
	for old, replacement := range lines {
		require.Contains(t, text, old)
		text = strings.Replace(text, old, replacement, 1)
	}
	path := filepath.Join(t.TempDir(), "rackstrap.yaml")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// Done-when 4 of the installation: what loses power during %post installs again by itself.
func TestPowerLossDuringPost(t *testing.T) {
	needDirectories(t)
	l, _ := labUp(t, "e2epower", "--off")
	m := l.directory("knode1", 1)
	ctx, cut := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cut()
	installer := m.installer(ctx)
	installer.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	require.NoError(t, installer.Start())
	log := filepath.Join(m.root, "root", "rackstrap-post.log")
	require.Eventually(t, func() bool {
		text, _ := os.ReadFile(log)
		return strings.Contains(string(text), "rackstrap: containerd")
	}, 4*time.Minute, 50*time.Millisecond)
	require.NoError(t, syscall.Kill(-installer.Process.Pid, syscall.SIGKILL)) // the group that we started
	require.Error(t, installer.Wait())
	require.Equal(t, "installing", string(l.machine("knode1").State))

	m.boot()
	require.NotEmpty(t, m.args, "it is installed again")
	out, err := m.install()
	require.NoError(t, err, out)
	after := l.machine("knode1")
	require.Equal(t, "installed", string(after.State))
	require.Equal(t, 2, after.Record.Tries)
}

// fault is what goes wrong with the installation of one machine, and what `status` shows of it.
type fault struct{ keys, reason string }

// withFaults is the reference configuration with other machines, one for each fault, and two installations for each.
func withFaults(t *testing.T, faults map[string]fault) (config string, names []string) {
	t.Helper()
	for name := range faults {
		names = append(names, name)
	}
	slices.Sort(names)
	list := ""
	for i, name := range names {
		role := "worker"
		if i == 0 {
			role = "control-plane"
		}
		list += fmt.Sprintf("\n  - {name: %s, mac: \"52:54:00:00:00:8%d\", ip: 10.10.10.8%d, role: %s, %s}", name, i, i, role, faults[name].keys)
	}
	text := string(inventory.Reference())
	head, _, found := strings.Cut(text, "\nmachines:")
	require.True(t, found)
	head = strings.Replace(head, "  # attempts: 3 ", "  attempts: 2 ", 1)
	path := filepath.Join(t.TempDir(), "rackstrap.yaml")
	require.NoError(t, os.WriteFile(path, []byte(head+"\nmachines:"+list+"\n"), 0o600))
	return path, names
}

// Whatever stops an installation is seen within seconds, with its cause; the machine reboots by itself as long as it has
// tries, and then stays in its installer, held, until `reinstall` makes it reboot.
func TestInstallationsThatStop(t *testing.T) {
	needDirectories(t)
	faults := map[string]fault{
		"gone":     {`disk: vdz`, "%pre failed: there is no disk vdz"},
		"package":  {`kernel_args: [rackstrap.fault=package]`, "Anaconda stopped: CmdlineError: Missing package: rackstrap-fault"},
		"post":     {`post_scripts: ["#!/bin/bash\nset -e\nls /nowhere\n"]`, "cannot access '/nowhere'"},
		"pre":      {`disk: ">1T"`, "%pre failed: no disk fits >1T"},
		"storage":  {`kernel_args: [rackstrap.fault=storage]`, "Anaconda stopped: storage configuration failed: Unable to allocate requested partition scheme."},
		"storage9": {`profile: rocky-9, kernel_args: [rackstrap.fault=storage]`, "Unable to allocate requested partition scheme."},
		"package9": {`profile: rocky-9, kernel_args: [rackstrap.fault=package]`, `Anaconda stopped: DNF marking error: MarkingErrors("rackstrap-fault")`},
		"broken":   {`kernel_args: [rackstrap.fault=exception]`, "Anaconda stopped: RuntimeError: rackstrap.fault=exception"},
	}
	config, names := withFaults(t, faults)
	l, _ := labUp(t, "e2estop", "--config", config, "--off")
	t.Run("machines", func(t *testing.T) {
		for i, name := range names {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				own := *l
				own.t = t
				own.directory(name, i).stopsTwice(faults[name].reason)
			})
		}
	})
}

func (m *directoryMachine) stopsTwice(reason string) {
	t := m.t
	for try := 1; try <= 2; try++ {
		require.NotEmpty(t, m.args, "attempt %d", try)
		said := &testenv.Buffer{}
		installer := m.installer(t.Context())
		installer.Stdout, installer.Stderr = said, said
		installer.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		require.NoError(t, installer.Start())
		ended := make(chan error, 1)
		go func() { ended <- installer.Wait() }()
		t.Cleanup(func() {
			syscall.Kill(-installer.Process.Pid, syscall.SIGKILL) // the group that we started
			if t.Failed() {
				t.Logf("attempt %d:\n%s", try, said.String())
			}
		})
		var stopped time.Time
		require.Eventually(t, func() bool {
			if stopped.IsZero() && strings.Contains(said.String(), "rackstrap-lab: FAILED") {
				stopped = time.Now()
			}
			now := m.machine(m.name)
			return now.State == lifecycle.Failed && now.Record.Tries == try
		}, 8*time.Minute, 100*time.Millisecond)
		if !stopped.IsZero() {
			require.Less(t, time.Since(stopped), 20*time.Second)
		}
		require.Contains(t, m.machine(m.name).Record.Failure.Reason, reason)
		if try == 2 {
			require.Eventually(t, func() bool { return strings.Contains(m.do("events", m.name), "its installer stays") }, time.Minute, time.Second)
			require.Equal(t, lifecycle.ActionHold, m.machine(m.name).Action)
			require.Empty(t, ended, "it stands there")
			m.do("reinstall", m.name)
		}
		select {
		case err := <-ended:
			require.Error(t, err)
		case <-time.After(time.Minute):
			require.Fail(t, "the machine has not rebooted")
		}
		m.boot()
	}
	require.NotEmpty(t, m.args, "armed anew")
	require.Contains(t, m.do("events", m.name), "it reboots by itself, for the next installation")
}

// The same on machines with firmware and disk, of both kinds: they boot from the network again, and install again.
func TestStopsOnDisks(t *testing.T) {
	needDirectories(t)
	faults := map[string]fault{
		"gone":    {`disk: vdz`, `vdz`},
		"storage": {`kernel_args: [rackstrap.fault=storage]`, "Anaconda stopped: storage configuration failed: Unable to allocate requested partition scheme."},
	}
	config, names := withFaults(t, faults)
	l, _ := labUp(t, "e2estopdisk", "--config", config, "--firmware", "bios,uefi")
	for _, name := range names {
		require.Eventually(t, func() bool {
			return l.machine(name).State == lifecycle.Failed && l.machine(name).Record.Tries == 2
		}, 15*time.Minute, time.Second, name)
		require.Contains(t, l.machine(name).Record.Failure.Reason, faults[name].reason)
		require.Equal(t, lifecycle.ActionHold, l.machine(name).Action)
		require.Eventually(t, func() bool { return strings.Contains(l.do("events", name), "its installer stays") }, time.Minute, time.Second)
		require.Contains(t, l.do("events", name), "it reboots by itself, for the next installation")
	}
	l.do("reinstall", "gone")
	require.Eventually(t, func() bool { return l.machine("gone").Record.Tries == 1 }, 8*time.Minute, time.Second, "it has rebooted, and installs")
}

// Done-when 1 of the installation: three machines, each with a firmware of its own, are installed onto their disks,
// boot from the network again and from there their disks, and are as the plan prescribes.
func TestInstallOntoDisks(t *testing.T) {
	needDirectories(t)
	testenv.NeedTool(t, "ssh", "ssh-keygen")
	l, out := labUp(t, "e2einstall", "--firmware", "bios,uefi,uefi-http", "--wait", "25m")
	t.Log(out)
	check, err := os.ReadFile("../scripts/check-installed.sh")
	require.NoError(t, err)
	addresses := map[string]string{"kmaster": "10.10.10.80", "knode1": "10.10.10.81", "knode2": "10.10.10.82"}
	for name := range addresses {
		require.Eventually(t, func() bool { return l.machine(name).State != "installed" }, 5*time.Minute, 2*time.Second, "the agent of %s calls home", name)
		events := l.do("events", name)
		require.Contains(t, events, "installing -> installed (reported by its %post)")
		require.Contains(t, events, `iPXE script "local-disk"`, "it booted from the network, and was sent to its disk")
		require.Contains(t, events, "installed -> firstboot")
		require.Contains(t, events, "packages ", "the installer's log, some datagrams of which may be lost")
		want := "boot order: UEFI "
		if name == "kmaster" {
			want = "boot order: this machine has BIOS"
		}
		require.Contains(t, events, want)
	}
	// The one that is installed again comes last. What is not looked at any more is switched off: emulated machines take
	// the host's processors from one another.
	for _, name := range []string{"kmaster", "knode2", "knode1"} {
		ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, binary, "lab", "--name", l.name, "--state", l.state, "ssh", name, "bash", "-s", name, addresses[name])
		cmd.Stdin = bytes.NewReader(check)
		out, err := cmd.CombinedOutput()
		t.Logf("%s:\n%s", name, out)
		require.NoError(t, err)
		if name != "kmaster" {
			requireNetworkFirst(t, l, name, "CentOS")
		}
		if name != "knode1" {
			l.lab("power", "off", name)
		}
	}
	reinstallByUEFI(t, l, "knode1")
}

// ssh runs a command on an installed machine.
func (l *virtualRack) ssh(name string, command ...string) string {
	l.t.Helper()
	return l.lab(append([]string{"ssh", name}, command...)...)
}

var (
	bootOrder = regexp.MustCompile(`(?m)^BootOrder: ([0-9A-F]{4})`)
	bootEntry = regexp.MustCompile(`(?m)^Boot([0-9A-F]{4})\* (.*?)\s*$`)
)

// requireNetworkFirst reads a machine's boot entries by its own efibootmgr: the first one is the network, and one is of
// the installed system, under that label.
func requireNetworkFirst(t *testing.T, l *virtualRack, name, label string) {
	t.Helper()
	// Once the unit has run that keeps it so: SSH may be up before.
	l.ssh(name, "timeout 180 systemctl is-system-running --wait || true")
	listed := l.ssh(name, "efibootmgr")
	first := bootOrder.FindStringSubmatch(listed)
	require.NotNil(t, first, listed)
	labels := map[string]string{}
	var ours []string
	for _, e := range bootEntry.FindAllStringSubmatch(listed, -1) {
		labels[e[1]] = e[2]
		if strings.HasPrefix(e[2], "CentOS") {
			ours = append(ours, e[2])
		}
	}
	require.Regexp(t, `^UEFI (PXE|HTTP)v4 `, labels[first[1]], listed)
	require.Equal(t, []string{label}, ours, listed)
}

// reinstallByUEFI has a machine boot its disk by EFI/BOOT for once, after which shim's fallback has put its disk first, and installs it
// anew without anybody at its firmware.
func reinstallByUEFI(t *testing.T, l *virtualRack, name string) {
	t.Helper()
	boot := func() string { return l.ssh(name, "cat", "/proc/sys/kernel/random/boot_id") }
	before := boot()
	for _, e := range bootEntry.FindAllStringSubmatch(l.ssh(name, "efibootmgr"), -1) {
		if e[2] == "UEFI QEMU QEMU HARDDISK" { // the firmware's own entry
			l.ssh(name, "efibootmgr", "--quiet", "--bootnext", e[1])
		}
	}
	l.lab("power", "reset", name)
	require.NotEqual(t, before, boot())
	requireNetworkFirst(t, l, name, "CentOS Linux")
	require.Contains(t, l.ssh(name, "journalctl", "--boot", "--unit", "rackstrap-boot-order", "--no-pager"), "the order was", "fallback had put the disk first")

	require.Contains(t, l.do("reinstall", name), name+" boots from the network: UEFI PXEv4 ")
	l.lab("power", "reset", name)
	require.Eventually(t, func() bool { return l.machine(name).State == "installing" }, 5*time.Minute, time.Second, "it boots from the network")
	require.Eventually(t, func() bool { return l.machine(name).State == "firstboot" || l.machine(name).State == "waiting" }, 12*time.Minute, 2*time.Second)
	requireNetworkFirst(t, l, name, "CentOS")
}
