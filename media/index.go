package media

import (
	"bytes"
	"cmp"
	"slices"
	"strings"
)

// indexer reads every directory of an image once, from the root down, and makes the tree of nodes of it.
type indexer struct {
	src       *source
	blockSize int64
	rock      *rockRidge          // nil: the tree has no Rock Ridge
	decode    func([]byte) string // an identifier's name, where Rock Ridge has none
	seen      map[int64]struct{}  // blocks that belong to a directory already read
	entries   int
	buf       []byte // the directory being read, reused
}

// pending is a directory found but not read yet.
type pending struct {
	node    *node
	content span
	depth   int
	takeOwn bool // its "." record has the attributes: the root, and what Rock Ridge relocated
}

// index reads the tree that the image shows: that with Rock Ridge, else Joliet's, else the plain one.
func index(src *source) (*node, *volume, error) {
	primary, joliet, err := readVolumes(src)
	if err != nil {
		return nil, nil, err
	}
	self, err := readSelf(src, primary.root.content.off, primary.blockSize)
	if err != nil {
		return nil, nil, err
	}
	rock, err := detectRockRidge(src, self, primary.blockSize)
	if err != nil {
		return nil, nil, err
	}
	x := &indexer{src: src, blockSize: primary.blockSize, rock: rock, decode: isoName, seen: map[int64]struct{}{}}
	root := primary.root
	if rock == nil && joliet != nil {
		x.blockSize, x.decode, root = joliet.blockSize, jolietName, joliet.root
	}
	tree, err := x.run(root)
	return tree, primary, err
}

// readSelf reads the first record of the directory at the given offset, which describes the directory
// itself (ECMA-119 6.8.2.2).
func readSelf(src *source, at, blockSize int64) (record, error) {
	b := make([]byte, 255)
	if err := src.read(b[:1], at, "directory"); err != nil {
		return record{}, err
	}
	b = b[:b[0]]
	if err := src.read(b, at, "directory"); err != nil {
		return record{}, err
	}
	self, err := parseRecord(b, at, blockSize)
	if err != nil {
		return record{}, err
	}
	return self, checkSelf(self)
}

func checkSelf(r record) error {
	if string(r.ident) != identSelf || !r.isDir() {
		return corrupt(r.at, "a directory does not begin with its own record")
	}
	return nil
}

// run reads all directories, depth first. It does not recurse: how deep an image goes is up to the image.
func (x *indexer) run(r record) (*node, error) {
	root := &node{name: ".", modTime: r.recorded, dir: &directory{}}
	root.setAttributes(attributes{})
	stack := []pending{{node: root, content: r.content, takeOwn: true}}
	for len(stack) > 0 {
		last := len(stack) - 1
		found, err := x.readDirectory(stack[last])
		if err != nil {
			return nil, err
		}
		stack = append(stack[:last], found...)
	}
	hideRelocationDirectory(root)
	return root, nil
}

// readDirectory reads the records of one directory into the children of its node, and returns the
// directories among them.
func (x *indexer) readDirectory(p pending) (found []pending, err error) {
	data, err := x.directoryBytes(p)
	if err != nil {
		return nil, err
	}
	var (
		open      *node  // a file whose next section (ECMA-119 9.1.6, multi-extent) is still to come
		openIdent []byte // its identifier
		first     = true
	)
	for i := 0; i < len(data); {
		n, at := int(data[i]), p.content.off+int64(i)
		if n == 0 { // ECMA-119 6.8.1.1: records do not cross sectors, the rest is zero
			i += int(x.blockSize) - i%int(x.blockSize)
			continue
		}
		if i+n > len(data) {
			return nil, corrupt(at, "a directory record of %d bytes, where the directory has %d left", n, len(data)-i)
		}
		r, err := parseRecord(data[i:i+n], at, x.blockSize)
		if err != nil {
			return nil, err
		}
		i += n
		if x.entries++; x.entries > maxEntries {
			return nil, corrupt(at, "more than %d directory records", maxEntries)
		}

		switch {
		case first:
			first = false
			if err := x.readOwn(p, r); err != nil {
				return nil, err
			}
			continue
		case string(r.ident) == identSelf || string(r.ident) == identParent:
			continue
		case open != nil:
			if !bytes.Equal(r.ident, openIdent) || r.isDir() {
				return nil, corrupt(at, "another file between the sections of %q", open.name)
			}
			if err := x.addSection(open, r); err != nil {
				return nil, err
			}
			if r.flags&flagMultiExtent == 0 {
				open = nil
			}
			continue
		case r.flags&flagAssociated != 0:
			continue
		}

		child, dir, err := x.newNode(p.node, r)
		if err != nil {
			return nil, err
		}
		if child == nil {
			p.node.dir.relocated = true
			continue
		}
		p.node.dir.children = append(p.node.dir.children, child)
		switch {
		case child.dir != nil:
			dir.depth = p.depth + 1
			found = append(found, dir)
		case child.mode.IsRegular():
			if err := x.addSection(child, r); err != nil {
				return nil, err
			}
			if r.flags&flagMultiExtent != 0 {
				open, openIdent = child, r.ident
			}
		}
	}
	if open != nil {
		return nil, corrupt(p.content.off, "the directory ends before the last section of %q", open.name)
	}
	p.node.dir.children = sortUnique(p.node.dir.children)
	return found, nil
}

