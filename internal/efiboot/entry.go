// Package efiboot keeps the network first in the boot order of a machine with UEFI.
//
// It reads and writes the firmware's variables by the kernel's efivarfs. efibootmgr would be one program more that has
// to be there, and what it prints differs between releases (17 shows paths with -v alone, 18 always); the variables'
// format is that of the UEFI specification, the same for every release.
package efiboot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode/utf16"
)

// Entry is one boot entry: the variable Boot####, an EFI_LOAD_OPTION (UEFI specification 2.10, 3.1.3).
type Entry struct {
	Number    uint16
	Label     string
	Active    bool
	Path      []byte // device path
	Partition string // of the path, as Linux writes a PARTUUID; "": the path names none
	File      string // of the path: \EFI\centos\shimx64.efi
	Network   bool   // boots from the network
	Removable bool   // boots from USB or an optical drive
}

func (e Entry) String() string { return fmt.Sprintf("Boot%04X %s", e.Number, e.Label) }

// directory is where on its partition an entry's loader lies: "centos" of \EFI\centos\shimx64.efi, in lower case.
func (e Entry) directory() string {
	words := strings.Split(strings.ToLower(strings.Trim(e.File, `\`)), `\`)
	if len(words) < 3 || words[0] != "efi" {
		return ""
	}
	return words[1]
}

var errShort = errors.New("boot entry is cut off")

const loadOptionActive = 1

// parseEntry reads the value of Boot####, without the attributes of the variable.
func parseEntry(number uint16, raw []byte) (Entry, error) {
	e := Entry{Number: number}
	if len(raw) < 6 {
		return e, errShort
	}
	e.Active = binary.LittleEndian.Uint32(raw)&loadOptionActive != 0
	length := int(binary.LittleEndian.Uint16(raw[4:]))
	label, rest, ended := cutText(raw[6:])
	if !ended || length > len(rest) {
		return e, errShort
	}
	e.Label, e.Path = label, rest[:length]
	e.walk()
	return e, nil
}

// cutText reads UTF-16 up to its NUL.
func cutText(raw []byte) (text string, rest []byte, ended bool) {
	var units []uint16
	for len(raw) >= 2 {
		unit := binary.LittleEndian.Uint16(raw)
		raw = raw[2:]
		if unit == 0 {
			return printable(string(utf16.Decode(units))), raw, true
		}
		units = append(units, unit)
	}
	return printable(string(utf16.Decode(units))), nil, false
}

// printable keeps what fits into one line of a log.
func printable(text string) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, text))
}

// kind is the type and the subtype of a node of a device path (UEFI specification 2.10, 10.3).
type kind struct{ major, minor byte }

// What a node says of the device. A path with both a NIC and a disk (iSCSI, NVMe over fabrics) boots a disk.
var (
	networkNodes   = map[kind]bool{{3, 11}: true, {3, 12}: true, {3, 13}: true, {3, 24}: true, {3, 28}: true} // MAC, IPv4, IPv6, URI, Wi-Fi
	removableNodes = map[kind]bool{{3, 5}: true, {3, 15}: true, {3, 16}: true, {4, 2}: true}                  // USB, USB class, USB WWID, CD-ROM
	diskNodes      = map[kind]bool{{3, 2}: true, {3, 18}: true, {3, 19}: true, {3, 23}: true, {3, 34}: true,  // SCSI, SATA, iSCSI, NVMe, NVMe over fabrics
		{4, 1}: true, {4, 4}: true, {4, 6}: true, {4, 7}: true} // hard drive, file, firmware's file and volume
)

var (
	hardDrive = kind{4, 1}
	filePath  = kind{4, 4}
	biosBoot  = kind{5, 1}
)

// biosNetwork is the device type of a NIC in an entry of the BIOS boot specification.
const biosNetwork = 0x80

// networkLabel recognises the network in the label of an entry whose path only its maker understands: "PCI LAN" of
// Lenovo, "Integrated NIC 1 Port 1 Partition 1" of Dell, both with a vendor's node alone.
var networkLabel = regexp.MustCompile(`(?i)\b(pxe(v[46])?|http(v[46])?|network|lan|nic|ethernet|ipv[46])\b`)

// walk takes what is of use out of the path. It goes on behind the end of a device path, for AMI's firmware puts a
// masking path in front of the real one (shim, fallback.c, check_masked_boot_option).
func (e *Entry) walk() {
	network, disk := false, false
	for path := e.Path; len(path) >= 4; {
		node, length := kind{path[0], path[1]}, int(binary.LittleEndian.Uint16(path[2:]))
		if length < 4 || length > len(path) {
			break
		}
		body := path[4:length]
		network = network || networkNodes[node]
		disk = disk || diskNodes[node]
		e.Removable = e.Removable || removableNodes[node]
		switch {
		case node == hardDrive && len(body) >= 38:
			e.Partition = partUUID(body)
		case node == filePath:
			text, _, _ := cutText(body)
			if e.File != "" && !strings.HasSuffix(e.File, `\`) && !strings.HasPrefix(text, `\`) {
				text = `\` + text
			}
			e.File += text
		case node == biosBoot && len(body) >= 2:
			network = network || binary.LittleEndian.Uint16(body) == biosNetwork
			disk = disk || binary.LittleEndian.Uint16(body) != biosNetwork
		}
		path = path[length:]
	}
	e.Network = !disk && !e.Removable && (network || networkLabel.MatchString(e.Label))
}

// partUUID is the partition of a hard drive node: number, start, size, signature, format, type of the signature.
func partUUID(body []byte) string {
	number, s := binary.LittleEndian.Uint32(body), body[20:36]
	switch body[37] {
	case 1: // MBR
		return fmt.Sprintf("%08x-%02x", binary.LittleEndian.Uint32(s), number)
	case 2: // GPT
		return fmt.Sprintf("%08x-%04x-%04x-%x-%x", binary.LittleEndian.Uint32(s), binary.LittleEndian.Uint16(s[4:]), binary.LittleEndian.Uint16(s[6:]), s[8:10], s[10:])
	}
	return ""
}
