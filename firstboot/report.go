package firstboot

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"rackstrap/firstboot/api"
	"rackstrap/internal/plain"
	"rackstrap/lifecycle"
)

// The installer's own words, which the kickstart's scripts write to their logs: `rackstrap: failed at: COMMAND
// (status 1)` by the trap of %post, `rackstrap: no disk fits …` by %pre.
const (
	ownWords = "rackstrap: "
	failedAt = ownWords + "failed at: "
)

// exception is the line of a traceback of Python's that says what happened.
var exception = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.]*(Error|Exception|Exit)\b`)

// maxReason bounds what `status` shows of a failure; the rest of the log's tail is an event.
const maxReason = 300

// failureOf makes one line of the tail of a log: the command that failed, and what was said before it. A log without
// the kickstart's own words has its reason in Anaconda's last error, else at its end.
func failureOf(phase, tail string) string {
	var said []string
	for line := range strings.Lines(tail) {
		if line = plain.Line(line, maxText); line != "" {
			said = append(said, line)
		}
	}
	last := func(words ...string) int {
		for i := len(said) - 1; i >= 0; i-- {
			if slices.ContainsFunc(words, func(w string) bool { return strings.Contains(said[i], w) }) {
				return i
			}
		}
		return -1
	}
	reason := ""
	switch i := last(ownWords); {
	case i >= 0 && strings.Contains(said[i], failedAt):
		reason = strings.TrimPrefix(said[i], ownWords)
		if i > 0 && !strings.HasPrefix(said[i-1], ownWords) {
			reason += ": " + said[i-1]
		}
	case i >= 0 && i == len(said)-1:
		reason = strings.TrimPrefix(said[i], ownWords)
	case i >= 0: // it was killed, or the shell ended it, at the step that the own words name
		reason = said[len(said)-1] + " (at: " + strings.TrimPrefix(said[i], ownWords) + ")"
	case len(said) > 0:
		reason = said[len(said)-1]
		if i := last(" CRIT ", " CRT ", " ERR "); i >= 0 { // as the logs of EL7's and EL9's Anaconda say it
			reason = said[i]
		}
		if i := slices.IndexFunc(said, exception.MatchString); i >= 0 && strings.Contains(reason, "Traceback ") {
			reason = said[i]
		}
	}
	if phase = printable(phase); phase == "" {
		phase = "installation"
	} else if phase != "install" {
		phase = "%" + phase
	}
	if reason == "" {
		return phase + " failed; it left no log"
	}
	reason = plain.Line(reason, maxReason)
	if strings.HasPrefix(reason, "failed at: ") {
		return phase + " " + reason
	}
	return phase + " failed: " + reason
}

// progressOf notes how far a machine is, for `status`, and its timeline.
func (s *Server) progressOf(name string, r api.Event, text string) {
	p := lifecycle.Progress{Phase: printable(r.Phase), Percent: min(max(r.Percent, 0), 100), Text: text}
	if !s.o.Rack.Report(name, r.Attempt, p) {
		return // it was overtaken by a later one
	}
	s.o.Rack.Observe(s.eventOf(name, lifecycle.Info, "progress", p.String()))
}

// logTail puts what a failed machine sent of its log into its timeline.
func (s *Server) logTail(name, phase, tail string) {
	if tail != "" {
		s.o.Rack.Observe(s.eventOf(name, lifecycle.Warn, "log", fmt.Sprintf("end of the log of %s: %s", printable(phase), tail)))
	}
}
