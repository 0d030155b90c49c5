package repo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"rackstrap/internal/testenv"
)

// Every file is fetched once, and served from the cache afterwards: also after a restart.
func TestFetchesOnce(t *testing.T) {
	for _, packing := range []string{"", "gz", "xz", "zst"} {
		t.Run("packed by "+packing, func(t *testing.T) {
			all := makeRepo(t, packing, map[string][]byte{bash: content(1, 300_000), "a/tiny-1-1.noarch.rpm": []byte("x"), "empty-1-1.noarch.rpm": {}})
			all[".treeinfo"] = []byte("[general]\n")
			up := newUpstream(t, all)
			dir := t.TempDir()
			b := serve(t, up, dir)
			for range 3 {
				for name, text := range all {
					b.good(name, text)
				}
			}
			for name, text := range all {
				if len(text) > 0 { // what is empty is right before it is fetched
					require.Equal(t, 1, up.count(name), name)
				}
			}
			require.NoError(t, b.Close())
			require.Equal(t, 0, partials(t, dir))
			onlyGood(t, dir)

			b = serve(t, up, dir)
			for name, text := range all {
				b.good(name, text)
				require.LessOrEqual(t, up.count(name), 1, "%s after a restart", name)
			}
		})
	}
}

// Fifty clients at the same moment cause one fetch of each file, and all get the right bytes.
func TestFiftyClients(t *testing.T) {
	packages := map[string][]byte{}
	for i := range 12 {
		packages[fmt.Sprintf("Packages/p%02d-1.0-1.x86_64.rpm", i)] = content(uint64(i), 10_000+i*60_000)
	}
	all := makeRepo(t, "gz", packages)
	up := newUpstream(t, all)
	registry := prometheus.NewRegistry()
	b := serve(t, up, t.TempDir(), func(o *Options) { o.Metrics = registry })
	var wg sync.WaitGroup
	errs := make(chan error, 50)
	for client := range 50 {
		wg.Go(func() {
			names := append([]string{repomdPath, all.find(t, "primary"), all.find(t, "group"), all.find(t, "filelists")}, all.packages()...)
			for i := range names {
				name := names[(i+client)%len(names)]
				if got, err := b.get(name); err != nil || !bytes.Equal(got, all[name]) {
					errs <- fmt.Errorf("%s: %d bytes, %w", name, len(got), errors.Join(err, errors.New("wrong")))
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		require.NoError(t, err)
	}
	total := 0
	for name, text := range all {
		require.Equal(t, 1, up.count(name), name)
		total += len(text)
	}
	families, err := registry.Gather()
	require.NoError(t, err)
	values := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			key := f.GetName()
			for _, l := range m.GetLabel() {
				if l.GetName() != "repo" {
					key += " " + l.GetValue()
				}
			}
			values[key] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	require.EqualValues(t, total-len(all[repomdPath]), values["rackstrap_repo_upstream_bytes_total"], "what is read whole is not counted")
	require.EqualValues(t, 12, values["rackstrap_repo_requests_total miss"])
	require.EqualValues(t, 50*16-12, values["rackstrap_repo_requests_total hit"]+values["rackstrap_repo_requests_total shared"])
	require.EqualValues(t, 15, values["rackstrap_repo_cache_files"])
	require.EqualValues(t, total-len(all[repomdPath]), values["rackstrap_repo_cache_bytes"])
}

// faults is everything that a server can do wrong with a file of n bytes.
var faults = map[string]struct {
	do     func(w http.ResponseWriter, r *http.Request, text []byte)
	lie    bool
	reason string
}{
	"wrong bytes": {func(w http.ResponseWriter, _ *http.Request, text []byte) {
		wrong := bytes.Clone(text)
		wrong[len(wrong)-1] ^= 1
		w.Write(wrong)
	}, true, "sha256 is not the one in the repository's metadata"},
	"truncated": {func(w http.ResponseWriter, _ *http.Request, text []byte) {
		w.Header().Set("Content-Length", fmt.Sprint(len(text)/2))
		w.Write(text[:len(text)/2])
	}, true, "bytes of a file of which"},
	"truncated, length hidden": {func(w http.ResponseWriter, _ *http.Request, text []byte) {
		w.(http.Flusher).Flush()
		w.Write(text[:len(text)/2])
	}, false, "ends the file too early"},
	"connection cut": {func(w http.ResponseWriter, _ *http.Request, text []byte) {
		w.Header().Set("Content-Length", fmt.Sprint(len(text)))
		w.Write(text[:len(text)/2])
		panic(http.ErrAbortHandler)
	}, false, "broke the connection"},
	"too long": {func(w http.ResponseWriter, _ *http.Request, text []byte) {
		w.Header().Set("Content-Length", fmt.Sprint(len(text)+4))
		w.Write(append(bytes.Clone(text), "more"...))
	}, true, "bytes of a file of which"},
	"endless": {func(w http.ResponseWriter, r *http.Request, text []byte) {
		w.(http.Flusher).Flush()
		for r.Context().Err() == nil {
			if _, err := w.Write(text); err != nil {
				return
			}
		}
	}, true, "sends more than"},
	"HTML": {func(w http.ResponseWriter, _ *http.Request, _ []byte) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		io.WriteString(w, "<!DOCTYPE html><html><body>Please log in</body></html>")
	}, true, "HTML page"},
	"redirect loop": {func(w http.ResponseWriter, r *http.Request, _ []byte) {
		http.Redirect(w, r, r.URL.Path, http.StatusFound)
	}, true, "redirects more than 5 times"},
	"out of order": {func(w http.ResponseWriter, _ *http.Request, _ []byte) {
		w.WriteHeader(http.StatusBadGateway)
	}, false, "answers 502"},
	"forbidden": {func(w http.ResponseWriter, _ *http.Request, _ []byte) {
		w.WriteHeader(http.StatusForbidden)
	}, false, "answers 403"},
	"not modified": {func(w http.ResponseWriter, _ *http.Request, _ []byte) {
		w.WriteHeader(http.StatusNotModified)
	}, false, "answers 304"},
	"a part nobody asked for": {func(w http.ResponseWriter, _ *http.Request, text []byte) {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", len(text)-2, len(text)))
		w.WriteHeader(http.StatusPartialContent)
		w.Write(text[:len(text)-1])
	}, false, "answers 206"},
	"drips": {func(w http.ResponseWriter, r *http.Request, text []byte) {
		w.Header().Set("Content-Length", fmt.Sprint(len(text)))
		for i := 0; i < len(text) && r.Context().Err() == nil; i++ {
			w.Write(text[i : i+1])
			w.(http.Flusher).Flush()
			time.Sleep(5 * time.Millisecond)
		}
	}, false, "sends nothing any more"},
	"stalls": {func(w http.ResponseWriter, r *http.Request, text []byte) {
		w.Header().Set("Content-Length", fmt.Sprint(len(text)))
		w.Write(text[:len(text)/2])
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}, false, "sends nothing any more"},
}

// A package that a server sends wrongly, in whatever way, is never served and never kept; once the server is
// right again, so are we.
func TestLiesAboutPackages(t *testing.T) {
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			all := small(t)
			up := newUpstream(t, all)
			b := serve(t, up, t.TempDir(), func(o *Options) {
				if name == "stalls" || name == "drips" {
					o.StallTimeout = 200 * time.Millisecond
				}
			})
			b.good(repomdPath, all[repomdPath])
			before := onlyGood(t, b.dir)
			up.set(func() {
				up.wrong = func(w http.ResponseWriter, r *http.Request) bool {
					if !strings.HasSuffix(r.URL.Path, bash) {
						return false
					}
					fault.do(w, r, all[bash])
					return true
				}
			})
			b.fails(bash, fault.lie, fault.reason)
			_, err := b.get(bash)
			require.ErrorContains(t, err, fault.reason, "it is remembered for a moment")
			require.NotContains(t, err.Error(), up.URL)
			b.good(stdcxx, all[stdcxx])
			require.Equal(t, before+1, onlyGood(t, b.dir))
			require.Equal(t, 0, partials(t, b.dir))

			up.set(func() { up.wrong = nil })
			b.clock.pass(retryAfter)
			b.good(bash, all[bash])
		})
	}
}

