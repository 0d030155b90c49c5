// Package syslog takes what installers log: `inst.syslog=ADDRESS:PORT` makes Anaconda's rsyslog send everything over
// TCP (RFC 6587). The lines of a machine become a bounded file below data_dir/logs, signs of its life, and its
// progress with the packages.
//
// Nobody can be asked who he is here: a line is the machine's whose address it comes from, and only of one that is
// being installed. Everybody else is turned away and counted.
package syslog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/prometheus/client_golang/prometheus"

	"rackstrap/internal/plain"
	"rackstrap/lifecycle"
)

// Options are the dependencies of a Server, and its limits; a limit of zero is the default.
type Options struct {
	Rack    *lifecycle.Rack
	Log     *slog.Logger
	Now     func() time.Time
	Metrics prometheus.Registerer // nil: nowhere
	Address netip.Addr
	Port    int    // 0: any
	DataDir string // logs are kept below it

	// LinesPerSecond is how much of a machine is taken, with ten times as much at once (500); the rest is dropped,
	// and said to be. An installer logs some 20,000 lines in all.
	LinesPerSecond int
	// MaxConns is how many connections are open at once (1024), and how many of one machine (8): rsyslog has one, but
	// one that died with its machine is noticed only after minutes.
	MaxConns, MaxConnsPerMachine int
	// MaxFile is how large a machine's log becomes before it begins anew (8 MiB); the one before is kept.
	MaxFile int64
}

// keepAlive finds out that a machine was switched off: after three probes without an answer.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 15 * time.Second, Count: 3}

// Server is the receiver, bound to its address.
type Server struct {
	o        Options
	listener net.Listener
	files    files
	metrics  *metrics

	mu    sync.Mutex
	conns map[net.Conn]string      // the machine's name
	lines map[string]*rate.Limiter // by machine: a connection that is made anew has no new budget
}

// Listen binds the receiver.
func Listen(o Options) (*Server, error) {
	o.LinesPerSecond = cmp.Or(o.LinesPerSecond, 500)
	o.MaxConns, o.MaxConnsPerMachine = cmp.Or(o.MaxConns, 1024), cmp.Or(o.MaxConnsPerMachine, 8)
	o.MaxFile = cmp.Or(o.MaxFile, maxFile)
	m, err := newMetrics(o.Metrics)
	if err != nil {
		return nil, fmt.Errorf("syslog: %w", err)
	}
	bind := net.ListenConfig{KeepAliveConfig: keepAlive}
	listener, err := bind.Listen(context.Background(), "tcp4", net.JoinHostPort(o.Address.String(), strconv.Itoa(o.Port)))
	if err != nil {
		return nil, fmt.Errorf("syslog: %w", err)
	}
	return &Server{o: o, listener: listener, metrics: m, conns: map[net.Conn]string{},
		files: files{dataDir: o.DataDir, limit: o.MaxFile, open: map[string]*logFile{}}}, nil
}

// Addr is where it listens.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Close ends a server that never ran; Run closes it otherwise.
func (s *Server) Close() error { return s.listener.Close() }

// Run takes logs until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	var handlers sync.WaitGroup
	defer handlers.Wait()
	stop := context.AfterFunc(ctx, func() {
		s.listener.Close()
		s.closeAll()
	})
	defer stop()
	for {
		conn, err := s.listener.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				conn.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("syslog: %w", err)
		case err != nil: // out of descriptors: it passes
			s.o.Log.Error("syslog: accept", "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		handlers.Go(func() { s.serve(ctx, conn) })
	}
}

// closeAll ends all connections.
func (s *Server) closeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for conn := range s.conns {
		conn.Close()
	}
}

// sender is the machine at the other end of a connection, and the attempt that its lines belong to.
type sender struct {
	name    string
	from    netip.Addr
	attempt int
	tenth   int // of the packages that was last an event; -1: none yet
	dropped int // lines beyond the rate, not said yet
}

// refusal is why a connection is not taken: a label of the metric.
type refusal string

const (
	stranger      refusal = "stranger"       // no machine of the list has this address
	notInstalling refusal = "not-installing" // its installation is over, or has not begun
	tooMany       refusal = "too-many"       // connections
)

