package main

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/cluster"
	"rackstrap/inventory"
	"rackstrap/lifecycle"
	"rackstrap/operator"
)

// What people see while a rack comes up, and once it is complete.
func TestStatusOnOneScreen(t *testing.T) {
	now := time.Date(2026, 11, 26, 12, 30, 0, 0, time.UTC)
	machine := func(i byte, name string, role inventory.Role, state lifecycle.State, since time.Duration, progress *lifecycle.Progress, reason string) lifecycle.Status {
		return lifecycle.Status{Name: name, MAC: inventory.MAC{0x52, 0x54, 0, 0, 0, i}, IP: netip.AddrFrom4([4]byte{10, 10, 10, i}), Role: role,
			State: state, Action: lifecycle.ActionLocalDisk, Reason: reason, Limit: 3, Progress: progress,
			Record: lifecycle.Record{Attempt: 1, Tries: 1, Since: now.Add(-since)}}
	}
	const master, worker = inventory.RoleControlPlane, inventory.RoleWorker
	st := operator.Status{Version: "1.0", Address: netip.MustParseAddr("10.10.10.1"), Interface: "eth1", DHCPMode: inventory.DHCPServer,
		Now: now, Started: now.Add(-40 * time.Minute),
		Cluster: cluster.Status{Name: "lab", Version: "1.28.2", Endpoint: "k8s-api.lab:6443", Holder: "kmaster", Locked: now.Add(-9 * time.Minute),
			Initialised: now.Add(-6 * time.Minute), Joining: "kmaster2", Machines: 5, Ready: 1,
			Masters: []cluster.Master{{Name: "kmaster", Seen: now, Alive: true}, {Name: "kmaster3", Seen: now.Add(-3 * time.Minute)}},
			Waiting: map[string]string{"knode1": "waits until a master mints a token for it"}},
		Machines: []lifecycle.Status{
			machine(80, "kmaster", master, lifecycle.Ready, 5*time.Minute, nil, "kmaster is ready"),
			machine(83, "kmaster2", master, lifecycle.Joining, 50*time.Second, &lifecycle.Progress{Phase: "join-control-plane", Text: "kubeadm join"}, "kmaster2 is joining"),
			machine(81, "knode1", worker, lifecycle.Waiting, 20*time.Second, nil, "knode1 is waiting"),
			machine(82, "knode2", worker, lifecycle.Installing, 4*time.Minute, &lifecycle.Progress{Phase: "packages", Percent: 45, Text: "bash (120/266)"}, "knode2 has not finished installation 1 of 3"),
			machine(84, "knode3", worker, lifecycle.Failed, time.Minute, nil, "knode3 failed: no result of kubeadm join within 10m0s"),
			{MAC: inventory.MAC{2, 0, 0, 0, 0, 9}, State: lifecycle.Discovered, Action: lifecycle.ActionDiscover, Reason: "02:00:00:00:00:09 is not in the list",
				Sighting: lifecycle.Sighting{First: now.Add(-time.Minute)}},
		}}
	st.Machines[0].Record.Begun = now.Add(-17 * time.Minute)
	st.Cluster.Nodes = cluster.Nodes{Seen: now.Add(-12 * time.Second), By: "kmaster", Fresh: true,
		Of: map[string]cluster.Node{"kmaster": {Condition: cluster.NodeReady, Since: now.Add(-5 * time.Minute)}, "kmaster2": {Condition: cluster.NodeNotReady, Reason: "KubeletNotReady"}}}
	var screen bytes.Buffer
	show := func(what string) {
		fmt.Fprintf(&screen, "# %s\n\n", what)
		statusTable(&screen, st)
		fmt.Fprintln(&screen)
	}
	show("while it comes up")

	st.Cluster.Joining, st.Cluster.Ready, st.Cluster.Waiting, st.Machines = "", 5, nil, st.Machines[:5]
	for i := range st.Machines {
		m := &st.Machines[i]
		m.State, m.Progress, m.Reason, m.Record.Begun = lifecycle.Ready, nil, m.Name+" is ready", now.Add(-31*time.Minute)
		m.Record.Since = now.Add(-2 * time.Minute)
		st.Cluster.Nodes.Of[m.Name] = cluster.Node{Condition: cluster.NodeReady, Since: m.Record.Since}
	}
	c := &st.Cluster
	c.Latest, c.Complete, c.FirstComplete, c.FirstPowerOn = "knode3", now.Add(-2*time.Minute), now.Add(-2*time.Minute), now.Add(-31*time.Minute)
	show("complete")

	// Two hours later: one was reinstalled, one lost its power, one was deleted with kubectl, one is held.
	st.Now = now.Add(2 * time.Hour)
	st.Machines[1].Action = lifecycle.ActionHold
	st.Machines[1].Reason = "kmaster2 is held by the operator (ann: its disk is swapped): `rackstrap unhold kmaster2` ends it (kmaster2 is ready)"
	st.Machines[2].Record.Begun, st.Machines[2].Record.Since = st.Now.Add(-16*time.Minute), st.Now.Add(-10*time.Minute)
	c.Latest, c.Complete, c.Nodes.Seen = "knode1", st.Now.Add(-10*time.Minute), st.Now.Add(-3*time.Second)
	c.Nodes.Unlisted = []string{"old-node"}
	c.Nodes.Of["knode2"] = cluster.Node{Condition: cluster.NodeNotReady, Since: st.Now.Add(-3 * time.Minute), Reason: "NodeStatusUnknown"}
	c.Nodes.Of["knode3"] = cluster.Node{Condition: cluster.NodeMissing, Since: st.Now.Add(-time.Minute)}
	show("two hours later")

	for name := range c.Nodes.Of {
		c.Nodes.Of[name] = cluster.Node{Condition: cluster.NodeUnknown, Since: c.Nodes.Seen}
	}
	c.Nodes.Fresh, c.Nodes.Unlisted, c.Nodes.Fault = false, nil, "no control plane has called: kmaster for 5m0s"
	st.Now = st.Now.Add(5 * time.Minute)
	show("no control plane lives")
	want, err := os.ReadFile("testdata/status.txt")
	if os.Getenv("RACKSTRAP_UPDATE") != "" {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile("testdata/status.txt", screen.Bytes(), 0o644))
		want, err = screen.Bytes(), nil
	}
	require.NoError(t, err)
	require.Equal(t, string(want), screen.String(), "RACKSTRAP_UPDATE=1 go test ./cmd/rackstrap, if that is meant")
}

