package media

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// handmade is an image made byte by byte, for what no mastering program would write: the primary volume
// descriptor in sector 16, the terminator in 17, the root directory in block 18, and the rest free.
type handmade struct{ b []byte }

const (
	rootBlock = 18
	spare     = 20 // first block that tests use
	blocks    = 40
)

func newHandmade(rootRecords ...[]byte) *handmade {
	h := &handmade{make([]byte, blocks*sectorSize)}
	h.descriptor(16, descriptorPrimary, blocks, rec(identSelf, rootBlock, sectorSize, flagDirectory))
	h.descriptor(17, descriptorTerminator, 0, nil)
	h.directory(rootBlock, [][]byte{sp(), px(0o040755)}, rootRecords...)
	return h
}

// descriptor writes a volume descriptor, ECMA-119 8.
func (h *handmade) descriptor(sector int, kind byte, space uint32, root []byte) {
	d := h.b[sector*sectorSize : (sector+1)*sectorSize]
	clear(d)
	d[0], d[6] = kind, 1
	copy(d[1:], standardID)
	if root == nil {
		return
	}
	copy(d[40:72], "HANDMADE"+strings.Repeat(" ", 24))
	copy(d[80:], both(space))
	binary.LittleEndian.PutUint16(d[128:], sectorSize)
	binary.BigEndian.PutUint16(d[130:], sectorSize)
	copy(d[156:], root)
	copy(d[813:], "2020110412345600\x00")
}

// directory writes "." with the given system use entries, "..", and records from the given block on.
func (h *handmade) directory(block int, own [][]byte, records ...[]byte) *handmade {
	all := append([][]byte{
		rec(identSelf, uint32(block), sectorSize, flagDirectory, own...),
		rec(identParent, rootBlock, sectorSize, flagDirectory),
	}, records...)
	copy(h.b[block*sectorSize:], bytes.Join(all, nil))
	return h
}

func (h *handmade) put(block, offset int, data ...[]byte) *handmade {
	copy(h.b[block*sectorSize+offset:], bytes.Join(data, nil))
	return h
}

func (h *handmade) open() (*Image, error) { return NewImage(bytes.NewReader(h.b), int64(len(h.b))) }

// both records a number in both byte orders, ECMA-119 7.3.3.
func both(n uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, n), n)
}

// rec makes a directory record, ECMA-119 9.1.
func rec(ident string, block, length uint32, flags byte, systemUse ...[]byte) []byte {
	b := make([]byte, 33, 255)
	copy(b[2:], both(block))
	copy(b[10:], both(length))
	copy(b[18:], []byte{120, 11, 4, 12, 34, 56, 0})
	b[25], b[32] = flags, byte(len(ident))
	b = append(b, ident...)
	if len(ident)%2 == 0 {
		b = append(b, 0)
	}
	b = append(b, bytes.Join(systemUse, nil)...)
	if len(b)%2 == 1 {
		b = append(b, 0)
	}
	b[0] = byte(len(b))
	return b
}

// use makes a system use entry, SUSP 4.
func use(signature string, data ...[]byte) []byte {
	body := bytes.Join(data, nil)
	return append([]byte{signature[0], signature[1], byte(4 + len(body)), 1}, body...)
}

func sp() []byte            { return use("SP", []byte{0xbe, 0xef, 0}) }
func px(mode uint32) []byte { return use("PX", both(mode), both(1), both(0), both(0), both(1)) }
func cl(block uint32) []byte {
	return use("CL", both(block))
}
func ce(block, offset, length uint32) []byte {
	return use("CE", both(block), both(offset), both(length))
}
func nm(flags byte, name string) []byte { return use("NM", []byte{flags}, []byte(name)) }
func sl(flags byte, components ...[]byte) []byte {
	return use("SL", append([][]byte{{flags}}, components...)...)
}
func component(flags byte, text string) []byte {
	return append([]byte{flags, byte(len(text))}, text...)
}

