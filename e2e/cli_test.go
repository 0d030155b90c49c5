package e2e

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func exitCode(t *testing.T, err error) int {
	t.Helper()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	require.NoError(t, err)
	return 0
}

func TestExitCodes(t *testing.T) {
	dir := t.TempDir()
	good, faulty := filepath.Join(dir, "good.yaml"), filepath.Join(dir, "faulty.yaml")
	rackstrap(t, "init", good)
	require.NoError(t, os.WriteFile(faulty, []byte("server: {interfase: eth1}\nmachines: [{name: Knode1, mac: x, ip: 10.0.0.1}]\n"), 0o644))
	for _, c := range []struct {
		args []string
		code int
		says []string
	}{
		{[]string{"version"}, 0, []string{"rackstrap"}},
		{[]string{"nonsense"}, 2, []string{"unknown command"}},
		{[]string{"status", "--nonsense"}, 2, []string{"unknown flag"}},
		{[]string{"approve", "52:54:00:00:00:99"}, 2, []string{"--as NAME"}},
		{[]string{"hold"}, 2, []string{"usage: rackstrap hold NAME"}},
		{[]string{"unhold"}, 2, []string{"usage: rackstrap unhold NAME"}},
		{[]string{"init", good}, 1, []string{"exist"}},
		{[]string{"--config", filepath.Join(dir, "none.yaml"), "check"}, 2, []string{"none.yaml"}},
		{[]string{"--config", faulty, "check"}, 2, []string{"interfase", "interface", "Knode1", "knode1", "subnet"}}, // all at once
		{[]string{"--config", good, "check"}, 2, []string{"CentOS-7-x86_64-Minimal-2009.iso: no such file"}},
		{[]string{"--config", good, "status"}, 1, []string{"no daemon answers"}},
	} {
		t.Run(strings.Join(c.args, " "), func(t *testing.T) {
			out, err := tryRackstrap(t, c.args...)
			require.Equal(t, c.code, exitCode(t, err), out)
			for _, text := range c.says {
				require.Contains(t, out, text)
			}
		})
	}
}

func TestRenderWithoutADaemon(t *testing.T) {
	config := stormConfig(t, 2)
	require.Contains(t, rackstrap(t, "--config", config, "check"), "good: 2 machines, 1 media")
	out := rackstrap(t, "--config", config, "render", "ipxe", "m1")
	require.Contains(t, out, "#!ipxe")
	require.Contains(t, out, "inst.ks=http://10.20.0.1:8080/ks/52-54-00-01-00-01")
	require.Contains(t, rackstrap(t, "--config", config, "render", "grub", "m1"), "linux /media/tree/images/pxeboot/vmlinuz")
	out, err := tryRackstrap(t, "--config", config, "render", "ipxe", "nobody")
	require.Equal(t, 1, exitCode(t, err), out)
}

// The daemon's whole desk: listeners announced, states changed, a reload that works and one that is refused,
// a second daemon that is turned away, an orderly end.
func TestOperator(t *testing.T) {
	n := newNetwork(t, "e2edesk")
	config := stormConfig(t, 3)
	d := n.serve(t, config)
	log, err := os.ReadFile(d.log)
	require.NoError(t, err)
	for _, listener := range []string{"dhcp ", "tftp ", "http ", "operator "} {
		require.Contains(t, string(log), listener)
	}
	do := func(args ...string) string { return rackstrap(t, append([]string{"--config", config}, args...)...) }

	require.Contains(t, do("status"), "m1 is armed")
	require.Contains(t, do("hold", "m1"), "held")
	require.Contains(t, do("status"), "held by the operator")
	require.Contains(t, do("render", "ipxe", "m1"), "booting the local disk")
	out, err := tryRackstrap(t, "--config", config, "reinstall", "m1")
	require.Equal(t, 1, exitCode(t, err), out)
	require.Contains(t, out, "`rackstrap unhold m1` ends it")
	require.Contains(t, do("unhold", "m1"), "held no more")
	out, err = tryRackstrap(t, "--config", config, "unhold", "m1")
	require.Equal(t, 1, exitCode(t, err), out)
	require.Contains(t, out, "m1 is not held by the operator: m1 is armed")
	require.Contains(t, do("reinstall", "m1"), "attempt 2")
	require.Contains(t, do("events", "m1"), "armed -> armed")
	out, err = tryRackstrap(t, "--config", config, "release", "m1")
	require.Equal(t, 1, exitCode(t, err), out)
	require.Contains(t, out, "has its MAC from the list")

	second := exec.Command("ip", "netns", "exec", n.servers, binary, "--config", config, "serve")
	text, err := second.CombinedOutput()
	require.Equal(t, 1, exitCode(t, err), string(text))

	old, err := os.ReadFile(config)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(config, append(old, "  - {name: m9, mac: \"52:54:00:01:00:09\", ip: 10.20.9.9, role: worker}\n"...), 0o600))
	inside := exec.Command("ip", "netns", "exec", n.servers, binary, "--config", config, "reload")
	text, err = inside.CombinedOutput()
	require.NoError(t, err, string(text))
	require.Contains(t, string(text), "m9")
	require.Contains(t, do("status"), "m9 is armed")

	faulty := strings.Replace(string(old), "10.20.1.1,", "10.99.1.1,", 1)
	require.NotEqual(t, string(old), faulty)
	require.NoError(t, os.WriteFile(config, []byte(faulty), 0o600))
	require.NoError(t, d.cmd.Process.Signal(syscall.SIGHUP))
	require.Eventually(t, func() bool {
		log, _ := os.ReadFile(d.log)
		return strings.Contains(string(log), "the old one stays")
	}, 5*time.Second, 20*time.Millisecond)
	require.NoError(t, os.WriteFile(config, old, 0o600))
	require.Contains(t, do("status"), "m9 is armed", "the refused file changed nothing")

	require.NoError(t, d.cmd.Process.Signal(syscall.SIGTERM))
	require.NoError(t, d.cmd.Wait(), "an orderly end is exit code 0")
}

