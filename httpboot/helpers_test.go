package httpboot

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"

	"rackstrap/assets"
	"rackstrap/bootplan"
	"rackstrap/internal/testenv"
	"rackstrap/inventory"
	"rackstrap/lifecycle"
	"rackstrap/media"
)

var (
	macMaster  = inventory.MAC{0x52, 0x54, 0, 0, 0, 0x80}
	macNode    = inventory.MAC{0x52, 0x54, 0, 0, 0, 0x81}
	macUnknown = inventory.MAC{0x52, 0x54, 0, 0, 0, 0x99}

	// Reserved addresses are loopback's, so that tests over real connections can be the machines.
	ipMaster      = netip.MustParseAddr("127.0.0.80")
	ipNode        = netip.MustParseAddr("127.0.0.81")
	ipLeased      = netip.MustParseAddr("127.0.0.99") // of macUnknown
	ipNobody      = netip.MustParseAddr("127.0.0.1")  // no machine's: an operator on the appliance
	ipForeignLoop = netip.MustParseAddr("127.0.0.2")  // no machine's either
	ipForeign     = netip.MustParseAddr("192.0.2.7")  // no machine's, and not on this host
)

// files is the tree of the media, as unpacked directory and inside an ISO.
var files = map[string]string{
	".treeinfo":                    "[general]\nfamily = CentOS\narch = x86_64\n[images-x86_64]\nkernel = images/pxeboot/vmlinuz\ninitrd = images/pxeboot/initrd.img\n",
	"images/pxeboot/vmlinuz":       strings.Repeat("kernel ", 10_000),
	"images/pxeboot/initrd.img":    strings.Repeat("initrd ", 100_000),
	"EFI/BOOT/BOOTX64.EFI":         "shim",
	"EFI/BOOT/grubx64.efi":         "GRUB",
	"Packages/bash-4.2.46.rpm":     strings.Repeat("bash", 5_000),
	"Packages/a b & <i>c.rpm":      "odd name",
	"Packages/100%25.rpm":          "percent",
	"a/b/c/d/e/f/g/h/i/j/deep.txt": "deep",
	"empty":                        "",
}

func writeTree(t testing.TB, dir string) {
	for name, text := range files {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	}
	require.NoError(t, os.Symlink("images/pxeboot/vmlinuz", filepath.Join(dir, "kernel")))
	require.NoError(t, os.Symlink("../outside.txt", filepath.Join(dir, "escape")))
}

// makeISO packs a directory.
func makeISO(t testing.TB, dir string) string {
	xorriso := testenv.NeedTool(t, "xorriso")
	iso := filepath.Join(t.TempDir(), "medium.iso")
	out, err := exec.Command(xorriso, "-as", "mkisofs", "-quiet", "-R", "-J", "-iso-level", "3", "-o", iso, dir).CombinedOutput()
	require.NoError(t, err, "%s", out)
	return iso
}

// outside is the content of a file beside the tree, which nobody may ever see.
const outside = "OUTSIDE-OF-THE-TREE"

func treeDir(t testing.TB) string {
	parent := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(parent, "outside.txt"), []byte(outside), 0o644))
	dir := filepath.Join(parent, "tree")
	writeTree(t, dir)
	return dir
}

func config() *inventory.Config {
	install := inventory.Install{Attempts: 3, LocalBoot: inventory.LocalAuto, Medium: "centos-7.9"}
	return &inventory.Config{
		Server: inventory.Server{Address: netip.MustParseAddr("127.0.0.1"), HTTPPort: 8080},
		Network: inventory.Network{
			Subnet: inventory.Subnet{Prefix: netip.MustParsePrefix("127.0.0.0/24")},
			DHCP:   inventory.DHCP{Mode: inventory.DHCPServer, Unknown: inventory.UnknownDiscover},
		},
		Media: []inventory.Medium{{Name: "centos-7.9", ISO: "x.iso"}, {Name: "unpacked", Dir: "x"}},
		Machines: []inventory.Machine{
			{Name: "kmaster", MAC: macMaster, IP: ipMaster, Install: install},
			{Name: "knode1", MAC: macNode, IP: ipNode, Install: install},
		},
	}
}

// answerFile is a Kickstart that says what it was asked for.
type answerFile struct {
	mu     sync.Mutex
	secret string
	err    error
	panics bool
}

