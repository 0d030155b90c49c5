package container

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestHierarchiesOfThisKindOfHost(t *testing.T) {
	mounts := `31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
36 31 0:33 / /sys/fs/cgroup/devices rw,relatime - cgroup cgroup rw,devices
39 31 0:36 /a /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
42 31 0:39 / /sys/fs/cgroup/rdma rw,relatime - cgroup cgroup rw,rdma
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
`
	own := "12:rdma:/\n9:name=systemd:/\n8:pids:/a/b\n5:devices:/\n4:memory:/process_api/e\n1:cpu,cpuacct:/\n0::/\n"
	got, err := parseHierarchies(mounts, own)
	require.NoError(t, err)
	require.Equal(t, []Hierarchy{
		{Name: "cpu,cpuacct", Options: "cpu,cpuacct", dir: "/sys/fs/cgroup/cpu,cpuacct"},
		{Name: "memory", Options: "memory", dir: "/sys/fs/cgroup/memory/process_api/e"},
		{Name: "devices", Options: "devices", dir: "/sys/fs/cgroup/devices"},
		{Name: "pids", Options: "pids", dir: "/sys/fs/cgroup/pids/b"},
		{Name: "systemd", Options: "none,name=systemd", dir: "/sys/fs/cgroup/systemd"},
	}, got)
}

func TestHostWithoutTheHierarchiesIsToldSo(t *testing.T) {
	_, err := parseHierarchies("23 1 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", "0::/\n")
	require.ErrorContains(t, err, "cgroup v1")
}

func TestDisk(t *testing.T) {
	d := Disk{Dir: filepath.Join(t.TempDir(), "disk")}
	require.False(t, d.Installed())
	require.NoError(t, os.MkdirAll(d.Dir, 0o755))
	require.NoError(t, d.MarkInstalled())
	require.True(t, d.Installed())
	require.NoError(t, d.Blank())
	require.False(t, d.Installed())
	require.NoError(t, d.Blank(), "a blank disk stays one")
}

func TestInitIsForPIDOne(t *testing.T) {
	require.ErrorContains(t, Init("{}"), "and nowhere else")
	require.Error(t, Init("{"))
}

func TestSettingsAreCopiedAsFarAsTheyCanBeRead(t *testing.T) {
	from, to := t.TempDir(), filepath.Join(t.TempDir(), "copy")
	require.NoError(t, os.MkdirAll(filepath.Join(from, "a", "binfmt_misc"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(from, "a", "panic"), []byte("0\n"), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(from, "a", "trigger"), []byte("x"), 0o200))
	require.NoError(t, os.WriteFile(filepath.Join(from, "a", "binfmt_misc", "status"), nil, 0o644))
	require.NoError(t, copySettings(from, to))
	value, err := os.ReadFile(filepath.Join(to, "a", "panic"))
	require.NoError(t, err)
	require.Equal(t, "0\n", string(value))
	require.NoFileExists(t, filepath.Join(to, "a", "trigger"))
	require.NoDirExists(t, filepath.Join(to, "a", "binfmt_misc"))
}
