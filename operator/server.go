package operator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/labstack/echo/v4"

	"rackstrap/bootplan"
	"rackstrap/cluster"
	"rackstrap/internal/httpserve"
	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

// Options are the dependencies of a Server.
type Options struct {
	DataDir string // where the socket is made
	Rack    *lifecycle.Rack
	Plan    *bootplan.Plan
	Cluster Cluster
	Reload  func(context.Context) (ReloadResult, error)
	// Kickstart renders that of a machine of the configuration in force, without any secret.
	Kickstart func(name string) ([]byte, error)
	Status    func() Status // all but Machines, Leases, Dropped and Now, which come from the Rack
	Log       *slog.Logger
	Now       func() time.Time
}

// Server answers the operator's commands.
type Server struct {
	o        Options
	listener net.Listener
	echo     *echo.Echo
}

// Listen makes the socket. A socket that a killed daemon left behind is replaced; one that answers is an
// error: another daemon serves this data directory.
func Listen(o Options) (*Server, error) {
	path := filepath.Join(o.DataDir, SocketName)
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		conn.Close()
		return nil, fmt.Errorf("%s: another rackstrap answers there", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		listener.Close()
		return nil, err
	}
	s := &Server{o: o, listener: listener, echo: echo.New()}
	s.echo.HideBanner, s.echo.HidePort = true, true
	s.echo.HTTPErrorHandler = s.fault
	s.routes()
	return s, nil
}

// Addr is the socket.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Close ends a server that never ran; Run closes it otherwise.
func (s *Server) Close() error { return s.listener.Close() }

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	server := &http.Server{Handler: s.echo, ReadHeaderTimeout: 10 * time.Second,
		BaseContext: func(net.Listener) context.Context { return ctx }} // so that event streams end with the daemon
	if err := httpserve.Run(ctx, server, 2*time.Second, func() error { return server.Serve(s.listener) }); err != nil {
		return fmt.Errorf("operator socket: %w", err)
	}
	return nil
}

func (s *Server) routes() {
	api := s.echo.Group("/api/v1")
	api.GET("/status", s.status)
	api.GET("/events", s.events)
	api.GET("/render/:what/:name", s.render)
	api.POST("/reload", s.reload)
	api.POST("/discovered/:mac/approve", s.approve)
	api.POST("/cluster/kubeconfig", s.kubeconfig)
	api.POST("/cluster/verify", s.verify)
	api.POST("/machines/:name/reinstall", s.reinstall)
	api.POST("/machines/:name/hold", s.hold)
	api.POST("/machines/:name/adopt", s.change(s.o.Cluster.Adopt))
	api.POST("/machines/:name/unhold", s.change(s.o.Cluster.Unhold))
	api.POST("/machines/:name/release", s.release)
	api.GET("/confirmations", s.claims)
	api.GET("/machines/:name/confirmation", s.claim)
	api.POST("/machines/:name/confirm", s.confirm)
}

func (s *Server) status(c echo.Context) error {
	st := s.o.Status()
	st.Now, st.Cluster = s.o.Now(), s.o.Cluster.Status()
	st.Machines, st.Leases, st.Dropped = s.o.Rack.Machines(), s.o.Rack.Leases(), s.o.Rack.Dropped()
	for i := range st.Machines {
		if m := &st.Machines[i]; m.Progress != nil && !s.o.Cluster.Current(m.Name, *m.Progress) {
			m.Progress = nil
		}
	}
	return c.JSON(http.StatusOK, st)
}

// events sends the log as lines of JSON: what is kept, and with follow=1 what comes, until the client goes.
func (s *Server) events(c echo.Context) error {
	ctx := c.Request().Context()
	q, err := s.eventQuery(c)
	if err != nil {
		return err
	}
	var live <-chan lifecycle.Event
	if c.QueryParam("follow") == "1" {
		live = s.o.Rack.Follow(ctx) // before the query: nothing is missed, at most one is said twice
	}
	past, err := s.o.Rack.Events(ctx, q)
	if err != nil {
		return err
	}
	c.Response().Header().Set(echo.HeaderContentType, "application/x-ndjson")
	lines := json.NewEncoder(c.Response())
	for _, e := range past {
		if err := lines.Encode(e); err != nil {
			return nil // the client went away
		}
	}
	c.Response().Flush()
	if live == nil {
		return nil
	}
	for e := range live {
		if !q.Has(e.MAC) {
			continue
		}
		if lines.Encode(e) != nil {
			return nil
		}
		c.Response().Flush()
	}
	return nil
}

