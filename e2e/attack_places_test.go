package e2e

import (
	"bufio"
	endian "encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rackstrap/internal/testenv"
)

const (
	placesEnv = "RACKSTRAP_E2E_PLACES" // the attack that a process plays
	// Machines of the list are at 10.20.1.x and 10.20.2.x. Every address of these networks is the attacker's.
	placesStrangers = "10.20.208.0/20"
	placesSpoofed   = "10.20.2.0/24"
)

// siege is a daemon under an attack that goes on until the test ends.
type siege struct {
	t      *testing.T
	n      network
	config string
	stdin  io.Closer
	lines  *bufio.Scanner
	cmd    *exec.Cmd
}

func besiege(t *testing.T, name, attack string) *siege {
	t.Helper()
	testenv.NeedTool(t, "curl")
	s := &siege{t: t, n: newNetwork(t, name), config: stormConfig(t, 400)}
	tree := filepath.Join(filepath.Dir(s.config), "tree")
	require.NoError(t, os.WriteFile(filepath.Join(tree, "large"), nil, 0o644))
	require.NoError(t, os.Truncate(filepath.Join(tree, "large"), 64<<20))
	ip(t, "-n "+s.n.clients+" link set cli0 address "+stormMAC(0).String())
	ip(t, "-n "+s.n.clients+" addr add 10.20.1.1/16 dev cli0")
	for _, prefix := range []string{placesStrangers, placesSpoofed} {
		ip(t, "-n "+s.n.clients+" route add local "+prefix+" dev lo")
	}
	s.n.serve(t, s.config)
	s.asMachine("before the attack", "http://10.20.0.1:8080/healthz")

	s.cmd = exec.Command("ip", "netns", "exec", s.n.clients, os.Args[0], "-test.run", "^TestPlayAttackOnPlaces$", "-test.timeout", "2m")
	s.cmd.Env = append(os.Environ(), placesEnv+"="+attack)
	s.cmd.Stderr = os.Stderr
	stdin, err := s.cmd.StdinPipe()
	require.NoError(t, err)
	stdout, err := s.cmd.StdoutPipe()
	require.NoError(t, err)
	s.stdin, s.lines = stdin, bufio.NewScanner(stdout)
	require.NoError(t, s.cmd.Start())
	t.Cleanup(func() {
		s.cmd.Process.Kill()
		s.cmd.Wait()
	})
	require.Contains(t, s.line(), "under way")
	return s
}

// line is what the attacker says next.
func (s *siege) line() string {
	for s.lines.Scan() {
		if text := s.lines.Text(); strings.HasPrefix(text, "attack ") {
			s.t.Log(text)
			return text
		}
	}
	s.t.Fatal("the attacker has ended")
	return ""
}

// asMachine fetches something from the address of m0, which must not take long.
func (s *siege) asMachine(when, url string) {
	s.t.Helper()
	out, err := exec.Command("ip", "netns", "exec", s.n.clients, "curl", "-sSfk", "--interface", "10.20.1.1", "--max-time", "15", "-o", os.DevNull,
		"-w", "%{size_download} bytes in %{time_total} s", url).CombinedOutput()
	require.NoError(s.t, err, "%s, %s: %s", when, url, out)
	s.t.Logf("%s, %s: %s", when, url, out)
}

// reported waits for the event.
func (s *siege) reported(text string) {
	s.t.Helper()
	require.Eventually(s.t, func() bool {
		return strings.Contains(rackstrap(s.t, "--config", s.config, "events", "--limit", "0"), text)
	},
		10*time.Second, 100*time.Millisecond, text)
	events := rackstrap(s.t, "--config", s.config, "events", "--limit", "0")
	require.LessOrEqual(s.t, strings.Count(events, text), 2, "it is one event a minute:\n%s", events)
}

// Hundreds of addresses ask for a large file and take nothing of it.
func TestAttackSlowReaders(t *testing.T) {
	s := besiege(t, "e2eplslow", "slow-readers")
	for range 3 {
		s.asMachine("under attack", "http://10.20.0.1:8080/boot/52-54-00-01-00-00/ipxe")
	}
	s.asMachine("under attack", "http://10.20.0.1:8080/media/tree/large")
	s.reported("connections: ")
}

// Hundreds of addresses connect to the node plane and say nothing; so does somebody at the machine's own address.
func TestAttackSilentConnections(t *testing.T) {
	s := besiege(t, "e2eplsilent", "silent-connections")
	for range 3 {
		s.asMachine("under attack", "https://10.20.0.1:8443/api/v1/openapi.json")
	}
	s.reported("connections: ")
}

// Requests with made-up sources, of machines of the list and of others, arrive all the time.
func TestAttackSpoofedTFTP(t *testing.T) {
	s := besiege(t, "e2epltftp", "spoofed-tftp")
	for range 3 {
		s.asMachine("under attack", "tftp://10.20.0.1/undionly.kpxe")
	}
	s.reported("transfers: ")
	require.NoError(t, s.stdin.Close())
	var seconds float64
	var sent, toStrangers, toStrangersBytes, toListed int
	_, err := fmt.Sscanf(s.line(), "attack over: %g s, %d requests, %d packets of %d bytes to strangers, %d to machines",
		&seconds, &sent, &toStrangers, &toStrangersBytes, &toListed)
	require.NoError(t, err)
	require.LessOrEqual(t, toStrangers, sent/2, "one refusal each, of those that the appliance gave no address")
	require.LessOrEqual(t, toStrangersBytes, 100*toStrangers)
	require.LessOrEqual(t, toListed, 4*sent/2)
}

