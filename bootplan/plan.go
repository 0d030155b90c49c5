// Package bootplan says what exactly one machine boots: loader, script, kernel, arguments.
//
// DHCP, TFTP and HTTP may not import one another, yet must never disagree: what DHCP names, the other two
// serve, byte for byte the same. So all three ask here, and this package asks the lifecycle.
package bootplan

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"path"
	"strings"
	"sync/atomic"
	"time"

	"rackstrap/assets"
	"rackstrap/internal/neighbour"
	"rackstrap/inventory"
	"rackstrap/lifecycle"
	"rackstrap/media"
)

// Plan answers what machines boot. Safe for concurrent use.
type Plan struct {
	rack    *lifecycle.Rack
	loaders *assets.Loaders
	library atomic.Pointer[media.Library]
	answers func(lifecycle.Decision) error // nil: not looked at

	neighbour func(netip.Addr) (inventory.MAC, bool)
}

// New makes a plan of what is at hand.
func New(rack *lifecycle.Rack, loaders *assets.Loaders, library *media.Library) *Plan {
	p := &Plan{rack: rack, loaders: loaders, neighbour: neighbour.Of}
	p.library.Store(library)
	return p
}

// CheckAnswers has Decide look first whether the machine's kickstart can be rendered. It is called before the plan is
// in use.
func (p *Plan) CheckAnswers(check func(lifecycle.Decision) error) { p.answers = check }

// SetNeighbours replaces the kernel's table of hardware addresses, see package neighbour. It is called before the plan is
// in use.
func (p *Plan) SetNeighbours(of func(netip.Addr) (inventory.MAC, bool)) { p.neighbour = of }

// Recognise tells whether the client with this address is the machine with that MAC, as far as can be seen: by its
// hardware address, or behind a router by the address that it was given. A hardware address that is seen, and not the
// machine's, is returned.
func (p *Plan) Recognise(mac inventory.MAC, client netip.Addr) (foreign inventory.MAC, yes bool) {
	if !p.rack.Config().Network.ProxiedARP {
		if hardware, seen := p.neighbour(client); seen {
			if p.rack.SameMachine(hardware, mac) {
				return inventory.MAC{}, true
			}
			return hardware, false
		}
	}
	own, known := p.rack.MACByIP(client)
	return inventory.MAC{}, known && p.rack.SameMachine(own, mac)
}

// unrecognised is what others than the machine itself are told of why it boots what.
const unrecognised = "the appliance knows more of it (rackstrap status), and does not say it to this address"

// Decide is what the client with this address boots as the machine with that MAC. It says "install" only where the
// gate before the kickstart will say so, too: a machine never goes into an installer that gets no answers.
func (p *Plan) Decide(mac inventory.MAC, client netip.Addr) lifecycle.Decision {
	d := p.rack.DecideBoot(mac, client)
	if d.Action == lifecycle.ActionInstall && p.answers != nil {
		if err := p.answers(d); err != nil {
			d.Action = lifecycle.ActionWait
			d.Reason = fmt.Sprintf("%s waits: its kickstart cannot be rendered: %v", d.Machine.Name, err)
		}
	}
	if d.Listed || d.CardOf != "" {
		foreign, own := p.Recognise(mac, client)
		d.Hardware, d.Anonymous = foreign, !own
	}
	return d
}

// SetLibrary puts other media in place, after a reload. It returns the old ones, for the caller to close:
// what is open in them stays readable.
func (p *Plan) SetLibrary(library *media.Library) (old *media.Library) {
	return p.library.Swap(library)
}

// Library is the set of media in force.
func (p *Plan) Library() *media.Library { return p.library.Load() }

// Loaders is the set of boot loaders.
func (p *Plan) Loaders() *assets.Loaders { return p.loaders }

// Refusal is a file that exists and that this client may not have. The reason is for the operator; the client may be a
// stranger, who is told nothing of machines.
type Refusal struct{ Reason string }

func (e *Refusal) Error() string { return "this file is not for you: the appliance's events say why" }

// NoLoaderError is why DHCP offers a machine no boot file.
type NoLoaderError struct{ Reason string }

func (e *NoLoaderError) Error() string { return e.Reason }

// File is an opened boot file. The caller closes it.
type File struct {
	io.ReadSeekCloser
	Name    string // the last element of its path
	Size    int64
	ModTime time.Time
	ETag    string // strong, with its quotes
}

