package lifecycle

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A machine in its installer is told to reboot as long as it has tries, and to stay when it has none; a new attempt makes
// it reboot whatever it stands at.
func TestVerdict(t *testing.T) {
	ctx := t.Context()
	r, c := newRack(t, NewMemoryStore(), limits())
	attempt := 0
	for try := 1; try <= 3; try++ {
		boot(r, c, macMaster)
		rec, _, err := r.BeginInstall(ctx, macMaster, r.Ticket(macMaster))
		require.NoError(t, err)
		attempt = rec.Attempt
		require.Equal(t, GoOn, r.Verdict("kmaster", attempt))
		_, err = r.FailInstall(ctx, "kmaster", "no room")
		require.NoError(t, err)
		want := Again
		if try == 3 {
			want = Remain
		}
		require.Equal(t, want, r.Verdict("kmaster", attempt), try)
		for range 3 {
			c.forward(10 * time.Second)
			r.Asked("kmaster", attempt, want)
		}
	}
	require.True(t, strings.HasPrefix(r.Machines()[0].Reason, "stays in its installer, `rackstrap reinstall kmaster` reboots it; kmaster failed: no room"), r.Machines()[0].Reason)
	_, err := r.Reinstall(ctx, "kmaster")
	require.NoError(t, err)
	require.Equal(t, Again, r.Verdict("kmaster", attempt))
	require.Equal(t, GoOn, r.Verdict("kmaster", attempt+1), "armed")
	require.Equal(t, GoOn, r.Verdict("nobody", 1))
	require.Equal(t, []string{"it reboots by itself, for the next installation", "it reboots by itself, for the next installation",
		"its installer stays, for somebody to look (console, Alt+F2 or Ctrl+B 2 for a shell); `rackstrap reinstall kmaster` reboots it"},
		texts(t, r, "verdict"), "once for each failure")

	boot(r, c, macMaster)
	_, _, err = r.BeginInstall(ctx, macMaster, r.Ticket(macMaster))
	require.NoError(t, err)
	_, err = r.Apply(ctx, "kmaster", ReportDone, "")
	require.NoError(t, err)
	require.Equal(t, GoOn, r.Verdict("kmaster", attempt+1), "Anaconda itself reboots it")
}

// One that does not ask stands there, and that is said: once, in `status`, and until it boots again.
func TestStanding(t *testing.T) {
	r, c := limited(t, NewMemoryStore())
	_, err := r.FailInstall(t.Context(), "kmaster", "no room")
	require.NoError(t, err)
	c.forward(50 * time.Second)
	r.tellStanding()
	require.Empty(t, texts(t, r, "stands"), "it may ask yet")
	c.forward(11 * time.Second)
	for range 3 {
		r.tellStanding()
	}
	require.Equal(t, []string{"it " + needsHand}, texts(t, r, "stands"))
	reason := func() string { return r.Machines()[0].Reason }
	require.True(t, strings.HasPrefix(reason(), needsHand+"; kmaster failed, installation 2 of 3 follows: no room"), reason())
	boot(r, c, macMaster)
	require.NotContains(t, reason(), needsHand)

	r, c = limited(t, NewMemoryStore())
	_, err = r.FailInstall(t.Context(), "kmaster", "no room")
	require.NoError(t, err)
	r.Asked("kmaster", 1, Again)
	c.forward(time.Hour)
	r.tellStanding()
	require.Empty(t, texts(t, r, "stands"), "it has asked")
}

// texts are those of kmaster's events of a kind.
func texts(t *testing.T, r *Rack, kind string) (all []string) {
	t.Helper()
	events, err := r.Events(t.Context(), EventQuery{MAC: macMaster})
	require.NoError(t, err)
	for _, e := range events {
		if e.Kind == kind {
			all = append(all, e.Text)
		}
	}
	return all
}
