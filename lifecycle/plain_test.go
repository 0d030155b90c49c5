package lifecycle

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/internal/plain"
)

// hostile is a text with a forged line behind what clears the screen.
const hostile = "x\x1b[2J\n2026 joined -> ready\u009b\u202e\x7f\xff"

const harmless = "x?[2J 2026 joined -> ready????"

// Whatever way a text takes into the lifecycle, it is a plain line in the store, for followers, in the log and in status.
func TestTextsBecomePlainLines(t *testing.T) {
	ctx := t.Context()
	var log bytes.Buffer
	store := NewMemoryStore()
	r, err := New(ctx, config(), Options{Store: store, Log: slog.New(slog.NewJSONHandler(plain.JSON(&log), &slog.HandlerOptions{Level: slog.LevelDebug})), Now: time.Now})
	require.NoError(t, err)
	live := r.Follow(ctx)
	r.Observe(Event{MAC: macMaster, Source: "http", Kind: "refused", Level: Alarm, Text: hostile})
	r.Observe(Event{Source: "dhcp", Kind: "foreign", Text: hostile + strings.Repeat("y", 1<<20)})
	r.See(Sighting{MAC: macUnknown, VendorClass: hostile, Hostname: hostile + strings.Repeat("y", 1<<20), Firmware: hostile})
	_, _, err = r.BeginInstall(ctx, macMaster, r.Ticket(macMaster))
	require.NoError(t, err)
	require.True(t, r.Report("kmaster", 1, Progress{Phase: hostile, Text: hostile}))
	require.Equal(t, harmless+": "+harmless, r.Machines()[0].Progress.String())
	rec, err := r.FailInstall(ctx, "kmaster", hostile)
	require.NoError(t, err)
	require.Equal(t, harmless, rec.Failure.Reason)
	again, err := r.FailInstall(ctx, "kmaster", hostile)
	require.NoError(t, err)
	require.Equal(t, rec.Revision, again.Revision, "said twice")
	rec, err = r.Fail(ctx, "kmaster", hostile+strings.Repeat("y", 1<<20), false)
	require.NoError(t, err)
	require.LessOrEqual(t, len(rec.Failure.Reason), maxReason)
	_, err = r.UpdateCluster(ctx, func(cl *Cluster) (*Event, error) {
		cl.Joining = "kmaster"
		return &Event{Source: "cluster", Kind: "lock", Text: hostile}, nil
	})
	require.NoError(t, err)
	_, err = r.Advance(ctx, "kmaster", 0, Adopt, hostile, nil)
	require.NoError(t, err)

	seen, ok := r.Sighting(macUnknown)
	require.True(t, ok)
	require.Equal(t, harmless, seen.VendorClass)
	require.Equal(t, harmless, seen.Firmware)
	require.LessOrEqual(t, len(seen.Hostname), maxSeen)

	events, err := r.Events(ctx, EventQuery{})
	require.NoError(t, err)
	for len(live) > 0 {
		events = append(events, <-live)
	}
	found := 0
	for _, e := range events {
		require.Equal(t, plain.Line(e.Text, maxEventText), e.Text)
		if strings.Contains(e.Text, harmless) {
			found++
		}
	}
	require.Equal(t, 2*6, found, "each in the store and followed")
	require.NotRegexp(t, `[^ -~…\n]`, log.String())
	require.Contains(t, log.String(), harmless)
}