// The same for metadata: without a good set there is no answer, with one it stays in force.
func TestLiesAboutMetadata(t *testing.T) {
	for name, fault := range faults {
		for _, which := range []string{"repomd", "primary", "filelists"} {
			t.Run(which+": "+name, func(t *testing.T) {
				t.Parallel()
				if name == "not modified" && which == "repomd" {
					t.Skip("is no lie where it was asked whether") // tested below
				}
				old := small(t)
				up := newUpstream(t, old)
				alarms := make(chan string, 100)
				b := serve(t, up, t.TempDir(), func(o *Options) {
					o.Alarm = func(text string) { alarms <- text }
					if name == "stalls" || name == "drips" {
						o.StallTimeout = 200 * time.Millisecond
					}
				})
				b.good(repomdPath, old[repomdPath])

				changed := makeRepo(t, "gz", map[string][]byte{"new-2-1.x86_64.rpm": content(9, 100_000)})
				target := repomdPath
				if which != "repomd" {
					target = changed.find(t, which)
				}
				up.set(func() {
					up.tree = changed
					up.wrong = func(w http.ResponseWriter, r *http.Request) bool {
						if !strings.HasSuffix(r.URL.Path, target) {
							return false
						}
						fault.do(w, r, changed[target])
						return true
					}
				})
				b.clock.pass(2 * time.Minute)
				b.good(repomdPath, old[repomdPath])
				_, err := b.get("new-2-1.x86_64.rpm")
				require.ErrorIs(t, err, fs.ErrNotExist, "it is in no metadata that was verified")
				if fault.lie {
					require.Contains(t, <-alarms, "its last good metadata is served")
					require.Empty(t, alarms, "once")
				}

				fresh := serve(t, up, t.TempDir(), func(o *Options) { o.StallTimeout = b.o.StallTimeout })
				_, err = fresh.get(repomdPath)
				var wrong *UpstreamError
				require.ErrorAs(t, err, &wrong)

				up.set(func() { up.wrong = nil })
				for _, b := range []*bench{b, fresh} {
					b.clock.pass(2 * time.Minute)
					b.good(repomdPath, changed[repomdPath])
					b.good("new-2-1.x86_64.rpm", changed["new-2-1.x86_64.rpm"])
					onlyGood(t, b.dir)
				}
			})
		}
	}
}

