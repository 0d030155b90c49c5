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
)

// ISOOptions says how BuildISO works; the zero value is useful.
type ISOOptions struct {
	// CacheDir as in Spec.
	CacheDir string
}

const (
	isoLabel = "CentOS 7 x86_64"
	isoTime  = "1604000000.00" // any, but always the same: equal parts give an equal tree
)

// isoRecipe is part of the cached ISO's name: raise it when the layout changes.
const isoRecipe = "1"

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
	if err := buildISO(ctx, out, cache); err != nil {
		return fmt.Errorf("lab: iso: %w", err)
	}
	return nil
}

func buildISO(ctx context.Context, out, cache string) error {
	boot, err := preparePayload(ctx, cache)
	if err != nil {
		return err
	}
	loaders, err := readLoaders(ctx, debian{cache: cache})
	if err != nil {
		return err
	}
	cached := filepath.Join(cache, "lab-"+hashOf([]byte(isoRecipe+boot.hash), loaders.shim, loaders.netGRUB)+".iso")
	err = lockedFile(ctx, filepath.Join(cache, "cache.lock"), func() error {
		if _, err := os.Stat(cached); err == nil {
			return nil
		}
		return masterISO(ctx, cached, boot, loaders)
	})
	if err != nil {
		return err
	}
	return copyFile(out, cached)
}

// loaders are Debian's boot loaders for Secure Boot.
type loaders struct {
	shim    []byte // signed by Microsoft
	grub    []byte // signed by Debian; reads its configuration from /EFI/debian on the disk it came from
	netGRUB []byte // signed by Debian; reads /grub/grub.cfg from the TFTP server it came from
}

func readLoaders(ctx context.Context, d debian) (loaders, error) {
	var found loaders
	for _, want := range []struct {
		pack, path string
		into       *[]byte
	}{
		{"shim-signed", "/usr/lib/shim/shimx64.efi.signed", &found.shim},
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
func masterISO(ctx context.Context, out string, boot payload, from loaders) error {
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
	stage2, err := squashfs(ctx, root)
	if err != nil {
		return err
	}
	primary, comps := zipped(primaryXML), []byte(compsXML)
	primaryName := "repodata/" + sha256Hex(primary) + "-primary.xml.gz"
	compsName := "repodata/" + sha256Hex(comps) + "-c7-minimal-x86_64-comps.xml"
	repomd := []byte(repomdXML(
		repoFile{"primary", primaryName, primary, sha256Hex([]byte(primaryXML))},
		repoFile{"group", compsName, comps, ""}))

	files := map[string][]byte{
		"images/pxeboot/vmlinuz":    vmlinuz,
		"images/pxeboot/initrd.img": initrd,
		"LiveOS/squashfs.img":       stage2,
		"EFI/BOOT/BOOTX64.EFI":      from.shim,
		"EFI/BOOT/grubx64.efi":      from.netGRUB,
		"EFI/BOOT/grub.cfg":         []byte(isoGRUB),
		"repodata/repomd.xml":       repomd,
		primaryName:                 primary,
		compsName:                   comps,
		"Packages/README":           []byte("The lab's installation tree holds no packages.\n"),
		"CentOS_BuildTag":           []byte("rackstrap lab\n"),
		".discinfo":                 []byte(isoTime + "\n7.9\nx86_64\n"),
	}
	files[".treeinfo"] = []byte(treeinfo(files))
	for name, content := range files {
		path := filepath.Join(tree, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			return err
		}
	}
	half := filepath.Join(root, "half.iso")
	if _, err := output(ctx, "xorriso", "-as", "mkisofs", "-quiet", "-R", "-J", "-joliet-long",
		"-V", isoLabel, "-o", half, tree); err != nil {
		return err
	}
	return os.Rename(half, out)
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
func treeinfo(files map[string][]byte) string {
	var checksums strings.Builder
	for _, name := range []string{
		"LiveOS/squashfs.img", "images/pxeboot/initrd.img", "images/pxeboot/vmlinuz", "repodata/repomd.xml",
	} {
		fmt.Fprintf(&checksums, "%s = sha256:%s\n", name, sha256Hex(files[name]))
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
` + checksums.String()
}

// isoGRUB is what GRUB would show when the ISO itself is booted.
const isoGRUB = `set timeout=5
menuentry 'Install CentOS 7 (rackstrap lab)' {
	linux /images/pxeboot/vmlinuz console=tty0 console=ttyS0,115200
	initrd /images/pxeboot/initrd.img
}
`

// A repository without packages, whose groups are those of the Minimal ISO.
const (
	primaryXML = `<?xml version="1.0" encoding="UTF-8"?>
<metadata xmlns="http://linux.duke.edu/metadata/common" xmlns:rpm="http://linux.duke.edu/metadata/rpm" packages="0">
</metadata>
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
