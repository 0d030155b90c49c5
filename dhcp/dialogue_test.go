package dhcp

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/stretchr/testify/require"
)

// exchange sends a message as a client without an address would, and collects the replies until there are as
// many as expected, or none comes any more.
func (n *network) exchange(t *testing.T, port int, req *dhcpv4.DHCPv4, to netip.AddrPort, expect int) (replies []*dhcpv4.DHCPv4) {
	t.Helper()
	require.NoError(t, n.inside("cli", func() error {
		conn, err := bind("eth0", port)
		if err != nil {
			return err
		}
		defer conn.Close()
		if _, err := conn.WriteToUDPAddrPort(req.ToBytes(), to); err != nil {
			return err
		}
		conn.SetReadDeadline(time.Now().Add(4 * time.Second))
		buf := make([]byte, maxPacket)
		for len(replies) < expect {
			size, _, err := conn.ReadFromUDPAddrPort(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return nil
			}
			if err != nil {
				return err
			}
			m, err := dhcpv4.FromBytes(buf[:size])
			if err != nil {
				return err
			}
			if m.TransactionID == req.TransactionID && m.OpCode == dhcpv4.OpcodeBootReply {
				replies = append(replies, m)
			}
		}
		return nil
	}))
	return replies
}

var everybody = netip.AddrPortFrom(broadcast, portServer)

// proxyBesideDnsmasq: the address comes from another server, what to boot from us, in the OFFER and again at
// the PXE port.
func proxyBesideDnsmasq(t *testing.T, n *network) {
	n.serve(t, "proxy")
	n.batch("occ", "address add 10.10.10.5/24 dev eth0\n")
	defer n.batch("occ", "address del 10.10.10.5/24 dev eth0\n")
	stop := n.dnsmasq(t, "occ", "--dhcp-range=10.10.10.150,10.10.10.160,1h")
	defer stop()
	n.mac("cli", macMaster)

	replies := n.exchange(t, portClient, discover(macMaster, firmwareOf["x64"], flags(broadcastFlag)), everybody, 2)
	require.Len(t, replies, 2)
	slices.SortFunc(replies, func(a, b *dhcpv4.DHCPv4) int {
		return addrOf(a.Options[optServer]).Compare(addrOf(b.Options[optServer]))
	})
	we, they := replies[0], replies[1]
	require.Zero(t, addrOf(we.YourIPAddr))
	require.Equal(t, "snponly.efi", we.BootFileName)
	require.Equal(t, "PXEClient", string(we.Options[optClass]))
	require.Equal(t, vendorPXE, we.Options[optVendor])
	require.True(t, addrOf(they.YourIPAddr).IsValid())

	ip := addrOf(they.YourIPAddr)
	n.batch("cli", fmt.Sprintf("address add %s/24 dev eth0\n", ip))
	replies = n.exchange(t, portPXE, request(macMaster, firmwareOf["x64"], ciaddr(ip)), netip.AddrPortFrom(ours, portPXE), 1)
	require.Len(t, replies, 1)
	require.Equal(t, ackT, replies[0].MessageType())
	require.Equal(t, "snponly.efi", replies[0].BootFileName)
	require.Zero(t, addrOf(replies[0].YourIPAddr))
}

// allowed are the fields and options in which our reply differs from that of dnsmasq configured alike, for
// whom, and why.
var allowed = []struct{ field, clients, why string }{
	{"file", "bios x64 http-x64", "dnsmasq leaves the field empty when option 67 was asked for; shim and GRUB read only the field"},
	{"sname", "bios x64 http-x64", "the same with option 66"},
	{"siaddr", "dhclient", "dnsmasq names itself to everybody; we only to those who boot"},
	{"12", "dhclient", "dnsmasq leaves a client its own name; we tell the one in the list, which Kubernetes needs"},
	{"43", "bios x64", "dnsmasq adds nothing to dhcp-boot; with option 60 alone edk2 would ask the PXE port and end with PXE-E16"},
	{"60", "bios x64", "dnsmasq leaves it out; PXE 2.1 section 2.2.1 has it in every offer that boots"},
	{"66", "bios x64 http-x64", "dnsmasq ends it with a NUL; RFC 2132 section 2 says that texts should not"},
	{"97", "bios x64 http-x64", "echoed, as PXE 2.1 section 2.2.1 demands; dnsmasq does so with pxe-service only"},
}

