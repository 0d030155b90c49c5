package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/internal/testenv"
	"rackstrap/lifecycle"
	"rackstrap/operator"
)

// installer plays Anaconda in the clients' namespace: real curl, real TLS, the kickstart's own scripts in a chroot. Only
// the programs that would need a CentOS around them are stand-ins.
type installer struct {
	t         *testing.T
	n         network
	config    string
	root      string
	kickstart string
}

// newInstaller gives the clients' namespace the reserved address of a machine of stormConfig, and fetches its kickstart
// as dracut does.
func newInstaller(t *testing.T, n network, config string, machine int) *installer {
	t.Helper()
	testenv.NeedTool(t, "curl", "unshare", "chroot", "sha256sum")
	n.bootAs(t, machine)
	i := &installer{t: t, n: n, config: config, root: t.TempDir()}
	for _, dir := range []string{"usr", "local", "tmp", "dev", "proc", "root", "stand-ins", "etc/yum.repos.d", "etc/sysconfig/network-scripts", "lib/modules/3.10.0", "mnt/sysimage/root"} {
		require.NoError(t, os.MkdirAll(filepath.Join(i.root, dir), 0o755))
	}
	for _, link := range []string{"bin", "sbin", "lib64"} {
		require.NoError(t, os.Symlink("usr/"+link, filepath.Join(i.root, link)))
	}
	libraries, err := filepath.Glob("/usr/lib/*-linux-gnu")
	require.NoError(t, err)
	for _, l := range libraries {
		require.NoError(t, os.Symlink(".."+l, filepath.Join(i.root, "lib", filepath.Base(l))))
	}
	i.write("etc/fstab", "/dev/mapper/centos-root / xfs defaults 0 0\n", 0o644)
	i.write("etc/sysconfig/network-scripts/ifcfg-eth0", fmt.Sprintf("DEVICE=eth0\nBOOTPROTO=static\nIPADDR=10.20.1.%d\n", machine+1), 0o644)
	i.write("dev/null", "", 0o644)
	i.write("disks", "sda 500000000000 disk 0 0\n", 0o644)
	i.write("missing", "none", 0o644)
	for name, text := range map[string]string{
		"yum":       ":",
		"rpm":       `[ "$2" != "$(cat /missing)" ] || { echo "package $2 is not installed"; exit 1; }`,
		"systemctl": ":",
		"lsblk":     "cat /disks",
		"udevadm":   ":",
		"tmux":      "echo 0",
	} {
		i.write("stand-ins/"+name, "#!/bin/bash\n"+text+"\n", 0o755)
	}
	mac := strings.ReplaceAll(stormMAC(machine).String(), ":", "-")
	kickstart, err := kickstartOf(i.inside("curl", "-sSf", "http://10.20.0.1:8080/boot/"+mac+"/ipxe"))
	require.NoError(t, err)
	i.kickstart = i.inside("curl", "-sSf", "-H", "X-RHN-Provisioning-MAC-0: eth0 "+stormMAC(machine).String(), kickstart)
	i.inside("curl", "-sSf", "-o", os.DevNull, "http://10.20.0.1:8080/media/tree/.treeinfo")
	return i
}

// bootAs gives the clients' namespace the hardware address of a machine of stormConfig, has its firmware ask by DHCP, and
// then gives it the machine's address.
func (n network) bootAs(t *testing.T, machine int) {
	t.Helper()
	n.become(t, stormMAC(machine).String(), "10.20.0.2") // udhcpc needs none, the kernel drops what comes for no address
	firmwareAsks(t, n.clients, "cli0")
	n.become(t, stormMAC(machine).String(), fmt.Sprintf("10.20.1.%d", machine+1))
}

// become gives the clients' namespace these addresses and no other. The appliance's kernel forgets whose they were.
func (n network) become(t *testing.T, mac, ip string) {
	t.Helper()
	for _, args := range []string{n.clients + " addr flush dev cli0", n.clients + " link set cli0 address " + mac,
		n.clients + " addr add " + ip + "/16 dev cli0", n.servers + " neigh flush dev srv0"} {
		run(t, "ip", append([]string{"-n"}, strings.Fields(args)...)...)
	}
}

func (i *installer) write(name, text string, mode os.FileMode) {
	i.t.Helper()
	require.NoError(i.t, os.WriteFile(filepath.Join(i.root, name), []byte(text), mode))
}

func (i *installer) inside(args ...string) string {
	i.t.Helper()
	ctx, cancel := context.WithTimeout(i.t.Context(), 2*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", i.n.clients}, args...)...).CombinedOutput()
	require.NoError(i.t, err, "%v: %s", args, out)
	return string(out)
}

// section is the body of a script of the kickstart.
func (i *installer) section(name string) string {
	i.t.Helper()
	_, after, ok := strings.Cut(i.kickstart, "\n"+name+" --interpreter=/bin/bash")
	require.True(i.t, ok, name)
	_, after, _ = strings.Cut(after, "\n")
	body, _, ok := strings.Cut(after, "\n%end\n")
	require.True(i.t, ok, name)
	return body + "\n"
}

// run runs a section in the chroot, and puts its output where Anaconda does.
func (i *installer) run(name, log string) (status int) {
	i.t.Helper()
	i.write("script", i.section(name), 0o600)
	ctx, cancel := context.WithTimeout(i.t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "ip", "netns", "exec", i.n.clients, "unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation=private", "bash", "-euc", `
mount --bind /usr "$1/usr"
mount -o remount,bind,ro "$1/usr"
mount --bind "$1/local" "$1/usr/local"
mount --bind /dev/null "$1/dev/null"
mount -t proc none "$1/proc"
exec chroot "$1" /usr/bin/env -i PATH=/stand-ins:/usr/bin:/usr/sbin HOME=/root /bin/bash /script`, "chroot", i.root)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		i.t.Fatal(err)
	}
	i.write(log, string(out), 0o600)
	i.t.Cleanup(func() {
		if i.t.Failed() {
			i.t.Logf("%s ended with status %d:\n%s", name, cmd.ProcessState.ExitCode(), out)
		}
	})
	return cmd.ProcessState.ExitCode()
}

