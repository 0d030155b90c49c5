package tftp

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"rackstrap/bootplan"
)

// readAhead is how much of a file is read at once: a block at a time would be a system call at a time.
const readAhead = 64 << 10

// content is a file on its way out. It ends after Size bytes; a file that ends before is a fault, for pin/tftp
// would send what there is as if it were the whole.
type content struct {
	file    io.Reader // with a buffer once the client is there
	there   bool      // it has acknowledged the options or the first block: the address was not made up
	options bool      // are acknowledged before the first Read
	left    int64
	t       *transfer
	now     func() time.Time
	each    func() // before each block
	sent    int64  // bytes handed to pin/tftp: all but the last block are acknowledged
	fault   error  // why the file could not be read
}

func newContent(f *bootplan.File, t *transfer, now func() time.Time, each func()) *content {
	return &content{file: f, options: t.acknowledgesOptions(f.Size), left: f.Size, t: t, now: now, each: each}
}

// Read is called for each block, when the options or the block before are acknowledged. Until then there is nothing but
// the first block without options to send, which is read alone.
func (c *content) Read(p []byte) (int, error) {
	switch {
	case c.there:
		c.t.alive(c.now())
	case c.options || c.sent >= defaultBlock:
		c.there = true
		c.t.alive(c.now())
		c.file = bufio.NewReaderSize(c.file, int(min(c.left, readAhead)))
	default:
		p = p[:min(len(p), defaultBlock-int(c.sent))]
	}
	c.each()
	if c.fault != nil {
		return 0, c.fault
	}
	if c.left == 0 {
		return 0, io.EOF
	}
	n, err := c.file.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	c.sent += int64(n)
	if err == nil || n > 0 {
		return n, nil // an error comes again
	}
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("the file ends %d bytes early", c.left)
	}
	// Never as it is: io.ErrUnexpectedEOF would mean a short last block to pin/tftp. The client is told here,
	// for pin/tftp would send it the text of the error, with code 1.
	c.fault = fmt.Errorf("read %s: %v", c.t.name, err)
	c.t.end(errFault)
	return 0, c.fault
}

// result tells how a transfer ended, from pin/tftp's error. What firmware normally does has an ending of its
// own: UEFI asks for the size and aborts [seen: code 8, "User aborted the transfer"], then asks again.
func (c *content) result(err error) result {
	r := result{bytes: c.sent, err: err}
	ended := c.t.endedBy()
	var network net.Error
	switch {
	case c.fault != nil:
		r.ending, r.err = endFault, c.fault
	case err == nil:
		r.ending = endDone
	case ended != nil:
		r.ending, r.told = ended.ending, ended.text
		if ended == errSilentFirst {
			r.err = ended
		}
	case errors.As(err, &network) && network.Timeout():
		r.ending = endTimeout
	case network != nil && !errors.Is(err, syscall.ECONNREFUSED): // that is a client whose port is closed
		r.ending = endNetwork
	case c.t.tsize && c.sent <= int64(c.t.blockSize()):
		r.ending = endSizeProbe
	default: // by an ERROR packet, for which pin/tftp has no type, or without one
		r.ending = endAborted
	}
	return r
}
