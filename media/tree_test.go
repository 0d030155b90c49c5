package media

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"
)

func TestLibrary(t *testing.T) {
	src := t.TempDir()
	writeFiles(t, src, map[string]string{"file": "x"})
	iso := mkisofs(t, src, "-R")
	l, err := OpenLibrary([]Spec{{Name: "seven", ISO: iso}, {Name: "eight", Dir: src}})
	require.NoError(t, err)
	require.Equal(t, []string{"eight", "seven"}, l.Names())
	for _, name := range l.Names() {
		tree, ok := l.Tree(name)
		require.True(t, ok)
		_, err := tree.Lookup("FILE")
		require.NoError(t, err)
	}
	_, ok := l.Tree("nine")
	require.False(t, ok)
	require.NoError(t, l.Close())
	for _, name := range []string{"seven", "eight"} {
		tree, _ := l.Tree(name)
		_, err := tree.Open("file")
		require.ErrorIs(t, err, fs.ErrClosed)
	}
}

// All faults are told at once, each with its medium.
func TestLibraryFaults(t *testing.T) {
	dir := t.TempDir()
	writeFiles(t, dir, map[string]string{"text": strings.Repeat("x", 100_000)})
	_, err := OpenLibrary([]Spec{
		{Name: "good", Dir: dir},
		{Name: "gone", ISO: filepath.Join(dir, "gone.iso")},
		{Name: "broken", ISO: filepath.Join(dir, "text")},
		{Name: "both", ISO: "x", Dir: "y"},
		{Name: "neither"},
		{Name: "good", Dir: dir},
		{Name: "", Dir: dir},
		{Name: "a/b", Dir: dir},
		{Name: "..", Dir: dir},
		{Name: "nodir", Dir: filepath.Join(dir, "text")},
	})
	require.ErrorIs(t, err, fs.ErrNotExist)
	var corrupt *CorruptError
	require.ErrorAs(t, err, &corrupt)
	lines := strings.Split(err.Error(), "\n")
	require.Len(t, lines, 9)
	for i, want := range []string{
		`media[1] "gone": stat `, `media[2] "broken": ` + dir, `media[3] "both": either`, `media[4] "neither": either`,
		`media[5] "good": another medium`, `media[6] "": the name`, `media[7] "a/b": the name`, `media[8] "..": the name`, `media[9] "nodir"`,
	} {
		require.True(t, strings.HasPrefix(lines[i], want), "%s", lines[i])
	}
}

func TestDirOpensOnlyFilesAndDirectories(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	tree := openDirTree(t, dir)
	e, err := tree.Lookup("fifo")
	require.NoError(t, err)
	_, err = tree.OpenEntry(e)
	require.ErrorIs(t, err, fs.ErrInvalid)
	_, err = tree.Open("fifo")
	require.ErrorIs(t, err, fs.ErrInvalid)
}

// What was looked up is what is opened, or nothing.
func TestDirNoticesReplacedFiles(t *testing.T) {
	dir := t.TempDir()
	writeFiles(t, dir, map[string]string{"file": "old"})
	tree := openDirTree(t, dir)
	e, err := tree.Lookup("file")
	require.NoError(t, err)
	path := filepath.Join(dir, "file")

	require.NoError(t, os.WriteFile(path, []byte("longer"), 0o600))
	_, err = tree.OpenEntry(e)
	require.ErrorIs(t, err, ErrChanged)

	require.NoError(t, os.Remove(path))
	_, err = tree.OpenEntry(e)
	require.ErrorIs(t, err, fs.ErrNotExist)

	require.NoError(t, syscall.Mkfifo(path, 0o600)) // must not block
	_, err = tree.OpenEntry(e)
	require.ErrorIs(t, err, ErrChanged)
}

func TestVerify(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	content := strings.Repeat("x", 2<<20+5)
	require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	sum := fmt.Sprintf("%x", sha256.Sum256([]byte(content)))

	var seen []int64
	require.NoError(t, Verify(t.Context(), path, sum, func(done, total int64) {
		require.EqualValues(t, len(content), total)
		seen = append(seen, done)
	}))
	require.Equal(t, []int64{1 << 20, 2 << 20, 2<<20 + 5}, seen)
	require.NoError(t, Verify(t.Context(), path, " "+strings.ToUpper(sum)+"\n", nil))

	other := strings.Repeat("0", 64)
	err := Verify(t.Context(), path, other, nil)
	var mismatch *ChecksumError
	require.ErrorAs(t, err, &mismatch)
	require.Equal(t, ChecksumError{Path: path, Want: other, Got: sum}, *mismatch)

	for _, bad := range []string{"", "abc", sum[:63], sum + "00", strings.Repeat("g", 64)} {
		require.ErrorContains(t, Verify(t.Context(), path, bad, nil), "64 hexadecimal digits")
	}
	require.ErrorIs(t, Verify(t.Context(), path+"x", sum, nil), fs.ErrNotExist)

	ctx, cancel := context.WithCancel(t.Context())
	err = Verify(ctx, path, sum, func(int64, int64) { cancel() })
	require.ErrorIs(t, err, context.Canceled)
	require.Len(t, seen, 3)
}

