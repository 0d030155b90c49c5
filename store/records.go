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
	if err := checkName(rec.Name); err != nil {
		return rec, err
	}
	next := rec
	next.Revision++
	value, err := json.Marshal(next)
	if err != nil {
		return rec, fmt.Errorf("store record %q: %w", rec.Name, err)
	}
	lines, err := encode(events)
	if err != nil {
		return rec, err
	}
	err = s.update(ctx, func(tx *bolt.Tx) error {
		if err := s.compare(tx, rec); err != nil {
			return err
		}
		if err := tx.Bucket(bucketRecords).Put([]byte(rec.Name), value); err != nil {
			return err
		}
		return appendEvents(tx, lines)
	})
	if err != nil {
		return rec, fmt.Errorf("store record %q: %w", rec.Name, err)
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
