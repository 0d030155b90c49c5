package places

import (
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
)

// machines are the addresses of the list.
var machines = netip.MustParsePrefix("127.1.0.0/16")

func machine(i int) netip.Addr { return netip.AddrFrom4([4]byte{127, 1, byte(i >> 8), byte(i)}) }
func other(i int) netip.Addr   { return netip.AddrFrom4([4]byte{127, 2, byte(i >> 8), byte(i)}) }

func newPool(t testing.TB, l Limits) *Pool {
	t.Helper()
	p, err := New(Options{Plane: "test", Limits: l, Listed: machines.Contains, Metrics: prometheus.NewRegistry()})
	require.NoError(t, err)
	return p
}

// holder is who has a place.
type holder struct {
	place *Place
	ended bool
}

func take(p *Pool, addr netip.Addr) (*holder, Verdict) {
	h := &holder{}
	place, verdict := p.Take(addr, func() { h.ended = true })
	h.place = place
	return h, verdict
}

func busy(t *testing.T, p *Pool, addr netip.Addr) *holder {
	t.Helper()
	h, verdict := take(p, addr)
	require.Equal(t, Granted, verdict)
	h.place.Busy()
	return h
}

func TestStrangersHaveAShare(t *testing.T) {
	p := newPool(t, Limits{Total: 10, Each: 3, Strangers: 4, StrangersEach: 2})
	busy(t, p, other(1))
	busy(t, p, other(1))
	_, verdict := take(p, other(1))
	require.Equal(t, Refused, verdict, "its own share")
	busy(t, p, other(2))
	last := busy(t, p, netip.AddrFrom16(other(2).As16()))
	for _, addr := range []netip.Addr{other(2), other(3), netip.IPv6Loopback(), {}} {
		_, verdict = take(p, addr)
		require.Equal(t, Refused, verdict, addr)
	}
	for i := range 6 {
		busy(t, p, machine(i/3))
	}
	_, verdict = take(p, machine(0))
	require.Equal(t, Refused, verdict, "its own share")
	_, verdict = take(p, machine(2))
	require.Equal(t, Full, verdict)
	last.place.Idle()
	<-p.Freed()
	busy(t, p, machine(2))
	require.True(t, last.ended, "the place of an idle stranger")
	last.place.Release() // it is not its own any more
	require.Equal(t, 10, p.Held())
	require.EqualValues(t, 1, testutil.ToFloat64(p.metrics.yielded.WithLabelValues("stranger")))
	require.EqualValues(t, 5, testutil.ToFloat64(p.metrics.refused.WithLabelValues("stranger")))
	require.EqualValues(t, 1, testutil.ToFloat64(p.metrics.refused.WithLabelValues("listed")))
}

func TestStrangersNeverHaveMoreThanHalf(t *testing.T) {
	p := newPool(t, Limits{Total: 10, Each: 10, Strangers: 100, StrangersEach: 100})
	for range 5 {
		busy(t, p, other(1))
	}
	_, verdict := take(p, other(2))
	require.Equal(t, Refused, verdict)
	for range 5 {
		busy(t, p, machine(1))
	}
}

// Whoever has the address of a machine and does nothing gives way to the machine.
func TestAddressOfAMachine(t *testing.T) {
	p := newPool(t, Limits{Total: 10, Each: 2, Strangers: 4, StrangersEach: 2})
	bystander, _ := take(p, machine(2))
	first, _ := take(p, machine(1))
	second, _ := take(p, machine(1))
	busy(t, p, machine(1))
	require.True(t, first.ended)
	require.False(t, second.ended)
	busy(t, p, machine(1))
	require.True(t, second.ended)
	require.False(t, bystander.ended)
}

