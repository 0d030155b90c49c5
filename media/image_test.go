package media

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/internal/testenv"
)

// smallISO is an image by xorriso of a few files: small enough to be broken in every place.
func smallISO(t testing.TB) []byte {
	t.Helper()
	src := t.TempDir()
	writeFiles(t, src, map[string]string{
		".treeinfo":              "[general]\narch = x86_64\n",
		"a/b/c/d/e/f/g/h/i/deep": "deep",
		"dir/" + longName:        "long",
		"zero":                   "",
	})
	require.NoError(t, os.Symlink("dir/../.treeinfo", filepath.Join(src, "link")))
	iso, err := os.ReadFile(mkisofs(t, src, "-R", "-J", "-rr_reloc_dir", "/rr_moved"))
	require.NoError(t, err)
	return iso
}

// useUp does with an image all that its readers could do.
func useUp(t testing.TB, img *Image) {
	t.Helper()
	paths := 0
	err := fs.WalkDir(img, ".", func(path string, d fs.DirEntry, err error) error {
		require.NoError(t, err, "%q", path)
		if paths++; paths > 2000 {
			return fs.SkipAll
		}
		info, err := d.Info()
		require.NoError(t, err)
		_ = info.Sys().(Entry).ETag()
		if d.Type()&fs.ModeSymlink != 0 {
			_, err := img.ReadLink(path)
			require.NoError(t, err)
		}
		e, err := img.Lookup(path)
		if err != nil {
			require.ErrorIs(t, err, fs.ErrNotExist, "%q", path)
			require.NotZero(t, d.Type()&fs.ModeSymlink)
			return nil
		}
		if !e.Mode.IsRegular() {
			return nil
		}
		c, err := img.OpenEntry(e)
		require.NoError(t, err)
		n, err := io.Copy(io.Discard, io.LimitReader(c, 1<<20))
		require.NoError(t, err, "%q", path)
		require.Equal(t, min(e.Size, 1<<20), n)
		return c.Close()
	})
	require.NoError(t, err)
}

