package tftp

import (
	"errors"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"rackstrap/internal/places"
)

// transfers are the transfers that run, at most one per client and port: the port is the client's transfer
// identifier (RFC 1350 section 4).
type transfers struct {
	pool       *places.Pool
	now        func() time.Time
	processors int32
	count      atomic.Int32 // of running

	mu      sync.Mutex
	running map[netip.AddrPort]*transfer
	closed  bool
}

// transfer is one answered request.
type transfer struct {
	request
	client netip.AddrPort
	start  time.Time
	place  *places.Place // idle until the client has acknowledged something

	mu      sync.Mutex
	active  time.Time      // when the client last asked or acknowledged
	claimed bool           // pin/tftp has begun to work on it
	proven  bool           // the client has acknowledged something: it exists
	conn    *net.UDPConn   // nil until then
	ended   *protocolError // why it was ended from outside
}

// repeatWindow is for how long after a sign of life of the client the same request from the same port is a
// repetition of a packet, to be ignored: the running transfer sends again by itself. Later it is a client
// that was restarted, and whose firmware begins with the same port.
const repeatWindow = 3 * time.Second

func newTransfers(pool *places.Pool, now func() time.Time) *transfers {
	return &transfers{pool: pool, now: now, processors: int32(runtime.GOMAXPROCS(0)), running: map[netip.AddrPort]*transfer{}}
}

// errNoPlace is a request that there is no place for. It is not answered: the source may be made up, and firmware, which
// would give up after an ERROR packet, asks again.
var errNoPlace = errors.New("no place for a transfer")

// admit notes a new transfer. The error is errSilent for a repeated request, and errNoPlace where the limits
// are reached. A new request from the port of a running transfer takes its place: the client has dropped
// that one, whether its ERROR packet came through or not.
func (ts *transfers) admit(r request, client netip.AddrPort) (*transfer, error) {
	now := ts.now()
	t := &transfer{request: r, client: client, start: now, active: now}
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if ts.closed {
		return nil, errStopping
	}
	old, again := ts.running[client]
	if again {
		if !old.yieldsTo(r, now) {
			return nil, errSilent
		}
		old.place.Release()
	}
	if t.place = ts.take(t, now); t.place == nil {
		return nil, errNoPlace
	}
	ts.running[client] = t
	if again {
		old.hangUp(errSuperseded)
	} else {
		ts.count.Add(1)
	}
	return t, nil
}

// take finds a place for a transfer; nil: there is none. With all places in use, those give way whose clients have been
// silent for a while. The caller holds mu.
func (ts *transfers) take(t *transfer, now time.Time) *places.Place {
	place, verdict := ts.pool.Take(t.client.Addr(), t.yield)
	if verdict != places.Full {
		return place
	}
	for _, other := range ts.running {
		if other.silentSince(now) >= repeatWindow {
			other.place.Idle()
		}
	}
	place, _ = ts.pool.Take(t.client.Addr(), t.yield)
	return place
}

// yieldsTo tells whether a request from the transfer's own port is a new one. A transfer that pin/tftp has
// not begun with yields to none: which of the two it then works on could not be told.
func (t *transfer) yieldsTo(r request, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.claimed && (r != t.request || now.Sub(t.active) >= repeatWindow)
}

// claim hands the transfer to the handler that works on it; ok is false if there is none to be had.
func (ts *transfers) claim(client netip.AddrPort) (t *transfer, ok bool) {
	ts.mu.Lock()
	t, ok = ts.running[client]
	ts.mu.Unlock()
	if !ok {
		return nil, false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.claimed {
		return nil, false
	}
	t.claimed = true
	return t, true
}

// release frees the place of a transfer, if that is still its own.
func (ts *transfers) release(t *transfer) {
	t.place.Release()
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if ts.running[t.client] != t {
		return
	}
	delete(ts.running, t.client)
	ts.count.Add(-1)
}

// few tells whether there is a processor for each transfer that runs.
func (ts *transfers) few() bool { return ts.count.Load() <= ts.processors }

// close admits nothing any more.
func (ts *transfers) close() {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	ts.closed = true
}

// endAll ends what runs.
func (ts *transfers) endAll(why *protocolError) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	for _, t := range ts.running {
		t.end(why)
	}
}

// errSuperseded is why a transfer ended whose client asked for something else from the same port.
var errSuperseded = &protocolError{codeUndefined, "the client began anew", endSuperseded}

// end ends a transfer from outside, and tells the client why.
func (t *transfer) end(why *protocolError) { t.endBy(why, true) }

// hangUp ends a transfer from outside without a word to the client.
func (t *transfer) hangUp(why *protocolError) { t.endBy(why, false) }

// endBy ends a transfer: its socket closes.
func (t *transfer) endBy(why *protocolError, tell bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended != nil {
		return
	}
	t.ended = why
	if t.conn == nil {
		return
	}
	if tell {
		t.conn.WriteToUDPAddrPort(why.packet(), t.client) // best effort: it may be lost on its way, too
	}
	hangUp(t.conn)
}

// attach gives the transfer its socket; the error is why it has ended meanwhile.
func (t *transfer) attach(conn *net.UDPConn) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.conn = conn
	if t.ended != nil {
		return t.ended
	}
	return nil
}

// alive notes a sign of life: an acknowledgement.
func (t *transfer) alive(now time.Time) {
	t.mu.Lock()
	t.active, t.proven = now, true
	t.mu.Unlock()
	t.place.Busy()
}

func (t *transfer) silentSince(now time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return now.Sub(t.active)
}

// Why transfers end whose client is silent: nobody is told, for the address may be made up. What becomes of packets to a
// machine of the list, the operator wants to know.
var (
	errSilentFirst = &protocolError{codeUndefined, "no acknowledgement of the first packet", endTimeout}
	errUnproven    = &protocolError{codeUndefined, "no acknowledgement of the first packet", endUnproven}
	errYielded     = &protocolError{codeUndefined, "others need its place, and the client is silent", endUnproven}
)

// expire ends the transfer if nothing was acknowledged yet.
func (t *transfer) expire() {
	t.mu.Lock()
	proven := t.proven
	t.mu.Unlock()
	switch {
	case proven:
	case t.place.Listed():
		t.hangUp(errSilentFirst)
	default:
		t.hangUp(errUnproven)
	}
}

// yield ends the transfer because its place is needed.
func (t *transfer) yield() { t.hangUp(errYielded) }

// endedBy is why the transfer was ended from outside; nil if it was not.
func (t *transfer) endedBy() *protocolError {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ended
}
