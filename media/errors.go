package media

import (
	"errors"
	"fmt"
	"io/fs"
)

// CorruptError tells that an image contradicts ISO 9660 or itself: it is truncated, damaged or hostile.
type CorruptError struct {
	Offset int64  // byte offset in the image where the contradiction stands; for a truncated one, its end
	Reason string // what is wrong there
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("corrupt ISO 9660 image: at byte %d: %s", e.Offset, e.Reason)
}

func corrupt(offset int64, format string, args ...any) error {
	return &CorruptError{Offset: offset, Reason: fmt.Sprintf(format, args...)}
}

// What a lookup answers when a symbolic link leads nowhere. Both come wrapped together with
// fs.ErrNotExist: for a client, nothing is there.
var (
	ErrLinkLoop    = errors.New("too many levels of symbolic links")
	ErrLinkEscapes = errors.New("symbolic link leads out of the tree")
)

// ErrChanged is returned by Tree.OpenEntry when the file is no longer the one that was looked up.
var ErrChanged = errors.New("file changed since it was looked up")

func noSuchFile(why error) error { return fmt.Errorf("%w: %w", why, fs.ErrNotExist) }
