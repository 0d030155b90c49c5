package media

import (
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"rackstrap/internal/testenv"
)

// xorriso runs xorriso with a deadline and returns what it prints.
func xorriso(t testing.TB, args ...string) string {
	t.Helper()
	testenv.NeedTool(t, "xorriso")
	cmd := exec.CommandContext(t.Context(), "xorriso", args...)
	cmd.Env = append(os.Environ(), "TZ=Asia/Kathmandu") // times are recorded in local time: a zone with a quarter
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	require.NoError(t, err, "%v\n%s", cmd.Args, stderr.String())
	return string(out)
}

// mkisofs makes an image of the directory with Rock Ridge and the given further options.
func mkisofs(t testing.TB, src string, options ...string) string {
	t.Helper()
	iso := filepath.Join(t.TempDir(), "test.iso")
	args := append([]string{"-as", "mkisofs", "-quiet", "-V", "RACKSTRAP TEST", "-no-pad"}, options...)
	xorriso(t, append(args, "-o", iso, src)...)
	return iso
}

// native makes an image of the directory by xorriso's own commands, which know what mkisofs does not.
func native(t testing.TB, src string, commands ...string) string {
	t.Helper()
	iso := filepath.Join(t.TempDir(), "test.iso")
	args := append([]string{"-volid", "RACKSTRAP TEST", "-padding", "0"}, commands...)
	xorriso(t, append(args, "-outdev", iso, "-map", src, "/", "-commit")...)
	return iso
}

func openISO(t testing.TB, path string) *Image {
	t.Helper()
	img, err := OpenISO(path)
	require.NoError(t, err)
	t.Cleanup(func() { img.Close() })
	return img
}

// writeFiles makes files with the given content, and their directories; a name with a trailing slash is an
// empty directory.
func writeFiles(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if strings.HasSuffix(name, "/") {
			require.NoError(t, os.MkdirAll(path, 0o755))
			continue
		}
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(content), 0o644))
	}
}

var (
	deepDir  = "d1/d2/d3/d4/d5/d6/d7/d8/d9/d10/d11/d12"
	longName = strings.Repeat("long-name.", 25) + "rpm" // 253 bytes
)

// sampleTree makes a tree that has everything an installation tree has, and more.
func sampleTree(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	big := strings.Repeat("0123456789abcdef", 20_000)
	writeFiles(t, dir, map[string]string{
		".treeinfo":                     "[general]\nfamily = CentOS\nversion = 7\narch = x86_64\n",
		".discinfo":                     "1604001756.991400\n7.9\nx86_64\n",
		"..three":                       "two dots",
		"images/pxeboot/vmlinuz":        big,
		"images/pxeboot/initrd.img":     big[:2048],
		"images/pxeboot/exactly-one":    big[:1],
		"EFI/BOOT/BOOTX64.EFI":          "shim",
		"EFI/BOOT/grubx64.efi":          "grub",
		"LiveOS/squashfs.img":           big[:100_001],
		"Packages/" + longName:          "long",
		"Packages/libstdc++-4.8.rpm":    "plus",
		"Packages/semi;colon;1":         "colon",
		"Packages/name with spaces~#%&": "odd",
		"Packages/trailing.":            "dot",
		"unicode/Übergrößenträger.txt":  "ü",
		"unicode/日本語のファイル名.txt":         "kanji",
		"unicode/😀":                     "beyond the basic plane",
		deepDir + "/deep.txt":           "deep",
		deepDir + "/../side/.hidden":    "side",
		"zero":                          "",
		"empty/":                        "",
		"empty-deep/a/b/c/":             "",
	})
	for i := range 300 { // a directory of several sectors
		writeFiles(t, dir, map[string]string{fmt.Sprintf("many/file-number-%04d-with-a-long-name", i): strconv.Itoa(i)})
	}
	for link, target := range map[string]string{
		"relative":      "images/pxeboot/vmlinuz",
		"images/up":     "../LiveOS/squashfs.img",
		"absolute":      "/images/pxeboot",
		"dotted":        "./images/./../images//pxeboot", // xorriso would drop a last slash
		"chain":         "relative",
		"long-link":     strings.Repeat(strings.Repeat("x", 240)+"/", 3) + "end",
		"images/itself": ".",
	} {
		require.NoError(t, os.Symlink(target, filepath.Join(dir, link)))
	}
	require.NoError(t, os.Chmod(filepath.Join(dir, "EFI/BOOT/grubx64.efi"), 0o4751))
	require.NoError(t, os.Chmod(filepath.Join(dir, "empty"), 0o1777))
	old := time.Date(1999, 12, 31, 23, 59, 58, 0, time.UTC)
	require.NoError(t, os.Chtimes(filepath.Join(dir, ".treeinfo"), old, old))
	return dir
}

