package bootplan

import (
	"bytes"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"

	"rackstrap/assets"
	"rackstrap/internal/plain"
	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

// BaseURL is where the boot plane is reached: plain HTTP with the address as digits, for firmware may have
// no resolver.
func BaseURL(s inventory.Server) string {
	return "http://" + net.JoinHostPort(s.Address.String(), strconv.Itoa(s.HTTPPort))
}

// KickstartURL is the kickstart of one machine, in the boot that the ticket was made for; "": it shows the URL's
// shape, and would be refused. It has no query string: dracut would cut it.
func KickstartURL(s inventory.Server, mac inventory.MAC, ticket string) string {
	return BaseURL(s) + path.Join("/ks", mac.Hyphens(), ticket)
}

// MediumURL is the root of a medium's tree, without a slash at its end.
func MediumURL(s inventory.Server, m inventory.Medium) string {
	if m.URL != "" {
		return strings.TrimSuffix(m.URL, "/")
	}
	return BaseURL(s) + "/media/" + m.Name
}

// AgentURL is the program that installed machines of an architecture (amd64, arm64) run.
func AgentURL(s inventory.Server, arch string) string { return BaseURL(s) + "/agent/linux-" + arch }

// ImageURL is an archive of container images.
func ImageURL(s inventory.Server, file string) string {
	return BaseURL(s) + "/images/" + url.PathEscape(file)
}

// KernelArgs is the kernel command line of the installer for one machine (Anaconda 21, dracut), but for
// `initrd=`. BOOTIF limits DHCP and the kickstart's network to the NIC that booted; sendmac and sendsn add
// the headers by which the kickstart is guarded.
func KernelArgs(s inventory.Server, m inventory.Machine, medium inventory.Medium, ticket string) []string {
	args := []string{
		"inst.ks=" + KickstartURL(s, m.MAC, ticket),
		"inst.stage2=" + MediumURL(s, medium),
		"BOOTIF=01-" + m.MAC.Hyphens(),
		"ip=dhcp",
		"inst.ks.sendmac",
		"inst.ks.sendsn",
		"inst.nosave=all_ks", // else the kickstart stays in /root of the installed system, with token and password's hash
		"inst.cmdline",       // as the kickstart itself says, which dracut reads only where it has fetched it
	}
	if s.SyslogPort != 0 { // rsyslog gets it as it is: `*.* @@HOST:PORT`, which is TCP
		args = append(args, "inst.syslog="+net.JoinHostPort(s.Address.String(), strconv.Itoa(s.SyslogPort)))
	}
	return append(args, m.Install.KernelArgs...)
}

// IPXE is the script for the machine that a decision is about.
func (p *Plan) IPXE(d lifecycle.Decision) ([]byte, error) {
	s, err := p.script(d)
	if err != nil {
		return nil, err
	}
	base := BaseURL(p.rack.Config().Server)
	s.Self = base + "/boot/" + d.MAC.Hyphens() + "/ipxe"
	s.GRUBEFI, s.GRUBBIOS = base+"/loader/grubnetx64.efi", base+"/loader/grubpxe.0"
	return s.IPXE()
}

// GRUB is GRUB's configuration for the machine that a decision is about. Its files are paths on the server
// that GRUB itself was loaded from.
func (p *Plan) GRUB(d lifecycle.Decision) ([]byte, error) {
	s, err := p.script(d)
	if err != nil {
		return nil, err
	}
	base := BaseURL(p.rack.Config().Server)
	s.Kernel, s.Initrd = strings.TrimPrefix(s.Kernel, base), strings.TrimPrefix(s.Initrd, base)
	if d.Action == lifecycle.ActionInstall && !strings.HasPrefix(s.Kernel, "/") {
		return nil, fmt.Errorf("%s: GRUB loads the installer from this appliance, and medium %s is elsewhere (%s)", d.Machine.Name, s.Medium, s.Kernel)
	}
	s.Self = "/grub/host-" + d.MAC.String() + ".cfg"
	return s.GRUB()
}

func (p *Plan) script(d lifecycle.Decision) (assets.Script, error) {
	cfg := p.rack.Config()
	s := assets.Script{
		Title:     d.MAC.String(),
		Reason:    screenText(d.Reason),
		Action:    string(d.Action),
		Appliance: cfg.Server.Address.String(),
		MAC:       d.MAC.String(),
		Local:     string(inventory.LocalAuto),
	}
	if seen, ok := p.rack.Sighting(d.MAC); ok {
		s.UUID = screenText(seen.UUID)
	}
	switch {
	case d.Anonymous:
		s.Reason, s.UUID = unrecognised, ""
		s.Local = string(d.Machine.Install.LocalBoot)
	case d.Listed || d.CardOf != "":
		s.Title = d.Machine.Name + " (" + s.MAC + ")"
		s.Local = string(d.Machine.Install.LocalBoot)
	}
	if d.Action != lifecycle.ActionInstall {
		return s, nil
	}
	medium, ok := p.medium(d.Machine)
	if !ok {
		return s, fmt.Errorf("%s: medium %q is not configured", d.Machine.Name, d.Machine.Install.Medium)
	}
	kernel, initrd, err := p.installer(*medium)
	if err != nil {
		return s, fmt.Errorf("%s: medium %s: %w", d.Machine.Name, medium.Name, err)
	}
	root := MediumURL(cfg.Server, *medium)
	s.Medium = medium.Name
	s.Kernel, s.Initrd = root+"/"+kernel, root+"/"+initrd
	s.Args = strings.Join(KernelArgs(cfg.Server, d.Machine, *medium, d.Ticket), " ")
	return s, nil
}

// installer is where a medium has its kernel and initrd, below its root.
func (p *Plan) installer(m inventory.Medium) (kernel, initrd string, err error) {
	tree, ok := p.Library().Tree(m.Name)
	if !ok { // on a mirror: where all of the family have them
		return UsualKernel, UsualInitrd, nil
	}
	info, err := installerFiles(tree)
	if err != nil {
		return "", "", err
	}
	for _, name := range []string{info.Kernel, info.Initrd} {
		if _, err := tree.Lookup(name); err != nil {
			return "", "", err
		}
	}
	return info.Kernel, info.Initrd, nil
}

// screenText makes a text, which may come from a peer, harmless in the scripts of iPXE and GRUB: both
// expand `$`, and iPXE takes `||`, `&&` and `#` for its own.
func screenText(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', strings.ContainsRune(" .,:_/()=+-'@", r):
			return r
		case r == '`', r == '"':
			return '\''
		}
		return '?'
	}, plain.ASCII(text, maxScreen))
}

