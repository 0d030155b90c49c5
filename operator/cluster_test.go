package operator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/cluster"
	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

// told is a cluster that does what it is told, and says so.
type told struct {
	err  error
	said []string
	got  cluster.ReinstallOptions
}

func (f *told) Status() cluster.Status { return cluster.Status{Name: "lab", Holder: "kmaster"} }

func (f *told) Reinstall(_ context.Context, name string, o cluster.ReinstallOptions, say func(string)) (lifecycle.Record, error) {
	f.got = o
	for _, text := range f.said {
		say(text)
	}
	return lifecycle.Record{Name: name, Attempt: 2, SecretHash: "hash", Node: lifecycle.Node{CredentialHash: "hash"}}, f.err
}

func (f *told) Hold(ctx context.Context, name string, release bool, say func(string)) (lifecycle.Record, error) {
	return f.Reinstall(ctx, name, cluster.ReinstallOptions{ReleaseLock: release}, say)
}

func (f *told) Kubeconfig(context.Context) (string, error) { return "apiVersion: v1\n", f.err }

func (f *told) Verify(_ context.Context, say func(string)) error {
	for _, text := range f.said {
		say(text)
	}
	return f.err
}

func desk(t *testing.T, c Cluster) *Client {
	t.Helper()
	dir := t.TempDir()
	log := slog.New(slog.DiscardHandler)
	cfg := inventory.Default()
	cfg.Server.Address = netip.MustParseAddr("10.10.10.1")
	rack, err := lifecycle.New(t.Context(), cfg, lifecycle.Options{Store: lifecycle.NewMemoryStore(), Log: log, Now: time.Now})
	require.NoError(t, err)
	s, err := Listen(Options{DataDir: dir, Rack: rack, Cluster: c, Status: func() Status { return Status{} }, Log: log, Now: time.Now})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() { cancel(); require.NoError(t, <-done) })
	return NewClient(dir)
}

func TestCommandsThatTell(t *testing.T) {
	f := &told{said: []string{"draining knode1", "knode1 is out of the cluster"}}
	c := desk(t, f)
	var heard []string
	hear := func(text string) { heard = append(heard, text) }

	rec, err := c.Reinstall(t.Context(), "knode1", cluster.ReinstallOptions{Force: true}, hear)
	require.NoError(t, err)
	require.Equal(t, lifecycle.Record{Name: "knode1", Attempt: 2}, rec, "without hashes")
	require.Equal(t, f.said, heard)
	require.Equal(t, cluster.ReinstallOptions{Force: true}, f.got)

	_, err = c.Hold(t.Context(), "kmaster", true, hear)
	require.NoError(t, err)
	require.True(t, f.got.ReleaseLock)

	heard = nil
	f.err = fmt.Errorf("knode1 is not reinstalled: %w", errors.New("no answer"))
	_, err = c.Reinstall(t.Context(), "knode1", cluster.ReinstallOptions{}, hear)
	require.EqualError(t, err, "knode1 is not reinstalled: no answer", "an error after the first line")
	require.Equal(t, f.said, heard)
	require.ErrorContains(t, c.Verify(t.Context(), hear), "no answer")

	f.said, f.err = nil, &cluster.RefusedError{Reason: "it is the only control plane"}
	_, err = c.Reinstall(t.Context(), "kmaster", cluster.ReinstallOptions{}, hear)
	require.EqualError(t, err, "it is the only control plane", "an error before the first line")
	_, err = c.Kubeconfig(t.Context())
	require.EqualError(t, err, "it is the only control plane")
}

func TestKubeconfigStatusAndRenderings(t *testing.T) {
	c := desk(t, &told{})
	text, err := c.Kubeconfig(t.Context())
	require.NoError(t, err)
	require.Equal(t, "apiVersion: v1\n", string(text))
	require.NoError(t, c.Verify(t.Context(), func(string) {}))
	st, err := c.Status(t.Context())
	require.NoError(t, err)
	require.Equal(t, "kmaster", st.Cluster.Holder)

	for what, want := range map[string]string{"init-config": "kind: InitConfiguration", "join-config": "kind: JoinConfiguration"} {
		text, err := c.Render(t.Context(), what, "knode1")
		require.NoError(t, err)
		require.Contains(t, string(text), want)
		_, err = c.Render(t.Context(), what, "nobody")
		require.ErrorContains(t, err, "no machine")
	}
}
