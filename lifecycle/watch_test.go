package lifecycle

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/inventory"
)

// limited is a rack whose kmaster installs, with limits.
func limited(t *testing.T, store Store) (*Rack, *clock) {
	t.Helper()
	r, c := newRack(t, store, limits())
	boot(r, c, macMaster)
	_, _, err := r.BeginInstall(t.Context(), macMaster, r.Ticket(macMaster))
	require.NoError(t, err)
	return r, c
}

func limits() *inventory.Config {
	return config(func(cfg *inventory.Config) {
		for i := range cfg.Machines {
			cfg.Machines[i].Install.Timeout, cfg.Machines[i].Install.Stall = time.Hour, 15*time.Minute
		}
	})
}

func stateOf(t *testing.T, r *Rack, name string) Record {
	t.Helper()
	rec, err := r.record(name)
	require.NoError(t, err)
	return rec
}

func TestStall(t *testing.T) {
	ctx := t.Context()
	r, c := limited(t, NewMemoryStore())
	c.forward(14 * time.Minute)
	r.failOverdue(ctx)
	require.Equal(t, Installing, stateOf(t, r, "kmaster").State)

	r.Alive(netip.MustParseAddr("10.10.10.80"))
	c.forward(14 * time.Minute)
	r.failOverdue(ctx)
	require.Equal(t, Installing, stateOf(t, r, "kmaster").State, "it fetched a package meanwhile")

	require.True(t, r.Report("kmaster", 1, Progress{Phase: "packages", Percent: 45, Text: "bash (120/266)"}))
	c.forward(10 * time.Minute)
	r.Observe(Event{MAC: macMaster, Source: "http", Kind: "refused", Level: Alarm, Text: "somebody else in its place"})
	r.Alive(netip.MustParseAddr("10.10.10.99"))
	c.forward(5 * time.Minute)
	r.failOverdue(ctx)
	rec := stateOf(t, r, "kmaster")
	require.Equal(t, Failed, rec.State)
	require.Equal(t, &Failure{Phase: Installing, Retryable: true, Reason: `stalled: no sign of life of the installer for 15m0s (install.stall); ` +
		`its last report was "packages 45%: bash (120/266)", 15m0s ago; look at its console`}, rec.Failure)
	events, err := r.Events(ctx, EventQuery{MAC: macMaster})
	require.NoError(t, err)
	i := slices.IndexFunc(events, func(e Event) bool { return e.Kind == "failed" })
	require.Equal(t, Alarm, events[i].Level)
	require.Contains(t, events[i].Text, "no sign of life of the installer for 15m0s")

	r.failOverdue(ctx)
	require.Equal(t, rec, stateOf(t, r, "kmaster"), "said once")
	d := r.Decide(macMaster)
	require.Equal(t, ActionInstall, d.Action, "the first of three tries")
	require.Contains(t, d.Reason, "kmaster failed, installation 2 of 3 follows: stalled: no sign")

	_, err = r.Apply(ctx, "kmaster", ReportDone, "late")
	require.NoError(t, err, "it was slow, not wrong")
	require.Equal(t, Installed, stateOf(t, r, "kmaster").State)
}

func TestTimeout(t *testing.T) {
	ctx := t.Context()
	r, c := limited(t, NewMemoryStore())
	for range 11 {
		c.forward(5 * time.Minute)
		r.Alive(netip.MustParseAddr("10.10.10.80"))
		r.failOverdue(ctx)
		require.Equal(t, Installing, stateOf(t, r, "kmaster").State)
	}
	r.Observe(Event{MAC: macMaster, Source: "dhcp", Kind: "ack"})
	c.forward(5 * time.Minute)
	r.failOverdue(ctx)
	rec := stateOf(t, r, "kmaster")
	require.Equal(t, Failed, rec.State)
	require.True(t, rec.Failure.Retryable)
	require.Contains(t, rec.Failure.Reason, "timed out: awaited the report of its %post for 1h0m0s (install.timeout); since it fetched its kickstart;")
}

// Every installation has its own time, and after the last one the machine is held.
func TestStallsAreCounted(t *testing.T) {
	ctx := t.Context()
	r, c := limited(t, NewMemoryStore())
	for try := 1; try <= 3; try++ {
		require.Equal(t, try, stateOf(t, r, "kmaster").Tries)
		c.forward(14 * time.Minute)
		r.failOverdue(ctx)
		require.Equal(t, Installing, stateOf(t, r, "kmaster").State)
		c.forward(time.Minute)
		r.failOverdue(ctx)
		require.Equal(t, Failed, stateOf(t, r, "kmaster").State)
		boot(r, c, macMaster)
		_, _, err := r.BeginInstall(ctx, macMaster, r.Ticket(macMaster))
		require.Equal(t, try == 3, err != nil)
	}
	require.Equal(t, ActionHold, r.Decide(macMaster).Action)
	require.Contains(t, r.Decide(macMaster).Reason, "kmaster failed: stalled")
}

