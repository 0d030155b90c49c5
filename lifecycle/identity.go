package lifecycle

import (
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"rackstrap/inventory"
)

// identity is the UUID of a machine's board (SMBIOS, option 97) in the one spelling that all its firmware and
// loaders share; the zero identity says nothing.
//
// RFC 4578 fixes no order for the bytes of a UUID's first three fields: edk2 and iPXE send them as SMBIOS has them,
// little-endian, some BIOS ROMs in network order. Of the two spellings the smaller one stands for both.
type identity [16]byte

// placeholders are UUIDs that vendors ship on more than one board, as SMBIOS tools write them; see also pattern.
var placeholders = identities(
	"03000200-0400-0500-0006-000700080009", // AMI's default
	"12345678-1234-5678-90ab-cddeefaabbcc", // of reference boards
	"01234567-89ab-cdef-0123-456789abcdef",
)

func identities(texts ...string) map[identity]bool {
	all := map[identity]bool{}
	for _, text := range texts {
		all[spelling(text)] = true
	}
	return all
}

// identityOf is what a UUID proves: nothing, where it is none or a placeholder.
func identityOf(uuid string) identity {
	id := spelling(uuid)
	if id.pattern() || placeholders[id] {
		return identity{}
	}
	return id
}

// pattern tells whether nobody drew this number: it has one or two different bytes (all 0, all ff), or all its bytes
// are the same step apart (00112233-…, 00010203-…).
func (id identity) pattern() bool {
	step := id[1] - id[0]
	even := true
	for i := 2; i < len(id); i++ {
		even = even && id[i]-id[i-1] == step
	}
	sorted := id
	slices.Sort(sorted[:])
	return even || len(slices.Compact(sorted[:])) <= 2
}

func spelling(uuid string) (id identity) {
	raw, err := hex.DecodeString(strings.ReplaceAll(uuid, "-", ""))
	if err != nil || len(raw) != len(id) {
		return identity{}
	}
	swapped := slices.Clone(raw)
	for _, field := range [][]byte{swapped[0:4], swapped[4:6], swapped[6:8]} {
		slices.Reverse(field)
	}
	if slices.Compare(swapped, raw) < 0 {
		raw = swapped
	}
	return identity(raw)
}

// known puts the names of all MACs in force, the slot that is free next, and whose each UUID is. The caller holds mu.
func (r *Rack) known(cfg *inventory.Config) {
	names := bindings(cfg, r.records)
	r.names = names // never changed, always replaced
	r.listed.Store(&names)
	r.slot = r.freeSlot()
	r.identify()
}

// identify works out which machine each UUID proves: "" where several have it, so that it proves none. The caller
// holds mu.
func (r *Rack) identify() {
	r.owners = map[identity]string{}
	for mac, name := range r.names {
		if s, seen := r.sightings[mac]; seen {
			r.own(s.id, name)
		}
	}
}

// own notes that a machine of the list has a UUID. The caller holds mu.
func (r *Rack) own(id identity, name string) {
	if id == (identity{}) {
		return
	}
	if other, taken := r.owners[id]; taken && other != name {
		name = ""
	}
	r.owners[id] = name
}

// learnUUID notes the UUID of a sighting, and tells whether that of a machine of the list turns out to be another's,
// too. The caller holds mu.
func (r *Rack) learnUUID(s *sighting, uuid string) (shared bool) {
	if uuid == "" || uuid == s.UUID {
		return false
	}
	before := s.id
	s.UUID, s.id = uuid, identityOf(uuid)
	name, listed := r.names[s.MAC]
	switch {
	case !listed || s.id == before:
		return false
	case before == (identity{}): // a thousand machines that boot for the first time
		r.own(s.id, name)
	default: // its board was replaced: somebody else's may have become the only one
		r.identify()
	}
	owner, taken := r.owners[s.id]
	return taken && owner == ""
}

