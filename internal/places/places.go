// Package places shares the places of a listener (connections, transfers) among those who ask for them: machines of the
// list have most of them, everybody else a few each and a part together, and who does nothing with a place gives way.
package places

import (
	"container/list"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Limits are how many places there are, and for whom.
type Limits struct {
	Total         int // in all
	Each          int // of one address of a machine of the list
	Strangers     int // of all other addresses together: half of Total at most
	StrangersEach int // of one of them
	// Settle is how long an idle place of a stranger is kept from other strangers. Over UDP the addresses can be made up:
	// Strangers and Settle then bound what is sent to addresses that never asked.
	Settle time.Duration
}

// Options are what a Pool is made of.
type Options struct {
	Plane string // its name, in metrics and reports
	Limits
	Listed  func(netip.Addr) bool // whether an address is one of a machine of the list; it waits for nobody
	Report  func(text string)     // told of a want of places, at most once in reportEvery; nil: nobody
	Metrics prometheus.Registerer // nil: nowhere
}

const reportEvery = time.Minute

// Verdict is the answer to who asks for a place.
type Verdict string

const (
	Granted Verdict = "granted"
	Refused Verdict = "refused" // it has its share, or strangers have theirs
	Full    Verdict = "full"    // a machine of the list, for which there will be a place in a moment: see Freed
)

// party is whom places are counted for.
type party int

const (
	listed party = iota
	stranger
	parties
)

var partyNames = [parties]string{"listed", "stranger"}

// Pool is the places of a listener.
type Pool struct {
	o       Options
	now     func() time.Time
	metrics *metrics

	mu               sync.Mutex
	held             [parties]int
	each             map[netip.Addr]int
	idle             [parties]list.List // places that give way, the one that is idle for the longest time first
	freed            chan struct{}
	refused, yielded int // not reported yet
	reported         time.Time
}

// New makes a pool. The share of strangers is half of the places at most.
func New(o Options) (*Pool, error) {
	o.Strangers = min(o.Strangers, o.Total/2)
	p := &Pool{o: o, now: time.Now, each: map[netip.Addr]int{}, freed: make(chan struct{}, 1)}
	var err error
	if p.metrics, err = newMetrics(o); err != nil {
		return nil, fmt.Errorf("places of %s: %w", o.Plane, err)
	}
	return p, nil
}

// Place is one place, as long as somebody holds it. It is idle at first: its holder has done nothing yet.
type Place struct {
	pool  *Pool
	addr  netip.Addr
	party party
	yield func()

	busy atomic.Bool // changed under the pool's mu
	// Guarded by the pool's mu:
	entry *list.Element // in the pool's idle, unless busy
	since time.Time     // when it became idle
	gone  bool
}

// Take asks for a place for an address. Yield ends what holds it, when it has to give way: it is called at most once, in
// the goroutine of another Take, and must not wait.
func (p *Pool) Take(addr netip.Addr, yield func()) (*Place, Verdict) {
	addr = addr.Unmap()
	place := &Place{pool: p, addr: addr, yield: yield, party: stranger}
	if p.o.Listed(addr) {
		place.party = listed
	}
	p.mu.Lock()
	victim, verdict := p.room(place)
	report := ""
	switch {
	case verdict == Refused:
		p.refused++
		p.metrics.refused.WithLabelValues(partyNames[place.party]).Inc()
	case verdict == Granted:
		p.drop(victim)
		p.held[place.party]++
		p.each[addr]++
		p.rest(place)
		if victim != nil {
			p.yielded++
			p.metrics.yielded.WithLabelValues(partyNames[victim.party]).Inc()
		}
	}
	if verdict == Refused || victim != nil {
		report = p.report(place)
	}
	p.mu.Unlock()
	if report != "" && p.o.Report != nil {
		p.o.Report(report)
	}
	if verdict != Granted {
		return nil, verdict
	}
	if victim != nil {
		victim.yield()
	}
	return place, Granted
}

// room finds a place for a newcomer: a free one, or that of an idle victim. The caller holds mu.
func (p *Pool) room(newcomer *Place) (victim *Place, verdict Verdict) {
	full := p.held[listed]+p.held[stranger] >= p.o.Total
	if newcomer.party == stranger {
		if p.each[newcomer.addr] >= p.o.StrangersEach {
			return nil, Refused
		}
		if !full && p.held[stranger] < p.o.Strangers {
			return nil, Granted
		}
		victim = p.longestIdle(stranger)
		if victim == nil || p.now().Sub(victim.since) < p.o.Settle {
			return nil, Refused
		}
		return victim, Granted
	}
	if p.each[newcomer.addr] >= p.o.Each {
		// Somebody may have made up packets with the address of a machine, or sits at it while the machine is off.
		if victim = p.idleOf(newcomer.addr); victim == nil {
			return nil, Refused
		}
		return victim, Granted
	}
	if !full {
		return nil, Granted
	}
	if victim = p.longestIdle(stranger); victim == nil {
		victim = p.longestIdle(listed)
	}
	if victim == nil {
		return nil, Full
	}
	return victim, Granted
}

func (p *Pool) longestIdle(of party) *Place {
	if first := p.idle[of].Front(); first != nil {
		return first.Value.(*Place)
	}
	return nil
}

// idleOf is the place of a listed address that is idle for the longest time.
func (p *Pool) idleOf(addr netip.Addr) *Place {
	for e := p.idle[listed].Front(); e != nil; e = e.Next() {
		if place := e.Value.(*Place); place.addr == addr {
			return place
		}
	}
	return nil
}

// report is what there is to say of a want of places; "" if that was said a moment ago. The caller holds mu.
func (p *Pool) report(last *Place) string {
	now := p.now()
	if now.Sub(p.reported) < reportEvery {
		return ""
	}
	refused, yielded := p.refused, p.yielded
	p.refused, p.yielded, p.reported = 0, 0, now
	return fmt.Sprintf("%d refused and %d idle ones ended for want of a place, the last time because of %s (%s); machines of the list have %d places and others %d, of %d",
		refused, yielded, last.addr, partyNames[last.party], p.held[listed], p.held[stranger], p.o.Total)
}

// rest puts a place among those that give way. The caller holds mu.
func (p *Pool) rest(place *Place) {
	place.busy.Store(false)
	place.since = p.now()
	place.entry = p.idle[place.party].PushBack(place)
}

// drop takes the place of a holder away, who may be nil. The caller holds mu.
func (p *Pool) drop(place *Place) {
	if place == nil || place.gone {
		return
	}
	place.gone = true
	if place.entry != nil {
		p.idle[place.party].Remove(place.entry)
		place.entry = nil
	}
	p.held[place.party]--
	if p.each[place.addr]--; p.each[place.addr] == 0 {
		delete(p.each, place.addr)
	}
}

// Busy keeps the place from giving way: its holder does something with it.
func (pl *Place) Busy() {
	if pl.busy.Load() {
		return
	}
	pl.pool.mu.Lock()
	defer pl.pool.mu.Unlock()
	if pl.gone || pl.busy.Load() {
		return
	}
	pl.busy.Store(true)
	pl.pool.idle[pl.party].Remove(pl.entry)
	pl.entry = nil
}

// Idle lets the place give way.
func (pl *Place) Idle() {
	if !pl.busy.Load() {
		return
	}
	pl.pool.mu.Lock()
	defer pl.pool.mu.Unlock()
	if pl.gone || !pl.busy.Load() {
		return
	}
	pl.pool.rest(pl)
	pl.pool.signal()
}

// Release gives the place back. Twice is once.
func (pl *Place) Release() {
	pl.pool.mu.Lock()
	defer pl.pool.mu.Unlock()
	pl.pool.drop(pl)
	pl.pool.signal()
}

// Listed tells whether it was given to a machine of the list.
func (pl *Place) Listed() bool { return pl.party == listed }

func (p *Pool) signal() {
	select {
	case p.freed <- struct{}{}:
	default:
	}
}

// Freed has something to receive after a place became free or idle. One goroutine may wait.
func (p *Pool) Freed() <-chan struct{} { return p.freed }

// Held is how many places are taken.
func (p *Pool) Held() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.held[listed] + p.held[stranger]
}

type metrics struct {
	refused, yielded *prometheus.CounterVec
}

func newMetrics(o Options) (*metrics, error) {
	counter := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "rackstrap", Subsystem: "places", Name: name, Help: help,
			ConstLabels: prometheus.Labels{"plane": o.Plane}}, []string{"of"})
	}
	m := &metrics{
		refused: counter("refused_total", "Connections and transfers refused for want of a place, by whose address it was."),
		yielded: counter("yielded_total", "Idle connections and transfers ended because others needed their place, by whose address it was."),
	}
	for _, name := range partyNames {
		m.refused.WithLabelValues(name)
		m.yielded.WithLabelValues(name)
	}
	if o.Metrics == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.refused, m.yielded} {
		if err := o.Metrics.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}
