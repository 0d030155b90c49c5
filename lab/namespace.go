package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"rackstrap/lab/container"
)

// A namespace machine is a process, its board, with all that the board starts. The board is firmware, boot loader
// and power supply: when it ends, the machine is off, whatever ran in it (see board.go). For each boot it makes the
// machine's network namespace anew, so that nothing of the last boot is left in the kernel.
//
//	StateDir/machines/NAME/
//	    disk/          the machine's disk: an overlay's upper layer above Spec.System
//	    root/          where the board mounts it, in a mount namespace of its own
//	    init.json      PID 1 of the machine, for Inside
//	    serial-N.log   what firmware, installer and system print

const (
	diskDir  = "disk"
	rootDir  = "root"
	initFile = "init.json"
)

func (l *Lab) firmwareOf(name string) (Firmware, error) {
	s, err := l.load()
	if err != nil {
		return "", err
	}
	m, err := s.machine(name)
	if err != nil {
		return "", err
	}
	return m.Firmware, nil
}

// deadEnd makes the rack's network a dead end that says so: what machines send elsewhere is refused at once. A
// packet that is lost in silence would let kubeadm and kubelet wait where a rack without internet does not.
func deadEnd(ctx context.Context, namespace string) error {
	if _, err := ip(ctx, "netns", "exec", namespace, "sysctl", "-qw", "net.ipv4.ip_forward=1"); err != nil {
		return err
	}
	_, err := ip(ctx, "-n", namespace, "route", "replace", "unreachable", "default", "metric", "4278198272")
	return err
}

func (l *Lab) powerOnNamespace(ctx context.Context, name string) error {
	return l.update(ctx, func(s *state) error {
		m, err := s.machine(name)
		if err != nil {
			return err
		}
		if m.Process.alive() {
			return fmt.Errorf("lab: %s: %w", name, ErrRunning)
		}
		dir := l.machineDir(name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("lab: %s: %v", name, err)
		}
		if m.PowerOns == 0 {
			dropLogs(dir)
		}
		m.PowerOns++
		m.SerialLog, m.SerialFrom = filepath.Join(dir, fmt.Sprintf("serial-%d.log", m.PowerOns)), 0
		if err := l.startBoard(ctx, s, m); err != nil {
			return fmt.Errorf("lab: %s: %w", name, err)
		}
		l.log.Info("powered on", "machine", name, "pid", m.Process.PID, "kind", Namespace)
		return nil
	})
}

// startBoard records what the board will make, and starts it.
func (l *Lab) startBoard(ctx context.Context, s *state, m *machineRecord) error {
	cgroups, err := container.Cgroups("rackstrap-lab-" + m.Netns)
	if err != nil {
		return err
	}
	if m.Cgroups, err = cgroups, writeState(l.statePath(), s); err != nil {
		return err
	}
	program, err := programOf(s.Program)
	if err != nil {
		return err
	}
	stateDir, err := filepath.Abs(l.spec.StateDir)
	if err != nil {
		return err
	}
	cmd := exec.Command(program, MachineCommand, stageBoard, stateDir, m.Name)
	cmd.Dir = l.machineDir(m.Name)
	m.Process, err = detach(cmd, m.SerialLog, os.O_APPEND)
	m.PoweredOn = time.Now()
	return err
}

func programOf(configured string) (string, error) {
	if configured != "" {
		return configured, nil
	}
	return os.Executable()
}

// resetNamespace is a power cut and a power-on that share a log.
func (l *Lab) resetNamespace(ctx context.Context, s *state, m *machineRecord) error {
	if err := m.Process.end(ctx, 0); err != nil {
		return err
	}
	if err := l.unplug(ctx, m); err != nil {
		return err
	}
	if info, err := os.Stat(m.SerialLog); err == nil {
		m.SerialFrom = info.Size()
	}
	return l.startBoard(ctx, s, m)
}

// unplug removes what a board that is gone has left in the kernel.
func (l *Lab) unplug(ctx context.Context, m *machineRecord) error {
	var faults []error
	os.Remove(filepath.Join(l.machineDir(m.Name), initFile))
	if netnsInode(m.Netns) != 0 {
		faults = append(faults, removeNetns(ctx, m.Netns))
	}
	if err := container.RemoveCgroups(m.Cgroups); err != nil {
		faults = append(faults, fmt.Errorf("cgroups of %s: %v", m.Name, err))
	}
	return errors.Join(faults...)
}

// dismantle also takes its disk.
func (l *Lab) dismantle(ctx context.Context, m *machineRecord) error {
	err := l.unplug(ctx, m)
	for _, name := range []string{diskDir, rootDir} {
		err = errors.Join(err, os.RemoveAll(filepath.Join(l.machineDir(m.Name), name)))
	}
	return err
}

// Inside prepares a command that will run in a namespace machine whose system runs, as root, in the foreground.
func (l *Lab) Inside(ctx context.Context, name string, args ...string) (*exec.Cmd, error) {
	m, err := l.running(name)
	if err != nil {
		return nil, err
	}
	if m.Firmware != Namespace {
		return nil, fmt.Errorf("lab: %s is not a namespace machine", name)
	}
	var pid1 process
	raw, err := os.ReadFile(filepath.Join(l.machineDir(name), initFile))
	if err == nil {
		err = json.Unmarshal(raw, &pid1)
	}
	if err != nil || !pid1.alive() {
		return nil, fmt.Errorf("lab: %s: its system does not run: %w", name, ErrOff)
	}
	// The command belongs to the machine's control groups too.
	script := `for dir in $1; do echo $$ >"$dir/cgroup.procs" || exit 125; done; shift; exec "$@"`
	dirs := ""
	for _, dir := range m.Cgroups {
		dirs += dir + "\n"
	}
	words := append([]string{"-c", script, "lab", dirs, "nsenter", "-t", strconv.Itoa(pid1.PID), "-m", "-u", "-i", "-n", "-p", "-C",
		"env", "-i", "-C", "/root", "HOME=/root", "USER=root", "LANG=C", "TERM=dumb", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"setpriv", "--bounding-set=-sys_time,-sys_module", "--inh-caps=-all"}, args...)
	return exec.CommandContext(ctx, "sh", words...), nil
}