// dnsmasqOpinion sends the same DISCOVER to us and to dnsmasq, and compares the replies.
func dnsmasqOpinion(t *testing.T, n *network) {
	messages := map[string]*dhcpv4.DHCPv4{}
	for _, name := range []string{"dhclient", "bios", "x64", "http-x64"} {
		messages[name] = discover(macMaster, firmwareOf[name], flags(broadcastFlag))
	}
	n.mac("cli", macMaster)
	ask := func() map[string]*dhcpv4.DHCPv4 {
		answers := map[string]*dhcpv4.DHCPv4{}
		for name, m := range messages {
			replies := n.exchange(t, portClient, m, everybody, 1)
			require.Len(t, replies, 1, name)
			answers[name] = replies[0]
		}
		return answers
	}
	d := n.serve(t, "plain")
	we := ask()
	d.stop()
	stop := n.dnsmasq(t, "srv", "--dhcp-authoritative", "--dhcp-range=10.10.10.200,10.10.10.250,12h", "--domain=rack.lab",
		"--dhcp-host=52:54:00:00:00:80,10.10.10.80,kmaster", "--dhcp-option=3,10.10.10.121", "--dhcp-option=6,8.8.4.4", "--dhcp-option=42,10.10.10.2",
		"--dhcp-match=set:bios,option:client-arch,0", "--dhcp-boot=tag:bios,undionly.kpxe,10.10.10.1,10.10.10.1",
		"--dhcp-match=set:x64,option:client-arch,7", "--dhcp-boot=tag:x64,snponly.efi,10.10.10.1,10.10.10.1",
		"--dhcp-match=set:http,option:client-arch,16", "--dhcp-boot=tag:http,http://10.10.10.1:8080/loader/snponly.efi,10.10.10.1,10.10.10.1",
		"--dhcp-option-force=tag:http,60,HTTPClient")
	defer stop()
	they := ask()

	var expected, seen []string
	for _, a := range allowed {
		for client := range strings.FieldsSeq(a.clients) {
			expected = append(expected, client+" "+a.field)
		}
	}
	for name := range messages {
		for _, d := range differences(we[name], they[name]) {
			t.Logf("%s: %s: ours %s, dnsmasq's %s", name, d.field, d.ours, d.theirs)
			seen = append(seen, name+" "+d.field)
		}
	}
	require.ElementsMatch(t, expected, seen)
}

type difference struct{ field, ours, theirs string }

func differences(a, b *dhcpv4.DHCPv4) (all []difference) {
	compare := func(field, x, y string) {
		if x != y {
			all = append(all, difference{field, x, y})
		}
	}
	ip := func(ip net.IP) string { return addrOf(ip).String() }
	compare("flags", fmt.Sprint(a.Flags), fmt.Sprint(b.Flags))
	compare("yiaddr", ip(a.YourIPAddr), ip(b.YourIPAddr))
	compare("ciaddr", ip(a.ClientIPAddr), ip(b.ClientIPAddr))
	compare("siaddr", ip(a.ServerIPAddr), ip(b.ServerIPAddr))
	compare("giaddr", ip(a.GatewayIPAddr), ip(b.GatewayIPAddr))
	compare("sname", a.ServerHostName, b.ServerHostName)
	compare("file", a.BootFileName, b.BootFileName)
	all2 := maps.Clone(a.Options)
	maps.Copy(all2, b.Options)
	for _, code := range slices.Sorted(maps.Keys(all2)) {
		compare(fmt.Sprint(code), show(a.Options, code), show(b.Options, code))
	}
	return all
}

func show(o dhcpv4.Options, code uint8) string {
	value, ok := o[code]
	if !ok {
		return "-"
	}
	return fmt.Sprintf("%x", value)
}
