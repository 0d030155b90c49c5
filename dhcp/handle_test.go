package dhcp

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/stretchr/testify/require"

	"rackstrap/assets"
	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

const (
	offerT = dhcpv4.MessageTypeOffer
	ackT   = dhcpv4.MessageTypeAck
	nakT   = dhcpv4.MessageTypeNak
	silent = dhcpv4.MessageTypeNone
)

// leaseTo gives an address of the pool to a client beforehand.
func leaseTo(mac inventory.MAC, ip netip.Addr) func(*rig) {
	return func(r *rig) {
		require.NoError(r.t, r.rack.Bind(r.t.Context(), lifecycle.Lease{IP: ip, MAC: mac, State: lifecycle.LeaseBound,
			Expires: r.now().Add(time.Hour)}))
	}
}

func expiredTo(mac inventory.MAC, ip netip.Addr) func(*rig) {
	return func(r *rig) {
		leaseTo(mac, ip)(r)
		r.clock.forward(2 * time.Hour)
	}
}

func offered(mac inventory.MAC, ip netip.Addr) func(*rig) {
	return func(r *rig) { require.Equal(r.t, ip, addrOf(r.ask(discover(mac, wants(ip))).Reply.YourIPAddr)) }
}

func policy(p inventory.UnknownPolicy) func(*inventory.Config) {
	return func(c *inventory.Config) { c.Network.DHCP.Unknown = p }
}

func mode(m inventory.DHCPMode) func(*inventory.Config) {
	return func(c *inventory.Config) { c.Network.DHCP.Mode = m }
}

