package dhcp

import (
	"context"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/stretchr/testify/require"

	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

// arrive puts a message into the backlog as if it came by a relay agent, or by broadcast.
func (r *rig) arrive(req *dhcpv4.DHCPv4) (*packet, bool) {
	p := &packet{data: req.ToBytes(), arrived: r.now(), via: Arrival{Interface: 2, From: netip.MustParseAddrPort("0.0.0.0:68"), To: broadcast}}
	return p, r.enqueue(p) == nil
}

// serveNext handles the packet whose turn it is, and returns whose it was.
func (r *rig) serveNext(onlyListed bool) inventory.MAC {
	r.t.Helper()
	r.backlog.mu.Lock()
	p := r.backlog.next(onlyListed)
	r.backlog.mu.Unlock()
	if p == nil {
		return inventory.MAC{}
	}
	r.answer(r.t.Context(), p)
	return peek(p.data).mac
}

// TestListedComeFirst: however many strangers wait, a listed machine is served next; then whoever was promised an
// address; then strangers, from each network in turn.
func TestListedComeFirst(t *testing.T) {
	r := newRig(t, config())
	r.ask(discover(mac(7))) // has an offer from here on
	for i := range 10 * maxStrangers {
		_, ok := r.arrive(discover(mac(1000 + i)))
		require.Equal(t, i < maxStrangers, ok, "the one that waits for the longest time is dropped")
	}
	for i := range 2 {
		_, ok := r.arrive(discover(mac(100_000+i), giaddr(relay)))
		require.True(t, ok, "another network has room of its own")
	}
	alone, _ := r.arrive(request(mac(8), server(ours), wants(addr(230))))
	require.Equal(t, ofStranger, alone.urgency, "a REQUEST alone is no promise")
	promised, ok := r.arrive(request(mac(7), server(ours), wants(addr(230))))
	require.True(t, ok)
	require.Equal(t, ofPromised, promised.urgency)
	for _, listed := range []inventory.MAC{macMaster, macNode} {
		_, ok = r.arrive(discover(listed))
		require.True(t, ok)
	}
	require.Equal(t, macMaster, r.serveNext(false))
	require.Equal(t, macNode, r.serveNext(true))
	require.Zero(t, r.serveNext(true), "workers of listed machines take nothing else")
	require.Equal(t, mac(7), r.serveNext(false))
	var order []inventory.MAC
	for range 5 {
		order = append(order, r.serveNext(false))
	}
	require.Subset(t, order[:4], []inventory.MAC{mac(100_000), mac(100_001)}, "in turn with the flood of the other network")
	newest := 1000 + 10*maxStrangers - 1
	require.Subset(t, order, []inventory.MAC{mac(8), mac(newest), mac(newest - 1)}, "the newest first: who waits for long has given up")
}

// TestListedMACHasAShare: who sends in the name of a listed machine is not urgent for long, and takes nothing from
// others.
func TestListedMACHasAShare(t *testing.T) {
	r := newRig(t, config())
	urgency := func(req *dhcpv4.DHCPv4) urgency {
		p, ok := r.arrive(req)
		require.True(t, ok)
		return p.urgency
	}
	for range listedShare {
		require.Equal(t, ofListed, urgency(discover(macMaster)))
	}
	require.Equal(t, ofExcess, urgency(discover(macMaster)))
	require.Equal(t, ofPromised, urgency(request(macMaster, server(ours), wants(masterIP))), "an exchange that began is brought to its end")
	require.Equal(t, ofListed, urgency(discover(macNode)))
	r.clock.forward(time.Second)
	require.Equal(t, ofListed, urgency(discover(macMaster)))
	for i := range 10 * maxListed {
		r.arrive(discover(macMaster))
		if i%2 == 0 {
			r.clock.forward(time.Second / listedShare)
		}
	}
	require.LessOrEqual(t, r.backlog.excess.size, maxListed)
	require.Less(t, r.backlog.listed.size, maxListed+1)
}

// TestPeek: what is no DHCP message is nobody's, and reading it never fails (see FuzzHandle, too).
func TestPeek(t *testing.T) {
	whole := request(macMaster, giaddr(relay), option(12, 'x'), option(82, 1, 1, 1)).ToBytes()
	require.Equal(t, header{macMaster, relay, dhcpv4.MessageTypeRequest}, peek(whole))
	require.Zero(t, peek(whole[:offOptions-1]))
	for i := offOptions; i < len(whole); i++ {
		require.Equal(t, macMaster, peek(whole[:i]).mac)
	}
	padded := append(append(whole[:offOptions:offOptions], 0, 0, 0), whole[offOptions:]...)
	require.Equal(t, dhcpv4.MessageTypeRequest, peek(padded).kind)
}

// slowDisk is a store whose disk takes leases only when the test lets it.
type slowDisk struct {
	*lifecycle.MemoryStore
	writing atomic.Int32 // leases that came to it
	gate    chan struct{}
}

func (s *slowDisk) PutLease(ctx context.Context, l lifecycle.Lease) error {
	s.writing.Add(1)
	<-s.gate
	return s.MemoryStore.PutLease(ctx, l)
}

// TestSlowDiskHoldsNoListedMachineUp: strangers that wait for the disk keep every common worker busy.
func TestSlowDiskHoldsNoListedMachineUp(t *testing.T) {
	disk := &slowDisk{MemoryStore: lifecycle.NewMemoryStore(), gate: make(chan struct{})}
	s, dial, _ := running(t, bootTable{}, func(o *Options) {
		rack, err := lifecycle.New(t.Context(), o.Rack.Config(), lifecycle.Options{Store: disk, Log: o.Log, Now: time.Now})
		require.NoError(t, err)
		o.Rack = rack
	})
	defer close(disk.gate)
	client := dial(false)
	for i := 0; disk.writing.Load() < workers; i++ { // packets may get lost
		ip := netip.AddrFrom4([4]byte{127, 0, byte(1 + i/250%8), byte(1 + i%250)})
		_, err := client.WriteTo(request(mac(i), server(loopback), wants(ip)).ToBytes(), &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: s.Addrs()[0].(*net.UDPAddr).Port})
		require.NoError(t, err)
		time.Sleep(100 * time.Microsecond)
	}
	require.Equal(t, ackT, ask(t, s, client, request(macMaster, ciaddr(loopback)).ToBytes()).MessageType())
}

