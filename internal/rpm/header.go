// Package rpm reads what has to be known of RPM packages: the header of a file, and the order of versions.
package rpm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Header is what the header of a package says.
type Header struct {
	Name, Epoch, Version, Release, Arch string // Epoch is "" for none

	Payload  string   // how its files are packed: gzip, bzip2, xz, lzma, zstd
	Features []string // of rpm that it needs: PayloadIsXz, RichDependencies, …
	Signed   bool     // it has a signature, whosever it is
}

// The tags that are read (rpm's lib/rpmtag.h). In the signature's header the same numbers mean other things.
const (
	tagName, tagVersion, tagRelease, tagEpoch = 1000, 1001, 1002, 1003
	tagArch, tagRequireName                   = 1022, 1049
	tagPayloadCompressor                      = 1125
)

// signatureTags are DSA and RSA signatures of the header, then PGP and GPG ones of header and payload.
var signatureTags = []uint32{267, 268, 1002, 1005}

const (
	leadSize = 96
	maxIndex = 1 << 16  // tags of a header; real ones have fewer than 100
	maxStore = 64 << 20 // rpm 4.11 takes no more than 16 MiB, later ones 256
)

// Magic is what every RPM file begins with.
var Magic = []byte{0xed, 0xab, 0xee, 0xdb}

var headerMagic = []byte{0x8e, 0xad, 0xe8, 0x01}

// ReadHeader reads the beginning of an RPM file.
func ReadHeader(r io.Reader) (Header, error) {
	lead := make([]byte, leadSize)
	if _, err := io.ReadFull(r, lead); err != nil || !bytes.HasPrefix(lead, Magic) {
		return Header{}, errors.New("is no RPM package")
	}
	signature, err := readTags(r, true)
	if err != nil {
		return Header{}, fmt.Errorf("its signature's header: %w", err)
	}
	t, err := readTags(r, false)
	if err != nil {
		return Header{}, fmt.Errorf("its header: %w", err)
	}
	h := Header{Name: t.text(tagName), Version: t.text(tagVersion), Release: t.text(tagRelease), Arch: t.text(tagArch),
		Payload: t.text(tagPayloadCompressor), Signed: signature.has(signatureTags...)}
	if n, ok := t.number(tagEpoch); ok {
		h.Epoch = strconv.FormatUint(uint64(n), 10)
	}
	if h.Payload == "" {
		h.Payload = "gzip" // of packages from before there was a choice
	}
	for _, name := range t.texts(tagRequireName) {
		if feature, ok := strings.CutPrefix(name, "rpmlib("); ok {
			h.Features = append(h.Features, strings.TrimSuffix(feature, ")"))
		}
	}
	if h.Name == "" || h.Version == "" || h.Arch == "" {
		return h, errors.New("its header has no name, version or architecture")
	}
	return h, nil
}

// tags is one header: an index, and the store that it points into.
type tags struct {
	index map[uint32]entry
	store []byte
}

type entry struct{ kind, offset, count uint32 }

// The kinds of values.
const (
	kindInt32       = 4
	kindString      = 6
	kindStringArray = 8
	kindI18NString  = 9
)

// readTags reads one header structure; that of the signature is padded to eight bytes.
func readTags(r io.Reader, padded bool) (tags, error) {
	start := make([]byte, 16)
	if _, err := io.ReadFull(r, start); err != nil {
		return tags{}, io.ErrUnexpectedEOF
	}
	if !bytes.HasPrefix(start, headerMagic) {
		return tags{}, errors.New("has no magic number")
	}
	count, size := binary.BigEndian.Uint32(start[8:]), binary.BigEndian.Uint32(start[12:])
	if count > maxIndex || size > maxStore {
		return tags{}, errors.New("is larger than any header is")
	}
	if padded {
		size = (size + 7) &^ 7
	}
	index := make([]byte, 16*count)
	if _, err := io.ReadFull(r, index); err != nil {
		return tags{}, io.ErrUnexpectedEOF
	}
	var store bytes.Buffer
	if n, err := io.CopyN(&store, r, int64(size)); err != nil || n != int64(size) {
		return tags{}, io.ErrUnexpectedEOF
	}
	t := tags{map[uint32]entry{}, store.Bytes()}
	for row := index; len(row) > 0; row = row[16:] {
		t.index[binary.BigEndian.Uint32(row)] = entry{binary.BigEndian.Uint32(row[4:]), binary.BigEndian.Uint32(row[8:]), binary.BigEndian.Uint32(row[12:])}
	}
	return t, nil
}

func (t tags) has(any ...uint32) bool {
	for _, tag := range any {
		if _, ok := t.index[tag]; ok {
			return true
		}
	}
	return false
}

func (t tags) number(tag uint32) (uint32, bool) {
	e, ok := t.index[tag]
	if !ok || e.kind != kindInt32 || uint64(e.offset)+4 > uint64(len(t.store)) {
		return 0, false
	}
	return binary.BigEndian.Uint32(t.store[e.offset:]), true
}

// text is the first text of a tag; "" if there is none.
func (t tags) text(tag uint32) string {
	if list := t.texts(tag); len(list) > 0 {
		return list[0]
	}
	return ""
}

func (t tags) texts(tag uint32) (list []string) {
	e, ok := t.index[tag]
	if !ok || e.kind != kindString && e.kind != kindStringArray && e.kind != kindI18NString || uint64(e.offset) > uint64(len(t.store)) {
		return nil
	}
	rest := t.store[e.offset:]
	for range e.count {
		text, after, ok := bytes.Cut(rest, []byte{0})
		if !ok {
			return list
		}
		list, rest = append(list, string(text)), after
	}
	return list
}
