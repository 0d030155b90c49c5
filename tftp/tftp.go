// Package tftp serves boot files over TFTP (RFC 1350) with the options blksize (RFC 2348) and tsize (RFC
// 2349), read only.
//
// pin/tftp v3 carries the transfers out. In front of it stands front, a net.PacketConn on the well-known
// port that puts requests in a form which pin/tftp takes right, answers what it would answer wrongly, and
// limits how many transfers run. Left out on purpose: windowsize (RFC 7440), which pin/tftp does not have
// (its SetAnticipate is something else) and UEFI lives without; and its single-port mode, which is slower
// and has races. Everything large goes by HTTP.
package tftp

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"time"

	pin "github.com/pin/tftp/v3"
	"github.com/prometheus/client_golang/prometheus"

	"rackstrap/bootplan"
	"rackstrap/internal/places"
	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

// Rack is what the server needs of the lifecycle: *lifecycle.Rack.
type Rack interface {
	Observe(lifecycle.Event)
	MACByIP(netip.Addr) (inventory.MAC, bool)
	ListedAddress(netip.Addr) bool
}

// Files opens the file of that name for a client: *bootplan.Plan. The name comes from the wire as it is, and
// Files makes it clean. Errors: *bootplan.Refusal, fs.ErrNotExist, fs.ErrInvalid for a name that cannot be;
// everything else is a fault of the appliance, and only logged.
type Files interface {
	Open(name string, client netip.Addr) (*bootplan.File, error)
}

// Options are the dependencies and settings of a Server.
type Options struct {
	Rack    Rack
	Files   Files
	Log     *slog.Logger
	Now     func() time.Time
	Metrics prometheus.Registerer // nil for none

	Interface string     // bind to this NIC alone; "" for any
	Address   netip.Addr // answer from this address; not valid for any
	Port      int        // 0 for any free one: for tests

	Places places.Limits // of transfers that run at the same time; zero for defaultPlaces
}

// defaultPlaces: firmware has one transfer, and a second one when it begins anew. Strangers' addresses can be made up:
// what they get and Settle bound what this server sends to whom never asked, to 128 packets in 250 ms.
var defaultPlaces = places.Limits{Total: 512, Each: 8, Strangers: 128, StrangersEach: 4, Settle: 250 * time.Millisecond}

// pace is how patient the server is.
type pace struct {
	timeout time.Duration // for one acknowledgement, before the block is sent again
	retries int           // before the client is taken for gone
	first   int           // how often the first packet is sent, before which nobody has shown that the client exists
	strange int           // the same to an address of no machine of the list
	grace   time.Duration // for running transfers when the server stops
}

// defaultPace sends again every second, as all known servers do at first, and does not slow down: one small
// packet a second harms no network, and a client that came back is served at once. Firmware gives up after
// some 15 to 30 s itself. The first packet can do with few tries: until the client has it, it repeats its request itself,
// edk2 after 3 s and five times more (Mtftp4Impl.h, MTFTP4_DEFAULT_TIMEOUT and _RETRY), iPXE by its timer of
// retransmissions (tftp.c, tftp_timer_expired).
var defaultPace = pace{timeout: time.Second, retries: 15, first: 4, strange: 2, grace: 3 * time.Second}

// Server is a TFTP server that is bound.
type Server struct {
	Options
	endpoint  endpoint
	pace      pace
	front     *front
	pin       *pin.Server
	transfers *transfers
	metrics   *metrics
	throttle  *throttle
}

// Listen binds the port.
func Listen(o Options) (*Server, error) { return listen(o, defaultPace) }

func listen(o Options, p pace) (*Server, error) {
	pool, err := places.New(places.Options{Plane: "tftp", Limits: cmp.Or(o.Places, defaultPlaces), Listed: o.Rack.ListedAddress, Metrics: o.Metrics,
		Report: func(text string) {
			o.Rack.Observe(lifecycle.Event{Time: o.Now(), Source: "tftp", Kind: "places", Level: lifecycle.Warn, Text: "transfers: " + text})
		}})
	if err != nil {
		return nil, fmt.Errorf("tftp: %w", err)
	}
	s := &Server{Options: o, pace: p, endpoint: endpoint{o.Interface, o.Address}, transfers: newTransfers(pool, o.Now), throttle: newThrottle()}
	if s.metrics, err = newMetrics(o.Metrics); err != nil {
		return nil, fmt.Errorf("tftp: metrics: %w", err)
	}
	conn, err := s.endpoint.listen(o.Port)
	if err != nil {
		return nil, fmt.Errorf("tftp: %w", err)
	}
	s.front = newFront(conn, s)
	s.pin = pin.NewServer(s.serve, nil)
	s.pin.SetHook(s.front)
	s.pin.SetTimeout(p.timeout)
	s.pin.SetRetries(p.retries)
	s.pin.SetBackoff(func(int) time.Duration { return 0 }) // it would sleep through acknowledgements
	s.pin.SetBlockSizeNegotiation(false)                   // behind a PacketConn it would stop at 512; front has lowered it
	return s, nil
}

