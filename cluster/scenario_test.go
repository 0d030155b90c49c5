package cluster

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/firstboot/api"
	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

// events are the texts of a machine's timeline; "" is the whole rack's.
func (r *rack) events(name string) []string {
	r.t.Helper()
	q := lifecycle.EventQuery{}
	if name != "" {
		q.MAC = r.agent(name).mac
	}
	all, err := r.rack.Events(context.Background(), q)
	require.NoError(r.t, err)
	var texts []string
	for _, e := range all {
		texts = append(texts, string(e.Level)+" "+e.Kind+": "+e.Text)
	}
	return texts
}

func (r *rack) told(name, text string) bool {
	return slices.ContainsFunc(r.events(name), func(e string) bool { return strings.Contains(e, text) })
}

// spoilFirst has an action fail so many times.
func spoilFirst(action api.Action, times int, with api.Result) func(api.Work, *api.Result) {
	return func(w api.Work, result *api.Result) {
		if w.Action == action && times > 0 {
			times--
			*result = with
		}
	}
}

func TestFirstControlPlaneOfTheListInitialises(t *testing.T) {
	r := newRack(t, 3, 1)
	require.NoError(t, r.start())
	for _, name := range []string{"kmaster3", "kmaster2", "knode1"} {
		require.NoError(t, r.install(r.agent(name)))
	}
	for range 20 {
		require.NoError(t, r.round())
	}
	require.Zero(t, r.kube.Inits, "the first one of the list is still to come")
	require.Equal(t, "waits for kmaster1, the first control plane of the list, to call home", r.c.Status().Waiting["kmaster2"])
	require.Equal(t, lifecycle.Waiting, r.state("kmaster2"))

	_, err := r.c.Hold(t.Context(), "kmaster1", HoldOptions{}, func(string) {})
	require.NoError(t, err)
	r.until("kmaster2 initialises in its place", r.ready("kmaster2", "kmaster3", "knode1"))
	require.Equal(t, "kmaster2", r.rack.Cluster().Holder)
	require.Equal(t, 1, r.kube.Inits)
}

// Two control planes ask at the same instant, again and again.
func TestOneInitOfTwoThatRace(t *testing.T) {
	for range 50 {
		r := newRack(t, 2, 0).all()
		for _, a := range r.agents {
			require.NoError(t, r.step(a)) // exchange
		}
		_, err := r.c.Hold(t.Context(), "kmaster1", HoldOptions{}, func(string) {})
		require.NoError(t, err)
		_, err = r.c.Unhold(t.Context(), "kmaster1") // now either may be the first to be looked at
		require.NoError(t, err)
		var inits sync.Map
		var both sync.WaitGroup
		for _, a := range r.agents {
			both.Go(func() {
				work, _, err := r.c.Work(context.Background(), Question{Name: a.Name, Attempt: a.attempt})
				if err != nil {
					t.Error(err)
				}
				if work != nil && work.Action == api.Init {
					inits.Store(a.Name, true)
				}
			})
		}
		both.Wait()
		n := 0
		inits.Range(func(any, any) bool { n++; return true })
		require.LessOrEqual(t, n, 1)
	}
}

func TestTooSmallForAControlPlane(t *testing.T) {
	r := newRack(t, 2, 1)
	r.agent("kmaster1").facts = func(f *api.Facts) { f.CPUs = 1 }
	r.agent("kmaster2").facts = func(f *api.Facts) { f.MemoryMiB = 1024 }
	r.agent("knode1").facts = func(f *api.Facts) { f.CPUs, f.MemoryMiB = 1, 1024 } // a worker may be
	r.all()
	r.until("failed", func() bool { return r.state("kmaster1") == lifecycle.Failed && r.state("kmaster2") == lifecycle.Failed })
	require.Contains(t, r.record("kmaster1").Failure.Reason, "it has 1 CPU, a control plane needs 2")
	require.Contains(t, r.record("kmaster2").Failure.Reason, "it has 1024 MiB of memory, a control plane needs 1700")
	for range 5 {
		require.NoError(t, r.round())
	}
	require.Zero(t, r.kube.Inits)
	require.Contains(t, r.c.Status().Waiting["knode1"], "all of the list have failed or are held")
}

func TestClockTwoHoursOff(t *testing.T) {
	r := newRack(t, 1, 1)
	r.agent("kmaster1").clock = -2 * time.Hour
	r.all()
	for range 20 {
		require.NoError(t, r.round())
	}
	require.Zero(t, r.kube.Inits)
	require.Equal(t, "its clock is 2h0m0s behind the appliance's: chronyd has to set it first", r.c.Status().Waiting["kmaster1"])
	require.True(t, r.told("kmaster1", "alarm clock: its clock is 2h0m0s behind"))
	r.agent("kmaster1").clock = time.Second
	r.until("settled", r.settled)
	r.sound()
}

