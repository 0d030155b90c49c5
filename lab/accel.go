package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

const (
	accelKVM = "kvm"
	// accelTCG is QEMU's software emulation, one host thread per virtual CPU.
	accelTCG = "tcg,thread=multi"

	accelFile     = "accel.json"
	proofDeadline = 15 * time.Second // TCG needs 0.2 s
	proofExit     = 0x10<<1 | 1      // isa-debug-exit turns the value v into the exit status v<<1|1
)

// accelRecord is StateDir/accel.json: an accelerator and what it was proved on.
type accelRecord struct {
	BootID   string    `json:"boot_id"`
	Emulator time.Time `json:"emulator"` // when the QEMU binary was installed
	Accel    string    `json:"accel"`
}

// Accelerator is what QEMU shall run the machines with: the spec's, or KVM when it was proved to run a
// guest, else software emulation. That /dev/kvm exists proves nothing: in nested and in container-like hosts
// it may refuse real mode, or QEMU's registers, only when a guest starts. The result is kept in StateDir until
// the host boots again or QEMU changes.
func (l *Lab) Accelerator(ctx context.Context) (string, error) {
	if l.spec.Accel != "" {
		return l.spec.Accel, nil
	}
	qemu, err := exec.LookPath(emulator)
	if err != nil {
		return "", fmt.Errorf("lab: %v (install the Debian package qemu-system-x86)", err)
	}
	info, err := os.Stat(qemu)
	if err != nil {
		return "", fmt.Errorf("lab: %v", err)
	}
	if err := os.MkdirAll(l.spec.StateDir, 0o755); err != nil {
		return "", fmt.Errorf("lab: %v", err)
	}
	want := accelRecord{BootID: bootID(), Emulator: info.ModTime().UTC()}
	path := filepath.Join(l.spec.StateDir, accelFile)
	if raw, err := os.ReadFile(path); err == nil {
		var have accelRecord
		if json.Unmarshal(raw, &have) == nil && have.BootID == want.BootID && have.Emulator.Equal(want.Emulator) {
			return have.Accel, nil
		}
	}
	if want.Accel, err = prove(ctx, qemu, l.log); err != nil {
		return "", fmt.Errorf("lab: %w", err)
	}
	err = writeFile(path, func(w io.Writer) error { return json.NewEncoder(w).Encode(want) })
	return want.Accel, err
}

// prove runs the guest under KVM, if the host has it. Only the context's end is an error.
func prove(ctx context.Context, qemu string, log *slog.Logger) (string, error) {
	if _, err := os.Stat("/dev/kvm"); err != nil {
		log.Info("no KVM on this host; emulating in software", "reason", err)
		return accelTCG, nil
	}
	err := runProof(ctx, qemu, accelKVM)
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	if err != nil {
		log.Info("KVM does not run a guest on this host; emulating in software", "reason", err)
		return accelTCG, nil
	}
	return accelKVM, nil
}

// runProof boots the proof through SeaBIOS, on the kind of machine that the lab uses.
func runProof(ctx context.Context, qemu, accel string) error {
	ctx, cancel := context.WithTimeout(ctx, proofDeadline)
	defer cancel()
	dir, err := os.MkdirTemp("", "rackstrap-lab-proof-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	disk := make([]byte, 1<<20) // SeaBIOS reads no disk smaller than a cylinder
	copy(disk, proof)
	disk[510], disk[511] = 0x55, 0xaa
	path := filepath.Join(dir, "proof.img")
	if err := os.WriteFile(path, disk, 0o600); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, qemu, "-no-user-config", "-nodefaults", "-no-reboot",
		"-accel", accel, "-machine", "q35,smm=off", "-cpu", "max", "-m", "64", "-display", "none",
		"-device", "isa-debug-exit,iobase=0xf4,iosize=4",
		"-drive", "if=none,id=disk,format=raw,readonly=on,file="+escape(path),
		"-device", "virtio-blk-pci,drive=disk,bootindex=0")
	said, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("the proof of %s did not end within %s", accel, proofDeadline)
	case errors.As(err, &exit) && exit.ExitCode() == proofExit:
		return nil
	default:
		return fmt.Errorf("the proof of %s: %v: %s", accel, err, strings.TrimSpace(tail(string(said), 3)))
	}
}

// proof is a boot sector that goes the way of every operating system: from real mode, where SeaBIOS leaves
// it, through page tables into long mode, and from there tells QEMU to exit.
var proof = []byte{
	0xfa,       // cli
	0xfc,       // cld
	0x31, 0xc0, // xor   ax, ax
	0x8e, 0xd8, // mov   ds, ax
	0x8e, 0xc0, // mov   es, ax
	0x8e, 0xd0, // mov   ss, ax
	0xbc, 0x00, 0x7c, // mov   sp, 0x7c00
	0xbf, 0x00, 0x90, // mov   di, 0x9000       three empty page tables
	0x66, 0x31, 0xc0, // xor   eax, eax
	0xb9, 0x00, 0x0c, // mov   cx, 0xc00
	0x66, 0xf3, 0xab, // rep stosd
	0xc7, 0x06, 0x00, 0x90, 0x03, 0xa0, // mov   word [0x9000], 0xa003    PML4 -> PDPT
	0xc7, 0x06, 0x00, 0xa0, 0x03, 0xb0, // mov   word [0xa000], 0xb003    PDPT -> PD
	0xc7, 0x06, 0x00, 0xb0, 0x83, 0x00, // mov   word [0xb000], 0x83      PD: 2 MiB, as they are
	0xb0, 0x20, // mov   al, 0x20           physical address extension
	0x0f, 0x22, 0xe0, // mov   cr4, eax
	0xb8, 0x00, 0x90, // mov   ax, 0x9000
	0x0f, 0x22, 0xd8, // mov   cr3, eax
	0x66, 0xb9, 0x80, 0x00, 0x00, 0xc0, // mov   ecx, 0xc0000080    EFER
	0x0f, 0x32, // rdmsr
	0x80, 0xcc, 0x01, // or    ah, 1              long mode enable
	0x0f, 0x30, // wrmsr
	0x66, 0x0f, 0x01, 0x16, 0x78, 0x7c, // lgdt  [0x7c78]
	0x0f, 0x20, 0xc0, // mov   eax, cr0
	0x66, 0x0d, 0x01, 0x00, 0x00, 0x80, // or    eax, 0x80000001    paging, protection
	0x0f, 0x22, 0xc0, // mov   cr0, eax
	0x66, 0xea, 0x5d, 0x7c, 0x00, 0x00, 0x08, 0x00, // jmp   8:0x7c5d           64-bit code from here
	0x66, 0xba, 0xf4, 0x00, // mov   dx, 0xf4           isa-debug-exit
	0xb0, 0x10, // mov   al, 0x10
	0xee,       // out   dx, al
	0xf4,       // hlt
	0xeb, 0xfd, // jmp   $-1
	0x90,                                           // (alignment)
	0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, // 0x7c68: GDT: null
	0x00, 0x00, 0x00, 0x00, 0x00, 0x9a, 0x20, 0x00, //         64-bit code
	0x0f, 0x00, 0x68, 0x7c, 0x00, 0x00, // 0x7c78: its limit and address
}