func TestSymbolicLinks(t *testing.T) {
	src := t.TempDir()
	writeFiles(t, src, map[string]string{"top": "1", "a/b/file": "22", "a/c/other": "333"})
	for link, target := range map[string]string{
		"relative":    "a/b/file",
		"a/up":        "../top",
		"a/b/across":  "../c/other",
		"absolute":    "/a/b/file",
		"dir":         "a/b",
		"dirabs":      "/a",
		"a/b/abs":     "/a/c/other",
		"a/self":      ".",
		"a/root":      "..",
		"chain1":      "chain2",
		"chain2":      "dir/../b/./file",
		"dangling":    "nowhere",
		"danglingdir": "a/nowhere/file",
		"throughfile": "top/file",
		"loop":        "loop",
		"ping":        "pong",
		"pong":        "./ping",
		"a/loopdir":   "loopdir/x",
		"escape":      "../etc/passwd",
		"a/escape":    "../../../../etc/passwd",
		"a/out":       "../../a/b/file",
		"host":        "/etc/passwd",
		"case":        "A/B/FILE",
	} {
		require.NoError(t, os.Symlink(target, filepath.Join(src, link)))
	}
	for i := range 45 {
		target := fmt.Sprintf("long%d", i+1)
		if i == 44 {
			target = "top"
		}
		require.NoError(t, os.Symlink(target, filepath.Join(src, fmt.Sprintf("long%d", i))))
	}

	img, dir := openISO(t, mkisofs(t, src, "-R")), openDirTree(t, src)
	missing, loops, escapes := fs.ErrNotExist, ErrLinkLoop, ErrLinkEscapes
	for _, c := range []struct {
		name string
		size int64
		err  error
		dir  error // of a directory, where it differs
	}{
		{"relative", 2, nil, nil},
		{"a/up", 1, nil, nil},
		{"a/b/across", 3, nil, nil},
		{"dir/file", 2, nil, nil},
		{"dir/across", 3, nil, nil},
		{"a/self/self/root/a/root/top", 1, nil, nil},
		{"chain1", 2, nil, nil},
		{"long5", 1, nil, nil},
		{"absolute", 2, nil, escapes},
		{"dirabs/b/file", 2, nil, escapes},
		{"a/b/abs", 3, nil, escapes},
		{"dangling", 0, missing, nil},
		{"danglingdir", 0, missing, nil},
		{"throughfile", 0, missing, nil},
		{"top/file", 0, missing, nil},
		{"loop", 0, loops, nil},
		{"loop/x", 0, loops, nil},
		{"ping", 0, loops, nil},
		{"a/loopdir", 0, loops, nil},
		{"long0", 0, loops, nil},
		{"escape", 0, escapes, nil},
		{"a/escape", 0, escapes, nil},
		{"a/out", 0, escapes, nil},
		{"host", 0, missing, escapes},
	} {
		for kind, tree := range map[string]Tree{"image": img, "directory": dir} {
			want := c.err
			if kind == "directory" && c.dir != nil {
				want = c.dir
			}
			if kind == "directory" && c.name == "long5" {
				continue // os.Root follows fewer
			}
			e, err := tree.Lookup(c.name)
			_, openErr := tree.Open(c.name)
			if want == nil {
				require.NoError(t, err, "%s: %s", kind, c.name)
				require.NoError(t, openErr, "%s: %s", kind, c.name)
				require.Equal(t, c.size, e.Size)
				require.Equal(t, filepath.Base(c.name), e.Name)
				require.Empty(t, e.Target)
				continue
			}
			require.ErrorIs(t, err, want, "%s: %s", kind, c.name)
			require.ErrorIs(t, err, fs.ErrNotExist, "%s: %s", kind, c.name)
			require.ErrorIs(t, openErr, want, "%s: %s", kind, c.name)
		}
	}
	e, err := img.Lookup("case")
	require.NoError(t, err)
	require.EqualValues(t, 2, e.Size)

	target, err := img.ReadLink("a/escape")
	require.NoError(t, err)
	require.Equal(t, "../../../../etc/passwd", target)
	info, err := img.Lstat("loop")
	require.NoError(t, err)
	require.Equal(t, "loop", info.Sys().(Entry).Target)
	_, err = img.ReadLink("top")
	require.ErrorIs(t, err, fs.ErrInvalid)
}

func TestNamesThatAreNone(t *testing.T) {
	img, err := seed().open()
	require.NoError(t, err)
	tree := openDirTree(t, t.TempDir())
	for _, name := range []string{"", "/", "/file.txt", "file.txt/", "dir//EMPTY", "../file.txt", "dir/../file.txt", "./file.txt", "a\xffb"} {
		for _, tree := range []Tree{img, tree} {
			_, err := tree.Lookup(name)
			require.ErrorIs(t, err, fs.ErrInvalid, "%q", name)
			_, err = tree.Open(name)
			require.ErrorIs(t, err, fs.ErrInvalid, "%q", name)
		}
	}
	for _, name := range []string{"nothing", "nul\x00", "file.txt/x", `dir\EMPTY`, strings.Repeat("x", 300), strings.Repeat("x/", 70000) + "x"} {
		for _, tree := range []Tree{img, tree} {
			_, err := tree.Lookup(name)
			require.ErrorIs(t, err, fs.ErrNotExist, "%.20q", name)
			_, err = tree.Open(name)
			require.ErrorIs(t, err, fs.ErrNotExist, "%.20q", name)
		}
	}
}

