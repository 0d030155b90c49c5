package lab

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/internal/testenv"
)

// routerEnv makes the test binary NoRouter, on the interface named.
const routerEnv = "RACKSTRAP_LAB_TEST_ROUTER"

// crashEnv makes the test binary a helper that brings a lab up and then waits to be killed.
const crashEnv = "RACKSTRAP_LAB_TEST_CRASH"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == MachineCommand {
		os.Exit(MachineMain(context.Background(), os.Args[2:]))
	}
	if dir := os.Getenv(crashEnv); dir != "" {
		crashHelper(dir)
		return
	}
	if nic := os.Getenv(routerEnv); nic != "" {
		if err := NoRouter(context.Background(), nic); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func mac(last byte) net.HardwareAddr { return net.HardwareAddr{0x52, 0x54, 0, 0, 0xab, last} }

// testSpec is a lab with a name of its own, so that labs on one host do not meet.
func testSpec(t testing.TB, stateDir string, machines ...Machine) Spec {
	return Spec{Name: fmt.Sprintf("labtest%d", os.Getpid()), StateDir: stateDir, Bridge: "labrack0", Machines: machines}
}

// newTestLab returns a lab that is down, and surely so again at the end.
func newTestLab(t testing.TB, machines ...Machine) *Lab {
	testenv.NeedRoot(t)
	testenv.NeedTool(t, "ip")
	l := New(testSpec(t, t.TempDir(), machines...), slog.New(slog.NewTextHandler(t.Output(), nil)))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		require.NoError(t, l.Down(ctx))
		requireNothingLeft(t, l)
	})
	return l
}

func deadline(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// requireNothingLeft looks at the host itself, not at the lab's record.
func requireNothingLeft(t testing.TB, l *Lab) {
	t.Helper()
	require.NoFileExists(t, l.statePath())
	namespaces, err := ip(t.Context(), "netns", "list")
	if t.Context().Err() == nil { // in a Cleanup the test's context is done
		require.NoError(t, err)
	}
	require.NotContains(t, namespaces, l.spec.Name)
	require.NoFileExists(t, filepath.Join(netnsDir, l.spec.Name))
	links, err := net.Interfaces()
	require.NoError(t, err)
	for _, link := range links {
		require.NotEqual(t, l.spec.Bridge, link.Name, "the lab must not touch the host's own network")
	}
	require.Empty(t, processesIn(t, l.spec.StateDir))
}

// processesIn lists processes that work in a directory below.
func processesIn(t testing.TB, dir string) (found []string) {
	cwds, err := filepath.Glob("/proc/[0-9]*/cwd")
	require.NoError(t, err)
	for _, link := range cwds {
		if cwd, err := os.Readlink(link); err == nil && strings.HasPrefix(cwd, dir+"/") {
			found = append(found, link+" -> "+cwd)
		}
	}
	return found
}

// startNoRouter runs NoRouter in the lab.
func startNoRouter(t testing.TB, l *Lab) {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), routerEnv+"="+l.Bridge())
	_, err = l.Start(t.Context(), cmd)
	require.NoError(t, err)
}