func TestReadTreeInfo(t *testing.T) {
	centos7 := `[general]
name = CentOS-7
family = CentOS
timestamp = 1600000000.1
variant =
version = 7
packagedir =
arch = x86_64

[stage2]
mainimage = LiveOS/squashfs.img

[images-x86_64]
kernel = images/pxeboot/vmlinuz
initrd = images/pxeboot/initrd.img
boot.iso = images/boot.iso

[images-xen]
kernel = images/xen/vmlinuz

[checksums]
LiveOS/squashfs.img = sha256:ABCD
images/boot.iso = md5:12
`
	productmd := "; a comment\n[header]\nversion = 1.2\n[release]\nname: Rocky Linux\nversion: 9.4\n[tree]\narch = aarch64\n" +
		"[images-aarch64]\nKERNEL=./images/pxeboot//vmlinuz\r\ninitrd=images/pxeboot/initrd.img\n" +
		"[variant-BaseOS]\nrepository = BaseOS\n[variant-AppStream]\nrepository = AppStream/\n[variant-x]\nrepository = ../x\n"
	for name, c := range map[string]struct {
		file, text string
		want       TreeInfo
	}{
		"CentOS 7": {".treeinfo", centos7, TreeInfo{"CentOS", "7", "x86_64", "images/pxeboot/vmlinuz", "images/pxeboot/initrd.img", "LiveOS/squashfs.img",
			[]string{"."}, map[string]string{"liveos/squashfs.img": "abcd"}}},
		"productmd": {"treeinfo", productmd, TreeInfo{"Rocky Linux", "9.4", "aarch64", "images/pxeboot/vmlinuz", "images/pxeboot/initrd.img", "",
			[]string{"AppStream", "BaseOS"}, map[string]string{}}},
		"packages": {".treeinfo", "[general]\nfamily = Extras\n", TreeInfo{Family: "Extras", Repositories: []string{"."}, Checksums: map[string]string{}}},
		"empty":    {".treeinfo", "", TreeInfo{Repositories: []string{"."}, Checksums: map[string]string{}}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ReadTreeInfo(fstest.MapFS{c.file: {Data: []byte(c.text)}})
			require.NoError(t, err)
			require.Equal(t, c.want, got)
		})
	}
	for want, text := range map[string]string{
		`line 1: neither`:   "key = value\n",
		`line 2: neither`:   "[general]\nrubbish\n",
		`a section without`: "[general\n",
		`kernel "../../etc/passwd" is no path inside`: "[general]\narch=a\n[images-a]\nkernel = ../../etc/passwd\n",
		`initrd "/initrd" is no path inside`:          "[general]\narch=a\n[images-a]\ninitrd = /initrd\n",
		`mainimage "\xff" is no path inside`:          "[stage2]\nmainimage = \xff\n",
		"more than":                                   strings.Repeat("# comment\n", 200_000),
	} {
		_, err := ReadTreeInfo(fstest.MapFS{".treeinfo": {Data: []byte(text)}})
		require.ErrorContains(t, err, want)
	}
	_, err := ReadTreeInfo(fstest.MapFS{})
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.ErrorContains(t, err, "open .treeinfo")
	_, err = ReadTreeInfo(fstest.MapFS{".treeinfo/x": {}})
	require.Error(t, err, "a directory")
}

func FuzzTreeInfo(f *testing.F) {
	f.Add("[general]\narch = x86_64\n[images-x86_64]\nkernel = a/b\n")
	f.Add("[a]\nb: c\n#d\n")
	f.Fuzz(func(t *testing.T, text string) {
		info, err := ParseTreeInfo(text)
		if err != nil {
			return
		}
		for _, path := range []string{info.Kernel, info.Initrd, info.MainImage} {
			require.True(t, path == "" || fs.ValidPath(path), "%q", path)
		}
	})
}

func TestFindShim(t *testing.T) {
	for _, c := range []struct{ dir, shim, grub string }{
		{"EFI/BOOT", "BOOTX64.EFI", "grubx64.efi"},
		{"efi/boot", "bootx64.efi", "GRUBX64.EFI"},
	} {
		fsys := fstest.MapFS{c.dir + "/" + c.shim: {}, c.dir + "/" + c.grub: {}, c.dir + "/BOOTIA32.EFI": {}, "images/x": {}}
		dir, shim, grub, err := FindShim(fsys)
		require.NoError(t, err)
		require.Equal(t, c, struct{ dir, shim, grub string }{dir, shim, grub})

		delete(fsys, c.dir+"/"+c.grub)
		_, _, _, err = FindShim(fsys)
		require.ErrorIs(t, err, fs.ErrNotExist)
		require.ErrorContains(t, err, "grubx64.efi")
	}
	_, _, _, err := FindShim(fstest.MapFS{"images/x": {}})
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.ErrorContains(t, err, "EFI")
}