func (a *answerFile) Render(_ context.Context, m inventory.Machine, rec lifecycle.Record, secret string) ([]byte, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.secret = secret
	if a.panics {
		panic("as it was told")
	}
	if a.err != nil {
		return nil, fmt.Errorf("%w: near token=%s", a.err, secret)
	}
	return fmt.Appendf(nil, "# %s attempt %d\ntoken=%s\n", m.Name, rec.Attempt, secret), nil
}

// failingStore is a store whose disk may be full.
type failingStore struct {
	*lifecycle.MemoryStore
	mu   sync.Mutex
	full error
}

func (s *failingStore) fill(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.full = err
}

func (s *failingStore) fault() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.full
}

func (s *failingStore) Commit(ctx context.Context, rec lifecycle.Record, events ...lifecycle.Event) (lifecycle.Record, error) {
	if err := s.fault(); err != nil {
		return rec, err
	}
	return s.MemoryStore.Commit(ctx, rec, events...)
}

func (s *failingStore) Append(ctx context.Context, events []lifecycle.Event, seen []lifecycle.Sighting) error {
	if err := s.fault(); err != nil {
		return err
	}
	return s.MemoryStore.Append(ctx, events, seen)
}

// plane is a boot plane under test.
type plane struct {
	*Server
	t        testing.TB
	rack     *lifecycle.Rack
	plan     *bootplan.Plan
	store    *failingStore
	registry *prometheus.Registry
	log      *testenv.Buffer
	now      *time.Time
	answers  *answerFile
	hardware map[netip.Addr]inventory.MAC // behind addresses of the link
	ticket   string                       // an old one, see at
}

// kickstart is the path of a machine's kickstart in a boot whose script was just read.
func (p *plane) kickstart(mac inventory.MAC) string {
	return "/ks/" + mac.Hyphens() + "/" + p.rack.Ticket(mac)
}

// sendmac are the headers of an installer with one NIC.
func sendmac(mac inventory.MAC) []string {
	return []string{"X-RHN-Provisioning-MAC-0", "eth0 " + mac.String()}
}

// newPlane makes one with the tree as ISO and unpacked, and macUnknown with a lease.
func newPlane(t testing.TB, edit ...func(*Options, *inventory.Config)) *plane {
	dir := treeDir(t)
	library, err := media.OpenLibrary([]media.Spec{{Name: "centos-7.9", ISO: makeISO(t, dir)}, {Name: "unpacked", Dir: dir}})
	require.NoError(t, err)
	return planeOf(t, library, edit...)
}