// A host that asks for a router is told at once that there is none; it gets neither a route nor an address.
func TestNoRouter(t *testing.T) {
	testenv.NeedFile(t, "/proc/sys/net/ipv6")
	l := newTestLab(t)
	ctx := deadline(t, time.Minute)
	require.NoError(t, l.Up(ctx))
	startNoRouter(t, l)
	host := l.spec.Name + "h"
	t.Cleanup(func() { exec.Command("ip", "netns", "del", host).Run() })
	for _, args := range [][]string{
		{"netns", "add", host},
		{"link", "add", "port0", "netns", l.spec.Name, "type", "veth", "peer", "name", "eth0", "netns", host},
		{"-n", l.spec.Name, "link", "set", "port0", "master", l.Bridge(), "up"},
		{"-n", host, "link", "set", "eth0", "up"}, // from here on its kernel asks, a few times
	} {
		_, err := ip(ctx, args...)
		require.NoError(t, err)
	}
	require.Eventually(t, func() bool {
		counters, err := output(ctx, "ip", "netns", "exec", host, "cat", "/proc/net/dev_snmp6/eth0")
		require.NoError(t, err)
		return regexp.MustCompile(`Icmp6InRouterAdvertisements\s+[1-9]`).MatchString(counters)
	}, 30*time.Second, 50*time.Millisecond, "no advertisement")
	routes, err := ip(ctx, "-n", host, "-6", "route", "show", "default")
	require.NoError(t, err)
	require.Empty(t, routes)
	addresses, err := ip(ctx, "-n", host, "-6", "addr", "show", "dev", "eth0", "scope", "global")
	require.NoError(t, err)
	require.Empty(t, addresses)
}

func TestUpAndDown(t *testing.T) {
	l := newTestLab(t, Machine{Name: "a", MAC: mac(1)}, Machine{Name: "b", MAC: mac(2)})
	ctx := deadline(t, time.Minute)

	_, err := l.Status()
	require.ErrorIs(t, err, ErrNotUp)
	require.ErrorIs(t, l.PowerOff(ctx, "a"), ErrNotUp)
	require.NoError(t, l.Down(ctx), "nothing to take down")

	require.NoError(t, l.Up(ctx))
	links, err := outputOf(l.Command(ctx, "ip", "-br", "link"))
	require.NoError(t, err)
	require.Contains(t, links, "labrack0")
	require.Contains(t, links, "tap0")
	require.Contains(t, links, "tap1")
	addresses, err := outputOf(l.Command(ctx, "ip", "-br", "-4", "addr", "show", "labrack0"))
	require.NoError(t, err)
	require.Contains(t, addresses, "10.10.10.1/24")

	before := netnsInode(l.spec.Name)
	require.NoError(t, l.Up(ctx), "again")
	require.Equal(t, before, netnsInode(l.spec.Name), "what is up stays")

	grown := New(testSpec(t, l.spec.StateDir, Machine{Name: "a", MAC: mac(1)}, Machine{Name: "b", MAC: mac(2)},
		Machine{Name: "c", MAC: mac(3), Firmware: UEFI}), nil)
	require.NoError(t, grown.Up(ctx), "with one machine more")
	require.Equal(t, before, netnsInode(l.spec.Name))
	status, err := l.Status()
	require.NoError(t, err)
	require.Len(t, status, 3)
	require.Equal(t, MachineStatus{Name: "c", MAC: "52:54:00:00:ab:03", Firmware: UEFI}, status[2])

	_, err = l.WaitSerial(ctx, "a", detached)
	require.ErrorIs(t, err, ErrOff)
	require.ErrorIs(t, l.Reset(ctx, "a"), ErrOff)
	require.ErrorIs(t, l.PowerOff(ctx, "z"), ErrUnknownMachine)

	require.NoError(t, New(Spec{StateDir: l.spec.StateDir}, nil).Down(ctx), "by a handle that knows the directory alone")
	requireNothingLeft(t, l)
	require.NoError(t, l.Down(ctx), "again")
}

func TestUpRefusesAForeignNamespace(t *testing.T) {
	l := newTestLab(t)
	ctx := deadline(t, time.Minute)
	_, err := ip(ctx, "netns", "add", l.spec.Name)
	require.NoError(t, err)
	t.Cleanup(func() {
		_, err := ip(context.Background(), "netns", "del", l.spec.Name)
		require.NoError(t, err, "the lab has removed what is not its own")
	})
	require.ErrorIs(t, l.Up(ctx), ErrNamespaceTaken)
	require.NoError(t, l.Down(ctx))
}

