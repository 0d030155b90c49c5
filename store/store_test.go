package store

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"rackstrap/internal/testenv"
	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

func TestReopenKeepsEverything(t *testing.T) {
	path := t.TempDir() + "/rackstrap.db"
	s, err := Open(path)
	require.NoError(t, err)
	fill(t, s, 3)
	records, events, sightings, leases := contents(t, s)
	require.NoError(t, s.Close())
	require.NoError(t, s.Close(), "closing twice is harmless")

	s, err = Open(path)
	require.NoError(t, err)
	defer s.Close()
	records2, events2, sightings2, leases2 := contents(t, s)
	require.Equal(t, records, records2)
	require.Equal(t, events, events2)
	require.Equal(t, sightings, sightings2)
	require.Equal(t, leases, leases2)

	entries, err := os.ReadDir(filepath.Dir(path))
	require.NoError(t, err)
	require.Len(t, entries, 1, "creating leaves no temporary file")
	info, err := entries[0].Info()
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm(), "it holds hashes of secrets")
}

func TestClosed(t *testing.T) {
	s := openTemp(t)
	require.NoError(t, s.Close())
	_, err := s.Commit(ctx, lifecycle.Record{Name: "a"})
	require.ErrorIs(t, err, ErrClosed)
	require.ErrorIs(t, s.PutLease(ctx, lease(1)), ErrClosed)
	_, err = s.Records(ctx)
	require.ErrorIs(t, err, ErrClosed)
}

