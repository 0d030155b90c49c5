package lifecycle

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/inventory"
)

// stored is a rack whose one machine has this record.
func stored(t *testing.T, rec Record) (*Rack, *clock) {
	t.Helper()
	store := NewMemoryStore()
	rec.Name, rec.MAC = "kmaster", macMaster
	_, err := store.Commit(t.Context(), rec)
	require.NoError(t, err)
	return newRack(t, store, config())
}

// A hold and its end change what a machine boots, in every state, and nothing else.
func TestHoldChangesWhatItBootsAlone(t *testing.T) {
	for _, state := range []State{Armed, Installing, Installed, Firstboot, Initialising, Waiting, Joining, Joined, Ready, Failed} {
		t.Run(string(state), func(t *testing.T) {
			rec := Record{State: state, Attempt: 2, Tries: 1, SecretHash: "ab", Begun: time.Unix(1, 0), Since: time.Unix(2, 0),
				Node: Node{Member: 2, Work: "join.2.1", Deadline: time.Unix(3, 0)}}
			if state == Failed {
				rec.Failure = &Failure{Phase: Installing, Reason: "because", Retryable: true} // it would be installed again
			}
			r, c := stored(t, rec)
			before, action := r.records["kmaster"], r.Decide(macMaster).Action
			require.NotEqual(t, ActionHold, action)
			held, err := r.Hold(t.Context(), "kmaster", "ann", "its disk is swapped")
			require.NoError(t, err)
			require.Equal(t, Held{Since: c.Now(), By: "ann", Reason: "its disk is swapped"}, held.Held)
			d := r.Decide(macMaster)
			require.Equal(t, ActionHold, d.Action)
			require.Contains(t, d.Reason, "kmaster is held by the operator (ann: its disk is swapped): `rackstrap unhold kmaster` ends it (kmaster ")
			held.Held, held.Revision = Held{}, before.Revision
			require.Equal(t, before, held, "nothing else")

			var refused *HeldError
			_, err = r.Reinstall(t.Context(), "kmaster")
			require.ErrorAs(t, err, &refused, "only the end of the hold lets it be installed")
			require.Equal(t, state, r.records["kmaster"].State)

			freed, err := r.Unhold(t.Context(), "kmaster")
			require.NoError(t, err)
			require.Equal(t, action, r.Decide(macMaster).Action)
			freed.Revision = before.Revision
			require.Equal(t, before, freed)
		})
	}
}

func TestHoldSaidTwiceAndUnholdOfWhatIsNotHeld(t *testing.T) {
	r, c := newRack(t, NewMemoryStore(), config())
	first, err := r.Hold(t.Context(), "kmaster", "ann", "")
	require.NoError(t, err)
	c.forward(time.Hour)
	again, err := r.Hold(t.Context(), "kmaster", "bob", "")
	require.NoError(t, err)
	require.Equal(t, first, again)
	again, err = r.Hold(t.Context(), "kmaster", "bob", "no cable")
	require.NoError(t, err)
	require.Equal(t, Held{Since: first.Held.Since, By: "bob", Reason: "no cable"}, again.Held)
	_, err = r.Adopt(t.Context(), "kmaster")
	require.NoError(t, err)
	require.Equal(t, ActionHold, r.Decide(macMaster).Action, "only unhold ends it")
	_, err = r.Unhold(t.Context(), "kmaster")
	require.NoError(t, err)
	var refused *HeldError
	_, err = r.Unhold(t.Context(), "kmaster")
	require.ErrorAs(t, err, &refused)
	require.EqualError(t, err, "kmaster is not held by the operator: kmaster is installed")
	var unknown *UnknownMachineError
	for _, do := range []func() (Record, error){
		func() (Record, error) { return r.Hold(t.Context(), "nobody", "", "") },
		func() (Record, error) { return r.Unhold(t.Context(), "nobody") },
	} {
		_, err = do()
		require.ErrorAs(t, err, &unknown)
	}
	_, err = r.Hold(t.Context(), "knode1", "", "")
	require.ErrorIs(t, err, ErrNoHardware)
}

// A held machine gets no kickstart at its next boot; the installation that is under way may fetch its own again.
func TestKickstartOfAHeldMachine(t *testing.T) {
	r, c := newRack(t, NewMemoryStore(), config())
	boot(r, c, macMaster)
	_, _, err := r.BeginInstall(t.Context(), macMaster, r.Ticket(macMaster))
	require.NoError(t, err)
	_, err = r.Hold(t.Context(), "kmaster", "", "")
	require.NoError(t, err)
	_, _, err = r.BeginInstall(t.Context(), macMaster, r.Ticket(macMaster))
	require.NoError(t, err, "curl --retry in the same boot")
	boot(r, c, macMaster)
	_, _, err = r.BeginInstall(t.Context(), macMaster, r.Ticket(macMaster))
	var refused *NotInstallingError
	require.ErrorAs(t, err, &refused)
	require.Contains(t, refused.Reason, "held by the operator")
}