// Done-when 5: every loader, by every protocol and client, the same.
func TestEveryLoaderByEveryClient(t *testing.T) {
	n := newNetwork(t, "e2eload")
	config := stormConfig(t, 1)
	n.serve(t, config)
	// The clients' address must be one that was given out: m0 has 10.20.1.1.
	out, err := exec.Command("ip", "-n", n.clients, "addr", "add", "10.20.1.1/16", "dev", "cli0").CombinedOutput()
	require.NoError(t, err, string(out))
	out, err = exec.Command("ip", "-n", n.clients, "addr", "del", "10.20.0.2/16", "dev", "cli0").CombinedOutput()
	require.NoError(t, err, string(out))
	out, err = exec.Command("ip", "-n", n.clients, "addr", "show", "dev", "cli0").CombinedOutput()
	require.NoError(t, err)
	if !strings.Contains(string(out), "10.20.1.1") { // it was secondary, and went with the primary
		require.NoError(t, exec.Command("ip", "-n", n.clients, "addr", "add", "10.20.1.1/16", "dev", "cli0").Run())
	}

	embedded, err := filepath.Glob("../assets/loaders/*")
	require.NoError(t, err)
	fetched := 0
	for _, path := range embedded {
		name := filepath.Base(path)
		if name == "README.md" {
			continue
		}
		want, err := os.ReadFile(path)
		require.NoError(t, err)
		to := filepath.Join(t.TempDir(), name)
		for _, client := range [][]string{
			{"curl", "-sSf", "-o", to, "http://10.20.0.1:8080/loader/" + name},
			{"curl", "-sSf", "-o", to, "tftp://10.20.0.1/" + name},
			{"atftp", "--option", "blksize 1468", "-g", "-r", name, "-l", to, "10.20.0.1"},
			{"tftp", "-m", "binary", "10.20.0.1", "-c", "get", name, to},
		} {
			os.Remove(to)
			out, err := exec.Command("ip", append([]string{"netns", "exec", n.clients}, client...)...).CombinedOutput()
			require.NoError(t, err, "%v: %s", client, out)
			got, err := os.ReadFile(to)
			require.NoError(t, err)
			require.True(t, string(want) == string(got), "%v: %d bytes instead of %d", client, len(got), len(want))
			fetched++
		}
	}
	require.GreaterOrEqual(t, fetched, 5*4, "the loaders are there: `make loaders`")
}

// What a reload would change in the kickstarts is seen before it is done, and without secrets.
func TestRenderDiff(t *testing.T) {
	n := newNetwork(t, "e2ediff")
	config := stormConfig(t, 3)
	add := func(old, new string) {
		text, err := os.ReadFile(config)
		require.NoError(t, err)
		require.Equal(t, 1, strings.Count(string(text), old), old)
		require.NoError(t, os.WriteFile(config, []byte(strings.Replace(string(text), old, new, 1)), 0o600))
	}
	add("machines:", "install: {profile: centos-7.9, root_password_hash: \"$6$saltsalt$"+strings.Repeat("x", 77)+"topsecret\", proxy: \"http://u:topsecret@p.lab:3128\"}\nmachines:")
	do := func(args ...string) string { return rackstrap(t, append([]string{"--config", config}, args...)...) }
	out, err := tryRackstrap(t, "--config", config, "render", "kickstart", "--diff")
	require.Equal(t, 1, exitCode(t, err), out)
	require.Contains(t, out, "no daemon answers")
	out, err = tryRackstrap(t, "--config", config, "render", "ipxe", "m0", "--diff")
	require.Equal(t, 2, exitCode(t, err), out)

	n.serve(t, config)
	require.Equal(t, "no change for any of 3 machines\n", do("render", "kickstart", "--diff"))
	require.Equal(t, "m1: no change\n", do("render", "kickstart", "m1", "--diff"))
	require.Contains(t, do("render", "kickstart", "m1"), "topsecret", "the file's own, for who can read the file")

	add("xtopsecret\"", "topsecret2\"")
	add("u:topsecret@", "u:topsecret3@")
	add("10.20.1.2, role", "10.20.1.2, kernel: lt, role")
	text, err := os.ReadFile(config)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(config, append(text, "  - {name: m9, mac: \"52:54:00:01:00:09\", ip: 10.20.9.9, role: worker}\n"...), 0o600))
	diff := do("render", "kickstart", "--diff")
	require.NotContains(t, diff, "topsecret")
	require.Contains(t, diff, "4 of 4 machines change\n")
	require.Regexp(t, `\n-rootpw --iscrypted "\$6\$hidden\$[0-9a-f]{8}\.{78}"\n\+rootpw --iscrypted "\$6\$hidden\$[0-9a-f]{8}\.{78}"\n`, diff)
	require.Contains(t, diff, "kickstart of m9\n--- /dev/null\n+++ "+config+"\n")
	one := do("render", "kickstart", "m1", "--diff")
	require.Contains(t, one, "--- "+config+" (in force)\n+++ "+config+"\n")
	require.Contains(t, one, "\n+step 20 'kernel lt'\n")
	require.NotContains(t, one, "m9\n---")
	out, err = tryRackstrap(t, "--config", config, "render", "kickstart", "nobody", "--diff")
	require.Equal(t, 1, exitCode(t, err), out)
	require.Contains(t, out, `no machine "nobody"`)
}