func TestInitIsTriedThreeTimes(t *testing.T) {
	failure := api.Result{Error: "timed out waiting for the condition, token abcdef.0123456789abcdef", Retryable: true, Missing: []string{"registry.lab/etcd:3.5.9-0"}}
	r := newRack(t, 2, 0)
	first := r.agent("kmaster1")
	first.spoil = spoilFirst(api.Init, 2, failure)
	r.all()
	r.until("settled", func() bool { return r.ready()() })
	require.Equal(t, []api.Action{api.Init, api.Init, api.Init}, first.trace[:3], "what it left, the agent judges: it may be a cluster")
	require.True(t, r.told("kmaster1", "init failed, try 2 of 3: timed out waiting for the condition, (removed); images that are missing: registry.lab/etcd:3.5.9-0"))

	r = newRack(t, 2, 0)
	r.agent("kmaster1").spoil = spoilFirst(api.Init, 3, failure)
	r.all()
	r.until("failed", func() bool { return r.state("kmaster1") == lifecycle.Failed })
	for range 20 {
		require.NoError(t, r.round())
	}
	require.Equal(t, lifecycle.Waiting, r.state("kmaster2"), "the lock is never handed on by itself")
	require.Equal(t, "kmaster1", r.rack.Cluster().Holder)
	require.Equal(t, "waits for kmaster1 to initialise the cluster", r.c.Status().Waiting["kmaster2"])

	_, err := r.c.Reinstall(t.Context(), "kmaster2", ReinstallOptions{ReleaseLock: true}, func(string) {})
	require.ErrorContains(t, err, "kmaster2 does not hold the init lock")
	r.kube.Inits = 0 // those that failed left nothing
	*r.kube = *newKube()
	r.relink()
	_, err = r.c.Hold(t.Context(), "kmaster1", HoldOptions{ReleaseLock: true}, func(string) {})
	require.NoError(t, err)
	r.until("kmaster2 initialises", r.ready("kmaster2"))
	require.Equal(t, "kmaster2", r.rack.Cluster().Holder)

	// The former holder comes back, and joins; what its own init left goes first.
	first = r.agent("kmaster1")
	first.trace, first.Machine.Joined = nil, true
	_, err = r.c.Unhold(t.Context(), "kmaster1")
	require.NoError(t, err)
	_, err = r.c.Adopt(t.Context(), "kmaster1")
	require.NoError(t, err)
	r.until("all are ready", r.ready())
	require.Equal(t, []api.Action{api.Reset, api.JoinControlPlane}, first.trace[:2])
	require.Empty(t, r.kube.Faults)
}

// A master that hangs, and one that dies, while it initialises: nobody else begins; what it says later counts.
func TestInitThatHangs(t *testing.T) {
	r := newRack(t, 2, 1).all()
	first := r.agent("kmaster1")
	r.until("init was handed out", func() bool { return first.work != nil && first.work.Action == api.Init })
	first.down = true
	r.clock.forward(r.cfg.Cluster.Timeouts.Init)
	require.NoError(t, r.round())
	require.Equal(t, lifecycle.Initialising, r.state("kmaster1"), "its agent gives up itself, and may need a moment to say so")
	r.clock.forward(lateness)
	require.NoError(t, r.round())
	require.Equal(t, lifecycle.Failed, r.state("kmaster1"))
	require.Contains(t, r.record("kmaster1").Failure.Reason, "no result of kubeadm init within 15m0s: it keeps the init lock")
	for range 20 {
		require.NoError(t, r.round())
	}
	require.Zero(t, r.kube.Inits)
	first.down = false // it was slow
	r.until("settled", r.settled)
	r.sound()
}

func TestTokenThatExpired(t *testing.T) {
	r := newRack(t, 1, 1).all()
	node := r.agent("knode1")
	r.until("join was handed out", func() bool { return node.work != nil && node.work.Action == api.Join })
	r.kube.Expire()
	minted := r.kube.Minted
	r.until("settled", r.settled)
	r.sound()
	require.Equal(t, minted+1, r.kube.Minted)
	require.Equal(t, []api.Action{api.Join, api.Reset, api.Join, api.Done}, node.trace)
}

func TestJoinThatDoesNotJoin(t *testing.T) {
	r := newRack(t, 1, 1)
	node := r.agent("knode1")
	node.spoil = func(w api.Work, result *api.Result) {
		if w.Action == api.Join { // exit status 0, and the kubelet never comes up
			r.kube.Nodes["knode1"].Ready = false
		}
	}
	r.all()
	r.until("looked at", func() bool { return r.told("knode1", "not-ready: kmaster1: the node is not Ready: KubeletNotReady") })
	require.Equal(t, lifecycle.Joined, r.state("knode1"))
	r.clock.forward(r.cfg.Cluster.Timeouts.Ready)
	r.until("failed", func() bool { return r.state("knode1") == lifecycle.Failed })
	require.Contains(t, r.record("knode1").Failure.Reason, "no master saw the node Ready with the address 10.10.10.11 within 15m0s: the node is not Ready: KubeletNotReady")
	r.until("its token is deleted", func() bool { return len(r.kube.TokensLeft()) == 0 })
	require.Zero(t, r.c.Status().Complete)

	r.kube.Nodes["knode1"].Ready = true
	r.until("settled", r.settled)
	r.sound()
}

// Ready with another address than the list's is not ready: its kubelet took the wrong NIC.
func TestReadyWithAnotherAddress(t *testing.T) {
	r := newRack(t, 1, 1)
	r.agent("knode1").IP = "192.168.1.7"
	r.all()
	r.until("seen", func() bool {
		return strings.Contains(r.c.Status().Waiting["knode1"], "Ready with the address 192.168.1.7, the list says 10.10.10.11")
	})
	require.Equal(t, lifecycle.Joined, r.state("knode1"))
}

func TestJoinIsTriedThreeTimes(t *testing.T) {
	r := newRack(t, 2, 1)
	r.agent("kmaster2").spoil = spoilFirst(api.JoinControlPlane, 99, api.Result{Error: "etcd is not well", Retryable: true})
	r.agent("knode1").spoil = spoilFirst(api.Join, 99, api.Result{Error: "no such file", Retryable: false})
	r.all()
	r.until("failed", func() bool { return r.state("kmaster2") == lifecycle.Failed && r.state("knode1") == lifecycle.Failed })
	require.Equal(t, "join-control-plane failed, try 3 of 3: etcd is not well", r.record("kmaster2").Failure.Reason)
	require.Equal(t, lifecycle.Joining, r.record("kmaster2").Failure.Phase)
	require.Equal(t, "join failed, try 1 of 3: no such file", r.record("knode1").Failure.Reason, "where another try cannot help, there is none")
	r.until("their tokens are deleted, their turn is over", func() bool { return len(r.kube.TokensLeft()) == 0 && r.rack.Cluster().Joining == "" })

	// The operator has put it right, and wants it tried again without an installation.
	r.agent("knode1").spoil = nil
	_, err := r.c.Adopt(t.Context(), "knode1")
	require.NoError(t, err)
	r.until("ready", r.ready("knode1"))
}

