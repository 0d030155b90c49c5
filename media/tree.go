package media

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
)

// Tree is a file tree that is served: an *Image, or a directory opened by OpenDir.
type Tree interface {
	fs.FS
	// Lookup returns the entry that name leads to, following symbolic links inside the tree.
	Lookup(name string) (Entry, error)
	// OpenEntry opens the content of a regular file that this tree's Lookup returned.
	OpenEntry(Entry) (Content, error)
	// Close ends lookups and opens. What is open stays readable.
	Close() error
}

// Spec names one medium and where it is: in an ISO image, or unpacked in a directory.
type Spec struct {
	Name string
	ISO  string // path of an ISO 9660 image
	Dir  string // path of a directory; either this or ISO
}

// Library is the set of configured media by name.
type Library struct {
	trees map[string]Tree
}

// OpenLibrary opens all media. Its error joins the faults of all of them, each naming its medium; nothing
// stays open then.
func OpenLibrary(specs []Spec) (*Library, error) {
	l := &Library{trees: make(map[string]Tree, len(specs))}
	var faults []error
	for i, spec := range specs {
		if err := l.add(spec); err != nil {
			faults = append(faults, fmt.Errorf("media[%d] %q: %w", i, spec.Name, err))
		}
	}
	if len(faults) > 0 {
		l.Close()
		return nil, errors.Join(faults...)
	}
	return l, nil
}

func (l *Library) add(spec Spec) error {
	switch _, taken := l.trees[spec.Name]; {
	case spec.Name == "." || !fs.ValidPath(spec.Name) || strings.Contains(spec.Name, "/"):
		return errors.New("the name must be usable as one element of a URL path")
	case taken:
		return errors.New("another medium has this name")
	case (spec.ISO == "") == (spec.Dir == ""):
		return errors.New("either an ISO image or a directory is needed")
	}
	tree, err := open(spec)
	if err != nil {
		return err
	}
	l.trees[spec.Name] = tree
	return nil
}

// open exists to keep a nil *Image out of a Tree.
func open(spec Spec) (Tree, error) {
	if spec.Dir != "" {
		return OpenDir(spec.Dir)
	}
	img, err := OpenISO(spec.ISO)
	if err != nil {
		return nil, err
	}
	return img, nil
}

// Tree returns the medium of that name.
func (l *Library) Tree(name string) (Tree, bool) {
	t, ok := l.trees[name]
	return t, ok
}

// Names returns the names of all media, sorted.
func (l *Library) Names() []string {
	names := make([]string, 0, len(l.trees))
	for name := range l.trees {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Close closes all media; what is open in them stays readable.
func (l *Library) Close() error {
	var faults []error
	for _, name := range l.Names() {
		if err := l.trees[name].Close(); err != nil {
			faults = append(faults, fmt.Errorf("medium %q: %w", name, err))
		}
	}
	return errors.Join(faults...)
}
