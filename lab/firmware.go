package lab

import (
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
)

// Firmware names what a machine starts with, by the boot path that it exercises.
type Firmware string

const (
	// BIOS is SeaBIOS with iPXE in the NIC's option ROM: DHCP option 93 = 0.
	BIOS Firmware = "bios"
	// UEFI is OVMF (x64) with its own PXE stack: option 93 = 7.
	UEFI Firmware = "uefi"
	// UEFIHTTP is OVMF with HTTP Boot alone: option 93 = 16, vendor class HTTPClient.
	UEFIHTTP Firmware = "uefi-http"
	// UEFISecureBoot is OVMF that enforces Secure Boot with Microsoft's keys, PXE: option 93 = 7.
	UEFISecureBoot Firmware = "uefi-secureboot"
	// UEFIIA32 is 32-bit OVMF, PXE: option 93 = 6.
	UEFIIA32 Firmware = "uefi-ia32"
	// Namespace is no firmware of QEMU's: the machine is a set of Linux namespaces, which boots from the network as
	// UEFI does (option 93 = 7), and whose disk is a directory. See namespace.go.
	Namespace Firmware = "namespace"
)

// firmware is how QEMU is told to start with it.
type firmware struct {
	machine  string // QEMU's -machine
	code     string // flash image with the firmware's code; empty: SeaBIOS, which QEMU brings along
	vars     string // template of the flash image with the firmware's variables
	pack     string // the Debian package of both
	secure   bool   // writes to the variables need System Management Mode
	httpOnly bool   // PXE switched off, so that HTTP Boot comes first
	noIPv6   bool   // PXE over IPv6 switched off: the firmware would wait a minute for nobody before it tries the disk
}

// graphics=off makes SeaBIOS (and with it iPXE and GRUB) mirror the screen to the serial port; OVMF does so
// by itself. The VGA adapter stays, for screenshots. SMM costs time and serves Secure Boot alone.
var firmwares = map[Firmware]firmware{
	BIOS: {machine: "q35,graphics=off,smm=off"},
	UEFI: {
		machine: "q35,smm=off", pack: "ovmf", noIPv6: true,
		code: "/usr/share/OVMF/OVMF_CODE_4M.fd",
		vars: "/usr/share/OVMF/OVMF_VARS_4M.fd",
	},
	UEFIHTTP: {
		machine: "q35,smm=off", pack: "ovmf", httpOnly: true,
		code: "/usr/share/OVMF/OVMF_CODE_4M.fd",
		vars: "/usr/share/OVMF/OVMF_VARS_4M.fd",
	},
	UEFISecureBoot: {
		machine: "q35,smm=on", pack: "ovmf", secure: true,
		code: "/usr/share/OVMF/OVMF_CODE_4M.ms.fd",
		vars: "/usr/share/OVMF/OVMF_VARS_4M.ms.fd",
	},
	UEFIIA32: {
		machine: "q35,smm=on", pack: "ovmf-ia32", secure: true,
		code: "/usr/share/OVMF/OVMF32_CODE_4M.secboot.fd",
		vars: "/usr/share/OVMF/OVMF32_VARS_4M.fd",
	},
	Namespace: {},
}

// Firmwares lists the known firmwares, sorted.
func Firmwares() []Firmware { return slices.Sorted(maps.Keys(firmwares)) }

// Valid tells whether the lab knows the firmware.
func (f Firmware) Valid() bool { _, known := firmwares[f]; return known }

// args are QEMU's arguments for the firmware; vars is the machine's own copy of the variables.
func (f firmware) args(vars string) []string {
	args := []string{"-machine", f.machine}
	if f.code != "" {
		args = append(args,
			"-drive", "if=pflash,unit=0,format=raw,readonly=on,file="+escape(f.code),
			"-drive", "if=pflash,unit=1,format=raw,file="+escape(vars))
	}
	if f.secure {
		args = append(args, "-global", "driver=cfi.pflash01,property=secure,value=on")
	}
	if f.httpOnly {
		args = append(args, "-fw_cfg", "name=opt/org.tianocore/IPv4PXESupport,string=n")
	}
	if f.httpOnly || f.noIPv6 {
		args = append(args, "-fw_cfg", "name=opt/org.tianocore/IPv6PXESupport,string=n")
	}
	return args
}

// layVars gives the machine its own copy of the firmware's variables, once: what the firmware remembers
// (boot entries) outlives a power cut.
func (f firmware) layVars(path string) error {
	if f.code == "" {
		return nil
	}
	for _, file := range []string{f.code, f.vars} {
		if _, err := os.Stat(file); err != nil {
			return fmt.Errorf("firmware: %v (install the Debian package %s)", err, f.pack)
		}
	}
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	return copyFile(path, f.vars)
}

// copyFile copies by way of a temporary file, so that a half copy never bears the name.
func copyFile(to, from string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	return writeFile(to, func(w io.Writer) error {
		_, err := io.Copy(w, src)
		return err
	})
}

// writeFile writes a file atomically: temporary file, fsync, rename.
func writeFile(path string, fill func(io.Writer) error) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // after the rename there is nothing left to remove
	defer tmp.Close()
	if err := fill(tmp); err != nil {
		return err
	}
	if err := tmp.Chmod(0o644); err != nil {
		return err
	}
	if err := tmp.Sync(); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}
