// Package container boots a directory: the root file system of an installed machine, with its own systemd as PID 1
// in namespaces of its own (mount, pid, uts, ipc, cgroup). The network namespace is the caller's.
//
// It is for kubeadm, kubelet and containerd of the lab's namespace machines, which must find what they would find on
// a real machine, on a host that may lack much: no CAP_SYS_RESOURCE, cgroup v1 hierarchies, no modules to load. What
// is arranged for that is laid over the machine's disk at each boot, in /run, /proc and /dev; the disk holds what the
// installation put there.
package container

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// Disk is a machine's disk: a directory with an overlay's upper layer, above a system that several share.
type Disk struct {
	Dir   string `json:"dir"`   // holds upper, work and data; on a file system that an overlay can be on
	Lower string `json:"lower"` // the shared system, never written to
	Root  string `json:"root"`  // where Mount mounts it
}

// dataDirs hold file trees that cannot lie on an overlay (containerd's snapshots are overlays themselves) or that
// write much: they are plain directories of the disk.
var dataDirs = []string{"var/lib/containerd", "var/lib/docker", "var/lib/kubelet", "var/lib/etcd"}

// Blank erases the disk.
func (d Disk) Blank() error { return os.RemoveAll(d.Dir) }

// Installed tells whether a system was laid down on the disk and can be started.
func (d Disk) Installed() bool {
	info, err := os.Stat(filepath.Join(d.Dir, installedMark))
	return err == nil && info.Mode().IsRegular()
}

// installedMark lies beside the disk's content, not in it.
const installedMark = "bootable"

// MarkInstalled says that the disk boots from now on.
func (d Disk) MarkInstalled() error {
	return os.WriteFile(filepath.Join(d.Dir, installedMark), nil, 0o644)
}

// Mount mounts the disk at Root, in the mount namespace of the caller.
func (d Disk) Mount() error {
	for _, dir := range []string{"upper", "work"} {
		if err := os.MkdirAll(filepath.Join(d.Dir, dir), 0o755); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(d.Root, 0o755); err != nil {
		return err
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", d.Lower, filepath.Join(d.Dir, "upper"), filepath.Join(d.Dir, "work"))
	if err := unix.Mount("overlay", d.Root, "overlay", 0, options); err != nil {
		return fmt.Errorf("overlay on %s (%s): %w", d.Root, options, err)
	}
	for _, dir := range dataDirs {
		from, to := filepath.Join(d.Dir, "data", filepath.Base(dir)), filepath.Join(d.Root, dir)
		for _, path := range []string{from, to} {
			if err := os.MkdirAll(path, 0o755); err != nil {
				return err
			}
		}
		if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s: %w", to, err)
		}
	}
	return nil
}

// Unmount is Mount's opposite.
func (d Disk) Unmount() error {
	for _, dir := range dataDirs {
		if err := unix.Unmount(filepath.Join(d.Root, dir), unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
	}
	return unix.Unmount(d.Root, unix.MNT_DETACH)
}

// Boot says what PID 1 needs to know; it travels in its command line.
type Boot struct {
	Root    string `json:"root"`    // a mounted Disk
	Console string `json:"console"` // a terminal of the host, the machine's /dev/console

	Cgroups []Hierarchy `json:"cgroups"` // that the machine gets, each rooted at the caller's own directory
}

// Ended is how a machine stopped.
type Ended string

// The ways.
const (
	Rebooted   Ended = "reboot"
	PoweredOff Ended = "power off"
	Died       Ended = "died" // PID 1 crashed or was killed: a power cut
)

// Run starts the machine's PID 1 and waits until it ends. program is the path and the arguments of a command that
// calls Init with its last argument. started is told the process, as the host sees it. The calling goroutine must be
// locked to its thread: the machine ends with it.
func Run(b Boot, program []string, started func(pid int) error) (Ended, error) {
	text, err := json.Marshal(b)
	if err != nil {
		return "", err
	}
	cmd := exec.Command(program[0], append(program[1:], string(text))...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWCGROUP,
		Pdeathsig:  syscall.SIGKILL,
		Setsid:     true,
	}
	if err := cmd.Start(); err != nil {
		return "", fmt.Errorf("namespaces: %w", err)
	}
	if err := started(cmd.Process.Pid); err != nil {
		cmd.Process.Kill()
		cmd.Wait()
		return "", err
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return "", err
	}
	status := cmd.ProcessState.Sys().(syscall.WaitStatus)
	// reboot(2) in a PID namespace ends its PID 1 with one of these.
	switch {
	case status.Signaled() && status.Signal() == syscall.SIGHUP:
		return Rebooted, nil
	case status.Signaled() && status.Signal() == syscall.SIGINT:
		return PoweredOff, nil
	case status.Signaled():
		return Died, nil
	}
	return Died, fmt.Errorf("PID 1 ended: exit status %d", status.ExitStatus())
}

// Init is PID 1 before it becomes the machine's own: it builds the view of the machine around the root, and executes
// /sbin/init. It returns only with an error.
func Init(argument string) error {
	runtime.LockOSThread()
	var b Boot
	if err := json.Unmarshal([]byte(argument), &b); err != nil {
		return fmt.Errorf("PID 1: %w", err)
	}
	if os.Getpid() != 1 {
		return errors.New("PID 1: this runs as the first process of a machine of the lab, and nowhere else")
	}
	if err := b.init(); err != nil {
		return fmt.Errorf("PID 1: %w", err)
	}
	return nil
}
