package lifecycle

import "rackstrap/internal/plain"

// Texts come from peers, or have their words in them: they become plain lines where they enter, within these bounds in
// bytes.
const (
	maxEventText = 4200 // room for the end of a log
	maxReason    = 1000 // of a failure
	maxProgress  = 500
	maxPhase     = 40  // of a progress
	maxSeen      = 128 // a field of a sighting
)

// Plain is the event with its text as a plain line.
func (e Event) Plain() Event {
	e.Text = plain.Line(e.Text, maxEventText)
	return e
}
