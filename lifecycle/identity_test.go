package lifecycle

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/inventory"
)

const (
	uuidMaster = "4c4c4544-0042-3510-8054-b4c04f4a3132"
	uuidOther  = "4c4c4544-0043-3510-8054-b4c04f4a3132"
)

var (
	macSecond = inventory.MAC{0x52, 0x54, 0, 0, 1, 0x80} // of kmaster
	macThird  = inventory.MAC{0x52, 0x54, 0, 0, 2, 0x80} // of kmaster
)

func TestIdentity(t *testing.T) {
	require.Equal(t, identityOf(uuidMaster), identityOf("44454c4c-4200-1035-8054-b4c04f4a3132"), "little-endian, as edk2 and iPXE send it")
	require.NotEqual(t, identityOf(uuidMaster), identityOf(uuidOther))
	require.NotEqual(t, identity{}, identityOf("00000000-0000-0000-0000-ac1f6b123456"), "Supermicro: the MAC of its first card")
	for _, nothing := range []string{
		"", "x", "4c4c4544", "4c4c4544-0042-3510-8054-b4c04f4a31zz",
		"00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff", "fefefefe-fefe-fefe-fefe-fefefefefefe",
		"ffffffff-ffff-ffff-0000-000000000000", "00000000-0000-0000-0000-000000000001",
		"03000200-0400-0500-0006-000700080009", "00020003-0004-0005-0006-000700080009",
		"00112233-4455-6677-8899-aabbccddeeff", "33221100-5544-7766-8899-aabbccddeeff", "10111213-1415-1617-1819-1a1b1c1d1e1f",
	} {
		require.Equal(t, identity{}, identityOf(nothing), nothing)
	}
}

// seen tells the rack what firmware said: option 97 of one MAC.
func seen(r *Rack, mac inventory.MAC, uuid string) {
	r.See(Sighting{MAC: mac, UUID: uuid, LastBoot: r.now()})
}

