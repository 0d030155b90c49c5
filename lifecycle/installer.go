package lifecycle

import (
	"fmt"
	"time"
)

// Verdict is what a machine that runs its installer is to do, when it asks (see Verdict).
type Verdict string

// The verdicts.
const (
	GoOn   Verdict = "go-on"
	Again  Verdict = "reboot" // the installation has failed, or another was ordered: it is tried again
	Remain Verdict = "stay"   // it has failed, and is not tried again: somebody may look at the installer
)

// Verdict derives what a machine of the list is to do that runs the installer of an attempt. A new attempt makes a
// machine reboot whatever became of the old one: `reinstall` needs nobody's hand.
func (r *Rack) Verdict(name string, attempt int) Verdict {
	m, err := r.Member(name)
	switch rec := m.Record; {
	case err != nil:
		return GoOn
	case attempt < rec.Attempt:
		return Again
	case rec.State != Failed:
		return GoOn
	case r.Decide(rec.MAC).Action == ActionInstall:
		return Again
	}
	return Remain
}

// silent is how long a machine whose installation failed has to ask for its verdict: it asks every few seconds.
const silent = time.Minute

// Asked notes that a machine asked for its verdict, and puts what it was told into its timeline, once for each failure.
func (r *Rack) Asked(name string, attempt int, v Verdict) {
	m, err := r.Member(name)
	if err != nil {
		return
	}
	text := map[Verdict]string{
		Again:  "it reboots by itself, for the next installation",
		Remain: fmt.Sprintf("its installer stays, for somebody to look (console, Alt+F2 or Ctrl+B 2 for a shell); `rackstrap reinstall %s` reboots it", name),
	}[v]
	r.lives.mu.Lock()
	l := r.lives.get(name)
	l.asked = r.now()
	news := text != "" && l.told != (told{attempt, v})
	if l.told = (told{attempt, v}); v == GoOn {
		l.told = told{}
	}
	r.lives.mu.Unlock()
	if news {
		r.Observe(Event{MAC: m.Record.MAC, Machine: name, Attempt: attempt, Source: "node", Kind: "verdict", Level: Info, Text: text})
	}
}

// told is what a machine was told last, if it was not to go on.
type told struct {
	attempt int
	verdict Verdict
}

// abandoned tells whether a machine stands in its installer with nobody to reboot it: its installation has failed, and
// it has not asked for its verdict since, nor booted. That is so before %pre runs, and where what %pre left running has ended.
func (r *Rack) abandoned(rec Record, lastBoot time.Time) bool {
	if rec.State != Failed || rec.Failure == nil || rec.Failure.Phase != Installing || lastBoot.After(rec.Since) {
		return false
	}
	since := later(rec.Since, r.started)
	r.lives.mu.Lock()
	defer r.lives.mu.Unlock()
	l := r.lives.get(rec.Name)
	return l.asked.Before(since) && r.now().Sub(since) >= silent
}

// tellAbandoned puts into the timeline of each machine that it needs a hand, once.
func (r *Rack) tellAbandoned() {
	for _, m := range r.Members("") {
		seen, _ := r.Sighting(m.Record.MAC)
		if !r.abandoned(m.Record, seen.LastBoot) {
			continue
		}
		r.lives.mu.Lock()
		l := r.lives.get(m.Record.Name)
		news := l.told != (told{attempt: m.Record.Attempt})
		l.told = told{attempt: m.Record.Attempt}
		r.lives.mu.Unlock()
		if news {
			r.Observe(Event{MAC: m.Record.MAC, Machine: m.Record.Name, Attempt: m.Record.Attempt, Source: "lifecycle", Kind: "stands", Level: Alarm, Text: standsText})
		}
	}
}

const standsText = "it stands at its installer's prompt and does not reboot by itself: look at its console, then switch it off and on"
