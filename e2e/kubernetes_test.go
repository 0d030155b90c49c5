package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/cluster"
	"rackstrap/internal/testenv"
	"rackstrap/lab/kube"
	"rackstrap/lifecycle"
)

// kubeRack is a rack of namespace machines that becomes a real cluster.
type kubeRack struct {
	*virtualRack
	kubectl string
	begun   time.Time
	last    time.Time
	line    []string // the timeline
}

// kubeConfig is an isolated rack: there is no gateway and no name server. Two of its machines (twoNICs) have a second NIC
// in another network, which their default route leads through, as that of a machine whose office network has DHCP.
const kubeConfig = `
server: {interface: rack0, address: 10.10.10.1}
network:
  subnet: 10.10.10.0/24
  dhcp: {pool: 10.10.10.200-10.10.10.250}
media: [{name: centos-7.9, iso: /nowhere/lab.iso}]
install:
  docker: false
  post_scripts:
    - |
      #!/bin/sh
      cat >/etc/systemd/network/05-office.network <<'END'
      [Match]
      Name=eth1
      [Link]
      RequiredForOnline=no
      [Network]
      Address=192.168.50.5/24
      Gateway=192.168.50.1
      LinkLocalAddressing=no
      IPv6AcceptRA=no
      END
cluster: {name: e2e}
machines:
  - {name: kmaster,  mac: "52:54:00:e2:e0:80", ip: 10.10.10.80, role: control-plane, disk: sda}
  - {name: kmaster2, mac: "52:54:00:e2:e0:81", ip: 10.10.10.81, role: control-plane, disk: sda}
  - {name: kmaster3, mac: "52:54:00:e2:e0:82", ip: 10.10.10.82, role: control-plane, disk: sda}
  - {name: knode1,   mac: "52:54:00:e2:e0:91", ip: 10.10.10.91, role: worker, disk: sda}
  - {name: knode2,   mac: "52:54:00:e2:e0:92", ip: 10.10.10.92, role: worker, disk: sda}
  - {name: knode3,   mac: "52:54:00:e2:e0:93", ip: 10.10.10.93, role: worker, disk: sda}
`

// twoNICs are the machines that have a second NIC, for the option --second-nic.
const twoNICs = "kmaster2,knode1"

// step ends a step of the story, with the time that it took.
func (r *kubeRack) step(format string, args ...any) {
	r.t.Helper()
	now := time.Now()
	line := fmt.Sprintf("%6.1fs  (+%5.1fs)  %s", now.Sub(r.begun).Seconds(), now.Sub(r.last).Seconds(), fmt.Sprintf(format, args...))
	r.last, r.line = now, append(r.line, line)
	r.t.Log(line)
}

func (r *kubeRack) power(what string, machines ...string) {
	r.t.Helper()
	for _, m := range machines {
		r.lab("power", what, m)
	}
}

// awaitReady waits for machines, and stops at one that fails for good.
func (r *kubeRack) awaitReady(limit time.Duration, machines ...string) {
	r.t.Helper()
	deadline := time.Now().Add(limit)
	for {
		states, ready := map[string]string{}, 0
		for _, m := range r.status().Machines {
			if !slices.Contains(machines, m.Name) {
				continue
			}
			states[m.Name] = string(m.State) + ": " + m.Reason
			require.NotEqual(r.t, lifecycle.Failed, m.State, "%s: %s\n%s", m.Name, m.Reason, r.do("events", m.Name, "-n", "40"))
			if m.State == lifecycle.Ready {
				ready++
			}
		}
		if ready == len(machines) {
			return
		}
		if time.Now().After(deadline) {
			for _, m := range machines {
				r.t.Log(r.do("events", m, "-n", "25"))
			}
			require.FailNow(r.t, "deadline", "not ready within %s: %v", limit, states)
		}
		time.Sleep(500 * time.Millisecond)
	}
}

