package httpboot

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"

	"github.com/labstack/echo/v4"

	"rackstrap/internal/plain"
	"rackstrap/inventory"
	"rackstrap/lifecycle"
	"rackstrap/repo"
)

// errNotFound is a path under which there is nothing.
var errNotFound = fmt.Errorf("nothing here: %w", fs.ErrNotExist)

// badRequest is a request that makes no sense.
type badRequest struct{ reason string }

func (e *badRequest) Error() string { return e.reason }

// absent is something that is not here, with a reason that the client is told.
type absent struct{ reason string }

func (e *absent) Error() string { return e.reason }

// denial is a request for something that this client may not have: 403, and an event.
type denial struct {
	reason string        // for the client
	mac    inventory.MAC // whose timeline it belongs to; zero: the client's own
	level  lifecycle.Level
	event  string // for the operator
}

func (e *denial) Error() string { return e.reason }

// unavailable is a fault of ours that the client may be told about.
type unavailable struct{ reason string }

func (e *unavailable) Error() string { return e.reason }

// retryAfter is when a client that met a fault of ours should try again, in seconds.
const retryAfter = "5"

// answerError is the one place where errors become statuses. What a fault of ours was is for the log and
// the operator, not for the client.
func (s *Server) answerError(err error, c echo.Context) {
	var (
		routing *echo.HTTPError
		bad     *badRequest
		gone    *absent
		denied  *denial
		told    *unavailable
		behind  *repo.UpstreamError
	)
	switch {
	case errors.As(err, &routing):
		answer(c, routing.Code, http.StatusText(routing.Code))
	case errors.As(err, &bad):
		answer(c, http.StatusBadRequest, bad.reason)
	case errors.As(err, &gone):
		answer(c, http.StatusNotFound, gone.reason)
	case errors.As(err, &denied):
		s.noteOnce(c, lifecycle.Event{MAC: denied.mac, Kind: "refused", Level: denied.level, Text: denied.event})
		answer(c, http.StatusForbidden, denied.reason)
	case errors.Is(err, fs.ErrNotExist):
		answer(c, http.StatusNotFound, "not found")
	case errors.Is(err, fs.ErrInvalid):
		answer(c, http.StatusBadRequest, "this is no path")
	case errors.As(err, &behind) && behind.Lie:
		s.noteOnce(c, lifecycle.Event{Kind: "upstream", Level: lifecycle.Alarm, Text: behind.Explain()})
		answer(c, http.StatusBadGateway, behind.Error())
	case errors.As(err, &behind):
		s.noteOnce(c, lifecycle.Event{Kind: "upstream", Level: lifecycle.Warn, Text: behind.Explain()})
		c.Response().Header().Set("Retry-After", retryAfter)
		answer(c, http.StatusServiceUnavailable, behind.Error())
	case errors.As(err, &told):
		c.Response().Header().Set("Retry-After", retryAfter)
		answer(c, http.StatusServiceUnavailable, told.reason)
	case c.Request().Context().Err() != nil:
		answer(c, http.StatusServiceUnavailable, "the client left") // it will not read this
	default:
		s.noteOnce(c, lifecycle.Event{Kind: "fault", Level: lifecycle.Alarm,
			Text: fmt.Sprintf("%s, asked for by %s: %v", c.Request().URL.Path, client(c), err)})
		c.Response().Header().Set("Retry-After", retryAfter)
		answer(c, http.StatusServiceUnavailable, "the appliance has a fault: its log says which")
	}
}

// maxReason bounds what an answer says, in bytes.
const maxReason = 1000

// answer sends a status and its reason, unless the answer has begun already. Headers of the answer that was
// meant to be are taken back, but for those that belong to the status.
func answer(c echo.Context, status int, reason string) {
	if responseOf(c).committed {
		return
	}
	h := c.Response().Header()
	for name := range h {
		switch name {
		case "Retry-After", "Allow", "Connection":
		default:
			h.Del(name)
		}
	}
	h.Set("Cache-Control", "no-store")
	sendText(c, status, plain.Line(reason, maxReason)+"\n")
}
