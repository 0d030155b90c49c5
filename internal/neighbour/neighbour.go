// Package neighbour tells the hardware address behind an IP address of a network that the host is on, as the kernel
// knows it (ARP, RFC 826).
package neighbour

import (
	"errors"
	"net/netip"

	"github.com/vishvananda/netlink"

	"rackstrap/inventory"
)

// Of is the hardware address of a neighbour; false: it is none, being behind a router or this host itself, or the kernel
// does not know it. Somebody whose packets have just been answered is always known.
func Of(ip netip.Addr) (inventory.MAC, bool) {
	if !ip.IsValid() || ip.IsLoopback() {
		return inventory.MAC{}, false
	}
	found, err := netlink.NeighList(0, netlink.FAMILY_V4)
	if errors.Is(err, netlink.ErrDumpInterrupted) { // the table changed meanwhile
		found, err = netlink.NeighList(0, netlink.FAMILY_V4)
	}
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return inventory.MAC{}, false
	}
	for _, n := range found {
		at, ok := netip.AddrFromSlice(n.IP)
		if !ok || at.Unmap() != ip || len(n.HardwareAddr) != len(inventory.MAC{}) || n.State&(netlink.NUD_INCOMPLETE|netlink.NUD_FAILED|netlink.NUD_NOARP) != 0 {
			continue
		}
		return inventory.MAC(n.HardwareAddr), true
	}
	return inventory.MAC{}, false
}
