package installer

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// plan is what the commands of a kickstart ask for.
type plan struct {
	url       string
	networks  []network
	hostname  string
	rootpw    *password
	users     []user
	groups    []group
	lang      string
	vconsole  string
	zone      string
	utc       bool
	ntp       []string
	selinux   string // enforcing, permissive, disabled
	firewall  *bool
	enabled   []string
	disabled  []string
	onlyUse   []string
	zeroMBR   bool
	clear     *clearPart
	required  bool // reqpart
	addBoot   bool // reqpart --add-boot
	parts     []part
	vgs       []volumeGroup
	lvs       []logicalVolume
	loader    *bootLoader
	end       Outcome
	recorded  []string // commands that have a meaning in Anaconda alone, for the log
	packages  selection
	scripts   *kickstart
	logServer string
}

type network struct {
	place       string
	device      string // MAC in lower case, interface name, "bootif", "link"
	static      bool
	none        bool // --noipv4
	address     netip.Prefix
	gateway     netip.Addr
	nameservers []string
	noRoute     bool
	noDNS       bool
	noIPv6      bool
	onBoot      bool
	mtu         int
}

type password struct {
	text    string
	crypted bool
	locked  bool
}

type user struct {
	name, gecos, home, shell, uid, gid string
	groups                             []string
	password                           password
}

type group struct{ name, gid string }

type clearPart struct {
	none, all, linux, initLabel bool
	label                       string // gpt, msdos; "": by the firmware
	drives                      []string
}

type sizes struct {
	size, max int // MiB; max 0: no limit
	grow      bool
	percent   int
}

type part struct {
	place   string
	mount   string // /boot, swap, pv.01, biosboot
	disk    string
	fstype  string
	label   string
	options string // of mount, --fsoptions
	mkfs    string // --mkfsoptions
	primary bool
	sizes
}

type volumeGroup struct {
	place, name string
	pvs         []string
	extent      int // KiB; 0: LVM's own
}

type logicalVolume struct {
	place, vg, name string
	mount           string
	fstype          string
	label           string
	options         string
	mkfs            string
	sizes
}

type bootLoader struct {
	disabled       bool
	args           string
	drive          string
	timeout        int
	leaveBootOrder bool
}

// Outcome is how an installation ends.
type Outcome string

// The outcomes. Wait is what Anaconda does without any such command: it waits for a key.
const (
	Reboot   Outcome = "reboot"
	PowerOff Outcome = "poweroff"
	Halt     Outcome = "halt"
	Wait     Outcome = "wait"
)

// command understands one command.
type command func(p *plan, l line) error

// commandTable has what the stand-in can do; every other command is refused, never ignored.
var commandTable = map[string]command{
	"text": record(), "cmdline": record(), "skipx": record(), "install": record(),
	"eula":      record("--agreed", "--accepted", "--agree"),
	"firstboot": record("--disable", "--disabled"),
	"auth":      record("--enableshadow", "--useshadow", "--passalgo="),
	"lang":      func(p *plan, l line) error { return l.one(&p.lang, "--addsupport=") },
	"keyboard": func(p *plan, l line) error {
		o, err := l.options("--vckeymap=", "--xlayouts=", "--switch=")
		if err != nil {
			return err
		}
		if p.vconsole = o.get("--vckeymap"); p.vconsole == "" && len(o.args) == 1 {
			p.vconsole = o.args[0]
		}
		return nil
	},
	"timezone":   timezone,
	"timesource": timesource,
	"url": func(p *plan, l line) error {
		o, err := l.options("--url=", "--noverifyssl")
		if p.url = o.get("--url"); err == nil && p.url == "" {
			return l.fault("option --url is missing")
		}
		return err
	},
	"network":    networkCommand,
	"rootpw":     rootpw,
	"user":       userCommand,
	"group":      groupCommand,
	"selinux":    selinux,
	"firewall":   firewall,
	"services":   services,
	"logging":    logging,
	"ignoredisk": ignoredisk,
	"zerombr":    func(p *plan, l line) error { p.zeroMBR = true; return l.none() },
	"clearpart":  clearpart,
	"reqpart":    reqpart,
	"part":       partCommand,
	"partition":  partCommand,
	"volgroup":   volgroup,
	"logvol":     logvol,
	"bootloader": bootloader,
	"reboot":     ends(Reboot), "poweroff": ends(PowerOff), "shutdown": ends(PowerOff), "halt": ends(Halt),
}

