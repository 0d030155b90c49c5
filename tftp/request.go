package tftp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"rackstrap/internal/plain"
)

// The opcodes of RFC 1350 section 5 and of RFC 2347.
const (
	opRRQ   = 1
	opWRQ   = 2
	opDATA  = 3
	opACK   = 4
	opERROR = 5
	opOACK  = 6
)

// The error codes that are sent (RFC 1350 appendix I, RFC 2347).
const (
	codeUndefined       = 0 // the text says it: busy, or a fault of the appliance
	codeNotFound        = 1
	codeAccessViolation = 2
	codeIllegal         = 4
	codeUnknownTransfer = 5
	codeOption          = 8 // an option cannot be agreed on
)

// protocolError is what a client is told with an ERROR packet: its text goes on the wire.
type protocolError struct {
	code   uint16
	text   string
	ending ending // what it means to us
}

func (e *protocolError) Error() string { return e.text }

func malformed(code uint16, format string, args ...any) *protocolError {
	return &protocolError{code, fmt.Sprintf(format, args...), endMalformed}
}

// maxErrorText keeps an ERROR packet within the 516 bytes that every client can take, and on one screen.
const maxErrorText = 200

// packet is the ERROR packet: printable ASCII, for it ends on the screens of firmware.
func (e *protocolError) packet() []byte {
	text := plain.ASCII(e.text, maxErrorText)
	p := make([]byte, 4, 4+maxErrorText+1)
	binary.BigEndian.PutUint16(p, opERROR)
	binary.BigEndian.PutUint16(p[2:], e.code)
	return append(append(p, text...), 0)
}

// errSilent is a packet that gets no answer.
var errSilent = errors.New("not answered")

const (
	// maxRequest is the most that a request may have (RFC 2347, "Packet Formats").
	maxRequest = 512
	// defaultBlock is the block size without an option (RFC 1350), and the least that pin/tftp agrees to.
	defaultBlock = 512
	// minBlock and maxBlock are the bounds of the option (RFC 2348).
	minBlock, maxBlock = 8, 65464
)

// request is a read request in its normal form.
type request struct {
	name  string // as asked for: Files cleans it
	mode  string // octet or netascii
	block int    // the block size to agree to; 0: the client asked for none that can be agreed to
	tsize bool   // the client asks how long the file is (RFC 2349)
}

// parseRequest reads a packet that came to the well-known port, as liberally as is safe: modes and option
// names in any case (RFC 1350, RFC 2347), a block size beyond the limit (which is asked for if it matters) is lowered to it, options that are
// unknown or make no sense are left out, as RFC 2347 wants. The error is a *protocolError, or errSilent.
//
// A block size of 8 to 511 is left out, too, which means 512: pin/tftp has no smaller blocks, and an OACK
// with more than what was asked for is forbidden (RFC 2348).
//
// netascii stays what it is, and is translated: a client that asked for it translates back, so that only
// then what it writes down is the file. tftp-hpa asks for it by default.
func parseRequest(packet []byte, limit func() int) (request, error) {
	if len(packet) < 2 {
		return request{}, errSilent
	}
	switch op := binary.BigEndian.Uint16(packet); op {
	case opRRQ:
	case opWRQ:
		return request{}, &protocolError{codeAccessViolation, "access violation: read only", endRefused}
	case opERROR:
		return request{}, errSilent // an ERROR is never answered (RFC 1350 section 7)
	case opDATA, opACK, opOACK:
		return request{}, malformed(codeUnknownTransfer, "unknown transfer: this port takes requests only")
	default:
		return request{}, malformed(codeIllegal, "illegal operation %d", op)
	}
	if len(packet) > maxRequest {
		return request{}, malformed(codeIllegal, "malformed request: %d bytes, the most is %d", len(packet), maxRequest)
	}
	name, rest, ok := cutString(packet[2:])
	if !ok {
		return request{}, malformed(codeIllegal, "malformed request: the file name has no end")
	}
	if name == "" {
		return request{}, malformed(codeIllegal, "malformed request: no file name")
	}
	mode, rest, ok := cutString(rest)
	if !ok {
		return request{}, malformed(codeIllegal, "malformed request: the mode has no end")
	}
	r := request{name: name, mode: strings.ToLower(mode)}
	if r.mode != "octet" && r.mode != "netascii" {
		return request{}, malformed(codeIllegal, "mode %q is not served: ask for octet", mode)
	}
	if err := r.readOptions(rest, limit); err != nil {
		return request{}, err
	}
	return r, nil
}

// readOptions reads the options of RFC 2347. One that comes twice counts once, the first time; one without
// a value is not there: some ROMs fill the packet up with zeros.
func (r *request) readOptions(rest []byte, limit func() int) error {
	seen := map[string]bool{}
	for {
		option, more, ok := cutString(rest)
		if !ok {
			return nil
		}
		value, more, ok := cutString(more)
		if !ok {
			return nil
		}
		rest = more
		option = strings.ToLower(option)
		if seen[option] {
			continue
		}
		seen[option] = true
		switch option {
		case "blksize":
			size, ok := number(value)
			switch {
			case !ok || size == 0: // left out
			case size < minBlock:
				return malformed(codeOption, "blksize %d: the least is %d", size, minBlock)
			case size >= defaultBlock:
				r.block = min(size, limit())
			}
		case "tsize":
			r.tsize = true
		}
	}
}

// number reads decimal digits; what is longer than any sensible number is the largest block size.
func number(s string) (n int, ok bool) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.Atoi(s)
	if err != nil || n > maxBlock {
		return maxBlock, true
	}
	return n, true
}

// cutString takes a string that ends with NUL off b.
func cutString(b []byte) (s string, rest []byte, ok bool) {
	text, rest, ok := bytes.Cut(b, []byte{0})
	return string(text), rest, ok
}

// packet is the request as pin/tftp understands it.
func (r request) packet() []byte {
	p := append([]byte{0, opRRQ}, r.name...)
	p = append(append(append(p, 0), r.mode...), 0)
	if r.block != 0 {
		p = append(append(append(p, "blksize\x00"...), strconv.Itoa(r.block)...), 0)
	}
	if r.tsize {
		p = append(p, "tsize\x000\x00"...)
	}
	return p
}

// acknowledgesOptions tells whether pin/tftp begins with an OACK, which the client acknowledges before the first block:
// it leaves tsize out where the size is not known (netascii) or 0.
func (r request) acknowledgesOptions(size int64) bool {
	return r.block != 0 || r.tsize && r.mode == "octet" && size > 0
}

// blockSize is the size of the blocks that will be sent, in bytes.
func (r request) blockSize() int {
	if r.block == 0 {
		return defaultBlock
	}
	return r.block
}
