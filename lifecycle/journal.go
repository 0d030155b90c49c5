package lifecycle

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"rackstrap/internal/plain"
	"rackstrap/inventory"
)

// Limits of what is kept about machines that are only seen.
const (
	// maxPending is how many observations wait for the disk at most; beyond, the oldest are dropped and
	// counted: a storm of packets must not become a storm of memory.
	maxPending = 20_000
	// flushEvery is how long an observation waits for company before it is written.
	flushEvery = 200 * time.Millisecond
	// subscriberBuffer is how many events a slow follower may lag behind before it loses some.
	subscriberBuffer = 1024
)

// journal collects observations until they are written, and tells followers of every event.
type journal struct {
	mu        sync.Mutex
	pending   []Event
	dropped   uint64
	forgotten []inventory.MAC
	followers map[chan Event]struct{}
	quotas    quotas
	writing   sync.Mutex // one flush at a time, so that the order of events stays
}

func (j *journal) init() {
	j.followers = map[chan Event]struct{}{}
}

// announce hands an event to all followers; one that does not keep up misses it.
func (j *journal) announce(e Event) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for ch := range j.followers {
		select {
		case ch <- e:
		default:
		}
	}
}

func (j *journal) add(e Event) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.pending) >= maxPending {
		j.pending = j.pending[1:]
		j.dropped++
	}
	j.pending = append(j.pending, e)
}

func (j *journal) take() []Event {
	j.mu.Lock()
	defer j.mu.Unlock()
	events := j.pending
	j.pending = nil
	return events
}

// giveBack puts events that could not be written before the newer ones.
func (j *journal) giveBack(events []Event) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.pending = append(events, j.pending...)
	if over := len(j.pending) - maxPending; over > 0 {
		j.pending = j.pending[over:]
		j.dropped += uint64(over)
	}
}

// Observe notes what was seen of a machine: an event for its timeline, never a change of its state. It does
// not wait for the disk: it is written within flushEvery while Run runs. Time, Machine and Attempt are
// filled in where they are empty; the text, which may have a peer's words in it, becomes a plain line.
func (r *Rack) Observe(e Event) {
	e = e.Plain()
	if e.Time.IsZero() {
		e.Time = r.now()
	}
	if e.Level == "" {
		e.Level = Info
	}
	if !r.attribute(&e) {
		return
	}
	if e.Machine != "" && e.Level != Alarm && e.Source != "lifecycle" && e.Source != "operator" {
		r.alive(e.Machine, e.Time) // an alarm may be about somebody else who asked in its place
	}
	if e.Class() != Story && !r.journal.quotas.admit(e) {
		return
	}
	r.note(e)
}

func (r *Rack) note(e Event) {
	r.journal.add(e)
	r.journal.announce(e)
	r.logEvent(e)
}

// reportCounted notes how many observations were counted and not listed, of those kinds whose time is over, or of all.
func (r *Rack) reportCounted(all bool) {
	for _, e := range r.journal.quotas.sweep(r.now(), all) {
		r.note(e.Plain())
	}
}

