package lifecycle

import (
	"fmt"
	"net/netip"
	"sync"
	"time"

	"rackstrap/internal/plain"
	"rackstrap/inventory"
)

// Progress is how far a machine is with what it does just now. It lives as long as the daemon: what has to
// survive is in the Record.
type Progress struct {
	Phase   string    `json:"phase"`             // pre, packages, post; of an agent: its action
	Percent int       `json:"percent,omitempty"` // of the phase, 1 to 100; 0: not known
	Text    string    `json:"text,omitempty"`    // one line for people; never a secret
	At      time.Time `json:"at"`
}

// String is the progress in one line: `packages 45%: bash (120/266)`.
func (p Progress) String() string {
	text := p.Phase
	if p.Percent > 0 {
		text += fmt.Sprintf(" %d%%", p.Percent)
	}
	if p.Text != "" {
		text += ": " + p.Text
	}
	return text
}

// lives is what is known of machines only as long as the daemon runs, by name.
type lives struct {
	mu sync.Mutex
	of map[string]*life
}

type life struct {
	attempt  int
	state    State
	progress Progress  // made in that attempt and state; zero: none
	sign     time.Time // when it was last heard of, in whatever way
	asked    time.Time // when its installer last asked for its verdict
	told     told

	installer int       // the attempt whose installer was seen at work
	parties   time.Time // boot of somebody who asked in its name while it ran
}

func (l *lives) get(name string) *life {
	if l.of == nil {
		l.of = map[string]*life{}
	}
	if l.of[name] == nil {
		l.of[name] = &life{}
	}
	return l.of[name]
}

// Report notes how far a machine of the list is with its attempt, and that it lives. Reports of another attempt, and
// those that come after one that is further in the same phase (they travel side by side), are passed over: false.
func (r *Rack) Report(name string, attempt int, p Progress) bool {
	r.mu.RLock()
	rec, ok := r.records[name]
	r.mu.RUnlock()
	if !ok || rec.Attempt != attempt {
		return false
	}
	p.Phase, p.Text = plain.Line(p.Phase, maxPhase), plain.Line(p.Text, maxProgress)
	p.At = r.now()
	r.signOfInstaller(name)
	r.lives.mu.Lock()
	defer r.lives.mu.Unlock()
	l := r.lives.get(name)
	l.sign = p.At
	if l.attempt == attempt && l.state == rec.State && l.progress.Phase == p.Phase && l.progress.Percent > p.Percent {
		return false
	}
	l.attempt, l.state, l.progress = attempt, rec.State, p
	return true
}

// progress is what the machine reported last in the attempt and the state of a record.
func (r *Rack) progress(rec Record) (Progress, bool) {
	r.lives.mu.Lock()
	defer r.lives.mu.Unlock()
	l, ok := r.lives.of[rec.Name]
	if !ok || l.attempt != rec.Attempt || l.state != rec.State || l.progress.At.IsZero() {
		return Progress{}, false
	}
	return l.progress, true
}

// Alive notes that the machine with an address of the list was heard of: for what is not worth an event, such as the
// fetching of a package. Events are signs of life by themselves.
func (r *Rack) Alive(from netip.Addr) {
	if mac, ok := r.MACByIP(from); ok {
		r.aliveMAC(mac)
	}
}

func (r *Rack) aliveMAC(mac inventory.MAC) {
	r.mu.RLock()
	name, ok := r.names[mac]
	r.mu.RUnlock()
	if ok {
		r.alive(name, r.now())
	}
}

func (r *Rack) alive(name string, at time.Time) {
	r.lives.mu.Lock()
	defer r.lives.mu.Unlock()
	l := r.lives.get(name)
	l.sign = later(l.sign, at)
}

// signOf is when a machine was last heard of; zero: not since the daemon began.
func (r *Rack) signOf(name string) time.Time {
	r.lives.mu.Lock()
	defer r.lives.mu.Unlock()
	if l, ok := r.lives.of[name]; ok {
		return l.sign
	}
	return time.Time{}
}
