package media

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"
)

// dirTree is an unpacked tree: a directory that os.Root keeps everybody inside of.
type dirTree struct {
	root *os.Root
}

// OpenDir opens a directory as a Tree with the manners of an Image: case-insensitive where that is unique,
// symbolic links followed inside only, nothing but regular files and directories opened. Unlike in an Image,
// an absolute link leads out of the tree.
func OpenDir(path string) (Tree, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	return &dirTree{root}, nil
}

func (d *dirTree) Close() error { return d.root.Close() }

// Lookup is Tree's.
func (d *dirTree) Lookup(name string) (Entry, error) { return d.lookup("lookup", name) }

func (d *dirTree) lookup(op, name string) (Entry, error) {
	if !fs.ValidPath(name) {
		return Entry{}, &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	info, err := d.root.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		if spelled, ok := d.spelling(name); ok {
			name = spelled
			info, err = d.root.Stat(name)
		}
	}
	if err != nil {
		return Entry{}, &fs.PathError{Op: op, Path: name, Err: linkError(err)}
	}
	return d.entry(name, info), nil
}

func (d *dirTree) entry(name string, info fs.FileInfo) Entry {
	e := Entry{Name: path.Base(name), ModTime: info.ModTime(), Mode: info.Mode(),
		tree: d, path: name, identity: uint64(info.ModTime().UnixNano())}
	if !e.IsDir() {
		e.Size = info.Size()
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		e.place = st.Ino
	}
	return e
}

// spelling finds the one path that differs from name in case alone.
func (d *dirTree) spelling(name string) (string, bool) {
	at := "."
	for part := range strings.SplitSeq(name, "/") {
		list, err := fs.ReadDir(d.root.FS(), at)
		if err != nil {
			return "", false
		}
		found, ok := matchFold(list, part)
		if !ok {
			return "", false
		}
		at = path.Join(at, found)
	}
	return at, true
}

// matchFold returns the name in the list that is the one wanted, else the only one that differs from it in
// case alone.
func matchFold(list []fs.DirEntry, want string) (string, bool) {
	var similar []string
	for _, entry := range list {
		switch name := entry.Name(); {
		case name == want:
			return name, true
		case strings.EqualFold(name, want):
			similar = append(similar, name)
		}
	}
	if len(similar) != 1 {
		return "", false
	}
	return similar[0], true
}

// linkError gives os.Root's refusals the errors that an Image has. That a path escapes is an error that os
// does not export; but it is the only one that is no system call's.
func linkError(err error) error {
	var pathError *fs.PathError
	if errors.As(err, &pathError) {
		err = pathError.Err
	}
	var errno syscall.Errno
	switch {
	case errors.Is(err, syscall.ELOOP):
		return noSuchFile(ErrLinkLoop)
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ENAMETOOLONG), errors.Is(err, syscall.EINVAL):
		return fs.ErrNotExist // no file can have such a name
	case errors.As(err, &errno) || errors.Is(err, fs.ErrClosed):
		return err
	default:
		return noSuchFile(ErrLinkEscapes)
	}
}

// OpenEntry is Tree's. A file that was replaced since the lookup is ErrChanged: its ETag and its size were
// another's.
func (d *dirTree) OpenEntry(e Entry) (Content, error) {
	if e.tree != d || !e.Mode.IsRegular() {
		return nil, &fs.PathError{Op: "open", Path: e.Name, Err: fs.ErrInvalid}
	}
	f, err := d.open(e.path)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	if now := d.entry(e.path, info); now.ETag() != e.ETag() || !now.Mode.IsRegular() {
		f.Close()
		return nil, &fs.PathError{Op: "open", Path: e.path, Err: ErrChanged}
	}
	return &fileContent{SectionReader: io.NewSectionReader(f, 0, e.Size), file: f}, nil
}

// open opens without blocking, should a FIFO have taken the file's place.
func (d *dirTree) open(name string) (*os.File, error) {
	f, err := d.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: linkError(err)}
	}
	return f, nil
}

// Open is fs.FS's.
func (d *dirTree) Open(name string) (fs.File, error) {
	e, err := d.lookup("open", name)
	if err != nil {
		return nil, err
	}
	if !e.Mode.IsRegular() && !e.IsDir() {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	return d.open(e.path)
}

// Lstat is fs.ReadLinkFS's.
func (d *dirTree) Lstat(name string) (fs.FileInfo, error) {
	return d.root.FS().(fs.ReadLinkFS).Lstat(name)
}

// ReadLink is fs.ReadLinkFS's.
func (d *dirTree) ReadLink(name string) (string, error) {
	return d.root.FS().(fs.ReadLinkFS).ReadLink(name)
}

// fileContent is a file of its own as Content, cut to the size that was promised.
type fileContent struct {
	*io.SectionReader
	file *os.File
}

func (c *fileContent) Close() error                                { return c.file.Close() }
func (c *fileContent) Region() (f *os.File, off, n int64, ok bool) { return c.file, 0, c.Size(), true }