// countingStore counts the leases that are written.
type countingStore struct {
	*lifecycle.MemoryStore
	leases int
}

func (s *countingStore) PutLease(ctx context.Context, l lifecycle.Lease) error {
	s.leases++
	return s.MemoryStore.PutLease(ctx, l)
}

// TestRepeatedREQUESTWritesNothing: a storm of repetitions is none of the disk, and what is on disk always lasts as long
// as what the client was told.
func TestRepeatedREQUESTWritesNothing(t *testing.T) {
	store := &countingStore{MemoryStore: lifecycle.NewMemoryStore()}
	r := newRig(t, config())
	r.keepIn(store)
	for i := range 1000 {
		if i == 500 {
			r.clock.forward(quietTime)
		}
		require.Equal(t, ackT, kindOf(r.ask(request(macUnknown, server(ours), wants(addr(230))))))
	}
	require.Equal(t, 1, store.leases)
	r.clock.forward(time.Second)
	require.Equal(t, ackT, kindOf(r.ask(request(macUnknown, server(ours), wants(addr(230))))))
	require.Equal(t, 2, store.leases)
	l, _ := r.rack.LeaseOf(macUnknown)
	require.False(t, l.Expires.Before(r.now().Add(config().Network.DHCP.LeaseTime)))
}

// TestParkedPacketComesBack: a packet whose conflict check is done is answered before strangers who come anew; if it
// finds no room, what was kept for its client is free again.
func TestParkedPacketComesBack(t *testing.T) {
	var prober held
	r := newRig(t, config(), func(o *Options) { o.Prober = prober.probe })
	free := r.view().subnets[0].pool.free
	p := &packet{data: discover(macUnknown).ToBytes(), via: Arrival{Interface: 2, To: broadcast}, urgency: ofStranger}
	require.False(t, r.serve(t.Context(), p), "it waits, and no worker with it")
	require.Equal(t, free-1, r.view().subnets[0].pool.free)
	_, ok := r.arrive(discover(mac(1)))
	require.True(t, ok)
	prober.end()
	require.Equal(t, macUnknown, r.serveNext(false))
	of, _ := r.offers.get(macUnknown)
	require.True(t, of.ready)

	p = &packet{data: discover(macOther).ToBytes(), via: Arrival{Interface: 2, To: broadcast}, urgency: ofStranger}
	require.False(t, r.serve(t.Context(), p))
	r.backlog.close()
	prober.end()
	require.False(t, r.offers.has(macOther))
	require.Equal(t, free-1, r.view().subnets[0].pool.free, "only the first one has an address")
}

