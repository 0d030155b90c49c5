package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

var (
	ctx   = context.Background()
	noon  = time.Date(2026, 1, 2, 12, 0, 0, 123, time.UTC)
	hostA = inventory.MAC{0x52, 0x54, 0, 0, 0, 0x80}
	hostB = inventory.MAC{0x52, 0x54, 0, 0, 0, 0x81}
)

func event(mac inventory.MAC, text string) lifecycle.Event {
	return lifecycle.Event{Time: noon, MAC: mac, Source: "test", Kind: "note", Level: lifecycle.Info, Text: text}
}

// texts is what a test of events compares: the rest is given.
func texts(events []lifecycle.Event) (texts []string) {
	for _, e := range events {
		texts = append(texts, e.Text)
	}
	return texts
}

// eachStore runs a test against every implementation of lifecycle.Store.
func eachStore(t *testing.T, test func(t *testing.T, s lifecycle.Store)) {
	t.Run("memory", func(t *testing.T) { test(t, lifecycle.NewMemoryStore()) })
	t.Run("bbolt", func(t *testing.T) { test(t, openTemp(t)) })
}

func openTemp(t testing.TB) *Store {
	s, err := Open(t.TempDir() + "/rackstrap.db")
	require.NoError(t, err)
	t.Cleanup(func() { s.Close() })
	return s
}

func TestRecords(t *testing.T) {
	eachStore(t, func(t *testing.T, s lifecycle.Store) {
		none, err := s.Records(ctx)
		require.NoError(t, err)
		require.Empty(t, none)

		rec := lifecycle.Record{
			Name: "knode1", MAC: hostA, Enrolled: true, State: lifecycle.Failed, Attempt: 2, Tries: 3,
			SecretHash: "ab12", Since: noon, Begun: noon,
			Node: lifecycle.Node{CredentialHash: "cd34", CredentialUsed: true, CPUs: 2, MemoryMiB: 4096, Skew: time.Second,
				Work: "join-1", Done: "reset-1", Serial: 2, Tries: 1, TokenRefused: 1, Reset: true, Deadline: noon, Member: 2, TokenID: "abcdef", Adopted: true},
			Held:    lifecycle.Held{Since: noon, By: "ann", Reason: "its disk is swapped"},
			Failure: &lifecycle.Failure{Phase: lifecycle.Installing, Reason: "disk is gone", Retryable: true},
		}
		first, err := s.Commit(ctx, rec, event(hostA, "armed"))
		require.NoError(t, err)
		require.EqualValues(t, 1, first.Revision)

		_, err = s.Commit(ctx, rec, event(hostA, "must not appear"))
		require.ErrorIs(t, err, lifecycle.ErrConflict, "revision 0 means: not there yet")
		second, err := s.Commit(ctx, first)
		require.NoError(t, err)
		_, err = s.Commit(ctx, first)
		require.ErrorIs(t, err, lifecycle.ErrConflict, "an old revision")
		require.ErrorIs(t, s.Delete(ctx, first, event(hostA, "must not appear")), lifecycle.ErrConflict)

		other, err := s.Commit(ctx, lifecycle.Record{Name: "kmaster", Since: noon})
		require.NoError(t, err)
		got, err := s.Records(ctx)
		require.NoError(t, err)
		require.Equal(t, []lifecycle.Record{other, second}, got, "complete, in the order of names")

		require.NoError(t, s.Delete(ctx, second, event(hostA, "deleted")))
		require.ErrorIs(t, s.Delete(ctx, second), lifecycle.ErrConflict, "it is gone")
		again, err := s.Commit(ctx, rec)
		require.NoError(t, err)
		require.EqualValues(t, 1, again.Revision)

		events, err := s.Events(ctx, lifecycle.EventQuery{})
		require.NoError(t, err)
		require.Equal(t, []string{"armed", "deleted"}, texts(events), "a refused change leaves no event")
	})
}

