package installer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// storage is the machine's disk as the kickstart has it laid out.
type storage struct {
	lab    system
	uefi   bool
	gpt    bool
	disk   string // the boot disk: "sda"
	mounts []mount
	bound  []string // what finish has to unmount beside the file systems, in order
	vgs    []string
}

// mount is a file system of the installed system.
type mount struct {
	at, device, fstype, options, uuid string
	source                            string // of fstab; "" means UUID=
}

const (
	efiSize    = 200  // MiB: RHEL 7's own
	bootSize   = 1024 // MiB
	firstSpace = 1    // MiB before the first partition: GRUB's core image
	lastSpace  = 1    // MiB behind the last one: the second GPT
)

// partition does what ignoredisk, zerombr, clearpart, reqpart, part, volgroup and logvol say. A Root has no disk.
func (j *job) partition(ctx context.Context) error {
	if j.Root != "" {
		return nil
	}
	_, err := os.Stat("/sys/firmware/efi")
	s := &storage{lab: j.lab, uefi: err == nil}
	if s.disk, err = j.plan.theDisk(); err != nil {
		return err
	}
	if missing := j.missingBootPackages(s); missing != nil {
		return missing
	}
	j.disk = s
	j.say("storage: erasing %s", s.disk)
	if err := s.erase(ctx, j.plan); err != nil {
		return fmt.Errorf("storage: %w", err)
	}
	if err := s.create(ctx, j.plan); err != nil {
		return fmt.Errorf("storage: %w", err)
	}
	for _, m := range s.mounts {
		j.log.line(severityInfo, "storage", "%s on %s, %s", m.at, m.device, m.fstype)
	}
	return nil
}

// missingBootPackages looks for the boot loader's packages while the disk is still as it was.
func (j *job) missingBootPackages(s *storage) error {
	j.disk = s
	defer func() { j.disk = nil }()
	_, err := j.choose()
	return err
}

// disks are those that the kickstart names.
func (p *plan) disks() []string {
	named := slices.Clone(p.onlyUse)
	if p.clear != nil {
		named = append(named, p.clear.drives...)
	}
	for _, n := range p.parts {
		if n.disk != "" {
			named = append(named, n.disk)
		}
	}
	if p.loader != nil && p.loader.drive != "" {
		named = append(named, p.loader.drive)
	}
	slices.Sort(named)
	return slices.Compact(named)
}

// hasDisk tells whether the machine has a disk of that name.
func (j *job) hasDisk(name string) bool {
	if j.Root != "" {
		return name == directoryDisk
	}
	_, err := os.Stat("/dev/" + name)
	return err == nil
}

// theDisk is the one disk that everything is on: the stand-in knows no more than one.
func (p *plan) theDisk() (string, error) {
	named := p.disks()
	switch len(named) {
	case 1:
	case 0:
		disks, err := filepath.Glob("/sys/block/[shv]d[a-z]")
		if err != nil || len(disks) != 1 {
			return "", fmt.Errorf("storage: the kickstart names no disk, and there are %d", len(disks))
		}
		named = []string{filepath.Base(disks[0])}
	default:
		return "", fmt.Errorf("storage: the stand-in knows one disk, the kickstart names %s", strings.Join(named, ", "))
	}
	if _, err := os.Stat("/sys/block/" + strings.ReplaceAll(named[0], "/", "!")); err != nil {
		return "", fmt.Errorf("storage: disk %s does not exist", named[0])
	}
	return named[0], nil
}

func (s *storage) device() string { return "/dev/" + s.disk }

// partitionDevice: a disk whose name ends in a digit has a p before the number.
func (s *storage) partitionDevice(n int) string {
	if last := s.disk[len(s.disk)-1]; last >= '0' && last <= '9' {
		return fmt.Sprintf("/dev/%sp%d", s.disk, n)
	}
	return fmt.Sprintf("/dev/%s%d", s.disk, n)
}

