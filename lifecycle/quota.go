package lifecycle

import (
	"fmt"
	"sync"
	"time"

	"rackstrap/inventory"
)

// Class says which of a machine's places in the store an event takes: each class has EventsPerMachine of its own, so that
// what anybody can cause in number does not push out what happened.
type Class string

// The classes.
const (
	Story  Class = "s" // transitions, holds, works: what the appliance and the operator did
	Alarms Class = "a" // alarms of the listeners
	Traces Class = ""  // requests, packets, progress, words of peers
)

// Classes are all of them.
func Classes() []Class { return []Class{Traces, Alarms, Story} }

// caused are the kinds that the appliance notes itself, but as often as a stranger or a node wants: two UUIDs in turns in
// made-up DHCP, firmware in the name of a machine that runs, MACs outside the list, facts with every exchange.
var caused = map[string]bool{
	"lifecycle uuid": true, "lifecycle suspect": true, "lifecycle flood": true,
	"cluster facts": true, "cluster clock": true,
}

// Class is that of an event. What a peer causes is a trace or an alarm, whoever notes it; that a machine is held is its story.
func (e Event) Class() Class {
	switch e.Source {
	case "lifecycle", "operator", "cluster":
		if !caused[e.Source+" "+e.Kind] {
			return Story
		}
	}
	if e.Level == Alarm {
		return Alarms
	}
	return Traces
}

// Of a kind of observation about one machine so many are listed within quotaFor; more are counted, and then reported by
// one event.
const (
	quotaFor     = time.Minute
	quotaOf      = 120
	quotaOfAlarm = 10
	// maxQuotaFor is how long the time grows to, twofold each time, of a kind that does not stop: one is listed and one reports
	// how many there were, so that a day of it takes a few places.
	maxQuotaFor = 6 * time.Hour
	// maxQuotas bounds what is counted at once, half of it for machines outside the list. Beyond, theirs are left out, and those of
	// the list listed.
	maxQuotas = 40_000
)

type quotaKey struct {
	mac    inventory.MAC
	name   string
	source string
	kind   string
	alarm  bool
}

type quota struct {
	since  time.Time
	period time.Duration
	listed int
	left   int
	came   bool // something, since the period began
	last   Event
}

func limitOf(e Event) int {
	if e.Level == Alarm {
		return quotaOfAlarm
	}
	return quotaOf
}

// quotas counts observations by machine, source and kind.
type quotas struct {
	mu    sync.Mutex
	of    map[quotaKey]*quota
	swept time.Time
}

// admit tells whether an observation is listed; else it is counted.
func (q *quotas) admit(e Event) bool {
	key := quotaKey{e.MAC, e.Machine, e.Source, e.Kind, e.Level == Alarm}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.of == nil {
		q.of = map[quotaKey]*quota{}
	}
	one := q.of[key]
	if one == nil {
		if of := len(q.of); of >= maxQuotas || of >= maxQuotas/2 && e.Machine == "" {
			return e.Machine != ""
		}
		one = &quota{since: e.Time, period: quotaFor}
		q.of[key] = one
	}
	one.came = true
	if one.listed < limitOf(e) {
		one.listed++
		return true
	}
	one.left++
	one.last = e
	return false
}

// sweep takes what is over: for each kind of which some were left out, the event that says how many. With all of them, those
// that are not over, too.
func (q *quotas) sweep(now time.Time, all bool) (reports []Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !all && now.Sub(q.swept) < quotaFor/20 {
		return nil
	}
	q.swept = now
	for key, one := range q.of {
		age := now.Sub(one.since)
		if !all && age >= 0 && age < one.period {
			continue
		}
		longer := min(2*one.period, maxQuotaFor)
		if one.left == 0 {
			if key.alarm && one.came && !all { // few at a time, for ever, would take all places as well
				*one = quota{since: now, period: longer}
			} else {
				delete(q.of, key)
			}
			continue
		}
		e := one.last
		e.Time = now
		e.Text = fmt.Sprintf("%d more of this kind since %s; the last one: %s", one.left, one.since.UTC().Format("15:04:05"), e.Text)
		reports = append(reports, e)
		// It may go on: then one is listed, and the next report comes later.
		*one = quota{since: now, period: longer, listed: limitOf(e) - 1}
	}
	return reports
}