// Loader is the file that DHCP tells this firmware to load: a path without a leading slash, which Open
// opens, over TFTP as it is and over HTTP below /loader/. Its error is a *NoLoaderError.
func (p *Plan) Loader(d lifecycle.Decision, fw assets.Firmware) (string, error) {
	if reason, skip := d.OffersNothing(); skip {
		return "", &NoLoaderError{reason}
	}
	if d.Machine.Install.SecureBoot && fw.EFI() {
		return p.shim(d.Machine, fw)
	}
	loader, ok := p.loaders.For(fw)
	if !ok {
		return "", &NoLoaderError{fmt.Sprintf("no loader for %s is at hand (see `rackstrap doctor`)", fw)}
	}
	return loader.Name, nil
}

// shimDir is where the signed loaders of a medium are found, by TFTP and HTTP: shim and GRUB look for their
// next file in the directory that their own path named.
const shimDir = "shim"

// shim is the distribution's own signed loader: it starts the GRUB beside it, which starts only the
// distribution's kernels.
func (p *Plan) shim(m inventory.Machine, fw assets.Firmware) (string, error) {
	if fw != assets.EFIX64 && fw != assets.HTTPX64 {
		return "", &NoLoaderError{fmt.Sprintf("secure_boot: %s has no shim on the medium, only x64 does", fw)}
	}
	medium, ok := p.medium(m)
	if !ok {
		return "", &NoLoaderError{"secure_boot: no medium is configured"}
	}
	files, err := p.signedFiles(m, medium)
	if err != nil {
		return "", &NoLoaderError{"secure_boot: " + err.Error()}
	}
	defer files.Close()
	return path.Join(shimDir, medium.Name, files.shim), nil
}

func (p *Plan) medium(m inventory.Machine) (*inventory.Medium, bool) {
	return p.rack.Config().Medium(m.Install.Medium)
}

// signed is a directory that holds shim and GRUB.
type signed struct {
	media.Tree
	dir, shim, grub string
	own             bool // opened for this call, not one of the library
}

func (s *signed) Close() error {
	if s.own {
		return s.Tree.Close()
	}
	return nil
}

// signedFiles finds shim and GRUB: in install.secure_boot_dir if that is set, else in the medium's EFI/BOOT.
func (p *Plan) signedFiles(m inventory.Machine, medium *inventory.Medium) (*signed, error) {
	if dir := m.Install.SecureBootDir; dir != "" {
		tree, err := media.OpenDir(dir)
		if err != nil {
			return nil, err
		}
		for _, shim := range []string{"BOOTX64.EFI", "shimx64.efi"} {
			entry, errShim := tree.Lookup(shim)
			grub, errGRUB := tree.Lookup("grubx64.efi")
			if errShim == nil && errGRUB == nil {
				return &signed{tree, ".", entry.Name, grub.Name, true}, nil
			}
		}
		tree.Close()
		return nil, fmt.Errorf("%s holds no BOOTX64.EFI (or shimx64.efi) with grubx64.efi", dir)
	}
	tree, ok := p.Library().Tree(medium.Name)
	if !ok {
		return nil, fmt.Errorf("medium %s is not local: set secure_boot_dir", medium.Name)
	}
	dir, shim, grub, err := media.FindShim(tree)
	if err != nil {
		return nil, fmt.Errorf("medium %s: %w", medium.Name, err)
	}
	return &signed{tree, dir, shim, grub, false}, nil
}