// A file over 4 GiB, as xorriso lays it out. Only the beginning of what xorriso writes is taken, which has
// all directories; the content is put in here: 4 GiB of zeros would take half a minute to be written.
func TestFileOver4GiB(t *testing.T) {
	const size = 1<<32 + 3*sectorSize + 5
	src := t.TempDir()
	big, err := os.Create(filepath.Join(src, "big.img"))
	require.NoError(t, err)
	require.NoError(t, big.Truncate(size))
	require.NoError(t, big.Close())

	testenv.NeedTool(t, "xorriso")
	cmd := exec.CommandContext(t.Context(), "xorriso", "-as", "mkisofs", "-quiet", "-R", "-iso-level", "3", "-no-pad", src)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	head := make([]byte, 256<<10)
	_, err = io.ReadFull(out, head)
	require.NoError(t, err)
	require.NoError(t, cmd.Process.Kill())
	cmd.Wait()

	// The file's content is the last thing in the volume.
	volume := int64(binary.LittleEndian.Uint32(head[firstDescriptor+80:])) * sectorSize
	content := volume - (size+sectorSize-1)/sectorSize*sectorSize
	require.Positive(t, content)
	iso, err := os.Create(filepath.Join(t.TempDir(), "big.iso"))
	require.NoError(t, err)
	_, err = iso.Write(head)
	require.NoError(t, err)
	for _, at := range []int64{0, 1<<32 - sectorSize - 2, 1<<32 - 2, size - 4} {
		_, err := iso.WriteAt([]byte("mark"), content+at)
		require.NoError(t, err)
	}
	require.NoError(t, iso.Truncate(volume))
	require.NoError(t, iso.Close())

	img := openISO(t, iso.Name())
	require.Equal(t, 1, img.Files())
	e, err := img.Lookup("big.img")
	require.NoError(t, err)
	require.EqualValues(t, size, e.Size)
	c, err := img.OpenEntry(e)
	require.NoError(t, err)
	defer c.Close()
	_, off, n, ok := c.Region()
	require.True(t, ok, "its sections are neighbours: one region")
	require.Equal(t, []int64{content, size}, []int64{off, n})
	for _, at := range []int64{0, 1<<32 - sectorSize - 2, 1<<32 - 2, size - 4} {
		_, err := c.Seek(at, io.SeekStart)
		require.NoError(t, err)
		p := make([]byte, 4)
		_, err = io.ReadFull(c, p)
		require.NoError(t, err)
		require.Equal(t, "mark", string(p), "at %d", at)
	}
	n, err = c.Seek(-2, io.SeekEnd)
	require.NoError(t, err)
	require.EqualValues(t, size-2, n)
	rest, err := io.ReadAll(c)
	require.NoError(t, err)
	require.Equal(t, "rk", string(rest))
}

// endless is an image of any size with the given blocks, and zeros elsewhere.
type endless struct {
	head []byte
	at   map[int64]string
}

func (e endless) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	if off < int64(len(e.head)) {
		copy(p, e.head[off:])
	}
	copy(p, e.at[off])
	return len(p), nil
}

// The last blocks that 32 bits can number are 8 TiB from the beginning.
func TestOffsetsOf64Bits(t *testing.T) {
	const last, size = math.MaxUint32, (math.MaxUint32 + 1) * int64(sectorSize)
	h := newHandmade(
		rec("FAR.;1", last-1, 4, 0),
		rec("PARTS.;1", 1<<31, 0xfffff800, flagMultiExtent), rec("PARTS.;1", 1<<31+(1<<22), 0xfffff800, flagMultiExtent), rec("PARTS.;1", last, 6, 0),
	)
	img, err := NewImage(endless{h.b, map[int64]string{
		(last - 1) * sectorSize:      "far!",
		last * sectorSize:            "parts!",
		(1<<31 + 1<<22) * sectorSize: "middle",
	}}, size)
	require.NoError(t, err)
	b, err := img.ReadFile("FAR")
	require.NoError(t, err)
	require.Equal(t, "far!", string(b))
	e, err := img.Lookup("PARTS")
	require.NoError(t, err)
	require.EqualValues(t, 2*0xfffff800+6, e.Size)
	p := make([]byte, 6)
	_, err = img.Content(e).ReadAt(p, 2*0xfffff800)
	require.NoError(t, err)
	require.Equal(t, "parts!", string(p))
	_, err = img.Content(e).ReadAt(p, 0xfffff800)
	require.NoError(t, err)
	require.Equal(t, "middle", string(p))
}

