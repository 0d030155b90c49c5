package repo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// mirror is one pull-through repository.
type mirror struct {
	name string
	base *url.URL
	keys map[string]string
	s    *Service

	client    *client
	places    chan struct{} // of downloads that clients began
	strangers chan struct{} // of those among them that no listed machine began

	loaded sync.Once // the sets that an earlier daemon left

	mu      sync.Mutex
	sets    []*set // the newest first; the others are for clients that are still at it
	checked time.Time
	failure failure // of the last attempt to refresh
	refresh *call   // under way
	alarmed struct {
		reason string
		at     time.Time
	} // by the refresh: there is one at a time, as for the next
	refused struct {
		repomd sum
		err    error
	} // metadata that is wrong in itself: it is not read again

	others others
}

// keptSets is how many sets of metadata are known at once.
const keptSets = 3

// set is one version of a repository's metadata, whole and verified.
type set struct {
	repomd    []byte
	signature []byte // repomd.xml.asc; nil: there is none
	etag      string // of the upstream's answer, as are the next two
	modified  string
	time      time.Time

	files    map[string]want // of repodata, by path
	packages map[string]want
	moved    *relocated // what clients get of it, if packages of it are not below the upstream's URL
	revision int64      // 0: none that is a number
}

// cost is what it takes in memory, roughly.
func (s *set) cost() int64 {
	n := int64(len(s.repomd) + len(s.signature))
	for _, w := range s.packages {
		n += w.cost()
	}
	for _, w := range s.files {
		n += w.cost()
	}
	return n + s.moved.size()
}

func (w want) cost() int64 { return int64(packageCost + len(w.path) + len(w.at.base) + len(w.at.href)) }

// text is repomd.xml as clients get it.
func (s *set) text() []byte {
	if s.moved != nil {
		return s.moved.repomd
	}
	return s.repomd
}

// call is work that several wait for.
type call struct {
	done chan struct{}
	err  error
}

func newMirror(s *Service, spec Spec, base *url.URL) *mirror {
	m := &mirror{name: spec.Name, base: base, keys: spec.Keys, s: s, places: make(chan struct{}, s.o.MaxConns), strangers: make(chan struct{}, max(1, s.o.MaxConns/2))}
	servers := []*url.URL{base}
	for _, text := range spec.Keys {
		if key, err := url.Parse(text); err == nil {
			servers = append(servers, key)
		}
	}
	m.client = newClient(s.o, servers...)
	m.others.m = m
	return m
}

// open opens whatever path stands for.
func (m *mirror) open(ctx context.Context, r Request) (*File, string, error) {
	switch {
	case r.Path == repomdPath:
		cur, stale, err := m.current(ctx)
		if err != nil {
			return nil, "", err
		}
		how := answerHit
		if stale {
			how = answerStale
		}
		return fileOf(r.Path, cur.text(), cur.time), how, nil
	case r.Path == repomdPath+".asc":
		cur, err := m.any(ctx)
		if err != nil {
			return nil, "", err
		}
		if cur.signature == nil || cur.moved != nil { // it is of what the upstream says
			return nil, "", errAbsent
		}
		return fileOf(r.Path, cur.signature, cur.time), answerHit, nil
	case strings.HasPrefix(r.Path, keysDir):
		return m.others.open(ctx, r)
	}
	if _, err := m.any(ctx); err != nil && (isPackage(r.Path) || strings.HasPrefix(r.Path, "repodata/")) {
		return nil, "", err
	}
	if text, from, ok := m.lookMoved(r.Path); ok {
		return fileOf(r.Path, text, from), answerHit, nil
	}
	w, ok := m.look(r.Path)
	if !ok && isPackage(r.Path) {
		// Somebody knows newer metadata than we do, from the upstream itself. What is in no metadata could not be
		// verified.
		if _, _, err := m.current(ctx); err != nil {
			return nil, "", err
		}
		if w, ok = m.look(r.Path); !ok {
			return nil, "", errAbsent
		}
	}
	if ok {
		return m.s.object(ctx, m, w, r)
	}
	return m.others.open(ctx, r)
}

