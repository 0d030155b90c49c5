package kube

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestKubernetesGoModPointsAtPublishedModules(t *testing.T) {
	own := "// a comment\n\nmodule k8s.io/kubernetes\n\ngo 1.20\n\nreplace (\n" +
		"\tgithub.com/x/y => github.com/x/y v1.0.0\n\tk8s.io/api => ./staging/src/k8s.io/api\n" +
		"\tk8s.io/sample-cli-plugin => ./staging/src/k8s.io/sample-cli-plugin\n)\n"
	got := kubernetesGoMod([]byte(own), "v1.28.2")
	require.Contains(t, got, "\nmodule labbuild\n\nrequire k8s.io/kubernetes v1.28.2\n")
	require.Contains(t, got, "\tk8s.io/api => k8s.io/api v0.28.2\n")
	require.Contains(t, got, "\tk8s.io/sample-cli-plugin => k8s.io/sample-cli-plugin v0.28.2\n")
	require.Contains(t, got, "github.com/x/y => github.com/x/y v1.0.0")
	require.NotContains(t, got, "staging")
}

func TestEnvironmentKeepsProxiesAndDropsTheCallersBuild(t *testing.T) {
	env := module{toolchain: "go1.21.13"}.environment([]string{
		"GOPROXY=https://proxy", "HOME=/root", "GOFLAGS=-mod=vendor", "GOARCH=arm64", "GOTOOLCHAIN=go1.26.8",
		"GOTOOLCHAIN_INTERNAL_SWITCH_COUNT=1", "CGO_ENABLED=1", "GOROOT=/go",
	})
	require.Subset(t, env, []string{"GOPROXY=https://proxy", "HOME=/root", "GOTOOLCHAIN=go1.21.13", "CGO_ENABLED=0"})
	all := strings.Join(env, "\n")
	for _, gone := range []string{"vendor", "arm64", "go1.26.8", "SWITCH_COUNT", "GOROOT", "CGO_ENABLED=1"} {
		require.NotContains(t, all, gone)
	}
}

func TestProgramsHavePlacesOfTheirOwn(t *testing.T) {
	places := map[string]bool{}
	for _, m := range modules {
		for _, p := range m.programs {
			places[m.place(p, "/c")] = true
			changed := m
			changed.ldflags += " -X a=b"
			require.NotEqual(t, m.place(p, "/c"), changed.place(p, "/c"), "built in another way, it is another program")
		}
	}
	require.Len(t, places, 15)
}

// The names are what `kubeadm config images list` prints; the end-to-end test compares them with it.
func TestImageNames(t *testing.T) {
	names := func(repository string) (all []string) {
		for _, i := range imagesOf(repository) {
			all = append(all, i.name)
		}
		return all
	}
	require.Subset(t, names("r.example/google_containers"), []string{
		"r.example/google_containers/kube-apiserver:v1.28.2", "r.example/google_containers/kube-proxy:v1.28.2",
		"r.example/google_containers/pause:3.9", "r.example/google_containers/etcd:3.5.9-0",
		"r.example/google_containers/coredns:v1.10.1", "docker.io/flannel/flannel:v0.22.0", WebImage,
	})
	require.Contains(t, names("registry.k8s.io"), "registry.k8s.io/coredns/coredns:v1.10.1")
}