// Wherever a download breaks off, that is found when the image is opened.
func TestTruncated(t *testing.T) {
	iso := smallISO(t)
	img, err := NewImage(bytes.NewReader(iso), int64(len(iso)))
	require.NoError(t, err)
	useUp(t, img)

	var cuts []int
	for n := 0; n < len(iso); n += sectorSize {
		cuts = append(cuts, n, n+1, n+190, n+sectorSize-1)
	}
	for _, n := range cuts {
		_, err := NewImage(bytes.NewReader(iso[:n]), int64(n))
		var corrupt *CorruptError
		require.ErrorAs(t, err, &corrupt, "%d of %d bytes", n, len(iso))
		require.LessOrEqual(t, corrupt.Offset, int64(len(iso)))
		if n > firstDescriptor+sectorSize {
			require.EqualValues(t, n, corrupt.Offset, "the end of the image: %v", err)
			require.Contains(t, err.Error(), "truncated")
		}
		// The same where the size is promised, but the bytes are not there.
		if img, err := NewImage(bytes.NewReader(iso[:n]), int64(len(iso))); err == nil {
			_, err = fs.ReadFile(img, ".treeinfo")
			require.True(t, err == nil || strings.Contains(err.Error(), io.ErrUnexpectedEOF.Error()), "%v", err)
		} else {
			require.ErrorAs(t, err, &corrupt)
		}
	}

	path := filepath.Join(t.TempDir(), "cut.iso")
	require.NoError(t, os.WriteFile(path, iso[:len(iso)-1], 0o600))
	_, err = OpenISO(path)
	var corrupt *CorruptError
	require.ErrorAs(t, err, &corrupt)
	require.Contains(t, err.Error(), path)
}

// A bit that is wrong is either found, or leaves an image that can be read to its end.
func TestFlippedBits(t *testing.T) {
	t.Parallel()
	iso := smallISO(t)
	refused := 0
	for at := firstDescriptor; at < len(iso); at++ {
		sector := at / sectorSize
		if iso[at] == 0 && at%17 != sector%17 { // most of it is padding
			continue
		}
		bit := (at + sector) % 8
		iso[at] ^= 1 << bit
		img, err := NewImage(bytes.NewReader(iso), int64(len(iso)))
		if err != nil {
			refused++
		} else {
			useUp(t, img)
		}
		iso[at] ^= 1 << bit
	}
	require.Greater(t, refused, 200)
	t.Logf("%d images refused", refused)
}

func TestNoISO(t *testing.T) {
	dir := t.TempDir()
	writeFiles(t, dir, map[string]string{"empty": "", "text": strings.Repeat("no image\n", 10_000)})
	for _, name := range []string{"empty", "text"} {
		_, err := OpenISO(filepath.Join(dir, name))
		var corrupt *CorruptError
		require.ErrorAs(t, err, &corrupt)
	}
	_, err := OpenISO(filepath.Join(dir, "missing"))
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = OpenISO(dir)
	require.ErrorContains(t, err, "neither a file nor a block device")
	_, err = OpenISO("/dev/zero")
	require.ErrorContains(t, err, "neither a file nor a block device")

	h := newHandmade()
	copy(h.b[17*sectorSize+1:], "XXXXX") // a set without terminator
	_, err = h.open()
	require.NoError(t, err)
	h.b[16*sectorSize] = 3
	_, err = h.open()
	require.ErrorContains(t, err, "no ISO 9660 volume descriptor")
	h = newHandmade()
	h.b[16*sectorSize] = descriptorTerminator
	_, err = h.open()
	require.ErrorContains(t, err, "without a primary one")
}

func TestETag(t *testing.T) {
	src := t.TempDir()
	writeFiles(t, src, map[string]string{"a": "aaa", "b": "bbb", "empty": ""})
	iso := mkisofs(t, src, "-R")
	tags := func(tree Tree) (all []string) {
		for _, name := range []string{"a", "b", "empty"} {
			e, err := tree.Lookup(name)
			require.NoError(t, err)
			require.Regexp(t, `^"[0-9a-f-]+"$`, e.ETag())
			all = append(all, e.ETag())
		}
		return all
	}
	before := tags(openISO(t, iso))
	require.NotEqual(t, before[0], before[1])
	require.Equal(t, before, tags(openISO(t, iso)), "the same after a restart")

	now := time.Now()
	require.NoError(t, os.Chtimes(iso, now, now.Add(time.Second)))
	after := tags(openISO(t, iso))
	for i := range before {
		require.NotEqual(t, before[i], after[i], "another image has other tags")
	}

	dir := openDirTree(t, src)
	before = tags(dir)
	require.Equal(t, before, tags(openDirTree(t, src)))
	require.NoError(t, os.Chtimes(filepath.Join(src, "a"), now, now.Add(time.Second)))
	after = tags(dir)
	require.NotEqual(t, before[0], after[0])
	require.Equal(t, before[1], after[1])
}