// TestStateMachine walks through the table of protocols.md, row by row.
func TestStateMachine(t *testing.T) {
	const toAll = "255.255.255.255:68"
	const toRelay = "10.20.0.1:67"
	none := netip.Addr{}
	plain := []func(*inventory.Config){}
	ignore := []func(*inventory.Config){policy(inventory.UnknownIgnore)}
	proxied := []func(*inventory.Config){mode(inventory.DHCPProxy)}
	off := []func(*inventory.Config){mode(inventory.DHCPOff)}
	x64 := firmwareOf["x64"]

	for _, tc := range []struct {
		name   string
		config []func(*inventory.Config)
		before func(*rig)
		req    *dhcpv4.DHCPv4
		direct string // came to our own address from here
		want   dhcpv4.MessageType
		yiaddr netip.Addr
		to     string
		drop   Drop
	}{
		// DISCOVER
		{"DISCOVER, known", plain, nil, discover(macMaster), "", offerT, masterIP, toAll, ""},
		{"DISCOVER, known, asks for another address", plain, nil, discover(macMaster, wants(addr(7))), "", offerT, masterIP, toAll, ""},
		{"DISCOVER, known, through a relay", plain, nil, discover(macFar, giaddr(relay)), "", offerT, farIP, toRelay, ""},
		{"DISCOVER, known, through a relay of another network", plain, nil, discover(macMaster, giaddr(relay)), "", silent, none, "", DropNetwork},
		{"DISCOVER, known, on the wrong network", plain, nil, discover(macFar), "", silent, none, "", DropNetwork},
		{"DISCOVER, relay of no network", plain, nil, discover(macMaster, giaddr(netip.MustParseAddr("10.99.0.1"))), "", silent, none, "", DropNetwork},
		{"DISCOVER, link selection", plain, nil, discover(macFar, giaddr(netip.MustParseAddr("10.99.0.1")), option(82, 5, 4, 10, 20, 0, 0)), "", offerT, farIP, "10.99.0.1:67", ""},
		{"DISCOVER, option 82 of a switch, no relay", plain, nil, discover(macMaster, option(82, 5, 4, 10, 20, 0, 0)), "", offerT, masterIP, toAll, ""},
		{"DISCOVER, unknown, ignored", ignore, nil, discover(macUnknown, x64), "", silent, none, "", DropUnknown},
		{"DISCOVER, unknown, pool", plain, nil, discover(macUnknown, wants(addr(222))), "", offerT, addr(222), toAll, ""},
		{"DISCOVER, unknown, pool of the relay's network", plain, nil, discover(macUnknown, giaddr(relay), wants(netip.MustParseAddr("10.20.0.105"))), "", offerT, netip.MustParseAddr("10.20.0.105"), toRelay, ""},
		{"DISCOVER, unknown, keeps its lease", plain, leaseTo(macUnknown, addr(240)), discover(macUnknown, wants(addr(222))), "", offerT, addr(240), toAll, ""},
		{"DISCOVER, unknown, finds its expired lease again", plain, expiredTo(macUnknown, addr(240)), discover(macUnknown), "", offerT, addr(240), toAll, ""},
		{"DISCOVER with ciaddr is broadcast all the same", plain, nil, discover(macMaster, ciaddr(masterIP)), "", offerT, masterIP, toAll, ""},

		// REQUEST, SELECTING
		{"SELECTING another server", plain, nil, request(macMaster, server(addr(5)), wants(masterIP)), "", silent, none, "", DropOtherServer},
		{"SELECTING us", plain, nil, request(macMaster, server(ours), wants(masterIP)), "", ackT, masterIP, toAll, ""},
		{"SELECTING us, wrong address", plain, nil, request(macMaster, server(ours), wants(addr(81))), "", nakT, none, toAll, ""},
		{"SELECTING us, wrong address, through a relay", plain, nil, request(macFar, giaddr(relay), server(ours), wants(addr(81))), "", nakT, none, toRelay, ""},
		{"SELECTING us, no address", plain, nil, request(macMaster, server(ours)), "", ackT, masterIP, toAll, ""},
		{"SELECTING us, unknown, as offered", plain, offered(macUnknown, addr(230)), request(macUnknown, server(ours), wants(addr(230))), "", ackT, addr(230), toAll, ""},
		{"SELECTING us, unknown, the offer forgotten by a restart", plain, nil, request(macUnknown, server(ours), wants(addr(230))), "", ackT, addr(230), toAll, ""},
		{"SELECTING us, unknown, offered to another", plain, offered(macOther, addr(230)), request(macUnknown, server(ours), wants(addr(230))), "", nakT, none, toAll, ""},
		{"SELECTING us, unknown, leased to another", plain, leaseTo(macOther, addr(230)), request(macUnknown, server(ours), wants(addr(230))), "", nakT, none, toAll, ""},
		{"SELECTING us, unknown, another's reservation", plain, nil, request(macUnknown, server(ours), wants(masterIP)), "", nakT, none, toAll, ""},
		{"SELECTING us, unknown, a free slot's reservation", plain, nil, request(macUnknown, server(ours), wants(addr(89))), "", nakT, none, toAll, ""},
		{"SELECTING us, unknown, outside the pool", plain, nil, request(macUnknown, server(ours), wants(addr(7))), "", nakT, none, toAll, ""},
		{"SELECTING us, unknown, ignored", ignore, nil, request(macUnknown, server(ours), wants(addr(230))), "", silent, none, "", DropUnknown},

		// REQUEST, INIT-REBOOT
		{"INIT-REBOOT", plain, nil, request(macMaster, wants(masterIP)), "", ackT, masterIP, toAll, ""},
		{"INIT-REBOOT, wrong address", plain, nil, request(macMaster, wants(addr(7))), "", nakT, none, toAll, ""},
		{"INIT-REBOOT, address of another network", plain, nil, request(macMaster, wants(netip.MustParseAddr("192.168.1.7"))), "", nakT, none, toAll, ""},
		{"INIT-REBOOT, no record", plain, nil, request(macUnknown, wants(addr(230))), "", silent, none, "", DropUnknown},
		{"INIT-REBOOT, no record, address of another network", plain, nil, request(macUnknown, wants(netip.MustParseAddr("192.168.1.7"))), "", silent, none, "", DropUnknown},
		{"INIT-REBOOT, leased", plain, leaseTo(macUnknown, addr(230)), request(macUnknown, wants(addr(230))), "", ackT, addr(230), toAll, ""},
		{"INIT-REBOOT, lease expired, still free", plain, expiredTo(macUnknown, addr(230)), request(macUnknown, wants(addr(230))), "", ackT, addr(230), toAll, ""},
		{"INIT-REBOOT, leased another address", plain, leaseTo(macUnknown, addr(231)), request(macUnknown, wants(addr(230))), "", nakT, none, toAll, ""},
		{"INIT-REBOOT, leased, moved behind a relay", plain, leaseTo(macUnknown, addr(230)), request(macUnknown, giaddr(relay), wants(addr(230))), "", nakT, none, toRelay, ""},

		// REQUEST, RENEWING and REBINDING
		{"RENEWING", plain, nil, request(macMaster, ciaddr(masterIP)), "10.10.10.80:68", ackT, masterIP, "10.10.10.80:68", ""},
		{"RENEWING, through routers", plain, nil, request(macFar, ciaddr(farIP)), "10.20.0.50:68", ackT, farIP, "10.20.0.50:68", ""},
		{"RENEWING, wrong address", plain, nil, request(macMaster, ciaddr(addr(7))), "10.10.10.7:68", nakT, none, toAll, ""},
		{"RENEWING, unknown", plain, nil, request(macUnknown, ciaddr(addr(230))), "10.10.10.230:68", silent, none, "", DropUnknown},
		{"RENEWING, leased", plain, leaseTo(macUnknown, addr(230)), request(macUnknown, ciaddr(addr(230))), "10.10.10.230:68", ackT, addr(230), "10.10.10.230:68", ""},
		{"RENEWING, leased another address", plain, leaseTo(macUnknown, addr(231)), request(macUnknown, ciaddr(addr(230))), "10.10.10.230:68", nakT, none, toAll, ""},
		{"REBINDING", plain, nil, request(macMaster, ciaddr(masterIP)), "", ackT, masterIP, "10.10.10.80:68", ""},
		{"REBINDING, through a relay", plain, nil, request(macFar, giaddr(relay), ciaddr(farIP)), "", ackT, farIP, toRelay, ""},
		{"REQUEST of nothing", plain, nil, request(macMaster), "", silent, none, "", DropMalformed},

		// INFORM, RELEASE, DECLINE
		{"INFORM", plain, nil, message(dhcpv4.MessageTypeInform, macMaster, ciaddr(masterIP)), "10.10.10.80:68", ackT, none, "10.10.10.80:68", ""},
		{"INFORM through a relay", plain, nil, message(dhcpv4.MessageTypeInform, macFar, ciaddr(farIP), giaddr(relay)), "", ackT, none, "10.20.0.50:68", ""},
		{"INFORM, unknown, ignored", ignore, nil, message(dhcpv4.MessageTypeInform, macUnknown, ciaddr(addr(7))), "10.10.10.7:68", silent, none, "", DropUnknown},
		{"INFORM without address", plain, nil, message(dhcpv4.MessageTypeInform, macMaster), "", silent, none, "", DropMalformed},
		{"INFORM from nowhere", plain, nil, message(dhcpv4.MessageTypeInform, macMaster, ciaddr(netip.MustParseAddr("192.0.2.1"))), "", silent, none, "", DropNetwork},
		{"RELEASE", plain, leaseTo(macUnknown, addr(230)), message(dhcpv4.MessageTypeRelease, macUnknown, ciaddr(addr(230)), server(ours)), "10.10.10.230:68", silent, none, "", ""},
		{"RELEASE of a reservation", plain, nil, message(dhcpv4.MessageTypeRelease, macMaster, ciaddr(masterIP), server(ours)), "10.10.10.80:68", silent, none, "", ""},
		{"RELEASE to another server", plain, nil, message(dhcpv4.MessageTypeRelease, macMaster, ciaddr(masterIP), server(addr(5))), "", silent, none, "", DropOtherServer},
		{"DECLINE", plain, leaseTo(macUnknown, addr(230)), message(dhcpv4.MessageTypeDecline, macUnknown, wants(addr(230)), server(ours)), "", silent, none, "", ""},
		{"DECLINE of a reservation", plain, nil, message(dhcpv4.MessageTypeDecline, macMaster, wants(masterIP), server(ours)), "", silent, none, "", ""},
		{"DECLINE to another server", plain, nil, message(dhcpv4.MessageTypeDecline, macMaster, wants(masterIP), server(addr(5))), "", silent, none, "", DropOtherServer},
		{"DECLINE of what it was not given", plain, leaseTo(macOther, addr(230)), message(dhcpv4.MessageTypeDecline, macUnknown, wants(addr(230)), server(ours)), "", silent, none, "", DropUnknown},

		// proxy and off
		{"proxy: DISCOVER of firmware", proxied, nil, discover(macMaster, x64), "", offerT, none, toAll, ""},
		{"proxy: DISCOVER of unknown firmware", proxied, nil, discover(macUnknown, x64), "", offerT, none, toAll, ""},
		{"proxy: DISCOVER of firmware through a relay", proxied, nil, discover(macFar, x64, giaddr(relay)), "", offerT, none, toRelay, ""},
		{"proxy: DISCOVER of an operating system", proxied, nil, discover(macMaster), "", silent, none, "", DropMode},
		{"proxy: DISCOVER without a loader", proxied, nil, discover(macMaster, firmwareOf["itanium"]), "", silent, none, "", DropNoLoader},
		{"proxy: REQUEST", proxied, nil, request(macMaster, x64, server(ours), wants(masterIP)), "", silent, none, "", DropMode},
		{"proxy: RENEWING", proxied, nil, request(macMaster, ciaddr(masterIP)), "", silent, none, "", DropMode},
		{"off: DISCOVER", off, nil, discover(macMaster, x64), "", silent, none, "", DropMode},

		// what is no client's message
		{"OFFER", plain, nil, message(offerT, macMaster), "", silent, none, "", DropMalformed},
		{"NAK", plain, nil, message(nakT, macMaster), "", silent, none, "", DropMalformed},
		{"LEASEQUERY", plain, nil, message(10, macMaster), "", silent, none, "", DropMalformed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t, config(tc.config...))
			if tc.before != nil {
				tc.before(r)
			}
			var a Answer
			if tc.direct != "" {
				a = r.straight(tc.req, tc.direct)
			} else {
				a = r.ask(tc.req)
			}
			require.Equal(t, tc.drop, a.Drop, a.Why)
			if tc.want == silent {
				require.Nil(t, a.Reply)
				return
			}
			require.NotNil(t, a.Reply, a.Why)
			require.Equal(t, tc.want, a.Reply.MessageType())
			require.Equal(t, tc.yiaddr, addrOf(a.Reply.YourIPAddr))
			require.Equal(t, tc.to, a.To.String())
			require.Equal(t, ours, addrOf(a.Reply.Options[optServer]))
			require.Equal(t, tc.req.TransactionID, a.Reply.TransactionID)
			require.Equal(t, tc.req.GatewayIPAddr.To4(), a.Reply.GatewayIPAddr.To4())
			sane(t, r.view(), tc.req, a)
		})
	}
}

