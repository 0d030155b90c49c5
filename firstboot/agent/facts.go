package agent

import (
	"bufio"
	"context"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"rackstrap/firstboot/api"
	"rackstrap/internal/plain"
)

// maxMACs bounds what a machine with many virtual interfaces tells.
const maxMACs = 32

// Facts gathers what is known of this host.
func (h *Host) Facts(ctx context.Context) api.Facts {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	f := api.Facts{CPUs: runtime.NumCPU(), Agent: h.o.Version, Clock: h.o.Now(), Joined: exists(h.path(kubeletConf)), Boot: h.boot()}
	f.Hostname, _ = os.Hostname()
	interfaces, _ := net.Interfaces()
	for _, i := range interfaces {
		if len(i.HardwareAddr) == 6 && i.Flags&net.FlagLoopback == 0 && len(f.MACs) < maxMACs {
			f.MACs = append(f.MACs, i.HardwareAddr.String())
		}
	}
	meminfo, _ := os.ReadFile("/proc/meminfo")
	f.MemoryMiB = memoryMiB(string(meminfo))
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		f.Kernel = unix.ByteSliceToString(name.Release[:])
	}
	release, _ := os.ReadFile(h.path("/etc/os-release"))
	f.OS = prettyName(string(release))
	dmi := func(name string) string {
		text, _ := os.ReadFile(h.path("/sys/class/dmi/id/" + name))
		return plain.Line(string(text), 100)
	}
	f.Board = strings.TrimSpace(dmi("sys_vendor") + " " + dmi("product_name"))
	f.Serial, f.UUID = dmi("product_serial"), dmi("product_uuid")
	s := newSession(nil)
	if out, err := h.run(ctx, s, "containerd", "--version"); err == nil {
		f.Containerd = containerdVersion(out)
	}
	if out, err := h.run(ctx, s, "kubeadm", "version", "-o", "short"); err == nil {
		f.Kubeadm = plain.Line(out, 40)
	}
	return f
}

// memoryMiB reads /proc/meminfo.
func memoryMiB(text string) int {
	for line := range strings.SplitSeq(text, "\n") {
		words := strings.Fields(line)
		if len(words) >= 2 && words[0] == "MemTotal:" {
			kib, _ := strconv.Atoi(words[1])
			return kib / 1024
		}
	}
	return 0
}

// prettyName reads os-release(5).
func prettyName(text string) string {
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), "PRETTY_NAME="); ok {
			return plain.Line(strings.Trim(value, `"'`), 100)
		}
	}
	return ""
}

// containerdVersion is the third word: "containerd containerd.io 1.6.33 d2d58213…".
func containerdVersion(text string) string {
	if words := strings.Fields(text); len(words) >= 3 {
		return plain.Line(words[2], 40)
	}
	return ""
}
