package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/internal/repotest"
)

// upstream serves a repository below /os/, slowly enough that clients meet, and counts the packages.
type upstream struct {
	*httptest.Server
	mu    sync.Mutex
	times map[string]int
}

func newUpstream(t *testing.T, all repotest.Tree) *upstream {
	u := &upstream{times: map[string]int{}}
	u.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := strings.TrimPrefix(r.URL.Path, "/os/")
		text, ok := all[name]
		if !ok {
			http.NotFound(w, r)
			return
		}
		u.mu.Lock()
		u.times[name]++
		u.mu.Unlock()
		time.Sleep(2 * time.Millisecond)
		http.ServeContent(w, r, "", time.Unix(1700000000, 0), bytes.NewReader(text))
	}))
	t.Cleanup(u.Close)
	return u
}

// freePort is a port that nobody has at the moment.
func freePort(t *testing.T) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// repoConfig is an appliance on the loopback, with free ports, whose repository base comes from upstream.
func repoConfig(t *testing.T, url string) (path, data string) {
	dir := t.TempDir()
	require.NoError(t, repotest.Medium().Write(filepath.Join(dir, "tree")))
	path = filepath.Join(dir, "rackstrap.yaml")
	require.NoError(t, os.WriteFile(path, fmt.Appendf(nil, `server: {interface: lo, address: 127.0.0.1, http_port: %d, https_port: %d, tftp_port: 0, syslog_port: 0, data_dir: data}
network: {subnet: 127.0.0.0/8, dhcp: {mode: "off"}}
media: [{name: tree, dir: tree}]
install: {repos: {base: {url: "%s/os/", via: appliance}}}
machines: [{name: kmaster, mac: "52:54:00:00:00:80", ip: 127.0.0.80, role: control-plane}]
`, freePort(t), freePort(t), url), 0o600))
	return path, filepath.Join(dir, "data")
}

var httpLine = regexp.MustCompile(`(?m)^http +(\S+)$`)

