package repo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// keysDir is below which the further files of a Spec are.
const keysDir = ".keys/"

// others are the files of a mirror that no metadata names: .treeinfo and keys. They are passed on as they come, revalidated
// like repomd.xml, and kept for when the upstream server is down. Others than unlisted.go's are not looked for.
type others struct {
	m *mirror

	mu      sync.Mutex
	entries map[string]*other
	calls   map[string]*look
}

// look is a look upstream for one such file. It ends with the last client that waits for it.
type look struct {
	call
	waiting int
	cancel  context.CancelFunc
	endless bool
	client  netip.Addr // who began it
}

// other is what is known of one such file. It does not change.
type other struct {
	Sum      string    `json:"sum"`
	Size     int64     `json:"size"`
	ETag     string    `json:"etag,omitempty"`
	Modified string    `json:"modified,omitempty"`
	Time     time.Time `json:"time"`

	sum     sum
	absent  bool
	failure failure // of the last look
	checked time.Time
	endless bool
}

// absentFor is how long it is believed that a file is not there.
const absentFor = 15 * time.Second

func (o *others) open(ctx context.Context, r Request) (*File, string, error) {
	if ok, _ := lookable(r.Path); !ok {
		return nil, "", errAbsent
	}
	e, stale, err := o.current(ctx, r)
	if err != nil {
		return nil, "", err
	}
	if e.absent {
		return nil, "", errAbsent
	}
	content, ok := o.m.s.store.open(e.sum)
	if !ok {
		return nil, "", &UpstreamError{Repo: o.m.name, Path: r.Path, Reason: "file was evicted from the cache, try again"}
	}
	how := answerHit
	if stale {
		how = answerStale
	}
	return &File{Content: content, Name: path.Base(r.Path), ModTime: e.Time, ETag: e.sum.etag()}, how, nil
}

