package tftp

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	pin "github.com/pin/tftp/v3"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"rackstrap/bootplan"
	"rackstrap/internal/places"
	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

var macNode = inventory.MAC{0x52, 0x54, 0, 0, 0, 0x81}

// rack is a Rack that remembers.
type rack struct {
	mu     sync.Mutex
	events []lifecycle.Event
}

func (r *rack) Observe(e lifecycle.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
}

func (r *rack) MACByIP(netip.Addr) (inventory.MAC, bool) { return macNode, true }

func (r *rack) ListedAddress(a netip.Addr) bool { return !strangers.Contains(a) }

// strangers are the addresses of no machine of the list.
var strangers = netip.MustParsePrefix("127.0.9.0/24")

// ofKind waits for an event of that kind and returns all of them.
func (r *rack) ofKind(t *testing.T, kind string) (found []lifecycle.Event) {
	t.Helper()
	require.Eventually(t, func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		found = nil
		for _, e := range r.events {
			if e.Kind == kind {
				found = append(found, e)
			}
		}
		return len(found) > 0
	}, 20*time.Second, time.Millisecond, "no event %q", kind)
	return found
}

// files are Files in memory; an error in place of the content is what opening it ends with.
type files map[string]any

func (f files) Open(name string, _ netip.Addr) (*bootplan.File, error) {
	name, err := bootplan.Clean(name)
	if err != nil {
		return nil, err
	}
	switch content := f[name].(type) {
	case error:
		return nil, content
	case []byte:
		return &bootplan.File{ReadSeekCloser: nopCloser{bytes.NewReader(content)}, Name: name, Size: int64(len(content))}, nil
	case *bootplan.File:
		return content, nil
	}
	return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
}

type nopCloser struct{ io.ReadSeeker }

func (nopCloser) Close() error { return nil }

// tried is a server under test.
type tried struct {
	*Server
	rack    *rack
	metrics *prometheus.Registry
	log     *bytes.Buffer // read it after stop
	stop    func()
}

// quick is a pace for tests.
var quick = pace{timeout: 50 * time.Millisecond, retries: 3, first: 3, strange: 2, grace: 200 * time.Millisecond}

func try(t *testing.T, f Files, edit ...func(*Options, *pace)) *tried {
	t.Helper()
	s := &tried{rack: &rack{}, metrics: prometheus.NewPedanticRegistry(), log: &bytes.Buffer{}}
	o := Options{Rack: s.rack, Files: f, Log: slog.New(slog.NewTextHandler(s.log, nil)), Now: time.Now,
		Metrics: s.metrics, Address: netip.MustParseAddr("127.0.0.1")}
	p := quick
	for _, e := range edit {
		e(&o, &p)
	}
	var err error
	s.Server, err = listen(o, p)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	s.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			require.NoError(t, err)
		case <-time.After(20 * time.Second):
			t.Error("the server does not end")
		}
	})
	t.Cleanup(s.stop)
	return s
}

func (s *tried) count(result ending) int {
	return int(testutil.ToFloat64(s.Server.metrics.transfers.WithLabelValues(string(result))))
}

// client is a TFTP client with nothing automatic about it.
type client struct {
	t *testing.T
	*net.UDPConn
	server netip.AddrPort
}

func (s *tried) client(t *testing.T) *client {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return &client{t, conn, s.Addr().(*net.UDPAddr).AddrPort()}
}

func (c *client) ask(packet []byte) {
	c.t.Helper()
	_, err := c.WriteToUDPAddrPort(packet, c.server)
	require.NoError(c.t, err)
}

// receive waits for a packet.
func (c *client) receive() (packet []byte, from netip.AddrPort) {
	c.t.Helper()
	packet, from, ok := c.receiveWithin(20 * time.Second)
	require.True(c.t, ok, "no answer")
	return packet, from
}

func (c *client) receiveWithin(d time.Duration) (packet []byte, from netip.AddrPort, ok bool) {
	buf := make([]byte, 1<<16)
	c.SetReadDeadline(time.Now().Add(d))
	n, from, err := c.ReadFromUDPAddrPort(buf)
	return buf[:n], from, err == nil
}

