package httpboot

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"rackstrap/inventory"
)

// program writes a minimal ELF header of a machine: enough for debug/elf.
func writeProgram(t testing.TB, path string, machine byte, rest string) {
	header := make([]byte, 64)
	copy(header, "\x7fELF\x02\x01\x01")
	header[16], header[18], header[20], header[52] = 2, machine, 1, 64 // ET_EXEC, EV_CURRENT, its own size
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, append(header, rest...), 0o755))
}

const emX8664, emAArch64 = 62, 183

func TestAgent(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the other architecture here is arm64")
	}
	dir := t.TempDir()
	other := filepath.Join(dir, "linux-arm64")
	writeProgram(t, other, emAArch64, "arm")
	agents, err := OpenAgents(dir)
	require.NoError(t, err)
	defer agents.Close()
	require.Equal(t, []string{"amd64", "arm64"}, agents.Architectures())
	require.Empty(t, agents.SHA256("riscv64"))
	p := planeOf(t, emptyLibrary(t), func(o *Options, _ *inventory.Config) { o.Agents = agents }).run()

	self, err := os.ReadFile("/proc/self/exe")
	require.NoError(t, err)
	sum := sha256.Sum256(self)
	require.Equal(t, hex.EncodeToString(sum[:]), agents.SHA256("amd64"))
	own := p.request(http.MethodGet, "/agent/linux-amd64", ipMaster)
	require.Equal(t, http.StatusOK, own.StatusCode)
	require.True(t, bytes.Equal(self, []byte(own.body)), "byte for byte")
	require.Equal(t, `"`+agents.SHA256("amd64")+`"`, own.Header.Get("ETag"))
	eventually(t, func() bool { return len(p.events("agent")) == 1 }, "a step of its timeline")
	require.Equal(t, "kmaster", p.events("agent")[0].Machine)

	head := p.request(http.MethodHead, "/agent/linux-amd64", ipNobody)
	require.EqualValues(t, len(self), head.ContentLength)
	part := p.get("/agent//linux-amd64", "Range", "bytes=1-3")
	require.Equal(t, http.StatusPartialContent, part.StatusCode)
	require.Equal(t, "ELF", part.body)

	was := p.get("/agent/linux-arm64").body
	require.Equal(t, "arm", was[64:])
	require.NoError(t, os.Rename(other, other+".old"))
	writeProgram(t, other, emAArch64, "an upgrade")
	require.Equal(t, was, p.get("/agent/linux-arm64").body, "what the kickstarts' sum was made of")
}

func TestAgentThatIsNotThere(t *testing.T) {
	p := planeOf(t, emptyLibrary(t))
	require.Equal(t, http.StatusNotFound, p.direct(http.MethodGet, "/agent/linux-amd64", ipMaster).Code)

	other := map[string]string{"amd64": "arm64", "arm64": "amd64"}[runtime.GOARCH]
	for _, dir := range []string{"", t.TempDir()} {
		agents, err := OpenAgents(dir)
		require.NoError(t, err)
		defer agents.Close()
		p := planeOf(t, emptyLibrary(t), func(o *Options, _ *inventory.Config) { o.Agents = agents })
		got := p.direct(http.MethodGet, "/agent/linux-"+other, ipMaster)
		require.Equal(t, http.StatusNotFound, got.Code)
		require.Contains(t, got.Body.String(), "linux-"+other)
		require.Contains(t, got.Body.String(), "server.agents_dir")
		got = p.direct(http.MethodGet, "/agent/linux-sparc", ipMaster)
		require.Equal(t, http.StatusNotFound, got.Code)
		require.Contains(t, got.Body.String(), `"sparc"`)
		require.Equal(t, http.StatusNotFound, p.direct(http.MethodGet, "/agent/windows-amd64", ipMaster).Code)
	}
}

// What is no program of its architecture is said at the start, not by a node that cannot run it.
func TestAgentsDirWithOtherThings(t *testing.T) {
	for name, c := range map[string]struct {
		write func(path string)
		want  string
	}{
		"a script":     {func(path string) { os.WriteFile(path, []byte("#!/bin/sh\n"), 0o755) }, "is not a program"},
		"another one":  {func(path string) { writeProgram(t, path, emX8664, "") }, "not for EM_AARCH64"},
		"a directory":  {func(path string) { os.Mkdir(path, 0o755) }, "is not a regular file"},
		"half of it":   {func(path string) { os.WriteFile(path, []byte("\x7fELF"), 0o755) }, "is not a program"},
		"dangling":     {func(path string) { os.Symlink("nowhere", path) }, ""},
		"nothing here": {func(string) {}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c.write(filepath.Join(dir, "linux-arm64"))
			agents, err := OpenAgents(dir)
			if c.want == "" {
				require.NoError(t, err)
				require.NoError(t, agents.Close())
				return
			}
			require.ErrorContains(t, err, "server.agents_dir: ")
			require.ErrorContains(t, err, c.want)
		})
	}
}