func TestControlPlanesJoinOneAtATime(t *testing.T) {
	r := newRack(t, 5, 0).all()
	r.until("settled", func() bool {
		joining := 0
		for _, m := range r.rack.Members("") {
			if st := m.Record.State; m.Machine.Name != "kmaster1" && (st == lifecycle.Joining || st == lifecycle.Joined) {
				joining++
			}
		}
		require.LessOrEqual(t, joining, 1)
		return r.ready()()
	})
	require.Empty(t, r.kube.Faults)
}

// A control plane whose turn it is goes away before it was handed its join: the next one goes first.
func TestTurnOfOneThatWentAway(t *testing.T) {
	r := newRack(t, 3, 0).all()
	r.until("it is the turn of one", func() bool { return r.rack.Cluster().Joining != "" })
	gone := r.rack.Cluster().Joining
	r.agent(gone).down = true
	r.agent(gone).work = nil
	r.clock.forward(2 * time.Minute)
	require.Contains(t, r.c.Status().Waiting[gone], "its agent has not called for 2m")
	other := map[string]string{"kmaster2": "kmaster3", "kmaster3": "kmaster2"}[gone]
	r.until("the other one is ready", r.ready(other))
	r.agent(gone).down = false
	r.until("all are", r.ready())
	require.Empty(t, r.kube.Faults)
	for _, name := range []string{"kmaster2", "kmaster3"} {
		require.False(t, r.told(name, "warn retry"), "a key of an upload before the last one is handed to nobody")
	}
}

// The first master is lost for good, right after the cluster was initialised by it and joined by two others.
func TestFirstMasterIsLost(t *testing.T) {
	r := newRack(t, 3, 1)
	require.NoError(t, r.start())
	for _, a := range r.agents[:3] {
		require.NoError(t, r.install(a))
	}
	r.until("three masters", r.ready("kmaster1", "kmaster2", "kmaster3"))
	r.agent("kmaster1").down = true
	r.kube.Lose("kmaster1")
	r.clock.forward(5 * time.Minute)
	require.NoError(t, r.install(r.agent("knode1")))
	node := r.agent("knode1")
	r.until("join was handed out", func() bool { return node.work != nil && node.work.Action == api.Join })
	require.Equal(t, "k8s-api.lab", node.work.EndpointName)
	require.Equal(t, []string{"10.10.10.11", "10.10.10.12", "10.10.10.10"}, node.work.EndpointAddresses, "those that answer first")
	r.until("ready", r.ready("knode1"))

	// A chore that lies at a dead master is given to the next.
	st := r.c.Status()
	require.False(t, st.Masters[0].Alive)
	require.True(t, st.Masters[1].Alive)
}

func TestChoreOfADeadMaster(t *testing.T) {
	r := newRack(t, 2, 1)
	require.NoError(t, r.start())
	for _, a := range r.agents[:2] {
		require.NoError(t, r.install(a))
	}
	r.until("two masters", r.ready("kmaster1", "kmaster2"))
	require.NoError(t, r.install(r.agent("knode1")))
	minting := func() *agent {
		for _, a := range r.agents[:2] {
			if a.work != nil && a.work.Action == api.MintToken && a.result == nil {
				return a
			}
		}
		return nil
	}
	r.until("a master is about to mint", func() bool { return minting() != nil })
	minting().down = true
	r.until("ready", r.ready("knode1"))
}

// A master that cannot do anything any more does not keep the others from doing it.
func TestMasterThatFailsAtEverything(t *testing.T) {
	r := newRack(t, 2, 3)
	require.NoError(t, r.start())
	for _, a := range r.agents[:2] {
		require.NoError(t, r.install(a))
	}
	r.until("two masters", r.ready("kmaster1", "kmaster2"))
	r.agent("kmaster1").spoil = func(w api.Work, result *api.Result) { *result = api.Result{Error: "the disk is full"} }
	for _, a := range r.agents[2:] {
		require.NoError(t, r.install(a))
	}
	r.until("ready", r.ready("knode1", "knode2", "knode3"))
	require.Empty(t, r.kube.Faults)
}

func TestStalls(t *testing.T) {
	r := newRack(t, 1, 2)
	require.NoError(t, r.start())
	require.NoError(t, r.install(r.agent("knode1")))
	require.NoError(t, r.install(r.agent("knode2")))
	r.agent("knode2").down = true
	for range 30 {
		require.NoError(t, r.round())
	}
	require.False(t, r.told("knode1", "warn stall"))
	for range 12 {
		r.clock.forward(time.Minute)
		require.NoError(t, r.round())
	}
	require.True(t, r.told("knode1", "warn stall: waiting for 10m"))
	require.True(t, r.told("knode1", "waits for kmaster1, the first control plane of the list, to call home"))
	require.True(t, r.told("knode2", "its agent has not called home: does it boot its disk?"))
	n := 0
	for _, e := range r.events("knode1") {
		if strings.Contains(e, "warn stall") {
			n++
		}
	}
	require.Equal(t, 1, n, "it is said once")
	require.NoError(t, r.install(r.agent("kmaster1")))
	r.agent("knode2").down = false
	r.until("settled", r.settled)
	r.sound()
}

