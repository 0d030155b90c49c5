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

// standing tells what `status` says of a machine that stands in its installer, "" for all others: its installation has
// failed, and it has not booted since. It stays because it was told to; or nobody is there to reboot it, for it has not asked for
// its verdict: what fails before %pre runs, and where what %pre left running has ended.
func (r *Rack) standing(rec Record, lastBoot time.Time) string {
	if rec.State != Failed || rec.Failure == nil || rec.Failure.Phase != Installing || lastBoot.After(rec.Since) {
		return ""
	}
	since := later(rec.Since, r.started)
	r.lives.mu.Lock()
	defer r.lives.mu.Unlock()
	l := r.lives.get(rec.Name)
	switch {
	case l.told == told{rec.Attempt, Remain}:
		return fmt.Sprintf("stays in its installer, `rackstrap reinstall %s` reboots it", rec.Name)
	case l.asked.Before(since) && r.now().Sub(since) >= silent:
		return needsHand
	}
	return ""
}

const needsHand = "stands at its installer's prompt and does not reboot by itself: look at its console, then switch it off and on"

// tellStanding puts into the timeline of each machine that needs a hand that it does, once.
func (r *Rack) tellStanding() {
	for _, m := range r.Members("") {
		if r.standing(m.Record, r.lastBoot(m.Record)) != needsHand {
			continue
		}
		r.lives.mu.Lock()
		l := r.lives.get(m.Record.Name)
		news := l.told != (told{attempt: m.Record.Attempt})
		l.told = told{attempt: m.Record.Attempt}
		r.lives.mu.Unlock()
		if news {
			r.Observe(Event{MAC: m.Record.MAC, Machine: m.Record.Name, Attempt: m.Record.Attempt, Source: "lifecycle", Kind: "stands", Level: Alarm, Text: "it " + needsHand})
		}
	}
}
