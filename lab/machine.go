package lab

import (
	"context"
	"crypto/sha1"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Files in a machine's directory.
const (
	diskFile     = "disk.qcow2"
	varsFile     = "vars.fd"
	qmpSocket    = "qmp.sock"
	serialSocket = "serial.sock"
	qemuLog      = "qemu.log"
)

// QEMU's names of the devices that a machine can boot.
const (
	nicDevice  = "nic"
	diskDevice = "system"
)

// machineFiles are gone after Down; logs stay.
var machineFiles = []string{diskFile, varsFile, qmpSocket, serialSocket}

const emulator = "qemu-system-x86_64"

// MachineStatus is what Status tells of one machine.
type MachineStatus struct {
	Name     string        `json:"name"`
	MAC      string        `json:"mac"`
	Firmware Firmware      `json:"firmware"`
	Running  bool          `json:"running"`
	PID      int           `json:"pid,omitempty"`
	Uptime   time.Duration `json:"uptime_ns,omitempty"` // since the power-on
	PowerOns int           `json:"power_ons"`
	LastLine string        `json:"last_line,omitempty"` // of the serial log
}

// Status lists the machines in the order of the rack, as recorded on disk: it works from any process.
func (l *Lab) Status() ([]MachineStatus, error) {
	s, err := l.load()
	if err != nil {
		return nil, err
	}
	var all []MachineStatus
	for _, m := range s.Machines {
		status := MachineStatus{
			Name: m.Name, MAC: m.Machine.MAC.String(), Firmware: m.Firmware,
			Running: m.Process.alive(), PowerOns: m.PowerOns, LastLine: lastLine(m.SerialLog),
		}
		if status.Running {
			status.PID, status.Uptime = m.Process.PID, time.Since(m.PoweredOn)
		}
		all = append(all, status)
	}
	return all, nil
}

// ApplianceStatus is what Appliances tells of one command that Start started.
type ApplianceStatus struct {
	Args    []string `json:"args"`
	Log     string   `json:"log"`
	Running bool     `json:"running"`
	PID     int      `json:"pid,omitempty"`
}

// Appliances lists what Start has started in this lab.
func (l *Lab) Appliances() ([]ApplianceStatus, error) {
	s, err := l.load()
	if err != nil {
		return nil, err
	}
	var all []ApplianceStatus
	for _, a := range s.Appliances {
		all = append(all, ApplianceStatus{Args: a.Args, Log: a.Log, Running: a.Process.alive(), PID: a.Process.PID})
	}
	return all, nil
}

func (l *Lab) machineDir(name string) string { return filepath.Join(l.spec.StateDir, "machines", name) }

// running finds a machine that is powered on.
func (l *Lab) running(name string) (*machineRecord, error) {
	s, err := l.load()
	if err != nil {
		return nil, err
	}
	m, err := s.machine(name)
	if err != nil {
		return nil, err
	}
	if !m.Process.alive() {
		return nil, fmt.Errorf("lab: %s: %w", name, ErrOff)
	}
	return m, nil
}

// PowerOn starts the machine: NIC first, disk afterwards. The disk (blank at first) and the firmware's
// variables outlive a power cut. A machine that is on already is ErrRunning.
func (l *Lab) PowerOn(ctx context.Context, name string) error {
	if kind, err := l.firmwareOf(name); err != nil {
		return err
	} else if kind == Namespace {
		return l.powerOnNamespace(ctx, name)
	}
	accel, err := l.Accelerator(ctx)
	if err != nil {
		return err
	}
	var started process
	err = l.update(ctx, func(s *state) error {
		m, err := s.machine(name)
		if err != nil {
			return err
		}
		if m.Process.alive() {
			return fmt.Errorf("lab: %s: %w", name, ErrRunning)
		}
		if err := l.powerOn(ctx, s, m, accel); err != nil {
			return fmt.Errorf("lab: %s: %w", name, err)
		}
		started = m.Process
		return nil
	})
	if err != nil {
		return err
	}
	if err := l.awaitMonitor(ctx, name, started); err != nil {
		return fmt.Errorf("lab: %s: %w", name, err)
	}
	if err := l.leaveBootOrder(ctx, name); err != nil {
		return fmt.Errorf("lab: %s: %w", name, err)
	}
	l.log.Info("powered on", "machine", name, "pid", started.PID, "accel", accel)
	return nil
}

func (l *Lab) powerOn(ctx context.Context, s *state, m *machineRecord, accel string) error {
	dir := l.machineDir(m.Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := firmwares[m.Firmware].layVars(filepath.Join(dir, varsFile)); err != nil {
		return err
	}
	if err := layDisk(ctx, filepath.Join(dir, diskFile), m.DiskGiB); err != nil {
		return err
	}
	if err := l.layTap(ctx, s, m); err != nil {
		return err
	}
	indexed := firmwares[m.Firmware].code == "" || m.PowerOns == 0
	if m.PowerOns == 0 {
		dropLogs(dir)
	}
	m.PowerOns++
	m.SerialLog, m.SerialFrom = filepath.Join(dir, fmt.Sprintf("serial-%d.log", m.PowerOns)), 0

	qemu, err := exec.LookPath(emulator)
	if err != nil {
		return fmt.Errorf("%v (install the Debian package qemu-system-x86)", err)
	}
	cmd := exec.Command("ip", append([]string{"netns", "exec", s.Namespace, qemu}, qemuArgs(m, accel, indexed)...)...)
	cmd.Dir = dir
	m.Process, err = detach(cmd, filepath.Join(dir, qemuLog), os.O_TRUNC)
	m.PoweredOn = time.Now()
	return err
}

// leaveBootOrder takes QEMU's order of boot attempts away from a machine with UEFI once it runs. The firmware has read
// it for this boot, and reads it anew at every reset, when it would overwrite what an operating system has made of the
// order (OvmfPkg/Library/QemuBootOrderLib): a machine of metal has nobody who does that.
func (l *Lab) leaveBootOrder(ctx context.Context, name string) error {
	kind, err := l.firmwareOf(name)
	if err != nil || firmwares[kind].code == "" {
		return err
	}
	var commands []qmpCommand
	for _, device := range []string{nicDevice, diskDevice} {
		commands = append(commands, qmpCommand{"qom-set", map[string]any{"path": "/machine/peripheral/" + device, "property": "bootindex", "value": -1}})
	}
	return qmp(ctx, l.machineDir(name), commands...)
}

// dropLogs removes the logs of an earlier lab.
func dropLogs(dir string) {
	old, _ := filepath.Glob(filepath.Join(dir, "serial-*.log"))
	for _, path := range old {
		os.Remove(path)
	}
}

// awaitMonitor returns once QEMU answers; if it ends instead, with what it said.
func (l *Lab) awaitMonitor(ctx context.Context, name string, started process) error {
	ctx, cancel := context.WithTimeout(ctx, qmpTimeout)
	defer cancel()
	dir := l.machineDir(name)
	return poll(ctx, func() (bool, error) {
		if !started.alive() {
			said, _ := os.ReadFile(filepath.Join(dir, qemuLog))
			return false, fmt.Errorf("%s ended at once: %s", emulator, tail(string(said), tailLines))
		}
		return qmp(ctx, dir) == nil, nil
	})
}

// layDisk makes a blank sparse disk, unless there is one.
func layDisk(ctx context.Context, path string, gib int) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	_, err := output(ctx, "qemu-img", "create", "-q", "-f", "qcow2", path, fmt.Sprintf("%dG", gib))
	return err
}

// qemuArgs describes the machine to QEMU, which runs in the machine's directory.
//
// The order of the boot attempts comes from bootindex, which SeaBIOS and OVMF both read: the NIC, then the
// disk. SeaBIOS starts over when neither boots. OVMF is given it at the first power-on alone (indexed), as by whoever
// sets a server up; from then on the order is the firmware's, and the operating system's (leaveBootOrder). The disk is on virtio-scsi, so that Linux names it sda as on
// real hardware; CentOS 7's kernel has the driver.
func qemuArgs(m *machineRecord, accel string, indexed bool) []string {
	fw := firmwares[m.Firmware]
	args := []string{
		"-name", m.Name, "-uuid", uuidOf(m.Machine.MAC),
		"-no-user-config", "-nodefaults",
		"-accel", accel, "-cpu", "max", "-smp", strconv.Itoa(m.CPUs), "-m", strconv.Itoa(m.MemoryMiB),
		"-rtc", "base=utc", "-boot", "menu=off,reboot-timeout=5000",
		"-smbios", "type=1,manufacturer=Rackstrap,product=Lab,serial=" + m.Name,
		"-display", "none", "-vga", "std",
		"-chardev", "socket,id=qmp,path=" + qmpSocket + ",server=on,wait=off", "-mon", "chardev=qmp,mode=control",
		"-chardev", "socket,id=serial,path=" + serialSocket + ",server=on,wait=off,logfile=" + filepath.Base(m.SerialLog),
		"-serial", "chardev:serial",
		"-device", "virtio-rng-pci",
	}
	args = append(args, fw.args(varsFile)...)
	if m.SecondNIC {
		args = append(args,
			"-netdev", "hubport,id=spare,hubid=9",
			"-device", "virtio-net-pci,netdev=spare,romfile=,mac="+spareMAC(m.Machine.MAC).String())
	}
	nicIndex, diskIndex := ",bootindex=0", ",bootindex=1"
	switch {
	case !indexed:
		nicIndex, diskIndex = "", ""
	case m.DiskFirst:
		nicIndex, diskIndex = diskIndex, nicIndex
	}
	nic := "virtio-net-pci,id=" + nicDevice + ",netdev=rack" + nicIndex + ",mac=" + m.Machine.MAC.String()
	if fw.code != "" && !m.NICROM {
		nic += ",romfile=" // the firmware's own network stack, not iPXE from the option ROM
	}
	return append(args,
		"-netdev", "tap,id=rack,ifname="+m.Tap+",script=no,downscript=no",
		"-device", nic,
		"-drive", "if=none,id=disk,format=qcow2,cache=unsafe,discard=unmap,file="+diskFile,
		"-device", "virtio-scsi-pci,id=scsi", "-device", "scsi-hd,id="+diskDevice+",drive=disk"+diskIndex)
}

// escape doubles the comma, which separates QEMU's options.
func escape(value string) string { return strings.ReplaceAll(value, ",", ",,") }

// uuidOf gives a machine the same SMBIOS UUID, which DHCP option 97 carries, in every life (RFC 9562,
// version 5).
func uuidOf(mac net.HardwareAddr) string {
	u := uuidBytes(mac)
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

func uuidBytes(mac net.HardwareAddr) [16]byte {
	sum := sha1.Sum(append([]byte("rackstrap lab "), mac...))
	u := [16]byte(sum[:16])
	u[6], u[8] = u[6]&0x0f|0x50, u[8]&0x3f|0x80
	return u
}

// spareMAC is the address of a machine's second NIC: the same but for the first octet.
func spareMAC(mac net.HardwareAddr) net.HardwareAddr {
	spare := slices.Clone(mac)
	spare[0] = 0x06
	if mac[0] == spare[0] {
		spare[0] = 0x0a
	}
	return spare
}

// PowerOff cuts the power: the guest has no chance to sync. A machine that is off stays off.
func (l *Lab) PowerOff(ctx context.Context, name string) error {
	return l.update(ctx, func(s *state) error {
		m, err := s.machine(name)
		if err != nil {
			return err
		}
		if err := m.Process.end(ctx, 0); err != nil {
			return fmt.Errorf("lab: %s: %w", name, err)
		}
		m.Process = process{}
		if m.Netns != "" {
			if err := l.unplug(ctx, m); err != nil {
				return fmt.Errorf("lab: %s: %w", name, err)
			}
		}
		l.log.Info("powered off", "machine", name)
		return nil
	})
}

// Reset presses the reset button; WaitSerial looks only at what is printed afterwards. The machine is stopped
// meanwhile, so that the place in the log is exact.
func (l *Lab) Reset(ctx context.Context, name string) error {
	return l.update(ctx, func(s *state) error {
		m, err := s.machine(name)
		if err != nil {
			return err
		}
		if !m.Process.alive() {
			return fmt.Errorf("lab: %s: %w", name, ErrOff)
		}
		if m.Firmware == Namespace {
			if err := l.resetNamespace(ctx, s, m); err != nil {
				return fmt.Errorf("lab: %s: reset: %w", name, err)
			}
			return nil
		}
		dir := l.machineDir(name)
		if err := qmp(ctx, dir, qmpCommand{Execute: "stop"}); err != nil {
			return fmt.Errorf("lab: %s: reset: %w", name, err)
		}
		if info, err := os.Stat(m.SerialLog); err == nil {
			m.SerialFrom = info.Size()
		}
		if err := qmp(ctx, dir, qmpCommand{Execute: "system_reset"}, qmpCommand{Execute: "cont"}); err != nil {
			return fmt.Errorf("lab: %s: reset: %w", name, err)
		}
		return nil
	})
}
