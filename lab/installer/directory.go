package installer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// mountBelow gives a directory what a chroot in it needs, in a mount namespace of the calling thread.
func mountBelow(root string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("mount namespace (needs root): %v", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("mount namespace: %v", err)
	}
	for _, m := range []struct {
		at, kind, options string
		flags             uintptr
	}{
		{"proc", "proc", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"sys", "sysfs", "", unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"dev", "tmpfs", "mode=755", unix.MS_NOSUID},
		{"run", "tmpfs", "mode=755", unix.MS_NOSUID | unix.MS_NODEV},
		{"tmp", "tmpfs", "mode=1777", unix.MS_NOSUID | unix.MS_NODEV},
	} {
		at := filepath.Join(root, m.at)
		if err := os.MkdirAll(at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, at, m.kind, m.flags, m.options); err != nil {
			return fmt.Errorf("mount %s: %v", at, err)
		}
	}
	for name, minor := range map[string]uint32{"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9} {
		node := filepath.Join(root, "dev", name)
		if err := unix.Mknod(node, unix.S_IFCHR|0o666, int(unix.Mkdev(1, minor))); err != nil {
			return fmt.Errorf("%s: %v", node, err)
		}
		if err := os.Chmod(node, 0o666); err != nil { // whatever the umask
			return err
		}
	}
	for name, target := range map[string]string{"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"} {
		if err := os.Symlink(target, filepath.Join(root, "dev", name)); err != nil {
			return err
		}
	}
	return nil
}

// powerOn makes all programs that the calling thread starts from now on those of one machine: they have a PID namespace,
// which ends with its first process, and a reboot within it ends it (pid_namespaces(7)), and nothing else.
func (j *job) powerOn() (powerOff func(), err error) {
	first := j.lab.command(context.Background(), "/bin/sleep", "infinity")
	first.SysProcAttr.Cloneflags, first.SysProcAttr.Pdeathsig = unix.CLONE_NEWPID, unix.SIGKILL
	if err := first.Start(); err != nil {
		return nil, fmt.Errorf("PID namespace: %w", err)
	}
	reset := make(chan struct{})
	go func() {
		first.Wait()
		close(reset)
	}()
	j.reset = reset
	powerOff = func() {
		first.Process.Kill()
		<-reset
	}
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/pid", first.Process.Pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		err = unix.Setns(fd, unix.CLONE_NEWPID)
		unix.Close(fd)
	}
	if err != nil {
		powerOff()
		return nil, fmt.Errorf("PID namespace: %w", err)
	}
	return powerOff, nil
}

// address gets one by DHCP for the interface, as dracut does with ip=dhcp and BOOTIF, and configures it. An
// interface that has addresses already keeps them.
func (j *job) address(ctx context.Context) error {
	if j.Interface == "" {
		return errors.New("a directory is installed into with an interface and its MAC")
	}
	link, err := netlink.LinkByName(j.Interface)
	if err != nil {
		return fmt.Errorf("interface %s: %w", j.Interface, err)
	}
	if mac := link.Attrs().HardwareAddr; len(j.MAC) > 0 && mac.String() != j.MAC.String() {
		return fmt.Errorf("interface %s has the address %s, not %s", j.Interface, mac, j.MAC)
	}
	if want := j.args["BOOTIF"]; want != "" {
		boot, err := net.ParseMAC(trimHardwareType(want))
		if err != nil || boot.String() != link.Attrs().HardwareAddr.String() {
			return fmt.Errorf("no network card has the address of BOOTIF=%s", want)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("interface %s: %w", j.Interface, err)
	}
	if j.args["ip"] != "dhcp" {
		return nil
	}
	client, err := nclient4.New(j.Interface, nclient4.WithHWAddr(link.Attrs().HardwareAddr), nclient4.WithTimeout(4*time.Second), nclient4.WithRetry(8))
	if err != nil {
		return fmt.Errorf("DHCP on %s: %w", j.Interface, err)
	}
	defer client.Close()
	lease, err := client.Request(ctx, dhcpv4.WithOption(dhcpv4.OptClassIdentifier(agentID)),
		dhcpv4.WithRequestedOptions(dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter, dhcpv4.OptionDomainNameServer, dhcpv4.OptionHostName))
	if err != nil {
		return fmt.Errorf("no DHCP lease on %s: %w", j.Interface, err)
	}
	got := &net.IPNet{IP: lease.ACK.YourIPAddr, Mask: lease.ACK.SubnetMask()}
	if got.Mask == nil {
		got.Mask = got.IP.DefaultMask()
	}
	if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: got}); err != nil {
		return fmt.Errorf("interface %s: %s: %w", j.Interface, got, err)
	}
	for _, router := range lease.ACK.Router() {
		// One that lies outside of the network is of no use; the appliance is reached without it.
		netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: router})
		break
	}
	j.say("address %s on %s %s", got.IP, j.Interface, link.Attrs().HardwareAddr)
	return nil
}

// trimHardwareType: BOOTIF is 01-52-54-00-00-00-80, the hardware type before the address.
func trimHardwareType(bootif string) string {
	if len(bootif) == len("01-52-54-00-00-00-80") {
		return bootif[3:]
	}
	return bootif
}
