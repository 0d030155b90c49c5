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
	"sync/atomic"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

// Sizes of the packet loop.
const (
	maxPacket     = 2048 // bytes of a request; what is longer is cut, noticed and dropped
	workers       = 256  // requests handled at the same time: most wait for a disk
	listedWorkers = 32   // beside them, for listed machines alone
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
	notes    *notes // of listed machines and of the rack
	strayed  *notes // of all others
	prober   Prober
	scout    *scout       // the real prober; nil if there is none
	checks   atomic.Int64 // conflict checks under way
	backlog  *backlog
	reach    map[bool]*reach // of listed machines (true), and of others
	packets  sync.Pool
	complain *rate.Limiter // log lines about bad packets
	faulty   *rate.Limiter // log lines about faults of the appliance: a full disk fails with every packet
	overload overload
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
	data    []byte
	cut     bool // it was longer than maxPacket
	via     Arrival
	arrived time.Time
	urgency urgency

	req   *dhcpv4.DHCPv4 // data, once it was read
	known verdict        // of the conflict check that it waited for
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
			s.scout.own = func() netip.Prefix { return s.view().subnets[0].prefix }
			s.prober = s.scout.probe
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
		offers: newOffers(), notes: newNotes(maxNotes), strayed: newNotes(maxStrayed), prober: o.Prober,
		foreignTime: foreignTime,
		reach:       map[bool]*reach{true: newReach(), false: newReach()},
		complain:    rate.NewLimiter(rate.Every(5*time.Second), 5),
		faulty:      rate.NewLimiter(rate.Every(5*time.Second), 5),
	}
	s.backlog = newBacklog(func() bool { return s.checks.Load() >= maxChecks })
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
	stop := context.AfterFunc(ctx, func() { s.Close(); s.backlog.close() })
	defer stop()
	for i := range workers + listedWorkers {
		g.Go(func() error { s.work(ctx, i < listedWorkers); return nil })
	}
	g.Go(func() error { s.receive(ctx, s.server); return nil })
	g.Go(func() error { s.receive(ctx, s.pxe); return nil })
	g.Go(func() error { s.watchForeign(ctx); return nil })
	if s.scout != nil {
		g.Go(func() error { s.scout.run(ctx, s.log); return nil })
	}
	return g.Wait()
}

// receive reads packets off a port and has them wait for a worker. It does so little that it keeps up with any flood:
// what the kernel had to drop would be listed machines' packets, too.
func (s *Server) receive(ctx context.Context, l *listener) {
	var in inbox
	pause := time.Millisecond
	for ctx.Err() == nil {
		p := s.packets.Get().(*packet)
		if err := in.read(l, p); err != nil {
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
		if dropped := s.enqueue(p); dropped != nil {
			s.drop(Answer{Drop: DropOverload, Why: "too many packets"}, dropped.via.From)
			s.packets.Put(dropped)
		}
	}
}

// inbox is where one listener's packets are read into.
type inbox struct {
	data [maxPacket]byte
	oob  [64]byte
}

func (in *inbox) read(l *listener, p *packet) error {
	n, oobn, flags, from, err := l.conn.ReadMsgUDPAddrPort(in.data[:], in.oob[:])
	if err != nil {
		return err
	}
	ifindex, to := parsePktinfo(in.oob[:oobn])
	*p = packet{
		from: l, data: append(p.data[:0], in.data[:n]...), cut: flags&unix.MSG_TRUNC != 0,
		via:     Arrival{Interface: ifindex, From: netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), To: to, PXE: l.pxe},
		arrived: time.Now(), // not s.now: the metric measures real time
	}
	return nil
}

// work serves packets until the backlog is closed.
func (s *Server) work(ctx context.Context, onlyListed bool) {
	for {
		p := s.backlog.take(onlyListed)
		if p == nil {
			return
		}
		if s.serve(ctx, p) {
			s.packets.Put(p)
		}
	}
}

