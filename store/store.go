// Package store keeps the rack's state in one bbolt file, behind lifecycle.Store.
//
// bbolt was chosen because it is one file with crash-safe transactions, in pure Go: the appliance stays one
// static binary, and a backup is a copy. Values are JSON, so that `bbolt get` shows them to people:
//
//	meta       "version"              schema version, decimal
//	meta       "cluster"              lifecycle.Cluster
//	records    name                   lifecycle.Record
//	leases     IPv4, 4 bytes          lifecycle.Lease
//	sightings  MAC, 6 bytes           lifecycle.Sighting
//	events     MAC, 6 bytes           a bucket: sequence number, 8 bytes big-endian -> lifecycle.Event
//
// The sequence of bucket events is the Seq of the newest event; the sequence of a machine's bucket is the
// number of events in it. Writers that come at the same time share one transaction and its fsync.
package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"rackstrap/lifecycle"
)

// Version is the schema version that this package writes, and the newest that it reads. Version 1 knew no cluster: what
// wrote it would drop what a record remembers of its node, so it must not open this one. Version 2 knew no Record.Held:
// what wrote it would install a machine that is held. Databases of both are taken over as they are.
const Version = 3

// ErrClosed is a call on a store after Close.
var ErrClosed = errors.New("store is closed")

// InUseError is a database that another process (or another Store of this one) has open.
type InUseError struct{ Path string }

func (e *InUseError) Error() string {
	return e.Path + ": another rackstrap holds it: stop that one, or use another server.data_dir"
}

// CorruptError is a file that is no database of ours, or one that lost or changed bytes.
type CorruptError struct {
	Path   string
	Reason string
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("%s: database is damaged (%s): restore a copy, or move the file away to start afresh", e.Path, e.Reason)
}

var (
	bucketMeta      = []byte("meta")
	bucketRecords   = []byte("records")
	bucketLeases    = []byte("leases")
	bucketSightings = []byte("sightings")
	bucketEvents    = []byte("events")
	keyVersion      = []byte("version")
	keyCluster      = []byte("cluster")
)

// buckets lists every top-level bucket; a database has all of them from its first transaction on.
func buckets() [][]byte {
	return [][]byte{bucketMeta, bucketRecords, bucketLeases, bucketSightings, bucketEvents}
}

// mappedBytes is the address space reserved for the file. bbolt must wait for all readers whenever it has
// to map a larger file; 1,000 machines with full event logs fit into this, so that it never does.
const mappedBytes = 256 << 20

// growBytes is by how much the file grows at a time. bbolt's own 16 MiB is more than most racks ever need.
const growBytes = 512 << 10

// Option changes how Open works.
type Option func(*options)

type options struct{ lockTimeout time.Duration }

// LockTimeout is how long Open waits for another holder of the file to go away; 1 s by default, which is
// enough for a predecessor that is just being shut down.
func LockTimeout(d time.Duration) Option { return func(o *options) { o.lockTimeout = d } }

// Store is a lifecycle.Store in a bbolt file. Make one with Open.
type Store struct {
	path   string
	db     *bolt.DB
	writes *committer
}

var _ lifecycle.Store = (*Store)(nil)

