package repo

import (
	"container/list"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// store keeps verified files on disk under their checksums, up to a number of bytes. What is in it is whole and
// right: a file comes in by rename, after it was verified and synced. The least recently used go first; what is
// being read, or pinned, stays.
type store struct {
	dir     string
	limit   int64
	log     *slog.Logger
	now     func() time.Time
	metrics *metrics

	mu      sync.Mutex
	objects map[sum]*object
	lru     list.List // of *object, the least recently used in front
	size    int64     // of all objects, and of what is reserved
	pins    map[string][]sum
}

type object struct {
	sum     sum
	size    int64
	refs    int // readers
	pinned  int
	element *list.Element
	touched time.Time // what the disk knows
}

// The directories of the cache.
const (
	objectsDir = "objects" // verified files by checksum, in directories by its first two digits
	partialDir = "partial" // files that are being fetched; emptied at start
	reposDir   = "repos"   // what is known of each upstream
)

// openStore looks at what an earlier daemon left, which may have been killed at any instant.
func openStore(dir string, limit int64, log *slog.Logger, now func() time.Time, m *metrics) (*store, error) {
	s := &store{dir: dir, limit: limit, log: log, now: now, metrics: m, objects: map[sum]*object{}, pins: map[string][]sum{}}
	if err := os.RemoveAll(filepath.Join(dir, partialDir)); err != nil {
		return nil, err
	}
	for _, sub := range []string{objectsDir, partialDir, reposDir} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, err
		}
	}
	if err := s.index(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.report()
	return s, nil
}

func (s *store) index() error {
	var found []*object
	root := filepath.Join(s.dir, objectsDir)
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		what, err := parseSum(entry.Name())
		if err != nil || path != s.path(what) || !entry.Type().IsRegular() {
			s.log.Warn("repo: a file in the cache is none of ours", "path", path)
			return nil
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		found = append(found, &object{sum: what, size: info.Size(), touched: info.ModTime()})
		return nil
	})
	if err != nil {
		return err
	}
	slices.SortFunc(found, func(a, b *object) int { return a.touched.Compare(b.touched) })
	for _, o := range found {
		o.element = s.lru.PushBack(o)
		s.objects[o.sum] = o
		s.size += o.size
	}
	return nil
}

func (s *store) path(what sum) string {
	return filepath.Join(s.dir, objectsDir, what.hex[:2], what.String())
}

// has tells whether a file is there, without using it. size -1 is any.
func (s *store) has(what sum, size int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, ok := s.objects[what]
	return ok && (size < 0 || o.size == size)
}

// open opens a file that is kept; false if there is none.
func (s *store) open(what sum) (*blob, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, ok := s.objects[what]
	if !ok {
		return nil, false
	}
	f, err := os.Open(s.path(what))
	if err == nil {
		var info fs.FileInfo
		if info, err = f.Stat(); err == nil && info.Size() != o.size {
			err = fmt.Errorf("it has %d bytes in place of %d", info.Size(), o.size)
		}
		if err != nil {
			f.Close()
		}
	}
	if err != nil { // somebody else was at the directory, or the disk lost it: fetch it again
		s.log.Warn("repo: a file of the cache is lost", "file", what.String(), "err", err)
		s.drop(o)
		return nil, false
	}
	s.use(o)
	return &blob{SectionReader: io.NewSectionReader(f, 0, o.size), file: f, release: func() { s.release(o) }}, true
}

// use counts a reader, and makes the object the most recently used one.
func (s *store) use(o *object) {
	o.refs++
	s.lru.MoveToBack(o.element)
	if now := s.now(); now.Sub(o.touched) > 10*time.Minute {
		o.touched = now
		os.Chtimes(s.path(o.sum), now, now) // the order after the next start: not worth an error
	}
}

func (s *store) release(o *object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o.refs--
	s.evict(0)
}

// drop forgets an object and removes its file. Who has it open reads on.
func (s *store) drop(o *object) {
	if err := os.Remove(s.path(o.sum)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Error("repo: cannot remove a file of the cache", "err", err)
	}
	s.lru.Remove(o.element)
	delete(s.objects, o.sum)
	s.size -= o.size
	s.report()
}

// evict makes room for so many more bytes, as far as that is possible.
func (s *store) evict(room int64) {
	for e := s.lru.Front(); e != nil && s.size+room > s.limit; {
		o := e.Value.(*object)
		e = e.Next()
		if o.refs > 0 || o.pinned > 0 {
			continue
		}
		s.drop(o)
		s.metrics.evictions.Inc()
		s.log.Debug("repo: evicted", "file", o.sum.String(), "bytes", o.size)
	}
}

// reserve makes room for a file that will be fetched. give takes the reservation back.
func (s *store) reserve(size int64) (give func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.evict(size)
	s.size += size
	s.report()
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.size -= size
		s.report()
	})
}

// partial creates the file that is fetched into.
func (s *store) partial() (*os.File, error) {
	return os.CreateTemp(filepath.Join(s.dir, partialDir), "*.part")
}

// keep takes in a partial file that was verified, and counts one reader of it, who must release it.
func (s *store) keep(f *os.File, what sum, size int64) (release func(), err error) {
	if err := f.Sync(); err != nil {
		return nil, err
	}
	target := s.path(what)
	if err := os.MkdirAll(filepath.Dir(target), 0o700); err != nil {
		return nil, err
	}
	if err := os.Rename(f.Name(), target); err != nil {
		return nil, err
	}
	if err := errors.Join(syncDir(filepath.Dir(target)), syncDir(filepath.Dir(filepath.Dir(target)))); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	o, there := s.objects[what]
	if !there {
		o = &object{sum: what, size: size, touched: s.now()}
		o.element = s.lru.PushBack(o)
		s.objects[what] = o
		s.size += size
		for _, pinned := range s.pins {
			if slices.Contains(pinned, what) {
				o.pinned++
			}
		}
	}
	s.use(o)
	s.evict(0)
	s.report()
	return sync.OnceFunc(func() { s.release(o) }), nil
}

// pin keeps files from being evicted, in place of those that the owner pinned before.
func (s *store) pin(owner string, files []sum) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, what := range s.pins[owner] {
		if o, ok := s.objects[what]; ok {
			o.pinned--
		}
	}
	s.pins[owner] = files
	for _, what := range files {
		if o, ok := s.objects[what]; ok {
			o.pinned++
		}
	}
	s.evict(0)
}

func (s *store) report() {
	s.metrics.cacheBytes.Set(float64(s.size))
	s.metrics.cacheFiles.Set(float64(len(s.objects)))
}

// blob is a file of the cache as media.Content.
type blob struct {
	*io.SectionReader
	file    *os.File
	release func()
	once    sync.Once
}

func (b *blob) Close() (err error) {
	b.once.Do(func() {
		err = b.file.Close()
		b.release()
	})
	return err
}

// Region is media.Content's: sendfile may send it.
func (b *blob) Region() (f *os.File, off, n int64, ok bool) { return b.file, 0, b.Size(), true }

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// replaceFile writes a small file of state: whole, or not at all.
func replaceFile(path string, content []byte) (err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".*.new")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = f.Write(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}
