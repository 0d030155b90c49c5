// Package e2e proves the whole: the built binary, in network namespaces, against real clients and QEMU
// machines with real firmware.
package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/e2e/fakekube"
	"rackstrap/internal/testenv"
	"rackstrap/lab"
	"rackstrap/operator"
)

// binary is the rackstrap that TestMain built.
var binary string

func TestMain(m *testing.M) {
	if fakekube.Called() {
		fakekube.Main()
	}
	dir, err := os.MkdirTemp("", "rackstrap-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	binary = filepath.Join(dir, "rackstrap")
	build := exec.Command("go", "build", "-o", binary, "rackstrap/cmd/rackstrap")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// rackstrap runs the binary to its end and returns what it printed.
func rackstrap(t *testing.T, args ...string) string {
	t.Helper()
	out, err := tryRackstrap(t, args...)
	require.NoError(t, err, out)
	return out
}

func tryRackstrap(t *testing.T, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Dir = t.TempDir() // so that no rackstrap.yaml of the place is found
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// virtualRack is a lab that the test put up with `rackstrap lab up`.
type virtualRack struct {
	t     *testing.T
	name  string
	state string
}

// labUp puts up a lab and takes it down at the end of the test, whatever happened.
func labUp(t *testing.T, name string, args ...string) (*virtualRack, string) {
	t.Helper()
	testenv.NeedRoot(t)
	testenv.NeedQEMU(t)
	l := &virtualRack{t: t, name: name, state: filepath.Join(t.TempDir(), "lab")}
	t.Cleanup(func() {
		if t.Failed() {
			logs, _ := filepath.Glob(filepath.Join(l.state, "*.log"))
			serials, _ := filepath.Glob(filepath.Join(l.state, "machines", "*", "serial-*.log"))
			for _, file := range append(logs, serials...) {
				text, _ := os.ReadFile(file)
				t.Logf("the end of %s:\n%s", file, text[max(0, len(text)-6000):])
			}
		}
		rackstrap(t, "lab", "--name", name, "--state", l.state, "down")
	})
	return l, l.lab(append([]string{"up"}, args...)...)
}

func (l *virtualRack) lab(args ...string) string {
	l.t.Helper()
	return rackstrap(l.t, append([]string{"lab", "--name", l.name, "--state", l.state}, args...)...)
}

// do runs a command of the operator against the lab's appliance.
func (l *virtualRack) do(args ...string) string {
	l.t.Helper()
	return rackstrap(l.t, append([]string{"--config", filepath.Join(l.state, "rackstrap.yaml")}, args...)...)
}

func (l *virtualRack) status() operator.Status {
	l.t.Helper()
	var st operator.Status
	require.NoError(l.t, json.Unmarshal([]byte(l.do("status", "-o", "json")), &st))
	return st
}

// serial is a machine's serial log so far.
func (l *virtualRack) serial(machine string) string {
	text, _ := os.ReadFile(lab.New(lab.Spec{StateDir: l.state}, nil).SerialLog(machine))
	return string(text)
}

// awaitSerial waits until the serial log of a machine has a match after the given offset.
func (l *virtualRack) awaitSerial(machine string, from int, pattern string, limit time.Duration) []string {
	l.t.Helper()
	switch { // a line that is not complete has a match, too
	case strings.HasSuffix(pattern, "(.*)"):
		pattern += `\n`
	case strings.HasSuffix(pattern, `(\S+)`):
		pattern += `\s`
	}
	re := regexp.MustCompile(pattern)
	deadline := time.Now().Add(limit)
	for {
		text := l.serial(machine)
		if match := re.FindStringSubmatch(text[min(from, len(text)):]); match != nil {
			return match
		}
		if time.Now().After(deadline) {
			require.FailNow(l.t, "deadline", "%s: no %q within %s; the serial log ends:\n%s", machine, pattern, limit, text[max(0, len(text)-2000):])
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// Done-when 1: BIOS, UEFI PXE and UEFI HTTP Boot, each to its own installer.
func TestBootToInstaller(t *testing.T) {
	l, out := labUp(t, "e2eboot", "--boot-only", "--firmware", "bios,uefi,uefi-http")
	t.Log(out)
	for i, name := range []string{"kmaster", "knode1", "knode2"} {
		mac, ip := fmt.Sprintf("52-54-00-00-00-8%d", i), fmt.Sprintf("10.10.10.8%d", i)
		line := l.awaitSerial(name, 0, `rackstrap-lab: kernel command line: (.*)`, 6*time.Minute)[1]
		t.Log(name, line)
		require.Contains(t, line, "inst.ks=http://10.10.10.1:8080/ks/"+mac+"/")
		require.Contains(t, line, "BOOTIF=01-"+mac+" ")
		address := l.awaitSerial(name, 0, `rackstrap-lab: address (\S+) on \S+ (\S+)`, 2*time.Minute)
		require.Equal(t, ip, address[1])
		require.Equal(t, strings.ReplaceAll(mac, "-", ":"), address[2])
	}
	firmwares := map[string]string{}
	for _, m := range l.status().Machines {
		firmwares[m.Name] = m.Sighting.Firmware
	}
	require.Equal(t, map[string]string{"kmaster": "bios", "knode1": "uefi-x64", "knode2": "http-x64"}, firmwares)
	// QEMU's BIOS NIC has iPXE in its ROM, and so needs no loader.
	for name, kinds := range map[string][]string{
		"kmaster": {"offer", "ack", "script", "kernel", "initrd"},
		"knode1":  {"offer", "ack", "size-probe", "loader", "script", "kernel", "initrd"},
		"knode2":  {"offer", "ack", "loader", "script", "kernel", "initrd"},
	} {
		events := l.do("events", name)
		for _, kind := range kinds {
			require.Regexp(t, `(?m)^\S+ \S+ +`+name+` +\S+ +`+kind+` `, events)
		}
	}
}

// Done-when 2: firmware that enforces Secure Boot.
func TestSecureBoot(t *testing.T) {
	l, _ := labUp(t, "e2esb", "--boot-only", "--firmware", "uefi-secureboot", "--off")
	l.lab("power", "on", "kmaster")
	line := l.awaitSerial("kmaster", 0, `rackstrap-lab: kernel command line: (.*)`, 6*time.Minute)[1]
	require.Contains(t, line, "inst.ks=http://10.10.10.1:8080/ks/52-54-00-00-00-80/")
	require.Contains(t, l.do("events", "kmaster"), "shim/centos-7.9/")
}

// Done-when 3: an installed machine that boots from the network boots its disk.
func TestInstalledMachinesBootTheirDisks(t *testing.T) {
	l, _ := labUp(t, "e2edisk", "--boot-only", "--firmware", "bios,uefi,uefi-http", "--off")
	names := []string{"kmaster", "knode1", "knode2"}
	for _, name := range names {
		l.lab("plant", name)
		l.do("adopt", name)
		l.lab("power", "on", name)
	}
	for _, name := range names {
		l.awaitSerial(name, 0, `rackstrap-lab: booted from the disk of `+name, 6*time.Minute)
		events := l.do("events", name)
		require.Contains(t, events, `iPXE script "local-disk"`, "it booted from the network first")
		require.NotContains(t, events, "vmlinuz", "and was not sent to the installer")
	}
	for _, name := range names {
		l.awaitSerial(name, 0, `rackstrap-lab: system reached`, time.Minute)
		require.Contains(t, l.do("events", name), "disk-boot", "the installed system's own DHCP is proof that the disk boots")
	}
}

// An unknown machine waits on its screen until it is approved.
func TestUnknownMachineIsApproved(t *testing.T) {
	config := filepath.Join(t.TempDir(), "rackstrap.yaml")
	require.NoError(t, os.WriteFile(config, []byte(`
server: {interface: rack0, address: 10.10.10.1}
network: {subnet: 10.10.10.0/24, dhcp: {pool: 10.10.10.200-10.10.10.250, unknown: discover}}
machines:
  - {name: kmaster, ip: 10.10.10.80, role: control-plane}
`), 0o644))
	l, _ := labUp(t, "e2eunknown", "--boot-only", "--config", config, "--firmware", "bios")
	l.awaitSerial("kmaster", 0, `is not in the list of the rack`, 3*time.Minute)
	var mac string
	for _, m := range l.status().Machines {
		if m.State == "discovered" {
			mac = m.MAC.String()
			require.Equal(t, "bios", m.Sighting.Firmware)
			require.NotEmpty(t, m.Sighting.UUID)
		}
	}
	require.NotEmpty(t, mac)
	l.do("approve", mac, "--as", "kmaster")
	line := l.awaitSerial("kmaster", 0, `rackstrap-lab: kernel command line: (.*)`, 4*time.Minute)[1]
	require.Contains(t, line, "/ks/"+strings.ReplaceAll(mac, ":", "-"))
	require.Equal(t, "10.10.10.80", l.awaitSerial("kmaster", 0, `rackstrap-lab: address (\S+)`, time.Minute)[1])
}
