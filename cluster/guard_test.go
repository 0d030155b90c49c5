package cluster

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/firstboot/api"
	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

func (r *rack) ask(t *testing.T, a *agent) (*api.Work, api.Waiting) {
	t.Helper()
	require.NoError(t, r.authenticate(a))
	work, waiting, err := r.c.Work(t.Context(), Question{Name: a.Name, Attempt: a.attempt})
	require.NoError(t, err)
	return work, waiting
}

func (r *rack) confirmFor(level inventory.Confirm) {
	for i := range r.cfg.Machines {
		r.cfg.Machines[i].Install.Confirm = level
	}
}

// Nothing that leads to a secret is handed out before the operator has confirmed the credential, of those whom the
// configuration names.
func TestConfirmation(t *testing.T) {
	for level, asked := range map[inventory.Confirm][]string{
		inventory.ConfirmOff:          nil,
		inventory.ConfirmControlPlane: {"kmaster1", "kmaster2"},
		inventory.ConfirmAll:          {"kmaster1", "kmaster2", "knode1"},
	} {
		t.Run(string(level), func(t *testing.T) {
			r := newRack(t, 2, 1)
			r.confirmFor(level)
			r.all()
			for _, name := range asked {
				r.play(time.Minute)
				a := r.agent(name)
				rec := r.record(name)
				require.False(t, rec.IsConfirmed())
				require.Empty(t, rec.Node.TokenID)
				require.Contains(t, []lifecycle.State{lifecycle.Firstboot, lifecycle.Waiting}, rec.State)
				work, waiting := r.ask(t, a)
				require.Nil(t, work)
				require.Equal(t, rec.Fingerprint(), waiting.Confirm)
				require.Contains(t, r.c.Status().Waiting[name], "`rackstrap confirm "+name+"`")
				require.Contains(t, r.log.String(), rec.Fingerprint(), "it is an event")
				_, err := r.c.Confirm(t.Context(), name, "SHA256:other", "ann")
				var claim *lifecycle.ConfirmError
				require.ErrorAs(t, err, &claim)
				for range 2 { // said twice
					_, err = r.c.Confirm(t.Context(), name, rec.Fingerprint(), "ann")
					require.NoError(t, err)
				}
				r.until("it is ready", r.ready(name))
			}
			r.until("settled", r.settled)
			r.sound()
		})
	}
}

// A confirmation is of one credential: it is void with it, and nobody inherits it.
func TestConfirmationIsOfOneCredential(t *testing.T) {
	r := newRack(t, 1, 0)
	r.confirmFor(inventory.ConfirmAll)
	r.all()
	_, err := r.c.Confirm(t.Context(), "kmaster1", "", "ann")
	require.ErrorContains(t, err, "has not called home yet")
	r.play(time.Minute)
	first := r.record("kmaster1").Fingerprint()
	_, err = r.c.Reinstall(t.Context(), "kmaster1", ReinstallOptions{}, func(string) {})
	require.NoError(t, err)
	require.NoError(t, r.install(r.agent("kmaster1")))
	r.play(time.Minute)
	require.NotEqual(t, first, r.record("kmaster1").Fingerprint())
	_, err = r.c.Confirm(t.Context(), "kmaster1", first, "ann")
	require.ErrorContains(t, err, "another fingerprint")
	require.Zero(t, r.kube.Inits)
	_, err = r.c.Confirm(t.Context(), "kmaster1", r.record("kmaster1").Fingerprint(), "ann")
	require.NoError(t, err)
	r.until("ready", r.ready())
	_, err = r.c.Reinstall(t.Context(), "kmaster1", ReinstallOptions{ReleaseLock: true}, func(string) {})
	require.NoError(t, err)
	require.Zero(t, r.record("kmaster1").Node.Confirmed)
}

// A held machine is handed nothing, and its results wait, in every phase; when the hold ends it goes on.
func TestHeldMachineIsHandedNothing(t *testing.T) {
	r := newRack(t, 2, 1).all()
	hold := func(name string) {
		_, err := r.c.Hold(t.Context(), name, HoldOptions{}, func(string) {})
		require.NoError(t, err)
	}
	unhold := func(name string) {
		_, err := r.c.Unhold(t.Context(), name)
		require.NoError(t, err)
	}
	first, node := r.agent("kmaster1"), r.agent("knode1")
	var held *lifecycle.HeldError

	hold("knode1") // before its exchange
	_, err := r.c.Exchange(t.Context(), "knode1", node.token, api.Exchange{Attempt: node.attempt, MAC: node.mac.String()})
	require.ErrorAs(t, err, &held)
	_, err = r.c.Exchange(t.Context(), "knode1", "guess", api.Exchange{Attempt: node.attempt, MAC: node.mac.String()})
	require.ErrorIs(t, err, lifecycle.ErrBadSecret)
	unhold("knode1")

	r.until("init was done, and not reported yet", func() bool { return first.result != nil })
	hold("kmaster1")
	require.ErrorAs(t, r.c.Result(t.Context(), "kmaster1", first.attempt, first.work.ID, *first.result), &held)
	require.Zero(t, r.rack.Cluster().Initialised, "its CA is not the rack's")
	r.clock.forward(2 * time.Hour) // no deadline passes meanwhile
	r.c.Sweep(t.Context())
	work, waiting := r.ask(t, first)
	require.Nil(t, work)
	require.Contains(t, waiting.Reason, "rackstrap unhold kmaster1")
	require.Equal(t, lifecycle.Initialising, r.state("kmaster1"))
	unhold("kmaster1")
	r.until("ready", r.ready("kmaster1"))

	r.until("the token is there", func() bool { return r.record("knode1").Node.TokenID != "" })
	hold("knode1")
	if node.work == nil {
		work, _ = r.ask(t, node)
		require.Nil(t, work)
	}
	hold("kmaster1") // a master
	work, _ = r.ask(t, first)
	require.Nil(t, work, "it serves nobody")
	for _, m := range r.c.mastersExcept("") {
		require.NotEqual(t, "kmaster1", m.Machine.Name)
	}
	unhold("kmaster1")
	unhold("knode1")
	r.until("settled", r.settled)
	r.sound()
}

// What is revoked is good no more, also after the hold; a reinstallation brings the machine back.
func TestRevokedCredential(t *testing.T) {
	r := newRack(t, 1, 1).all()
	node := r.agent("knode1")
	r.until("the token is there", func() bool { return r.record("knode1").Node.TokenID != "" })
	_, err := r.c.Hold(t.Context(), "knode1", HoldOptions{Revoke: true}, func(string) {})
	require.NoError(t, err)
	for range 2 {
		require.ErrorIs(t, r.authenticate(node), lifecycle.ErrBadSecret)
		_, err = r.c.Exchange(t.Context(), "knode1", node.token, api.Exchange{Attempt: node.attempt, MAC: node.mac.String()})
		require.ErrorIs(t, err, lifecycle.ErrBadSecret)
		require.False(t, r.rack.Knows("knode1", node.credential))
		require.False(t, r.rack.Knows("knode1", ""))
		_, _ = r.c.Unhold(t.Context(), "knode1")
	}
	_, err = r.c.Reinstall(t.Context(), "knode1", ReinstallOptions{}, func(string) {})
	require.NoError(t, err)
	require.NoError(t, r.install(node))
	r.until("settled", r.settled)
	r.sound()
}
