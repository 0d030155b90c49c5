package lab

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/google/rpmpack"
)

// ISOOptions says how BuildISO works; the zero value is useful.
type ISOOptions struct {
	// CacheDir as in Spec.
	CacheDir string
	// System is what the medium installs (see BuildSystem), and Program the file of this program, which its
	// installer is. Without them the medium ends where the installer would begin.
	System  *System
	Program string
}

const (
	isoLabel = "CentOS 7 x86_64"
	isoTime  = "1604000000.00" // any, but always the same: equal parts give an equal tree
)

// isoRecipe is part of the cached ISO's name: raise it when the layout changes.
const isoRecipe = "4"

// BuildISO writes an image that a boot server cannot tell from CentOS-7-x86_64-Minimal-2009 by its layout:
// .treeinfo, .discinfo, images/pxeboot, EFI/BOOT, LiveOS, repodata, Packages, with Rock Ridge and Joliet names.
// But for the installer it holds Debian's signed kernel and the lab's own initrd, which really boot, under
// Secure Boot too: EFI/BOOT holds Debian's shim and its signed GRUB for the network.
//
// The first build downloads Debian's kernel (about 70 MB); the image is then kept in the cache.
func BuildISO(ctx context.Context, out string, opts ISOOptions) error {
	cache := opts.CacheDir
	if cache == "" {
		cache = DefaultCacheDir()
	}
	if err := buildISO(ctx, out, cache, opts); err != nil {
		return fmt.Errorf("lab: iso: %w", err)
	}
	return nil
}

func buildISO(ctx context.Context, out, cache string, opts ISOOptions) error {
	boot, err := preparePayload(ctx, cache)
	if err != nil {
		return err
	}
	loaders, err := readLoaders(ctx, debian{cache: cache})
	if err != nil {
		return err
	}
	if opts.System != nil {
		// Not kept in the cache: it holds this very program.
		return masterISO(ctx, out, boot, loaders, opts)
	}
	cached := filepath.Join(cache, "lab-"+hashOf([]byte(isoRecipe+boot.hash), loaders.shim, loaders.netGRUB)+".iso")
	err = lockedFile(ctx, filepath.Join(cache, "cache.lock"), func() error {
		if _, err := os.Stat(cached); err == nil {
			return nil
		}
		return masterISO(ctx, cached, boot, loaders, opts)
	})
	if err != nil {
		return err
	}
	return copyFile(out, cached)
}

// loaders are Debian's boot loaders for Secure Boot.
type loaders struct {
	shim     []byte // signed by Microsoft
	fallback []byte // signed by Debian; started by shim at EFI/BOOT, makes the boot entries that BOOTX64.CSV names
	grub     []byte // signed by Debian; reads its configuration from /EFI/debian on the disk it came from
	netGRUB  []byte // signed by Debian; reads /grub/grub.cfg from the TFTP server it came from
}

func readLoaders(ctx context.Context, d debian) (loaders, error) {
	var found loaders
	for _, want := range []struct {
		pack, path string
		into       *[]byte
	}{
		{"shim-signed", "/usr/lib/shim/shimx64.efi.signed", &found.shim},
		{"shim-helpers-amd64-signed", "/usr/lib/shim/fbx64.efi.signed", &found.fallback},
		{"grub-efi-amd64-signed", "/usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed", &found.grub},
		{"grub-efi-amd64-signed", "/usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed", &found.netGRUB},
	} {
		path, err := d.file(ctx, want.pack, want.path)
		if err != nil {
			return found, err
		}
		if *want.into, err = os.ReadFile(path); err != nil {
			return found, err
		}
	}
	return found, nil
}

// masterISO lays the tree and has xorriso write it.
func masterISO(ctx context.Context, out string, boot payload, from loaders, opts ISOOptions) error {
	root, err := os.MkdirTemp(filepath.Dir(out), ".iso-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(root)
	tree := filepath.Join(root, "tree")

	vmlinuz, err := os.ReadFile(boot.kernel)
	if err != nil {
		return err
	}
	initrd, err := os.ReadFile(boot.initrd)
	if err != nil {
		return err
	}
	files := map[string][]byte{
		"images/pxeboot/vmlinuz":    vmlinuz,
		"images/pxeboot/initrd.img": initrd,
		"EFI/BOOT/BOOTX64.EFI":      from.shim,
		"EFI/BOOT/grubx64.efi":      from.netGRUB,
		"EFI/BOOT/grub.cfg":         []byte(isoGRUB),
		"CentOS_BuildTag":           []byte("rackstrap lab\n"),
		".discinfo":                 []byte(isoTime + "\n7.9\nx86_64\n"),
	}
	if opts.System == nil {
		err = emptyMedium(ctx, root, files)
	} else {
		err = systemMedium(ctx, root, tree, opts)
	}
	if err != nil {
		return err
	}
	for name, content := range files {
		path := filepath.Join(tree, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			return err
		}
	}
	info, err := treeinfo(tree)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(tree, ".treeinfo"), []byte(info), 0o644); err != nil {
		return err
	}
	half := filepath.Join(root, "half.iso")
	if _, err := output(ctx, "xorriso", "-as", "mkisofs", "-quiet", "-R", "-J", "-joliet-long",
		"-V", isoLabel, "-o", half, tree); err != nil {
		return err
	}
	return os.Rename(half, out)
}

