package repo

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// holdBack is how much of the end of a file waits until its checksum was found right. So nobody ever has the
// whole of a wrong file: who reads along is cut off before its end.
const holdBack = 64 << 10

// fetch is the download of one file whose checksum and size are known. Any number of clients read along.
type fetch struct {
	m     *mirror
	want  want
	sized int64 // want.size at first: -1 is not known

	client   netip.Addr    // who began it; zero: this appliance
	stranger bool          // that is no listed machine
	promoted chan struct{} // closed when somebody listed wants it, too
	promote  func()

	mu      sync.Mutex
	file    *os.File
	written int64
	ended   bool
	err     error         // once ended
	news    chan struct{} // closed when any of the above changes
	readers int           // with the download itself: the last one closes the file
	release func()        // of the store, if the file was kept
}

func newFetch(m *mirror, w want) *fetch {
	promoted := make(chan struct{})
	return &fetch{m: m, want: w, sized: w.size, news: make(chan struct{}), readers: 1,
		promoted: promoted, promote: sync.OnceFunc(func() { close(promoted) })}
}

// admit waits for a place for the download. Those of metadata need none: they are few. Those of strangers have half of
// the places at most.
func (f *fetch) admit(ctx context.Context) (leave func(), err error) {
	leave = func() {}
	if !f.client.IsValid() {
		return leave, nil
	}
	if f.stranger {
		select {
		case f.m.strangers <- struct{}{}:
			leave = func() { <-f.m.strangers }
		case <-f.promoted:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	select {
	case f.m.places <- struct{}{}:
		first := leave
		return func() { <-f.m.places; first() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}

// announce wakes those who wait. f.mu is held.
func (f *fetch) announce() {
	close(f.news)
	f.news = make(chan struct{})
}

// ready is how much may be read. f.mu is held.
func (f *fetch) ready() int64 {
	if f.ended && f.err == nil {
		return f.want.size
	}
	return max(0, min(f.written, f.want.size-holdBack))
}

// wait waits for the end.
func (f *fetch) wait(ctx context.Context) error {
	for {
		f.mu.Lock()
		ended, err, news := f.ended, f.err, f.news
		f.mu.Unlock()
		if ended {
			return err
		}
		select {
		case <-news:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// leave gives up one claim to the file.
func (f *fetch) leave() {
	f.mu.Lock()
	f.readers--
	last := f.readers == 0
	f.mu.Unlock()
	if !last {
		return
	}
	if f.file != nil {
		f.file.Close()
	}
	if f.release != nil {
		f.release()
	}
}

func (f *fetch) end(err error) {
	f.mu.Lock()
	f.ended, f.err = true, err
	f.announce()
	f.mu.Unlock()
}

// follow opens the file while it is being fetched; false if the download is over, or the size is not known.
func (f *fetch) follow(ctx context.Context) (*follower, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ended || f.sized < 0 {
		return nil, false
	}
	f.readers++
	return &follower{f: f, ctx: ctx}, true
}

// follower reads a file that is being fetched, and waits where it is not there yet. It is a media.Content.
type follower struct {
	f    *fetch
	ctx  context.Context // of the client's request
	pos  int64
	once sync.Once
}

func (r *follower) Size() int64 { return r.f.want.size }

func (r *follower) Close() error {
	r.once.Do(r.f.leave)
	return nil
}

func (r *follower) Read(p []byte) (int, error) {
	n, err := r.readAt(p, r.pos)
	r.pos += int64(n)
	return n, err
}

// ReadAt is io.ReaderAt's.
func (r *follower) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) && err == nil {
		var more int
		more, err = r.readAt(p[n:], off+int64(n))
		n += more
	}
	return n, err
}

func (r *follower) readAt(p []byte, off int64) (int, error) {
	f := r.f
	for len(p) > 0 {
		f.mu.Lock()
		ready, ended, err, news := f.ready(), f.ended, f.err, f.news
		f.mu.Unlock()
		switch {
		case off >= f.want.size:
			return 0, io.EOF
		case ended && err != nil:
			return 0, err
		case off < ready:
			return f.file.ReadAt(p[:min(int64(len(p)), ready-off)], off)
		}
		select {
		case <-news:
		case <-r.ctx.Done():
			return 0, r.ctx.Err()
		}
	}
	return 0, nil
}

func (r *follower) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		offset += r.pos
	case io.SeekEnd:
		offset += r.f.want.size
	default:
		return 0, errors.New("invalid whence")
	}
	if offset < 0 {
		return 0, errors.New("negative position")
	}
	r.pos = offset
	return offset, nil
}

// Region is media.Content's: sendfile may send the file once it is verified.
func (r *follower) Region() (file *os.File, off, n int64, ok bool) {
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	if !r.f.ended || r.f.err != nil {
		return nil, 0, 0, false
	}
	return r.f.file, 0, r.f.want.size, true
}

// run downloads, verifies and keeps the file.
func (f *fetch) run(ctx context.Context, s *Service) {
	defer f.leave()
	err := f.download(ctx, s)
	if err != nil {
		err = s.failed(f.m.name, f.want.path, err)
	}
	// First out of the list of downloads, or into it for who asks next: the file is in the store already.
	s.forget(f, err)
	f.end(err)
}

func (f *fetch) download(ctx context.Context, s *Service) error {
	if f.want.size > s.store.limit {
		return &localFault{fmt.Errorf("it has %d bytes, which is more than server.cache_size", f.want.size)}
	}
	leave, err := f.admit(ctx)
	if err != nil {
		return err
	}
	defer leave()
	give := s.store.reserve(max(0, f.want.size))
	defer give()
	file, err := s.store.partial()
	if err != nil {
		return &localFault{err}
	}
	f.mu.Lock()
	f.file = file
	f.mu.Unlock()
	kept := false
	defer func() {
		if !kept {
			os.Remove(file.Name())
		}
	}()
	t := &transfer{f: f, sum: f.want.sum.hash(), service: s}
	if err := t.all(ctx); err != nil {
		return err
	}
	give()
	release, err := s.store.keep(file, f.want.sum, f.want.size)
	if err != nil {
		return &localFault{err}
	}
	kept = true
	f.mu.Lock()
	f.release = release
	f.mu.Unlock()
	return nil
}

// localFault is one of this host: its disk is full, say.
type localFault struct{ err error }

func (e *localFault) Error() string { return e.err.Error() }
func (e *localFault) Unwrap() error { return e.err }

// transfer is the work on one download, over as many requests as it takes.
type transfer struct {
	f         *fetch
	service   *Service
	sum       hash.Hash
	validator string // of the first answer, for If-Range
}

const (
	maxAttempts = 4 // without any progress
	maxRequests = 24
)

// all repeats until the file is there. What is there already is not asked for again.
func (t *transfer) all(ctx context.Context) error {
	idle := 0
	for request := 1; ; request++ {
		before := t.f.written
		err := t.once(ctx)
		if err == nil {
			return t.verify()
		}
		if t.f.written > before {
			idle = 0
		}
		idle++
		var attempt *fault
		switch {
		case !errors.As(err, &attempt) || attempt.final:
			return err
		case idle >= maxAttempts || request >= maxRequests:
			if t.f.written > 0 {
				return &fault{reason: fmt.Sprintf("%s, after %d of %d bytes", attempt.reason, t.f.written, t.f.want.size), detail: attempt.detail, lie: attempt.lie}
			}
			return err
		}
		t.service.o.Log.Debug("repo: fetch again", "repo", t.f.m.name, "file", t.f.want.path, "from", t.f.written, "err", err)
		select {
		case <-time.After(t.service.o.Backoff << min(idle-1, 4)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// once makes one request for what is missing.
func (t *transfer) once(ctx context.Context) error {
	w, have := t.f.want, t.f.written
	header := http.Header{}
	if have > 0 {
		if have == w.size {
			return nil
		}
		header.Set("Range", fmt.Sprintf("bytes=%d-", have))
		if t.validator != "" { // RFC 9110 13.1.5: the rest of this very file, or all of the new one
			header.Set("If-Range", t.validator)
		}
	}
	r, err := t.f.m.get(ctx, t.f.m.source(w), header)
	if err != nil {
		return err
	}
	defer r.close()
	skip, left := have, w.size
	if have > 0 && r.StatusCode == http.StatusPartialContent {
		if err := checkContentRange(r.Header.Get("Content-Range"), have, w.size); err != nil {
			return err
		}
		skip, left = 0, w.size-have
	} else if err := r.check(); err != nil {
		return err
	}
	if r.ContentLength >= 0 && w.size >= 0 && r.ContentLength != left {
		return lie("announces %d bytes of a file of which %d are left to send%s", r.ContentLength, left, r.describe())
	}
	if t.validator == "" {
		t.validator = validatorOf(r.Header)
	}
	if err := t.copy(r, skip); err != nil {
		return err
	}
	if w.size >= 0 && t.f.written < w.size {
		return &fault{reason: "ends the file too early" + r.describe()}
	}
	return nil
}

// copy takes the body, but for its first bytes, which are there already.
func (t *transfer) copy(r *response, skip int64) error {
	most := t.f.want.most()
	buf := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buf)
	for {
		n, err := r.Read(buf[:])
		t.service.metrics.bytes.WithLabelValues(t.f.m.name).Add(float64(n))
		p := buf[:n]
		if skipped := min(skip, int64(len(p))); skipped > 0 {
			p, skip = p[skipped:], skip-skipped
		}
		if t.f.written+int64(len(p)) > most {
			return lie("sends more than the %d bytes of the file%s", most, r.describe())
		}
		if len(p) > 0 {
			if _, err := t.f.file.WriteAt(p, t.f.written); err != nil {
				return &localFault{err}
			}
			t.sum.Write(p)
			t.f.mu.Lock()
			t.f.written += int64(len(p)) // read without the lock by this goroutine only
			t.f.announce()
			t.f.mu.Unlock()
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

func (t *transfer) verify() error {
	if !t.f.want.sum.matches(t.sum) {
		return lie("sends a file whose %s is not the one in the repository's metadata", t.f.want.sum.kind)
	}
	if t.f.want.size < 0 { // nobody follows such a file
		t.f.want.size = t.f.written
	}
	return nil
}

const bufferSize = 128 << 10

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// validatorOf is what If-Range may hold: a strong ETag, else a date.
func validatorOf(h http.Header) string {
	if tag := h.Get("ETag"); strings.HasPrefix(tag, `"`) {
		return tag
	}
	return h.Get("Last-Modified")
}

// checkContentRange holds the answer to a range request to what was asked for.
func checkContentRange(text string, from, size int64) error {
	span, total, ok := strings.Cut(strings.TrimPrefix(text, "bytes "), "/")
	first, _, _ := strings.Cut(span, "-")
	n, err := strconv.ParseInt(first, 10, 64)
	if !ok || err != nil || n != from {
		return lie("answers with another range than was asked for").quoting("%.60q", text)
	}
	if total != "*" && total != strconv.FormatInt(size, 10) {
		return lie("has a file of other than %d bytes", size).quoting("%.20q", total)
	}
	return nil
}
