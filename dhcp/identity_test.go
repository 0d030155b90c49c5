package dhcp

import (
	"net/netip"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/stretchr/testify/require"

	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

var (
	boardUUID = []byte{0, 0x4c, 0x4c, 0x45, 0x44, 0, 0x42, 0x35, 0x10, 0x80, 0x54, 0xb4, 0xc0, 0x4f, 0x4a, 0x31, 0x32}
	macSecond = inventory.MAC{0x52, 0x54, 0, 0, 1, 0x80} // of the same board as macMaster
)

// board is option 97 of kmaster's board, after that of the firmware.
func board(firmware string) edit {
	return func(m *dhcpv4.DHCPv4) {
		firmwareOf[firmware](m)
		m.Options[97] = boardUUID
	}
}

// TestFurtherCard: another card of a known machine asks, for the first time or again, with and without its UUID.
func TestFurtherCard(t *testing.T) {
	installed := func(r *rig) {
		_, err := r.rack.Adopt(r.t.Context(), "kmaster")
		require.NoError(r.t, err)
	}
	plain := func(*rig) {}
	local := func(l inventory.LocalBoot) func(*inventory.Config) {
		return func(c *inventory.Config) { c.Machines[0].Install.LocalBoot = l }
	}
	const script = "http://10.10.10.1:8080/boot/52-54-00-00-01-80/ipxe"
	for _, c := range []struct {
		name   string
		config []func(*inventory.Config)
		before func(*rig)
		req    *dhcpv4.DHCPv4
		want   dhcpv4.MessageType
		file   string
		event  string
	}{
		{"installed: boots the disk", nil, installed, discover(macSecond, board("x64")), offerT, "snponly.efi", ""},
		{"installed: iPXE", nil, installed, discover(macSecond, board("ipxe-efi")), offerT, script, ""},
		{"installed, enroll", []func(*inventory.Config){policy(inventory.UnknownEnroll)}, installed, discover(macSecond, board("x64")), offerT, "snponly.efi", ""},
		{"installed, ignore", []func(*inventory.Config){policy(inventory.UnknownIgnore)}, installed, discover(macSecond, board("bios")), offerT, "undionly.kpxe", ""},
		{"installed, local_boot: skip", []func(*inventory.Config){local(inventory.LocalSkip)}, installed, discover(macSecond, board("bios")), offerT, "", "local_boot: skip"},
		{"to be installed: the firmware goes on", nil, plain, discover(macSecond, board("x64")), offerT, "", "which is to be installed by 52:54:00:00:00:80: no boot file, so that the firmware goes on to that one"},
		{"to be installed: iPXE in its ROM goes on", nil, plain, discover(macSecond, board("ipxe-rom")), offerT, "", "so that the firmware goes on"},
		{"to be installed, enroll", []func(*inventory.Config){policy(inventory.UnknownEnroll)}, plain, discover(macSecond, board("x64")), offerT, "", "so that the firmware goes on"},
		{"proxy, installed", []func(*inventory.Config){mode(inventory.DHCPProxy)}, installed, discover(macSecond, board("x64")), offerT, "snponly.efi", ""},
		{"proxy, to be installed", []func(*inventory.Config){mode(inventory.DHCPProxy)}, plain, discover(macSecond, board("x64")), silent, "", "so that the firmware goes on"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, config(c.config...))
			r.ask(discover(macMaster, board("x64"))) // its own card was seen
			c.before(r)
			a := r.ask(c.req)
			require.Equal(t, c.want, kindOf(a), a.Why)
			if a.Reply != nil {
				require.Equal(t, c.file, a.Reply.BootFileName)
				if r.view().config.Network.DHCP.Mode == inventory.DHCPServer {
					require.True(t, r.view().subnets[0].pool.contains(addrOf(a.Reply.YourIPAddr)), "the reserved address is the other card's")
				}
			}
			if c.event != "" {
				events := r.events(macSecond)
				require.Contains(t, events[len(events)-1], c.event)
			}
			_, err := r.rack.Member("slot")
			require.ErrorIs(t, err, lifecycle.ErrNoHardware, "it is never enrolled")
			// Loaders and scripts that do not send option 97 are the same card.
			require.Equal(t, "kmaster", r.rack.Decide(macSecond).CardOf)
			require.Equal(t, "kmaster", r.rack.DecideSeen(macSecond, "").CardOf)
		})
	}
}

