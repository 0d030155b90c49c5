// Package lifecycle is the state of every machine: one transition table, the decision what a machine boots
// next, and its event log. It is the only owner of mutable state; all listeners ask it.
package lifecycle

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"rackstrap/inventory"
)

// Options are the dependencies of a Rack.
type Options struct {
	Store Store
	Log   *slog.Logger
	Now   func() time.Time

	TicketKey []byte // see LoadTicketKey; nil: one that ends with this Rack
}

// Rack holds the life of all machines. All methods are safe for concurrent use. What a method of the kind
// "change something" returns without an error is on disk.
type Rack struct {
	store Store
	log   *slog.Logger
	now   func() time.Time

	ticketKey []byte

	// change is held for reading by the transitions of single machines, which wait for the disk, and for
	// writing by what concerns several machines at once. It is taken before mu, never after: deciding what
	// a machine boots never waits for a disk.
	change sync.RWMutex
	// turns gives each machine's transitions an order, while those of different machines share an fsync.
	turns turns
	// clusterTurn gives the changes of the cluster's record an order.
	clusterTurn sync.Mutex

	mu        sync.RWMutex
	config    *inventory.Config
	cluster   Cluster
	records   map[string]Record        // by machine name
	names     map[inventory.MAC]string // MAC -> name: the list's, then those bound by approve or enrolment; see known
	slot      string                   // the first machine of the list without hardware; see known
	sightings map[inventory.MAC]*sighting
	unwritten []*sighting // those that are dirty
	leases    leaseIndex
	owners    map[identity]string      // UUID -> name of the machine that it proves; "": several have it
	used      map[string]inventory.MAC // by name: the card that a machine with several used last

	listed    atomic.Pointer[map[inventory.MAC]string] // names, for those who must not wait for mu
	strangers strangers

	journal journal
	lives   lives     // what machines do just now
	started time.Time // when this Rack began to listen
}

type sighting struct {
	Sighting
	id    identity      // of its UUID
	dirty bool          // not written yet: it is among unwritten
	place *list.Element // in strangers.seen
}

// New loads the state and reconciles it with the configuration: machines that are new in the list are armed.
func New(ctx context.Context, cfg *inventory.Config, o Options) (*Rack, error) {
	r := &Rack{
		store: o.Store, log: o.Log, now: o.Now,
		records:   map[string]Record{},
		sightings: map[inventory.MAC]*sighting{},
		leases:    newLeaseIndex(),
		used:      map[string]inventory.MAC{},
		ticketKey: o.TicketKey,
	}
	if r.ticketKey == nil {
		r.ticketKey = newTicketKey()
	}
	r.started = r.now()
	r.journal.init()
	r.strangers.init()
	records, err := r.store.Records(ctx)
	if err != nil {
		return nil, fmt.Errorf("read records: %w", err)
	}
	for _, rec := range records {
		r.records[rec.Name] = rec.understood()
	}
	seen, err := r.store.Sightings(ctx)
	if err != nil {
		return nil, fmt.Errorf("read sightings: %w", err)
	}
	slices.SortFunc(seen, func(a, b Sighting) int { return a.Last.Compare(b.Last) })
	for _, s := range seen {
		r.remember(&sighting{Sighting: s, id: identityOf(s.UUID)})
	}
	leases, err := r.store.Leases(ctx)
	if err != nil {
		return nil, fmt.Errorf("read leases: %w", err)
	}
	for _, l := range leases {
		r.leases.put(l)
	}
	if r.cluster, err = r.store.Cluster(ctx); err != nil {
		return nil, fmt.Errorf("read cluster: %w", err)
	}
	if err := r.Reload(ctx, cfg); err != nil {
		return nil, err
	}
	return r, nil
}

// Config is the configuration in force.
func (r *Rack) Config() *inventory.Config {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.config
}

