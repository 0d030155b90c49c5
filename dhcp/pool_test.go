package dhcp

import (
	"context"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

// used is a Prober of a network on which these addresses are in use.
func used(by map[netip.Addr]string) Prober {
	return func(ip netip.Addr, done func(bool, string)) {
		who, yes := by[ip]
		done(yes, who)
	}
}

func rangeOf(first, last string) inventory.Range {
	return inventory.Range{First: netip.MustParseAddr(first), Last: netip.MustParseAddr(last)}
}

func pooled(first, last string) func(*inventory.Config) {
	return func(c *inventory.Config) { c.Network.Pool = rangeOf(first, last) }
}

// wide is a pool of 61,439 addresses.
func wide(c *inventory.Config) {
	c.Network.Prefix = netip.MustParsePrefix("10.10.0.0/16")
	c.Network.Pool = rangeOf("10.10.16.0", "10.10.255.254")
}

func mac(n int) inventory.MAC {
	return inventory.MAC{2, 0, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}
}

func TestPoolBitmap(t *testing.T) {
	for _, size := range []int{1, 63, 64, 65, 130, 256} {
		first := netip.MustParseAddr("10.0.0.0")
		p := newPool(inventory.Range{First: first, Last: addr4(0x0a000000 + uint32(size) - 1)})
		taken := map[netip.Addr]bool{}
		for i := range size {
			a, ok := p.takeNear(uint64(i * 7919))
			require.True(t, ok)
			require.False(t, taken[a], "%s twice", a)
			require.True(t, p.contains(a))
			taken[a] = true
		}
		_, ok := p.takeNear(3)
		require.False(t, ok)
		p.release(first)
		p.release(first)
		a, ok := p.takeNear(5)
		require.True(t, ok)
		require.Equal(t, first, a)
		require.False(t, p.take(netip.MustParseAddr("10.1.0.0")))
		require.False(t, p.contains(netip.MustParseAddr("9.255.255.255")))
	}
}

func TestPoolExhausted(t *testing.T) {
	r := newRig(t, config(pooled("10.10.10.200", "10.10.10.203")))
	for i := range 4 {
		require.Equal(t, offerT, kindOf(r.ask(discover(mac(i)))))
	}
	require.Equal(t, DropNoAddress, r.ask(discover(mac(4))).Drop)
	require.Contains(t, r.events(inventory.MAC{}), "warn pool: the pool of 10.10.10.0/24 is exhausted")
	require.Equal(t, offerT, kindOf(r.ask(discover(mac(3)))), "who has an offer keeps it")

	r.clock.forward(offerTime + time.Second)
	require.Equal(t, offerT, kindOf(r.ask(discover(mac(4)))), "nobody asked for what was offered")
}

func TestExpiredLeasesComeBackOnlyWhenNeeded(t *testing.T) {
	r := newRig(t, config(pooled("10.10.10.200", "10.10.10.203")))
	for i := range 3 {
		leaseTo(mac(i), addr(byte(200+i)))(r)
	}
	r.clock.forward(2 * time.Hour) // all expired
	require.Equal(t, addr(203), addrOf(r.ask(discover(mac(9))).Reply.YourIPAddr), "the one that nobody had")
	require.Equal(t, addr(201), addrOf(r.ask(discover(mac(1))).Reply.YourIPAddr), "the old one")
	got := addrOf(r.ask(discover(mac(8))).Reply.YourIPAddr)
	require.Contains(t, []netip.Addr{addr(200), addr(202)}, got)
	require.Equal(t, ackT, kindOf(r.ask(request(mac(8), server(ours), wants(got)))))
	old := 0
	if got == addr(202) {
		old = 2
	}
	require.Equal(t, silent, kindOf(r.ask(request(mac(old), wants(got)))), "its record is gone")
}

func TestSameClientSameAddress(t *testing.T) {
	first := addrOf(newRig(t, config()).ask(discover(macUnknown)).Reply.YourIPAddr)
	require.Equal(t, first, addrOf(newRig(t, config()).ask(discover(macUnknown)).Reply.YourIPAddr), "after a loss of the database")
}

func TestPoolNeverGivesWhatIsKept(t *testing.T) {
	r := newRig(t, config(pooled("10.10.10.0", "10.10.10.255"), func(c *inventory.Config) {
		c.Network.DNS = []netip.Addr{addr(3)}
	}))
	got := map[netip.Addr]bool{}
	for i := range 300 {
		if a := r.ask(discover(mac(i))); a.Reply != nil {
			got[addrOf(a.Reply.YourIPAddr)] = true
		}
	}
	require.Len(t, got, 256-2-1-1-1-3, "without network, broadcast, gateway, DNS, us, three reservations and")
	for _, kept := range []netip.Addr{addr(0), addr(255), addr(121), addr(3), ours, masterIP, addr(81), addr(89)} {
		require.NotContains(t, got, kept)
		require.Equal(t, nakT, kindOf(r.ask(request(mac(1), server(ours), wants(kept)))))
	}
}

func TestConflict(t *testing.T) {
	inUse := map[netip.Addr]string{addr(200): "52:54:00:00:00:aa", addr(201): "52:54:00:00:00:ab"}
	r := newRig(t, config(pooled("10.10.10.200", "10.10.10.203")), func(o *Options) { o.Prober = used(inUse) })
	got := map[netip.Addr]bool{}
	for i := range 4 {
		if a := r.ask(discover(mac(i))); a.Reply != nil {
			got[addrOf(a.Reply.YourIPAddr)] = true
		}
	}
	require.Equal(t, map[netip.Addr]bool{addr(202): true, addr(203): true}, got)
	events := strings.Join(r.events(inventory.MAC{}), "\n")
	require.Contains(t, events, "10.10.10.200 is in the pool, but 52:54:00:00:00:aa uses it")
	require.Contains(t, events, "10.10.10.201 is in the pool, but 52:54:00:00:00:ab uses it")

	clear(inUse)
	r.clock.forward(quarantineTime + time.Second)
	require.Equal(t, offerT, kindOf(r.ask(discover(mac(7)))), "quarantine ends")
}

// held is a Prober whose checks end when the test lets them.
type held struct {
	mu   sync.Mutex
	done []func(inUse bool, by string)
}

func (h *held) probe(_ netip.Addr, done func(bool, string)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.done = append(h.done, done)
}

func (h *held) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.done)
}

