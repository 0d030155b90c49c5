package installer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"rackstrap/internal/rpm"
)

// grubConfig is where GRUB looks, under both firmwares.
const grubConfig = "/boot/grub/grub.cfg"

// bootLoader installs GRUB for the firmware that has booted the installer. A Root has none.
func (j *job) bootLoader(ctx context.Context) error {
	if j.disk == nil || j.plan.loader.disabled {
		return nil
	}
	j.say("boot loader")
	config, err := j.grubConfig()
	if err != nil {
		return fmt.Errorf("boot loader: %w", err)
	}
	if err := j.target.write(grubConfig, config, 0o600); err != nil {
		return err
	}
	if j.disk.uefi {
		err = j.grubUEFI(ctx)
	} else {
		_, err = j.target.run(ctx, "/usr/sbin/grub-install", "--target=i386-pc", "--no-floppy", j.disk.device())
	}
	if err != nil {
		return fmt.Errorf("boot loader: %w", err)
	}
	return nil
}

// Files on the EFI system partition, as the packages of EL lay them: shim and its fallback where firmware looks that
// has no boot entry, and shim and GRUB where the entry points.
const (
	efiDirectory = "EFI/centos"
	efiLoader    = `\EFI\centos\shimx64.efi`
)

// grubUEFI lays GRUB beside the shim that its package has laid, and makes the boot entry.
func (j *job) grubUEFI(ctx context.Context) error {
	if _, err := j.target.run(ctx, "/usr/sbin/grub-install", "--target=x86_64-efi", "--efi-directory=/boot/efi", "--bootloader-id=centos",
		"--no-nvram"); err != nil {
		return err
	}
	for _, name := range []string{efiDirectory + "/shimx64.efi", efiDirectory + "/grubx64.efi", "EFI/BOOT/BOOTX64.EFI"} {
		if _, err := os.Stat(j.target.path("/boot/efi/" + name)); err != nil {
			return err
		}
	}
	if _, err := os.Stat("/sys/firmware/efi/efivars"); err != nil {
		return nil
	}
	number := 0
	for i := 1; i < 129; i++ {
		if slices.ContainsFunc(j.disk.mounts, func(m mount) bool { return m.at == "/boot/efi" && m.device == j.disk.partitionDevice(i) }) {
			number = i
		}
	}
	if err := j.bootEntry(ctx, number); err != nil {
		// Anaconda asks whether to go on; without an entry the machine still boots by EFI/BOOT.
		j.log.line(severityWarn, "anaconda", "%v", err)
	}
	return nil
}

// bootEntry removes the product's old entries and makes one, with the program and the arguments that Anaconda uses.
func (j *job) bootEntry(ctx context.Context, partition int) error {
	removes, create := j.distribution.bootEntry(j.plan.loader.leaveBootOrder)
	if removes {
		listed, err := j.target.run(ctx, "/usr/bin/efibootmgr")
		if err != nil {
			return err
		}
		for _, number := range entriesLabelled(listed, j.distribution.product) {
			if _, err := j.target.run(ctx, "/usr/bin/efibootmgr", "-b", number, "-B"); err != nil {
				return err
			}
		}
	}
	_, err := j.target.run(ctx, "/usr/bin/efibootmgr", create, "-w", "-L", j.distribution.product, "-d", j.disk.device(), "-p", fmt.Sprint(partition), "-l", efiLoader)
	return err
}

// bootEntry is what --leavebootorder does. Anaconda 21.48 knows it as "leave the old entry": without it the product's
// entries are removed, and the new one becomes the first in any case (pyanaconda/bootloader.py, EFIGRUB.install and
// _add_single_efi_boot_target). Anaconda 34 leaves the order, too: the entry is made outside of it
// (modules/storage/bootloader/efi.py).
func (d distribution) bootEntry(leaveBootOrder bool) (removes bool, create string) {
	if leaveBootOrder && d.major >= 9 {
		return false, "-C"
	}
	return !leaveBootOrder, "-c"
}

// entriesLabelled finds the numbers of boot entries as Anaconda does, which takes the rest of a line for the label.
func entriesLabelled(listed, label string) (numbers []string) {
	for line := range strings.Lines(listed) {
		slot, product, _ := strings.Cut(strings.TrimSpace(line), " ")
		if strings.TrimSpace(product) == label && len(slot) >= 8 && strings.HasPrefix(slot, "Boot") {
			numbers = append(numbers, slot[4:8])
		}
	}
	return numbers
}

// keptArgs are arguments of the installer's kernel that Anaconda hands on to the installed one.
func (j *job) keptArgs() (kept []string) {
	for _, word := range strings.Fields(j.KernelArgs) {
		switch key, _, _ := strings.Cut(word, "="); key {
		case "console", "net.ifnames", "biosdevname", "ipv6.disable", "nomodeset", "selinux":
			kept = append(kept, word)
		}
	}
	return kept
}

// grubConfig boots the newest kernel. It is written out, not made by grub-mkconfig, which takes a minute on an
// emulated machine.
func (j *job) grubConfig() (string, error) {
	kernels, err := filepath.Glob(j.target.path("/boot/vmlinuz-*"))
	if err != nil || len(kernels) == 0 {
		return "", errors.New("no kernel in /boot")
	}
	slices.SortFunc(kernels, rpm.Compare)
	version := strings.TrimPrefix(filepath.Base(kernels[len(kernels)-1]), "vmlinuz-")
	var root, boot mount
	for _, m := range j.disk.mounts {
		switch m.at {
		case "/":
			root = m
		case "/boot":
			boot = m
		}
	}
	prefix := ""
	if boot.uuid == "" {
		boot, prefix = root, "/boot"
	}
	source := root.source
	if source == "" {
		source = "UUID=" + root.uuid
	}
	args := []string{"root=" + source, "ro"}
	if vg, lv, ok := strings.Cut(strings.TrimPrefix(root.source, "/dev/mapper/"), "-"); ok {
		args = append(args, "rd.lvm.lv="+vg+"/"+lv)
	}
	args = append(args, strings.Fields(j.plan.loader.args)...)
	for _, kept := range j.keptArgs() {
		if !slices.Contains(args, kept) {
			args = append(args, kept)
		}
	}
	line := strings.Join(args, " ")
	if strings.ContainsAny(line, "\n'\";&|<>${}\\") {
		return "", fmt.Errorf("kernel arguments %q hold what GRUB would interpret", line)
	}
	return fmt.Sprintf(`# Written by the installer, as the kickstart says.
set timeout=%d
insmod part_msdos
insmod part_gpt
insmod xfs
insmod ext2
insmod lvm
search --no-floppy --fs-uuid --set=root %s
menuentry 'CentOS Linux 7 (the lab: Debian, Linux %s)' {
	linux %s/vmlinuz-%s %s
	initrd %s/initrd.img-%s
}
`, j.plan.loader.timeout, boot.uuid, version, prefix, version, line, prefix, version), nil
}
