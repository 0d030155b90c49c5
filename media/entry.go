package media

import (
	"fmt"
	"io/fs"
	"time"
)

// Entry is what a tree knows about one path.
type Entry struct {
	Name    string      // the last element of the path, as the tree spells it; "." for the root
	Size    int64       // bytes; 0 for directories
	ModTime time.Time   // zero if the image does not say
	Mode    fs.FileMode // type and permissions; 0444 and 0555 where the image has none
	Target  string      // a symbolic link's target, as recorded; empty for all else

	tree     Tree   // whose entry it is
	node     *node  // in an image
	path     string // in a directory tree
	identity uint64 // of the image, or of the file in a directory tree; see ETag
	place    uint64 // where the content is in it
}

// IsDir says whether the entry is a directory.
func (e Entry) IsDir() bool { return e.Mode.IsDir() }

// ETag returns the entry's strong entity tag (RFC 9110 8.8.3), with its quotes. For a file in an image it is
// made of the image's size, modification time and creation time, and of where the content is; for one in a
// directory, of its inode, size and modification time. So it survives restarts of the daemon, and changes
// when the file or the image is replaced.
func (e Entry) ETag() string { return fmt.Sprintf(`"%x-%x-%x"`, e.identity, e.place, e.Size) }

// Info returns the entry as an fs.FileInfo. Its Sys returns the Entry.
func (e Entry) Info() fs.FileInfo { return fileInfo{e} }

// fileInfo is the fs.FileInfo of an Entry; the two need the same names for fields and methods.
type fileInfo struct{ entry Entry }

func (i fileInfo) Name() string       { return i.entry.Name }
func (i fileInfo) Size() int64        { return i.entry.Size }
func (i fileInfo) Mode() fs.FileMode  { return i.entry.Mode }
func (i fileInfo) ModTime() time.Time { return i.entry.ModTime }
func (i fileInfo) IsDir() bool        { return i.entry.IsDir() }
func (i fileInfo) Sys() any           { return i.entry }
func (i fileInfo) String() string     { return fs.FormatFileInfo(i) }