// sharedUUID is the event about two machines of the list with one UUID.
func sharedUUID(mac inventory.MAC, uuid string) Event {
	return Event{MAC: mac, Source: "lifecycle", Kind: "uuid", Level: Warn, Text: fmt.Sprintf(
		"its UUID %s is that of another machine of the list, too: it proves neither. If both are cards of one machine, "+
			"put them into one `mac: [...]`, before the second one's installation erases the first one's disk", uuid)}
}

// cardOf is the machine whose further card this is: a MAC outside of the list, with the UUID of exactly one machine in
// it. The UUID is that of the packet at hand; "" for the one seen last. The caller holds mu.
func (r *Rack) cardOf(mac inventory.MAC, uuid string) (name string, ok bool) {
	if _, known := r.names[mac]; known {
		return "", false
	}
	id := identityOf(uuid)
	if s, seen := r.sightings[mac]; uuid == "" && seen {
		id = s.id
	}
	name = r.owners[id]
	return name, name != "" && id != (identity{})
}

// decideCard is what a further card of a machine boots: the disk, like the machine itself; or nothing, where the
// machine is to be installed from the card that the list names, so that the firmware goes on to that one. It is never
// itself installed. The caller holds mu.
func (r *Rack) decideCard(mac inventory.MAC, name string) Decision {
	d := Decision{MAC: mac, CardOf: name, Action: ActionLocalDisk}
	listed, ok := r.config.ByName(name)
	if !ok {
		d.Action, d.Reason = ActionIgnore, fmt.Sprintf("%s is no machine of the list any more", name)
		return d
	}
	d.Machine = *listed
	d.Machine.MAC, d.Machine.MACs = mac, nil
	own := r.card(listed)
	switch main := r.decide(own, ""); main.Action {
	case ActionLocalDisk, ActionHold:
		d.Reason = fmt.Sprintf("%s is a further card of %s (the same UUID), which is %s", mac, name, main.Record.State)
	default:
		d.Action = ActionPass
		d.Reason = fmt.Sprintf("%s is a further card of %s (the same UUID), which is to be installed by %s: no boot file, so that the firmware goes on to that one", mac, name, own)
	}
	return d
}

// FurtherCardError is an approval, or an enrolment, of what is a card of a known machine.
type FurtherCardError struct {
	MAC   inventory.MAC
	Name  string // of that machine
	State State
}

func (e *FurtherCardError) Error() string {
	return fmt.Sprintf("%s has the UUID of %[2]s (%[3]s): it is a further card of that machine, and installing it would erase the disk of %[2]s. "+
		"To boot %[2]s by it as well, add it to the mac of %[2]s in the list, then `rackstrap reload`. "+
		"If it is another machine with a copied UUID, approve it with --other-machine", e.MAC, e.Name, e.State)
}

// refuseCard is a *FurtherCardError for a further card of a known machine.
func (r *Rack) refuseCard(mac inventory.MAC) error {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if name, ok := r.cardOf(mac, ""); ok {
		return &FurtherCardError{MAC: mac, Name: name, State: r.records[name].State}
	}
	return nil
}

// ApproveOther is Approve for a machine that has the UUID of another one: the operator vouches that it is not that
// one. From then on that UUID proves neither.
func (r *Rack) ApproveOther(ctx context.Context, mac inventory.MAC, name string) (Record, error) {
	r.change.Lock()
	defer r.change.Unlock()
	return r.bind(ctx, mac, name, "approved as another machine than those with its UUID")
}

// card is the one of a machine's cards that it used last: the one that it boots by. Zero for a free slot. The caller
// holds mu.
func (r *Rack) card(m *inventory.Machine) inventory.MAC {
	if m.MAC.IsZero() {
		return r.records[m.Name].MAC
	}
	if used := r.used[m.Name]; m.Has(used) {
		return used
	}
	last := m.MAC // as far as is known from before a restart
	for _, mac := range m.MACs {
		if s, ok := r.sightings[mac]; ok && (r.sightings[last] == nil || s.Last.After(r.sightings[last].Last)) {
			last = mac
		}
	}
	return last
}

// SameMachine tells whether both are cards of one machine of the list, or the same card.
func (r *Rack) SameMachine(a, b inventory.MAC) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	name, ok := r.names[a]
	return a == b || ok && name == r.names[b]
}

