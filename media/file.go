package media

import (
	"errors"
	"io"
	"io/fs"
)

// openFile is an open regular file: fs.File, and io.Seeker and io.ReaderAt.
type openFile struct {
	*extentReader
	entry Entry
}

func (f *openFile) Stat() (fs.FileInfo, error) { return f.entry.Info(), nil }

// openDir is an open directory: fs.ReadDirFile.
type openDir struct {
	img   *Image
	entry Entry
	next  int // index of the child that ReadDir returns next
}

var (
	errIsDirectory  = errors.New("is a directory")
	errNotDirectory = errors.New("not a directory")
)

func (d *openDir) Stat() (fs.FileInfo, error) { return d.entry.Info(), nil }
func (d *openDir) Close() error               { return nil }

func (d *openDir) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: d.entry.Name, Err: errIsDirectory}
}

// ReadDir is fs.ReadDirFile's.
func (d *openDir) ReadDir(n int) ([]fs.DirEntry, error) {
	left := len(d.entry.node.dir.children) - d.next
	switch {
	case n <= 0:
		n = left
	case left == 0:
		return nil, io.EOF
	default:
		n = min(n, left)
	}
	list := make([]fs.DirEntry, n)
	for i := range list {
		child := d.entry.node.dir.children[d.next+i]
		list[i] = fs.FileInfoToDirEntry(d.img.entry(child, child.name).Info())
	}
	d.next += n
	return list, nil
}
