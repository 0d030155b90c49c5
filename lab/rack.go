package lab

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// netnsDir is where ip-netns(8) keeps its names.
const netnsDir = "/run/netns"

// applianceGrace is how long the appliance may take to end by itself.
const applianceGrace = 5 * time.Second

// Up creates the namespace, the bridge and a tap per machine. It is idempotent: what is up already stays,
// with its running machines, and only machines that are new in the spec are added. The remains of a crashed
// lab are cleaned first.
//
// A namespace of that name which this lab did not create ends in ErrNamespaceTaken.
func (l *Lab) Up(ctx context.Context) error {
	if err := l.spec.validate(); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("lab: network namespaces, bridges and taps need root")
	}
	return l.locked(ctx, func() error {
		s, err := readState(l.statePath())
		if err != nil {
			l.log.Warn("the lab's record is unreadable; starting a new one", "error", err)
			s = nil
		}
		if s != nil && !l.intact(s) {
			l.log.Info("cleaning the remains of an earlier lab", "namespace", s.Namespace)
			if err := l.clean(ctx, s); err != nil {
				return err
			}
			s = nil
		}
		if s == nil {
			if s, err = l.create(ctx); err != nil {
				return err
			}
		}
		return l.reconcile(ctx, s)
	})
}

// intact tells whether everything recorded is there: the namespace, the very one, and the bridge in it.
func (l *Lab) intact(s *state) bool {
	if !s.Up || s.Inode == 0 || s.Inode != netnsInode(s.Namespace) {
		return false
	}
	_, err := ip(context.Background(), "-n", s.Namespace, "link", "show", "dev", s.Bridge)
	return err == nil && s.Bridge == l.spec.Bridge && s.Gateway == l.spec.Gateway && s.Namespace == l.spec.Name
}

// create writes the record first, so that Down knows of everything that may exist.
func (l *Lab) create(ctx context.Context) (*state, error) {
	if netnsInode(l.spec.Name) != 0 {
		return nil, fmt.Errorf("lab: namespace %q: %w (another lab? else remove it with: ip netns del %s)",
			l.spec.Name, ErrNamespaceTaken, l.spec.Name)
	}
	s := &state{
		BootID: bootID(), Namespace: l.spec.Name, Bridge: l.spec.Bridge, Gateway: l.spec.Gateway, Accel: l.spec.Accel,
		System: l.spec.System, Program: l.spec.Program,
	}
	if err := writeState(l.statePath(), s); err != nil {
		return nil, fmt.Errorf("lab: %v", err)
	}
	if _, err := ip(ctx, "netns", "add", s.Namespace); err != nil {
		return nil, err
	}
	s.Inode = netnsInode(s.Namespace)
	if err := writeState(l.statePath(), s); err != nil {
		return nil, fmt.Errorf("lab: %v", err)
	}
	// A bridge that forwards at once: spanning tree's 15 s of silence would outlast the firmware's DHCP.
	for _, args := range [][]string{
		{"link", "set", "lo", "up"},
		{"link", "add", s.Bridge, "type", "bridge", "stp_state", "0", "forward_delay", "0", "mcast_snooping", "0"},
		{"addr", "add", s.Gateway.String(), "brd", "+", "dev", s.Bridge},
		{"link", "set", s.Bridge, "up"},
	} {
		if _, err := ip(ctx, append([]string{"-n", s.Namespace}, args...)...); err != nil {
			return nil, err
		}
	}
	if err := deadEnd(ctx, s.Namespace); err != nil {
		return nil, err
	}
	if _, err := ip(ctx, "-n", s.Namespace, "addr", "add", routerAddress+"/64", "dev", s.Bridge, "nodad"); err != nil {
		l.log.Info("no IPv6 in the lab; iPXE will wait for it in vain", "error", err) // switched off on this host
	}
	s.Up = true
	if err := writeState(l.statePath(), s); err != nil {
		return nil, fmt.Errorf("lab: %v", err)
	}
	l.log.Info("the rack is up", "namespace", s.Namespace, "bridge", s.Bridge, "address", s.Gateway)
	return s, nil
}