// serveRepos runs the appliance until the test ends or stop is called, which kills it.
func serveRepos(t *testing.T, config string) (url string, kill func()) {
	log := filepath.Join(t.TempDir(), "serve.log")
	file, err := os.Create(log)
	require.NoError(t, err)
	defer file.Close()
	cmd := exec.Command(binary, "--config", config, "serve")
	cmd.Stdout, cmd.Stderr = file, file
	require.NoError(t, cmd.Start())
	kill = sync.OnceFunc(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	t.Cleanup(func() {
		kill()
		if t.Failed() {
			text, _ := os.ReadFile(log)
			t.Logf("the daemon's log ends:\n%s", text[max(0, len(text)-4000):])
		}
	})
	var text []byte
	require.Eventually(t, func() bool {
		text, _ = os.ReadFile(log)
		return strings.Contains(string(text), "\nready\n")
	}, time.Minute, 20*time.Millisecond, "the daemon is not ready")
	return "http://" + string(httpLine.FindSubmatch(text)[1]) + "/repo/base/", kill
}

func hundredMegabytes(t *testing.T) repotest.Tree {
	packages := map[string][]byte{}
	scale := 1
	if testing.Short() {
		scale = 5
	}
	for size, n := range map[int]int{100_000: 40, 500_000: 32, 2_500_000: 16, 10_000_000: 4} {
		for i := range n / min(scale, n) {
			packages[fmt.Sprintf("Packages/p%d-%d-1.0-1.x86_64.rpm", size, i)] = repotest.Content(uint64(size+i), size)
		}
	}
	return repotest.Make("gz", packages)
}

// fetchAll has clients fetch every file, each in an order of its own, over again where the appliance fails; at is
// where it is at the moment. It returns the first thing that was wrong.
func fetchAll(all repotest.Tree, clients int, at func() string) error {
	names := append([]string{"repodata/repomd.xml", all.Find("primary"), all.Find("filelists")}, all.Packages()...)
	errs := make(chan error, clients)
	var wg sync.WaitGroup
	for c := range clients {
		wg.Go(func() {
			client := &http.Client{Timeout: time.Minute}
			defer client.CloseIdleConnections()
			for i := range names {
				if err := fetchOne(client, at, names[(i+c*7)%len(names)], all); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	return <-errs
}

func fetchOne(client *http.Client, at func() string, name string, all repotest.Tree) error {
	deadline := time.Now().Add(3 * time.Minute)
	for {
		resp, err := client.Get(at() + name)
		if err == nil {
			var text []byte
			text, err = io.ReadAll(resp.Body)
			resp.Body.Close()
			switch {
			case err != nil: // cut off
			case resp.StatusCode != http.StatusOK:
				err = fmt.Errorf("%s: %.200s", resp.Status, text)
			case !bytes.Equal(text, all[name]):
				return fmt.Errorf("%s: wrong bytes", name)
			default:
				return nil
			}
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: %w", name, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Done-when 5 of the installation: 50 parallel clients that fetch a repository of 100 MB cause each file to be
// fetched once upstream.
func TestFiftyClientsFetchOnce(t *testing.T) {
	all := hundredMegabytes(t)
	up := newUpstream(t, all)
	config, _ := repoConfig(t, up.URL)
	url, _ := serveRepos(t, config)
	require.NoError(t, fetchAll(all, 50, func() string { return url }))
	up.mu.Lock()
	defer up.mu.Unlock()
	for _, name := range all.Packages() {
		require.Equal(t, 1, up.times[name], name)
	}
	require.Equal(t, 1, up.times[all.Find("primary")])
}

// The other half of it: kill -9 in the middle leaves no wrong byte, neither with the clients nor in the cache.
func TestKillWhileFetching(t *testing.T) {
	all := hundredMegabytes(t)
	up := newUpstream(t, all)
	config, data := repoConfig(t, up.URL)
	var mu sync.Mutex
	url, kill := serveRepos(t, config)
	at := func() string {
		mu.Lock()
		defer mu.Unlock()
		return url
	}
	done := make(chan error, 1)
	go func() { done <- fetchAll(all, 50, at) }()
	kills := 0
	for goOn := true; goOn; {
		select {
		case err := <-done:
			require.NoError(t, err)
			goOn = false
		case <-time.After(300 * time.Millisecond):
			if kills == 4 {
				continue
			}
			kills++
			kill()
			examineCache(t, data)
			next, killNext := serveRepos(t, config)
			mu.Lock()
			url, kill = next, killNext
			mu.Unlock()
		}
	}
	kill()
	t.Logf("killed %d times", kills)
	require.Positive(t, kills)
	require.GreaterOrEqual(t, examineCache(t, data), len(all)-1, "all but repomd.xml")
	up.mu.Lock()
	defer up.mu.Unlock()
	for _, name := range all.Packages() {
		require.LessOrEqual(t, up.times[name], 1+kills, name)
	}
}

// examineCache compares every file that counts as whole with the checksum that is its name.
func examineCache(t *testing.T, data string) (files int) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(filepath.Join(data, "cache/objects"), func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		sum := sha256.Sum256(text)
		require.Equal(t, "sha256-"+hex.EncodeToString(sum[:]), e.Name())
		files++
		return err
	}))
	return files
}

// A reload puts other repositories in force, and refuses those that are none.
func TestReloadRepositories(t *testing.T) {
	all := repotest.Make("gz", map[string][]byte{"a-1-1.noarch.rpm": []byte("a")})
	up := newUpstream(t, all)
	config, _ := repoConfig(t, up.URL)
	url, _ := serveRepos(t, config)
	status := func(repo, path string) int {
		resp, err := http.Get(strings.Replace(url, "/base/", "/"+repo+"/", 1) + path)
		require.NoError(t, err)
		resp.Body.Close()
		return resp.StatusCode
	}
	require.Equal(t, 200, status("base", "a-1-1.noarch.rpm"))
	require.Equal(t, 404, status("near", "a-1-1.noarch.rpm"))

	near := t.TempDir()
	text, err := os.ReadFile(config)
	require.NoError(t, err)
	change := func(repos string) {
		changed := regexp.MustCompile(`\{base: \{[^}]*\}\}`).ReplaceAllString(string(text), repos)
		require.NotEqual(t, string(text), changed)
		require.NoError(t, os.WriteFile(config, []byte(changed), 0o600))
	}
	change("{near: {dir: " + near + "}}")
	out, err := tryRackstrap(t, "--config", config, "reload")
	require.Error(t, err)
	require.Contains(t, out, near+" is not a package repository")
	require.Equal(t, 200, status("base", "a-1-1.noarch.rpm"), "the old one stays")

	require.NoError(t, all.Write(near))
	out = rackstrap(t, "--config", config, "reload")
	require.Contains(t, out, "changed: install.repos.near: none -> "+near)
	require.Equal(t, 404, status("base", "a-1-1.noarch.rpm"))
	require.Equal(t, 200, status("near", "a-1-1.noarch.rpm"))
}
