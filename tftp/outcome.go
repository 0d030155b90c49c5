package tftp

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"rackstrap/bootplan"
	"rackstrap/internal/plain"
	"rackstrap/lifecycle"
)

// ending is how a request ended: the label of the metric.
type ending string

const (
	endDone       ending = "done"
	endSizeProbe  ending = "size-probe"
	endNotFound   ending = "not-found"
	endRefused    ending = "refused"
	endMalformed  ending = "malformed"
	endBusy       ending = "busy"
	endAborted    ending = "aborted"
	endTimeout    ending = "timeout"
	endUnproven   ending = "unproven"
	endNetwork    ending = "network"
	endFault      ending = "fault"
	endSuperseded ending = "superseded"
	endStopped    ending = "stopped"
)

// endings tells what each ending is on a machine's timeline. What firmware normally does is no warning: it
// probes, it aborts, and GRUB looks for many files that are not there.
var endings = map[ending]struct {
	kind  string // of the event; "" for none
	level lifecycle.Level
	text  func(t *transfer, r result, took time.Duration) string
}{
	endDone:       {"loader", lifecycle.Info, textDone},
	endSizeProbe:  {"size-probe", lifecycle.Info, textOf("%s: asked for its size")},
	endNotFound:   {"not-found", lifecycle.Info, textTold},
	endRefused:    {"refused", lifecycle.Warn, textTold},
	endMalformed:  {"refused", lifecycle.Warn, textTold},
	endBusy:       {}, // the pool of places reports it
	endUnproven:   {}, // the source may be made up; the metrics count it
	endAborted:    {"failed", lifecycle.Info, textErr("the client ended it")},
	endTimeout:    {"failed", lifecycle.Warn, textErr("the client is silent")},
	endNetwork:    {"failed", lifecycle.Warn, textErr("cannot be sent")},
	endFault:      {"failed", lifecycle.Alarm, textOf("%s: " + errFault.text)},
	endSuperseded: {},
	endStopped:    {"failed", lifecycle.Warn, textErr("the appliance stopped")},
}

func textDone(t *transfer, r result, took time.Duration) string {
	rate := float64(r.bytes) / 1e6 / max(took, time.Microsecond).Seconds()
	return fmt.Sprintf("%s: %d bytes, blksize %d, %s, %.1f MB/s", t.name, r.bytes, t.blockSize(), took.Round(time.Millisecond), rate)
}

func textOf(format string) func(*transfer, result, time.Duration) string {
	return func(t *transfer, _ result, _ time.Duration) string { return fmt.Sprintf(format, t.name) }
}

func textTold(t *transfer, r result, _ time.Duration) string {
	if t.name == "" { // it never came to a name
		return r.told
	}
	return t.name + ": " + r.told
}

func textErr(what string) func(*transfer, result, time.Duration) string {
	return func(t *transfer, r result, _ time.Duration) string {
		detail := strings.TrimRight(r.err.Error(), "\x00") // pin/tftp quotes ERROR packets with their end
		return fmt.Sprintf("%s: %s, after %d bytes (%s)", t.name, what, r.bytes, detail)
	}
}

// result is how one request ended.
type result struct {
	ending ending
	told   string // to the client, in an ERROR packet, or of it to the operator; fit for the timeline
	err    error  // detail, for the log alone where it is a fault
	bytes  int64  // sent
}

// replyTo is what a client is told whose file could not be opened. Inner detail stays here.
func replyTo(name string, err error) *protocolError {
	var refusal *bootplan.Refusal
	switch {
	case errors.As(err, &refusal):
		return &protocolError{codeAccessViolation, refusal.Error(), endRefused}
	case errors.Is(err, fs.ErrNotExist):
		return &protocolError{codeNotFound, "file not found: " + name, endNotFound}
	case errors.Is(err, fs.ErrInvalid):
		return &protocolError{codeAccessViolation, "access violation: not a file name: " + name, endRefused}
	}
	return errFault
}

// toldOf is what the timeline says of a reply: of a refusal its reason, which the client is not told.
func toldOf(reply *protocolError, err error) string {
	var refusal *bootplan.Refusal
	if errors.As(err, &refusal) {
		return refusal.Reason
	}
	return reply.text
}

// finish counts how a request ended, and tells the machine's timeline.
func (s *Server) finish(t *transfer, r result) {
	now := s.Now()
	took := now.Sub(t.start)
	s.metrics.count(r, took)
	row := endings[r.ending]
	if row.kind == "" {
		return
	}
	mac, _ := s.Rack.MACByIP(t.client.Addr())
	if r.ending == endFault {
		s.Log.Error("tftp: appliance fault", "file", plain.Line(t.name, maxRequest), "mac", mac.String(), "client", t.client.String(), "err", r.err)
	}
	text := row.text(t, r, took)
	if s.throttle.allow(now, t.client.Addr(), r.ending, t.name) {
		s.Rack.Observe(lifecycle.Event{Time: now, MAC: mac, Source: "tftp", Kind: row.kind, Level: row.level,
			Text: fmt.Sprintf("%s (%s)", text, t.client.Addr())})
	}
}
