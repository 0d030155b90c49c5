// Package firstboot is the node plane: what machines report to the appliance over HTTPS, from the end of
// their installation on. So far that is the installation's own reports; the agent and the kubeadm handshake
// follow.
//
//	POST /api/v1/nodes/{name}/events   {"attempt":1,"kind":"installed","phase":"post","text":"…"}
//
// The machine proves itself with the token of its attempt, which only its kickstart holds, and must call from
// its reserved address. 401: not its token; 403: not its address; 404: no such machine; 409: not possible in its
// state; 410: a newer attempt has superseded it; 503: a fault of the appliance, try again.
package firstboot

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"rackstrap/lifecycle"
)

// Limits of one report: what is larger is refused, not cut, for its end is what matters.
const (
	maxReport = 64 << 10
	maxText   = 4000
)

// Options are the dependencies of a Server.
type Options struct {
	Rack      *lifecycle.Rack
	Authority *Authority
	Log       *slog.Logger
	Now       func() time.Time
	Address   netip.Addr
	Port      int // 0: any
}

// Server is the node plane.
type Server struct {
	o        Options
	listener net.Listener
	http     *http.Server
}

// Listen binds the node plane.
func Listen(o Options) (*Server, error) {
	certificate, err := o.Authority.Certificate(o.Now(), o.Address)
	if err != nil {
		return nil, fmt.Errorf("node plane: certificate: %w", err)
	}
	listener, err := net.Listen("tcp4", net.JoinHostPort(o.Address.String(), strconv.Itoa(o.Port)))
	if err != nil {
		return nil, fmt.Errorf("node plane: %w", err)
	}
	s := &Server{o: o, listener: listener}
	s.http = &http.Server{
		Handler:           s.routes(),
		TLSConfig:         &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{certificate}},
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      30 * time.Second,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug), // failed handshakes: the peer's affair
	}
	return s, nil
}

// Addr is where it listens.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Close ends a server that never ran.
func (s *Server) Close() error { return s.listener.Close() }

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		s.http.Shutdown(grace)
	})
	defer stop()
	if err := s.http.ServeTLS(s.listener, "", ""); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func (s *Server) routes() http.Handler {
	e := echo.New()
	e.HTTPErrorHandler = s.fault
	e.POST("/api/v1/nodes/:name/events", s.event)
	return e
}

// report is what a machine says of itself.
type report struct {
	Attempt int    `json:"attempt"`
	Kind    string `json:"kind"`  // installed, failed, progress
	Phase   string `json:"phase"` // pre, install, post
	Percent int    `json:"percent"`
	Text    string `json:"text"`
}

// errForeignAddress is a report from another address than the machine's own.
var errForeignAddress = errors.New("this is not the machine's address")

func (s *Server) event(c echo.Context) error {
	name := c.Param("name")
	var r report
	c.Request().Body = http.MaxBytesReader(c.Response(), c.Request().Body, maxReport)
	if err := c.Bind(&r); err != nil {
		return echo.NewHTTPError(http.StatusBadRequest, "not a report").SetInternal(err)
	}
	machine, ok := s.o.Rack.Config().ByName(name)
	if !ok {
		return &lifecycle.UnknownMachineError{Name: name}
	}
	if from, err := netip.ParseAddrPort(c.Request().RemoteAddr); err != nil || from.Addr().Unmap() != machine.IP {
		s.alarm(name, fmt.Sprintf("report %q of %s came from %s", printable(r.Kind), name, c.Request().RemoteAddr))
		return errForeignAddress
	}
	token, _ := strings.CutPrefix(c.Request().Header.Get("Authorization"), "Bearer ")
	if err := s.o.Rack.CheckSecret(name, r.Attempt, token); err != nil {
		s.alarm(name, fmt.Sprintf("report %q of attempt %d refused: %v", printable(r.Kind), r.Attempt, err))
		return err
	}
	if err := s.apply(c.Request().Context(), name, r); err != nil {
		return err
	}
	return c.NoContent(http.StatusNoContent)
}

// apply carries a report out. It returns when what it changed is on disk; a report that is repeated, because
// its answer was lost, changes nothing.
func (s *Server) apply(ctx context.Context, name string, r report) error {
	r.Text = s.o.Rack.Redact(name, r.Text)
	text := printable(r.Text)
	switch r.Kind {
	case "installed":
		_, err := s.o.Rack.Apply(ctx, name, lifecycle.ReportDone, "reported by its %post")
		return err
	case "failed":
		before, err := s.o.Rack.Member(name)
		if err != nil {
			return err
		}
		after, err := s.o.Rack.FailInstall(ctx, name, failureOf(r.Phase, r.Text))
		if err == nil && after.Revision != before.Record.Revision { // else it is said again
			s.logTail(name, r.Phase, text)
		}
		return err
	case "progress":
		s.progressOf(name, r, text)
		return nil
	}
	return echo.NewHTTPError(http.StatusBadRequest, "kind: installed, failed or progress")
}

func (s *Server) alarm(name, text string) {
	s.o.Rack.Observe(s.eventOf(name, lifecycle.Alarm, "refused", text))
}

func (s *Server) eventOf(name string, level lifecycle.Level, kind, text string) lifecycle.Event {
	e := lifecycle.Event{Machine: name, Source: "node", Kind: kind, Level: level, Text: text}
	for _, m := range s.o.Rack.Machines() {
		if m.Name == name {
			e.MAC, e.Attempt = m.MAC, m.Record.Attempt
		}
	}
	return e
}

// printable makes a peer's text fit for one line of a log: its end, where a failure tells its reason, without
// control characters.
func printable(text string) string {
	text = strings.Map(func(r rune) rune {
		switch {
		case r == '\n', r == '\t':
			return ' '
		case r < ' ', r == 0x7f, r > '~':
			return -1
		}
		return r
	}, text)
	return strings.TrimSpace(text[max(0, len(text)-maxText):])
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
		asHTTP     *echo.HTTPError
	)
	switch {
	case errors.As(err, &unknown):
		status, text = http.StatusNotFound, "no such machine"
	case errors.Is(err, errForeignAddress):
		status, text = http.StatusForbidden, err.Error()
	case errors.Is(err, lifecycle.ErrBadSecret):
		status, text = http.StatusUnauthorized, err.Error()
	case errors.Is(err, lifecycle.ErrSuperseded):
		status, text = http.StatusGone, err.Error()
	case errors.As(err, &transition), errors.Is(err, lifecycle.ErrNoHardware):
		status, text = http.StatusConflict, err.Error()
	case errors.As(err, &asHTTP):
		status, text = asHTTP.Code, fmt.Sprint(asHTTP.Message)
	default:
		c.Response().Header().Set("Retry-After", "5")
		s.o.Log.Error("node plane request failed", "path", c.Request().URL.Path, "err", err)
	}
	c.JSON(status, map[string]string{"error": text})
}
