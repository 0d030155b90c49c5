package httpboot

import (
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/labstack/echo/v4"

	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

// note writes an event.
func (s *Server) note(e lifecycle.Event) {
	e.Source = "http"
	s.o.Rack.Observe(e)
}

// noteOnce writes an event that a client can cause as often as it likes, unless it just did. An event
// without a MAC goes to the client's own timeline, or to the rack's.
func (s *Server) noteOnce(c echo.Context, e lifecycle.Event) {
	e = e.Plain() // before it is remembered: a stranger's text can be long
	if !s.repeats.first(client(c), e.Text) {
		return
	}
	if e.MAC.IsZero() {
		e.MAC, _ = s.o.Rack.MACByIP(client(c))
	}
	s.note(e)
}

// nameOf is a machine for people: its name in the list and its MAC, or its MAC.
func (s *Server) nameOf(mac inventory.MAC) string {
	if m, ok := s.o.Rack.Machine(mac); ok {
		return fmt.Sprintf("%s (%s)", m.Name, mac)
	}
	return mac.String()
}

// Bounds on what clients can write into the event log by asking for what they may not have; dracut alone
// asks again every second for three minutes.
const (
	repeatWindow     = time.Minute
	textsPerClient   = 16
	clientsPerWindow = 1024
)

// repeats knows what was reported in this window of time.
type repeats struct {
	now func() time.Time

	mu    sync.Mutex
	since time.Time
	seen  map[netip.Addr]map[string]bool
}

func newRepeats(now func() time.Time) *repeats {
	return &repeats{now: now, seen: map[netip.Addr]map[string]bool{}}
}

// first tells whether this is worth reporting: the client did not cause the same a moment ago, nor too much
// else.
func (r *repeats) first(client netip.Addr, text string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := r.now(); now.Sub(r.since) >= repeatWindow {
		r.since = now
		clear(r.seen)
	}
	texts := r.seen[client]
	if texts == nil {
		if len(r.seen) >= clientsPerWindow {
			return false
		}
		texts = map[string]bool{}
		r.seen[client] = texts
	}
	if texts[text] || len(texts) >= textsPerClient {
		return false
	}
	texts[text] = true
	return true
}
