package kickstart

import (
	"testing"

	"github.com/stretchr/testify/require"

	"rackstrap/inventory"
)

// What an installation fetches, and from where in the end.
func TestSources(t *testing.T) {
	r := newRenderer(t)
	in := fullInput("centos-7.9")
	in.Machine.Install.Repos["kubernetes"] = inventory.Repo{URL: "https://upstream.example.org/$basearch/", Via: inventory.ViaAppliance, GPGKey: inventory.NoGPGKey}
	in.Machine.Install.Repos["ours"] = inventory.Repo{URL: "https://rpm.example.org/$releasever/$basearch/", Via: inventory.ViaAppliance, GPGKey: "https://rpm.example.org/KEY-$releasever file:///etc/pki/KEY"}
	in.Machine.Install.Repos["near"] = inventory.Repo{Dir: "/srv/near", Via: inventory.ViaAppliance, GPGKey: "https://rpm.example.org/KEY"}
	s, err := r.Sources(in)
	require.NoError(t, err)
	require.Equal(t, []string{"@core", "chrony"}, s.Medium)
	require.Equal(t, []string{"kernel"}, s.Implied)
	require.NotContains(t, s.Reads.Payload, "zstd")
	for _, name := range []string{"socat", "kernel-lt", "containerd.io-1.6.33", "docker-ce-26.1.4", "kubelet-1.28.2", "kubeadm-1.28.2", "kubectl-1.28.2", "tmux"} {
		require.Contains(t, s.Packages, name)
	}
	repos := map[string]Source{}
	for _, source := range s.Repos {
		repos[source.Name] = source
	}
	require.Equal(t, Source{Name: "base", URL: "https://mirrors.aliyun.com/centos-vault/7.9.2009/os/x86_64/", GPGKeys: []string{"file:///etc/pki/rpm-gpg/RPM-GPG-KEY-CentOS-7"}}, repos["base"])
	require.Equal(t, Source{Name: "kubernetes", URL: "https://upstream.example.org/x86_64/", Via: inventory.ViaAppliance}, repos["kubernetes"])
	require.Equal(t, Source{Name: "ours", URL: "https://rpm.example.org/7/x86_64/", Via: inventory.ViaAppliance, Keys: map[string]string{"0": "https://rpm.example.org/KEY-7"},
		GPGKeys: []string{"https://rpm.example.org/KEY-7", "file:///etc/pki/KEY"}}, repos["ours"])
	require.Equal(t, Source{Name: "near", Dir: "/srv/near", Via: inventory.ViaAppliance, GPGKeys: []string{"https://rpm.example.org/KEY"}}, repos["near"])
	require.Contains(t, repos, "elrepo", "with the kernel that needs it")

	text, err := r.Render(in)
	require.NoError(t, err)
	require.Contains(t, string(text), "|baseurl=http://10.10.10.1:8080/repo/ours/\n|enabled=1\n|gpgcheck=1\n|gpgkey=http://10.10.10.1:8080/repo/ours/.keys/0 file:///etc/pki/KEY\n")
	require.Contains(t, string(text), "|baseurl=http://10.10.10.1:8080/repo/near/\n|enabled=1\n|gpgcheck=1\n|gpgkey=https://rpm.example.org/KEY\n")

	in.Machine.Install.Docker = false
	s, err = r.Sources(in)
	require.NoError(t, err)
	require.NotContains(t, s.Packages, "docker-ce-26.1.4")
	in.Machine.Install.Profile = "none"
	_, err = r.Sources(in)
	require.Error(t, err)
}
