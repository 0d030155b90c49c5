package efiboot

import (
	"bytes"
	"cmp"
	"slices"
)

// Distributions whose entries an earlier installation by the appliance may have left, by the directory of their loader;
// that of the system itself counts, too.
var distributions = []string{"centos", "rocky"}

// disks is what a system knows of the disks of its machine.
type disks struct {
	own     string          // PARTUUID of the EFI system partition of this very system
	present map[string]bool // PARTUUIDs of all partitions
}

// plan is what has to be changed.
type plan struct {
	first  *Entry // what is to boot first: the network; nil: the machine has nothing of the kind
	own    *Entry // of this system; nil: none, it is booted by EFI/BOOT
	remove []Entry
	order  []uint16
}

// plan puts first to the beginning of the order, and this system's own entry behind it: a network boot that ends without
// a boot goes on with the disk. The others keep their order. Of its own system's entries one stays, the one that was
// tried first: Anaconda makes one, shim's fallback another where it is not the same to the byte, and that is the one that
// fallback will look for again.
func (s state) plan(first *Entry, d disks) plan {
	p := plan{first: first}
	ours := s.sorted(func(e Entry) bool { return e.Partition != "" && e.Partition == d.own && e.directory() != "boot" })
	directories := slices.Clone(distributions)
	for _, e := range ours {
		directories = append(directories, e.directory())
	}
	if len(ours) > 0 {
		p.own, p.remove = &ours[0], ours[1:]
	}
	if d.present[d.own] { // else nothing is known of what is there
		p.remove = append(p.remove, s.sorted(func(e Entry) bool {
			return e.Partition != "" && !d.present[e.Partition] && slices.Contains(directories, e.directory())
		})...)
	}
	if first != nil {
		p.order = append(p.order, first.Number)
		if p.own != nil {
			p.order = append(p.order, p.own.Number)
		}
	}
	for _, n := range s.order {
		removed := slices.ContainsFunc(p.remove, func(e Entry) bool { return e.Number == n })
		if !removed && !slices.Contains(p.order, n) {
			p.order = append(p.order, n)
		}
	}
	return p
}

// sorted are the entries that a function wants, those of the order first.
func (s state) sorted(want func(Entry) bool) (found []Entry) {
	for _, e := range s.entries {
		if want(e) {
			found = append(found, e)
		}
	}
	place := func(e Entry) int {
		if i := slices.Index(s.order, e.Number); i >= 0 {
			return i
		}
		return len(s.order)
	}
	slices.SortFunc(found, func(a, b Entry) int { return cmp.Or(place(a)-place(b), int(a.Number)-int(b.Number)) })
	return found
}

// cameBy is the entry by which a machine has reached the appliance, seen from the installer: the network that it was
// booted from, be it by somebody's choice for once (BootNext). One that was booted otherwise (iPXE on a USB stick, no
// BootCurrent) keeps what was first before the installation, if that leads to the appliance.
func (s state) cameBy(d disks) *Entry {
	if s.current != nil && s.current.Network {
		return s.current
	}
	for _, n := range s.order {
		e, ok := s.entries[n]
		if !ok || !e.Active || e.Partition != "" && e.Partition == d.own {
			continue
		}
		if e.Network || e.Removable && s.current != nil && s.current.Number == n {
			return &e
		}
		break
	}
	return nil
}

// networkEntry is an entry that boots from the network: the first one in the order, else one outside of it.
func (s state) networkEntry() *Entry {
	found := s.sorted(func(e Entry) bool { return e.Network && e.Active })
	if len(found) == 0 {
		return nil
	}
	return &found[0]
}

// Memory is what a machine is to boot first, by its path: firmware may give it another number.
type Memory struct {
	Label string `json:"label"`
	Path  []byte `json:"path"`
}

// recall finds the entry that was remembered. Firmware that describes its NIC in another way after an update, or a new
// NIC: the network, whatever its entry is.
func (s state) recall(m Memory) *Entry {
	same := s.sorted(func(e Entry) bool { return bytes.Equal(e.Path, m.Path) })
	if len(same) == 0 {
		same = s.sorted(func(e Entry) bool { return e.Label == m.Label && e.Partition == "" })
	}
	if len(same) == 0 {
		return s.networkEntry()
	}
	return &same[0]
}

// firstOf is what the firmware tries first.
func (s state) firstOf() *Entry {
	for _, n := range s.order {
		if e, ok := s.entries[n]; ok && e.Active {
			return &e
		}
	}
	return nil
}
