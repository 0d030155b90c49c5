package store

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"io"
	"os"
)

// damage is what is wrong with a file, in one line.
type damage string

func (d damage) Error() string { return string(d) }

func damagef(format string, args ...any) error { return damage(fmt.Sprintf(format, args...)) }

// The file format of bbolt (internal/common/{page,meta,inode,bucket}.go), in native byte order.
const (
	pageHeader    = 16 // id 8, flags 2, count 2, overflow 4
	elementHeader = 16 // branch: pos 4, ksize 4, page 8; leaf: flags 4, pos 4, ksize 4, vsize 4
	bucketHeader  = 16 // root page 8, sequence 8
	metaChecksum  = 56 // offset behind the page header: everything before it is summed with FNV-1a

	flagBranch   = 0x01
	flagLeaf     = 0x02
	flagFreelist = 0x10
	leafBucket   = 0x01 // the value of a leaf element is a bucket

	boltMagic   = 0xED0CDAED
	boltVersion = 2
	noFreelist  = ^uint64(0)
	noPage      = uint64(0) // as a bucket's root: the bucket is inline

	maxDepth = 64 // no tree of a database that fits on a disk is deeper
)

var order = binary.NativeEndian

// examine walks the whole file, trusting no number in it, and returns the schema version that it holds. It
// looks for everything that would make bbolt panic, loop or read behind the end of the file, which is a
// fault (SIGBUS) that Go cannot recover from: wrong page references, elements that leave their page,
// pages used twice, keys out of order, a free list that holds used pages.
//
// The error is a damage, or one of reading.
func examine(f *os.File) (version string, err error) {
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	x := &examiner{file: f, size: info.Size(), used: map[uint64]bool{}}
	m, err := x.meta()
	if err != nil {
		return "", err
	}
	x.pageSize, x.highWater = int64(m.pageSize), m.highWater
	if m.highWater > uint64(x.size/x.pageSize) {
		return "", damagef("the file is cut off: %d bytes, where %d pages of %d were written", x.size, m.highWater, x.pageSize)
	}
	if err := x.tree(m.root, nil, keyRange{}, 0); err != nil {
		return "", err
	}
	if err := x.freelist(m.freelist); err != nil {
		return "", err
	}
	return x.version, nil
}

type examiner struct {
	file      *os.File
	size      int64
	pageSize  int64
	highWater uint64 // all page ids are below
	used      map[uint64]bool
	version   string
}

type meta struct {
	pageSize                          uint32
	root, freelist, highWater, commit uint64
}

// meta finds the valid meta page of the newest transaction. The second one starts at the second page, the
// size of which is only known from a valid meta page: so all sizes are tried, as bbolt does.
func (x *examiner) meta() (newest meta, err error) {
	found := false
	for pos := int64(0); pos == 0 || (pos <= 1<<16 && pos < x.size); pos = max(1024, pos*2) {
		m, ok, err := x.metaAt(pos)
		if err != nil {
			return meta{}, err
		}
		if !ok || (pos != 0 && int64(m.pageSize) != pos) {
			continue
		}
		if !found || m.commit > newest.commit {
			newest, found = m, true
		}
	}
	if !found {
		return meta{}, damage("neither of its two header pages is valid")
	}
	return newest, nil
}

func (x *examiner) metaAt(pos int64) (m meta, ok bool, err error) {
	var page [pageHeader + metaChecksum + 8]byte
	if _, err := x.file.ReadAt(page[:], pos); err == io.EOF {
		return meta{}, false, nil
	} else if err != nil {
		return meta{}, false, err
	}
	b := page[pageHeader:]
	sum := fnv.New64a()
	sum.Write(b[:metaChecksum])
	size := order.Uint32(b[8:])
	ok = order.Uint32(b) == boltMagic && order.Uint32(b[4:]) == boltVersion &&
		order.Uint64(b[metaChecksum:]) == sum.Sum64() &&
		size >= 1024 && size <= 1<<16 && size&(size-1) == 0
	return meta{
		pageSize:  size,
		root:      order.Uint64(b[16:]),
		freelist:  order.Uint64(b[32:]),
		highWater: order.Uint64(b[40:]),
		commit:    order.Uint64(b[48:]),
	}, ok, nil
}

