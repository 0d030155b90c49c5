package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/cluster"
	"rackstrap/e2e/fakekube"
	"rackstrap/firstboot/api"
	"rackstrap/internal/repotest"
	"rackstrap/internal/testenv"
	"rackstrap/operator"
)

// Three masters and two workers, each the real agent in a network namespace of its own, and the real daemon in
// another. What is not real is Kubernetes: package fakekube stands in for it.

// agentRack is such a rack.
type agentRack struct {
	t        testing.TB
	prefix   string // of the namespaces
	dir      string
	config   string
	kube     *fakekube.File
	machines []*agentMachine
	switches string // the namespace with the bridge and the appliance

	mu     sync.Mutex
	daemon *exec.Cmd
	log    *os.File
	starts int
}

// agentMachine is one machine: a namespace, a directory, and an agent that is restarted as systemd would.
type agentMachine struct {
	rack           *agentRack
	name, role     string
	mac, ip, ns    string
	root           string
	secrets        []string // that it was given
	mu             sync.Mutex
	agent          *exec.Cmd
	stop           chan struct{}
	done           chan struct{}
	refused, ended bool
}

func newAgentRack(t testing.TB, prefix string) *agentRack {
	t.Helper()
	testenv.NeedRoot(t)
	testenv.NeedTool(t, "ip", "curl")
	prefix += strconv.Itoa(os.Getpid())  // somebody else may try the same on this host
	dir, err := os.MkdirTemp("", prefix) // short: a socket's path has 108 bytes
	require.NoError(t, err)
	r := &agentRack{t: t, prefix: prefix, dir: dir, switches: prefix + "-sw", kube: fakekube.Open(filepath.Join(dir, "cluster.json"))}
	for i, role := range []string{"control-plane", "control-plane", "control-plane", "worker", "worker"} {
		name := fmt.Sprintf("n%d", i+1)
		r.machines = append(r.machines, &agentMachine{rack: r, name: name, role: role, mac: fmt.Sprintf("52:54:00:00:02:%02x", i+1),
			ip: fmt.Sprintf("10.10.10.%d", 81+i), ns: prefix + "-" + name, root: filepath.Join(dir, name)})
	}
	t.Cleanup(r.remove)
	r.net()
	r.writeConfig()
	for _, m := range r.machines {
		m.blank()
	}
	r.start()
	return r
}

func ip(t testing.TB, line string) {
	t.Helper()
	out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput()
	require.NoError(t, err, "ip %s: %s", line, out)
}

func (r *agentRack) net() {
	r.unnet()
	ip(r.t, "netns add "+r.switches)
	ip(r.t, "-n "+r.switches+" link add br0 type bridge")
	ip(r.t, "-n "+r.switches+" addr add 10.10.10.1/24 dev br0")
	ip(r.t, "-n "+r.switches+" link set br0 up")
	ip(r.t, "-n "+r.switches+" link set lo up")
	for _, m := range r.machines {
		ip(r.t, "netns add "+m.ns)
		ip(r.t, fmt.Sprintf("-n %s link add %s type veth peer name eth0 netns %s", r.switches, m.name, m.ns))
		ip(r.t, fmt.Sprintf("-n %s link set %s master br0 up", r.switches, m.name))
		ip(r.t, fmt.Sprintf("-n %s link set eth0 address %s", m.ns, m.mac))
		ip(r.t, fmt.Sprintf("-n %s addr add %s/24 dev eth0", m.ns, m.ip))
		ip(r.t, fmt.Sprintf("-n %s link set eth0 up", m.ns))
		ip(r.t, fmt.Sprintf("-n %s link set lo up", m.ns))
	}
}

func (r *agentRack) unnet() {
	for _, m := range r.machines {
		exec.Command("ip", "netns", "del", m.ns).Run()
	}
	exec.Command("ip", "netns", "del", r.switches).Run()
}

func (r *agentRack) remove() {
	for _, m := range r.machines {
		m.off()
	}
	r.kill()
	if r.t.Failed() {
		r.tell()
	}
	r.unnet()
	os.RemoveAll(r.dir)
}

