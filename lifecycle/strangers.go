package lifecycle

import (
	"container/list"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"rackstrap/inventory"
)

// Limits of what machines outside the list may cause. MAC addresses can be made up, thousands in a second: neither
// memory nor disk nor log may grow with them. A rack of a thousand new machines that is switched on at once fits into
// what each budget holds at the beginning.
const (
	// maxDiscovered is how many machines outside the list are remembered; beyond, the one not seen for the longest time
	// is forgotten.
	maxDiscovered = 2_000
	// newcomers is how many of them are remembered anew in a second; as many again that are further cards of machines in it.
	newcomers, newcomersAtOnce = rate.Limit(50), 1_000
	// discoveredEvents is how many events of remembered ones are noted in a second.
	discoveredEvents, discoveredEventsAtOnce = rate.Limit(500), 5_000
	// strayEvents is how many events of those that are not remembered (yet) are noted in a second.
	strayEvents, strayEventsAtOnce = rate.Limit(50), 500
	// leftOutEvery is how often the operator is reminded of what was left out.
	leftOutEvery = 10 * time.Second
)

// strangers bounds what machines outside the list cause.
type strangers struct {
	newcomers, cards, discovered, stray *rate.Limiter

	leftOut  atomic.Int64 // observations, since they were last reported
	reported time.Time    // of the goroutine of Run
	seen     list.List    // every *sighting, the one not seen for the longest time first; guarded by the Rack's mu
}

func (s *strangers) init() {
	s.newcomers = rate.NewLimiter(newcomers, newcomersAtOnce)
	s.cards = rate.NewLimiter(newcomers, newcomersAtOnce)
	s.discovered = rate.NewLimiter(discoveredEvents, discoveredEventsAtOnce)
	s.stray = rate.NewLimiter(strayEvents, strayEventsAtOnce)
}

// Listed tells whether a MAC is one of a machine of the list, by the list or by enrolment. It waits for nobody: a
// listener asks it for every packet.
func (r *Rack) Listed(mac inventory.MAC) bool {
	_, ok := (*r.listed.Load())[mac]
	return ok
}

// FreeSlot is the machine of the list that the next enrolment gives its hardware.
func (r *Rack) FreeSlot() (inventory.Machine, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.slot == "" {
		return inventory.Machine{}, false
	}
	slot, ok := r.config.ByName(r.slot)
	if !ok {
		return inventory.Machine{}, false
	}
	return *slot, true
}

// remember keeps a sighting, as the one seen last.
func (r *Rack) remember(s *sighting) {
	r.sightings[s.MAC] = s
	s.place = r.strangers.seen.PushBack(s)
}

// admit tells whether there is room to remember one more machine, and makes it. Further cards of machines in the list
// have a budget of their own: what they boot depends on being remembered. The caller holds mu.
func (r *Rack) admit(s Sighting, now time.Time) bool {
	budget := r.strangers.newcomers
	if _, further := r.cardOf(s.MAC, s.UUID); further {
		budget = r.strangers.cards
	}
	if _, listed := r.names[s.MAC]; !listed && !budget.AllowN(now, 1) {
		r.strangers.leftOut.Add(1)
		return false
	}
	r.forgetOldest()
	return true
}

// forgetOldest keeps the number of machines outside the list bounded; further cards of machines in it go last. The
// caller holds mu.
func (r *Rack) forgetOldest() {
	if len(r.sightings) < maxDiscovered+len(r.names) {
		return
	}
	seen := &r.strangers.seen
	var card *sighting // the first one
	for range seen.Len() {
		oldest := seen.Front().Value.(*sighting)
		_, listed := r.names[oldest.MAC]
		_, further := r.cardOf(oldest.MAC, "")
		if !listed && !further {
			r.forget(oldest)
			return
		}
		if further && card == nil {
			card = oldest
		}
		seen.MoveToBack(oldest.place) // so that it is not met again for each one that is forgotten
	}
	if card != nil {
		r.forget(card)
	}
}

func (r *Rack) forget(s *sighting) {
	r.strangers.seen.Remove(s.place)
	delete(r.sightings, s.MAC)
	r.journal.forget(s.MAC)
}

// admitEvent tells whether an event of a MAC outside the list is noted. The caller holds mu.
func (r *Rack) admitEvent(mac inventory.MAC) bool {
	budget := r.strangers.stray
	if _, remembered := r.sightings[mac]; remembered {
		budget = r.strangers.discovered
	}
	if !budget.AllowN(r.now(), 1) {
		r.strangers.leftOut.Add(1)
		return false
	}
	return true
}

// reportLeftOut notes for the operator how much was left out, if anything was, at most every leftOutEvery.
func (r *Rack) reportLeftOut() {
	now := r.now()
	if r.strangers.leftOut.Load() == 0 || now.Sub(r.strangers.reported) < leftOutEvery {
		return
	}
	r.strangers.reported = now
	n := r.strangers.leftOut.Swap(0)
	r.Observe(Event{Time: now, Source: "lifecycle", Kind: "flood", Level: Warn, Text: fmt.Sprintf(
		"%d observations of machines outside the list were left out: more of them are seen than are recorded", n)})
}
