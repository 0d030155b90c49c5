package media

import (
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"
)

// node is one entry of an image's tree. Nodes do not change once the image is indexed.
type node struct {
	name    string
	mode    fs.FileMode
	modTime time.Time
	size    int64
	extents []extent   // a regular file's content
	target  string     // a symbolic link's
	dir     *directory // a directory's children
	parent  *node      // nil for the root
}

// directory is the part that only directories have.
type directory struct {
	children  []*node // sorted by name
	relocated bool    // Rock Ridge moved directories here, which show elsewhere

	fold   sync.Once
	folded map[string]*node // by lower-case name; nil where two names differ only in case
}

// setAttributes takes over what Rock Ridge says. What kind of entry a node is, its directory record decided:
// a PX that contradicts it can change the permissions only.
func (n *node) setAttributes(a attributes) {
	switch {
	case a.hasMode:
		n.mode = a.mode
	case n.dir != nil:
		n.mode = 0o555
	case a.target != nil:
		n.mode = fs.ModeSymlink | 0o777
	default:
		n.mode = 0o444
	}
	switch {
	case n.dir != nil:
		n.mode = n.mode&^fs.ModeType | fs.ModeDir
	case n.mode.IsDir():
		n.mode &^= fs.ModeType
	}
	if n.mode&fs.ModeSymlink != 0 {
		n.target = decodeName(a.target)
		n.size = int64(len(n.target))
	}
	if !a.modified.IsZero() {
		n.modTime = a.modified
	}
}

// child returns the entry of that name: the very name, else the only one that differs from it in case alone,
// else nil.
func (d *directory) child(name string) *node {
	i, ok := slices.BinarySearchFunc(d.children, name, func(n *node, name string) int { return strings.Compare(n.name, name) })
	if ok {
		return d.children[i]
	}
	d.fold.Do(func() {
		d.folded = make(map[string]*node, len(d.children))
		for _, n := range d.children {
			lower := strings.ToLower(n.name)
			if _, taken := d.folded[lower]; taken {
				n = nil
			}
			d.folded[lower] = n
		}
	})
	return d.folded[strings.ToLower(name)]
}

// resolve walks a path from the root. Symbolic links on the way are followed, the last one if wanted. An
// absolute target starts at the root of the image: the image is all there is. A target that climbs above the
// root leads nowhere.
func (root *node) resolve(name string, followLast bool) (*node, error) {
	at, rest := root, name
	for links := 0; rest != ""; {
		var part string
		part, rest, _ = strings.Cut(rest, "/")
		switch part {
		case "", ".":
			continue
		case "..": // only in targets: fs.ValidPath refuses it in names
			if at.parent == nil {
				return nil, noSuchFile(ErrLinkEscapes)
			}
			at = at.parent
			continue
		}
		if at.dir == nil {
			return nil, fs.ErrNotExist
		}
		child := at.dir.child(part)
		if child == nil {
			return nil, fs.ErrNotExist
		}
		if child.mode&fs.ModeSymlink == 0 || (rest == "" && !followLast) {
			at = child
			continue
		}
		if links++; links > maxLinks {
			return nil, noSuchFile(ErrLinkLoop)
		}
		if child.target == "" {
			return nil, fs.ErrNotExist
		}
		if child.target[0] == '/' {
			at = root
		}
		rest = child.target + "/" + rest
	}
	return at, nil
}

// regularFiles counts the regular files below a node.
func (n *node) regularFiles() int {
	if n.dir == nil {
		if n.mode.IsRegular() {
			return 1
		}
		return 0
	}
	count := 0
	for _, child := range n.dir.children {
		count += child.regularFiles()
	}
	return count
}

// lookup is resolve for a name as fs.FS passes it, with the error that fs.FS wants.
func (root *node) lookup(op, name string, followLast bool) (*node, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	n, err := root.resolve(name, followLast)
	if err != nil {
		return nil, &fs.PathError{Op: op, Path: name, Err: err}
	}
	return n, nil
}
