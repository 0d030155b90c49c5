package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/inventory"
)

var (
	macMaster  = inventory.MAC{0x52, 0x54, 0, 0, 0, 0x80}
	macNode    = inventory.MAC{0x52, 0x54, 0, 0, 0, 0x81}
	macUnknown = inventory.MAC{0x52, 0x54, 0, 0, 0, 0x99}
)

// clock is a clock that tests turn.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) forward(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func config(edit ...func(*inventory.Config)) *inventory.Config {
	install := inventory.Install{Attempts: 3, LocalBoot: inventory.LocalAuto}
	cfg := &inventory.Config{
		Network: inventory.Network{
			Subnet: inventory.Subnet{Prefix: netip.MustParsePrefix("10.10.10.0/24")},
			DHCP:   inventory.DHCP{Mode: inventory.DHCPServer, Unknown: inventory.UnknownDiscover},
		},
		Machines: []inventory.Machine{
			{Name: "kmaster", MAC: macMaster, IP: netip.MustParseAddr("10.10.10.80"), Install: install},
			{Name: "knode1", IP: netip.MustParseAddr("10.10.10.81"), Install: install}, // a free slot
		},
	}
	for _, e := range edit {
		e(cfg)
	}
	return cfg
}

func newRack(t *testing.T, store Store, cfg *inventory.Config) (*Rack, *clock) {
	t.Helper()
	c := &clock{now: time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)}
	r, err := New(t.Context(), cfg, Options{Store: store, Log: slog.New(slog.DiscardHandler), Now: c.Now})
	require.NoError(t, err)
	return r, c
}

// boot is what DHCP does when firmware asks.
func boot(r *Rack, c *clock, mac inventory.MAC) {
	c.forward(time.Second)
	r.See(Sighting{MAC: mac, LastBoot: c.Now()})
	c.forward(time.Second)
}

func TestTransitions(t *testing.T) {
	states := []State{Discovered, Armed, Installing, Installed, Firstboot, Initialising, Waiting, Joining, Joined, Ready, Failed}
	triggers := []Trigger{Arm, BeginInstall, ReportDone, CallHome, TakeInitLock, MustWait, BeginJoin, ReportJoined, SeenReady, Fail, Reinstall, Adopt}
	allowed := map[string]State{ // written out once more, on purpose
		"discovered arm":      Armed,
		"armed begin-install": Installing, "armed adopt": Installed,
		"installing begin-install": Installing, "installing installed": Installed, "installing adopt": Installed, "installing call-home": Firstboot,
		"installed installed": Installed, "installed call-home": Firstboot, "installed adopt": Installed, "installed ready": Ready,
		"firstboot call-home": Firstboot, "firstboot take-init-lock": Initialising, "firstboot must-wait": Waiting, "firstboot joined": Joined, "firstboot ready": Ready,
		"waiting call-home": Waiting, "waiting take-init-lock": Initialising, "waiting must-wait": Waiting, "waiting begin-join": Joining,
		"initialising call-home": Initialising, "initialising take-init-lock": Initialising, "initialising joined": Joined,
		"joining call-home": Joining, "joining must-wait": Waiting, "joining begin-join": Joining, "joining joined": Joined,
		"joined call-home": Joined, "joined joined": Joined, "joined ready": Ready,
		"ready call-home": Ready, "ready joined": Ready, "ready ready": Ready,
		"failed begin-install": Installing, "failed adopt": Installed, "failed installed": Installed, "failed call-home": Firstboot, "failed joined": Joined, "failed ready": Ready,
	}
	for _, from := range states {
		for _, trigger := range triggers {
			t.Run(fmt.Sprintf("%s %s", from, trigger), func(t *testing.T) {
				want, ok := allowed[fmt.Sprintf("%s %s", from, trigger)]
				if from != Discovered {
					switch trigger {
					case Fail:
						want, ok = Failed, true
					case Reinstall:
						want, ok = Armed, true
					}
				}
				to, err := Next(from, trigger)
				if !ok {
					var te *TransitionError
					require.ErrorAs(t, err, &te)
					require.Equal(t, from, to)
					return
				}
				require.NoError(t, err)
				require.Equal(t, want, to)
			})
		}
	}
}

