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

// scatter makes a repository whose packages are beside it, as a real createrepo_c describes that: root/yum/pool, and by
// `../../pool` root/yum/repos/up, by an xml:base root/yum/repos/based.
func scatter(t *testing.T, createrepo string) (root string) {
	t.Helper()
	root = t.TempDir()
	pool := filepath.Join(root, "yum", "pool")
	writeRPM(t, pool, "kubelet", "1.28.2", "kubernetes-cni")
	writeRPM(t, pool, "kubernetes-cni", "1.2.0")
	for name, option := range map[string]string{"up": "--location-prefix=../../pool", "based": "--baseurl=file://" + pool} {
		dir := filepath.Join(root, "yum", "repos", name)
		require.NoError(t, os.MkdirAll(dir, 0o755))
		out, err := exec.Command(createrepo, "--quiet", "--database", "--outputdir", dir, option, pool).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	return root
}

// A real dnf installs packages that are not below their repository: from a directory (`../../pool`, and an xml:base),
// and from an upstream that is fetched through.
func TestDNFInstallsFromThePool(t *testing.T) {
	testenv.NeedRoot(t)
	dnf, createrepo := testenv.NeedTool(t, "dnf"), testenv.NeedTool(t, "createrepo_c")
	root := scatter(t, createrepo)
	up := httptest.NewServer(http.FileServer(http.Dir(root)))
	defer up.Close()
	config, _ := repoConfig(t, up.URL)
	text, err := os.ReadFile(config)
	require.NoError(t, err)
	repos := filepath.Join(root, "yum", "repos")
	text = []byte(strings.Replace(string(text), up.URL+"/os/", up.URL+"/yum/repos/up/", 1))
	text = []byte(strings.Replace(string(text), "install: {repos: {", "install: {repos: {near: {dir: "+repos+"/up}, based: {dir: "+repos+"/based}, ", 1))
	require.NoError(t, os.WriteFile(config, text, 0o600))
	url, _ := serveRepos(t, config)
	for _, name := range []string{"base", "near", "based"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			cmd := exec.Command(dnf, "--installroot", dir, "--releasever", "7", "--forcearch", "x86_64", "--repofrompath", "r,"+strings.Replace(url, "/base/", "/"+name+"/", 1), "--repo", "r",
				"--setopt=r.gpgcheck=0", "--setopt=cachedir="+dir+"/cache", "--setopt=reposdir="+dir+"/none", "--setopt=logdir="+dir, "--assumeyes", "install", "kubelet-1.28.2")
			cmd.Env = append(os.Environ(), "http_proxy=", "https_proxy=")
			out, err := cmd.CombinedOutput()
			require.NoError(t, err, "%s", out)
			for _, name := range []string{"kubelet", "kubernetes-cni"} {
				require.FileExists(t, filepath.Join(dir, "usr/share", name))
			}
		})
	}
}