// Whoever reads when the image is closed reads to the end; then the file is closed.
func TestCloseWaitsForReaders(t *testing.T) {
	src := t.TempDir()
	writeFiles(t, src, map[string]string{"file": "content"})
	img, err := OpenISO(mkisofs(t, src, "-R"))
	require.NoError(t, err)
	e, err := img.Lookup("file")
	require.NoError(t, err)
	c, err := img.OpenEntry(e)
	require.NoError(t, err)
	f, err := img.Open("file")
	require.NoError(t, err)

	require.NoError(t, img.Close())
	require.ErrorIs(t, img.Close(), fs.ErrClosed)
	_, err = img.Open("file")
	require.ErrorIs(t, err, fs.ErrClosed)
	_, err = img.OpenEntry(e)
	require.ErrorIs(t, err, fs.ErrClosed)
	_, err = img.Content(e).ReadAt(make([]byte, 1), 0)
	require.ErrorIs(t, err, fs.ErrClosed)

	for _, r := range []io.ReadCloser{c, f} {
		b, err := io.ReadAll(r)
		require.NoError(t, err)
		require.Equal(t, "content", string(b))
		_, err = img.file.Stat()
		require.NoError(t, err)
		require.NoError(t, r.Close())
		require.ErrorIs(t, r.Close(), fs.ErrClosed)
		_, err = r.Read(make([]byte, 1))
		require.ErrorIs(t, err, fs.ErrClosed)
	}
	_, err = img.file.Stat()
	require.ErrorIs(t, err, fs.ErrClosed)
}

func TestContent(t *testing.T) {
	src := t.TempDir()
	writeFiles(t, src, map[string]string{"file": "0123456789", "empty": ""})
	for _, tree := range []Tree{openISO(t, mkisofs(t, src, "-R")), openDirTree(t, src)} {
		e, err := tree.Lookup("file")
		require.NoError(t, err)
		c, err := tree.OpenEntry(e)
		require.NoError(t, err)
		require.EqualValues(t, 10, c.Size())
		f, off, n, ok := c.Region()
		require.True(t, ok)
		region := make([]byte, n)
		_, err = f.ReadAt(region, off)
		require.NoError(t, err)
		require.Equal(t, "0123456789", string(region))

		p := make([]byte, 4)
		for _, step := range []struct {
			offset int64
			whence int
			at     int64
			want   string
		}{{3, io.SeekStart, 3, "3456"}, {-2, io.SeekCurrent, 5, "5678"}, {-3, io.SeekEnd, 7, "789"}, {5, io.SeekEnd, 15, ""}} {
			at, err := c.Seek(step.offset, step.whence)
			require.NoError(t, err)
			require.Equal(t, step.at, at)
			n, err := io.ReadFull(c, p)
			require.Equal(t, step.want, string(p[:n]))
			require.Equal(t, n < 4, err != nil)
		}
		_, err = c.Seek(-1, io.SeekStart)
		require.Error(t, err)
		_, err = c.Seek(0, 7)
		require.Error(t, err)
		_, err = c.ReadAt(p, -1)
		require.Error(t, err)
		count, err := c.ReadAt(p, 8)
		require.Equal(t, "89", string(p[:count]))
		require.ErrorIs(t, err, io.EOF)
		require.NoError(t, c.Close())

		e, err = tree.Lookup("empty")
		require.NoError(t, err)
		c, err = tree.OpenEntry(e)
		require.NoError(t, err)
		b, err := io.ReadAll(c)
		require.NoError(t, err)
		require.Empty(t, b)
		require.NoError(t, c.Close())

		root, err := tree.Lookup(".")
		require.NoError(t, err)
		require.True(t, root.IsDir())
		_, err = tree.OpenEntry(root)
		require.ErrorIs(t, err, fs.ErrInvalid)
		_, err = tree.OpenEntry(Entry{Name: "made up"})
		require.ErrorIs(t, err, fs.ErrInvalid)
	}
}

