package cluster

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"rackstrap/firstboot/api"
	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

// node is what the status says of a machine's node.
func (r *rack) node(name string) Node { return r.c.Status().Nodes.Of[name] }

func (r *rack) fresh() bool { return r.c.Status().Nodes.Fresh }

// play lets time go by.
func (r *rack) play(d time.Duration) {
	r.t.Helper()
	for end := r.clock.Now().Add(d); r.clock.Now().Before(end); {
		require.NoError(r.t, r.round())
	}
}

// looks counts how often the nodes were listed.
func (r *rack) looks() (n int) {
	for _, a := range r.agents {
		for _, action := range a.trace {
			if action == api.ListNodes {
				n++
			}
		}
	}
	return n
}

// A node that loses its power after it was ready is not shown as Ready.
func TestNodesNow(t *testing.T) {
	r := newRack(t, 3, 2).all()
	require.False(t, r.fresh())
	require.Empty(t, r.c.Status().Nodes.Of, "nobody is a node yet")
	r.until("settled", r.settled)
	r.until("looked at", r.fresh)
	for _, a := range r.agents {
		require.Equal(t, NodeReady, r.node(a.Name).Condition)
	}
	events := len(r.events(""))

	r.kube.Lose("knode1")
	delete(r.kube.Nodes, "knode2") // kubectl delete node
	r.kube.Nodes["stranger"] = r.kube.Nodes["kmaster1"]
	r.play(lookEvery + 5*time.Second)
	require.Equal(t, Node{Condition: NodeNotReady, Reason: "NodeStatusUnknown"}, r.node("knode1"))
	gone := r.node("knode2")
	require.Equal(t, NodeMissing, gone.Condition)
	require.Equal(t, []string{"stranger"}, r.c.Status().Nodes.Unlisted)
	require.Equal(t, lifecycle.Ready, r.state("knode1"), "the record stays")
	r.play(lookEvery)
	require.Equal(t, gone, r.node("knode2"), "missing since the first look that did not find it")

	before := r.looks()
	r.play(10 * lookEvery)
	require.InDelta(t, 10, r.looks()-before, 1, "one call every half a minute, by one of three masters")
	require.Len(t, r.events(""), events, "nothing of it is written down")
	revision := r.record("knode1").Revision
	r.play(lookEvery)
	require.Equal(t, revision, r.record("knode1").Revision)

	r.kube.Nodes["knode1"].Ready = true
	r.play(lookEvery + 5*time.Second)
	require.Equal(t, NodeReady, r.node("knode1").Condition)
	r.noSecrets()
}

// What nobody can see any more is unknown, and since when.
func TestNodesThatNobodySees(t *testing.T) {
	r := newRack(t, 2, 1).all()
	r.until("settled", r.settled)
	r.until("looked at", r.fresh)
	r.agent("kmaster1").down = true
	r.play(5 * time.Minute)
	require.True(t, r.fresh(), "the other one looks")
	require.Equal(t, "kmaster2", r.c.Status().Nodes.By)

	r.agent("kmaster2").down = true
	last := r.c.Status().Nodes.Seen
	r.play(freshFor + lookEvery)
	st := r.c.Status()
	require.False(t, st.Nodes.Fresh)
	require.Equal(t, last, st.Nodes.Seen)
	require.Contains(t, st.Nodes.Fault, "no control plane has called: kmaster1 for ")
	require.Equal(t, Node{Condition: NodeUnknown, Since: last}, st.Nodes.Of["knode1"])
	require.NoError(t, testutil.CollectAndCompare(r.c, strings.NewReader(`
# HELP rackstrap_cluster_nodes Machines by what Kubernetes says of their nodes now; condition unknown: no control plane could be asked.
# TYPE rackstrap_cluster_nodes gauge
rackstrap_cluster_nodes{condition="NotReady"} 0
rackstrap_cluster_nodes{condition="Ready"} 0
rackstrap_cluster_nodes{condition="missing"} 0
rackstrap_cluster_nodes{condition="unknown"} 3
`), "rackstrap_cluster_nodes"))

	r.agent("kmaster2").down = false
	r.until("looked at again", r.fresh)
	require.NoError(t, testutil.CollectAndCompare(r.c, strings.NewReader(`
# HELP rackstrap_cluster_node What Kubernetes says of the node of a machine now: 1 with that condition.
# TYPE rackstrap_cluster_node gauge
rackstrap_cluster_node{condition="Ready",machine="kmaster1"} 1
rackstrap_cluster_node{condition="Ready",machine="kmaster2"} 1
rackstrap_cluster_node{condition="Ready",machine="knode1"} 1
`), "rackstrap_cluster_node"))

	require.NoError(t, r.start()) // in memory alone: after a restart nobody knows until somebody has looked
	require.Equal(t, Node{Condition: NodeUnknown}, r.node("knode1"))
	r.until("looked at again", r.fresh)
}