// end ends every check: nobody uses any of the addresses.
func (h *held) end() {
	h.mu.Lock()
	done := h.done
	h.done = nil
	h.mu.Unlock()
	for _, d := range done {
		d(false, "")
	}
}

// TestConflictCheckIsOnce: its result serves the repetitions, and the holder of a lease is not checked.
func TestConflictCheckIsOnce(t *testing.T) {
	var prober held
	r := newRig(t, config(), func(o *Options) { o.Prober = prober.probe })
	done := make(chan Answer, 1)
	go func() { done <- r.ask(discover(macUnknown)) }()
	require.Eventually(t, func() bool { return prober.count() == 1 }, 20*time.Second, time.Millisecond)
	require.Equal(t, checking, r.ask(discover(macUnknown)).Why, "a repetition does not check again")
	require.Equal(t, offerT, kindOf(r.ask(discover(macMaster))), "nobody else waits")
	prober.end()
	ip := addrOf((<-done).Reply.YourIPAddr)
	require.Equal(t, ip, addrOf(r.ask(discover(macUnknown)).Reply.YourIPAddr))
	require.Equal(t, ackT, kindOf(r.ask(request(macUnknown, server(ours), wants(ip)))))
	require.Equal(t, ip, addrOf(r.ask(discover(macUnknown)).Reply.YourIPAddr))
	require.Zero(t, prober.count())
}

func TestConflictChecksAreBounded(t *testing.T) {
	var prober held
	r := newRig(t, config(wide), func(o *Options) { o.Prober = prober.probe })
	var asked sync.WaitGroup
	for i := range maxChecks {
		asked.Go(func() { r.ask(discover(mac(i))) })
	}
	require.Eventually(t, func() bool { return prober.count() == maxChecks }, 20*time.Second, time.Millisecond)
	require.Equal(t, tooBusy, r.ask(discover(mac(maxChecks))).Why)
	require.False(t, r.offers.has(mac(maxChecks)))
	prober.end()
	asked.Wait()
	require.Zero(t, r.checks.Load())
}