// page reads a page with its overflow pages, and takes them as used.
func (x *examiner) page(id uint64) ([]byte, error) {
	if id < 2 || id >= x.highWater {
		return nil, damagef("page %d is referred to, there are pages 2 to %d", id, x.highWater-1)
	}
	header := make([]byte, pageHeader)
	if err := x.read(header, id); err != nil {
		return nil, err
	}
	overflow := uint64(order.Uint32(header[12:]))
	if got := order.Uint64(header); got != id {
		return nil, damagef("page %d calls itself page %d", id, got)
	}
	if overflow >= x.highWater-id {
		return nil, damagef("page %d continues for %d pages, behind the last one", id, overflow)
	}
	for i := id; i <= id+overflow; i++ {
		if x.used[i] {
			return nil, damagef("page %d is used twice", i)
		}
		x.used[i] = true
	}
	page := make([]byte, int64(overflow+1)*x.pageSize)
	return page, x.read(page, id)
}

func (x *examiner) read(b []byte, page uint64) error {
	_, err := x.file.ReadAt(b, int64(page)*x.pageSize)
	if err == io.EOF {
		return damagef("page %d is behind the end of the file", page)
	}
	return err
}

// keyRange bounds the keys of a subtree: the first one is given, all are below end; nil leaves it open. That
// the first key is exactly what the branch says matters: bbolt looks a page up in its parent by it, and
// where they differ it adds a second reference to the page.
type keyRange struct{ first, end []byte }

// tree walks the B+tree of a bucket; bucket is its path of names.
func (x *examiner) tree(id uint64, bucket [][]byte, keys keyRange, depth int) error {
	if depth > maxDepth {
		return damage("its pages are nested too deeply")
	}
	page, err := x.page(id)
	if err != nil {
		return err
	}
	place := fmt.Sprintf("page %d", id)
	switch flags := order.Uint16(page[8:]); flags {
	case flagBranch:
		return x.branch(place, page, bucket, keys, depth)
	case flagLeaf:
		return x.leaf(place, page, bucket, keys, depth)
	default:
		return damagef("%s has type %#x where a branch or leaf should be", place, flags)
	}
}

