package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"rackstrap/lab/container"
	"rackstrap/lab/installer"
	"rackstrap/lab/pxe"
)

// MachineCommand is the hidden command of this program that namespace machines run; its first argument is one of the
// stages.
const MachineCommand = "lab-machine"

// The stages of a namespace machine, each a process: the board starts the others, in the machine's network
// namespace, and they die with it.
const (
	stageBoard    = "board"    // STATEDIR NAME
	stageFirmware = "firmware" // JSON of stage; tells its decision on descriptor 3
	stageInstall  = "install"  // JSON of stage
	stageBoot     = "boot"     // JSON of stage
	stageInit     = "init"     // JSON of container.Boot: PID 1
)

// Exit codes of the stages install and boot.
const (
	exitPowerOff = 0
	exitFailed   = 1
	exitReboot   = 10
)

// rackNIC is the machine's interface on the rack's network; spareNIC is the one of Machine.SecondNIC.
const (
	rackNIC  = "eth0"
	spareNIC = "eth1"
)

// stage is what a stage is told.
type stage struct {
	Name       string         `json:"name"`
	MAC        string         `json:"mac"`
	UUID       [16]byte       `json:"uuid"`
	Disk       container.Disk `json:"disk"`
	KernelArgs string         `json:"kernel_args,omitempty"` // install
	Console    string         `json:"console,omitempty"`     // boot: the terminal that becomes /dev/console
	InitFile   string         `json:"init_file,omitempty"`   // boot: where PID 1 is recorded

	Cgroups []container.Hierarchy `json:"cgroups,omitempty"` // boot
}

// MachineMain runs one stage of a namespace machine: what the hidden command lab-machine of a program that uses this
// package calls with its arguments. It returns the exit code.
func MachineMain(ctx context.Context, args []string) int {
	if len(args) == 3 && args[0] == stageBoard {
		return told(runBoard(ctx, args[1], args[2]))
	}
	if len(args) == 2 && args[0] == stageInit {
		return told(container.Init(args[1]))
	}
	if len(args) == 2 && args[0] == stageNTP {
		return told(serveNTP(args[1]))
	}
	if len(args) != 2 {
		return told(errors.New("lab-machine: this is a part of the lab's namespace machines"))
	}
	var s stage
	if err := json.Unmarshal([]byte(args[1]), &s); err != nil {
		return told(fmt.Errorf("lab-machine: %v", err))
	}
	// What ends with the thread that started it (Pdeathsig) must be started by one that stays.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	switch args[0] {
	case stageFirmware:
		return told(s.firmware(ctx))
	case stageInstall:
		return s.install(ctx)
	case stageBoot:
		return s.boot()
	}
	return told(fmt.Errorf("lab-machine: no stage %q", args[0]))
}

// told ends a stage; its standard output is the machine's serial log.
func told(err error) int {
	if err != nil {
		say("%v", err)
		return exitFailed
	}
	return 0
}

// say prints a line on the machine's serial log, as the lab's installer does.
func say(format string, args ...any) { fmt.Printf("rackstrap-lab: "+format+"\n", args...) }

// board is a namespace machine that is powered on.
type board struct {
	lab     *Lab
	state   *state
	machine *machineRecord
	dir     string
	program string
	cgroups []container.Hierarchy
	console *console
}

// runBoard boots the machine again and again until it powers itself off, or is killed.
func runBoard(ctx context.Context, stateDir, name string) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	l := New(Spec{StateDir: stateDir}, nil)
	s, err := l.load()
	if err != nil {
		return err
	}
	m, err := s.machine(name)
	if err != nil {
		return err
	}
	program, err := os.Executable()
	if err != nil {
		return err
	}
	cgroups, err := container.Hierarchies()
	if err != nil {
		return err
	}
	if err := container.EnterCgroups(m.Cgroups); err != nil {
		return fmt.Errorf("cgroups: %w", err)
	}
	b := &board{lab: l, state: s, machine: m, dir: l.machineDir(name), program: program, cgroups: cgroups}
	if b.console, err = openConsole(filepath.Join(b.dir, serialSocket), os.Stdout); err != nil {
		return fmt.Errorf("console: %w", err)
	}
	defer b.console.close()
	for {
		on, err := b.cycle(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			say("FAILED %v", err)
			// As a machine whose boot attempts have all failed starts over.
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(5 * time.Second):
			}
		}
		if err == nil && !on {
			say("powered off")
			return nil
		}
	}
}

