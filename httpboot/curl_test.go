package httpboot

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"rackstrap/internal/testenv"
)

// curl is what dracut and Anaconda fetch with.
func curl(t *testing.T, args ...string) (out string, err error) {
	t.Helper()
	text, err := exec.Command(testenv.NeedTool(t, "curl"), append([]string{"--silent", "--show-error", "--max-time", "20"}, args...)...).CombinedOutput()
	return string(text), err
}

func TestCurl(t *testing.T) {
	p := newPlane(t).run()
	initrd := files["images/pxeboot/initrd.img"]
	url := p.url("/media/centos-7.9/images/pxeboot/initrd.img")
	dir := t.TempDir()

	t.Run("-I", func(t *testing.T) {
		out, err := curl(t, "-I", url)
		require.NoError(t, err, out)
		require.True(t, strings.HasPrefix(out, "HTTP/1.1 200 OK\r\n"), out)
		require.Contains(t, out, fmt.Sprintf("Content-Length: %d\r\n", len(initrd)))
		require.Contains(t, out, "Accept-Ranges: bytes\r\n")
		require.Contains(t, out, "Content-Type: application/vnd.efi-img\r\n")
		require.Regexp(t, `(?i)etag: "[^"]+"`, out)
	})
	t.Run("-r", func(t *testing.T) {
		out, err := curl(t, "-r", "100-199", url)
		require.NoError(t, err)
		require.Equal(t, initrd[100:200], out)
		out, err = curl(t, "-r", "-5", url)
		require.NoError(t, err)
		require.Equal(t, initrd[len(initrd)-5:], out)
	})
	t.Run("-C - goes on where a file ends", func(t *testing.T) {
		path := filepath.Join(dir, "resumed")
		require.NoError(t, os.WriteFile(path, []byte(initrd[:300_000]), 0o644))
		out, err := curl(t, "-C", "-", "-o", path, url)
		require.NoError(t, err, out)
		got, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, sha256.Sum256([]byte(initrd)), sha256.Sum256(got))
	})
	t.Run("--path-as-is", func(t *testing.T) {
		for path, want := range map[string]string{
			"/media/unpacked/../outside.txt":          "400",
			"/media/unpacked/%2e%2e/outside.txt":      "400",
			"/media/unpacked//images/..//outside.txt": "400",
			"//media//unpacked//.treeinfo":            "200",
		} {
			out, err := curl(t, "--path-as-is", "-o", "/dev/null", "-w", "%{http_code}", p.url(path))
			require.NoError(t, err)
			require.Equal(t, want, out, path)
		}
	})
	t.Run("as Anaconda", func(t *testing.T) {
		out, err := curl(t, "--location", "--retry", "3", "--fail", "-H", "X-RHN-Provisioning-MAC-0: eth0 52:54:00:00:00:80",
			"--interface", ipMaster.String(), p.url(p.kickstart(macMaster)))
		require.NoError(t, err, out)
		require.Contains(t, out, "# kmaster attempt 1")
		out, err = curl(t, "--location", "--fail", "--interface", ipNode.String(), p.url(p.kickstart(macMaster)))
		require.Error(t, err)
		require.Contains(t, out, "403")
	})
	t.Run("every loader", func(t *testing.T) {
		for _, name := range p.plan.Loaders().Names() {
			path := filepath.Join(dir, name)
			out, err := curl(t, "-o", path, p.url("/loader/"+name))
			require.NoError(t, err, out)
			got, err := os.ReadFile(path)
			require.NoError(t, err)
			loader, _ := p.plan.Loaders().Get(name)
			require.Equal(t, loader.SHA256, fmt.Sprintf("%x", sha256.Sum256(got)), name)
		}
	})
	t.Run("compressed", func(t *testing.T) {
		out, err := curl(t, "--compressed", "-o", "/dev/null", "-w", "%{size_download}", url)
		require.NoError(t, err)
		require.Equal(t, fmt.Sprint(len(initrd)), out)
	})
	require.Equal(t, http.StatusOK, p.get("/healthz").StatusCode)
}
