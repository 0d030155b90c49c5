package httpboot

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/internal/repotest"
	"rackstrap/internal/rpm"
	"rackstrap/inventory"
	"rackstrap/repo"
)

const (
	largeRPM = "Packages/large-1.0-1.x86_64.rpm"
	oddRPM   = "Packages/libstdc++-4.8.5~rc1-44.x86_64.rpm"
)

// repoPlane is a plane with a pull-through repository, "up", and a local one, "local", of the same tree.
func repoPlane(t *testing.T, answer func(w http.ResponseWriter, r *http.Request) bool) (p *plane, all repotest.Tree, asked *atomic.Int64) {
	all = repotest.Make("gz", map[string][]byte{largeRPM: repotest.Content(1, 3<<20), oddRPM: repotest.Content(2, 1000)})
	asked = &atomic.Int64{}
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if answer != nil && answer(w, r) {
			return
		}
		text, ok := all[strings.TrimPrefix(r.URL.Path, "/os/")]
		if !ok {
			http.NotFound(w, r)
			return
		}
		asked.Add(1)
		http.ServeContent(w, r, "", time.Unix(1700000000, 0), bytes.NewReader(text))
	}))
	t.Cleanup(upstream.Close)
	dir := t.TempDir()
	require.NoError(t, all.Write(dir))
	require.NoError(t, os.Symlink("/etc/passwd", dir+"/escape"))
	repos, err := repo.Open(repo.Options{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler), Now: time.Now, Backoff: time.Millisecond})
	require.NoError(t, err)
	t.Cleanup(func() { repos.Close() })
	require.NoError(t, repos.Set([]repo.Spec{{Name: "up", URL: upstream.URL + "/os"}, {Name: "local", Dir: dir}}))
	return planeOf(t, emptyLibrary(t), func(o *Options, _ *inventory.Config) { o.Repos = repos }).run(), all, asked
}

// Both kinds of repositories are served alike: GET, HEAD, ranges, conditions, `//`, strong entity tags.
func TestRepositories(t *testing.T) {
	p, all, asked := repoPlane(t, nil)
	for _, name := range []string{"up", "local"} {
		for file, text := range all {
			target := escape("/repo/" + name + "/" + file)
			head := p.request(http.MethodHead, target, ipNobody)
			require.Equal(t, 200, head.StatusCode, target)
			require.EqualValues(t, len(text), head.ContentLength)
			got := p.get(strings.Replace(target, "/repo/", "//repo//", 1))
			require.Equal(t, 200, got.StatusCode, target)
			require.Equal(t, string(text), got.body, target)
			tag := got.Header.Get("ETag")
			require.True(t, strings.HasPrefix(tag, `"`), tag)
			require.Equal(t, tag, head.Header.Get("ETag"))
			require.NotEmpty(t, got.Header.Get("Last-Modified"))
			require.Equal(t, 304, p.get(target, "If-None-Match", tag).StatusCode)
			require.Equal(t, string(text[10:20]), p.get(target, "Range", "bytes=10-19").body)
			require.Equal(t, string(text[len(text)-5:]), p.get(target, "Range", "bytes=-5").body)
			require.Equal(t, 416, p.get(target, "Range", fmt.Sprintf("bytes=%d-", len(text))).StatusCode)
		}
		require.Equal(t, "application/x-rpm", p.get("/repo/"+name+"/"+largeRPM).Header.Get("Content-Type"))
		for _, absent := range []string{"/none", "/repodata/none.xml", "/Packages/none-1-1.x86_64.rpm", "/escape"} {
			require.Equal(t, 404, p.get("/repo/"+name+absent).StatusCode, absent)
		}
		require.Equal(t, 400, p.get("/repo/"+name+"/../local/escape").StatusCode)
		require.Equal(t, 405, p.request(http.MethodDelete, "/repo/"+name+"/"+largeRPM, ipNobody).StatusCode)
	}
	require.EqualValues(t, len(all), asked.Load(), "each file is fetched once")
	require.Equal(t, 404, p.get("/repo/other/x").StatusCode)
	require.Contains(t, p.get("/repo/local").body, `<a href="/repo/local/Packages/">Packages/</a>`)
	require.Contains(t, p.get("/repo/local/Packages/").body, `<a href="/repo/local/">..</a>`)
	require.Equal(t, 404, p.get("/repo/up").StatusCode)

	none := planeOf(t, emptyLibrary(t))
	require.Equal(t, 404, none.direct(http.MethodGet, "/repo/up/repodata/repomd.xml", ipNobody).Code)
}

