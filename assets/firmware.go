// Package assets is the data of the boot plane: which loader each firmware gets, and the loader files.
package assets

import "slices"

// Firmware is what asks to be booted: a firmware, or the boot loader iPXE once it runs.
type Firmware string

// The kinds of firmware. Architecture numbers are those of IANA's registry "Processor Architecture Types"
// (RFC 4578 section 2.1 and its errata), as sent in DHCP option 93.
const (
	BIOS        Firmware = "bios"
	EFIIA32     Firmware = "uefi-ia32"
	EFIX64      Firmware = "uefi-x64"
	EFIARM32    Firmware = "uefi-arm32"
	EFIARM64    Firmware = "uefi-arm64"
	HTTPIA32    Firmware = "http-ia32"
	HTTPX64     Firmware = "http-x64"
	HTTPARM32   Firmware = "http-arm32"
	HTTPARM64   Firmware = "http-arm64"
	RaspberryPi Firmware = "raspberry-pi"
	Unsupported Firmware = "unsupported"
)

// firmwares is the one table that DHCP, TFTP and HTTP are fed from. Loaders are in order of preference: the
// first one that is there is offered.
var firmwares = []struct {
	firmware Firmware
	arch     []uint16 // values of option 93
	http     bool     // asks with HTTPClient and takes a URL (UEFI 2.8 section 24.7)
	loaders  []string
}{
	// undionly.kpxe uses the driver that the firmware's own ROM brought: it works wherever that did.
	{BIOS, []uint16{0}, false, []string{"undionly.kpxe", "ipxe.pxe"}},
	{EFIIA32, []uint16{6}, false, []string{"snponly-ia32.efi", "ipxe-ia32.efi", "grubnetia32.efi"}},
	// 9 is "EFI BC": edk2 before 2015 and some servers send it for x64.
	{EFIX64, []uint16{7, 9}, false, []string{"snponly.efi", "ipxe.efi", "grubnetx64.efi"}},
	{EFIARM32, []uint16{10}, false, []string{"snponly-arm32.efi", "ipxe-arm32.efi", "grubnetarm.efi"}},
	{EFIARM64, []uint16{11}, false, []string{"snponly-arm64.efi", "ipxe-arm64.efi", "grubnetaa64.efi"}},
	{HTTPIA32, []uint16{15}, true, []string{"snponly-ia32.efi", "ipxe-ia32.efi", "grubnetia32.efi"}},
	{HTTPX64, []uint16{16}, true, []string{"snponly.efi", "ipxe.efi", "grubnetx64.efi"}},
	{HTTPARM32, []uint16{18}, true, []string{"snponly-arm32.efi", "ipxe-arm32.efi", "grubnetarm.efi"}},
	{HTTPARM64, []uint16{19}, true, []string{"snponly-arm64.efi", "ipxe-arm64.efi", "grubnetaa64.efi"}},
	// The Pi's boot ROM ignores the file name and asks for its own files; its EEPROM then loads a UEFI
	// whose NIC comes back with 11. The name only has to be there.
	{RaspberryPi, []uint16{41}, false, []string{"bootcode.bin", "start4.elf"}},
}

// FirmwareOf names the firmware by option 93 (all values that the client listed, the first known one
// counts) and by whether its option 60 begins with HTTPClient. No option 93 means BIOS: old PXE ROMs.
func FirmwareOf(archs []uint16, httpClient bool) Firmware {
	if len(archs) == 0 {
		if httpClient {
			return Unsupported
		}
		return BIOS
	}
	for _, arch := range archs {
		for _, row := range firmwares {
			if slices.Contains(row.arch, arch) && row.http == httpClient {
				return row.firmware
			}
		}
	}
	return Unsupported
}

// ParseFirmware is the Firmware of that name; ok is false for a name that no row of the table has.
func ParseFirmware(name string) (f Firmware, ok bool) {
	for _, row := range firmwares {
		if string(row.firmware) == name {
			return row.firmware, true
		}
	}
	return Unsupported, false
}

// Firmwares lists every supported firmware, in the order of the table.
func Firmwares() []Firmware {
	var all []Firmware
	for _, row := range firmwares {
		all = append(all, row.firmware)
	}
	return all
}

// HTTP tells whether the firmware takes its loader as a URL.
func (f Firmware) HTTP() bool {
	for _, row := range firmwares {
		if row.firmware == f {
			return row.http
		}
	}
	return false
}

// EFI tells whether the firmware is UEFI.
func (f Firmware) EFI() bool { return f != BIOS && f != RaspberryPi && f != Unsupported }

func (f Firmware) candidates() []string {
	for _, row := range firmwares {
		if row.firmware == f {
			return row.loaders
		}
	}
	return nil
}