// seed is a handmade image with one of everything.
func seed() *handmade {
	h := newHandmade(
		rec("FILE.TXT;1", spare, 5, 0, px(0o100644), nm(0, "file.txt"), use("TF", []byte{0x07}, []byte{99, 1, 1, 0, 0, 0, 0}, []byte{101, 2, 3, 4, 5, 6, 0}, []byte{102, 1, 1, 0, 0, 0, 0})),
		rec("DIR", spare+1, sectorSize, flagDirectory, px(0o040700), nm(0, "dir")),
		rec("LINK.;1", 0, 0, 0, px(0o120777), nm(0, "link"), sl(0, component(0, "dir"), component(slParent, ""), component(0, "file.txt"))),
		rec("MOVED.;1", 0, 0, 0, nm(0, "moved"), cl(spare+2)),
		rec("LONG.;1", spare, 4, 0, px(0o100644), nm(nmContinue, "con"), ce(spare+3, 100, 40)),
		rec("RR_MOVED", spare+4, sectorSize, flagDirectory, px(0o040755), nm(0, "rr_moved")),
		rec("BIG.;1", spare, 2048, flagMultiExtent, px(0o100644), nm(0, "big")),
		rec("BIG.;1", spare+5, 100, 0, px(0o100644), nm(0, "big")),
	)
	h.put(spare, 0, []byte("hello world"))
	h.directory(spare+1, nil, rec("EMPTY.;1", 0, 0, 0, px(0o100644)))
	h.directory(spare+2, [][]byte{px(0o040711), use("TF", []byte{0x82}, []byte("2001020304050607\x04"))}, rec("INSIDE.;1", spare, 5, 0))
	h.put(spare+3, 100, nm(0, "tinued"))
	h.directory(spare+4, nil, rec("MOVED", spare+2, sectorSize, flagDirectory, use("RE")))
	h.put(spare+5, 0, []byte(strings.Repeat("x", 100)))
	return h
}

func TestHandmade(t *testing.T) {
	img, err := seed().open()
	require.NoError(t, err)
	m := manifest(t, img)
	when := "2020-11-04 12:34:56"
	require.Len(t, m, 8)
	require.Equal(t, "-rw-r--r-- 2001-02-03 04:05:06 5 "+hash(t, img, "file.txt"), m["file.txt"])
	require.Equal(t, "drwx------ "+when, m["dir"])
	require.Equal(t, "Lrwxrwxrwx "+when+" -> dir/../file.txt", m["link"])
	require.Equal(t, "drwx--x--x 2001-02-03 03:05:06", m["moved"], "of the directory itself; zone is +1:00")
	require.Contains(t, m, "continued")
	require.Contains(t, m, "moved/INSIDE")
	require.NotContains(t, m, "rr_moved", "it holds nothing but what was moved")
	require.Contains(t, m["big"], " 2148 ")
	require.Equal(t, "HANDMADE", img.VolumeID())
	require.Equal(t, time.Date(2020, 11, 4, 12, 34, 56, 0, time.UTC), img.Created())
	require.Equal(t, 5, img.Files())

	b, err := img.ReadFile("link")
	require.NoError(t, err)
	require.Equal(t, "hello", string(b))
}

