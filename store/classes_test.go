package store

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"

	"rackstrap/lifecycle"
)

// Versions up to 3 had one log for all of a machine's events: its story survives the noise that follows, too.
func TestStoryOfAnOldDatabase(t *testing.T) {
	s, err := Open(filepath.Join(t.TempDir(), "rackstrap.db"))
	require.NoError(t, err)
	defer s.Close()
	for i := range 20 {
		e := event(hostA, fmt.Sprint("story ", i))
		e.Source = "lifecycle"
		lines, err := encode([]lifecycle.Event{e})
		require.NoError(t, err)
		lines[0].log = logName(hostA, lifecycle.Traces) // as they wrote it
		require.NoError(t, s.update(ctx, func(tx *bolt.Tx) error { return appendEvents(tx, lines) }))
	}
	for i := range 2 * lifecycle.EventsPerMachine {
		e := event(hostA, fmt.Sprint("noise ", i))
		e.Source = "http"
		require.NoError(t, s.Append(ctx, []lifecycle.Event{e}, nil))
	}
	kept, err := s.Events(ctx, lifecycle.EventQuery{MAC: hostA})
	require.NoError(t, err)
	require.Len(t, kept, lifecycle.EventsPerMachine+20)
	for i := range 20 {
		require.Equal(t, fmt.Sprint("story ", i), kept[i].Text)
	}
}