// Idle strangers go first, then idle machines, each the one that is idle for the longest time.
func TestWhoGivesWay(t *testing.T) {
	p := newPool(t, Limits{Total: 4, Each: 4, Strangers: 2, StrangersEach: 2})
	a, _ := take(p, machine(1))
	b, _ := take(p, machine(2))
	c, _ := take(p, other(1))
	d, _ := take(p, other(2))
	c.place.Busy()
	c.place.Idle() // later than d
	a.place.Busy()
	a.place.Idle()
	for i, victim := range []*holder{d, c, b, a} {
		require.False(t, victim.ended)
		busy(t, p, machine(10+i))
		require.True(t, victim.ended, i)
	}
}

func TestSettle(t *testing.T) {
	p := newPool(t, Limits{Total: 4, Each: 4, Strangers: 1, StrangersEach: 1, Settle: time.Second})
	now := time.Unix(1000, 0)
	p.now = func() time.Time { return now }
	first, _ := take(p, other(1))
	_, verdict := take(p, other(2))
	require.Equal(t, Refused, verdict)
	now = now.Add(time.Second)
	_, verdict = take(p, other(2))
	require.Equal(t, Granted, verdict)
	require.True(t, first.ended)
}

func TestReport(t *testing.T) {
	var reports []string
	p, err := New(Options{Limits: Limits{Total: 4, Each: 1, Strangers: 1, StrangersEach: 1}, Listed: machines.Contains,
		Report: func(text string) { reports = append(reports, text) }})
	require.NoError(t, err)
	now := time.Unix(1000, 0)
	p.now = func() time.Time { return now }
	busy(t, p, other(1))
	for range 100 {
		take(p, other(2))
	}
	now = now.Add(reportEvery)
	take(p, other(2))
	require.Equal(t, []string{
		"1 refused and 0 idle ones ended for want of a place, the last time because of 127.2.0.2 (stranger); machines of the list have 0 places and others 1, of 4",
		"100 refused and 0 idle ones ended for want of a place, the last time because of 127.2.0.2 (stranger); machines of the list have 0 places and others 1, of 4",
	}, reports)
	take(p, machine(1))
	busy(t, p, machine(1))
	require.Len(t, reports, 2, "a moment ago")
	now = now.Add(reportEvery)
	take(p, machine(1))
	require.Contains(t, reports[2], "1 refused and 1 idle ones ended for want of a place, the last time because of 127.1.0.1 (listed)")
}

// Whatever happens in whatever order, the books are right.
func FuzzPool(f *testing.F) {
	f.Add([]byte("\x00\x01\x82\x43\x10\x91\xf2\x33"))
	f.Add([]byte{0, 4, 8, 12, 1, 5, 2, 6, 3, 7, 255, 128, 64})
	f.Fuzz(func(t *testing.T, steps []byte) {
		l := Limits{Total: 6, Each: 3, Strangers: 2, StrangersEach: 2}
		p, err := New(Options{Limits: l, Listed: machines.Contains})
		require.NoError(t, err)
		var held []*holder
		for _, step := range steps {
			i := int(step >> 3)
			if step&3 != 0 && len(held) == 0 {
				continue
			}
			switch step & 3 {
			case 0:
				addr := machine(i % 4)
				if step&4 != 0 {
					addr = other(i % 4)
				}
				if h, verdict := take(p, addr); verdict == Granted {
					held = append(held, h)
				}
			case 1:
				held[i%len(held)].place.Busy()
			case 2:
				held[i%len(held)].place.Idle()
			case 3:
				held[i%len(held)].place.Release()
			}
			count := map[party]int{}
			each := map[netip.Addr]int{}
			idle := 0
			for _, h := range held {
				if h.place.gone {
					continue
				}
				require.False(t, h.ended)
				count[h.place.party]++
				each[h.place.addr]++
				if !h.place.busy.Load() {
					idle++
				}
			}
			require.Equal(t, [parties]int{count[listed], count[stranger]}, p.held)
			require.Equal(t, idle, p.idle[listed].Len()+p.idle[stranger].Len())
			require.LessOrEqual(t, p.Held(), l.Total)
			require.LessOrEqual(t, count[stranger], l.Strangers)
			require.Equal(t, each, p.each)
			for addr, n := range each {
				most := l.StrangersEach
				if machines.Contains(addr) {
					most = l.Each
				}
				require.LessOrEqual(t, n, most)
			}
		}
	})
}