// reconcile gives every machine of the spec a record and a tap; a machine that runs keeps what it has.
func (l *Lab) reconcile(ctx context.Context, s *state) error {
	for _, m := range l.spec.Machines {
		m = m.withDefaults()
		record, err := s.machine(m.Name)
		if err != nil {
			record = &machineRecord{Tap: s.freeTap()}
			s.Machines = append(s.Machines, record)
		}
		if record.Process.alive() {
			continue
		}
		record.Machine = m
		if m.Firmware == Namespace {
			if s.System, s.Program = l.spec.System, l.spec.Program; record.Netns == "" {
				record.Netns = s.Namespace + "-" + m.Name
			}
			continue // its board plugs it in
		}
		if err := l.layTap(ctx, s, record); err != nil {
			return errors.Join(err, writeState(l.statePath(), s))
		}
	}
	return writeState(l.statePath(), s)
}

// layTap creates the machine's port on the bridge, unless it is there.
func (l *Lab) layTap(ctx context.Context, s *state, m *machineRecord) error {
	in := []string{"-n", s.Namespace}
	if _, err := ip(ctx, append(in, "link", "show", "dev", m.Tap)...); err == nil {
		return nil
	}
	if _, err := ip(ctx, append(in, "tuntap", "add", "dev", m.Tap, "mode", "tap")...); err != nil {
		return err
	}
	_, err := ip(ctx, append(in, "link", "set", m.Tap, "master", s.Bridge, "up")...)
	return err
}

// Bridge is the interface, inside the namespace, on which the appliance serves.
func (l *Lab) Bridge() string { return l.spec.Bridge }

// Command prepares a command that will run inside the lab's namespace, in the foreground: its caller starts
// it, and waits for it.
func (l *Lab) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", l.spec.Name, name}, args...)...)
}

// Start runs an appliance inside the namespace, detached from this process, and records it for Down. The
// command is an ordinary one (exec.Command with its Env and Dir); Start moves it into the namespace and sends
// its output to the log file whose path is returned. A command made with exec.CommandContext is killed with
// its context, as always.
func (l *Lab) Start(ctx context.Context, cmd *exec.Cmd) (logPath string, err error) {
	if cmd.Err != nil {
		return "", fmt.Errorf("lab: %v", cmd.Err)
	}
	err = l.update(ctx, func(s *state) error {
		record := applianceRecord{
			Args: cmd.Args,
			Log:  filepath.Join(l.spec.StateDir, fmt.Sprintf("%s-%d.log", filepath.Base(cmd.Path), len(s.Appliances)+1)),
		}
		cmd.Args = append([]string{"ip", "netns", "exec", s.Namespace, cmd.Path}, cmd.Args[1:]...)
		if cmd.Path, err = exec.LookPath("ip"); err != nil {
			return fmt.Errorf("lab: %v", err)
		}
		if record.Process, err = detach(cmd, record.Log, os.O_TRUNC); err != nil {
			return err
		}
		s.Appliances = append(s.Appliances, record)
		logPath = record.Log
		l.log.Info("appliance started", "args", record.Args, "pid", record.Process.PID, "log", record.Log)
		return nil
	})
	return logPath, err
}

// StartNTP runs a time server inside the namespace, on the appliance's address, from this program (see MachineMain).
func (l *Lab) StartNTP(ctx context.Context) error {
	program, err := programOf(l.spec.Program)
	if err != nil {
		return err
	}
	_, err = l.Start(ctx, exec.Command(program, MachineCommand, stageNTP, l.spec.Gateway.Addr().String()))
	return err
}

