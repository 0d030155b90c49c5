package lifecycle

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/inventory"
)

// A machine is sent to its installer only in a boot that was seen since it is to be installed.
func TestDecideBoot(t *testing.T) {
	for _, c := range []struct {
		name string
		mode inventory.DHCPMode
		seen []time.Duration // boots, before now
		want Action
	}{
		{"never seen", inventory.DHCPServer, nil, ActionWait},
		{"seen before it was armed", inventory.DHCPServer, []time.Duration{25 * time.Hour}, ActionWait},
		{"seen long ago", inventory.DHCPServer, []time.Duration{61 * time.Minute}, ActionWait},
		{"just seen", inventory.DHCPServer, []time.Duration{time.Minute}, ActionInstall},
		{"proxy", inventory.DHCPProxy, []time.Duration{time.Minute}, ActionInstall},
		{"proxy, never seen", inventory.DHCPProxy, nil, ActionWait},
		{"nobody sees boots", inventory.DHCPOff, nil, ActionInstall},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := config()
			cfg.Network.DHCP.Mode = c.mode
			r, clock := newRack(t, NewMemoryStore(), cfg)
			now := clock.Now().Add(24 * time.Hour)
			for _, before := range c.seen {
				r.See(Sighting{MAC: macMaster, LastBoot: now.Add(-before)})
			}
			clock.forward(24 * time.Hour)
			m, _ := r.Machine(macMaster)
			d := r.DecideBoot(macMaster, m.IP)
			require.Equal(t, c.want, d.Action, d.Reason)
			require.Equal(t, c.want == ActionInstall, d.Ticket != "")
			require.Equal(t, c.want == ActionWait, d.Unseen)
			require.Equal(t, ActionInstall, r.Decide(macMaster).Action, "what status says")
		})
	}
}

func TestTickets(t *testing.T) {
	ctx := t.Context()
	r, clock := newRack(t, NewMemoryStore(), config())
	refused := func(ticket, reason string) {
		t.Helper()
		var not *NotInstallingError
		require.ErrorAs(t, r.MayInstall(macMaster, ticket), &not)
		require.Contains(t, not.Reason, reason)
		_, _, err := r.BeginInstall(ctx, macMaster, ticket)
		require.ErrorAs(t, err, &not)
	}
	const notOurs, old = "not the one that the machine's boot script names", "belongs to an earlier boot"
	boot := func() {
		clock.forward(time.Minute)
		r.See(Sighting{MAC: macMaster, LastBoot: clock.Now()})
		clock.forward(time.Second)
	}
	boot()
	first := r.Ticket(macMaster)
	for _, forged := range []string{"", "x", first[1:], first + "A", "B" + first[1:], first[:len(first)-2] + "AA", r.Ticket(macNode)} {
		refused(forged, notOurs)
	}
	other, _ := newRack(t, NewMemoryStore(), config())
	refused(other.Ticket(macMaster), notOurs)

	_, _, err := r.BeginInstall(ctx, macMaster, first)
	require.NoError(t, err)
	clock.forward(time.Second)
	rec, _, err := r.BeginInstall(ctx, macMaster, first)
	require.NoError(t, err, "curl --retry")
	require.Equal(t, 1, rec.Tries)

	require.True(t, r.Report("kmaster", rec.Attempt, Progress{Phase: "pre"}))
	refused(first, "two parties act as this machine")

	boot() // the power was cut
	refused(first, old)
	second := r.Ticket(macMaster)
	rec, _, err = r.BeginInstall(ctx, macMaster, second)
	require.NoError(t, err)
	require.Equal(t, 2, rec.Tries)

	_, err = r.Reinstall(ctx, "kmaster")
	require.NoError(t, err)
	refused(second, old)
	third := r.Ticket(macMaster)
	clock.forward(bootFor + time.Second)
	refused(third, "too old")
	boot()
	fourth := r.Ticket(macMaster)
	_, err = r.Reinstall(ctx, "kmaster") // while it loads its installer
	require.NoError(t, err)
	_, _, err = r.BeginInstall(ctx, macMaster, fourth)
	require.NoError(t, err)
}