// A master that cannot list, is too old for it, or says nonsense: another one is asked, and none of it is shown.
func TestNodesByMastersThatCannot(t *testing.T) {
	for what, spoil := range map[string]func(*api.Result){
		"an older agent":     func(r *api.Result) { *r = api.Result{Error: `"list-nodes" is no action of this agent`} },
		"no node":            func(r *api.Result) { r.Nodes = nil },
		"no name":            func(r *api.Result) { r.Nodes[0].Name = "../../x\x1b[2J" },
		"a name twice":       func(r *api.Result) { r.Nodes = append(r.Nodes, r.Nodes[0]) },
		"no status":          func(r *api.Result) { r.Nodes[0].Ready = "Perhaps" },
		"a reason with text": func(r *api.Result) { r.Nodes[0].Reason = "it says:\n<b>" },
		"no address":         func(r *api.Result) { r.Nodes[0].Address = "10.0.0.1; reboot" },
	} {
		t.Run(what, func(t *testing.T) {
			r := newRack(t, 2, 1).all()
			bad := func(w api.Work, result *api.Result) {
				if w.Action == api.ListNodes {
					spoil(result)
				}
			}
			r.agent("kmaster1").spoil = bad
			r.until("settled", r.settled)
			r.until("looked at", r.fresh)
			require.Equal(t, "kmaster2", r.c.Status().Nodes.By)
			r.agent("kmaster2").spoil = bad
			r.play(freshFor + lookEvery)
			st := r.c.Status()
			require.False(t, st.Nodes.Fresh)
			require.Contains(t, st.Nodes.Fault, "kmaster")
			require.NotContains(t, st.Nodes.Fault, "\x1b")
			before := r.looks()
			r.play(5 * time.Minute)
			require.Less(t, r.looks()-before, 25, "it is not asked without a pause")
		})
	}
}

// A list that was cut, clocks that are ahead, a node with another address, one that was seen Ready since.
func TestWhatALookMeans(t *testing.T) {
	r := newRack(t, 1, 2).all()
	r.until("settled", r.settled)
	r.until("looked at", r.fresh)
	master, err := r.rack.Member("kmaster1")
	require.NoError(t, err)
	take := func(result api.Result) {
		t.Helper()
		result.OK = true
		require.NoError(t, r.c.looked(master, &chore{need: need{action: api.ListNodes}}, result))
	}
	now := r.clock.Now()
	take(api.Result{Partial: true, Nodes: []api.Node{
		{Name: "kmaster1", Ready: "True", Address: "192.168.1.7", Since: now.Add(time.Hour), Cordoned: true},
		{Name: "knode1", Ready: ""}}})
	require.Equal(t, Node{Condition: NodeReady, Since: now, Address: "192.168.1.7", Cordoned: true}, r.node("kmaster1"))
	require.Equal(t, NodeNotReady, r.node("knode1").Condition, "kubelet has not reported")
	require.Equal(t, NodeUnknown, r.node("knode2").Condition, "it may be among those that were cut off")
	require.True(t, r.c.Status().Nodes.Partial)
	r.c.seenReady("knode1", "10.10.10.11")
	require.Equal(t, Node{Condition: NodeReady, Since: now}, r.node("knode1"))

	var many []api.Node
	for i := range 3 * maxUnlisted {
		many = append(many, api.Node{Name: fmt.Sprintf("stranger%d", i), Ready: "True"})
	}
	take(api.Result{Nodes: many})
	require.Len(t, r.c.Status().Nodes.Unlisted, maxUnlisted)
	require.Equal(t, NodeMissing, r.node("kmaster1").Condition)
}

