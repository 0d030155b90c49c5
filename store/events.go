package store

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"

	bolt "go.etcd.io/bbolt"

	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

// Append implements lifecycle.Store.
func (s *Store) Append(ctx context.Context, events []lifecycle.Event, sightings []lifecycle.Sighting) error {
	if len(events) == 0 && len(sightings) == 0 {
		return ctx.Err()
	}
	values := make([][]byte, len(sightings))
	for i, seen := range sightings {
		value, err := json.Marshal(seen)
		if err != nil {
			return fmt.Errorf("store sighting of %v: %w", seen.MAC, err)
		}
		values[i] = value
	}
	lines, err := encode(events)
	if err != nil {
		return err
	}
	err = s.update(ctx, func(tx *bolt.Tx) error {
		for i, value := range values {
			if err := tx.Bucket(bucketSightings).Put(sightings[i].MAC[:], value); err != nil {
				return err
			}
		}
		return appendEvents(tx, lines)
	})
	if err != nil {
		return fmt.Errorf("append events: %w", err)
	}
	return nil
}

// line is an event ready to be stored. Its Seq is not in the value: the key is, given at the last moment.
type line struct {
	log   []byte // see logName
	value []byte
}

// logName is the bucket of the events of one class about one MAC. Those of no class are all that versions up to 3 wrote.
func logName(mac inventory.MAC, class lifecycle.Class) []byte { return append(mac[:], class...) }

// encode prepares events for appendEvents, outside of the transaction that others share.
func encode(events []lifecycle.Event) ([]line, error) {
	lines := make([]line, len(events))
	for i, e := range events {
		e.Seq = 0
		value, err := json.Marshal(e)
		if err != nil {
			return nil, fmt.Errorf("store event of %v: %w", e.MAC, err)
		}
		lines[i] = line{logName(e.MAC, e.Class()), value}
	}
	return lines, nil
}

// appendEvents gives each event its Seq and drops the oldest of its machine and class, which is one step of a cursor:
// a bucket knows how many it holds.
func appendEvents(tx *bolt.Tx, lines []line) error {
	root := tx.Bucket(bucketEvents)
	for _, l := range lines {
		seq, err := root.NextSequence()
		if err != nil {
			return err
		}
		log, err := root.CreateBucketIfNotExists(l.log)
		if err != nil {
			return err
		}
		log.FillPercent = 0.9 // keys only rise: leave pages nearly full
		if err := log.Put(eventKey(seq), l.value); err != nil {
			return err
		}
		held := log.Sequence() + 1
		if held > lifecycle.EventsPerMachine+1 { // damage on the disk: it would take all of them, and then loop for ever
			held = uint64(log.Stats().KeyN)
		}
		for ; held > lifecycle.EventsPerMachine; held-- {
			oldest, value := log.Cursor().First()
			if err := rescue(root, l.log, oldest, value); err != nil {
				return err
			}
			if err := log.Delete(oldest); err != nil {
				return err
			}
		}
		if err := log.SetSequence(held); err != nil {
			return err
		}
	}
	return nil
}

// rescue puts an event that has to go into the log of its class, if it is not there: versions up to 3 had one log for all.
func rescue(root *bolt.Bucket, from, key, value []byte) error {
	if len(from) != len(inventory.MAC{}) {
		return nil
	}
	var e lifecycle.Event
	if json.Unmarshal(value, &e) != nil || e.Class() == lifecycle.Traces {
		return nil
	}
	log, err := root.CreateBucketIfNotExists(append(bytes.Clone(from), e.Class()...))
	if err != nil || log.Sequence() >= lifecycle.EventsPerMachine {
		return err
	}
	if err := log.Put(bytes.Clone(key), bytes.Clone(value)); err != nil {
		return err
	}
	return log.SetSequence(log.Sequence() + 1)
}

func eventKey(seq uint64) []byte { return binary.BigEndian.AppendUint64(nil, seq) }

// Events implements lifecycle.Store.
func (s *Store) Events(ctx context.Context, q lifecycle.EventQuery) ([]lifecycle.Event, error) {
	var found []lifecycle.Event
	err := s.view(ctx, func(tx *bolt.Tx) error {
		root := tx.Bucket(bucketEvents)
		macs := q.MACs()
		for _, mac := range macs {
			for _, class := range lifecycle.Classes() {
				if err := s.newest(root.Bucket(logName(mac, class)), q, &found); err != nil {
					return err
				}
			}
		}
		if len(macs) > 0 {
			return nil
		}
		return root.ForEachBucket(func(mac []byte) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			return s.newest(root.Bucket(mac), q, &found)
		})
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(found, func(a, b lifecycle.Event) int { return cmp.Compare(a.Seq, b.Seq) })
	if q.Limit > 0 {
		found = found[max(0, len(found)-q.Limit):]
	}
	return found, nil
}

// newest walks one machine's log backwards, no further than the query can need.
func (s *Store) newest(log *bolt.Bucket, q lifecycle.EventQuery, found *[]lifecycle.Event) error {
	if log == nil {
		return nil
	}
	after, n := eventKey(q.After), 0
	cursor := log.Cursor()
	for key, value := cursor.Last(); bytes.Compare(key, after) > 0; key, value = cursor.Prev() {
		if len(key) != len(after) {
			return &CorruptError{Path: s.path, Reason: fmt.Sprintf("events have the key %q", key)}
		}
		e, err := decode[lifecycle.Event](s, bucketEvents, key, value)
		if err != nil {
			return err
		}
		e.Seq = binary.BigEndian.Uint64(key)
		*found = append(*found, e)
		if n++; n == q.Limit {
			return nil
		}
	}
	return nil
}

// Sightings implements lifecycle.Store; they come in the order of their MACs.
func (s *Store) Sightings(ctx context.Context) ([]lifecycle.Sighting, error) {
	return all[lifecycle.Sighting](ctx, s, bucketSightings)
}

// Forget implements lifecycle.Store.
func (s *Store) Forget(ctx context.Context, macs []inventory.MAC) error {
	err := s.update(ctx, func(tx *bolt.Tx) error {
		events := tx.Bucket(bucketEvents)
		for _, mac := range macs {
			if err := tx.Bucket(bucketSightings).Delete(mac[:]); err != nil {
				return err
			}
			for _, class := range lifecycle.Classes() {
				log := logName(mac, class)
				if events.Bucket(log) == nil {
					continue
				}
				if err := events.DeleteBucket(log); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("forget machines: %w", err)
	}
	return nil
}
