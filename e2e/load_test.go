package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
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

	"rackstrap/firstboot/agent"
	"rackstrap/firstboot/api"
	"rackstrap/internal/fakenode"
	"rackstrap/internal/repotest"
	"rackstrap/internal/testenv"
)

const loadEnv = "RACKSTRAP_E2E_LOAD" // the rack of the process that plays the nodes

// loadRack is what the test tells the process that plays the nodes.
type loadRack struct {
	Dir   string
	Nodes []loadNode
}

type loadNode struct{ Name, MAC, IP, Role string }

// loadReport is what that process found.
type loadReport struct {
	Installed, Ready time.Duration // kickstarts fetched and reported; from the first exchange to the last node Ready
	Calls            map[string]loadCalls
	Faults           []string
	Tokens           []string // left over
}

type loadCalls struct {
	Count, Failed int
	P50, P99, Max time.Duration
}

// Done-when 6: many nodes at once, with the agent's own protocol over TLS, each from an address of its own, all get
// Ready. RACKSTRAP_LOAD_NODES says how many; scripts/bench-nodes.sh prints what 1,000 cost.
func TestNodesAtOnce(t *testing.T) {
	testenv.NeedRoot(t)
	count := number(t, "RACKSTRAP_LOAD_NODES", 50)
	ns := "e2eload" + strconv.Itoa(os.Getpid()) // somebody else may try the same on this host
	remove := func() { exec.Command("ip", "netns", "del", ns).Run() }
	remove()
	t.Cleanup(remove)
	ip(t, "netns add "+ns)
	ip(t, "-n "+ns+" addr add 10.30.0.1/16 dev lo") // on a loopback the whole prefix is this host's
	ip(t, "-n "+ns+" link set lo up")

	dir, err := os.MkdirTemp("", "e2eload")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	rack := loadRack{Dir: dir}
	for i := range count {
		role := "worker"
		if i < 3 {
			role = "control-plane"
		}
		rack.Nodes = append(rack.Nodes, loadNode{fmt.Sprintf("m%d", i), fmt.Sprintf("52:54:00:03:%02x:%02x", i>>8, i&255), fmt.Sprintf("10.30.%d.%d", 1+i/200, 1+i%200), role})
	}
	d := network{servers: ns}.serve(t, loadConfig(t, rack))

	told, err := json.Marshal(rack)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "rack.json"), told, 0o600))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "ip", "netns", "exec", ns, os.Args[0], "-test.run", "^TestPlayNodes$", "-test.timeout", "20m")
	cmd.Env = append(os.Environ(), loadEnv+"="+filepath.Join(dir, "rack.json"))
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	failed := cmd.Run()
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
	require.NoError(t, failed, output.String()[max(0, output.Len()-6000):])
	var report loadReport
	text, err := os.ReadFile(filepath.Join(dir, "report.json"))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, &report))
	require.Empty(t, report.Faults)
	require.Empty(t, report.Tokens)

	_, high, _ := strings.Cut(string(status), "VmHWM:")
	high, _, _ = strings.Cut(strings.TrimSpace(high), "\n")
	var kib int
	fmt.Sscan(high, &kib)
	require.Positive(t, kib)
	t.Logf("%d nodes: installed in %s, all Ready %s later, %d MiB of the daemon at most", count,
		report.Installed.Round(100*time.Millisecond), report.Ready.Round(100*time.Millisecond), kib/1024)
	for _, name := range slices.Sorted(maps(report.Calls)) {
		c := report.Calls[name]
		t.Logf("%-14s %6d calls, %d repeated; p50 %s, p99 %s, at most %s", name, c.Count, c.Failed, c.P50, c.P99, c.Max)
	}
}

func maps[V any](m map[string]V) func(func(string) bool) {
	return func(yield func(string) bool) {
		for key := range m {
			if !yield(key) {
				return
			}
		}
	}
}

func loadConfig(t *testing.T, rack loadRack) string {
	t.Helper()
	require.NoError(t, repotest.Medium().Write(filepath.Join(rack.Dir, "tree")))
	var text strings.Builder
	fmt.Fprintf(&text, "server: {interface: lo, address: 10.30.0.1, data_dir: %s/data}\nnetwork: {subnet: 10.30.0.0/16, dhcp: {mode: \"off\"}}\n", rack.Dir)
	fmt.Fprintf(&text, "media: [{name: tree, dir: %s/tree}]\ncluster: {pod_cidr: 10.244.0.0/14}\nmachines:\n", rack.Dir)
	for _, n := range rack.Nodes {
		fmt.Fprintf(&text, "  - {name: %s, mac: %q, ip: %s, role: %s}\n", n.Name, n.MAC, n.IP, n.Role)
	}
	path := filepath.Join(rack.Dir, "rackstrap.yaml")
	require.NoError(t, os.WriteFile(path, []byte(text.String()), 0o600))
	return path
}