// current is the file as it is now; stale: as it was when it could be asked for last.
func (o *others) current(ctx context.Context, r Request) (e *other, stale bool, err error) {
	from, err := o.source(r.Path)
	if err != nil {
		return nil, false, err
	}
	o.mu.Lock()
	e = o.entries[r.Path]
	if e != nil && (e.absent || o.m.s.store.has(e.sum, e.Size)) {
		life := o.m.s.o.Fresh
		if e.absent {
			life = absentFor
		}
		if now := o.m.s.o.Now(); now.Sub(e.checked) < life && !now.Before(e.checked) {
			o.mu.Unlock()
			return e, false, nil
		}
	}
	if e != nil && o.m.s.o.Now().Before(e.failure.until) {
		defer o.mu.Unlock()
		return o.orFailure(e, e.failure.err)
	}
	l := o.calls[r.Path]
	if l == nil {
		if l, err = o.begin(r, from); err != nil {
			o.mu.Unlock()
			return nil, false, err
		}
	}
	l.waiting++
	o.mu.Unlock()
	select {
	case <-l.done:
	case <-ctx.Done():
		err = ctx.Err()
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if l.waiting--; l.waiting == 0 {
		l.cancel()
		o.end(r.Path, l)
	}
	if err != nil {
		return nil, false, err
	}
	e = o.entries[r.Path]
	switch {
	case e != nil && l.err == nil:
		return e, false, nil
	case l.err == nil: // so many were asked for that this one is forgotten again
		return nil, false, errAbsent
	}
	return o.orFailure(e, l.err)
}

// orFailure is the file as it was known last, or why it is not known. o.mu is held.
func (o *others) orFailure(e *other, err error) (*other, bool, error) {
	if e != nil && !e.absent && o.m.s.store.has(e.sum, e.Size) {
		return e, true, nil
	}
	return nil, false, err
}

// begin begins a look. o.mu is held.
func (o *others) begin(r Request, from *url.URL) (*look, error) {
	if o.entries == nil {
		o.entries, o.calls = map[string]*other{}, map[string]*look{}
	}
	refused := func(reason string) error { return &UpstreamError{Repo: o.m.name, Path: r.Path, Reason: reason} }
	_, endless := lookable(r.Path)
	if endless && !o.mayLook(r.Client) {
		return nil, refused("is asked for too many files that its metadata does not name, try again")
	}
	ctx, cancel := context.WithCancel(o.m.s.ctx)
	l := &look{call: call{done: make(chan struct{})}, endless: endless, client: r.Client, cancel: cancel}
	if !o.m.s.goOn(func(context.Context) { o.renew(ctx, r.Path, from, l) }) {
		cancel()
		return nil, refused("is not asked any more: the appliance ends")
	}
	o.calls[r.Path] = l
	return l, nil
}

// mayLook bounds the looks for names of which there is no end. o.mu is held.
func (o *others) mayLook(client netip.Addr) bool {
	stranger := o.m.s.stranger(client)
	all, own, strangers := 0, 0, 0
	for _, l := range o.calls {
		if !l.endless {
			continue
		}
		all++
		if l.client == client {
			own++
		}
		if o.m.s.stranger(l.client) {
			strangers++
		}
	}
	return all < maxKeyLooks && own < maxKeyLooksOfOne && (!stranger || strangers < maxStrangerLooks)
}

// end takes a look off the list. o.mu is held.
func (o *others) end(name string, l *look) {
	if o.calls[name] == l {
		delete(o.calls, name)
	}
}

func (o *others) source(name string) (*url.URL, error) {
	key, isKey := strings.CutPrefix(name, keysDir)
	if !isKey {
		return join(o.m.base, name), nil
	}
	text, ok := o.m.keys[key]
	if !ok {
		return nil, errAbsent
	}
	return url.Parse(text)
}

func (o *others) renew(ctx context.Context, name string, from *url.URL, l *look) {
	defer l.cancel()
	o.mu.Lock()
	old := o.entries[name]
	o.mu.Unlock()
	if old == nil {
		old = o.load(name)
	}
	e, err := o.ask(ctx, name, from, old)
	if errors.Is(err, fs.ErrNotExist) {
		e, err = &other{absent: true}, nil
	}
	if err != nil {
		err = o.m.s.failed(o.m.name, name, err)
		if e = old; e == nil {
			e = &other{absent: true} // for its failure
		}
	}
	fresh := *e
	now := o.m.s.o.Now()
	if err == nil {
		fresh.checked, fresh.failure = now, failure{}
	} else {
		fresh.failure = failure{err, now.Add(retryAfter)}
	}
	fresh.endless = l.endless
	o.mu.Lock()
	defer o.mu.Unlock()
	if !errors.Is(err, context.Canceled) {
		o.forgetOldest(l.endless)
		o.entries[name] = &fresh
	}
	if err == nil && !e.absent && (old == nil || old.Sum != e.Sum || old.ETag != e.ETag || old.Modified != e.Modified) {
		if err := o.save(name, e); err != nil {
			o.m.s.o.Log.Error("repo: cannot keep a file", "repo", o.m.name, "file", name, "err", err)
		}
	}
	o.end(name, l)
	l.err = err
	close(l.done)
}

// ask is fetch; a redirect that is not followed is no file.
func (o *others) ask(ctx context.Context, name string, from *url.URL, old *other) (*other, error) {
	e, err := o.fetch(ctx, name, from, old)
	var wrong *fault
	if errors.As(err, &wrong) && wrong.away && !strings.HasPrefix(name, keysDir) {
		// No lie, and no reason for an installer to wait: whoever redirects everything has no such file, as a rule.
		o.m.s.o.Log.Warn("repo: upstream "+wrong.reason, "repo", o.m.name, "file", name, "detail", wrong.detail)
		return nil, errAbsent
	}
	return e, err
}

// forgetOldest makes room for one more of those whose names have no end.
func (o *others) forgetOldest(endless bool) {
	oldest, n := "", 0
	for name, e := range o.entries {
		if !e.endless {
			continue
		}
		if n++; oldest == "" || e.checked.Before(o.entries[oldest].checked) {
			oldest = name
		}
	}
	if endless && n >= maxKeyFiles {
		delete(o.entries, oldest)
		os.Remove(o.path(oldest))
	}
}

// fetch asks upstream for the file, or whether it is still the same.
func (o *others) fetch(ctx context.Context, name string, from *url.URL, old *other) (*other, error) {
	s := o.m.s
	header := http.Header{}
	if old != nil && !old.absent && s.store.has(old.sum, old.Size) {
		if old.ETag != "" {
			header.Set("If-None-Match", old.ETag)
		}
		if old.Modified != "" {
			header.Set("If-Modified-Since", old.Modified)
		}
	}
	why, most := byServer, s.o.MaxOther
	if strings.HasPrefix(name, keysDir) {
		why = byHTTPS
	}
	if _, endless := lookable(name); endless {
		most = min(most, maxKeyFile)
	}
	r, err := o.m.getTwice(trusting(ctx, why), from, header)
	if err != nil {
		return nil, err
	}
	defer r.close()
	if len(header) > 0 && r.StatusCode == http.StatusNotModified {
		return old, nil
	}
	if err := r.check(); err != nil {
		return nil, err
	}
	if r.isHTML() && !strings.HasSuffix(from.Path, ".html") && !strings.HasSuffix(from.Path, ".htm") {
		return nil, lie("sends an HTML page in place of the file")
	}
	if r.ContentLength > most {
		return nil, &fault{reason: fmt.Sprintf("has a file of %d bytes that no metadata names; %d are the most", r.ContentLength, most), final: true}
	}
	e := &other{ETag: r.Header.Get("ETag"), Modified: r.Header.Get("Last-Modified")}
	if e.Time, err = http.ParseTime(e.Modified); err != nil {
		e.Time = s.o.Now().Truncate(time.Second)
	}
	return e, o.take(r, e, most)
}

// take stores the body under its own checksum: nobody else has told one.
func (o *others) take(r *response, e *other, most int64) error {
	s := o.m.s
	give := s.store.reserve(max(0, r.ContentLength))
	defer give()
	file, err := s.store.partial()
	if err != nil {
		return &localFault{err}
	}
	defer file.Close()
	defer os.Remove(file.Name()) // of no effect once it is kept
	kind := "sha256"
	h := hashes[kind]()
	e.Size, err = copyTo(file, h, r, most)
	s.metrics.bytes.WithLabelValues(o.m.name).Add(float64(e.Size))
	if err != nil {
		return err
	}
	if r.ContentLength >= 0 && e.Size != r.ContentLength {
		return &fault{reason: "ends the file too early"}
	}
	e.Sum = kind + "-" + fmt.Sprintf("%x", h.Sum(nil))
	if e.sum, err = parseSum(e.Sum); err != nil {
		return err
	}
	give()
	release, err := s.store.keep(file, e.sum, e.Size)
	if err != nil {
		return &localFault{err}
	}
	release()
	return nil
}

func copyTo(file *os.File, h hash.Hash, r io.Reader, most int64) (n int64, err error) {
	buf := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buf)
	for {
		got, err := r.Read(buf[:])
		if n += int64(got); n > most {
			return n, lie("sends more than %d bytes", most)
		}
		h.Write(buf[:got])
		if _, err := file.Write(buf[:got]); err != nil {
			return n, &localFault{err}
		}
		switch {
		case errors.Is(err, io.EOF):
			return n, nil
		case err != nil:
			return n, err
		}
	}
}

func (o *others) path(name string) string {
	return filepath.Join(o.m.s.o.Dir, reposDir, o.m.name, "other", sumOf([]byte(o.m.base.String()+" "+name)).hex+".json")
}

func (o *others) save(name string, e *other) error {
	text, err := json.Marshal(e)
	if err != nil {
		return err
	}
	return replaceFile(o.path(name), text)
}

// load takes up what an earlier daemon left.
func (o *others) load(name string) *other {
	e := &other{}
	if err := readJSON(o.path(name), 64<<10, e); err != nil {
		return nil
	}
	var err error
	if e.sum, err = parseSum(e.Sum); err != nil || !o.m.s.store.has(e.sum, e.Size) {
		return nil
	}
	return e
}

// readJSON reads a file of state, of most bytes at most.
func readJSON(path string, most int64, into any) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	text, err := io.ReadAll(&limited{f, most})
	if err != nil {
		return err
	}
	return json.Unmarshal(text, into)
}
