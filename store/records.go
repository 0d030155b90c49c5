package store

import (
	"context"
	"encoding/json"
	"fmt"

	bolt "go.etcd.io/bbolt"

	"rackstrap/lifecycle"
)

// Records implements lifecycle.Store; they come in the order of their names.
func (s *Store) Records(ctx context.Context) ([]lifecycle.Record, error) {
	return all[lifecycle.Record](ctx, s, bucketRecords)
}

// Commit implements lifecycle.Store.
func (s *Store) Commit(ctx context.Context, rec lifecycle.Record, events ...lifecycle.Event) (lifecycle.Record, error) {
	next, err := s.CommitAll(ctx, []lifecycle.Change{{Record: rec, Events: events}})
	if err != nil {
		return rec, err
	}
	return next[0], nil
}

// CommitAll implements lifecycle.Store.
func (s *Store) CommitAll(ctx context.Context, changes []lifecycle.Change) ([]lifecycle.Record, error) {
	if len(changes) == 0 {
		return nil, ctx.Err()
	}
	next := make([]lifecycle.Record, len(changes))
	values := make([][]byte, len(changes))
	lines := make([][]line, len(changes))
	names := map[string]bool{}
	for i, c := range changes {
		name := c.Record.Name
		if err := checkName(name); err != nil {
			return nil, err
		}
		if names[name] {
			return nil, fmt.Errorf("store record %q: changed twice at once", name)
		}
		names[name] = true
		next[i] = c.Record
		next[i].Revision++
		var err error
		if values[i], err = json.Marshal(next[i]); err != nil {
			return nil, fmt.Errorf("store record %q: %w", name, err)
		}
		if lines[i], err = encode(c.Events); err != nil {
			return nil, err
		}
	}
	name := changes[0].Record.Name // of the record in hand, for the error
	err := s.update(ctx, func(tx *bolt.Tx) error {
		for _, c := range changes { // all before the first is changed: see committer
			name = c.Record.Name
			if err := s.compare(tx, c.Record); err != nil {
				return err
			}
		}
		for i := range changes {
			name = next[i].Name
			if err := tx.Bucket(bucketRecords).Put([]byte(name), values[i]); err != nil {
				return err
			}
			if err := appendEvents(tx, lines[i]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("store record %q: %w", name, err)
	}
	return next, nil
}

// Delete implements lifecycle.Store.
func (s *Store) Delete(ctx context.Context, rec lifecycle.Record, events ...lifecycle.Event) error {
	if err := checkName(rec.Name); err != nil {
		return err
	}
	lines, err := encode(events)
	if err != nil {
		return err
	}
	err = s.update(ctx, func(tx *bolt.Tx) error {
		if err := s.compare(tx, rec); err != nil {
			return err
		}
		if err := tx.Bucket(bucketRecords).Delete([]byte(rec.Name)); err != nil {
			return err
		}
		return appendEvents(tx, lines)
	})
	if err != nil {
		return fmt.Errorf("delete record %q: %w", rec.Name, err)
	}
	return nil
}

// compare is ErrConflict unless the stored revision is the one that rec was read with; 0 is "none stored".
func (s *Store) compare(tx *bolt.Tx, rec lifecycle.Record) error {
	var stored lifecycle.Record
	if value := tx.Bucket(bucketRecords).Get([]byte(rec.Name)); value != nil {
		var err error
		if stored, err = decode[lifecycle.Record](s, bucketRecords, []byte(rec.Name), value); err != nil {
			return err
		}
	}
	if stored.Revision != rec.Revision {
		return lifecycle.ErrConflict
	}
	return nil
}

// checkName refuses what cannot be a key, before it could fail a shared transaction.
func checkName(name string) error {
	if name == "" || len(name) > bolt.MaxKeySize {
		return fmt.Errorf("a record needs a name of 1 to %d bytes, this one has %d", bolt.MaxKeySize, len(name))
	}
	return nil
}