// Who reads along while a wrong file comes never has the whole of it.
func TestReaderIsCutOff(t *testing.T) {
	all := small(t)
	wrong := bytes.Clone(all[bash])
	wrong[0] ^= 1
	up := newUpstream(t, all)
	b := serve(t, up, t.TempDir())
	b.good(repomdPath, all[repomdPath])
	release := make(chan struct{})
	up.set(func() {
		up.wrong = func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, bash) {
				return false
			}
			w.Header().Set("Content-Length", fmt.Sprint(len(wrong)))
			w.Write(wrong[:200_000])
			w.(http.Flusher).Flush()
			<-release
			w.Write(wrong[200_000:])
			return true
		}
	})
	f, err := b.Open(t.Context(), Request{Repo: "up", Path: bash})
	require.NoError(t, err)
	defer f.Content.Close()
	buf := make([]byte, 200_000)
	_, err = io.ReadFull(f.Content, buf)
	require.NoError(t, err, "it is read along, before the end is there")
	require.Equal(t, wrong[:200_000], buf)
	_, _, _, ok := f.Content.Region()
	require.False(t, ok, "sendfile would not wait")
	close(release)
	rest, err := io.ReadAll(f.Content)
	require.ErrorContains(t, err, "sha256 is not the one")
	require.LessOrEqual(t, 200_000+len(rest), len(wrong)-holdBack)

	// A range that ends early waits for the whole file, and so is never a part of a wrong one.
	b.clock.pass(retryAfter)
	release = make(chan struct{})
	close(release)
	_, err = b.Open(t.Context(), Request{Repo: "up", Path: bash, Part: true})
	require.ErrorContains(t, err, "sha256 is not the one")
	require.Equal(t, 0, partials(t, b.dir))
}

