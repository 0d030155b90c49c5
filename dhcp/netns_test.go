package dhcp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netns"
	"golang.org/x/sync/errgroup"

	"rackstrap/internal/testenv"
	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

// The tests with real clients have a small network of their own:
//
//	srv 10.10.10.1 ──┐
//	cli              ├─ a bridge ─ rly 10.10.10.2 | 10.20.0.1 ── far
//	occ              ┘
//
// The server under test is this test binary once more, run in srv with the environment variable serveEnv.
const serveEnv = "RACKSTRAP_TEST_DHCP_SERVE"

func TestMain(m *testing.M) {
	if scenario := os.Getenv(serveEnv); scenario != "" {
		if err := serveScenario(scenario); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// scenarios are the configurations of the server under test.
var scenarios = map[string]func(*inventory.Config){
	"plain": func(*inventory.Config) {},
	"short": func(c *inventory.Config) { c.Network.DHCP.LeaseTime = 4 * time.Second },
	"probe": func(c *inventory.Config) { c.Network.DHCP.ProbeInterval = 300 * time.Millisecond },
	"proxy": mode(inventory.DHCPProxy),
	"load":  loaded,
	"cards": func(c *inventory.Config) {
		c.Machines[0].MACs = []inventory.MAC{macMaster, macSecond}
		c.Network.DHCP.Unknown = inventory.UnknownEnroll
	},
}

// loadMachines is how many reservations the scenario "load" has.
const loadMachines = 1000

func loaded(c *inventory.Config) {
	c.Network.Relayed = append(c.Network.Relayed, inventory.Subnet{
		Prefix: netip.MustParsePrefix("10.30.0.0/16"), Pool: rangeOf("10.30.128.0", "10.30.255.250")})
	for i := range loadMachines {
		c.Machines = append(c.Machines, inventory.Machine{Name: fmt.Sprintf("load%d", i), MAC: mac(i),
			IP: addr4(0x0a1e0100 + uint32(i)), Install: inventory.Install{Attempts: 3}})
	}
}

// serveScenario serves until its standard input ends, and writes events to its standard output.
func serveScenario(name string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { io.Copy(io.Discard, os.Stdin); cancel() }() // the test is gone

	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	rack, err := lifecycle.New(ctx, config(scenarios[name]), lifecycle.Options{Store: lifecycle.NewMemoryStore(), Log: log, Now: time.Now})
	if err != nil {
		return err
	}
	s, err := Listen(Options{Rack: rack, Boot: bootTable{}, Log: log, Now: time.Now, Interface: "eth0", Address: ours, Port: portServer})
	if err != nil {
		return err
	}
	if name == "probe" {
		s.foreignTime = time.Second
	}
	events := rack.Follow(ctx)
	fmt.Println("ready")
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.Run(ctx) })
	g.Go(func() error { return rack.Run(ctx) })
	g.Go(func() error {
		for e := range events {
			if err := json.NewEncoder(os.Stdout).Encode(e); err != nil {
				return nil
			}
		}
		return nil
	})
	return g.Wait()
}

// network is the namespaces of one test.
type network struct {
	t      *testing.T
	prefix string
}

func newNetwork(t *testing.T) *network {
	t.Helper()
	testenv.NeedRoot(t)
	testenv.NeedTool(t, "ip")
	removeStale()
	n := &network{t, fmt.Sprintf("rsdhcp%d", os.Getpid())}
	t.Cleanup(n.remove)
	var batch strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&batch, format+"\n", args...) }
	for _, name := range []string{"sw", "srv", "cli", "occ", "rly", "far"} {
		n.ip("netns", "add", n.ns(name))
	}
	n.ip("-n", n.ns("sw"), "link", "add", "br0", "type", "bridge")
	for _, port := range []string{"srv", "cli", "occ", "rly"} {
		say("link add p-%s netns %s type veth peer name eth0 netns %s", port, n.ns("sw"), n.ns(port))
	}
	say("link add eth1 netns %s type veth peer name eth0 netns %s", n.ns("rly"), n.ns("far"))
	n.batch("", batch.String())
	n.batch("sw", "link set p-srv master br0 up\nlink set p-cli master br0 up\nlink set p-occ master br0 up\nlink set p-rly master br0 up\nlink set br0 up\n")
	n.batch("srv", "link set lo up\nlink set eth0 up\naddress add 10.10.10.1/24 dev eth0\nroute add 10.20.0.0/24 via 10.10.10.2\n")
	n.batch("cli", "link set lo up\nlink set eth0 up\n")
	n.batch("occ", "link set lo up\nlink set eth0 address 52:54:00:00:00:aa up\n")
	n.batch("rly", "link set lo up\nlink set eth0 up\nlink set eth1 up\naddress add 10.10.10.2/24 dev eth0\naddress add 10.20.0.1/24 dev eth1\n")
	n.batch("far", "link set lo up\nlink set eth0 address 52:54:00:00:00:50 up\n")
	n.run("rly", "sysctl", "-qw", "net.ipv4.ip_forward=1")
	return n
}

func (n *network) ns(name string) string { return n.prefix + "-" + name }

func (n *network) remove() {
	for _, name := range []string{"cli", "occ", "far", "rly", "srv", "sw"} {
		exec.Command("ip", "netns", "del", n.ns(name)).Run()
	}
}

// removeStale removes the networks of tests that were killed.
func removeStale() {
	entries, _ := filepath.Glob("/run/netns/rsdhcp*-*")
	for _, e := range entries {
		name := filepath.Base(e)
		pid, _, _ := strings.Cut(strings.TrimPrefix(name, "rsdhcp"), "-")
		if n, err := strconv.Atoi(pid); err == nil && errors.Is(syscall.Kill(n, 0), syscall.ESRCH) {
			exec.Command("ip", "netns", "del", name).Run()
		}
	}
}