// attribute fills in whose event it is, and tells whether it is noted.
func (r *Rack) attribute(e *Event) bool {
	if e.Machine != "" || e.MAC.IsZero() {
		return true
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	name, listed := r.names[e.MAC]
	if !listed {
		return r.admitEvent(e.MAC)
	}
	e.Machine, e.Attempt = name, r.records[name].Attempt
	return true
}

func (r *Rack) logEvent(e Event) {
	level := slog.LevelDebug // normal traffic is for the timeline and the metrics
	switch {
	case e.Level == Alarm:
		level = slog.LevelError
	case e.Level == Warn:
		level = slog.LevelWarn
	case e.Source == "lifecycle" || e.Source == "operator" || e.Source == "cluster":
		level = slog.LevelInfo
	}
	attrs := []slog.Attr{slog.String("source", e.Source), slog.String("kind", e.Kind)}
	if e.Machine != "" {
		attrs = append(attrs, slog.String("machine", e.Machine))
	}
	if !e.MAC.IsZero() {
		attrs = append(attrs, slog.String("mac", e.MAC.String()))
	}
	r.log.LogAttrs(context.Background(), level, e.Text, attrs...)
}

// See merges what the wire told about a machine into its sighting: fields that are empty in s stay as they
// were. First and Last are kept here.
func (r *Rack) See(s Sighting) {
	if s.MAC.IsZero() {
		return
	}
	if r.see(s, r.now()) {
		r.Observe(sharedUUID(s.MAC, s.UUID))
	}
}

// see merges, and tells whether a machine of the list turned out to have the UUID of another one.
func (r *Rack) see(s Sighting, now time.Time) (sharedUUID bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	known, ok := r.sightings[s.MAC]
	switch {
	case ok:
		r.strangers.seen.MoveToBack(known.place)
	case r.admit(s, now):
		known = &sighting{Sighting: Sighting{MAC: s.MAC, First: now}}
		r.remember(known)
	default:
		return
	}
	if !known.dirty {
		known.dirty = true
		r.unwritten = append(r.unwritten, known)
	}
	known.Last = now
	known.LastBoot = later(past(known.LastBoot, now), s.LastBoot)
	known.DiskBoot = later(past(known.DiskBoot, now), s.DiskBoot)
	replace(&known.VendorClass, s.VendorClass)
	replace(&known.Firmware, s.Firmware)
	replace(&known.Hostname, s.Hostname)
	if s.Relay.IsValid() {
		known.Relay = s.Relay
	}
	if s.Address.IsValid() {
		known.Address, known.Server = s.Address, s.Server
	}
	return r.learnUUID(known, s.UUID)
}

func replace(field *string, seen string) {
	if seen != "" {
		*field = plain.Line(seen, maxSeen)
	}
}

// past is a time that was noted; zero if it is in the future: the clock was set back since.
func past(t, now time.Time) time.Time {
	if t.After(now) {
		return time.Time{}
	}
	return t
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// Sighting is what the wire told about a MAC so far.
func (r *Rack) Sighting(mac inventory.MAC) (Sighting, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if s, ok := r.sightings[mac]; ok {
		return s.Sighting, true
	}
	return Sighting{}, false
}

func (j *journal) forget(mac inventory.MAC) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.forgotten = append(j.forgotten, mac)
}

func (j *journal) takeForgotten() []inventory.MAC {
	j.mu.Lock()
	defer j.mu.Unlock()
	macs := j.forgotten
	j.forgotten = nil
	return macs
}

// Run writes observations to the store until ctx ends, and once more then.
func (r *Rack) Run(ctx context.Context) error {
	ticker := time.NewTicker(flushEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			r.reportCounted(true)
			return r.Flush(context.WithoutCancel(ctx))
		case <-ticker.C:
			r.reportLeftOut()
			r.reportCounted(false)
			if err := r.Flush(ctx); err != nil {
				// A full disk: transitions report it to whoever asks for one; observations wait here,
				// bounded, until there is room again.
				r.log.Error("observations cannot be written", "err", err)
			}
		}
	}
}

// Flush writes what was observed so far.
func (r *Rack) Flush(ctx context.Context) error {
	r.journal.writing.Lock()
	defer r.journal.writing.Unlock()

	events := r.journal.take()
	forgotten := r.journal.takeForgotten()
	var seen []Sighting
	r.mu.Lock()
	kept := events[:0]
	for _, e := range events {
		_, listed := r.names[e.MAC]
		_, sighted := r.sightings[e.MAC]
		if listed || sighted || e.MAC.IsZero() {
			kept = append(kept, e) // else it was forgotten meanwhile, and must not come back
		}
	}
	for _, s := range r.unwritten {
		s.dirty = false
		if r.sightings[s.MAC] == s { // else it was forgotten meanwhile, too
			seen = append(seen, s.Sighting)
		}
	}
	r.unwritten = nil
	r.mu.Unlock()

	if len(kept) > 0 || len(seen) > 0 {
		if err := r.store.Append(ctx, kept, seen); err != nil {
			r.journal.giveBack(kept)
			r.mu.Lock()
			for _, s := range seen {
				if now, ok := r.sightings[s.MAC]; ok && !now.dirty {
					now.dirty = true
					r.unwritten = append(r.unwritten, now)
				}
			}
			r.mu.Unlock()
			return err
		}
	}
	if len(forgotten) > 0 {
		return r.store.Forget(ctx, forgotten)
	}
	return nil
}

// Events returns the selected events of the log, oldest first, what was observed just now included.
func (r *Rack) Events(ctx context.Context, q EventQuery) ([]Event, error) {
	if err := r.Flush(ctx); err != nil {
		return nil, err
	}
	return r.store.Events(ctx, q)
}

// Follow sends every event from now on until ctx ends. Such an event has no Seq yet. A follower that lags
// far behind loses events; the channel is closed at the end.
func (r *Rack) Follow(ctx context.Context) <-chan Event {
	ch := make(chan Event, subscriberBuffer)
	r.journal.mu.Lock()
	r.journal.followers[ch] = struct{}{}
	r.journal.mu.Unlock()
	context.AfterFunc(ctx, func() {
		r.journal.mu.Lock()
		defer r.journal.mu.Unlock()
		delete(r.journal.followers, ch)
		close(ch)
	})
	return ch
}

// Dropped counts the observations that were lost because the disk could not keep up.
func (r *Rack) Dropped() uint64 {
	r.journal.mu.Lock()
	defer r.journal.mu.Unlock()
	return r.journal.dropped
}