// Invariant 2 of the design: no listener answers "install" for a machine at or past installed.
func TestActionOfEveryState(t *testing.T) {
	want := map[State]Action{
		Armed: ActionInstall, Installing: ActionInstall, Installed: ActionLocalDisk, Firstboot: ActionLocalDisk,
		Initialising: ActionLocalDisk, Waiting: ActionLocalDisk, Joining: ActionLocalDisk, Joined: ActionLocalDisk,
		Ready: ActionLocalDisk, Failed: ActionHold, "rubbish": ActionHold,
	}
	for state, action := range want {
		t.Run(string(state), func(t *testing.T) {
			store := NewMemoryStore()
			rec := Record{Name: "kmaster", MAC: macMaster, State: state, Attempt: 1, Tries: 1}
			if state == Failed {
				rec.Failure = &Failure{Phase: Installing, Reason: "because"}
			}
			_, err := store.Commit(t.Context(), rec)
			require.NoError(t, err)
			r, _ := newRack(t, store, config())
			d := r.Decide(macMaster)
			require.Equal(t, action, d.Action)
			require.NotEmpty(t, d.Reason)
		})
	}
}

func TestUnknownMachine(t *testing.T) {
	r, _ := newRack(t, NewMemoryStore(), config())
	require.Equal(t, ActionDiscover, r.Decide(macUnknown).Action)
	r, _ = newRack(t, NewMemoryStore(), config(func(c *inventory.Config) { c.Network.DHCP.Unknown = inventory.UnknownIgnore }))
	require.Equal(t, ActionIgnore, r.Decide(macUnknown).Action)
	_, _, err := r.BeginInstall(t.Context(), macUnknown, r.Ticket(macUnknown))
	var refused *NotInstallingError
	require.ErrorAs(t, err, &refused)
}

func TestInstallAttempts(t *testing.T) {
	ctx := t.Context()
	r, c := newRack(t, NewMemoryStore(), config())
	boot(r, c, macMaster)

	rec, first, err := r.BeginInstall(ctx, macMaster, r.Ticket(macMaster))
	require.NoError(t, err)
	require.Equal(t, []any{Installing, 1, 1}, []any{rec.State, rec.Attempt, rec.Tries})
	require.NoError(t, r.CheckSecret("kmaster", 1, first))

	// curl --retry in the same boot: the same attempt, a new secret
	rec, second, err := r.BeginInstall(ctx, macMaster, r.Ticket(macMaster))
	require.NoError(t, err)
	require.Equal(t, []any{Installing, 1, 1}, []any{rec.State, rec.Attempt, rec.Tries})
	require.ErrorIs(t, r.CheckSecret("kmaster", 1, first), ErrBadSecret)
	require.NoError(t, r.CheckSecret("kmaster", 1, second))

	// the power fails twice
	for try := 2; try <= 3; try++ {
		boot(r, c, macMaster)
		require.Equal(t, ActionInstall, r.Decide(macMaster).Action)
		rec, _, err = r.BeginInstall(ctx, macMaster, r.Ticket(macMaster))
		require.NoError(t, err)
		require.Equal(t, []int{try, try}, []int{rec.Attempt, rec.Tries})
	}
	require.ErrorIs(t, r.CheckSecret("kmaster", 1, second), ErrSuperseded)

	// within its last try the installer may ask again; at the next boot it is held
	_, _, err = r.BeginInstall(ctx, macMaster, r.Ticket(macMaster))
	require.NoError(t, err)
	boot(r, c, macMaster)
	require.Equal(t, ActionHold, r.Decide(macMaster).Action)
	_, _, err = r.BeginInstall(ctx, macMaster, r.Ticket(macMaster))
	var refused *NotInstallingError
	require.ErrorAs(t, err, &refused)

	// the operator gives it all its tries again
	rec, err = r.Reinstall(ctx, "kmaster")
	require.NoError(t, err)
	require.Equal(t, []any{Armed, 4, 0, ""}, []any{rec.State, rec.Attempt, rec.Tries, rec.SecretHash})
	require.Equal(t, ActionInstall, r.Decide(macMaster).Action)
}