// TestPlayNodes is the process that plays the nodes, inside the namespace.
func TestPlayNodes(t *testing.T) {
	path := os.Getenv(loadEnv)
	if path == "" {
		t.Skip("is started by TestNodesAtOnce")
	}
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	var rack loadRack
	require.NoError(t, json.Unmarshal(text, &rack))
	state, err := os.MkdirTemp("/dev/shm", "e2eload") // a thousand disks: none of them is the one of this host
	require.NoError(t, err)
	defer os.RemoveAll(state)

	watch := &stopwatch{took: map[string][]time.Duration{}, failed: map[string]int{}}
	kube := fakenode.New()
	begun := time.Now()
	nodes := make([]*loadAgent, len(rack.Nodes))
	for i, n := range rack.Nodes {
		nodes[i] = &loadAgent{loadNode: n, state: filepath.Join(state, n.Name), watch: watch, kube: kube}
	}
	inParallel(t, 16, nodes, (*loadAgent).install)
	report := loadReport{Installed: time.Since(begun)}

	begun = time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	masters, stop := context.WithCancel(ctx)
	var workers, resident sync.WaitGroup
	failures := make(chan error, len(nodes))
	run := func(ctx context.Context, group *sync.WaitGroup, n *loadAgent) {
		group.Go(func() {
			if err := n.run(ctx); err != nil {
				failures <- fmt.Errorf("%s: %w", n.Name, err)
				cancel()
			}
		})
	}
	for _, n := range nodes {
		if n.Role == "worker" {
			run(ctx, &workers, n)
		} else {
			run(masters, &resident, n)
		}
	}
	workers.Wait() // they end when their node is Ready
	report.Ready = time.Since(begun)
	for len(kube.TokensLeft()) > 0 && ctx.Err() == nil {
		time.Sleep(100 * time.Millisecond)
	}
	report.Tokens = kube.TokensLeft()
	stop()
	resident.Wait()
	require.NoError(t, ctx.Err())
	select {
	case err := <-failures:
		require.NoError(t, err)
	default:
	}
	report.Calls, report.Faults = watch.report(), kube.Faults
	require.Equal(t, 1, kube.Inits)
	require.Len(t, kube.Nodes, len(nodes))
	text, err = json.Marshal(report)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(rack.Dir, "report.json"), text, 0o600))
}

func inParallel[T any](t *testing.T, width int, all []T, do func(T) error) {
	t.Helper()
	next, failed := make(chan T), make(chan error, len(all))
	var group sync.WaitGroup
	for range width {
		group.Go(func() {
			for one := range next {
				if err := do(one); err != nil {
					failed <- err
				}
			}
		})
	}
	for _, one := range all {
		next <- one
	}
	close(next)
	group.Wait()
	close(failed)
	require.NoError(t, <-failed)
}

// loadAgent is one simulated node: the real agent, with a machine that is not there.
type loadAgent struct {
	loadNode
	state  string
	watch  *stopwatch
	kube   *fakenode.Kube
	config api.Config
	client *http.Client
}

func (n *loadAgent) dial(ctx context.Context, network, address string) (net.Conn, error) {
	dialer := net.Dialer{Timeout: 30 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(n.IP)}}
	return dialer.DialContext(ctx, network, address)
}