// serve is the way of one packet: parse, handle, send. A fault of ours costs this packet alone. done is false for
// a packet that waits for a conflict check; it comes back to the backlog.
func (s *Server) serve(ctx context.Context, p *packet) (done bool) {
	defer func() {
		if fault := recover(); fault != nil {
			done = true
			s.drop(Answer{Drop: DropPanic, Why: fmt.Sprint(fault)}, p.via.From)
			s.fault("packet handling failed: this is a fault of rackstrap", "fault", fault, "from", p.via.From, "stack", string(debug.Stack()))
		}
	}()
	a := s.answer(ctx, p)
	for a.check.IsValid() {
		if s.await(p, a.check) {
			return false
		}
		p.known = p.known.refuse(a.check)
		a = s.answer(ctx, p)
	}
	if a.Reply == nil {
		if a.Drop != "" {
			s.drop(a, p.via.From)
		}
		return true
	}
	// What is sent in the name of a listed machine beyond its share counts as a stranger's.
	if !s.reach[p.urgency == ofListed].allow(a.To.Addr(), s.now()) {
		s.drop(Answer{Drop: DropOverload, Why: "too many new destinations"}, p.via.From)
		return true
	}
	if err := p.from.send(a.Reply.ToBytes(), pktinfo(p.via.Interface, s.address), a.To, p.urgency == ofListed); err != nil {
		s.metrics.failed.Inc()
		s.complaint("reply cannot be sent", "to", a.To, "mac", a.Reply.ClientHWAddr.String(), "err", err)
		return true
	}
	counterOf(&s.metrics.sentOf, a.Reply.MessageType()).Inc()
	s.metrics.handling.Observe(time.Since(p.arrived).Seconds())
	return true
}

// await has a packet come back to the backlog when the conflict check of an address is done; false: too many are
// under way.
func (s *Server) await(p *packet, ip netip.Addr) bool {
	p.req = nil // to be read again: many wait, for half a second
	return s.check(ip, func(found verdict) {
		found.tries += p.known.tries
		p.known = found
		if s.backlog.goOn(p) != nil {
			s.abandon(p)
		}
	})
}

// abandon drops a packet whose conflict check was in vain, and what was kept for its client.
func (s *Server) abandon(p *packet) {
	s.drop(Answer{Drop: DropOverload, Why: "too many packets"}, p.via.From)
	if of, ok := s.offers.drop(peek(p.data).mac); ok {
		s.freeUnlessLeased(s.view(), of.ip)
	}
	s.packets.Put(p)
}

// answer works out what a packet gets, as far as its conflict check has come.
func (s *Server) answer(ctx context.Context, p *packet) Answer {
	switch {
	case p.cut:
		return Answer{Drop: DropTruncated, Why: fmt.Sprintf("longer than %d bytes", maxPacket)}
	case s.ifindex != 0 && p.via.Interface != s.ifindex:
		return Answer{Drop: DropInterface, Why: "not from " + s.iface}
	}
	if p.req == nil {
		data, deviations := tolerate(p.data)
		for _, d := range deviations {
			s.metrics.deviated.WithLabelValues(d).Inc()
		}
		req, err := dhcpv4.FromBytes(data)
		if err != nil {
			return Answer{Drop: DropMalformed, Why: err.Error()}
		}
		p.req = req
		if !p.known.ip.IsValid() { // not counted yet
			counterOf(&s.metrics.receivedOf, req.MessageType()).Inc()
		}
	}
	return s.handle(ctx, p.req, p.via, p.known)
}

// drop counts a packet without a reply. Those that nobody can have meant are logged, a few.
func (s *Server) drop(a Answer, from netip.AddrPort) {
	s.metrics.dropped.WithLabelValues(string(a.Drop)).Inc()
	switch a.Drop {
	case DropOverload:
		s.overloaded(from)
	case DropMalformed, DropTruncated:
		s.complaint("packet dropped", "from", from, "reason", a.Drop, "why", a.Why)
	}
}

// complaint logs about a peer, but never a storm of lines.
func (s *Server) complaint(msg string, args ...any) {
	if s.complain.Allow() {
		s.log.Warn(msg, args...)
	}
}

// fault logs about the appliance itself, neither a storm.
func (s *Server) fault(msg string, args ...any) {
	if s.faulty.Allow() {
		s.log.Error(msg, args...)
	}
}

// overloadEvery is how often the operator is reminded of dropped packets.
const overloadEvery = 10 * time.Second

// overload counts what was dropped because more came in than could be served.
type overload struct {
	mu       sync.Mutex
	packets  int
	reported time.Time
}

// overloaded counts a packet, and reports how many there were, at most every overloadEvery.
func (s *Server) overloaded(from netip.AddrPort) {
	now := s.now()
	s.overload.mu.Lock()
	s.overload.packets++
	n := s.overload.packets
	due := now.Sub(s.overload.reported) >= overloadEvery
	if due {
		s.overload.packets, s.overload.reported = 0, now
	}
	s.overload.mu.Unlock()
	if due {
		s.note(inventory.MAC{}, lifecycle.Warn, "overload",
			fmt.Sprintf("more packets arrive than can be answered: %d dropped, the last one from %s", n, from.Addr()))
	}
}
