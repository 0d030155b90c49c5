package images

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func archive(t testing.TB, files ...string) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for i := 0; i < len(files); i += 2 {
		require.NoError(t, w.WriteHeader(&tar.Header{Name: files[i], Size: int64(len(files[i+1])), Mode: 0o644, Typeflag: tar.TypeReg}))
		_, err := w.Write([]byte(files[i+1]))
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return out.Bytes()
}

const (
	docker = `[{"Config":"c.json","RepoTags":["registry.lab/kube-proxy:v1.28.2","registry.lab/pause:3.9"],"Layers":["l.tar"]}]`
	oci    = `{"schemaVersion":2,"manifests":[{"annotations":{"io.containerd.image.name":"docker.io/flannel/flannel:v0.22.3","org.opencontainers.image.ref.name":"v0.22.3"}},
		{"annotations":{"org.opencontainers.image.ref.name":"registry.lab/etcd:3.5.9-0"}},{"annotations":{"org.opencontainers.image.ref.name":"latest"}},{}]}`
)

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, text []byte) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), text, 0o644))
	}
	first := archive(t, "layer/layer.tar", "bytes", "manifest.json", docker)
	write("a.tar", first)
	write("b.tar", archive(t, "./oci-layout", "{}", "./index.json", oci))
	write("README", []byte("x"))
	write(".a.tar.part", []byte("x"))
	s, err := Open(dir, nil)
	require.NoError(t, err)
	defer s.Close()
	require.Equal(t, []string{"README"}, s.Ignored)
	require.Len(t, s.Archives(), 2)
	a := s.Find("a.tar")
	sum := sha256.Sum256(first)
	require.Equal(t, hex.EncodeToString(sum[:]), a.SHA256)
	require.EqualValues(t, len(first), a.Size)
	require.Equal(t, []string{"registry.lab/kube-proxy:v1.28.2", "registry.lab/pause:3.9"}, a.Names)
	require.Equal(t, []string{"docker.io/flannel/flannel:v0.22.3", "registry.lab/etcd:3.5.9-0"}, s.Find("b.tar").Names)
	require.Nil(t, s.Find("../a.tar"))

	f, err := a.Region()
	require.NoError(t, err)
	got, err := io.ReadAll(io.NewSectionReader(f, 0, a.Size))
	require.NoError(t, err)
	require.Equal(t, first, got)

	again, err := Open(dir, s)
	require.NoError(t, err)
	defer again.Close()
	require.Equal(t, a.SHA256, again.Find("a.tar").SHA256)

	// One that is replaced is served as it was, one that is written to is not served at all.
	write("new", archive(t, "manifest.json", docker, "more", "x"))
	require.NoError(t, os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "a.tar")))
	_, err = a.Region()
	require.NoError(t, err)
	changed, err := Open(dir, s)
	require.NoError(t, err)
	defer changed.Close()
	require.NotEqual(t, a.SHA256, changed.Find("a.tar").SHA256)
	require.NoError(t, os.Chtimes(filepath.Join(dir, "a.tar"), time.Now(), time.Now().Add(time.Hour)))
	_, err = changed.Find("a.tar").Region()
	require.ErrorIs(t, err, ErrChanged)
}

func TestNoDirectory(t *testing.T) {
	s, err := Open("", nil)
	require.NoError(t, err)
	require.Empty(t, s.Archives())
	_, err = Open(t.TempDir()+"/absent", nil)
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestRefused(t *testing.T) {
	for want, text := range map[string][]byte{
		"is no tar archive": []byte("certainly no archive of anything, but long enough to be taken for one\n"),
		"neither":           archive(t, "etc/passwd", "root"),
		"names none":        archive(t, "manifest.json", `[{"RepoTags":null}]`),
		"manifest.json":     archive(t, "manifest.json", "}{"),
		"index.json":        archive(t, "index.json", `{"manifests":7}`),
		"too large":         archive(t, "index.json", string(make([]byte, maxIndex+1))),
	} {
		dir := t.TempDir()
		require.NoError(t, os.WriteFile(dir+"/x.tar", text, 0o644))
		_, err := Open(dir, nil)
		require.ErrorContains(t, err, want)
		require.ErrorContains(t, err, "x.tar")
	}
}

func FuzzNames(f *testing.F) {
	f.Add(archive(f, "manifest.json", docker))
	f.Add(archive(f, "index.json", oci))
	f.Fuzz(func(t *testing.T, text []byte) {
		list, err := names(bytes.NewReader(text))
		if err == nil && len(list) == 0 {
			t.Fatal("an archive without names")
		}
	})
}
