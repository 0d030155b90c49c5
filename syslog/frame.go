package syslog

import (
	"bufio"
	"errors"
	"fmt"
	"io"
)

const (
	// maxLine is how much of one message is kept; what is longer is cut, and the rest passed over.
	maxLine = 8 << 10
	// maxTag is how much of the name of what logs is kept: RFC 5424 gives it 48.
	maxTag = 64
	// maxFrame is the longest message that octet counting may announce: more is no length, but noise.
	maxFrame = 1 << 20
)

// errFraming is a stream that is not syslog over TCP.
var errFraming = errors.New("not syslog: a message cannot be so long")

// frames divides a stream into messages. RFC 6587 knows two ways, which senders may even mix: octet counting
// (section 3.4.1: `17 <13>hello world`), and a line end or NUL behind each message (section 3.4.2), which is what
// rsyslog does by default and thus Anaconda. A message begins with "<"; only a number, a blank and "<" are a count.
type frames struct {
	r    *bufio.Reader
	line []byte
	cut  uint64 // messages that were too long
}

func newFrames(r io.Reader) *frames {
	return &frames{r: bufio.NewReaderSize(r, 16<<10), line: make([]byte, 0, maxLine)}
}

// next is the next message, without its frame, valid until the next call. Empty ones are passed over. At the end of
// the stream it is io.EOF; a last line without its end counts.
func (f *frames) next() ([]byte, error) {
	for {
		f.line = f.line[:0]
		n, counted, err := f.count()
		if err != nil {
			return nil, err
		}
		if counted {
			err = f.octets(n)
		} else {
			err = f.untilEnd()
		}
		if len(f.line) > 0 && (err == nil || errors.Is(err, io.EOF)) {
			return f.line, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// count reads the length of a message, if it has one; what it reads of one that has none is kept as its beginning.
func (f *frames) count() (n int, counted bool, err error) {
	for {
		c, err := f.r.ReadByte()
		if err != nil {
			if errors.Is(err, io.EOF) && len(f.line) > 0 {
				return 0, false, nil // untilEnd meets the end, too
			}
			return 0, false, err
		}
		first := len(f.line) == 0
		switch {
		case c >= '0' && c <= '9' && !(first && c == '0') && len(f.line) < 10:
			f.line = append(f.line, c)
			n = n*10 + int(c-'0')
			continue
		case c == ' ' && !first:
			if next, err := f.r.Peek(1); err == nil && next[0] == '<' {
				if n > maxFrame {
					return 0, false, fmt.Errorf("%w: %d octets", errFraming, n)
				}
				f.line = f.line[:0]
				return n, true, nil
			}
			f.line = append(f.line, c) // after Peek it cannot be given back
			return 0, false, nil
		}
		return 0, false, f.r.UnreadByte()
	}
}

// octets reads a message of n octets.
func (f *frames) octets(n int) error {
	keep := min(n, maxLine)
	f.line = f.line[:keep]
	if read, err := io.ReadFull(f.r, f.line); err != nil {
		f.line = f.line[:read]
		return io.EOF
	}
	if n > keep {
		f.cut++
		if _, err := f.r.Discard(n - keep); err != nil {
			return io.EOF
		}
	}
	return nil
}

// untilEnd reads up to the end of a line.
func (f *frames) untilEnd() error {
	long := false
	for {
		c, err := f.r.ReadByte()
		switch {
		case err != nil:
			return err
		case c == '\n' || c == 0:
			return nil
		case len(f.line) < maxLine:
			f.line = append(f.line, c)
		case !long:
			long = true
			f.cut++
		}
	}
}