// manifest describes every path of a tree, so that two trees can be compared. Times are cut to seconds, which
// is what ISO 9660 has.
func manifest(t testing.TB, fsys fs.FS) map[string]string {
	t.Helper()
	m := map[string]string{}
	require.NoError(t, fs.WalkDir(fsys, ".", func(path string, d fs.DirEntry, err error) error {
		require.NoError(t, err, path)
		if path == "." {
			return nil
		}
		info, err := d.Info()
		require.NoError(t, err, path)
		line := info.Mode().String() + " " + info.ModTime().UTC().Truncate(time.Second).Format(time.DateTime)
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := fs.ReadLink(fsys, path)
			require.NoError(t, err, path)
			line += " -> " + target
		case info.Mode().IsRegular():
			line += fmt.Sprintf(" %d %s", info.Size(), hash(t, fsys, path))
		}
		m[path] = line
		return nil
	}))
	return m
}

// requireSame compares two manifests and shows where they differ only.
func requireSame(t testing.TB, want, got map[string]string) {
	t.Helper()
	require.Empty(t, cmp.Diff(want, got))
}

func hash(t testing.TB, fsys fs.FS, path string) string {
	t.Helper()
	f, err := fsys.Open(path)
	require.NoError(t, err)
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	require.NoError(t, err)
	return fmt.Sprintf("%x", h.Sum(nil)[:8])
}

func TestRockRidgeShowsTheSourceTree(t *testing.T) {
	src := sampleTree(t)
	want := manifest(t, os.DirFS(src))
	require.Greater(t, len(want), 300)
	for name, options := range map[string][]string{
		"rock ridge":                 {"-R"},
		"with joliet":                {"-R", "-J", "-joliet-long"},
		"level 3":                    {"-R", "-iso-level", "3"},
		"relocated":                  {"-R", "-rr_reloc_dir", "/rr_moved"},
		"relocated, hidden":          {"-R", "-hide-rr-moved"},
		"relocated to root":          {"-R", "-rr_reloc_dir", "/"},
		"relocated to a directory":   {"-R", "-rr_reloc_dir", "/Packages"},
		"isohybrid, appended":        {"-R", "-partition_offset", "16", "-append_partition", "2", "0xef", filepath.Join(src, "LiveOS/squashfs.img")},
		"untranslated":               {"-R", "-U"},
		"extended attributes, MD5":   {"-R", "--for_backup"},
		"lower case, no version":     {"-R", "-l", "-allow-lowercase", "-omit-version-number"},
		"ISO 9660:1999, enhanced":    {"-R", "-iso-level", "4"},
		"padded":                     {"-R", "-pad"},
		"hard links, no cache inode": {"-R", "--hardlinks"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			img := openISO(t, mkisofs(t, src, options...))
			requireSame(t, want, manifest(t, img))
			require.Equal(t, "RACKSTRAP TEST", img.VolumeID())
			require.WithinDuration(t, time.Now(), img.Created(), time.Hour)
			require.Equal(t, 300+20, img.Files())
		})
	}
	for name, compliance := range map[string]string{
		"RRIP 1.10":         "old_rr",
		"RRIP 1.12":         "new_rr",
		"times in GMT":      "always_gmt",
		"ISO 9660:1999":     "iso_9660_1999",
		"versions anywhere": "only_iso_version_off:no_force_dots",
		"eight levels":      "deep_paths_off:long_paths_off",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			requireSame(t, want, manifest(t, openISO(t, native(t, src, "-compliance", compliance))))
		})
	}
}

// contents reduces a manifest to what an image without Rock Ridge has: paths, sizes, content.
func contents(m map[string]string) map[string]string {
	reduced := map[string]string{}
	for path, line := range m {
		fields := strings.Fields(line)
		reduced[path] = fields[0][:1] + strings.Join(fields[3:], " ")
		if strings.Contains(line, " -> ") {
			delete(reduced, path)
		}
	}
	return reduced
}

// What xorriso reads out of an image is a second opinion where the names are not the source's.
func TestXorrisoSeesTheSame(t *testing.T) {
	src := sampleTree(t)
	require.NoError(t, os.Chmod(filepath.Join(src, "EFI/BOOT/grubx64.efi"), 0o755)) // no setuid: it is not extracted
	for name, c := range map[string]struct {
		iso  string
		read []string
	}{
		"rock ridge":    {mkisofs(t, src, "-R", "-J"), nil},
		"joliet":        {native(t, src, "-rockridge", "off", "-joliet", "on", "-compliance", "joliet_utf16"), []string{"-read_fs", "norock"}},
		"joliet, long":  {native(t, src, "-rockridge", "off", "-joliet", "on", "-compliance", "joliet_utf16:joliet_long_names:joliet_long_paths"), []string{"-read_fs", "norock"}},
		"plain level 1": {native(t, src, "-rockridge", "off", "-compliance", "clear:iso_9660_level=1:deep_paths:long_paths"), []string{"-read_fs", "ecma119"}},
		"plain level 2": {native(t, src, "-rockridge", "off", "-compliance", "clear:iso_9660_level=2:deep_paths:long_paths"), []string{"-read_fs", "ecma119"}},
		"plain level 3": {native(t, src, "-rockridge", "off", "-compliance", "clear:iso_9660_level=3:deep_paths:long_paths:lowercase:7bit_ascii"), []string{"-read_fs", "ecma119"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			xorriso(t, append(c.read, "-osirrox", "on", "-indev", c.iso, "-extract", "/", dir)...)
			want := contents(manifest(t, os.DirFS(dir)))
			require.Greater(t, len(want), 300)
			requireSame(t, want, contents(manifest(t, openISO(t, c.iso))))
		})
	}
}