// A change that fails on its own account must not take along those that share its transaction.
func TestBadInputIsRefusedAlone(t *testing.T) {
	s := openTemp(t)
	farFuture := time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) // JSON has no such time
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 20 {
				if err := s.PutLease(ctx, lease(i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for name, change := range map[string]func() error{
		"no name":       func() error { _, err := s.Commit(ctx, lifecycle.Record{}); return err },
		"endless name":  func() error { return s.Delete(ctx, lifecycle.Record{Name: strings.Repeat("x", 40000)}) },
		"IPv6 lease":    func() error { return s.PutLease(ctx, lifecycle.Lease{IP: netip.MustParseAddr("::1")}) },
		"no address":    func() error { return s.DropLease(ctx, netip.Addr{}) },
		"lease time":    func() error { l := lease(0); l.Expires = farFuture; return s.PutLease(ctx, l) },
		"event time":    func() error { return s.Append(ctx, []lifecycle.Event{{Time: farFuture}}, nil) },
		"sighting time": func() error { return s.Append(ctx, nil, []lifecycle.Sighting{{First: farFuture}}) },
		"record event": func() error {
			_, err := s.Commit(ctx, lifecycle.Record{Name: "n"}, lifecycle.Event{Time: farFuture})
			return err
		},
		"record time": func() error { _, err := s.Commit(ctx, lifecycle.Record{Name: "n", Since: farFuture}); return err },
		"cancelled": func() error {
			ctx, cancel := context.WithCancel(ctx)
			cancel()
			return s.PutLease(ctx, lease(200))
		},
	} {
		require.Error(t, change(), name)
	}
	wg.Wait()
	records, events, sightings, leases := contents(t, s)
	require.Empty(t, records)
	require.Empty(t, events)
	require.Empty(t, sightings)
	require.Len(t, leases, 20)
}

func TestInUse(t *testing.T) {
	path := t.TempDir() + "/rackstrap.db"
	first, err := Open(path)
	require.NoError(t, err)
	_, err = Open(path, LockTimeout(10*time.Millisecond))
	var inUse *InUseError
	require.ErrorAs(t, err, &inUse)
	require.Equal(t, path, inUse.Path)
	require.ErrorContains(t, err, "another rackstrap holds it")

	released := time.AfterFunc(50*time.Millisecond, func() { first.Close() })
	defer released.Stop()
	second, err := Open(path, LockTimeout(10*time.Second))
	require.NoError(t, err, "it waits for a predecessor that is leaving")
	require.NoError(t, second.Close())
}

func TestNewerVersionIsLeftAlone(t *testing.T) {
	path := t.TempDir() + "/rackstrap.db"
	s, err := Open(path)
	require.NoError(t, err)
	require.NoError(t, s.Close())
	rewrite(t, path, func(tx *bolt.Tx) error { return tx.Bucket(bucketMeta).Put(keyVersion, []byte("7")) })
	before, err := os.ReadFile(path)
	require.NoError(t, err)
	stat := modified(t, path)

	_, err = Open(path)
	var newer *lifecycle.VersionError
	require.ErrorAs(t, err, &newer)
	require.Equal(t, lifecycle.VersionError{Path: path, Found: 7, Supports: Version}, *newer)
	after, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, before, after)
	require.Equal(t, stat, modified(t, path))
}

func TestOlderVersionIsTakenOver(t *testing.T) {
	path := t.TempDir() + "/rackstrap.db"
	s, err := Open(path)
	require.NoError(t, err)
	_, err = s.Commit(ctx, lifecycle.Record{Name: "kmaster", State: lifecycle.Installed})
	require.NoError(t, err)
	require.NoError(t, s.Close())
	rewrite(t, path, func(tx *bolt.Tx) error { return tx.Bucket(bucketMeta).Put(keyVersion, []byte("1")) })

	s, err = Open(path)
	require.NoError(t, err)
	records, err := s.Records(ctx)
	require.NoError(t, err)
	require.Len(t, records, 1)
	none, err := s.Cluster(ctx)
	require.NoError(t, err)
	require.Zero(t, none)
	require.NoError(t, s.Close())
	rewrite(t, path, func(tx *bolt.Tx) error {
		require.Equal(t, "3", string(tx.Bucket(bucketMeta).Get(keyVersion)), "an older rackstrap leaves it alone from now on")
		return nil
	})
}

func TestForeignContentIsDamage(t *testing.T) {
	for name, edit := range map[string]func(tx *bolt.Tx) error{
		"no version":    func(tx *bolt.Tx) error { return tx.Bucket(bucketMeta).Delete(keyVersion) },
		"bad version":   func(tx *bolt.Tx) error { return tx.Bucket(bucketMeta).Put(keyVersion, []byte("one")) },
		"zero version":  func(tx *bolt.Tx) error { return tx.Bucket(bucketMeta).Put(keyVersion, []byte("0")) },
		"no bucket":     func(tx *bolt.Tx) error { return tx.DeleteBucket(bucketLeases) },
		"bad cluster":   func(tx *bolt.Tx) error { return tx.Bucket(bucketMeta).Put(keyCluster, []byte("{")) },
		"bad record":    func(tx *bolt.Tx) error { return tx.Bucket(bucketRecords).Put([]byte("x"), []byte("{")) },
		"bad lease":     func(tx *bolt.Tx) error { return tx.Bucket(bucketLeases).Put([]byte("xxxx"), []byte(`{"ip":"1.2"}`)) },
		"bad sighting":  func(tx *bolt.Tx) error { return tx.Bucket(bucketSightings).Put([]byte("x"), nil) },
		"nested bucket": func(tx *bolt.Tx) error { _, err := tx.Bucket(bucketRecords).CreateBucket([]byte("b")); return err },
	} {
		path := t.TempDir() + "/rackstrap.db"
		s, err := Open(path)
		require.NoError(t, err)
		require.NoError(t, s.Close())
		rewrite(t, path, edit)
		_, err = Open(path)
		var corrupt *CorruptError
		require.ErrorAs(t, err, &corrupt, name)
		require.Equal(t, path, corrupt.Path)
	}
}

func TestDamagedEventIsReported(t *testing.T) {
	path := t.TempDir() + "/rackstrap.db"
	s, err := Open(path)
	require.NoError(t, err)
	fill(t, s, 1)
	require.NoError(t, s.Close())
	for _, bad := range []struct{ key, value string }{{"8 bytes.", "{"}, {"short", "{}"}} {
		rewrite(t, path, func(tx *bolt.Tx) error {
			log, err := tx.Bucket(bucketEvents).CreateBucketIfNotExists(hostB[:])
			if err != nil {
				return err
			}
			return log.Put([]byte(bad.key), []byte(bad.value))
		})
		s, err = Open(path)
		require.NoError(t, err)
		_, err = s.Events(ctx, lifecycle.EventQuery{MAC: hostB})
		var corrupt *CorruptError
		require.ErrorAs(t, err, &corrupt)
		_, err = s.Events(ctx, lifecycle.EventQuery{MAC: mac(0)})
		require.NoError(t, err, "the other machines' are fine")
		require.NoError(t, s.Close())
	}
}

func TestOpenFailures(t *testing.T) {
	dir := t.TempDir()
	_, err := Open(dir + "/none/rackstrap.db")
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = Open(dir)
	require.Error(t, err, "a directory")
}

// A full disk: the caller gets the error, nothing is half-written, and work goes on when there is space again.
func TestDiskFull(t *testing.T) {
	testenv.NeedRoot(t)
	dir := t.TempDir()
	require.NoError(t, unix.Mount("rackstrap-store-test", dir, "tmpfs", 0, "size=512k"))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	path := dir + "/rackstrap.db"
	filler := dir + "/filler"
	fillDisk := func() {
		err := os.WriteFile(filler, make([]byte, 1<<20), 0o600)
		require.ErrorIs(t, err, unix.ENOSPC)
	}

	fillDisk()
	_, err := Open(path)
	require.ErrorIs(t, err, unix.ENOSPC)
	require.NoError(t, os.Remove(filler))
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, entries, "a database that could not be made leaves nothing behind")

	s, err := Open(path)
	require.NoError(t, err)
	rec, err := s.Commit(ctx, lifecycle.Record{Name: "kmaster", State: lifecycle.Armed, Since: noon})
	require.NoError(t, err)
	fillDisk()

	stored := 0
	var full error
	for i := 0; full == nil && i < 10000; i++ {
		changed := rec
		changed.Attempt = i
		var next lifecycle.Record
		if next, full = s.Commit(ctx, changed, event(hostA, strings.Repeat("x", 500))); full == nil {
			rec, stored = next, stored+1
		}
	}
	require.ErrorIs(t, full, unix.ENOSPC)
	check := func(s *Store) {
		records, events, _, _ := contents(t, s)
		require.Equal(t, []lifecycle.Record{rec}, records, "the last acknowledged one")
		require.Len(t, events, stored, "the record and its event come together or not at all")
	}
	check(s)
	require.NoError(t, s.Close())
	s, err = Open(path)
	require.NoError(t, err, "a full disk does not keep it from being read")
	check(s)

	require.NoError(t, os.Remove(filler))
	rec, err = s.Commit(ctx, rec, event(hostA, "space again"))
	require.NoError(t, err)
	stored++
	check(s)
	require.NoError(t, s.Close())
	s, err = Open(path)
	require.NoError(t, err)
	check(s)
	require.NoError(t, s.Close())
}