// understand reads the commands; before is true for the reading before %pre, in which storage may be missing.
func understand(k *kickstart) (*plan, error) {
	p := &plan{end: Wait, packages: k.packages, scripts: k, utc: false}
	for _, l := range k.commands {
		do, known := commandTable[l.words[0]]
		if !known {
			return nil, l.fault("unknown command")
		}
		if err := do(p, l); err != nil {
			return nil, err
		}
	}
	crashkernel := "auto"
	for _, l := range k.addons {
		switch l.words[0] {
		case "com_redhat_kdump":
			var err error
			if crashkernel, err = l.kdump(); err != nil {
				return nil, err
			}
		case "org_fedora_oscap":
		default:
			return nil, l.fault("Unknown name of the %%addon section.")
		}
	}
	if p.loader != nil && crashkernel != "" {
		p.loader.args = strings.TrimSpace(p.loader.args + " crashkernel=" + crashkernel)
	}
	return p, nil
}

// kdump reads the options of the add-on that reserves memory for a crashed kernel, which it does without a word as well:
// what the kernel argument is then; "" for none.
func (l line) kdump() (crashkernel string, err error) {
	o, err := l.options("--enable", "--disable", "--reserve-mb=")
	switch {
	case err != nil:
		return "", err
	case len(o.args) > 0:
		return "", l.fault("unexpected %q", o.args[0])
	case o.has("--disable"):
		return "", nil
	}
	size := strings.TrimSuffix(cmp.Or(o.get("--reserve-mb"), "auto"), "M")
	if size == "auto" {
		return size, nil
	}
	if _, err := strconv.Atoi(size); err != nil {
		return "", l.fault("Invalid value %s for --reserve-mb", size)
	}
	return size + "M", nil
}

// record takes a command that means something to Anaconda alone (its screens, its licence) and notes it.
func record(known ...string) command {
	return func(p *plan, l line) error {
		o, err := l.options(known...)
		if err == nil && len(o.args) > 0 {
			err = l.fault("unexpected %q", o.args[0])
		}
		p.recorded = append(p.recorded, strings.Join(l.words, " "))
		return err
	}
}

func ends(how Outcome) command {
	return func(p *plan, l line) error { p.end = how; return l.none("--eject") }
}

func (l line) none(known ...string) error {
	o, err := l.options(known...)
	if err == nil && len(o.args) > 0 {
		err = l.fault("unexpected %q", o.args[0])
	}
	return err
}

func (l line) one(into *string, known ...string) error {
	o, err := l.options(known...)
	if err != nil {
		return err
	}
	if len(o.args) != 1 {
		return l.fault("want one argument, have %d", len(o.args))
	}
	*into = o.args[0]
	return nil
}

// number reads a whole number that is not negative; "" is 0.
func (l line) number(o options, name string) (int, error) {
	text := o.get(name)
	if text == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		return 0, l.fault("%s=%s: want a number", name, text)
	}
	return n, nil
}

func timezone(p *plan, l line) error {
	o, err := l.options("--isUtc", "--utc", "--nontp", "--ntpservers=")
	if err != nil {
		return err
	}
	if len(o.args) != 1 {
		return l.fault("want one time zone")
	}
	p.zone, p.utc, p.ntp = o.args[0], o.has("--isUtc") || o.has("--utc"), append(p.ntp, o.list("--ntpservers")...)
	if o.has("--nontp") {
		p.ntp = nil
	}
	return nil
}

func timesource(p *plan, l line) error {
	o, err := l.options("--ntp-server=", "--ntp-pool=", "--nts", "--ntp-disable")
	p.ntp = append(append(p.ntp, o.list("--ntp-server")...), o.list("--ntp-pool")...)
	return err
}