// A hold stays with the name when the list gives it other hardware, and over restarts.
func TestHoldOutlivesHardwareAndRestarts(t *testing.T) {
	store := NewMemoryStore()
	r, _ := newRack(t, store, config())
	_, err := r.Hold(t.Context(), "kmaster", "", "")
	require.NoError(t, err)
	other := config(func(c *inventory.Config) { c.Machines[0].MAC = macUnknown })
	require.NoError(t, r.Reload(t.Context(), other))
	require.Equal(t, ActionHold, r.Decide(macUnknown).Action)
	again, _ := newRack(t, store, other)
	require.Equal(t, ActionHold, again.Decide(macUnknown).Action)
	require.Equal(t, Armed, again.Decide(macUnknown).Record.State)
}

// Records as the version before wrote them for `rackstrap hold`, taken from its database.
func TestRecordsThatWereFailedByAHold(t *testing.T) {
	const record = `{"name":"kmaster","mac":"52:54:00:00:00:80","state":"failed","attempt":1,"tries":1,"since":"2026-11-30T20:20:00.5Z",` +
		`"begun":"2026-11-30T20:00:00Z","node":{"work":"join.1.1","done":"join.1.1","serial":1,"member":1},` +
		"\"failure\":{\"phase\":%q,\"reason\":\"held by the operator; `rackstrap reinstall kmaster` arms it again\",\"retryable\":false},\"revision\":0}"
	for phase, want := range map[State]State{
		Armed: Armed, Installed: Installed, Firstboot: Firstboot, Waiting: Waiting, Joined: Joined, Ready: Ready,
		Installing: Failed, Initialising: Failed, Joining: Failed,
	} {
		t.Run(string(phase), func(t *testing.T) {
			var rec Record
			require.NoError(t, json.Unmarshal(fmt.Appendf(nil, record, phase), &rec))
			r, _ := stored(t, rec)
			got := r.records["kmaster"]
			require.Equal(t, []any{want, rec.Since, true}, []any{got.State, got.Held.Since, got.IsHeld()})
			require.Equal(t, rec.Node, got.Node)
			require.Equal(t, ActionHold, r.Decide(macMaster).Action)
			require.Contains(t, r.Decide(macMaster).Reason, "held by the operator")
			require.Equal(t, want == Failed, got.Failure != nil)
			freed, err := r.Unhold(t.Context(), "kmaster")
			require.NoError(t, err)
			require.Equal(t, want, freed.State)
			if want == Failed {
				require.Contains(t, r.Decide(macMaster).Reason, "it was held while it was "+string(phase))
				require.Equal(t, ActionHold, r.Decide(macMaster).Action, "nobody knows what is on its disk")
			}
		})
	}
	// Other failures stay what they are: the appliance's own reasons to hold a machine.
	rec := Record{State: Failed, Failure: &Failure{Phase: Ready, Reason: "the list gives it the MAC 52:…"}}
	r, _ := stored(t, rec)
	require.Equal(t, []any{Failed, false}, []any{r.records["kmaster"].State, r.records["kmaster"].IsHeld()})
}

// Adopted, and found Ready in the cluster; only who was adopted can be.
func TestSeeReady(t *testing.T) {
	for _, c := range []struct {
		why string
		rec Record
		ok  bool
	}{
		{"joined", Record{State: Joined}, true},
		{"ready already", Record{State: Ready}, true},
		{"installed and adopted", Record{State: Installed, Node: Node{Adopted: true}}, true},
		{"its agent has called", Record{State: Firstboot, Node: Node{Adopted: true, Reset: true}}, true},
		{"adopted by a version that did not look", Record{State: Installed, Node: Node{Member: 2}}, true},
		{"just installed anew, while its old node counts as Ready", Record{State: Installed, Node: Node{Member: 1}}, false},
		{"just installed", Record{State: Installed}, false},
		{"it calls home", Record{State: Firstboot, Node: Node{Member: 2}}, false},
		{"too late, and joined", Record{State: Failed, Failure: &Failure{Phase: Joined, Retryable: true}}, true},
		{"too late, and not joined", Record{State: Failed, Failure: &Failure{Phase: Joining, Retryable: true}}, false},
	} {
		c.rec.Attempt, c.rec.Begun = 2, time.Unix(1, 0)
		r, _ := stored(t, c.rec)
		rec, err := r.SeeReady(t.Context(), "kmaster", 2, "kmaster2")
		if !c.ok {
			var refused *TransitionError
			require.ErrorAs(t, err, &refused, c.why)
			continue
		}
		require.NoError(t, err, c.why)
		require.Equal(t, []any{Ready, false}, []any{rec.State, rec.Node.Adopted}, c.why)
		if c.rec.State == Installed || c.rec.State == Firstboot {
			require.Equal(t, []any{2, false, true}, []any{rec.Node.Member, rec.Node.Reset, rec.Begun.IsZero()}, c.why)
		}
		_, err = r.SeeReady(t.Context(), "kmaster", 1, "kmaster2")
		require.ErrorIs(t, err, ErrSuperseded)
	}
}

// What a machine was at when its power went is not what it is at.
func TestProgressEndsWithANetworkBoot(t *testing.T) {
	r, c := newRack(t, NewMemoryStore(), config())
	boot(r, c, macMaster)
	_, _, err := r.BeginInstall(t.Context(), macMaster, r.Ticket(macMaster))
	require.NoError(t, err)
	require.True(t, r.Report("kmaster", 1, Progress{Phase: "packages", Percent: 45}))
	require.NotNil(t, r.Machines()[0].Progress)
	boot(r, c, macMaster)
	require.Nil(t, r.Machines()[0].Progress)
}
