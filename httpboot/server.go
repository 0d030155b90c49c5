// Package httpboot is the boot plane over plain HTTP, all that firmware speaks: boot scripts, loaders, the
// files inside installation media, and the gate before the kickstart.
//
//	/boot/{mac}/ipxe       what this machine's iPXE runs
//	/boot/{mac}/grub.cfg   what this machine's GRUB runs
//	/loader/{path}         loaders: the same bytes that TFTP serves under the same path
//	/grub/{path}           what GRUB asks for beside its own path
//	/media/{name}/{path}   the file tree inside an ISO image, or an unpacked one
//	/repo/{name}/{path}    a package repository: of this host, or fetched through from upstream
//	/agent/linux-{arch}    the program that installed machines run, see agent.go
//	/images/{file}         archives of container images
//	/ks/{mac}              the kickstart: holds a secret, see kickstart.go
//	/healthz, /metrics
//
// All of it is GET and HEAD, read-only, HTTP/1.1, uncompressed and with a Content-Length; nothing is ever
// redirected, for shim and GRUB do not follow. What a client may have, package bootplan and the lifecycle
// decide; this package carries it.
package httpboot

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"rackstrap/bootplan"
	"rackstrap/images"
	"rackstrap/internal/httpserve"
	"rackstrap/internal/places"
	"rackstrap/inventory"
	"rackstrap/lifecycle"
	"rackstrap/repo"
)

// Kickstart renders the answer file of one machine. The secret is that attempt's install token; neither it
// nor the text may be logged.
type Kickstart interface {
	Render(ctx context.Context, m inventory.Machine, rec lifecycle.Record, secret string) ([]byte, error)
}

// Repos are the package repositories.
type Repos interface {
	// Local is a repository in a directory.
	Local(name string) (*repo.Local, bool)
	// Open opens a file of any other; see repo.Service.
	Open(ctx context.Context, r repo.Request) (*repo.File, error)
}

// Options are the dependencies of a Server, and its limits; a limit of zero is the default.
type Options struct {
	Rack      *lifecycle.Rack
	Plan      *bootplan.Plan
	Repos     Repos              // nil: /repo has nothing
	Kickstart Kickstart          // nil: /ks answers 503, and no installation begins
	Agents    *Agents            // nil: /agent answers 404
	Images    func() *images.Set // nil: /images answers 404
	Log       *slog.Logger
	Now       func() time.Time
	Metrics   prometheus.Registerer // where the counters go; nil: nowhere
	Gatherer  prometheus.Gatherer   // what /metrics shows; nil: nothing

	Address   netip.Addr // to listen on; the zero Addr: the first IPv4 address of Interface
	Interface string     // with neither, all addresses
	Port      int        // 0: any

	// StallTimeout ends the connection of a client that takes no byte for so long (60 s). There is no limit
	// on how long a download takes: a slow one is fine.
	StallTimeout time.Duration
	// HeaderTimeout is how long a client may take to send a request's header (10 s).
	HeaderTimeout time.Duration
	Places        places.Limits // of connections; see package places for what happens beyond
}

const (
	defaultStallTimeout  = 60 * time.Second
	defaultHeaderTimeout = 10 * time.Second
	// idleTimeout ends a connection without a request; it is longer than the pauses of yum and edk2.
	idleTimeout = 60 * time.Second
	// maxHeader bounds request line and header; net/http adds 4 KiB and answers 431 beyond. Sixteen NICs in
	// X-RHN-Provisioning-MAC headers take 1 KiB.
	maxHeader = 16 << 10
	// grace is how long transfers may go on when the daemon ends.
	grace = 3 * time.Second
)

// defaultPlaces: installers and yum have some ten connections at once, firmware one or two.
var defaultPlaces = places.Limits{Total: 2048, Each: 128, Strangers: 512, StrangersEach: 32}

// Server is the boot plane, bound to its address.
type Server struct {
	o        Options
	listener *listener
	handler  http.Handler
	metrics  *metrics
	repeats  *repeats
	roles    roles
}

// Listen binds the address. What cannot be bound is an error here, not later.
func Listen(o Options) (*Server, error) {
	o.StallTimeout = cmp.Or(o.StallTimeout, defaultStallTimeout)
	o.HeaderTimeout = cmp.Or(o.HeaderTimeout, defaultHeaderTimeout)
	o.Places = cmp.Or(o.Places, defaultPlaces)
	metrics, err := newMetrics(o.Metrics)
	if err != nil {
		return nil, fmt.Errorf("http: %w", err)
	}
	pool, err := places.New(places.Options{Plane: "http", Limits: o.Places, Listed: o.Rack.ListedAddress, Metrics: o.Metrics,
		Report: func(text string) {
			o.Rack.Observe(lifecycle.Event{Source: "http", Kind: "places", Level: lifecycle.Warn, Text: "connections: " + text})
		}})
	if err != nil {
		return nil, fmt.Errorf("http: %w", err)
	}
	host, err := o.host()
	if err != nil {
		return nil, fmt.Errorf("http: %w", err)
	}
	bound, err := net.Listen("tcp", net.JoinHostPort(host, fmt.Sprint(o.Port)))
	if err != nil {
		return nil, fmt.Errorf("http: %w", err)
	}
	s := &Server{
		o:        o,
		listener: &listener{Listener: places.Listen(bound, pool), stall: o.StallTimeout, metrics: metrics},
		metrics:  metrics,
		repeats:  newRepeats(o.Now),
	}
	s.handler = s.routes()
	return s, nil
}

// host is the address to bind, "" for all.
func (o Options) host() (string, error) {
	if o.Address.IsValid() {
		return o.Address.String(), nil
	}
	if o.Interface == "" {
		return "", nil
	}
	iface, err := net.InterfaceByName(o.Interface)
	if err != nil {
		return "", err
	}
	addrs, err := iface.Addrs()
	if err != nil {
		return "", err
	}
	for _, addr := range addrs {
		if p, err := netip.ParsePrefix(addr.String()); err == nil && p.Addr().Is4() {
			return p.Addr().String(), nil
		}
	}
	return "", fmt.Errorf("interface %s has no IPv4 address", o.Interface)
}

// connKey is under which a request's context has its *conn.
type connKey struct{}

// Addr is what the server is bound to.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Handler answers the requests: for tests without a network.
func (s *Server) Handler() http.Handler { return s.handler }

// Close ends a server that never ran; Run closes it otherwise.
func (s *Server) Close() error { return s.listener.Close() }

// Run serves until ctx ends. Transfers then have a few seconds to finish.
func (s *Server) Run(ctx context.Context) error {
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	server := &http.Server{
		Handler:           s.handler,
		Protocols:         protocols,
		ReadHeaderTimeout: s.o.HeaderTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ConnState:         places.ConnState,
		ConnContext:       func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
		// No WriteTimeout: an initrd over a 100 Mbit/s relay takes as long as it takes. See conn.
		ErrorLog: slog.NewLogLogger(s.o.Log.Handler(), slog.LevelDebug),
	}
	if err := httpserve.Run(ctx, server, grace, func() error { return server.Serve(s.listener) }); err != nil {
		return fmt.Errorf("http: %w", err)
	}
	return nil
}