// cycle is one life of the machine, from reset to reset.
func (b *board) cycle(ctx context.Context) (on bool, err error) {
	if err := b.plug(ctx); err != nil {
		return true, err
	}
	say("firmware starts: %s, %s", b.machine.Name, b.machine.Machine.MAC)
	decision, err := b.netBoot(ctx)
	if err != nil {
		if !errors.Is(err, errNoNetBoot) {
			return true, err
		}
		say("%v", err)
		decision.Action = pxe.LocalDisk
	}
	what := stageBoot
	if decision.Action == pxe.Install {
		what = stageInstall
		if err := b.disk().Blank(); err != nil {
			return true, err
		}
	} else if !b.disk().Installed() {
		return true, errors.New("no bootable disk")
	}
	// What starts now is another system: it finds no address on the NIC.
	if err := b.plug(ctx); err != nil {
		return true, err
	}
	code, err := b.stage(ctx, what, b.order(decision.KernelArgs), nil)
	os.Remove(filepath.Join(b.dir, initFile))
	container.EmptyCgroups(b.machine.Cgroups)
	if err != nil {
		return true, err
	}
	switch code {
	case exitReboot:
		return true, nil
	case exitPowerOff:
		return false, nil
	}
	return true, fmt.Errorf("%s ended with exit status %d", what, code)
}

func (b *board) disk() container.Disk {
	return container.Disk{Dir: filepath.Join(b.dir, diskDir), Lower: b.state.System, Root: filepath.Join(b.dir, rootDir)}
}

func (b *board) order(kernelArgs string) stage {
	return stage{
		Name: b.machine.Name, MAC: b.machine.Machine.MAC.String(), UUID: uuidBytes(b.machine.Machine.MAC), Disk: b.disk(),
		KernelArgs: kernelArgs, Console: b.console.path, InitFile: filepath.Join(b.dir, initFile), Cgroups: b.cgroups,
	}
}

