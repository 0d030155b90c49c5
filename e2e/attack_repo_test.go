package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rackstrap/internal/repotest"
)

// inNamespace runs f in a network namespace. What it opens stays there.
func inNamespace(name string, f func() error) (err error) {
	var wg sync.WaitGroup
	wg.Go(func() { // its thread ends with it, as it is never unlocked
		runtime.LockOSThread()
		file, opened := os.Open("/run/netns/" + name)
		if err = opened; err != nil {
			return
		}
		defer file.Close()
		if err = unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err == nil {
			err = f()
		}
	})
	wg.Wait()
	return err
}

// serveIn serves HTTP inside a namespace.
func serveIn(t *testing.T, ns, address string, f http.HandlerFunc) {
	var l net.Listener
	require.NoError(t, inNamespace(ns, func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	}))
	s := &http.Server{Handler: f}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
}

// clientAt is an HTTP client inside a namespace, with an address of its own.
func clientAt(t *testing.T, ns, address string) *http.Client {
	exec.Command("ip", "-n", ns, "addr", "add", address+"/16", "dev", "cli0").Run() // it may be there
	transport := &http.Transport{DialContext: func(ctx context.Context, network, to string) (conn net.Conn, err error) {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
		err = inNamespace(ns, func() (err error) {
			conn, err = d.DialContext(ctx, network, to)
			return err
		})
		return conn, err
	}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second}
}

// mirrorConfig is a rack of two machines with these repositories, by URL.
func mirrorConfig(t *testing.T, repos map[string]string) string {
	config := stormConfig(t, 2)
	text, err := os.ReadFile(config)
	require.NoError(t, err)
	var entries []string
	for name, url := range repos {
		entries = append(entries, fmt.Sprintf("%s: {url: %q, via: appliance}", name, url))
	}
	text = append(text, "install: {repos: {"+strings.Join(entries, ", ")+"}}\n"...)
	require.NoError(t, os.WriteFile(config, text, 0o600))
	return config
}

func fetchText(client *http.Client, url string) (status int, body string, err error) {
	resp, err := client.Get(url)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text), err
}

// A stranger asks for thousands of files of a repository, of all kinds, whose mirror is slow with them. A listed machine has its packages
// meanwhile, and the mirror is not asked for more than a few at once.
func TestAttackPullThroughBlocked(t *testing.T) {
	n := newNetwork(t, "e2eblock")
	packages := map[string][]byte{}
	for i := range 400 {
		packages[fmt.Sprintf("Packages/slow%d-1-1.x86_64.rpm", i)] = repotest.Content(uint64(i), 100)
	}
	for i := range 40 {
		packages[fmt.Sprintf("Packages/good%d-1-1.x86_64.rpm", i)] = repotest.Content(uint64(1000+i), 50_000)
	}
	all := repotest.Make("gz", packages)
	var held, most, refused atomic.Int64
	serveIn(t, n.servers, "127.0.0.1:9000", func(w http.ResponseWriter, r *http.Request) {
		name := strings.TrimPrefix(r.URL.Path, "/os/")
		text, ok := all[name]
		if name != "repodata/repomd.xml.asc" && (!ok || strings.Contains(name, "slow")) {
			now := held.Add(1)
			for old := most.Load(); now > old && !most.CompareAndSwap(old, now); old = most.Load() {
			}
			defer held.Add(-1)
			<-r.Context().Done()
			return
		}
		if !ok {
			http.NotFound(w, r)
			return
		}
		http.ServeContent(w, r, "", time.Unix(1700000000, 0), bytes.NewReader(text))
	})
	config := mirrorConfig(t, map[string]string{"base": "http://127.0.0.1:9000/os/"})
	n.serve(t, config)
	const root = "http://10.20.0.1:8080/repo/base/"
	listed := clientAt(t, n.clients, "10.20.1.1")
	require.Eventually(t, func() bool {
		status, _, err := fetchText(listed, root+"repodata/repomd.xml")
		return err == nil && status == http.StatusOK
	}, 20*time.Second, 50*time.Millisecond)

	next := 0
	for _, attack := range []struct {
		name string
		path func(i int) string
		most int64 // requests upstream at once
	}{
		{"unlisted paths", func(i int) string { return fmt.Sprintf("some/path/%d", i) }, 0},
		{"metadata that there is not", func(i int) string { return fmt.Sprintf("repodata/%d-primary.xml.gz", i) }, 0},
		{"names of keys", func(i int) string { return fmt.Sprintf("RPM-GPG-KEY-%d", i) }, 4},
		{"files of a medium", func(i int) string {
			return []string{".treeinfo", "treeinfo", "media.repo", ".discinfo", "images/updates.img", "images/product.img", "images/install.img"}[i%7]
		}, 7},
		{"packages", func(i int) string { return fmt.Sprintf("Packages/slow%d-1-1.x86_64.rpm", i%400) }, 8},
	} {
		t.Run(attack.name, func(t *testing.T) {
			most.Store(0)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var strangers sync.WaitGroup
			for s := range 5 {
				client := clientAt(t, n.clients, fmt.Sprintf("10.20.200.%d", 1+s))
				client.Timeout = 0
				for i := range 80 {
					strangers.Go(func() {
						for k := range 5 {
							req, _ := http.NewRequestWithContext(ctx, http.MethodGet, root+attack.path(i*25+s*5+k), nil)
							resp, err := client.Do(req)
							if err != nil {
								return
							}
							if resp.StatusCode >= 400 {
								refused.Add(1)
							}
							io.Copy(io.Discard, resp.Body)
							resp.Body.Close()
						}
					})
				}
			}
			time.Sleep(500 * time.Millisecond)
			begun := time.Now()
			for range 8 {
				name := fmt.Sprintf("Packages/good%d-1-1.x86_64.rpm", next)
				next++
				status, text, err := fetchText(listed, root+name)
				require.NoError(t, err, "after %s", time.Since(begun))
				require.Equal(t, http.StatusOK, status, text)
				require.Equal(t, string(all[name]), text)
			}
			require.Less(t, time.Since(begun), 10*time.Second)
			require.LessOrEqual(t, most.Load(), attack.most, "requests upstream at once")
			t.Logf("8 packages in %s, %d requests upstream at once, %d requests refused", time.Since(begun).Round(time.Millisecond), most.Load(), refused.Swap(0))
			cancel()
			strangers.Wait()
			if attack.name != "packages" { // a download goes on when its client leaves
				require.Eventually(t, func() bool { return held.Load() == 0 }, 10*time.Second, 20*time.Millisecond, "looks end with their last client")
			}
		})
	}
}
