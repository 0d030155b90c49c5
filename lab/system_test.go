package lab

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/internal/testenv"
)

// needSystem makes the lab's system in the shared cache; the first time that takes minutes.
func needSystem(t testing.TB) System {
	if testing.Short() {
		t.Skip("makes a root file system: not in -short")
	}
	testenv.NeedRoot(t)
	testenv.NeedTool(t, "mmdebstrap", "createrepo_c", "mksquashfs", "apt-get", "dpkg-deb")
	made, err := BuildSystem(deadline(t, 30*time.Minute), "", slog.New(slog.NewTextHandler(t.Output(), nil)))
	require.NoError(t, err)
	return made
}

// What the installer, its kickstarts and the namespace machines count on.
func TestSystem(t *testing.T) {
	s := needSystem(t)
	for _, path := range []string{
		"usr/bin/rpm", "usr/sbin/lvm", "usr/sbin/mkfs.xfs", "usr/sbin/grub-install", "usr/bin/curl", "usr/bin/unsquashfs",
		"usr/lib/systemd/system/sshd.service", "usr/lib/systemd/system/NetworkManager-wait-online.service",
		"boot/vmlinuz-" + s.kernel.version, "boot/initrd.img-" + s.kernel.version,
		"usr/lib/modules/" + s.kernel.version + "/modules.dep",
	} {
		require.FileExists(t, filepath.Join(s.Tree, path))
	}
	for _, path := range []string{"usr/bin/containerd", "usr/sbin/chronyd", "usr/bin/kubelet", "usr/sbin/iptables-nft", "etc/containerd/config.toml"} {
		require.NoFileExists(t, filepath.Join(s.Tree, path), "comes as a package")
	}
	for _, link := range []string{"bin", "sbin", "lib", "lib64"} {
		_, err := os.Readlink(filepath.Join(s.Tree, link))
		require.NoError(t, err, "merged into /usr")
	}
	enabled, err := filepath.Glob(filepath.Join(s.Tree, "etc/systemd/system/multi-user.target.wants/*"))
	require.NoError(t, err)
	for _, link := range enabled {
		require.NotRegexp(t, "docker|containerd|chrony|sshd.service", link, "the kickstart enables it, nobody else")
	}
	_, err = os.Stat(s.Image)
	require.NoError(t, err)
}