// TestFurtherCard: what a MAC outside of the list boots that has the UUID of a machine in it.
func TestFurtherCard(t *testing.T) {
	state := func(to State) func(*testing.T, *Rack) {
		return func(t *testing.T, r *Rack) {
			_, err := r.update(t.Context(), "kmaster", "test", func(rec *Record) error {
				rec.State = to
				if to == Failed {
					rec.Failure = &Failure{Phase: Ready, Reason: "test"}
				}
				return nil
			})
			require.NoError(t, err)
		}
	}
	unknown := func(p inventory.UnknownPolicy) func(*inventory.Config) {
		return func(c *inventory.Config) { c.Network.DHCP.Unknown = p }
	}
	for _, c := range []struct {
		name   string
		config func(*inventory.Config)
		do     func(*testing.T, *Rack)
		uuid   string // of the stranger; kmaster has uuidMaster
		want   Action
		card   bool
	}{
		{"of an installed machine", nil, state(Installed), uuidMaster, ActionLocalDisk, true},
		{"of a Ready machine", nil, state(Ready), uuidMaster, ActionLocalDisk, true},
		{"of a machine that failed for good", nil, state(Failed), uuidMaster, ActionLocalDisk, true},
		{"of one that is to be installed", nil, nil, uuidMaster, ActionPass, true},
		{"of one that is being installed", nil, state(Installing), uuidMaster, ActionPass, true},
		{"enroll", unknown(inventory.UnknownEnroll), state(Ready), uuidMaster, ActionLocalDisk, true},
		{"ignore: it is not unknown", unknown(inventory.UnknownIgnore), state(Ready), uuidMaster, ActionLocalDisk, true},
		{"in the other order of bytes", nil, state(Ready), "44454c4c-4200-1035-8054-b4c04f4a3132", ActionLocalDisk, true},
		{"another UUID", nil, state(Ready), uuidOther, ActionDiscover, false},
		{"none", nil, state(Ready), "", ActionDiscover, false},
		{"none, ignored", unknown(inventory.UnknownIgnore), state(Ready), "", ActionIgnore, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			edit := c.config
			if edit == nil {
				edit = func(*inventory.Config) {}
			}
			r, _ := newRack(t, NewMemoryStore(), config(edit))
			seen(r, macMaster, uuidMaster)
			if c.do != nil {
				c.do(t, r)
			}
			// The packet at hand tells it, before anything is written down; after that the sighting does.
			for stage, d := range map[string]Decision{"packet": r.DecideSeen(macSecond, c.uuid), "seen": func() Decision {
				seen(r, macSecond, c.uuid)
				return r.Decide(macSecond)
			}()} {
				require.Equal(t, c.want, d.Action, stage)
				require.False(t, d.Listed)
				if !c.card {
					require.Empty(t, d.CardOf)
					continue
				}
				require.Equal(t, "kmaster", d.CardOf)
				require.Contains(t, d.Reason, "is a further card of kmaster")
				require.Equal(t, inventory.LocalAuto, d.Machine.Install.LocalBoot, "its disk is booted in the machine's own way")
			}
			machines := r.Machines()
			stranger := machines[len(machines)-1]
			require.Equal(t, macSecond, stranger.MAC)
			require.Equal(t, c.card, stranger.CardOf == "kmaster")
			if c.card {
				require.Contains(t, stranger.Reason, "further card of kmaster")
			}

			_, enrolErr := r.Enroll(t.Context(), macSecond)
			_, err := r.Approve(t.Context(), macSecond, "knode1")
			if !c.card {
				require.NoError(t, enrolErr)
				return
			}
			var further *FurtherCardError
			require.ErrorAs(t, enrolErr, &further)
			require.ErrorAs(t, err, &further)
			require.ErrorContains(t, err, "installing it would erase the disk of kmaster")
			require.ErrorContains(t, err, "--other-machine")
			require.Equal(t, "kmaster", further.Name)
			_, err = r.Member("knode1")
			require.ErrorIs(t, err, ErrNoHardware, "the slot is free still")

			// The word: another machine with a copied UUID. From then on it proves neither.
			rec, err := r.ApproveOther(t.Context(), macSecond, "knode1")
			require.NoError(t, err)
			require.Equal(t, Armed, rec.State)
			require.Equal(t, ActionInstall, r.Decide(macSecond).Action)
			require.Equal(t, "", r.DecideSeen(macThird, uuidMaster).CardOf)
		})
	}
}

// TestFurtherCardIsRemembered: over a restart, and while others' MACs are made up.
func TestFurtherCardIsRemembered(t *testing.T) {
	store := NewMemoryStore()
	r, c := newRack(t, store, config())
	_, err := r.Adopt(t.Context(), "kmaster")
	require.NoError(t, err)
	seen(r, macMaster, uuidMaster)
	seen(r, macSecond, uuidMaster)
	for i := range maxDiscovered + 100 {
		c.forward(time.Millisecond)
		seen(r, inventory.MAC{2, 1, 0, 0, byte(i >> 8), byte(i)}, fmt.Sprintf("%08x-0043-3510-8054-b4c04f4a3132", i))
	}
	require.Equal(t, "kmaster", r.Decide(macSecond).CardOf)
	require.NoError(t, r.Flush(t.Context()))
	again, _ := newRack(t, store, config())
	require.Equal(t, "kmaster", again.Decide(macSecond).CardOf)
	require.Equal(t, ActionLocalDisk, again.Decide(macSecond).Action)
	require.ElementsMatch(t, []inventory.MAC{macMaster, macSecond}, again.Cards(macMaster))
	require.ElementsMatch(t, []inventory.MAC{macMaster, macSecond}, again.Cards(macSecond))
	require.LessOrEqual(t, len(again.sightings), maxDiscovered+2)
}

