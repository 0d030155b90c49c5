package tftp

import (
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"io"

	pin "github.com/pin/tftp/v3"
	"github.com/stretchr/testify/require"
)

// rrq is a read request: name, mode, then options and values.
func rrq(fields ...string) []byte {
	return []byte("\x00\x01" + strings.Join(fields, "\x00") + "\x00")
}

func TestParseRequest(t *testing.T) {
	const limit = 1468
	long := strings.Repeat("n", 64<<10)
	for _, c := range []struct {
		name   string
		packet []byte
		want   request
		code   uint16 // of the ERROR packet; with text
		text   string
		silent bool
	}{
		{name: "plain", packet: rrq("a.efi", "octet"), want: request{"a.efi", "octet", 0, false}},
		{name: "mode in capitals", packet: rrq("a.efi", "OcTeT"), want: request{"a.efi", "octet", 0, false}},
		{name: "netascii stays", packet: rrq("a.cfg", "NETASCII"), want: request{"a.cfg", "netascii", 0, false}},
		{name: "edk2", packet: rrq("a.efi", "octet", "tsize", "0", "blksize", "1468", "windowsize", "4"), want: request{"a.efi", "octet", 1468, true}},
		{name: "options in capitals", packet: rrq("a.efi", "octet", "TSIZE", "0", "BlkSize", "1432"), want: request{"a.efi", "octet", 1432, true}},
		{name: "block lowered", packet: rrq("a", "octet", "blksize", "65464"), want: request{"a", "octet", limit, false}},
		{name: "block that pin would fragment", packet: rrq("a", "octet", "blksize", "1472"), want: request{"a", "octet", limit, false}},
		{name: "block beyond any", packet: rrq("a", "octet", "blksize", "99999999999999999999999"), want: request{"a", "octet", limit, false}},
		{name: "block below pin's least", packet: rrq("a", "octet", "blksize", "256"), want: request{"a", "octet", 0, false}},
		{name: "block 8", packet: rrq("a", "octet", "blksize", "8"), want: request{"a", "octet", 0, false}},
		{name: "block 7", packet: rrq("a", "octet", "blksize", "7"), code: codeOption, text: "blksize 7: the least is 8"},
		{name: "block 0", packet: rrq("a", "octet", "blksize", "0"), want: request{"a", "octet", 0, false}},
		{name: "block negative", packet: rrq("a", "octet", "blksize", "-1468"), want: request{"a", "octet", 0, false}},
		{name: "block garbage", packet: rrq("a", "octet", "blksize", "12x"), want: request{"a", "octet", 0, false}},
		{name: "block empty", packet: rrq("a", "octet", "blksize", ""), want: request{"a", "octet", 0, false}},
		{name: "block with zeros", packet: rrq("a", "octet", "blksize", "01024"), want: request{"a", "octet", 1024, false}},
		{name: "tsize with nonsense", packet: rrq("a", "octet", "tsize", "77"), want: request{"a", "octet", 0, true}},
		{name: "option twice", packet: rrq("a", "octet", "blksize", "1024", "BLKSIZE", "700"), want: request{"a", "octet", 1024, false}},
		{name: "unknown options", packet: rrq("a", "octet", "multicast", "", "timeout", "3", "tsize", "0"), want: request{"a", "octet", 0, true}},
		{name: "option without value", packet: rrq("a", "octet", "tsize"), want: request{"a", "octet", 0, false}},
		{name: "value without end", packet: []byte("\x00\x01a\x00octet\x00blksize\x001024"), want: request{"a", "octet", 0, false}},
		{name: "padded with zeros", packet: append(rrq("a", "octet", "tsize", "0"), make([]byte, 300)...), want: request{"a", "octet", 0, true}},
		{name: "name as it is", packet: rrq(`\..\EFI\host-52:54:00:00:00:80.cfg`, "octet"), want: request{`\..\EFI\host-52:54:00:00:00:80.cfg`, "octet", 0, false}},

		{name: "empty", packet: nil, silent: true},
		{name: "one byte", packet: []byte{0}, silent: true},
		{name: "ERROR", packet: []byte("\x00\x05\x00\x00aborted\x00"), silent: true},
		{name: "opcode alone", packet: []byte{0, 1}, code: codeIllegal, text: "malformed request: the file name has no end"},
		{name: "no name end", packet: []byte("\x00\x01abc"), code: codeIllegal, text: "malformed request: the file name has no end"},
		{name: "no mode", packet: []byte("\x00\x01abc\x00"), code: codeIllegal, text: "malformed request: the mode has no end"},
		{name: "no mode end", packet: []byte("\x00\x01abc\x00octet"), code: codeIllegal, text: "malformed request: the mode has no end"},
		{name: "empty name", packet: rrq("", "octet"), code: codeIllegal, text: "malformed request: no file name"},
		{name: "mail", packet: rrq("a", "mail"), code: codeIllegal, text: `mode "mail" is not served: ask for octet`},
		{name: "empty mode", packet: rrq("a", ""), code: codeIllegal, text: `mode "" is not served: ask for octet`},
		{name: "NUL in the name", packet: rrq("a\x00b", "octet"), code: codeIllegal, text: `mode "b" is not served: ask for octet`},
		{name: "64 KiB name", packet: rrq(long, "octet"), code: codeIllegal, text: "malformed request: 65545 bytes, the most is 512"},
		{name: "a byte too many", packet: rrq(long[:503], "octet", "")[:513], code: codeIllegal, text: "malformed request: 513 bytes, the most is 512"},
		{name: "WRQ", packet: []byte("\x00\x02a\x00octet\x00"), code: codeAccessViolation, text: "access violation: read only"},
		{name: "DATA", packet: []byte("\x00\x03\x00\x01x"), code: codeUnknownTransfer, text: "unknown transfer: this port takes requests only"},
		{name: "ACK", packet: []byte("\x00\x04\x00\x01"), code: codeUnknownTransfer, text: "unknown transfer: this port takes requests only"},
		{name: "OACK", packet: []byte("\x00\x06"), code: codeUnknownTransfer, text: "unknown transfer: this port takes requests only"},
		{name: "opcode 0", packet: []byte("\x00\x00\x00\x00"), code: codeIllegal, text: "illegal operation 0"},
		{name: "opcode 0x0100", packet: []byte("\x01\x00a\x00octet\x00"), code: codeIllegal, text: "illegal operation 256"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := parseRequest(c.packet, func() int { return limit })
			switch {
			case c.silent:
				require.ErrorIs(t, err, errSilent)
			case c.text != "":
				var reply *protocolError
				require.ErrorAs(t, err, &reply)
				require.Equal(t, c.text, reply.text)
				require.Equal(t, c.code, reply.code)
			default:
				require.NoError(t, err)
				require.Equal(t, c.want, got)
			}
		})
	}
}