// A file in several extents reads as one, across the border, from anywhere.
func TestMultiExtent(t *testing.T) {
	h := newHandmade(
		rec("F.;1", spare, 2048, flagMultiExtent),
		rec("F.;1", spare+4, 1000, flagMultiExtent),
		rec("F.;1", 0, 0, flagMultiExtent),
		rec("F.;1", spare+2, 3, 0),
	)
	var want []byte
	for block, n := range map[int]int{spare: 2048, spare + 4: 1000, spare + 2: 3} {
		h.put(block, 0, bytes.Repeat([]byte{byte('a' + block - spare)}, n+5))
	}
	want = slices.Concat(bytes.Repeat([]byte("a"), 2048), bytes.Repeat([]byte("e"), 1000), []byte("ccc"))
	path := filepath.Join(t.TempDir(), "image")
	require.NoError(t, os.WriteFile(path, h.b, 0o600))
	img := openISO(t, path)
	got, err := img.ReadFile("F")
	require.NoError(t, err)
	require.Equal(t, want, got)

	e, err := img.Lookup("F")
	require.NoError(t, err)
	c, err := img.OpenEntry(e)
	require.NoError(t, err)
	_, _, _, ok := c.Region()
	require.False(t, ok, "it is not one region")
	for off := int64(0); off < c.Size(); off += 13 {
		p := make([]byte, 1500)
		n, err := c.ReadAt(p, off)
		require.Equal(t, want[off:min(off+1500, c.Size())], p[:n])
		require.Equal(t, n < len(p), err != nil)
	}
}

func TestLogicalBlocksOf512Bytes(t *testing.T) {
	h := newHandmade()
	d := h.b[16*sectorSize:]
	copy(d[80:], both(blocks*4))
	binary.LittleEndian.PutUint16(d[128:], 512)
	binary.BigEndian.PutUint16(d[130:], 512)
	root := spare*4 + 1 // not at a sector's start
	copy(d[156:], rec(identSelf, uint32(root), 1024, flagDirectory))
	at := root * 512
	for _, r := range [][]byte{rec(identSelf, uint32(root), 1024, flagDirectory), rec(identParent, uint32(root), 1024, flagDirectory), rec("A.;1", 100, 7, 0)} {
		at += copy(h.b[at:], r)
	}
	copy(h.b[root*512+512:], rec("B.;1", 101, 8, 0))
	copy(h.b[100*512:], "content")
	img, err := h.open()
	require.NoError(t, err)
	b, err := img.ReadFile("A")
	require.NoError(t, err)
	require.Equal(t, "content", string(b))
	require.Equal(t, 2, img.Files())
}

// An XA disc has its SP behind 14 other bytes; LEN_SKP says how many to skip in every other record.
func TestXA(t *testing.T) {
	xa := make([]byte, 14)
	h := newHandmade()
	clear(h.b[rootBlock*sectorSize : (rootBlock+1)*sectorSize])
	skip := use("SP", []byte{0xbe, 0xef, 14})
	h.directory(rootBlock, [][]byte{xa, skip, px(0o040755)}, rec("A.;1", 0, 0, 0, xa, px(0o100600), nm(0, "name")))
	img, err := h.open()
	require.NoError(t, err)
	info, err := img.Stat("name")
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o600), info.Mode())
}

