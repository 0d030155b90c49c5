package installer

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestNetworkUnit(t *testing.T) {
	static := network{place: "ks.cfg:1", static: true, onBoot: true, address: netip.MustParsePrefix("10.10.10.81/24"),
		gateway: netip.MustParseAddr("10.10.10.121"), nameservers: []string{"8.8.4.4"}}
	unit := static.unit("MACAddress=52:54:00:00:00:81")
	for _, want := range []string{"[Match]\nMACAddress=52:54:00:00:00:81\n", "Address=10.10.10.81/24\n", "Gateway=10.10.10.121\n", "DNS=8.8.4.4\n"} {
		require.Contains(t, unit, want)
	}
	require.NotContains(t, unit, "DHCP")
	static.noRoute, static.onBoot, static.mtu, static.noIPv6 = true, false, 9000, true
	unit = static.unit("")
	require.NotContains(t, unit, "Gateway")
	for _, want := range []string{"ActivationPolicy=manual\n", "MTUBytes=9000\n", "LinkLocalAddressing=no\n"} {
		require.Contains(t, unit, want)
	}
	require.Contains(t, network{onBoot: true}.unit(""), "DHCP=ipv4\n")
}

// installed is a job whose installed system is a directory of the test's.
func installed(t *testing.T, p *plan) *job {
	root := system{root: t.TempDir()}
	return &job{Options: Options{KernelArgs: "initrd=x console=ttyS0,115200 quiet net.ifnames=0"}, lab: root, target: root, plan: p, log: newLogs(root),
		args: kernelArgs("BOOTIF=01-52-54-00-00-00-81"),
		disk: &storage{disk: "sda", mounts: []mount{
			{at: "/", device: "/dev/mapper/centos-root", source: "/dev/mapper/centos-root", fstype: "xfs", options: "defaults", uuid: "R"},
			{at: "/boot", device: "/dev/sda1", fstype: "xfs", options: "defaults", uuid: "B"},
			{at: "/boot/efi", device: "/dev/sda2", fstype: "vfat", options: "umask=0077", uuid: "E"},
			{at: "/data", device: "/dev/sda3", fstype: "ext4", options: "defaults", uuid: "D"}}}}
}

func TestBootLoaderConfiguration(t *testing.T) {
	j := installed(t, &plan{loader: &bootLoader{args: "cgroup.memory=nokmem", timeout: 5}})
	_, err := j.grubConfig()
	require.ErrorContains(t, err, "no kernel in /boot")
	require.NoError(t, os.MkdirAll(j.target.path("/boot"), 0o755))
	for _, version := range []string{"6.1.0-9", "6.1.0-10"} {
		require.NoError(t, os.WriteFile(j.target.path("/boot/vmlinuz-"+version), nil, 0o600))
	}
	config, err := j.grubConfig()
	require.NoError(t, err)
	for _, want := range []string{
		"set timeout=5\n", "--fs-uuid --set=root B\n", "initrd /initrd.img-6.1.0-10\n",
		"linux /vmlinuz-6.1.0-10 root=/dev/mapper/centos-root ro rd.lvm.lv=centos/root cgroup.memory=nokmem console=ttyS0,115200 net.ifnames=0\n",
	} {
		require.Contains(t, config, want)
	}
	j.plan.loader.args = "init=/bin/sh;reboot"
	_, err = j.grubConfig()
	require.ErrorContains(t, err, "GRUB would interpret")

	require.Equal(t, "# Written by the installer.\n/dev/mapper/centos-root / xfs defaults 0 0\nUUID=B /boot xfs defaults 0 0\n"+
		"UUID=E /boot/efi vfat umask=0077 0 0\nUUID=D /data ext4 defaults 1 2\n", j.disk.fstab())
}

func TestTimeAndLocale(t *testing.T) {
	j := installed(t, &plan{zone: "Asia/Shanghai", utc: true, lang: "en_US.UTF-8", vconsole: "us", ntp: []string{"10.10.10.1"}, selinux: "permissive"})
	require.ErrorContains(t, j.setTime(t.Context()), "there is no such zone")
	zone := j.target.path("/usr/share/zoneinfo/Asia/Shanghai")
	require.NoError(t, os.MkdirAll(filepath.Dir(zone), 0o755))
	require.NoError(t, os.WriteFile(zone, nil, 0o644))
	require.NoError(t, os.Mkdir(j.target.path("/etc"), 0o755))
	require.ErrorContains(t, j.setTime(t.Context()), "chrony is not installed")
	require.NoError(t, os.WriteFile(j.target.path("/etc/chrony.conf"), []byte("pool 2.debian.pool.ntp.org iburst\ndriftfile /x\n"), 0o644))
	require.NoError(t, j.setTime(t.Context()))
	conf, err := os.ReadFile(j.target.path("/etc/chrony.conf"))
	require.NoError(t, err)
	require.Equal(t, "driftfile /x\nserver 10.10.10.1 iburst\n", string(conf))
	target, err := os.Readlink(j.target.path("/etc/localtime"))
	require.NoError(t, err)
	require.Equal(t, "../usr/share/zoneinfo/Asia/Shanghai", target)
	require.NoError(t, j.setLocale(t.Context()))
	require.NoError(t, j.setSecurity(t.Context()))
	j.plan.zone = "../../etc/passwd"
	require.ErrorContains(t, j.setTime(t.Context()), "there is no such zone")
}

// The stand-ins answer what %pre asks, and refuse the rest.
func TestDiskOfADirectory(t *testing.T) {
	var out, complaint bytes.Buffer
	require.Zero(t, runLsblk(t.Context(), []string{"--bytes", "--nodeps", "--noheadings", "--raw", "--output", "NAME,SIZE,TYPE,RM,RO"}, &out, &complaint))
	require.Equal(t, "sda 21474836480 disk 0 0\n", out.String())
	require.NotZero(t, runLsblk(t.Context(), []string{"--json"}, &out, &complaint))
	require.NotZero(t, runLsblk(t.Context(), []string{"--output", "FSTYPE"}, &out, &complaint))
	out.Reset()
	require.Zero(t, runUdevadm(t.Context(), []string{"info", "--query=property", "--name=/dev/sda"}, &out, &complaint))
	require.Contains(t, out.String(), "ID_SERIAL_SHORT=directory\n")
	require.NotZero(t, runUdevadm(t.Context(), []string{"monitor"}, &out, &complaint))
}

func TestKernelArguments(t *testing.T) {
	args := kernelArgs("inst.ks=http://a/ks inst.ks=http://b/ks inst.ks.sendmac ip=dhcp console=ttyS0")
	require.Equal(t, "http://b/ks", args["inst.ks"], "the last one counts")
	_, given := args["inst.ks.sendmac"]
	require.True(t, given)
	j := &job{args: args, text: []byte("# url --url=http://no\nurl --url=\"http://10.10.10.1:8080/media/c7/\"\n")}
	base, err := j.treeURL()
	require.NoError(t, err)
	require.Equal(t, "http://10.10.10.1:8080/media/c7", base)
	j.text = nil
	_, err = j.treeURL()
	require.Error(t, err)
	require.Equal(t, "LiveOS/squashfs.img", iniValue([]byte("[stage2]\nmainimage = LiveOS/squashfs.img\n"), "mainimage"))
}