// --- what the tests share

func mac(i int) inventory.MAC {
	return inventory.MAC{0x52, 0x54, 1, byte(i >> 16), byte(i >> 8), byte(i)}
}

func lease(i int) lifecycle.Lease {
	return lifecycle.Lease{
		IP:  netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}),
		MAC: mac(i), State: lifecycle.LeaseBound, Expires: noon,
	}
}

// fill stores some of everything for so many machines.
func fill(t testing.TB, s *Store, machines int) {
	for i := range machines {
		_, err := s.Commit(ctx, lifecycle.Record{Name: "node" + mac(i).Hyphens(), MAC: mac(i), State: lifecycle.Armed, Since: noon},
			event(mac(i), "armed"), event(mac(i), strings.Repeat("long ", 60)))
		require.NoError(t, err)
		require.NoError(t, s.Append(ctx, []lifecycle.Event{event(mac(i), "seen")}, []lifecycle.Sighting{{MAC: mac(i), First: noon, Last: noon}}))
		require.NoError(t, s.PutLease(ctx, lease(i)))
	}
}

func contents(t testing.TB, s *Store) ([]lifecycle.Record, []lifecycle.Event, []lifecycle.Sighting, []lifecycle.Lease) {
	records, err1 := s.Records(ctx)
	events, err2 := s.Events(ctx, lifecycle.EventQuery{})
	sightings, err3 := s.Sightings(ctx)
	leases, err4 := s.Leases(ctx)
	require.NoError(t, errors.Join(err1, err2, err3, err4))
	return records, events, sightings, leases
}

// rewrite changes a database behind our back.
func rewrite(t testing.TB, path string, edit func(*bolt.Tx) error) {
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: time.Second})
	require.NoError(t, err)
	require.NoError(t, db.Update(edit))
	require.NoError(t, db.Close())
}

func modified(t testing.TB, path string) time.Time {
	info, err := os.Stat(path)
	require.NoError(t, err)
	return info.ModTime()
}