// Reload puts another configuration in force. Machines new in the list are armed; the states of the others
// stay. A machine whose hardware is not the one that its state belongs to is held: a new NIC in a Ready
// master must not wipe it.
func (r *Rack) Reload(ctx context.Context, cfg *inventory.Config) error {
	r.change.Lock()
	defer r.change.Unlock()

	var changes []Change // a thousand machines that are new in the list share one fsync
	for i := range cfg.Machines {
		if c, needed := r.adopt(cfg, &cfg.Machines[i]); needed {
			changes = append(changes, c)
		}
	}
	if len(changes) > 0 {
		stored, err := r.store.CommitAll(ctx, changes)
		if err != nil {
			return fmt.Errorf("store the machines that are new in the list: %w", err)
		}
		var events []Event
		for _, c := range changes {
			events = append(events, c.Events...)
		}
		r.show(stored, events)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.config = cfg
	r.known(cfg)
	return nil
}

// bindings maps MACs to names: the list's own, and those given to free slots.
func bindings(cfg *inventory.Config, records map[string]Record) map[inventory.MAC]string {
	names := map[inventory.MAC]string{}
	for _, m := range cfg.Machines {
		if rec, ok := records[m.Name]; ok && m.MAC.IsZero() && rec.Enrolled {
			names[rec.MAC] = m.Name
		}
	}
	for _, m := range cfg.Machines { // the list has the last word
		for _, mac := range m.Cards() {
			names[mac] = m.Name
		}
	}
	return names
}

// adopt finds what a machine of the list needs for its record to fit its hardware, if anything.
func (r *Rack) adopt(cfg *inventory.Config, m *inventory.Machine) (c Change, needed bool) {
	if m.MAC.IsZero() {
		return Change{}, false // a free slot, or bound to the MAC of its record
	}
	rec, known := r.records[m.Name]
	if known && m.Has(rec.MAC) && rec.Cards == cardsText(m) {
		return Change{}, false
	}
	next := rec
	next.Name = m.Name
	next.take(m)
	if known && rec.fits(m) {
		return Change{Record: next, Events: []Event{{Time: r.now(), MAC: next.MAC, Machine: m.Name, Attempt: next.Attempt,
			Source: "lifecycle", Kind: "cards", Level: Info, Text: fmt.Sprintf("the list gives it the cards %s", m.Cards())}}}, true
	}
	previous, moved := r.installedAs(cfg, m)
	board, copied := r.sameBoard(cfg, m)
	switch {
	case known && (rec.State.PastInstall() || rec.State == Failed):
		next.State, next.Since = Failed, r.now()
		next.Failure = &Failure{Phase: rec.State, Reason: fmt.Sprintf(
			"the list gives it the MAC %s, but the hardware known so far has %s: `rackstrap reinstall %s` installs the new one",
			m.MAC, rec.MAC, m.Name)}
	case moved:
		next.State, next.Since = Failed, r.now()
		next.Attempt = max(next.Attempt, 1)
		next.Failure = &Failure{Phase: previous.State, Reason: fmt.Sprintf(
			"this hardware was installed as %s: `rackstrap reinstall %s` installs it under its new name", previous.Name, m.Name)}
	case copied:
		next.State, next.Since = Failed, r.now()
		next.Attempt = max(next.Attempt, 1)
		next.Failure = &Failure{Phase: board.State, Reason: fmt.Sprintf(
			"it has the UUID of %s, which is installed, so that it may be a further card of that machine: `rackstrap reinstall %s` installs it, if it is not",
			board.Name, m.Name)}
	default:
		next.Since = r.now()
		next.arm(Armed)
	}
	return Change{Record: next, Events: []Event{r.transitionEvent(rec, next, "listed")}}, true
}

// installedAs finds the record of the same hardware under another name that the list no longer gives it.
func (r *Rack) installedAs(cfg *inventory.Config, m *inventory.Machine) (Record, bool) {
	for name, rec := range r.records {
		if name == m.Name || !rec.fits(m) || !rec.State.PastInstall() {
			continue
		}
		if now, listed := cfg.ByName(name); listed && now.MAC == m.MAC {
			continue
		}
		return rec, true
	}
	return Record{}, false
}

// commit writes a record and its events, and then shows it. The caller holds change, or the machine's turn.
func (r *Rack) commit(ctx context.Context, rec Record, events ...Event) error {
	stored, err := r.store.Commit(ctx, rec, events...)
	if err != nil {
		return fmt.Errorf("%s: store: %w", rec.Name, err)
	}
	r.show([]Record{stored}, events)
	return nil
}

// show puts stored records in force, and announces their events.
func (r *Rack) show(stored []Record, events []Event) {
	r.mu.Lock()
	moved := false
	for _, rec := range stored {
		old, known := r.records[rec.Name]
		moved = moved || !known || old.MAC != rec.MAC || old.Enrolled != rec.Enrolled
		r.records[rec.Name] = rec
	}
	if r.config != nil && moved { // most changes are of a state: a thousand machines make thousands of them
		r.known(r.config)
	}
	r.mu.Unlock()
	for _, e := range events {
		r.journal.announce(e)
		r.logEvent(e)
	}
}

func (r *Rack) transitionEvent(from, to Record, why string) Event {
	e := Event{Time: r.now(), MAC: to.MAC, Machine: to.Name, Attempt: to.Attempt,
		Source: "lifecycle", Kind: string(to.State), Level: Info}
	switch {
	case from.State == to.State && from.Held != to.Held:
		e.Source, e.Kind, e.Text = "operator", "unhold", to.Name+" is not held any more"
		if to.IsHeld() {
			e.Kind, e.Level, e.Text = "hold", Warn, to.heldText()
		}
	case to.State == Failed && to.Failure != nil:
		e.Level = Alarm
		e.Text = fmt.Sprintf("%s: %s", to.Failure.Phase, to.Failure.Reason)
	case from.State == "":
		e.Text = fmt.Sprintf("%s (%s)", to.State, why)
	default:
		e.Text = fmt.Sprintf("%s -> %s (%s), attempt %d", from.State, to.State, why, to.Attempt)
	}
	return e.Plain()
}

// UnknownMachineError names a machine that is not in the list.
type UnknownMachineError struct{ Name string }

func (e *UnknownMachineError) Error() string { return fmt.Sprintf("no machine %q in the list", e.Name) }

// Machine is the machine of the list that has this MAC, by the list or by enrolment; its MAC is filled in.
func (r *Rack) Machine(mac inventory.MAC) (inventory.Machine, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.machine(mac)
}

func (r *Rack) machine(mac inventory.MAC) (inventory.Machine, bool) {
	name, ok := r.names[mac]
	if !ok {
		return inventory.Machine{}, false
	}
	listed, ok := r.config.ByName(name)
	if !ok {
		return inventory.Machine{}, false
	}
	m := *listed
	m.MAC = mac
	return m, true
}

// MACByIP is the hardware that an address was given to: by reservation, else by lease. Of a machine with several
// cards it is the one that it used last.
func (r *Rack) MACByIP(ip netip.Addr) (inventory.MAC, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if listed, ok := r.config.ByIP(ip); ok {
		mac := r.card(listed)
		return mac, !mac.IsZero()
	}
	if l, ok := r.leases.byIP(ip); ok && l.State == LeaseBound {
		return l.MAC, true
	}
	return inventory.MAC{}, false
}

// ListedAddress tells whether an address is one of a machine of the list: its reservation, or what its card has leased.
func (r *Rack) ListedAddress(ip netip.Addr) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if _, ok := r.config.ByIP(ip); ok {
		return true
	}
	l, ok := r.leases.byIP(ip)
	if !ok || l.State != LeaseBound || !l.Expires.After(r.now()) {
		return false
	}
	_, listed := r.names[l.MAC]
	return listed
}