func TestCluster(t *testing.T) {
	eachStore(t, func(t *testing.T, s lifecycle.Store) {
		none, err := s.Cluster(ctx)
		require.NoError(t, err)
		require.Zero(t, none)

		first, err := s.CommitCluster(ctx, lifecycle.Cluster{Holder: "kmaster", Attempt: 2, Locked: noon}, event(hostA, "locked"))
		require.NoError(t, err)
		require.EqualValues(t, 1, first.Revision)
		_, err = s.CommitCluster(ctx, lifecycle.Cluster{Holder: "kmaster2"}, event(hostB, "must not appear"))
		require.ErrorIs(t, err, lifecycle.ErrConflict, "the lock is taken once")

		full := lifecycle.Cluster{Holder: "kmaster", Attempt: 2, Locked: noon, Initialised: noon, CA: "pem", CAHash: "sha256:ab",
			Endpoint: "k8s-api.lab:6443", Joining: "kmaster2", Stray: "abcdef", Complete: noon, Revision: first.Revision,
			FirstComplete: noon, FirstPowerOn: noon}
		second, err := s.CommitCluster(ctx, full)
		require.NoError(t, err)
		_, err = s.CommitCluster(ctx, first)
		require.ErrorIs(t, err, lifecycle.ErrConflict, "an old revision")
		stored, err := s.Cluster(ctx)
		require.NoError(t, err)
		full.Revision = 2
		require.Equal(t, full, stored)
		require.Equal(t, full, second)
		events, err := s.Events(ctx, lifecycle.EventQuery{})
		require.NoError(t, err)
		require.Equal(t, []string{"locked"}, texts(events))
	})
}

func TestCommitAll(t *testing.T) {
	eachStore(t, func(t *testing.T, s lifecycle.Store) {
		none, err := s.CommitAll(ctx, nil)
		require.NoError(t, err)
		require.Empty(t, none)

		change := func(name string, texts ...string) lifecycle.Change {
			c := lifecycle.Change{Record: lifecycle.Record{Name: name, Since: noon}}
			for _, text := range texts {
				c.Events = append(c.Events, event(hostA, text))
			}
			return c
		}
		stored, err := s.CommitAll(ctx, []lifecycle.Change{change("knode1", "a"), change("kmaster", "b")})
		require.NoError(t, err)
		require.Len(t, stored, 2)
		require.Equal(t, "knode1", stored[0].Name)
		for _, rec := range stored {
			require.EqualValues(t, 1, rec.Revision)
		}

		// One that is out of date, or there twice, keeps all from happening, in whatever order.
		fresh, old := change("knode2", "must not appear"), change("knode1")
		for _, changes := range [][]lifecycle.Change{{fresh, old}, {old, fresh}} {
			_, err = s.CommitAll(ctx, changes)
			require.ErrorIs(t, err, lifecycle.ErrConflict)
		}
		_, err = s.CommitAll(ctx, []lifecycle.Change{fresh, fresh})
		require.ErrorContains(t, err, `"knode2": changed twice at once`)

		got, err := s.Records(ctx)
		require.NoError(t, err)
		require.Equal(t, []lifecycle.Record{stored[1], stored[0]}, got)
		events, err := s.Events(ctx, lifecycle.EventQuery{})
		require.NoError(t, err)
		require.Equal(t, []string{"a", "b"}, texts(events))
	})
}

func TestEvents(t *testing.T) {
	eachStore(t, func(t *testing.T, s lifecycle.Store) {
		full := event(hostA, "a1")
		full.Machine, full.Attempt = "knode1", 7
		require.NoError(t, s.Append(ctx, []lifecycle.Event{full, event(hostB, "b1"), event(inventory.MAC{}, "rack")}, nil))
		require.NoError(t, s.Append(ctx, []lifecycle.Event{event(hostA, "a2"), event(hostA, "a3")}, nil))
		require.NoError(t, s.Append(ctx, nil, nil))

		every, err := s.Events(ctx, lifecycle.EventQuery{})
		require.NoError(t, err)
		require.Equal(t, []string{"a1", "b1", "rack", "a2", "a3"}, texts(every))
		full.Seq = every[0].Seq
		require.Equal(t, full, every[0])
		require.True(t, slices.IsSortedFunc(every, func(a, b lifecycle.Event) int { return cmp.Compare(a.Seq, b.Seq) }))
		require.NotZero(t, every[0].Seq)

		for name, c := range map[string]struct {
			query lifecycle.EventQuery
			want  []string
		}{
			"of one machine":     {lifecycle.EventQuery{MAC: hostA}, []string{"a1", "a2", "a3"}},
			"newest of one":      {lifecycle.EventQuery{MAC: hostA, Limit: 2}, []string{"a2", "a3"}},
			"newest of all":      {lifecycle.EventQuery{Limit: 3}, []string{"rack", "a2", "a3"}},
			"after":              {lifecycle.EventQuery{After: every[2].Seq}, []string{"a2", "a3"}},
			"after, of one":      {lifecycle.EventQuery{MAC: hostA, After: every[0].Seq, Limit: 9}, []string{"a2", "a3"}},
			"after the last":     {lifecycle.EventQuery{After: every[4].Seq}, nil},
			"after, far":         {lifecycle.EventQuery{After: 1 << 60}, nil},
			"of nobody":          {lifecycle.EventQuery{MAC: inventory.MAC{1}}, nil},
			"after, newest, all": {lifecycle.EventQuery{After: every[0].Seq, Limit: 1}, []string{"a3"}},
		} {
			got, err := s.Events(ctx, c.query)
			require.NoError(t, err, name)
			require.Equal(t, c.want, texts(got), name)
		}
	})
}

