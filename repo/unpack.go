package repo

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// unpack opens a file of repodata by what it begins with: its name does not always tell. limit is how much
// it may unpack to: a small file can hold terabytes of zeros.
func unpack(r io.Reader, limit int64) (io.ReadCloser, error) {
	if limit <= 0 || limit > maxUnpacked {
		limit = maxUnpacked
	}
	in := bufio.NewReaderSize(r, 64<<10)
	magic, err := in.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	var out io.Reader
	closer := func() {}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}): // RFC 1952
		out, err = gzip.NewReader(in)
	case bytes.HasPrefix(magic, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		out, err = xz.ReaderConfig{DictCap: 64 << 20}.NewReader(in)
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}): // RFC 8878
		var d *zstd.Decoder
		if d, err = zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20)); err == nil {
			out, closer = d, d.Close
		}
	case bytes.HasPrefix(magic, []byte("BZh")):
		out, err = bzip2.NewReader(in), nil
	default:
		out, err = in, nil
	}
	if err != nil {
		return nil, fmt.Errorf("unpack: %w", err)
	}
	return &unpacked{&limited{out, limit}, closer}, nil
}

type unpacked struct {
	io.Reader
	close func()
}

func (u *unpacked) Close() error { u.close(); return nil }

// limited ends what is longer than was said, with an error: io.LimitReader would make it look complete.
type limited struct {
	r    io.Reader
	left int64
}

var errTooLong = errors.New("it is longer than it may be")

func (l *limited) Read(p []byte) (int, error) {
	if l.left < 0 {
		return 0, errTooLong
	}
	n, err := l.r.Read(p[:min(int64(len(p)), l.left+1)])
	if l.left -= int64(n); l.left < 0 {
		return n, errTooLong
	}
	return n, err
}