// detach starts a command in a session of its own, so that it outlives this process and its terminal, with
// the output in a file. A goroutine collects its exit status as long as this process lives; it ends with the
// command.
// flag is O_TRUNC or O_APPEND, for the file.
func detach(cmd *exec.Cmd, logPath string, flag int) (process, error) {
	// Go closes its own files in a child, but not what this process has inherited: a machine that kept the
	// lock of the flock(1) above us would hold it for as long as it runs.
	if err := unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return process{}, fmt.Errorf("lab: close_range: %v", err)
	}
	out, err := os.OpenFile(logPath, os.O_WRONLY|os.O_CREATE|flag, 0o644)
	if err != nil {
		return process{}, fmt.Errorf("lab: %v", err)
	}
	defer out.Close()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = nil, out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return process{}, fmt.Errorf("lab: %v", err)
	}
	started, err := identify(cmd.Process.Pid) // before Wait, so the PID is still ours even if it ended
	go cmd.Wait()
	return started, err
}

// Down takes everything away that lab.json records, whoever started it, and forgets the lab: machines and
// appliances, the namespace with its bridge and taps, disks and firmware variables. Logs stay in StateDir. It
// is idempotent; nothing recorded is nothing to do.
func (l *Lab) Down(ctx context.Context) error {
	return l.locked(ctx, func() error {
		s, err := readState(l.statePath())
		if err != nil {
			return fmt.Errorf("lab: %v", err)
		}
		if s == nil {
			return nil
		}
		if err := l.clean(ctx, s); err != nil {
			return err
		}
		l.log.Info("the rack is down", "namespace", s.Namespace)
		return nil
	})
}

// clean removes what the record names; the record goes last, so that a failed clean can be tried again.
func (l *Lab) clean(ctx context.Context, s *state) error {
	var faults []error
	for _, a := range slices.Backward(s.Appliances) {
		faults = append(faults, a.Process.end(ctx, applianceGrace))
	}
	for _, m := range s.Machines {
		faults = append(faults, m.Process.end(ctx, 0))
		if m.Netns != "" {
			faults = append(faults, l.dismantle(ctx, m))
		}
	}
	if inode := netnsInode(s.Namespace); inode != 0 && (s.Inode == 0 || s.Inode == inode) {
		faults = append(faults, removeNetns(ctx, s.Namespace))
	}
	for _, m := range s.Machines {
		for _, name := range machineFiles {
			if err := os.Remove(filepath.Join(l.machineDir(m.Name), name)); err != nil && !errors.Is(err, os.ErrNotExist) {
				faults = append(faults, err)
			}
		}
	}
	if err := errors.Join(faults...); err != nil {
		return fmt.Errorf("lab: cleaning: %w", err)
	}
	return os.Remove(l.statePath())
}

// removeNetns ends whatever still runs in the namespace (a crash may have come between a start and its
// record) and deletes it, with every interface in it.
func removeNetns(ctx context.Context, name string) error {
	out, err := ip(ctx, "netns", "pids", name)
	if err != nil {
		return err
	}
	for _, field := range strings.Fields(out) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			return fmt.Errorf("ip netns pids: %q", field)
		}
		stray, err := identify(pid)
		if err != nil {
			continue // ended meanwhile
		}
		if err := stray.end(ctx, 0); err != nil {
			return err
		}
	}
	_, err = ip(ctx, "netns", "del", name)
	return err
}

// netnsInode identifies a namespace beyond its name; 0 when there is none.
func netnsInode(name string) uint64 {
	info, err := os.Stat(filepath.Join(netnsDir, name))
	if err != nil {
		return 0
	}
	return info.Sys().(*syscall.Stat_t).Ino
}

// ip runs ip(8); its own words make the error.
func ip(ctx context.Context, args ...string) (string, error) { return output(ctx, "ip", args...) }

// output runs a tool and returns what it prints; when it fails, what it complained of is in the error.
func output(ctx context.Context, name string, args ...string) (string, error) {
	return outputOf(exec.CommandContext(ctx, name, args...))
}

func outputOf(cmd *exec.Cmd) (string, error) {
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %v: %s", strings.Join(cmd.Args, " "), err, tail(complaint.String(), 10))
	}
	return string(out), nil
}