// sane is what holds for every reply.
func sane(t testing.TB, v *view, req *dhcpv4.DHCPv4, a Answer) {
	t.Helper()
	if a.Reply == nil {
		return
	}
	raw := a.Reply.ToBytes()
	require.LessOrEqual(t, len(raw), biggest)
	require.GreaterOrEqual(t, len(raw), 300)
	back, err := dhcpv4.FromBytes(raw)
	require.NoError(t, err)
	require.Equal(t, dhcpv4.OpcodeBootReply, back.OpCode)
	us := ours
	if stands := relayAddress(req.Options[82], subOverride); addrOf(req.GatewayIPAddr).IsValid() && unicast(stands) {
		us = stands // RFC 5107
	}
	require.Equal(t, us, addrOf(back.Options[optServer]))
	require.NotContains(t, back.Options, uint8(52), "option overload")
	require.True(t, a.To.IsValid())
	if back.Options[82] != nil || len(req.Options[82]) < 100 {
		require.Equal(t, req.Options[82], back.Options[82], "option 82 is echoed, unless it is too long")
	}
	if ip := addrOf(back.YourIPAddr); ip.IsValid() {
		sub := v.subnetOf(ip)
		require.NotNil(t, sub, "%s is in no network", ip)
		mac, _ := inventory.MACOf(req.ClientHWAddr)
		if name, reserved := v.reserved[ip]; reserved {
			m, _ := v.config.ByName(name)
			require.True(t, m.MAC == mac || m.MAC.IsZero(), "%s is reserved for %s", ip, name)
		} else {
			require.True(t, sub.pool.contains(ip), "%s is outside the pool", ip)
		}
	}
	switch back.MessageType() {
	case nakT:
		for code := range back.Options {
			require.Contains(t, []uint8{53, 54, 56, 61, 82}, code, "in a NAK")
		}
		require.Empty(t, back.BootFileName)
		require.Zero(t, addrOf(back.ServerIPAddr))
	case ackT, offerT:
		if file := back.Options[optBootfile]; file != nil {
			require.Equal(t, back.BootFileName+"\x00", string(file))
		}
	}
}

