package lab

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/internal/testenv"
)

// bootDeadline of one machine under software emulation, on a host that has other things to do as well.
const bootDeadline = 2 * time.Minute

// A planted disk boots under each firmware; all of them at once, as a rack does.
func TestPlantedDisksBoot(t *testing.T) {
	testenv.NeedQEMU(t)
	testenv.NeedTool(t, "mformat", "grub-mkimage", "qemu-img")
	testenv.NeedFile(t, firmwares[UEFI].code)
	machines := []Machine{
		{Name: "bios", MAC: mac(1), Firmware: BIOS},
		{Name: "uefi", MAC: mac(2), Firmware: UEFI},
		{Name: "secureboot", MAC: mac(3), Firmware: UEFISecureBoot},
	}
	for i := range machines {
		machines[i].DiskFirst, machines[i].DiskGiB, machines[i].MemoryMiB = true, 4, 512
	}
	l := newTestLab(t, machines...)
	ctx := deadline(t, 4*time.Minute)
	require.NoError(t, l.Up(ctx))
	powered := map[string]time.Time{}
	for _, m := range machines {
		require.NoError(t, l.PlantDisk(ctx, m.Name))
		powered[m.Name] = time.Now()
		require.NoError(t, l.PowerOn(ctx, m.Name))
	}
	require.ErrorIs(t, l.PowerOn(ctx, "bios"), ErrRunning)
	require.ErrorIs(t, l.PlantDisk(ctx, "bios"), ErrRunning)

	for _, m := range machines {
		_, err := l.WaitSerial(deadline(t, bootDeadline), m.Name,
			regexp.MustCompile("rackstrap-lab: booted from the disk of "+m.Name+"\n"))
		require.NoError(t, err)
		t.Logf("%s: %s", m.Name, time.Since(powered[m.Name]).Round(10*time.Millisecond))
	}
	_, err := l.WaitSerial(ctx, "secureboot", mustMatch("Secure boot enabled"))
	require.NoError(t, err, "the firmware must enforce what it is named for")

	brief := deadline(t, 300*time.Millisecond)
	_, err = l.WaitSerial(brief, "uefi", mustMatch("installer reached"))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "booted from the disk of uefi", "the end of the log belongs to the error")

	shot := filepath.Join(t.TempDir(), "screen.png")
	require.NoError(t, l.Screenshot(ctx, "bios", shot))
	png, err := os.ReadFile(shot)
	require.NoError(t, err)
	require.True(t, bytes.HasPrefix(png, []byte("\x89PNG\r\n")))

	require.NoError(t, l.Reset(ctx, "bios"))
	_, err = l.WaitSerial(deadline(t, bootDeadline), "bios", mustMatch("^(?s:.*)SeaBIOS"))
	require.NoError(t, err, "after the reset the firmware starts over, and the earlier boot is not seen")

	require.NoError(t, l.PowerOff(ctx, "uefi"))
	status, err := l.Status()
	require.NoError(t, err)
	require.Equal(t, []bool{true, false, true}, []bool{status[0].Running, status[1].Running, status[2].Running})
	require.NoError(t, l.PowerOff(ctx, "uefi"), "again")
	require.ErrorIs(t, l.Screenshot(ctx, "uefi", shot), ErrOff)
	require.ErrorIs(t, l.Console(ctx, "uefi", bytes.NewReader(nil), io.Discard), ErrOff)
}

