package syslog

import (
	"cmp"
	"context"
	"errors"
	"regexp"
	"strings"
	"sync"
	"time"

	"rackstrap/lifecycle"
)

// symptom is a message of Anaconda's after which the installation does not go on: it waits for a key, or ends. What
// scripts of the kickstart meet they report themselves, and better; this is for what no script sees.
type symptom struct {
	severity int // or a worse one
	pattern  *regexp.Regexp
	generic  bool // it says that the installation stopped, not why: an error before it is worth more
}

const (
	severityCrit = 2 // RFC 5424, section 6.2.1
	severityErr  = 3
	severityWarn = 4
)

// symptoms are taken from pyanaconda of 21.48.22.159 (CentOS 7.9) and of 34.25.7 (EL9), by the function that logs them;
// in cmdline mode, which our kickstarts choose, every question becomes such a message. Not in the table is what Anaconda
// logs and lives with, such as a .treeinfo that is not there or a repository without groups. "Error code 1 running the
// kickstart script" is none: Anaconda's own scripts fail in good installations, too.
var symptoms = []symptom{
	{severityErr, regexp.MustCompile(`^storage configuration failed: `), false},                        // 7: ui/tui/spokes/storage.py, execute
	{severityErr, regexp.MustCompile(`^BootLoader setup failed: `), false},                             // 7: the same
	{severityErr, regexp.MustCompile(`^CmdlineError: Missing package: `), false},                       // 7: yumpayload.py, _handleMissing
	{severityErr, regexp.MustCompile(`This is a fatal error and installation will be aborted`), false}, // 7: errors.py, by ui/tui/__init__.py, _showError
	{severityErr, regexp.MustCompile(`Would you like to ignore this `), false},                         // 7: errors.py, by _showYesNoQuestion, which says no
	{severityErr, regexp.MustCompile(`^An error has occurred - no valid devices were found`), false},   // 7: errors.py, _noDisksHandler
	{severityErr, regexp.MustCompile(`^The following errors occurred with your partitioning`), false},  // 7: errors.py, _partitionErrorHandler
	{severityErr, regexp.MustCompile(`^There is a problem with your existing storage `), false},        // both: errors.py, _storageResetHandler
	{severityErr, regexp.MustCompile(`^The following software marked for installation has errors`), false},
	{severityErr, regexp.MustCompile(`^DNF marking error: `), false},                           // 9: payload/dnf/payload.py, _handle_marking_error
	{severityErr, regexp.MustCompile(`^anaconda: kickstart\.parsing: `), false},                // 9: kickstart.py, parseKickstart; 7 prints it alone
	{severityErr, regexp.MustCompile(`^Error code -\d+ running the kickstart script `), false}, // both: kickstart.py, run; a signal, so the script could not report
	{severityErr, regexp.MustCompile(`^CmdlineError: `), true},                                 // both: hubs/summary.py, prompt
	{severityCrit, regexp.MustCompile(`^Traceback \(most recent call last\)`), true},           // both: exception.py, handleException
}

// hints are messages that say why a generic symptom follows. Without one of them the last error counts.
var hints = []*regexp.Regexp{
	regexp.MustCompile(`^(reason for repo removal|PayloadError|MetadataError): `),                 // 7: yumpayload.py, _configureBaseRepo; both: payload.manager
	regexp.MustCompile(`^Partitioning has been applied: ValidationReport\(error_messages=\[['"]`), // 9: ui/tui/spokes/storage.py; the modules' own logs do not leave the machine
	regexp.MustCompile(`^Transaction error `),                                                     // 9: ui/tui/spokes/software_selection.py
	regexp.MustCompile(`^\S+ requires `),                                                          // 7: yumpayload.py, checkSoftwareSelection
}

// settle is how long the lines that follow a symptom are waited for: the end of a traceback is what says why.
const settle = time.Second

const (
	mostLines  = 100 // of one message that are kept
	mostReason = 300 // bytes of the reason that `status` shows
)

// finder looks for symptoms in the lines of one connection.
type finder struct {
	fail func(reason, lines string)

	mu    sync.Mutex
	hint  string // one of hints
	last  string // error before the symptom
	found []*finding
	open  *finding // the lines that follow belong to it
	timer *time.Timer
	done  bool
}

