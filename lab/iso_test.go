package lab

import (
	"bufio"
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/internal/testenv"
)

// needISO builds the lab's ISO in the shared cache; the first time on a machine that downloads the kernel.
func needISO(t testing.TB) string {
	testenv.NeedTool(t, "xorriso", "mksquashfs", "apt-get", "dpkg-deb")
	path := filepath.Join(t.TempDir(), "lab.iso")
	require.NoError(t, BuildISO(deadline(t, 3*time.Minute), path, ISOOptions{}))
	return path
}

func TestISOHasTheLayoutOfCentOS(t *testing.T) {
	iso := needISO(t)
	ctx := deadline(t, time.Minute)

	listing, err := output(ctx, "xorriso", "-indev", iso, "-find", "/", "-type", "f")
	require.NoError(t, err)
	for _, file := range []string{
		"/.treeinfo", "/.discinfo", "/images/pxeboot/vmlinuz", "/images/pxeboot/initrd.img", "/LiveOS/squashfs.img",
		"/EFI/BOOT/BOOTX64.EFI", "/EFI/BOOT/grubx64.efi", "/EFI/BOOT/grub.cfg", "/repodata/repomd.xml",
	} {
		require.Contains(t, listing, "'"+file+"'")
	}

	root := t.TempDir()
	_, err = output(ctx, "xorriso", "-osirrox", "on", "-indev", iso, "-extract", "/", root)
	require.NoError(t, err)
	t.Cleanup(func() { output(context.Background(), "chmod", "-R", "u+w", root) })
	read := func(name string) []byte {
		content, err := os.ReadFile(filepath.Join(root, name))
		require.NoError(t, err)
		return content
	}

	info := parseINI(t, read(".treeinfo"))
	require.Equal(t, "CentOS", info["general"]["family"])
	require.Equal(t, "7", info["general"]["version"])
	require.Equal(t, "x86_64", info["general"]["arch"])
	for _, key := range []string{"variant", "timestamp", "packagedir", "repository"} {
		require.Contains(t, info["general"], key)
	}
	require.Equal(t, "LiveOS/squashfs.img", info["stage2"]["mainimage"])
	for _, section := range []string{"images-x86_64", "images-xen"} {
		require.Equal(t, "images/pxeboot/vmlinuz", info[section]["kernel"])
		require.Equal(t, "images/pxeboot/initrd.img", info[section]["initrd"])
	}
	require.Len(t, info["checksums"], 4)
	for name, sum := range info["checksums"] {
		require.Equal(t, sum, "sha256:"+sha256Hex(read(name)), name)
	}

	require.Equal(t, "MZ", string(read("images/pxeboot/vmlinuz")[:2]), "a kernel that UEFI can start")
	require.Equal(t, "MZ", string(read("EFI/BOOT/BOOTX64.EFI")[:2]))
	require.Equal(t, []byte{0x1f, 0x8b}, read("images/pxeboot/initrd.img")[:2], "gzip")
	require.Contains(t, string(read("repodata/repomd.xml")), "-comps.xml")

	again := filepath.Join(t.TempDir(), "again.iso")
	started := time.Now()
	require.NoError(t, BuildISO(ctx, again, ISOOptions{}))
	t.Logf("from the cache: %s", time.Since(started))
	first, err := os.ReadFile(iso)
	require.NoError(t, err)
	second, err := os.ReadFile(again)
	require.NoError(t, err)
	require.True(t, bytes.Equal(first, second))
}

// parseINI reads `key = value` lines below `[section]`, as Anaconda's ConfigParser does.
func parseINI(t testing.TB, raw []byte) map[string]map[string]string {
	sections := map[string]map[string]string{}
	var current map[string]string
	lines := bufio.NewScanner(bytes.NewReader(raw))
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if name, ok := strings.CutPrefix(line, "["); ok {
			current = map[string]string{}
			sections[strings.TrimSuffix(name, "]")] = current
		} else if line != "" {
			key, value, ok := strings.Cut(line, "=")
			require.True(t, ok, line)
			current[strings.TrimSpace(key)] = strings.TrimSpace(value)
		}
	}
	return sections
}

func TestKernelPackage(t *testing.T) {
	pack, err := kernelPackage("Package: linux-image-amd64\nDepends: linux-image-6.1.0-56-amd64 (= 6.1.192-2)\n\n" +
		"Package: linux-image-amd64\nDepends: linux-image-6.1.0-50-amd64 (= 6.1.176-1)\n")
	require.NoError(t, err)
	require.Equal(t, "linux-image-6.1.0-56-amd64", pack)
	pack, err = kernelPackage("Depends: initramfs-tools, linux-image-6.12.48+deb13-amd64 (= 6.12.48-1)")
	require.NoError(t, err)
	require.Equal(t, "linux-image-6.12.48+deb13-amd64", pack)
	_, err = kernelPackage("N: Unable to locate package")
	require.ErrorContains(t, err, "apt-get update")
}

func TestModulesComeAfterWhatTheyNeed(t *testing.T) {
	needISO(t) // the kernel is in the cache afterwards, unless it is installed
	k, err := debian{cache: DefaultCacheDir()}.kernel(t.Context())
	require.NoError(t, err)
	loaded, err := k.load(t.Context(), initrdModules)
	require.NoError(t, err)
	place := map[string]int{}
	for i, m := range loaded {
		require.NotContains(t, place, m.name, "twice")
		place[m.name] = i
		needs, err := dependencies(m.data)
		require.NoError(t, err)
		for _, need := range needs {
			at, known := place[moduleName(need)]
			require.True(t, known && at < i, "%s needs %s", m.name, need)
		}
	}
	require.Contains(t, place, "virtio_net")
	require.Contains(t, place, "net_failover", "virtio_net needs it")
	require.NotContains(t, place, "af_packet", "built in")

	_, err = k.load(t.Context(), []string{"virtio_net", "flux_capacitor"})
	require.ErrorContains(t, err, "flux_capacitor")
	_, err = dependencies([]byte("not a module"))
	require.Error(t, err)
}

func TestScriptsAreClean(t *testing.T) {
	out, err := output(t.Context(), testenv.NeedTool(t, "shellcheck"), "-s", "sh", "init.sh", "udhcpc.sh")
	require.NoError(t, err, out)
}

// cpio(1) is the reference for the archive.
func TestCPIO(t *testing.T) {
	testenv.NeedTool(t, "busybox")
	var archive bytes.Buffer
	require.NoError(t, writeCPIO(&archive, []cpioEntry{
		{name: "d", mode: cpioDir | 0o755},
		{name: "d/file", mode: cpioFile | 0o640, data: []byte("hello")},
		{name: "d/link", mode: cpioSymlink | 0o777, data: []byte("file")},
	}))
	dir := t.TempDir()
	path := filepath.Join(dir, "a.cpio")
	require.NoError(t, os.WriteFile(path, archive.Bytes(), 0o644))
	_, err := output(t.Context(), "sh", "-c", `cd "$0" && busybox cpio -i -F a.cpio`, dir)
	require.NoError(t, err)
	content, err := os.ReadFile(filepath.Join(dir, "d", "link"))
	require.NoError(t, err)
	require.Equal(t, "hello", string(content))
	info, err := os.Stat(filepath.Join(dir, "d", "file"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o640), info.Mode())
}
