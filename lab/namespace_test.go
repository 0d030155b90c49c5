package lab

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/internal/testenv"
)

// labInit is a system of one program. It reboots itself once, by what reboot(2) does in a PID namespace.
const labInit = `#!/bin/busybox sh
/bin/busybox mkdir -p /var/lib/seen
/bin/busybox echo "init is $$ on $(/bin/busybox hostname), swappiness $(/bin/busybox cat /proc/sys/vm/swappiness)"
/bin/busybox echo 42 >/proc/sys/vm/swappiness
/bin/busybox ip -o link show eth0
if [ ! -e /var/lib/seen/once ]; then
  /bin/busybox touch /var/lib/seen/once
  /bin/busybox echo "rebooting"
  exec /bin/busybox reboot -f
fi
/bin/busybox echo "up again"
while :; do /bin/busybox sleep 1; done
`

// newNamespaceLab is a lab with one namespace machine, whose disk bears the small system above.
func newNamespaceLab(t *testing.T) *Lab {
	testenv.NeedRoot(t)
	busybox := testenv.NeedTool(t, "busybox")
	tree := t.TempDir()
	for _, dir := range []string{"bin", "sbin", "proc", "sys/fs/cgroup", "dev", "run", "tmp", "etc", "usr/lib/modules", "var/lib"} {
		require.NoError(t, os.MkdirAll(filepath.Join(tree, dir), 0o755))
	}
	require.NoError(t, copyFile(filepath.Join(tree, "bin/busybox"), busybox))
	require.NoError(t, os.Chmod(filepath.Join(tree, "bin/busybox"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(tree, "sbin/init"), []byte(labInit), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(tree, "etc/hostname"), []byte("small\n"), 0o644))

	l := newTestLab(t, Machine{Name: "n", MAC: mac(9), Firmware: Namespace})
	l.spec.System = tree
	require.NoError(t, l.Up(deadline(t, time.Minute)))
	disk := (&board{dir: l.machineDir("n"), state: &state{System: tree}}).disk()
	require.NoError(t, os.MkdirAll(disk.Dir, 0o755))
	require.NoError(t, disk.MarkInstalled())
	return l
}

func TestNamespaceMachineBootsItsDisk(t *testing.T) {
	l := newNamespaceLab(t)
	ctx := deadline(t, 4*time.Minute)
	require.NoError(t, l.PowerOn(ctx, "n"))
	require.ErrorIs(t, l.PowerOn(ctx, "n"), ErrRunning)

	// Nobody answers DHCP here: the firmware goes on to the disk.
	for _, pattern := range []string{
		"no DHCP offer", "nothing to boot from the network", `init is 1 on small, swappiness \d+`,
		`link/ether ` + mac(9).String(), "rebooting\n(?s:.*)the system has ended: reboot", "init is 1 on small(?s:.*)init is 1 on small(?s:.*)up again",
	} {
		_, err := l.WaitSerial(ctx, "n", mustMatch(pattern))
		require.NoError(t, err)
	}
	hosts, err := os.ReadFile("/proc/sys/vm/swappiness")
	require.NoError(t, err)
	require.NotEqual(t, "42", strings.TrimSpace(string(hosts)), "the machine has set the host's kernel")

	_, err = l.Inside(ctx, "n", "true")
	require.NoError(t, err)

	// Reset: the disk stays, the network namespace does not. A mark in it tells the two apart; inode numbers do not,
	// the kernel gives a freed one out again.
	_, err = ip(ctx, "-n", l.spec.Name+"-n", "link", "add", "mark", "type", "bridge")
	require.NoError(t, err)
	require.NoError(t, l.Reset(ctx, "n"))
	_, err = l.WaitSerial(ctx, "n", mustMatch("up again"))
	require.NoError(t, err, "what the disk holds outlives the reset: no second reboot")
	_, err = ip(ctx, "-n", l.spec.Name+"-n", "link", "show", "mark")
	require.ErrorContains(t, err, "does not exist")

	require.NoError(t, l.PowerOff(ctx, "n"))
	require.Zero(t, netnsInode(l.spec.Name+"-n"))
	_, err = l.Inside(ctx, "n", "true")
	require.ErrorIs(t, err, ErrOff)
}

// The board is killed: nothing of the machine survives it, and Down finds the rest.
func TestNamespaceMachineDiesWithItsBoard(t *testing.T) {
	l := newNamespaceLab(t)
	ctx := deadline(t, 4*time.Minute)
	seen := filepath.Join(l.machineDir("n"), diskDir, "upper/var/lib/seen")
	require.NoError(t, os.MkdirAll(seen, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(seen, "once"), nil, 0o644), "no need to reboot")
	require.NoError(t, l.PowerOn(ctx, "n"))
	_, err := l.WaitSerial(ctx, "n", mustMatch("up again"))
	require.NoError(t, err)
	m, err := l.running("n")
	require.NoError(t, err)
	require.NotEmpty(t, m.Cgroups)
	require.NoError(t, exec.Command("kill", "-9", strconv.Itoa(m.Process.PID)).Run())
	require.NoError(t, poll(ctx, func() (bool, error) { return len(processesIn(t, l.machineDir("n"))) == 0, nil }))
	require.NoError(t, l.Down(ctx))
	require.Zero(t, netnsInode(m.Netns))
	for _, dir := range m.Cgroups {
		require.NoDirExists(t, dir)
	}
	require.NoDirExists(t, filepath.Join(l.machineDir("n"), diskDir))
	require.FileExists(t, filepath.Join(l.machineDir("n"), "serial-1.log"))
}

func TestNamespaceMachineNeedsASystem(t *testing.T) {
	spec := New(Spec{StateDir: "x", Machines: []Machine{{Name: "m", MAC: mac(1), Firmware: Namespace}}}, nil).spec
	require.ErrorContains(t, spec.validate(), `machines[0] "m": a namespace machine needs the lab's system`)
}
