// Package repo serves package repositories to the machines of the rack: those in directories of this host, and
// those of upstream servers, which are fetched through.
//
// A pull-through repository never serves a wrong byte. repomd.xml is revalidated when it is older than a minute,
// and a new one is served only when all files that it names are there and verified. Everything else has a
// checksum in that metadata before it is fetched, is fetched once however many clients ask, and becomes part of
// the cache by rename once its checksum was found right. Clients that read along while a file is fetched get its
// last bytes only then. If the upstream server is down, the last good metadata stays in force.
//
// The cache is on disk, addressed by checksums; what a killed daemon left half-way is removed at the next start.
package repo

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"rackstrap/media"
)

// Spec names one repository and where it is.
type Spec struct {
	Name string
	Dir  string            // a directory of this host, or
	URL  string            // an upstream server, without variables
	Keys map[string]string // URLs of further files, by name: served at .keys/<name>
}

// Options are the dependencies of a Service, and its limits; a limit of zero is the default.
type Options struct {
	Dir     string // of the cache
	Limit   int64  // bytes that the cache may have (20 GiB)
	Log     *slog.Logger
	Now     func() time.Time
	Metrics prometheus.Registerer                 // where the counters go; nil: nowhere
	Alarm   func(text string)                     // told of an upstream that lies while nobody gets an error; nil: nobody is told
	Proxy   func(*http.Request) (*url.URL, error) // for requests to upstreams; nil: none
	Memory  *Memory                               // of FetchIndex: with others; nil: alone
	Listed  func(netip.Addr) bool                 // whether an address is that of a listed machine; nil: all are

	Fresh        time.Duration // how long metadata is served without asking upstream whether it changed (60 s)
	StallTimeout time.Duration // how long an upstream may send nothing (20 s)
	Backoff      time.Duration // before the first repeated request; doubled for each further (250 ms)
	Patience     time.Duration // how long a client waits for metadata that is being fetched (25 s, yum waits 30)
	MaxConns     int           // downloads of packages at once from one upstream, and begun by one client (16)
	MaxOther     int64         // bytes of a file that no metadata names (64 MiB)

	internet func(netip.Addr) bool // for tests, which have no internet; nil: onInternet
}

const defaultStall = 20 * time.Second

// retryAfter is how long a failure is remembered: so long nobody else tries.
const retryAfter = 5 * time.Second

// Service serves repositories.
type Service struct {
	o       Options
	store   *store
	metrics *metrics
	ctx     context.Context // of downloads: they outlive the requests that began them
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu        sync.Mutex
	closed    bool
	mirrors   map[string]*mirror
	locals    map[string]*Local
	fetches   map[sum]*fetch
	failed_   map[sum]failure
	loads     map[netip.Addr]*load
	strangers int           // downloads under way that they began
	held      budget        // memory, by repository
	reading   chan struct{} // a place for each that reads metadata
	warm      chan struct{} // tells Run of new mirrors
}

type failure struct {
	err   error
	until time.Time
}

