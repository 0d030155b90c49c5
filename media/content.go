package media

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"sort"
	"sync/atomic"
)

// Content is the content of one regular file. Read and Seek share a position and are for one goroutine;
// ReadAt is for any number.
type Content interface {
	io.Reader
	io.Seeker
	io.ReaderAt
	io.Closer

	// Size returns the number of bytes.
	Size() int64

	// Region says where the content is when it is one range of a file of the operating system: in f, n bytes
	// from off. It is what sendfile(2) needs.
	//
	// f is the tree's own, open for all its readers at once: use it only with explicit offsets (ReadAt, or
	// sendfile with an offset), never with Read, Seek or Close, nor through net's ReadFrom, which sends from
	// the descriptor's one shared position. It stays open until the Content is closed.
	Region() (f *os.File, off, n int64, ok bool)
}

// extent is one range of the image and where in the file's content it starts.
type extent struct {
	start int64
	span
}

var (
	errWhence   = errors.New("invalid whence")
	errNegative = errors.New("negative position")
)

// extentReader reads a file's content out of an image.
type extentReader struct {
	img     *Image
	extents []extent
	size    int64
	pos     int64
	closed  atomic.Bool
}

func (c *extentReader) Size() int64 { return c.size }

func (c *extentReader) Region() (f *os.File, off, n int64, ok bool) {
	if c.img.file == nil || len(c.extents) != 1 || c.closed.Load() {
		return nil, 0, 0, false
	}
	return c.img.file, c.extents[0].off, c.extents[0].length, true
}

func (c *extentReader) Read(p []byte) (int, error) {
	n, err := c.ReadAt(p, c.pos)
	c.pos += int64(n)
	if n > 0 && errors.Is(err, io.EOF) {
		err = nil // the next Read says so
	}
	return n, err
}

func (c *extentReader) ReadAt(p []byte, off int64) (int, error) {
	switch {
	case c.closed.Load():
		return 0, fs.ErrClosed
	case off < 0:
		return 0, errNegative
	case off >= c.size:
		return 0, io.EOF
	}
	// The last extent that starts at or before off has it.
	i := sort.Search(len(c.extents), func(i int) bool { return c.extents[i].start > off }) - 1
	done := 0
	for ; done < len(p) && i < len(c.extents); i++ {
		e := c.extents[i]
		skip := off + int64(done) - e.start
		want := min(int64(len(p)-done), e.length-skip)
		n, err := c.img.r.ReadAt(p[done:done+int(want)], e.off+skip)
		if done += n; int64(n) < want {
			if errors.Is(err, io.EOF) { // the image was complete when it was indexed
				err = io.ErrUnexpectedEOF
			}
			return done, err
		}
	}
	if done < len(p) {
		return done, io.EOF
	}
	return done, nil
}

func (c *extentReader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		offset += c.pos
	case io.SeekEnd:
		offset += c.size
	default:
		return 0, errWhence
	}
	if offset < 0 {
		return 0, errNegative
	}
	c.pos = offset
	return offset, nil
}

func (c *extentReader) Close() error {
	if c.closed.Swap(true) {
		return fs.ErrClosed
	}
	return c.img.release()
}
