package dhcp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime/debug"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"rackstrap/lifecycle"
)

// Sizes of the packet loop.
const (
	maxPacket = 2048 // bytes of a request; what is longer is cut, noticed and dropped
	queueSize = 2048 // requests that wait for a worker
	workers   = 256  // requests handled at the same time, beside those that wait for a conflict check: most wait for a disk
	maxProbes = 2048 // conflict checks at the same time, one for each new client; in some 20 MiB
)

// Server is a DHCP server, bound to its ports.
type Server struct {
	rack    *lifecycle.Rack
	boot    Boot
	log     *slog.Logger
	now     func() time.Time
	metrics *metrics

	iface        string
	ifindex      int
	address      netip.Addr
	addressBytes net.IP
	addressText  string
	httpPort     int
	clientPort   int
	relayPort    int

	server *listener // nil in tests that only call Handle
	pxe    *listener

	views    viewer
	offers   *offers
	notes    *notes
	prober   Prober
	scout    *scout // the real prober; nil if there is none
	probing  chan struct{}
	standIns sync.WaitGroup // for workers that wait for a conflict check
	queue    chan *packet
	packets  sync.Pool
	complain *rate.Limiter // log lines about bad packets
	foreign  foreignList

	foreignTime time.Duration // of one look for other servers; tests shorten it
}

// listener is one bound port.
type listener struct {
	conn *net.UDPConn
	pxe  bool
}

// packet is a datagram on its way from a socket to a worker.
type packet struct {
	from    *listener
	data    [maxPacket]byte
	size    int
	oob     [64]byte
	via     Arrival
	arrived time.Time
}

// Listen binds the server's ports, so that a fault shows before anything runs. Its errors are *PortError,
// or about the interface.
func Listen(o Options) (*Server, error) {
	s, err := newServer(o)
	if err != nil {
		return nil, err
	}
	proxyPort := o.ProxyPort
	if proxyPort == 0 && o.Port != 0 {
		proxyPort = portPXE
	}
	for _, l := range []struct {
		port int
		pxe  bool
		into **listener
	}{{o.Port, false, &s.server}, {proxyPort, true, &s.pxe}} {
		conn, err := bind(o.Interface, l.port)
		if err != nil {
			s.Close()
			return nil, err
		}
		*l.into = &listener{conn, l.pxe}
	}
	if s.prober == nil && o.Interface != "" {
		if s.scout, err = newScout(o.Interface); err != nil {
			// Without CAP_NET_RAW the rest still works, and DECLINE remains.
			s.log.Warn("pool addresses are offered without a conflict check", "err", err)
		} else {
			s.prober = s.scout.inUse(func() netip.Prefix { return s.view().subnets[0].prefix })
		}
	}
	return s, nil
}

// newServer makes a server without sockets: all that Handle needs.
func newServer(o Options) (*Server, error) {
	if !o.Address.Is4() {
		return nil, fmt.Errorf("dhcp: server.address %s is no IPv4 address", o.Address)
	}
	s := &Server{
		rack: o.Rack, boot: o.Boot, log: o.Log.With("source", "dhcp"), now: o.Now, metrics: newMetrics(o.Metrics),
		iface: o.Interface, address: o.Address, addressBytes: o.Address.AsSlice(), addressText: o.Address.String(),
		httpPort: o.HTTPPort, clientPort: o.ClientPort, relayPort: o.Port,
		offers: newOffers(), notes: newNotes(), prober: o.Prober,
		foreignTime: foreignTime,
		probing:     make(chan struct{}, maxProbes),
		queue:       make(chan *packet, queueSize),
		complain:    rate.NewLimiter(rate.Every(5*time.Second), 5),
	}
	s.packets.New = func() any { return &packet{} }
	if s.clientPort == 0 {
		s.clientPort = portClient
	}
	if s.relayPort == 0 {
		s.relayPort = portServer
	}
	if o.Interface != "" {
		nic, err := net.InterfaceByName(o.Interface)
		if err != nil {
			return nil, fmt.Errorf("dhcp: interface %s: %w", o.Interface, err)
		}
		s.ifindex = nic.Index
	}
	if o.Metrics != nil {
		o.Metrics.MustRegister(newPoolGauge(s))
	}
	return s, nil
}

// Addrs are the addresses bound: the server port and the PXE port.
func (s *Server) Addrs() []net.Addr {
	return []net.Addr{s.server.conn.LocalAddr(), s.pxe.conn.LocalAddr()}
}

// Close gives the ports back. Run does so itself.
func (s *Server) Close() error {
	var errs []error
	for _, l := range []*listener{s.server, s.pxe} {
		if l != nil {
			errs = append(errs, l.conn.Close())
		}
	}
	if s.scout != nil {
		errs = append(errs, s.scout.close())
	}
	return errors.Join(errs...)
}