func networkCommand(p *plan, l line) error {
	o, err := l.options("--device=", "--bindto=", "--bootproto=", "--ip=", "--netmask=", "--gateway=", "--nameserver=", "--hostname=",
		"--onboot=", "--activate", "--no-activate", "--noipv4", "--noipv6", "--ipv6=", "--nodefroute", "--nodns", "--mtu=", "--dhcpclass=",
		"--interfacename=", "--ethtool=")
	if err != nil {
		return err
	}
	if len(o.args) > 0 {
		return l.fault("unexpected %q", o.args[0])
	}
	for _, unsupported := range []string{"--ipv6", "--dhcpclass", "--interfacename", "--ethtool"} {
		if v := o.get(unsupported); v != "" && v != "ignore" && v != "auto" {
			return l.fault("the stand-in does not know option %s", unsupported)
		}
	}
	if name := o.get("--hostname"); name != "" {
		if !hostname.MatchString(name) {
			return l.fault("--hostname=%s: not a host name", name)
		}
		p.hostname = name
	}
	n := network{place: l.place, device: o.get("--device"), onBoot: true, noRoute: o.has("--nodefroute"), noDNS: o.has("--nodns"),
		noIPv6: o.has("--noipv6"), none: o.has("--noipv4"), nameservers: o.list("--nameserver")}
	if n.device == "" && o.get("--bootproto") == "" && p.hostname != "" {
		return nil // `network --hostname=` alone
	}
	if mac, err := net.ParseMAC(n.device); err == nil {
		n.device = mac.String()
	}
	if n.mtu, err = l.number(o, "--mtu"); err != nil {
		return err
	}
	switch v := o.get("--onboot"); v {
	case "", "yes", "on", "true", "1":
	case "no", "off", "false", "0":
		n.onBoot = false
	default:
		return l.fault("--onboot=%s: yes or no", v)
	}
	switch bindto := o.get("--bindto"); bindto {
	case "", "mac":
	default:
		return l.fault("--bindto=%s: mac is all there is", bindto)
	}
	switch proto := o.get("--bootproto"); proto {
	case "", "dhcp":
	case "static":
		n.static = true
		if n.address, err = ipv4Prefix(o.get("--ip"), o.get("--netmask")); err != nil {
			return l.fault("%v", err)
		}
		if gateway := o.get("--gateway"); gateway != "" {
			if n.gateway, err = netip.ParseAddr(gateway); err != nil || !n.gateway.Is4() {
				return l.fault("--gateway=%s: not an IPv4 address", gateway)
			}
		}
	default:
		return l.fault("--bootproto=%s: the stand-in knows dhcp and static", proto)
	}
	for _, server := range n.nameservers {
		if _, err := netip.ParseAddr(server); err != nil {
			return l.fault("--nameserver=%s: not an address", server)
		}
	}
	p.networks = append(p.networks, n)
	return nil
}

