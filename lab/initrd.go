package lab

import (
	"bytes"
	"compress/gzip"
	"context"
	"debug/elf"
	_ "embed"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// initScript is the init of the lab's initrd; udhcpcScript configures the NIC for its DHCP client. It obeys the
// installer's kernel arguments BOOTIF, inst.ks, inst.ks.sendmac, inst.ks.sendsn and inst.repo, and two of its
// own: rackstrap.poweroff ends with a power-off instead of a shell, rackstrap.disk=NAME plays the installed
// system. Each step is one line on the serial port:
//
//	rackstrap-lab: kernel command line: ...
//	rackstrap-lab: address 10.10.10.80 on eth0 52:54:00:00:00:80
//	rackstrap-lab: lease from 10.10.10.1: router 10.10.10.121, hostname kmaster, 43200 s
//	rackstrap-lab: kickstart http://10.10.10.1:8080/ks/... HTTP 200 1234 bytes
//	rackstrap-lab: treeinfo|stage2|updates|product http://... HTTP 200 735 bytes
//	rackstrap-lab: installer reached
//
// whereupon the second stage, if the lab has made it, goes on in the same manner (package lab/installer), or, at any step, `rackstrap-lab: FAILED ...`.
//
//go:embed init.sh
var initScript []byte

//go:embed udhcpc.sh
var udhcpcScript []byte

// initrdModules are what a machine of the lab needs; what they depend on comes along. Those that a kernel has
// built in are skipped.
var initrdModules = []string{
	"virtio_pci", "virtio_net", "virtio_scsi", "virtio_blk", "virtio-rng", "e1000", "e1000e", "af_packet",
	"sd_mod", "sr_mod", "isofs",
	"loop", "squashfs", "overlay", // the second stage, which has all others
}

// buildInitrd packs busybox, the modules and the init script.
func buildInitrd(ctx context.Context, k kernel, busybox string) ([]byte, error) {
	shell, err := os.ReadFile(busybox)
	if err != nil {
		return nil, err
	}
	entries := []cpioEntry{
		{name: "dev", mode: cpioDir | 0o755},
		{name: "dev/console", mode: cpioChar | 0o600, major: 5, minor: 1},
		{name: "proc", mode: cpioDir | 0o755},
		{name: "sys", mode: cpioDir | 0o755},
		{name: "run", mode: cpioDir | 0o755},
		{name: "bin", mode: cpioDir | 0o755},
		{name: "sbin", mode: cpioSymlink | 0o777, data: []byte("bin")},
		{name: "etc", mode: cpioDir | 0o755},
		{name: "modules", mode: cpioDir | 0o755},
		{name: "bin/busybox", mode: cpioFile | 0o755, data: shell},
		{name: "bin/sh", mode: cpioSymlink | 0o777, data: []byte("busybox")},
		{name: "etc/udhcpc.sh", mode: cpioFile | 0o755, data: udhcpcScript},
		{name: "init", mode: cpioFile | 0o755, data: initScript},
	}
	loaded, err := k.load(ctx, initrdModules)
	if err != nil {
		return nil, err
	}
	var order strings.Builder
	for _, m := range loaded {
		entries = append(entries, cpioEntry{name: "modules/" + m.name + ".ko", mode: cpioFile | 0o644, data: m.data})
		fmt.Fprintln(&order, m.name)
	}
	entries = append(entries, cpioEntry{name: "modules/order", mode: cpioFile | 0o644, data: []byte(order.String())})

	var packed bytes.Buffer
	zip := gzip.NewWriter(&packed)
	if err := writeCPIO(zip, entries); err != nil {
		return nil, err
	}
	if err := zip.Close(); err != nil {
		return nil, err
	}
	return packed.Bytes(), nil
}

// module is a kernel module, uncompressed.
type module struct {
	name string // as the kernel prints it, with underscores
	data []byte
}

// load reads modules and all that they depend on, in an order in which insmod(8) can load them. A Debian
// package has no modules.dep (depmod writes it at installation), so the dependencies come from the modules.
func (k kernel) load(ctx context.Context, names []string) ([]module, error) {
	index := map[string]string{}
	err := filepath.WalkDir(filepath.Join(k.modules, "kernel"), func(file string, entry fs.DirEntry, err error) error {
		if base, _, ok := strings.Cut(path.Base(file), ".ko"); ok && err == nil && entry.Type().IsRegular() {
			index[moduleName(base)] = file
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("kernel %s: %v", k.version, err)
	}
	builtin, err := os.ReadFile(filepath.Join(k.modules, "modules.builtin"))
	if err != nil {
		return nil, fmt.Errorf("kernel %s: %v", k.version, err)
	}
	for _, line := range strings.Fields(string(builtin)) {
		index[moduleName(strings.TrimSuffix(path.Base(line), ".ko"))] = ""
	}

	var loaded []module
	visited := map[string]bool{}
	var visit func(name string) error
	visit = func(name string) error {
		name = moduleName(name)
		if visited[name] {
			return nil
		}
		visited[name] = true
		file, known := index[name]
		if !known {
			return fmt.Errorf("kernel %s has no module %s", k.version, name)
		}
		if file == "" {
			return nil // built in
		}
		data, err := readModule(ctx, file)
		if err != nil {
			return err
		}
		needs, err := dependencies(data)
		if err != nil {
			return fmt.Errorf("%s: %v", file, err)
		}
		for _, need := range needs {
			if err := visit(need); err != nil {
				return fmt.Errorf("%s needs %w", name, err)
			}
		}
		loaded = append(loaded, module{name: name, data: data})
		return nil
	}
	for _, name := range names {
		if err := visit(name); err != nil {
			return nil, err
		}
	}
	return loaded, nil
}

// moduleName: file names have dashes or underscores, the kernel sees no difference.
func moduleName(name string) string { return strings.ReplaceAll(name, "-", "_") }

// readModule uncompresses what Debian 13 compresses.
func readModule(ctx context.Context, file string) ([]byte, error) {
	if !strings.HasSuffix(file, ".xz") {
		return os.ReadFile(file)
	}
	raw, err := output(ctx, "xz", "-dc", file)
	return []byte(raw), err
}

// dependencies reads `depends=a,b` of a module's section .modinfo.
func dependencies(data []byte) ([]string, error) {
	object, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	section := object.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("no section .modinfo")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	var needs []string
	for _, line := range strings.Split(string(info), "\x00") {
		if list, ok := strings.CutPrefix(line, "depends="); ok && list != "" {
			needs = append(needs, strings.Split(list, ",")...)
		}
	}
	return needs, nil
}
