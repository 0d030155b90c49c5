package syslog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"rackstrap/internal/testenv"
	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

// The machines have loopback addresses, so that tests can be them.
var (
	macMaster = inventory.MAC{0x52, 0x54, 0, 0, 0, 0x80}
	macNode   = inventory.MAC{0x52, 0x54, 0, 0, 0, 0x81}
	ipMaster  = netip.MustParseAddr("127.0.0.80")
	ipNode    = netip.MustParseAddr("127.0.0.81")
	ipNobody  = netip.MustParseAddr("127.0.0.99")
)

const hash = "$6$saltsalt$Jm0nAbC.dEfGhIjKlMnOpQrStUvWxYz0123456789"

type receiver struct {
	*Server
	t        *testing.T
	rack     *lifecycle.Rack
	dataDir  string
	secret   string // of kmaster's installation
	registry *prometheus.Registry
	log      *testenv.Buffer
	stop     context.CancelFunc
	ended    chan error
}

// newReceiver runs one; kmaster installs, knode1 is armed.
func newReceiver(t *testing.T, edit ...func(*Options)) *receiver {
	t.Helper()
	r := &receiver{t: t, dataDir: t.TempDir(), registry: prometheus.NewRegistry(), log: &testenv.Buffer{}, ended: make(chan error, 1)}
	now := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	var mu sync.Mutex
	clock := func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		now = now.Add(time.Millisecond)
		return now
	}
	log := slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	install := inventory.Install{Attempts: 3, RootPasswordHash: hash}
	cfg := &inventory.Config{Machines: []inventory.Machine{
		{Name: "kmaster", MAC: macMaster, IP: ipMaster, Install: install},
		{Name: "knode1", MAC: macNode, IP: ipNode, Install: install},
	}}
	var err error
	r.rack, err = lifecycle.New(t.Context(), cfg, lifecycle.Options{Store: lifecycle.NewMemoryStore(), Log: log, Now: clock})
	require.NoError(t, err)
	r.secret = r.begin(macMaster)
	o := Options{Rack: r.rack, Log: log, Now: clock, Metrics: r.registry, Address: netip.MustParseAddr("127.0.0.1"), DataDir: r.dataDir}
	for _, e := range edit {
		e(&o)
	}
	r.Server, err = Listen(o)
	require.NoError(t, err)
	ctx, stop := context.WithCancel(context.Background())
	r.stop = stop
	go func() { r.ended <- r.Run(ctx) }()
	t.Cleanup(r.end)
	return r
}

// end stops the receiver and waits for it.
func (r *receiver) end() {
	r.stop()
	select {
	case err, open := <-r.ended:
		require.NoError(r.t, err)
		if open {
			close(r.ended)
		}
	case <-time.After(30 * time.Second):
		r.t.Error("Run does not end")
	}
}

func (r *receiver) begin(mac inventory.MAC) (secret string) {
	r.t.Helper()
	_, secret, err := r.rack.BeginInstall(r.t.Context(), mac, r.rack.Ticket(mac))
	require.NoError(r.t, err)
	return secret
}

func (r *receiver) dial(from netip.Addr) net.Conn {
	r.t.Helper()
	conn, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: from.AsSlice()}, Timeout: 10 * time.Second}).Dial("tcp", r.Addr().String())
	require.NoError(r.t, err)
	r.t.Cleanup(func() { conn.Close() })
	return conn
}

// send sends a whole stream as one machine, and returns when the receiver has taken it.
func (r *receiver) send(from netip.Addr, stream string) {
	r.t.Helper()
	conn := r.dial(from)
	conn.Write([]byte(stream)) // the receiver may turn it away
	conn.(*net.TCPConn).CloseWrite()
	conn.SetReadDeadline(time.Now().Add(30 * time.Second))
	conn.Read(make([]byte, 1)) // until it is closed at the other end, or reset
	conn.Close()
}

