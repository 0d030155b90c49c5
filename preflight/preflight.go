// Package preflight tells, before a machine is switched on, what its boot and its installation would look for in vain. It is
// the one place of that verdict: check, doctor, media and serve print it.
//
// Of every file that a machine of the list will ask for it asks the same: is it there, under the name that the machine will
// use; is it whole; can this appliance serve it; can the programs of the release read it. What is certain to fail is a
// fault. What may do without, or could not be looked at (a server that is not reached), is a warning.
package preflight

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path"
	"slices"
	"strings"
	"time"

	"rackstrap/assets"
	"rackstrap/bootplan"
	"rackstrap/inventory"
	"rackstrap/kickstart"
	"rackstrap/lifecycle"
	"rackstrap/media"
	"rackstrap/repo"
)

// Finding is one thing that is not as it should be.
type Finding struct {
	Subject string // medium NAME, repository NAME, packages of MACHINE, boot of MACHINE, loaders, agents, …
	Text    string
	Warning bool // not a fault
}

func (f Finding) String() string { return f.Subject + ": " + f.Text }

// Report is what was found, each thing once.
type Report []Finding

// Fault adds a fault.
func (r *Report) Fault(subject, format string, args ...any) {
	r.add(Finding{subject, fmt.Sprintf(format, args...), false})
}

// Warn adds a warning.
func (r *Report) Warn(subject, format string, args ...any) {
	r.add(Finding{subject, fmt.Sprintf(format, args...), true})
}

func (r *Report) add(f Finding) {
	if !slices.Contains(*r, f) {
		*r = append(*r, f)
	}
}

// Faults lists the faults.
func (r Report) Faults() []string { return r.list(false) }

// Warnings lists the warnings.
func (r Report) Warnings() []string { return r.list(true) }

func (r Report) list(warnings bool) (list []string) {
	for _, f := range r {
		if f.Warning == warnings {
			list = append(list, f.String())
		}
	}
	return list
}

// Err joins the faults; nil if there are none.
func (r Report) Err() error {
	var faults []error
	for _, text := range r.Faults() {
		faults = append(faults, errors.New(text))
	}
	return errors.Join(faults...)
}

// About is what was found about subjects that begin with this.
func (r Report) About(subject string) (part Report) {
	for _, f := range r {
		if f.Subject == subject || strings.HasPrefix(f.Subject, subject+" ") {
			part = append(part, f)
		}
	}
	return part
}

// Options are what is looked at, and how far.
type Options struct {
	Rack    *lifecycle.Rack // of machines that are all new: what the configuration alone says
	Plan    *bootplan.Plan
	Sources func(inventory.Machine) (kickstart.Sources, error)
	Agents  []string // architectures that there is an agent for, as Go names them

	Servers time.Duration                                               // how long servers may take to answer; 0: they are not asked
	Served  func(ctx context.Context, name string) (*repo.Index, error) // of what this appliance fetches through; nil: ask the upstream
	Fetch   repo.Options                                                // how servers are asked
}

// Examine looks at everything that the machines of the list will ask for.
func Examine(ctx context.Context, o Options) Report {
	e := &examination{Options: o, cfg: o.Rack.Config(), offers: map[string]offer{}}
	e.loaders()
	for _, name := range o.Plan.Library().Names() {
		e.medium(name)
	}
	for _, m := range e.cfg.Media {
		if m.URL != "" && e.Servers > 0 {
			e.mirror(ctx, m)
		}
	}
	for _, m := range e.cfg.Machines {
		e.boot(m)
	}
	e.installations(ctx)
	return e.Report
}

// examination is one run of Examine.
type examination struct {
	Options
	Report
	cfg    *inventory.Config
	needs  []need
	offers map[string]offer
}

// mediumOf names the medium that a machine is installed from.
func (e *examination) mediumOf(m inventory.Machine) string {
	if medium, ok := e.cfg.Medium(m.Install.Medium); ok {
		return medium.Name
	}
	return m.Install.Medium
}

// common is the firmware of servers.
var common = []assets.Firmware{assets.BIOS, assets.EFIX64, assets.HTTPX64}

// loaders looks at what DHCP offers: what it does not, some other server has to.
func (e *examination) loaders() {
	if e.cfg.Network.DHCP.Mode == inventory.DHCPOff {
		return
	}
	var none []string
	for _, fw := range common {
		loader, ok := e.Plan.Loaders().For(fw)
		if !ok {
			none = append(none, string(fw))
			continue
		}
		if err := whole(loader.NewReader(), int64(len(loader.Data)), loaderForm(loader.Name)); err != nil {
			e.Fault("loaders", "%s, for %s: %v", loader.Name, fw, err)
		}
	}
	if len(none) > 0 {
		e.Fault("loaders", "none for %s: build with `make`, which embeds them, or name a directory in server.loaders_dir", strings.Join(none, ", "))
	}
}

func loaderForm(name string) form {
	if strings.HasSuffix(strings.ToLower(name), ".efi") {
		return efiProgram
	}
	return anything
}

// boot looks at what one machine's firmware is told to load.
func (e *examination) boot(m inventory.Machine) {
	if m.MAC.IsZero() {
		return // its boot is that of the others of its medium
	}
	subject, decision := "boot of "+m.Name, e.Rack.Decide(m.MAC)
	if len(e.About(mediumSubject(e.mediumOf(m))).Faults()) > 0 {
		return // what is wrong with it is said
	}
	if _, err := e.Plan.IPXE(decision); err != nil {
		e.Fault(subject, "%v", err)
	}
	if !m.Install.SecureBoot {
		return
	}
	shim, err := e.Plan.Loader(decision, assets.EFIX64)
	if err != nil {
		e.Fault(subject, "%v", err)
		return
	}
	if _, err := e.Plan.GRUB(decision); err != nil {
		e.Fault(subject, "%v", err)
	}
	// Asked for as by the firmware; shim asks for GRUB in its own directory.
	for _, name := range []string{shim, path.Join(path.Dir(shim), "grubx64.efi")} {
		f, err := e.Plan.Open(name, netip.AddrFrom4([4]byte{127, 0, 0, 1}))
		if err == nil {
			err = whole(f, f.Size, efiProgram)
			f.Close()
		}
		if err != nil {
			e.Fault(subject, "secure_boot: %s: %v", name, err)
		}
	}
}

// missing tells whether nothing is there.
func missing(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// reasons are errors that say more than that nothing is there.
var reasons = []struct {
	err  error
	text string
}{
	{media.ErrLinkEscapes, "is a symbolic link that leads out of the tree"},
	{media.ErrLinkLoop, "is a symbolic link without an end"},
	{repo.ErrOutside, "is too far outside of the repository to be served"},
	{repo.ErrNotAnRPM, "is no RPM package"},
}

// reason is an error about a file in words that follow its name.
func reason(err error) string {
	for _, known := range reasons {
		if errors.Is(err, known.err) {
			return known.text
		}
	}
	var at *fs.PathError
	switch {
	case errors.As(err, &at) && missing(err):
		return "is not there"
	case errors.As(err, &at):
		return at.Err.Error()
	}
	return err.Error()
}