// The Joliet tree has the source's names as far as they fit into 64 (103) characters.
func TestJolietNames(t *testing.T) {
	src := sampleTree(t)
	img := openISO(t, native(t, src, "-rockridge", "off", "-joliet", "on", "-compliance", "joliet_utf16"))
	for _, name := range []string{".treeinfo", "unicode/Übergrößenträger.txt", "unicode/日本語のファイル名.txt", "unicode/😀",
		"Packages/libstdc++-4.8.rpm", "EFI/BOOT/grubx64.efi", "empty", deepDir + "/deep.txt"} {
		want, err := os.Stat(filepath.Join(src, name))
		require.NoError(t, err)
		got, err := img.Lookup(name)
		require.NoError(t, err, name)
		require.Equal(t, filepath.Base(name), got.Name)
		require.Equal(t, want.IsDir(), got.IsDir())
		if !got.IsDir() {
			require.Equal(t, hash(t, os.DirFS(src), name), hash(t, img, name))
		}
	}
	_, err := img.Lookup("relative")
	require.ErrorIs(t, err, fs.ErrNotExist, "Joliet has no links")
}

// An image with upper-case names only is asked with the names that a kernel command line has.
func TestPlainNamesAreFoundInAnyCase(t *testing.T) {
	img := openISO(t, native(t, sampleTree(t), "-rockridge", "off"))
	for asked, spelled := range map[string]string{
		"images/pxeboot/vmlinuz":    "VMLINUZ",
		"Images/PXEboot/initrd.img": "INITRD.IMG",
		"efi/boot/bootx64.efi":      "BOOTX64.EFI",
		"EFI/BOOT/BOOTX64.EFI":      "BOOTX64.EFI",
		"zero":                      "ZERO",
		"empty":                     "EMPTY",
	} {
		e, err := img.Lookup(asked)
		require.NoError(t, err, asked)
		require.Equal(t, spelled, e.Name)
	}
	dir, shim, grub, err := FindShim(img)
	require.NoError(t, err)
	require.Equal(t, []string{"EFI/BOOT", "BOOTX64.EFI", "GRUBX64.EFI"}, []string{dir, shim, grub})
}

// A name that matches exactly wins; one of two names that differ in case only is not guessed.
func TestAmbiguousCase(t *testing.T) {
	src := t.TempDir()
	writeFiles(t, src, map[string]string{"Readme": "1", "README": "22", "Only": "333", "dir/x": "", "DIR/y": ""})
	img, dir := openISO(t, mkisofs(t, src, "-R")), openDirTree(t, src)
	for name, tree := range map[string]Tree{"image": img, "directory": dir} {
		for asked, size := range map[string]int64{"Readme": 1, "README": 2, "only": 3, "ONLY": 3, "dir/x": 0, "DIR/y": 0, "DIR/Y": 0} {
			e, err := tree.Lookup(asked)
			require.NoError(t, err, "%s %s", name, asked)
			require.Equal(t, size, e.Size, "%s %s", name, asked)
		}
		for _, asked := range []string{"readme", "Dir/x", "dir/y", "only/x", "only/"} {
			_, err := tree.Lookup(asked)
			require.Error(t, err, "%s %s", name, asked)
		}
	}
}

func openDirTree(t testing.TB, path string) Tree {
	t.Helper()
	tree, err := OpenDir(path)
	require.NoError(t, err)
	t.Cleanup(func() { tree.Close() })
	return tree
}

func TestFS(t *testing.T) {
	src := sampleTree(t)
	require.NoError(t, os.Remove(filepath.Join(src, "long-link"))) // dangles; TestFS opens everything
	require.NoError(t, os.Remove(filepath.Join(src, "absolute")))  // leads out of a directory
	for name, size := range map[string]int64{"images/pxeboot/vmlinuz": 3 * sectorSize, "LiveOS/squashfs.img": 2*sectorSize + 1} {
		require.NoError(t, os.Truncate(filepath.Join(src, name), size)) // TestFS reads byte by byte, and each link too
	}
	paths := []string{".treeinfo", "images/pxeboot/vmlinuz", "Packages/" + longName, "relative", "empty", deepDir + "/deep.txt"}
	require.NoError(t, fstest.TestFS(openISO(t, mkisofs(t, src, "-R", "-rr_reloc_dir", "/rr_moved")), paths...))
	require.NoError(t, fstest.TestFS(openISO(t, native(t, src, "-rockridge", "off")), "IMAGES/PXEBOOT/VMLINUZ"))
	require.NoError(t, fstest.TestFS(openDirTree(t, src), paths...))
}