func planeOf(t testing.TB, library *media.Library, edit ...func(*Options, *inventory.Config)) *plane {
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	p := &plane{t: t, store: &failingStore{MemoryStore: lifecycle.NewMemoryStore()}, registry: prometheus.NewRegistry(),
		log: &testenv.Buffer{}, now: &now, answers: &answerFile{}, hardware: map[netip.Addr]inventory.MAC{}}
	loaders, err := assets.OpenLoaders("")
	require.NoError(t, err)
	o := Options{
		Kickstart: p.answers,
		Log:       slog.New(slog.NewTextHandler(p.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Now:       func() time.Time { return *p.now },
		Metrics:   p.registry, Gatherer: p.registry,
		Address: netip.MustParseAddr("127.0.0.1"),
	}
	cfg := config()
	for _, e := range edit {
		e(&o, cfg)
	}
	p.rack, err = lifecycle.New(t.Context(), cfg, lifecycle.Options{Store: p.store, Log: o.Log, Now: o.Now})
	require.NoError(t, err)
	require.NoError(t, p.rack.Bind(t.Context(), lifecycle.Lease{IP: ipLeased, MAC: macUnknown, State: lifecycle.LeaseBound, Expires: now.Add(time.Hour)}))
	p.rack.See(lifecycle.Sighting{MAC: macUnknown})
	for _, mac := range []inventory.MAC{macMaster, macNode} {
		p.rack.See(lifecycle.Sighting{MAC: mac, LastBoot: now})
	}
	p.plan = bootplan.New(p.rack, loaders, library)
	p.plan.SetNeighbours(func(ip netip.Addr) (inventory.MAC, bool) { mac, ok := p.hardware[ip]; return mac, ok })
	t.Cleanup(func() { p.plan.Library().Close() })
	o.Rack, o.Plan = p.rack, p.plan
	p.Server, err = Listen(o)
	require.NoError(t, err)
	t.Cleanup(func() { p.Server.Close() })
	return p
}

// run serves on the network until the test ends.
func (p *plane) run() *plane {
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	p.t.Cleanup(func() {
		stop()
		select {
		case err := <-ended:
			require.NoError(p.t, err)
		case <-time.After(10 * time.Second):
			p.t.Error("Run does not end")
		}
	})
	return p
}

func (p *plane) url(path string) string { return "http://" + p.Addr().String() + path }

// events lists the events of a kind.
func (p *plane) events(kind string) []lifecycle.Event {
	p.t.Helper()
	all, err := p.rack.Events(context.Background(), lifecycle.EventQuery{})
	require.NoError(p.t, err)
	var found []lifecycle.Event
	for _, e := range all {
		if e.Source == "http" && e.Kind == kind {
			found = append(found, e)
		}
	}
	return found
}

// count is the value of a metric, summed over its labels.
func (p *plane) count(name string, labels ...string) float64 {
	p.t.Helper()
	families, err := p.registry.Gather()
	require.NoError(p.t, err)
	sum := 0.0
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, m := range family.GetMetric() {
			if matches(m, labels) {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

func matches(m *dto.Metric, labels []string) bool {
	for i := 0; i < len(labels); i += 2 {
		ok := false
		for _, l := range m.GetLabel() {
			ok = ok || l.GetName() == labels[i] && l.GetValue() == labels[i+1]
		}
		if !ok {
			return false
		}
	}
	return true
}

// eventually waits for something that happens soon.
func eventually(t testing.TB, ok func() bool, what string) {
	t.Helper()
	require.Eventually(t, ok, 20*time.Second, 5*time.Millisecond, what)
}

// reply is an answer, read whole.
type reply struct {
	*http.Response
	body string
}

// request asks over a real connection from a local address.
func (p *plane) request(method, path string, from netip.Addr, headers ...string) reply {
	p.t.Helper()
	return ask(p.t, method, p.url(path), from, headers...)
}

func ask(t testing.TB, method, url string, from netip.Addr, headers ...string) reply {
	t.Helper()
	r, err := http.NewRequest(method, url, nil)
	require.NoError(t, err)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	transport := &http.Transport{DisableKeepAlives: true, DisableCompression: true,
		DialContext: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: from.AsSlice()}}).DialContext}
	client := &http.Client{Transport: transport, Timeout: 20 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("redirected") }}
	resp, err := client.Do(r)
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return reply{resp, string(body)}
}

func (p *plane) get(path string, headers ...string) reply {
	p.t.Helper()
	return p.request(http.MethodGet, path, ipNobody, headers...)
}

// raw sends bytes as they are, from nobody's address, and reads all of the answer to a GET.
func (p *plane) raw(text string) (status int, body string) {
	p.t.Helper()
	conn, err := net.Dial("tcp", p.Addr().String())
	require.NoError(p.t, err)
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	go io.WriteString(conn, text) // the server may answer before it has read all
	return readReply(p.t, conn)
}

// readReply reads one answer off a connection.
func readReply(t testing.TB, conn net.Conn) (status int, body string) {
	t.Helper()
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err)
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text)
}

// direct asks the handler, from any address.
func (p *plane) direct(method, path string, from netip.Addr, headers ...string) *httptest.ResponseRecorder {
	p.t.Helper()
	r := httptest.NewRequest(method, path, nil)
	r.RemoteAddr = netip.AddrPortFrom(from, 12345).String()
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	p.Handler().ServeHTTP(w, r)
	return w
}

// emptyLibrary is for tests without media.
func emptyLibrary(t testing.TB) *media.Library {
	library, err := media.OpenLibrary(nil)
	require.NoError(t, err)
	return library
}

// readAll takes a stream of answers apart.
func readAll(t testing.TB, r io.Reader) (bodies []string) {
	t.Helper()
	stream := bufio.NewReader(r)
	for {
		if _, err := stream.Peek(1); err == io.EOF {
			return bodies
		}
		resp, err := http.ReadResponse(stream, nil)
		require.NoError(t, err)
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		bodies = append(bodies, string(body))
	}
}