func (c *client) ack(block uint16, to netip.AddrPort) {
	c.t.Helper()
	_, err := c.WriteToUDPAddrPort(binary.BigEndian.AppendUint16([]byte{0, opACK}, block), to)
	require.NoError(c.t, err)
}

// silence makes sure that nothing comes.
func (c *client) silence(d time.Duration) {
	c.t.Helper()
	p, _, ok := c.receiveWithin(d)
	require.False(c.t, ok, "unexpected packet %q", p)
}

// fetch takes a file, losing the given share of packets in either direction.
func (c *client) fetch(request []byte, loss float64) (content []byte, oack string, refusal *protocolError) {
	c.t.Helper()
	lost := func() bool { return rand.Float64() < loss }
	block, want := 512, uint16(1)
	c.ask(request)
	deadline := time.Now().Add(20 * time.Second)
	for time.Now().Before(deadline) {
		p, from, ok := c.receiveWithin(time.Second)
		if !ok && want == 1 {
			c.ask(request)
			continue
		}
		require.True(c.t, ok, "no block %d", want)
		if lost() {
			continue
		}
		require.GreaterOrEqual(c.t, len(p), 4)
		switch p[1] {
		case opERROR:
			return nil, "", &protocolError{code: binary.BigEndian.Uint16(p[2:]), text: strings.TrimSuffix(string(p[4:]), "\x00")}
		case opOACK:
			oack = string(p[2:])
			fields := strings.Split(oack, "\x00")
			for i := 0; i+1 < len(fields); i += 2 {
				if fields[i] == "blksize" {
					n, err := strconv.Atoi(fields[i+1])
					require.NoError(c.t, err)
					block = n
				}
			}
			if !lost() {
				c.ack(0, from)
			}
		case opDATA:
			n := binary.BigEndian.Uint16(p[2:])
			if n == want {
				content = append(content, p[4:]...)
				want++
			}
			last := n == want-1 && len(p)-4 < block
			if last || !lost() {
				c.ack(n, from)
			}
			if last {
				return content, oack, nil
			}
		default:
			c.t.Fatalf("opcode %d", p[1])
		}
	}
	c.t.Fatal("too slow")
	return nil, "", nil
}

func noise(n int) []byte {
	b := make([]byte, n)
	source := rand.NewChaCha8([32]byte{byte(n)})
	source.Read(b)
	return b
}

func TestFetch(t *testing.T) {
	const loopbackLimit = maxBlock // of an MTU of 65536
	f := files{"empty": []byte{}}
	for _, n := range []int{1, 511, 512, 513, 1024, 1468 * 3, 1468*3 + 1, 100_000} {
		f[strconv.Itoa(n)] = noise(n)
	}
	s := try(t, f)
	for name, content := range f {
		size := strconv.Itoa(len(content.([]byte)))
		for _, c := range []struct {
			name    string
			options []string
			oack    map[string]string
		}{
			{"no options", nil, nil},
			{"blksize", []string{"blksize", "1468"}, map[string]string{"blksize": "1468"}},
			{"capitals", []string{"BLKSIZE", "1024", "TSIZE", "0"}, map[string]string{"blksize": "1024", "tsize": size}},
			{"lowered", []string{"blksize", "99999"}, map[string]string{"blksize": strconv.Itoa(loopbackLimit)}},
			{"too small to agree", []string{"blksize", "100"}, nil},
			{"nonsense", []string{"blksize", "x", "multicast", ""}, nil},
		} {
			t.Run(name+" "+c.name, func(t *testing.T) {
				got, oack, refusal := s.client(t).fetch(rrq(append([]string{name, "octet"}, c.options...)...), 0)
				require.Nil(t, refusal)
				require.True(t, bytes.Equal(content.([]byte), got), "%d bytes instead of %s", len(got), size)
				agreed := map[string]string{}
				fields := strings.Split(oack, "\x00")
				for i := 0; i+1 < len(fields); i += 2 {
					agreed[fields[i]] = fields[i+1]
				}
				if size == "0" { // pin/tftp leaves a size of 0 out, as a server may
					delete(c.oack, "tsize")
				}
				require.Len(t, agreed, len(c.oack))
				for option, value := range c.oack {
					require.Equal(t, value, agreed[option])
				}
			})
		}
	}
	e := s.rack.ofKind(t, "loader")
	require.Equal(t, macNode, e[0].MAC)
	require.Equal(t, "tftp", e[0].Source)
	require.Regexp(t, `^\w+: \d+ bytes, blksize \d+, [\d.]+m?s, [\d.]+ MB/s \(127\.0\.0\.1\)$`, e[0].Text)
}