// Packages that a directory's metadata names outside of it are served under the names that the served metadata has, as all
// others are; the URLs that clients made of the old ones lead nowhere, nor does anything else outside.
func TestRepositoryWithAPool(t *testing.T) {
	root := t.TempDir()
	rpmFile := append(bytes.Clone(rpm.Magic), repotest.Content(3, 5000)...)
	all := repotest.MakeWith(map[string][]byte{"kubelet-1.28.2-0.x86_64.rpm": rpmFile}, repotest.Options{Packing: "gz",
		Locate: func(path string) (base, href string) { return "", "../../pool/" + path }})
	delete(all, "kubelet-1.28.2-0.x86_64.rpm")
	dir := root + "/yum/repos/k"
	require.NoError(t, all.Write(dir))
	require.NoError(t, repotest.Tree{"kubelet-1.28.2-0.x86_64.rpm": rpmFile, "secret-1-1.x86_64.rpm": rpmFile}.Write(root+"/yum/pool"))
	repos, err := repo.Open(repo.Options{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler), Now: time.Now})
	require.NoError(t, err)
	t.Cleanup(func() { repos.Close() })
	require.NoError(t, repos.Set([]repo.Spec{{Name: "k", Dir: dir}}))
	p := planeOf(t, emptyLibrary(t), func(o *Options, _ *inventory.Config) { o.Repos = repos }).run()

	find := func(text, pattern string) string {
		m := regexp.MustCompile(pattern).FindStringSubmatch(text)
		require.NotNil(t, m, "%s in %s", pattern, text)
		return m[1]
	}
	primary := p.get("/repo/k/" + find(p.get("/repo/k/repodata/repomd.xml").body, `href="([^"]*-primary\.xml\.gz)"`))
	require.Equal(t, 200, primary.StatusCode)
	unpacked, err := gzip.NewReader(strings.NewReader(primary.body))
	require.NoError(t, err)
	text, err := io.ReadAll(unpacked)
	require.NoError(t, err)
	target := "/repo/k/" + find(string(text), `<location href="([^"]*)"/>`)
	got := p.get(target)
	require.Equal(t, 200, got.StatusCode)
	require.Equal(t, string(rpmFile), got.body)
	require.Equal(t, "application/x-rpm", got.Header.Get("Content-Type"))
	require.Equal(t, string(rpmFile[10:20]), p.get(target, "Range", "bytes=10-19").body)
	require.Equal(t, 304, p.get(target, "If-None-Match", got.Header.Get("ETag")).StatusCode)
	require.EqualValues(t, len(rpmFile), p.request(http.MethodHead, target, ipNobody).ContentLength)
	for path, status := range map[string]int{"/repo/k/../../pool/kubelet-1.28.2-0.x86_64.rpm": 400, "/pool/kubelet-1.28.2-0.x86_64.rpm": 404,
		strings.Replace(target, "kubelet-1.28.2-0", "secret-1-1", 1): 404, "/repo/k/.elsewhere": 404, "/repo/k/.elsewhere/": 404} {
		require.Equal(t, status, p.get(path).StatusCode, path)
	}
}

// Clients that arrive while a package is fetched read along, by GET and by range, and sendfile takes over once it
// is verified.
func TestRepositoryWhileFetching(t *testing.T) {
	half := make(chan struct{})
	var all repotest.Tree
	ready := make(chan struct{})
	p, tree, asked := repoPlane(t, func(w http.ResponseWriter, r *http.Request) bool {
		<-ready
		if !strings.HasSuffix(r.URL.Path, largeRPM) {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(all[largeRPM])))
		w.Write(all[largeRPM][:1<<20])
		w.(http.Flusher).Flush()
		<-half
		w.Write(all[largeRPM][1<<20:])
		return true
	})
	all = tree
	close(ready)
	resp, err := http.Get(p.url("/repo/up/" + largeRPM))
	require.NoError(t, err)
	defer resp.Body.Close()
	first := make([]byte, 512<<10)
	_, err = io.ReadFull(resp.Body, first)
	require.NoError(t, err, "what has come is sent on at once")
	require.Equal(t, all[largeRPM][:512<<10], first)
	head := p.request(http.MethodHead, "/repo/up/"+largeRPM, ipNobody)
	require.EqualValues(t, 3<<20, head.ContentLength)
	var wg sync.WaitGroup
	for _, ranges := range []string{"", "bytes=0-99", "bytes=1000-", "bytes=-100"} {
		wg.Go(func() {
			got := p.get("/repo/up/"+largeRPM, "Range", ranges)
			if !strings.HasSuffix(string(all[largeRPM]), got.body) && got.body != string(all[largeRPM][:100]) {
				t.Errorf("%q: wrong bytes", ranges)
			}
		})
	}
	close(half)
	wg.Wait()
	rest, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.True(t, bytes.Equal(all[largeRPM][512<<10:], rest))
	require.EqualValues(t, len(all)-2, asked.Load(), "metadata only: neither of the packages by the usual way")
}