func TestNoMasterIsLeft(t *testing.T) {
	r := newRack(t, 1, 1)
	require.NoError(t, r.start())
	require.NoError(t, r.install(r.agents[0]))
	r.until("initialised", r.ready("kmaster1"))
	r.agent("kmaster1").down = true
	require.NoError(t, r.install(r.agent("knode1")))
	for range 100 {
		require.NoError(t, r.round())
	}
	require.Contains(t, r.c.Status().Waiting["knode1"], "waits until a master mints a token for it; no control plane has called: kmaster1 for 1m")
}

// ask plays rounds until an operator's wish is done.
func ask[T any](r *rack, wish func() (T, error)) (T, error) {
	type outcome struct {
		v   T
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		v, err := wish()
		done <- outcome{v, err}
	}()
	deadline := time.Now().Add(time.Minute)
	for time.Now().Before(deadline) {
		select {
		case o := <-done:
			return o.v, o.err
		default:
			require.NoError(r.t, r.round())
			time.Sleep(time.Millisecond)
		}
	}
	r.t.Fatal("the operator waits for ever")
	panic("unreachable")
}

func TestReinstall(t *testing.T) {
	for _, name := range []string{"knode1", "kmaster2", "kmaster1"} {
		r := newRack(t, 3, 1).all()
		r.until("settled", r.settled)
		var said []string
		rec, err := ask(r, func() (lifecycle.Record, error) {
			return r.c.Reinstall(context.Background(), name, ReinstallOptions{}, func(text string) { said = append(said, text) })
		})
		require.NoError(t, err)
		require.Equal(t, []any{lifecycle.Armed, 2}, []any{rec.State, rec.Attempt})
		require.Nil(t, r.kube.Nodes[name], "it is out of the cluster before it is wiped")
		require.Equal(t, "draining "+name+" and deleting it from the cluster", said[0])
		require.Equal(t, name+" is out of the cluster", said[len(said)-2])
		require.Contains(t, said[len(said)-1], "reboot it; what "+name+" boots first is not known")
		require.NoError(t, r.install(r.agent(name)))
		r.until("settled", r.settled)
		r.sound()
		require.NotEqual(t, api.Init, r.agent(name).trace[len(r.agent(name).trace)-1])
	}
}

func TestReinstallByForce(t *testing.T) {
	r := newRack(t, 1, 1).all()
	r.until("settled", r.settled)
	r.agent("kmaster1").down = true
	r.clock.forward(5 * time.Minute)
	_, err := r.c.Reinstall(t.Context(), "knode1", ReinstallOptions{Force: true}, func(string) {})
	require.NoError(t, err)
	require.NoError(t, r.install(r.agent("knode1"))) // its old node still counts as Ready: a join would be refused
	for range 50 {
		require.NoError(t, r.round())
	}
	require.Contains(t, r.c.Status().Waiting["knode1"], "waits until a master deletes its former self from the cluster")
	r.agent("kmaster1").down = false
	r.until("settled", r.settled)
	r.sound()
}

func TestReinstallOfTheOnlyControlPlane(t *testing.T) {
	r := newRack(t, 1, 1).all()
	r.until("settled", r.settled)
	_, err := r.c.Reinstall(t.Context(), "kmaster1", ReinstallOptions{}, func(string) {})
	var refused *RefusedError
	require.ErrorAs(t, err, &refused)
	require.ErrorContains(t, err, "kmaster1 is the only control plane of the cluster")
	require.Equal(t, lifecycle.Ready, r.state("kmaster1"))

	_, err = r.c.Reinstall(t.Context(), "kmaster1", ReinstallOptions{ReleaseLock: true}, func(string) {})
	require.NoError(t, err)
	require.Empty(t, r.rack.Cluster().Holder)
	require.Contains(t, r.record("knode1").Failure.Reason, "the cluster that it joined was given up with kmaster1")
	*r.kube = *newKube()
	r.relink()
	_, err = r.c.Reinstall(t.Context(), "knode1", ReinstallOptions{}, func(string) {})
	require.NoError(t, err)
	for _, a := range r.agents {
		require.NoError(t, r.install(a))
	}
	r.until("settled", r.settled)
	r.sound()
}

// The only control plane is broken for good: the operator begins anew with it.
func TestReinstallOfTheOnlyControlPlaneThatFailed(t *testing.T) {
	r := newRack(t, 1, 0).all()
	r.until("settled", r.settled)
	_, err := r.rack.Fail(t.Context(), "kmaster1", "its disk is broken", false)
	require.NoError(t, err)
	_, err = r.c.Reinstall(t.Context(), "kmaster1", ReinstallOptions{Force: true}, func(string) {})
	require.ErrorContains(t, err, "kmaster1 is the only control plane of the cluster")
	_, err = r.c.Reinstall(t.Context(), "kmaster1", ReinstallOptions{ReleaseLock: true}, func(string) {})
	require.NoError(t, err)
	*r.kube = *newKube()
	r.relink()
	require.NoError(t, r.install(r.agent("kmaster1")))
	r.until("settled", r.settled)
	r.sound()
}

// The holder of the lock is taken out of the list before it has initialised.
func TestHolderThatIsNotListedAnyMore(t *testing.T) {
	r := newRack(t, 2, 0).all()
	r.until("init was handed out", func() bool { return r.agent("kmaster1").work != nil })
	other := *r.cfg
	other.Machines = r.cfg.Machines[1:]
	require.NoError(t, r.rack.Reload(t.Context(), &other))
	r.agents = r.agents[1:]
	for range 5 {
		require.NoError(t, r.round())
	}
	require.Contains(t, r.c.Status().Waiting["kmaster2"], "is not in the list any more: `rackstrap hold kmaster1 --release-lock`")
	_, err := r.c.Hold(t.Context(), "kmaster1", HoldOptions{}, func(string) {})
	var unknown *lifecycle.UnknownMachineError
	require.ErrorAs(t, err, &unknown)
	_, err = r.c.Hold(t.Context(), "kmaster1", HoldOptions{ReleaseLock: true}, func(string) {})
	require.NoError(t, err)
	r.until("settled", r.settled)
	require.Equal(t, "kmaster2", r.rack.Cluster().Holder)
}

