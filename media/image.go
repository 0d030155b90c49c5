package media

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"time"
)

// Image is an opened ISO 9660 image: an immutable index of paths, and the file. It is safe for concurrent
// use.
//
// Names are those of fs.FS ("images/pxeboot/vmlinuz", "." for the root), looked up case-sensitively first,
// then, where a single entry matches, in any case. Symbolic links are followed inside the image; an absolute
// target starts at the image's root.
type Image struct {
	r        io.ReaderAt
	file     *os.File // nil for NewImage
	root     *node
	volume   *volume
	files    int
	identity uint64

	mu      sync.Mutex
	readers int  // contents that are open
	closing bool // Close was called; the last reader closes the file
}

var (
	_ Tree          = (*Image)(nil)
	_ fs.StatFS     = (*Image)(nil)
	_ fs.ReadDirFS  = (*Image)(nil)
	_ fs.ReadFileFS = (*Image)(nil)
	_ fs.ReadLinkFS = (*Image)(nil)
)

// OpenISO opens and indexes the image in the file (or block device) at path. An image that is truncated or
// damaged is a *CorruptError.
func OpenISO(path string) (*Image, error) {
	// A FIFO would block for ever in open(2).
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if kind := info.Mode().Type(); kind != 0 && kind != fs.ModeDevice {
		return nil, &fs.PathError{Op: "open", Path: path, Err: errors.New("neither a file nor a block device")}
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	img, err := openFileImage(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return img, nil
}

func openFileImage(f *os.File) (*Image, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	size, err := f.Seek(0, io.SeekEnd) // what Stat says of a block device is 0
	if err != nil {
		return nil, err
	}
	img, err := newImage(f, size, info.ModTime())
	if err != nil {
		return nil, err
	}
	img.file = f
	return img, nil
}

// NewImage indexes the image of the given size that r holds. Close closes r if it is an io.Closer.
func NewImage(r io.ReaderAt, size int64) (*Image, error) { return newImage(r, size, time.Time{}) }

func newImage(r io.ReaderAt, size int64, modTime time.Time) (*Image, error) {
	root, volume, err := index(newSource(r, size))
	if err != nil {
		return nil, err
	}
	img := &Image{r: r, root: root, volume: volume, files: root.regularFiles()}
	img.identity = imageIdentity(size, modTime, volume.createdRaw)
	return img, nil
}

// imageIdentity is the part of an ETag that changes when the image does.
func imageIdentity(size int64, modTime time.Time, created [17]byte) uint64 {
	h := sha256.New()
	binary.Write(h, binary.BigEndian, []int64{size, modTime.Unix(), int64(modTime.Nanosecond())})
	h.Write(created[:])
	return binary.BigEndian.Uint64(h.Sum(nil))
}

// VolumeID returns the volume identifier (ECMA-119 8.4.7), such as "CentOS 7 x86_64".
func (img *Image) VolumeID() string { return img.volume.id }

// Created returns the volume's creation time (ECMA-119 8.4.26), or the zero time if it is not recorded.
func (img *Image) Created() time.Time { return img.volume.created }

// Files returns the number of regular files.
func (img *Image) Files() int { return img.files }

// Close closes the image for further opening. The file is closed when the last Content or file that is still
// open is closed, so that a transfer in progress is not cut off.
func (img *Image) Close() error {
	img.mu.Lock()
	defer img.mu.Unlock()
	if img.closing {
		return fs.ErrClosed
	}
	img.closing = true
	return img.closeIfUnused()
}

func (img *Image) acquire() error {
	img.mu.Lock()
	defer img.mu.Unlock()
	if img.closing {
		return fs.ErrClosed
	}
	img.readers++
	return nil
}

func (img *Image) release() error {
	img.mu.Lock()
	defer img.mu.Unlock()
	img.readers--
	return img.closeIfUnused()
}

func (img *Image) closeIfUnused() error {
	if c, ok := img.r.(io.Closer); ok && img.closing && img.readers == 0 {
		return c.Close()
	}
	return nil
}

// Lookup returns the entry that name leads to; symbolic links are followed. Its Name is that of the path, not
// that of the link's target. What is not there is an fs.ErrNotExist; a link that loops or leads out of the
// image is that and ErrLinkLoop or ErrLinkEscapes.
func (img *Image) Lookup(name string) (Entry, error) { return img.follow("lookup", name) }

func (img *Image) follow(op, name string) (Entry, error) {
	link, err := img.root.lookup(op, name, false)
	if err != nil {
		return Entry{}, err
	}
	n := link
	if link.mode&fs.ModeSymlink != 0 {
		if n, err = img.root.lookup(op, name, true); err != nil {
			return Entry{}, err
		}
	}
	return img.entry(n, link.name), nil
}

func (img *Image) entry(n *node, name string) Entry {
	e := Entry{Name: name, Size: n.size, ModTime: n.modTime, Mode: n.mode, Target: n.target,
		tree: img, node: n, identity: img.identity}
	if len(n.extents) > 0 {
		e.place = uint64(n.extents[0].off)
	}
	return e
}

// OpenEntry opens the content of a regular file that Lookup returned.
func (img *Image) OpenEntry(e Entry) (Content, error) {
	c, err := img.open(e)
	if err != nil {
		return nil, err
	}
	return c, nil
}

func (img *Image) open(e Entry) (*extentReader, error) {
	if e.tree != img || !e.Mode.IsRegular() {
		return nil, &fs.PathError{Op: "open", Path: e.Name, Err: fs.ErrInvalid}
	}
	if err := img.acquire(); err != nil {
		return nil, &fs.PathError{Op: "open", Path: e.Name, Err: err}
	}
	return &extentReader{img: img, extents: e.node.extents, size: e.Size}, nil
}

// Content is OpenEntry for those who know that e is a regular file of this image, and that it is open; if not,
// every read says what is wrong.
func (img *Image) Content(e Entry) Content {
	c, err := img.open(e)
	if err != nil {
		return brokenContent{err}
	}
	return c
}

// brokenContent is the content of what has none.
type brokenContent struct{ err error }

func (c brokenContent) Read([]byte) (int, error)               { return 0, c.err }
func (c brokenContent) ReadAt([]byte, int64) (int, error)      { return 0, c.err }
func (c brokenContent) Seek(int64, int) (int64, error)         { return 0, c.err }
func (c brokenContent) Close() error                           { return nil }
func (c brokenContent) Size() int64                            { return 0 }
func (c brokenContent) Region() (*os.File, int64, int64, bool) { return nil, 0, 0, false }

// Open is fs.FS's. A regular file is also an io.Seeker and an io.ReaderAt, a directory an fs.ReadDirFile.
// Devices and the like cannot be opened.
func (img *Image) Open(name string) (fs.File, error) {
	e, err := img.follow("open", name)
	if err != nil {
		return nil, err
	}
	if e.IsDir() {
		return &openDir{img: img, entry: e}, nil
	}
	c, err := img.open(e)
	if err != nil {
		return nil, err
	}
	return &openFile{extentReader: c, entry: e}, nil
}

// Stat is fs.StatFS's; it follows symbolic links.
func (img *Image) Stat(name string) (fs.FileInfo, error) {
	e, err := img.follow("stat", name)
	if err != nil {
		return nil, err
	}
	return e.Info(), nil
}

// Lstat is fs.ReadLinkFS's: like Stat, but it does not follow a link that name itself is.
func (img *Image) Lstat(name string) (fs.FileInfo, error) {
	n, err := img.root.lookup("lstat", name, false)
	if err != nil {
		return nil, err
	}
	return img.entry(n, n.name).Info(), nil
}

// ReadLink is fs.ReadLinkFS's: the target of a symbolic link, as recorded.
func (img *Image) ReadLink(name string) (string, error) {
	n, err := img.root.lookup("readlink", name, false)
	if err != nil {
		return "", err
	}
	if n.mode&fs.ModeSymlink == 0 {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: fs.ErrInvalid}
	}
	return n.target, nil
}

// ReadDir is fs.ReadDirFS's: the entries of a directory, sorted by name.
func (img *Image) ReadDir(name string) ([]fs.DirEntry, error) {
	e, err := img.follow("readdir", name)
	if err != nil {
		return nil, err
	}
	if !e.IsDir() {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: errNotDirectory}
	}
	return (&openDir{img: img, entry: e}).ReadDir(-1)
}

// ReadFile is fs.ReadFileFS's.
func (img *Image) ReadFile(name string) ([]byte, error) {
	e, err := img.follow("readfile", name)
	if err != nil {
		return nil, err
	}
	c, err := img.open(e)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	b := make([]byte, e.Size)
	if _, err := io.ReadFull(c, b); err != nil {
		return nil, &fs.PathError{Op: "readfile", Path: name, Err: err}
	}
	return b, nil
}