// TestPlaceholderUUIDs: what many boards have makes nobody a card of somebody else.
func TestPlaceholderUUIDs(t *testing.T) {
	for _, id := range [][]byte{
		make([]byte, 17),
		{0, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255},
		{0, 0, 2, 0, 3, 0, 4, 0, 5, 0, 6, 0, 7, 0, 8, 0, 9}, // 03000200-0400-0500-0006-000700080009, little-endian
		{0, 3, 0, 2, 0, 4, 0, 5, 0, 0, 6, 0, 7, 0, 8, 0, 9},
		{0, 1, 2, 3}, // cut
	} {
		r := newRig(t, config(policy(inventory.UnknownEnroll)))
		_, err := r.rack.Adopt(t.Context(), "kmaster")
		require.NoError(t, err)
		r.ask(discover(macMaster, firmwareOf["x64"], option(97, id...)))
		a := r.ask(discover(macSecond, firmwareOf["x64"], option(97, id...)))
		require.Equal(t, addr(89), addrOf(a.Reply.YourIPAddr), "%x: enrolled", id)
	}
}

// TestReservationOnEachCard: a machine with a list of cards has its address on each, and loses none.
func TestReservationOnEachCard(t *testing.T) {
	r := newRig(t, config(func(c *inventory.Config) { c.Machines[0].MACs = []inventory.MAC{macMaster, macSecond} }))
	for _, mac := range []inventory.MAC{macMaster, macSecond, macMaster} {
		a := r.ask(discover(mac, board("ipxe-efi")))
		require.Equal(t, masterIP, addrOf(a.Reply.YourIPAddr))
		require.Equal(t, "http://10.10.10.1:8080/boot/"+mac.Hyphens()+"/ipxe", a.Reply.BootFileName)
		require.Equal(t, "kmaster", func() string {
			return string(r.ask(request(mac, server(ours), wants(masterIP))).Reply.Options[optHostname])
		}())
		own, ok := r.rack.MACByIP(masterIP)
		require.True(t, ok)
		require.Equal(t, mac, own, "the card that asked last has it")
	}
	// Both cards are up at once: each keeps it, and the other's use of it is no alarm.
	require.Equal(t, ackT, kindOf(r.straight(request(macMaster, ciaddr(masterIP)), "10.10.10.80:68")))
	require.Equal(t, ackT, kindOf(r.straight(request(macSecond, ciaddr(masterIP)), "10.10.10.80:68")))
	r.prober = used(map[netip.Addr]string{masterIP: macSecond.String()})
	r.ask(message(dhcpv4.MessageTypeDecline, macMaster, wants(masterIP), server(ours)))
	require.Contains(t, r.events(macMaster), "warn decline: DECLINE 10.10.10.80: its reserved address is in use by its card "+
		"52:54:00:00:01:80: let the installed system use one of its cards, or bond them")
}

// TestProxySeesTheOtherServersAddress: the broadcast REQUEST names it, before anything boots.
func TestProxySeesTheOtherServersAddress(t *testing.T) {
	dnsmasq := addr(5)
	for _, c := range []struct {
		name  string
		req   *dhcpv4.DHCPv4
		event string
		want  lifecycle.Action
	}{
		{"another address", request(macMaster, firmwareOf["x64"], server(dnsmasq), wants(addr(77))),
			"warn address: kmaster waits: the DHCP server 10.10.10.5 gave it 10.10.10.77, the list says 10.10.10.80: " +
				"reserve that for 52:54:00:00:00:80 there, or change its ip in the list", lifecycle.ActionWait},
		{"of the installer", request(macMaster, server(dnsmasq), wants(addr(77))), "10.10.10.77", lifecycle.ActionWait},
		{"the list's", request(macMaster, firmwareOf["x64"], server(dnsmasq), wants(masterIP)), "", lifecycle.ActionInstall},
		{"not in the list", request(macUnknown, firmwareOf["x64"], server(dnsmasq), wants(addr(77))), "", lifecycle.ActionInstall},
		{"nothing named", request(macMaster, firmwareOf["x64"], server(dnsmasq)), "", lifecycle.ActionInstall},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, config(mode(inventory.DHCPProxy)))
			require.Equal(t, DropMode, r.ask(c.req).Drop)
			if c.event == "" {
				require.Empty(t, r.events(macMaster))
			} else {
				require.Contains(t, r.events(macMaster)[0], c.event)
			}
			require.Equal(t, c.want, r.rack.Machines()[0].Action, "status says it")
			if c.want == lifecycle.ActionWait {
				require.Equal(t, dnsmasq, r.rack.Machines()[0].Sighting.Server)
				r.ask(request(macMaster, firmwareOf["x64"], server(dnsmasq), wants(masterIP)))
				require.Equal(t, lifecycle.ActionInstall, r.rack.Machines()[0].Action, "mended")
				require.Equal(t, masterIP, r.rack.Machines()[0].Sighting.Address)
			}
			require.Equal(t, offerT, kindOf(r.ask(discover(macMaster, firmwareOf["x64"]))), "the loader is needed for the screen that says why")
		})
	}
}