func TestNAKThroughRelayIsBroadcastThere(t *testing.T) {
	r := newRig(t, config())
	a := r.ask(request(macFar, giaddr(relay), server(ours), wants(addr(9)), option(82, 1, 2, 0xca, 0xfe), option(61, 1, 2, 3)))
	require.Equal(t, nakT, a.Reply.MessageType())
	require.True(t, a.Reply.IsBroadcast(), "the relay agent must broadcast it")
	require.Equal(t, []byte{1, 2, 0xca, 0xfe}, a.Reply.Options[82])
	require.Equal(t, []byte{1, 2, 3}, a.Reply.Options[61])
	raw := a.Reply.ToBytes()
	require.Contains(t, string(raw), "\x52\x04\x01\x02\xca\xfe\xff", "option 82 comes last")
}

func TestFlags(t *testing.T) {
	r := newRig(t, config())
	require.Equal(t, uint16(0x8000), r.ask(discover(macMaster, flags(0xffff))).Reply.Flags)
	require.Equal(t, uint16(0), r.ask(discover(macMaster, flags(0x7fff))).Reply.Flags)
}

func TestINFORMHasNoLease(t *testing.T) {
	r := newRig(t, config())
	a := r.straight(message(dhcpv4.MessageTypeInform, macMaster, ciaddr(masterIP)), "10.10.10.80:68")
	for _, code := range []uint8{51, 58, 59} {
		require.NotContains(t, a.Reply.Options, code)
	}
	require.Equal(t, masterIP, addrOf(a.Reply.ClientIPAddr))
	require.Equal(t, []byte{255, 255, 255, 0}, a.Reply.Options[optMask])
	require.Equal(t, "kmaster", string(a.Reply.Options[optHostname]))
}