// tell prints what may explain a failure.
func (r *agentRack) tell() {
	text, _ := os.ReadFile(filepath.Join(r.dir, "daemon.log"))
	r.t.Logf("the daemon's log ends:\n%s", text[max(0, len(text)-6000):])
	for _, m := range r.machines {
		text, _ := os.ReadFile(m.log())
		r.t.Logf("the log of %s ends:\n%s", m.name, text[max(0, len(text)-3000):])
	}
	if s, err := r.kube.Read(); err == nil {
		s.CA, s.Admins, s.Kubelets = "", nil, nil
		s.Commands = s.Commands[max(0, len(s.Commands)-40):]
		text, _ := json.MarshalIndent(s, "", " ")
		r.t.Logf("the cluster:\n%s", text)
	}
}

func (r *agentRack) writeConfig() {
	require.NoError(r.t, repotest.Medium().Write(filepath.Join(r.dir, "tree")))
	var text strings.Builder
	fmt.Fprintf(&text, `server: {interface: br0, address: 10.10.10.1, data_dir: %s/data}
network: {subnet: 10.10.10.0/24, dhcp: {mode: "off"}}
media: [{name: tree, dir: %s/tree}]
install: {root_password_hash: %q, attempts: 100}
cluster: {timeouts: {init: 60s, join: 60s, ready: 5m}}
machines:
`, r.dir, r.dir, plantedHash)
	for _, m := range r.machines {
		fmt.Fprintf(&text, "  - {name: %s, mac: %q, ip: %s, role: %s}\n", m.name, m.mac, m.ip, m.role)
	}
	r.config = filepath.Join(r.dir, "rackstrap.yaml")
	require.NoError(r.t, os.WriteFile(r.config, []byte(text.String()), 0o600))
}

// plantedHash is the root password of the tests' machines.
const plantedHash = "$6$rounds=4096$plantedsalt$aVeryLongHashThatNobodyShallSeeInALogOrAnEvent0123456789abcdefghijklmnopqrstuvwxyzABCD"

// start runs the daemon until it is ready.
func (r *agentRack) start() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.starts++
	log, err := os.OpenFile(filepath.Join(r.dir, "daemon.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	require.NoError(r.t, err)
	r.log = log
	cmd := exec.Command("ip", "netns", "exec", r.switches, binary, "--config", r.config, "serve", "--log-level", "debug")
	cmd.Stdout, cmd.Stderr = log, log
	require.NoError(r.t, cmd.Start())
	r.daemon = cmd
	deadline := time.Now().Add(2 * time.Minute)
	for {
		text, _ := os.ReadFile(log.Name())
		if bytes.Count(text, []byte("\nready\n")) == r.starts {
			return
		}
		require.True(r.t, time.Now().Before(deadline), "the daemon does not get ready:\n%s", text[max(0, len(text)-2000):])
		time.Sleep(20 * time.Millisecond)
	}
}

// kill ends the daemon without a chance to tidy up.
func (r *agentRack) kill() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.daemon == nil {
		return
	}
	r.daemon.Process.Kill()
	r.daemon.Wait()
	r.daemon = nil
	r.log.Close()
}

// do runs a command of the operator.
func (r *agentRack) do(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 6*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, append([]string{"--config", r.config}, args...)...)
	cmd.Dir = r.dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// states is how far the daemon says the machines are.
func (r *agentRack) states() map[string]string {
	states := map[string]string{}
	out, err := r.do("status", "-o", "json")
	var st operator.Status
	if err != nil || json.Unmarshal([]byte(out), &st) != nil {
		return states
	}
	for _, m := range st.Machines {
		states[m.Name] = string(m.State)
		if m.Record.Failure != nil {
			states[m.Name] += ": " + m.Record.Failure.Reason
		}
	}
	return states
}