// HEAD is answered out of the metadata, and a range while the file comes.
func TestHeadAndRanges(t *testing.T) {
	all := small(t)
	up := newUpstream(t, all)
	b := serve(t, up, t.TempDir())
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ranges := r.Header.Get("Range")
		f, err := b.Open(r.Context(), Request{Repo: "up", Path: strings.TrimPrefix(r.URL.Path, "/"), Head: r.Method == http.MethodHead, Part: ranges != "" && !strings.HasSuffix(ranges, "-")})
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer f.Content.Close()
		w.Header().Set("ETag", f.ETag)
		http.ServeContent(w, r, f.Name, f.ModTime, f.Content)
	}))
	defer web.Close()
	head, err := http.Head(web.URL + "/" + bash)
	require.NoError(t, err)
	require.EqualValues(t, 300_000, head.ContentLength)
	require.Equal(t, sumOf(all[bash]).etag(), head.Header.Get("ETag"))
	require.Equal(t, "Sun, 13 Sep 2020 12:26:40 GMT", head.Header.Get("Last-Modified"))
	require.Equal(t, 0, up.count(bash), "HEAD fetches nothing")
	for _, row := range []struct{ ranges, want string }{
		{"bytes=10-19", string(all[bash][10:20])},
		{"bytes=299990-", string(all[bash][299_990:])},
		{"bytes=0-", string(all[bash])},
	} {
		req, err := http.NewRequest(http.MethodGet, web.URL+"/"+bash, nil)
		require.NoError(t, err)
		req.Header.Set("Range", row.ranges)
		resp, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		text, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		resp.Body.Close()
		require.Equal(t, http.StatusPartialContent, resp.StatusCode)
		require.Equal(t, row.want, string(text))
	}
	require.Equal(t, 1, up.count(bash))
}

// A transfer that breaks goes on where it broke, if the server can do that; else the beginning is skipped.
func TestResumes(t *testing.T) {
	for _, ranges := range []bool{true, false} {
		t.Run(fmt.Sprint("ranges ", ranges), func(t *testing.T) {
			all := small(t)
			up := newUpstream(t, all)
			b := serve(t, up, t.TempDir())
			b.good(repomdPath, all[repomdPath])
			breaks := 0
			var asked []string
			up.set(func() {
				up.wrong = func(w http.ResponseWriter, r *http.Request) bool {
					if !strings.HasSuffix(r.URL.Path, bash) {
						return false
					}
					up.mu.Lock()
					asked = append(asked, r.Header.Get("Range"))
					breaks++
					n := breaks
					up.mu.Unlock()
					if !ranges {
						r.Header.Del("Range")
					}
					if n > 5 { // more often than is allowed without progress
						return false
					}
					out := &cutter{ResponseWriter: w, left: 40_000 * n}
					if ranges {
						out.left = 40_000
					}
					w.Header().Set("ETag", `"x"`)
					http.ServeContent(out, r, "", time.Time{}, bytes.NewReader(all[bash]))
					panic(http.ErrAbortHandler)
				}
			})
			b.good(bash, all[bash])
			require.Equal(t, []string{"", "bytes=40000-", "bytes=80000-", "bytes=120000-", "bytes=160000-", "bytes=200000-"}, asked)
		})
	}
}

// cutter sends only so much.
type cutter struct {
	http.ResponseWriter
	left int
}

func (c *cutter) Write(p []byte) (int, error) {
	n := min(len(p), c.left)
	c.left -= n
	c.ResponseWriter.Write(p[:n])
	if n < len(p) {
		c.ResponseWriter.(http.Flusher).Flush()
		return n, errors.New("cut")
	}
	return n, nil
}

// A wrong answer to a range request is a lie.
func TestWrongRange(t *testing.T) {
	for _, text := range []string{"bytes 0-5/300000", "bytes 100000-299999/400000", "nonsense", ""} {
		require.Error(t, checkContentRange(text, 100_000, 300_000), text)
	}
	require.NoError(t, checkContentRange("bytes 100000-299999/300000", 100_000, 300_000))
	require.NoError(t, checkContentRange("bytes 100000-299999/*", 100_000, 300_000))
}

