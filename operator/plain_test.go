package operator

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/internal/plain"
	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

// What a database of an older version, or a master's report, has in it comes out of the client as plain lines.
func TestTextsOfAnswersArePlain(t *testing.T) {
	const hostile, harmless = "x\x1b[2J\n2026 joined -> ready\u009b\u202e\x7f", "x?[2J 2026 joined -> ready???"
	ctx := t.Context()
	cfg := inventory.Default()
	store := lifecycle.NewMemoryStore()
	mac, stranger := cfg.Machines[0].MAC, inventory.MAC{2, 0, 0, 0, 0, 9}
	_, err := store.Commit(ctx, lifecycle.Record{Name: "kmaster", MAC: mac, State: lifecycle.Failed, Attempt: 1,
		Failure: &lifecycle.Failure{Phase: lifecycle.Joining, Reason: hostile}})
	require.NoError(t, err)
	require.NoError(t, store.Append(ctx, []lifecycle.Event{{MAC: mac, Machine: "kmaster", Source: "http", Kind: hostile, Text: hostile}},
		[]lifecycle.Sighting{{MAC: stranger, VendorClass: hostile, Hostname: hostile}}))
	log := slog.New(slog.DiscardHandler)
	rack, err := lifecycle.New(ctx, cfg, lifecycle.Options{Store: store, Log: log, Now: time.Now})
	require.NoError(t, err)
	cluster := &told{said: []string{hostile}, err: errors.New(hostile)}
	s, err := Listen(Options{DataDir: t.TempDir(), Rack: rack, Cluster: cluster, Log: log, Now: time.Now,
		Status: func() Status { return Status{Foreign: []string{hostile}} },
		Reload: func(context.Context) (ReloadResult, error) { return ReloadResult{}, errors.New("a: b\n  c: \x1b[2J") }})
	require.NoError(t, err)
	running, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(running) }()
	t.Cleanup(func() { cancel(); require.NoError(t, <-done) })
	c := NewClient(s.o.DataDir)

	var texts []string
	require.NoError(t, c.Events(ctx, EventQuery{Machine: "kmaster"}, func(e lifecycle.Event) error {
		if e.Source == "http" {
			texts = append(texts, e.Kind, e.Text)
		}
		return nil
	}))
	require.Equal(t, []string{harmless, harmless}, texts)

	st, err := c.Status(ctx)
	require.NoError(t, err)
	require.Equal(t, []string{harmless}, st.Foreign)
	require.Equal(t, harmless, st.Machines[0].Record.Failure.Reason)
	require.Contains(t, st.Machines[0].Reason, harmless)
	found := st.Machines[len(st.Machines)-1]
	require.Equal(t, []string{harmless, harmless}, []string{found.Sighting.VendorClass, found.Sighting.Hostname})

	var said []string
	err = c.Verify(ctx, func(text string) { said = append(said, text) })
	require.Equal(t, []string{harmless}, said)
	require.EqualError(t, err, harmless)
	_, err = c.Reload(ctx)
	require.EqualError(t, err, "a: b\n  c: ?[2J", "faults are lines")
	_, err = c.Kubeconfig(ctx)
	require.Error(t, err)
	require.Equal(t, plain.Lines(err.Error(), 1000), err.Error())
}