var hostname = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$`)

func ipv4Prefix(ip, netmask string) (netip.Prefix, error) {
	address, err := netip.ParseAddr(ip)
	if err != nil || !address.Is4() {
		return netip.Prefix{}, fmt.Errorf("--ip=%s: not an IPv4 address", ip)
	}
	mask, err := netip.ParseAddr(netmask)
	if err != nil || !mask.Is4() {
		return netip.Prefix{}, fmt.Errorf("--netmask=%s: not a netmask", netmask)
	}
	ones, bits := net.IPMask(mask.AsSlice()).Size()
	if bits == 0 {
		return netip.Prefix{}, fmt.Errorf("--netmask=%s: not a netmask", netmask)
	}
	return netip.PrefixFrom(address, ones), nil
}

func rootpw(p *plan, l line) error {
	o, err := l.options("--lock", "--iscrypted", "--plaintext", "--allow-ssh")
	if err != nil {
		return err
	}
	p.rootpw = &password{crypted: o.has("--iscrypted"), locked: o.has("--lock")}
	switch {
	case len(o.args) == 1:
		p.rootpw.text = o.args[0]
	case len(o.args) > 1 || !p.rootpw.locked:
		return l.fault("want one password")
	}
	return nil
}

var accountName = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)

func userCommand(p *plan, l line) error {
	o, err := l.options("--name=", "--gecos=", "--groups=", "--homedir=", "--password=", "--iscrypted", "--plaintext", "--lock", "--shell=", "--uid=", "--gid=")
	if err != nil {
		return err
	}
	u := user{name: o.get("--name"), gecos: o.get("--gecos"), home: o.get("--homedir"), shell: o.get("--shell"), uid: o.get("--uid"),
		gid: o.get("--gid"), groups: o.list("--groups"),
		password: password{text: o.get("--password"), crypted: o.has("--iscrypted"), locked: o.has("--lock") || !o.has("--password")}}
	if !accountName.MatchString(u.name) || len(o.args) > 0 {
		return l.fault("--name=%s: not an account name", u.name)
	}
	p.users = append(p.users, u)
	return nil
}

func groupCommand(p *plan, l line) error {
	o, err := l.options("--name=", "--gid=")
	if err != nil {
		return err
	}
	if !accountName.MatchString(o.get("--name")) || len(o.args) > 0 {
		return l.fault("--name=%s: not a group's name", o.get("--name"))
	}
	p.groups = append(p.groups, group{name: o.get("--name"), gid: o.get("--gid")})
	return nil
}

func selinux(p *plan, l line) error {
	o, err := l.options("--enforcing", "--permissive", "--disabled")
	if err != nil {
		return err
	}
	p.selinux = ""
	for _, mode := range []string{"enforcing", "permissive", "disabled"} {
		if o.has("--" + mode) {
			if p.selinux != "" {
				return l.fault("--%s and --%s exclude each other", p.selinux, mode)
			}
			p.selinux = mode
		}
	}
	if p.selinux == "" {
		return l.fault("want one of --enforcing, --permissive, --disabled")
	}
	return nil
}

func firewall(p *plan, l line) error {
	o, err := l.options("--enabled", "--enable", "--disabled", "--disable", "--ssh", "--service=", "--port=", "--trust=")
	if err != nil {
		return err
	}
	on := !o.has("--disabled") && !o.has("--disable")
	if on {
		return l.fault("the stand-in has no firewalld: --disabled is all it can do")
	}
	p.firewall = &on
	return nil
}

var unitName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9:_.@\\-]*$`)

func services(p *plan, l line) error {
	o, err := l.options("--enabled=", "--disabled=")
	if err != nil {
		return err
	}
	p.enabled, p.disabled = append(p.enabled, o.list("--enabled")...), append(p.disabled, o.list("--disabled")...)
	for _, unit := range slices.Concat(p.enabled, p.disabled) {
		if !unitName.MatchString(unit) {
			return l.fault("%q is not a service", unit)
		}
	}
	return nil
}

func logging(p *plan, l line) error {
	o, err := l.options("--host=", "--port=", "--level=")
	if host := o.get("--host"); host != "" {
		p.logServer = host
		if port := o.get("--port"); port != "" {
			p.logServer = net.JoinHostPort(host, port)
		}
	}
	return err
}

func ignoredisk(p *plan, l line) error {
	o, err := l.options("--only-use=")
	if err != nil {
		return err
	}
	p.onlyUse = o.list("--only-use")
	return l.disks(p.onlyUse)
}

// disks refuses what could be a path elsewhere.
func (l line) disks(names []string) error {
	if len(names) == 0 {
		return l.fault("names no disk")
	}
	for _, name := range names {
		if !diskName.MatchString(name) {
			return l.fault("%q is not the name of a disk", name)
		}
	}
	return nil
}

