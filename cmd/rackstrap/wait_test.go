package main

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/cluster"
	"rackstrap/lifecycle"
	"rackstrap/operator"
)

func TestWait(t *testing.T) {
	begun := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	machine := func(name string, state lifecycle.State, action lifecycle.Action, reason string) lifecycle.Status {
		return lifecycle.Status{Name: name, State: state, Action: action, Reason: reason}
	}
	rack := func(machines ...lifecycle.Status) operator.Status {
		return operator.Status{Cluster: cluster.Status{Begun: begun}, Machines: append(machines, lifecycle.Status{State: lifecycle.Discovered})}
	}
	held := func(st operator.Status) operator.Status {
		st.Machines[0].Record.Held.Since = begun
		return st
	}
	seen := func(st operator.Status, condition cluster.Condition) operator.Status {
		st.Cluster.Nodes = cluster.Nodes{Fresh: true, Of: map[string]cluster.Node{"a": {Condition: condition}}}
		return st
	}
	for name, c := range map[string]struct {
		names []string
		st    operator.Status
		done  bool
		err   string
		out   string
	}{
		"all ready": {st: rack(machine("a", lifecycle.Ready, lifecycle.ActionLocalDisk, "a is ready")), done: true,
			out: "   1m30s  a          ready        a is ready\n"},
		"one is not": {st: rack(machine("a", lifecycle.Ready, lifecycle.ActionLocalDisk, "a is ready"), machine("b", lifecycle.Waiting, lifecycle.ActionLocalDisk, "b waits")),
			out: "   1m30s  a          ready        a is ready\n   1m30s  b          waiting      b waits\n"},
		"one is not, but it was not asked for": {names: []string{"a"}, done: true,
			st:  rack(machine("a", lifecycle.Ready, lifecycle.ActionLocalDisk, "a is ready"), machine("b", lifecycle.Waiting, lifecycle.ActionLocalDisk, "b waits")),
			out: "   1m30s  a          ready        a is ready\n"},
		"held": {st: rack(machine("a", lifecycle.Failed, lifecycle.ActionHold, "a failed: no disk")), err: "a failed: no disk",
			out: "   1m30s  a          failed       a failed: no disk\n"},
		"failed, and tried again": {st: rack(machine("a", lifecycle.Failed, lifecycle.ActionInstall, "installation 2 of 3 follows")),
			out: "   1m30s  a          failed       installation 2 of 3 follows\n"},
		"held, after its installation": {st: held(rack(machine("a", lifecycle.Waiting, lifecycle.ActionHold, "a is held"))), err: "a is held",
			out: "   1m30s  a          waiting      a is held\n"},
		"held before it was installed": {st: held(rack(machine("a", lifecycle.Armed, lifecycle.ActionHold, "a is held"))), err: "a is held",
			out: "   1m30s  a          armed        a is held\n"},
		"ready, and its node is not any more": {st: seen(rack(machine("a", lifecycle.Ready, lifecycle.ActionLocalDisk, "a is ready")), cluster.NodeNotReady),
			out: "   1m30s  a          ready        node NotReady\n"},
		"ready, and nobody knows": {st: seen(rack(machine("a", lifecycle.Ready, lifecycle.ActionLocalDisk, "a is ready")), cluster.NodeUnknown), done: true,
			out: "   1m30s  a          ready        a is ready\n"},
		"not in the list": {names: []string{"c"}, st: rack(), err: `no machine "c" in the list`},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			w := &waiter{out: &out, names: c.names, said: map[string]said{}, now: func() time.Time { return begun.Add(90 * time.Second) }}
			done, err := w.look(c.st)
			if c.err != "" {
				require.EqualError(t, err, c.err)
			} else {
				require.NoError(t, err)
			}
			require.Equal(t, c.done, done)
			require.Equal(t, c.out, out.String())
			again, _ := w.look(c.st)
			require.Equal(t, c.done, again)
			require.Equal(t, c.out, out.String(), "nothing new, nothing said")
		})
	}
}

// An appliance that was there and restarts is waited for; one that never was is an error at once.
func TestWaitForARestart(t *testing.T) {
	gone := errors.New("no daemon")
	ready := operator.Status{Machines: []lifecycle.Status{{Name: "a", State: lifecycle.Ready, Action: lifecycle.ActionLocalDisk}}}
	waiting := operator.Status{Machines: []lifecycle.Status{{Name: "a", State: lifecycle.Waiting, Action: lifecycle.ActionLocalDisk}}}
	newWaiter := func() *waiter {
		return &waiter{out: &bytes.Buffer{}, said: map[string]said{}, now: time.Now}
	}
	require.ErrorIs(t, newWaiter().run(t.Context(), func(context.Context) (operator.Status, error) { return operator.Status{}, gone }), gone)
	calls := 0
	require.NoError(t, newWaiter().run(t.Context(), func(context.Context) (operator.Status, error) {
		calls++
		switch calls {
		case 1:
			return waiting, nil
		case 2:
			return operator.Status{}, gone
		}
		return ready, nil
	}))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	require.EqualError(t, newWaiter().run(ctx, func(context.Context) (operator.Status, error) { return waiting, nil }),
		"not Ready when the time was over: a (waiting)")
}