type kubeNode struct {
	Metadata struct {
		Name, UID   string
		Annotations map[string]string
	}
	Status struct {
		Conditions []struct{ Type, Status string }
		Addresses  []struct{ Type, Address string }
	}
}

// nodes asks the cluster itself. One whose etcd has just changed its leader may refuse, and is asked again.
func (r *kubeRack) nodes() map[string]kubeNode {
	r.t.Helper()
	for try := 1; ; try++ {
		found, err := r.askNodes()
		if err == nil {
			return found
		}
		if try == 10 {
			require.NoError(r.t, err)
		}
		time.Sleep(3 * time.Second)
	}
}

// askNodes asks the cluster once.
func (r *kubeRack) askNodes() (map[string]kubeNode, error) {
	out, err := r.kubectlOnce("", "get", "nodes", "-o", "json")
	if err != nil {
		return nil, err
	}
	var list struct{ Items []kubeNode }
	if err := json.Unmarshal(out, &list); err != nil {
		return nil, fmt.Errorf("kubectl get nodes: %w", err)
	}
	found := map[string]kubeNode{}
	for _, n := range list.Items {
		found[n.Metadata.Name] = n
	}
	return found, nil
}

// kubectlOnce runs kubectl on the appliance's host, with a kubeconfig that is fetched just now.
func (r *kubeRack) kubectlOnce(input string, args ...string) ([]byte, error) {
	command := fmt.Sprintf(`%s --kubeconfig <(%s --config %s kubeconfig) "$@"`, r.kubectl, binary, filepath.Join(r.state, "rackstrap.yaml"))
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", r.name, "bash", "-c", command, "kubectl"}, args...)...)
	var complaint bytes.Buffer
	cmd.Stdin, cmd.Stderr = strings.NewReader(input), &complaint
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, complaint.String())
	}
	return out, nil
}

func (n kubeNode) ready() bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c struct{ Type, Status string }) bool { return c.Type == "Ready" && c.Status == "True" })
}

// requireNodes holds the cluster to what the list of machines says.
func (r *kubeRack) requireNodes(ready ...string) map[string]kubeNode {
	r.t.Helper()
	nodes := r.nodes()
	addresses := map[string]string{}
	for _, m := range r.status().Machines {
		addresses[m.Name] = m.IP.String()
	}
	for _, name := range ready {
		n, ok := nodes[name]
		require.True(r.t, ok, "%s is not a node: %v", name, nodes)
		require.True(r.t, n.ready(), "%s: %+v", name, n.Status.Conditions)
		require.Contains(r.t, n.Status.Addresses, struct{ Type, Address string }{"InternalIP", addresses[name]})
	}
	return nodes
}

// inside runs a command in a machine.
func (r *kubeRack) inside(machine string, args ...string) string {
	r.t.Helper()
	return r.lab(append([]string{"exec", machine, "--"}, args...)...)
}

// requireNoToken: bootstrap tokens are deleted once the node is seen Ready, which may take the agents a moment. What
// kubeadm itself made for the certificates of the control plane is not for joining, and ends by itself.
func (r *kubeRack) requireNoToken(master string) {
	r.t.Helper()
	list := ""
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Second) {
		list = r.inside(master, "kubeadm", "token", "list", "--kubeconfig", "/etc/kubernetes/admin.conf")
		if !strings.Contains(list, "authentication") {
			return
		}
	}
	require.Fail(r.t, "tokens are left", list)
}

// validate has the real kubeadm look at what the appliance renders for a machine.
func (r *kubeRack) validate(on, kind, machine string) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, "lab", "--name", r.name, "--state", r.state, "exec", on, "--", "kubeadm", "config", "validate", "--config", "/dev/stdin")
	cmd.Stdin = strings.NewReader(r.do("render", kind, machine))
	out, err := cmd.CombinedOutput()
	require.NoError(r.t, err, "%s of %s: %s", kind, machine, out)
	require.NotContains(r.t, string(out), "unknown field")
}