func TestNetascii(t *testing.T) {
	s := try(t, files{"a": []byte("set root\nend\r")})
	got, oack, _ := s.client(t).fetch(rrq("a", "NetASCII", "tsize", "0"), 0)
	require.Equal(t, "set root\r\nend\r\x00", string(got))
	require.Empty(t, oack, "the size on the wire is another")
}

// TestLoss loses every tenth packet in each direction.
func TestLoss(t *testing.T) {
	content := noise(300_000)
	s := try(t, files{"a": content}, func(_ *Options, p *pace) { p.timeout, p.retries = 10*time.Millisecond, 30 })
	got, _, _ := s.client(t).fetch(rrq("a", "octet", "blksize", "1468"), 0.1)
	require.True(t, bytes.Equal(content, got))
}

// TestRefusals: what a client is told, by code and text, and what the timeline says.
func TestRefusals(t *testing.T) {
	secret := errors.New("open /srv/secret/path: input/output error")
	s := try(t, files{
		"skip.efi":  &bootplan.Refusal{Reason: "knode1 is ready: it boots its disk without a loader (local_boot: skip)"},
		"fault.efi": fmt.Errorf("read: %w", secret),
	})
	for _, c := range []struct {
		packet []byte
		code   uint16
		text   string
		kind   string
		level  lifecycle.Level
	}{
		{rrq("skip.efi", "octet"), codeAccessViolation, "this file is not for you: the appliance's events say why", "refused", lifecycle.Warn},
		{rrq("grub/x86_64-efi/fs.lst", "octet"), codeNotFound, "file not found: grub/x86_64-efi/fs.lst", "not-found", lifecycle.Info},
		{rrq("fault.efi", "octet", "tsize", "0"), codeUndefined, "appliance fault, see its log", "failed", lifecycle.Alarm},
		{rrq("../etc/passwd", "octet"), codeAccessViolation, "access violation: not a file name: ../etc/passwd", "refused", lifecycle.Warn},
		{rrq(`\..\..\etc\passwd`, "octet"), codeAccessViolation, `access violation: not a file name: \..\..\etc\passwd`, "refused", lifecycle.Warn},
		{rrq("/", "octet"), codeAccessViolation, "access violation: not a file name: /", "refused", lifecycle.Warn},
		{rrq("a\x1b[2J", "octet"), codeNotFound, "file not found: a?[2J", "not-found", lifecycle.Info},
		{rrq("a", "mail"), codeIllegal, `mode "mail" is not served: ask for octet`, "refused", lifecycle.Warn},
		{rrq("a", "octet", "blksize", "7"), codeOption, "blksize 7: the least is 8", "refused", lifecycle.Warn},
		{rrq(strings.Repeat("n", 60<<10), "octet"), codeIllegal, "malformed request: 61449 bytes, the most is 512", "refused", lifecycle.Warn},
		{[]byte("\x00\x02a\x00octet\x00"), codeAccessViolation, "access violation: read only", "refused", lifecycle.Warn},
		{[]byte("\x00\x04\x00\x01"), codeUnknownTransfer, "unknown transfer: this port takes requests only", "refused", lifecycle.Warn},
	} {
		t.Run(c.text, func(t *testing.T) {
			s.rack.mu.Lock()
			s.rack.events = nil
			s.rack.mu.Unlock()
			s.throttle.mu.Lock()
			clear(s.throttle.said)
			s.throttle.mu.Unlock()
			client := s.client(t)
			client.ask(c.packet)
			p, _ := client.receive()
			require.Equal(t, (&protocolError{code: c.code, text: c.text}).packet(), p)
			client.silence(5 * time.Millisecond)
			e := s.rack.ofKind(t, c.kind)
			require.Len(t, e, 1)
			require.Equal(t, c.level, e[0].Level)
			require.NotContains(t, e[0].Text, "secret")
			if strings.HasPrefix(c.text, "this file") {
				require.Contains(t, e[0].Text, "knode1 is ready: it boots its disk without a loader (local_boot: skip)", "the operator learns why")
			}
		})
	}
	t.Run("no answer", func(t *testing.T) {
		client := s.client(t)
		client.ask([]byte("\x00\x05\x00\x00x\x00"))
		client.ask([]byte{0})
		client.silence(50 * time.Millisecond)
	})
	require.Zero(t, testutil.ToFloat64(s.Server.metrics.active))
	s.stop()
	require.Contains(t, s.log.String(), secret.Error(), "the detail is in the log")
}