func TestSymbolicLinkComponents(t *testing.T) {
	for want, entries := range map[string][][]byte{
		"/":             {sl(0, component(slRoot, ""))},
		"/a/b":          {sl(0, component(slRoot, ""), component(0, "a"), component(0, "b"))},
		"./../a":        {sl(0, component(slCurrent, ""), component(slParent, ""), component(0, "a"))},
		"abc/d":         {sl(slContinue, component(slContinue, "a")), sl(slContinue, component(slContinue, "b")), sl(0, component(0, "c"), component(0, "d"))},
		"a/b":           {sl(slContinue, component(0, "a")), sl(0, component(0, "b"))},
		"a//b":          {sl(0, component(0, "a"), component(slRoot, ""), component(0, "b"))},
		"\u00ff\u00fex": {sl(0, component(0, "\xff\xfex"))},
	} {
		img, err := newHandmade(rec("L.;1", 0, 0, 0, append([][]byte{px(0o120777), nm(0, "l")}, entries...)...)).open()
		require.NoError(t, err)
		got, err := img.ReadLink("l")
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
}

// Everything that an image can contradict itself in is a CorruptError, and names the place.
func TestHostile(t *testing.T) {
	file := func(systemUse ...[]byte) *handmade { return newHandmade(rec("F.;1", spare, 5, 0, systemUse...)) }
	dir := func(block, length uint32) *handmade {
		return newHandmade(rec("D", block, length, flagDirectory))
	}
	raw := func(record []byte, change func(b []byte)) *handmade {
		change(record)
		return newHandmade(record)
	}
	manyDeep := newHandmade(rec("D", spare, sectorSize, flagDirectory))
	manyDeep.b = append(manyDeep.b, make([]byte, (maxDepth+10)*sectorSize)...)
	for i := range maxDepth + 5 {
		manyDeep.directory(spare+i, nil, rec("D", uint32(spare+i+1), sectorSize, flagDirectory))
	}
	// Continuation areas of 32 KiB, all the same one, referenced from every record of a directory.
	amplified := newHandmade(rec("D", spare, 10*sectorSize, flagDirectory))
	amplified.directory(spare, nil)
	amplifier := rec("F", 0, 0, 0, ce(0, 0, 16*sectorSize))
	for block := spare + 1; block < spare+10; block++ {
		for at := 0; at+len(amplifier) < sectorSize; at += len(amplifier) {
			amplified.put(block, at, amplifier)
		}
	}

	for name, c := range map[string]struct {
		image *handmade
		want  string // in the reason
	}{
		"chain of continuation areas loops":    {file(ce(spare, 0, 28)).put(spare, 0, ce(spare, 0, 28)), "continuation areas in a chain"},
		"continuation area outside":            {file(ce(99999, 0, 28)), "outside the image"},
		"continuation area at the last offset": {file(ce(1<<32-1, 1<<32-1, 28)), "outside the image"},
		"huge continuation area":               {file(ce(spare, 0, 1<<31)), "a continuation area of"},
		"amplified continuation areas":         {amplified, "add up"},
		"CE too short":                         {file(use("CE", both(1))), "a CE entry"},
		"NM too short":                         {file(use("NM")), "an NM entry"},
		"PX too short":                         {file(use("PX", []byte{1})), "a PX entry"},
		"SL too short":                         {file(use("SL")), "an SL entry"},
		"TF too short":                         {file(use("TF")), "a TF entry"},
		"TF without its time":                  {file(use("TF", []byte{2}, make([]byte, 6))), "a TF entry"},
		"CL too short":                         {file(use("CL", make([]byte, 4))), "a CL entry"},
		"ER longer than its entry":             {newHandmade().put(rootBlock, 34, use("SP", []byte{0xbe, 0xef, 0}), use("ER", []byte{200, 0, 0, 1})), "an ER entry"},
		"entry of length 0":                    {file([]byte{'N', 'M', 0, 1, 0, 'x'}), "system use entry"},
		"entry longer than its area":           {file([]byte{'N', 'M', 99, 1, 0, 'x'}), "system use entry"},
		"component longer than its entry":      {file(px(0o120777), sl(0, []byte{0, 9, 'a'})), "ends inside a component"},
		"component with unknown flags":         {file(px(0o120777), sl(0, component(0x40, "a"))), "flags"},
		"endian halves differ in PX":           {file(use("PX", []byte{1, 0, 0, 0, 0, 0, 0, 2}, make([]byte, 24))), "file mode is"},
		"name with a slash":                    {file(nm(0, "a/b")), "slash"},
		"name with NUL":                        {file(nm(0, "a\x00b")), "slash or NUL"},
		"name is ..":                           {file(nm(0, "..")), `".."`},
		"name is .":                            {file(nm(0, ".")), `"."`},
		"identifier with a slash":              {newHandmade(rec("A/B.;1", spare, 5, 0)), "slash"},
		"identifier is empty":                  {newHandmade(rec(".;1", spare, 5, 0)), `named ""`},
		"name too long":                        {longEntries("NM", "n", 1), "a name of more than 1024"},
		"name too long as UTF-8":               {longEntries("NM", "\xff", 1), "a name of"},
		"target too long":                      {longEntries("SL", "t", 4), "a target of more than 4096"},
		"relocated directory outside":          {file(cl(1 << 31)), "outside the image"},
		"relocated directory is none":          {file(cl(spare)), "directory record of 0 bytes"},
		"relocated directory is the root":      {file(cl(rootBlock)), "two directories share"},
		"two links to one directory":           {newHandmade(rec("A.;1", 0, 0, 0, cl(spare)), rec("B.;1", 0, 0, 0, cl(spare))).directory(spare, nil), "two directories share"},
		"directory contains itself":            {dir(rootBlock, sectorSize), "two directories share"},
		"directories overlap":                  {newHandmade(rec("D", spare, 2*sectorSize, flagDirectory), rec("E", spare+1, sectorSize, flagDirectory)).directory(spare, nil).directory(spare+1, nil), "two directories share"},
		"directories too deep":                 {manyDeep, "deep"},
		"directory outside":                    {dir(1<<31, sectorSize), "outside the image"},
		"directory ends outside":               {dir(blocks-1, 2*sectorSize), "outside the image"},
		"directory is empty":                   {dir(spare, 0), "a directory of 0 bytes"},
		"directory is huge":                    {dir(spare, 1<<31), "a directory of"},
		"directory is not one":                 {dir(spare, sectorSize).put(spare, 0, rec("F.;1", 0, 0, 0)), "its own record"},
		"directory in sections":                {newHandmade(rec("D", spare, sectorSize, flagDirectory|flagMultiExtent)).directory(spare, nil), "several sections"},
		"record ends outside its directory":    {dir(spare, 100).directory(spare, nil, rec("F.;1", 0, 0, 0)), "directory has 32 left"},
		"record too short":                     {raw(rec("F.;1", 0, 0, 0), func(b []byte) { b[0] = 20 }), "directory record of 20"},
		"identifier longer than its record":    {raw(rec("F.;1", 0, 0, 0), func(b []byte) { b[32] = 200 }), "identifier of 200"},
		"identifier of no bytes":               {raw(rec("F.;1", 0, 0, 0), func(b []byte) { b[32] = 0 }), "identifier of 0"},
		"endian halves differ in the extent":   {raw(rec("F.;1", spare, 5, 0), func(b []byte) { b[9] ^= 1 }), "location of extent is"},
		"endian halves differ in the length":   {raw(rec("F.;1", spare, 5, 0), func(b []byte) { b[17] ^= 1 }), "data length is"},
		"file outside":                         {newHandmade(rec("F.;1", 1<<31, 5, 0)), "outside the image"},
		"file ends outside":                    {newHandmade(rec("F.;1", blocks-1, sectorSize+1, 0)), "outside the image"},
		"attribute record outside":             {raw(rec("F.;1", spare, 5, 0), func(b []byte) { b[1] = 255 }), "outside the image"},
		"sections add up to more than all":     {newHandmade(rec("F.;1", 0, 20*sectorSize, flagMultiExtent), rec("F.;1", 0, 20*sectorSize, flagMultiExtent), rec("F.;1", 0, 1, 0)), "add up"},
		"last section is missing":              {newHandmade(rec("F.;1", spare, 5, flagMultiExtent)), "before the last section"},
		"another file between sections":        {newHandmade(rec("F.;1", spare, 5, flagMultiExtent), rec("G.;1", spare, 5, 0)), "between the sections"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := c.image.open()
			var corrupt *CorruptError
			require.ErrorAs(t, err, &corrupt)
			require.Contains(t, corrupt.Reason, c.want)
			require.Contains(t, err.Error(), "at byte ")
		})
	}
}

