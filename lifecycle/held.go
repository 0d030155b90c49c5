package lifecycle

import (
	"context"
	"fmt"
	"time"
)

// HeldError is an operator's wish that fails because a machine is held, or because it is not.
type HeldError struct{ Reason string }

func (e *HeldError) Error() string { return e.Reason }

// IsHeld tells whether the operator holds the machine.
func (rec Record) IsHeld() bool { return !rec.Held.Since.IsZero() }

// heldText says who holds the machine, why, and what ends it.
func (rec Record) heldText() string {
	text := rec.Name + " is held by the operator"
	switch h := rec.Held; {
	case h.By == byAppliance:
		text = fmt.Sprintf("%s is held by the appliance (%s)", rec.Name, h.Reason)
	case h.By != "" && h.Reason != "":
		text += fmt.Sprintf(" (%s: %s)", h.By, h.Reason)
	case h.By+h.Reason != "":
		text += fmt.Sprintf(" (%s)", h.By+h.Reason)
	}
	return text + fmt.Sprintf(": `rackstrap unhold %s` ends it", rec.Name)
}

// RefuseHeld is a *HeldError for a machine that is held: only the end of the hold lets it be installed again, be handed
// anything, or report results.
func (rec Record) RefuseHeld() error {
	if rec.IsHeld() {
		return &HeldError{rec.heldText()}
	}
	return nil
}

// Hold has a machine boot its disk until Unhold. Its state stays as it is; what it proves itself with stays good, and opens
// nothing meanwhile: see RefuseHeld. One that is held
// already stays so since the same time, with the reason that was given last.
func (r *Rack) Hold(ctx context.Context, name, by, reason string) (Record, error) {
	return r.update(ctx, name, "operator: hold", func(rec *Record) error {
		since := rec.Held.Since
		if since.IsZero() {
			since = r.now()
		} else if reason == "" {
			return nil // said twice
		}
		rec.Held = Held{Since: since, By: by, Reason: reason}
		return nil
	})
}

// Unhold ends the hold of a machine: it boots what its state has it boot.
func (r *Rack) Unhold(ctx context.Context, name string) (Record, error) {
	return r.update(ctx, name, "operator: unhold", func(rec *Record) error {
		if !rec.IsHeld() {
			return &HeldError{fmt.Sprintf("%s is not held by the operator: %s", name, r.Decide(rec.MAC).Reason)}
		}
		if !rec.Node.Deadline.IsZero() { // it was handed nothing, and not heard, meanwhile
			rec.Node.Deadline = rec.Node.Deadline.Add(r.now().Sub(rec.Held.Since))
		}
		if rec.Held.By == byAppliance { // the operator vouches for it
			r.signOfInstaller(name)
		}
		rec.Held = Held{}
		return nil
	})
}

// heldBefore is the failure of a machine that was held, as databases before version 3 record it.
const heldBefore = "held by the operator; `rackstrap reinstall %s` arms it again"

// understood is a record as this version means it. To be held was a failure once: the state of before is in its phase.
// What the machine was doing for the appliance then has ended unheard since; such a record stays failed.
func (rec Record) understood() Record {
	if rec.State != Failed || rec.Failure == nil || rec.Failure.Reason != fmt.Sprintf(heldBefore, rec.Name) {
		return rec
	}
	rec.Held = Held{Since: rec.Since}
	switch phase := rec.Failure.Phase; phase {
	case Armed, Installed, Firstboot, Waiting, Joined, Ready:
		rec.State, rec.Failure = phase, nil
		rec.Begun = time.Time{} // Since is when it was held: a duration between the two means nothing
	default:
		rec.Failure = &Failure{Phase: phase, Reason: fmt.Sprintf("it was held while it was %s: `rackstrap adopt %s` takes what is on its disk as installed", phase, rec.Name)}
	}
	return rec
}
