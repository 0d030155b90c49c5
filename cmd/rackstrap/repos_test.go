package main

import (
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
	"rackstrap/preflight"
	"rackstrap/repo"
)

// rackWith parses a configuration with these repositories.
func rackWith(t *testing.T, medium string, repos map[string]string) *inventory.Config {
	t.Helper()
	text := "server: {interface: eth1, address: 10.10.10.1}\nnetwork: {subnet: 10.10.10.0/24}\nmedia: [{name: m, dir: " + medium + "}]\ninstall:\n  root_password_hash: \"$6$saltsalt$xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\"\n  repos:\n"
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
	cfg.Network.DHCP.Mode = inventory.DHCPOff // loaders are no matter here
	cfg.Server.AgentsDir = t.TempDir()
	put(t, filepath.Join(cfg.Server.AgentsDir, "linux-amd64"), staticProgram())
	return cfg
}

func write(t *testing.T, tree repotest.Tree) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, tree.Write(dir))
	return dir
}

// Servers are asked for a few seconds: who is not reached is a warning, who has no repodata or key a fault.
func TestServersAreLookedUp(t *testing.T) {
	s := goodSite()
	all := s.repo
	var mode atomic.Value
	mode.Store("good")
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, ok := all[strings.TrimPrefix(r.URL.Path, "/x86_64/")]
		switch {
		case mode.Load() == "hangs":
			<-r.Context().Done()
		case r.URL.Path == "/KEY" && mode.Load() != "absent":
			fmt.Fprintln(w, "-----BEGIN PGP PUBLIC KEY BLOCK-----")
		case r.URL.Path == "/page":
			fmt.Fprintln(w, "<html>")
		case mode.Load() == "absent" || !ok:
			http.NotFound(w, r)
		default:
			w.Write(text)
		}
	}))
	defer server.Close()
	medium, empty := write(t, s.medium), write(t, repotest.Make("gz", nil))
	spec := func(key string) string {
		return `{url: "` + server.URL + `/$basearch/", gpgkey: "` + server.URL + key + `"}`
	}
	ask := func(cfg *inventory.Config, servers time.Duration) preflight.Report {
		return verdict(t.Context(), cfg, reach{servers: servers})
	}
	cfg := rackWith(t, medium, map[string]string{"*": spec("/KEY")})
	require.Empty(t, ask(cfg, time.Minute))
	require.Contains(t, ask(rackWith(t, medium, map[string]string{"*": spec("/page")}), time.Minute).Faults(), "repository base: its gpgkey page is no key (-----BEGIN PGP PUBLIC KEY BLOCK-----)")

	all = repotest.MakeWith(s.packages("gzip"), repotest.Options{Packing: "zst"})
	require.Contains(t, strings.Join(ask(cfg, time.Minute).Faults(), "\n"), "repository base: CentOS 7.9 cannot read repodata/")

	mode.Store("absent")
	faults := ask(cfg, time.Minute).Faults()
	require.Contains(t, faults, "repository base: its server has no repodata/repomd.xml at this URL")
	require.Contains(t, strings.Join(faults, "\n"), "its server does not have the gpgkey KEY")
	require.Empty(t, ask(cfg, 0), "at the start nobody is asked")

	mode.Store("hangs")
	report := ask(rackWith(t, medium, map[string]string{"*": "{dir: " + empty + ", gpgkey: none}", "base": spec("/KEY")}), 50*time.Millisecond)
	require.Empty(t, report.Faults())
	warnings := strings.Join(report.Warnings(), "\n")
	require.Contains(t, warnings, "repository base: was not looked up: it takes too long")
	require.Contains(t, warnings, "repository base: its gpgkey was not looked up: it takes too long")
	require.Contains(t, warnings, "packages of kmaster: not in the repositories that were looked up: conntrack-tools, ")
	require.Contains(t, warnings, ", kubelet-1.28.2, ")
}

// What the appliance serves: upstreams without variables, with their keys; directories; the rest of repo_dir.
func TestRepoSpecs(t *testing.T) {
	root := t.TempDir()
	for _, name := range []string{"base", "more", "odd name"} {
		require.NoError(t, repotest.Make("", nil).Write(filepath.Join(root, name)))
	}
	require.NoError(t, os.MkdirAll(filepath.Join(root, "empty"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(root, "file"), nil, 0o600))
	cfg := rackWith(t, root, map[string]string{"*": "http://mirror.lab/$releasever/$basearch/",
		"base": "{dir: " + filepath.Join(root, "base") + "}", "docker-ce": "{url: \"https://mirror.lab/$releasever/$basearch/\", via: appliance}"})
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
