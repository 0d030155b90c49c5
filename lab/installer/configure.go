package installer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// configure does what the commands say about the installed system.
func (j *job) configure(ctx context.Context) error {
	j.say("configuring")
	for _, step := range []func(context.Context) error{
		j.setNetwork, j.setTime, j.setLocale, j.setAccounts, j.setSecurity, j.setServices,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// write puts a file into the installed system.
func (s system) write(name, text string, mode os.FileMode) error {
	to := s.path(name)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	if err := os.Remove(to); err != nil && !errors.Is(err, os.ErrNotExist) { // never through a link
		return err
	}
	if err := os.WriteFile(to, []byte(text), mode); err != nil {
		return err
	}
	return os.Chmod(to, mode)
}

// setNetwork writes systemd-networkd's files, and the ifcfg files of EL7, which have no reader here but may be looked for by
// %post.
func (j *job) setNetwork(context.Context) error {
	var servers []string
	for i, n := range j.plan.networks {
		nic, err := j.card(n)
		if err != nil {
			return err
		}
		c := connection{name: nic.Name, unit: unitOf(i)}
		if err := j.target.write(c.unit, n.unit("MACAddress="+nic.HardwareAddr.String()), 0o644); err != nil {
			return err
		}
		if err := j.target.write(scriptsDir+"ifcfg-"+c.name, n.ifcfg(c.name, nic.HardwareAddr.String()), 0o644); err != nil {
			return err
		}
		j.connections = append(j.connections, c)
		if !n.noDNS {
			servers = append(servers, n.nameservers...)
		}
	}
	var resolv strings.Builder
	resolv.WriteString("# Written by the installer.\n")
	for _, s := range slices.Compact(servers) {
		fmt.Fprintln(&resolv, "nameserver", s)
	}
	if err := j.target.write("/etc/resolv.conf", resolv.String(), 0o644); err != nil {
		return err
	}
	if err := j.target.write("/etc/hostname", j.plan.hostname+"\n", 0o644); err != nil {
		return err
	}
	// The kickstart may write its own in %post; until then the host knows itself.
	return j.target.write("/etc/hosts", "127.0.0.1 localhost localhost.localdomain\n::1 localhost localhost.localdomain\n", 0o644)
}

// card is the network card that a command names.
func (j *job) card(n network) (net.Interface, error) {
	named := n.device
	switch n.device {
	case "", "bootif", "link":
		want := j.args["BOOTIF"]
		if want == "" {
			return net.Interface{}, fmt.Errorf("%s: network: which device is not said, and there is no BOOTIF", n.place)
		}
		mac, err := net.ParseMAC(trimHardwareType(want))
		if err != nil {
			return net.Interface{}, fmt.Errorf("%s: BOOTIF=%s: %v", n.place, want, err)
		}
		named = mac.String()
	}
	nics, err := net.Interfaces()
	if err != nil {
		return net.Interface{}, err
	}
	for _, nic := range nics {
		if nic.HardwareAddr.String() == named || nic.Name == named {
			return nic, nil
		}
	}
	return net.Interface{}, fmt.Errorf("%s: network: no network card is %s", n.place, named)
}

func (n network) unit(match string) string {
	var u strings.Builder
	fmt.Fprintf(&u, "# Written by the installer, as the kickstart says (%s).\n[Match]\n%s\n\n[Link]\nRequiredForOnline=yes\n", n.place, match)
	if !n.onBoot {
		u.WriteString("ActivationPolicy=manual\n")
	}
	if n.mtu > 0 {
		fmt.Fprintf(&u, "MTUBytes=%d\n", n.mtu)
	}
	u.WriteString("\n[Network]\n")
	switch {
	case n.none:
	case n.static:
		fmt.Fprintf(&u, "Address=%s\n", n.address)
		if !n.noIPv6 {
			u.WriteString("IPv6AcceptRA=no\n") // networkd is not online before routers had 12 s to answer; NetworkManager is
		}
		if n.gateway != (netip.Addr{}) && !n.noRoute {
			fmt.Fprintf(&u, "Gateway=%s\n", n.gateway)
		}
	default:
		u.WriteString("DHCP=ipv4\n")
	}
	if n.noIPv6 {
		u.WriteString("LinkLocalAddressing=no\nIPv6AcceptRA=no\n")
	}
	for _, s := range n.nameservers {
		fmt.Fprintf(&u, "DNS=%s\n", s)
	}
	if !n.static && !n.none {
		fmt.Fprintf(&u, "\n[DHCPv4]\nUseHostname=no\nUseRoutes=%t\nUseDNS=%t\nClientIdentifier=mac\n", !n.noRoute, !n.noDNS)
	}
	return u.String()
}

func (j *job) setTime(context.Context) error {
	if zone := j.plan.zone; zone != "" {
		file := filepath.Join("/usr/share/zoneinfo", filepath.Clean("/"+zone))
		if info, err := os.Stat(j.target.path(file)); err != nil || !info.Mode().IsRegular() {
			return fmt.Errorf("timezone %s: there is no such zone", zone)
		}
		if err := link(".."+file, j.target.path("/etc/localtime")); err != nil {
			return err
		}
		if err := j.target.write("/etc/timezone", zone+"\n", 0o644); err != nil {
			return err
		}
	}
	clock := "LOCAL"
	if j.plan.utc {
		clock = "UTC"
	}
	if err := j.target.write("/etc/adjtime", "0.0 0 0.0\n0\n"+clock+"\n", 0o644); err != nil {
		return err
	}
	if len(j.plan.ntp) == 0 {
		return nil
	}
	const chrony = "/etc/chrony.conf"
	have, err := os.ReadFile(j.target.path(chrony))
	if err != nil {
		return fmt.Errorf("timezone --ntpservers: chrony is not installed: %v", err)
	}
	var conf strings.Builder
	for line := range strings.Lines(string(have)) {
		if word, _, _ := strings.Cut(line, " "); word != "server" && word != "pool" {
			conf.WriteString(line)
		}
	}
	for _, s := range j.plan.ntp {
		fmt.Fprintf(&conf, "server %s iburst\n", s)
	}
	return j.target.write(chrony, conf.String(), 0o644)
}

func (j *job) setLocale(context.Context) error {
	if j.plan.lang != "" {
		if err := j.target.write("/etc/locale.conf", "LANG="+j.plan.lang+"\n", 0o644); err != nil {
			return err
		}
	}
	if j.plan.vconsole == "" {
		return nil
	}
	return j.target.write("/etc/vconsole.conf", "KEYMAP="+j.plan.vconsole+"\n", 0o644)
}

func (j *job) setAccounts(ctx context.Context) error {
	for _, g := range j.plan.groups {
		args := []string{g.name}
		if g.gid != "" {
			args = append([]string{"--gid", g.gid}, args...)
		}
		if _, err := j.target.run(ctx, "/usr/sbin/groupadd", args...); err != nil {
			return fmt.Errorf("group %s: %w", g.name, err)
		}
	}
	for _, u := range j.plan.users {
		args := []string{"--create-home", "--shell", "/bin/bash"}
		for option, value := range map[string]string{"--comment": u.gecos, "--home-dir": u.home, "--shell": u.shell, "--uid": u.uid,
			"--gid": u.gid, "--groups": strings.Join(u.groups, ",")} {
			if value != "" {
				args = append(args, option, value)
			}
		}
		if _, err := j.target.run(ctx, "/usr/sbin/useradd", append(args, u.name)...); err != nil {
			return fmt.Errorf("user %s: %w", u.name, err)
		}
		if err := j.setPassword(ctx, u.name, u.password); err != nil {
			return err
		}
	}
	if j.plan.rootpw == nil {
		return nil
	}
	return j.setPassword(ctx, "root", *j.plan.rootpw)
}

// setPassword hands the password over by the standard input: arguments are to be seen in /proc, and in errors.
func (j *job) setPassword(ctx context.Context, name string, p password) error {
	if p.text != "" {
		cmd := j.target.command(ctx, "/usr/sbin/chpasswd")
		if p.crypted {
			cmd.Args = append(cmd.Args, "--encrypted")
		}
		cmd.Stdin = strings.NewReader(name + ":" + p.text + "\n")
		if _, err := output(cmd); err != nil {
			return fmt.Errorf("password of %s: %w", name, err)
		}
	}
	if !p.locked {
		return nil
	}
	if _, err := j.target.run(ctx, "/usr/sbin/usermod", "--lock", name); err != nil {
		return fmt.Errorf("password of %s: %w", name, err)
	}
	return nil
}

func (j *job) setSecurity(context.Context) error {
	if j.plan.selinux != "" {
		return j.target.write("/etc/selinux/config", "SELINUX="+j.plan.selinux+"\nSELINUXTYPE=targeted\n", 0o644)
	}
	return nil
}

// setServices: one that is to be enabled must exist, one that is to be disabled need not.
func (j *job) setServices(ctx context.Context) error {
	for _, unit := range j.plan.disabled {
		if out, err := j.target.run(ctx, "/usr/bin/systemctl", "disable", unit); err != nil {
			j.log.line(severityInfo, "anaconda", "services --disabled=%s: %v %s", unit, err, out)
		}
	}
	for _, unit := range j.plan.enabled {
		if _, err := j.target.run(ctx, "/usr/bin/systemctl", "enable", unit); err != nil {
			return fmt.Errorf("services --enabled=%s: %w", unit, err)
		}
	}
	return nil
}
