package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/internal/repotest"
)

const secret = "the inner service's secret"

// A mirror sends the appliance to services of its own network, by every file that it has. Neither are these connected to, nor does a
// client read where it was.
func TestAttackRedirects(t *testing.T) {
	n := newNetwork(t, "e2eredir")
	for _, args := range []string{"-n " + n.clients + " addr add 203.0.113.5/32 dev cli0", "-n " + n.servers + " route add 203.0.113.0/24 via 10.20.0.2",
		"-n " + n.servers + " addr add 127.0.0.9/8 dev lo", "-n " + n.clients + " addr add 10.20.0.77/16 dev cli0"} {
		out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput()
		require.NoError(t, err, string(out))
	}
	inner := func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, secret) }
	var reached atomic.Int64
	counted := func(w http.ResponseWriter, r *http.Request) { reached.Add(1); inner(w, r) }
	serveIn(t, n.servers, "127.0.0.1:9001", counted) // on the mirror's own address
	serveIn(t, n.servers, "127.0.0.9:80", counted)
	serveIn(t, n.clients, "10.20.0.77:80", counted)

	targets := []string{"http://127.0.0.1:9001/x", "http://localhost:9001/x", "http://127.0.0.9/x", "http://[::ffff:127.0.0.9]/x", "http://2130706441/x", "http://0.0.0.0:9001/x",
		"http://10.20.0.77/x", "http://10.20.0.1:8080/healthz", "http://169.254.169.254/latest", "http://[::1]:9001/x", "http://[64:ff9b::7f00:9]/x", "file:///etc/passwd", "http://10.20.0.1:9/x"}
	packages := map[string][]byte{"Packages/public-1-1.x86_64.rpm": repotest.Content(1, 200_000), "Packages/chain-1-1.x86_64.rpm": []byte(secret)}
	for i := range targets {
		packages[fmt.Sprintf("Packages/to%d-1-1.x86_64.rpm", i)] = []byte(secret)
	}
	base := len(targets)
	all := repotest.MakeWith(packages, repotest.Options{Packing: "gz", Locate: func(path string) (string, string) {
		if strings.Contains(path, "chain") {
			return "http://10.20.0.77/", path // by the metadata, without a redirect
		}
		return "", path
	}})
	public := func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/back" {
			http.Redirect(w, r, "http://127.0.0.9/x", http.StatusFound)
			return
		}
		w.Write(packages["Packages/public-1-1.x86_64.rpm"])
	}
	serveIn(t, n.clients, "203.0.113.5:80", public)
	var other atomic.Value // where files without a checksum are redirected to
	other.Store("")
	serveIn(t, n.servers, "127.0.0.1:9000", func(w http.ResponseWriter, r *http.Request) {
		name := strings.TrimPrefix(r.URL.Path, "/os/")
		var i int
		switch to := other.Load().(string); {
		case strings.Contains(name, "public"):
			http.Redirect(w, r, "http://203.0.113.5/a.rpm", http.StatusFound)
		case strings.Contains(name, "back"):
			http.Redirect(w, r, "http://203.0.113.5/back", http.StatusFound)
		case strings.HasPrefix(name, "Packages/to"):
			fmt.Sscanf(name, "Packages/to%d-", &i)
			http.Redirect(w, r, targets[i], http.StatusFound)
		case to != "" && !strings.HasSuffix(name, ".asc"):
			http.Redirect(w, r, to, http.StatusFound)
		case all[name] != nil:
			http.ServeContent(w, r, "", time.Unix(1700000000, 0), bytes.NewReader(all[name]))
		default:
			http.NotFound(w, r)
		}
	})
	config := mirrorConfig(t, map[string]string{"base": "http://127.0.0.1:9000/os/"})
	d := n.serve(t, config)
	const root = "http://10.20.0.1:8080/repo/base/"
	client := clientAt(t, n.clients, "10.20.1.1")
	get := func(name string) (int, string) {
		status, body, err := fetchText(client, root+name)
		require.NoError(t, err)
		return status, body
	}
	require.Eventually(t, func() bool { status, _ := get("repodata/repomd.xml"); return status == 200 }, 20*time.Second, 50*time.Millisecond)

	innocent := func(what string, status int, body string) {
		require.GreaterOrEqual(t, status, 400, "%s: %s", what, body)
		for _, part := range []string{secret, "127.0", "10.20", "169.254", "::", "9001", ":80", "localhost", "refused", "reset"} {
			require.NotContains(t, body, part, what)
		}
	}
	for i, to := range targets {
		status, body := get(fmt.Sprintf("Packages/to%d-1-1.x86_64.rpm", i))
		innocent(to, status, body)
	}
	_, primary := get(all.Find("primary"))
	require.NotEmpty(t, primary)
	status, body := get("repodata/repomd.xml")
	require.Equal(t, 200, status)
	require.Zero(t, reached.Load(), "connections to services inside")

	status, body = get("Packages/public-1-1.x86_64.rpm")
	require.Equal(t, 200, status, body)
	require.Equal(t, string(packages["Packages/public-1-1.x86_64.rpm"]), body, "another mirror of the internet is fine")

	// Files that have no checksum stay with their server, wherever it sends us.
	for _, to := range append(targets, "http://203.0.113.5/x", "http://203.0.113.5/back") {
		other.Store(to)
		for k, name := range []string{".treeinfo", "treeinfo", "media.repo", "RPM-GPG-KEY-x"} {
			if k == base%4 || to == targets[0] || strings.Contains(to, "203") {
				status, body := get(name)
				innocent(name+" to "+to, status, body)
			}
		}
	}
	require.Zero(t, reached.Load(), "connections to services inside")

	// The operator knows where it was, and it is an alarm.
	events := rackstrap(t, "--config", config, "events", "--limit", "0")
	require.Regexp(t, `upstream .*sends us to an address that is not on the internet: .*127\.0\.0\.1:9001`, events)

	// So is metadata that is sent elsewhere. Its last good version stays.
	d.kill()
	other.Store("http://127.0.0.9/x")
	n.serve(t, config)
	require.Eventually(t, func() bool {
		status, body := get("repodata/repomd.xml")
		require.NotContains(t, body, secret)
		return status == 200
	}, 20*time.Second, 50*time.Millisecond)
	require.Zero(t, reached.Load(), "connections to services inside")
}