// plug makes the machine's network namespace anew, with its NIC on the rack's bridge. The other end of a second NIC is
// up, on no bridge: there is a carrier, and nobody who answers.
func (b *board) plug(ctx context.Context) error {
	m := b.machine
	// The port goes first: an interface pair in a dying namespace goes only some time later.
	spare := m.Tap + "spare"
	for _, port := range []string{m.Tap, spare} {
		ip(ctx, "-n", b.state.Namespace, "link", "del", port)
	}
	if netnsInode(m.Netns) != 0 {
		if err := removeNetns(ctx, m.Netns); err != nil {
			return err
		}
	}
	steps := [][]string{{"netns", "add", m.Netns}, {"-n", m.Netns, "link", "set", "lo", "up"}}
	cable := func(port, nic string, mac net.HardwareAddr, up ...string) {
		steps = append(steps,
			[]string{"-n", b.state.Namespace, "link", "add", port, "type", "veth", "peer", "name", nic, "address", mac.String(), "netns", m.Netns},
			append([]string{"-n", b.state.Namespace, "link", "set", port, "up"}, up...),
			[]string{"-n", m.Netns, "link", "set", nic, "up"})
	}
	if m.SecondNIC {
		cable(spare, spareNIC, spareMAC(m.Machine.MAC))
	}
	cable(m.Tap, rackNIC, m.Machine.MAC, "master", b.state.Bridge)
	for _, args := range steps {
		if _, err := ip(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}

// errNoNetBoot is a network that offers nothing.
var errNoNetBoot = errors.New("nothing to boot from the network")

// netBoot runs the firmware.
func (b *board) netBoot(ctx context.Context) (pxe.Decision, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return pxe.Decision{}, err
	}
	defer read.Close()
	code, err := b.stage(ctx, stageFirmware, b.order(""), write)
	write.Close()
	if err != nil {
		return pxe.Decision{}, err
	}
	var answer firmwareAnswer
	if err := json.NewDecoder(read).Decode(&answer); err != nil {
		return pxe.Decision{}, fmt.Errorf("firmware ended with exit status %d", code)
	}
	if answer.NoOffer {
		return pxe.Decision{}, errNoNetBoot
	}
	return answer.Decision, nil
}

type firmwareAnswer struct {
	Decision pxe.Decision `json:"decision"`
	NoOffer  bool         `json:"no_offer"`
}

// stage runs a stage in the machine's network namespace, to its end.
func (b *board) stage(ctx context.Context, name string, order stage, extra *os.File) (code int, err error) {
	text, err := json.Marshal(order)
	if err != nil {
		return 0, err
	}
	cmd := exec.Command("ip", "netns", "exec", b.machine.Netns, b.program, MachineCommand, name, string(text))
	cmd.Dir = b.dir
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if extra != nil {
		cmd.ExtraFiles = []*os.File{extra}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	stop := context.AfterFunc(ctx, func() { cmd.Process.Kill() })
	defer stop()
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// firmware boots from the network, and says what came of it.
func (s stage) firmware(ctx context.Context) error {
	mac, err := net.ParseMAC(s.MAC)
	if err != nil {
		return err
	}
	out := os.NewFile(3, "decision")
	decision, err := pxe.Boot(ctx, pxe.Options{Interface: rackNIC, MAC: mac, UUID: s.UUID, Say: say})
	answer := firmwareAnswer{Decision: decision, NoOffer: errors.Is(err, pxe.ErrNoOffer)}
	if err != nil {
		say("%v", err)
		if !answer.NoOffer {
			return errors.New("the network boot failed")
		}
	}
	return json.NewEncoder(out).Encode(answer)
}

// install lays a system down on the disk, as the kickstart says.
func (s stage) install(ctx context.Context) int {
	mac, err := net.ParseMAC(s.MAC)
	if err != nil {
		return told(err)
	}
	if err := s.Disk.Mount(); err != nil {
		return told(err)
	}
	outcome, err := installer.Run(ctx, installer.Options{
		KernelArgs: s.KernelArgs, Root: s.Disk.Root, Interface: rackNIC, MAC: mac, Serial: s.Name, Console: os.Stdout,
	})
	if err != nil { // it stood at Anaconda's prompt, and was rebooted
		say("the installation failed: reset")
		return exitReboot
	}
	if err := s.Disk.MarkInstalled(); err != nil {
		return told(err)
	}
	if outcome == installer.Reboot {
		return exitReboot
	}
	return exitPowerOff
}

// boot starts the system on the disk and waits for its end.
func (s stage) boot() int {
	if err := s.Disk.Mount(); err != nil {
		return told(err)
	}
	say("booting the disk")
	program, err := os.Executable()
	if err != nil {
		return told(err)
	}
	ended, err := container.Run(container.Boot{Root: s.Disk.Root, Console: s.Console, Cgroups: s.Cgroups},
		[]string{program, MachineCommand, stageInit}, func(pid int) error {
			pid1, err := identify(pid)
			if err != nil {
				return err
			}
			return writeFile(s.InitFile, func(w io.Writer) error { return json.NewEncoder(w).Encode(pid1) })
		})
	if err != nil {
		return told(err)
	}
	say("the system has ended: %s", ended)
	if ended == container.PoweredOff {
		return exitPowerOff
	}
	return exitReboot
}

// console is the machine's serial port: a terminal, whose output goes to the log and to whoever is connected to the
// socket (see Lab.Console), one at a time.
type console struct {
	path   string // of the terminal's other end
	master *os.File
	slave  *os.File // kept open: without a reader at the other end the master only fails
	listen net.Listener

	mu   sync.Mutex
	conn net.Conn
}

func openConsole(socket string, log io.Writer) (*console, error) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	fd := int(master.Fd())
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		return nil, err
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, err
	}
	c := &console{path: fmt.Sprintf("/dev/pts/%d", number), master: master}
	if c.slave, err = os.OpenFile(c.path, os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		return nil, err
	}
	os.Remove(socket)
	// The path may be too long for a socket's address; the board works in the machine's directory.
	if c.listen, err = net.Listen("unix", filepath.Base(socket)); err != nil {
		return nil, err
	}
	go c.copy(log)
	go c.accept()
	return c, nil
}

func (c *console) copy(log io.Writer) {
	buffer := make([]byte, 4096)
	for {
		n, err := c.master.Read(buffer)
		if n > 0 {
			log.Write(buffer[:n])
			c.mu.Lock()
			if c.conn != nil {
				c.conn.SetWriteDeadline(time.Now().Add(time.Second))
				if _, err := c.conn.Write(buffer[:n]); err != nil {
					c.conn.Close()
					c.conn = nil
				}
			}
			c.mu.Unlock()
		}
		if err != nil {
			return
		}
	}
}

func (c *console) accept() {
	for {
		conn, err := c.listen.Accept()
		if err != nil {
			return
		}
		c.mu.Lock()
		if c.conn != nil {
			c.conn.Close()
		}
		c.conn = conn
		c.mu.Unlock()
		go io.Copy(c.master, conn)
	}
}

func (c *console) close() {
	c.listen.Close()
	c.master.Close()
	c.slave.Close()
}