func TestFailureIsRetriedThenHeld(t *testing.T) {
	ctx := t.Context()
	r, c := newRack(t, NewMemoryStore(), config())
	for try := 1; try <= 3; try++ {
		boot(r, c, macMaster)
		require.Equal(t, ActionInstall, r.Decide(macMaster).Action, "try %d", try)
		rec, _, err := r.BeginInstall(ctx, macMaster, r.Ticket(macMaster))
		require.NoError(t, err)
		require.Nil(t, rec.Failure)
		require.Equal(t, []int{try, try}, []int{rec.Attempt, rec.Tries})
		rec, err = r.Fail(ctx, "kmaster", "%post line 7: no space left", true)
		require.NoError(t, err)
		require.Equal(t, &Failure{Phase: Installing, Reason: "%post line 7: no space left", Retryable: true}, rec.Failure)
	}
	d := r.Decide(macMaster)
	require.Equal(t, ActionHold, d.Action)
	require.Contains(t, d.Reason, "no space left")
}

func TestFailureThatCannotBeRetriedHoldsAtOnce(t *testing.T) {
	r, c := newRack(t, NewMemoryStore(), config())
	boot(r, c, macMaster)
	_, _, err := r.BeginInstall(t.Context(), macMaster, r.Ticket(macMaster))
	require.NoError(t, err)
	_, err = r.Fail(t.Context(), "kmaster", "no disk fits", false)
	require.NoError(t, err)
	require.Equal(t, ActionHold, r.Decide(macMaster).Action)
}

func TestOperator(t *testing.T) {
	ctx := t.Context()
	r, _ := newRack(t, NewMemoryStore(), config())
	_, err := r.Adopt(ctx, "kmaster")
	require.NoError(t, err)
	require.Equal(t, ActionLocalDisk, r.Decide(macMaster).Action)
	_, err = r.Apply(ctx, "kmaster", BeginJoin, "")
	var te *TransitionError
	require.ErrorAs(t, err, &te)
	require.Equal(t, "kmaster", te.Machine)

	var unknown *UnknownMachineError
	_, err = r.Hold(ctx, "nobody", "", "")
	require.ErrorAs(t, err, &unknown)
	_, err = r.Hold(ctx, "knode1", "", "")
	require.ErrorIs(t, err, ErrNoHardware)
}

func TestApproveAndRelease(t *testing.T) {
	ctx := t.Context()
	store := NewMemoryStore()
	r, _ := newRack(t, store, config())
	var bind *BindError
	_, err := r.Approve(ctx, macUnknown, "kmaster") // has its MAC in the list
	require.ErrorAs(t, err, &bind)

	rec, err := r.Approve(ctx, macUnknown, "knode1")
	require.NoError(t, err)
	require.Equal(t, []any{Armed, true}, []any{rec.State, rec.Enrolled})
	d := r.Decide(macUnknown)
	require.Equal(t, []any{ActionInstall, "knode1", macUnknown}, []any{d.Action, d.Machine.Name, d.Machine.MAC})

	_, err = r.Approve(ctx, macUnknown, "knode1") // said twice
	require.NoError(t, err)
	_, err = r.Approve(ctx, macNode, "knode1") // taken
	require.ErrorAs(t, err, &bind)

	again, _ := newRack(t, store, config()) // a restart
	require.Equal(t, "knode1", again.Decide(macUnknown).Machine.Name)
	mac, ok := again.MACByIP(netip.MustParseAddr("10.10.10.81"))
	require.True(t, ok)
	require.Equal(t, macUnknown, mac)

	require.NoError(t, r.Release(ctx, "knode1"))
	require.Equal(t, ActionDiscover, r.Decide(macUnknown).Action)
	require.ErrorAs(t, r.Release(ctx, "kmaster"), &bind)
}