// Open opens the database, or creates it with mode 0600 in a directory that must exist. It fails with
// *InUseError, *lifecycle.VersionError or *CorruptError; in all three the file has not been touched.
func Open(path string, opts ...Option) (*Store, error) {
	o := options{lockTimeout: time.Second}
	for _, opt := range opts {
		opt(&o)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		if err = create(path); err == nil {
			f, err = os.OpenFile(path, os.O_RDWR, 0)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	db, err := open(f, path, o)
	if err != nil {
		f.Close()
		return nil, err
	}
	s := &Store{path: path, db: db, writes: newCommitter(db)}
	if err := s.checkContent(); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// open locks and examines the file, and only then shows it to bbolt, which trusts every page that it maps:
// on a damaged file it panics, recurses for ever or faults.
func open(f *os.File, path string, o options) (*bolt.DB, error) {
	if err := lock(f, path, o.lockTimeout); err != nil {
		return nil, err
	}
	version, err := examine(f)
	if err != nil {
		var damage damage
		if errors.As(err, &damage) {
			return nil, &CorruptError{Path: path, Reason: string(damage)}
		}
		return nil, fmt.Errorf("%s: read database: %w", path, err)
	}
	found, err := strconv.Atoi(version)
	switch {
	case err != nil || found < 1:
		return nil, &CorruptError{Path: path, Reason: "it has no schema version"}
	case found > Version:
		return nil, &lifecycle.VersionError{Path: path, Found: found, Supports: Version}
	}
	db, err := openBolt(path, func(string, int, os.FileMode) (*os.File, error) { return f, nil })
	if err != nil {
		return nil, fmt.Errorf("%s: open database: %w", path, err)
	}
	if found < Version {
		if err := db.Update(putVersion); err != nil {
			return nil, errors.Join(fmt.Errorf("%s: raise the version of the database: %w", path, err), db.Close())
		}
	}
	return db, nil
}

// openBolt opens with our settings. That bbolt locks the file again is harmless: flock(2) belongs to the
// open file description, which is the same.
func openBolt(path string, openFile func(string, int, os.FileMode) (*os.File, error)) (*bolt.DB, error) {
	db, err := bolt.Open(path, 0o600, &bolt.Options{
		Timeout:         time.Second,
		FreelistType:    bolt.FreelistMapType,
		InitialMmapSize: mappedBytes,
		OpenFile:        openFile,
		NoStatistics:    true,
	})
	if err != nil {
		return nil, err
	}
	db.AllocSize = growBytes
	return db, nil
}

// lock takes the file for this process alone.
func lock(f *os.File, path string, timeout time.Duration) error {
	const retry = 20 * time.Millisecond
	for deadline := time.Now().Add(timeout); ; time.Sleep(retry) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
		case !errors.Is(err, unix.EWOULDBLOCK):
			return fmt.Errorf("%s: lock database: %w", path, err)
		case !time.Now().Before(deadline):
			return &InUseError{Path: path}
		}
	}
}

// create writes an empty database beside path and links it into place: a crash or a full disk leaves no
// half-made database behind. A link, unlike a rename, never replaces one that somebody made meanwhile.
func create(path string) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, filepath.Base(path)+".new-*")
	if err != nil {
		return err
	}
	temp := f.Name()
	defer os.Remove(temp)
	db, err := openBolt(temp, func(string, int, os.FileMode) (*os.File, error) { return f, nil })
	if err != nil {
		f.Close()
		return err
	}
	err = db.Update(func(tx *bolt.Tx) error {
		for _, name := range buckets() {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		return putVersion(tx)
	})
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	if err := os.Link(temp, path); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return syncDir(dir)
}

func putVersion(tx *bolt.Tx) error {
	return tx.Bucket(bucketMeta).Put(keyVersion, strconv.AppendInt(nil, Version, 10))
}

// syncDir makes a new name in the directory survive a power cut.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// checkContent looks for what a sound file may still lack: a bucket, or values that can be read. Events,
// by far the most, are not read: a damaged one is reported by the query that meets it.
func (s *Store) checkContent() error {
	err := s.view(context.Background(), func(tx *bolt.Tx) error {
		for _, name := range buckets() {
			if tx.Bucket(name) == nil {
				return &CorruptError{Path: s.path, Reason: fmt.Sprintf("bucket %s is missing", name)}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	_, errRecords := s.Records(context.Background())
	_, errLeases := s.Leases(context.Background())
	_, errSightings := s.Sightings(context.Background())
	_, errCluster := s.Cluster(context.Background())
	return errors.Join(errRecords, errLeases, errSightings, errCluster)
}

// Path is the database file.
func (s *Store) Path() string { return s.path }

// Close waits for the writes under way and releases the file. Later calls fail with ErrClosed.
func (s *Store) Close() error {
	s.writes.close()
	return s.db.Close()
}

// view runs a read-only transaction.
func (s *Store) view(ctx context.Context, read func(*bolt.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	err := s.db.View(read)
	if errors.Is(err, bolt.ErrDatabaseNotOpen) {
		return ErrClosed
	}
	return err
}

// update runs a change in a transaction that others may share; see committer.
func (s *Store) update(ctx context.Context, change func(*bolt.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.writes.do(change)
}

// decode reads a value; what cannot be read is damage, and the place is named.
func decode[T any](s *Store, bucket, key, value []byte) (v T, err error) {
	if err := json.Unmarshal(value, &v); err != nil {
		return v, &CorruptError{Path: s.path, Reason: fmt.Sprintf("%s %q: %v", bucket, key, err)}
	}
	return v, nil
}

// all decodes every value of a bucket, in the order of the keys.
func all[T any](ctx context.Context, s *Store, bucket []byte) ([]T, error) {
	var found []T
	err := s.view(ctx, func(tx *bolt.Tx) error {
		return tx.Bucket(bucket).ForEach(func(key, value []byte) error {
			v, err := decode[T](s, bucket, key, value)
			found = append(found, v)
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	return found, nil
}
