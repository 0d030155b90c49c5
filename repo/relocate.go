package repo

import (
	"bytes"
	"compress/gzip"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"slices"
)

// maxRelocated bounds primary metadata that is rewritten: it is held in memory. Of those repositories that are like
// that the largest have some MiB.
const maxRelocated = 48 << 20

// relocated is metadata in which packages that are not below the repository have a location there.
type relocated struct {
	repomd  []byte
	name    string // of the primary metadata
	primary []byte // packed
}

func (r *relocated) size() int64 {
	if r == nil {
		return 0
	}
	return int64(len(r.repomd) + len(r.primary))
}

// open is one of the two files.
func (r *relocated) open(name string) ([]byte, bool) {
	switch {
	case r == nil:
		return nil, false
	case name == repomdPath:
		return r.repomd, true
	case name == r.name:
		return r.primary, true
	}
	return nil, false
}

// relocateFrom is relocate for unpacked metadata that is read here.
func relocateFrom(repomd []byte, primary io.Reader, move func(place) bool) (*relocated, error) {
	text, err := io.ReadAll(&limited{primary, maxRelocated})
	if err != nil {
		return nil, err
	}
	return relocate(repomd, text, move)
}

// relocate rewrites the locations that move is true for. primary is unpacked. What a rewritten location would contradict is
// left out: the database of the same matter, which yum prefers, and zchunk's twin; signatures are void.
func relocate(repomd, primary []byte, move func(place) bool) (*relocated, error) {
	moved, err := moveLocations(primary, move)
	if err != nil {
		return nil, err
	}
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	w.Write(moved) // a buffer takes everything
	w.Close()
	r := &relocated{primary: packed.Bytes()}
	sum := sumOf(r.primary)
	r.name = "repodata/" + sum.hex + "-primary.xml.gz"
	entry := fmt.Appendf(nil, `<data type="primary"><checksum type="sha256">%s</checksum><open-checksum type="sha256">%s</open-checksum><location href="%s"/><size>%d</size><open-size>%d</open-size></data>`,
		sum.hex, sumOf(moved).hex, r.name, len(r.primary), len(moved))
	r.repomd, err = replaceData(repomd, entry)
	return r, err
}

// span is one element of a text.
type span struct {
	tag        xml.StartElement
	start, end int64 // of its first tag
}

// elements calls f for every element of the wanted depth (the root's is 1) when it begins, and again, with a tag without a name,
// when it ends.
func elements(text []byte, depth int, f func(span)) error {
	d := xml.NewDecoder(bytes.NewReader(text))
	for level := 0; ; {
		start := d.InputOffset()
		token, err := d.Token()
		if errors.Is(err, io.EOF) && level == 0 {
			return nil
		}
		if err != nil {
			return noEOF(err)
		}
		switch tag := token.(type) {
		case xml.StartElement:
			if level++; level == depth {
				f(span{tag, start, d.InputOffset()})
			}
		case xml.EndElement:
			if level == depth {
				f(span{xml.StartElement{}, start, d.InputOffset()})
			}
			level--
		}
	}
}

// moveLocations writes primary.xml with other locations: all else stays as it is, byte for byte.
func moveLocations(text []byte, move func(place) bool) ([]byte, error) {
	var out bytes.Buffer
	out.Grow(len(text) + len(text)/16)
	copied := int64(0)
	const inPackage = 3 // metadata, package, location
	err := elements(text, inPackage, func(s span) {
		if s.tag.Name.Local != "location" {
			return
		}
		_, at, err := location(s.tag)
		if !errors.Is(err, errElsewhere) || !move(at) {
			return
		}
		out.Write(text[copied:s.start])
		out.WriteString(`<location href="`)
		xml.EscapeText(&out, []byte(at.servedAs()))
		out.WriteByte('"')
		if text[s.end-2] == '/' {
			out.WriteByte('/')
		}
		out.WriteByte('>')
		copied = s.end
	})
	out.Write(text[copied:])
	return out.Bytes(), err
}

// replaceData writes repomd.xml with other primary metadata.
func replaceData(text, primary []byte) ([]byte, error) {
	var out bytes.Buffer
	copied, from, kind := int64(0), int64(0), ""
	const inRoot = 2
	err := elements(text, inRoot, func(s span) {
		if s.tag.Name.Local != "" {
			from, kind = s.start, attribute(s.tag, "type")
			return
		}
		if slices.Contains([]string{"primary", "primary_db", "primary_zck"}, kind) {
			out.Write(text[copied:from])
			if kind == "primary" {
				out.Write(primary)
			}
			copied = s.end
		}
		kind = ""
	})
	out.Write(text[copied:])
	return out.Bytes(), err
}
