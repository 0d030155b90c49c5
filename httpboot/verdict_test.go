package httpboot

import (
	"errors"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

var macSecond = inventory.MAC{0x52, 0x54, 0, 0, 1, 0x80} // of kmaster

// TestOneVerdict: a script says "install" just where the gate before the kickstart opens, to whatever client, in
// whatever mode and state.
func TestOneVerdict(t *testing.T) {
	adopt := func(p *plane) {
		_, err := p.rack.Adopt(p.t.Context(), "kmaster")
		require.NoError(p.t, err)
	}
	begun := func(times int) func(*plane) {
		return func(p *plane) {
			for range times {
				*p.now = p.now.Add(time.Second)
				p.rack.See(lifecycle.Sighting{MAC: macMaster, LastBoot: *p.now})
				*p.now = p.now.Add(time.Second)
				_, _, err := p.rack.BeginInstall(p.t.Context(), macMaster, p.rack.Ticket(macMaster))
				require.NoError(p.t, err)
			}
			*p.now = p.now.Add(time.Second)
			p.rack.See(lifecycle.Sighting{MAC: macMaster, LastBoot: *p.now})
		}
	}
	ipOther := netip.MustParseAddr("127.0.0.177") // in the network, of the other DHCP server
	for _, c := range []struct {
		name    string
		mode    inventory.DHCPMode
		before  func(*plane)
		mac     inventory.MAC
		from    netip.Addr
		install bool
		reason  string // on the screen, as in refusals
	}{
		{"server", inventory.DHCPServer, nil, macMaster, ipMaster, true, ""},
		{"server, by its second card", inventory.DHCPServer, nil, macSecond, ipMaster, true, ""},
		{"server, nobody's address", inventory.DHCPServer, nil, macMaster, ipForeign, false, "does not say it to this address"},
		{"proxy", inventory.DHCPProxy, nil, macMaster, ipMaster, true, ""},
		{"proxy, the other server's address", inventory.DHCPProxy, nil, macMaster, ipOther, false,
			"kmaster waits: another DHCP server gave it 127.0.0.177, the list says 127.0.0.80: reserve that for 52:54:00:00:00:80 there, or change its ip in the list"},
		{"proxy, by its second card", inventory.DHCPProxy, nil, macSecond, ipOther, false, "reserve that for 52:54:00:00:01:80 there"},
		{"off, the other server's address", inventory.DHCPOff, nil, macMaster, ipOther, false, "gave it 127.0.0.177"},
		{"installed", inventory.DHCPProxy, adopt, macMaster, ipMaster, false, "kmaster is installed"},
		{"lost twice", inventory.DHCPServer, begun(2), macMaster, ipMaster, true, ""},
		{"out of tries", inventory.DHCPServer, begun(3), macMaster, ipMaster, false, "3 times without success"},
		{"no kickstart", inventory.DHCPServer, func(p *plane) { p.answers.err = errors.New("a file is gone") }, macMaster, ipMaster, false, "its kickstart cannot be rendered: a file is gone"},
		{"a further card", inventory.DHCPServer, func(p *plane) {
			p.rack.See(lifecycle.Sighting{MAC: macMaster, UUID: "4c4c4544-0042-3510-8054-b4c04f4a3132"})
			p.rack.See(lifecycle.Sighting{MAC: macUnknown, UUID: "4c4c4544-0042-3510-8054-b4c04f4a3132"})
		}, macUnknown, ipLeased, false, "is a further card of kmaster"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPlane(t, func(_ *Options, cfg *inventory.Config) {
				cfg.Network.DHCP.Mode = c.mode
				cfg.Machines[0].MACs = []inventory.MAC{macMaster, macSecond}
			})
			p.plan.CheckAnswers(func(d lifecycle.Decision) error {
				_, err := p.answers.Render(p.t.Context(), d.Machine, d.Record, "")
				return err
			})
			if c.before != nil {
				c.before(p)
			}
			p.rack.UseCard(c.mac)
			p.hardware[ipOther] = macMaster
			for _, kind := range []string{"ipxe", "grub.cfg"} {
				got := p.direct(http.MethodGet, "/boot/"+c.mac.Hyphens()+"/"+kind, c.from)
				require.Equal(t, 200, got.Code)
				require.Equal(t, c.install, strings.Contains(got.Body.String(), "inst.ks="), "%s: %s", kind, got.Body)
				require.Contains(t, got.Body.String(), c.reason)
				if c.install {
					require.Contains(t, got.Body.String(), "/ks/"+c.mac.Hyphens()+"/")
					require.Contains(t, got.Body.String(), "BOOTIF=01-"+c.mac.Hyphens(), "the installer uses the card that booted")
				}
			}
			// The headers name all cards; the one that boots need not be among them.
			got := p.direct(http.MethodGet, p.kickstart(c.mac), c.from, "X-RHN-Provisioning-MAC-0", "eth0 "+macMaster.String())
			require.Equal(t, c.install, got.Code == 200, "%d: %s", got.Code, got.Body)
		})
	}
}

// TestWaitingForTheAddress: an alarm a minute, in the status, and the machine goes on once the address is right.
func TestWaitingForTheAddress(t *testing.T) {
	p := newPlane(t, func(_ *Options, cfg *inventory.Config) { cfg.Network.DHCP.Mode = inventory.DHCPProxy })
	wrong := netip.MustParseAddr("127.0.0.177")
	for range 12 {
		got := p.direct(http.MethodGet, "/boot/"+macMaster.Hyphens()+"/ipxe", wrong)
		require.Contains(t, got.Body.String(), "dhcp || goto wait\nchain --replace --autofree http://127.0.0.1:8080/boot/52-54-00-00-00-80/ipxe")
		require.NotContains(t, got.Body.String(), "sanboot")
		*p.now = p.now.Add(10 * time.Second)
	}
	events := p.events("script")
	require.Len(t, events, 2)
	require.Equal(t, lifecycle.Alarm, events[0].Level)
	require.Equal(t, macMaster, events[0].MAC)
	require.Contains(t, events[0].Text, `iPXE script "wait" for 127.0.0.177: kmaster waits: another DHCP server gave it 127.0.0.177`)
	require.Equal(t, lifecycle.ActionWait, p.rack.Machines()[0].Action)
	require.Contains(t, p.direct(http.MethodGet, "/boot/"+macMaster.Hyphens()+"/ipxe", ipMaster).Body.String(), "inst.ks=")
	require.Equal(t, lifecycle.ActionInstall, p.rack.Machines()[0].Action)
}