// A reinstalled machine's node is out of the picture at once, and back in it when it is Ready.
func TestNodesAtAReinstallation(t *testing.T) {
	r := newRack(t, 2, 1).all()
	r.until("settled", r.settled)
	r.until("looked at", r.fresh)
	_, err := ask(r, func() (lifecycle.Record, error) {
		return r.c.Reinstall(context.Background(), "knode1", ReinstallOptions{}, func(string) {})
	})
	require.NoError(t, err)
	_, known := r.c.Status().Nodes.Of["knode1"]
	require.False(t, known)
	require.NoError(t, r.install(r.agent("knode1")))
	r.until("ready", r.ready("knode1"))
	require.Equal(t, NodeReady, r.node("knode1").Condition)

	_, err = r.c.Reinstall(t.Context(), "knode1", ReinstallOptions{Force: true}, func(string) {})
	require.NoError(t, err)
	require.Equal(t, NodeReady, r.node("knode1").Condition, "it is there until a master deletes it")
	require.NoError(t, r.install(r.agent("knode1")))
	r.until("deleted", func() bool { return r.told("knode1", "info deleted: ") })
	_, known = r.c.Status().Nodes.Of["knode1"]
	require.False(t, known)
}

// What a control plane reports is shown as long as it is so, and no longer.
func TestProgressThatIsOver(t *testing.T) {
	r := newRack(t, 2, 1)
	report := func(name, phase string) lifecycle.Progress {
		r.rack.Report(name, r.record(name).Attempt, lifecycle.Progress{Phase: phase, Text: "kubeadm"})
		return lifecycle.Progress{Phase: phase, At: r.clock.Now()}
	}
	r.all()
	master := r.agent("kmaster1")
	at := func(action api.Action) func() bool {
		return func() bool { return master.work != nil && master.work.Action == action && master.result == nil }
	}
	r.until("init is handed out", at(api.Init))
	p := report("kmaster1", "init")
	require.True(t, r.c.Current("kmaster1", p))
	require.NoError(t, r.start()) // a restart of the appliance: the init goes on
	require.True(t, r.c.Current("kmaster1", p))

	r.until("the certificates are uploaded", at(api.UploadCerts))
	require.False(t, r.c.Current("kmaster1", p), "the init is done")
	p = report("kmaster1", "upload-certs")
	require.True(t, r.c.Current("kmaster1", p))
	r.clock.forward(time.Second)
	for master.result == nil {
		require.NoError(t, r.step(master))
	}
	require.True(t, r.c.Current("kmaster1", p))
	require.NoError(t, r.step(master)) // its result
	require.False(t, r.c.Current("kmaster1", p), "done")
	p.At = r.clock.Now()
	require.False(t, r.c.Current("kmaster1", p), "a report that was late")
	r.until("settled", r.settled)

	// The same again, and its power is cut in it: it asks anew after its start, or never.
	for _, again := range []bool{true, false} {
		_, err := r.c.Reinstall(t.Context(), "knode1", ReinstallOptions{Force: true}, func(string) {})
		require.NoError(t, err)
		require.NoError(t, r.install(r.agent("knode1")))
		r.agent("kmaster2").down = true
		old := lifecycle.Progress{Phase: "mint-token", At: r.clock.Now()}
		r.clock.forward(time.Second)
		r.until("a token is minted", at(api.MintToken))
		require.False(t, r.c.Current("kmaster1", old), "of another chore of that kind")
		p = report("kmaster1", "mint-token")
		require.True(t, r.c.Current("kmaster1", p))
		master.work = nil
		if again {
			require.NoError(t, r.step(master))
			require.Equal(t, api.MintToken, master.work.Action)
			p.At = p.At.Add(-time.Second)
		} else {
			master.down = true
			r.clock.forward(2 * time.Minute)
		}
		require.False(t, r.c.Current("kmaster1", p))
		master.down, r.agent("kmaster2").down = false, false
		r.until("settled", r.settled)
	}
	require.True(t, r.c.Current("knode1", lifecycle.Progress{Phase: "packages"}), "an installer's is not judged here")
	require.False(t, r.c.Current("nobody", p))
}