// Clean makes a file name of the wire a clean path without a leading slash: backslashes are slashes to some
// firmware, and doubled slashes are what shim asks for. It refuses NUL and `..` with fs.ErrInvalid.
func Clean(name string) (string, error) {
	if strings.ContainsRune(name, 0) {
		return "", fs.ErrInvalid
	}
	name = strings.ReplaceAll(name, `\`, "/")
	for element := range strings.SplitSeq(name, "/") {
		if element == ".." {
			return "", fs.ErrInvalid
		}
	}
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	if !fs.ValidPath(name) || name == "" || name == "." {
		return "", fs.ErrInvalid
	}
	return name, nil
}

// Open opens a boot file for the client that has this address: a loader, a signed loader, GRUB's
// configuration, the installer's kernel and initrd. Errors: *Refusal, fs.ErrNotExist, fs.ErrInvalid for a
// name that cannot be, or a fault of ours.
func (p *Plan) Open(name string, client netip.Addr) (*File, error) {
	name, err := Clean(name)
	if err != nil {
		return nil, err
	}
	mac, identified := p.rack.MACByIP(client)
	decision := p.rack.Decide(mac)
	if identified {
		if reason, skip := decision.OffersNothing(); skip {
			return nil, &Refusal{reason}
		}
	} else if p.rack.Config().Network.DHCP.Mode == inventory.DHCPServer && !client.IsLoopback() {
		return nil, &Refusal{fmt.Sprintf("%s is no address that this appliance gave out", client)}
	}
	first, rest, _ := strings.Cut(name, "/")
	switch {
	case isGRUBConfig(name):
		return p.openGRUBConfig(name, mac, identified, client)
	case first == shimDir:
		return p.openSigned(rest)
	case first == mediaDir:
		return p.openInstaller(rest)
	}
	if loader, ok := p.loaders.Get(name); ok {
		return &File{ReadSeekCloser: nopCloser{loader.NewReader()}, Name: loader.Name, Size: int64(len(loader.Data)),
			ModTime: loader.ModTime, ETag: `"` + loader.SHA256 + `"`}, nil
	}
	return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
}

type nopCloser struct{ io.ReadSeeker }

func (nopCloser) Close() error { return nil }

// openSigned opens `MEDIUM/FILE` of a medium's signed loaders. Any file beside them may be had: shim asks
// for revocations_sbat.efi and certificates, and the MOK manager.
func (p *Plan) openSigned(rest string) (*File, error) {
	name, file, ok := strings.Cut(rest, "/")
	medium, known := p.rack.Config().Medium(name)
	if !ok || !known || name == "" {
		return nil, fmt.Errorf("%s/%s: %w", shimDir, rest, fs.ErrNotExist)
	}
	// The directory belongs to the machine, the name in the path to the medium: a configured directory
	// holds for all machines of that medium that name it.
	var faults []error
	tried := map[string]bool{}
	for _, m := range p.rack.Config().Machines {
		if !m.Install.SecureBoot || tried[m.Install.SecureBootDir] {
			continue
		}
		if own, ok := p.medium(m); !ok || own.Name != medium.Name {
			continue
		}
		tried[m.Install.SecureBootDir] = true
		files, err := p.signedFiles(m, medium)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		f, err := openTree(files.Tree, path.Join(files.dir, file))
		files.Close()
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return f, err
		}
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	return nil, fmt.Errorf("%s/%s: %w", shimDir, rest, fs.ErrNotExist)
}

// mediaDir is where GRUB finds the installer's kernel and initrd by TFTP, by the same path as over HTTP.
const mediaDir = "media"

// openInstaller opens `MEDIUM/PATH`, if that is the installer's kernel or initrd: the only large files that
// TFTP carries, and only where GRUB has no HTTP.
func (p *Plan) openInstaller(rest string) (*File, error) {
	name, file, _ := strings.Cut(rest, "/")
	tree, ok := p.Library().Tree(name)
	if !ok {
		return nil, fmt.Errorf("%s/%s: %w", mediaDir, rest, fs.ErrNotExist)
	}
	info, err := installerFiles(tree)
	if err != nil {
		return nil, err
	}
	if file != info.Kernel && file != info.Initrd {
		return nil, fmt.Errorf("%s/%s: %w: only the installer's kernel and initrd are served here, all else by HTTP", mediaDir, rest, fs.ErrNotExist)
	}
	return openTree(tree, file)
}

// Where all of the Red Hat family have the installer's kernel and initrd.
const (
	UsualKernel = "images/pxeboot/vmlinuz"
	UsualInitrd = "images/pxeboot/initrd.img"
)

// InstallerPaths is where machines are told that a tree has the installer's kernel and initrd.
func (p *Plan) InstallerPaths(tree fs.FS) media.TreeInfo {
	info, _ := installerFiles(tree) // a faulty .treeinfo has no paths but the usual ones
	return info
}

// installerFiles is where a tree says that its kernel and initrd are; a tree that does not say has them
// where all of the Red Hat family have.
func installerFiles(tree fs.FS) (media.TreeInfo, error) {
	info, err := media.ReadTreeInfo(tree)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return info, err
	}
	if info.Kernel == "" {
		info.Kernel = UsualKernel
	}
	if info.Initrd == "" {
		info.Initrd = UsualInitrd
	}
	return info, nil
}

func openTree(tree media.Tree, name string) (*File, error) {
	entry, err := tree.Lookup(name)
	if err != nil {
		return nil, err
	}
	if !entry.Mode.IsRegular() {
		return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	content, err := tree.OpenEntry(entry)
	if err != nil {
		return nil, err
	}
	return &File{ReadSeekCloser: content, Name: entry.Name, Size: entry.Size, ModTime: entry.ModTime, ETag: entry.ETag()}, nil
}
