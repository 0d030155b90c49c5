package tftp

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netns"

	"rackstrap/assets"
	"rackstrap/bootplan"
	"rackstrap/internal/testenv"
	"rackstrap/inventory"
	"rackstrap/lifecycle"
	"rackstrap/media"
)

// Two network namespaces and an Ethernet between them: the server, with two addresses on its NIC, of which it
// uses the second; and the client. The client's is named in the environment of the test binary that runs in
// the server's.
const (
	clientSpaceEnv = "RACKSTRAP_TFTP_TEST_CLIENT"
	serverNIC      = "srv0"
	clientNIC      = "cli0"
	otherAddress   = "10.99.69.1"
	serverAddress  = "10.99.69.9"
	clientAddress  = "10.99.69.80"
)

// spaces makes the two namespaces, until the test ends.
func spaces(t testing.TB) (server, client string) {
	t.Helper()
	testenv.NeedRoot(t)
	testenv.NeedTool(t, "ip")
	server, client = fmt.Sprintf("tftps%d", os.Getpid()), fmt.Sprintf("tftpc%d", os.Getpid())
	for _, space := range []string{server, client} {
		ip(t, "netns", "add", space)
		t.Cleanup(func() { exec.Command("ip", "netns", "del", space).Run() })
		ip(t, "-n", space, "link", "set", "lo", "up")
	}
	ip(t, "link", "add", serverNIC, "netns", server, "mtu", "1500", "type", "veth", "peer", "name", clientNIC, "netns", client)
	ip(t, "-n", server, "addr", "add", otherAddress+"/24", "dev", serverNIC)
	ip(t, "-n", server, "addr", "add", serverAddress+"/24", "dev", serverNIC)
	ip(t, "-n", client, "addr", "add", clientAddress+"/24", "dev", clientNIC)
	ip(t, "-n", server, "link", "set", serverNIC, "up")
	ip(t, "-n", client, "link", "set", clientNIC, "up")
	return server, client
}

// again is this test binary once more, in a namespace, for one of its tests.
func again(ctx context.Context, t testing.TB, space, test string, env ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.CommandContext(ctx, "ip", "netns", "exec", space, self, "-test.run", "^"+test+"$", "-test.v", "-test.timeout", "100s")
	cmd.Env = append(os.Environ(), env...)
	return cmd
}