// install fetches the kickstart and reports that it was followed.
func (n *loadAgent) install() error {
	plain := &http.Client{Transport: &http.Transport{DialContext: n.dial, DisableKeepAlives: true}, Timeout: 2 * time.Minute}
	get := func(url string) (string, error) {
		req, err := http.NewRequest(http.MethodGet, url, nil)
		if err != nil {
			return "", err
		}
		req.Header.Set("X-RHN-Provisioning-MAC-0", "eth0 "+n.MAC)
		resp, err := plain.Do(req)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			return "", errors.Join(err, fmt.Errorf("%s, for %s: %s %s", url, n.Name, resp.Status, text))
		}
		return string(text), nil
	}
	script, err := get("http://10.30.0.1:8080/boot/" + strings.ReplaceAll(n.MAC, ":", "-") + "/ipxe")
	if err != nil {
		return err
	}
	url, err := kickstartOf(script)
	if err != nil {
		return err
	}
	text, err := get(url)
	if err != nil {
		return err
	}
	if _, err := get("http://10.30.0.1:8080/media/tree/.treeinfo"); err != nil { // as Anaconda does
		return err
	}
	ca, err := hereDocument(text, "write /etc/rackstrap/ca.pem")
	if err != nil {
		return err
	}
	config, err := hereDocument(text, "write /etc/rackstrap/agent.json")
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(config), &n.config); err != nil {
		return err
	}
	n.config.State = n.state
	if n.client, err = agent.NewClient([]byte(ca), n.dial); err != nil {
		return err
	}
	n.client.Transport = &timed{n.client.Transport, n.watch}
	event, err := json.Marshal(api.Event{Attempt: n.config.Attempt, Kind: "installed", Phase: "post"})
	if err != nil {
		return err
	}
	req, err := http.NewRequest(http.MethodPost, n.config.Server+"/api/v1/nodes/"+n.Name+"/events", bytes.NewReader(event))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+n.config.Token)
	req.Header.Set("Content-Type", "application/json")
	answer, err := n.client.Do(req)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	n.client.CloseIdleConnections() // it reboots
	if answer.StatusCode != http.StatusNoContent {
		return fmt.Errorf("%s is installed: %s", n.Name, answer.Status)
	}
	return nil
}

func (n *loadAgent) run(ctx context.Context) error {
	return agent.Run(ctx, agent.Options{Config: n.config, Client: n.client, Now: time.Now, Log: slog.New(slog.DiscardHandler),
		Machine: &loadMachine{fakenode.Machine{Name: n.Name, IP: n.IP, Kube: n.kube}}})
}

type loadMachine struct{ fakenode.Machine }

func (m *loadMachine) Import(context.Context, []api.Image, func(string, int)) error { return nil }

func (m *loadMachine) Facts(context.Context) api.Facts {
	return api.Facts{Hostname: m.Name, CPUs: 4, MemoryMiB: 8192, Agent: "load", Clock: time.Now()}
}

func (m *loadMachine) Do(_ context.Context, w api.Work, tell func(string, int)) agent.Outcome {
	if w.Action == api.Init || w.Action == api.Join || w.Action == api.JoinControlPlane {
		tell("kubeadm", 0)
	}
	return agent.Outcome{Result: m.Machine.Do(w)}
}

// stopwatch times the calls, by kind.
type stopwatch struct {
	mu     sync.Mutex
	took   map[string][]time.Duration
	failed map[string]int
}

type timed struct {
	http.RoundTripper
	watch *stopwatch
}

func (t *timed) RoundTrip(r *http.Request) (*http.Response, error) {
	begun := time.Now()
	resp, err := t.RoundTripper.RoundTrip(r)
	parts := strings.Split(r.URL.Path, "/")
	name := parts[len(parts)-1]
	if name == "work" { // a long poll: what it waited is no delay
		name = "work, waited"
		if resp != nil && resp.StatusCode == http.StatusOK && time.Since(begun) < 100*time.Millisecond {
			name = "work, at once"
		}
	}
	t.watch.mu.Lock()
	defer t.watch.mu.Unlock()
	t.watch.took[name] = append(t.watch.took[name], time.Since(begun))
	if err != nil && r.Context().Err() == nil || resp != nil && resp.StatusCode >= 400 {
		t.watch.failed[name]++
	}
	return resp, err
}

// CloseIdleConnections implements what http.Client looks for.
func (t *timed) CloseIdleConnections() { t.RoundTripper.(*http.Transport).CloseIdleConnections() }

func (w *stopwatch) report() map[string]loadCalls {
	w.mu.Lock()
	defer w.mu.Unlock()
	calls := map[string]loadCalls{}
	for name, took := range w.took {
		slices.Sort(took)
		at := func(share float64) time.Duration {
			return took[int(share*float64(len(took)-1))].Round(100 * time.Microsecond)
		}
		calls[name] = loadCalls{Count: len(took), Failed: w.failed[name], P50: at(0.5), P99: at(0.99), Max: at(1)}
	}
	return calls
}