// TestStrangersWaitForAConflictCheck: while no further check can begin, strangers are left where they cost nothing.
func TestStrangersWaitForAConflictCheck(t *testing.T) {
	var prober held
	r := newRig(t, config(wide), func(o *Options) { o.Prober = prober.probe })
	for i := range maxChecks {
		require.False(t, r.serve(t.Context(), &packet{data: discover(mac(i)).ToBytes(), via: Arrival{Interface: 2, To: broadcast}}))
	}
	for _, client := range []inventory.MAC{macUnknown, macMaster} {
		_, ok := r.arrive(discover(client))
		require.True(t, ok)
	}
	require.Equal(t, macMaster, r.serveNext(false))
	require.Zero(t, r.serveNext(false))
	prober.end()
	for i := range maxChecks {
		require.Equal(t, mac(i), r.serveNext(false))
	}
	require.Equal(t, macUnknown, r.serveNext(false))
}

// TestConflictVerdicts: an address in use leads to the next one, and a packet does not go on for ever.
func TestConflictVerdicts(t *testing.T) {
	asked := 0
	r := newRig(t, config(), func(o *Options) {
		o.Prober = func(_ netip.Addr, done func(bool, string)) { asked++; done(true, "52:54:00:00:00:aa") }
	})
	require.Equal(t, allInUse, r.ask(discover(macUnknown)).Why)
	require.Equal(t, maxTries, asked)
	require.False(t, r.offers.has(macUnknown))
	require.Len(t, r.rack.Leases(), maxTries, "quarantined")
}

// TestReachIsBounded: addresses that are made up cost their maker the replies, not the others.
func TestReachIsBounded(t *testing.T) {
	now, r := time.Unix(1000, 0), newReach()
	require.True(t, r.allow(relay, now))
	sent := 0
	for i := range 100_000 {
		if r.allow(addr4(0x0a000000+uint32(i)), now) {
			sent++
		}
	}
	require.Equal(t, destinationsAtOnce-1, sent)
	require.True(t, r.allow(relay, now), "sent to lately")
	require.True(t, r.allow(broadcast, now))
	for i := range 4 * maxRecent {
		now = now.Add(time.Second / 32)
		r.allow(addr4(0x0b000000+uint32(i)), now)
	}
	require.LessOrEqual(t, len(r.last), maxRecent)
}

// TestDeclinesDoNotEmptyThePool: whoever makes up MACs can have no more than a part of the pool kept back for long.
func TestDeclinesDoNotEmptyThePool(t *testing.T) {
	r := newRig(t, config()) // 51 addresses
	for i := range 300 {
		a := r.ask(discover(mac(i)))
		if a.Reply != nil {
			r.ask(message(dhcpv4.MessageTypeDecline, mac(i), wants(addrOf(a.Reply.YourIPAddr)), server(ours)))
		}
	}
	kept := 0
	for _, l := range r.rack.Leases() {
		if l.Expires.After(r.now().Add(offerTime)) {
			kept++
		}
	}
	require.Equal(t, 51/8, kept)
	r.clock.forward(offerTime + time.Second)
	require.Equal(t, offerT, kindOf(r.ask(discover(mac(1000)))))
}

// TestNotesAreBounded: in quietTime only so much is said about one machine, and strangers do not displace what was
// said about listed ones.
func TestNotesAreBounded(t *testing.T) {
	r := newRig(t, config())
	for i := range 80 {
		r.ask(request(macMaster, server(ours), wants(addr(byte(i))))) // NAK, each with another text
	}
	require.Len(t, r.events(macMaster), notesAtOnce)
	for i := range 3 * maxStrayed {
		r.ask(request(mac(i), server(ours), wants(addr(7))))
	}
	require.LessOrEqual(t, len(r.strayed.last), maxStrayed)
	require.Len(t, r.notes.last, 1)
	r.clock.forward(quietTime)
	r.ask(request(macMaster, server(ours), wants(addr(7))))
	require.Len(t, r.events(macMaster), notesAtOnce+1)
}