// A daemon that has just begun has heard of nobody yet.
func TestNoFalseAlarmAfterARestart(t *testing.T) {
	ctx := t.Context()
	store := NewMemoryStore()
	_, c := limited(t, store)
	c.forward(59 * time.Minute) // all but the last of it with a daemon that listened

	again, other := newRack(t, store, limits())
	other.forward(c.Now().Sub(other.Now()))
	again.started = other.Now()
	again.failOverdue(ctx)
	require.Equal(t, Installing, stateOf(t, again, "kmaster").State)
	other.forward(time.Minute + 30*time.Second)
	again.failOverdue(ctx)
	require.Equal(t, Installing, stateOf(t, again, "kmaster").State, "its time is up, but its report may still come")
	other.forward(time.Minute)
	again.failOverdue(ctx)
	require.Equal(t, Failed, stateOf(t, again, "kmaster").State, "the time that it took is on disk")
	require.Contains(t, stateOf(t, again, "kmaster").Failure.Reason, "timed out")
}

func TestNoLimitNoFailure(t *testing.T) {
	r, c := newRack(t, NewMemoryStore(), config())
	boot(r, c, macMaster)
	_, _, err := r.BeginInstall(t.Context(), macMaster, r.Ticket(macMaster))
	require.NoError(t, err)
	c.forward(1000 * time.Hour)
	r.failOverdue(t.Context())
	require.Equal(t, Installing, stateOf(t, r, "kmaster").State)
}

func TestOnlyInstallationsAreWatched(t *testing.T) {
	r, c := newRack(t, NewMemoryStore(), limits())
	c.forward(1000 * time.Hour)
	r.failOverdue(t.Context())
	require.Equal(t, Armed, stateOf(t, r, "kmaster").State)
}

func TestProgress(t *testing.T) {
	r, c := limited(t, NewMemoryStore())
	shown := func() string {
		if p := r.Machines()[0].Progress; p != nil {
			return fmt.Sprintf("%s, %s ago", p, c.Now().Sub(p.At))
		}
		return ""
	}
	require.Empty(t, shown())
	require.False(t, r.Report("nobody", 1, Progress{Phase: "pre"}))
	require.False(t, r.Report("kmaster", 2, Progress{Phase: "pre"}), "of no attempt there is")
	require.Empty(t, shown())
	require.True(t, r.Report("kmaster", 1, Progress{Phase: "pre"}))
	c.forward(time.Second)
	require.Equal(t, "pre, 1s ago", shown())
	require.True(t, r.Report("kmaster", 1, Progress{Phase: "packages", Percent: 30, Text: "bash"}))
	require.False(t, r.Report("kmaster", 1, Progress{Phase: "packages", Percent: 20, Text: "late"}), "it was overtaken")
	require.Equal(t, "packages 30%: bash, 0s ago", shown())
	require.True(t, r.Report("kmaster", 1, Progress{Phase: "post", Percent: 5, Text: "hosts"}))
	require.Equal(t, "post 5%: hosts, 0s ago", shown())

	boot(r, c, macMaster) // a power cut
	_, _, err := r.BeginInstall(t.Context(), macMaster, r.Ticket(macMaster))
	require.NoError(t, err)
	require.Empty(t, shown(), "a new attempt begins at nothing")
	require.False(t, r.Report("kmaster", 1, Progress{Phase: "post", Percent: 99}), "of the attempt before")
	require.True(t, r.Report("kmaster", 2, Progress{Phase: "post", Percent: 5}))
	_, err = r.Apply(t.Context(), "kmaster", ReportDone, "")
	require.NoError(t, err)
	require.Empty(t, shown(), "it does something else now")
}

func TestRedact(t *testing.T) {
	const hash = "$6$saltsalt$Jm0nAbC.dEfGhIjKlMnOpQrStUvWxYz0123456789/abcdefghijklm"
	r, c := newRack(t, NewMemoryStore(), config(func(cfg *inventory.Config) {
		cfg.Machines[0].Install.Proxy = "http://user:p%40ssword@proxy.lab:3128"
		cfg.Machines[0].Install.Repos = map[string]inventory.Repo{"x": {URL: "https://u:hunter22@rpm.lab/"}}
	}))
	boot(r, c, macMaster)
	_, secret, err := r.BeginInstall(t.Context(), macMaster, r.Ticket(macMaster))
	require.NoError(t, err)
	other := strings.Repeat("ab", 32)
	text := "rootpw " + hash + " token=" + secret + " sum=" + other + " http://user:p%40ssword@proxy.lab p@ssword hunter22 $basearch $1"
	require.Equal(t, "rootpw (hidden) token=(hidden) sum="+other+" http://user:(hidden)@proxy.lab (hidden) (hidden) $basearch $1", r.Redact("kmaster", text))
	require.Equal(t, "plain", r.Redact("nobody", "plain"))
}
