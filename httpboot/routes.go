package httpboot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"runtime/debug"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"rackstrap/bootplan"
	"rackstrap/inventory"
)

// methods is all that the boot plane knows. echo's GET would answer HEAD with 405, and UEFI HTTP Boot begins
// with HEAD.
var methods = []string{http.MethodGet, http.MethodHead}

func (s *Server) routes() http.Handler {
	e := echo.New()
	e.HideBanner, e.HidePort = true, true
	e.HTTPErrorHandler = s.answerError
	e.Pre(s.observe, refuseBody, cleanPath)
	for _, route := range []struct {
		path   string
		handle echo.HandlerFunc
	}{
		{"/boot/:mac/ipxe", s.ipxe},
		{"/boot/:mac/grub.cfg", s.grub},
		{"/loader/*", s.loader},
		{"/grub/*", s.grubFile},
		{"/ks/:mac/:ticket", s.kickstart},
		{"/agent/linux-:arch", s.agent},
		{"/images/:file", s.image},
		{"/media/:name", s.media},
		{"/media/:name/*", s.media},
		{"/repo/:name", s.repo},
		{"/repo/:name/*", s.repo},
		{"/healthz", s.healthz},
		{"/metrics", s.showMetrics},
	} {
		e.Match(methods, route.path, route.handle)
	}
	return e
}

// observe is around every request: it counts, logs, answers errors, and keeps a panic in the request that
// it belongs to.
func (s *Server) observe(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		w := &response{ResponseWriter: c.Response().Writer}
		w.conn, _ = c.Request().Context().Value(connKey{}).(*conn)
		c.Response().Writer = w
		s.metrics.inFlight.Inc()
		defer s.metrics.inFlight.Dec()
		start := time.Now()
		s.o.Rack.Alive(client(c)) // an installer that fetches packages is busy, though it reports nothing

		panicked := s.protect(c, next)
		w.commit()

		route := routeLabel(c.Path())
		s.metrics.requests.WithLabelValues(route, statusLabel(w.status)).Inc()
		s.metrics.bytes.WithLabelValues(route).Add(float64(w.bytes))
		if s.o.Log.Enabled(context.Background(), slog.LevelDebug) {
			r := c.Request()
			s.o.Log.Debug("http", "client", r.RemoteAddr, "method", r.Method, "path", r.URL.Path, "status", w.status,
				"bytes", w.bytes, "range", r.Header.Get("Range"), "agent", r.UserAgent(), "took", time.Since(start))
		}
		if panicked {
			panic(http.ErrAbortHandler) // cuts the connection: the client must not take what it has for whole
		}
		return nil
	}
}

// protect runs the handler; it tells whether that panicked after the answer had begun.
func (s *Server) protect(c echo.Context, next echo.HandlerFunc) (cut bool) {
	defer func() {
		v := recover()
		if v == nil {
			return
		}
		s.metrics.panics.Inc()
		s.o.Log.Error("http: panic", "path", c.Request().URL.Path, "client", c.Request().RemoteAddr, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
		if cut = responseOf(c).committed; !cut {
			s.answerError(errPanic, c)
		}
	}()
	if err := next(c); err != nil {
		s.answerError(err, c)
	}
	return false
}

var errPanic = errors.New("panic, see the log")

// refuseBody refuses requests that come with a body: net/http would wait for it after the answer, for as
// long as the client likes.
func refuseBody(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		if c.Request().ContentLength == 0 {
			return next(c)
		}
		c.Response().Header().Set("Connection", "close")
		http.NewResponseController(c.Response()).SetReadDeadline(time.Now()) // tests without a connection have none
		return &badRequest{"no request here has a body"}
	}
}

// cleanPath makes the path what bootplan.Clean makes of it, as over TFTP: shim asks for `/dir//grubx64.efi`,
// and some firmware writes backslashes. What cannot be a path is refused.
func cleanPath(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		url := c.Request().URL
		name, err := bootplan.Clean(url.Path)
		if err != nil && url.Path != "/" {
			return &badRequest{"this is no path"}
		}
		url.Path, url.RawPath = "/"+name, "" // decoded once, by net/http; the router sees what handlers see
		return next(c)
	}
}

// client is the address at the other end. Headers that proxies add are not believed.
func client(c echo.Context) netip.Addr {
	ap, err := netip.ParseAddrPort(c.Request().RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}

// macOf is the machine that the path names.
func macOf(c echo.Context) (inventory.MAC, error) {
	mac, err := inventory.ParseMAC(c.Param("mac"))
	if err != nil || mac.IsZero() {
		return inventory.MAC{}, errNotFound
	}
	return mac, nil
}

// healthz tells whether the daemon lives and its store takes what was observed.
func (s *Server) healthz(c echo.Context) error {
	ctx, cancel := context.WithTimeout(c.Request().Context(), 2*time.Second)
	defer cancel()
	if err := s.o.Rack.Flush(ctx); err != nil {
		return fmt.Errorf("store: %v", err)
	}
	c.Response().Header().Set("Cache-Control", "no-store")
	return sendText(c, http.StatusOK, "ok\n")
}

func (s *Server) showMetrics(c echo.Context) error {
	if s.o.Gatherer == nil {
		return errNotFound
	}
	promhttp.HandlerFor(s.o.Gatherer, promhttp.HandlerOpts{DisableCompression: true}).ServeHTTP(c.Response().Writer, c.Request())
	return nil
}
