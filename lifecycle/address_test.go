package lifecycle

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/inventory"
)

// TestDecideFrom is the one verdict: "install" only for a client whose kickstart will not be refused.
func TestDecideFrom(t *testing.T) {
	reserved, other, server := netip.MustParseAddr("10.10.10.80"), netip.MustParseAddr("10.10.10.77"), netip.MustParseAddr("10.10.10.5")
	lease := func(mac inventory.MAC) func(*testing.T, *Rack) {
		return func(t *testing.T, r *Rack) {
			require.NoError(t, r.Bind(t.Context(), Lease{IP: other, MAC: mac, State: LeaseBound, Expires: r.now().Add(time.Hour)}))
		}
	}
	for _, c := range []struct {
		name   string
		mode   inventory.DHCPMode
		before func(*testing.T, *Rack)
		from   netip.Addr
		want   Action
		reason string
	}{
		{"proxy: the list's address", inventory.DHCPProxy, nil, reserved, ActionInstall, ""},
		{"proxy: another address", inventory.DHCPProxy, nil, other, ActionWait,
			"kmaster waits: another DHCP server gave it 10.10.10.77, the list says 10.10.10.80: reserve that for 52:54:00:00:00:80 there, or change its ip in the list"},
		{"proxy: another address, from a server that was seen", inventory.DHCPProxy, func(_ *testing.T, r *Rack) { r.SeeAddress(macMaster, other, server) }, other, ActionWait,
			"the DHCP server 10.10.10.5 gave it"},
		{"proxy: a lease of before does not help", inventory.DHCPProxy, lease(macMaster), other, ActionWait, "reserve that for"},
		{"off: another address", inventory.DHCPOff, nil, other, ActionWait, "reserve that for"},
		{"off: the list's address", inventory.DHCPOff, nil, reserved, ActionInstall, ""},
		{"server: the list's address", inventory.DHCPServer, nil, reserved, ActionInstall, ""},
		{"server: its pool address, approved a moment ago", inventory.DHCPServer, lease(macMaster), other, ActionInstall, ""},
		{"server: somebody else's pool address", inventory.DHCPServer, lease(macUnknown), other, ActionWait, "no other DHCP server may answer"},
		{"server: an address of a foreign server", inventory.DHCPServer, nil, other, ActionWait, "no other DHCP server may answer"},
		{"an installed machine boots its disk from anywhere", inventory.DHCPProxy, func(t *testing.T, r *Rack) {
			_, err := r.Adopt(t.Context(), "kmaster")
			require.NoError(t, err)
		}, other, ActionLocalDisk, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, _ := newRack(t, NewMemoryStore(), config(func(cfg *inventory.Config) { cfg.Network.DHCP.Mode = c.mode }))
			if c.before != nil {
				c.before(t, r)
			}
			d := r.DecideFrom(macMaster, c.from)
			require.Equal(t, c.want, d.Action, d.Reason)
			require.Contains(t, d.Reason, c.reason)
		})
	}
}

// TestStatusShowsTheWrongAddress: status says what the machine's script said, and no more once that is right.
func TestStatusShowsTheWrongAddress(t *testing.T) {
	r, _ := newRack(t, NewMemoryStore(), config(func(cfg *inventory.Config) { cfg.Network.DHCP.Mode = inventory.DHCPProxy }))
	at := func(text string) Status {
		r.SeeAddress(macMaster, netip.MustParseAddr(text), netip.Addr{})
		return r.Machines()[0]
	}
	require.Equal(t, ActionInstall, r.Machines()[0].Action, "nothing is known of its address")
	st := at("10.10.10.77")
	require.Equal(t, ActionWait, st.Action)
	require.Contains(t, st.Reason, "gave it 10.10.10.77")
	require.Equal(t, ActionWait, at("192.168.7.7").Action, "an operator elsewhere who looks at the script is not the machine")
	require.Equal(t, ActionInstall, at("10.10.10.80").Action)
}