func (i *installer) read(name string) string {
	i.t.Helper()
	text, err := os.ReadFile(filepath.Join(i.root, name))
	require.NoError(i.t, err)
	return string(text)
}

// status is a machine as `rackstrap status -o json` shows it.
func (i *installer) status(machine string) (found lifecycle.Status) {
	i.t.Helper()
	var st operator.Status
	require.NoError(i.t, json.Unmarshal([]byte(rackstrap(i.t, "--config", i.config, "status", "-o", "json")), &st))
	for _, m := range st.Machines {
		if m.Name == machine {
			return m
		}
	}
	i.t.Fatalf("%s is not there", machine)
	return found
}

// A whole installation as the appliance sees it: the kickstart's own scripts report their steps, fetch the agent, and
// say that they are done; the installer's log and the packages come by syslog.
func TestInstallationIsSeen(t *testing.T) {
	testenv.NeedTool(t, "logger")
	n := newNetwork(t, "e2einst")
	config := stormConfig(t, 2)
	n.serve(t, config)
	i := newInstaller(t, n, config, 0)

	require.Zero(t, i.run("%pre", "tmp/rackstrap-pre.log"), "see its log")
	require.Contains(t, i.read("tmp/rackstrap-storage.ks"), "ignoredisk --only-use=sda\n")
	require.Eventually(t, func() bool { return i.status("m0").Progress != nil }, 30*time.Second, 50*time.Millisecond)
	require.Equal(t, "pre 100%: the disk is sda", i.status("m0").Progress.String())

	i.inside("logger", "--tcp", "--rfc3164", "--server", "10.20.0.1", "--port", "5514", "--tag", "packaging", "--", "Installing bash (120/266)")
	require.Eventually(t, func() bool { return i.status("m0").Progress.String() == "packages 45%: bash (120/266)" }, 30*time.Second, 50*time.Millisecond)
	require.Contains(t, rackstrap(t, "--config", config, "status"), "packages 45%: bash (120/266)")
	data := filepath.Join(filepath.Dir(config), "data")
	log, err := os.ReadFile(filepath.Join(data, "logs", "m0", "installer.log"))
	require.NoError(t, err)
	require.Contains(t, string(log), "packaging: Installing bash (120/266)\n")

	require.Zero(t, i.run("%post", "root/rackstrap-post.log"), "see its log")
	require.Equal(t, lifecycle.Installed, i.status("m0").State, i.read("root/rackstrap-post.log"))
	want, err := os.ReadFile(binary)
	require.NoError(t, err)
	require.True(t, string(want) == i.read("local/bin/rackstrap"), "the agent is the appliance's own program")
	require.Contains(t, i.read("etc/rackstrap/agent.json"), `"server": "https://10.20.0.1:8443"`)
	events := rackstrap(t, "--config", config, "events", "m0")
	for _, text := range []string{"packages 45%: bash", "agent linux-amd64 sent to 10.20.1.1", "post 100%: finished", "installing -> installed"} {
		require.Contains(t, events, text)
	}
	require.Greater(t, strings.Count(events, "  post "), 3, "the others too, but those that the next one overtook: these steps take no time")

	i.inside("logger", "--tcp", "--rfc3164", "--server", "10.20.0.1", "--port", "5514", "--", "too late")
	require.Eventually(t, func() bool {
		return strings.Contains(i.inside("curl", "-sSf", "http://10.20.0.1:8080/metrics"), `rackstrap_syslog_refused_total{reason="not-installing"} 1`)
	}, 30*time.Second, 50*time.Millisecond)
}

// A %post that fails shows the line where it did, and after the configured attempts the machine is left alone.
func TestFailureIsSeen(t *testing.T) {
	n := newNetwork(t, "e2efail")
	config := stormConfig(t, 2)
	n.serve(t, config)
	out, err := exec.Command("ip", "netns", "exec", n.clients, "curl", "-sS", "-o", os.DevNull, "-w", "%{http_code}",
		"http://10.20.0.1:8080/ks/52-54-00-01-00-01/TICKET").CombinedOutput()
	require.NoError(t, err)
	require.Equal(t, "403", string(out), "not from this address")

	i := newInstaller(t, n, config, 1)
	i.write("missing", "kubeadm-1.28.2", 0o644)
	require.NotZero(t, i.run("%post", "tmp/ks-script.log"))
	status := rackstrap(t, "--config", config, "status")
	const line = `%post failed at: rpm --query "$package" (status 1): package kubeadm-1.28.2 is not installed`
	require.Contains(t, status, "m1 failed, installation 2 of 3 follows: "+line)
	events := rackstrap(t, "--config", config, "events", "m1")
	require.Contains(t, events, "ALARM installing: "+line)
	require.Contains(t, events, "end of the log of post: ")
	require.Contains(t, events, "ALARM kickstart of m1 asked for by 10.20.0.2")
	require.NotContains(t, events, "Bearer")
	text := i.kickstart[strings.Index(i.kickstart, "Bearer ")+7:]
	secret := text[:64]
	require.Regexp(t, "^[0-9a-f]{64}$", secret)
	for _, shown := range []string{status, events, i.read("root/rackstrap-post.log")} {
		require.NotContains(t, shown, secret)
	}
}