// TestOffersAreBounded: the oldest offer makes room for a new one, and its address with it.
func TestOffersAreBounded(t *testing.T) {
	r := newRig(t, config(wide))
	pool := r.view().subnets[0].pool
	before := pool.free
	first := addrOf(r.ask(discover(mac(0))).Reply.YourIPAddr)
	for i := range 2 * maxOffers {
		require.Equal(t, offerT, kindOf(r.ask(discover(mac(1+i)))))
	}
	require.False(t, r.offers.has(mac(0)))
	require.Len(t, r.offers.byMAC, maxOffers)
	require.Len(t, r.offers.byIP, maxOffers)
	require.Equal(t, maxOffers, r.offers.line.Len())
	require.EqualValues(t, maxOffers, before-pool.free)
	if _, taken := r.offers.holder(first); !taken {
		require.Equal(t, ackT, kindOf(r.ask(request(mac(0), server(ours), wants(first)))), "nobody else was given it")
	}
	for range 5 * maxOffers { // takes its offer back and asks again, for ever
		r.ask(request(mac(1), server(addr(5))))
		r.ask(discover(mac(1)))
	}
	require.Equal(t, maxOffers, r.offers.line.Len())
	r.clock.forward(2 * offerTime)
	require.Equal(t, offerT, kindOf(r.ask(discover(mac(maxOffers)))))
	require.Len(t, r.offers.byMAC, 1)
}

// TestNoAddressTwice: many clients at the same time, a pool that is too small, packets repeated. Who gets no
// answer asks again, as clients do: an address may be on offer to somebody for a moment.
func TestNoAddressTwice(t *testing.T) {
	r := newRig(t, config(pooled("10.10.10.130", "10.10.10.250")))
	var mu sync.Mutex
	holder := map[netip.Addr]inventory.MAC{}
	ask := func(client inventory.MAC) {
		a := r.ask(discover(client))
		if a.Reply == nil {
			return
		}
		ip := addrOf(a.Reply.YourIPAddr)
		if kindOf(r.ask(request(client, server(ours), wants(ip)))) != ackT {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		other, ok := holder[ip]
		assert.True(t, !ok || other == client, "%s given to %s and %s", ip, other, client)
		holder[ip] = client
	}
	var clients sync.WaitGroup
	for i := range 200 {
		for range 2 {
			clients.Go(func() { ask(mac(i)) })
		}
	}
	clients.Wait()
	for i := range 200 {
		ask(mac(i))
	}
	require.Len(t, holder, 121)
	require.Len(t, r.rack.Leases(), 121)
}

// TestReloadKeepsLeases: a new configuration makes new bitmaps, and knows what was given and offered.
func TestReloadKeepsLeases(t *testing.T) {
	r := newRig(t, config(pooled("10.10.10.200", "10.10.10.202")))
	leaseTo(mac(1), addr(200))(r)
	offered(mac(2), addr(201))(r)
	require.NoError(t, r.rack.Reload(t.Context(), config(pooled("10.10.10.200", "10.10.10.203"))))
	require.ElementsMatch(t, []netip.Addr{addr(202), addr(203)}, []netip.Addr{
		addrOf(r.ask(discover(mac(3), wants(addr(201)))).Reply.YourIPAddr),
		addrOf(r.ask(discover(mac(4), wants(addr(200)))).Reply.YourIPAddr)})

	require.NoError(t, r.rack.Reload(t.Context(), config(pooled("10.10.10.210", "10.10.10.220"))))
	require.Equal(t, nakT, kindOf(r.straight(request(mac(1), ciaddr(addr(200))), "10.10.10.200:68")), "no longer in the pool")
}

// TestStoreFails: what is not on disk is not acknowledged.
func TestStoreFails(t *testing.T) {
	r := newRig(t, config())
	r.keepIn(&fullDisk{MemoryStore: lifecycle.NewMemoryStore()})
	require.Equal(t, DropStore, r.ask(request(macUnknown, server(ours), wants(addr(230)))).Drop)
	require.Equal(t, ackT, kindOf(r.ask(request(macMaster, server(ours), wants(masterIP)))), "reservations need no disk")
}

type fullDisk struct{ *lifecycle.MemoryStore }

func (*fullDisk) PutLease(context.Context, lifecycle.Lease) error { return context.DeadlineExceeded }

// TestOffersOfTwo: of two clients that come to the same address at the same time, one gets it.
func TestOffersOfTwo(t *testing.T) {
	o, until := newOffers(), time.Unix(1000, 0)
	put := func(mac inventory.MAC, ip netip.Addr, until time.Time) bool {
		_, ok := o.put(mac, ip, until)
		return ok
	}
	require.True(t, put(mac(1), addr(200), until))
	require.False(t, put(mac(2), addr(200), until))
	require.False(t, put(mac(1), addr(201), until), "one offer for each client")
	require.True(t, put(mac(1), addr(200), until.Add(time.Minute)))
	require.Empty(t, o.expire(until.Add(time.Second)), "it was repeated")
	require.Equal(t, []netip.Addr{addr(200)}, o.expire(until.Add(time.Minute)))
	require.True(t, put(mac(2), addr(200), until))
}