// newKubeRack prepares a rack and takes it down at the end, whatever happened.
func newKubeRack(t *testing.T, name, text string) *kubeRack {
	t.Helper()
	if testing.Short() {
		t.Skip("builds and boots a real cluster: not in -short")
	}
	testenv.NeedRoot(t)
	testenv.NeedTool(t, "ip", "nsenter", "setpriv", "mmdebstrap", "createrepo_c", "bash")
	// The first time this takes ten minutes. The state is not in t.TempDir: an overlay's layer wants a plain file system.
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Minute)
	defer cancel()
	programs, err := kube.Build(ctx, "", slog.New(slog.NewTextHandler(t.Output(), nil)))
	require.NoError(t, err)
	state, err := os.MkdirTemp("/var/tmp", "rackstrap-e2e-")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(state) })
	require.NoError(t, os.WriteFile(filepath.Join(state, "config.yaml"), []byte(text), 0o600))
	r := &kubeRack{virtualRack: &virtualRack{t: t, name: fmt.Sprintf("%s%d", name, os.Getpid()), state: filepath.Join(state, "lab")},
		kubectl: programs.Path("kubectl")}
	t.Cleanup(func() {
		if t.Failed() {
			r.tellLogs()
		}
		rackstrap(t, "lab", "--name", r.name, "--state", r.state, "down")
	})
	return r
}

// up puts the rack up, or what is missing of it.
func (r *kubeRack) up(args ...string) string {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Minute)
	defer cancel()
	config := filepath.Join(filepath.Dir(r.state), "config.yaml")
	cmd := exec.CommandContext(ctx, binary, append([]string{"--config", config, "lab", "--name", r.name, "--state", r.state, "up", "--firmware", "namespace"}, args...)...)
	out, err := cmd.CombinedOutput()
	r.t.Logf("%s", out)
	require.NoError(r.t, err)
	return string(out)
}

