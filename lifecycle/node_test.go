package lifecycle

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/inventory"
)

// installed takes a machine through its installation, and returns the install token.
func installed(t *testing.T, r *Rack, c *clock, mac inventory.MAC) (Record, string) {
	t.Helper()
	boot(r, c, mac)
	rec, secret, err := r.BeginInstall(t.Context(), mac, r.Ticket(mac))
	require.NoError(t, err)
	return rec, secret
}

func TestCredential(t *testing.T) {
	store := NewMemoryStore()
	r, c := newRack(t, store, config())
	name := r.Config().Machines[0].Name
	rec, token := installed(t, r, c, r.Config().Machines[0].MAC)
	_, err := r.Apply(t.Context(), name, ReportDone, "reported")
	require.NoError(t, err)
	note := func(rec *Record) { rec.Node.CPUs = 4 }

	_, _, err = r.CallHome(t.Context(), name, rec.Attempt, "forged", note)
	require.ErrorIs(t, err, ErrBadSecret)
	_, _, err = r.CallHome(t.Context(), name, rec.Attempt-1, token, note)
	require.ErrorIs(t, err, ErrSuperseded)
	_, lost, err := r.CallHome(t.Context(), name, rec.Attempt, token, note)
	require.NoError(t, err)
	rec, credential, err := r.CallHome(t.Context(), name, rec.Attempt, token, note)
	require.NoError(t, err, "its answer was lost")
	require.Equal(t, []any{Firstboot, 4}, []any{rec.State, rec.Node.CPUs})

	check := func(r *Rack, credential string) error {
		return r.CheckCredential(t.Context(), name, rec.Attempt, credential)
	}
	require.ErrorIs(t, check(r, lost), ErrBadSecret)
	require.ErrorIs(t, check(r, token), ErrBadSecret)
	require.ErrorIs(t, check(r, ""), ErrBadSecret)
	_, _, err = r.CallHome(t.Context(), name, rec.Attempt, token, note)
	require.NoError(t, err, "refused calls show nothing to have arrived")
	rec, credential, err = r.CallHome(t.Context(), name, rec.Attempt, token, note)
	require.NoError(t, err)
	require.NoError(t, check(r, credential))
	_, _, err = r.CallHome(t.Context(), name, rec.Attempt, token, note)
	require.ErrorIs(t, err, ErrBadSecret, "void from its first use on")

	again, _ := newRack(t, store, config())
	require.NoError(t, check(again, credential), "it survives a restart")

	again.Advance(t.Context(), name, rec.Attempt, "", "", func(rec *Record) error {
		rec.Node.Member, rec.Node.TokenID, rec.Node.Work = rec.Attempt, "abcdef", "join-1"
		return nil
	})
	anew, err := again.Reinstall(t.Context(), name)
	require.NoError(t, err)
	require.Equal(t, Node{Member: rec.Attempt, TokenID: "abcdef"}, anew.Node, "only what its former self may have left in the cluster")
	require.ErrorIs(t, check(again, credential), ErrSuperseded)
	require.ErrorIs(t, again.CheckCredential(t.Context(), name, anew.Attempt, credential), ErrBadSecret)
}

// The machine rebooted into its disk while the appliance was away, so that %post could not report.
func TestCallHomeWhileInstalling(t *testing.T) {
	r, c := newRack(t, NewMemoryStore(), config())
	m := r.Config().Machines[0]
	rec, token := installed(t, r, c, m.MAC)
	rec, _, err := r.CallHome(t.Context(), m.Name, rec.Attempt, token, func(*Record) {})
	require.NoError(t, err)
	require.Equal(t, Firstboot, rec.State)
	require.Equal(t, ActionLocalDisk, r.Decide(m.MAC).Action)
	events, err := r.Events(t.Context(), EventQuery{MAC: m.MAC, Limit: 1})
	require.NoError(t, err)
	require.Contains(t, events[0].Text, "report of %post never came")
}

