package testenv

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// linux310 is set, to on, in the environment of processes that OnLinux310 starts.
const linux310 = "RACKSTRAP_LINUX_310"

// lastCall is the number of the youngest system call of Linux 3.10, by architecture: finit_module, of Linux 3.8.
// Numbers are given in the order of time, so what is larger came later (arch/x86/entry/syscalls/syscall_64.tbl;
// include/uapi/asm-generic/unistd.h).
var lastCall = map[string]uint32{"amd64": 313, "arm64": 273}

// OnLinux310 arranges that this test program runs its tests as on the kernel of EL7, as far as system calls tell:
// those that came after Linux 3.10 are answered by ENOSYS, to children as well. A TestMain calls it first. Where the
// environment does not ask for it, it does nothing.
func OnLinux310() {
	switch os.Getenv(linux310) {
	case "":
	case "on":
		// What the caller believes is checked: a filter that lets everything through would prove nothing.
		if _, _, errno := unix.RawSyscall(unix.SYS_GETRANDOM, 0, 0, 0); errno != unix.ENOSYS {
			fmt.Fprintf(os.Stderr, "getrandom, of Linux 3.17, is answered by %v\n", errno)
			os.Exit(1)
		}
	default:
		// The filter survives an exec, and Go's start is to be under it as well.
		err := refuseNewCalls()
		if err == nil {
			os.Setenv(linux310, "on") // fails for malformed names only
			err = syscall.Exec("/proc/self/exe", os.Args, os.Environ())
		}
		fmt.Fprintf(os.Stderr, "system calls of after Linux 3.10 cannot be refused: %v\n", err)
		os.Exit(1)
	}
}

// IsLinux310 tells whether OnLinux310 has taken effect.
func IsLinux310() bool { return os.Getenv(linux310) == "on" }

// Linux310 is the environment in which this program, started again, runs under OnLinux310. Skips (under CI: fails)
// on an architecture whose system calls are not known.
func Linux310(t testing.TB) []string {
	t.Helper()
	if lastCall[runtime.GOARCH] == 0 {
		unmet(t, "knows no system calls of "+runtime.GOARCH)
	}
	return append(os.Environ(), linux310+"=wanted")
}

// refuseNewCalls has the kernel answer ENOSYS to system calls that Linux 3.10 does not know (seccomp(2)).
func refuseNewCalls() error {
	last, known := lastCall[runtime.GOARCH]
	if !known {
		return errors.New("the system calls of " + runtime.GOARCH + " are not known")
	}
	program, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: 0, Size: 4}, // nr of struct seccomp_data
		bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: last, SkipFalse: 1},
		bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
		bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW},
	})
	if err != nil {
		return err
	}
	filter := make([]unix.SockFilter, len(program))
	for i, p := range program {
		filter[i] = unix.SockFilter{Code: p.Op, Jt: p.Jt, Jf: p.Jf, K: p.K}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl", err)
	}
	fprog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&fprog)))
	if errno != 0 {
		return os.NewSyscallError("seccomp", errno)
	}
	return nil
}