// lookMoved finds metadata that was rewritten, the newest first.
func (m *mirror) lookMoved(name string) (text []byte, from time.Time, ok bool) {
	m.mu.Lock()
	sets := m.sets
	m.mu.Unlock()
	for _, s := range sets {
		if text, ok := s.moved.open(name); ok {
			return text, s.time, true
		}
	}
	return nil, time.Time{}, false
}

// source is where a file comes from.
func (m *mirror) source(w want) *url.URL {
	if w.at != (place{}) {
		from, _ := w.at.url(m.base) // index has left out what is nowhere
		return from
	}
	return join(m.base, w.path)
}

func isPackage(name string) bool { return strings.HasSuffix(name, ".rpm") }

// look finds a path in the metadata, the newest first.
func (m *mirror) look(name string) (want, bool) {
	m.mu.Lock()
	sets := m.sets
	m.mu.Unlock()
	for _, s := range sets {
		if w, ok := s.files[name]; ok {
			return w, true
		}
		if w, ok := s.packages[name]; ok {
			return w, true
		}
	}
	return want{}, false
}

// any is the newest set that is known, however old; there is an error only if there is none.
func (m *mirror) any(ctx context.Context) (*set, error) {
	m.load()
	m.mu.Lock()
	sets := m.sets
	m.mu.Unlock()
	if len(sets) > 0 {
		return sets[0], nil
	}
	s, _, err := m.current(ctx)
	return s, err
}

