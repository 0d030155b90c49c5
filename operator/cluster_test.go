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
	held cluster.HoldOptions
}

func (f *told) Status() cluster.Status { return cluster.Status{Name: "lab", Holder: "kmaster"} }

func (f *told) Reinstall(_ context.Context, name string, o cluster.ReinstallOptions, say func(string)) (lifecycle.Record, error) {
	f.got = o
	for _, text := range f.said {
		say(text)
	}
	return lifecycle.Record{Name: name, Attempt: 2, SecretHash: "hash", Node: lifecycle.Node{CredentialHash: "hash"}}, f.err
}

func (f *told) Hold(ctx context.Context, name string, o cluster.HoldOptions, say func(string)) (lifecycle.Record, error) {
	f.held = o
	return f.Reinstall(ctx, name, cluster.ReinstallOptions{}, say)
}

func (f *told) Unhold(ctx context.Context, name string) (lifecycle.Record, error) {
	return f.Reinstall(ctx, name, cluster.ReinstallOptions{}, func(string) {})
}

func (f *told) Adopt(ctx context.Context, name string) (lifecycle.Record, error) {
	return f.Unhold(ctx, name)
}

func (f *told) Confirm(ctx context.Context, name, _, _ string) (lifecycle.Record, error) {
	return f.Unhold(ctx, name)
}

func (f *told) Current(_ string, p lifecycle.Progress) bool { return p.Phase != "over" }

func (f *told) Kubeconfig(context.Context) (string, error) { return "apiVersion: v1\n", f.err }

func (f *told) Verify(_ context.Context, say func(string)) error {
	for _, text := range f.said {
		say(text)
	}
	return f.err
}

func desk(t *testing.T, c Cluster) *Client {
	t.Helper()
	client, _ := deskOf(t, c, inventory.Default())
	return client
}

// deskOf has a rack of that configuration behind it.
func deskOf(t *testing.T, c Cluster, cfg *inventory.Config) (*Client, *lifecycle.Rack) {
	t.Helper()
	dir := t.TempDir()
	log := slog.New(slog.DiscardHandler)
	cfg.Server.Address = netip.MustParseAddr("10.10.10.1")
	rack, err := lifecycle.New(t.Context(), cfg, lifecycle.Options{Store: lifecycle.NewMemoryStore(), Log: log, Now: time.Now})
	require.NoError(t, err)
	s, err := Listen(Options{DataDir: dir, Rack: rack, Cluster: c, Status: func() Status { return Status{} }, Log: log, Now: time.Now})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() { cancel(); require.NoError(t, <-done) })
	return NewClient(dir), rack
}

// A further card of a known machine is approved with a word only, and events of a machine are those of all its cards.
func TestFurtherCard(t *testing.T) {
	ctx := t.Context()
	cfg := inventory.Default()
	cfg.Machines[2].MAC = inventory.MAC{} // knode2 is a free slot
	own, card := cfg.Machines[0].MAC, inventory.MAC{0x52, 0x54, 0, 0, 0, 0x99}
	c, rack := deskOf(t, &told{}, cfg)
	for _, mac := range []inventory.MAC{own, card} {
		rack.See(lifecycle.Sighting{MAC: mac, UUID: "4c4c4544-0042-3510-8054-b4c04f4a3132"})
		rack.Observe(lifecycle.Event{MAC: mac, Source: "dhcp", Kind: "offer", Text: "to " + mac.String()})
	}
	_, err := rack.Adopt(ctx, "kmaster")
	require.NoError(t, err)
	st, err := c.Status(ctx)
	require.NoError(t, err)
	require.Equal(t, "kmaster", st.Machines[3].CardOf)

	_, err = c.Approve(ctx, card, "knode2", false)
	require.EqualError(t, err, "52:54:00:00:00:99 has the UUID of kmaster (installed): it is a further card of that machine, and installing it would erase "+
		"the disk of kmaster. To boot kmaster by it as well, add it to the mac of kmaster in the list, then `rackstrap reload`. "+
		"If it is another machine with a copied UUID, approve it with --other-machine")
	var texts []string
	require.NoError(t, c.Events(ctx, EventQuery{Machine: "kmaster"}, func(e lifecycle.Event) error { texts = append(texts, e.Text); return nil }))
	require.Contains(t, texts, "to "+own.String())
	require.Contains(t, texts, "to "+card.String())

	rec, err := c.Approve(ctx, card, "knode2", true)
	require.NoError(t, err)
	require.Equal(t, lifecycle.Armed, rec.State)
	require.Equal(t, card, rec.MAC)
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

	wish := cluster.HoldOptions{By: "ann", Reason: "its disk is swapped", ReleaseLock: true}
	_, err = c.Hold(t.Context(), "kmaster", wish, hear)
	require.NoError(t, err)
	require.Equal(t, wish, f.held)
	rec, err = c.Unhold(t.Context(), "kmaster")
	require.NoError(t, err)
	require.Equal(t, lifecycle.Record{Name: "kmaster", Attempt: 2}, rec, "without hashes")

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
	f.err = &lifecycle.HeldError{Reason: "kmaster is not held"}
	_, err = c.Unhold(t.Context(), "kmaster")
	require.EqualError(t, err, "kmaster is not held")
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