// admit tells whose connection it is.
func (s *Server) admit(conn net.Conn) (sender, refusal) {
	peer, err := netip.ParseAddrPort(conn.RemoteAddr().String())
	if err != nil {
		return sender{}, stranger
	}
	from := peer.Addr().Unmap()
	mac, ok := s.o.Rack.MACByIP(from)
	d := s.o.Rack.Decide(mac)
	switch {
	case !ok || !d.Listed || d.Machine.IP != from: // the address of the pool is not the machine's own
		return sender{}, stranger
	case d.Record.State != lifecycle.Installing || !d.Machine.Has(d.Record.MAC):
		return sender{}, notInstalling
	}
	return sender{name: d.Machine.Name, from: from, attempt: d.Record.Attempt, tenth: -1}, ""
}

// register counts a connection; false: there are too many.
func (s *Server) register(conn net.Conn, name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	own := 0
	for _, other := range s.conns {
		if other == name {
			own++
		}
	}
	if len(s.conns) >= s.o.MaxConns || own >= s.o.MaxConnsPerMachine {
		return false
	}
	s.conns[conn] = name
	return true
}

func (s *Server) forget(conn net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, conn)
}

// serve takes one connection to its end.
func (s *Server) serve(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	who, refused := s.admit(conn)
	if refused == "" && !s.register(conn, who.name) {
		refused = tooMany
	}
	if refused != "" {
		s.metrics.refused.WithLabelValues(string(refused)).Inc()
		s.o.Log.Debug("syslog: connection refused", "client", conn.RemoteAddr(), "reason", string(refused))
		return
	}
	defer s.forget(conn)
	if ctx.Err() != nil { // it came between the last accept and closeAll
		return
	}
	s.metrics.connections.Inc()
	defer s.metrics.connections.Dec()
	file, err := s.files.take(who.name)
	if err != nil {
		s.o.Log.Error("the installer's log cannot be kept", "machine", who.name, "err", err)
	} else {
		defer s.files.give(who.name)
	}
	s.receive(conn, who, file)
}

// limitOf is how many lines a machine may send, over all its connections.
func (s *Server) limitOf(name string) *rate.Limiter {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lines == nil {
		s.lines = map[string]*rate.Limiter{}
	}
	if s.lines[name] == nil {
		s.lines[name] = rate.NewLimiter(rate.Limit(s.o.LinesPerSecond), 10*s.o.LinesPerSecond)
	}
	return s.lines[name]
}

// receive reads messages until the stream ends. file is nil where the log cannot be kept: progress is seen still.
func (s *Server) receive(conn net.Conn, who sender, file *logFile) {
	stream := newFrames(conn)
	limit := s.limitOf(who.name)
	broken := false // the file
	keep := func(text string) {
		if file == nil {
			return
		}
		err := file.write(s.o.Now().UTC().Format("2006-01-02T15:04:05Z") + " " + text + "\n")
		if err != nil && !broken {
			s.o.Log.Error("the installer's log cannot be kept", "machine", who.name, "err", err)
		}
		broken = err != nil
	}
	keep(fmt.Sprintf("--- attempt %d, from %s", who.attempt, who.from))
	failure := s.finder(who)
	defer failure.end()
	for {
		line, err := stream.next()
		if err != nil {
			if errors.Is(err, errFraming) {
				s.metrics.dropped.WithLabelValues("framing").Inc()
				s.o.Log.Debug("syslog: connection closed", "machine", who.name, "err", err)
			}
			return
		}
		s.metrics.lines.Inc()
		if stream.cut > 0 {
			s.metrics.dropped.WithLabelValues("too-long").Add(float64(stream.cut))
			stream.cut = 0
		}
		if !limit.AllowN(s.o.Now(), 1) {
			s.metrics.dropped.WithLabelValues("rate").Inc()
			who.dropped++
			continue
		}
		if who.dropped > 0 {
			keep(fmt.Sprintf("--- %d lines were dropped: they came too fast", who.dropped))
			who.dropped = 0
		}
		m := parse(line)
		m.tag, m.text = plain.Line(m.tag, maxTag), s.o.Rack.Redact(who.name, plain.Spaced(m.text, maxLine))
		s.o.Rack.Alive(who.from)
		s.o.Rack.SignOfInstaller(who.from)
		s.packages(&who, m)
		failure.line(m)
		if m.tag != "" {
			m.text = m.tag + ": " + m.text
		}
		keep(m.text)
	}
}

// packages shows how far Anaconda is with its packages, and notes every tenth of the way.
func (s *Server) packages(who *sender, m message) {
	percent, what, ok := packages(m.text)
	if !ok {
		return
	}
	p := lifecycle.Progress{Phase: "packages", Percent: percent, Text: what}
	if !s.o.Rack.Report(who.name, who.attempt, p) || percent/10 <= who.tenth {
		return
	}
	who.tenth = percent / 10
	s.observe(*who, "progress", lifecycle.Info, p.String())
}