// Machines that would boot their disks when they are to be reinstalled.
func TestStatusTellsOfTheBootOrder(t *testing.T) {
	machine := func(name string, state lifecycle.State, boot lifecycle.Boot) lifecycle.Status {
		return lifecycle.Status{Name: name, State: state, Record: lifecycle.Record{State: state, Node: lifecycle.Node{Boot: boot}}}
	}
	disk := lifecycle.Boot{Firmware: "uefi", First: "CentOS"}
	st := operator.Status{Machines: []lifecycle.Status{
		machine("good", lifecycle.Ready, lifecycle.Boot{Firmware: "uefi", NetworkFirst: true, First: "UEFI PXEv4"}),
		machine("bios", lifecycle.Ready, lifecycle.Boot{Firmware: "bios"}),
		machine("old", lifecycle.Ready, lifecycle.Boot{}),
		machine("again", lifecycle.Installing, disk),
		machine("armed", lifecycle.Armed, disk),
	}}
	require.Empty(t, diskFirst(st))
	st.Machines = append(st.Machines, machine("knode1", lifecycle.Ready, disk), machine("knode2", lifecycle.Failed, disk))
	var screen bytes.Buffer
	statusTable(&screen, st)
	require.Contains(t, screen.String(), "WARNING: the firmware does not boot the network first, as far as is known: knode1, knode2; ")
}