// Images that are brought in while a machine waits.
func TestMeanwhileThatIsOver(t *testing.T) {
	r := newRack(t, 1, 1).all()
	r.c.o.Images = func() []api.Image { return []api.Image{{URL: "http://10.10.10.1/images/a.tar"}} }
	node := r.agent("knode1")
	require.NoError(t, r.step(node))
	_, waiting, err := r.c.Work(t.Context(), Question{Name: "knode1", Attempt: node.attempt})
	require.NoError(t, err)
	require.NotEmpty(t, waiting.Meanwhile)
	p := lifecycle.Progress{Phase: api.PhaseMeanwhile, At: r.clock.Now()}
	require.True(t, r.c.Current("knode1", p))
	r.clock.forward(time.Second)
	_, _, err = r.c.Work(t.Context(), Question{Name: "knode1", Attempt: node.attempt, Wait: time.Millisecond})
	require.NoError(t, err)
	require.False(t, r.c.Current("knode1", p), "it asks again: the images are in")
}

// The time that the rack took is measured once; what is reinstalled later has its own.
func TestCompleteAgain(t *testing.T) {
	r := newRack(t, 2, 1).all()
	r.until("settled", r.settled)
	first := r.c.Status()
	require.Equal(t, first.Complete, first.FirstComplete)
	require.Equal(t, time.Date(2026, 11, 26, 12, 0, 1, 0, time.UTC), first.FirstPowerOn)
	r.clock.forward(3 * time.Hour)
	for round, name := range []string{"kmaster1", "knode1"} { // also the one that was switched on first
		_, err := ask(r, func() (lifecycle.Record, error) {
			return r.c.Reinstall(context.Background(), name, ReinstallOptions{}, func(string) {})
		})
		require.NoError(t, err)
		require.Zero(t, r.c.Status().Complete)
		r.clock.forward(time.Hour)
		require.NoError(t, r.install(r.agent(name)))
		r.until("settled", r.settled)
		st := r.c.Status()
		require.Equal(t, []any{first.FirstComplete, first.FirstPowerOn, name}, []any{st.FirstComplete, st.FirstPowerOn, st.Latest})
		require.True(t, st.Complete.After(first.Complete))
		var said []string
		for _, e := range r.events("") {
			if strings.Contains(e, "info complete: ") {
				said = append(said, e)
			}
		}
		require.Len(t, said, 2+round)
		require.Regexp(t, `^info complete: the rack is complete again: 3 machines are Ready, `+name+` \d+s after its power-on$`, said[len(said)-1])
		require.NoError(t, r.start()) // on disk
		require.Equal(t, first.FirstComplete, r.c.Status().FirstComplete)
	}
}