// A new set of metadata is served as a whole; clients in the middle of the old one still get its files.
func TestSwitch(t *testing.T) {
	for _, etags := range []bool{true, false} {
		t.Run(fmt.Sprint("etags ", etags), func(t *testing.T) {
			old := small(t)
			old[repomdPath+".asc"] = []byte("old signature")
			up := newUpstream(t, old)
			up.etags = etags
			b := serve(t, up, t.TempDir())
			b.good(repomdPath, old[repomdPath])
			b.good(repomdPath+".asc", old[repomdPath+".asc"])
			b.clock.pass(2 * time.Minute)
			b.good(repomdPath, old[repomdPath])
			require.Equal(t, 1, up.count(repomdPath), "revalidated, not fetched again")

			changed := makeRepo(t, "xz", map[string][]byte{bash: content(7, 1000), "new-2-1.x86_64.rpm": content(9, 100_000)})
			up.set(func() {
				up.tree = changed
				up.wrong = func(w http.ResponseWriter, r *http.Request) bool { // as if it were a younger file
					if r.URL.Path == "/up/"+repomdPath {
						w.Header().Set("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
						w.Write(changed[repomdPath])
						return true
					}
					return false
				}
			})
			b.good(repomdPath, old[repomdPath])
			b.clock.pass(2 * time.Minute)
			b.good(repomdPath, changed[repomdPath])
			_, err := b.get(repomdPath + ".asc")
			require.ErrorIs(t, err, fs.ErrNotExist, "the old signature is not the new metadata's")
			b.good(changed.find(t, "primary"), changed[changed.find(t, "primary")])
			b.good(bash, changed[bash])
			b.good(old.find(t, "primary"), old[old.find(t, "primary")])
			b.good(old.find(t, "filelists"), old[old.find(t, "filelists")])
			_, err = b.get(stdcxx)
			require.ErrorIs(t, err, fs.ErrNotExist, "known, but the server has it no more, and neither have we")
		})
	}
}

// With the upstream down the last good metadata is served, also by a new daemon; and what is kept.
func TestStale(t *testing.T) {
	all := small(t)
	all[".treeinfo"] = []byte("[general]\n")
	up := newUpstream(t, all)
	dir := t.TempDir()
	b := serve(t, up, dir)
	for name, text := range all {
		if name != stdcxx {
			b.good(name, text)
		}
	}
	up.Close()
	b.clock.pass(time.Hour)
	for range 2 {
		b.good(repomdPath, all[repomdPath])
		b.good(bash, all[bash])
		b.good(".treeinfo", all[".treeinfo"])
		require.NoError(t, b.Close())
		b = serve(t, up, dir)
	}
	b.fails(stdcxx, false, "cannot be reached")
	_, err := b.get("treeinfo")
	require.ErrorContains(t, err, "cannot be reached: no server there")
	require.NotContains(t, err.Error(), "127.0.0.1")
	var wrong *UpstreamError
	require.ErrorAs(t, err, &wrong)
	require.Contains(t, wrong.Explain(), "127.0.0.1", "the operator reads it")

	other := serve(t, up, t.TempDir())
	other.fails(repomdPath, false, "cannot be reached")
	other.fails(bash, false, "cannot be reached")
}

// What no metadata names is passed on with revalidation, and bounded.
func TestOthers(t *testing.T) {
	all := small(t)
	all[".treeinfo"], all["KEY"], all["media.repo"] = []byte("one"), []byte("-----BEGIN PGP"), make([]byte, 2000)
	up := newUpstream(t, all)
	b := serve(t, up, t.TempDir(), func(o *Options) { o.MaxOther = 1000 })
	b.good(".treeinfo", all[".treeinfo"])
	b.good(".keys/0", all["KEY"])
	b.good(".treeinfo", all[".treeinfo"])
	require.Equal(t, 1, up.count(".treeinfo"))
	b.fails("media.repo", false, "has a file of 2000 bytes")
	for _, name := range []string{".keys/1", "treeinfo", "none", "x/none-1-1.x86_64.rpm", "repodata/none.xml", "repodata/repomd.xml.asc"} {
		_, err := b.get(name)
		require.ErrorIs(t, err, fs.ErrNotExist, name)
	}
	asked := up.asked
	_, err := b.get("treeinfo")
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.Equal(t, asked, up.asked, "for a moment it is believed")
	_, err = b.get("what/nobody/asks-for")
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.Equal(t, asked, up.asked, "there is no look for it")

	changed := makeRepo(t, "gz", map[string][]byte{})
	changed[".treeinfo"], changed["treeinfo"] = []byte("two"), []byte("now")
	up.set(func() { up.tree, up.etags = changed, true })
	b.good(".treeinfo", all[".treeinfo"])
	b.clock.pass(2 * time.Minute)
	b.good("treeinfo", changed["treeinfo"])
	up.set(func() {
		up.wrong = func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Content-Type", "text/html")
			io.WriteString(w, "<html>log in")
			return true
		}
	})
	b.good(".treeinfo", all[".treeinfo"])
	up.set(func() { up.wrong = nil })
	b.clock.pass(2 * time.Minute)
	text, err := b.get(".treeinfo")
	require.NoError(t, err)
	require.Contains(t, []string{"two"}, string(text))
	_, err = b.Open(t.Context(), Request{Repo: "nobody", Path: "x"})
	require.ErrorIs(t, err, fs.ErrNotExist)
}