// Run serves until ctx ends, and then closes the ports. No packet ends it.
func (s *Server) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	for range workers {
		g.Go(func() error { s.work(ctx, nil); return nil })
	}
	g.Go(func() error { s.receive(ctx, s.server); return nil })
	g.Go(func() error { s.receive(ctx, s.pxe); return nil })
	g.Go(func() error { s.watchForeign(ctx); return nil })
	if s.scout != nil {
		g.Go(func() error { s.scout.run(ctx, s.log); return nil })
	}
	err := g.Wait()
	s.standIns.Wait() // begun by workers, which have ended, or by one another
	return err
}

// receive reads packets off a port and queues them.
func (s *Server) receive(ctx context.Context, l *listener) {
	pause := time.Millisecond
	for ctx.Err() == nil {
		p := s.packets.Get().(*packet)
		if err := s.read(l, p); err != nil {
			s.packets.Put(p)
			if ctx.Err() != nil {
				return
			}
			s.complaint("cannot receive", "err", err)
			select { // the NIC may come back
			case <-ctx.Done():
			case <-time.After(pause):
			}
			pause = min(2*pause, time.Second)
			continue
		}
		pause = time.Millisecond
		select {
		case s.queue <- p:
		default:
			s.drop(Answer{Drop: DropOverload, Why: "too many packets"}, p.via.From)
			s.packets.Put(p)
		}
	}
}

func (s *Server) read(l *listener, p *packet) error {
	n, oobn, flags, from, err := l.conn.ReadMsgUDPAddrPort(p.data[:], p.oob[:])
	if err != nil {
		return err
	}
	p.from, p.size, p.arrived = l, n, time.Now() // not s.now: the metric measures real time
	if flags&unix.MSG_TRUNC != 0 {
		p.size = -1
	}
	ifindex, to := parsePktinfo(p.oob[:oobn])
	p.via = Arrival{Interface: ifindex, From: netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), To: to, PXE: l.pxe}
	return nil
}

// work handles packets of the queue, until ctx ends or, for a stand-in, the worker is back that it stands in for.
func (s *Server) work(ctx context.Context, back <-chan struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-back:
			return
		case p := <-s.queue:
			s.serve(ctx, p)
			s.packets.Put(p)
		}
	}
}

// serve is the way of one packet: parse, handle, send. A fault of ours costs this packet alone.
func (s *Server) serve(ctx context.Context, p *packet) {
	defer func() {
		if fault := recover(); fault != nil {
			s.drop(Answer{Drop: DropPanic, Why: fmt.Sprint(fault)}, p.via.From)
			s.log.Error("packet handling failed: this is a fault of rackstrap", "fault", fault, "from", p.via.From, "stack", string(debug.Stack()))
		}
	}()
	a := s.answer(ctx, p)
	if a.Reply == nil {
		if a.Drop != "" {
			s.drop(a, p.via.From)
		}
		return
	}
	_, _, err := p.from.conn.WriteMsgUDPAddrPort(a.Reply.ToBytes(), pktinfo(p.via.Interface, s.address), a.To)
	if err != nil {
		s.metrics.failed.Inc()
		s.complaint("reply cannot be sent", "to", a.To, "mac", a.Reply.ClientHWAddr, "err", err)
		return
	}
	counterOf(&s.metrics.sentOf, a.Reply.MessageType()).Inc()
	s.metrics.handling.Observe(time.Since(p.arrived).Seconds())
}

func (s *Server) answer(ctx context.Context, p *packet) Answer {
	switch {
	case p.size < 0:
		return Answer{Drop: DropTruncated, Why: fmt.Sprintf("longer than %d bytes", maxPacket)}
	case s.ifindex != 0 && p.via.Interface != s.ifindex:
		return Answer{Drop: DropInterface, Why: "not from " + s.iface}
	}
	req, err := dhcpv4.FromBytes(p.data[:p.size])
	if err != nil {
		return Answer{Drop: DropMalformed, Why: err.Error()}
	}
	counterOf(&s.metrics.receivedOf, req.MessageType()).Inc()
	return s.Handle(ctx, req, p.via)
}

// drop counts a packet without a reply. Those that nobody can have meant are logged, a few.
func (s *Server) drop(a Answer, from netip.AddrPort) {
	s.metrics.dropped.WithLabelValues(string(a.Drop)).Inc()
	switch a.Drop {
	case DropMalformed, DropTruncated, DropOverload:
		s.complaint("packet dropped", "from", from, "reason", a.Drop, "why", a.Why)
	}
}

// complaint logs about a peer, but never a storm of lines.
func (s *Server) complaint(msg string, args ...any) {
	if s.complain.Allow() {
		s.log.Warn(msg, args...)
	}
}