// current is the newest set, after it was asked for upstream if that is due. stale: that failed, or takes too long.
func (m *mirror) current(ctx context.Context) (newest *set, stale bool, err error) {
	m.load()
	m.mu.Lock()
	now := m.s.o.Now()
	if len(m.sets) > 0 {
		newest = m.sets[0]
		if now.Sub(m.checked) < m.s.o.Fresh && !now.Before(m.checked) {
			m.mu.Unlock()
			return newest, false, nil
		}
	}
	if now.Before(m.failure.until) {
		err := m.failure.err
		m.mu.Unlock()
		return orStale(newest, err)
	}
	c := m.refresh
	if c == nil {
		c = &call{done: make(chan struct{})}
		if !m.s.goOn(func(ctx context.Context) { m.renew(ctx, c) }) {
			m.mu.Unlock()
			return orStale(newest, &UpstreamError{Repo: m.name, Path: repomdPath, Reason: "is not asked any more: the appliance ends"})
		}
		m.refresh = c
	}
	m.mu.Unlock()

	patience := m.s.o.Patience
	if newest != nil {
		patience /= 2 // what is there is better than a client that gives up
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-c.done:
	case <-timer.C:
		return orStale(newest, &UpstreamError{Repo: m.name, Path: repomdPath, Reason: "is slow: its metadata is still being fetched, try again"})
	case <-ctx.Done():
		return nil, false, ctx.Err()
	}
	if c.err != nil {
		return orStale(newest, c.err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.sets[0], false, nil
}

func orStale(newest *set, err error) (*set, bool, error) {
	if newest != nil {
		return newest, true, nil
	}
	return nil, false, err
}

// expire makes the next request for repomd.xml ask upstream.
func (m *mirror) expire() {
	m.mu.Lock()
	m.checked = time.Time{}
	m.mu.Unlock()
}

// renew asks upstream for newer metadata, and puts it in force.
func (m *mirror) renew(ctx context.Context, c *call) {
	var old *set
	m.mu.Lock()
	if len(m.sets) > 0 {
		old = m.sets[0]
	}
	m.mu.Unlock()
	newest, err := m.fetchSet(ctx, old)
	if errors.Is(err, errSwitched) {
		// The server may have switched to the next version between two of our requests.
		newest, err = m.fetchSet(ctx, old)
	}
	if err == nil && newest != old {
		_, err = m.within([]*set{newest}) // while the older ones are still there
	}
	if err != nil {
		switch err = m.s.failed(m.name, repomdPath, err); {
		case old != nil:
			m.s.o.Log.Warn("repo: the last good metadata stays in force", "repo", m.name, "of", old.time, "err", err)
			m.alarm(err)
		default:
			m.s.o.Log.Warn("repo: no metadata", "repo", m.name, "err", err)
		}
	}
	m.mu.Lock()
	switch now := m.s.o.Now(); {
	case err != nil:
		m.failure = failure{err, now.Add(retryAfter)}
	case newest == old:
		m.checked, m.failure = now, failure{}
	default:
		m.sets, _ = m.within(succeed(newest, m.sets))
		m.checked, m.failure = now, failure{}
	}
	m.refresh = nil
	sets := m.sets
	m.mu.Unlock()
	if err == nil && newest != old {
		m.s.o.Log.Info("repo: new metadata", "repo", m.name, "of", newest.time, "packages", len(newest.packages))
		if err := m.save(sets); err != nil {
			m.s.o.Log.Error("repo: the metadata is not on disk", "repo", m.name, "err", err)
		}
	}
	c.err = err
	close(c.done)
}

// succeed puts a new set before those that are known.
func succeed(newest *set, before []*set) []*set {
	sets := []*set{newest}
	for _, s := range before[:min(len(before), keptSets-1)] {
		sets = append(sets, s.without(newest))
	}
	return sets
}

// without is what a newer set lacks of it: only that is remembered.
func (s *set) without(newer *set) *set {
	rest := *s
	rest.files, rest.packages = map[string]want{}, map[string]want{}
	for name, w := range s.files {
		if _, ok := newer.files[name]; !ok {
			rest.files[name] = w
		}
	}
	for name, w := range s.packages {
		if _, ok := newer.packages[name]; !ok {
			rest.packages[name] = w
		}
	}
	return &rest
}

// within leaves out the oldest sets for which the memory does not suffice, and accounts for the others. With an error it does not
// suffice for the newest alone, and nothing has changed.
func (m *mirror) within(sets []*set) ([]*set, error) {
	for ; len(sets) > 0; sets = sets[:len(sets)-1] {
		cost := int64(0)
		for _, s := range sets {
			cost += s.cost()
		}
		if m.s.held.take(m.name, cost) {
			return sets, nil
		}
	}
	return nil, lie("sends metadata that is too much: %v", errTooMuch)
}

// alarm tells of an upstream that lies while the last good metadata is served: nobody else would see it. The same
// once in ten minutes.
func (m *mirror) alarm(err error) {
	var wrong *UpstreamError
	if !errors.As(err, &wrong) || !wrong.Lie || m.s.o.Alarm == nil {
		return
	}
	if now := m.s.o.Now(); m.alarmed.reason != wrong.Reason || now.Sub(m.alarmed.at) > 10*time.Minute {
		m.alarmed.reason, m.alarmed.at = wrong.Reason, now
		m.s.o.Alarm(wrong.Explain() + ": its last good metadata is served")
	}
}

// errSwitched: the upstream's files did not fit its repomd.xml.
var errSwitched = errors.New("the metadata changed while it was fetched")

// fetchSet fetches repomd.xml, and if it is a new one all that it names. It returns old if nothing is new.
func (m *mirror) fetchSet(ctx context.Context, old *set) (*set, error) {
	header := http.Header{}
	if old != nil && old.etag != "" {
		header.Set("If-None-Match", old.etag)
	}
	if old != nil && old.modified != "" {
		header.Set("If-Modified-Since", old.modified)
	}
	r, err := m.getTwice(trusting(ctx, byHTTPS), join(m.base, repomdPath), header)
	if err != nil {
		return nil, err
	}
	if old != nil && len(header) > 0 && r.StatusCode == http.StatusNotModified {
		r.close()
		return old, nil
	}
	text, err := m.readRepomd(r)
	if err != nil {
		return nil, err
	}
	n := &set{repomd: text, etag: r.Header.Get("ETag"), modified: r.Header.Get("Last-Modified")}
	if n.time, err = http.ParseTime(n.modified); err != nil {
		n.time = m.s.o.Now().Truncate(time.Second)
	}
	if old != nil && bytes.Equal(old.repomd, text) {
		return old, nil
	}
	if m.refused.err != nil && sumOf(text) == m.refused.repomd {
		return nil, m.refused.err
	}
	list, revision, err := parseRepomd(text)
	if err != nil {
		return nil, lie("sends a repomd.xml that is none%s", r.describe()).quoting("%v", err)
	}
	if n.revision = revision; old != nil && n.revision > 0 && n.revision < old.revision && old.revision < m.s.o.Now().Add(24*time.Hour).Unix() {
		return nil, lie("goes back from revision %d of its metadata to %d", old.revision, n.revision)
	}
	var files errgroup.Group
	files.SetLimit(4)
	for _, file := range list {
		if wanted(file.kind) {
			files.Go(func() error { return m.ensure(ctx, file.want) })
		}
	}
	if err := files.Wait(); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w: %w", errSwitched, &fault{reason: "lacks a file that its repomd.xml names", lie: true, final: true})
		}
		var wrong *UpstreamError
		if errors.As(err, &wrong) { // told already, by the download
			f := &fault{reason: fmt.Sprintf("%s: %s", wrong.Path, wrong.Reason), detail: wrong.Detail, lie: wrong.Lie, final: true}
			if wrong.Lie {
				return nil, fmt.Errorf("%w: %w", errSwitched, f)
			}
			return nil, f
		}
		return nil, err
	}
	if n.signature, err = m.fetchSignature(ctx); err != nil {
		return nil, err
	}
	if err := m.index(ctx, n, list); err != nil {
		var wrong *fault
		if errors.As(err, &wrong) {
			m.refused.repomd, m.refused.err = sumOf(text), err
		}
		return nil, err
	}
	return n, nil
}