// TestFaultMidway: a medium that breaks ends in code 0 and the fixed text, never in a short last block.
func TestFaultMidway(t *testing.T) {
	broken := func(size int64, after int, err error) *bootplan.File {
		r := io.MultiReader(bytes.NewReader(noise(after)), errReader{err})
		return &bootplan.File{ReadSeekCloser: struct {
			io.Reader
			io.Seeker
			io.Closer
		}{r, nil, nopCloser{}}, Name: "f", Size: size}
	}
	for name, file := range map[string]*bootplan.File{
		"read error":       broken(9000, 5000, errors.New("secret: input/output error")),
		"truncated":        broken(9000, 5000, io.EOF),
		"unexpected EOF":   broken(9000, 5000, io.ErrUnexpectedEOF),
		"at a block's end": broken(9000, 5120, io.ErrUnexpectedEOF),
	} {
		t.Run(name, func(t *testing.T) {
			s := try(t, files{"f": file})
			_, _, refusal := s.client(t).fetch(rrq("f", "octet"), 0)
			require.Equal(t, &protocolError{code: codeUndefined, text: "appliance fault, see its log"}, refusal)
			e := s.rack.ofKind(t, "failed")
			require.Equal(t, lifecycle.Alarm, e[0].Level)
			require.Equal(t, 1, s.count(endFault))
		})
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

// TestSizeProbe is what edk2 does: it asks for the size, aborts, and asks again from another port.
func TestSizeProbe(t *testing.T) {
	content := noise(5000)
	s := try(t, files{"snponly.efi": content})
	probe := s.client(t)
	probe.ask(rrq("snponly.efi", "octet", "tsize", "0", "blksize", "1468", "windowsize", "4"))
	p, from := probe.receive()
	require.Contains(t, string(p), "tsize\x005000\x00")
	probe.WriteToUDPAddrPort([]byte("\x00\x05\x00\x08User aborted the transfer\x00"), from)
	e := s.rack.ofKind(t, "size-probe")
	require.Equal(t, lifecycle.Info, e[0].Level)
	require.Equal(t, "snponly.efi: asked for its size (127.0.0.1)", e[0].Text)
	got, _, _ := s.client(t).fetch(rrq("snponly.efi", "octet", "blksize", "1468"), 0)
	require.Equal(t, content, got)
	require.Zero(t, s.count(endAborted))
}

func TestAbort(t *testing.T) {
	s := try(t, files{"a": noise(5000)})
	c := s.client(t)
	c.ask(rrq("a", "octet", "tsize", "0"))
	_, from := c.receive()
	for block := range uint16(4) {
		c.ack(block, from)
		c.receive()
	}
	c.WriteToUDPAddrPort([]byte("\x00\x05\x00\x03disk full\x00"), from)
	e := s.rack.ofKind(t, "failed")
	require.Equal(t, lifecycle.Info, e[0].Level)
	require.Equal(t, "a: the client ended it, after 2048 bytes (sending block 4: code=3, error: disk full) (127.0.0.1)", e[0].Text)
}

// TestVanished: a client that falls silent gets the block a few times more, and frees its place.
func TestVanished(t *testing.T) {
	s := try(t, files{"a": noise(5000)}, func(o *Options, _ *pace) { o.Places = places.Limits{Total: 1, Each: 1} })
	c := s.client(t)
	c.ask(rrq("a", "octet"))
	_, from := c.receive()
	c.ack(1, from)
	first, _ := c.receive()
	for range quick.retries {
		again, port := c.receive()
		require.Equal(t, first, again)
		require.Equal(t, from, port)
	}
	e := s.rack.ofKind(t, "failed")
	require.Contains(t, e[0].Text, "a: the client is silent, after 1024 bytes")
	_, _, refusal := s.client(t).fetch(rrq("a", "octet"), 0)
	require.Nil(t, refusal)
}

// TestGone: a client whose port is closed is not waited for, and nothing is wrong with the network.
func TestGone(t *testing.T) {
	s := try(t, files{"a": noise(5000)}, func(_ *Options, p *pace) { p.retries = 1000 })
	c := s.client(t)
	c.ask(rrq("a", "octet"))
	c.receive()
	c.Close()
	e := s.rack.ofKind(t, "failed")
	require.Equal(t, lifecycle.Info, e[0].Level)
	require.Contains(t, e[0].Text, "a: the client ended it, after 512 bytes")
	require.Contains(t, e[0].Text, "connection refused")
}

// TestEndedWhileItWaits: who ends a transfer does not wait until its client says something.
func TestEndedWhileItWaits(t *testing.T) {
	s := try(t, files{"a": noise(5000)}, func(_ *Options, p *pace) { p.timeout, p.grace = time.Hour, time.Millisecond })
	c := s.client(t)
	c.ask(rrq("a", "octet"))
	c.receive()
	s.stop()
	p, _ := c.receive()
	require.Equal(t, errStopping.packet(), p)
	require.Equal(t, 1, s.count(endStopped))
}

// TestSlow: a client that takes its time for each block is not given up.
func TestSlow(t *testing.T) {
	s := try(t, files{"a": noise(1000)})
	c := s.client(t)
	c.ask(rrq("a", "octet"))
	_, from := c.receive()
	time.Sleep(quick.timeout * 2)
	c.ack(1, from)
	require.Eventually(t, func() bool {
		p, _ := c.receive()
		return p[3] == 2
	}, 10*time.Second, time.Millisecond)
	c.ack(2, from)
	s.rack.ofKind(t, "loader")
}

// TestRepeated: firmware repeats its request before the first block has come. One transfer is enough.
func TestRepeated(t *testing.T) {
	s := try(t, files{"a": noise(1000), "b": noise(600)}, func(_ *Options, p *pace) { p.timeout = time.Second })
	c := s.client(t)
	for range 20 {
		c.ask(rrq("a", "octet"))
	}
	p, from := c.receive()
	require.Equal(t, byte(opDATA), p[1])
	c.silence(100 * time.Millisecond)
	require.Equal(t, 1.0, testutil.ToFloat64(s.Server.metrics.active))

	// Something else from the same port takes its place: firmware with a fixed port begins anew.
	c.ask(rrq("b", "octet"))
	p, other := c.receive()
	require.Equal(t, byte(opDATA), p[1])
	require.Equal(t, noise(600)[:512], p[4:])
	require.NotEqual(t, from, other)
	require.Eventually(t, func() bool { return s.count(endSuperseded) == 1 }, 10*time.Second, time.Millisecond)
	c.ack(1, other)
	c.receive()
	c.ack(2, other)
	s.rack.ofKind(t, "loader")
	require.Eventually(t, func() bool { return testutil.ToFloat64(s.Server.metrics.active) == 0 }, 10*time.Second, time.Millisecond)
	require.Eventually(t, func() bool {
		s.transfers.mu.Lock()
		defer s.transfers.mu.Unlock()
		return len(s.transfers.running)+s.transfers.pool.Held() == 0
	}, 10*time.Second, time.Millisecond)
}

func TestAdmit(t *testing.T) {
	now := time.Unix(0, 0)
	pool, err := places.New(places.Options{Limits: places.Limits{Total: 3, Each: 2}, Listed: func(netip.Addr) bool { return true }})
	require.NoError(t, err)
	ts := newTransfers(pool, func() time.Time { return now })
	at := netip.MustParseAddrPort
	a, b := request{name: "a", mode: "octet"}, request{name: "b", mode: "octet"}

	first, err := ts.admit(a, at("10.0.0.1:1"))
	require.NoError(t, err)
	_, err = ts.admit(b, at("10.0.0.1:1"))
	require.ErrorIs(t, err, errSilent, "not begun yet")
	got, ok := ts.claim(at("10.0.0.1:1"))
	require.True(t, ok)
	require.Same(t, first, got)
	_, ok = ts.claim(at("10.0.0.1:1"))
	require.False(t, ok, "only once")

	_, err = ts.admit(a, at("10.0.0.1:1"))
	require.ErrorIs(t, err, errSilent, "repeated")
	now = now.Add(repeatWindow)
	second, err := ts.admit(a, at("10.0.0.1:1"))
	require.NoError(t, err, "restarted")
	require.Equal(t, errSuperseded, first.endedBy())
	ts.release(first)
	require.Len(t, ts.running, 1, "the place is the second's")

	other, err := ts.admit(a, at("10.0.0.1:2"))
	require.NoError(t, err)
	second.alive(now)
	other.alive(now)
	_, err = ts.admit(a, at("10.0.0.1:3"))
	require.ErrorIs(t, err, errNoPlace, "2 transfers to it run")
	third, err := ts.admit(a, at("10.0.0.2:1"))
	require.NoError(t, err)
	fourth, err := ts.admit(a, at("10.0.0.3:1"))
	require.NoError(t, err)
	require.Equal(t, errYielded, third.endedBy(), "its client has acknowledged nothing")
	fourth.alive(now)
	_, err = ts.admit(a, at("10.0.0.4:1"))
	require.ErrorIs(t, err, errNoPlace, "3 transfers run")
	now = now.Add(repeatWindow)
	other.alive(now)
	fourth.alive(now)
	_, err = ts.admit(a, at("10.0.0.4:1"))
	require.NoError(t, err)
	require.Equal(t, errYielded, second.endedBy(), "its client is silent")
	ts.release(third)
	ts.release(third)
	ts.release(fourth)
	_, err = ts.admit(a, at("10.0.0.1:3"))
	require.NoError(t, err)
	ts.close()
	_, err = ts.admit(a, at("10.0.0.4:3"))
	require.ErrorIs(t, err, errStopping)
}

// TestNoPlace: who is refused is not answered, for its address may be made up; it asks again. It is counted, and
// reported once.
func TestNoPlace(t *testing.T) {
	s := try(t, files{"a": noise(5000)}, func(o *Options, p *pace) {
		o.Places, p.timeout = places.Limits{Total: 3, Each: 2}, time.Second
	})
	for range 2 {
		c := s.client(t)
		c.ask(rrq("a", "octet"))
		_, from := c.receive()
		c.ack(1, from)
		c.receive()
	}
	c := s.client(t)
	for range 3 {
		c.ask(rrq("a", "octet"))
	}
	require.Eventually(t, func() bool { return s.count(endBusy) == 3 }, 10*time.Second, time.Millisecond)
	c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	_, err := c.Read(make([]byte, 600))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	e := s.rack.ofKind(t, "places")
	require.Len(t, e, 1)
	require.Contains(t, e[0].Text, "1 refused and 0 idle ones ended for want of a place, the last time because of 127.0.0.1 (listed)")
}

// TestUnproven: an address that never acknowledged anything gets a few packets. Nobody is told, and it is no event if the
// address is of no machine.
func TestUnproven(t *testing.T) {
	for name, asked := range map[string][]byte{
		"first block": rrq("a", "octet"),
		"short file":  rrq("short", "octet"),
		"netascii":    rrq("a", "netascii"),
		"options":     rrq("a", "octet", "tsize", "0", "blksize", "1024"),
	} {
		for address, most := range map[string]int{"127.0.0.1": quick.first, "127.0.9.1": quick.strange} {
			t.Run(name+" "+address, func(t *testing.T) {
				s := try(t, files{"a": noise(5000), "short": noise(20)})
				conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP(address)})
				require.NoError(t, err)
				defer conn.Close()
				conn.WriteToUDPAddrPort(asked, s.Addr().(*net.UDPAddr).AddrPort())
				got := 0
				for p := make([]byte, 1500); ; got++ {
					conn.SetReadDeadline(time.Now().Add(10 * quick.timeout))
					n, err := conn.Read(p)
					if err != nil {
						break
					}
					require.NotEqual(t, byte(opERROR), p[1])
					require.LessOrEqual(t, n, 4+defaultBlock)
				}
				require.Positive(t, got)
				require.LessOrEqual(t, got, most)
				require.Eventually(t, func() bool { return s.transfers.pool.Held() == 0 }, 10*time.Second, time.Millisecond)
				if address == "127.0.0.1" {
					require.Contains(t, s.rack.ofKind(t, "failed")[0].Text, "the client is silent")
					return
				}
				require.Equal(t, 1, s.count(endUnproven))
				require.Empty(t, s.rack.events)
			})
		}
	}
}

