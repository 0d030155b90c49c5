// Package firstboot is the node plane: what machines say to the appliance over HTTPS, from the end of their
// installation on. The calls and their bodies are those of package api; what follows from them, package cluster decides.
// This package carries it: TLS with the appliance's own CA, who may call at all, limits, statuses, and the logs that
// agents leave here.
//
// A machine proves itself with the token of its attempt, which only its kickstart holds, and later with the credential
// that the token was exchanged for; it names its attempt, and must call from its reserved address. 400: not understood;
// 401: not its token; 403: not its address or MAC; 404: no such machine or work; 409: not possible in its state; 410: a
// newer attempt has superseded it; 413: too large; 423: held by the operator; 429: too many calls; 503: a fault of the appliance, try again.
package firstboot

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"rackstrap/cluster"
	"rackstrap/internal/httpserve"
	"rackstrap/internal/places"
	"rackstrap/lifecycle"
)

// Options are the dependencies of a Server, and its limits; a limit of zero is the default.
type Options struct {
	Rack      *lifecycle.Rack
	Cluster   *cluster.Coordinator
	Authority *Authority
	Log       *slog.Logger
	Now       func() time.Time
	Metrics   prometheus.Registerer // where the counters go; nil: nowhere
	LogDir    string                // where agents' logs are kept; "": nowhere, and they are refused
	Address   netip.Addr
	Port      int // 0: any

	Places      places.Limits // of connections
	CallsEach   float64       // calls a second from one address (1000), and four times as many at once
	RefusedEach float64       // refused calls a second from one address (1), and thirty times as many at once
}

// Limits of a connection.
const (
	headerTimeout = 10 * time.Second
	bodyTimeout   = 30 * time.Second
	answerTimeout = 30 * time.Second
	idleTimeout   = 2 * time.Minute // longer than an agent's pauses: a new handshake costs more than an idle connection
	maxHeader     = 16 << 10
	maxWait       = 60 * time.Second // of a question for work
)

// defaultPlaces: an agent has one connection or two, and nobody else has anything to say here.
var defaultPlaces = places.Limits{Total: 4096, Each: 64, Strangers: 256, StrangersEach: 8}

// Server is the node plane.
type Server struct {
	o        Options
	listener net.Listener
	http     *http.Server
	tls      *certificates
	limits   *limits
	metrics  *metrics
	logs     *logs
}

// Listen binds the node plane.
func Listen(o Options) (*Server, error) {
	setDefault(&o.Places, defaultPlaces)
	setDefault(&o.CallsEach, 1000)
	setDefault(&o.RefusedEach, 1)
	metrics, err := newMetrics(o.Metrics)
	if err != nil {
		return nil, fmt.Errorf("node plane: %w", err)
	}
	s := &Server{o: o, metrics: metrics, limits: newLimits(o), logs: &logs{dir: o.LogDir},
		tls: &certificates{authority: o.Authority, now: o.Now, address: o.Address}}
	if _, err := s.tls.get(nil); err != nil {
		return nil, fmt.Errorf("node plane: certificate: %w", err)
	}
	pool, err := places.New(places.Options{Plane: "node", Limits: o.Places, Listed: o.Rack.ListedAddress, Metrics: o.Metrics,
		Report: func(text string) {
			o.Rack.Observe(lifecycle.Event{Source: "node", Kind: "places", Level: lifecycle.Warn, Text: "connections: " + text})
		}})
	if err != nil {
		return nil, fmt.Errorf("node plane: %w", err)
	}
	bound, err := net.Listen("tcp4", net.JoinHostPort(o.Address.String(), strconv.Itoa(o.Port)))
	if err != nil {
		return nil, fmt.Errorf("node plane: %w", err)
	}
	s.listener = places.Listen(bound, pool)
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true) // one connection a machine: HTTP/2 would only cost memory
	s.http = &http.Server{
		Handler:   s.routes(),
		Protocols: protocols,
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS12, CipherSuites: suites, GetCertificate: s.tls.get},
		ConnState: places.ConnState,
		ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
			return context.WithValue(ctx, madeKey{}, time.Now()) // not the injected clock, which tests move meanwhile
		},
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       bodyTimeout,
		WriteTimeout:      answerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug), // failed handshakes: the peer's affair
	}
	return s, nil
}

// madeKey is where the context of a call has the time at which its connection was made.
type madeKey struct{}

func setDefault[T comparable](field *T, value T) {
	if *field == *new(T) {
		*field = value
	}
}

// Addr is where it listens.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Close ends a server that never ran.
func (s *Server) Close() error { return s.listener.Close() }

// Run serves until ctx ends. Questions for work that wait then are answered with 503 at once.
func (s *Server) Run(ctx context.Context) error {
	s.http.BaseContext = func(net.Listener) context.Context { return ctx }
	return httpserve.Run(ctx, s.http, 5*time.Second, func() error { return s.http.ServeTLS(s.listener, "", "") })
}