// maxScreen is how much of a text a screen of firmware takes: five lines of 80.
const maxScreen = 400

// isGRUBConfig tells whether a path is one of those under which GRUB looks for its configuration:
// `grub/grub.cfg` and `grub/host-MAC.cfg` (Debian's), `grub.cfg-01-MAC`, `grub.cfg` in the directory that
// GRUB came from (CentOS's).
func isGRUBConfig(name string) bool {
	dir, file := path.Split(name)
	if dir != "grub/" && !strings.HasPrefix(dir, shimDir+"/") {
		return false
	}
	return file == "grub.cfg" || grubConfigMAC(file) != ""
}

// grubConfigMAC is the MAC in the name of a machine's own configuration file, as written; "" for none.
func grubConfigMAC(file string) string {
	if mac, ok := strings.CutPrefix(file, "grub.cfg-01-"); ok {
		return mac
	}
	if mac, ok := strings.CutPrefix(file, "host-"); ok {
		if mac, ok := strings.CutSuffix(mac, ".cfg"); ok {
			return mac
		}
	}
	return ""
}

// openGRUBConfig renders the configuration of the client, or of the machine that the name tells; a client
// cannot have that of another machine.
func (p *Plan) openGRUBConfig(name string, own inventory.MAC, identified bool, client netip.Addr) (*File, error) {
	file, mac := path.Base(name), own
	if written := grubConfigMAC(file); written != "" {
		var err error
		if mac, err = inventory.ParseMAC(written); err != nil {
			return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
		}
		if identified && !p.rack.SameMachine(mac, own) {
			return nil, &Refusal{fmt.Sprintf("%s belongs to %s, and your address to %s", file, mac, own)}
		}
	} else if !identified {
		// Nothing in the name and nothing known of the address (proxy mode): GRUB knows its own MAC.
		return configFile(file, []byte("configfile /grub/host-$net_default_mac.cfg\n")), nil
	}
	d := p.Decide(mac, client)
	if !d.Hardware.IsZero() {
		return nil, &Refusal{fmt.Sprintf("%s belongs to %s, and %s has the hardware address %s", file, mac, client, d.Hardware)}
	}
	if reason, skip := d.OffersNothing(); skip {
		return nil, &Refusal{reason}
	}
	text, err := p.GRUB(d)
	if err != nil {
		return nil, err
	}
	return configFile(file, text), nil
}

func configFile(name string, text []byte) *File {
	return &File{ReadSeekCloser: nopCloser{bytes.NewReader(text)}, Name: name, Size: int64(len(text)), ModTime: time.Time{}}
}