// TestMadeUpAddresses: transfers to addresses that never acknowledge anything, of machines or not, give way.
func TestMadeUpAddresses(t *testing.T) {
	s := try(t, files{"a": noise(100_000)}, func(o *Options, p *pace) {
		o.Places, p.timeout = places.Limits{Total: 16, Each: 4, Strangers: 4, StrangersEach: 2}, time.Hour
	})
	ask := func(address string, n int) {
		for range n {
			conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP(address)})
			require.NoError(t, err)
			t.Cleanup(func() { conn.Close() })
			conn.WriteToUDPAddrPort(rrq("a", "octet"), s.Addr().(*net.UDPAddr).AddrPort())
		}
	}
	for i := range 40 {
		ask(fmt.Sprintf("127.0.9.%d", 1+i), 3)
		ask(fmt.Sprintf("127.0.1.%d", 1+i), 3)
		ask("127.0.0.1", 3)
	}
	got, _, refusal := s.client(t).fetch(rrq("a", "octet"), 0)
	require.Nil(t, refusal)
	require.Equal(t, noise(100_000), got)
}

// TestNoSocket: where pin/tftp gets no socket for a transfer, the place is free again and the client told.
func TestNoSocket(t *testing.T) {
	s := &tried{Server: idle(t, files{})}
	c := s.client(t)
	var err error
	s.front.handed, err = s.front.admit(rrq("a", "octet"), c.LocalAddr().(*net.UDPAddr).AddrPort())
	require.NoError(t, err)
	s.front.OnFailure(pin.TransferStats{RemoteAddr: net.IPv4(127, 0, 0, 1)}, errors.New("of another transfer"))
	require.Len(t, s.transfers.running, 1)
	s.front.OnFailure(pin.TransferStats{}, errors.New("too many open files"))
	p, _ := c.receive()
	require.Equal(t, errFault.packet(), p)
	require.Empty(t, s.transfers.running)
	require.Zero(t, s.transfers.pool.Held())
	require.Equal(t, 1, s.count(endFault))
}