// longEntries is a file with so many entries of 240 bytes, all going on, in chained continuation areas, that
// they add up to about kib KiB and some more.
func longEntries(signature, char string, kib int) *handmade {
	text := strings.Repeat(char, 240)
	entry := nm(nmContinue, text)
	if signature == "SL" {
		entry = sl(slContinue, component(slContinue, text))
	}
	count := kib*1024/240 + 1
	if char == "\xff" {
		count-- // short enough as recorded, too long as UTF-8
	}
	h := newHandmade(rec("F.;1", 0, 0, 0, px(0o120777), ce(spare, 0, uint32(count*len(entry)))))
	return h.put(spare, 0, bytes.Repeat(entry, count))
}

// What no installation medium has is refused, and not called corrupt.
func TestUnsupported(t *testing.T) {
	interleaved := rec("F.;1", spare, 5, 0)
	interleaved[26], interleaved[27] = 1, 1
	for _, h := range []*handmade{
		newHandmade(interleaved),
		newHandmade(rec("F.;1", spare, 5, 0, use("ZF", []byte("pz\x04\x0f"), both(99)))),
		newHandmade(rec("F.;1", spare, 5, 0, use("SF", both(0), both(1), []byte{1}))),
	} {
		_, err := h.open()
		require.ErrorIs(t, err, errors.ErrUnsupported)
	}
}

