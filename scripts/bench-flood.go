//go:build ignore

// bench-flood plays a rack whose listed machines boot while strangers flood the DHCP server, for bench.sh:
//
//	go run scripts/bench-flood.go -server 10.20.0.1 -listed 10.20.0.3 -strangers 10.20.0.2 -flood 20000 -pid 4711
//
// Listed machines do whole exchanges (DISCOVER, OFFER, REQUEST, ACK) by one relay address, strangers with MACs that are made
// up by another one, or by broadcast (-strangers broadcast). Nothing is sent twice: what gets no answer within a second is lost.
package main

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

var (
	server    = flag.String("server", "10.20.0.1", "address of the server")
	listed    = flag.String("listed", "10.20.0.3", "relay address of the listed machines")
	strangers = flag.String("strangers", "10.20.0.2", "relay address of the strangers, or \"broadcast\"")
	iface     = flag.String("interface", "cli0", "where broadcasts leave")
	machines  = flag.Int("machines", 1000, "how many machines are listed: 52:54:00:00:00:00 and on")
	rate      = flag.Int("rate", 500, "exchanges of listed machines that begin in a second")
	flood     = flag.Int("flood", 8000, "packets of strangers in a second")
	known     = flag.Int("known", 0, "how many strangers there are; 0: a new one for each packet")
	kind      = flag.String("kind", "discover", "what the strangers send: exchange, discover, boot, request, inform, decline, release, junk, big, relays, spoof")
	seconds   = flag.Int("seconds", 8, "how long")
	pid       = flag.Int("pid", 0, "the server's process: its processor time and memory are printed")
)

// patience is how long an answer is waited for.
const patience = time.Second

// Message types (RFC 2132 section 9.6).
const (
	discover = 1
	offer    = 2
	request  = 3
	decline  = 4
	ack      = 5
	release  = 7
	inform   = 8
)

func main() {
	flag.Parse()
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench-flood:", err)
		os.Exit(1)
	}
}

func run() error {
	to, err := netip.ParseAddr(*server)
	if err != nil {
		return err
	}
	good, err := newClients(*listed, to)
	if err != nil {
		return err
	}
	good.pick = func(n int) (mac [6]byte) {
		n %= *machines
		return [6]byte{0x52, 0x54, 0, 0, byte(n >> 8), byte(n)}
	}
	good.kind = "exchange"
	all := []*clients{good}
	bad := &clients{}
	if *flood > 0 {
		if bad, err = newClients(*strangers, to); err != nil {
			return err
		}
		bad.kind = *kind
		bad.pick = func(n int) (mac [6]byte) {
			if *kind == "spoof" {
				return good.pick(n)
			}
			id := rand.Uint64()
			if *known > 0 {
				id = uint64(n%*known) * 0x9e3779b97f4a7c15
			}
			return [6]byte{0x02, byte(id >> 32), byte(id >> 24), byte(id >> 16), byte(id >> 8), byte(id)}
		}
		all = append(all, bad)
	}
	before, begun := usage(*pid), time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(*seconds)*time.Second)
	defer cancel()
	var sending sync.WaitGroup
	for i, c := range all {
		go c.receive()
		sending.Go(func() { c.send(ctx, []int{*rate, *flood}[i]) })
	}
	sending.Wait()
	took := time.Since(begun).Seconds()
	time.Sleep(patience)
	after := usage(*pid)
	for _, c := range all {
		c.conn.Close()
	}
	good.mu.Lock()
	bad.mu.Lock()
	slices.Sort(good.times)
	answered := float64(good.acks + bad.offers + bad.acks + bad.naks)
	report := []any{
		"listed_sent", good.sent, "listed_done", good.acks, "lost_percent", percent(good.sent-good.acks, good.sent),
		"p50_ms", quantile(good.times, .5), "p99_ms", quantile(good.times, .99),
		"flood_sent_per_s", per(bad.sent, took), "flood_offers_per_s", per(bad.offers, took), "flood_acks_per_s", per(bad.acks, took), "flood_naks_per_s", per(bad.naks, took),
		"cpu_percent", fmt.Sprintf("%.0f", 100*(after.cpu-before.cpu)/took),
		"cpu_us_per_packet", fmt.Sprintf("%.0f", 1e6*(after.cpu-before.cpu)/float64(good.sent+good.offers+bad.sent+bad.asked)),
		"cpu_us_per_answer", fmt.Sprintf("%.0f", 1e6*(after.cpu-before.cpu)/max(1, answered)),
		"peak_mib", after.peak, "rss_mib", after.rss,
	}
	for i := 0; i < len(report); i += 2 {
		fmt.Printf("%v=%v ", report[i], report[i+1])
	}
	fmt.Println()
	return nil
}