func TestUpCleansACrashInBetween(t *testing.T) {
	l := newTestLab(t, Machine{Name: "a", MAC: mac(1)})
	ctx := deadline(t, time.Minute)
	// The crash came after `ip netns add`, before anything else was recorded; a process is in there already.
	require.NoError(t, writeState(l.statePath(), &state{
		BootID: bootID(), Namespace: l.spec.Name, Bridge: l.spec.Bridge, Gateway: l.spec.Gateway,
	}))
	_, err := ip(ctx, "netns", "add", l.spec.Name)
	require.NoError(t, err)
	stray := exec.Command("ip", "netns", "exec", l.spec.Name, "sleep", "60")
	require.NoError(t, stray.Start())
	ended := make(chan error, 1)
	go func() { ended <- stray.Wait() }()
	require.NoError(t, poll(ctx, func() (bool, error) {
		out, err := ip(ctx, "netns", "pids", l.spec.Name)
		return strings.TrimSpace(out) != "", err
	}))

	require.NoError(t, l.Up(ctx))
	require.Error(t, <-ended, "killed")
	_, err = l.Status()
	require.NoError(t, err)
}

func TestStartAndCommand(t *testing.T) {
	l := newTestLab(t)
	ctx := deadline(t, time.Minute)
	_, err := l.Start(ctx, exec.Command("sleep", "60"))
	require.ErrorIs(t, err, ErrNotUp)

	require.NoError(t, l.Up(ctx))
	cmd := exec.Command("sh", "-c", "echo hello from $PLACE; ip -br link; exec sleep 60")
	cmd.Env = append(os.Environ(), "PLACE=inside")
	log, err := l.Start(ctx, cmd)
	require.NoError(t, err)
	match, err := l.WaitLog(ctx, log, mustMatch(`hello from (\w+)\n(?s:.*)labrack0`))
	require.NoError(t, err)
	require.Equal(t, "inside", match[1])

	appliances, err := l.Appliances()
	require.NoError(t, err)
	require.Len(t, appliances, 1)
	require.True(t, appliances[0].Running)

	brief := deadline(t, 300*time.Millisecond)
	_, err = l.WaitLog(brief, log, mustMatch("never"))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "labrack0", "the end of the log belongs to the error")

	log, err = l.Start(ctx, exec.Command("sh", "-c", "echo could not bind >&2; exit 1"))
	require.NoError(t, err)
	_, err = l.WaitLog(ctx, log, mustMatch("^ready"))
	require.ErrorContains(t, err, "could not bind")
	require.NoError(t, ctx.Err(), "an appliance that has ended is not waited for")

	require.NoError(t, l.Down(ctx))
	_, err = os.Stat(log)
	require.NoError(t, err, "logs outlive the lab")
}

// crashHelper is the other process of TestDownAfterKill.
func crashHelper(dir string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	spec := testSpec(nil, dir, Machine{Name: "a", MAC: mac(1), MemoryMiB: 128, DiskGiB: 1})
	spec.Accel = accelTCG
	spec.Name = os.Getenv(crashEnv + "_NAME")
	l := New(spec, nil)
	for _, do := range []func() error{
		func() error { return l.Up(ctx) },
		func() error { _, err := l.Start(ctx, exec.Command("sleep", "60")); return err },
		func() error { return l.PowerOn(ctx, "a") },
	} {
		if err := do(); err != nil {
			fmt.Println("helper:", err)
			return
		}
	}
	fmt.Println("helper: up")
	time.Sleep(time.Minute)
}

