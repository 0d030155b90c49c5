package store

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"

	bolt "go.etcd.io/bbolt"

	"rackstrap/lifecycle"
)

// Leases implements lifecycle.Store; they come in the order of their addresses.
func (s *Store) Leases(ctx context.Context) ([]lifecycle.Lease, error) {
	return all[lifecycle.Lease](ctx, s, bucketLeases)
}

// PutLease implements lifecycle.Store.
func (s *Store) PutLease(ctx context.Context, l lifecycle.Lease) error {
	key, err := leaseKey(l.IP)
	if err != nil {
		return err
	}
	value, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("store lease of %v: %w", l.IP, err)
	}
	err = s.update(ctx, func(tx *bolt.Tx) error {
		return tx.Bucket(bucketLeases).Put(key, value)
	})
	if err != nil {
		return fmt.Errorf("store lease of %v: %w", l.IP, err)
	}
	return nil
}

// DropLease implements lifecycle.Store.
func (s *Store) DropLease(ctx context.Context, ip netip.Addr) error {
	key, err := leaseKey(ip)
	if err != nil {
		return err
	}
	err = s.update(ctx, func(tx *bolt.Tx) error {
		return tx.Bucket(bucketLeases).Delete(key)
	})
	if err != nil {
		return fmt.Errorf("drop lease of %v: %w", ip, err)
	}
	return nil
}

// leaseKey is the address in network order, so that keys sort as addresses do.
func leaseKey(ip netip.Addr) ([]byte, error) {
	if !ip.Is4() {
		return nil, fmt.Errorf("a lease needs an IPv4 address, not %q", ip)
	}
	return ip.AsSlice(), nil
}