// A cluster that is given up takes the time of its rack with it.
func TestCompleteOfAnotherCluster(t *testing.T) {
	r := newRack(t, 1, 0).all()
	r.until("settled", r.settled)
	first := r.c.Status().FirstComplete
	_, err := r.c.Reinstall(t.Context(), "kmaster1", ReinstallOptions{ReleaseLock: true}, func(string) {})
	require.NoError(t, err)
	require.Zero(t, r.c.Status().FirstComplete)
	require.Zero(t, r.c.Status().Nodes.Seen)
	*r.kube = *newKube()
	r.relink()
	require.NoError(t, r.install(r.agent("kmaster1")))
	r.until("settled", r.settled)
	require.True(t, r.c.Status().FirstComplete.After(first))
}

// A held machine keeps its state and its node; another control plane initialises in the place of one that is held.
func TestHoldChangesNothingElse(t *testing.T) {
	r := newRack(t, 2, 2).all()
	r.until("settled", r.settled)
	for _, name := range []string{"knode1", "kmaster2"} {
		_, err := r.c.Hold(t.Context(), name, HoldOptions{By: "ann", Reason: "line one\nline two"}, func(string) {})
		require.NoError(t, err)
	}
	require.Equal(t, "line one line two", r.record("knode1").Held.Reason)
	r.until("settled", r.settled)
	r.sound()
	require.Equal(t, lifecycle.ActionHold, r.rack.Decide(r.agent("knode1").mac).Action)
	_, err := r.c.Hold(t.Context(), "knode2", HoldOptions{}, func(string) {})
	require.NoError(t, err)
	require.Equal(t, lifecycle.Ready, r.state("knode2"))
	for _, name := range []string{"knode1", "kmaster2"} {
		_, err = r.c.Reinstall(t.Context(), name, ReinstallOptions{}, func(string) { t.Error("nothing is done to it") })
		var held *lifecycle.HeldError
		require.ErrorAs(t, err, &held)
		require.NotNil(t, r.kube.Nodes[name])
		_, err = r.c.Unhold(t.Context(), name)
		require.NoError(t, err)
		require.Equal(t, lifecycle.Ready, r.state(name))
		require.Equal(t, lifecycle.ActionLocalDisk, r.rack.Decide(r.agent(name).mac).Action)
	}
	r.agent("kmaster1").down = true
	r.play(2 * time.Minute)
	require.Equal(t, "kmaster2", r.c.Status().Nodes.By, "a master that was held serves")
}

// Adopted, and the cluster has it as Ready: a master finds that out, also when the machine's agent has ended.
func TestAdoptOfAReadyNode(t *testing.T) {
	swap := func(r *rack, name string) { // a new network card: the list gives it another MAC
		other := *r.cfg
		other.Machines = append([]inventory.Machine{}, r.cfg.Machines...)
		for i := range other.Machines {
			if m := &other.Machines[i]; m.Name == name {
				m.MAC[0] = 0x56
				r.agent(name).mac = m.MAC
			}
		}
		r.cfg = &other
		require.NoError(r.t, r.rack.Reload(r.t.Context(), r.cfg))
	}
	force := func(r *rack, name string) { // by mistake, and it never booted
		_, err := r.c.Reinstall(r.t.Context(), name, ReinstallOptions{Force: true}, func(string) {})
		require.NoError(r.t, err)
	}
	fail := func(r *rack, name string) {
		_, err := r.rack.Fail(r.t.Context(), name, "because", false)
		require.NoError(r.t, err)
	}
	for what, before := range map[string]func(*rack, string){"new hardware": swap, "reinstalled by force": force, "failed": fail} {
		for _, name := range []string{"knode1", "kmaster2"} {
			t.Run(what+" "+name, func(t *testing.T) {
				r := newRack(t, 2, 1).all()
				r.until("settled", r.settled)
				joins := len(r.kube.Nodes)
				before(r, name)
				require.NotEqual(t, lifecycle.Ready, r.state(name))
				rec, err := r.c.Adopt(t.Context(), name)
				require.NoError(t, err)
				require.Equal(t, lifecycle.Installed, rec.State)
				r.until("ready again", r.ready(name))
				require.Len(t, r.kube.Nodes, joins)
				require.Empty(t, r.kube.Faults)
				got := r.record(name)
				require.Equal(t, got.Attempt, got.Node.Member, "it is a node, to be drained before it is reinstalled")
				require.NotContains(t, r.agent(name).trace, api.Reset)
			})
		}
	}
}