// The cache keeps to its size. What is read, and the metadata in force, stays.
func TestEviction(t *testing.T) {
	packages := map[string][]byte{}
	for i := range 10 {
		packages[fmt.Sprintf("p%d-1-1.x86_64.rpm", i)] = content(uint64(i), 100_000)
	}
	all := makeRepo(t, "gz", packages)
	up := newUpstream(t, all)
	dir := t.TempDir()
	b := serve(t, up, dir, func(o *Options) { o.Limit = 350_000 })
	b.good("p0-1-1.x86_64.rpm", all["p0-1-1.x86_64.rpm"])
	held, err := b.Open(t.Context(), Request{Repo: "up", Path: "p0-1-1.x86_64.rpm"})
	require.NoError(t, err)
	for i := range 10 {
		name := fmt.Sprintf("p%d-1-1.x86_64.rpm", i)
		b.good(name, all[name])
		require.LessOrEqual(t, b.store.size, int64(350_000))
	}
	text, err := io.ReadAll(held.Content)
	require.NoError(t, err)
	require.Equal(t, all["p0-1-1.x86_64.rpm"], text)
	require.True(t, b.store.has(sumOf(all["p0-1-1.x86_64.rpm"]), 100_000), "it is being read")
	require.NoError(t, held.Content.Close())
	require.True(t, b.store.has(sumOf(all[all.find(t, "primary")]), -1))
	b.good("p1-1-1.x86_64.rpm", all["p1-1-1.x86_64.rpm"])
	require.False(t, b.store.has(sumOf(all["p0-1-1.x86_64.rpm"]), 100_000), "nobody reads it any more")
	require.Equal(t, 2, up.count("p1-1-1.x86_64.rpm"), "it was evicted")
	b.good("p9-1-1.x86_64.rpm", all["p9-1-1.x86_64.rpm"])
	require.Equal(t, 1, up.count("p9-1-1.x86_64.rpm"), "it was not")

	huge := makeRepo(t, "gz", map[string][]byte{"huge-1-1.x86_64.rpm": content(1, 400_000)})
	upHuge := newUpstream(t, huge)
	tiny := serve(t, upHuge, t.TempDir(), func(o *Options) { o.Limit = 350_000 })
	_, err = tiny.get("huge-1-1.x86_64.rpm")
	require.ErrorContains(t, err, "more than server.cache_size")
}

// A file of the cache that somebody shortened or removed is fetched again.
func TestDamagedCache(t *testing.T) {
	all := small(t)
	up := newUpstream(t, all)
	b := serve(t, up, t.TempDir())
	b.good(bash, all[bash])
	require.NoError(t, os.Truncate(b.store.path(sumOf(all[bash])), 10))
	b.good(bash, all[bash])
	require.NoError(t, os.Remove(b.store.path(sumOf(all[bash]))))
	b.good(bash, all[bash])
	require.Equal(t, 3, up.count(bash))

	// After a restart: metadata that is not whole is no metadata.
	primary := b.store.path(sumOf(all[all.find(t, "primary")]))
	require.NoError(t, b.Close())
	require.NoError(t, os.Remove(primary))
	require.NoError(t, os.WriteFile(b.dir+"/objects/junk", nil, 0o600))
	b = serve(t, up, b.dir)
	b.good(all.find(t, "primary"), all[all.find(t, "primary")])
	b.good(repomdPath, all[repomdPath])
}

