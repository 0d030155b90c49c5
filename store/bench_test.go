package store

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"

	"rackstrap/lifecycle"
)

// How many leases a second reach the disk, by the number of goroutines that wait for it, with our committer
// and with bbolt's Batch.
func BenchmarkPutLease(b *testing.B) {
	for _, writers := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			s := openTemp(b)
			parallel(b, writers, func(i int) error { return s.PutLease(ctx, lease(i%5000)) })
		})
		b.Run(fmt.Sprintf("batch/writers=%d", writers), func(b *testing.B) {
			s := openTemp(b)
			s.db.MaxBatchDelay = time.Millisecond
			parallel(b, writers, func(i int) error {
				l := lease(i % 5000)
				return s.db.Batch(func(tx *bolt.Tx) error {
					return tx.Bucket(bucketLeases).Put(l.IP.AsSlice(), []byte(l.MAC.String()))
				})
			})
		})
	}
}

// Appending to full logs of 1,000 machines, each append dropping an event.
func BenchmarkAppend(b *testing.B) {
	s := openTemp(b)
	for i := range 1000 {
		events := make([]lifecycle.Event, lifecycle.EventsPerMachine)
		for j := range events {
			events[j] = event(mac(i), "a line as long as they usually are, with an address or two")
		}
		require.NoError(b, s.Append(ctx, events, nil))
	}
	parallel(b, 64, func(i int) error {
		return s.Append(ctx, []lifecycle.Event{event(mac(i%1000), "a line as long as they usually are, with an address or two")}, nil)
	})
}

func BenchmarkOpen(b *testing.B) {
	path := b.TempDir() + "/rackstrap.db"
	s, err := Open(path)
	require.NoError(b, err)
	for i := range 1000 {
		events := make([]lifecycle.Event, lifecycle.EventsPerMachine)
		for j := range events {
			events[j] = event(mac(i), "a line as long as they usually are, with an address or two")
		}
		require.NoError(b, s.Append(ctx, events, nil))
	}
	require.NoError(b, s.Close())
	for b.Loop() {
		s, err := Open(path)
		require.NoError(b, err)
		s.Close()
	}
}

func parallel(b *testing.B, goroutines int, write func(i int) error) {
	var next atomic.Int64
	done := make(chan error)
	b.ResetTimer()
	for range goroutines {
		go func() {
			for {
				i := int(next.Add(1))
				if i > b.N {
					done <- nil
					return
				}
				if err := write(i); err != nil {
					done <- err
					return
				}
			}
		}()
	}
	for range goroutines {
		if err := <-done; err != nil {
			b.Error(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "writes/s")
}