func TestRELEASEFrees(t *testing.T) {
	r := newRig(t, config())
	leaseTo(macUnknown, addr(230))(r)
	r.straight(message(dhcpv4.MessageTypeRelease, macOther, ciaddr(addr(230))), "10.10.10.230:68")
	_, ok := r.rack.LeaseOf(macUnknown)
	require.True(t, ok, "another client's RELEASE frees nothing")
	r.straight(message(dhcpv4.MessageTypeRelease, macUnknown, ciaddr(addr(230))), "10.10.10.230:68")
	_, ok = r.rack.LeaseOf(macUnknown)
	require.False(t, ok)
	require.Equal(t, addr(230), addrOf(r.ask(discover(macOther, wants(addr(230)))).Reply.YourIPAddr))
}

func TestDECLINE(t *testing.T) {
	r := newRig(t, config(), func(o *Options) {
		o.Prober = used(map[netip.Addr]string{masterIP: "52:54:00:00:00:77"})
	})
	offered(macUnknown, addr(230))(r)
	r.ask(message(dhcpv4.MessageTypeDecline, macUnknown, wants(addr(230)), server(ours)))
	l, ok := r.rack.LeaseAt(addr(230))
	require.True(t, ok)
	require.Equal(t, lifecycle.LeaseQuarantined, l.State)
	require.Equal(t, r.now().Add(quarantineTime), l.Expires)
	require.NotEqual(t, addr(230), addrOf(r.ask(discover(macUnknown, wants(addr(230)))).Reply.YourIPAddr))
	require.Contains(t, r.events(macUnknown), "warn decline: DECLINE 10.10.10.230: in use by another host, kept out of the pool for 1h0m0s")

	r.ask(message(dhcpv4.MessageTypeDecline, macMaster, wants(masterIP), server(ours)))
	require.Contains(t, r.events(macMaster), "alarm decline: DECLINE 10.10.10.80: its reserved address is in use by 52:54:00:00:00:77")
	require.Equal(t, masterIP, addrOf(r.ask(discover(macMaster)).Reply.YourIPAddr), "the list stays the authority")
}

