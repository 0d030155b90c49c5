package efiboot

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// ErrBIOS is a machine without UEFI: its own set-up says what it boots first, and no installation changes that.
var ErrBIOS = errors.New("this machine has BIOS: its own set-up says what it boots first")

// ErrNoNetwork is a machine none of whose boot entries leads to the network.
var ErrNoNetwork = errors.New("no boot entry leads to the network")

// Host is the machine that runs, or is being installed.
type Host struct {
	Root   string // where its files begin; "" is /
	Memory string // file with what it is to boot first, below Root
}

// Report is how things stand.
type Report struct {
	First        string   // label of what is tried first; "": nothing
	NetworkFirst bool     // that leads to the appliance
	Changes      []string // what was done, for people
}

func (r Report) String() string {
	text := "nothing is in the order"
	if r.First != "" {
		text = r.First + " is first"
	}
	if !r.NetworkFirst {
		text += ", which is not the network"
	}
	for _, change := range r.Changes {
		text += "; " + change
	}
	return text
}

func (h Host) path(name string) string { return filepath.Join("/", h.Root, name) }

// load reads the firmware's variables. Errors: ErrBIOS, ErrNoVariables, those of the file system.
func (h Host) load() (variables, state, error) {
	if _, err := os.Stat(h.path("/sys/firmware/efi")); err != nil {
		return "", state{}, ErrBIOS
	}
	v := variables(h.path("/sys/firmware/efi/efivars"))
	s, err := v.load()
	return v, s, err
}

// Look tells what the machine boots first. Errors: those of load, as of all that follows.
func (h Host) Look() (Report, error) {
	_, s, err := h.load()
	if err != nil {
		return Report{}, err
	}
	return s.report(h.remembered(s)), nil
}

func (s state) report(wanted *Entry) Report {
	r := Report{}
	if e := s.firstOf(); e != nil {
		r.First, r.NetworkFirst = e.Label, e.Network || wanted != nil && wanted.Number == e.Number
	}
	return r
}

func (h Host) remembered(s state) *Entry {
	text, err := os.ReadFile(h.path(h.Memory))
	var m Memory
	if err != nil || json.Unmarshal(text, &m) != nil {
		return nil
	}
	return s.recall(m)
}

// Remember notes, during an installation, by which entry the installer was booted: it is to be the first one from now
// on. Nothing is noted if that is not the network, nor what was first before.
func (h Host) Remember() error {
	_, s, err := h.load()
	if err != nil {
		return err
	}
	file := h.path(h.Memory)
	e := s.cameBy(h.disks())
	if e == nil {
		if err := os.Remove(file); !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	}
	text, err := json.Marshal(Memory{Label: e.Label, Path: e.Path})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	return os.WriteFile(file, append(text, '\n'), 0o600)
}

// Restore makes the boot order what it is to be: what was remembered first, then this system, of which one entry stays.
// It may be done at any time, and changes nothing where all is well. A system that is on no EFI system partition (a
// container, a RAID of them) changes nothing.
func (h Host) Restore() (Report, error) {
	v, s, err := h.load()
	if err != nil {
		return Report{}, err
	}
	first, d := h.remembered(s), h.disks()
	if d.own == "" {
		return s.report(first), errors.New("this system has no EFI system partition of its own: the boot order is left as it is")
	}
	changes, err := v.apply(s, s.plan(first, d))
	if s, loaded := v.load(); loaded == nil {
		r := s.report(first)
		r.Changes = changes
		return r, err
	}
	return Report{Changes: changes}, err
}

// apply changes what is not as planned. The order comes first: an entry is removed when nothing refers to it.
func (v variables) apply(s state, p plan) (changes []string, err error) {
	if !slices.Equal(s.order, p.order) {
		if err := v.writeNumbers("BootOrder", p.order); err != nil {
			return nil, fmt.Errorf("BootOrder cannot be written: %w", err)
		}
		changes = append(changes, "the order was "+orderText(s.order)+", is "+orderText(p.order))
	}
	for _, e := range p.remove {
		if err := v.remove(nameOf(e.Number)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return changes, fmt.Errorf("%v cannot be removed: %w", e, err)
		}
		changes = append(changes, "removed "+e.String())
	}
	return changes, nil
}

func orderText(order []uint16) string {
	var words []string
	for _, n := range order {
		words = append(words, fmt.Sprintf("%04X", n))
	}
	return strings.Join(words, ",")
}

// BootNetworkOnce has the firmware boot from the network the next time, whatever the order is, and tells by which entry.
func (h Host) BootNetworkOnce() (string, error) {
	v, s, err := h.load()
	if err != nil {
		return "", err
	}
	e := h.remembered(s)
	if e == nil {
		e = s.networkEntry()
	}
	if e == nil {
		return "", ErrNoNetwork
	}
	if err := v.writeNumbers("BootNext", []uint16{e.Number}); err != nil {
		return "", fmt.Errorf("BootNext cannot be written: %w", err)
	}
	return e.Label, nil
}

// disks looks which partitions there are, and which of them is this system's EFI system partition.
func (h Host) disks() disks {
	d := disks{present: map[string]bool{}}
	var efi syscall.Stat_t
	mounted := syscall.Stat(h.path("/boot/efi"), &efi) == nil
	links, _ := filepath.Glob(h.path("/dev/disk/by-partuuid/*"))
	for _, link := range links {
		var device syscall.Stat_t
		if syscall.Stat(link, &device) != nil {
			continue
		}
		id := strings.ToLower(filepath.Base(link))
		d.present[id] = true
		if mounted && device.Rdev == efi.Dev {
			d.own = id
		}
	}
	return d
}
