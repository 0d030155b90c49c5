package main

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/assets"
	"rackstrap/internal/repotest"
	"rackstrap/inventory"
	"rackstrap/kickstart"
	"rackstrap/media"
	"rackstrap/repo"
)

// everything is a repository with all that the plan installs.
func everything() map[string][]byte {
	packages := map[string][]byte{}
	for _, name := range []string{"chrony-3.4-1.el7", "bash-4.2.46-34.el7", "conntrack-tools-1.4.4-7.el7", "container-selinux-2.119.2-1.el7", "ebtables-2.0.10-16.el7", "ethtool-4.8-10.el7", "iproute-4.11.0-30.el7",
		"ipset-7.1-1.el7", "iptables-1.4.21-35.el7", "ipvsadm-1.27-8.el7", "socat-1.7.3.2-2.el7", "containerd.io-1.6.33-3.1.el7",
		"docker-ce-26.1.4-1.el7", "docker-ce-cli-26.1.4-1.el7", "kubelet-1.28.2-0", "kubeadm-1.28.2-0", "kubectl-1.28.2-0"} {
		packages["Packages/"+name+".x86_64.rpm"] = []byte(name)
	}
	return packages
}

// rackWith parses a configuration with these repositories and lines of install, and opens its media.
func rackWith(t *testing.T, medium string, repos map[string]string, install string) (*inventory.Config, *media.Library) {
	t.Helper()
	text := "server: {interface: eth1, address: 10.10.10.1}\nnetwork: {subnet: 10.10.10.0/24}\nmedia: [{name: m, dir: " + medium + "}]\ninstall:\n  root_password_hash: \"$6$saltsalt$" + strings.Repeat("x", 86) + "\"\n" + install + "  repos:\n"
	for _, name := range []string{"base", "updates", "extras", "docker-ce", "kubernetes"} {
		spec := repos[name]
		if spec == "" {
			spec = repos["*"]
		}
		text += "    " + name + ": " + spec + "\n"
	}
	text += "machines:\n  - {name: kmaster, mac: \"52:54:00:00:00:80\", ip: 10.10.10.80, role: control-plane}\n  - {name: knode1, ip: 10.10.10.81}\n"
	path := filepath.Join(t.TempDir(), "rackstrap.yaml")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	cfg, err := inventory.Load(path, nil)
	require.NoError(t, err)
	library, err := media.OpenLibrary(mediaSpecs(cfg))
	require.NoError(t, err)
	t.Cleanup(func() { library.Close() })
	return cfg, library
}

func write(t *testing.T, tree repotest.Tree) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, tree.Write(dir))
	return dir
}

// What the installation would look for in vain is told before a server is touched.
func TestPackagesAreLookedUp(t *testing.T) {
	all := repotest.Make("gz", everything())
	dir := write(t, all)
	local := map[string]string{"*": "{dir: " + dir + "}"}
	cfg, library := rackWith(t, dir, local, "")
	warnings, err := checkPackages(t.Context(), cfg, library, lookUp{})
	require.NoError(t, err)
	require.Empty(t, warnings)

	cfg, library = rackWith(t, dir, local, "  extra_packages: [tmux, bash-4.2.46]\n")
	_, err = checkPackages(t.Context(), cfg, library, lookUp{})
	require.EqualError(t, err, "packages of kmaster: tmux is in none of the repositories")

	old := everything()
	delete(old, "Packages/kubelet-1.28.2-0.x86_64.rpm")
	old["Packages/kubelet-1.28.1-0.x86_64.rpm"], old["Packages/kubelet-1.27.0-0.x86_64.rpm"] = []byte("1"), []byte("2")
	cfg, library = rackWith(t, dir, map[string]string{"*": "{dir: " + write(t, repotest.Make("xz", old)) + "}"}, "")
	_, err = checkPackages(t.Context(), cfg, library, lookUp{})
	require.EqualError(t, err, "packages of kmaster: kubelet-1.28.2 is in none of the repositories; of kubelet there is 1.27.0-0, 1.28.1-0")

	// The medium.
	group := all.Find("group")
	for name, row := range map[string]struct {
		change   func(repotest.Tree)
		warning  string
		contains string
	}{
		"no repodata": {func(t repotest.Tree) { delete(t, "repodata/repomd.xml") }, `packages: medium "m" has no repodata: what is installed from it was not looked up`, ""},
		"damaged":     {func(t repotest.Tree) { t[group] = bytes.Replace(t[group], []byte("core"), []byte("cors"), 1) }, "", `packages of kmaster: medium "m": ` + group + " is not the file"},
	} {
		t.Run(name, func(t *testing.T) {
			tree := repotest.Tree{}
			for path, text := range all {
				tree[path] = text
			}
			row.change(tree)
			cfg, library := rackWith(t, write(t, tree), local, "")
			warnings, err := checkPackages(t.Context(), cfg, library, lookUp{})
			if row.contains != "" {
				require.ErrorContains(t, err, row.contains)
				return
			}
			require.NoError(t, err)
			require.Equal(t, []string{row.warning}, warnings)
		})
	}
	cfg, library = rackWith(t, write(t, repotest.Make("gz", map[string][]byte{"bash-1-1.x86_64.rpm": nil})), local, "")
	_, err = checkPackages(t.Context(), cfg, library, lookUp{})
	require.EqualError(t, err, `packages of kmaster: medium "m" has no package chrony`)
}

// A group that the medium lacks is a fault, with those that it has.
func TestGroupsAreLookedUp(t *testing.T) {
	dir := write(t, repotest.Make("gz", everything()))
	cfg, library := rackWith(t, dir, map[string]string{"*": "{dir: " + dir + "}"}, "")
	c := &packageCheck{cfg: cfg, library: library, indexes: map[string]offer{}}
	c.read(t.Context(), c.wantMedium("m"))
	warnings, faults := c.medium("m", []string{"@core", "@Core", "@^minimal", "@base"})
	require.Empty(t, warnings)
	require.Equal(t, []string{`medium "m" has no group base; it has: Core, core`}, faults)
}

