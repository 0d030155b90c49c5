package httpboot

import (
	"archive/tar"
	"bytes"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/images"
	"rackstrap/inventory"
)

func TestImages(t *testing.T) {
	dir := t.TempDir()
	var text bytes.Buffer
	w := tar.NewWriter(&text)
	manifest := `[{"RepoTags":["registry.lab/pause:3.9"]}]`
	require.NoError(t, w.WriteHeader(&tar.Header{Name: "manifest.json", Size: int64(len(manifest)), Mode: 0o644}))
	_, err := w.Write([]byte(manifest))
	require.NoError(t, err)
	require.NoError(t, w.Close())
	path := filepath.Join(dir, "pause.tar")
	require.NoError(t, os.WriteFile(path, text.Bytes(), 0o644))
	set, err := images.Open(dir, nil)
	require.NoError(t, err)
	defer set.Close()
	p := planeOf(t, emptyLibrary(t), func(o *Options, _ *inventory.Config) { o.Images = func() *images.Set { return set } }).run()

	got := p.request(http.MethodGet, "/images/pause.tar", ipMaster)
	require.Equal(t, http.StatusOK, got.StatusCode)
	require.Equal(t, text.String(), got.body)
	require.Equal(t, `"`+set.Find("pause.tar").SHA256+`"`, got.Header.Get("ETag"))
	eventually(t, func() bool { return len(p.events("image")) == 1 }, "a step of its timeline")
	require.Equal(t, "jso", p.get("/images/pause.tar", "Range", "bytes=9-11").body, "it goes on after a break")
	for _, name := range []string{"none.tar", "..%2fpause.tar", "%2e%2e"} {
		require.Contains(t, []int{http.StatusNotFound, http.StatusBadRequest}, p.get("/images/"+name).StatusCode, name)
	}
	require.NoError(t, os.Chtimes(path, time.Now(), time.Now().Add(time.Hour)))
	require.Equal(t, http.StatusServiceUnavailable, p.get("/images/pause.tar").StatusCode, "other bytes than the agent was promised")
}
