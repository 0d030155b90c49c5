package efiboot

import (
	"encoding/binary"
	"encoding/hex"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"unicode/utf16"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rackstrap/internal/testenv"
)

// Nodes of device paths.
func node(major, minor byte, body ...byte) []byte {
	return append(binary.LittleEndian.AppendUint16([]byte{major, minor}, uint16(4+len(body))), body...)
}

func text(s string) (raw []byte) {
	for _, unit := range utf16.Encode([]rune(s + "\x00")) {
		raw = binary.LittleEndian.AppendUint16(raw, unit)
	}
	return raw
}

var (
	end    = node(0x7f, 0xff)
	pci    = node(1, 1, 0, 2)
	mac    = node(3, 11, append([]byte{0x52, 0x54, 0, 0, 0, 0x81}, make([]byte, 27)...)...)
	ipv4   = node(3, 12, make([]byte, 23)...)
	ipv6   = node(3, 13, make([]byte, 56)...)
	uri    = node(3, 24)
	scsi   = node(3, 2, 0, 0, 0, 0)
	iscsi  = node(3, 19, make([]byte, 14)...)
	usb    = node(3, 5, 1, 0)
	dvd    = node(4, 2, make([]byte, 20)...)
	vendor = node(1, 4, make([]byte, 16)...)
)

// gpt is the node of a partition whose GUID is 0000000N-0000-0000-0000-000000000000, and guid that one as Linux writes it.
func gpt(n byte) []byte {
	body := append(binary.LittleEndian.AppendUint32(nil, 1), make([]byte, 16)...)
	body = append(body, append([]byte{n}, make([]byte, 15)...)...)
	return node(4, 1, append(body, 2, 2)...)
}

func guid(n string) string { return "0000000" + n + "-0000-0000-0000-000000000000" }

func file(name string) []byte { return node(4, 4, text(name)...) }

func option(label string, nodes ...[]byte) []byte {
	path := []byte{}
	for _, n := range nodes {
		path = append(path, n...)
	}
	path = append(path, end...)
	raw := binary.LittleEndian.AppendUint32(nil, loadOptionActive)
	raw = binary.LittleEndian.AppendUint16(raw, uint16(len(path)))
	return append(append(raw, text(label)...), path...)
}

func TestParseEntry(t *testing.T) {
	masked := append(append([]byte{}, vendor...), end...)
	mbr := append(binary.LittleEndian.AppendUint32(nil, 2), make([]byte, 16)...)
	mbr = append(append(mbr, append([]byte{0x78, 0x56, 0x34, 0x12}, make([]byte, 12)...)...), 1, 1)
	for _, c := range []struct {
		raw  []byte
		want Entry
	}{
		{option("UEFI PXEv4 (MAC:525400000081)", pci, mac, ipv4), Entry{Network: true}},
		{option("UEFI PXEv6 (MAC:525400000081)", pci, mac, ipv6), Entry{Network: true}},
		{option("UEFI HTTPv4 (MAC:525400000081)", pci, mac, ipv4, uri), Entry{Network: true}},
		{option("UEFI QEMU QEMU HARDDISK", pci, scsi), Entry{}},
		{append(option("with optional data", pci, mac, ipv4), "N.\x80\x81YM"...), Entry{Network: true}}, // as OVMF marks its own
		{option("CentOS", gpt(1), file(`\EFI\centos\shimx64.efi`)), Entry{Partition: guid("1"), File: `\EFI\centos\shimx64.efi`}},
		{option("split", gpt(1), file(`\EFI\centos`), file(`shimx64.efi`)), Entry{Partition: guid("1"), File: `\EFI\centos\shimx64.efi`}},
		{option("MBR", node(4, 1, mbr...)), Entry{Partition: "12345678-02"}},
		{option("masked by AMI", masked, gpt(2), file(`\EFI\rocky\shimx64.efi`)), Entry{Partition: guid("2"), File: `\EFI\rocky\shimx64.efi`}},
		{option("iSCSI of a NIC", pci, mac, ipv4, iscsi), Entry{}},
		{option("UEFI USB PXE stick", pci, usb), Entry{Removable: true}},
		{option("UEFI QEMU DVD-ROM", pci, scsi, dvd), Entry{Removable: true}},
		{option("Integrated NIC 1 Port 1 Partition 1", vendor), Entry{Network: true}}, // Dell
		{option("PCI LAN", node(3, 10, make([]byte, 32)...)), Entry{Network: true}},   // Lenovo
		{option("EFI Internal Shell", node(4, 7, make([]byte, 16)...), node(4, 6, make([]byte, 16)...)), Entry{}},
		{option("BIOS NIC", node(5, 1, 0x80, 0, 0, 0, 0)), Entry{Network: true}},
		{option("BIOS disk, network of disks", node(5, 1, 2, 0, 0, 0, 0)), Entry{}},
	} {
		got, err := parseEntry(7, c.raw)
		require.NoError(t, err)
		require.Equal(t, uint16(7), got.Number)
		require.True(t, got.Active)
		require.Equal(t, c.want, Entry{Partition: got.Partition, File: got.File, Network: got.Network, Removable: got.Removable}, got.Label)
	}
	whole := option("CentOS", gpt(1), file(`\EFI\centos\shimx64.efi`))
	for n := range len(whole) {
		_, err := parseEntry(7, whole[:n])
		require.ErrorIs(t, err, errShort, "the first %d bytes", n)
	}
}