func TestTolerated(t *testing.T) {
	little := rec("F.;1", spare, 5, 0) // some programs leave the big-endian halves zero
	clear(little[6:10])
	clear(little[14:18])
	badTime := rec("F.;1", spare, 5, 0)
	badTime[19] = 13
	for name, record := range map[string][]byte{
		"only little-endian":          little,
		"impossible time":             badTime,
		"location without a length":   rec("F.;1", 1<<31, 0, 0),
		"unknown entry":               rec("F.;1", spare, 5, 0, use("XY", []byte("whatever"))),
		"stop entry, then rubbish":    rec("F.;1", spare, 5, 0, use("ST"), []byte{1, 2, 3, 4, 5}),
		"padding":                     rec("F.;1", spare, 5, 0, make([]byte, 20)),
		"second name without a first": rec("F.;1", spare, 5, 0, nm(nmCurrent, "")),
		"file that says directory":    rec("F.;1", spare, 5, 0, px(0o040755)),
	} {
		t.Run(name, func(t *testing.T) {
			img, err := newHandmade(record).put(spare, 0, []byte("hello")).open()
			require.NoError(t, err)
			e, err := img.Lookup("F")
			require.NoError(t, err)
			require.True(t, e.Mode.IsRegular())
			b, err := img.ReadFile("F")
			require.NoError(t, err)
			require.Equal(t, "hello"[:e.Size], string(b))
		})
	}
	t.Run("associated files and old versions are not shown", func(t *testing.T) {
		img, err := newHandmade(rec("F.;2", spare, 2, 0), rec("F.;1", spare, 1, 0), rec("G.;1", spare, 9, flagAssociated), rec("G.;1", spare, 3, 0)).open()
		require.NoError(t, err)
		require.Equal(t, 2, img.Files())
		f, err := img.Lookup("F")
		require.NoError(t, err)
		g, err := img.Lookup("G")
		require.NoError(t, err)
		require.Equal(t, []int64{2, 3}, []int64{f.Size, g.Size})
	})
	t.Run("devices have no content", func(t *testing.T) {
		img, err := newHandmade(rec("D.;1", spare, 5, 0, px(0o020600)), rec("P.;1", spare, 5, 0, px(0o010600))).open()
		require.NoError(t, err)
		for _, name := range []string{"D", "P"} {
			_, err = img.Open(name)
			require.ErrorIs(t, err, fs.ErrInvalid)
			e, err := img.Lookup(name)
			require.NoError(t, err)
			_, err = img.OpenEntry(e)
			require.ErrorIs(t, err, fs.ErrInvalid)
			_, err = img.Content(e).Read(make([]byte, 1))
			require.ErrorIs(t, err, fs.ErrInvalid)
		}
	})
}