func TestImageIsADockerArchive(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "thing")
	require.NoError(t, os.WriteFile(program, []byte("a program"), 0o700))
	tree := filepath.Join(dir, "tree")
	require.NoError(t, os.MkdirAll(filepath.Join(tree, "usr/sbin"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(tree, "usr/sbin/x"), []byte("x"), 0o755))
	require.NoError(t, os.Symlink("x", filepath.Join(tree, "usr/sbin/y")))
	made := image{name: "r/thing:1", entrypoint: "/usr/bin/thing", programs: map[string]string{"/usr/bin/thing": "thing"}, system: true}
	programs := Binaries{paths: map[string]string{"thing": program}}
	first, second := filepath.Join(dir, "1.tar"), filepath.Join(dir, "2.tar")
	require.NoError(t, made.write(first, programs, tree))
	require.NoError(t, made.write(second, programs, tree))

	archive := untar(t, first)
	require.Equal(t, archive, untar(t, second), "the same every time")
	var manifest []struct {
		Config           string
		RepoTags, Layers []string
	}
	require.NoError(t, json.Unmarshal([]byte(archive["manifest.json"]), &manifest))
	require.Equal(t, []string{"r/thing:1"}, manifest[0].RepoTags)
	var config struct {
		Config struct{ Entrypoint []string }
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	require.NoError(t, json.Unmarshal([]byte(archive[manifest[0].Config]), &config))
	require.Equal(t, []string{"/usr/bin/thing"}, config.Config.Entrypoint)
	layer := archive[manifest[0].Layers[0]]
	require.Equal(t, fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(layer))), config.RootFS.DiffIDs[0])

	inside := filepath.Join(dir, "layer.tar")
	require.NoError(t, os.WriteFile(inside, []byte(layer), 0o600))
	files := untar(t, inside)
	require.Equal(t, "a program", files["usr/bin/thing"])
	require.Equal(t, "x", files["usr/sbin/x"])
	require.Equal(t, "-> x", files["usr/sbin/y"])
	require.Contains(t, files, "tmp/")
	require.Contains(t, files["etc/passwd"], "root")
}

func untar(t *testing.T, path string) map[string]string {
	file, err := os.Open(path)
	require.NoError(t, err)
	defer file.Close()
	files := map[string]string{}
	for r := tar.NewReader(file); ; {
		h, err := r.Next()
		if err == io.EOF {
			return files
		}
		require.NoError(t, err)
		require.NotContains(t, files, h.Name, "twice")
		content, err := io.ReadAll(r)
		require.NoError(t, err)
		if h.Typeflag == tar.TypeSymlink {
			content = []byte("-> " + h.Linkname)
		}
		files[h.Name] = string(content)
	}
}

func TestTwoBuildersDoNotMeet(t *testing.T) {
	dir := t.TempDir()
	log := slog.New(slog.DiscardHandler)
	require.NoError(t, exclusively(t.Context(), dir, log, func() error {
		brief, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		err := exclusively(brief, dir, log, func() error { t.Error("both are in"); return nil })
		require.ErrorIs(t, err, context.DeadlineExceeded)
		return nil
	}))
	ran := false
	require.NoError(t, exclusively(t.Context(), dir, log, func() error { ran = true; return nil }))
	require.True(t, ran)
}

// What fails is said in the go command's own words, and leaves nothing behind that a later build would take for
// a program.
func TestFailedBuildIsTold(t *testing.T) {
	t.Setenv("GOPROXY", "off")
	dir := t.TempDir()
	m := module{path: "example.invalid/none", version: "v1.0.0", goLine: "1.20", programs: []program{{name: "none", pkg: "example.invalid/none"}}}
	err := m.build(t.Context(), dir, slog.New(slog.DiscardHandler))
	require.ErrorContains(t, err, "none: go build: ")
	require.ErrorContains(t, err, "module lookup disabled by GOPROXY=off")
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left)

	t.Setenv("PATH", dir)
	require.ErrorContains(t, m.build(t.Context(), dir, slog.New(slog.DiscardHandler)), "not installed here")
}

func TestOwnProgramIsBuilt(t *testing.T) {
	dir := t.TempDir()
	m := modules[len(modules)-1]
	require.NoError(t, m.build(t.Context(), dir, slog.New(slog.DiscardHandler)))
	for _, p := range m.programs {
		info, err := os.Stat(m.place(p, dir))
		require.NoError(t, err)
		require.NotZero(t, info.Mode()&0o111, "can be run")
	}
}