// Variables of a machine of the lab: OVMF's own entries, one of efibootmgr 17 (of EL7 and Debian 12), one of shim's fallback.
func TestRealEntries(t *testing.T) {
	const esp = "86b708c1-d01e-014b-b0bd-39887e05fe35"
	for _, c := range []struct {
		raw  string
		want Entry
	}{
		{"090100002c0055006900410070007000000004071400c9bdb87cebf8344faaea3ee4af6516a10406140021aa2c4614760345836e8ab6f46623317fff0400",
			Entry{Number: 0, Label: "UiApp"}},
		{"010000001e0055004500460049002000510045004d0055002000510045004d005500200048004100520044004400490053004b002000000002010c00d041030a0000000001010600000403020800000000007fff04004eac0881119f594d850ee21a522c59b2",
			Entry{Number: 1, Label: "UEFI QEMU QEMU HARDDISK"}},
		{"0100000056005500450046004900200050005800450076003400200028004d00410043003a003500320035003400300030003000300030003000380031002900000002010c00d041030a00000000010106000003030b2500525400000081000000000000000000000000000000000000000000000000000001030c1b0000000000000000000000000000000000000000000000007fff04004eac0881119f594d850ee21a522c59b2",
			Entry{Number: 2, Label: "UEFI PXEv4 (MAC:525400000081)", Network: true}},
		{"010000005a0055004500460049002000480054005400500076003400200028004d00410043003a003500320035003400300030003000300030003000380031002900000002010c00d041030a00000000010106000003030b2500525400000081000000000000000000000000000000000000000000000000000001030c1b000000000000000000000000000000000000000000000000031804007fff04004eac0881119f594d850ee21a522c59b2",
			Entry{Number: 3, Label: "UEFI HTTPv4 (MAC:525400000081)", Network: true}},
		{"010000007b0055004500460049002000480054005400500076003600200028004d00410043003a003500320035003400300030003000300030003000380031002900000002010c00d041030a00000000010106000003030b2500525400000081000000000000000000000000000000000000000000000000000001030d3c000000000000000000000000000000000000000000000000000000000000000000000000000000004000000000000000000000000000000000031804007fff04004eac0881119f594d850ee21a522c59b2",
			Entry{Number: 4, Label: "UEFI HTTPv6 (MAC:525400000081)", Network: true}},
		{"010000006200430065006e0074004f005300000004012a000100000000080000000000000040060000000000c108b7861ed04b01b0bd39887e05fe350202040434005c004500460049005c00630065006e0074006f0073005c007300680069006d007800360034002e0065006600690000007fff0400",
			Entry{Number: 6, Label: "CentOS", Partition: esp, File: `\EFI\centos\shimx64.efi`}},
		{"010000006200430065006e0074004f00530020004c0069006e0075007800000004012a000100000000080000000000000040060000000000c108b7861ed04b01b0bd39887e05fe350202040434005c004500460049005c00630065006e0074006f0073005c007300680069006d007800360034002e0065006600690000007fff0400",
			Entry{Number: 7, Label: "CentOS Linux", Partition: esp, File: `\EFI\centos\shimx64.efi`}},
	} {
		raw, err := hex.DecodeString(c.raw)
		require.NoError(t, err)
		got, err := parseEntry(c.want.Number, raw)
		require.NoError(t, err)
		require.NotEmpty(t, got.Path)
		got.Path, c.want.Active = nil, true
		require.Equal(t, c.want, got)
	}
}