// UseCard notes by which of its cards a machine of the list is on the network just now.
func (r *Rack) UseCard(mac inventory.MAC) {
	r.mu.RLock()
	m, ok := r.machine(mac)
	same := !ok || len(m.MACs) == 0 || r.used[m.Name] == mac
	r.mu.RUnlock()
	if same {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.used[m.Name] = mac
}

// Cards are all MACs of the machine that has this one: those of the list, or the one of its record, and further cards
// that were seen. Of what is not known it is the MAC itself.
func (r *Rack) Cards(mac inventory.MAC) []inventory.MAC {
	r.mu.RLock()
	defer r.mu.RUnlock()
	name, ok := r.names[mac]
	if !ok {
		if name, ok = r.cardOf(mac, ""); !ok {
			return []inventory.MAC{mac}
		}
	}
	cards := []inventory.MAC{}
	for own, of := range r.names {
		if of == name {
			cards = append(cards, own)
		}
	}
	for other := range r.sightings {
		if of, further := r.cardOf(other, ""); further && of == name {
			cards = append(cards, other)
		}
	}
	slices.SortFunc(cards, func(a, b inventory.MAC) int { return slices.Compare(a[:], b[:]) })
	return cards
}

// lastBoot is when firmware last began a network boot by any card that the record's machine has by the list.
func (r *Rack) lastBoot(rec Record) time.Time {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.lastBootSeen(rec)
}

// lastBootSeen is lastBoot for a caller who holds mu.
func (r *Rack) lastBootSeen(rec Record) (last time.Time) {
	cards := []inventory.MAC{rec.MAC}
	if m, ok := r.config.ByName(rec.Name); ok && m.Has(rec.MAC) {
		cards = m.Cards()
	}
	for _, mac := range cards {
		if s, ok := r.sightings[mac]; ok {
			last = later(last, s.LastBoot)
		}
	}
	return last
}

// cardsText is how a record keeps several cards; "" for a single one, which is its MAC.
func cardsText(m *inventory.Machine) string {
	if len(m.MACs) < 2 {
		return ""
	}
	texts := make([]string, len(m.MACs))
	for i, mac := range m.MACs {
		texts[i] = mac.String()
	}
	return strings.Join(texts, " ")
}

// fits tells whether the record is of the hardware that the list describes: they have a card in common. Which other
// cards the list names, and in what order, is no matter.
func (rec Record) fits(m *inventory.Machine) bool {
	if m.Has(rec.MAC) {
		return true
	}
	return slices.ContainsFunc(strings.Fields(rec.Cards), func(text string) bool {
		mac, err := inventory.ParseMAC(text)
		return err == nil && m.Has(mac)
	})
}

// sameBoard finds the installed machine whose UUID a machine that is new in the list has, if exactly one has it. The
// caller holds change.
func (r *Rack) sameBoard(cfg *inventory.Config, m *inventory.Machine) (Record, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	ids := map[identity]bool{}
	for _, mac := range m.Cards() {
		if s, seen := r.sightings[mac]; seen && s.id != (identity{}) {
			ids[s.id] = true
		}
	}
	has := func(mac inventory.MAC) bool { s, seen := r.sightings[mac]; return seen && ids[s.id] }
	names := map[string]bool{}
	for name, rec := range r.records {
		if has(rec.MAC) {
			names[name] = true
		}
	}
	for i := range cfg.Machines {
		if slices.ContainsFunc(cfg.Machines[i].Cards(), has) {
			names[cfg.Machines[i].Name] = true
		}
	}
	delete(names, m.Name)
	if len(names) != 1 {
		return Record{}, false
	}
	for name := range names {
		rec := r.records[name]
		return rec, rec.State.PastInstall()
	}
	return Record{}, false
}

// take has the record follow the cards that the list names. Its own stays as long as the list has it.
func (rec *Record) take(m *inventory.Machine) {
	if !m.Has(rec.MAC) {
		rec.MAC = m.MAC
		rec.Node.Boot = Boot{} // of the hardware before
	}
	rec.Cards, rec.Enrolled = cardsText(m), false
}