func (m *mirror) readRepomd(r *response) ([]byte, error) {
	defer r.close()
	if err := r.check(); err != nil {
		return nil, err
	}
	return r.readAll(maxRepomd)
}

// wanted tells which metadata must be there before a set is in force: all that yum and dnf ask for. The zchunk
// twins are fetched piecemeal by those few that want them.
func wanted(kind string) bool { return !strings.HasSuffix(kind, "_zck") }

// ensure fetches a file of repodata unless it is in the cache.
func (m *mirror) ensure(ctx context.Context, w want) error {
	f, stored, _, _, err := m.s.begin(m, w, netip.Addr{}, false)
	if err != nil {
		return err
	}
	if stored != nil {
		return stored.Close()
	}
	return f.wait(ctx)
}

const maxSignature = 1 << 20

func (m *mirror) fetchSignature(ctx context.Context) ([]byte, error) {
	r, err := m.getTwice(trusting(ctx, byHTTPS), join(m.base, repomdPath+".asc"), nil)
	if err != nil {
		return nil, err
	}
	defer r.close()
	switch err := r.check(); {
	case err != nil && r.StatusCode < 500 && r.StatusCode != http.StatusTooManyRequests:
		return nil, nil // most have none; some servers say 403
	case err != nil:
		return nil, err
	case r.isHTML():
		return nil, nil // an excuse with status 200
	}
	return r.readAll(maxSignature)
}

