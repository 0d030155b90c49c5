package repo

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"

	"rackstrap/internal/rpm"
	"rackstrap/media"
)

// Local is a repository in a directory of this host. Packages that its metadata names outside of the directory are
// served too, within limits: see find.
type Local struct {
	dir  string
	tree media.Tree

	mu     sync.Mutex
	of     string // the entity tag of the repomd.xml that the next two are made of
	moved  *relocated
	before *relocated // for clients that are in the middle of it
	err    error
	places map[string]place // by the path that they are served as
}

// OpenLocal opens a directory. It need not hold a repository yet.
func OpenLocal(dir string) (*Local, error) {
	tree, err := media.OpenDir(dir)
	if err != nil {
		return nil, err
	}
	return &Local{dir: dir, tree: tree}, nil
}

// Tree is the directory itself.
func (l *Local) Tree() media.Tree { return l.tree }

// Close ends lookups. What is open stays readable.
func (l *Local) Close() error { return l.tree.Close() }

// ErrDirectory is the name of a directory where a file was asked for.
var ErrDirectory = errors.New("is a directory")

// Open opens a file under the name that clients ask for it by. Errors are those of media.Tree, and ErrDirectory.
func (l *Local) Open(name string) (*File, error) {
	if strings.HasPrefix(name, placesDir) {
		return l.openPlace(name)
	}
	if strings.HasPrefix(name, "repodata/") {
		if text, ok, err := l.rewritten(name); ok || err != nil {
			return text, err
		}
	}
	return OpenFile(l.tree, name)
}

// Stat is the size of a file under the name that clients ask for it by.
func (l *Local) Stat(name string) (int64, error) {
	if strings.HasPrefix(name, placesDir) {
		f, err := l.openPlace(name)
		if err != nil {
			return 0, err
		}
		defer f.Content.Close()
		return f.Content.Size(), nil
	}
	return StatFile(l.tree, name)
}

// Origin is where the directory's own metadata says that a package is which is served from elsewhere.
func (l *Local) Origin(p Package) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.places[p.Path].String()
}

// StatFile is the size of a regular file of a tree.
func StatFile(tree media.Tree, name string) (int64, error) {
	entry, err := tree.Lookup(name)
	if err == nil && !entry.Mode.IsRegular() {
		err = &fs.PathError{Op: "open", Path: name, Err: errors.New("is no regular file")}
	}
	return entry.Size, err
}

// Index reads the index of what clients are given.
func (l *Local) Index() (*Index, error) {
	return readIndex(nil, func(name string) (io.ReadCloser, error) {
		f, err := l.Open(name)
		if err != nil {
			return nil, err
		}
		return f.Content, nil
	})
}