// Decision is what a machine boots next, and why.
type Decision struct {
	Action  Action
	MAC     inventory.MAC
	Listed  bool              // Machine and Record are valid
	CardOf  string            // not listed itself, but a further card of this machine: Machine is valid
	Machine inventory.Machine // from the list
	Record  Record
	Reason  string // one line for people: on screens, in refusals
	// Unseen: it waits because its boot was not seen, as one does that was approved while it waited.
	Unseen bool
	// Anonymous: who asks is not seen to be that machine, and is told neither its name nor its state.
	Anonymous bool
	Hardware  inventory.MAC // of who asks, if it is seen and not the machine's; else zero

	Ticket string // of the boot script that says "install", see Ticket
}

// OffersNothing tells whether the machine gets no boot file at all, and why.
func (d Decision) OffersNothing() (reason string, yes bool) {
	switch d.Action {
	case ActionIgnore, ActionPass:
		return d.Reason, true
	case ActionLocalDisk, ActionHold:
		if d.Machine.Install.LocalBoot == inventory.LocalSkip {
			return d.Reason + ": it boots its disk without a loader (local_boot: skip)", true
		}
	}
	return "", false
}

// Decide derives what the machine boots next. It is the one place where this is decided.
func (r *Rack) Decide(mac inventory.MAC) Decision {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.decide(mac, "")
}

// DecideSeen is Decide for a packet that names a UUID: what it says of itself counts, before it is written down.
func (r *Rack) DecideSeen(mac inventory.MAC, uuid string) Decision {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.decide(mac, uuid)
}

func (r *Rack) decide(mac inventory.MAC, uuid string) Decision {
	d := Decision{MAC: mac}
	m, listed := r.machine(mac)
	if name, further := r.cardOf(mac, uuid); further {
		return r.decideCard(mac, name)
	}
	if !listed {
		if r.config.Network.DHCP.Unknown == inventory.UnknownIgnore {
			d.Action, d.Reason = ActionIgnore, fmt.Sprintf("%s is not in the list, and unknown machines are ignored", mac)
			return d
		}
		d.Action, d.Reason = ActionDiscover, fmt.Sprintf("%s is not in the list", mac)
		return d
	}
	d.Listed, d.Machine, d.Record = true, m, r.records[m.Name]
	rec := d.Record
	limit := m.Install.Attempts
	switch state := rec.State; {
	case !m.Has(rec.MAC):
		d.Action, d.Reason = ActionHold, fmt.Sprintf("%s: its state belongs to other hardware (%s)", m.Name, rec.MAC)
	case state == Armed:
		d.Action, d.Reason = ActionInstall, fmt.Sprintf("%s is armed", m.Name)
	case state == Installing && rec.Tries < limit:
		d.Action, d.Reason = ActionInstall, fmt.Sprintf("%s has not finished installation %d of %d", m.Name, rec.Tries, limit)
	case state == Installing:
		d.Action, d.Reason = ActionHold, fmt.Sprintf("%s was installed %d times without success: `rackstrap reinstall %s` tries again", m.Name, rec.Tries, m.Name)
	case rec.retries(limit):
		d.Action, d.Reason = ActionInstall, fmt.Sprintf("%s failed, installation %d of %d follows: %s", m.Name, rec.Tries+1, limit, rec.Failure.Reason)
	case state == Failed:
		d.Action, d.Reason = ActionHold, fmt.Sprintf("%s failed: %s", m.Name, rec.Failure.Reason)
	case state.PastInstall():
		d.Action, d.Reason = ActionLocalDisk, fmt.Sprintf("%s is %s", m.Name, state)
	default:
		d.Action, d.Reason = ActionHold, fmt.Sprintf("%s is in no state that boots (%q)", m.Name, state)
	}
	if rec.IsHeld() {
		d.Action, d.Reason = ActionHold, fmt.Sprintf("%s (%s)", rec.heldText(), d.Reason)
	}
	return d
}