// TestNamespaces runs TestInside in the server's namespace: sockets are opened from many threads, so that the
// whole process must be there.
func TestNamespaces(t *testing.T) {
	testenv.NeedTool(t, "atftp", "tftp", "curl", "tcpdump")
	server, client := spaces(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	out, err := again(ctx, t, server, "TestInside", clientSpaceEnv+"="+client).CombinedOutput()
	t.Logf("in the server's namespace:\n%s", out)
	require.NoError(t, err)
	require.Contains(t, string(out), "--- PASS: TestInside")
}

func ip(t testing.TB, args ...string) {
	t.Helper()
	out, err := exec.Command("ip", args...).CombinedOutput()
	require.NoError(t, err, "ip %s: %s", strings.Join(args, " "), out)
}

// TestInside is the part of TestNamespaces that runs in the server's namespace.
func TestInside(t *testing.T) {
	if os.Getenv(clientSpaceEnv) == "" {
		return // not a test of its own
	}
	t.Run("loaders", testLoaders)
	t.Run("sizes", testSizes)
	t.Run("roll-over", testRollOver)
	t.Run("path", testPath)
	t.Run("answers from its own address", testSourceAddress)
}

// tryInside is a server on port 69 of the server's second address.
func tryInside(t *testing.T, f Files) *tried {
	return try(t, f, func(o *Options, p *pace) {
		o.Address, o.Interface, o.Port = netip.MustParseAddr(serverAddress), serverNIC, 69
		*p = defaultPace
	})
}

// clients are the programs that fetch a file; blksize 0 is the client's own default.
var clients = map[string]func(name, to string, block int) []string{
	"atftp": func(name, to string, block int) []string {
		args := []string{"atftp", "--get", "-r", name, "-l", to}
		if block != 0 {
			args = append(args, "--option", "blksize "+strconv.Itoa(block))
		}
		return append(args, serverAddress, "69")
	},
	"tftp-hpa": func(name, to string, _ int) []string { // knows no options
		return []string{"tftp", "-m", "binary", serverAddress, "69", "-c", "get", name, to}
	},
	"tftp-hpa netascii": func(name, to string, _ int) []string { // its default
		return []string{"tftp", "-m", "netascii", serverAddress, "69", "-c", "get", name, to}
	},
	"curl": func(name, to string, block int) []string { // asks for tsize, blksize and timeout
		args := []string{"curl", "-sS", "--max-time", "60", "-o", to}
		if block != 0 {
			args = append(args, "--tftp-blksize", strconv.Itoa(block))
		}
		return append(args, "tftp://"+serverAddress+"/"+name)
	},
}

// fetchBy fetches a file in the client's namespace.
func fetchBy(t *testing.T, program, name string, block int) []byte {
	t.Helper()
	to := filepath.Join(t.TempDir(), "got")
	require.NoError(t, os.WriteFile(to, nil, 0o600)) // curl makes no file of an empty one
	inClient(t, clients[program](name, to, block)...)
	got, err := os.ReadFile(to)
	require.NoError(t, err)
	return got
}

func inClient(t *testing.T, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", os.Getenv(clientSpaceEnv)}, args...)...).CombinedOutput()
	require.NoError(t, err, "%s: %s", strings.Join(args, " "), out)
}

// testLoaders: every loader that DHCP can offer is served, as it is, to three clients.
func testLoaders(t *testing.T) {
	loaders, err := assets.OpenLoaders("")
	require.NoError(t, err)
	if len(loaders.Names()) == 0 { // the build embedded none
		loaders = assets.LoadersFrom(map[string][]byte{"undionly.kpxe": noise(70_000), "snponly.efi": noise(170_000)})
	}
	library, err := media.OpenLibrary(nil)
	require.NoError(t, err)
	rack, err := lifecycle.New(t.Context(), &inventory.Config{
		Network: inventory.Network{DHCP: inventory.DHCP{Mode: inventory.DHCPServer, Unknown: inventory.UnknownDiscover}},
		Machines: []inventory.Machine{{Name: "knode1", MAC: macNode, IP: netip.MustParseAddr(clientAddress),
			Install: inventory.Install{Attempts: 3, LocalBoot: inventory.LocalAuto}}},
	}, lifecycle.Options{Store: lifecycle.NewMemoryStore(), Log: slog.New(slog.DiscardHandler), Now: time.Now})
	require.NoError(t, err)
	s := tryInside(t, bootplan.New(rack, loaders, library))
	for _, firmware := range assets.Firmwares() {
		loader, ok := loaders.For(firmware)
		if !ok {
			continue
		}
		for program, block := range map[string]int{"atftp": 1432, "tftp-hpa": 0, "curl": 1468} {
			require.True(t, bytes.Equal(loader.Data, fetchBy(t, program, loader.Name, block)), "%s by %s", loader.Name, program)
		}
	}
	out := filepath.Join(t.TempDir(), "got")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	text, err := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", os.Getenv(clientSpaceEnv)}, clients["tftp-hpa"]("../etc/passwd", out, 0)...)...).CombinedOutput()
	t.Logf("%v %s", err, text)
	require.Contains(t, string(text), "access violation: not a file name: ../etc/passwd")
	require.Zero(t, s.count(endFault))
}

// testSizes: files of every length around a block's come through whole.
func testSizes(t *testing.T) {
	f := files{"text": []byte("set root\nend\r\n\rx\x00")}
	for _, n := range []int{0, 511, 512, 513, 1468 * 4, 1468*4 - 1, 1468*4 + 1} {
		f[strconv.Itoa(n)] = noise(n)
	}
	tryInside(t, f)
	for name, content := range f {
		for program := range clients {
			for _, block := range []int{0, 512, 1468, 9000} {
				if block != 0 && strings.HasPrefix(program, "tftp-hpa") {
					continue
				}
				require.True(t, bytes.Equal(content.([]byte), fetchBy(t, program, name, block)), "%s by %s, blksize %d", name, program, block)
			}
		}
	}
}

// testRollOver: more blocks than a block number can count, and nothing of it in fragments.
func testRollOver(t *testing.T) {
	f := files{"512": noise(65540*512 + 7), "1468": noise(65540*1468 + 7)}
	s := tryInside(t, f)
	fragments := capture(t, "ip[6:2] & 0x3fff != 0")
	full := capture(t, "udp and ip[2:2] = 1500")
	var all sync.WaitGroup
	for _, c := range []struct {
		program, name string
		block         int
	}{{"atftp", "512", 0}, {"tftp-hpa", "512", 0}, {"curl", "512", 512}, {"curl", "1468", 65464}} {
		all.Go(func() {
			if got := fetchBy(t, c.program, c.name, c.block); !bytes.Equal(f[c.name].([]byte), got) {
				t.Errorf("%s by %s: %d bytes differ", c.name, c.program, len(got))
			}
		})
	}
	all.Wait()
	require.Zero(t, fragments(), "fragments")
	require.Greater(t, full(), 60_000, "of 65540 packets as large as the MTU: tcpdump leaves the last ones in its buffer")
	for _, e := range s.rack.ofKind(t, "loader") {
		t.Log(e.Text)
	}
}

// testPath: the block size follows the path to the client, not the NIC alone. The client's host is a router here.
func testPath(t *testing.T) {
	client := os.Getenv(clientSpaceEnv)
	ip(t, "netns", "exec", client, "sysctl", "-qw", "net.ipv4.ip_forward=1")
	ip(t, "-n", client, "link", "add", "leg0", "mtu", "1100", "type", "veth", "peer", "name", "leg1")
	ip(t, "-n", client, "addr", "add", "10.99.72.1/24", "dev", "leg0")
	ip(t, "-n", client, "link", "set", "leg0", "up")
	ip(t, "-n", client, "link", "set", "leg1", "up")
	ip(t, "route", "add", "10.99.70.0/24", "via", clientAddress)
	ip(t, "route", "add", "10.99.71.0/24", "via", clientAddress, "mtu", "1420")
	ip(t, "route", "add", "10.99.72.0/24", "via", clientAddress)
	ip(t, "route", "add", "10.99.73.0/24", "dev", serverNIC, "mtu", "1000")
	ip(t, "route", "add", "10.99.74.0/24", "via", clientAddress, "mtu", "400")
	e := endpoint{serverNIC, netip.MustParseAddr(serverAddress)}
	limit := func(client string) int { return e.blockLimit(netip.MustParseAddr(client)) }
	require.Equal(t, 1500-32, limit(clientAddress), "on the same network: what the NIC carries")
	require.Equal(t, 1280-32, limit("10.99.70.5"), "through a router: what every tunnel carries")
	require.Equal(t, 1420-32, limit("10.99.71.5"), "the route's own")
	require.Equal(t, 1000-32, limit("10.99.73.5"), "the route's own, without a router")
	require.Equal(t, defaultBlock, limit("10.99.74.5"), "never less than what needs no option")

	require.Equal(t, 1280-32, limit("10.99.72.5"))
	conn, err := e.listen(0)
	require.NoError(t, err)
	defer conn.Close()
	require.Eventually(t, func() bool { // the router says that its leg is narrower
		conn.WriteToUDPAddrPort(make([]byte, 1400), netip.MustParseAddrPort("10.99.72.5:9"))
		return limit("10.99.72.5") == 1100-32
	}, 10*time.Second, 50*time.Millisecond, "what routers said is heeded")

	// And so does a real client get it.
	tryInside(t, files{"file": noise(1_000_000)})
	ip(t, "route", "replace", clientAddress+"/32", "dev", serverNIC, "mtu", "1420")
	defer ip(t, "route", "del", clientAddress+"/32", "dev", serverNIC)
	largest := capture(t, "udp and ip[2:2] = 1420")
	larger := capture(t, "udp and (ip[2:2] > 1420 or ip[6:2] & 0x3fff != 0)")
	fetchBy(t, "curl", "file", 1468)
	require.Greater(t, largest(), 100)
	require.Zero(t, larger())
}

// capture counts packets on the client's NIC, until the function that it returns is called.
func capture(t *testing.T, filter string) (count func() int) {
	t.Helper()
	r, w, err := os.Pipe()
	require.NoError(t, err)
	cmd := exec.Command("ip", "netns", "exec", os.Getenv(clientSpaceEnv), "tcpdump", "--immediate-mode", "-n", "-p", "-B", "32768", "-s", "64", "-i", clientNIC, "-w", "/dev/null", filter)
	cmd.Stderr = w
	require.NoError(t, cmd.Start())
	w.Close()
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		r.Close()
	})
	lines := bufio.NewScanner(r)
	find := func(what string) string {
		r.SetReadDeadline(time.Now().Add(10 * time.Second))
		for lines.Scan() {
			if strings.Contains(lines.Text(), what) {
				return lines.Text()
			}
		}
		t.Fatalf("tcpdump does not say %q: %v", what, lines.Err())
		return ""
	}
	find("listening on")
	return func() (packets int) {
		require.NoError(t, cmd.Process.Signal(os.Interrupt))
		_, err := fmt.Sscan(find("packets captured"), &packets)
		require.NoError(t, err)
		require.Equal(t, "0 packets dropped by kernel", find("dropped by kernel"))
		return packets
	}
}

// testSourceAddress: all packets of a transfer, and refusals too, come from the address that was asked, which
// is not the one that the route prefers.
func testSourceAddress(t *testing.T) {
	s := tryInside(t, files{"a": noise(600)})
	c := &client{t, listenInClient(t), s.Addr().(*net.UDPAddr).AddrPort()}
	for _, packet := range [][]byte{rrq("a", "octet", "blksize", "512"), rrq("none", "octet"), {0, opWRQ, 0, 0}} {
		c.ask(packet)
		_, from := c.receive()
		require.Equal(t, serverAddress, from.Addr().String())
	}
}

// listenInClient opens a socket in the client's namespace.
func listenInClient(t *testing.T) *net.UDPConn {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	here, err := netns.Get()
	require.NoError(t, err)
	defer here.Close()
	there, err := netns.GetFromName(os.Getenv(clientSpaceEnv))
	require.NoError(t, err)
	defer there.Close()
	require.NoError(t, netns.Set(there))
	defer netns.Set(here)
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP(clientAddress)})
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}