// directoryBytes reads a directory's extent. No block may belong to two directories: that ends cycles, and
// overlaps that would make a small image a huge tree.
func (x *indexer) directoryBytes(p pending) ([]byte, error) {
	switch c := p.content; {
	case p.depth > maxDepth:
		return nil, corrupt(c.off, "directories more than %d deep", maxDepth)
	case c.length == 0 || c.length > maxDirectory:
		return nil, corrupt(c.off, "a directory of %d bytes", c.length)
	case !x.src.contains(c.off, c.length):
		return nil, corrupt(c.off, "the directory %q of %d bytes ends outside the image of %d bytes", p.node.name, c.length, x.src.size)
	}
	for block := p.content.off / x.blockSize; block*x.blockSize < p.content.off+p.content.length; block++ {
		if _, ok := x.seen[block]; ok {
			return nil, corrupt(block*x.blockSize, "two directories share this block, or one contains itself")
		}
		x.seen[block] = struct{}{}
	}
	x.buf = slices.Grow(x.buf[:0], int(p.content.length))[:p.content.length]
	return x.buf, x.src.read(x.buf, p.content.off, "directory")
}

// readOwn checks a directory's first record, and takes the attributes from it where the parent's record
// does not have them.
func (x *indexer) readOwn(p pending, self record) error {
	if err := checkSelf(self); err != nil || !p.takeOwn || x.rock == nil {
		return err
	}
	a, err := x.rock.read(self)
	if err != nil {
		return err
	}
	p.node.setAttributes(a)
	return nil
}

// newNode makes the node of a directory record, and for a directory says where its records are. It returns
// no node for a directory that is here only because Rock Ridge moved it here.
func (x *indexer) newNode(parent *node, r record) (*node, pending, error) {
	n := &node{parent: parent, modTime: r.recorded}
	dir := pending{node: n, content: r.content}
	var a attributes
	if x.rock != nil {
		var err error
		if a, err = x.rock.read(r); err != nil {
			return nil, dir, err
		}
	}
	if a.relocated {
		return nil, dir, nil
	}
	if a.hasChild {
		self, err := readSelf(x.src, a.childBlock*x.blockSize, x.blockSize)
		if err != nil {
			return nil, dir, err
		}
		dir.content, dir.takeOwn = span{self.at, self.content.length}, true
	}
	if r.isDir() || a.hasChild {
		if r.flags&flagMultiExtent != 0 {
			return nil, dir, corrupt(r.at, "a directory in several sections")
		}
		n.dir = &directory{}
	}
	n.setAttributes(a)
	if n.name = decodeName(a.name); n.name == "" {
		n.name = x.decode(r.ident)
	}
	return n, dir, checkName(n.name, r.at)
}

// addSection appends one extent to a file's content. Neighbouring extents become one: a file over 4 GiB
// (ECMA-119 9.1.4 has 32 bits for a length) is so, as mastering programs write it, again a single range.
func (x *indexer) addSection(n *node, r record) error {
	if r.content.length == 0 {
		return nil // its location means nothing
	}
	if !x.src.contains(r.content.off, r.content.length) {
		return corrupt(r.at, "the content of %q, %d bytes at byte %d, ends outside the image of %d bytes", n.name, r.content.length, r.content.off, x.src.size)
	}
	if n.size+r.content.length > x.src.size {
		return corrupt(r.at, "the sections of %q add up to more than the image", n.name)
	}
	if last := len(n.extents) - 1; last >= 0 && n.extents[last].off+n.extents[last].length == r.content.off {
		n.extents[last].length += r.content.length
	} else {
		n.extents = append(n.extents, extent{start: n.size, span: r.content})
	}
	n.size += r.content.length
	return nil
}

// sortUnique sorts by name. Of several entries with one name the first recorded stays, which is the one with
// the highest version number (ECMA-119 9.3).
func sortUnique(children []*node) []*node {
	byName := func(a, b *node) int { return cmp.Compare(a.name, b.name) }
	slices.SortStableFunc(children, byName)
	return slices.CompactFunc(children, func(a, b *node) bool { return a.name == b.name })
}

// hideRelocationDirectory removes the directory into which mkisofs moved the directories that were too deep.
// (xorriso marks it as relocated itself, so there it never shows.)
func hideRelocationDirectory(root *node) {
	root.dir.children = slices.DeleteFunc(root.dir.children, func(n *node) bool {
		return n.dir != nil && n.dir.relocated && len(n.dir.children) == 0 && strings.EqualFold(n.name, "rr_moved")
	})
}
