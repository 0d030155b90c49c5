package firstboot

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// maxPeers is how many sources are told apart at once; beyond, those that are quiet are forgotten.
const maxPeers = 8192

// maxAtOnce is how many calls of one source may be under way: an agent has one or two.
const maxAtOnce = 16

// source is who is counted: a machine that presents a secret of its own, or else an address. What a stranger does from a
// machine's address, behind the same relay or spoofed, is not counted against the machine.
type source struct {
	machine string
	address netip.Addr
}

// limits keeps one source of calls from taking the node plane from the others.
type limits struct {
	now     func() time.Time
	calls   float64
	refusal float64

	mu    sync.Mutex
	peers map[source]*peer
}

// What a machine may send of words: reports and logs, by the size that their headers announce. An agent's logs have a MiB at
// most, and a handful of them is sent at once.
const (
	wordsBurst = 16 << 20
	wordsRate  = 512 << 10 // bytes a second
	// reportsBurst and reportsRate bound reports by their number, each of which is an event on the disk.
	reportsBurst = 400
	reportsRate  = 20 // a second
)

// words takes the size of a report or a log from what its machine may send; else it has to wait, which is worth an event
// once a minute.
func (l *limits) words(from source, size int64, report bool) (ok, news bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p, now := l.peer(from), l.now()
	ok = (!report || p.reports.AllowN(now, 1)) && p.words.AllowN(now, int(min(size, wordsBurst)))
	if news = !ok && now.Sub(p.asked) >= time.Minute; news {
		p.asked = now
	}
	return ok, news
}

type peer struct {
	calls, refusals *rate.Limiter
	words, reports  *rate.Limiter
	asked           time.Time // to wait with its words, as was last reported
	under           int       // calls under way
}

func newLimits(o Options) *limits {
	// Not the injected clock: what is measured is the load of this moment.
	return &limits{now: time.Now, calls: o.CallsEach, refusal: o.RefusedEach, peers: map[source]*peer{}}
}

// admit takes a call under way, unless there are too many. A source whose calls were refused again and again, as one that
// guesses would be, is not heard for a while.
func (l *limits) admit(from source) (release func(), ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.peer(from)
	now := l.now()
	if p.under >= maxAtOnce || p.refusals.TokensAt(now) < 1 || !p.calls.AllowN(now, 1) {
		return nil, false
	}
	p.under++
	return func() {
		l.mu.Lock()
		p.under--
		l.mu.Unlock()
	}, true
}

// refused counts a call that was refused for what it is.
func (l *limits) refused(from source) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.peer(from).refusals.AllowN(l.now(), 1)
}

// peer finds or makes what is known of a source. The caller holds mu.
func (l *limits) peer(from source) *peer {
	if p := l.peers[from]; p != nil {
		return p
	}
	if len(l.peers) >= maxPeers {
		now := l.now()
		for other, p := range l.peers {
			if p.under == 0 && p.refusals.TokensAt(now) >= float64(p.refusals.Burst()) {
				delete(l.peers, other)
			}
		}
	}
	p := &peer{
		calls:    rate.NewLimiter(rate.Limit(l.calls), max(1, int(4*l.calls))),
		refusals: rate.NewLimiter(rate.Limit(l.refusal), max(1, int(30*l.refusal))),
		words:    rate.NewLimiter(wordsRate, wordsBurst),
		reports:  rate.NewLimiter(reportsRate, reportsBurst),
	}
	l.peers[from] = p
	return p
}
