package media

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// ChecksumError tells that a file is not the one that its checksum was made of.
type ChecksumError struct {
	Path      string
	Want, Got string // SHA-256, lower-case hexadecimal
}

func (e *ChecksumError) Error() string {
	return fmt.Sprintf("%s: sha256 is %s, not %s", e.Path, e.Got, e.Want)
}

// Verify reads the whole file at path and compares its SHA-256 (FIPS 180-4) with the one given in
// hexadecimal; a difference is a *ChecksumError. Progress, if not nil, is called after every megabyte with
// the bytes read so far and the size of the file. Verify ends early when ctx does, with its error.
func Verify(ctx context.Context, path, sha256hex string, progress func(done, total int64)) error {
	want := strings.ToLower(strings.TrimSpace(sha256hex))
	if sum, err := hex.DecodeString(want); err != nil || len(sum) != sha256.Size {
		return fmt.Errorf("sha256 %q is not %d hexadecimal digits", sha256hex, 2*sha256.Size)
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}

	sum, chunk, done := sha256.New(), make([]byte, 1<<20), int64(0)
	for {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("verify %s: %w", path, err)
		}
		n, err := io.ReadFull(f, chunk)
		sum.Write(chunk[:n])
		done += int64(n)
		if progress != nil && n > 0 {
			progress(done, info.Size())
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != want {
		return &ChecksumError{Path: path, Want: want, Got: got}
	}
	return nil
}
