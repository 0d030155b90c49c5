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

// others are the files of a mirror that no metadata names: .treeinfo, keys, and what people look for. They are
// passed on as they come, revalidated like repomd.xml, and kept for when the upstream server is down.
type others struct {
	m *mirror

	mu      sync.Mutex
	entries map[string]*other
	calls   map[string]*call
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
	checked time.Time
}

// absentFor is how long it is believed that a file is not there.
const absentFor = 15 * time.Second

// maxOthers is how many such files are known at once: anybody can ask for any path.
const maxOthers = 1024

func (o *others) open(ctx context.Context, r Request) (*File, string, error) {
	e, stale, err := o.current(ctx, r.Path)
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
func (o *others) current(ctx context.Context, name string) (e *other, stale bool, err error) {
	from, err := o.source(name)
	if err != nil {
		return nil, false, err
	}
	o.mu.Lock()
	if o.entries == nil {
		o.entries, o.calls = map[string]*other{}, map[string]*call{}
	}
	e = o.entries[name]
	now := o.m.s.o.Now()
	if e != nil && (e.absent || o.m.s.store.has(e.sum, e.Size)) {
		life := o.m.s.o.Fresh
		if e.absent {
			life = absentFor
		}
		if now.Sub(e.checked) < life && !now.Before(e.checked) {
			o.mu.Unlock()
			return e, false, nil
		}
	}
	c := o.calls[name]
	if c == nil {
		c = &call{done: make(chan struct{})}
		if !o.m.s.goOn(func(ctx context.Context) { o.renew(ctx, name, from, c) }) {
			o.mu.Unlock()
			return nil, false, &UpstreamError{Repo: o.m.name, Path: name, Reason: "is not asked any more: the appliance ends"}
		}
		o.calls[name] = c
	}
	o.mu.Unlock()
	select {
	case <-c.done:
	case <-ctx.Done():
		return nil, false, ctx.Err()
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	e = o.entries[name]
	switch {
	case e != nil && c.err == nil:
		return e, false, nil
	case e != nil && !e.absent && o.m.s.store.has(e.sum, e.Size):
		return e, true, nil
	case c.err == nil: // so many were asked for that this one is forgotten again
		return nil, false, errAbsent
	}
	return nil, false, c.err
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

func (o *others) renew(ctx context.Context, name string, from *url.URL, c *call) {
	o.mu.Lock()
	old := o.entries[name]
	o.mu.Unlock()
	if old == nil {
		old = o.load(name)
	}
	e, err := o.fetch(ctx, from, old)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		e, err = &other{absent: true}, nil
	case err != nil:
		err = o.m.s.failed(o.m.name, name, err)
		e = old
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if e != nil {
		if err == nil {
			fresh := *e
			fresh.checked = o.m.s.o.Now()
			e = &fresh
		}
		o.forgetOldest()
		o.entries[name] = e
	}
	if err == nil && !e.absent && (old == nil || old.Sum != e.Sum || old.ETag != e.ETag || old.Modified != e.Modified) {
		if err := o.save(name, e); err != nil {
			o.m.s.o.Log.Error("repo: cannot keep a file", "repo", o.m.name, "file", name, "err", err)
		}
	}
	delete(o.calls, name)
	c.err = err
	close(c.done)
}

// forgetOldest makes room for one more.
func (o *others) forgetOldest() {
	if len(o.entries) < maxOthers {
		return
	}
	oldest := ""
	for name, e := range o.entries {
		if oldest == "" || e.checked.Before(o.entries[oldest].checked) {
			oldest = name
		}
	}
	delete(o.entries, oldest)
	os.Remove(o.path(oldest))
}

// fetch asks upstream for the file, or whether it is still the same.
func (o *others) fetch(ctx context.Context, from *url.URL, old *other) (*other, error) {
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
	r, err := s.getTwice(trusting(ctx), o.m.name, from, header)
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
	if r.ContentLength > s.o.MaxOther {
		return nil, lie("has a file of %d bytes that no metadata names; %d are the most", r.ContentLength, s.o.MaxOther)
	}
	e := &other{ETag: r.Header.Get("ETag"), Modified: r.Header.Get("Last-Modified")}
	if e.Time, err = http.ParseTime(e.Modified); err != nil {
		e.Time = s.o.Now().Truncate(time.Second)
	}
	return e, o.take(r, e)
}

// take stores the body under its own checksum: nobody else has told one.
func (o *others) take(r *response, e *other) error {
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
	e.Size, err = copyTo(file, h, r, s.o.MaxOther)
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
	if err := readJSON(o.path(name), e); err != nil {
		return nil
	}
	var err error
	if e.sum, err = parseSum(e.Sum); err != nil || !o.m.s.store.has(e.sum, e.Size) {
		return nil
	}
	return e
}

func readJSON(path string, into any) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, into)
}