// Addr is where the server listens.
func (s *Server) Addr() net.Addr { return s.front.LocalAddr() }

// Close closes the port. After Run it has nothing to do.
func (s *Server) Close() error { return s.front.Close() }

// Run serves until ctx ends. Transfers that run then have a few seconds to come to their end.
func (s *Server) Run(ctx context.Context) error {
	served := make(chan error, 1)
	go func() { served <- s.pin.Serve(s.front) }()
	select {
	case err := <-served:
		return fmt.Errorf("tftp: ended by itself: %w", err)
	case <-s.front.drained: // closed from outside
	case <-ctx.Done():
	}
	s.transfers.close()
	s.front.Close()
	<-s.front.drained // from here on pin/tftp begins nothing new, so that it can wait for what runs
	impatience := time.AfterFunc(s.pace.grace, func() { s.transfers.endAll(errStopping) })
	defer impatience.Stop()
	s.pin.Shutdown()
	return <-served
}

// The errors that clients are told by a fixed text; what is behind them is in the log.
var (
	errFault    = &protocolError{codeUndefined, "appliance fault, see its log", endFault}
	errStopping = &protocolError{codeUndefined, "the appliance stops, try again", endStopped}
)

// serve carries one transfer out. It is called by pin/tftp, in a goroutine of its own, and never returns nil:
// pin/tftp would leak the socket of a transfer that sent nothing.
func (s *Server) serve(_ string, out io.ReaderFrom) error {
	peer := out.(pin.OutgoingTransfer).RemoteAddr()
	t, ok := s.transfers.claim(clientOf(&peer))
	if !ok {
		return errFault
	}
	defer s.transfers.release(t)
	s.metrics.active.Inc()
	defer s.metrics.active.Dec()
	s.finish(t, s.transfer(t, out))
	return errFault // goes nowhere: by now the socket is closed
}

// transfer sends the file and tells how that went.
func (s *Server) transfer(t *transfer, out io.ReaderFrom) result {
	conn, err := s.endpoint.listen(0)
	if err != nil {
		return result{ending: endFault, err: fmt.Errorf("open a socket: %w", err)}
	}
	defer conn.Close()
	line, err := dedicate(conn, t.client, s.pace.timeout)
	if err != nil {
		return result{ending: endFault, err: fmt.Errorf("set up a socket: %w", err)}
	}
	if err := rebind(out, conn); err != nil {
		return result{ending: endFault, err: err}
	}
	silent := time.AfterFunc(s.patience(t), t.expire)
	defer silent.Stop()
	if err := t.attach(conn); err != nil {
		return result{ending: t.endedBy().ending, err: err}
	}
	file, err := s.Files.Open(t.name, t.client.Addr())
	if err != nil {
		reply := replyTo(t.name, err)
		conn.WriteToUDPAddrPort(reply.packet(), t.client) // best effort: a client that misses it asks again
		return result{ending: reply.ending, told: toldOf(reply, err), err: err}
	}
	defer file.Close()
	if t.mode == "octet" { // only there is the file as long on the wire as on the disk
		out.(pin.OutgoingTransfer).SetSize(file.Size)
	}
	content := newContent(file, t, s.Now, func() { line.block(s.transfers.few()) })
	_, err = out.ReadFrom(content)
	return content.result(err)
}

// patience is how long a transfer waits for its first acknowledgement: until half way to one packet more than it may
// have.
func (s *Server) patience(t *transfer) time.Duration {
	tries := s.pace.strange
	if t.place.Listed() {
		tries = s.pace.first
	}
	return time.Duration(tries)*s.pace.timeout - s.pace.timeout/2
}

// clientOf is the address of a client; that of IPv4 is never in its IPv6 form.
func clientOf(a *net.UDPAddr) netip.AddrPort {
	ap := a.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