func (x *examiner) branch(place string, page []byte, bucket [][]byte, keys keyRange, depth int) error {
	n := int(order.Uint16(page[10:]))
	if n == 0 {
		return damagef("%s is a branch without children", place)
	}
	type child struct {
		key []byte
		id  uint64
	}
	children := make([]child, n)
	var previous []byte
	for i := range children {
		at := pageHeader + i*elementHeader
		if at+elementHeader > len(page) {
			return damagef("%s counts %d elements, more than it has room for", place, n)
		}
		key, err := slice(place, page, at, order.Uint32(page[at:]), order.Uint32(page[at+4:]))
		if err != nil {
			return err
		}
		if err := inOrder(place, key, previous, keys, i == 0); err != nil {
			return err
		}
		children[i], previous = child{key, order.Uint64(page[at+8:])}, key
	}
	for i, c := range children {
		end := keys.end
		if i+1 < n {
			end = children[i+1].key
		}
		if err := x.tree(c.id, bucket, keyRange{c.key, end}, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (x *examiner) leaf(place string, page []byte, bucket [][]byte, keys keyRange, depth int) error {
	n := int(order.Uint16(page[10:]))
	if n == 0 && keys.first != nil {
		return damagef("%s is empty", place)
	}
	var previous []byte
	for i := range n {
		at := pageHeader + i*elementHeader
		if at+elementHeader > len(page) {
			return damagef("%s counts %d elements, more than it has room for", place, n)
		}
		flags, pos := order.Uint32(page[at:]), order.Uint32(page[at+4:])
		ksize, vsize := order.Uint32(page[at+8:]), order.Uint32(page[at+12:])
		both, err := slice(place, page, at, pos, ksize, vsize)
		if err != nil {
			return err
		}
		key, value := both[:ksize], both[ksize:]
		if err := inOrder(place, key, previous, keys, i == 0); err != nil {
			return err
		}
		previous = key
		switch {
		case flags == leafBucket:
			err = x.bucket(place, value, append(bucket[:len(bucket):len(bucket)], key), depth)
		case flags != 0:
			err = damagef("%s has an element of type %#x", place, flags)
		case len(bucket) == 1 && bytes.Equal(bucket[0], bucketMeta) && bytes.Equal(key, keyVersion):
			x.version = string(value)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// bucket follows a bucket's header to its root page, or into the page that is stored inline behind it.
func (x *examiner) bucket(place string, value []byte, path [][]byte, depth int) error {
	if len(value) < bucketHeader {
		return damagef("%s has a bucket of %d bytes", place, len(value))
	}
	if root := order.Uint64(value); root != noPage {
		return x.tree(root, path, keyRange{}, depth+1)
	}
	inline := value[bucketHeader:]
	if len(inline) < pageHeader {
		return damagef("%s has an inline bucket of %d bytes", place, len(inline))
	}
	if flags := order.Uint16(inline[8:]); flags != flagLeaf {
		return damagef("%s has an inline bucket of type %#x", place, flags)
	}
	if order.Uint32(inline[12:]) != 0 {
		return damagef("%s has an inline bucket that continues elsewhere", place)
	}
	return x.leaf(place+", inline", inline, path, keyRange{}, depth+1)
}

// slice is the bytes that an element at offset at refers to: pos counts from the element.
func slice(place string, page []byte, at int, pos uint32, sizes ...uint32) ([]byte, error) {
	first := int64(at) + int64(pos)
	end := first
	for _, size := range sizes {
		end += int64(size)
	}
	if int64(pos) < elementHeader || end > int64(len(page)) {
		return nil, damagef("%s has an element that leaves the page", place)
	}
	return page[first:end], nil
}

// inOrder checks that keys rise, and are as the branch above promised.
func inOrder(place string, key, previous []byte, keys keyRange, first bool) error {
	ok := bytes.Compare(key, previous) > 0
	if first {
		ok = keys.first == nil || bytes.Equal(key, keys.first)
	}
	if !ok || (keys.end != nil && bytes.Compare(key, keys.end) >= 0) {
		return damagef("%s has its keys out of order", place)
	}
	return nil
}

// freelist checks the list of pages that the next transactions will overwrite: none may be in use.
func (x *examiner) freelist(id uint64) error {
	if id == noFreelist {
		return nil // bbolt then scans for free pages itself
	}
	page, err := x.page(id)
	if err != nil {
		return err
	}
	if flags := order.Uint16(page[8:]); flags != flagFreelist {
		return damagef("page %d has type %#x where the free list should be", id, flags)
	}
	count, ids := uint64(order.Uint16(page[10:])), page[pageHeader:]
	if count == 0xFFFF { // too many for the header: the first entry counts
		count, ids = order.Uint64(ids), ids[8:]
	}
	if count > uint64(len(ids)/8) {
		return damagef("the free list counts %d pages, more than it has room for", count)
	}
	previous := uint64(1)
	for i := range count {
		free := order.Uint64(ids[i*8:])
		switch {
		case free <= previous || free >= x.highWater:
			return damagef("the free list has page %d behind %d, of %d", free, previous, x.highWater)
		case x.used[free]:
			return damagef("page %d is both free and in use", free)
		}
		previous = free
	}
	return nil
}