// TestPlayAttackOnPlaces is the attacker's side, run inside the clients' namespace.
func TestPlayAttackOnPlaces(t *testing.T) {
	attack, ok := map[string]func(*testing.T, <-chan struct{}){
		"slow-readers": func(t *testing.T, over <-chan struct{}) {
			hold(t, "10.20.0.1:8080", 300, 12, "GET /media/tree/large HTTP/1.1\r\nHost: x\r\n\r\n", over)
		},
		"silent-connections": func(t *testing.T, over <-chan struct{}) { hold(t, "10.20.0.1:8443", 300, 20, "", over) },
		"spoofed-tftp":       spoof,
	}[os.Getenv(placesEnv)]
	if !ok {
		return // only ever run by the attacks
	}
	over := make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin)
		close(over)
	}()
	attack(t, over)
}

// hold opens connections from many addresses, and 100 from the address of m0 if nothing is to be said, and keeps them.
func hold(t *testing.T, to string, addresses, each int, text string, over <-chan struct{}) {
	first := netip.MustParsePrefix(placesStrangers).Addr()
	var from []netip.Addr
	for range addresses {
		first = first.Next()
		for range each {
			from = append(from, first)
		}
	}
	for range 100 * (1 - min(1, len(text))) {
		from = append(from, netip.MustParseAddr("10.20.1.1"))
	}
	var kept []net.Conn
	slots := make(chan struct{}, 16)
	opened := make(chan net.Conn, len(from))
	for _, addr := range from {
		slots <- struct{}{}
		go func() {
			defer func() { <-slots }()
			dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: addr.AsSlice()}, Timeout: time.Second, Control: smallBuffer}
			conn, err := dialer.Dial("tcp", to)
			if err == nil {
				io.WriteString(conn, text)
			}
			opened <- conn
		}()
	}
	for range from {
		if conn := <-opened; conn != nil {
			kept = append(kept, conn)
		}
	}
	fmt.Printf("attack under way: %d connections tried, %d opened\n", len(from), len(kept))
	<-over
	for _, conn := range kept {
		conn.Close()
	}
}

// smallBuffer keeps this host from taking much for a client that does not read.
func smallBuffer(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4096) })
}

// spoofedPorts is how many ports every made-up client has.
const spoofedPorts = 32

// spoof sends requests from all addresses, of strangers by ports from 4400 on and of the list by ports from 4500 on, as
// fast as 4,000 a second, and counts what comes back.
func spoof(t *testing.T, over <-chan struct{}) {
	raw, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
	require.NoError(t, err)
	var packets, bytes [2]atomic.Int64
	for k := range 2 * spoofedPorts {
		i := k % 2
		conn, err := net.ListenUDP("udp4", &net.UDPAddr{Port: 4400 + 100*i + k/2})
		require.NoError(t, err)
		conn.SetReadBuffer(1 << 20)
		go func() {
			for p := make([]byte, 2048); ; {
				n, err := conn.Read(p)
				if err != nil {
					return
				}
				packets[i].Add(1)
				bytes[i].Add(int64(n))
			}
		}()
	}
	sources := [2]netip.Prefix{netip.MustParsePrefix(placesStrangers), netip.MustParsePrefix(placesSpoofed)}
	next := [2]netip.Addr{sources[0].Addr(), sources[1].Addr()}
	sent, begin := 0, time.Now()
	for tick := time.NewTicker(5 * time.Millisecond); ; {
		select {
		case <-over:
			fmt.Printf("attack over: %g s, %d requests, %d packets of %d bytes to strangers, %d to machines\n", time.Since(begin).Seconds(), sent,
				packets[0].Load(), bytes[0].Load(), packets[1].Load())
			return
		case <-tick.C:
		}
		for range 10 {
			for i := range next {
				if next[i] = next[i].Next(); !sources[i].Contains(next[i]) {
					next[i] = sources[i].Addr().Next()
				}
				if unix.Sendto(raw, spoofed(next[i], uint16(4400+100*i+sent%spoofedPorts)), 0, &unix.SockaddrInet4{Addr: [4]byte{10, 20, 0, 1}}) == nil {
					sent++
				}
			}
		}
		if sent > 2000 && sent <= 2020 {
			fmt.Println("attack under way")
		}
	}
}

// spoofed is a TFTP request without options in UDP in IPv4.
func spoofed(from netip.Addr, port uint16) []byte {
	body := []byte("\x00\x01undionly.kpxe\x00octet\x00")
	p := make([]byte, 28, 28+len(body))
	p[0], p[8], p[9] = 0x45, 64, unix.IPPROTO_UDP // the kernel fills in lengths and the checksum
	source := from.As4()
	copy(p[12:], source[:])
	copy(p[16:], []byte{10, 20, 0, 1})
	endian.BigEndian.PutUint16(p[20:], port)
	endian.BigEndian.PutUint16(p[22:], 69)
	endian.BigEndian.PutUint16(p[24:], uint16(8+len(body)))
	return append(p, body...)
}