func (r *receiver) kept(machine string) string {
	r.t.Helper()
	text, err := os.ReadFile(LogFile(r.dataDir, machine))
	if err != nil {
		require.ErrorIs(r.t, err, os.ErrNotExist)
	}
	return string(text)
}

// texts are the lines of a log without their times.
func texts(log string) (lines []string) {
	for line := range strings.Lines(log) {
		_, text, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		lines = append(lines, text)
	}
	return lines
}

func (r *receiver) count(name string, reason string) (sum float64) {
	r.t.Helper()
	families, err := r.registry.Gather()
	require.NoError(r.t, err)
	for _, family := range families {
		if family.GetName() != "rackstrap_syslog_"+name {
			continue
		}
		for _, m := range family.GetMetric() {
			if reason == "" || m.GetLabel()[0].GetValue() == reason {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

func (r *receiver) eventually(ok func() bool, what string) {
	r.t.Helper()
	require.Eventually(r.t, ok, 30*time.Second, 5*time.Millisecond, what)
}

func TestInstallersLog(t *testing.T) {
	r := newReceiver(t)
	var stream strings.Builder
	stream.WriteString("<142>Nov 26 15:04:05 localhost anaconda: Kernel command line: inst.ks=http://10.10.10.1/ks/x\n")
	for i := 1; i <= 250; i++ {
		fmt.Fprintf(&stream, "<143>Nov 26 15:04:05 localhost packaging: Installing p%d (%d/250)\n", i, i)
	}
	stream.WriteString("<143>Nov 26 15:04:05 localhost program: \x1b[2Jpassword " + hash + " token " + r.secret + "\n<143>x: last")
	r.send(ipMaster, stream.String())

	lines := texts(r.kept("kmaster"))
	require.Len(t, lines, 1+1+250+2)
	require.Equal(t, "--- attempt 1, from 127.0.0.80", lines[0])
	require.Equal(t, "anaconda: Kernel command line: inst.ks=http://10.10.10.1/ks/x", lines[1])
	require.Equal(t, "packaging: Installing p1 (1/250)", lines[2])
	require.Equal(t, "program: ?[2Jpassword (hidden) token (hidden)", lines[252])
	require.Equal(t, "x: last", lines[253])
	info, err := os.Stat(LogFile(r.dataDir, "kmaster"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())

	require.Equal(t, "packages 100%: p250 (250/250)", r.rack.Machines()[0].Progress.String())
	events, err := r.rack.Events(t.Context(), lifecycle.EventQuery{MAC: macMaster})
	require.NoError(t, err)
	var said []string
	for _, e := range events {
		require.NotContains(t, e.Text, r.secret)
		if e.Kind == "progress" {
			require.Equal(t, "kmaster", e.Machine)
			said = append(said, e.Text)
		}
	}
	require.Equal(t, []string{"packages 1%: p1 (1/250)", "packages 10%: p25 (25/250)", "packages 20%: p50 (50/250)", "packages 30%: p75 (75/250)",
		"packages 40%: p100 (100/250)", "packages 50%: p125 (125/250)", "packages 60%: p150 (150/250)", "packages 70%: p175 (175/250)",
		"packages 80%: p200 (200/250)", "packages 90%: p225 (225/250)", "packages 100%: p250 (250/250)"}, said)
	require.NotContains(t, r.log.String(), r.secret)
	require.NotContains(t, r.log.String(), hash)
	require.EqualValues(t, 253, r.count("lines_total", ""))
}

// Any line is a sign of an installer: where packages come from elsewhere, and no report gets through, there is no other.
func TestLogIsASignOfTheInstaller(t *testing.T) {
	r := newReceiver(t)
	r.send(ipMaster, "<142>Nov 26 15:04:05 localhost anaconda: Kernel command line: inst.ks=http://10.10.10.1/ks/x\n")
	require.NoError(t, r.rack.CheckInstaller(t.Context(), "kmaster", 1, r.secret))
	secret := r.begin(macNode)
	r.send(ipNobody, "<142>Nov 26 15:04:05 localhost anaconda: hello\n")
	var held *lifecycle.HeldError
	require.ErrorAs(t, r.rack.CheckInstaller(t.Context(), "knode1", 1, secret), &held)
}

// Nobody's words are taken for a machine's, nor those of a machine that is not being installed.
func TestWhoIsTurnedAway(t *testing.T) {
	r := newReceiver(t)
	r.send(ipNobody, "<13>I am kmaster\n")
	r.send(ipNode, "<13>I am installed already\n")
	require.EqualValues(t, 1, r.count("refused_total", "stranger"))
	require.EqualValues(t, 1, r.count("refused_total", "not-installing"))
	require.Empty(t, r.kept("kmaster"))
	require.Empty(t, r.kept("knode1"))
	require.Zero(t, r.count("lines_total", ""))

	// A connection that began while it was installing is heard to its end.
	r.begin(macNode)
	conn := r.dial(ipNode)
	fmt.Fprint(conn, "<13>one\n")
	r.eventually(func() bool { return strings.Contains(r.kept("knode1"), "one") }, "it is taken")
	_, err := r.rack.Apply(t.Context(), "knode1", lifecycle.ReportDone, "")
	require.NoError(t, err)
	fmt.Fprint(conn, "<13>rebooting\n")
	r.eventually(func() bool { return strings.Contains(r.kept("knode1"), "rebooting") }, "its last words")
	require.NotContains(t, r.kept("kmaster"), "one")
}

// One that talks too much harms nobody but itself.
func TestLimits(t *testing.T) {
	r := newReceiver(t, func(o *Options) { o.LinesPerSecond, o.MaxFile, o.MaxConnsPerMachine = 10, 20<<10, 2 })
	r.send(ipMaster, strings.Repeat("<13>flood\n", 500)+"<13>"+strings.Repeat("x", 3*maxLine)+"\n")
	kept := r.kept("kmaster")
	require.Less(t, strings.Count(kept, "flood"), 200, "ten times what a second may have, and what the clock gave")
	require.GreaterOrEqual(t, strings.Count(kept, "flood"), 100)
	require.Greater(t, r.count("dropped_total", "rate"), 300.0)
	require.EqualValues(t, 1, r.count("dropped_total", "too-long"))
	require.EqualValues(t, 501, r.count("lines_total", ""))

	r.send(ipMaster, strings.Repeat("<13>again\n", 100))
	require.Less(t, strings.Count(r.kept("kmaster"), "again"), 30, "a new connection has no new budget")

	r.send(ipMaster, "999999999 <13>what a length\n")
	require.EqualValues(t, 1, r.count("dropped_total", "framing"))

	var open []net.Conn
	for range 2 {
		open = append(open, r.dial(ipMaster))
	}
	r.eventually(func() bool { return r.count("connections", "") == 2 }, "both are taken")
	r.send(ipMaster, "<13>one too many\n")
	require.EqualValues(t, 1, r.count("refused_total", "too-many"))
	r.eventually(func() bool {
		fmt.Fprint(open[1], "<13>still heard\n") // the clock of the test goes on with each line
		return strings.Contains(r.kept("kmaster"), "still heard")
	}, "the others go on")
	for _, conn := range open {
		conn.Close()
	}
	r.eventually(func() bool { return r.count("connections", "") == 0 }, "they are forgotten")
}

// The log of a machine is bounded, and begins anew without losing what was just before.
func TestLogIsBounded(t *testing.T) {
	r := newReceiver(t, func(o *Options) { o.MaxFile = 4 << 10 })
	line := "<13>" + strings.Repeat("y", 90) + "\n"
	for i := range 5 {
		r.send(ipMaster, strings.Repeat(line, 50)+fmt.Sprintf("<13>end %d\n", i))
	}
	files, err := filepath.Glob(filepath.Join(r.dataDir, "logs", "kmaster", "*"))
	require.NoError(t, err)
	require.Len(t, files, 2)
	size := int64(0)
	for _, file := range files {
		info, err := os.Stat(file)
		require.NoError(t, err)
		require.LessOrEqual(t, info.Size(), int64(4<<10))
		size += info.Size()
	}
	require.Greater(t, size, int64(4<<10))
	require.Contains(t, r.kept("kmaster"), "end 4")
}

// A disk that takes nothing costs the log, not the progress.
func TestLogThatCannotBeKept(t *testing.T) {
	r := newReceiver(t)
	require.NoError(t, os.WriteFile(filepath.Join(r.dataDir, "logs"), nil, 0o600)) // in the way of the directory
	r.send(ipMaster, "<142>Nov 26 15:04:05 localhost packaging: Installing bash (120/266)\n")
	require.Equal(t, "packages 45%: bash (120/266)", r.rack.Machines()[0].Progress.String())
	require.Contains(t, r.log.String(), "the installer's log cannot be kept")
}

func TestManyAtOnce(t *testing.T) {
	r := newReceiver(t)
	r.begin(macNode)
	var senders sync.WaitGroup
	for _, from := range []netip.Addr{ipMaster, ipNode} {
		for i := range 4 {
			senders.Go(func() {
				r.send(from, strings.Repeat(fmt.Sprintf("<13>%s %d\n", from, i), 200))
			})
		}
	}
	senders.Wait()
	for name, from := range map[string]netip.Addr{"kmaster": ipMaster, "knode1": ipNode} {
		for i := range 4 {
			require.Equal(t, 200, strings.Count(r.kept(name), fmt.Sprintf(" %s %d\n", from, i)))
		}
		require.Equal(t, 804, strings.Count(r.kept(name), "\n"), "none of the other's, none torn")
	}
}

// An open connection does not keep the daemon from ending.
func TestEnd(t *testing.T) {
	r := newReceiver(t)
	conn := r.dial(ipMaster)
	fmt.Fprint(conn, "<13>half a li")
	r.eventually(func() bool { return r.count("connections", "") == 1 }, "it is taken")
	r.end()
	conn.SetReadDeadline(time.Now().Add(30 * time.Second))
	_, err := conn.Read(make([]byte, 1))
	require.Error(t, err)
	var timeout net.Error
	require.False(t, errors.As(err, &timeout) && timeout.Timeout(), "it was closed")
}

// util-linux's logger is a real client of both framings and both formats.
func TestLogger(t *testing.T) {
	logger := testenv.NeedTool(t, "logger")
	r := newReceiver(t)
	r.rack.Reload(t.Context(), &inventory.Config{Machines: []inventory.Machine{
		{Name: "kmaster", MAC: macMaster, IP: netip.MustParseAddr("127.0.0.1"), Install: inventory.Install{Attempts: 3}}}})
	_, port, err := net.SplitHostPort(r.Addr().String())
	require.NoError(t, err)
	for i, format := range [][]string{{"--rfc3164"}, {"--rfc5424"}, {"--rfc3164", "--octet-count"}, {"--rfc5424", "--octet-count"}} {
		args := append([]string{"--tcp", "--server", "127.0.0.1", "--port", port, "--tag", "packaging"}, format...)
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		out, err := exec.CommandContext(ctx, logger, append(args, "--", fmt.Sprintf("Installing bash (%d/266)", 10+i))...).CombinedOutput()
		require.NoError(t, err, "%s", out)
		want := fmt.Sprintf("packaging: Installing bash (%d/266)\n", 10+i)
		r.eventually(func() bool { return strings.Contains(r.kept("kmaster"), want) }, strings.Join(format, " "))
	}
	require.Equal(t, "packages 4%: bash (13/266)", r.rack.Machines()[0].Progress.String())
}