// erase writes a new label over what was there. An unreadable disk needs zerombr or clearpart --initlabel, as
// Anaconda would ask otherwise; and only clearpart --all makes room.
func (s *storage) erase(ctx context.Context, p *plan) error {
	label, _ := s.lab.run(ctx, "/usr/sbin/blkid", "--probe", "--match-tag", "PTTYPE", "--output", "value", s.device())
	label = strings.TrimSpace(label)
	if label == "" && !p.zeroMBR && (p.clear == nil || !p.clear.initLabel) {
		return fmt.Errorf("%s has no partition table, and the kickstart has neither zerombr nor clearpart --initlabel", s.disk)
	}
	if label != "" && (p.clear == nil || !p.clear.all) {
		return fmt.Errorf("%s holds partitions, and the kickstart has no clearpart --all", s.disk)
	}
	if p.clear != nil && len(p.clear.drives) > 0 && !slices.Contains(p.clear.drives, s.disk) {
		return fmt.Errorf("%s is not among the drives of clearpart", s.disk)
	}
	if _, err := s.lab.run(ctx, "/usr/sbin/vgchange", "--activate", "n"); err != nil {
		return err
	}
	found, err := filepath.Glob(s.device() + "?*")
	if err != nil {
		return err
	}
	for _, device := range append(found, s.device()) {
		if _, err := s.lab.run(ctx, "/usr/sbin/wipefs", "--all", "--force", device); err != nil {
			return err
		}
	}
	// UEFI wants a GPT; under BIOS EL7 writes an MBR on disks below 2 TiB.
	s.gpt = s.uefi
	if p.clear != nil && p.clear.label != "" {
		s.gpt = p.clear.label == "gpt"
	}
	return nil
}

// parts are those of the kickstart, after those that the platform needs.
func (s *storage) parts(p *plan) ([]part, error) {
	var all []part
	has := func(mount string) bool {
		return slices.ContainsFunc(p.parts, func(n part) bool { return n.mount == mount })
	}
	if p.required && s.uefi && !has("/boot/efi") {
		all = append(all, part{mount: "/boot/efi", fstype: "efi", sizes: sizes{size: efiSize}})
	}
	if p.required && !s.uefi && s.gpt && !has("biosboot") {
		all = append(all, part{mount: "biosboot", fstype: "biosboot", sizes: sizes{size: 1}})
	}
	if p.addBoot && !has("/boot") {
		all = append(all, part{mount: "/boot", fstype: "xfs", sizes: sizes{size: bootSize}})
	}
	all = append(all, p.parts...)
	switch {
	case s.uefi && !p.loader.disabled && !slices.ContainsFunc(all, func(n part) bool { return n.mount == "/boot/efi" }):
		return nil, errors.New("a machine with UEFI needs a partition /boot/efi (reqpart)")
	case !s.gpt && len(all) > 4:
		return nil, fmt.Errorf("%d partitions: the stand-in makes no more than four on an MBR", len(all))
	}
	return all, nil
}

// grow divides what is free among those that grow, as equal shares, none above its maximum.
func grow(list []*sizes, total int) error {
	var growing []*sizes
	for _, s := range list {
		total -= s.size
		if s.grow {
			growing = append(growing, s)
		}
	}
	if total < 0 {
		return fmt.Errorf("%d MiB are missing", -total)
	}
	for total > 0 && len(growing) > 0 {
		share := max(total/len(growing), 1)
		var still []*sizes
		for _, s := range growing {
			more := min(share, total)
			if s.max > 0 {
				more = min(more, s.max-s.size)
			}
			s.size += more
			total -= more
			if s.max == 0 || s.size < s.max {
				still = append(still, s)
			}
		}
		growing = still
	}
	return nil
}

// Types of partitions, for MBR and GPT.
var partitionTypes = map[string][2]string{
	"efi":      {"ef", "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"},
	"biosboot": {"", "21686148-6449-6E6F-744E-656564454649"},
	"lvmpv":    {"8e", "E6D6D379-F507-44C2-A23C-238F2A3DF928"},
	"swap":     {"82", "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F"},
	"":         {"83", "0FC63DAF-8483-4772-8E79-3D69D8477DE4"},
}