// Each class of events has places of its own.
func TestEventsOfAClassTakeItsPlacesOnly(t *testing.T) {
	eachStore(t, func(t *testing.T, s lifecycle.Store) {
		story := event(hostA, "the story")
		story.Source = "lifecycle"
		alarm := event(hostA, "the alarm")
		alarm.Source, alarm.Level = "http", lifecycle.Alarm
		require.NoError(t, s.Append(ctx, []lifecycle.Event{story, alarm}, nil))
		for i := 0; i < lifecycle.EventsPerMachine+30; i += 10 {
			var batch []lifecycle.Event
			for j := range 10 {
				e := event(hostA, fmt.Sprint(i+j))
				e.Source = "http"
				batch = append(batch, e)
			}
			require.NoError(t, s.Append(ctx, batch, nil))
		}
		kept, err := s.Events(ctx, lifecycle.EventQuery{MAC: hostA})
		require.NoError(t, err)
		require.Len(t, kept, lifecycle.EventsPerMachine+2)
		require.Equal(t, []string{"the story", "the alarm"}, texts(kept[:2]), "in the order of time")
		last, err := s.Events(ctx, lifecycle.EventQuery{MAC: hostA, Limit: 3})
		require.NoError(t, err)
		require.Equal(t, []string{"527", "528", "529"}, texts(last))
		require.NoError(t, s.Forget(ctx, []inventory.MAC{hostA}))
		kept, err = s.Events(ctx, lifecycle.EventQuery{MAC: hostA})
		require.NoError(t, err)
		require.Empty(t, kept)
	})
}

func TestEventsAreBounded(t *testing.T) {
	eachStore(t, func(t *testing.T, s lifecycle.Store) {
		const more = 30
		require.NoError(t, s.Append(ctx, []lifecycle.Event{event(hostB, "quiet")}, nil))
		for i := 0; i < lifecycle.EventsPerMachine+more; i += 10 {
			var batch []lifecycle.Event
			for j := range 10 {
				batch = append(batch, event(hostA, fmt.Sprint(i+j)))
			}
			require.NoError(t, s.Append(ctx, batch, nil))
		}
		kept, err := s.Events(ctx, lifecycle.EventQuery{MAC: hostA})
		require.NoError(t, err)
		require.Len(t, kept, lifecycle.EventsPerMachine)
		require.Equal(t, fmt.Sprint(more), kept[0].Text, "the oldest are dropped")
		quiet, err := s.Events(ctx, lifecycle.EventQuery{MAC: hostB})
		require.NoError(t, err)
		require.Len(t, quiet, 1, "only those of the same machine")

		require.NoError(t, s.Forget(ctx, []inventory.MAC{hostA, {9}}))
		require.NoError(t, s.Append(ctx, []lifecycle.Event{event(hostA, "anew")}, nil))
		anew, err := s.Events(ctx, lifecycle.EventQuery{MAC: hostA})
		require.NoError(t, err)
		require.Equal(t, []string{"anew"}, texts(anew))
		require.Greater(t, anew[0].Seq, kept[len(kept)-1].Seq, "a Seq is never given twice")
	})
}