// TestNobodyIsEnrolledUnremembered: that a machine is no further card of another one is known of remembered ones alone.
func TestNobodyIsEnrolledUnremembered(t *testing.T) {
	r := newRig(t, config(policy(inventory.UnknownEnroll)))
	for i := range 5000 {
		r.rack.See(lifecycle.Sighting{MAC: mac(i)})
	}
	require.Equal(t, offerT, kindOf(r.ask(discover(macUnknown, firmwareOf["x64"]))))
	require.False(t, r.rack.Listed(macUnknown))
	r.clock.forward(time.Second)
	require.Equal(t, offerT, kindOf(r.ask(discover(macUnknown, firmwareOf["x64"]))))
	require.True(t, r.rack.Listed(macUnknown))
}

// TestOverloadIsReported: how much was dropped is an event, every now and then.
func TestOverloadIsReported(t *testing.T) {
	r := newRig(t, config())
	from := netip.MustParseAddrPort("10.20.0.1:67")
	for range 1000 {
		r.drop(Answer{Drop: DropOverload}, from)
	}
	r.clock.forward(overloadEvery)
	r.drop(Answer{Drop: DropOverload}, from)
	require.Equal(t, []string{
		"warn overload: more packets arrive than can be answered: 1 dropped, the last one from 10.20.0.1",
		"warn overload: more packets arrive than can be answered: 1000 dropped, the last one from 10.20.0.1",
	}, r.events(inventory.MAC{}))
}

// TestInquiries: an address is asked for three times, and answered once to everybody who wants to know.
func TestInquiries(t *testing.T) {
	s := &scout{asked: map[netip.Addr]*inquiry{}, begun: make(chan struct{}, 1)}
	var found []string
	note := func(inUse bool, by string) { found = append(found, by) }
	begun := time.Now()
	for i := range 2 {
		s.asked[addr(byte(i))] = &inquiry{ip: addr(byte(i)), times: 1, due: begun.Add(askEvery), done: []func(bool, string){note}}
		s.line = append(s.line, s.asked[addr(byte(i))])
	}
	s.probe(addr(1), note) // joins the one under way: nothing is sent
	again, unanswered, next := s.takeDue(begun)
	require.Empty(t, again)
	require.Empty(t, unanswered)
	require.Equal(t, begun.Add(askEvery), next)
	again, _, _ = s.takeDue(begun.Add(askEvery))
	require.Equal(t, []netip.Addr{addr(0), addr(1)}, again)
	s.heard(addr(1), "52:54:00:00:00:99")
	s.heard(addr(1), "52:54:00:00:00:98")
	require.Equal(t, []string{"52:54:00:00:00:99", "52:54:00:00:00:99"}, found)
	again, _, _ = s.takeDue(begun.Add(2 * askEvery))
	require.Equal(t, []netip.Addr{addr(0)}, again)
	_, unanswered, next = s.takeDue(begun.Add(3 * askEvery))
	require.Len(t, unanswered, 1)
	require.Equal(t, addr(0), unanswered[0].ip)
	require.Zero(t, next)
	require.Empty(t, s.asked)
}

// madeUpAddresses: replies to addresses that nobody has wait for ARP in the kernel; neither workers nor the replies to
// others wait with them.
func madeUpAddresses(t *testing.T, n *network) {
	n.serve(t, "plain")
	require.NoError(t, n.inside("cli", func() error {
		conn, err := bind("eth0", portClient)
		if err != nil {
			return err
		}
		defer conn.Close()
		for i := range 6000 {
			of := message(dhcpv4.MessageTypeInform, mac(i), ciaddr(addr(byte(130+i%60))))
			if i%2 == 0 {
				of = discover(mac(i), giaddr(addr(byte(130+i%60))))
			}
			if _, err := conn.WriteToUDPAddrPort(of.ToBytes(), everybody); err != nil {
				return err
			}
		}
		return nil
	}))
	for i := range 3 {
		ask := discover(macMaster, flags(broadcastFlag), func(m *dhcpv4.DHCPv4) { m.TransactionID = dhcpv4.TransactionID{9, 9, 9, byte(i)} })
		replies := n.exchange(t, portClient, ask, everybody, 1)
		require.Len(t, replies, 1)
		require.Equal(t, masterIP, addrOf(replies[0].YourIPAddr))
	}
}