func TestEnroll(t *testing.T) {
	r := newRig(t, config(policy(inventory.UnknownEnroll)))
	a := r.ask(discover(macUnknown)) // a phone
	require.True(t, r.view().subnets[0].pool.contains(addrOf(a.Reply.YourIPAddr)))
	require.False(t, r.rack.Decide(macUnknown).Listed)

	require.Equal(t, silent, kindOf(r.ask(request(macUnknown, firmwareOf["x64"], wants(addr(7))))), "only a DISCOVER enrols")
	a = r.ask(discover(macUnknown, firmwareOf["x64"], giaddr(relay)))
	require.False(t, r.rack.Decide(macUnknown).Listed, "the free slot is on another network")
	require.Contains(t, strings.Join(r.events(macUnknown), "\n"), "not enrolled: the next free slot, slot (10.10.10.89), is not on its network 10.20.0.0/24")

	a = r.ask(discover(macUnknown, firmwareOf["x64"]))
	require.Equal(t, addr(89), addrOf(a.Reply.YourIPAddr))
	require.Equal(t, "slot", string(a.Reply.Options[optHostname]))
	require.Equal(t, "snponly.efi", a.Reply.BootFileName)

	a = r.ask(discover(macOther, firmwareOf["x64"])) // no slot is left
	require.True(t, r.view().subnets[0].pool.contains(addrOf(a.Reply.YourIPAddr)))
	require.Contains(t, r.events(macOther), "info enroll: every worker of the list has its hardware")
}

func kindOf(a Answer) dhcpv4.MessageType {
	if a.Reply == nil {
		return silent
	}
	return a.Reply.MessageType()
}

// TestApprovedLeavesPool is a machine that was discovered, got an address of the pool, and was approved.
func TestApprovedLeavesPool(t *testing.T) {
	r := newRig(t, config())
	offered(macUnknown, addr(230))(r)
	r.ask(request(macUnknown, firmwareOf["x64"], server(ours), wants(addr(230))))
	_, err := r.rack.Approve(t.Context(), macUnknown, "slot")
	require.NoError(t, err)
	require.Equal(t, nakT, kindOf(r.straight(request(macUnknown, ciaddr(addr(230))), "10.10.10.230:68")))
	require.Equal(t, addr(89), addrOf(r.ask(discover(macUnknown)).Reply.YourIPAddr))
	require.Equal(t, ackT, kindOf(r.ask(request(macUnknown, server(ours), wants(addr(89))))))
	_, leased := r.rack.LeaseOf(macUnknown)
	require.False(t, leased)
	require.Equal(t, addr(230), addrOf(r.ask(discover(macOther, wants(addr(230)))).Reply.YourIPAddr))
}