// lyingMetadata is primary metadata of five megabytes packed, or less, that would take hundreds in memory.
func lyingMetadata() map[string]repotest.Tree {
	var packages strings.Builder
	list := func(n int, of func(i int) string) string {
		packages.Reset()
		packages.WriteString(`<metadata xmlns="http://linux.duke.edu/metadata/common" xmlns:rpm="http://linux.duke.edu/metadata/rpm">`)
		for i := range n {
			packages.WriteString(of(i))
		}
		packages.WriteString("</metadata>")
		return packages.String()
	}
	one := func(i int, name, sum, location, more string) string {
		return fmt.Sprintf(`<package type="rpm"><name>%s</name><arch>noarch</arch><version epoch="0" ver="1" rel="%d"/><checksum type="sha256">%s%064x</checksum><size package="9"/><location %s/>%s</package>`, name, i, sum, i, location, more)
	}
	long := strings.Repeat("x/", 400)
	texts := map[string]string{
		"paths": list(55_000, func(i int) string { return one(i, "a", "", fmt.Sprintf(`href="%s%d.rpm"`, long, i), "") }),
		"bases": list(35_000, func(i int) string {
			return one(i, "a", "", fmt.Sprintf(`xml:base="http://x/%s" href="%d.rpm"`, long+long, i), "")
		}),
		"packages": list(150_000, func(i int) string { return one(i, "a", "", fmt.Sprintf(`href="%d.rpm"`, i), "") }),
		"sums": list(400, func(i int) string {
			return one(i, "a", strings.Repeat(" ", 100_000), fmt.Sprintf(`href="%d.rpm"`, i), "")
		}),
	}
	trees := map[string]repotest.Tree{}
	for name, text := range texts {
		trees[name] = repotest.MakeOf("gz", map[string]string{"primary": text})
	}
	return trees
}

