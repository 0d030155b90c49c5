package inventory

import "slices"

// Cards are the addresses of the machine's cards that may boot, in the order of the file; none for a free slot.
func (m *Machine) Cards() []MAC {
	switch {
	case len(m.MACs) > 0:
		return m.MACs
	case m.MAC.IsZero():
		return nil
	}
	return []MAC{m.MAC}
}

// Has tells whether the address is one of the machine's.
func (m *Machine) Has(mac MAC) bool {
	return !mac.IsZero() && (m.MAC == mac || slices.Contains(m.MACs, mac))
}
