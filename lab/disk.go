package lab

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// The planted disk: an MBR with GRUB's first stage, GRUB's core image in the gap behind it, and one EFI
// system partition with kernel, initrd and the loaders for UEFI.
const (
	sector         = 512
	plantedSize    = 64 << 20
	partitionStart = 2048 // sectors: 1 MiB, the customary gap
	plantedSectors = plantedSize/sector - partitionStart
)

// grubModules are what GRUB under BIOS needs to read the partition and start a kernel.
var grubModules = []string{
	"biosdisk", "part_msdos", "fat", "normal", "configfile", "linux", "echo", "test",
}

// PlantDisk lays a small system on the machine's disk, in place of what was there, so that a boot from the
// disk can be seen: it prints `rackstrap-lab: booted from the disk of <machine>`, asks for an address as an
// installed system does, and prints `rackstrap-lab: system reached`. It boots under BIOS and, with Debian's
// shim and signed GRUB, under UEFI with and without Secure Boot. The machine must be off.
func (l *Lab) PlantDisk(ctx context.Context, machine string) error {
	boot, err := preparePayload(ctx, l.spec.CacheDir)
	if err != nil {
		return fmt.Errorf("lab: %s: planting a disk: %w", machine, err)
	}
	return l.update(ctx, func(s *state) error {
		m, err := s.machine(machine)
		if err != nil {
			return err
		}
		if m.Process.alive() {
			return fmt.Errorf("lab: %s: planting a disk: %w", machine, ErrRunning)
		}
		if err := l.plant(ctx, m, boot); err != nil {
			return fmt.Errorf("lab: %s: planting a disk: %w", machine, err)
		}
		return nil
	})
}

func (l *Lab) plant(ctx context.Context, m *machineRecord, boot payload) error {
	dir := l.machineDir(m.Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	work, err := os.MkdirTemp(dir, ".plant-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)

	image := filepath.Join(work, "disk.img")
	if err := createSparse(image, plantedSize); err != nil {
		return err
	}
	if err := plantBIOS(ctx, image, work); err != nil {
		return err
	}
	loaders, err := readLoaders(ctx, debian{cache: l.spec.CacheDir})
	if err != nil {
		return err
	}
	if err := plantSystem(ctx, image, work, m.Name, boot, loaders); err != nil {
		return err
	}
	planted := filepath.Join(work, diskFile)
	if _, err := output(ctx, "qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", image, planted); err != nil {
		return err
	}
	if _, err := output(ctx, "qemu-img", "resize", "-q", planted, fmt.Sprintf("%dG", m.DiskGiB)); err != nil {
		return err
	}
	return os.Rename(planted, filepath.Join(dir, diskFile))
}

func createSparse(path string, size int64) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	return file.Truncate(size)
}

// plantBIOS writes the partition table, GRUB's boot sector and its core image. GRUB's images come ready for
// a core image right behind the boot sector: nothing needs patching.
func plantBIOS(ctx context.Context, image, work string) error {
	const images = "/usr/lib/grub/i386-pc"
	first, err := os.ReadFile(filepath.Join(images, "boot.img"))
	if err != nil {
		return fmt.Errorf("%v (install the Debian package grub-pc-bin)", err)
	}
	if len(first) != sector {
		return fmt.Errorf("%s/boot.img: %d bytes, want one sector", images, len(first))
	}
	core := filepath.Join(work, "core.img")
	// The prefix without a disk: GRUB takes the one that the BIOS booted from.
	if _, err := output(ctx, "grub-mkimage", append([]string{"-O", "i386-pc", "-d", images, "-o", core,
		"-p", "(,msdos1)/EFI/debian"}, grubModules...)...); err != nil {
		return err
	}
	second, err := os.ReadFile(core)
	if err != nil {
		return err
	}
	if len(second) > (partitionStart-1)*sector {
		return fmt.Errorf("GRUB's core image of %d bytes does not fit before the partition", len(second))
	}
	file, err := os.OpenFile(image, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := file.WriteAt(masterBootRecord(first), 0); err != nil {
		return err
	}
	_, err = file.WriteAt(second, sector)
	return err
}

// masterBootRecord is boot code with a table of one partition: active, for BIOSes that insist, and of type
// 0xEF, an EFI system partition (UEFI specification, 5.2.2).
func masterBootRecord(code []byte) []byte {
	record := make([]byte, sector)
	copy(record, code[:440])
	entry := record[446:462]
	entry[0] = 0x80
	copy(entry[1:4], []byte{0xfe, 0xff, 0xff}) // CHS beyond reach: use LBA
	entry[4] = 0xef
	copy(entry[5:8], []byte{0xfe, 0xff, 0xff})
	binary.LittleEndian.PutUint32(entry[8:], partitionStart)
	binary.LittleEndian.PutUint32(entry[12:], plantedSectors)
	record[510], record[511] = 0x55, 0xaa
	return record
}

// plantSystem formats the partition and fills it, by mtools: no mount, no loop device.
func plantSystem(ctx context.Context, image, work, name string, boot payload, from loaders) error {
	partition := fmt.Sprintf("%s@@%d", image, partitionStart*sector)
	if _, err := output(ctx, "mformat", "-i", partition, "-T", fmt.Sprint(plantedSectors), "-h", "255", "-s", "63",
		"-H", fmt.Sprint(partitionStart), "-v", "RACKSTRAP", "::"); err != nil {
		return err
	}
	if _, err := output(ctx, "mmd", "-i", partition, "::/EFI", "::/EFI/BOOT", "::/EFI/debian"); err != nil {
		return err
	}
	grub := strings.ReplaceAll(diskGRUB, "NAME", name)
	for _, f := range []struct {
		path    string
		content []byte
	}{
		{"EFI/BOOT/BOOTX64.EFI", from.shim},
		{"EFI/BOOT/grubx64.efi", from.grub},
		{"EFI/debian/grub.cfg", []byte(grub)}, // where the signed GRUB looks
	} {
		local := filepath.Join(work, filepath.Base(f.path))
		if err := os.WriteFile(local, f.content, 0o644); err != nil {
			return err
		}
		if _, err := output(ctx, "mcopy", "-i", partition, local, "::/"+f.path); err != nil {
			return err
		}
	}
	_, err := output(ctx, "mcopy", "-i", partition, boot.kernel, boot.initrd, "::/")
	return err
}

const diskGRUB = `echo "GRUB of the disk of NAME"
linux /vmlinuz console=tty0 console=ttyS0,115200 panic=30 rackstrap.disk=NAME
initrd /initrd.img
boot
`