// idle is a server that is bound and does not run.
func idle(t *testing.T, f Files) *Server {
	t.Helper()
	s, err := Listen(Options{Rack: &rack{}, Files: f, Log: slog.New(slog.DiscardHandler), Now: time.Now, Address: netip.MustParseAddr("127.0.0.1")})
	require.NoError(t, err)
	t.Cleanup(func() { s.Close() })
	return s
}

// TestMany: transfers of many clients at once do not get in one another's way.
func TestMany(t *testing.T) {
	f := files{}
	for i := range 32 {
		f[strconv.Itoa(i)] = noise(200_000 + i)
	}
	s := try(t, f, func(o *Options, p *pace) { o.Places, p.timeout = manyEach, time.Second })
	var clients sync.WaitGroup
	for name, content := range f {
		c := s.client(t)
		clients.Go(func() {
			got, _, _ := c.fetch(rrq(name, "octet", "blksize", "1024"), 0)
			if !bytes.Equal(content.([]byte), got) {
				t.Errorf("%s: %d bytes differ", name, len(got))
			}
		})
	}
	clients.Wait()
	require.Eventually(t, func() bool { return s.count(endDone) == 32 }, 10*time.Second, time.Millisecond)
	require.Equal(t, 32*200_000+31*32/2, int(testutil.ToFloat64(s.Server.metrics.bytes)))
}

