// Package testenv tells a test what the machine it runs on can do.
//
// A test that needs root, a tool or QEMU asks here. Where the need is not met the test is skipped and
// says why; with RACKSTRAP_CI=1 in the environment, as `make test` sets it under CI, the skip is a
// failure: nothing is skipped quietly where everything was supposed to run.
package testenv

import (
	"os"
	"os/exec"
	"testing"
)

// NeedRoot skips (under CI: fails) unless the test runs as root, which network namespaces, ports under
// 1024 and mounts need.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		unmet(t, "needs root")
	}
}

// NeedTool skips (under CI: fails) unless every named program is in PATH, and returns the path of the first.
func NeedTool(t testing.TB, names ...string) string {
	t.Helper()
	first := ""
	for _, name := range names {
		path, err := exec.LookPath(name)
		if err != nil {
			unmet(t, "needs the program "+name)
		}
		if first == "" {
			first = path
		}
	}
	return first
}

// NeedFile skips (under CI: fails) unless the file exists.
func NeedFile(t testing.TB, path string) {
	t.Helper()
	if _, err := os.Stat(path); err != nil {
		unmet(t, "needs the file "+path)
	}
}

// NeedQEMU skips (under CI: fails) unless QEMU's x86-64 system emulator is there, and in `go test -short`.
func NeedQEMU(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("boots QEMU machines: not in -short")
	}
	NeedTool(t, "qemu-system-x86_64")
}

func unmet(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("RACKSTRAP_CI") == "1" {
		t.Fatalf("%s, and RACKSTRAP_CI=1 turns this skip into a failure", why)
	}
	t.Skip(why)
}
