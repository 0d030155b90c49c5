package media

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// tenThousand is an image of the shape of CentOS 7.9 "Everything": 10,000 packages with their long names in
// one directory.
func tenThousand(tb testing.TB) string {
	tb.Helper()
	src := tb.TempDir()
	require.NoError(tb, os.MkdirAll(filepath.Join(src, "Packages"), 0o755))
	for i := range 10_000 {
		name := fmt.Sprintf("Packages/some-package-name-devel-%05d-3.10.0-1160.el7.x86_64.rpm", i)
		require.NoError(tb, os.WriteFile(filepath.Join(src, name), nil, 0o644))
	}
	return mkisofs(tb, src, "-R", "-J", "-joliet-long")
}

func TestIndexOf10000Files(t *testing.T) {
	if testing.Short() {
		t.Skip("makes 10,000 files: not in -short")
	}
	t.Parallel()
	require.Equal(t, 10_000, openISO(t, tenThousand(t)).Files()) // how fast: BenchmarkIndex
}

func BenchmarkIndex(b *testing.B) {
	iso := tenThousand(b)
	b.ReportAllocs()
	for b.Loop() {
		img, err := OpenISO(iso)
		require.NoError(b, err)
		img.Close()
	}
}

func BenchmarkLookup(b *testing.B) {
	img := openISO(b, tenThousand(b))
	for name, path := range map[string]string{
		"exact":   "Packages/some-package-name-devel-05000-3.10.0-1160.el7.x86_64.rpm",
		"folded":  "packages/Some-Package-Name-Devel-05000-3.10.0-1160.el7.x86_64.rpm",
		"missing": "Packages/nothing",
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, _ = img.Lookup(path)
			}
		})
	}
}

func BenchmarkRead(b *testing.B) {
	src := b.TempDir()
	writeFiles(b, src, map[string]string{"file": strings.Repeat("0123456789abcdef", 4<<20)})
	img, dir := openISO(b, mkisofs(b, src, "-R")), openDirTree(b, src)
	for name, tree := range map[string]Tree{"image": img, "directory": dir} {
		b.Run(name, func(b *testing.B) {
			buf := make([]byte, 64<<10)
			e, err := tree.Lookup("file")
			require.NoError(b, err)
			b.SetBytes(e.Size)
			b.ReportAllocs()
			for b.Loop() {
				c, err := tree.OpenEntry(e)
				require.NoError(b, err)
				_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, buf)
				require.NoError(b, err)
				c.Close()
			}
		})
	}
}