// retries tells whether a failed machine is installed again by itself.
func (rec Record) retries(limit int) bool {
	return rec.State == Failed && rec.Failure != nil && rec.Failure.Retryable &&
		rec.Failure.Phase == Installing && rec.Tries < limit
}

// Status is everything about one machine that the operator may want to see: a copy.
type Status struct {
	Name     string            `json:"name,omitempty"`
	MAC      inventory.MAC     `json:"mac"`               // of several cards the one that it used last
	MACs     []inventory.MAC   `json:"macs,omitempty"`    // all of them, where the list names several
	CardOf   string            `json:"card_of,omitempty"` // not in the list, but a further card of this machine
	Machine  inventory.Machine `json:"-"`
	IP       netip.Addr        `json:"ip,omitzero"`
	Role     inventory.Role    `json:"role,omitempty"`
	State    State             `json:"state"`
	Action   Action            `json:"action"`
	Reason   string            `json:"reason"`
	Limit    int               `json:"limit,omitempty"` // installations tried before it is held
	Record   Record            `json:"record,omitzero"`
	Sighting Sighting          `json:"seen,omitzero"`
	Progress *Progress         `json:"progress,omitempty"` // with what it does in its present state
}

// Machines lists the machines of the list, in its order, and then those discovered, the latest first.
func (r *Rack) Machines() []Status {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var all []Status
	for _, m := range r.config.Machines {
		st := Status{Name: m.Name, Machine: m, IP: m.IP, Role: m.Role, MAC: m.MAC, MACs: m.MACs, Limit: m.Install.Attempts}
		if !m.MAC.IsZero() {
			st.MAC = r.card(&m)
		}
		if rec, ok := r.records[m.Name]; ok && (m.Has(rec.MAC) || m.MAC.IsZero() && rec.Enrolled) {
			if m.MAC.IsZero() {
				st.MAC = rec.MAC
			}
			st.Record, st.State = rec, rec.State
			st.Record = st.Record.Public()
			// A network boot ends whatever the machine was at.
			if p, ok := r.progress(rec); ok && !r.lastBootSeen(rec).After(p.At) {
				st.Progress = &p
			}
		}
		if st.MAC.IsZero() {
			st.Reason = "a free slot"
		} else {
			d := r.decide(st.MAC, "")
			if s, ok := r.sightings[st.MAC]; ok {
				st.Sighting = s.Sighting
				if r.config.Network.DHCP.Mode != inventory.DHCPServer && s.Address.IsValid() {
					d = r.at(d, s.Address)
				}
			}
			st.Action, st.Reason = d.Action, d.Reason
			if where := r.standing(st.Record, r.lastBootSeen(st.Record)); where != "" {
				st.Reason = where + "; " + st.Reason
			}
			if who := r.twoParties(m.Name); who != "" {
				st.Reason = who + "; " + st.Reason
			}
		}
		all = append(all, st)
	}
	var found []Status
	for mac, s := range r.sightings {
		if _, listed := r.names[mac]; listed {
			continue
		}
		d := r.decide(mac, "")
		found = append(found, Status{MAC: mac, CardOf: d.CardOf, IP: s.Address, State: Discovered, Action: d.Action, Reason: d.Reason, Sighting: s.Sighting})
	}
	slices.SortFunc(found, func(a, b Status) int {
		if c := b.Sighting.Last.Compare(a.Sighting.Last); c != 0 {
			return c
		}
		return slices.Compare(a.MAC[:], b.MAC[:])
	})
	return append(all, found...)
}

// ErrNoHardware is an operation on a slot without hardware.
var ErrNoHardware = errors.New("no hardware has this slot yet: approve a discovered machine for it")