// The holder of the lock is reinstalled before the cluster was: it keeps the lock, and begins anew.
func TestReinstallOfTheHolder(t *testing.T) {
	r := newRack(t, 2, 0).all()
	first := r.agent("kmaster1")
	r.until("init was handed out", func() bool { return first.work != nil })
	_, err := r.c.Reinstall(t.Context(), "kmaster1", ReinstallOptions{}, func(string) {})
	require.NoError(t, err)
	require.NoError(t, r.install(first))
	r.until("settled", r.settled)
	r.sound()
	require.Equal(t, 2, r.rack.Cluster().Attempt)
}

func TestKubeconfigAndVerify(t *testing.T) {
	r := newRack(t, 1, 2).all()
	_, err := r.c.Kubeconfig(t.Context())
	require.ErrorContains(t, err, "no control plane in the cluster")
	require.ErrorContains(t, r.c.Verify(t.Context(), func(string) {}), "no machine is ready yet")
	r.until("settled", r.settled)
	text, err := ask(r, func() (string, error) { return r.c.Kubeconfig(context.Background()) })
	require.NoError(t, err)
	require.Contains(t, text, "kind: Config")
	var said []string
	_, err = ask(r, func() (any, error) {
		return nil, r.c.Verify(context.Background(), func(text string) { said = append(said, text) })
	})
	require.NoError(t, err)
	require.Contains(t, strings.Join(said, "\n"), "reached through 10.10.10.10 10.10.10.11 10.10.10.12")
	r.agent("kmaster1").spoil = spoilFirst(api.VerifyCluster, 1, api.Result{Error: "no answer through 10.10.10.11"})
	_, err = ask(r, func() (any, error) { return nil, r.c.Verify(context.Background(), func(string) {}) })
	require.ErrorContains(t, err, "kmaster1: no answer through 10.10.10.11")
	r.agent("kmaster1").spoil = spoilFirst(api.VerifyCluster, 1, api.Result{OK: true, Output: strings.Repeat("\x1b[2J\u202eready\n", 1000)})
	said = nil
	_, err = ask(r, func() (any, error) {
		return nil, r.c.Verify(context.Background(), func(text string) { said = append(said, text) })
	})
	require.NoError(t, err)
	require.LessOrEqual(t, len(said), maxLines+3)
	require.Contains(t, said, "?[2J?ready")
	require.NotRegexp(t, `[^ -~…]`, strings.Join(said, ""))
	r.noSecrets()
}

// What an agent says is material, never text to be run: anything else than a token, a key or a CA is refused.
func TestResultsThatAreNone(t *testing.T) {
	for what, spoil := range map[string]func(w api.Work, r *api.Result){
		"a token with shell in it":      func(w api.Work, r *api.Result) { r.Token = w.TokenID + ".$(reboot)12345678" },
		"a token that is longer":        func(w api.Work, r *api.Result) { r.Token += "x" },
		"a token that another has":      func(w api.Work, r *api.Result) { r.Token = "zzzzzz.0123456789abcdef" },
		"no token":                      func(w api.Work, r *api.Result) { r.Token = "" },
		"a token with a line behind it": func(w api.Work, r *api.Result) { r.Token += "\n--discovery-token-unsafe-skip-ca-verification" },
	} {
		t.Run(what, func(t *testing.T) {
			r := newRack(t, 1, 1)
			r.agent("kmaster1").spoil = func(w api.Work, result *api.Result) {
				if w.Action == api.MintToken {
					spoil(w, result)
				}
			}
			r.all()
			r.until("refused", func() bool { return r.told("knode1", "alarm refused: kmaster1: what it calls a token") })
			require.Equal(t, lifecycle.Waiting, r.state("knode1"))
			r.agent("kmaster1").spoil = nil
			r.until("settled", r.settled)
		})
	}
	for what, key := range map[string]string{"shell": "$(reboot)", "too short": "ab12", "upper case": strings.Repeat("A", 64), "another one": strings.Repeat("a", 64)} {
		t.Run("a key: "+what, func(t *testing.T) {
			r := newRack(t, 2, 0)
			r.agent("kmaster1").spoil = func(w api.Work, result *api.Result) {
				if w.Action == api.UploadCerts {
					result.CertificateKey = key
				}
			}
			r.all()
			r.until("refused", func() bool {
				return r.told("kmaster2", "alarm refused: kmaster1: the certificate key that it reports is not the one that was ordered")
			})
			require.Equal(t, lifecycle.Waiting, r.state("kmaster2"))
		})
	}
	for what, ca := range map[string]string{"none": "", "nonsense": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "a key": "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"} {
		t.Run("a CA: "+what, func(t *testing.T) {
			r := newRack(t, 1, 0)
			r.agent("kmaster1").spoil = spoilFirst(api.Init, 1, api.Result{OK: true, CACert: ca})
			r.all()
			r.until("noticed", func() bool { return r.told("kmaster1", "kubeadm init reported a CA that is none") })
			require.Zero(t, r.rack.Cluster().Initialised)
		})
	}
}

// Results for works that are others', over, or made up.
func TestResultsThatNobodyWaitsFor(t *testing.T) {
	r := newRack(t, 1, 2).all()
	r.until("settled", r.settled)
	worker := r.agent("knode1")
	for _, id := range []string{"", "init.1.1", "join.1.1x", "mint-token.abcdef.1", "../../etc/passwd", r.record("knode2").Node.Work + " "} {
		err := r.c.Result(t.Context(), worker.Name, worker.attempt, id, api.Result{OK: true, CACert: "x", Token: "abcdef.0123456789abcdef"})
		require.ErrorIs(t, err, ErrUnknownWork, id)
	}
	require.Empty(t, r.rack.Cluster().Stray, "a worker was never asked for a token: no master deletes one at its word")
	require.ErrorIs(t, r.c.Result(t.Context(), worker.Name, worker.attempt+1, "join.1.1", api.Result{OK: true}), lifecycle.ErrSuperseded)
	require.NoError(t, r.c.Result(t.Context(), worker.Name, worker.attempt, r.record("knode1").Node.Done, api.Result{OK: true}), "said twice")
	require.Equal(t, "kmaster1", r.rack.Cluster().Holder)
	require.Equal(t, lifecycle.Ready, r.state("knode1"))
}

