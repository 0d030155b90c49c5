package cluster

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/firstboot/api"
	"rackstrap/lifecycle"
)

// installed is a rack of one worker that has called home and told what its firmware boots first.
func installed(t *testing.T, b api.Boot) (*rack, *agent) {
	t.Helper()
	r := newRack(t, 1, 1)
	require.NoError(t, r.start())
	a := r.agent("knode1")
	a.facts = func(f *api.Facts) { f.Boot = b }
	require.NoError(t, r.install(a))
	require.NoError(t, r.step(a))
	return r, a
}

// What an operator is told of the next boot of a machine that is reinstalled, while no agent of it waits for work.
func TestReinstallTellsOfTheNextBoot(t *testing.T) {
	for _, c := range []struct {
		boot  api.Boot
		want  []string
		event string // in the machine's timeline, when it called home
	}{
		{api.Boot{}, []string{"not known", "ipmitool chassis bootdev pxe", "F12"}, ""},
		{api.Boot{Firmware: "riscv"}, []string{"not known"}, ""},
		{api.Boot{Firmware: api.BIOS}, []string{"its BIOS says what knode1 boots first", "ipmitool"}, ""},
		{api.Boot{Firmware: api.UEFI, NetworkFirst: true, First: "UEFI PXEv4"}, []string{"knode1 boots from the network", "UEFI PXEv4 was the first"}, ""},
		{api.Boot{Firmware: api.UEFI, First: "CentOS"}, []string{"knode1 would not boot from the network", "CentOS is first", "no agent of it", "efiboot"},
			`"CentOS" is first in its boot order, not the network`},
		{api.Boot{Firmware: api.UEFI, Error: "no efivarfs"}, []string{"what is first in its boot order is not known", "efiboot"},
			"it is not known what it boots first: no efivarfs"},
	} {
		r, _ := installed(t, c.boot)
		rec := r.record("knode1")
		var said []string
		_, err := r.c.Reinstall(t.Context(), "knode1", ReinstallOptions{}, func(text string) { said = append(said, text) })
		require.NoError(t, err)
		for _, want := range c.want {
			require.Contains(t, strings.Join(said, "\n"), want)
		}
		require.Equal(t, rec.Node.Boot, r.record("knode1").Node.Boot, "it outlives the attempt")
		var found bool
		events, err := r.rack.Events(t.Context(), lifecycle.EventQuery{})
		require.NoError(t, err)
		for _, e := range events {
			if e.Kind == "boot-order" {
				found = true
				require.Equal(t, lifecycle.Warn, e.Level)
				require.Contains(t, e.Text, c.event)
			}
		}
		require.Equal(t, c.event != "", found)
	}
}

// An agent that waits for work chooses the network for the next boot, and is refused only then.
func TestReinstallHasTheAgentChooseTheNetwork(t *testing.T) {
	for name, c := range map[string]struct {
		result api.Result
		want   string
	}{
		"it can":     {api.Result{OK: true, BootEntry: "UEFI PXEv4\n"}, "its agent has chosen the network for the next boot of knode1: UEFI PXEv4"},
		"it can not": {api.Result{Error: "BootNext cannot be written"}, "its agent could not change that: BootNext cannot be written. Reboot it, and choose the network"},
	} {
		t.Run(name, func(t *testing.T) {
			r, a := installed(t, api.Boot{Firmware: api.UEFI, First: "CentOS"})
			question := Question{Name: "knode1", Attempt: a.attempt, Wait: 20 * time.Second}
			served := make(chan error, 1)
			go func() {
				for {
					work, _, err := r.c.Work(t.Context(), question)
					if err != nil || work == nil {
						served <- err
						return
					}
					if work.Action != api.BootNetwork {
						continue
					}
					if err := r.c.Result(t.Context(), "knode1", a.attempt, work.ID, c.result); err != nil {
						served <- err
						return
					}
				}
			}()
			require.Eventually(t, func() bool {
				r.c.mu.Lock()
				defer r.c.mu.Unlock()
				return r.c.pollers["knode1"] != nil
			}, 10*time.Second, time.Millisecond)
			said := ""
			_, err := r.c.Reinstall(t.Context(), "knode1", ReinstallOptions{}, func(text string) { said += text })
			require.NoError(t, err)
			require.Contains(t, said, c.want)
			require.ErrorIs(t, <-served, lifecycle.ErrSuperseded)
			require.ErrorIs(t, r.c.bootResult("knode1", "boot-network.late", c.result), ErrUnknownWork)
		})
	}
}
