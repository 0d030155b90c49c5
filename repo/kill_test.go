package repo

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// childEnv makes the test binary the daemon that is killed: its value is the cache and the upstream's URL.
const childEnv = "RACKSTRAP_REPO_TEST_CHILD"

func TestMain(m *testing.M) {
	if spec := os.Getenv(childEnv); spec != "" {
		dir, from, _ := strings.Cut(spec, " ")
		fmt.Println("failed:", serveForEver(dir, from))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// serveForEver serves an upstream over HTTP, and prints where.
func serveForEver(dir, from string) error {
	s, err := Open(Options{Dir: dir, Log: slog.New(slog.DiscardHandler), Now: time.Now, Fresh: time.Millisecond})
	if err != nil {
		return err
	}
	if err := s.Set([]Spec{{Name: "up", URL: from}}); err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	return http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f, err := s.Open(r.Context(), Request{Repo: "up", Path: strings.TrimPrefix(r.URL.Path, "/")})
		switch {
		case errors.Is(err, fs.ErrNotExist):
			http.NotFound(w, r)
			return
		case err != nil:
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer f.Content.Close()
		http.ServeContent(w, r, f.Name, f.ModTime, f.Content)
	}))
}

// kill -9 at any instant leaves no wrong byte: neither in what clients had before, nor in the cache, nor in what
// the next daemon serves. The upstream breaks connections, and changes its metadata all the time.
func TestKill(t *testing.T) {
	rounds := 12
	if testing.Short() {
		rounds = 4
	}
	packages := map[string][]byte{}
	for i := range 30 {
		packages[fmt.Sprintf("p%02d-1-1.x86_64.rpm", i)] = content(uint64(i), 20_000+i*30_000)
	}
	versions := []tree{makeRepo(t, "gz", packages), makeRepo(t, "xz", packages)}
	valid := map[string][][]byte{}
	for _, v := range versions {
		for name, text := range v {
			valid[name] = append(valid[name], text)
		}
	}
	up := newUpstream(t, versions[0])
	up.wrong = func(w http.ResponseWriter, r *http.Request) bool {
		if rand.IntN(8) > 0 {
			return false
		}
		up.mu.Lock()
		text := up.tree[strings.TrimPrefix(r.URL.Path, "/up/")]
		up.mu.Unlock()
		w.Header().Set("Content-Length", fmt.Sprint(len(text)))
		w.Write(text[:len(text)/2])
		panic(http.ErrAbortHandler)
	}
	dir := t.TempDir()
	var got, cut atomic.Int64
	run := func(life time.Duration) {
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), childEnv+"="+dir+" "+up.URL+"/up/")
		out, err := child.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, child.Start())
		defer child.Wait()
		defer child.Process.Kill() // SIGKILL
		line, err := bufio.NewReader(out).ReadString('\n')
		require.NoError(t, err)
		address := strings.TrimSpace(line)
		require.NotContains(t, address, "failed")

		client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 8}}
		defer client.CloseIdleConnections()
		stop := make(chan struct{})
		var wg sync.WaitGroup
		wrong := make(chan string, 8)
		for range 8 {
			wg.Go(func() {
				names := append(versions[0].packages(), repomdPath, versions[0].find(t, "primary"), versions[1].find(t, "primary"))
				for {
					select {
					case <-stop:
						return
					default:
					}
					name := names[rand.IntN(len(names))]
					resp, err := client.Get("http://" + address + "/" + name)
					if err != nil {
						cut.Add(1)
						time.Sleep(time.Millisecond)
						continue
					}
					text, err := io.ReadAll(resp.Body)
					resp.Body.Close()
					if err != nil || resp.StatusCode != http.StatusOK {
						cut.Add(1)
						continue
					}
					got.Add(1)
					if !anyEqual(valid[name], text) {
						wrong <- fmt.Sprintf("%s: %d wrong bytes", name, len(text))
						return
					}
				}
			})
		}
		time.Sleep(life)
		require.NoError(t, child.Process.Kill())
		close(stop)
		wg.Wait()
		close(wrong)
		for what := range wrong {
			t.Error(what)
		}
	}
	files := 0
	for round := range rounds {
		up.set(func() { up.tree = versions[round%2] })
		run(time.Duration(20+rand.IntN(150)) * time.Millisecond)
		files = onlyGood(t, dir)
	}
	t.Logf("%d answers were whole, %d were cut, %d files in the cache", got.Load(), cut.Load(), files)
	require.Positive(t, files, "the daemon had no time to do anything")

	up.set(func() { up.wrong = nil })
	b := serve(t, up, dir)
	for name, text := range up.tree {
		b.good(name, text)
	}
	require.Equal(t, 0, partials(t, dir))
	onlyGood(t, dir)
}

func anyEqual(valid [][]byte, text []byte) bool {
	for _, v := range valid {
		if bytes.Equal(v, text) {
			return true
		}
	}
	return false
}