// Open opens the cache, with no repositories yet; see Set.
func Open(o Options) (*Service, error) {
	o.Limit = cmp.Or(o.Limit, 20<<30)
	o.Fresh = cmp.Or(o.Fresh, time.Minute)
	o.StallTimeout = cmp.Or(o.StallTimeout, defaultStall)
	o.Backoff = cmp.Or(o.Backoff, 250*time.Millisecond)
	o.Patience = cmp.Or(o.Patience, 25*time.Second)
	o.MaxConns = cmp.Or(o.MaxConns, 16)
	o.MaxOther = cmp.Or(o.MaxOther, 64<<20)
	m, err := newMetrics(o.Metrics)
	if err != nil {
		return nil, fmt.Errorf("repo: %w", err)
	}
	st, err := openStore(o.Dir, o.Limit, o.Log, o.Now, m)
	if err != nil {
		return nil, fmt.Errorf("repo: cache: %w", err)
	}
	s := &Service{o: o, store: st, metrics: m, loads: map[netip.Addr]*load{},
		held: budget{each: maxNames, most: maxNamesInAll, by: map[string]int64{}}, reading: make(chan struct{}, readers),
		mirrors: map[string]*mirror{}, locals: map[string]*Local{}, fetches: map[sum]*fetch{}, failed_: map[sum]failure{},
		warm: make(chan struct{}, 1)}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

// Set puts these repositories in place of those before. What is being sent or fetched goes on. With an error
// nothing has changed; it joins the faults of all.
func (s *Service) Set(specs []Spec) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	mirrors, locals := map[string]*mirror{}, map[string]*Local{}
	var opened []*Local
	var faults []error
	for _, spec := range specs {
		if mirrors[spec.Name] != nil || locals[spec.Name] != nil {
			faults = append(faults, fmt.Errorf("repository %q is there twice", spec.Name))
			continue
		}
		if spec.Dir != "" {
			if was := s.locals[spec.Name]; was != nil && was.dir == spec.Dir {
				locals[spec.Name] = was
				continue
			}
			l, err := OpenLocal(spec.Dir)
			if err != nil {
				faults = append(faults, fmt.Errorf("repository %q: %w", spec.Name, err))
				continue
			}
			opened = append(opened, l)
			locals[spec.Name] = l
			continue
		}
		base, err := url.Parse(spec.URL)
		if err != nil || base.Host == "" {
			faults = append(faults, fmt.Errorf("repository %q: its URL is none", spec.Name))
			continue
		}
		if was := s.mirrors[spec.Name]; was != nil && was.base.String() == base.String() && maps.Equal(was.keys, spec.Keys) {
			mirrors[spec.Name] = was
			continue
		}
		mirrors[spec.Name] = newMirror(s, spec, base)
	}
	if len(faults) > 0 {
		for _, l := range opened {
			l.Close()
		}
		return errors.Join(faults...)
	}
	for name, was := range s.locals {
		if locals[name] != was {
			was.Close()
		}
	}
	for name, was := range s.mirrors {
		if mirrors[name] != was {
			s.store.pin(name, nil)
			s.held.drop(name)
			was.client.http.CloseIdleConnections()
		}
	}
	s.mirrors, s.locals = mirrors, locals
	select {
	case s.warm <- struct{}{}:
	default:
	}
	return nil
}

// Names lists the repositories, sorted.
func (s *Service) Names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(mergeKeys(s.mirrors, s.locals)))
}

func mergeKeys[A, B any](a map[string]A, b map[string]B) map[string]bool {
	all := map[string]bool{}
	for name := range a {
		all[name] = true
	}
	for name := range b {
		all[name] = true
	}
	return all
}

// Run fetches the metadata of all repositories, so that the first machine need not wait for it, and does so
// again after Set. It returns when ctx ends.
func (s *Service) Run(ctx context.Context) error {
	defer s.Close()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.warm:
		}
		s.mu.Lock()
		mirrors, locals := slices.Collect(maps.Values(s.mirrors)), maps.Clone(s.locals)
		s.mu.Unlock()
		var group errgroup.Group
		group.SetLimit(4)
		for _, m := range mirrors {
			group.Go(func() error {
				m.current(ctx) // a failure is logged there
				return nil
			})
		}
		for name, l := range locals {
			group.Go(func() error {
				if _, err := l.current(); err != nil && !errors.Is(err, fs.ErrClosed) {
					s.o.Log.Warn("repo: the metadata of a directory cannot be read", "repo", name, "err", err)
				}
				return nil
			})
		}
		group.Wait()
	}
}

// Close ends all downloads. Nothing is served afterwards.
func (s *Service) Close() error {
	s.mu.Lock()
	s.closed = true
	locals, mirrors := s.locals, s.mirrors
	s.locals, s.mirrors = map[string]*Local{}, map[string]*mirror{}
	s.mu.Unlock()
	s.cancel()
	s.running.Wait()
	for _, m := range mirrors {
		m.client.http.CloseIdleConnections()
	}
	for _, l := range locals {
		l.Close()
	}
	return nil
}

// goOn runs f in the background until it ends; Close waits for it. It is not run after Close.
func (s *Service) goOn(f func(ctx context.Context)) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.goOnLocked(f)
}