// TestListedAddress: the addresses of the list are those reserved, and what MACs of the list have leased, for as long.
func TestListedAddress(t *testing.T) {
	r, c := newRack(t, NewMemoryStore(), config())
	reserved, leased, foreign := netip.MustParseAddr("10.10.10.80"), netip.MustParseAddr("10.10.10.200"), netip.MustParseAddr("10.10.10.201")
	bind := func(mac inventory.MAC, ip netip.Addr) {
		require.NoError(t, r.Bind(t.Context(), Lease{MAC: mac, IP: ip, State: LeaseBound, Expires: c.Now().Add(time.Hour)}))
	}
	bind(macMaster, leased)
	bind(macUnknown, foreign)
	listed := func(want ...bool) {
		t.Helper()
		require.Equal(t, want, []bool{r.ListedAddress(reserved), r.ListedAddress(leased), r.ListedAddress(foreign), r.ListedAddress(netip.Addr{})})
	}
	listed(true, true, false, false)
	_, err := r.Approve(t.Context(), macUnknown, "knode1")
	require.NoError(t, err)
	listed(true, true, true, false)
	c.forward(2 * time.Hour)
	listed(true, false, false, false)
	require.NoError(t, r.Quarantine(t.Context(), Lease{IP: leased, Expires: c.Now().Add(time.Hour)}))
	listed(true, false, false, false)
}