// Servers are asked for a few seconds: who is not reached is a warning, who has no repodata a fault.
func TestServersAreLookedUp(t *testing.T) {
	all := repotest.Make("zst", everything())
	var mode atomic.Value
	mode.Store("good")
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, ok := all[strings.TrimPrefix(r.URL.Path, "/x86_64/")]
		switch {
		case mode.Load() == "hangs":
			<-r.Context().Done()
		case mode.Load() == "absent" || !ok:
			http.NotFound(w, r)
		default:
			w.Write(text)
		}
	}))
	defer server.Close()
	dir := write(t, all)
	repos := map[string]string{"*": server.URL + "/$basearch/"}
	cfg, library := rackWith(t, dir, repos, "")
	warnings, err := checkPackages(t.Context(), cfg, library, lookUp{servers: time.Minute})
	require.NoError(t, err)
	require.Empty(t, warnings)

	mode.Store("absent")
	_, err = checkPackages(t.Context(), cfg, library, lookUp{servers: time.Minute})
	require.ErrorContains(t, err, "repository base: its server has no repodata/repomd.xml at this URL")
	warnings, err = checkPackages(t.Context(), cfg, library, lookUp{})
	require.NoError(t, err, "at the start nobody is asked")
	require.Empty(t, warnings)

	mode.Store("hangs")
	cfg, library = rackWith(t, dir, map[string]string{"*": "{dir: " + write(t, repotest.Make("gz", nil)) + "}", "base": server.URL + "/$basearch/"}, "")
	warnings, err = checkPackages(t.Context(), cfg, library, lookUp{servers: 50 * time.Millisecond})
	require.NoError(t, err)
	require.Contains(t, warnings[0], "packages: repository base was not looked up: it takes too long")
	require.Contains(t, warnings[1], "packages: not in the repositories that were looked up: conntrack-tools, ")
	require.Contains(t, warnings[1], ", kubelet-1.28.2, ")
}

// What the appliance serves: upstreams without variables, with their keys; directories; the rest of repo_dir.
func TestRepoSpecs(t *testing.T) {
	root := t.TempDir()
	for _, name := range []string{"base", "more", "odd name"} {
		require.NoError(t, repotest.Make("", nil).Write(filepath.Join(root, name)))
	}
	require.NoError(t, os.MkdirAll(filepath.Join(root, "empty"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(root, "file"), nil, 0o600))
	cfg, _ := rackWith(t, root, map[string]string{"*": "http://mirror.lab/$releasever/$basearch/",
		"base": "{dir: " + filepath.Join(root, "base") + "}", "docker-ce": "{url: \"https://mirror.lab/$releasever/$basearch/\", via: appliance}"}, "")
	cfg.Server.RepoDir = root
	renderer, err := kickstart.New(assets.Profiles())
	require.NoError(t, err)
	specs, err := repoSpecs(renderer, cfg)
	require.NoError(t, err)
	require.Equal(t, []repo.Spec{
		{Name: "base", Dir: filepath.Join(root, "base")},
		{Name: "docker-ce", URL: "https://mirror.lab/7/x86_64/", Keys: map[string]string{"0": "https://mirrors.aliyun.com/docker-ce/linux/centos/gpg"}},
		{Name: "more", Dir: filepath.Join(root, "more")},
	}, specs)
	text, err := renderSample(renderer, cfg, cfg.Machines[0])
	require.NoError(t, err)
	require.Contains(t, string(text), "|baseurl=http://10.10.10.1:8080/repo/docker-ce/\n|enabled=1\n|gpgcheck=1\n|gpgkey=http://10.10.10.1:8080/repo/docker-ce/.keys/0\n")
	require.Contains(t, string(text), "|baseurl=http://10.10.10.1:8080/repo/base/\n")
	require.Contains(t, string(text), "|baseurl=http://mirror.lab/$releasever/$basearch/\n", "directly")

	cfg.Machines[0].Install.Repos["docker-ce"] = inventory.Repo{URL: "http://mirror.lab/$infra/", Via: inventory.ViaAppliance}
	_, err = repoSpecs(renderer, cfg)
	require.ErrorContains(t, err, "kmaster: repos.docker-ce: its URL has a variable that the appliance cannot resolve")
	cfg.Machines[0].Install.Repos["docker-ce"] = cfg.Machines[1].Install.Repos["docker-ce"]

	// The same name and URL, for machines of different profiles: another repository.
	cfg.Machines[1].Install.Profile = "rocky-9"
	_, err = repoSpecs(renderer, cfg)
	require.ErrorContains(t, err, "knode1: repos.docker-ce is another repository than the one which the appliance serves under this name to machines of another profile")
}

// The proxy is for what is outside of the rack.
func TestProxyOf(t *testing.T) {
	cfg := inventory.Default()
	ask := func(url string) string {
		r, err := http.NewRequest(http.MethodGet, url, nil)
		require.NoError(t, err)
		proxy, err := proxyOf(func() *inventory.Config { return cfg })(r)
		require.NoError(t, err)
		return fmt.Sprint(proxy)
	}
	require.Equal(t, "<nil>", ask("http://mirror.lab/"))
	cfg.Install.Proxy = "http://proxy.lab:3128"
	require.Equal(t, "http://proxy.lab:3128", ask("http://mirror.lab/"))
	require.Equal(t, "<nil>", ask("http://10.10.10.7/"))
	require.Equal(t, "<nil>", ask("http://127.0.0.1/"))
}