func TestPXEPort(t *testing.T) {
	for _, m := range []inventory.DHCPMode{inventory.DHCPServer, inventory.DHCPProxy} {
		r := newRig(t, config(mode(m)))
		ask := func(req *dhcpv4.DHCPv4, from string) Answer {
			return r.Handle(t.Context(), req, Arrival{Interface: 2, From: netip.MustParseAddrPort(from), To: ours, PXE: true})
		}
		a := ask(request(macMaster, firmwareOf["x64"], ciaddr(addr(7))), "10.10.10.7:4011")
		require.Equal(t, ackT, kindOf(a), "never lease logic: the address is not judged")
		require.Equal(t, "10.10.10.7:4011", a.To.String())
		require.Zero(t, addrOf(a.Reply.YourIPAddr))
		require.Equal(t, "snponly.efi", a.Reply.BootFileName)
		require.Equal(t, ours, addrOf(a.Reply.ServerIPAddr))
		require.ElementsMatch(t, []uint8{43, 53, 54, 60, 66, 67, 97}, codes(a.Reply))
		sane(t, r.view(), request(macMaster), a)

		require.Equal(t, silent, kindOf(ask(request(macMaster), "10.10.10.7:4011")), "not a boot client")
		require.Equal(t, silent, kindOf(ask(request(macMaster, firmwareOf["itanium"]), "10.10.10.7:4011")))
		require.Equal(t, silent, kindOf(ask(request(macMaster, firmwareOf["x64"]), "0.0.0.0:68")), "nobody to answer to")
		require.Equal(t, silent, kindOf(ask(message(dhcpv4.MessageTypeDecline, macMaster, firmwareOf["x64"], wants(masterIP)), "10.10.10.7:4011")))
	}
}

func TestNoLoader(t *testing.T) {
	r := newRig(t, config(), func(o *Options) { o.Boot = bootTable{"kmaster is ready: it boots its disk without a loader"} })
	a := r.ask(discover(macMaster, firmwareOf["x64"]))
	require.Equal(t, masterIP, addrOf(a.Reply.YourIPAddr))
	require.Empty(t, a.Reply.BootFileName)
	for _, code := range []uint8{43, 60, 66, 67, 97, 175} {
		require.NotContains(t, a.Reply.Options, code)
	}
	require.Equal(t, []string{"info offer: OFFER 10.10.10.80, no boot file: kmaster is ready: it boots its disk without a loader"}, r.events(macMaster))

	skip := newRig(t, config(func(c *inventory.Config) { c.Machines[0].Install.LocalBoot = inventory.LocalSkip }))
	require.NotEmpty(t, skip.ask(discover(macMaster, firmwareOf["ipxe-rom"])).Reply.BootFileName)
	_, err := skip.rack.Adopt(t.Context(), "kmaster")
	require.NoError(t, err)
	require.Empty(t, skip.ask(discover(macMaster, firmwareOf["ipxe-rom"])).Reply.BootFileName)

	long := newRig(t, config(), func(o *Options) { o.Boot = longName{} })
	require.Equal(t, 127, len(long.ask(discover(macMaster, firmwareOf["x64"])).Reply.BootFileName))
	require.Empty(t, long.ask(discover(macMaster, firmwareOf["http-x64"])).Reply.BootFileName, "cut URLs boot nothing")
	require.Contains(t, strings.Join(long.events(macMaster), "\n"), "longer than the 127 bytes")
}

type longName struct{ Boot }

func (longName) Loader(lifecycle.Decision, assets.Firmware) (string, error) {
	return strings.Repeat("x", 127), nil
}

// TestDiskBoot is the proof that an installed machine boots its disk.
func TestDiskBoot(t *testing.T) {
	r := newRig(t, config())
	r.ask(request(macMaster, wants(masterIP), firmwareOf["dhclient"]))
	seen, _ := r.rack.Sighting(macMaster)
	require.Zero(t, seen.DiskBoot, "not installed yet")
	_, err := r.rack.Adopt(t.Context(), "kmaster")
	require.NoError(t, err)

	for _, req := range []*dhcpv4.DHCPv4{
		request(macMaster, wants(masterIP), firmwareOf["x64"]),
		request(macMaster, ciaddr(masterIP), firmwareOf["dhclient"]), // the installer renews
		request(macMaster, wants(masterIP), text(60, "anaconda-Linux 3.10.0 x86_64")),
	} {
		r.clock.forward(time.Minute)
		require.Equal(t, ackT, kindOf(r.ask(req)))
		seen, _ = r.rack.Sighting(macMaster)
		require.Zero(t, seen.DiskBoot)
	}
	r.clock.forward(time.Minute)
	r.ask(request(macMaster, wants(masterIP), firmwareOf["dhclient"]))
	seen, _ = r.rack.Sighting(macMaster)
	require.Equal(t, r.now(), seen.DiskBoot)
	require.Equal(t, masterIP, seen.Address)
	require.Contains(t, strings.Join(r.events(macMaster), "\n"), "disk-boot")
}