func (s *Service) goOnLocked(f func(ctx context.Context)) bool {
	if s.closed {
		return false
	}
	s.running.Go(func() { f(s.ctx) })
	return true
}

// File is an opened file of a repository.
type File struct {
	Content media.Content
	Name    string
	ModTime time.Time // zero: not known
	ETag    string    // strong, with its quotes
}

// Local is a repository in a directory.
func (s *Service) Local(name string) (*Local, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l, ok := s.locals[name]
	return l, ok
}

// Request is what a client wants of a pull-through repository.
type Request struct {
	Repo, Path string // Path is clean: neither empty elements nor dots
	Client     netip.Addr
	// Part: of the file only some range may be sent that ends before the file does. As the end of a file is all
	// that is held back until its checksum is right, such a range is sent when the whole file is there.
	Part bool
	// Head: no content is needed.
	Head bool
}

// Open opens a file of a pull-through repository. ctx must live as long as the file is read. Errors are
// *UpstreamError, fs.ErrNotExist, ctx's, or a fault of this host.
func (s *Service) Open(ctx context.Context, r Request) (*File, error) {
	s.mu.Lock()
	m, ok := s.mirrors[r.Repo]
	s.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("no such repository: %w", fs.ErrNotExist)
	}
	f, how, err := m.open(ctx, r)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		how = answerAbsent
	case err != nil:
		how = answerFailed
	}
	s.metrics.requests.WithLabelValues(r.Repo, how).Inc()
	return f, err
}

// getTwice is get with a second attempt, for small files: one broken connection is no reason to serve old ones.
func (m *mirror) getTwice(ctx context.Context, from *url.URL, header http.Header) (*response, error) {
	r, err := m.get(ctx, from, header)
	var again *fault
	if errors.As(err, &again) && !again.final {
		r, err = m.get(ctx, from, header)
	}
	return r, err
}

// get makes a request to the upstream server.
func (m *mirror) get(ctx context.Context, from *url.URL, header http.Header) (*response, error) {
	m.s.metrics.upstream.WithLabelValues(m.name).Inc()
	return m.client.get(ctx, from, header)
}

// object opens a file that is known by its checksum: from the cache, or while it is fetched.
func (s *Service) object(ctx context.Context, m *mirror, w want, r Request) (*File, string, error) {
	file := &File{Name: filepath.Base(w.path), ModTime: w.time, ETag: w.sum.etag()}
	if r.Head && w.size >= 0 { // what the metadata says is all that is asked for
		file.Content = &unread{size: w.size}
		return file, answerHit, nil
	}
	f, stored, began, err := s.beginFor(ctx, m, w, r.Client)
	if err != nil {
		return nil, "", err
	}
	if stored != nil {
		file.Content = stored
		return file, answerHit, nil
	}
	how := answerShared
	if began {
		how = answerMiss
	}
	if !r.Part {
		if content, ok := f.follow(ctx); ok {
			file.Content = content
			return file, how, nil
		}
	}
	if err := f.wait(ctx); err != nil {
		return nil, "", err
	}
	content, ok := s.store.open(w.sum)
	if !ok { // evicted between the two, by a cache that is far too small
		return nil, "", &UpstreamError{Repo: m.name, Path: w.path, Reason: "file was evicted from the cache at once: server.cache_size is too small"}
	}
	file.Content = content
	return file, how, nil
}

// beginFor is begin, once the client has a place for it.
func (s *Service) beginFor(ctx context.Context, m *mirror, w want, client netip.Addr) (f *fetch, stored *blob, began bool, err error) {
	stranger := s.stranger(client)
	for {
		f, stored, wait, began, err := s.begin(m, w, client, stranger)
		if wait == nil {
			return f, stored, began, err
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, nil, false, ctx.Err()
		}
	}
}

