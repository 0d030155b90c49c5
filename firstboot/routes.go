package firstboot

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"rackstrap/cluster"
	"rackstrap/firstboot/api"
	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

// operation is one call of the node plane: what serves it, and what its description says. This table makes the routes
// and the OpenAPI document, so that these cannot differ.
type operation struct {
	method, path string // below /api/v1/nodes/{name}
	id, summary  string
	token        bool // with the install token; else with the credential (events: with either)
	body         any  // of the request; nil: none, "" is text
	answers      map[int]any
	query        map[string]string
	handle       func(*Server, echo.Context, caller) error
}

// words are the operations by which a machine sends texts, whose size and number have a budget; true: reports, each of which
// is an event.
var words = map[string]bool{"reportEvent": true, "putLog": false}

const base = "/api/v1/nodes/:name"

func operations() []operation {
	return []operation{
		{http.MethodPost, "/exchange", "exchange", "Exchange the install token of an attempt for a credential", true,
			api.Exchange{}, map[int]any{200: api.Credential{}}, nil, (*Server).exchange},
		{http.MethodPost, "/events", "reportEvent", "Report what happens on the machine", true,
			api.Event{}, map[int]any{204: nil}, nil, (*Server).event},
		{http.MethodGet, "/installation", "getInstallation", "Ask what a machine in its installer is to do next", true,
			nil, map[int]any{200: api.Installation{}}, map[string]string{"wait": "how long to wait for something else than going on, in seconds, 0 to 60"}, (*Server).installation},
		{http.MethodGet, "/work", "getWork", "Ask for work, and wait for it", false,
			nil, map[int]any{200: api.Work{}, 202: api.Waiting{}}, map[string]string{"wait": "how long to wait for work, in seconds, 0 to 60"}, (*Server).work},
		{http.MethodPost, "/work/:id/result", "reportResult", "Report how a work ended", false,
			api.Result{}, map[int]any{204: nil}, nil, (*Server).result},
		{http.MethodPut, "/logs/:log", "putLog", "Leave a log", false,
			"", map[int]any{204: nil}, nil, (*Server).putLog},
	}
}

func (s *Server) routes() http.Handler {
	e := echo.New()
	e.HideBanner, e.HidePort = true, true
	e.HTTPErrorHandler = s.fault
	e.Use(s.observe)
	for _, op := range operations() {
		e.Add(op.method, base+op.path, s.guarded(op))
	}
	e.GET("/api/v1/openapi.json", func(c echo.Context) error { return c.JSONBlob(http.StatusOK, Document()) })
	return e
}

// caller is a machine that calls from its own address.
type caller struct {
	machine inventory.Machine
	secret  string // what it presents: the install token or the credential
	attempt int    // by the header; 0: the body says
}

// Errors of calls that are refused.
var (
	errForeignAddress = errors.New("this is not the machine's address")
	errTooMany        = errors.New("too many calls from this address")
	errTooMuch        = errors.New("more reports or logs than a machine may send at a time")
	errTooLarge       = errors.New("the body is too large")
	errPanic          = errors.New("panic, see the log")
)

// guarded lets a call through that may be made: few enough of them, by a machine of the list, from its address, and
// with its credential. With the install token the handler checks, for what it may do depends on it.
func (s *Server) guarded(op operation) echo.HandlerFunc {
	return func(c echo.Context) error {
		from, name := remote(c), c.Param("name")
		secret, _ := strings.CutPrefix(c.Request().Header.Get("Authorization"), "Bearer ")
		machine, ok := s.o.Rack.Config().ByName(name)
		who := source{address: from}
		if ok && from == machine.IP && s.o.Rack.Knows(name, secret) {
			who = source{machine: name}
		}
		release, admitted := s.limits.admit(who)
		if !admitted {
			return errTooMany
		}
		defer release()
		c.Set(sourceKey, who)
		if !ok {
			return &lifecycle.UnknownMachineError{Name: name}
		}
		if from != machine.IP {
			s.alarm(name, fmt.Sprintf("%s of %s came from %v", op.id, name, from))
			return errForeignAddress
		}
		call := caller{machine: *machine, secret: secret}
		if text := c.Request().Header.Get(api.HeaderAttempt); text != "" {
			attempt, err := strconv.Atoi(text)
			if err != nil || attempt < 1 {
				return echo.NewHTTPError(http.StatusBadRequest, api.HeaderAttempt+" is a number from 1")
			}
			call.attempt = attempt
		}
		if !op.token {
			if call.attempt == 0 {
				return echo.NewHTTPError(http.StatusBadRequest, api.HeaderAttempt+" is missing")
			}
			if err := s.o.Rack.CheckCredential(c.Request().Context(), name, call.attempt, secret); err != nil {
				return err
			}
			s.o.Cluster.Heard(name)
			if made, ok := c.Request().Context().Value(madeKey{}).(time.Time); ok {
				s.o.Rack.CheckConnection(name, made)
			}
		}
		limit := int64(api.MaxBody)
		if op.body == "" {
			limit = api.MaxLog
		}
		size := c.Request().ContentLength
		if size > limit {
			return errTooLarge
		}
		if size < 0 { // it does not say
			size = limit
		}
		if report, isWords := words[op.id]; isWords {
			if ok, news := s.limits.words(who, size, report); !ok {
				if news {
					s.o.Rack.Observe(s.eventOf(name, lifecycle.Warn, "budget", "it sends more reports or logs than a machine may, and is asked to wait"))
				}
				return errTooMuch
			}
		}
		c.Request().Body = http.MaxBytesReader(c.Response(), c.Request().Body, limit)
		return op.handle(s, c, call)
	}
}