// finding is a symptom that was seen, with all lines of its message.
type finding struct {
	symptom symptom
	lines   []string
}

// elsewhere is how EL9 names the module behind its own name: `anaconda: ui.tui.hubs.summary: text`, `packaging: text`.
var elsewhere = regexp.MustCompile(`^(?:anaconda: [A-Za-z0-9_.]+|packaging|payload): `)

// words are Anaconda's own words, without its names for the places where they come from.
func words(m message) (string, bool) {
	switch m.tag {
	case "anaconda":
		if at := elsewhere.FindString(m.text); at != "" {
			return m.text[len(at):], true
		}
		return m.text, !strings.HasPrefix(m.text, "program: ")
	case "packaging":
		return m.text, true
	}
	return "", false
}

// line takes the next message. A message of several lines comes as one with `#012` in it, or as several of which only the
// first has a priority: neither the journal nor rsyslog's forward format escapes line ends, rsyslog's parser does.
func (f *finder) line(m message) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.done {
		return
	}
	if m.bare {
		if m.tag != "" {
			m.text = m.tag + ": " + m.text
		}
		if f.open != nil && len(f.open.lines) < mostLines {
			f.open.lines = append(f.open.lines, m.text)
		}
		return
	}
	f.open = nil
	text, ok := words(m)
	if !ok {
		return
	}
	for _, s := range symptoms {
		if m.severity > s.severity || !s.pattern.MatchString(text) && !s.pattern.MatchString(m.text) {
			continue
		}
		f.open = &finding{symptom: s, lines: strings.Split(text, "#012")}
		f.found = append(f.found, f.open)
		if f.timer == nil {
			f.timer = time.AfterFunc(settle, f.end)
		}
		return
	}
	if f.timer != nil {
		return // what follows is no cause
	}
	for _, h := range hints {
		if h.MatchString(text) {
			f.hint = text
			return
		}
	}
	if m.severity <= severityErr {
		f.last = text
	}
}

// end reports what was found, if anything: after settle, or when the connection ends.
func (f *finder) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.done || len(f.found) == 0 {
		return
	}
	f.done = true
	f.timer.Stop()
	best := f.found[0]
	var all []string
	for _, one := range f.found {
		if best.symptom.generic && !one.symptom.generic {
			best = one
		}
		all = append(all, strings.Join(one.lines, " "))
	}
	reason := best.reason()
	if before := cmp.Or(f.hint, f.last); best.symptom.generic && before != "" {
		reason = cut(before, mostReason) + "; then: " + reason
	}
	f.fail(cut(reason, 2*mostReason), strings.Join(all, " | "))
}

// exception is the line of a traceback that names it; its text may have more lines.
var exception = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.]*(Error|Exception|Exit|Interrupt)\b`)

// reason is the message in one line; of a traceback, the exception.
func (f *finding) reason() string {
	lines := f.lines
	if strings.HasPrefix(lines[0], "Traceback ") {
		for i := len(lines) - 1; i > 0; i-- {
			if exception.MatchString(lines[i]) {
				lines = lines[i:]
				break
			}
		}
	}
	return cut(strings.Join(strings.Fields(strings.Join(lines, " ")), " "), mostReason)
}

func cut(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "…"
}

// finder makes one for a machine: what it finds fails the installation.
func (s *Server) finder(who sender) *finder {
	return &finder{fail: func(reason, lines string) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_, err := s.o.Rack.FailIn(ctx, who.name, who.attempt, lifecycle.Installing, "Anaconda stopped: "+reason, true)
		var meanwhile *lifecycle.TransitionError
		switch {
		case errors.As(err, &meanwhile), errors.Is(err, lifecycle.ErrSuperseded):
			return // a script has reported it
		case err != nil:
			s.o.Log.Error("a failed installation cannot be noted", "machine", who.name, "err", err)
			return
		}
		s.observe(who, "log", lifecycle.Warn, "Anaconda's last words: "+cut(lines, maxLine))
	}}
}

// observe puts something into the machine's timeline.
func (s *Server) observe(who sender, kind string, level lifecycle.Level, text string) {
	mac, _ := s.o.Rack.MACByIP(who.from)
	s.o.Rack.Observe(lifecycle.Event{MAC: mac, Machine: who.name, Attempt: who.attempt, Source: "syslog", Kind: kind, Level: level, Text: text})
}
