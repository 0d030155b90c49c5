// Package lab is a virtual rack on one host: QEMU machines with real firmware, and machines made of Linux
// namespaces, plugged into a bridge inside a network namespace of their own, beside the appliance that installs
// them.
//
// It serves two ends. A user rehearses a rack on a laptop with `rackstrap lab up`, before the real one is
// powered on; and the project's own tests boot real firmware through the daemon.
//
//	host │ namespace <Name>
//	     │
//	     │   rackstrap serve ── bridge (10.10.10.1/24) ──┬── tap0 ── QEMU "kmaster" (SeaBIOS, iPXE)
//	     │                                               ├── tap1 ── QEMU "knode1"  (OVMF, PXE)
//	     │                                               └── tap2 ── QEMU "knode2"  (OVMF, HTTP Boot)
//
// Nothing of it is reachable from, or leaks DHCP into, the host's own networks. Everything that a lab
// starts or creates is recorded in StateDir/lab.json before it can be lost, so that Down works after a
// crash and from another process. A process is recorded with its start time: a recycled PID is never
// killed.
//
// The namespace, the bridge and the taps need root.
package lab

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
)

// Defaults of a Spec and of a Machine.
const (
	DefaultName   = "rackstrap"
	DefaultBridge = "rack0"

	defaultMemoryMiB = 1024
	defaultCPUs      = 1
	defaultDiskGiB   = 20
)

// DefaultGateway is the address of the appliance on the bridge when a Spec names none.
func DefaultGateway() netip.Prefix { return netip.MustParsePrefix("10.10.10.1/24") }

// Errors that callers tell apart with errors.Is.
var (
	ErrNotUp          = errors.New("the lab is not up")
	ErrUnknownMachine = errors.New("no such machine in the lab")
	ErrRunning        = errors.New("the machine is powered on")
	ErrOff            = errors.New("the machine is powered off")
	ErrNamespaceTaken = errors.New("the network namespace exists and is not this lab's")
)

// Spec describes a virtual rack.
type Spec struct {
	// Name is the network namespace's name; two labs on one host need two. Default DefaultName, or the
	// name recorded in StateDir when a lab is there already.
	Name string
	// StateDir keeps lab.json, the machines' disks and the logs. Required.
	StateDir string
	// CacheDir keeps what is expensive to make again: the Debian kernel, the ISO. Default
	// DefaultCacheDir().
	CacheDir string
	// Bridge is the interface that the appliance serves, inside the namespace. Default DefaultBridge;
	// a rehearsal names it like the real interface (`server.interface`), so that the same configuration
	// file serves both.
	Bridge string
	// Gateway is the appliance's address on the bridge, with the network's length. Default 10.10.10.1/24.
	Gateway netip.Prefix
	// Machines of the rack.
	Machines []Machine
	// Accel is QEMU's accelerator, for example "kvm"; empty means: find out (see Accelerator).
	Accel string

	// System is the root file system that namespace machines share (System.Tree). Required with such machines.
	System string
	// Program is this program's file, which namespace machines run (see MachineMain). Default os.Executable.
	Program string
}

// Machine is one virtual machine of the rack.
type Machine struct {
	Name      string           `json:"name"`
	MAC       net.HardwareAddr `json:"-"`
	Firmware  Firmware         `json:"firmware"`             // default BIOS
	MemoryMiB int              `json:"memory_mib"`           // default 1024; Anaconda of CentOS 7 wants 2048
	CPUs      int              `json:"cpus"`                 // default 1
	DiskGiB   int              `json:"disk_gib"`             // default 20; sparse
	NICROM    bool             `json:"nic_rom,omitempty"`    // UEFI only: the NIC carries iPXE as option ROM, instead of the firmware's own PXE
	SecondNIC bool             `json:"second_nic,omitempty"` // another NIC, found before the booting one, that is not on the rack's network
	DiskFirst bool             `json:"disk_first,omitempty"` // boots the disk before the NIC, as Anaconda's UEFI entry makes a machine do
}

func (m Machine) withDefaults() Machine {
	if m.Firmware == "" {
		m.Firmware = BIOS
	}
	if m.MemoryMiB == 0 {
		m.MemoryMiB = defaultMemoryMiB
	}
	if m.CPUs == 0 {
		m.CPUs = defaultCPUs
	}
	if m.DiskGiB == 0 {
		m.DiskGiB = defaultDiskGiB
	}
	return m
}

// Lab is a handle on the virtual rack recorded in a state directory. Its methods may be called from
// several goroutines and from several processes: changes are serialised by a lock file.
type Lab struct {
	spec Spec
	log  *slog.Logger
}

// New returns a handle; it touches nothing. A Spec with only StateDir is enough to handle a lab that is
// up already.
func New(spec Spec, log *slog.Logger) *Lab {
	recorded, _ := readState(filepath.Join(spec.StateDir, stateFile))
	if spec.Name == "" {
		spec.Name = DefaultName
		if recorded != nil {
			spec.Name = recorded.Namespace
		}
	}
	if spec.CacheDir == "" {
		spec.CacheDir = DefaultCacheDir()
	}
	if spec.Bridge == "" {
		spec.Bridge = DefaultBridge
	}
	if !spec.Gateway.IsValid() {
		spec.Gateway = DefaultGateway()
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Lab{spec: spec, log: log}
}

// DefaultCacheDir is $XDG_CACHE_HOME/rackstrap/lab, or the same below ~/.cache.
func DefaultCacheDir() string {
	base, err := os.UserCacheDir()
	if err != nil {
		base = os.TempDir()
	}
	return filepath.Join(base, "rackstrap", "lab")
}

// safeName is what may become a file name, a namespace's name and a kernel argument.
var safeName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// validate reports every fault of the spec at once, each with its place.
func (s Spec) validate() error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf("lab: "+format, args...)) }

	if s.StateDir == "" {
		fault("no state directory")
	}
	if !safeName.MatchString(s.Name) {
		fault("name %q: want letters, digits, dots and dashes", s.Name)
	}
	if len(s.Bridge) > 15 || !safeName.MatchString(s.Bridge) {
		fault("bridge %q: not an interface name", s.Bridge)
	}
	if !s.Gateway.Addr().Is4() {
		fault("gateway %s: want an IPv4 prefix such as 10.10.10.1/24", s.Gateway)
	}
	names, macs := map[string]int{}, map[string]int{}
	for i, m := range s.Machines {
		place := fmt.Sprintf("machines[%d] %q", i, m.Name)
		if !safeName.MatchString(m.Name) {
			fault("%s: want a name of letters, digits, dots and dashes", place)
		}
		if other, taken := names[m.Name]; taken {
			fault("%s: machines[%d] has the same name", place, other)
		}
		names[m.Name] = i
		if len(m.MAC) != 6 || m.MAC[0]&1 != 0 {
			fault("%s: mac %q: want a unicast Ethernet address", place, m.MAC)
		}
		if other, taken := macs[m.MAC.String()]; taken {
			fault("%s: machines[%d] has the same mac %s", place, other, m.MAC)
		}
		macs[m.MAC.String()] = i
		if _, known := firmwares[m.withDefaults().Firmware]; !known {
			fault("%s: firmware %q: want one of %s", place, m.Firmware, Firmwares())
		}
		if m.Firmware == Namespace && s.System == "" {
			fault("%s: a namespace machine needs the lab's system", place)
		}
		if m.MemoryMiB < 0 || m.CPUs < 0 || m.DiskGiB < 0 {
			fault("%s: memory, cpus and disk cannot be negative", place)
		}
	}
	return errors.Join(faults...)
}