func TestAdvance(t *testing.T) {
	r, c := newRack(t, NewMemoryStore(), config())
	name := r.Config().Machines[0].Name
	rec, token := installed(t, r, c, r.Config().Machines[0].MAC)
	rec, _, err := r.CallHome(t.Context(), name, rec.Attempt, token, func(*Record) {})
	require.NoError(t, err)

	_, err = r.Advance(t.Context(), name, rec.Attempt+1, MustWait, "waits", nil)
	require.ErrorIs(t, err, ErrSuperseded)
	because := errors.New("because")
	_, err = r.Advance(t.Context(), name, rec.Attempt, MustWait, "waits", func(*Record) error { return because })
	require.ErrorIs(t, err, because)
	var refused *TransitionError
	_, err = r.Advance(t.Context(), name, rec.Attempt, BeginJoin, "joins", nil)
	require.ErrorAs(t, err, &refused)
	require.Equal(t, Firstboot, r.Decide(rec.MAC).Record.State, "nothing of it happened")

	for _, trigger := range []Trigger{MustWait, BeginJoin} {
		_, err = r.Advance(t.Context(), name, rec.Attempt, trigger, "goes on", nil)
		require.NoError(t, err)
	}
	_, err = r.FailIn(t.Context(), name, rec.Attempt, Waiting, "too slow", true)
	require.ErrorAs(t, err, &refused, "it is not waiting any more")
	_, err = r.FailIn(t.Context(), name, rec.Attempt, Joining, "too slow", true)
	require.NoError(t, err)
	_, err = r.Advance(t.Context(), name, rec.Attempt, SeenReady, "seen", nil)
	require.ErrorAs(t, err, &refused, "it has not joined")
	joined, err := r.Advance(t.Context(), name, rec.Attempt, ReportJoined, "late", nil)
	require.NoError(t, err, "good news that comes late")
	require.Equal(t, []any{Joined, (*Failure)(nil)}, []any{joined.State, joined.Failure})
}

func TestBegunIsThePowerOnOfTheFirstInstallation(t *testing.T) {
	r, c := newRack(t, NewMemoryStore(), config())
	m := r.Config().Machines[0]
	c.forward(time.Hour)
	boot(r, c, m.MAC)
	powerOn := c.Now().Add(-time.Second)
	rec, _, err := r.BeginInstall(t.Context(), m.MAC, r.Ticket(m.MAC))
	require.NoError(t, err)
	require.Equal(t, powerOn, rec.Begun)
	again, _ := installed(t, r, c, m.MAC)
	require.Equal(t, 2, again.Attempt)
	require.Equal(t, powerOn, again.Begun)
}

func TestClusterRecord(t *testing.T) {
	store := NewMemoryStore()
	r, _ := newRack(t, store, config())
	lock := func(r *Rack, name string) error {
		_, err := r.UpdateCluster(t.Context(), func(c *Cluster) (*Event, error) {
			if c.Holder != "" {
				return nil, errors.New("held")
			}
			c.Holder = name
			return &Event{Source: "cluster", Kind: "lock", Text: name}, nil
		})
		return err
	}
	require.NoError(t, lock(r, "kmaster"))
	require.ErrorContains(t, lock(r, "kmaster2"), "held")
	again, _ := newRack(t, store, config())
	require.Equal(t, "kmaster", again.Cluster().Holder)
	require.ErrorContains(t, lock(again, "kmaster2"), "held")
	events, err := again.Events(context.Background(), EventQuery{})
	require.NoError(t, err)
	require.Equal(t, "kmaster", events[len(events)-1].Text)

	_, err = again.UpdateCluster(t.Context(), func(c *Cluster) (*Event, error) { c.Joining = "kmaster2"; return nil, nil })
	require.NoError(t, err)
	_, err = r.UpdateCluster(t.Context(), func(c *Cluster) (*Event, error) { c.Joining = "kmaster3"; return nil, nil })
	require.ErrorIs(t, err, ErrConflict, "two appliances on one store")
}