// begin finds a file in the cache, or its download, or begins that; wait: when to ask again, as the client has too many.
func (s *Service) begin(m *mirror, w want, client netip.Addr, stranger bool) (f *fetch, stored *blob, wait <-chan struct{}, began bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f, ok := s.fetches[w.sum]; ok {
		if !stranger {
			f.promote()
		}
		return f, nil, nil, false, nil
	}
	if b, ok := s.store.open(w.sum); ok {
		return nil, b, nil, false, nil
	}
	if failed, ok := s.failed_[w.sum]; ok {
		if s.o.Now().Before(failed.until) {
			return nil, nil, nil, false, failed.err
		}
		delete(s.failed_, w.sum)
	}
	refused := func(reason string) error { return &UpstreamError{Repo: m.name, Path: w.path, Reason: reason} }
	if wait, ok := s.mayBegin(client, stranger); !ok {
		if wait == nil {
			err = refused("is asked for too much by addresses that are not in the list, try again")
		}
		return nil, nil, wait, false, err
	}
	f = newFetch(m, w)
	f.client, f.stranger = client, stranger
	if !s.goOnLocked(func(ctx context.Context) { f.run(ctx, s) }) {
		return nil, nil, nil, false, refused("is not asked any more: the appliance ends")
	}
	s.count(f)
	s.fetches[w.sum] = f
	return f, nil, nil, true, nil
}

// forget takes a download that has ended off the list. A failure is remembered for a moment.
func (s *Service) forget(f *fetch, err error) {
	if m := s.remember(f, err); m != nil {
		m.expire() // without s.mu: the mirrors' locks come first
	}
}

func (s *Service) remember(f *fetch, err error) *mirror {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.fetches, f.want.sum)
	s.discount(f)
	if err == nil || errors.Is(err, context.Canceled) {
		return nil
	}
	now := s.o.Now()
	for what, old := range s.failed_ {
		if !now.Before(old.until) {
			delete(s.failed_, what)
		}
	}
	s.failed_[f.want.sum] = failure{err, now.Add(retryAfter)}
	// The metadata may be what is wrong: the mirror replaced or removed a package since.
	return s.mirrors[f.m.name]
}

// failed logs and counts what went wrong with an upstream, and makes an error of it that clients may see.
func (s *Service) failed(repo, path string, err error) error {
	var wrong *fault
	var local *localFault
	log := s.o.Log.With("repo", repo, "file", path)
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, fs.ErrNotExist) && !errors.As(err, &local):
		return err
	case errors.As(err, &wrong):
		kind, level := "down", slog.LevelWarn
		if wrong.lie {
			kind, level = "lie", slog.LevelError
		}
		s.metrics.failures.WithLabelValues(repo, kind).Inc()
		log.Log(context.Background(), level, "repo: upstream "+wrong.reason, "detail", wrong.detail)
		return &UpstreamError{Repo: repo, Path: path, Reason: wrong.reason, Detail: wrong.detail, Lie: wrong.lie}
	default:
		s.metrics.failures.WithLabelValues(repo, "local").Inc()
		log.Error("repo: cannot keep a file", "err", err)
		return fmt.Errorf("repository %s: %s: %w", repo, path, err)
	}
}

// unread is the content of a file of which only the size matters: for HEAD.
type unread struct{ size, pos int64 }

func (u *unread) Size() int64                                 { return u.size }
func (u *unread) Close() error                                { return nil }
func (u *unread) Read([]byte) (int, error)                    { return 0, errUnread }
func (u *unread) ReadAt([]byte, int64) (int, error)           { return 0, errUnread }
func (u *unread) Region() (f *os.File, off, n int64, ok bool) { return nil, 0, 0, false }

var errUnread = errors.New("only the size of this file was asked for")

func (u *unread) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case 1:
		offset += u.pos
	case 2:
		offset += u.size
	}
	u.pos = offset
	return offset, nil
}

// memory is a small content that is held in memory.
type memory struct{ *bytes.Reader }

// fileOf is a file that is held in memory.
func fileOf(name string, text []byte, from time.Time) *File {
	return &File{Content: memory{bytes.NewReader(text)}, Name: path.Base(name), ModTime: from, ETag: sumOf(text).etag()}
}

func (memory) Close() error                                { return nil }
func (memory) Region() (f *os.File, off, n int64, ok bool) { return nil, 0, 0, false }