func TestTicketKey(t *testing.T) {
	dir := t.TempDir()
	key, err := LoadTicketKey(dir)
	require.NoError(t, err)
	again, err := LoadTicketKey(dir)
	require.NoError(t, err)
	require.Equal(t, key, again)
	info, err := os.Stat(filepath.Join(dir, "ticket.key"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode())
	require.NoError(t, os.WriteFile(filepath.Join(dir, "ticket.key"), key[:5], 0o600))
	other, err := LoadTicketKey(dir)
	require.NoError(t, err)
	require.Len(t, other, ticketKeySize)
}

// What has only read the kickstart does not get on; what two parties present holds the machine.
func TestTwoParties(t *testing.T) {
	ctx := t.Context()
	r, clock := newRack(t, NewMemoryStore(), config())
	clock.forward(time.Minute)
	r.See(Sighting{MAC: macMaster, LastBoot: clock.Now()})
	rec, secret, err := r.BeginInstall(ctx, macMaster, r.Ticket(macMaster))
	require.NoError(t, err)
	require.NoError(t, r.CheckInstaller(ctx, "kmaster", rec.Attempt, "guessed"), "a stranger holds nobody")
	var held *HeldError
	require.ErrorAs(t, r.CheckInstaller(ctx, "kmaster", rec.Attempt, secret), &held)
	require.Contains(t, held.Reason, "held by the appliance (it calls as if it were installed")
	require.Equal(t, ActionHold, r.Decide(macMaster).Action)
	events, err := r.Events(ctx, EventQuery{MAC: macMaster})
	require.NoError(t, err)
	require.Equal(t, Alarm, events[len(events)-1].Level)

	_, err = r.Unhold(ctx, "kmaster")
	require.NoError(t, err)
	require.NoError(t, r.CheckInstaller(ctx, "kmaster", rec.Attempt, secret), "the operator vouches for it")

	_, credential, err := r.CallHome(ctx, "kmaster", rec.Attempt, secret, func(*Record) {})
	require.NoError(t, err)
	require.NoError(t, r.CheckSpent(ctx, "kmaster", rec.Attempt, secret), "its answer was lost")
	require.NoError(t, r.CheckCredential(ctx, "kmaster", rec.Attempt, credential))
	require.NoError(t, r.CheckSpent(ctx, "kmaster", rec.Attempt, "guessed"))
	require.ErrorAs(t, r.CheckSpent(ctx, "kmaster", rec.Attempt, secret), &held)
	require.Contains(t, held.Reason, "two parties act as this machine")
}

// Nor does what has only read the kickstart get on when the installation has failed, as whoever has its token can report.
func TestNoShortCutOutOfFailed(t *testing.T) {
	for name, fail := range map[string]func(*Rack, *clock){
		"reported": func(r *Rack, _ *clock) {
			_, err := r.FailInstall(t.Context(), "kmaster", "no disk")
			require.NoError(t, err)
		},
		"stalled": func(r *Rack, c *clock) { c.forward(15 * time.Minute); r.failOverdue(t.Context()) },
	} {
		for _, c := range []struct {
			name         string
			before, late bool // signs of the installer
			restarted    bool // the daemon, since the installation began
			want         bool // the machine is held
		}{
			{name: "nothing was seen", want: true},
			{name: "it was seen before", before: true},
			{name: "it was slow, and is seen after it failed", late: true},
			{name: "the daemon was away", restarted: true},
		} {
			t.Run(name+", "+c.name, func(t *testing.T) {
				store := NewMemoryStore()
				r, clock := limited(t, store)
				rec, secret, err := r.BeginInstall(t.Context(), macMaster, r.Ticket(macMaster))
				require.NoError(t, err)
				if c.before {
					require.True(t, r.Report("kmaster", rec.Attempt, Progress{Phase: "pre"}))
				}
				if c.restarted {
					now := clock.Now()
					r, clock = newRack(t, store, limits())
					clock.forward(now.Sub(clock.Now()) + time.Second)
					r.started = clock.Now()
				}
				fail(r, clock)
				require.Equal(t, Failed, stateOf(t, r, "kmaster").State)
				if c.late {
					require.True(t, r.Report("kmaster", rec.Attempt, Progress{Phase: "post"}))
				}
				var held *HeldError
				require.NoError(t, r.CheckInstaller(t.Context(), "kmaster", rec.Attempt, "guessed"))
				require.Equal(t, c.want, errors.As(r.CheckInstaller(t.Context(), "kmaster", rec.Attempt, secret), &held))
				require.Equal(t, c.want, stateOf(t, r, "kmaster").IsHeld())
				if !c.want {
					return
				}
				_, err = r.Unhold(t.Context(), "kmaster")
				require.NoError(t, err)
				require.NoError(t, r.CheckInstaller(t.Context(), "kmaster", rec.Attempt, secret), "the operator vouches for it")
			})
		}
	}
}

func TestSignsOfAnInstaller(t *testing.T) {
	for name, sign := range map[string]func(*Rack){
		"a request":      func(r *Rack) { m, _ := r.Machine(macMaster); r.SignOfInstaller(m.IP) },
		"a report":       func(r *Rack) { r.Report("kmaster", 1, Progress{Phase: "packages"}) },
		"not this one's": func(r *Rack) { m, _ := r.Machine(macNode); r.SignOfInstaller(m.IP) },
		"nobody's":       func(r *Rack) { r.SignOfInstaller(netip.MustParseAddr("192.0.2.1")) },
	} {
		t.Run(name, func(t *testing.T) {
			r, clock := newRack(t, NewMemoryStore(), config())
			clock.forward(time.Minute)
			sign(r) // before its kickstart: iPXE loads the kernel
			rec, secret, err := r.BeginInstall(t.Context(), macMaster, r.Ticket(macMaster))
			require.NoError(t, err)
			sign(r)
			err = r.CheckInstaller(t.Context(), "kmaster", rec.Attempt, secret)
			var held *HeldError
			require.Equal(t, name == "not this one's" || name == "nobody's", errors.As(err, &held), "%v", err)
		})
	}
}

// A machine that boots has lost its connections: where one goes on, somebody else has asked in its name.
func TestFirmwareBesideTheAgent(t *testing.T) {
	r, clock := newRack(t, NewMemoryStore(), config())
	boot(r, clock, macMaster)
	made := clock.Now()
	alarms := func() (n int) {
		events, err := r.Events(t.Context(), EventQuery{MAC: macMaster})
		require.NoError(t, err)
		for _, e := range events {
			if e.Kind == "suspect" {
				n++
			}
		}
		return n
	}
	r.CheckConnection("kmaster", made)
	require.Zero(t, alarms(), "it booted before")
	boot(r, clock, macMaster)
	r.CheckConnection("kmaster", clock.Now())
	require.Zero(t, alarms(), "it has booted again, and made another one")
	for range 3 {
		r.CheckConnection("kmaster", made)
	}
	require.Equal(t, 1, alarms())
	require.Contains(t, r.Machines()[0].Reason, "somebody else asked by DHCP in its name while it ran")
	require.False(t, r.Machines()[0].Record.IsHeld())
	clock.forward(partiesFor)
	require.NotContains(t, r.Machines()[0].Reason, "somebody else")
}

// A clock that is set, as that of an appliance is which starts without a battery, keeps no machine from being installed.
func TestClockIsSet(t *testing.T) {
	for _, by := range []time.Duration{-9000 * time.Hour, 9000 * time.Hour} {
		r, clock := newRack(t, NewMemoryStore(), config())
		m, _ := r.Machine(macMaster)
		boot(r, clock, macMaster)
		clock.forward(by)
		boot(r, clock, macMaster)
		d := r.DecideBoot(macMaster, m.IP)
		require.Equal(t, ActionInstall, d.Action, d.Reason)
		_, _, err := r.BeginInstall(t.Context(), macMaster, d.Ticket)
		require.NoError(t, err)
		clock.forward(by)
		boot(r, clock, macMaster) // the power was cut
		d = r.DecideBoot(macMaster, m.IP)
		require.Equal(t, ActionInstall, d.Action, d.Reason)
		_, _, err = r.BeginInstall(t.Context(), macMaster, d.Ticket)
		require.NoError(t, err)
	}
}

// Where the appliance sees no boots, a machine that lost its power in %post reads its script again, and is installed again.
func TestPowerLossWithoutDHCP(t *testing.T) {
	cfg := config()
	cfg.Network.DHCP.Mode = inventory.DHCPOff
	r, clock := newRack(t, NewMemoryStore(), cfg)
	m, _ := r.Machine(macMaster)
	install := func() string {
		clock.forward(time.Minute)
		d := r.DecideBoot(macMaster, m.IP)
		require.Equal(t, ActionInstall, d.Action, d.Reason)
		clock.forward(time.Second) // it loads its installer
		rec, _, err := r.BeginInstall(t.Context(), macMaster, d.Ticket)
		require.NoError(t, err)
		require.True(t, r.Report("kmaster", rec.Attempt, Progress{Phase: "post"}))
		return d.Ticket
	}
	first := install()
	second := install()
	for _, ticket := range []string{first, second} {
		var not *NotInstallingError
		require.ErrorAs(t, r.MayInstall(macMaster, ticket), &not, "of a boot whose installer has reported")
	}
}