func TestSighting(t *testing.T) {
	r := newRig(t, config())
	r.ask(discover(macUnknown, firmwareOf["x64"], giaddr(relay)))
	seen, ok := r.rack.Sighting(macUnknown)
	require.True(t, ok)
	require.Equal(t, r.now(), seen.LastBoot)
	require.Equal(t, "uefi-x64", seen.Firmware)
	require.Equal(t, "PXEClient:Arch:00007:UNDI:003000", seen.VendorClass)
	require.Equal(t, "10111213-1415-1617-1819-1a1b1c1d1e1f", seen.UUID)
	require.Equal(t, relay, seen.Relay)

	r.ask(discover(macOther, text(12, "a\x1b[31mphone\x00")))
	seen, _ = r.rack.Sighting(macOther)
	require.Zero(t, seen.LastBoot)
	require.Equal(t, "a?[31mphone", seen.Hostname)
}

// TestBootedAgain: a machine that boots again right after its kickstart was fetched lost its installation,
// even if it does so within the time in which repetitions are left out.
func TestBootedAgain(t *testing.T) {
	r := newRig(t, config())
	r.ask(discover(macMaster, firmwareOf["x64"]))
	r.clock.forward(time.Second)
	rec, _, err := r.rack.BeginInstall(t.Context(), macMaster, r.rack.Ticket(macMaster))
	require.NoError(t, err)
	require.Equal(t, 1, rec.Tries)
	r.clock.forward(time.Second)
	r.ask(discover(macMaster, firmwareOf["x64"]))
	r.clock.forward(time.Second)
	rec, _, err = r.rack.BeginInstall(t.Context(), macMaster, r.rack.Ticket(macMaster))
	require.NoError(t, err)
	require.Equal(t, 2, rec.Tries)
}

func TestRepetitionsAreOneEvent(t *testing.T) {
	r := newRig(t, config())
	for range 5 {
		r.ask(discover(macMaster, firmwareOf["x64"]))
		r.clock.forward(quietTime / 10)
	}
	require.Equal(t, []string{"info offer: OFFER 10.10.10.80, loader snponly.efi (uefi-x64)"}, r.events(macMaster))
	r.clock.forward(quietTime)
	r.ask(discover(macMaster, firmwareOf["x64"]))
	require.Len(t, r.events(macMaster), 2)
	r.ask(request(macMaster, firmwareOf["ipxe-efi"], server(addr(5)), wants(addr(7))))
	require.Contains(t, r.events(macMaster), "info silence: REQUEST: names another server 10.10.10.5: silence")
}

func TestReload(t *testing.T) {
	r := newRig(t, config())
	require.Equal(t, masterIP, addrOf(r.ask(discover(macMaster)).Reply.YourIPAddr))
	require.NoError(t, r.rack.Reload(t.Context(), config(func(c *inventory.Config) { c.Machines[0].IP = addr(83) })))
	require.Equal(t, addr(83), addrOf(r.ask(discover(macMaster)).Reply.YourIPAddr))
	require.Equal(t, nakT, kindOf(r.ask(request(macMaster, wants(masterIP)))))
}

func TestProbeOfAnotherRackstrap(t *testing.T) {
	r := newRig(t, config(policy(inventory.UnknownEnroll)))
	req, err := probeMessage(macUnknown.HardwareAddr())
	require.NoError(t, err)
	a := r.ask(req)
	require.Equal(t, offerT, kindOf(a))
	require.Zero(t, addrOf(a.Reply.YourIPAddr))
	slot, _ := r.rack.MACByIP(addr(89))
	require.True(t, slot.IsZero(), "no slot for a machine that does not exist")
}

func codes(m *dhcpv4.DHCPv4) (all []uint8) {
	for code := range m.Options {
		all = append(all, code)
	}
	return all
}
