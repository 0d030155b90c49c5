package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process identifies a process beyond the reuse of its PID: by the time it started, in clock ticks since
// the host booted (proc(5), field 22 of /proc/PID/stat). An exec keeps both.
type process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"`
}

// pollEvery is how often a condition that the kernel does not announce is looked at again.
const pollEvery = 50 * time.Millisecond

// identify reads the identity of a living process.
func identify(pid int) (process, error) {
	_, start, err := procStat(pid)
	return process{PID: pid, Start: start}, err
}

// procStat reads state and start time. The second field, the command's name in parentheses, may hold
// anything, so fields are counted from its last parenthesis.
func procStat(pid int) (state byte, start uint64, err error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	fields := bytes.Fields(raw[bytes.LastIndexByte(raw, ')')+1:])
	if len(fields) < 20 {
		return 0, 0, fmt.Errorf("/proc/%d/stat: %d fields after the name", pid, len(fields))
	}
	start, err = strconv.ParseUint(string(fields[19]), 10, 64)
	return fields[0][0], start, err
}

// alive is false for a recycled PID, and for a zombie, which holds nothing any more.
func (p process) alive() bool {
	if p.PID <= 0 {
		return false
	}
	state, start, err := procStat(p.PID)
	return err == nil && start == p.Start && state != 'Z' && state != 'X'
}

// signal reaches this process or none: os.FindProcess holds a pidfd, which cannot change hands between
// the check and the signal.
func (p process) signal(sig syscall.Signal) error {
	handle, err := os.FindProcess(p.PID)
	if err != nil {
		return nil // gone
	}
	defer handle.Release()
	if !p.alive() {
		return nil
	}
	if err := handle.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

// end asks the process to end, insists after the grace time, and returns when it is gone.
func (p process) end(ctx context.Context, grace time.Duration) error {
	if grace > 0 {
		if err := p.signal(syscall.SIGTERM); err != nil {
			return fmt.Errorf("process %d: %v", p.PID, err)
		}
		asked, cancel := context.WithTimeout(ctx, grace)
		defer cancel()
		if p.awaitEnd(asked) == nil {
			return nil
		}
	}
	if err := p.signal(syscall.SIGKILL); err != nil {
		return fmt.Errorf("process %d: %v", p.PID, err)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return p.awaitEnd(ctx)
}

func (p process) awaitEnd(ctx context.Context) error {
	return poll(ctx, func() (bool, error) { return !p.alive(), nil })
}

// poll looks until done, or until the context ends, with the context's error.
func poll(ctx context.Context, done func() (bool, error)) error {
	ticker := time.NewTicker(pollEvery)
	defer ticker.Stop()
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
}

// bootID differs after each boot of the host: PIDs and start times of an earlier boot mean nothing.
func bootID() string {
	raw, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(raw))
}