func TestHundredsOfMachines(t *testing.T) {
	r := newRack(t, 3, 97).all()
	r.until("settled", r.settled)
	r.sound()
}

func TestWorkWaits(t *testing.T) {
	r := newRack(t, 1, 1).all()
	node := r.agent("knode1")
	require.NoError(t, r.step(node)) // exchange
	asked := make(chan *api.Waiting, 2)
	ask := func(wait time.Duration) {
		_, waiting, err := r.c.Work(context.Background(), Question{Name: node.Name, Attempt: node.attempt, Wait: wait})
		if err != nil {
			t.Error(err)
		}
		asked <- &waiting
	}
	go ask(time.Hour)
	require.Eventually(t, func() bool { return r.state("knode1") == lifecycle.Waiting }, 10*time.Second, time.Millisecond)
	go ask(time.Millisecond) // its agent was restarted: the older question ends
	for range 2 {
		select {
		case w := <-asked:
			require.Equal(t, "waits for kmaster1, the first control plane of the list, to call home", w.Reason)
		case <-time.After(20 * time.Second):
			t.Fatal("a question that nobody answers")
		}
	}

	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, _, err := r.c.Work(ctx, Question{Name: node.Name, Attempt: node.attempt, Wait: time.Hour})
		ended <- err
	}()
	cancel()
	require.ErrorIs(t, <-ended, context.Canceled)

	// One that waits is told at once when there is something for it.
	got := make(chan *api.Work, 1)
	go func() {
		for {
			work, _, err := r.c.Work(context.Background(), Question{Name: node.Name, Attempt: node.attempt, Wait: time.Hour})
			if work != nil || err != nil {
				got <- work
				return
			}
		}
	}()
	begin := time.Now()
	for done := false; !done; {
		require.NoError(t, r.step(r.agent("kmaster1")))
		select {
		case work := <-got:
			require.Equal(t, api.Join, work.Action)
			done = true
		default:
			require.Less(t, time.Since(begin), time.Minute)
		}
	}
}

func TestWrongMACAtExchange(t *testing.T) {
	r := newRack(t, 1, 0).all()
	a := r.agents[0]
	_, err := r.c.Exchange(t.Context(), a.Name, "guess", api.Exchange{Attempt: a.attempt, MAC: "52:54:00:99:99:99"})
	require.ErrorIs(t, err, lifecycle.ErrBadSecret, "whoever has no token learns nothing")
	for _, mac := range []string{"52:54:00:99:99:99", "", "nonsense"} {
		_, err := r.c.Exchange(t.Context(), a.Name, a.token, api.Exchange{Attempt: a.attempt, MAC: mac})
		require.ErrorIs(t, err, ErrForeignMAC, mac)
	}
	// Of several cards the machine names the one that it was installed by, whichever that was.
	second := inventory.MAC{0x52, 0x54, 0, 0, 9, 1}
	cfg := *r.cfg
	cfg.Machines = slices.Clone(cfg.Machines)
	cfg.Machines[0].MACs = []inventory.MAC{a.mac, second}
	require.NoError(t, r.rack.Reload(t.Context(), &cfg))
	_, err = r.c.Exchange(t.Context(), a.Name, a.token, api.Exchange{Attempt: a.attempt, MAC: second.String()})
	require.NotErrorIs(t, err, ErrForeignMAC)
	_, err = r.c.Exchange(t.Context(), "nobody", a.token, api.Exchange{Attempt: a.attempt, MAC: a.mac.String()})
	var unknown *lifecycle.UnknownMachineError
	require.ErrorAs(t, err, &unknown)
}

