package kickstart

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"rackstrap/internal/testenv"
	"rackstrap/inventory"
)

func TestPostInstallsTheAgent(t *testing.T) {
	r := newRenderer(t)
	for _, machine := range []string{"kmaster", "knode1"} {
		t.Run(machine, func(t *testing.T) {
			s := newSandbox(t)
			s.write("refuse.agent", "2")
			in := input("centos-7.9", machine)
			in.Machine.Install.Proxy = "http://proxy.example.org:3128"
			out, status := s.run(script(t, r, in, "%post"))
			require.Zero(t, status, out)
			require.Equal(t, testAgent, s.read("local/bin/rackstrap"))
			require.False(t, s.exists("local/bin/rackstrap.new"))
			require.Equal(t, testCA, s.read("etc/rackstrap/ca.pem"))
			for file, mode := range map[string]os.FileMode{"local/bin/rackstrap": 0o755, "etc/rackstrap/agent.json": 0o600, "etc/rackstrap/ca.pem": 0o644} {
				info, err := os.Stat(filepath.Join(s.root, file))
				require.NoError(t, err)
				require.Equal(t, mode, info.Mode().Perm(), file)
			}
			var config map[string]any
			require.NoError(t, json.Unmarshal([]byte(s.read("etc/rackstrap/agent.json")), &config))
			role := map[string]string{"kmaster": "control-plane", "knode1": "worker"}[machine]
			require.Equal(t, map[string]any{"server": "https://10.10.10.1:8443", "ca": "/etc/rackstrap/ca.pem", "name": machine, "mac": in.Machine.MAC.String(),
				"role": role, "attempt": 3.0, "token": testSecret, "state": "/var/lib/rackstrap"}, config)
			require.NotContains(t, out+s.read("calls"), testSecret)
			calls := s.read("calls")
			require.Contains(t, calls, "systemctl enable rackstrap-agent\n")
			require.Equal(t, 3, strings.Count(calls, "/agent/linux-"), "refused twice")
			require.Contains(t, calls, "--noproxy *")
			unit := s.read("etc/systemd/system/rackstrap-agent.service")
			require.Contains(t, unit, "ExecStart=/usr/local/bin/rackstrap agent --config /etc/rackstrap/agent.json\n")
			require.Contains(t, unit, "Type=simple\n")
			require.NotContains(t, unit+s.read("etc/rackstrap/agent.json"), "proxy")
			if role == "worker" {
				require.Contains(t, unit, "ConditionPathExists=!/var/lib/rackstrap/joined\n")
				require.Contains(t, unit, "Restart=on-failure\n")
			} else {
				require.NotContains(t, unit, "Condition")
				require.Contains(t, unit, "Restart=always\n")
			}
			verifyUnit(t, s, "rackstrap-agent.service", unit)
		})
	}
}

// verifyUnit asks systemd what it thinks of the unit; the paths are those of this host.
func verifyUnit(t *testing.T, s *sandbox, name, unit string) {
	t.Helper()
	analyze := testenv.NeedTool(t, "systemd-analyze")
	s.write("verify/containerd.service", "[Service]\nExecStart=/bin/true\n")
	s.write("verify/"+name, strings.ReplaceAll(unit, "/usr/local/bin/rackstrap ", "/bin/true "))
	cmd := exec.Command(analyze, "verify", "--man=no", name)
	cmd.Dir = filepath.Join(s.root, "verify")
	cmd.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+cmd.Dir+":")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.NotContains(t, string(out), name, "a warning")
}

// The boot order is set when the agent is there, and kept by a unit of its own. It is no reason to fail.
func TestPostSetsTheBootOrder(t *testing.T) {
	for _, profile := range []string{"centos-7.9", "rocky-9"} {
		s := newSandbox(t)
		out, status := s.run(script(t, newRenderer(t), input(profile, "knode1"), "%post"))
		require.Zero(t, status, out)
		require.Contains(t, s.read("calls"), "systemctl enable rackstrap-boot-order\nrackstrap agent boot-order --remember\n")
		require.Contains(t, s.read("curl.body"), `"kind":"installed","phase":"post","percent":0,"text":"boot order: UEFI PXEv4 is first"`)
		unit := s.read("etc/systemd/system/rackstrap-boot-order.service")
		require.Contains(t, unit, "ConditionPathExists=/var/lib/rackstrap/boot-order\n")
		require.Contains(t, unit, "ExecStart=/usr/local/bin/rackstrap agent boot-order\n")
		verifyUnit(t, s, "rackstrap-boot-order.service", unit)

		s = newSandbox(t)
		s.write("no-variables", "")
		out, status = s.run(script(t, newRenderer(t), input(profile, "knode1"), "%post"))
		require.Zero(t, status, out)
		require.Contains(t, s.read("curl.body"), `"kind":"installed","phase":"post","percent":0,"text":"the boot order could not be set, it may boot its disk first: the variables cannot be read"`)
	}
}

// A program that is not the one that the appliance means is not installed.
func TestPostRefusesAnotherAgent(t *testing.T) {
	s := newSandbox(t)
	s.write("agent", "something else\n")
	out, status := s.run(script(t, newRenderer(t), input("centos-7.9", "knode1"), "%post"))
	require.NotZero(t, status)
	require.Contains(t, out, `rackstrap: failed at: sha256sum --check`)
	require.False(t, s.exists("local/bin/rackstrap"))
	require.Contains(t, s.read("curl.body"), `"kind":"failed"`, "nothing is reported as installed")
}

func TestPostOfAnotherArchitecture(t *testing.T) {
	s := newSandbox(t)
	in := input("centos-7.9", "knode1")
	in.Callback.Agents = []Agent{{"riscv64", "http://10.10.10.1:8080/agent/linux-riscv64", testAgentSum}}
	out, status := s.run(script(t, newRenderer(t), in, "%post"))
	require.NotZero(t, status)
	require.Contains(t, out, "rackstrap: the appliance has no agent for ")
}

func TestNoAgentWithoutOne(t *testing.T) {
	r := newRenderer(t)
	in := input("centos-7.9", "knode1")
	in.Callback.Agents = nil
	text, err := r.Render(in)
	require.NoError(t, err)
	require.NotContains(t, string(text), "rackstrap-agent")
	silent := input("centos-7.9", "knode1")
	silent.Callback.Secret = ""
	text, err = r.Render(silent)
	require.NoError(t, err)
	require.NotContains(t, string(text), "rackstrap-agent")
	require.Equal(t, inventory.RoleWorker, in.Machine.Role)
}