// TestSharedUUID: one that two machines of the list have proves neither, and hinders nobody.
func TestSharedUUID(t *testing.T) {
	r, _ := newRack(t, NewMemoryStore(), config(func(c *inventory.Config) { c.Machines[1].MAC = macNode }))
	_, err := r.Adopt(t.Context(), "kmaster")
	require.NoError(t, err)
	seen(r, macMaster, uuidMaster)
	seen(r, macNode, uuidMaster)
	require.Equal(t, ActionInstall, r.Decide(macNode).Action, "the list names it")
	require.Equal(t, ActionDiscover, r.DecideSeen(macUnknown, uuidMaster).Action)
	events, err := r.Events(t.Context(), EventQuery{MAC: macNode})
	require.NoError(t, err)
	require.Contains(t, events[len(events)-1].Text, "is that of another machine of the list, too")
	seen(r, macNode, uuidOther) // its board was replaced
	require.Equal(t, "kmaster", r.DecideSeen(macUnknown, uuidMaster).CardOf)
	require.Equal(t, "knode1", r.DecideSeen(macUnknown, uuidOther).CardOf)
}

// TestTwoCardsEnrolOnce: the cards of one unknown machine ask at the same time, and take one slot.
func TestTwoCardsEnrolOnce(t *testing.T) {
	for range 20 {
		r, _ := newRack(t, NewMemoryStore(), config(func(c *inventory.Config) {
			c.Network.DHCP.Unknown = inventory.UnknownEnroll
			c.Machines = append(c.Machines, inventory.Machine{Name: "knode2", IP: netip.MustParseAddr("10.10.10.82")})
		}))
		var all sync.WaitGroup
		for _, mac := range []inventory.MAC{macSecond, macThird} {
			all.Go(func() {
				seen(r, mac, uuidOther)
				r.Enroll(t.Context(), mac)
			})
		}
		all.Wait()
		taken := 0
		for _, m := range r.Machines()[1:3] {
			if !m.MAC.IsZero() {
				taken++
			}
		}
		require.Equal(t, 1, taken)
	}
}

// TestCardsOfTheList: which changes of a machine's mac are another hardware.
func TestCardsOfTheList(t *testing.T) {
	macs := func(cards ...inventory.MAC) func(*inventory.Config) {
		return func(c *inventory.Config) {
			c.Machines[0].MAC, c.Machines[0].MACs = inventory.MAC{}, nil
			if len(cards) > 0 {
				c.Machines[0].MAC = cards[0]
			}
			if len(cards) > 1 {
				c.Machines[0].MACs = cards
			}
		}
	}
	a, b, c3 := macMaster, macSecond, macThird
	for _, c := range []struct {
		name  string
		steps [][]inventory.MAC // the list, before and after
		same  bool
	}{
		{"one more", [][]inventory.MAC{{a}, {a, b}}, true},
		{"one more, in front", [][]inventory.MAC{{a}, {b, a}}, true},
		{"another order", [][]inventory.MAC{{a, b}, {b, a}}, true},
		{"the first one left out", [][]inventory.MAC{{a, b}, {b}}, true},
		{"the second one left out", [][]inventory.MAC{{a, b}, {a}}, true},
		{"one replaced", [][]inventory.MAC{{a, b}, {b, c3}}, true},
		{"one after the other", [][]inventory.MAC{{a}, {a, b}, {b}, {b, c3}, {c3}}, true},
		{"the only one replaced", [][]inventory.MAC{{a}, {b}}, false},
		{"all replaced", [][]inventory.MAC{{a, b}, {c3}}, false},
		{"one came back that was given up", [][]inventory.MAC{{a, b}, {a}, {b}}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			store := NewMemoryStore()
			r, _ := newRack(t, store, config(macs(c.steps[0]...)))
			_, err := r.Adopt(t.Context(), "kmaster")
			require.NoError(t, err)
			for _, step := range c.steps[1:] {
				require.NoError(t, r.Reload(t.Context(), config(macs(step...))))
			}
			last := c.steps[len(c.steps)-1]
			for _, rack := range []*Rack{r, func() *Rack { again, _ := newRack(t, store, config(macs(last...))); return again }()} {
				for _, mac := range last {
					d := rack.Decide(mac)
					require.True(t, d.Listed)
					require.Equal(t, mac, d.Machine.MAC, "scripts and kickstart name the card that boots")
					want := ActionHold
					if c.same {
						want = ActionLocalDisk
					}
					require.Equal(t, want, d.Action, d.Reason)
				}
				require.Equal(t, len(last) > 1, len(rack.Machines()[0].MACs) == len(last))
			}
			rec, err := r.Reinstall(t.Context(), "kmaster")
			require.NoError(t, err)
			require.Contains(t, last, rec.MAC)
			for _, mac := range last {
				require.Equal(t, ActionInstall, r.Decide(mac).Action)
			}
		})
	}
}