// create lays partitions, volumes and file systems.
func (s *storage) create(ctx context.Context, p *plan) error {
	parts, err := s.parts(p)
	if err != nil {
		return err
	}
	raw, err := os.ReadFile("/sys/block/" + strings.ReplaceAll(s.disk, "/", "!") + "/size")
	if err != nil {
		return err
	}
	sectors, err := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
	if err != nil {
		return err
	}
	list := make([]*sizes, len(parts))
	for i := range parts {
		list[i] = &parts[i].sizes
	}
	if err := grow(list, int(sectors/2048)-firstSpace-lastSpace); err != nil {
		return fmt.Errorf("%s is too small: %w", s.disk, err)
	}
	if err := s.writeTable(ctx, parts); err != nil {
		return err
	}
	devices := map[string]string{}
	for i, n := range parts {
		device := s.partitionDevice(i + 1)
		devices[n.mount] = device
		if n.fstype == "lvmpv" || n.fstype == "biosboot" {
			continue
		}
		if err := s.format(ctx, device, "", mount{at: n.mount, fstype: n.fstype, options: n.options}, n.label, n.mkfs); err != nil {
			return err
		}
	}
	for _, vg := range p.vgs {
		if err := s.createGroup(ctx, vg, devices, p.lvs); err != nil {
			return fmt.Errorf("%s: %w", vg.place, err)
		}
	}
	return s.mountAll(ctx)
}

func (s *storage) writeTable(ctx context.Context, parts []part) error {
	label, which := "dos", 0
	if s.gpt {
		label, which = "gpt", 1
	}
	var script strings.Builder
	fmt.Fprintf(&script, "label: %s\nunit: sectors\n", label)
	start := firstSpace * 2048
	for _, n := range parts {
		kind, special := partitionTypes[n.fstype]
		if !special {
			kind = partitionTypes[""]
		}
		boot := ""
		if !s.gpt && n.mount == "/boot" {
			boot = ", bootable"
		}
		fmt.Fprintf(&script, "start=%d, size=%d, type=%s%s\n", start, n.size*2048, kind[which], boot)
		start += n.size * 2048
	}
	sfdisk := s.lab.command(ctx, "/usr/sbin/sfdisk", "--quiet", "--wipe", "always", "--wipe-partitions", "always", s.device())
	sfdisk.Stdin = strings.NewReader(script.String())
	if _, err := output(sfdisk); err != nil {
		return err
	}
	if _, err := s.lab.run(ctx, "/usr/bin/udevadm", "settle"); err != nil {
		return err
	}
	for i := range parts {
		if err := s.awaitDevice(ctx, s.partitionDevice(i+1)); err != nil {
			return err
		}
	}
	return nil
}