// OpenFile opens a regular file of a tree.
func OpenFile(tree media.Tree, name string) (*File, error) {
	entry, err := tree.Lookup(name)
	switch {
	case err != nil:
		return nil, err
	case entry.IsDir():
		return nil, &fs.PathError{Op: "open", Path: name, Err: ErrDirectory}
	case !entry.Mode.IsRegular(): // a device: nothing to send
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	content, err := tree.OpenEntry(entry)
	if err != nil {
		return nil, err
	}
	return &File{Content: content, Name: entry.Name, ModTime: entry.ModTime, ETag: entry.ETag()}, nil
}

// rewritten is a file of repodata that is not the directory's own. Where the metadata cannot be read, clients get it as
// it is.
func (l *Local) rewritten(name string) (f *File, ok bool, err error) {
	entry, err := l.tree.Lookup(repomdPath)
	if err != nil {
		return nil, false, nil
	}
	if _, err := l.current(); errors.Is(err, fs.ErrClosed) {
		return nil, false, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range []*relocated{l.moved, l.before} {
		if text, ok := r.open(name); ok {
			return fileOf(name, text, entry.ModTime), true, nil
		}
	}
	if name == repomdPath+".asc" && l.moved != nil { // it is of what is in the directory
		return nil, false, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return nil, false, nil
}

// current reads the metadata, if that has changed, and rewrites it where it names packages outside of the directory.
func (l *Local) current() (*relocated, error) {
	entry, err := l.tree.Lookup(repomdPath)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if tag := entry.ETag(); l.of != tag {
		moved, places, err := l.read()
		if errors.Is(err, fs.ErrClosed) || errors.Is(err, media.ErrChanged) {
			return nil, err
		}
		if moved != nil {
			l.before = l.moved
		}
		l.of, l.moved, l.places, l.err = tag, moved, places, err
	}
	return l.moved, l.err
}

func (l *Local) read() (*relocated, map[string]place, error) {
	repomd, err := fs.ReadFile(l.tree, repomdPath)
	if err != nil {
		return nil, nil, err
	}
	list, _, err := parseRepomd(repomd)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", repomdPath, err)
	}
	primary, _ := pick(list)
	places := map[string]place{}
	open := func(name string) (io.ReadCloser, error) { return l.tree.Open(name) }
	_, err = readVerified(open, primary, func(r io.Reader) error {
		return parsePrimary(r, false, func(p rpmPackage) error {
			if p.at == (place{}) {
				return nil
			}
			if _, err := l.find(p.at); !errors.Is(err, errRemote) {
				places[p.path] = p.at
			}
			return nil
		})
	})
	if err != nil || len(places) == 0 {
		return nil, nil, err
	}
	var moved *relocated
	_, err = readVerified(open, primary, func(r io.Reader) (err error) {
		moved, err = relocateFrom(repomd, r, func(at place) bool { return places[at.servedAs()] == at })
		return err
	})
	return moved, places, err
}

// openPlace opens a package outside of the directory.
func (l *Local) openPlace(name string) (*File, error) {
	if _, err := l.current(); err != nil {
		return nil, err
	}
	l.mu.Lock()
	at, ok := l.places[name]
	l.mu.Unlock()
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	file, err := l.find(at)
	if err != nil {
		return nil, err
	}
	root, err := media.OpenDir(filepath.Dir(file))
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := OpenFile(root, filepath.Base(file))
	if err != nil {
		return nil, err
	}
	// Metadata may name any file of this host; packages are no secret.
	magic := make([]byte, 4)
	if n, _ := f.Content.ReadAt(magic, 0); n < len(magic) || !bytes.Equal(magic, rpm.Magic) {
		f.Content.Close()
		return nil, &fs.PathError{Op: "open", Path: at.String(), Err: ErrNotAnRPM}
	}
	return f, nil
}

// errRemote is a package on a server: whoever installs it asks there.
var errRemote = errors.New("is on a server")

// levels is how far up from its directory a repository's packages may be: `../../pool` is usual.
const levels = 3

// find is the file that a location means. It must be an .rpm, and below a directory at most three levels above the
// repository's own, symbolic links resolved; the root directory of the host is not one of them. Of a package whose xml:base
// is a server's a copy in the directory is as good: the checksum is the same.
func (l *Local) find(at place) (string, error) {
	base, err := url.Parse(at.base)
	if err != nil {
		return "", fmt.Errorf("xml:base %.80q: %w", at.base, fs.ErrNotExist)
	}
	absolute, err := filepath.Abs(l.dir)
	if err != nil {
		return "", err
	}
	var last error
	for _, dir := range []string{absolute, physical(absolute)} {
		from := dir
		switch {
		case base.Scheme == "file":
			from = base.Path
		case base.Scheme == "" && path.IsAbs(base.Path):
			return "", outside(at)
		case base.Scheme == "":
			from = filepath.Join(dir, filepath.FromSlash(base.Path))
		}
		file := physical(filepath.Join(from, filepath.FromSlash(at.plain())))
		switch limit := physical(ancestor(dir)); {
		case !isFile(file):
			last = &fs.PathError{Op: "open", Path: at.String(), Err: fs.ErrNotExist}
		case !strings.HasSuffix(file, ".rpm"), !strings.HasPrefix(file, strings.TrimSuffix(limit, "/")+"/"):
			last = outside(at)
		default:
			return file, nil
		}
	}
	if base.Scheme != "" && base.Scheme != "file" {
		return "", errRemote
	}
	return "", last
}

// What is wrong with packages outside of the directory that are there. For clients they are not.
var (
	ErrOutside  = fmt.Errorf("is too far outside of the repository to be served: %w", fs.ErrNotExist)
	ErrNotAnRPM = fmt.Errorf("is no RPM package: %w", fs.ErrNotExist)
)

func outside(at place) error { return &fs.PathError{Op: "open", Path: at.String(), Err: ErrOutside} }

// physical is a path without symbolic links, as far as it exists.
func physical(file string) string {
	if real, err := filepath.EvalSymlinks(file); err == nil {
		return real
	}
	return file
}

func isFile(file string) bool {
	info, err := os.Lstat(file)
	return err == nil && info.Mode().IsRegular()
}

// ancestor is the directory below which packages may be.
func ancestor(dir string) string {
	for range levels {
		up := filepath.Dir(dir)
		if filepath.Dir(up) == up {
			break
		}
		dir = up
	}
	return dir
}