// clients are machines behind one relay address, or on the server's own network.
type clients struct {
	conn   *net.UDPConn
	batch  *ipv4.PacketConn
	to     *net.UDPAddr
	server netip.Addr
	giaddr netip.Addr
	kind   string
	pick   func(n int) [6]byte

	mu                              sync.Mutex
	waiting                         map[uint32]time.Time
	sent, asked, offers, acks, naks int
	times                           []time.Duration
}

func newClients(relay string, server netip.Addr) (*clients, error) {
	c := &clients{server: server, waiting: map[uint32]time.Time{}, to: &net.UDPAddr{IP: server.AsSlice(), Port: 67}}
	port := 67
	if relay == "broadcast" {
		c.to.IP, port, relay = net.IPv4bcast, 68, "0.0.0.0"
	}
	local, err := netip.ParseAddr(relay)
	if err != nil {
		return nil, err
	}
	if port == 67 {
		c.giaddr = local
	}
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var errs error
		return errors.Join(raw.Control(func(fd uintptr) {
			errs = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1),
				unix.SetsockoptString(int(fd), unix.SOL_SOCKET, unix.SO_BINDTODEVICE, *iface),
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20),
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 32<<20))
		}), errs)
	}}
	conn, err := lc.ListenPacket(context.Background(), "udp4", net.JoinHostPort(relay, strconv.Itoa(port)))
	if err != nil {
		return nil, err
	}
	c.conn = conn.(*net.UDPConn)
	c.batch = ipv4.NewPacketConn(c.conn)
	return c, nil
}

// send begins so many exchanges a second until ctx ends, in steps of some milliseconds.
func (c *clients) send(ctx context.Context, rate int) {
	ticker := time.NewTicker(2 * time.Millisecond)
	defer ticker.Stop()
	begun := time.Now()
	for n := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		due := min(int(time.Since(begun).Seconds()*float64(rate)), n+4*rate/100)
		var messages []ipv4.Message
		c.mu.Lock()
		for ; n < due; n++ {
			messages = append(messages, ipv4.Message{Buffers: [][]byte{c.first(n)}, Addr: c.to})
			c.sent++
		}
		c.mu.Unlock()
		for len(messages) > 0 {
			done, err := c.batch.WriteBatch(messages, 0)
			if err != nil {
				time.Sleep(time.Millisecond)
				done = max(done, 0)
				if done == 0 {
					break
				}
			}
			messages = messages[done:]
		}
	}
}

// first is what a client sends of itself. The caller holds mu.
func (c *clients) first(n int) []byte {
	mac, xid := c.pick(n), rand.Uint32()
	random := func() []byte { return binary.BigEndian.AppendUint32(nil, 0x0a146400|rand.Uint32N(38000)) }
	switch c.kind {
	case "exchange":
		c.waiting[xid] = time.Now()
		return c.message(discover, mac, xid)
	case "boot":
		return c.message(discover, mac, xid, firmware...)
	case "request":
		return c.message(request, mac, xid, option{50, random()})
	case "inform":
		msg := c.message(inform, mac, xid)
		copy(msg[12:], random())
		return msg
	case "release":
		msg := c.message(release, mac, xid, option{54, c.server.AsSlice()})
		copy(msg[12:], random())
		return msg
	case "relays":
		msg := c.message(discover, mac, xid)
		copy(msg[24:], random())
		return msg
	case "junk":
		msg := c.message(discover, mac, xid)
		for range 8 {
			msg[rand.IntN(len(msg))] = byte(rand.Uint32())
		}
		return msg[:rand.IntN(len(msg))]
	case "big":
		var filler []option
		for code := byte(128); code < 132; code++ {
			filler = append(filler, option{code, make([]byte, 255)})
		}
		return c.message(discover, mac, xid, append(filler, firmware...)...)
	}
	return c.message(discover, mac, xid)
}

// option of a DHCP message.
type option struct {
	code  byte
	value []byte
}