func TestPoolIsSafe(t *testing.T) {
	p := newPool(t, Limits{Total: 20, Each: 4, Strangers: 8, StrangersEach: 2})
	var all sync.WaitGroup
	for g := range 8 {
		all.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(g)))
			for range 3000 {
				addr := machine(r.IntN(9))
				if r.IntN(2) == 0 {
					addr = other(r.IntN(9))
				}
				place, verdict := p.Take(addr, func() {})
				if verdict != Granted {
					continue
				}
				place.Busy()
				if r.IntN(2) == 0 {
					place.Idle()
				}
				if r.IntN(3) != 0 {
					place.Release()
				} else {
					place.Idle()
				}
			}
		})
	}
	all.Wait()
	require.LessOrEqual(t, p.Held(), 20)
}

func BenchmarkTake(b *testing.B) {
	p := newPool(b, Limits{Total: 4096, Each: 64, Strangers: 256, StrangersEach: 8})
	for i := range 5000 {
		p.Take(machine(i), func() {})
	}
	i := 0
	for b.Loop() {
		i++
		p.Take(machine(i%8000), func() {})
	}
}

// listen serves connections that are busy once they sent a byte.
func listen(t *testing.T, l Limits) (*Listener, chan *Conn) {
	t.Helper()
	bound, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	listener := Listen(bound, newPool(t, l))
	accepted := make(chan *Conn, 64)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := listener.AcceptConn()
			if err != nil {
				return
			}
			accepted <- conn
		}
	}()
	t.Cleanup(func() {
		listener.Close()
		<-ended
	})
	return listener, accepted
}

func dial(t *testing.T, l net.Listener, from netip.Addr) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: from.AsSlice()}}
	conn, err := d.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// requireRefused wants a new connection reset, which may be as early as in connect.
func requireRefused(t *testing.T, l net.Listener, from netip.Addr) {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: from.AsSlice()}}
	conn, err := d.Dial("tcp", l.Addr().String())
	if err != nil {
		require.ErrorIs(t, err, syscall.ECONNRESET)
		return
	}
	defer conn.Close()
	requireClosed(t, conn)
}

func requireClosed(t *testing.T, conn net.Conn) {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	_, err := conn.Read(make([]byte, 1))
	require.Error(t, err)
	require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
}

func TestListener(t *testing.T) {
	l, accepted := listen(t, Limits{Total: 4, Each: 4, Strangers: 2, StrangersEach: 1})
	silent := dial(t, l, other(1))
	<-accepted
	requireRefused(t, l, other(1))
	dial(t, l, other(2))
	(<-accepted).Place.Busy()
	dial(t, l, other(3)) // the silent one gives way
	requireClosed(t, silent)
	(<-accepted).Place.Busy()
	requireRefused(t, l, other(4))
	dial(t, l, machine(1))
	first := <-accepted
	first.Place.Busy()
	dial(t, l, machine(2))
	(<-accepted).Place.Busy()

	waiting := dial(t, l, machine(3))
	select {
	case <-accepted:
		t.Fatal("all places are taken")
	case <-time.After(50 * time.Millisecond):
	}
	first.Close()
	first.Close() // twice is once
	conn := <-accepted
	require.Equal(t, waiting.LocalAddr().String(), conn.RemoteAddr().String())
	_, err := io.WriteString(conn, "x")
	require.NoError(t, err)
}

// A listener with all places taken can be closed.
func TestListenerCloses(t *testing.T) {
	l, accepted := listen(t, Limits{Total: 1, Each: 1})
	dial(t, l, machine(1))
	(<-accepted).Place.Busy()
	waiting := dial(t, l, machine(2))
	time.Sleep(20 * time.Millisecond) // either way it has to end
	require.NoError(t, l.Close())
	requireClosed(t, waiting)
}