// emptyMedium adds a second stage that holds nothing, and a repository of packages that do.
func emptyMedium(ctx context.Context, root string, files map[string][]byte) error {
	stage2, err := squashfs(ctx, root)
	if err != nil {
		return err
	}
	var entries strings.Builder
	for _, name := range []string{"chrony-3.4-1.el7", "kernel-3.10.0-1160.el7"} {
		file, entry, err := emptyPackage(name)
		if err != nil {
			return err
		}
		files["Packages/"+name+".x86_64.rpm"] = file
		entries.WriteString(entry)
	}
	primaryXML := fmt.Sprintf(primaryForm, entries.String())
	primary, comps := zipped(primaryXML), []byte(compsXML)
	primaryName := "repodata/" + sha256Hex(primary) + "-primary.xml.gz"
	compsName := "repodata/" + sha256Hex(comps) + "-c7-minimal-x86_64-comps.xml"
	files["LiveOS/squashfs.img"] = stage2
	files["Packages/README"] = []byte("The packages of the lab's installation tree hold nothing.\n")
	files[primaryName], files[compsName] = primary, comps
	files["repodata/repomd.xml"] = []byte(repomdXML(
		repoFile{"primary", primaryName, primary, sha256Hex([]byte(primaryXML))},
		repoFile{"group", compsName, comps, ""}))
	return nil
}

// systemMedium adds the lab's system, with this program in it, as the second stage, and the medium's packages.
func systemMedium(ctx context.Context, root, tree string, opts ISOOptions) error {
	stage2 := filepath.Join(tree, "LiveOS", "squashfs.img")
	if err := os.MkdirAll(filepath.Dir(stage2), 0o755); err != nil {
		return err
	}
	if err := copyFile(stage2, opts.System.Image); err != nil {
		return err
	}
	program := filepath.Join(root, "program", "rackstrap-lab")
	if err := os.MkdirAll(program, 0o755); err != nil {
		return err
	}
	if err := copyFile(filepath.Join(program, "rackstrap"), opts.Program); err != nil {
		return err
	}
	if err := os.Chmod(filepath.Join(program, "rackstrap"), 0o755); err != nil {
		return err
	}
	// mksquashfs appends to an image that is there; without -comp it takes the image's own.
	if _, err := output(ctx, "mksquashfs", program, stage2, "-quiet", "-no-progress", "-keep-as-directory", "-all-root"); err != nil {
		return err
	}
	medium := filepath.Join(opts.System.Repositories, "medium")
	return os.CopyFS(tree, os.DirFS(medium))
}

// squashfs makes a small stand-in for the installer's root file system, at LiveOS/rootfs.img in it.
func squashfs(ctx context.Context, dir string) ([]byte, error) {
	live := filepath.Join(dir, "live", "LiveOS")
	if err := os.MkdirAll(live, 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(live, "rootfs.img"), make([]byte, 1<<20), 0o644); err != nil {
		return nil, err
	}
	image := filepath.Join(dir, "squashfs.img")
	mksquashfs := exec.CommandContext(ctx, "mksquashfs", filepath.Dir(live), image,
		"-quiet", "-no-progress", "-noappend", "-all-root", "-all-time", "0", "-mkfs-time", "0")
	if _, err := outputOf(mksquashfs); err != nil {
		return nil, err
	}
	return os.ReadFile(image)
}

