package repotest

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"path"
	"strings"

	"github.com/google/rpmpack"
)

// RPM is a real package of the name that a path ends in, name-version-release.arch.rpm, packed by gzip, xz or zstd.
func RPM(file, packing string) []byte {
	rest, arch := cutLast(strings.TrimSuffix(path.Base(file), ".rpm"), ".")
	rest, release := cutLast(rest, "-")
	name, version := cutLast(rest, "-")
	r, err := rpmpack.NewRPM(rpmpack.RPMMetaData{Name: name, Version: version, Release: release, Arch: arch, OS: "linux", Compressor: packing})
	if err != nil {
		panic(err) // a fault of the test that asks
	}
	r.AddFile(rpmpack.RPMFile{Name: "/usr/bin/" + name, Body: []byte(name), Mode: 0o100755})
	var out bytes.Buffer
	if err := r.Write(&out); err != nil {
		panic(err)
	}
	return out.Bytes()
}

// RPMs are packages by path, each as RPM makes it.
func RPMs(packing string, files ...string) map[string][]byte {
	all := map[string][]byte{}
	for _, file := range files {
		all[file] = RPM(file, packing)
	}
	return all
}

// Medium is an installation tree as EL7's, with next to nothing in it: its files are what they are named, in form.
func Medium() Tree {
	t := Make("gz", RPMs("xz", "Packages/bash-4.2.46-34.el7.x86_64.rpm", "Packages/chrony-3.4-1.el7.x86_64.rpm", "Packages/kernel-3.10.0-1160.el7.x86_64.rpm"))
	maps.Copy(t, BootFiles())
	return t
}

// BootFiles are the files of a medium that are no repository: kernel, initrd, second stage, .treeinfo, boot loaders.
func BootFiles() Tree {
	t := Tree{
		"images/pxeboot/vmlinuz":    kernel(),
		"images/pxeboot/initrd.img": Pack("gz", []byte("070701 as cpio begins")),
		"LiveOS/squashfs.img":       squashfs(),
		"EFI/BOOT/BOOTX64.EFI":      []byte("MZ shim"),
		"EFI/BOOT/grubx64.efi":      []byte("MZ grub"),
	}
	info := "[general]\nfamily = CentOS\nversion = 7\narch = x86_64\n\n[stage2]\nmainimage = LiveOS/squashfs.img\n\n" +
		"[images-x86_64]\nkernel = images/pxeboot/vmlinuz\ninitrd = images/pxeboot/initrd.img\n\n[checksums]\n"
	for _, name := range []string{"images/pxeboot/vmlinuz", "images/pxeboot/initrd.img", "LiveOS/squashfs.img"} {
		info += fmt.Sprintf("%s = sha256:%x\n", name, sha256.Sum256(t[name]))
	}
	t[".treeinfo"] = []byte(info)
	return t
}

// kernel is the header of a bzImage (Linux, Documentation/arch/x86/boot.rst) before nothing: two sectors of setup and
// one KiB of the rest.
func kernel() []byte {
	image := make([]byte, 3*512+1024)
	copy(image, "MZ")
	image[0x1f1] = 2
	binary.LittleEndian.PutUint32(image[0x1f4:], 1024/16)
	copy(image[0x202:], "HdrS")
	return image
}

// squashfs is the superblock of one: magic number, and at 40 how many bytes it has.
func squashfs() []byte {
	image := make([]byte, 4096)
	copy(image, "hsqs")
	binary.LittleEndian.PutUint64(image[40:], uint64(len(image)))
	return image
}
