package lifecycle

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"rackstrap/inventory"
)

// EventsPerMachine is how many events of each class a store keeps for each MAC (the zero MAC, the rack, included).
const EventsPerMachine = 500

// MemoryStore is a Store that forgets everything at exit: for tests and rehearsals.
type MemoryStore struct {
	mu        sync.Mutex
	seq       uint64
	cluster   Cluster
	records   map[string]Record
	events    map[inventory.MAC][]Event
	sightings map[inventory.MAC]Sighting
	leases    map[netip.Addr]Lease
}

// NewMemoryStore returns an empty store.
func NewMemoryStore() *MemoryStore {
	return &MemoryStore{
		records:   map[string]Record{},
		events:    map[inventory.MAC][]Event{},
		sightings: map[inventory.MAC]Sighting{},
		leases:    map[netip.Addr]Lease{},
	}
}

var _ Store = (*MemoryStore)(nil)

// Records implements Store.
func (s *MemoryStore) Records(context.Context) ([]Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.SortedFunc(maps.Values(s.records), func(a, b Record) int { return cmp.Compare(a.Name, b.Name) }), nil
}

// Commit implements Store.
func (s *MemoryStore) Commit(ctx context.Context, rec Record, events ...Event) (Record, error) {
	next, err := s.CommitAll(ctx, []Change{{Record: rec, Events: events}})
	if err != nil {
		return rec, err
	}
	return next[0], nil
}

// CommitAll implements Store.
func (s *MemoryStore) CommitAll(_ context.Context, changes []Change) ([]Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := map[string]bool{}
	for _, c := range changes {
		if s.records[c.Record.Name].Revision != c.Record.Revision {
			return nil, ErrConflict
		}
		if names[c.Record.Name] {
			return nil, fmt.Errorf("record %q: changed twice at once", c.Record.Name)
		}
		names[c.Record.Name] = true
	}
	var next []Record
	for _, c := range changes {
		c.Record.Revision++
		s.records[c.Record.Name] = c.Record
		s.append(c.Events)
		next = append(next, c.Record)
	}
	return next, nil
}

// Delete implements Store.
func (s *MemoryStore) Delete(_ context.Context, rec Record, events ...Event) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.records[rec.Name].Revision != rec.Revision {
		return ErrConflict
	}
	delete(s.records, rec.Name)
	s.append(events)
	return nil
}

// Cluster implements Store.
func (s *MemoryStore) Cluster(context.Context) (Cluster, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cluster, nil
}

// CommitCluster implements Store.
func (s *MemoryStore) CommitCluster(_ context.Context, c Cluster, events ...Event) (Cluster, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cluster.Revision != c.Revision {
		return c, ErrConflict
	}
	c.Revision++
	s.cluster = c
	s.append(events)
	return c, nil
}

// Append implements Store.
func (s *MemoryStore) Append(_ context.Context, events []Event, sightings []Sighting) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.append(events)
	for _, seen := range sightings {
		s.sightings[seen.MAC] = seen
	}
	return nil
}

func (s *MemoryStore) append(events []Event) {
	for _, e := range events {
		s.seq++
		e.Seq = s.seq
		kept := append(s.events[e.MAC], e)
		of := func(kept Event) bool { return kept.Class() == e.Class() }
		held := 0
		for _, k := range kept {
			if of(k) {
				held++
			}
		}
		if held > EventsPerMachine {
			kept = slices.Delete(kept, slices.IndexFunc(kept, of), slices.IndexFunc(kept, of)+1)
		}
		s.events[e.MAC] = kept
	}
}

// Events implements Store.
func (s *MemoryStore) Events(_ context.Context, q EventQuery) ([]Event, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []Event
	for mac, events := range s.events {
		if !q.Has(mac) {
			continue
		}
		for _, e := range events {
			if e.Seq > q.After {
				found = append(found, e)
			}
		}
	}
	slices.SortFunc(found, func(a, b Event) int { return cmp.Compare(a.Seq, b.Seq) })
	if q.Limit > 0 {
		found = found[max(0, len(found)-q.Limit):]
	}
	return found, nil
}

// Sightings implements Store.
func (s *MemoryStore) Sightings(context.Context) ([]Sighting, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Values(s.sightings)), nil
}

// Forget implements Store.
func (s *MemoryStore) Forget(_ context.Context, macs []inventory.MAC) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, mac := range macs {
		delete(s.sightings, mac)
		delete(s.events, mac)
	}
	return nil
}

// Leases implements Store.
func (s *MemoryStore) Leases(context.Context) ([]Lease, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Values(s.leases)), nil
}

// PutLease implements Store.
func (s *MemoryStore) PutLease(_ context.Context, l Lease) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leases[l.IP] = l
	return nil
}

// DropLease implements Store.
func (s *MemoryStore) DropLease(_ context.Context, ip netip.Addr) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.leases, ip)
	return nil
}

// Close implements Store.
func (s *MemoryStore) Close() error { return nil }