// An upstream that lies is 502 with the reason, and an alarm; one that is down is 503. Who reads along is cut off.
func TestRepositoryFaults(t *testing.T) {
	var mode atomic.Value
	mode.Store("down")
	begun := make(chan struct{})
	finish := make(chan struct{})
	p, _, _ := repoPlane(t, func(w http.ResponseWriter, r *http.Request) bool {
		switch mode.Load() {
		case "down":
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		case "wrong":
			if strings.HasSuffix(r.URL.Path, "1.x86_64.rpm") { // the large one
				wrong := repotest.Content(9, 3<<20)
				w.Header().Set("Content-Length", fmt.Sprint(len(wrong)))
				w.Write(wrong[:2<<20])
				w.(http.Flusher).Flush()
				close(begun)
				<-finish
				w.Write(wrong[2<<20:])
				return true
			}
			if strings.HasSuffix(r.URL.Path, ".rpm") {
				w.Write(repotest.Content(9, 1000))
				return true
			}
		}
		return false
	})
	got := p.get("/repo/up/repodata/repomd.xml")
	require.Equal(t, 503, got.StatusCode)
	require.Contains(t, got.body, "repository up: repodata/repomd.xml: upstream answers 503")
	require.NotEmpty(t, got.Header.Get("Retry-After"))
	require.Empty(t, got.Header.Get("ETag"))

	mode.Store("wrong")
	require.Eventually(t, func() bool { return p.get("/repo/up/repodata/repomd.xml").StatusCode == 200 }, time.Minute, 100*time.Millisecond)
	got = p.get("/repo/up/" + oddRPM)
	require.Equal(t, 502, got.StatusCode)
	require.Contains(t, got.body, "sha256 is not the one in the repository's metadata")
	eventually(t, func() bool {
		for _, e := range p.events("upstream") {
			if e.Level == "alarm" && strings.Contains(e.Text, "sha256") {
				return true
			}
		}
		return false
	}, "an alarm")

	resp, err := http.Get(p.url("/repo/up/" + largeRPM))
	require.NoError(t, err)
	defer resp.Body.Close()
	<-begun
	close(finish)
	require.EqualValues(t, 3<<20, resp.ContentLength)
	text, err := io.ReadAll(resp.Body)
	require.True(t, errors.Is(err, io.ErrUnexpectedEOF), "the connection is cut: %v", err)
	require.Less(t, len(text), 3<<20)
}

// Which ranges may end before the file does: those wait until all of it is there.
func TestEndsEarly(t *testing.T) {
	for ranges, want := range map[string]bool{"": false, "bytes=0-": false, "bytes=100-": false, "bytes=-100": false,
		"bytes=0-99": true, "bytes=0-1,5-": true, "bytes=0-,5-6": true, "bytes= 5-": true, "nonsense": true, "bytes=-": true} {
		require.Equal(t, want, endsEarly(ranges), ranges)
	}
}

// A part of a wrong file that looks complete is never sent, while the file comes.
func TestNoPartOfAWrongFile(t *testing.T) {
	p, _, _ := repoPlane(t, func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, largeRPM) {
			return false
		}
		w.Write(repotest.Content(9, 3<<20))
		return true
	})
	for range 2 {
		got := p.get("/repo/up/"+largeRPM, "Range", "bytes=0-99")
		require.Equal(t, 502, got.StatusCode)
		require.Contains(t, got.body, "sha256")
	}
}