// TestStop: a running transfer has a moment to come to its end; one that does not is told.
func TestStop(t *testing.T) {
	s := try(t, files{"a": noise(1000)}, func(_ *Options, p *pace) { p.timeout, p.grace = time.Second, 300*time.Millisecond })
	quickOne, stuck := s.client(t), s.client(t)
	quickOne.ask(rrq("a", "octet"))
	_, from := quickOne.receive()
	stuck.ask(rrq("a", "octet"))
	stuck.receive()
	stopped := make(chan struct{})
	go func() {
		s.stop()
		close(stopped)
	}()
	<-s.front.drained
	quickOne.ack(1, from)
	p, _ := quickOne.receive()
	require.Equal(t, byte(2), p[3])
	quickOne.ack(2, from)
	p, _ = stuck.receive()
	require.Equal(t, errStopping.packet(), p)
	<-stopped
	require.Equal(t, 1, s.count(endDone))
	require.Equal(t, 1, s.count(endStopped))
}

func TestPortTaken(t *testing.T) {
	s := idle(t, files{})
	_, err := Listen(Options{Rack: &rack{}, Files: files{}, Log: slog.New(slog.DiscardHandler), Now: time.Now, Address: s.Address,
		Port: s.Addr().(*net.UDPAddr).Port})
	require.ErrorContains(t, err, "address already in use")
	_, err = Listen(Options{Rack: &rack{}, Files: files{}, Log: slog.New(slog.DiscardHandler), Now: time.Now, Interface: "no-such-nic"})
	require.ErrorContains(t, err, "no-such-nic: no such device")
}