// awaitDevice waits until the kernel and udev have made a device.
func (s *storage) awaitDevice(ctx context.Context, device string) error {
	for range 100 {
		if _, err := os.Stat(s.lab.path(device)); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	return fmt.Errorf("%s has not appeared", device)
}

func (s *storage) createGroup(ctx context.Context, vg volumeGroup, devices map[string]string, volumes []logicalVolume) error {
	args := []string{"--yes"}
	if vg.extent > 0 {
		args = append(args, "--physicalextentsize", fmt.Sprintf("%dk", vg.extent))
	}
	args = append(args, vg.name)
	for _, pv := range vg.pvs {
		if _, err := s.lab.run(ctx, "/usr/sbin/pvcreate", "--yes", "-ff", devices[pv]); err != nil {
			return err
		}
		args = append(args, devices[pv])
	}
	if _, err := s.lab.run(ctx, "/usr/sbin/vgcreate", args...); err != nil {
		return err
	}
	s.vgs = append(s.vgs, vg.name)
	out, err := s.lab.run(ctx, "/usr/sbin/vgs", "--noheadings", "--units", "m", "--nosuffix", "--options", "vg_free,vg_extent_size", vg.name)
	if err != nil {
		return err
	}
	var freeMiB, extentMiB float64
	if _, err := fmt.Sscan(out, &freeMiB, &extentMiB); err != nil {
		return fmt.Errorf("vgs: %q", out)
	}
	var mine []logicalVolume
	var list []*sizes
	for _, v := range volumes {
		if v.vg == vg.name {
			mine = append(mine, v)
		}
	}
	extent := max(int(extentMiB), 1)
	for i := range mine {
		if mine[i].percent > 0 {
			mine[i].size = int(freeMiB) * mine[i].percent / 100
		}
		mine[i].size = mine[i].size / extent * extent
		list = append(list, &mine[i].sizes)
	}
	if err := grow(list, int(freeMiB)); err != nil {
		return fmt.Errorf("volume group %s is too small: %w", vg.name, err)
	}
	for _, v := range mine {
		extents := fmt.Sprint(v.size / extent)
		if _, err := s.lab.run(ctx, "/usr/sbin/lvcreate", "--yes", "--wipesignatures", "y", "--extents", extents, "--name", v.name, vg.name); err != nil {
			return err
		}
		device := "/dev/mapper/" + escapeDM(vg.name) + "-" + escapeDM(v.name)
		if err := s.awaitDevice(ctx, device); err != nil {
			return err
		}
		if err := s.format(ctx, device, device, mount{at: v.mount, fstype: v.fstype, options: v.options}, v.label, v.mkfs); err != nil {
			return err
		}
	}
	return nil
}

// escapeDM: the device mapper doubles the dashes of a name.
func escapeDM(name string) string { return strings.ReplaceAll(name, "-", "--") }

// format makes the file system and notes the mount. source is what fstab shall say; "" is the UUID.
func (s *storage) format(ctx context.Context, device, source string, m mount, label, extra string) error {
	var args []string
	labelOption := "-L"
	switch m.fstype {
	case "xfs":
		args = []string{"/usr/sbin/mkfs.xfs", "-q", "-f"}
	case "ext2", "ext3", "ext4":
		args = []string{"/usr/sbin/mkfs." + m.fstype, "-q", "-F"}
	case "efi", "vfat":
		args, labelOption = []string{"/usr/sbin/mkfs.vfat", "-F", "32"}, "-n"
		if m.fstype == "efi" {
			m.options = strings.TrimPrefix(m.options+",umask=0077,shortname=winnt", ",")
		}
		m.fstype = "vfat"
	case "swap":
		args = []string{"/usr/sbin/mkswap", "--force"}
	default:
		return fmt.Errorf("%s: no file system %q", m.at, m.fstype)
	}
	if label != "" {
		args = append(args, labelOption, label)
	}
	args = append(append(args, strings.Fields(extra)...), device)
	if _, err := s.lab.run(ctx, args[0], args[1:]...); err != nil {
		return err
	}
	uuid, err := s.lab.run(ctx, "/usr/sbin/blkid", "--probe", "--match-tag", "UUID", "--output", "value", device)
	if err != nil {
		return err
	}
	m.device, m.source, m.uuid = device, source, strings.TrimSpace(uuid)
	if m.options == "" {
		m.options = "defaults"
	}
	s.mounts = append(s.mounts, m)
	return nil
}

// mountAll mounts parents before children.
func (s *storage) mountAll(ctx context.Context) error {
	slices.SortStableFunc(s.mounts, func(a, b mount) int { return len(filepath.Clean(a.at)) - len(filepath.Clean(b.at)) })
	for _, m := range s.mounts {
		if !strings.HasPrefix(m.at, "/") {
			continue
		}
		at := filepath.Join(sysimage, m.at)
		if err := os.MkdirAll(at, 0o755); err != nil {
			return err
		}
		if _, err := s.lab.run(ctx, "/usr/bin/mount", "--types", m.fstype, "--options", m.options, m.device, at); err != nil {
			return err
		}
		s.bound = append(s.bound, at)
	}
	return nil
}

// fstab is what the installed system mounts.
func (s *storage) fstab() string {
	var text strings.Builder
	text.WriteString("# Written by the installer.\n")
	for _, m := range s.mounts {
		source, pass := m.source, "0 0"
		if source == "" {
			source = "UUID=" + m.uuid
		}
		if strings.HasPrefix(m.fstype, "ext") {
			pass = "1 2"
			if m.at == "/" {
				pass = "1 1"
			}
		}
		fmt.Fprintf(&text, "%s %s %s %s %s\n", source, m.at, m.fstype, m.options, pass)
	}
	return text.String()
}

// bind makes the running kernel's file systems visible in the installed system.
func (s *storage) bind(ctx context.Context) error {
	for _, m := range []struct{ kind, source, at string }{
		{"", "/dev", "/dev"}, {"", "/dev/pts", "/dev/pts"}, {"proc", "proc", "/proc"}, {"sysfs", "sysfs", "/sys"}, {"", "/run", "/run"},
		{"efivarfs", "efivarfs", "/sys/firmware/efi/efivars"},
	} {
		if m.kind == "efivarfs" && !s.uefi {
			continue
		}
		at := filepath.Join(sysimage, m.at)
		args := []string{"--bind", m.source, at}
		if m.kind != "" {
			args = []string{"--types", m.kind, m.source, at}
		}
		if err := os.MkdirAll(at, 0o755); err != nil && m.kind != "efivarfs" {
			return err
		}
		if _, err := s.lab.run(ctx, "/usr/bin/mount", args...); err != nil {
			if m.kind == "efivarfs" {
				continue // firmware without runtime services: no boot entry then
			}
			return err
		}
		s.bound = append(s.bound, at)
	}
	return nil
}

// unmount leaves the disk in order. What a script has left running in the installed system would keep it busy, as a
// report that is still under way does: it gets some seconds, and is ended then.
func (s *storage) unmount(ctx context.Context) error {
	syscall.Sync()
	endStrays(ctx, strayGrace)
	var faults []error
	for _, at := range slices.Backward(s.bound) {
		if _, err := s.lab.run(ctx, "/usr/bin/umount", at); err != nil {
			// The file system is written back all the same, and its last user ends with this kernel.
			faults = append(faults, err)
			s.lab.run(ctx, "/usr/bin/umount", "--lazy", at)
		}
	}
	s.bound = nil
	for _, vg := range s.vgs {
		if _, err := s.lab.run(ctx, "/usr/sbin/vgchange", "--activate", "n", vg); err != nil {
			faults = append(faults, err)
		}
	}
	s.vgs = nil
	syscall.Sync()
	return errors.Join(faults...)
}

const strayGrace = 10 * time.Second

// endStrays waits for the processes whose root is in the installed system, and kills what is left of them after the
// grace time.
func endStrays(ctx context.Context, grace time.Duration) {
	for waited := time.Duration(0); ; waited += 200 * time.Millisecond {
		roots, _ := filepath.Glob("/proc/[0-9]*/root")
		running := false
		for _, link := range roots {
			where, err := os.Readlink(link)
			if err != nil || where != sysimage && !strings.HasPrefix(where, sysimage+"/") {
				continue
			}
			running = true
			if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(link))); err == nil && waited >= grace {
				syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		if !running || waited > grace+2*time.Second || ctx.Err() != nil {
			return
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// layDown puts the system on the file systems. In a Root it is there.
func (j *job) layDown(ctx context.Context) error {
	if j.disk == nil {
		return nil
	}
	j.say("laying down the system")
	begun := time.Now()
	image := filepath.Join(j.Handover, "stage2")
	if _, err := j.lab.run(ctx, "/usr/bin/unsquashfs", "-quiet", "-no-progress", "-force", "-dest", sysimage, image); err != nil {
		return err
	}
	j.say("system laid down in %s", time.Since(begun).Round(time.Second))
	if err := j.target.write("/etc/fstab", j.disk.fstab(), 0o644); err != nil {
		return err
	}
	return j.disk.bind(ctx)
}
