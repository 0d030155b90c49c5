package e2e

import (
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/rpmpack"
	"github.com/stretchr/testify/require"

	"rackstrap/internal/testenv"
)

// writeRPM writes a real package with one file, which may need another package.
func writeRPM(t *testing.T, dir, name, version string, needs ...string) {
	t.Helper()
	rpm, err := rpmpack.NewRPM(rpmpack.RPMMetaData{Name: name, Version: version, Release: "1.el7", Arch: "noarch", OS: "linux",
		Summary: name, Description: name, Licence: "none", Compressor: "gzip", Epoch: rpmpack.NoEpoch})
	require.NoError(t, err)
	for _, need := range needs {
		require.NoError(t, rpm.Requires.Set(need))
	}
	rpm.AddFile(rpmpack.RPMFile{Name: "/usr/share/" + name, Body: []byte(strings.Repeat(name+" "+version+"\n", 20_000)), Mode: 0o100644, Owner: "root", Group: "root"})
	path := filepath.Join(dir, "Packages", name+"-"+version+"-1.el7.noarch.rpm")
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	f, err := os.Create(path)
	require.NoError(t, err)
	require.NoError(t, rpm.Write(f))
	require.NoError(t, f.Close())
}

// A real dnf installs from a real createrepo_c's repository, through the appliance: fetched through from an
// upstream, and out of a directory; several at the same time.
func TestDNFInstalls(t *testing.T) {
	testenv.NeedRoot(t)
	dnf, createrepo := testenv.NeedTool(t, "dnf"), testenv.NeedTool(t, "createrepo_c")
	repo := t.TempDir()
	writeRPM(t, repo, "kubelet", "1.28.1")
	writeRPM(t, repo, "kubelet", "1.28.2", "kubernetes-cni")
	writeRPM(t, repo, "kubernetes-cni", "1.2.0")
	writeRPM(t, repo, "libstdc++", "4.8.5~rc1")
	out, err := exec.Command(createrepo, "--quiet", "--xz", "--database", repo).CombinedOutput()
	require.NoError(t, err, "%s", out)
	var mu sync.Mutex
	fetched := map[string]int{}
	files := http.FileServer(http.Dir(repo))
	up := httptest.NewServer(http.StripPrefix("/os", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		fetched[r.URL.Path]++
		mu.Unlock()
		files.ServeHTTP(w, r)
	})))
	defer up.Close()
	config, _ := repoConfig(t, up.URL)
	text, err := os.ReadFile(config)
	require.NoError(t, err)
	text = []byte(strings.Replace(string(text), "install: {repos: {", "install: {repos: {near: {dir: "+repo+"}, ", 1))
	require.NoError(t, os.WriteFile(config, text, 0o600))
	url, _ := serveRepos(t, config)

	var wg sync.WaitGroup
	for i, from := range []string{url, url, url, strings.Replace(url, "/base/", "/near/", 1)} {
		wg.Go(func() {
			root := t.TempDir()
			cmd := exec.Command(dnf, "--installroot", root, "--releasever", "7", "--forcearch", "x86_64", "--repofrompath", "r,"+from, "--repo", "r", "--setopt=r.gpgcheck=0",
				"--setopt=cachedir="+root+"/cache", "--setopt=reposdir="+root+"/none", "--setopt=logdir="+root, "--assumeyes", "install", "kubelet-1.28.2", "libstdc++")
			cmd.Env = append(os.Environ(), "http_proxy=", "https_proxy=")
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Errorf("%d: %v\n%s", i, err, out)
				return
			}
			for name, version := range map[string]string{"kubelet": "1.28.2", "kubernetes-cni": "1.2.0", "libstdc++": "4.8.5~rc1"} {
				text, err := os.ReadFile(filepath.Join(root, "usr/share", name))
				if err != nil || !strings.HasPrefix(string(text), name+" "+version+"\n") {
					t.Errorf("%d: %s is not installed: %v %.50s\n%s", i, name, err, text, out)
				}
			}
		})
	}
	wg.Wait()
	mu.Lock()
	defer mu.Unlock()
	for path, n := range fetched {
		if strings.HasSuffix(path, ".rpm") {
			require.Equal(t, 1, n, path)
		}
	}
	require.Equal(t, 1, fetched["/Packages/kubelet-1.28.2-1.el7.noarch.rpm"])
	require.Zero(t, fetched["/Packages/kubelet-1.28.1-1.el7.noarch.rpm"])
}
