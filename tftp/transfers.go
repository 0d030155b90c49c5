package tftp

import (
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// transfers are the transfers that run, at most one per client and port: the port is the client's transfer
// identifier (RFC 1350 section 4).
type transfers struct {
	max, maxPerClient int
	now               func() time.Time
	processors        int32
	count             atomic.Int32 // of running

	mu        sync.Mutex
	running   map[netip.AddrPort]*transfer
	perClient map[netip.Addr]int
	closed    bool
}

// transfer is one answered request.
type transfer struct {
	request
	client netip.AddrPort
	start  time.Time

	mu      sync.Mutex
	active  time.Time      // when the client last asked or acknowledged
	claimed bool           // pin/tftp has begun to work on it
	conn    *net.UDPConn   // nil until then
	ended   *protocolError // why it was ended from outside
}

// repeatWindow is for how long after a sign of life of the client the same request from the same port is a
// repetition of a packet, to be ignored: the running transfer sends again by itself. Later it is a client
// that was restarted, and whose firmware begins with the same port.
const repeatWindow = 3 * time.Second

func newTransfers(max, maxPerClient int, now func() time.Time) *transfers {
	return &transfers{max: max, maxPerClient: maxPerClient, now: now, processors: int32(runtime.GOMAXPROCS(0)),
		running: map[netip.AddrPort]*transfer{}, perClient: map[netip.Addr]int{}}
}

// admit notes a new transfer. The error is errSilent for a repeated request, and a *protocolError where the limits
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
	if old, ok := ts.running[client]; ok {
		if !old.yieldsTo(r, now) {
			return nil, errSilent
		}
		ts.running[client] = t
		old.end(nil)
		return t, nil
	}
	if n := len(ts.running); n >= ts.max {
		return nil, busy("%d transfers run", n)
	}
	if n := ts.perClient[client.Addr()]; n >= ts.maxPerClient {
		return nil, busy("%d transfers to %s run", n, client.Addr())
	}
	ts.running[client] = t
	ts.count.Add(1)
	ts.perClient[client.Addr()]++
	return t, nil
}

func busy(format string, args ...any) *protocolError {
	return &protocolError{codeUndefined, "busy: " + fmt.Sprintf(format, args...) + ", try again", endBusy}
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
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if ts.running[t.client] != t {
		return
	}
	delete(ts.running, t.client)
	ts.count.Add(-1)
	if ts.perClient[t.client.Addr()]--; ts.perClient[t.client.Addr()] == 0 {
		delete(ts.perClient, t.client.Addr())
	}
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

// end ends a transfer from outside: the client is told why, unless why is nil, and the socket closes.
func (t *transfer) end(why *protocolError) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended != nil {
		return
	}
	t.ended = why
	if why == nil {
		t.ended = errSuperseded
	}
	if t.conn == nil {
		return
	}
	if why != nil {
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

// alive notes a sign of life.
func (t *transfer) alive(now time.Time) {
	t.mu.Lock()
	t.active = now
	t.mu.Unlock()
}

// endedBy is why the transfer was ended from outside; nil if it was not.
func (t *transfer) endedBy() *protocolError {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ended
}