// awaitReady waits, patiently, until the daemon and the cluster agree that all is done and tidy.
func (r *agentRack) awaitReady(limit time.Duration) {
	r.t.Helper()
	deadline := time.Now().Add(limit)
	for {
		states := r.states()
		ready := 0
		for name, state := range states {
			if state == "ready" {
				ready++
			}
			require.False(r.t, strings.HasPrefix(state, "failed"), "%s is lost: %s", name, state)
		}
		s, err := r.kube.Read()
		require.NoError(r.t, err)
		require.Empty(r.t, s.Violations)
		if ready == len(r.machines) && len(s.Ready()) == len(r.machines) && len(s.JoinTokens()) == 0 && len(s.Members) == 3 {
			return
		}
		if time.Now().After(deadline) {
			require.FailNow(r.t, "not ready", "after %s: %v; nodes that are: %v; tokens left: %v; members: %v", limit, states, s.Ready(), s.JoinTokens(), s.Members)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (m *agentMachine) log() string { return filepath.Join(m.rack.dir, m.name+".log") }

// blank gives the machine an empty disk.
func (m *agentMachine) blank() {
	require.NoError(m.rack.t, os.RemoveAll(m.root))
	require.NoError(m.rack.t, fakekube.Install(m.root, fakekube.Host{Cluster: filepath.Join(m.rack.dir, "cluster.json"), Name: m.name, IP: m.ip,
		Pace: 100 * time.Millisecond, Slow: 300 * time.Millisecond, Images: true}))
}

// down cuts the machine off: nobody reaches its control plane.
func (m *agentMachine) down(down bool) {
	require.NoError(m.rack.t, m.rack.kube.Update(func(s *fakekube.State) error {
		h := s.Hosts[m.name]
		h.Root, h.IP, h.Down = m.root, m.ip, down
		s.Hosts[m.name] = h
		return nil
	}))
	state := "up"
	if down {
		state = "down"
	}
	exec.Command("ip", "-n", m.ns, "link", "set", "eth0", state).Run()
}

func (m *agentMachine) curl(args ...string) ([]byte, error) {
	cmd := exec.Command("ip", append([]string{"netns", "exec", m.ns, "curl", "--silent", "--show-error", "--fail", "--max-time", "30"}, args...)...)
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s", err, exit.Stderr)
	}
	return out, err
}

// install does what the installer does: it fetches the kickstart from the machine's own address, puts on the disk what
// that says about the agent, and reports that it is done.
func (m *agentMachine) install() error {
	script, err := m.curl("http://10.10.10.1:8080/boot/" + strings.ReplaceAll(m.mac, ":", "-") + "/ipxe")
	if err != nil {
		return err
	}
	kickstart, err := kickstartOf(string(script))
	if err != nil {
		return err
	}
	text, err := m.curl("-H", "X-RHN-Provisioning-MAC-0: eth0 "+m.mac, kickstart)
	if err != nil {
		return err
	}
	if _, err := m.curl("http://10.10.10.1:8080/media/tree/.treeinfo"); err != nil { // as Anaconda does
		return err
	}
	ca, err := hereDocument(string(text), "write /etc/rackstrap/ca.pem")
	if err != nil {
		return err
	}
	agent, err := hereDocument(string(text), "write /etc/rackstrap/agent.json")
	if err != nil {
		return err
	}
	var config api.Config
	if err := json.Unmarshal([]byte(agent), &config); err != nil {
		return err
	}
	m.secrets = append(m.secrets, config.Token)
	config.CA, config.State = filepath.Join(m.root, "etc/rackstrap/ca.pem"), filepath.Join(m.root, "var/lib/rackstrap")
	changed, err := json.Marshal(config)
	if err != nil {
		return err
	}
	if err := errors.Join(os.MkdirAll(filepath.Dir(config.CA), 0o755), os.WriteFile(config.CA, []byte(ca), 0o644),
		os.WriteFile(m.agentConfig(), changed, 0o600)); err != nil {
		return err
	}
	event, err := json.Marshal(api.Event{Attempt: config.Attempt, Kind: "installed", Phase: "post"})
	if err != nil {
		return err
	}
	_, err = m.curl("--cacert", config.CA, "-H", "Authorization: Bearer "+config.Token, "-H", "Content-Type: application/json",
		"--data-binary", string(event), config.Server+"/api/v1/nodes/"+m.name+"/events")
	return err
}

func (m *agentMachine) agentConfig() string { return filepath.Join(m.root, "etc/rackstrap/agent.json") }

// hereDocument is the text that a kickstart writes by a command, without its margin.
func hereDocument(text, command string) (string, error) {
	_, rest, found := strings.Cut(text, command)
	_, rest, begun := strings.Cut(rest, "<<'END'\n")
	body, _, ended := strings.Cut(rest, "\nEND\n")
	if !found || !begun || !ended {
		return "", fmt.Errorf("the kickstart has no %q", command)
	}
	lines := strings.Split(body, "\n")
	for i := range lines {
		lines[i] = strings.TrimPrefix(lines[i], "|")
	}
	return strings.Join(lines, "\n") + "\n", nil
}

// on starts the agent, and starts it again whenever it fails, as systemd would (but sooner).
func (m *agentMachine) on() {
	m.stop, m.done = make(chan struct{}), make(chan struct{})
	m.refused, m.ended = false, false
	go func() {
		defer close(m.done)
		for {
			code := m.once()
			m.mu.Lock()
			switch {
			case code == 77:
				m.refused = true
			case code == 0 && m.role == "worker":
				m.ended = true
			}
			over := m.refused || m.ended
			m.mu.Unlock()
			if over {
				return
			}
			select {
			case <-m.stop:
				return
			case <-time.After(200 * time.Millisecond):
			}
		}
	}()
}

func (m *agentMachine) once() int {
	log, err := os.OpenFile(m.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return -1
	}
	defer log.Close()
	cmd := exec.Command("ip", "netns", "exec", m.ns, binary, "--config", m.agentConfig(), "agent", "--root", m.root, "--log-level", "debug")
	cmd.Stdout, cmd.Stderr = log, log
	m.mu.Lock()
	select {
	case <-m.stop:
		m.mu.Unlock()
		return -1
	default:
	}
	err = cmd.Start()
	m.agent = cmd
	m.mu.Unlock()
	if err != nil {
		return -1
	}
	cmd.Wait()
	return cmd.ProcessState.ExitCode()
}

// crash kills the agent; what it started dies with it.
func (m *agentMachine) crash() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.agent != nil && m.agent.Process != nil {
		m.agent.Process.Kill()
	}
}

// off ends the agent and does not start it again.
func (m *agentMachine) off() {
	if m.stop == nil {
		return
	}
	m.mu.Lock()
	select {
	case <-m.stop:
	default:
		close(m.stop)
	}
	m.mu.Unlock()
	m.crash()
	<-m.done
}

// powerOn installs the machine and starts it.
func (r *agentRack) powerOn() {
	for _, m := range r.machines {
		require.NoError(r.t, m.install())
		m.on()
	}
}

// Done-when 3: one init, control planes one after the other, everybody Ready.
func TestAgentsBuildACluster(t *testing.T) {
	r := newAgentRack(t, "e2eag")
	for _, i := range []int{1, 3} { // kubeadm of a master and of a worker fails once, and prints all it knows
		require.NoError(t, fakekube.Plant(r.machines[i].root, fakekube.Fault{Command: "kubeadm join", Kind: "leak"}))
	}
	r.powerOn()
	r.awaitReady(5 * time.Minute)
	s, err := r.kube.Read()
	require.NoError(t, err)
	require.Equal(t, []string{"n1"}, s.Inits)
	require.ElementsMatch(t, []string{"n2", "n3", "n4", "n5"}, s.Joins)
	require.Eventually(t, func() bool { // their agents end for good
		for _, m := range r.machines[3:] {
			m.mu.Lock()
			ended := m.ended
			m.mu.Unlock()
			if !ended {
				return false
			}
		}
		return true
	}, 2*time.Minute, 50*time.Millisecond)
	require.Regexp(t, `n4 .*something failed, with all its secrets`, r.events("n4"), "the leaks were reported")
	require.Regexp(t, `n2 .*something failed, with all its secrets`, r.events("n2"))

	for _, name := range []string{"n2", "n4"} {
		logs, err := filepath.Glob(filepath.Join(r.dir, "data/logs", name, "*"))
		require.NoError(t, err)
		require.NotEmpty(t, logs, "what kubeadm printed was left with the appliance")
		text, err := os.ReadFile(logs[0])
		require.NoError(t, err)
		require.Contains(t, string(text), "something failed, with all its secrets")
		require.Contains(t, string(text), "[redacted]")
	}
	kubeconfig, err := r.do("kubeconfig")
	require.NoError(t, err, kubeconfig)
	require.True(t, slices.ContainsFunc(s.Secrets, func(secret string) bool { return strings.Contains(kubeconfig, secret) }), "it is a master's own")

	// A held worker stays what it is. One that loses its power is not shown as Ready, and the record of it stays.
	out, err := r.do("hold", "n5", "--reason", "its disk is swapped")
	require.NoError(t, err, out)
	table, err := r.do("status")
	require.NoError(t, err, table)
	require.Regexp(t, `n5 .* ready .* hold .*n5 is held by the operator \(.*its disk is swapped\)`, table)
	out, err = r.do("reinstall", "n5")
	require.Error(t, err)
	require.Contains(t, out, "`rackstrap unhold n5` ends it")
	out, err = r.do("unhold", "n5")
	require.NoError(t, err, out)
	r.power("n5", false)
	r.awaitNode("n5", cluster.NodeNotReady)
	table, err = r.do("status")
	require.NoError(t, err, table)
	require.Regexp(t, `n5 .* ready .* NotReady .* local-disk .*\(NodeStatusUnknown\)`, table)
	require.Regexp(t, `Kubernetes: nodes: 4 Ready, 1 NotReady, as n[123] saw \d+s ago`, table)
	t.Log("\n" + table)
	r.power("n5", true)
	r.awaitNode("n5", cluster.NodeReady)

	// A master is installed anew: it is taken out of the cluster, its agent is told to end, and it comes back.
	master := r.machines[2]
	out, err = r.do("reinstall", master.name)
	require.NoError(t, err, out)
	s, err = r.kube.Read()
	require.NoError(t, err)
	require.NotContains(t, s.Nodes, master.name)
	require.Len(t, s.Members, 2, "its etcd member is gone, too")
	select {
	case <-master.done:
	case <-time.After(2 * time.Minute):
		require.Fail(t, "its agent goes on")
	}
	require.True(t, master.refused, "exit status 77")
	log, err := os.ReadFile(master.log())
	require.NoError(t, err)
	lines := strings.Split(strings.TrimSpace(string(log)), "\n")
	require.Contains(t, lines[len(lines)-2], "giving up", "the log ends with the reason")
	master.blank()
	require.NoError(t, master.install())
	master.on()
	r.awaitReady(5 * time.Minute)
	checkNoSecret(t, r)
}

// power switches what the cluster sees of a machine.
func (r *agentRack) power(name string, on bool) {
	require.NoError(r.t, r.kube.Update(func(s *fakekube.State) error {
		h := s.Hosts[name]
		h.Down = !on
		s.Hosts[name] = h
		return nil
	}))
}

// awaitNode waits until the status says so of a machine's node.
func (r *agentRack) awaitNode(name string, want cluster.Condition) {
	r.t.Helper()
	require.Eventually(r.t, func() bool {
		out, err := r.do("status", "-o", "json")
		var st operator.Status
		return err == nil && json.Unmarshal([]byte(out), &st) == nil && st.Cluster.Nodes.Of[name].Condition == want
	}, 2*time.Minute, time.Second)
}

func (r *agentRack) events(name string) string {
	out, err := r.do("events", name, "-n", "10000")
	require.NoError(r.t, err, out)
	return out
}

// Done-when 3: random kills. RACKSTRAP_CHAOS_ROUNDS and RACKSTRAP_CHAOS_SEED; `make chaos` does 200.
func TestChaos(t *testing.T) {
	rounds, lanes := number(t, "RACKSTRAP_CHAOS_ROUNDS", 2), number(t, "RACKSTRAP_CHAOS_LANES", 1)
	seed := uint64(number(t, "RACKSTRAP_CHAOS_SEED", int(time.Now().UnixNano()%1_000_000)))
	t.Logf("%d rounds from seed %d", rounds, seed)
	if testing.Short() {
		rounds = 1
	}
	next := make(chan uint64, rounds)
	for i := range rounds {
		next <- seed + uint64(i)
	}
	close(next)
	for lane := range lanes {
		t.Run(fmt.Sprintf("lane%d", lane), func(t *testing.T) {
			t.Parallel()
			for seed := range next {
				t.Run(fmt.Sprintf("seed%d", seed), func(t *testing.T) { chaosRound(t, seed, fmt.Sprintf("e2ec%d-", lane)) })
				if t.Failed() {
					return
				}
			}
		})
	}
}

func number(t *testing.T, key string, otherwise int) int {
	text := os.Getenv(key)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	require.NoError(t, err, key)
	return n
}

// chaosRound takes a rack to Ready while things are killed at random.
func chaosRound(t *testing.T, seed uint64, prefix string) {
	begun := time.Now()
	r := newAgentRack(t, prefix)
	random := rand.New(rand.NewPCG(seed, 1))
	pause := func(most time.Duration) { time.Sleep(time.Duration(random.Int64N(int64(most)))) }
	// Programs fail, too, and agents are killed in the very moment that matters. Three failures of one machine are its end,
	// by design, so there is one for each of its commands at most.
	var story []string
	hit := map[string]int{}
	for _, m := range r.machines {
		var faults []fakekube.Fault
		for _, command := range []string{"kubeadm init --config", "kubeadm join", "kubeadm token create", "kubeadm token delete", "kubeadm init phase upload-certs",
			"kubeadm reset", "kubectl --kubeconfig " + m.root} {
			kinds := []string{"orphan", "late-orphan", "fail", "garbage"}
			switch {
			case command == "kubeadm init --config" && m.name != "n1", strings.HasPrefix(command, "kubeadm token") && m.role == "worker",
				strings.HasPrefix(command, "kubeadm init phase") && m.role == "worker":
				continue
			case command == "kubeadm init --config":
				kinds = []string{"orphan", "late-orphan", "crash"} // who fails without a trace has no second try
			case command == "kubeadm join":
				kinds = append(kinds, "crash", "pretend")
				if m.role != "worker" {
					kinds = append(kinds, "unmarked")
				}
			}
			if random.IntN(4) == 0 {
				kind := kinds[random.IntN(len(kinds))]
				faults = append(faults, fakekube.Fault{Command: command, Kind: kind})
				story = append(story, fmt.Sprintf("%s %s of %s", m.name, kind, strings.TrimSuffix(command, " "+m.root)))
				hit[m.name] = 1
			}
		}
		require.NoError(t, fakekube.Plant(m.root, faults...))
	}
	r.powerOn()
	for range 3 + random.IntN(5) {
		pause(1500 * time.Millisecond)
		m := r.machines[random.IntN(len(r.machines))]
		what := random.IntN(10)
		if hit[m.name] >= 2 && what >= 3 {
			what = 0
		}
		switch {
		case what < 3:
			story = append(story, "appliance killed")
			r.kill()
			pause(time.Second)
			r.start()
			continue
		case what < 6:
			story = append(story, m.name+" agent killed")
			m.crash()
		case what < 8:
			story = append(story, m.name+" power cut")
			m.off()
			m.down(true)
			pause(2 * time.Second)
			m.down(false)
			m.on()
		case what < 9:
			story = append(story, m.name+" network cut")
			m.down(true)
			pause(2 * time.Second)
			m.down(false)
		default:
			if !r.maySpare(m) {
				continue
			}
			story = append(story, m.name+" disk lost")
			r.lose(m)
		}
		hit[m.name]++
	}
	t.Logf("seed %d: %s", seed, strings.Join(story, ", "))
	r.awaitReady(6 * time.Minute)
	s, err := r.kube.Read()
	require.NoError(t, err)
	require.Equal(t, []string{"n1"}, s.Inits, "one init")
	checkNoSecret(t, r)
	t.Logf("seed %d: all ready after %s", seed, time.Since(begun).Round(100*time.Millisecond))
}

// maySpare tells whether the cluster survives the loss of a machine's disk. The first master before the others have
// joined is the cluster: there an operator decides, and there is nothing to try.
func (r *agentRack) maySpare(m *agentMachine) bool {
	s, err := r.kube.Read()
	require.NoError(r.t, err)
	if m.role == "worker" {
		return true
	}
	return len(s.Members) == 3 && slices.Contains(s.Ready(), m.name) && len(s.Ready()) >= 3 && len(s.Joins) >= 2 &&
		!strings.Contains(r.states()[m.name], "failed")
}

// lose empties a machine's disk, and has the operator install it anew.
func (r *agentRack) lose(m *agentMachine) {
	m.off()
	m.down(true)
	m.blank()
	deadline := time.Now().Add(5 * time.Minute)
	for {
		out, err := r.do("reinstall", m.name)
		if err == nil {
			break
		}
		require.True(r.t, time.Now().Before(deadline), "reinstall %s: %v: %s", m.name, err, out)
		time.Sleep(300 * time.Millisecond)
	}
	m.down(false)
	require.Eventually(r.t, func() bool { return m.install() == nil }, time.Minute, 200*time.Millisecond, "%s is not installed", m.name)
	m.on()
}

// checkNoSecret looks for every secret that was about in all that people get to see, and on the appliance's disk.
func checkNoSecret(t *testing.T, r *agentRack) {
	t.Helper()
	s, err := r.kube.Read()
	require.NoError(t, err)
	secrets := append([]string{plantedHash, fakekube.PrivateKey}, s.Secrets...)
	for _, m := range r.machines {
		secrets = append(secrets, m.secrets...)
		credential, err := os.ReadFile(filepath.Join(m.root, "var/lib/rackstrap/credential"))
		require.NoError(t, err, "each agent has its credential")
		secrets = append(secrets, strings.TrimSpace(string(credential)))
	}
	require.Greater(t, len(secrets), 15, "tokens, keys and kubeconfigs are among them")

	seen := map[string]string{}
	for _, args := range [][]string{{"status"}, {"status", "-o", "json"}, {"machines"}, {"machines", "-o", "json"}, {"events", "-n", "100000"}, {"events", "-n", "100000", "-o", "json"}} {
		out, err := r.do(args...)
		require.NoError(t, err, out)
		seen["rackstrap "+strings.Join(args, " ")] = out
	}
	metrics, err := r.machines[0].curl("http://10.10.10.1:8080/metrics")
	require.NoError(t, err)
	seen["/metrics"] = string(metrics)
	require.NoError(t, filepath.WalkDir(r.dir, func(path string, entry os.DirEntry, err error) error {
		inside := strings.HasPrefix(path, filepath.Join(r.dir, "data")+"/")
		if err != nil || !entry.Type().IsRegular() || !inside && filepath.Ext(path) != ".log" {
			return nil // gone meanwhile, or a socket
		}
		text, err := os.ReadFile(path)
		seen[path] = string(text)
		return err
	}))
	require.Contains(t, seen[filepath.Join(r.dir, "daemon.log")], "made token", "the log tells what is done")
	require.Contains(t, seen["rackstrap events -n 100000"], "made token")
	require.NotEmpty(t, seen[filepath.Join(r.dir, "data/rackstrap.db")])
	for where, text := range seen {
		for _, secret := range secrets {
			require.NotEmpty(t, secret)
			if at := strings.Index(text, secret); at >= 0 {
				require.Fail(t, "a secret", "%q is in %s: %q", secret, where, text[max(0, at-100):min(len(text), at+100)])
			}
		}
	}
}