// sourceKey is where a call's context has its source.
const sourceKey = "source"

// refused counts a refusal against who has caused it.
func (s *Server) refused(c echo.Context) {
	if who, ok := c.Get(sourceKey).(source); ok {
		s.limits.refused(who)
	}
}

// observe is around every request: it counts, times, and keeps a panic in the request that it belongs to.
func (s *Server) observe(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) (err error) {
		begin := time.Now()
		defer func() {
			if v := recover(); v != nil {
				s.o.Log.Error("node plane: panic", "path", c.Request().URL.Path, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
				err = errPanic
			}
			if err != nil {
				s.fault(err, c)
				err = nil
			}
			s.metrics.done(c.Path(), c.Response().Status, time.Since(begin))
		}()
		return next(c)
	}
}

// remote is the address at the other end. Headers that proxies add are not believed.
func remote(c echo.Context) netip.Addr {
	ap, err := netip.ParseAddrPort(c.Request().RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}

// fault is the one place where errors become statuses. What is inside of the appliance is logged, not sent.
func (s *Server) fault(err error, c echo.Context) {
	if c.Response().Committed {
		return
	}
	status, text := http.StatusServiceUnavailable, "a fault of the appliance: try again"
	var (
		unknown    *lifecycle.UnknownMachineError
		transition *lifecycle.TransitionError
		large      *http.MaxBytesError
		held       *lifecycle.HeldError
		asHTTP     *echo.HTTPError
	)
	switch {
	case errors.As(err, &held): // not final: the agent asks again until the hold ends
		status, text = http.StatusLocked, "this machine is held by the operator"
		c.Response().Header().Set("Retry-After", "10")
	case errors.As(err, &unknown):
		status, text = http.StatusNotFound, "no such machine"
	case errors.Is(err, cluster.ErrUnknownWork):
		status, text = http.StatusNotFound, err.Error()
	case errors.Is(err, errForeignAddress), errors.Is(err, cluster.ErrForeignMAC):
		status, text = http.StatusForbidden, err.Error()
	case errors.Is(err, lifecycle.ErrBadSecret):
		status, text = http.StatusUnauthorized, err.Error()
	case errors.Is(err, lifecycle.ErrSuperseded):
		status, text = http.StatusGone, err.Error()
	case errors.As(err, &transition), errors.Is(err, lifecycle.ErrNoHardware), errors.Is(err, cluster.ErrNotHolder):
		status, text = http.StatusConflict, err.Error()
	case errors.Is(err, errTooLarge), errors.As(err, &large):
		status, text = http.StatusRequestEntityTooLarge, errTooLarge.Error()
		c.Response().Header().Set("Connection", "close") // the rest of the body is not read
	case errors.Is(err, errTooMany), errors.Is(err, errTooMuch):
		status, text = http.StatusTooManyRequests, err.Error()
		c.Response().Header().Set("Retry-After", "2")
	case errors.As(err, &asHTTP):
		status, text = asHTTP.Code, fmt.Sprint(asHTTP.Message)
	case c.Request().Context().Err() != nil: // the client left, or the daemon ends
		c.Response().Header().Set("Retry-After", "1")
	default:
		c.Response().Header().Set("Retry-After", "5")
		s.o.Log.Error("node plane request failed", "path", c.Request().URL.Path, "err", err)
	}
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusGone:
		s.refused(c)
	case http.StatusNotFound:
		if unknown != nil {
			s.refused(c)
		}
	}
	if status == http.StatusUnauthorized || status == http.StatusGone {
		s.alarm(c.Param("name"), fmt.Sprintf("%s %s of %s refused: %s", c.Request().Method, c.Path()[strings.LastIndex(c.Path(), ":name")+5:], c.Param("name"), text))
	}
	c.JSON(status, map[string]string{"error": text})
}