// Its result was never accepted, and its node is good: it is not reset, and not deleted.
func TestAdoptAfterALostResult(t *testing.T) {
	r := newRack(t, 1, 1).all()
	node := r.agent("knode1")
	r.until("it has joined, and has not said so", func() bool { return node.result != nil && node.work.Action == api.Join })
	node.down = true
	_, err := r.rack.Fail(t.Context(), "knode1", "somebody gave up", false)
	require.NoError(t, err)
	_, err = r.c.Adopt(t.Context(), "knode1")
	require.NoError(t, err)
	node.down, node.work, node.result = false, nil, nil
	for range 3 { // it asks before any master has looked
		require.NoError(t, r.step(node))
	}
	require.Equal(t, lifecycle.Firstboot, r.state("knode1"))
	require.Contains(t, r.c.Status().Waiting["knode1"], "waits until a master looks whether the cluster has it as Ready")
	r.until("settled", r.settled)
	require.Equal(t, []api.Action{api.Join, api.Done}, node.trace)
}

// Adopted, and its disk never joined: the node of that name is its former self's, although it counts as Ready still.
func TestAdoptOfADiskThatNeverJoined(t *testing.T) {
	r := newRack(t, 1, 1).all()
	r.until("settled", r.settled)
	_, err := r.c.Reinstall(t.Context(), "knode1", ReinstallOptions{Force: true}, func(string) {})
	require.NoError(t, err)
	node := r.agent("knode1")
	node.trace = nil
	require.NoError(t, r.install(node))
	_, err = r.c.Adopt(t.Context(), "knode1")
	require.NoError(t, err)
	require.NoError(t, r.step(node)) // exchange
	r.until("settled", r.settled)
	require.Equal(t, []api.Action{api.Join, api.Done}, node.trace)
}

// Adopted, and there is no such node, or it is not Ready: it joins anew if its agent calls, and is said to be awaited if not.
func TestAdoptOfWhatIsNoNode(t *testing.T) {
	r := newRack(t, 1, 2).all()
	r.until("settled", r.settled)
	for _, name := range []string{"knode1", "knode2"} {
		_, err := r.rack.Fail(t.Context(), name, "because", false)
		require.NoError(t, err)
		r.kube.Lose(name)
		_, err = r.c.Adopt(t.Context(), name)
		require.NoError(t, err)
	}
	r.play(2 * time.Minute)
	require.Equal(t, lifecycle.Installed, r.state("knode1"))
	require.Equal(t, "the node is not Ready: KubeletNotReady", r.c.Status().Waiting["knode1"])
	checks := 0
	for _, action := range r.agent("kmaster1").trace {
		if action == api.CheckNode {
			checks++
		}
	}
	r.play(10 * time.Minute)
	more := -checks
	for _, action := range r.agent("kmaster1").trace {
		if action == api.CheckNode {
			more++
		}
	}
	require.Less(t, more, 50, "ever more rarely")
	require.True(t, r.told("knode1", "warn stall: installed for 10m"))
	r.kube.Nodes["knode1"].Ready = true // its disk booted in the end
	r.until("ready", r.ready("knode1"))

	// The other one is put right by hand, and its agent started anew.
	node := r.agent("knode2")
	node.ended = false
	node.Machine.Joined = false
	_, err := r.rack.Advance(t.Context(), "knode2", 0, "", "", func(rec *lifecycle.Record) error {
		rec.Node.Done, rec.Node.Reset = "join.1.9", true
		return nil
	})
	require.NoError(t, err)
	r.until("settled", r.settled)
	require.Equal(t, []api.Action{api.Reset, api.Join, api.Done}, node.trace[len(node.trace)-3:])
}