func FuzzParseEntry(f *testing.F) {
	f.Add(option("CentOS", gpt(1), file(`\EFI\centos\shimx64.efi`)))
	f.Add(option("UEFI PXEv4", pci, mac, ipv4))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		e, err := parseEntry(1, raw)
		if err != nil {
			return
		}
		require.LessOrEqual(t, len(e.Path), len(raw))
		require.NotContains(t, e.Label+e.File+e.directory(), "\n")
		require.False(t, e.Network && (e.Partition != "" || e.File != "" || e.Removable), "a disk")
	})
}

// firmware is a machine's variables: a directory in place of an efivarfs.
type firmware struct {
	t    *testing.T
	root string
	Host
}

func newFirmware(t *testing.T, order []uint16, current int, entries map[uint16][]byte) *firmware {
	t.Helper()
	root := t.TempDir()
	f := &firmware{t, root, Host{Root: root, Memory: "/var/lib/rackstrap/boot-order"}}
	for _, dir := range []string{"sys/firmware/efi/efivars", "dev/disk/by-partuuid", "boot/efi"} {
		require.NoError(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	require.NoError(t, f.vars().writeNumbers("BootOrder", order))
	if current >= 0 {
		require.NoError(t, f.vars().writeNumbers("BootCurrent", []uint16{uint16(current)}))
	}
	f.add(entries)
	return f
}

func (f *firmware) vars() variables {
	return variables(filepath.Join(f.root, "sys/firmware/efi/efivars"))
}

func (f *firmware) add(entries map[uint16][]byte) {
	for n, raw := range entries {
		require.NoError(f.t, f.vars().write(nameOf(n), raw))
	}
}

func (f *firmware) order() []uint16 {
	order, err := f.vars().numbers("BootOrder")
	require.NoError(f.t, err)
	return order
}

func (f *firmware) has(n uint16) bool {
	_, err := f.vars().read(nameOf(n))
	return err == nil
}

// mount has /boot/efi on the partition 0000000N-…, beside the partitions others. Devices are made: it needs root.
func (f *firmware) mount(n string, others ...string) {
	testenv.NeedRoot(f.t)
	var efi syscall.Stat_t
	require.NoError(f.t, syscall.Stat(filepath.Join(f.root, "boot/efi"), &efi))
	device := func(n string, number uint64) {
		path := filepath.Join(f.root, "dev/disk/by-partuuid", guid(n))
		require.NoError(f.t, os.RemoveAll(path))
		require.NoError(f.t, unix.Mknod(path, unix.S_IFBLK|0o600, int(number)))
	}
	device(n, efi.Dev)
	for i, other := range others {
		device(other, unix.Mkdev(240, uint32(i)))
	}
}

var (
	pxe4     = option("UEFI PXEv4 (MAC:525400000081)", pci, mac, ipv4)
	pxe6     = option("UEFI PXEv6 (MAC:525400000081)", pci, mac, ipv6)
	http4    = option("UEFI HTTPv4 (MAC:525400000081)", pci, mac, ipv4, uri)
	disk     = option("UEFI QEMU QEMU HARDDISK", pci, scsi)
	stick    = option("UEFI USB stick", pci, usb)
	centos1  = option("CentOS", gpt(1), file(`\EFI\centos\shimx64.efi`))
	centos2  = option("CentOS", gpt(2), file(`\EFI\centos\shimx64.efi`))
	fallback = option("CentOS Linux", gpt(1), file(`\EFI\centos\shimx64.efi`))
	rocky2   = option("Rocky Linux", gpt(2), file(`\EFI\rocky\shimx64.efi`))
	windows2 = option("Windows Boot Manager", gpt(2), file(`\EFI\Microsoft\Boot\bootmgfw.efi`))
	byDisk1  = option("UEFI OS", gpt(1), file(`\EFI\BOOT\BOOTX64.EFI`))
)

// What an installation leaves, and what is made of it at its end. This system is on partition 1.
func TestRestoreAfterAnInstallation(t *testing.T) {
	type entries map[uint16][]byte
	for name, c := range map[string]struct {
		entries entries
		order   []uint16
		current int
		others  []string // partitions beside this system's
		want    []uint16
		gone    []uint16
		none    bool // the network is not first
	}{
		"EL7 puts its entry first":                    {entries{1: disk, 2: pxe4, 3: http4, 4: centos1}, []uint16{4, 2, 3, 1}, 2, nil, []uint16{2, 4, 3, 1}, nil, false},
		"EL9 leaves it out":                           {entries{1: disk, 2: pxe4, 3: http4, 4: centos1}, []uint16{2, 3, 1}, 2, nil, []uint16{2, 4, 3, 1}, nil, false},
		"HTTP Boot, the third one":                    {entries{1: disk, 2: pxe4, 3: http4, 4: centos1}, []uint16{4, 1, 2, 3}, 3, nil, []uint16{3, 4, 1, 2}, nil, false},
		"by IPv6":                                     {entries{1: disk, 2: pxe4, 3: pxe6, 4: centos1}, []uint16{4, 2, 3, 1}, 3, nil, []uint16{3, 4, 2, 1}, nil, false},
		"chosen for once, outside of the order":       {entries{1: disk, 2: pxe4, 4: centos1}, []uint16{4, 1}, 2, nil, []uint16{2, 4, 1}, nil, false},
		"the one of the installation before goes":     {entries{1: disk, 2: pxe4, 3: centos2, 4: centos1}, []uint16{4, 2, 3, 1}, 2, nil, []uint16{2, 4, 1}, []uint16{3}, false},
		"so does that of another release":             {entries{1: disk, 2: pxe4, 3: rocky2, 4: centos1}, []uint16{4, 2, 3, 1}, 2, nil, []uint16{2, 4, 1}, []uint16{3}, false},
		"the same system on a disk that is there":     {entries{1: disk, 2: pxe4, 3: centos2, 4: centos1}, []uint16{4, 2, 3, 1}, 2, []string{"2"}, []uint16{2, 4, 3, 1}, nil, false},
		"another system whose disk is away":           {entries{1: disk, 2: pxe4, 3: windows2, 4: centos1}, []uint16{4, 3, 2, 1}, 2, nil, []uint16{2, 4, 3, 1}, nil, false},
		"two of this system":                          {entries{1: disk, 2: pxe4, 3: centos1, 4: fallback}, []uint16{4, 2, 3, 1}, 2, nil, []uint16{2, 4, 1}, []uint16{3}, false},
		"one that firmware made for EFI/BOOT":         {entries{1: byDisk1, 2: pxe4, 4: centos1}, []uint16{4, 2, 1}, 2, nil, []uint16{2, 4, 1}, nil, false},
		"no BootCurrent, the network was first":       {entries{1: disk, 2: pxe4, 4: centos1}, []uint16{4, 2, 1}, -1, nil, []uint16{2, 4, 1}, nil, false},
		"no BootCurrent, the disk was first":          {entries{1: disk, 2: pxe4, 4: centos1}, []uint16{4, 1, 2}, -1, nil, []uint16{4, 1, 2}, nil, true},
		"iPXE on a stick that was first":              {entries{1: disk, 2: pxe4, 3: stick, 4: centos1}, []uint16{4, 3, 1, 2}, 3, nil, []uint16{3, 4, 1, 2}, nil, false},
		"iPXE on a stick that was chosen for once":    {entries{1: disk, 2: pxe4, 3: stick, 4: centos1}, []uint16{4, 1, 3, 2}, 3, nil, []uint16{4, 1, 3, 2}, nil, true},
		"no entry of this system (EFI/BOOT alone)":    {entries{1: disk, 2: pxe4}, []uint16{1, 2}, 2, nil, []uint16{2, 1}, nil, false},
		"the order names entries that are not there":  {entries{1: disk, 2: pxe4, 4: centos1}, []uint16{9, 4, 2, 1, 8}, 2, nil, []uint16{2, 4, 9, 1, 8}, nil, false},
		"a garbled entry is left alone":               {entries{1: disk, 2: pxe4, 3: {1, 2, 3}, 4: centos1}, []uint16{4, 3, 2, 1}, 2, nil, []uint16{2, 4, 3, 1}, nil, false},
		"no order at all":                             {entries{2: pxe4, 4: centos1}, nil, 2, nil, []uint16{2, 4}, nil, false},
		"all is well already":                         {entries{1: disk, 2: pxe4, 4: centos1}, []uint16{2, 4, 1}, 2, nil, []uint16{2, 4, 1}, nil, false},
		"no network entry at all (one-time HTTP URL)": {entries{1: disk, 4: centos1}, []uint16{4, 1}, 9, nil, []uint16{4, 1}, nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFirmware(t, c.order, c.current, c.entries)
			f.mount("1", c.others...)
			require.NoError(t, f.Remember())
			r, err := f.Restore()
			require.NoError(t, err)
			require.Equal(t, c.want, f.order(), r)
			require.Equal(t, !c.none, r.NetworkFirst)
			for n := range c.entries {
				require.Equal(t, !slices.Contains(c.gone, n), f.has(n), "Boot%04X", n)
			}
			again, err := f.Restore()
			require.NoError(t, err)
			require.Empty(t, again.Changes, "it is done")
			looked, err := f.Look()
			require.NoError(t, err)
			require.Equal(t, again, looked)
		})
	}
}

// The first boot by EFI/BOOT: shim's fallback makes an entry and puts it first. Then the firmware loses its variables,
// and gives its own entries other numbers.
func TestRestoreAtTheStartOfASystem(t *testing.T) {
	f := newFirmware(t, []uint16{2, 1}, 2, map[uint16][]byte{1: disk, 2: pxe4, 4: centos1})
	f.mount("1")
	require.NoError(t, f.Remember())
	_, err := f.Restore()
	require.NoError(t, err)
	require.Equal(t, []uint16{2, 4, 1}, f.order())

	f.add(map[uint16][]byte{5: fallback})
	require.NoError(t, f.vars().writeNumbers("BootOrder", []uint16{5, 2, 4, 1}))
	require.NoError(t, f.vars().writeNumbers("BootCurrent", []uint16{1}))
	r, err := f.Restore()
	require.NoError(t, err)
	require.Equal(t, []uint16{2, 5, 1}, f.order())
	require.Equal(t, []string{"the order was 0005,0002,0004,0001, is 0002,0005,0001", "removed Boot0004 CentOS"}, r.Changes)

	for n := range uint16(6) {
		os.Remove(filepath.Join(string(f.vars()), nameOf(n)+globalGUID))
	}
	f.add(map[uint16][]byte{0: pxe6, 1: pxe4, 2: disk, 3: fallback})
	require.NoError(t, f.vars().writeNumbers("BootOrder", []uint16{3, 2, 0, 1}))
	_, err = f.Restore()
	require.NoError(t, err)
	require.Equal(t, []uint16{1, 3, 2, 0}, f.order(), "found by its path")

	f.add(map[uint16][]byte{1: option("Slot 3 NIC", pci, node(3, 11, make([]byte, 33)...), ipv4)})
	require.NoError(t, f.vars().writeNumbers("BootOrder", []uint16{3, 2, 1, 0}))
	_, err = f.Restore()
	require.NoError(t, err)
	require.Equal(t, []uint16{1, 3, 2, 0}, f.order(), "another NIC: the network, by whatever entry comes first")
}

func TestBootNetworkOnce(t *testing.T) {
	f := newFirmware(t, []uint16{4, 1, 3}, 4, map[uint16][]byte{1: disk, 2: pxe6, 3: pxe4, 4: centos1})
	entry, err := f.BootNetworkOnce()
	require.NoError(t, err)
	require.Equal(t, "UEFI PXEv4 (MAC:525400000081)", entry, "the first one in the order")
	next, err := f.vars().numbers("BootNext")
	require.NoError(t, err)
	require.Equal(t, []uint16{3}, next)
	require.Equal(t, []uint16{4, 1, 3}, f.order())

	f = newFirmware(t, []uint16{4}, 4, map[uint16][]byte{1: disk, 4: centos1})
	_, err = f.BootNetworkOnce()
	require.ErrorIs(t, err, ErrNoNetwork)
}

// What must not be touched.
func TestNothingIsChanged(t *testing.T) {
	root := t.TempDir()
	bios := Host{Root: root, Memory: "/memory"}
	_, err := bios.Restore()
	require.ErrorIs(t, err, ErrBIOS)
	require.ErrorIs(t, bios.Remember(), ErrBIOS)

	require.NoError(t, os.MkdirAll(filepath.Join(root, "sys/firmware/efi/efivars"), 0o755))
	_, err = bios.Restore()
	require.ErrorIs(t, err, ErrNoVariables)
	require.NoFileExists(t, filepath.Join(root, "memory"))

	order := []uint16{4, 2}
	f := newFirmware(t, order, 2, map[uint16][]byte{2: pxe4, 3: centos2, 4: centos1})
	require.NoError(t, f.Remember())
	r, err := f.Restore()
	require.ErrorContains(t, err, "no EFI system partition of its own", "a container, say")
	require.False(t, r.NetworkFirst)
	require.Equal(t, order, f.order())
	require.True(t, f.has(3))
}

// Firmware that refuses to be written to.
func TestReadOnlyVariables(t *testing.T) {
	f := newFirmware(t, []uint16{4, 2}, 2, map[uint16][]byte{2: pxe4, 4: centos1})
	f.mount("1")
	require.NoError(t, f.Remember())
	vars := string(f.vars())
	require.NoError(t, unix.Mount(vars, vars, "", unix.MS_BIND, ""))
	defer unix.Unmount(vars, unix.MNT_DETACH)
	require.NoError(t, unix.Mount("", vars, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	r, err := f.Restore()
	require.ErrorContains(t, err, "BootOrder cannot be written")
	require.ErrorIs(t, err, syscall.EROFS)
	require.Equal(t, "CentOS is first, which is not the network", r.String())
	_, err = f.BootNetworkOnce()
	require.ErrorIs(t, err, syscall.EROFS)
	require.ErrorContains(t, err, "BootNext cannot be written")
}