// firmware is what UEFI says of itself.
var firmware = []option{
	{60, []byte("PXEClient:Arch:00007:UNDI:003000")}, {93, []byte{0, 7}}, {94, []byte{1, 3, 0}}, {57, []byte{5, 192}},
	{97, make([]byte, 17)}, {55, []byte{1, 2, 3, 4, 5, 6, 12, 13, 15, 17, 18, 22, 23, 28, 40, 41, 42, 43, 50, 51, 54, 58, 59, 60, 66, 67, 97}},
}

func (c *clients) message(kind byte, mac [6]byte, xid uint32, options ...option) []byte {
	msg := make([]byte, 240, 560)
	copy(msg, []byte{1, 1, 6, 0})
	binary.BigEndian.PutUint32(msg[4:], xid)
	if c.giaddr.IsValid() {
		copy(msg[24:], c.giaddr.AsSlice())
		msg[3] = 1
	} else {
		msg[10] = 0x80
	}
	copy(msg[28:], mac[:])
	copy(msg[236:], []byte{99, 130, 83, 99})
	msg = append(msg, 53, 1, kind)
	for _, o := range options {
		msg = append(append(msg, o.code, byte(len(o.value))), o.value...)
	}
	msg = append(msg, 255)
	for len(msg) < 300 {
		msg = append(msg, 0)
	}
	return msg
}

// receive counts answers, and goes on with exchanges, until the socket is closed.
func (c *clients) receive() {
	messages := make([]ipv4.Message, 64)
	for i := range messages {
		messages[i].Buffers = [][]byte{make([]byte, 2048)}
	}
	for {
		n, err := c.batch.ReadBatch(messages, 0)
		if err != nil {
			return
		}
		c.mu.Lock()
		for _, m := range messages[:n] {
			c.answered(m.Buffers[0][:m.N])
		}
		c.mu.Unlock()
	}
}

// answered takes one answer. The caller holds mu.
func (c *clients) answered(msg []byte) {
	if len(msg) < 243 || msg[0] != 2 {
		return
	}
	kind, id := byte(0), []byte(nil)
	for rest := msg[240:]; len(rest) > 2 && rest[0] != 255; {
		n := 2 + int(rest[1])
		if rest[0] == 0 {
			n = 1
		} else if n > len(rest) {
			return
		} else if rest[0] == 53 {
			kind = rest[2]
		} else if rest[0] == 54 {
			id = rest[2:n]
		}
		rest = rest[n:]
	}
	xid := binary.BigEndian.Uint32(msg[4:])
	begun, ours := c.waiting[xid]
	switch {
	case kind == offer && c.kind == "decline":
		c.offers++
		c.asked++
		c.conn.WriteToUDP(c.message(decline, [6]byte(msg[28:34]), xid, option{50, slices.Clone(msg[16:20])}, option{54, slices.Clone(id)}), c.to)
	case kind == offer && c.kind != "exchange":
		c.offers++
	case kind == offer && ours && time.Since(begun) < patience:
		c.offers++
		c.asked++
		ask := c.message(request, [6]byte(msg[28:34]), xid, option{50, slices.Clone(msg[16:20])}, option{54, slices.Clone(id)})
		c.conn.WriteToUDP(ask, c.to)
	case kind == ack && c.kind != "exchange":
		c.acks++
	case kind == ack && ours && time.Since(begun) < 2*patience:
		c.acks++
		c.times = append(c.times, time.Since(begun))
		delete(c.waiting, xid)
	case kind == 6:
		c.naks++
	}
}

// used is what a process took.
type used struct {
	cpu       float64 // seconds
	peak, rss int     // MiB
}

func usage(pid int) (u used) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return u
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	for _, i := range []int{11, 12} { // utime and stime, in ticks of 10 ms
		ticks, _ := strconv.Atoi(fields[i])
		u.cpu += float64(ticks) / 100
	}
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(status)) {
		var kib int
		if n, _ := fmt.Sscanf(line, "VmHWM: %d kB", &kib); n == 1 {
			u.peak = kib / 1024
		}
		if n, _ := fmt.Sscanf(line, "VmRSS: %d kB", &kib); n == 1 {
			u.rss = kib / 1024
		}
	}
	return u
}

func per(n int, seconds float64) string { return fmt.Sprintf("%.0f", float64(n)/seconds) }

func percent(n, of int) string { return fmt.Sprintf("%.2f", 100*float64(n)/float64(max(1, of))) }

func quantile(sorted []time.Duration, q float64) string {
	if len(sorted) == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f", float64(sorted[int(q*float64(len(sorted)-1))].Microseconds())/1000)
}