// index reads the set's primary metadata out of the cache, and pins the set's files.
func (m *mirror) index(ctx context.Context, n *set, list []metadata) error {
	select {
	case m.s.reading <- struct{}{}:
		defer func() { <-m.s.reading }()
	case <-ctx.Done():
		return ctx.Err()
	}
	cost := int64(0)
	n.files, n.packages = map[string]want{}, map[string]want{}
	for _, file := range list {
		n.files[file.path] = file.want
		if file.kind != "primary" {
			continue
		}
		moved := 0
		read := func(f func(io.Reader) error) error {
			content, ok := m.s.store.open(file.sum)
			if !ok {
				return &localFault{fmt.Errorf("%s is not in the cache", file.path)}
			}
			defer content.Close()
			switch err := readPacked(content, file.unpacked, f); {
			case errors.Is(err, errTooMuch), errors.Is(err, errTooLong):
				return lie("sends metadata that is too much: %v", err)
			case err != nil:
				return lie("sends primary metadata that is none").quoting("%v", err)
			}
			return nil
		}
		err := read(func(r io.Reader) error {
			return parsePrimary(r, false, func(p rpmPackage) error {
				if p.at != (place{}) {
					if !m.reaches(p.at) {
						return nil
					}
					moved++
				}
				if cost += p.cost(); cost > maxNames {
					return errTooMuch
				}
				n.packages[p.path] = p.want
				return nil
			})
		})
		if err == nil && moved > 0 {
			err = read(func(r io.Reader) (err error) {
				n.moved, err = relocateFrom(n.repomd, r, m.reaches)
				return err
			})
			m.s.o.Log.Info("repo: packages are not below the repository's URL: its metadata is served with other locations, and unsigned", "repo", m.name, "packages", moved)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// reaches is false for places that are on no server.
func (m *mirror) reaches(p place) bool {
	_, ok := p.url(m.base)
	return ok
}

// readPacked unpacks and reads.
func readPacked(packed io.Reader, limit int64, read func(io.Reader) error) error {
	r, err := unpack(packed, limit)
	if err != nil {
		return err
	}
	defer r.Close()
	return read(r)
}

// maxState bounds what is kept of a mirror on disk: keptSets of repomd.xml and its signature, in base64.
const maxState = keptSets * (maxRepomd + maxSignature) * 3 / 2

// saved is a mirror's state on disk: the last sets, without the files, which are in the cache.
type saved struct {
	URL  string     `json:"url"`
	Sets []savedSet `json:"sets"`
}

type savedSet struct {
	Repomd    []byte    `json:"repomd"`
	Signature []byte    `json:"signature,omitempty"`
	ETag      string    `json:"etag,omitempty"`
	Modified  string    `json:"modified,omitempty"`
	Time      time.Time `json:"time"`
}

func (m *mirror) statePath() string {
	return filepath.Join(m.s.o.Dir, reposDir, m.name, "metadata.json")
}

// save puts the sets on disk, and pins their files.
func (m *mirror) save(sets []*set) error {
	m.pin(sets)
	state := saved{URL: sumOf([]byte(m.base.String())).hex} // the URL may hold a password
	for _, s := range sets {
		state.Sets = append(state.Sets, savedSet{s.repomd, s.signature, s.etag, s.modified, s.time})
	}
	text, err := json.Marshal(state)
	if err != nil {
		return err
	}
	return replaceFile(m.statePath(), text)
}

func (m *mirror) pin(sets []*set) {
	var files []sum
	for _, s := range sets {
		for _, w := range s.files {
			files = append(files, w.sum)
		}
	}
	m.s.store.pin(m.name, files)
}

// load takes up the sets that an earlier daemon left, as far as their files are still there.
func (m *mirror) load() { m.loaded.Do(m.loadSaved) }

func (m *mirror) loadSaved() {
	var state saved
	if err := readJSON(m.statePath(), maxState, &state); err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			m.s.o.Log.Warn("repo: the kept metadata cannot be read", "repo", m.name, "err", err)
		}
		return
	}
	if state.URL != sumOf([]byte(m.base.String())).hex {
		return
	}
	var sets []*set
	for _, was := range state.Sets[:min(len(state.Sets), keptSets)] { // the newest first
		s := &set{repomd: was.Repomd, signature: was.Signature, etag: was.ETag, modified: was.Modified, time: was.Time}
		list, revision, err := parseRepomd(s.repomd)
		if err == nil {
			err = m.complete(list)
		}
		if err == nil {
			s.revision = revision
			err = m.index(m.s.ctx, s, list)
		}
		if err == nil && len(sets) > 0 {
			s = s.without(sets[0])
		}
		kept := sets
		if err == nil {
			kept, err = m.within(append(sets, s))
		}
		if err != nil {
			m.s.o.Log.Warn("repo: kept metadata is not whole any more, or too much", "repo", m.name, "err", err)
			continue
		}
		sets = kept
	}
	m.pin(sets)
	m.mu.Lock()
	m.sets = sets
	m.mu.Unlock()
}

func (m *mirror) complete(list []metadata) error {
	for _, file := range list {
		if wanted(file.kind) && !m.s.store.has(file.sum, file.size) {
			return fmt.Errorf("%s is not in the cache", file.path)
		}
	}
	return nil
}