// The initrd does on the wire what the installer does, and its console is a shell. dnsmasq and busybox stand
// in for the appliance: another project's idea of DHCP, so that the lab is not tested by what it tests.
func TestInstallerOverTheNetwork(t *testing.T) {
	testenv.NeedQEMU(t)
	dnsmasq := testenv.NeedTool(t, "dnsmasq")
	busybox := testenv.NeedTool(t, "busybox")
	iso := needISO(t)
	l := newTestLab(t, Machine{Name: "node", MAC: mac(1), SecondNIC: true})
	ctx := deadline(t, 3*time.Minute)
	require.NoError(t, l.Up(ctx))

	www := t.TempDir()
	_, err := output(ctx, "xorriso", "-osirrox", "on", "-indev", iso, "-extract", "/", www)
	require.NoError(t, err)
	t.Cleanup(func() { output(context.Background(), "chmod", "-R", "u+w", www) })
	_, err = output(ctx, "chmod", "u+w", www)
	require.NoError(t, err)
	for name, content := range map[string]string{
		"ks": "text\nurl --url=\"http://10.10.10.1/\"\n",
		"boot": "#!ipxe\nkernel http://10.10.10.1/images/pxeboot/vmlinuz initrd=initrd.img " +
			"inst.ks=http://10.10.10.1/ks BOOTIF=01-${netX/mac:hexhyp} ip=dhcp inst.ks.sendmac console=ttyS0,115200\n" +
			"initrd --name initrd.img http://10.10.10.1/images/pxeboot/initrd.img\nboot\n",
	} {
		require.NoError(t, os.WriteFile(filepath.Join(www, name), []byte(content), 0o644))
	}
	_, err = l.Start(ctx, exec.Command(busybox, "httpd", "-f", "-v", "-p", "10.10.10.1:80", "-h", www))
	require.NoError(t, err)
	startNoRouter(t, l)
	_, err = l.Start(ctx, exec.Command(dnsmasq, "-d", "-C", "/dev/null", "-p", "0", "--log-facility=-",
		"-i", l.Bridge(), "--dhcp-range=10.10.10.50,10.10.10.50", "--dhcp-leasefile="+filepath.Join(www, "leases"),
		"--dhcp-boot=http://10.10.10.1/boot"))
	require.NoError(t, err)

	powered := time.Now()
	require.NoError(t, l.PowerOn(ctx, "node"))
	_, err = l.WaitSerial(deadline(t, bootDeadline), "node", mustMatch(`rackstrap-lab: (installer reached|FAILED.*)\n`))
	require.NoError(t, err)
	t.Logf("installer reached after %s", time.Since(powered).Round(10*time.Millisecond))
	for _, want := range []string{
		`rackstrap-lab: kernel command line: .*inst\.ks=http://10\.10\.10\.1/ks BOOTIF=01-52-54-00-00-ab-01 `,
		`rackstrap-lab: address 10\.10\.10\.50 on eth1 52:54:00:00:ab:01\n`,
		`rackstrap-lab: kickstart http://10\.10\.10\.1/ks HTTP 200 36 bytes\n`,
		`rackstrap-lab: treeinfo http://10\.10\.10\.1/\.treeinfo HTTP 200 \d+ bytes\n`,
		`rackstrap-lab: stage2 http://10\.10\.10\.1/LiveOS/squashfs\.img HTTP 200 \d+ bytes\n`,
		`rackstrap-lab: installer reached\n`,
	} {
		_, err := l.WaitSerial(deadline(t, time.Second), "node", mustMatch(want))
		require.NoError(t, err)
	}

	shell, keyboard := io.Pipe()
	screen, consoleOut := io.Pipe()
	left := make(chan error, 1)
	go func() { left <- l.Console(ctx, "node", shell, consoleOut); consoleOut.Close() }()
	_, err = io.WriteString(keyboard, "echo six times seven is $((6*7))\n")
	require.NoError(t, err)
	seen, err := readUntil(screen, "is 42")
	require.NoError(t, err, seen)
	go io.Copy(io.Discard, screen)
	_, err = keyboard.Write([]byte{detachKey})
	require.NoError(t, err)
	require.NoError(t, <-left, "Ctrl-] leaves")

}

// readUntil reads until the text was seen or the reader ends.
func readUntil(from io.Reader, text string) (string, error) {
	var seen bytes.Buffer
	buffer := make([]byte, 256)
	for {
		n, err := from.Read(buffer)
		seen.Write(buffer[:n])
		if bytes.Contains(seen.Bytes(), []byte(text)) {
			return seen.String(), nil
		}
		if err != nil {
			return seen.String(), err
		}
	}
}