func TestEnrollFillsSlotsInOrderOnce(t *testing.T) {
	cfg := config(func(c *inventory.Config) {
		c.Network.DHCP.Unknown = inventory.UnknownEnroll
		c.Machines = append([]inventory.Machine{{Name: "free", Role: inventory.RoleControlPlane}}, c.Machines...)
		for i := range 50 {
			c.Machines = append(c.Machines, inventory.Machine{Name: fmt.Sprintf("slot%02d", i), Install: inventory.Install{Attempts: 3}})
		}
	})
	r, _ := newRack(t, NewMemoryStore(), cfg)
	rec, err := r.Enroll(t.Context(), macUnknown)
	require.NoError(t, err)
	require.Equal(t, "knode1", rec.Name, "not the control plane before it")
	var wait sync.WaitGroup
	for i := range 100 { // every one asks twice, at once
		wait.Go(func() {
			_, err := r.Enroll(context.Background(), inventory.MAC{2, 0, 0, 0, 0, byte(i / 2)})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	_, err = r.Enroll(t.Context(), inventory.MAC{2, 1})
	require.ErrorIs(t, err, ErrNoFreeSlot)
	rec, err = r.Approve(t.Context(), inventory.MAC{2, 1}, "free")
	require.NoError(t, err, "somebody may give a control plane its hardware")
	require.Equal(t, "free", rec.Name)
	names := map[string]bool{}
	for i := range 50 {
		d := r.Decide(inventory.MAC{2, 0, 0, 0, 0, byte(i)})
		require.True(t, d.Listed)
		require.False(t, names[d.Machine.Name])
		names[d.Machine.Name] = true
	}
}

// A changed NIC, a renamed machine: neither may wipe a disk.
func TestOtherHardwareIsHeld(t *testing.T) {
	ctx := t.Context()
	store := NewMemoryStore()
	r, _ := newRack(t, store, config())
	_, err := r.Adopt(ctx, "kmaster")
	require.NoError(t, err)

	otherNIC := config(func(c *inventory.Config) { c.Machines[0].MAC = macNode })
	require.NoError(t, r.Reload(ctx, otherNIC))
	d := r.Decide(macNode)
	require.Equal(t, ActionHold, d.Action)
	require.Contains(t, d.Reason, "rackstrap reinstall kmaster")
	require.Equal(t, ActionDiscover, r.Decide(macMaster).Action)

	_, err = r.Reinstall(ctx, "kmaster")
	require.NoError(t, err)
	require.Equal(t, ActionInstall, r.Decide(macNode).Action)
}

func TestRenamedMachineIsHeld(t *testing.T) {
	ctx := t.Context()
	r, _ := newRack(t, NewMemoryStore(), config())
	_, err := r.Adopt(ctx, "kmaster")
	require.NoError(t, err)
	require.NoError(t, r.Reload(ctx, config(func(c *inventory.Config) { c.Machines[0].Name = "master0" })))
	d := r.Decide(macMaster)
	require.Equal(t, []any{ActionHold, "master0"}, []any{d.Action, d.Machine.Name})
	require.Contains(t, d.Reason, "installed as kmaster")
}

// TestRenamedMachineIsHeldThoughItsNameGoesOn: in the same change of the list its old name got other hardware.
// The order of the list makes no difference.
func TestRenamedMachineIsHeldThoughItsNameGoesOn(t *testing.T) {
	for _, names := range [][2]string{{"kmaster", "master0"}, {"master0", "kmaster"}} {
		r, _ := newRack(t, NewMemoryStore(), config())
		_, err := r.Adopt(t.Context(), "kmaster")
		require.NoError(t, err)
		require.NoError(t, r.Reload(t.Context(), config(func(c *inventory.Config) {
			for i, name := range names {
				c.Machines[i].Name = name
				c.Machines[i].MAC = map[string]inventory.MAC{"kmaster": macNode, "master0": macMaster}[name]
			}
		})))
		for _, mac := range []inventory.MAC{macMaster, macNode} {
			require.Equal(t, ActionHold, r.Decide(mac).Action, "%s of %v", mac, names)
		}
	}
}

// TestNewMachinesShareATransaction: a list of new machines is armed as a whole or not at all.
func TestNewMachinesShareATransaction(t *testing.T) {
	disk := &fullDisk{Store: NewMemoryStore()}
	r, _ := newRack(t, disk, config())
	more := config(func(c *inventory.Config) {
		for i := range 100 {
			c.Machines = append(c.Machines, inventory.Machine{Name: fmt.Sprintf("m%d", i), MAC: inventory.MAC{2, 0, 0, 0, 1, byte(i)},
				IP: netip.AddrFrom4([4]byte{10, 10, 10, byte(100 + i)}), Install: c.Machines[0].Install})
		}
	})
	disk.full = true
	require.ErrorIs(t, r.Reload(t.Context(), more), errFull)
	require.Len(t, r.Config().Machines, 2, "the old list stays in force")
	records, err := disk.Records(t.Context())
	require.NoError(t, err)
	require.Len(t, records, 1)

	disk.full, disk.transactions = false, 0
	require.NoError(t, r.Reload(t.Context(), more))
	require.Equal(t, ActionInstall, r.Decide(inventory.MAC{2, 0, 0, 0, 1, 99}).Action)
	require.NoError(t, r.Reload(t.Context(), more))
	require.Equal(t, 1, disk.transactions)
	records, err = disk.Records(t.Context())
	require.NoError(t, err)
	require.Len(t, records, 101)
	for _, rec := range records {
		require.EqualValues(t, 1, rec.Revision)
	}
}

func TestOtherNICBeforeInstallationIsSimplyAdopted(t *testing.T) {
	r, _ := newRack(t, NewMemoryStore(), config())
	require.NoError(t, r.Reload(t.Context(), config(func(c *inventory.Config) { c.Machines[0].MAC = macNode })))
	require.Equal(t, ActionInstall, r.Decide(macNode).Action)
}

// fullDisk is a store that cannot write.
type fullDisk struct {
	Store
	full         bool
	transactions int // of records
}

var errFull = errors.New("no space left on device")

func (s *fullDisk) Commit(ctx context.Context, rec Record, events ...Event) (Record, error) {
	if s.full {
		return rec, errFull
	}
	s.transactions++
	return s.Store.Commit(ctx, rec, events...)
}

func (s *fullDisk) CommitAll(ctx context.Context, changes []Change) ([]Record, error) {
	if s.full {
		return nil, errFull
	}
	s.transactions++
	return s.Store.CommitAll(ctx, changes)
}

func (s *fullDisk) Append(ctx context.Context, events []Event, seen []Sighting) error {
	if s.full {
		return errFull
	}
	return s.Store.Append(ctx, events, seen)
}

func (s *fullDisk) PutLease(ctx context.Context, l Lease) error {
	if s.full {
		return errFull
	}
	return s.Store.PutLease(ctx, l)
}

func TestNothingIsShownThatIsNotOnDisk(t *testing.T) {
	ctx := t.Context()
	disk := &fullDisk{Store: NewMemoryStore()}
	r, c := newRack(t, disk, config())
	boot(r, c, macMaster)
	disk.full = true
	_, _, err := r.BeginInstall(ctx, macMaster, r.Ticket(macMaster))
	require.ErrorIs(t, err, errFull)
	require.Equal(t, Armed, r.Decide(macMaster).Record.State)
	lease := Lease{IP: netip.MustParseAddr("10.10.10.200"), MAC: macUnknown, State: LeaseBound, Expires: c.Now().Add(time.Hour)}
	require.ErrorIs(t, r.Bind(ctx, lease), errFull)
	_, ok := r.LeaseAt(lease.IP)
	require.False(t, ok)

	r.Observe(Event{MAC: macMaster, Source: "dhcp", Kind: "offer", Text: "waits for room"})
	require.ErrorIs(t, r.Flush(ctx), errFull)
	disk.full = false
	require.NoError(t, r.Flush(ctx))
	events, err := r.Events(ctx, EventQuery{MAC: macMaster})
	require.NoError(t, err)
	require.Equal(t, "waits for room", events[len(events)-1].Text)
	require.Equal(t, "kmaster", events[len(events)-1].Machine)
	seen, err := disk.Sightings(ctx)
	require.NoError(t, err)
	require.Len(t, seen, 1, "a sighting that could not be written is written later")
}

func TestLeases(t *testing.T) {
	ctx := t.Context()
	store := NewMemoryStore()
	r, c := newRack(t, store, config())
	ip := netip.MustParseAddr("10.10.10.200")
	hour := c.Now().Add(time.Hour)
	require.NoError(t, r.Bind(ctx, Lease{IP: ip, MAC: macUnknown, State: LeaseBound, Expires: hour}))

	var taken *LeaseTakenError
	require.ErrorAs(t, r.Bind(ctx, Lease{IP: ip, MAC: macNode, State: LeaseBound, Expires: hour}), &taken)
	require.Equal(t, macUnknown, taken.Holder)
	require.NoError(t, r.Unbind(ctx, macNode, ip), "somebody else's RELEASE changes nothing")
	_, ok := r.LeaseAt(ip)
	require.True(t, ok)

	// another address for the same client: the old one is free again, on disk too
	other := netip.MustParseAddr("10.10.10.201")
	require.NoError(t, r.Bind(ctx, Lease{IP: other, MAC: macUnknown, State: LeaseBound, Expires: hour}))
	_, ok = r.LeaseAt(ip)
	require.False(t, ok)
	r, c = newRack(t, store, config())
	require.Len(t, r.Leases(), 1)

	// quarantine outranks everybody until it expires
	require.NoError(t, r.Quarantine(ctx, Lease{IP: other, Expires: hour}))
	require.ErrorAs(t, r.Bind(ctx, Lease{IP: other, MAC: macUnknown, State: LeaseBound, Expires: hour}), &taken)
	_, ok = r.LeaseOf(macUnknown)
	require.False(t, ok)
	c.forward(2 * time.Hour)
	require.NoError(t, r.Bind(ctx, Lease{IP: other, MAC: macNode, State: LeaseBound, Expires: c.Now().Add(time.Hour)}))
}

func TestNoAddressTwiceUnderContention(t *testing.T) {
	r, c := newRack(t, NewMemoryStore(), config())
	expires := c.Now().Add(time.Hour)
	var wait sync.WaitGroup
	var mu sync.Mutex
	holders := map[netip.Addr]inventory.MAC{}
	for i := range 200 {
		wait.Go(func() {
			mac := inventory.MAC{2, 0, 0, 0, 1, byte(i)}
			ip := netip.AddrFrom4([4]byte{10, 10, 10, byte(200 + i%20)})
			if r.Bind(context.Background(), Lease{IP: ip, MAC: mac, State: LeaseBound, Expires: expires}) == nil {
				mu.Lock()
				defer mu.Unlock()
				if other, twice := holders[ip]; twice {
					t.Errorf("%s was given to %s and to %s", ip, other, mac)
				}
				holders[ip] = mac
			}
		})
	}
	wait.Wait()
	require.Len(t, holders, 20)
}

func TestDiscoveredAreBounded(t *testing.T) {
	ctx := t.Context()
	store := NewMemoryStore()
	r, c := newRack(t, store, config())
	r.See(Sighting{MAC: macMaster}) // a listed machine is never forgotten, however long ago it was seen
	for i := range maxDiscovered + 500 {
		c.forward(time.Second / time.Duration(newcomers))
		mac := inventory.MAC{2, 0, 0, byte(i >> 16), byte(i >> 8), byte(i)}
		r.See(Sighting{MAC: mac})
		r.Observe(Event{MAC: mac, Source: "dhcp", Kind: "offer", Text: "x"})
	}
	require.NoError(t, r.Flush(ctx))
	require.LessOrEqual(t, len(r.Machines()), maxDiscovered+3)
	_, ok := r.Sighting(inventory.MAC{2, 0, 0, 0, 0, 1})
	require.False(t, ok, "the one not seen for the longest time is forgotten")
	_, ok = r.Sighting(inventory.MAC{2, 0, 0, 0, byte((maxDiscovered + 499) >> 8), byte((maxDiscovered + 499) & 255)})
	require.True(t, ok)
	_, ok = r.Sighting(macMaster)
	require.True(t, ok)
	seen, err := store.Sightings(ctx)
	require.NoError(t, err)
	require.LessOrEqual(t, len(seen), maxDiscovered+3)
	events, err := store.Events(ctx, EventQuery{})
	require.NoError(t, err)
	require.LessOrEqual(t, len(events), maxDiscovered+3, "events of forgotten machines are forgotten")
}

func TestFollow(t *testing.T) {
	r, _ := newRack(t, NewMemoryStore(), config())
	ctx, cancel := context.WithCancel(t.Context())
	events := r.Follow(ctx)
	r.Observe(Event{MAC: macMaster, Source: "tftp", Kind: "loader", Text: "one"})
	_, err := r.Hold(t.Context(), "kmaster", "", "")
	require.NoError(t, err)
	require.Equal(t, "one", (<-events).Text)
	held := <-events
	require.Equal(t, []any{Warn, "operator", "hold"}, []any{held.Level, held.Source, held.Kind})
	require.Contains(t, held.Text, "held by the operator")
	cancel()
	_, open := <-events
	require.False(t, open)
}

func TestStatusHoldsNoSecret(t *testing.T) {
	r, c := newRack(t, NewMemoryStore(), config())
	boot(r, c, macMaster)
	_, secret, err := r.BeginInstall(t.Context(), macMaster, r.Ticket(macMaster))
	require.NoError(t, err)
	for _, m := range r.Machines() {
		require.Empty(t, m.Record.SecretHash)
	}
	events, err := r.Events(t.Context(), EventQuery{})
	require.NoError(t, err)
	for _, e := range events {
		require.NotContains(t, e.Text, secret)
		require.NotContains(t, e.Text, hashSecret(secret))
	}
}