// Metadata that is small while it is packed, and names more than any repository has, is refused before it takes the memory, and again after
// a restart.
func TestAttackLyingMetadata(t *testing.T) {
	n := newNetwork(t, "e2elying")
	lies := lyingMetadata()
	good := repotest.Make("gz", map[string][]byte{"good-1-1.noarch.rpm": []byte("good")})
	repos := map[string]string{"base": "http://127.0.0.1:9000/base/"}
	for name, tree := range lies {
		repos[name] = "http://127.0.0.1:9000/" + name + "/"
		require.Less(t, len(tree[tree.Find("primary")]), 30<<20)
	}
	serveIn(t, n.servers, "127.0.0.1:9000", func(w http.ResponseWriter, r *http.Request) {
		which, name, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
		tree := lies[which]
		if which == "base" {
			tree = good
		}
		text, ok := tree[name]
		if !ok {
			http.NotFound(w, r)
			return
		}
		http.ServeContent(w, r, "", time.Unix(1700000000, 0), bytes.NewReader(text))
	})
	config := mirrorConfig(t, repos)
	client := clientAt(t, n.clients, "10.20.1.1")
	for _, start := range []string{"first start", "restart"} {
		d := n.serve(t, config)
		for name := range lies {
			require.Eventually(t, func() bool {
				status, body, err := fetchText(client, "http://10.20.0.1:8080/repo/"+name+"/repodata/repomd.xml")
				return err == nil && (status == 502 || status == 200) && !strings.Contains(body, "slow")
			}, time.Minute, 100*time.Millisecond, name)
		}
		status, body, err := fetchText(client, "http://10.20.0.1:8080/repo/base/good-1-1.noarch.rpm")
		require.NoError(t, err)
		require.Equal(t, 200, status, body)
		most := memoryAtMost(t, d.cmd.Process.Pid)
		t.Logf("%s: %d MiB of the daemon at most", start, most)
		require.Less(t, most, 256, start)
		events := rackstrap(t, "--config", config, "events", "--limit", "0")
		for _, name := range []string{"paths", "bases", "packages"} {
			require.Regexp(t, `upstream .*repository `+name+`: repodata/repomd.xml: upstream sends `, events)
		}
		d.kill()
	}
}

// memoryAtMost is the most that a process had in memory, in MiB.
func memoryAtMost(t *testing.T, pid int) (mib int) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(t, err)
	_, high, _ := strings.Cut(string(status), "VmHWM:")
	fmt.Sscan(high, &mib)
	require.Positive(t, mib)
	return mib / 1024
}

// A mirror offers metadata of an earlier day: what is newer stays, over a restart too, and it is an alarm.
func TestAttackRollback(t *testing.T) {
	n := newNetwork(t, "e2erollb")
	version := func(revision int, file string) repotest.Tree {
		tree := repotest.Make("gz", map[string][]byte{file: []byte(file)})
		tree["repodata/repomd.xml"] = bytes.Replace(tree["repodata/repomd.xml"], []byte("<revision>1<"), fmt.Appendf(nil, "<revision>%d<", revision), 1)
		return tree
	}
	newer, older := version(1700000000, "a-2-1.noarch.rpm"), version(1600000000, "a-1-1.noarch.rpm")
	var now atomic.Value
	now.Store(newer)
	serveIn(t, n.servers, "127.0.0.1:9000", func(w http.ResponseWriter, r *http.Request) {
		text, ok := now.Load().(repotest.Tree)[strings.TrimPrefix(r.URL.Path, "/os/")]
		if !ok {
			http.NotFound(w, r)
			return
		}
		w.Write(text)
	})
	config := mirrorConfig(t, map[string]string{"base": "http://127.0.0.1:9000/os/"})
	client := clientAt(t, n.clients, "10.20.1.1")
	want := string(newer["repodata/repomd.xml"])
	for _, offered := range []repotest.Tree{newer, older} {
		now.Store(offered)
		d := n.serve(t, config) // which asks at its start
		require.Eventually(t, func() bool {
			_, body, err := fetchText(client, "http://10.20.0.1:8080/repo/base/repodata/repomd.xml")
			return err == nil && body == want
		}, 20*time.Second, 50*time.Millisecond)
		if offered["a-1-1.noarch.rpm"] != nil {
			require.Eventually(t, func() bool {
				return strings.Contains(rackstrap(t, "--config", config, "events"), "goes back from revision 1700000000 of its metadata to 1600000000")
			}, 20*time.Second, 100*time.Millisecond)
		}
		d.kill()
	}
}
