package repo

import (
	"encoding/binary"
	"errors"
	"io"
)

// dictionaries passes xz on, and ends it with an error where a block wants a larger dictionary than maxWindow: the decoder
// allocates whatever a header says, four GiB from a file of a hundred bytes. It follows the blocks and the chunks of LZMA2
// in them (The .xz File Format 1.1.0, sections 2.1 and 3.1; LZMA2's chunks as in XZ Embedded, xz_dec_lzma2.c).
type dictionaries struct {
	r     io.Reader
	err   error
	skip  int64 // bytes that pass before the next header
	need  int   // length of the header
	head  []byte
	next  func(head []byte) error // what it means; it sets the four of these
	check int64                   // bytes behind each block
	block int64                   // bytes of this one so far
}

func watchDictionaries(r io.Reader) *dictionaries {
	d := &dictionaries{r: r}
	d.expect(0, 12, d.stream)
	return d
}

func (d *dictionaries) expect(skip int64, need int, next func([]byte) error) {
	d.skip, d.need, d.head, d.next = skip, need, d.head[:0], next
}

func (d *dictionaries) Read(p []byte) (int, error) {
	if d.err != nil {
		return 0, d.err
	}
	n, err := d.r.Read(p)
	if d.err = d.follow(p[:n]); d.err != nil {
		return 0, d.err
	}
	return n, err
}

func (d *dictionaries) follow(p []byte) error {
	for len(p) > 0 && d.next != nil {
		passed := min(d.skip, int64(len(p)))
		d.skip, p = d.skip-passed, p[passed:]
		taken := min(d.need-len(d.head), len(p))
		d.head, p = append(d.head, p[:taken]...), p[taken:]
		if d.skip == 0 && len(d.head) == d.need {
			if err := d.next(d.head); err != nil {
				return err
			}
		}
	}
	return nil
}

// stream is the header of the file, with the kind of the blocks' checks.
func (d *dictionaries) stream(head []byte) error {
	d.check = []int64{0, 4, 4, 4, 8, 8, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64}[head[7]&0xf]
	d.expect(0, 1, d.begin)
	return nil
}

// begin is the length of a block's header; 0 is the index behind all blocks.
func (d *dictionaries) begin(head []byte) error {
	if head[0] == 0 {
		d.next = nil
		return nil
	}
	d.expect(0, (int(head[0])+1)*4-1, d.header)
	return nil
}

var errDictionary = errors.New("its compression needs too much memory")

func (d *dictionaries) header(head []byte) error {
	const packedSize, size, lzma2 = 0x40, 0x80, 0x21
	flags, rest := head[0], head[1:]
	for _, there := range []byte{packedSize, size} {
		if flags&there != 0 {
			_, n := binary.Uvarint(rest)
			rest = rest[max(0, n):]
		}
	}
	if flags&3 != 0 || len(rest) < 3 || rest[0] != lzma2 || rest[1] != 1 { // one filter: the decoder knows no other
		return errors.New("it is compressed in a way that is not known")
	}
	if bits := rest[2]; bits > 40 || (2|int64(bits&1))<<(bits/2+11) > maxWindow {
		return errDictionary
	}
	d.block = 0
	d.expect(0, 1, d.chunk)
	return nil
}

// chunk is the first byte of one.
func (d *dictionaries) chunk(head []byte) error {
	d.block++
	switch kind := head[0]; {
	case kind == 0: // the end; padding to four bytes follows
		d.expect(-d.block&3+d.check, 1, d.begin)
	case kind <= 2: // as it is
		d.expect(0, 2, func(head []byte) error { return d.content(2, head) })
	case kind >= 0xc0: // with properties
		d.expect(2, 3, func(head []byte) error { return d.content(5, head) })
	case kind >= 0x80:
		d.expect(2, 2, func(head []byte) error { return d.content(4, head) })
	default:
		return errors.New("it is no xz")
	}
	return nil
}

// content passes over what a chunk's header of so many further bytes, which ends in head, announces.
func (d *dictionaries) content(header int64, head []byte) error {
	n := int64(binary.BigEndian.Uint16(head)) + 1
	d.block += header + n
	d.expect(n, 1, d.chunk)
	return nil
}