// A full disk is a fault of ours, for that file alone.
func TestDiskFull(t *testing.T) {
	testenv.NeedRoot(t)
	dir := t.TempDir()
	require.NoError(t, syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"))
	t.Cleanup(func() { require.NoError(t, syscall.Unmount(dir, 0)) })
	all := makeRepo(t, "gz", map[string][]byte{"large-1-1.noarch.rpm": content(1, 2<<20), "small-1-1.noarch.rpm": content(2, 1000)})
	b := serve(t, newUpstream(t, all), dir)
	_, err := b.get("large-1-1.noarch.rpm")
	require.ErrorIs(t, err, syscall.ENOSPC)
	var wrong *UpstreamError
	require.False(t, errors.As(err, &wrong))
	require.Equal(t, 0, partials(t, dir))
	b.good("small-1-1.noarch.rpm", all["small-1-1.noarch.rpm"])
	require.NoError(t, b.Close())
}

// A package whose size the metadata does not say is served when all of it is there.
func TestSizeUnknown(t *testing.T) {
	all := makeRepo(t, "", map[string][]byte{"a-1-1.noarch.rpm": content(1, 200_000)})
	old := all.find(t, "primary")
	primary := bytes.Replace(all[old], []byte(`<size package="200000" installed="1" archive="1"/>`), nil, 1)
	path := "repodata/other-primary.xml"
	all[path] = primary
	repomd := strings.NewReplacer(old, path, sumOf(all[old]).hex, sumOf(primary).hex, fmt.Sprintf("<size>%d</size>", len(all[old])), "").Replace(string(all[repomdPath]))
	all[repomdPath] = []byte(repomd)
	up := newUpstream(t, all)
	b := serve(t, up, t.TempDir())
	b.good(path, primary)
	f, err := b.Open(t.Context(), Request{Repo: "up", Path: "a-1-1.noarch.rpm", Head: true})
	require.NoError(t, err)
	require.EqualValues(t, 200_000, f.Content.Size())
	require.NoError(t, f.Content.Close())
	b.good("a-1-1.noarch.rpm", all["a-1-1.noarch.rpm"])
	require.Equal(t, 1, up.count("a-1-1.noarch.rpm"))
}

// A client that goes away ends its own request, not the download.
func TestClientLeaves(t *testing.T) {
	all := small(t)
	up := newUpstream(t, all)
	b := serve(t, up, t.TempDir())
	b.good(repomdPath, all[repomdPath])
	release := make(chan struct{})
	up.set(func() {
		up.wrong = func(w http.ResponseWriter, r *http.Request) bool {
			if strings.HasSuffix(r.URL.Path, bash) {
				<-release
			}
			return false
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	f, err := b.Open(ctx, Request{Repo: "up", Path: bash})
	require.NoError(t, err)
	cancel()
	_, err = io.ReadAll(f.Content)
	require.ErrorIs(t, err, context.Canceled)
	require.NoError(t, f.Content.Close())
	close(release)
	b.good(bash, all[bash])
	require.Equal(t, 1, up.count(bash))
}

// Set keeps what is the same, and closes what is gone.
func TestSet(t *testing.T) {
	all := small(t)
	up := newUpstream(t, all)
	dir := t.TempDir()
	all.write(t, dir)
	b := serve(t, up, t.TempDir())
	b.good(bash, all[bash])
	specs := []Spec{{Name: "up", URL: up.URL + "/up/", Keys: map[string]string{"0": up.URL + "/up/KEY"}}, {Name: "local", Dir: dir}}
	was := b.mirrors["up"]
	require.NoError(t, b.Set(specs))
	require.Same(t, was, b.mirrors["up"])
	require.Equal(t, []string{"local", "up"}, b.Names())
	local, ok := b.Local("local")
	require.True(t, ok)
	_, err := local.Tree().Lookup(repomdPath)
	require.NoError(t, err)
	require.Error(t, b.Set([]Spec{{Name: "x", Dir: dir + "/none"}, {Name: "y", URL: "://"}, {Name: "z", Dir: dir}, {Name: "z", Dir: dir}}))
	require.Equal(t, []string{"local", "up"}, b.Names(), "nothing has changed")
	require.NoError(t, b.Set(nil))
	_, err = local.Tree().Lookup(repomdPath)
	require.ErrorIs(t, err, fs.ErrClosed)
	_, err = b.get(bash)
	require.ErrorIs(t, err, fs.ErrNotExist)
}

// Run fetches the metadata before anybody asks.
func TestRunWarms(t *testing.T) {
	all := small(t)
	up := newUpstream(t, all)
	b := serve(t, up, t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	require.Eventually(t, func() bool { return up.count(all.find(t, "group")) == 1 }, time.Minute, 5*time.Millisecond)
	x, err := b.Index(t.Context(), "up")
	require.NoError(t, err)
	require.True(t, x.Has("bash", "4.2.46"))
	require.True(t, x.HasGroup("core"))
	cancel()
	require.NoError(t, <-done)
	_, err = b.get(bash)
	require.Error(t, err, "closed")
	_, err = b.Index(t.Context(), "up")
	require.Error(t, err, "closed")
}
