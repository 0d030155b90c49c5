package inventory

import (
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRepoURL(t *testing.T) {
	s := Server{Address: netip.MustParseAddr("10.10.10.1"), HTTPPort: 8080}
	for _, row := range []struct {
		repo Repo
		want string
	}{
		{Repo{URL: "https://mirror.lab/$basearch"}, "https://mirror.lab/$basearch"},
		{Repo{URL: "https://mirror.lab/$basearch", Via: ViaDirect}, "https://mirror.lab/$basearch"},
		{Repo{URL: "https://mirror.lab/$basearch", Via: ViaAppliance}, "http://10.10.10.1:8080/repo/k8s.io/"},
		{Repo{Dir: "/srv/x", Via: ViaAppliance}, "http://10.10.10.1:8080/repo/k8s.io/"},
	} {
		require.Equal(t, row.want, s.RepoURL("k8s.io", row.repo))
	}
	require.Equal(t, "http://m/9/x86_64/9/x86_64", ExpandRepoURL("http://m/$releasever/$basearch/${releasever}/${basearch}", "9"))
}

// Without url and dir a repository is the one of its name in server.repo_dir.
func TestRepoDir(t *testing.T) {
	c, err := parse(edit(t, good, "    local: {dir: /srv/local}", "    local: {via: appliance}"))
	require.NoError(t, err)
	require.Equal(t, Repo{Dir: "/srv/repos/local", Via: ViaAppliance}, c.Install.Repos["local"])
	require.Equal(t, []string{"docker-ce", "local"}, slices.Sorted(maps.Keys(c.ApplianceRepos())))

	_, err = parse(edit(t, edit(t, good, "  repo_dir: /srv/repos\n", ""), "    local: {dir: /srv/local}", "    local: {via: appliance}"))
	require.EqualError(t, err, "rackstrap.yaml:46: install.repos.local: has neither url nor dir, and there is no server.repo_dir where it could be")
}

// Relative directories start at the file, and must be repositories.
func TestRepoFiles(t *testing.T) {
	dir := t.TempDir()
	text := "server: {interface: eth1, repo_dir: repos}\nnetwork: {subnet: 10.0.0.0/24}\nmedia: [{name: m, dir: .}]\n" +
		"install: {repos: {a: {via: appliance}, b: {dir: b}}}\nmachines: [{name: m, ip: 10.0.0.2, role: control-plane}]\n"
	path := filepath.Join(dir, "rackstrap.yaml")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	c, err := Load(path, nil)
	require.NoError(t, err)
	require.Equal(t, dir+"/repos/a", c.Install.Repos["a"].Dir)
	require.Equal(t, dir+"/b", c.Machines[0].Install.Repos["b"].Dir)
	err = c.CheckFiles()
	require.ErrorContains(t, err, "server.repo_dir: "+dir+"/repos: no such file")
	require.ErrorContains(t, err, "install.repos.a: "+dir+"/repos/a is not a package repository (createrepo_c makes one of it): repodata/repomd.xml: no such file")
	require.NotContains(t, err.Error(), "machines[0]", "what is inherited is one fault")

	for _, repo := range []string{"repos/a", "b"} {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, repo, "repodata"), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, repo, "repodata/repomd.xml"), []byte("<repomd/>"), 0o644))
	}
	require.NoError(t, c.CheckFiles())
}
