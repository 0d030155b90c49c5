package store

import (
	"compress/gzip"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

// A database of version 2, written by that rackstrap: a machine in each state, named after it, and then held. To be held
// was a failure then.
func TestMachinesThatVersion2Held(t *testing.T) {
	packed, err := os.Open("testdata/held-v2.db.gz")
	require.NoError(t, err)
	defer packed.Close()
	unpacked, err := gzip.NewReader(packed)
	require.NoError(t, err)
	text, err := io.ReadAll(unpacked)
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "rackstrap.db")
	require.NoError(t, os.WriteFile(path, text, 0o600))
	s, err := Open(path)
	require.NoError(t, err)
	defer func() { require.NoError(t, s.Close()) }()

	records, err := s.Records(ctx)
	require.NoError(t, err)
	require.Len(t, records, 9)
	cfg := inventory.Default()
	cfg.Machines = nil
	for _, rec := range records {
		require.Equal(t, lifecycle.Failed, rec.State, "as it lies on the disk")
		cfg.Machines = append(cfg.Machines, inventory.Machine{Name: rec.Name, MAC: rec.MAC, Install: inventory.Install{Attempts: 3}})
	}
	rack, err := lifecycle.New(ctx, cfg, lifecycle.Options{Store: s, Log: slog.New(slog.DiscardHandler), Now: time.Now})
	require.NoError(t, err)
	// What ran for the appliance then was given up on, and may have ended in any way.
	failed := map[string]bool{"installing": true, "initialising": true, "joining": true}
	for _, m := range rack.Members("") {
		rec, want := m.Record, lifecycle.State(m.Record.Name)
		if failed[rec.Name] {
			require.Equal(t, want, rec.Failure.Phase)
			want = lifecycle.Failed
		}
		require.Equal(t, want, rec.State)
		require.True(t, rec.IsHeld(), rec.Name)
		require.Equal(t, lifecycle.ActionHold, rack.Decide(rec.MAC).Action)
		freed, err := rack.Unhold(ctx, rec.Name)
		require.NoError(t, err)
		require.Equal(t, want, freed.State)
	}
	records, err = s.Records(ctx)
	require.NoError(t, err)
	for _, rec := range records {
		require.Equal(t, failed[rec.Name], rec.State == lifecycle.Failed, "on the disk, too")
	}
}
