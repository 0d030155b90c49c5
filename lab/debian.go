package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

const (
	// kernelMeta is the package that depends on Debian's current signed kernel.
	kernelMeta = "linux-image-amd64"
	// kernelRoot is where the kernel is unpacked, in the cache.
	kernelRoot = "kernel"
)

// debian finds files of Debian packages: installed ones first, else unpacked in the cache.
type debian struct {
	cache string
}

// file is the path of a package's file, which is downloaded when the package is not installed.
func (d debian) file(ctx context.Context, pack, path string) (string, error) {
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	root, err := d.unpacked(ctx, pack, pack)
	if err != nil {
		return "", err
	}
	path = filepath.Join(root, path)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("package %s: %v", pack, err)
	}
	return path, nil
}

// unpacked is the directory in the cache, named so, that holds what the package would install.
func (d debian) unpacked(ctx context.Context, pack, name string) (string, error) {
	root := filepath.Join(d.cache, "packages", name)
	if _, err := os.Stat(root); err == nil {
		return root, nil
	}
	if err := os.MkdirAll(filepath.Dir(root), 0o755); err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(root), ".download-*")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	// Without the sandbox user, who may not write here and need not.
	download := exec.CommandContext(ctx, "apt-get", "-q", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3",
		"download", pack)
	download.Dir = tmp
	if _, err := outputOf(download); err != nil {
		return "", fmt.Errorf("package %s is neither installed nor to be had (try apt-get update): %v", pack, err)
	}
	debs, _ := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if len(debs) != 1 {
		return "", fmt.Errorf("package %s: apt-get downloaded %d files", pack, len(debs))
	}
	if _, err := output(ctx, "dpkg-deb", "-x", debs[0], filepath.Join(tmp, "root")); err != nil {
		return "", err
	}
	return root, os.Rename(filepath.Join(tmp, "root"), root)
}

// kernel is a Linux kernel with its modules.
type kernel struct {
	version string // as uname -r prints it
	image   string // path of vmlinuz
	modules string // path of the directory lib/modules/<version>
}

// kernel is Debian's signed kernel: the one in the cache, else an installed one, else the current one, which
// is downloaded.
func (d debian) kernel(ctx context.Context) (kernel, error) {
	if k, err := findKernel(filepath.Join(d.cache, "packages", kernelRoot)); err == nil {
		return k, nil
	}
	if k, err := findKernel("/"); err == nil {
		return k, nil
	}
	records, err := output(ctx, "apt-cache", "show", kernelMeta)
	if err != nil {
		return kernel{}, err
	}
	pack, err := kernelPackage(records)
	if err != nil {
		return kernel{}, err
	}
	root, err := d.unpacked(ctx, pack, kernelRoot)
	if err != nil {
		return kernel{}, err
	}
	return findKernel(root)
}

var kernelDependency = regexp.MustCompile(`(?m)^Depends:.*?\b(linux-image-[0-9][^ ,(]*)`)

// kernelPackage reads the kernel's package out of what `apt-cache show linux-image-amd64` prints, whose
// first record is the newest.
func kernelPackage(records string) (string, error) {
	found := kernelDependency.FindStringSubmatch(records)
	if found == nil {
		return "", fmt.Errorf("package %s depends on no kernel (try apt-get update)", kernelMeta)
	}
	return found[1], nil
}

// findKernel looks below a root directory for a kernel that is readable and has its modules.
func findKernel(root string) (kernel, error) {
	images, _ := filepath.Glob(filepath.Join(root, "boot", "vmlinuz-*-amd64"))
	slices.Sort(images)
	for _, image := range slices.Backward(images) {
		version := strings.TrimPrefix(filepath.Base(image), "vmlinuz-")
		for _, lib := range []string{"lib", "usr/lib"} { // Debian 13 has moved it to /usr
			modules := filepath.Join(root, lib, "modules", version)
			if _, err := os.Stat(filepath.Join(modules, "modules.builtin")); err == nil {
				return kernel{version: version, image: image, modules: modules}, nil
			}
		}
	}
	return kernel{}, errors.New("no Debian kernel in " + root)
}
