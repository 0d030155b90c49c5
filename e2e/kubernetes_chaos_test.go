package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/lab"
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
	seed := number(t, "RACKSTRAP_CHAOS_SEED", 1)
	for n := range rounds {
		t.Run(fmt.Sprintf("seed%d", seed+n), func(t *testing.T) { realChaosRound(t, uint64(seed+n)) })
	}
}

func realChaosRound(t *testing.T, seed uint64) {
	text := strings.Replace(kubeConfig, "  docker: false", "  docker: false\n  attempts: 20", 1)
	r := newKubeRack(t, "e2ec", text[:strings.Index(text, "  - {name: knode3")])
	up := []string{"--second-nic", twoNICs, "--off"}
	r.up(up...)

	r.begun, r.last = time.Now(), time.Now()
	machines := []string{"kmaster", "kmaster2", "kmaster3", "knode1", "knode2"}
	r.power("on", machines...)
	random := rand.New(rand.NewPCG(seed, 0))
	for range 10 {
		time.Sleep(time.Duration(8+random.IntN(25)) * time.Second)
		if random.IntN(3) == 0 {
			r.killAppliance()
			time.Sleep(time.Duration(random.IntN(6)) * time.Second)
			r.up(up...)
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