// TestCardUnderAnotherName: a card of an installed machine that the list gives to another one does not wipe it.
func TestCardUnderAnotherName(t *testing.T) {
	two := config(func(c *inventory.Config) { c.Machines[0].MACs = []inventory.MAC{macMaster, macSecond} })
	moved := config(func(c *inventory.Config) { c.Machines[1].MAC = macSecond })
	for name, known := range map[string]func(*Rack){
		"by the list": func(*Rack) {},
		"by its UUID": func(r *Rack) {
			require.NoError(t, r.Reload(t.Context(), config()))
			seen(r, macMaster, uuidMaster)
			seen(r, macSecond, uuidMaster)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r, _ := newRack(t, NewMemoryStore(), two)
			_, err := r.Adopt(t.Context(), "kmaster")
			require.NoError(t, err)
			known(r)
			require.NoError(t, r.Reload(t.Context(), moved))
			d := r.Decide(macSecond)
			require.Equal(t, "knode1", d.Machine.Name)
			require.Equal(t, ActionHold, d.Action)
			require.Contains(t, d.Reason, "`rackstrap reinstall knode1` installs it")
			require.Equal(t, ActionLocalDisk, r.Decide(macMaster).Action)
			_, err = r.Reinstall(t.Context(), "knode1")
			require.NoError(t, err)
			require.Equal(t, ActionInstall, r.Decide(macSecond).Action)
		})
	}
}

// TestInstallByEitherCard: a power cut is noticed, whichever card boots next; the address belongs to the one in use.
func TestInstallByEitherCard(t *testing.T) {
	r, c := newRack(t, NewMemoryStore(), config(func(cfg *inventory.Config) { cfg.Machines[0].MACs = []inventory.MAC{macMaster, macSecond} }))
	ip := netip.MustParseAddr("10.10.10.80")
	use := func(mac inventory.MAC) {
		r.UseCard(mac)
		boot(r, c, mac)
		own, ok := r.MACByIP(ip)
		require.True(t, ok)
		require.Equal(t, mac, own)
	}
	use(macSecond)
	rec, _, err := r.BeginInstall(t.Context(), macSecond, r.Ticket(macSecond))
	require.NoError(t, err)
	require.Equal(t, 1, rec.Tries)
	rec, _, err = r.BeginInstall(t.Context(), macSecond, r.Ticket(macSecond))
	require.NoError(t, err)
	require.Equal(t, 1, rec.Tries, "curl asked twice")
	use(macMaster)
	rec, _, err = r.BeginInstall(t.Context(), macMaster, r.Ticket(macMaster))
	require.NoError(t, err)
	require.Equal(t, 2, rec.Tries, "the machine lost its installation")
	use(macSecond)
	rec, _, err = r.BeginInstall(t.Context(), macSecond, r.Ticket(macSecond))
	require.NoError(t, err)
	require.Equal(t, 3, rec.Tries)
	require.True(t, r.SameMachine(macMaster, macSecond))
	require.False(t, r.SameMachine(macMaster, macUnknown))
}
