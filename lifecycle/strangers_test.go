package lifecycle

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/inventory"
)

func madeUp(i int) inventory.MAC {
	return inventory.MAC{2, 9, byte(i >> 24), byte(i >> 16), byte(i >> 8), byte(i)}
}

// TestStrangersAreBoundedByTime: a flood of MACs that are made up is neither remembered nor written beyond its
// budgets; what concerns listed machines, and strangers that are known already, is.
func TestStrangersAreBoundedByTime(t *testing.T) {
	store := NewMemoryStore()
	r, c := newRack(t, store, config())
	const early = -1
	r.See(Sighting{MAC: madeUp(early)})
	flood := func(n int) {
		for i := range n {
			r.See(Sighting{MAC: madeUp(i)})
			r.Observe(Event{MAC: madeUp(i), Source: "dhcp", Kind: "offer", Text: "made up"})
		}
	}
	flood(100_000)
	r.Observe(Event{MAC: macMaster, Source: "dhcp", Kind: "offer", Text: "listed"})
	c.forward(time.Second)
	r.Observe(Event{MAC: madeUp(early), Source: "dhcp", Kind: "offer", Text: "was here before"})
	flood(100_000)
	r.reportLeftOut()
	events, err := r.Events(t.Context(), EventQuery{})
	require.NoError(t, err)
	texts := map[string]int{}
	for _, e := range events {
		texts[e.Text]++
	}
	require.LessOrEqual(t, texts["made up"], discoveredEventsAtOnce+int(discoveredEvents)+strayEventsAtOnce+int(strayEvents))
	require.Positive(t, texts["made up"])
	require.Equal(t, 1, texts["listed"])
	require.Equal(t, 1, texts["was here before"])
	seen, err := store.Sightings(t.Context())
	require.NoError(t, err)
	require.Len(t, seen, newcomersAtOnce+int(newcomers))

	reports := 0
	for _, e := range events {
		if e.Kind == "flood" {
			reports++
			require.Equal(t, Warn, e.Level)
			require.Contains(t, e.Text, "observations of machines outside the list were left out")
		}
	}
	require.Equal(t, 1, reports)
	flood(10)
	r.reportLeftOut()
	again, err := r.Events(t.Context(), EventQuery{After: events[len(events)-1].Seq})
	require.NoError(t, err)
	for _, e := range again {
		require.False(t, strings.Contains(e.Text, "left out"), "not more than every %s", leftOutEvery)
	}
}

// TestForgettingIsCheap: however many listed machines were seen before all others, they are passed over once, not for
// each stranger that is forgotten.
func TestForgettingIsCheap(t *testing.T) {
	const listed = 1000
	r, c := newRack(t, NewMemoryStore(), config(func(cfg *inventory.Config) {
		for i := range listed {
			cfg.Machines = append(cfg.Machines, inventory.Machine{Name: madeUp(i).Hyphens(), MAC: madeUp(i)})
		}
	}))
	for i := range listed {
		r.See(Sighting{MAC: madeUp(i)})
	}
	for i := range maxDiscovered + len(r.names) - listed { // room for all
		c.forward(time.Second / time.Duration(newcomers))
		r.See(Sighting{MAC: madeUp(listed + i)})
	}
	c.forward(time.Second)
	r.See(Sighting{MAC: madeUp(100_000)})
	front := r.strangers.seen.Front().Value.(*sighting)
	require.False(t, r.Listed(front.MAC), "the listed ones are out of the way")
	for i := range listed {
		_, ok := r.Sighting(madeUp(i))
		require.True(t, ok)
	}
	_, ok := r.Sighting(madeUp(listed))
	require.False(t, ok)
	require.Len(t, r.sightings, r.strangers.seen.Len())
}

// TestListedFollowsTheList: also after an enrolment, a release and a reload.
func TestListedFollowsTheList(t *testing.T) {
	r, _ := newRack(t, NewMemoryStore(), config())
	require.True(t, r.Listed(macMaster))
	require.False(t, r.Listed(macUnknown))
	slot, ok := r.FreeSlot()
	require.True(t, ok)
	rec, err := r.Enroll(t.Context(), macUnknown)
	require.NoError(t, err)
	require.Equal(t, slot.Name, rec.Name)
	require.True(t, r.Listed(macUnknown))
	next, ok := r.FreeSlot()
	require.True(t, !ok || next.Name != slot.Name)
	require.NoError(t, r.Release(t.Context(), rec.Name))
	require.False(t, r.Listed(macUnknown))
	again, ok := r.FreeSlot()
	require.True(t, ok)
	require.Equal(t, slot.Name, again.Name)
	require.NoError(t, r.Reload(t.Context(), config(func(cfg *inventory.Config) { cfg.Machines = cfg.Machines[:0] })))
	require.False(t, r.Listed(macMaster))
	_, ok = r.FreeSlot()
	require.False(t, ok)
}

// TestFurtherCardsAreRememberedInAFlood: what a further card of a listed machine boots depends on it.
func TestFurtherCardsAreRememberedInAFlood(t *testing.T) {
	const uuid = "4c4c4544-0042-3510-8052-b4c04f4e3832"
	r, _ := newRack(t, NewMemoryStore(), config())
	r.See(Sighting{MAC: macMaster, UUID: uuid})
	for i := range 10 * newcomersAtOnce {
		r.See(Sighting{MAC: madeUp(i)})
	}
	_, ok := r.Sighting(madeUp(10*newcomersAtOnce - 1))
	require.False(t, ok)
	r.See(Sighting{MAC: macUnknown, UUID: uuid})
	require.Equal(t, "kmaster", r.Decide(macUnknown).CardOf)

	for i := range 10 * newcomersAtOnce { // who knows the UUID and makes MACs up
		r.See(Sighting{MAC: madeUp(1_000_000 + i), UUID: uuid})
	}
	require.LessOrEqual(t, len(r.sightings), 2*newcomersAtOnce+2)
}
