package e2e

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/internal/testenv"
	"rackstrap/lab"
	"rackstrap/lab/kube"
	"rackstrap/lifecycle"
)

// With real Kubernetes: three masters and two workers are powered on at once, and while they install, initialise and
// join, machines lose their power and the appliance is killed. RACKSTRAP_REAL_CHAOS_ROUNDS of it (`make chaos-kubernetes`):
// a round takes some minutes, and TestChaos plays hundreds of them with a stand-in for kubeadm.
func TestRealChaos(t *testing.T) {
	rounds := number(t, "RACKSTRAP_REAL_CHAOS_ROUNDS", 0)
	if rounds == 0 {
		t.Skip("minutes for each round: `make chaos-kubernetes` runs it")
	}
	testenv.NeedRoot(t)
	testenv.NeedTool(t, "ip", "nsenter", "setpriv", "mmdebstrap", "createrepo_c", "bash")
	seed := number(t, "RACKSTRAP_CHAOS_SEED", 1)
	programs, err := kube.Build(t.Context(), "", slog.New(slog.NewTextHandler(t.Output(), nil)))
	require.NoError(t, err)
	for n := range rounds {
		t.Run(fmt.Sprintf("seed%d", seed+n), func(t *testing.T) { realChaosRound(t, uint64(seed+n), programs.Path("kubectl")) })
	}
}

func realChaosRound(t *testing.T, seed uint64, kubectl string) {
	state, err := os.MkdirTemp("/var/tmp", "rackstrap-e2e-")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(state) })
	config := filepath.Join(state, "config.yaml")
	text := strings.Replace(kubeConfig, "{docker: false}", "{docker: false, attempts: 20}", 1)
	text = text[:strings.Index(text, "  - {name: knode3")]
	require.NoError(t, os.WriteFile(config, []byte(text), 0o600))
	r := &kubeRack{virtualRack: &virtualRack{t: t, name: fmt.Sprintf("e2ec%d", os.Getpid()), state: filepath.Join(state, "lab")}, kubectl: kubectl}
	t.Cleanup(func() {
		if t.Failed() {
			r.tellLogs()
		}
		rackstrap(t, "lab", "--name", r.name, "--state", r.state, "down")
	})
	up := []string{"--config", config, "lab", "--name", r.name, "--state", r.state, "up", "--firmware", "namespace", "--off"}
	rackstrap(t, up...)

	r.begun, r.last = time.Now(), time.Now()
	machines := []string{"kmaster", "kmaster2", "kmaster3", "knode1", "knode2"}
	r.power("on", machines...)
	random := rand.New(rand.NewPCG(seed, 0))
	for range 10 {
		time.Sleep(time.Duration(8+random.IntN(25)) * time.Second)
		if random.IntN(3) == 0 {
			r.killAppliance()
			time.Sleep(time.Duration(random.IntN(6)) * time.Second)
			rackstrap(t, up...)
			r.step("the appliance was killed and started again")
			continue
		}
		m := machines[random.IntN(len(machines))]
		states := r.states()
		r.power("reset", m)
		r.step("%s lost its power (%s)", m, states[m])
	}

	deadline := time.Now().Add(20 * time.Minute)
	for states := r.states(); ; states = r.states() {
		ready := 0
		for _, m := range machines {
			if states[m] == string(lifecycle.Ready) {
				ready++
			}
		}
		if ready == len(machines) {
			break
		}
		if time.Now().After(deadline) {
			for _, m := range machines {
				t.Log(r.do("events", m, "-n", "30"))
			}
			require.FailNow(t, "deadline", "not all ready: %v", states)
		}
		time.Sleep(time.Second)
	}
	r.step("all five are ready")
	require.Eventually(t, func() bool { // a kubelet that was just reset needs a moment to say so
		nodes, err := r.askNodes()
		if err != nil { // nor has its etcd a leader at once
			t.Log(err)
			return false
		}
		for _, m := range machines {
			if n, ok := nodes[m]; !ok || !n.ready() {
				return false
			}
		}
		return true
	}, 5*time.Minute, 2*time.Second)
	inits := 0
	for _, m := range machines {
		inits += strings.Count(r.do("events", m, "-n", "500"), "the cluster is initialised")
	}
	require.Equal(t, 1, inits, "initialised once")
	r.requireNoToken("kmaster")
	t.Logf("seed %d:\n%s", seed, strings.Join(r.line, "\n"))
}

func (r *kubeRack) states() map[string]string {
	r.t.Helper()
	found := map[string]string{}
	for _, m := range r.status().Machines {
		found[m.Name] = string(m.State)
	}
	return found
}

// killAppliance ends the daemon without a word.
func (r *kubeRack) killAppliance() {
	r.t.Helper()
	all, err := lab.New(lab.Spec{StateDir: r.state}, nil).Appliances()
	require.NoError(r.t, err)
	for _, a := range all {
		if a.Running && strings.Contains(strings.Join(a.Args, " "), " serve") {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			require.NoError(r.t, exec.CommandContext(ctx, "kill", "-9", fmt.Sprint(a.PID)).Run())
			cancel()
		}
	}
}