func (n *network) ip(args ...string) {
	n.t.Helper()
	out, err := exec.Command("ip", args...).CombinedOutput()
	require.NoError(n.t, err, "ip %v: %s", args, out)
}

func (n *network) batch(ns, lines string) {
	n.t.Helper()
	args := []string{"-batch", "-"}
	if ns != "" {
		args = append([]string{"-n", n.ns(ns)}, args...)
	}
	cmd := exec.Command("ip", args...)
	cmd.Stdin = strings.NewReader(lines)
	out, err := cmd.CombinedOutput()
	require.NoError(n.t, err, "%s: %s", lines, out)
}

// command is a program in a namespace, killed when the test ends, or after a deadline.
func (n *network) command(ns, name string, args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	n.t.Cleanup(cancel)
	return exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", n.ns(ns), name}, args...)...)
}

// run is the output of a program that has to succeed.
func (n *network) run(ns, name string, args ...string) string {
	n.t.Helper()
	out, err := n.command(ns, name, args...).CombinedOutput()
	require.NoError(n.t, err, "%s %v: %s", name, args, out)
	return string(out)
}

// mac gives the client's NIC another address.
func (n *network) mac(ns string, mac inventory.MAC) {
	n.batch(ns, "link set eth0 down\naddress flush dev eth0\nlink set eth0 address "+mac.String()+"\nlink set eth0 up\n")
}

// daemon is the server under test.
type daemon struct {
	t      *testing.T
	cmd    *exec.Cmd
	stdin  io.Closer
	events chan lifecycle.Event
	stderr *testenv.Buffer
	ended  chan struct{}
}

// tryServe starts the server, and returns what it said if it did not get ready.
func (n *network) tryServe(t *testing.T, scenario string) (*daemon, string) {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command("ip", "netns", "exec", n.ns("srv"), self)
	cmd.Env = append(os.Environ(), serveEnv+"="+scenario)
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	d := &daemon{t: t, cmd: cmd, stdin: stdin, events: make(chan lifecycle.Event, 1000), stderr: &testenv.Buffer{}, ended: make(chan struct{})}
	cmd.Stderr = d.stderr
	require.NoError(t, cmd.Start())
	t.Cleanup(d.stop)
	lines := bufio.NewScanner(stdout)
	ready := lines.Scan() && lines.Text() == "ready"
	go func() {
		defer close(d.ended)
		for lines.Scan() {
			var e lifecycle.Event
			if json.Unmarshal(lines.Bytes(), &e) == nil {
				select {
				case d.events <- e:
				default:
				}
			}
		}
		cmd.Wait()
	}()
	if !ready {
		<-d.ended
		return nil, d.stderr.String()
	}
	return d, ""
}

func (n *network) serve(t *testing.T, scenario string) *daemon {
	t.Helper()
	d, fault := n.tryServe(t, scenario)
	require.NotNil(t, d, fault)
	return d
}

// stop ends the server, cleanly or not at all.
func (d *daemon) stop() {
	d.stdin.Close()
	select {
	case <-d.ended:
	case <-time.After(5 * time.Second):
		d.cmd.Process.Kill()
		d.t.Error("the server does not end")
	}
	if strings.Contains(d.stderr.String(), "stack=") {
		d.t.Error(d.stderr.String())
	}
}

// await is the next event whose text contains this.
func (d *daemon) await(kind, text string) lifecycle.Event {
	d.t.Helper()
	deadline := time.After(10 * time.Second)
	var seen []string
	for {
		select {
		case e := <-d.events:
			if e.Kind == kind && strings.Contains(e.Text, text) {
				return e
			}
			seen = append(seen, e.Kind+": "+e.Text)
		case <-deadline:
			require.Fail(d.t, "no event", "%s: %q in %q; log: %s", kind, text, seen, d.stderr)
		}
	}
}

// inside runs f on a thread in a namespace: sockets that it opens stay there.
func (n *network) inside(ns string, f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		handle, err := netns.GetFromName(n.ns(ns))
		if err == nil {
			defer handle.Close()
			err = netns.Set(handle)
		}
		if err == nil {
			err = f()
		}
		result <- err
	}()
	return <-result
}

// script writes a shell script for udhcpc and dhclient.
func script(t *testing.T, body string) string {
	path := filepath.Join(t.TempDir(), "script")
	require.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\n"+body), 0o755))
	return path
}

// udhcpc runs BusyBox's client once, and returns what the lease says.
func (n *network) udhcpc(t *testing.T, ns string, args ...string) (map[string]string, string) {
	t.Helper()
	out := filepath.Join(t.TempDir(), "env")
	args = append([]string{"-i", "eth0", "-q", "-n", "-f", "-t", "3", "-T", "2", "-s", script(t, `[ "$1" = bound ] && env >`+out+"\nexit 0\n")}, args...)
	log, _ := n.command(ns, "udhcpc", args...).CombinedOutput()
	vars := map[string]string{}
	data, _ := os.ReadFile(out)
	for line := range strings.Lines(string(data)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		vars[name] = value
	}
	return vars, string(log)
}

// udhcpcAs are the arguments that make udhcpc a firmware.
func udhcpcAs(class, arch string, more ...string) []string {
	return append([]string{"-V", class, "-x", "0x5d:" + arch, "-x", "0x5e:010300",
		"-x", "0x61:00101112131415161718191a1b1c1d1e1f", "-O", "tftp", "-O", "bootfile"}, more...)
}
