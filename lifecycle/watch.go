package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"time"

	"rackstrap/inventory"
)

const (
	// watchEvery is how exactly the limits of an installation are kept.
	watchEvery = 5 * time.Second
	// afterStart is how long a machine has, once the daemon is there again, to report what it could not while it was
	// away, before its time is up: an installer repeats its report for a minute.
	afterStart = 2 * time.Minute
)

// Watch looks after the machines that are being installed until ctx ends: one that takes longer than install.timeout,
// or gives no sign of life for install.stall, has failed. It may be tried again, as after any failure of an
// installation.
func (r *Rack) Watch(ctx context.Context) error {
	ticker := time.NewTicker(watchEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			r.failOverdue(ctx)
			r.tellStanding()
		}
	}
}

// failOverdue fails every machine whose installation is over its time now.
func (r *Rack) failOverdue(ctx context.Context) {
	for _, m := range r.Members("") {
		reason, overdue := r.overdue(m.Machine, m.Record)
		if !overdue {
			continue
		}
		_, err := r.FailIn(ctx, m.Record.Name, m.Record.Attempt, Installing, reason, true)
		var meanwhile *TransitionError
		if err != nil && !errors.As(err, &meanwhile) && !errors.Is(err, ErrSuperseded) {
			r.log.Error("an installation that is overdue cannot be failed, tried again soon", "machine", m.Record.Name, "err", err)
		}
	}
}

// overdue tells whether a machine has been installing for too long, and what was awaited of it. Both limits are
// derived from the record and from what was heard since; a daemon that has just begun has heard nothing yet, which is
// not the machine's fault.
func (r *Rack) overdue(m inventory.Machine, rec Record) (reason string, yes bool) {
	if rec.State != Installing {
		return "", false
	}
	now := r.now()
	heard := later(later(rec.Since, r.signOf(rec.Name)), r.started)
	last := "since it fetched its kickstart"
	if p, ok := r.progress(rec); ok {
		last = fmt.Sprintf("its last report was %q, %s ago", p.String(), now.Sub(p.At).Round(time.Second))
	}
	const advice = "look at its console"
	switch total, silent := now.Sub(rec.Since), now.Sub(heard); {
	case m.Install.Stall > 0 && silent >= m.Install.Stall:
		return fmt.Sprintf("stalled: no sign of life of the installer for %s (install.stall); %s; %s", silent.Round(time.Second), last, advice), true
	case m.Install.Timeout > 0 && total >= m.Install.Timeout && now.Sub(r.started) >= afterStart:
		return fmt.Sprintf("timed out: awaited the report of its %%post for %s (install.timeout); %s; %s", total.Round(time.Second), last, advice), true
	}
	return "", false
}