// Done-when 1 of the last stage: from power-on to a real cluster, and what its life brings, with the real kubeadm,
// kubelet, containerd, etcd and flannel. The machines are namespaces: docs/namespace-machines.md.
func TestRealKubernetes(t *testing.T) {
	r := newKubeRack(t, "e2ek", kubeConfig)
	r.up("--second-nic", twoNICs, "--off")

	// From power-on to a cluster.
	r.begun, r.last = time.Now(), time.Now()
	first := []string{"kmaster", "knode1", "knode2"}
	r.power("on", first...)
	r.awaitReady(15*time.Minute, first...)
	before := r.requireNodes(first...)
	require.Len(t, before, 3)
	r.step("three nodes are Ready, nobody has typed a command")
	r.requireNoToken("kmaster")

	// What the preparation wrote is what the real programs accept.
	for _, m := range []string{"kmaster", "kmaster2", "knode3"} {
		if m == "kmaster" {
			r.validate("kmaster", "init-config", m)
		}
		r.validate("kmaster", "join-config", m)
	}
	containerd := r.inside("kmaster", "containerd", "config", "dump")
	require.Contains(t, containerd, "SystemdCgroup = true")
	require.Contains(t, containerd, "/pause:3.9")
	for setting, want := range map[string]string{"net.ipv4.ip_forward": "1", "net.bridge.bridge-nf-call-iptables": "1", "vm.swappiness": "0"} {
		require.Equal(t, want, strings.TrimSpace(r.inside("knode1", "sysctl", "-n", setting)), setting)
	}
	images := r.inside("kmaster", "kubeadm", "config", "images", "list", "--kubernetes-version", strings.TrimPrefix(kube.Version, "v"),
		"--image-repository", "registry.aliyuncs.com/google_containers")
	local := r.inside("kmaster", "ctr", "-n", "k8s.io", "images", "ls", "-q")
	for _, image := range regexp.MustCompile(`(?m)^registry\S+$`).FindAllString(images, -1) {
		require.Contains(t, local, image)
	}
	for _, m := range first {
		require.Contains(t, r.inside(m, "sh", "-c", "ps -o comm= -p 1; systemctl is-enabled kubelet containerd rackstrap-agent"), "systemd")
	}
	r.step("kubeadm accepts the rendered files, containerd its configuration")

	r.do("verify")
	r.step("verify: a web server answers at every node's address")
	r.requireNetwork(before)
	r.step("every node announces the address of the list, and pods, hosts and services reach one another")

	// More masters, both at once: they join one after the other.
	masters := []string{"kmaster2", "kmaster3"}
	r.power("on", masters...)
	r.awaitReady(15*time.Minute, masters...)
	requireAnnounced(t, r.requireNodes(append(first, masters...)...))
	members := r.inside("kmaster", "kubectl", "--kubeconfig", "/etc/kubernetes/admin.conf", "-n", "kube-system", "exec", "etcd-kmaster", "--",
		"etcdctl", "--cacert", "/etc/kubernetes/pki/etcd/ca.crt", "--cert", "/etc/kubernetes/pki/etcd/peer.crt",
		"--key", "/etc/kubernetes/pki/etcd/peer.key", "member", "list")
	require.Equal(t, 3, strings.Count(members, "started"), members)
	r.step("two more control planes have joined; etcd has three members")

	// A node is installed anew.
	r.do("reinstall", "knode1")
	require.NotContains(t, r.nodes(), "knode1", "drained and deleted before it is wiped")
	r.power("reset", "knode1")
	r.awaitReady(15*time.Minute, "knode1")
	again := r.requireNodes("knode1")
	require.NotEqual(t, before["knode1"].Metadata.UID, again["knode1"].Metadata.UID, "another node of the same name")
	r.step("knode1 was reinstalled and is Ready again")
	r.requireNoToken("kmaster2")

	// The first master is lost for good; the others keep the quorum.
	r.power("off", "kmaster")
	r.power("on", "knode3")
	r.awaitReady(15*time.Minute, "knode3")
	r.requireNodes("kmaster2", "kmaster3", "knode1", "knode2", "knode3")
	r.step("kmaster is off, and a new worker has joined through the others")
	r.requireNoToken("kmaster3")

	// The status says what Kubernetes says now, beside what was so once.
	require.Eventually(t, func() bool {
		nodes := r.status().Cluster.Nodes
		return nodes.Fresh && fmt.Sprint(nodes.Count()) == "map[NotReady:1 Ready:5]" && nodes.Of["kmaster"].Condition == cluster.NodeNotReady
	}, 3*time.Minute, time.Second, "the node controller gives a kubelet that is silent 40 s")
	t.Log(r.do("status"))
	r.step("the status says that kmaster is not Ready")

	t.Logf("from power-on:\n%s", strings.Join(r.line, "\n"))
}

// `lab up --wait` of machines that have neither disk nor login prompt ends once they have called home; said again, at once.
func TestLabUpWaitsForNamespaces(t *testing.T) {
	r := newKubeRack(t, "e2ew", kubeConfig[:strings.Index(kubeConfig, "  - {name: kmaster2")])
	out := r.up("--wait", "10m")
	require.Regexp(t, `(?s)kmaster +installer reached.*kmaster +installation finished: reboot.*kmaster +runs from its disk: `, out)
	r.power("reset", "kmaster")
	begun := time.Now()
	require.Regexp(t, `kmaster +runs from its disk: `, r.up("--wait", "10m"))
	require.Less(t, time.Since(begun), time.Minute, "it was there already")
}

// tellLogs shows the ends of the logs: of the appliance and of each machine's life.
func (r *kubeRack) tellLogs() {
	logs, _ := filepath.Glob(filepath.Join(r.state, "*.log"))
	serials, _ := filepath.Glob(filepath.Join(r.state, "machines", "*", "serial-*.log"))
	for _, file := range append(logs, serials...) {
		text, _ := os.ReadFile(file)
		r.t.Logf("the end of %s:\n%s", file, text[max(0, len(text)-5000):])
	}
}