// A lab is brought up by a process that is killed; another process sees it and takes it down.
func TestDownAfterKill(t *testing.T) {
	testenv.NeedQEMU(t)
	l := newTestLab(t)
	ctx := deadline(t, 2*time.Minute)
	self, err := os.Executable()
	require.NoError(t, err)
	helper := exec.CommandContext(ctx, self)
	helper.Env = append(os.Environ(), crashEnv+"="+l.spec.StateDir, crashEnv+"_NAME="+l.spec.Name)
	out, err := helper.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, helper.Start())
	line, _ := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, helper.Process.Kill())
	require.Error(t, helper.Wait())
	require.Equal(t, "helper: up\n", line)

	_, err = l.WaitSerial(ctx, "a", mustMatch("SeaBIOS"))
	require.NoError(t, err, "the machine outlives the process that powered it on")
	status, err := l.Status()
	require.NoError(t, err)
	require.True(t, status[0].Running)
	require.NotZero(t, status[0].PID)
	require.Positive(t, status[0].Uptime)
	require.NotEmpty(t, status[0].LastLine)
	require.Len(t, processesIn(t, l.spec.StateDir), 1, "QEMU")

	require.NoError(t, l.Down(ctx))
	requireNothingLeft(t, l)
	require.NoFileExists(t, filepath.Join(l.machineDir("a"), diskFile))
	require.FileExists(t, filepath.Join(l.machineDir("a"), "serial-1.log"))
}

func TestRecycledPIDIsNotKilled(t *testing.T) {
	bystander := exec.Command("sleep", "60")
	require.NoError(t, bystander.Start())
	t.Cleanup(func() { bystander.Process.Kill(); bystander.Wait() })
	now, err := identify(bystander.Process.Pid)
	require.NoError(t, err)
	require.True(t, now.alive())

	earlier := process{PID: now.PID, Start: now.Start - 1}
	require.False(t, earlier.alive())
	require.NoError(t, earlier.end(deadline(t, time.Minute), time.Second))
	require.True(t, now.alive())

	require.NoError(t, now.end(deadline(t, time.Minute), time.Second))
	require.False(t, now.alive(), "a zombie is not alive")
	require.False(t, process{}.alive())
}

func TestEarlierBootIsForgotten(t *testing.T) {
	path := filepath.Join(t.TempDir(), stateFile)
	self, err := identify(os.Getpid())
	require.NoError(t, err)
	record := &state{
		BootID: "another", Namespace: "x", Inode: 5, Up: true, Gateway: netip.MustParsePrefix("10.0.0.1/24"),
		Appliances: []applianceRecord{{Process: self}},
		Machines:   []*machineRecord{{Machine: Machine{Name: "a", MAC: mac(1)}, Process: self}},
	}
	require.NoError(t, writeState(path, record))
	got, err := readState(path)
	require.NoError(t, err)
	require.False(t, got.Up)
	require.Empty(t, got.Appliances)
	require.Equal(t, process{}, got.Machines[0].Process)
	require.Equal(t, mac(1), got.Machines[0].Machine.MAC)
}

func TestSpecFaultsAreReportedTogether(t *testing.T) {
	spec := New(Spec{Name: "a/b", StateDir: "x", Bridge: "much-too-long-name", Gateway: netip.MustParsePrefix("fe80::1/64"), Machines: []Machine{
		{Name: "m", MAC: mac(1)},
		{Name: "m", MAC: mac(1), Firmware: "coreboot"},
		{Name: "../m", MAC: net.HardwareAddr{1, 2, 3, 4, 5, 6}},
		{Name: "n", MAC: mac(4), CPUs: -1},
	}}, nil).spec
	err := spec.validate()
	for _, want := range []string{
		`name "a/b"`, `bridge "much-too-long-name"`, `gateway fe80::1/64`,
		`machines[1] "m": machines[0] has the same name`, `machines[1] "m": machines[0] has the same mac 52:54:00:00:ab:01`,
		`machines[1] "m": firmware "coreboot": want one of`, `machines[2] "../m": want a name`,
		`machines[2] "../m": mac "01:02:03:04:05:06": want a unicast`, `machines[3] "n": memory, cpus and disk`,
	} {
		require.ErrorContains(t, err, want)
	}
	require.NoError(t, New(Spec{StateDir: "x", Machines: []Machine{{Name: "m", MAC: mac(1)}}}, nil).spec.validate())
}
