package repo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/internal/repotest"
)

// tree is a repository: files by path.
type tree map[string][]byte

func (t tree) packages() []string { return repotest.Tree(t).Packages() }

func (t tree) fs(tb testing.TB) fs.FS {
	dir := tb.TempDir()
	t.write(tb, dir)
	return os.DirFS(dir)
}

func (t tree) write(tb testing.TB, dir string) { require.NoError(tb, repotest.Tree(t).Write(dir)) }

// find is the path of a file of metadata.
func (t tree) find(tb testing.TB, kind string) string {
	name := repotest.Tree(t).Find(kind)
	require.NotEmpty(tb, name)
	return name
}

func makeRepo(_ testing.TB, packing string, packages map[string][]byte) tree {
	return tree(repotest.Make(packing, packages))
}

func content(seed uint64, size int) []byte { return repotest.Content(seed, size) }

func pack(_ testing.TB, kind string, text []byte) []byte { return repotest.Pack(kind, text) }

const compsXML = repotest.Comps

// upstream is a server that behaves, unless it is told not to.
type upstream struct {
	*httptest.Server
	mu     sync.Mutex
	tree   tree
	etags  bool
	served map[string]int // answers 200 and 206, by path
	asked  int
	wrong  func(w http.ResponseWriter, r *http.Request) bool // true: it has answered
}

func newUpstream(tb testing.TB, t tree) *upstream {
	u := &upstream{tree: t, served: map[string]int{}, etags: true}
	u.Server = httptest.NewServer(u)
	tb.Cleanup(u.Close)
	return u
}

func (u *upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	u.mu.Lock()
	u.asked++
	name := strings.TrimPrefix(r.URL.Path, "/up/")
	text, ok := u.tree[name]
	wrong, etags := u.wrong, u.etags
	u.mu.Unlock()
	if wrong != nil && wrong(w, r) {
		return
	}
	if !ok {
		http.NotFound(w, r)
		return
	}
	if etags {
		w.Header().Set("ETag", sumOf(text).etag())
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(&counter{w, u, name}, r, "", time.Unix(1700000000, 0), bytes.NewReader(text))
}

// counter counts an answer before the client can have it.
type counter struct {
	http.ResponseWriter
	up   *upstream
	name string
}

func (w *counter) WriteHeader(status int) {
	if status == http.StatusOK || status == http.StatusPartialContent {
		w.up.set(func() { w.up.served[w.name]++ })
	}
	w.ResponseWriter.WriteHeader(status)
}

func (u *upstream) set(f func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	f()
}

func (u *upstream) count(name string) int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.served[name]
}

// clock is a clock that tests turn on.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// bench is a service with one repository, "up".
type bench struct {
	*Service
	tb    testing.TB
	dir   string
	clock *clock
	up    *upstream
}

func serve(tb testing.TB, up *upstream, dir string, change ...func(*Options)) *bench {
	b := &bench{tb: tb, dir: dir, clock: &clock{now: time.Unix(1800000000, 0)}, up: up}
	o := Options{Dir: dir, Log: slog.New(slog.DiscardHandler), Now: b.clock.Now, Backoff: time.Millisecond, StallTimeout: 30 * time.Second, Patience: time.Minute}
	for _, f := range change {
		f(&o)
	}
	s, err := Open(o)
	require.NoError(tb, err)
	tb.Cleanup(func() { s.Close() })
	b.Service = s
	require.NoError(tb, s.Set([]Spec{{Name: "up", URL: up.URL + "/up/", Keys: map[string]string{"0": up.URL + "/up/KEY"}}}))
	return b
}

// get reads a whole file.
func (b *bench) get(path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	f, err := b.Open(ctx, Request{Repo: "up", Path: path})
	if err != nil {
		return nil, err
	}
	defer f.Content.Close()
	text, err := io.ReadAll(f.Content)
	if err == nil && int64(len(text)) != f.Content.Size() {
		err = fmt.Errorf("%d bytes of %d", len(text), f.Content.Size())
	}
	return text, err
}

func (b *bench) good(path string, want []byte) {
	b.tb.Helper()
	got, err := b.get(path)
	var slow *UpstreamError
	for try := 0; errors.As(err, &slow) && b.o.StallTimeout < time.Second && try < 100; try++ {
		// On a loaded machine our own upstream may be too slow for a test of slow ones.
		b.clock.pass(retryAfter)
		got, err = b.get(path)
	}
	require.NoError(b.tb, err, path)
	require.True(b.tb, bytes.Equal(want, got), "%s: other bytes", path)
}

// lies expects an error of a lying upstream.
func (b *bench) fails(path string, isLie bool, reason string) {
	b.tb.Helper()
	_, err := b.get(path)
	var wrong *UpstreamError
	require.ErrorAs(b.tb, err, &wrong, path)
	require.ErrorContains(b.tb, err, reason)
	require.Equal(b.tb, isLie, wrong.Lie, err.Error())
}

// onlyGood examines the cache on the disk: every file has the checksum that is its name, and nothing is half there.
func onlyGood(tb testing.TB, dir string) (files int) {
	tb.Helper()
	require.NoError(tb, filepath.WalkDir(filepath.Join(dir, objectsDir), func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		what, err := parseSum(e.Name())
		require.NoError(tb, err)
		text, err := os.ReadFile(path)
		require.NoError(tb, err)
		h := what.hash()
		h.Write(text)
		require.True(tb, what.matches(h), path)
		files++
		return nil
	}))
	return files
}

func partials(tb testing.TB, dir string) int {
	left, err := os.ReadDir(filepath.Join(dir, partialDir))
	require.NoError(tb, err)
	return len(left)
}

func small(tb testing.TB) tree {
	return makeRepo(tb, "gz", map[string][]byte{
		bash:                   content(1, 300_000),
		stdcxx:                 content(2, 5_000),
		"empty-1-1.noarch.rpm": {},
	})
}

const (
	bash   = "Packages/bash-4.2.46-34.el7.x86_64.rpm"
	stdcxx = "Packages/libstdc++-4.8.5-44.el7.x86_64.rpm"
)

// internetAddress stands for the internet in these tests.
const internetAddress = "127.0.0.2"

func isInternetAddress(a netip.Addr) bool { return a == netip.MustParseAddr(internetAddress) }

// serverAt is a server at an address.
func serverAt(tb testing.TB, address string, f http.HandlerFunc) *httptest.Server {
	l, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	require.NoError(tb, err)
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: f}}
	s.Start()
	tb.Cleanup(s.Close)
	return s
}
