package dhcp

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/stretchr/testify/require"

	"rackstrap/inventory"
)

// raw is a DISCOVER as bytes, to be spoilt.
func raw(edits ...edit) []byte { return discover(macMaster, edits...).ToBytes() }

func spoilt(b []byte, at int, with ...byte) []byte {
	b = bytes.Clone(b)
	copy(b[at:], with)
	return b
}

// atOp is where a BOOTP header has its operation (RFC 951).
const atOp = 0

// malformedPackets is what a hostile or broken client may send, with what it gets.
var malformedPackets = map[string]struct {
	data []byte
	drop Drop
}{
	"empty":                 {nil, DropMalformed},
	"one byte":              {[]byte{1}, DropMalformed},
	"header cut":            {raw()[:200], DropMalformed},
	"no options":            {raw()[:offOptions], DropMalformed},
	"no end option":         {raw()[:offOptions+3], ""},
	"option cut":            {append(raw()[:offOptions+3], 50, 4, 10, 10), ""},
	"option's length cut":   {append(raw()[:offOptions+3], 50), ""},
	"wrong cookie":          {spoilt(raw(), offCookie, 1, 2, 3, 4), DropMalformed},
	"a reply":               {spoilt(raw(), atOp, 2), DropReply},
	"op 0":                  {spoilt(raw(), atOp, 0), DropReply},
	"IEEE 802":              {spoilt(raw(), offHType, 6), ""},
	"token ring":            {spoilt(raw(), offHType, 4), DropMalformed},
	"InfiniBand":            {spoilt(raw(), offHType, 32, 20), DropMalformed},
	"hlen 0":                {spoilt(raw(), offHLen, 0), ""},
	"hlen 16":               {spoilt(raw(), offHLen, 16), ""},
	"hlen 255":              {spoilt(raw(), offHLen, 255), DropMalformed},
	"MAC zero":              {spoilt(raw(), offChaddr, 0, 0, 0, 0, 0, 0), DropMalformed},
	"MAC of a group":        {spoilt(raw(), offChaddr, 1, 0, 0x5e, 0, 0, 1), DropMalformed},
	"MAC broadcast":         {spoilt(raw(), offChaddr, 255, 255, 255, 255, 255, 255), DropMalformed},
	"giaddr broadcast":      {spoilt(raw(), offGiaddr, 255, 255, 255, 255), DropMalformed},
	"giaddr loopback":       {spoilt(raw(), offGiaddr, 127, 0, 0, 1), DropMalformed},
	"giaddr multicast":      {spoilt(raw(), offGiaddr, 224, 0, 0, 1), DropMalformed},
	"giaddr in net 0":       {spoilt(raw(), offGiaddr, 0, 0, 0, 1), DropMalformed},
	"giaddr ourselves":      {spoilt(raw(), offGiaddr, 10, 10, 10, 1), DropMalformed},
	"giaddr of nowhere":     {spoilt(raw(), offGiaddr, 192, 0, 2, 1), DropNetwork},
	"BOOTP":                 {raw(func(m *dhcpv4.DHCPv4) { delete(m.Options, optType) }), DropMalformed},
	"type empty":            {raw(option(optType)), DropMalformed},
	"type of two bytes":     {raw(option(optType, 1, 1)), ""},
	"type 0":                {raw(option(optType, 0)), DropMalformed},
	"type 255":              {raw(option(optType, 255)), DropMalformed},
	"type twice":            {append(raw()[:offOptions], 53, 1, 1, 53, 1, 1, 255), ""}, // RFC 3396 joins them
	"requested: 3 bytes":    {raw(option(50, 10, 10, 10)), ""},
	"server id: 5 bytes":    {raw(option(54, 1, 2, 3, 4, 5)), ""},
	"overload without data": {raw(option(52, 3)), ""},
	"options in a loop":     {append(raw()[:offOptions], append(bytes.Repeat([]byte{52, 1, 3}, 300), 53, 1, 1, 255)...), ""},
	"thousand pads":         {append(append(raw()[:offOptions], make([]byte, 1000)...), 53, 1, 1, 255), ""},
	"client id of 1400":     {raw(option(61, make([]byte, 1400)...)), DropTooBig},
	"relay info of 1300":    {raw(option(82, make([]byte, 1300)...)), ""},
	"relay info broken":     {raw(option(82, 5, 200, 1), giaddr(relay)), DropNetwork},
	"link selection broken": {raw(option(82, 5, 3, 1, 2, 3), giaddr(relay)), DropNetwork},
	"user class broken":     {raw(option(77, 200, 'i', 'P', 'X', 'E')), ""},
	"arch of one byte":      {raw(text(60, "PXEClient"), option(93, 7)), ""},
	"size 0":                {raw(option(57, 0, 0), firmwareOf["bios"]), ""},
	"size of one byte":      {raw(option(57, 1)), ""},
	"all options asked":     {raw(option(55, make([]byte, 255)...)), ""},
}

func TestMalformed(t *testing.T) {
	r := newRig(t, config())
	for name, tc := range malformedPackets {
		t.Run(name, func(t *testing.T) {
			a := r.datagram(tc.data)
			require.Equal(t, tc.drop, a.Drop, a.Why)
			if tc.drop == "" {
				require.NotNil(t, a.Reply)
				require.Equal(t, masterIP, addrOf(a.Reply.YourIPAddr))
			}
		})
	}
	require.Equal(t, DropTruncated, r.answer(t.Context(), &packet{cut: true}).Drop)
	r.ifindex = 7
	require.Equal(t, DropInterface, r.answer(t.Context(), &packet{via: Arrival{Interface: 3}}).Drop)
}