func TestDecide(t *testing.T) {
	now := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	done := lifecycle.Cluster{Holder: "kmaster", Initialised: now, CAHash: "sha256:x"}
	master := inventory.Machine{Name: "kmaster2", Role: inventory.RoleControlPlane}
	worker := inventory.Machine{Name: "knode1", Role: inventory.RoleWorker}
	rec := func(state lifecycle.State, n lifecycle.Node) lifecycle.Record {
		return lifecycle.Record{State: state, Attempt: 2, Node: n}
	}
	for _, c := range []struct {
		why   string
		s     situation
		kind  stepKind
		needs []api.Action
	}{
		{"a good credential", situation{machine: worker, record: rec(lifecycle.Installed, lifecycle.Node{})}, stepEnter, nil},
		{"a worker never initialises", situation{machine: worker, first: "knode1", record: rec(lifecycle.Waiting, lifecycle.Node{})}, stepWait, nil},
		{"not its turn", situation{machine: master, first: "kmaster", record: rec(lifecycle.Waiting, lifecycle.Node{})}, stepWait, nil},
		{"its turn", situation{machine: master, first: "kmaster2", record: rec(lifecycle.Firstboot, lifecycle.Node{})}, stepInit, nil},
		{"its turn, after a failure", situation{machine: master, first: "kmaster2", record: rec(lifecycle.Firstboot, lifecycle.Node{Reset: true})}, stepReset, nil},
		{"another one holds the lock", situation{machine: master, first: "kmaster2", cluster: lifecycle.Cluster{Holder: "kmaster"}, record: rec(lifecycle.Firstboot, lifecycle.Node{})}, stepWait, nil},
		{"it holds the lock", situation{machine: master, first: "kmaster", cluster: lifecycle.Cluster{Holder: "kmaster2"}, record: rec(lifecycle.Waiting, lifecycle.Node{})}, stepInit, nil},
		{"the lock was taken from it", situation{machine: master, cluster: lifecycle.Cluster{}, record: rec(lifecycle.Initialising, lifecycle.Node{})}, stepFail, nil},
		{"its result was lost", situation{machine: master, cluster: lifecycle.Cluster{Holder: "kmaster2", Initialised: now}, record: rec(lifecycle.Initialising, lifecycle.Node{})}, stepInit, nil},
		{"a token of its former self", situation{machine: worker, cluster: done, record: rec(lifecycle.Firstboot, lifecycle.Node{TokenID: "abcdef"})}, stepWait, []api.Action{api.DeleteToken}},
		{"its former self", situation{machine: worker, cluster: done, record: rec(lifecycle.Firstboot, lifecycle.Node{Member: 1})}, stepWait, []api.Action{api.DeleteNode}},
		{"joined before it was adopted", situation{machine: worker, cluster: done, record: rec(lifecycle.Firstboot, lifecycle.Node{Member: 2, Done: "join.2.1"})}, stepJoined, nil},
		{"not joined before it was adopted", situation{machine: worker, cluster: done, record: rec(lifecycle.Firstboot, lifecycle.Node{Member: 2, Done: "reset.2.2"})}, stepWait, []api.Action{api.DeleteNode}},
		{"a worker begins", situation{machine: worker, cluster: done, record: rec(lifecycle.Firstboot, lifecycle.Node{})}, stepTokenID, nil},
		{"a token is minted", situation{machine: worker, cluster: done, record: rec(lifecycle.Waiting, lifecycle.Node{TokenID: "abcdef"})}, stepWait, []api.Action{api.MintToken}},
		{"a worker joins", situation{machine: worker, cluster: done, token: true, record: rec(lifecycle.Waiting, lifecycle.Node{TokenID: "abcdef"})}, stepJoin, nil},
		{"a worker is reset before its node is deleted", situation{machine: worker, cluster: done, record: rec(lifecycle.Waiting, lifecycle.Node{TokenID: "abcdef", Reset: true, Member: 2})}, stepReset, nil},
		{"a worker is reset first", situation{machine: worker, cluster: done, token: true, record: rec(lifecycle.Waiting, lifecycle.Node{TokenID: "abcdef", Reset: true})}, stepReset, nil},
		{"a master takes its turn", situation{machine: master, cluster: done, record: rec(lifecycle.Firstboot, lifecycle.Node{})}, stepTurn, nil},
		{"a master waits for its turn", situation{machine: master, cluster: lifecycle.Cluster{Initialised: now, Joining: "kmaster3"}, record: rec(lifecycle.Waiting, lifecycle.Node{})}, stepWait, nil},
		{"a master needs two things", situation{machine: master, cluster: lifecycle.Cluster{Initialised: now, Joining: "kmaster2"}, record: rec(lifecycle.Waiting, lifecycle.Node{TokenID: "abcdef"})}, stepWait, []api.Action{api.MintToken, api.UploadCerts}},
		{"a master needs the certificates", situation{machine: master, token: true, cluster: lifecycle.Cluster{Initialised: now, Joining: "kmaster2"}, record: rec(lifecycle.Waiting, lifecycle.Node{TokenID: "abcdef"})}, stepWait, []api.Action{api.UploadCerts}},
		{"a master joins", situation{machine: master, token: true, key: true, cluster: lifecycle.Cluster{Initialised: now, Joining: "kmaster2"}, record: rec(lifecycle.Waiting, lifecycle.Node{TokenID: "abcdef"})}, stepJoin, nil},
		{"asked again", situation{machine: worker, cluster: done, token: true, record: rec(lifecycle.Joining, lifecycle.Node{TokenID: "abcdef"})}, stepJoin, nil},
		{"asked again after a restart", situation{machine: worker, cluster: done, record: rec(lifecycle.Joining, lifecycle.Node{TokenID: "abcdef"})}, stepWait, []api.Action{api.MintToken}},
		{"a worker that joined", situation{machine: worker, cluster: done, record: rec(lifecycle.Joined, lifecycle.Node{})}, stepWait, []api.Action{api.CheckNode}},
		{"a master that joined", situation{machine: master, cluster: done, record: rec(lifecycle.Joined, lifecycle.Node{})}, stepServe, []api.Action{api.CheckNode}},
		{"a worker that is ready", situation{machine: worker, cluster: done, record: rec(lifecycle.Ready, lifecycle.Node{})}, stepDone, nil},
		{"a master that is ready", situation{machine: master, cluster: done, record: rec(lifecycle.Ready, lifecycle.Node{})}, stepServe, nil},
		{"a clock that is off", situation{machine: worker, cluster: done, skew: -2 * time.Hour, record: rec(lifecycle.Waiting, lifecycle.Node{})}, stepWait, nil},
		{"too small", situation{machine: master, cluster: done, record: rec(lifecycle.Waiting, lifecycle.Node{CPUs: 1})}, stepFail, nil},
		{"one that did not say", situation{machine: master, first: "kmaster2", record: rec(lifecycle.Waiting, lifecycle.Node{})}, stepInit, nil},
		{"failed", situation{machine: worker, cluster: done, record: lifecycle.Record{State: lifecycle.Failed, Failure: &lifecycle.Failure{Reason: "because"}}}, stepWait, nil},
	} {
		d := decide(c.s)
		var needs []api.Action
		for _, n := range d.needs {
			needs = append(needs, n.action)
			require.Equal(t, c.s.machine.Name, n.node)
		}
		require.Equal(t, fmt.Sprint(c.kind, c.needs), fmt.Sprint(d.kind, needs), "%s: %+v", c.why, d)
		if d.kind == stepWait || d.kind == stepFail {
			require.NotEmpty(t, d.reason, c.why)
		}
	}
}

