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

// packings are the compressions of metadata by how they begin: gzip is RFC 1952, zstd RFC 8878.
var packings = []struct{ name, magic string }{
	{"gz", "\x1f\x8b"}, {"xz", "\xfd7zXZ\x00"}, {"zst", "\x28\xb5\x2f\xfd"}, {"bz2", "BZh"},
}

// packing names the compression of what begins with these bytes; "" is none.
func packing(begin []byte) string {
	for _, p := range packings {
		if bytes.HasPrefix(begin, []byte(p.magic)) {
			return p.name
		}
	}
	return ""
}

// maxWindow bounds what an unpacker looks back on, which it holds in memory: createrepo_c's levels have 8 MiB.
const maxWindow = 32 << 20

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
	var out io.Reader = in
	err = nil
	closer := func() {}
	switch packing(magic) {
	case "gz":
		out, err = gzip.NewReader(in)
	case "xz":
		out, err = xz.ReaderConfig{DictCap: 1 << 20, SingleStream: true}.NewReader(watchDictionaries(in))
	case "zst":
		var d *zstd.Decoder
		if d, err = zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow)); err == nil {
			out, closer = d, d.Close
		}
	case "bz2":
		out = bzip2.NewReader(in)
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
