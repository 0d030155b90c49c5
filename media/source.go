package media

import (
	"errors"
	"fmt"
	"io"
)

// source is the image while it is being indexed: every read is checked against the end of the image and
// against a budget, so that a hostile image (the same megabytes referenced from a million places) costs no
// more than an honest one.
type source struct {
	r      io.ReaderAt
	size   int64
	budget int64
}

func newSource(r io.ReaderAt, size int64) *source {
	// No honest image has more metadata than bytes; twice, because a few sectors are read twice.
	return &source{r: r, size: size, budget: min(maxMetadata, 2*size)}
}

// read fills p from the image at off. What says what is being read, for the error.
func (s *source) read(p []byte, off int64, what string) error {
	if !s.contains(off, int64(len(p))) {
		return corrupt(off, "%s lies outside the image of %d bytes", what, s.size)
	}
	if s.budget -= int64(len(p)); s.budget < 0 {
		return corrupt(off, "%s: directories and continuation areas add up to more than an image can have", what)
	}
	n, err := s.r.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case errors.Is(err, io.EOF):
		return corrupt(off+int64(n), "%s: the image ends here, not at byte %d", what, s.size)
	default:
		return fmt.Errorf("read %s at byte %d: %w", what, off, err)
	}
}

// contains says whether length bytes from off on lie inside the image.
func (s *source) contains(off, length int64) bool {
	return off >= 0 && length >= 0 && off <= s.size && length <= s.size-off
}
