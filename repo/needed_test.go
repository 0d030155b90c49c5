package repo

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"rackstrap/internal/repotest"
)

// What is certainly installed: the newest builds of all repositories, and what they require, unless there is a choice.
func TestNeed(t *testing.T) {
	index := func(requires map[string][]string, names ...string) *Index {
		packages := map[string][]byte{}
		for _, name := range names {
			packages[name+".x86_64.rpm"] = nil
		}
		dir := t.TempDir()
		require.NoError(t, repotest.MakeWith(packages, repotest.Options{Requires: requires}).Write(dir))
		x, err := ReadIndex(os.DirFS(dir))
		require.NoError(t, err)
		return x
	}
	base := index(map[string][]string{"kubelet": {"cni", "/usr/bin/socat", "libiptables.so()(64bit)", "there", "nowhere", "(a if b)", "mail"}, "cni": {"kubelet", "deep"}},
		"kubelet-1.9-1", "kubelet-1.10-1", "cni-1-1", "socat-1-1", "iptables-1-1", "there-1-1", "deep-1-1", "unneeded-1-1", "postfix-1-1", "exim-1-1")
	for _, name := range []string{"postfix", "exim"} {
		base.provides["mail"] = append(base.provides["mail"], name)
	}
	updates := index(nil, "socat-2-1", "deep-0.9-1")
	needed := func(asked ...string) (list []string) {
		for _, n := range Need([]*Index{base, updates}, asked, func(requirement string) bool { return requirement == "there" }) {
			from := map[*Index]string{base: "base", updates: "updates"}[n.From]
			list = append(list, from+" "+n.String())
		}
		return list
	}
	require.ElementsMatch(t, []string{"base kubelet-1.10-1.x86_64", "base cni-1-1.x86_64", "updates socat-2-1.x86_64", "base iptables-1-1.x86_64", "base deep-1-1.x86_64"},
		needed("kubelet", "kubelet", "none"))
	require.Contains(t, needed("kubelet-1.9"), "base kubelet-1.9-1.x86_64")
	require.Equal(t, []string{"base unneeded-1-1.x86_64"}, needed("unnee*"))
}