// datagram is what a packet gets that came by broadcast.
func (r *rig) datagram(data []byte) Answer {
	p := &packet{data: data, via: Arrival{Interface: 2, From: netip.MustParseAddrPort("0.0.0.0:68"), To: broadcast}}
	return r.answer(context.Background(), p)
}

// TestSize: what the client does not take is left out, the necessary last.
func TestSize(t *testing.T) {
	r := newRig(t, config(func(c *inventory.Config) { c.Network.Domain = strings.Repeat("d", 200) }))
	small := r.ask(discover(macMaster, firmwareOf["x64"], option(57, 2, 64), option(82, make([]byte, 80)...)))
	require.LessOrEqual(t, len(small.Reply.ToBytes()), smallest-headers)
	require.NotContains(t, small.Reply.Options, uint8(optDomain))
	for _, code := range []uint8{optMask, optRouter, optDNS, optLease, optServer, optClass, optVendor, optBootfile, optRelay} {
		require.Contains(t, small.Reply.Options, code)
	}
	large := r.ask(discover(macMaster, firmwareOf["x64"], option(57, 0xff, 0), option(82, make([]byte, 80)...)))
	require.Contains(t, large.Reply.Options, uint8(optDomain))
	none := r.ask(discover(macMaster, text(60, "PXEClient"), option(82, make([]byte, 80)...)))
	require.LessOrEqual(t, len(none.Reply.ToBytes()), smallest-headers, "no option 57")
}

func TestSizeOf(t *testing.T) {
	for _, n := range []int{0, 1, 254, 255, 256, 510, 511} {
		m := discover(macMaster, option(82, make([]byte, n)...))
		before := discover(macMaster)
		padded := make([]byte, 255) // over BOOTP's 300 bytes in both
		m.Options[99], before.Options[99] = padded, padded
		require.Equal(t, len(m.ToBytes())-len(before.ToBytes()), sizeOf(m.Options[82]), n)
	}
}

// FuzzHandle: no bytes make the server panic, or answer with what it must not.
func FuzzHandle(f *testing.F) {
	for _, tc := range malformedPackets {
		f.Add(tc.data, false)
	}
	for _, firmware := range firmwareOf {
		f.Add(discover(macMaster, firmware).ToBytes(), false)
		f.Add(request(macUnknown, firmware, server(ours), wants(addr(230))).ToBytes(), false)
		f.Add(request(macMaster, firmware).ToBytes(), true)
	}
	for _, kind := range []dhcpv4.MessageType{4, 7, 8} {
		f.Add(message(kind, macUnknown, wants(addr(230)), ciaddr(addr(230))).ToBytes(), false)
	}
	f.Add(request(macUnknown, giaddr(relay), wants(netip.MustParseAddr("10.20.0.105"))).ToBytes(), false)
	r := newRig(f, config())
	f.Fuzz(func(t *testing.T, data []byte, pxe bool) {
		data = data[:min(len(data), maxPacket)]
		p := &packet{data: data, via: Arrival{Interface: 2, From: netip.MustParseAddrPort("10.10.10.7:68"), To: ours, PXE: pxe}}
		peek(data)
		r.clock.forward(time.Second) // else the pool runs out, and nothing more happens
		a := r.answer(t.Context(), p)
		if a.Reply == nil {
			return
		}
		mended, _ := tolerate(data)
		req, err := dhcpv4.FromBytes(mended)
		require.NoError(t, err)
		if req.Options[82] != nil && len(req.Options[82]) == 0 {
			delete(req.Options, 82)
		}
		sane(t, r.view(), req, a)
		require.LessOrEqual(t, len(a.Reply.ToBytes()), max(300, sizeLimit(req.Options[57])))
	})
}

// FuzzReadOffer: the look for other servers reads any frame of the network.
func FuzzReadOffer(f *testing.F) {
	nic := net.HardwareAddr(macMaster[:])
	discover, err := probeMessage(nic)
	require.NoError(f, err)
	offer := *discover
	offer.OpCode, offer.Options = dhcpv4.OpcodeBootReply, dhcpv4.Options{53: {2}, 54: {10, 0, 0, 1}, 67: []byte("x\x00")}
	frame := frameOf(nic, offer.ToBytes())
	binary.BigEndian.PutUint16(frame[36:], portClient)
	f.Add(frame)
	f.Add(frame[:50])
	f.Fuzz(func(t *testing.T, frame []byte) {
		if found, ok := readOffer(frame, discover); ok {
			require.NotEmpty(t, found.String())
		}
	})
	found, ok := readOffer(frame, discover)
	require.True(f, ok)
	require.Equal(f, "10.0.0.1", found.ServerID.String())
}

// FuzzScout: so do ARP and ICMP.
func FuzzScout(f *testing.F) {
	s := &scout{}
	f.Add(make([]byte, 60))
	f.Fuzz(func(t *testing.T, data []byte) {
		s.heardARP(data)
		s.heardICMP(data)
	})
}

// TestSizeLimit: option 57 counts the headers of IP and UDP, and edk2's 0xff00 is not to be believed.
func TestSizeLimit(t *testing.T) {
	for _, tc := range []struct {
		option []byte
		want   int
	}{
		{nil, 548}, {[]byte{2, 64}, 548}, {[]byte{0, 1}, 548}, {[]byte{4, 0}, 996}, {[]byte{5, 192}, 1444},
		{[]byte{0xff, 0}, 1444}, {[]byte{9}, 548},
	} {
		require.Equal(t, tc.want, sizeLimit(tc.option), "%x", tc.option)
	}
}