func TestRequestPacket(t *testing.T) {
	require.Equal(t, rrq("a.efi", "octet", "blksize", "1468", "tsize", "0"), request{"a.efi", "octet", 1468, true}.packet())
	require.Equal(t, rrq("a.efi", "netascii"), request{"a.efi", "netascii", 0, false}.packet())
}

func TestErrorPacket(t *testing.T) {
	require.Equal(t, []byte("\x00\x05\x00\x02no\x00"), (&protocolError{codeAccessViolation, "no", endRefused}).packet())
	require.Equal(t, []byte("\x00\x05\x00\x01?a b?\x00"), (&protocolError{codeNotFound, "\x1ba\nb\u00e4", endNotFound}).packet())
	require.LessOrEqual(t, len((&protocolError{codeNotFound, strings.Repeat("x", 999), endNotFound}).packet()), 4+maxErrorText+1)
}

// pipe is the port of a pin/tftp that packets are put into by hand.
type pipe struct {
	net.PacketConn // nil: what is not overwritten is not called
	packets        chan []byte
}

func (p *pipe) LocalAddr() net.Addr { return &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 69} }
func (p *pipe) Close() error        { return nil }
func (p *pipe) ReadFrom(b []byte) (int, net.Addr, error) {
	packet, ok := <-p.packets
	if !ok {
		return 0, nil, net.ErrClosed
	}
	return copy(b, packet), &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9}, nil
}

// FuzzRequest feeds packets of the wire to the parser: it never panics, and what comes out is an ERROR packet
// or a request that pin/tftp begins a transfer with, for the same file.
func FuzzRequest(f *testing.F) {
	for _, seed := range [][]byte{
		nil, {0}, {0, 1}, rrq("snponly.efi", "octet", "tsize", "0", "blksize", "1468", "windowsize", "4"),
		rrq(`..\..\etc\passwd`, "NetASCII", "BLKSIZE", "0"), rrq("a", "mail"), {0, 2, 'a', 0}, {0, 4, 0, 1}, {0, 5, 0, 0, 0},
		rrq(strings.Repeat("n", 600), "octet"), rrq("a", "octet", "blksize", "7"), []byte("\x00\x01a\x00octet\x00blksize\x00512"),
		append(rrq("a", "octet"), make([]byte, 64)...),
	} {
		f.Add(seed, 1468)
	}
	names := make(chan string, 1)
	port := &pipe{packets: make(chan []byte)}
	library := pin.NewServer(func(name string, _ io.ReaderFrom) error {
		names <- name
		return errors.New("none")
	}, nil)
	go library.Serve(port)
	f.Cleanup(func() {
		close(port.packets)
		library.Shutdown()
	})
	f.Fuzz(func(t *testing.T, packet []byte, limit int) {
		limit = max(defaultBlock, min(limit, maxBlock))
		r, err := parseRequest(packet, func() int { return limit })
		var reply *protocolError
		switch {
		case errors.As(err, &reply):
			p := reply.packet()
			require.Equal(t, []byte{0, opERROR}, p[:2])
			require.LessOrEqual(t, len(p), 516)
			require.Equal(t, len(p)-1, strings.IndexByte(string(p[4:]), 0)+4)
			require.Contains(t, endings, reply.ending)
			return
		case err != nil:
			require.ErrorIs(t, err, errSilent)
			return
		}
		require.True(t, r.block == 0 || r.block >= defaultBlock && r.block <= limit, "block %d", r.block)
		p := r.packet()
		require.LessOrEqual(t, len(p), 516, "pin/tftp would cut it")
		again, err := parseRequest(p, func() int { return limit })
		require.NoError(t, err)
		require.Equal(t, r, again)
		port.packets <- p
		select {
		case name := <-names:
			require.Equal(t, r.name, name)
		case <-time.After(5 * time.Second):
			t.Fatalf("pin/tftp does not take %q", p)
		}
	})
}