func TestSightings(t *testing.T) {
	eachStore(t, func(t *testing.T, s lifecycle.Store) {
		a := lifecycle.Sighting{
			MAC: hostA, First: noon, Last: noon, LastBoot: noon, DiskBoot: noon, VendorClass: "PXEClient:Arch:00007",
			Firmware: "uefi-x64", UUID: "u", Relay: netip.MustParseAddr("10.2.0.1"), Hostname: "h",
			Address: netip.MustParseAddr("10.10.10.80"),
		}
		b := lifecycle.Sighting{MAC: hostB, First: noon, Last: noon}
		require.NoError(t, s.Append(ctx, nil, []lifecycle.Sighting{a, b}))
		b.Last = noon.Add(time.Second)
		require.NoError(t, s.Append(ctx, []lifecycle.Event{event(hostB, "again")}, []lifecycle.Sighting{b}))
		got, err := s.Sightings(ctx)
		require.NoError(t, err)
		require.ElementsMatch(t, []lifecycle.Sighting{a, b}, got)

		require.NoError(t, s.Forget(ctx, []inventory.MAC{hostB}))
		got, err = s.Sightings(ctx)
		require.NoError(t, err)
		require.Equal(t, []lifecycle.Sighting{a}, got)
		events, err := s.Events(ctx, lifecycle.EventQuery{MAC: hostB})
		require.NoError(t, err)
		require.Empty(t, events)
	})
}

func TestLeases(t *testing.T) {
	eachStore(t, func(t *testing.T, s lifecycle.Store) {
		a := lifecycle.Lease{IP: netip.MustParseAddr("10.10.10.200"), MAC: hostA, State: lifecycle.LeaseBound, Expires: noon}
		b := lifecycle.Lease{IP: netip.MustParseAddr("10.10.10.201"), State: lifecycle.LeaseQuarantined, Expires: noon}
		require.NoError(t, s.PutLease(ctx, a))
		require.NoError(t, s.PutLease(ctx, b))
		a.Expires = noon.Add(time.Hour)
		require.NoError(t, s.PutLease(ctx, a))
		got, err := s.Leases(ctx)
		require.NoError(t, err)
		require.ElementsMatch(t, []lifecycle.Lease{a, b}, got)

		require.NoError(t, s.DropLease(ctx, a.IP))
		require.NoError(t, s.DropLease(ctx, a.IP), "dropping nothing is no error")
		got, err = s.Leases(ctx)
		require.NoError(t, err)
		require.Equal(t, []lifecycle.Lease{b}, got)
	})
}

// Many writers race for one record: exactly one wins each revision, and every other event gets through.
func TestConcurrentWriters(t *testing.T) {
	eachStore(t, func(t *testing.T, s lifecycle.Store) {
		const writers, rounds = 16, 20
		var wins, conflicts [writers]int
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				rec := lifecycle.Record{Name: "shared", Since: noon}
				for i := range rounds {
					next, err := s.Commit(ctx, rec, event(hostA, "won"))
					switch {
					case err == nil:
						wins[w]++
						rec = next
					case errors.Is(err, lifecycle.ErrConflict):
						conflicts[w]++
						if records, _ := s.Records(ctx); len(records) == 1 {
							rec = records[0]
						}
					}
					mac := inventory.MAC{0, 0, 0, 0, 1, byte(w)}
					if err := s.Append(ctx, []lifecycle.Event{event(mac, fmt.Sprint(i))}, nil); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		won := 0
		for w := range writers {
			require.Equal(t, rounds, wins[w]+conflicts[w])
			won += wins[w]
		}
		records, err := s.Records(ctx)
		require.NoError(t, err)
		require.EqualValues(t, won, records[0].Revision, "each win is one revision")
		events, err := s.Events(ctx, lifecycle.EventQuery{MAC: hostA})
		require.NoError(t, err)
		require.Len(t, events, won)
		every, err := s.Events(ctx, lifecycle.EventQuery{})
		require.NoError(t, err)
		require.Len(t, every, won+writers*rounds)
		require.EqualValues(t, len(every), every[len(every)-1].Seq, "no Seq is skipped or given twice")
	})
}
