package media

import (
	"errors"
	"fmt"
	"time"
)

// File flags of a directory record, ECMA-119 9.1.6.
const (
	flagDirectory   = 1 << 1
	flagAssociated  = 1 << 2 // a resource fork beside the file of the same name
	flagMultiExtent = 1 << 7 // not the last section of this file
)

// The identifiers of a directory itself and of its parent, ECMA-119 7.6.2.
const (
	identSelf   = "\x00"
	identParent = "\x01"
)

// span is a byte range of the image.
type span struct{ off, length int64 }

// record is one directory record (ECMA-119 9.1). Its slices alias the directory's bytes.
type record struct {
	at        int64 // offset in the image
	content   span
	recorded  time.Time
	flags     byte
	ident     []byte
	systemUse []byte // ECMA-119 9.1.13: where Rock Ridge lives

	systemUseAt int // offset of systemUse in the record
}

func (r *record) isDir() bool { return r.flags&flagDirectory != 0 }

// parseRecord reads the directory record that fills b, found at the given offset of the image. Whether its
// extent lies inside the image is for the caller to check.
func parseRecord(b []byte, at, blockSize int64) (record, error) {
	const fixed = 33 // bytes before the identifier
	if len(b) <= fixed || int(b[0]) != len(b) {
		return record{}, corrupt(at, "a directory record of %d bytes", len(b))
	}
	identEnd := fixed + int(b[32])
	if b[32] == 0 || identEnd > len(b) {
		return record{}, corrupt(at, "an identifier of %d bytes in a directory record of %d", b[32], len(b))
	}
	block, err := both32(b[2:10], at+2, "location of extent")
	if err != nil {
		return record{}, err
	}
	length, err := both32(b[10:18], at+10, "data length")
	if err != nil {
		return record{}, err
	}
	if b[26] != 0 || b[27] != 0 {
		return record{}, fmt.Errorf("interleaved file at byte %d: %w", at, errors.ErrUnsupported)
	}
	systemUse := identEnd
	if b[32]%2 == 0 { // ECMA-119 9.1.12: padded to an even length
		systemUse = min(identEnd+1, len(b))
	}
	return record{
		at: at,
		// An extended attribute record (ECMA-119 9.5), if any, comes before the data.
		content:   span{(int64(block) + int64(b[1])) * blockSize, int64(length)},
		recorded:  shortTime(b[18:25]),
		flags:     b[25],
		ident:     b[fixed:identEnd],
		systemUse: b[systemUse:],

		systemUseAt: systemUse,
	}, nil
}