func TestThrottle(t *testing.T) {
	th := newThrottle()
	now := time.Unix(0, 0)
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	require.True(t, th.allow(now, a, endNotFound, "x"))
	require.False(t, th.allow(now, a, endNotFound, "x"))
	require.True(t, th.allow(now, a, endNotFound, "y"))
	require.True(t, th.allow(now, b, endNotFound, "x"))
	require.True(t, th.allow(now.Add(repeatAfter), a, endNotFound, "x"))
	told := 0
	for i := range 10_000 {
		if th.allow(now.Add(time.Minute), a, endDone, strconv.Itoa(i)) {
			told++
		}
	}
	require.Equal(t, clientBurst-1, told, "one client")
	told = 0
	for i := range 10_000 {
		if th.allow(now.Add(time.Hour), netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), endRefused, "x") {
			told++
		}
	}
	require.Equal(t, otherBurst, told, "made-up clients")
	require.LessOrEqual(t, len(th.said), maxRemembered)
	require.LessOrEqual(t, len(th.clients), maxRemembered)
}

// TestEndingsAreAll: an ending without a row would be an event without a text.
func TestEndingsAreAll(t *testing.T) {
	for end, row := range endings {
		if row.kind == "" {
			continue
		}
		text := row.text(&transfer{request: request{name: "f"}}, result{told: "why", err: errors.New("err")}, time.Second)
		require.NotContains(t, text, "%!", end)
		require.Contains(t, text, "f", end)
	}
}
