package store

import (
	"context"
	"encoding/json"
	"fmt"

	bolt "go.etcd.io/bbolt"

	"rackstrap/lifecycle"
)

// Cluster implements lifecycle.Store.
func (s *Store) Cluster(ctx context.Context) (c lifecycle.Cluster, err error) {
	err = s.view(ctx, func(tx *bolt.Tx) error {
		c, err = s.cluster(tx)
		return err
	})
	return c, err
}

// cluster reads the record within a transaction.
func (s *Store) cluster(tx *bolt.Tx) (c lifecycle.Cluster, err error) {
	value := tx.Bucket(bucketMeta).Get(keyCluster)
	if value == nil {
		return c, nil
	}
	return decode[lifecycle.Cluster](s, bucketMeta, keyCluster, value)
}

// CommitCluster implements lifecycle.Store.
func (s *Store) CommitCluster(ctx context.Context, c lifecycle.Cluster, events ...lifecycle.Event) (lifecycle.Cluster, error) {
	next := c
	next.Revision++
	value, err := json.Marshal(next)
	if err != nil {
		return c, fmt.Errorf("store cluster: %w", err)
	}
	lines, err := encode(events)
	if err != nil {
		return c, err
	}
	err = s.update(ctx, func(tx *bolt.Tx) error {
		stored, err := s.cluster(tx)
		if err != nil {
			return err
		}
		if stored.Revision != c.Revision {
			return lifecycle.ErrConflict
		}
		if err := tx.Bucket(bucketMeta).Put(keyCluster, value); err != nil {
			return err
		}
		return appendEvents(tx, lines)
	})
	if err != nil {
		return c, fmt.Errorf("store cluster: %w", err)
	}
	return next, nil
}
