package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/inventory"
	"rackstrap/lab"
	"rackstrap/lifecycle"
	"rackstrap/operator"
)

// consoles are what machines have shown so far; one that is not in here is off.
type consoles map[string]string

func (c consoles) WaitSerial(ctx context.Context, name string, pattern *regexp.Regexp) ([]string, error) {
	text, on := c[name]
	if !on {
		return nil, errors.New("the machine is powered off")
	}
	if match := pattern.FindStringSubmatch(text); match != nil {
		return match, nil
	}
	<-ctx.Done()
	return nil, ctx.Err()
}

// appliance answers for one, with one status after the other; the last one stays.
func appliance(t *testing.T, states ...[]lifecycle.Status) (dataDir string) {
	dataDir = t.TempDir()
	socket, err := net.Listen("unix", filepath.Join(dataDir, operator.SocketName))
	require.NoError(t, err)
	var asked atomic.Int32
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		i := min(int(asked.Add(1))-1, len(states)-1)
		json.NewEncoder(w).Encode(operator.Status{Machines: states[i]})
	})}
	go server.Serve(socket)
	t.Cleanup(func() { server.Close() })
	return dataDir
}

const installing = "rackstrap-lab: kernel command line: x\nrackstrap-lab: address 10.10.10.80 on eth0\nrackstrap-lab: kickstart http://x HTTP 200\n" +
	"rackstrap-lab: installer reached\n"

// --wait ends when every machine has called home from its disk, whatever it is made of, installed from, and has shown.
func TestLabUpWaits(t *testing.T) {
	home := func(name string) lifecycle.Status {
		return lifecycle.Status{Name: name, State: lifecycle.Waiting, Record: lifecycle.Record{Node: lifecycle.Node{CPUs: 2}}}
	}
	in := func(name string, state lifecycle.State, action lifecycle.Action) lifecycle.Status {
		return lifecycle.Status{Name: name, State: state, Action: action, Reason: "because"}
	}
	namespace, bios := lab.Machine{Name: "kmaster", Firmware: lab.Namespace}, lab.Machine{Name: "kmaster", Firmware: lab.BIOS}
	for name, c := range map[string]struct {
		up      labUp
		machine lab.Machine
		shown   consoles
		states  [][]lifecycle.Status
		slot    bool // the machine is a free slot of the list
		told    []string
		fault   string
	}{
		"namespace": {machine: namespace, shown: consoles{"kmaster": installing + "rackstrap-lab: installing 9 packages\nrackstrap-lab: running %post\n" +
			"rackstrap-lab: installation finished: reboot\nrackstrap-lab: booting the disk\nsystemd[1]: Reached target multi-user.target - x\n"},
			states: [][]lifecycle.Status{{in("kmaster", lifecycle.Installing, lifecycle.ActionInstall)}, {home("kmaster")}},
			told:   []string{"installer reached", "installing 9 packages", "installation finished: reboot", "Reached target multi-user.target", "runs from its disk: waiting"}},
		"QEMU, installed before this power-on": {machine: bios, shown: consoles{"kmaster": "kmaster login: "}, states: [][]lifecycle.Status{{home("kmaster")}},
			told: []string{"runs from its disk: waiting"}},
		"the user's own medium": {up: labUp{iso: "c7.iso"}, machine: bios, shown: consoles{"kmaster": "Linux version 3.10.0-1160.el7\n"},
			states: [][]lifecycle.Status{{in("kmaster", lifecycle.Armed, lifecycle.ActionInstall)}, {home("kmaster")}}, told: []string{"Linux version 3.10.0-1160.el7", "runs from its disk"}},
		"boot only": {up: labUp{bootOnly: true}, machine: bios, shown: consoles{"kmaster": installing}, states: [][]lifecycle.Status{{}}, told: []string{"installer reached"}},
		"boot only, fails": {up: labUp{bootOnly: true}, machine: bios, shown: consoles{"kmaster": "rackstrap-lab: FAILED no kickstart\n"}, states: [][]lifecycle.Status{{}},
			fault: "kmaster: FAILED no kickstart"},
		"fails, and is installed again": {machine: bios, shown: consoles{"kmaster": "rackstrap-lab: FAILED %post\n"},
			states: [][]lifecycle.Status{{in("kmaster", lifecycle.Failed, lifecycle.ActionInstall)}, {home("kmaster")}}, told: []string{"FAILED %post", "runs from its disk"}},
		"is held": {machine: bios, shown: consoles{"kmaster": ""}, states: [][]lifecycle.Status{{in("kmaster", lifecycle.Failed, lifecycle.ActionHold)}},
			fault: "kmaster: failed: because"},
		"goes off": {machine: bios, shown: consoles{}, states: [][]lifecycle.Status{{in("kmaster", lifecycle.Armed, lifecycle.ActionInstall)}}, fault: "the machine is powered off"},
		"too slow": {up: labUp{wait: 1500 * time.Millisecond}, machine: bios, shown: consoles{"kmaster": ""}, states: [][]lifecycle.Status{{in("kmaster", lifecycle.Installing, lifecycle.ActionInstall)}},
			fault: "kmaster is not there after 2s: installing: because"},
		"a free slot": {machine: bios, slot: true, shown: consoles{"kmaster": ""}, states: [][]lifecycle.Status{{}}, told: []string{"not waited for"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := inventory.Default()
			cfg.Server.DataDir = appliance(t, c.states...)
			if c.slot {
				cfg.Machines[0].MAC = inventory.MAC{}
			}
			var out bytes.Buffer
			c.up.out = &out
			limit := 20 * time.Second
			if c.up.wait > 0 {
				limit = c.up.wait
			}
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			err := c.up.follow(ctx, c.shown, cfg, []lab.Machine{c.machine}, time.Now())
			if c.fault != "" {
				require.ErrorContains(t, err, c.fault)
				return
			}
			require.NoError(t, err)
			for _, line := range c.told {
				require.Contains(t, out.String(), line)
			}
		})
	}
}

func TestLabUpOptionsThatExcludeEachOther(t *testing.T) {
	for _, args := range [][]string{{"--off", "--wait", "1m"}} {
		root := rootCommand()
		root.SetArgs(append([]string{"lab", "up"}, args...))
		require.ErrorContains(t, root.Execute(), "exclude each other")
	}
	up := &labUp{bootOnly: true, firmware: []string{"bios", "namespace"}}
	_, err := up.machines(inventory.Default())
	require.ErrorContains(t, err, "neither --boot-only nor --iso")
	up = &labUp{twoNICs: []string{"nobody"}}
	_, err = up.machines(inventory.Default())
	require.ErrorContains(t, err, "--second-nic nobody: no such machine")
}