// Many readers at once, of one image, each see their own file.
func TestConcurrentReaders(t *testing.T) {
	src := t.TempDir()
	files := map[string]string{}
	for i := range 16 {
		files[fmt.Sprintf("Dir/File%d", i)] = strings.Repeat(fmt.Sprintf("%02d", i), 50_000)
	}
	writeFiles(t, src, files)
	img := openISO(t, mkisofs(t, src, "-R"))
	var wg sync.WaitGroup
	for name, want := range files {
		for _, asked := range []string{name, strings.ToUpper(name)} {
			wg.Go(func() {
				for range 5 {
					e, err := img.Lookup(asked)
					if err != nil {
						t.Error(err)
						return
					}
					c, err := img.OpenEntry(e)
					if err != nil {
						t.Error(err)
						return
					}
					b, err := io.ReadAll(c)
					if err != nil || string(b) != want {
						t.Errorf("%s: %v, %d bytes", asked, err, len(b))
					}
					c.Close()
				}
			})
		}
	}
	wg.Wait()
}

// An image that claims much costs little memory.
func TestClaimsAllocateNothing(t *testing.T) {
	h := newHandmade(rec("D", spare, maxDirectory, flagDirectory), rec("F.;1", spare, 0xffffffff, 0))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 100 {
		_, err := h.open()
		require.Error(t, err)
	}
	runtime.ReadMemStats(&after)
	require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(100*64<<10))
}

// fuzzedSectors is the size of the images that FuzzImage makes.
const fuzzedSectors = 48

// FuzzImage reads any image. Its input begins where an image does that has something to say, at the volume
// descriptors, and is padded with zeros. (Run it with -fuzzminimizetime=10x: the inputs are long.)
func FuzzImage(f *testing.F) {
	f.Add(bytes.TrimRight(seed().b[firstDescriptor:], "\x00"))
	if _, err := exec.LookPath("xorriso"); err == nil {
		f.Add(smallISO(f)[firstDescriptor:])
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		image := make([]byte, max(firstDescriptor+len(data), fuzzedSectors*sectorSize))
		copy(image[firstDescriptor:], data)
		readFuzzed(t, image)
	})
}

// FuzzDirectory reads any directory records and system use entries: root follows ".." in the root directory,
// and area begins at block 20.
func FuzzDirectory(f *testing.F) {
	h := seed()
	records := bytes.TrimRight(h.b[rootBlock*sectorSize:(rootBlock+1)*sectorSize], "\x00")
	f.Add(records[int(records[0])+34:], bytes.TrimRight(h.b[spare*sectorSize:], "\x00"))
	for _, entry := range [][]byte{
		use("TF", []byte{0x8f}, make([]byte, 4*17)), use("ER", []byte{10, 0, 0, 1}, []byte("RRIP_1991A")), use("ZF", []byte("pz\x04\x0f"), both(9)),
		sl(slContinue, component(slContinue, "ab"), component(slRoot, "")), use("RE"), use("ST"), cl(rootBlock), ce(spare, 0, 64),
	} {
		f.Add(rec("F.;1", spare, 9, 0, entry, nm(0, "name"), px(0o120777)), entry)
	}
	f.Fuzz(func(t *testing.T, root, area []byte) {
		h := newHandmade()
		self := int(h.b[rootBlock*sectorSize])
		copy(h.b[rootBlock*sectorSize+self+34:(rootBlock+1)*sectorSize], root)
		copy(h.b[spare*sectorSize:], area)
		readFuzzed(t, h.b)
	})
}

func readFuzzed(t *testing.T, image []byte) {
	img, err := NewImage(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		return
	}
	useUp(t, img)
}