var diskName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.:-]*(/[A-Za-z0-9][A-Za-z0-9_.:-]*)*$`)

func clearpart(p *plan, l line) error {
	o, err := l.options("--all", "--linux", "--none", "--initlabel", "--drives=", "--disklabel=")
	if err != nil {
		return err
	}
	p.clear = &clearPart{none: o.has("--none"), all: o.has("--all"), linux: o.has("--linux"), initLabel: o.has("--initlabel"),
		label: o.get("--disklabel"), drives: o.list("--drives")}
	switch p.clear.label {
	case "", "gpt", "msdos":
	default:
		return l.fault("--disklabel=%s: the stand-in knows gpt and msdos", p.clear.label)
	}
	if p.clear.linux || p.clear.none {
		return l.fault("the stand-in knows --all alone")
	}
	if o.has("--drives") {
		return l.disks(p.clear.drives)
	}
	return nil
}

func reqpart(p *plan, l line) error {
	o, err := l.options("--add-boot")
	p.required, p.addBoot = true, o.has("--add-boot")
	return err
}

func (l line) sizes(o options) (s sizes, err error) {
	if s.size, err = l.number(o, "--size"); err != nil {
		return s, err
	}
	if s.max, err = l.number(o, "--maxsize"); err != nil {
		return s, err
	}
	if s.percent, err = l.number(o, "--percent"); err != nil {
		return s, err
	}
	s.grow = o.has("--grow")
	if s.max > 0 && s.max < s.size {
		return s, l.fault("--maxsize=%d is below --size=%d", s.max, s.size)
	}
	return s, nil
}

var pvName = regexp.MustCompile(`^pv\.[A-Za-z0-9_.-]+$`)

func partCommand(p *plan, l line) error {
	o, err := l.options("--size=", "--grow", "--maxsize=", "--ondisk=", "--ondrive=", "--fstype=", "--label=", "--fsoptions=", "--mkfsoptions=", "--asprimary")
	if err != nil {
		return err
	}
	if len(o.args) != 1 {
		return l.fault("want one mount point")
	}
	n := part{place: l.place, mount: o.args[0], disk: o.get("--ondisk") + o.get("--ondrive"), fstype: o.get("--fstype"), label: o.get("--label"),
		options: o.get("--fsoptions"), mkfs: o.get("--mkfsoptions"), primary: o.has("--asprimary")}
	if n.sizes, err = l.sizes(o); err != nil {
		return err
	}
	if n.disk != "" {
		if err := l.disks([]string{n.disk}); err != nil {
			return err
		}
	}
	switch {
	case n.mount == "biosboot":
		n.fstype = "biosboot"
	case pvName.MatchString(n.mount):
		n.fstype = "lvmpv"
	default:
		if n.fstype, err = l.fstype(n.mount, n.fstype); err != nil {
			return err
		}
	}
	if n.size == 0 {
		return l.fault("%s: no --size", n.mount)
	}
	p.parts = append(p.parts, n)
	return nil
}

// fstype is what a mount point is formatted with: xfs by default, as EL7 does.
func (l line) fstype(mount, fstype string) (string, error) {
	if mount == "swap" {
		return "swap", nil
	}
	if mount != path.Clean(mount) || !path.IsAbs(mount) || strings.ContainsAny(mount, " \t\\") {
		return "", l.fault("%q is not a mount point", mount)
	}
	switch fstype {
	case "":
		if mount == "/boot/efi" {
			return "efi", nil
		}
		return "xfs", nil
	case "xfs", "ext4", "ext3", "ext2", "vfat", "efi":
		return fstype, nil
	}
	return "", l.fault("--fstype=%s: the stand-in knows xfs, ext2 to ext4, vfat and efi", fstype)
}

var lvmName = regexp.MustCompile(`^[A-Za-z0-9_+.][A-Za-z0-9_+.-]{0,120}$`)

func volgroup(p *plan, l line) error {
	o, err := l.options("--pesize=")
	if err != nil {
		return err
	}
	if len(o.args) < 2 || !lvmName.MatchString(o.args[0]) {
		return l.fault("want a name and partitions")
	}
	vg := volumeGroup{place: l.place, name: o.args[0], pvs: o.args[1:]}
	if vg.extent, err = l.number(o, "--pesize"); err != nil {
		return err
	}
	for _, pv := range vg.pvs {
		if !slices.ContainsFunc(p.parts, func(n part) bool { return n.mount == pv }) {
			return l.fault("no part is called %s", pv)
		}
	}
	p.vgs = append(p.vgs, vg)
	return nil
}

func logvol(p *plan, l line) error {
	o, err := l.options("--vgname=", "--name=", "--size=", "--grow", "--maxsize=", "--percent=", "--fstype=", "--label=", "--fsoptions=", "--mkfsoptions=")
	if err != nil {
		return err
	}
	if len(o.args) != 1 {
		return l.fault("want one mount point")
	}
	n := logicalVolume{place: l.place, mount: o.args[0], vg: o.get("--vgname"), name: o.get("--name"), label: o.get("--label"),
		options: o.get("--fsoptions"), mkfs: o.get("--mkfsoptions")}
	if n.fstype, err = l.fstype(n.mount, o.get("--fstype")); err != nil {
		return err
	}
	if !lvmName.MatchString(n.name) {
		return l.fault("--name=%s: not a volume's name", n.name)
	}
	if !slices.ContainsFunc(p.vgs, func(vg volumeGroup) bool { return vg.name == n.vg }) {
		return l.fault("--vgname=%s: there is no such volgroup", n.vg)
	}
	if n.sizes, err = l.sizes(o); err != nil {
		return err
	}
	if n.size == 0 && n.percent == 0 {
		return l.fault("%s: neither --size nor --percent", n.name)
	}
	p.lvs = append(p.lvs, n)
	return nil
}

func bootloader(p *plan, l line) error {
	o, err := l.options("--location=", "--append=", "--boot-drive=", "--timeout=", "--leavebootorder", "--disabled", "--driveorder=")
	if err != nil {
		return err
	}
	b := &bootLoader{disabled: o.has("--disabled"), args: o.get("--append"), drive: o.get("--boot-drive"), timeout: 5, leaveBootOrder: o.has("--leavebootorder")}
	if o.has("--timeout") {
		if b.timeout, err = l.number(o, "--timeout"); err != nil {
			return err
		}
	}
	switch where := o.get("--location"); where {
	case "", "mbr":
	case "none":
		b.disabled = true
	default:
		return l.fault("--location=%s: the stand-in knows mbr and none", where)
	}
	if b.drive != "" {
		if err := l.disks([]string{b.drive}); err != nil {
			return err
		}
	}
	if strings.ContainsAny(b.args, "'\n") {
		return l.fault("--append: a quotation mark cannot be in it")
	}
	p.loader = b
	return nil
}

// check finds what contradicts itself once everything is read.
func (p *plan) check() error {
	if p.hostname == "" {
		p.hostname = "localhost.localdomain"
	}
	if !slices.ContainsFunc(p.lvs, func(v logicalVolume) bool { return v.mount == "/" }) &&
		!slices.ContainsFunc(p.parts, func(v part) bool { return v.mount == "/" }) {
		return fmt.Errorf("the kickstart defines no root file system")
	}
	mounts := map[string]bool{}
	for _, m := range p.mountPoints() {
		if mounts[m] {
			return fmt.Errorf("%s is to be mounted twice", m)
		}
		mounts[m] = true
	}
	if !p.packages.given {
		return fmt.Errorf("the kickstart has no section %%packages: Anaconda would ask")
	}
	if p.rootpw == nil && len(p.users) == 0 {
		return fmt.Errorf("the kickstart says nothing of root's password: Anaconda would ask")
	}
	if p.loader == nil {
		return fmt.Errorf("the kickstart has no command bootloader")
	}
	return nil
}

func (p *plan) mountPoints() (all []string) {
	for _, n := range p.parts {
		if strings.HasPrefix(n.mount, "/") {
			all = append(all, n.mount)
		}
	}
	for _, n := range p.lvs {
		if strings.HasPrefix(n.mount, "/") {
			all = append(all, n.mount)
		}
	}
	if p.addBoot {
		all = append(all, "/boot")
	}
	return all
}