// treeinfo has the sections and keys that CentOS 7's has. Its checksums are of the files themselves.
func treeinfo(tree string) (string, error) {
	var checksums strings.Builder
	for _, name := range []string{
		"LiveOS/squashfs.img", "images/pxeboot/initrd.img", "images/pxeboot/vmlinuz", "repodata/repomd.xml",
	} {
		content, err := os.ReadFile(filepath.Join(tree, name))
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&checksums, "%s = sha256:%s\n", name, sha256Hex(content))
	}
	return `[general]
name = CentOS-7
family = CentOS
timestamp = ` + isoTime + `
variant =
version = 7
packagedir =
repository =
arch = x86_64

[stage2]
mainimage = LiveOS/squashfs.img

[images-x86_64]
kernel = images/pxeboot/vmlinuz
initrd = images/pxeboot/initrd.img

[images-xen]
kernel = images/pxeboot/vmlinuz
initrd = images/pxeboot/initrd.img

[checksums]
` + checksums.String(), nil
}

// isoGRUB is what GRUB would show when the ISO itself is booted.
const isoGRUB = `set timeout=5
menuentry 'Install CentOS 7 (rackstrap lab)' {
	linux /images/pxeboot/vmlinuz console=tty0 console=ttyS0,115200
	initrd /images/pxeboot/initrd.img
}
`

// A repository whose groups are those of the Minimal ISO. Nothing is installed from it; it has the packages that
// kickstarts and the installer ask for, since the appliance looks them up before it serves.
const (
	primaryForm = `<?xml version="1.0" encoding="UTF-8"?>
<metadata xmlns="http://linux.duke.edu/metadata/common" xmlns:rpm="http://linux.duke.edu/metadata/rpm" packages="2">
%s</metadata>
`
	packageForm = `<package type="rpm">
  <name>%s</name>
  <arch>x86_64</arch>
  <version epoch="0" ver="%s" rel="%s"/>
  <checksum type="sha256" pkgid="YES">%s</checksum>
  <size package="%d"/>
  <location href="Packages/%s.x86_64.rpm"/>
</package>
`
	compsXML = `<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE comps PUBLIC "-//CentOS//DTD Comps info//EN" "comps.dtd">
<comps>
  <group>
    <id>core</id>
    <name>Core</name>
    <default>true</default>
    <uservisible>false</uservisible>
    <packagelist/>
  </group>
  <environment>
    <id>minimal</id>
    <name>Minimal Install</name>
    <display_order>5</display_order>
    <grouplist>
      <groupid>core</groupid>
    </grouplist>
  </environment>
</comps>
`
)

// emptyPackage is a package without files, and its entry in primary.xml. full is its name, version and release.
func emptyPackage(full string) (file []byte, entry string, err error) {
	parts := strings.Split(full, "-")
	name, version, release := parts[0], parts[1], parts[2]
	rpm, err := rpmpack.NewRPM(rpmpack.RPMMetaData{Name: name, Version: version, Release: release, Arch: "x86_64", OS: "linux",
		Summary: "nothing", Description: "nothing", Licence: "none", Compressor: "gzip"})
	if err != nil {
		return nil, "", err
	}
	var out bytes.Buffer
	if err := rpm.Write(&out); err != nil {
		return nil, "", err
	}
	return out.Bytes(), fmt.Sprintf(packageForm, name, version, release, sha256Hex(out.Bytes()), out.Len(), full), nil
}

// repoFile is one entry of repomd.xml.
type repoFile struct {
	kind, name string
	content    []byte
	open       string // sha256 of the uncompressed content; empty: not compressed
}

func repomdXML(files ...repoFile) string {
	var xml strings.Builder
	xml.WriteString(`<?xml version="1.0" encoding="UTF-8"?>
<repomd xmlns="http://linux.duke.edu/metadata/repo" xmlns:rpm="http://linux.duke.edu/metadata/rpm">
  <revision>` + strings.TrimSuffix(isoTime, ".00") + `</revision>
`)
	for _, f := range files {
		fmt.Fprintf(&xml, "  <data type=%q>\n    <checksum type=\"sha256\">%s</checksum>\n", f.kind, sha256Hex(f.content))
		if f.open != "" {
			fmt.Fprintf(&xml, "    <open-checksum type=\"sha256\">%s</open-checksum>\n", f.open)
		}
		fmt.Fprintf(&xml, "    <location href=%q/>\n    <size>%d</size>\n  </data>\n", f.name, len(f.content))
	}
	xml.WriteString("</repomd>\n")
	return xml.String()
}

func sha256Hex(content []byte) string { return fmt.Sprintf("%x", sha256.Sum256(content)) }

func zipped(text string) []byte {
	var packed bytes.Buffer
	zip := gzip.NewWriter(&packed)
	io.WriteString(zip, text) // a bytes.Buffer takes everything
	zip.Close()
	return packed.Bytes()
}