func (s *Server) eventQuery(c echo.Context) (lifecycle.EventQuery, error) {
	q := lifecycle.EventQuery{}
	if who := c.QueryParam("machine"); who != "" {
		mac, err := s.who(who)
		if err != nil {
			return q, err
		}
		q.Cards = s.o.Rack.Cards(mac)
	}
	for name, field := range map[string]func(uint64){
		"after": func(n uint64) { q.After = n },
		"limit": func(n uint64) { q.Limit = int(min(n, 1_000_000)) },
	} {
		if text := c.QueryParam(name); text != "" {
			n, err := strconv.ParseUint(text, 10, 64)
			if err != nil {
				return q, echo.NewHTTPError(http.StatusBadRequest, name+" is a number")
			}
			field(n)
		}
	}
	return q, nil
}

// who finds a machine by its name or MAC.
func (s *Server) who(text string) (inventory.MAC, error) {
	for _, m := range s.o.Rack.Machines() {
		if m.Name == text && !m.MAC.IsZero() {
			return m.MAC, nil
		}
	}
	mac, err := inventory.ParseMAC(text)
	if err != nil {
		return mac, &lifecycle.UnknownMachineError{Name: text}
	}
	return mac, nil
}

func (s *Server) render(c echo.Context) error {
	switch c.Param("what") {
	case "init-config", "join-config":
		cfg := s.o.Rack.Config()
		m, ok := cfg.ByName(c.Param("name"))
		if !ok {
			return &lifecycle.UnknownMachineError{Name: c.Param("name")}
		}
		text := cluster.RenderInit(cfg, *m)
		if c.Param("what") == "join-config" {
			text = cluster.RenderJoin(cfg, *m, s.o.Rack.Cluster().CAHash)
		}
		return c.Blob(http.StatusOK, echo.MIMETextPlainCharsetUTF8, []byte(text))
	case "kickstart":
		text, err := s.o.Kickstart(c.Param("name"))
		if err != nil {
			return err
		}
		return c.Blob(http.StatusOK, echo.MIMETextPlainCharsetUTF8, text)
	}
	mac, err := s.who(c.Param("name"))
	if err != nil {
		return err
	}
	renderers := map[string]func(lifecycle.Decision) ([]byte, error){"ipxe": s.o.Plan.IPXE, "grub": s.o.Plan.GRUB}
	render, ok := renderers[c.Param("what")]
	if !ok {
		return echo.NewHTTPError(http.StatusNotFound, "ipxe, grub, kickstart, init-config or join-config can be rendered")
	}
	text, err := render(s.o.Rack.Decide(mac))
	if err != nil {
		return err
	}
	return c.Blob(http.StatusOK, echo.MIMETextPlainCharsetUTF8, text)
}

func (s *Server) reload(c echo.Context) error {
	result, err := s.o.Reload(c.Request().Context())
	if err != nil {
		return echo.NewHTTPError(http.StatusUnprocessableEntity, err.Error())
	}
	return c.JSON(http.StatusOK, result)
}

func (s *Server) approve(c echo.Context) error {
	mac, err := inventory.ParseMAC(c.Param("mac"))
	if err != nil {
		return echo.NewHTTPError(http.StatusBadRequest, err.Error())
	}
	var body approval
	if err := c.Bind(&body); err != nil {
		return err
	}
	approve := s.o.Rack.Approve
	if body.OtherMachine {
		approve = s.o.Rack.ApproveOther
	}
	rec, err := approve(c.Request().Context(), mac, body.As)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, rec.Public())
}

func (s *Server) change(do func(context.Context, string) (lifecycle.Record, error)) echo.HandlerFunc {
	return func(c echo.Context) error {
		rec, err := do(c.Request().Context(), c.Param("name"))
		if err != nil {
			return err
		}
		return c.JSON(http.StatusOK, rec.Public())
	}
}

func (s *Server) release(c echo.Context) error {
	if err := s.o.Rack.Release(c.Request().Context(), c.Param("name")); err != nil {
		return err
	}
	return c.NoContent(http.StatusNoContent)
}

// fault is the one place where errors become statuses.
func (s *Server) fault(err error, c echo.Context) {
	if c.Response().Committed {
		return
	}
	status, text := http.StatusInternalServerError, err.Error()
	var (
		transition *lifecycle.TransitionError
		unknown    *lifecycle.UnknownMachineError
		bind       *lifecycle.BindError
		card       *lifecycle.FurtherCardError
		refused    *cluster.RefusedError
		held       *lifecycle.HeldError
		unclaimed  *lifecycle.ConfirmError
		asHTTP     *echo.HTTPError
	)
	switch {
	case errors.As(err, &transition), errors.As(err, &bind), errors.As(err, &card), errors.Is(err, lifecycle.ErrConflict),
		errors.Is(err, lifecycle.ErrNoHardware), errors.As(err, &refused), errors.As(err, &held),
		errors.As(err, &unclaimed):
		status = http.StatusConflict
	case errors.As(err, &unknown):
		status = http.StatusNotFound
	case errors.As(err, &asHTTP):
		status, text = asHTTP.Code, fmt.Sprint(asHTTP.Message)
	default:
		s.o.Log.Error("operator request failed", "path", c.Request().URL.Path, "err", err)
	}
	c.JSON(status, problem{Error: text})
}