// What was decided on a situation that has changed since is not done.
func TestDecisionsThatCameTooLate(t *testing.T) {
	r := newRack(t, 3, 0).all()
	for _, a := range r.agents {
		require.NoError(t, r.step(a)) // exchange
	}
	member := func(name string) lifecycle.Member {
		m, err := r.rack.Member(name)
		require.NoError(t, err)
		return m
	}
	work, err := r.c.handInit(t.Context(), member("kmaster1"))
	require.NoError(t, err)
	require.Equal(t, api.Init, work.Action)
	_, err = r.c.handInit(t.Context(), member("kmaster2"))
	require.ErrorIs(t, err, errAgain, "the lock is taken once")
	require.Equal(t, "kmaster1", r.rack.Cluster().Holder)
	require.Equal(t, lifecycle.Firstboot, r.state("kmaster2"))

	turn := func(name string) error {
		_, _, err := r.c.carryOut(t.Context(), member(name), situation{}, step{kind: stepTurn})
		return err
	}
	require.NoError(t, turn("kmaster2"))
	require.ErrorIs(t, turn("kmaster3"), errAgain)
	require.NoError(t, turn("kmaster2"))
	require.Equal(t, "kmaster2", r.rack.Cluster().Joining)
}

// The operator has given the lock to another one: what the former holder reports does not make its cluster the rack's.
func TestResultOfAFormerHolder(t *testing.T) {
	r := newRack(t, 2, 0).all()
	first, second := r.agent("kmaster1"), r.agent("kmaster2")
	r.until("init was done, and not reported yet", func() bool { return first.result != nil })
	first.down = true
	id, result := first.work.ID, *first.result
	_, err := r.c.Hold(t.Context(), "kmaster1", HoldOptions{ReleaseLock: true}, func(string) {})
	require.NoError(t, err)
	r.until("init was handed to the other one", func() bool { return second.work != nil && second.work.Action == api.Init })
	var held *lifecycle.HeldError
	require.ErrorAs(t, r.c.Result(t.Context(), "kmaster1", first.attempt, id, result), &held)
	_, err = r.c.Unhold(t.Context(), "kmaster1")
	require.NoError(t, err)
	require.ErrorIs(t, r.c.Result(t.Context(), "kmaster1", first.attempt, id, result), ErrNotHolder)
	require.Zero(t, r.rack.Cluster().Initialised)
	require.Equal(t, "kmaster2", r.rack.Cluster().Holder)
	require.Equal(t, lifecycle.Failed, r.state("kmaster1"))
}

func TestFailureThatIsSaidTwice(t *testing.T) {
	r := newRack(t, 1, 1)
	node := r.agent("knode1")
	node.spoil = spoilFirst(api.Join, 1, api.Result{Error: "no", Retryable: true})
	r.all()
	r.until("it failed to join", func() bool { return node.result != nil && !node.result.OK })
	for range 4 {
		require.NoError(t, r.c.Result(t.Context(), "knode1", node.attempt, node.work.ID, *node.result))
	}
	require.Equal(t, 1, r.record("knode1").Node.Tries)
	r.until("settled", r.settled)
}

// A master is at something for a machine that is another one meanwhile.
func TestChoreForAFormerSelf(t *testing.T) {
	r := newRack(t, 2, 1)
	node := r.agent("knode1")
	node.spoil = spoilFirst(api.Join, 1, api.Result{Error: "no", Retryable: true})
	r.all()
	at := func(action api.Action) *agent {
		for _, a := range r.agents[:2] {
			if a.work != nil && a.work.Action == action && a.work.Node == "knode1" && a.result == nil {
				return a
			}
		}
		return nil
	}
	r.until("a master deletes its node", func() bool { return at(api.DeleteNode) != nil })
	slow := at(api.DeleteNode)
	id := slow.work.ID
	_, err := r.c.Reinstall(t.Context(), "knode1", ReinstallOptions{Force: true}, func(string) {})
	require.NoError(t, err)
	require.NoError(t, r.install(node))
	_, _, err = r.rack.CallHome(t.Context(), "knode1", node.attempt, node.token, func(*lifecycle.Record) {})
	require.NoError(t, err)
	require.NoError(t, r.c.Result(t.Context(), slow.Name, slow.attempt, id, api.Result{OK: true}))
	require.Equal(t, 1, r.record("knode1").Node.Member, "its new self is not out of the cluster by it")
	node.credential = ""
	r.until("settled", r.settled)
	r.sound()
}

// A token is not deleted by one master before another one can have made it.
func TestDeletionWaitsForTheMinting(t *testing.T) {
	r := newRack(t, 2, 1)
	require.NoError(t, r.start())
	for _, a := range r.agents[:2] {
		require.NoError(t, r.install(a))
	}
	r.until("two masters", r.ready("kmaster1", "kmaster2"))
	node := r.agent("knode1")
	require.NoError(t, r.install(node))
	var slow *agent
	r.until("a master is about to mint", func() bool {
		for _, a := range r.agents[:2] {
			if a.work != nil && a.work.Action == api.MintToken && a.result == nil {
				slow = a
			}
		}
		return slow != nil
	})
	slow.down = true
	_, err := r.c.Reinstall(t.Context(), "knode1", ReinstallOptions{Force: true}, func(string) {})
	require.NoError(t, err)
	for range 20 { // seconds
		require.NoError(t, r.round())
	}
	require.NotEmpty(t, r.record("knode1").Node.TokenID, "it may be made any moment")
	slow.down = false
	require.NoError(t, r.install(node))
	r.until("settled", r.settled)
	r.sound()
}
