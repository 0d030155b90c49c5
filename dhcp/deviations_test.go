package dhcp

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"rackstrap/inventory"
)

// TestDeviations: each row of the table is met, is counted, and gets the offer that the request without it gets.
func TestDeviations(t *testing.T) {
	x64 := firmwareOf["x64"]
	overloaded := func(field int, code ...byte) []byte {
		return spoilt(raw(option(optOverload, 3)), field, append(code, optEnd)...)
	}
	cases := map[string][][]byte{
		"no end option, or an option that is cut off": {
			bytes.TrimRight(raw(), "\xff\x00"), append(raw()[:offOptions+3], 50, 4, 10, 10), append(raw()[:offOptions+3], 12)},
		"hardware address length": {
			spoilt(raw(), offHLen, 0), spoilt(raw(), offHLen, 16), spoilt(raw(), offHType, 6, 16)},
		"option overload": {
			overloaded(offFile, 12, 1, 'a'), overloaded(offSname, 50, 4, 10, 10, 10, 80), overloaded(offFile, optOverload, 1, 3)},
		"message type longer than a byte":           {append(raw()[:offOptions], 53, 2, 1, 0, 255), append(raw()[:offOptions], 53, 1, 1, 53, 1, 3, 255)},
		"requested address longer than an address":  {raw(option(50, 10, 10, 10, 80, 0)), append(raw()[:offOptions+3], 50, 4, 10, 10, 10, 80, 50, 4, 10, 10, 10, 99, 255)},
		"server identifier longer than an address":  {raw(option(54, 10, 10, 10, 1, 0))},
		"requested address shorter than an address": {raw(option(50, 10, 10)), raw(option(50))},
		"server identifier shorter than an address": {raw(option(54, 10, 10, 10)), raw(option(54))},
		"architecture in the vendor class alone":    {raw(text(60, "PXEClient:Arch:00007:UNDI:003016")), raw(text(60, "PXEClient:Arch:00007:UNDI:003016"), option(93, 7))},
	}
	require.Len(t, cases, len(deviations))
	for _, d := range deviations {
		require.NotEmpty(t, cases[d.name], d.name)
		for _, data := range cases[d.name] {
			r := newRig(t, config())
			a := r.datagram(data)
			require.NotNil(t, a.Reply, "%s: %s", d.name, a.Why)
			require.Equal(t, dhcpv4.MessageTypeOffer, a.Reply.MessageType(), d.name)
			require.Equal(t, masterIP, addrOf(a.Reply.YourIPAddr), d.name)
			require.Len(t, a.Reply.ClientHWAddr, 6)
			require.EqualValues(t, 1, testutil.ToFloat64(r.metrics.deviated.WithLabelValues(d.name)), d.name)
			mended, found := tolerate(data)
			require.Contains(t, found, d.name)
			again, found := tolerate(mended)
			require.Empty(t, found, d.name)
			require.Equal(t, mended, again)
		}
	}
	r := newRig(t, config())
	a := r.datagram(cases["architecture in the vendor class alone"][0])
	require.Equal(t, "snponly.efi", a.Reply.BootFileName)
	for _, sound := range [][]byte{raw(), raw(x64), raw(x64, option(57, 5, 192)), raw(text(60, "PXEClient")), raw(option(77, 200, 'i'))} {
		mended, found := tolerate(sound)
		require.Empty(t, found)
		require.Equal(t, sound, mended)
	}
}

// What stood in the fields is read: the address that the client wants, and its class.
func TestOverloadedOptionsAreRead(t *testing.T) {
	data := raw(option(optOverload, 3))
	copy(data[offFile:], []byte{60, 9, 'P', 'X', 'E', 'C', 'l', 'i', 'e', 'n', 't', optPad, optEnd, 99})
	copy(data[offSname:], []byte{93, 2, 0, 7, optEnd})
	r := newRig(t, config())
	require.Equal(t, "snponly.efi", r.datagram(data).Reply.BootFileName)
}

// What is not an address of six octets stays refused, and is named in the events of the rack.
func TestForeignHardwareIsNamed(t *testing.T) {
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"InfiniBand": {spoilt(spoilt(raw(), offHType, 32, 0), offChaddr, 0, 0, 0, 0, 0, 0),
			"a client with hardware type 32 (Infiniband) asks for an address: only Ethernet is served: let the machine boot by an Ethernet port, or switch the port's link type to Ethernet"},
		"Fibre Channel": {spoilt(raw(), offHType, 18, 8), "a client with hardware type 18 (Fibre Channel) asks for an address: only Ethernet is served"},
	} {
		r := newRig(t, config())
		for range 20 {
			require.Equal(t, DropMalformed, r.datagram(c.data).Drop, name)
		}
		events := r.events(inventory.MAC{})
		require.Len(t, events, 1, name)
		require.Regexp(t, `^warn hardware-\d+: `, events[0])
		require.True(t, strings.HasSuffix(events[0], ": "+c.want), events[0])
	}
}

// BOOTP and unknown architectures are named where the machine's own events are.
func TestWhatIsNotServedIsNamed(t *testing.T) {
	for _, c := range []struct {
		data []byte
		want string
	}{
		{raw(func(m *dhcpv4.DHCPv4) { delete(m.Options, optType) }), "asks by BOOTP, without a DHCP message type: not served"},
		{raw(text(60, "PXEClient"), option(93, 0, 27)), "OFFER 10.10.10.80, no boot file: no loader is known for architecture 27 (EFI RISC-V 64-bit)"},
		{raw(text(60, "HTTPClient"), option(93, 0, 28)), "OFFER 10.10.10.80, no boot file: no loader is known for HTTP Boot of architecture 28 (EFI RISC-V 64-bit boot from HTTP)"},
		{raw(text(60, "PXEClient"), option(93, 255, 1)), "OFFER 10.10.10.80, no boot file: no loader is known for architecture 65281 (unknown)"},
		{raw(text(60, "HTTPClient")), "OFFER 10.10.10.80, no boot file: no loader is known for a client that names no architecture (option 93)"},
	} {
		r := newRig(t, config())
		r.datagram(c.data)
		events := r.events(macMaster)
		require.NotEmpty(t, events, c.want)
		require.Regexp(t, "^warn ", events[len(events)-1])
		require.True(t, strings.HasSuffix(events[len(events)-1], ": "+c.want), events)
	}
}

// A request that chooses us and names no address means the one that it was offered.
func TestRequestWithoutAnAddress(t *testing.T) {
	r := newRig(t, config())
	a := r.ask(request(macMaster, option(54, 10, 10, 10, 1)))
	require.Equal(t, dhcpv4.MessageTypeAck, a.Reply.MessageType())
	require.Equal(t, masterIP, addrOf(a.Reply.YourIPAddr))
	require.Equal(t, dhcpv4.MessageTypeNak, r.ask(request(macUnknown, option(54, 10, 10, 10, 1))).Reply.MessageType(), "it was offered nothing")
}

// An INFORM whose ciaddr is empty is answered where it came from.
func TestInformFromItsAddress(t *testing.T) {
	r := newRig(t, config())
	inform := message(dhcpv4.MessageTypeInform, macMaster)
	a := r.Handle(t.Context(), inform, Arrival{Interface: 2, From: netip.MustParseAddrPort("10.10.10.80:68"), To: broadcast})
	require.NotNil(t, a.Reply, a.Why)
	require.Equal(t, "10.10.10.80:68", a.To.String())
	require.Equal(t, masterIP, addrOf(a.Reply.ClientIPAddr))
}

// RFC 5107: the relay agent stands for the server towards the client, so that renewals pass through it.
func TestServerIdentifierOverride(t *testing.T) {
	stand := netip.MustParseAddr("10.20.0.254")
	override := option(82, 1, 2, 'e', '1', subOverride, 4, 10, 20, 0, 254)
	r := newRig(t, config())
	offer := r.ask(discover(macFar, giaddr(relay), override))
	require.Equal(t, stand, addrOf(offer.Reply.Options.Get(dhcpv4.OptionServerIdentifier)))
	ack := r.ask(request(macFar, giaddr(relay), override, option(54, 10, 20, 0, 254), option(50, 10, 20, 0, 50)))
	require.Equal(t, dhcpv4.MessageTypeAck, ack.Reply.MessageType(), ack.Why)
	require.Equal(t, stand, addrOf(ack.Reply.Options.Get(dhcpv4.OptionServerIdentifier)))
	require.Equal(t, DropOtherServer, r.ask(request(macFar, giaddr(relay), option(54, 10, 20, 0, 254), option(50, 10, 20, 0, 50))).Drop,
		"without the sub-option it is another server")
	for name, bad := range map[string]edit{
		"not of an address": option(82, subOverride, 3, 10, 20, 0),
		"of a group":        option(82, subOverride, 4, 224, 0, 0, 1),
		"without a relay":   override,
	} {
		edits := []edit{bad}
		if name != "without a relay" {
			edits = append(edits, giaddr(relay))
		}
		a := r.ask(discover(macFar, edits...))
		if a.Reply != nil {
			require.Equal(t, ours, addrOf(a.Reply.Options.Get(dhcpv4.OptionServerIdentifier)), name)
		}
	}
}

// RFC 3046 section 2.2: an option 82 that does not fit is left out, and the client is answered.
func TestRelayInformationThatDoesNotFit(t *testing.T) {
	for _, n := range []int{400, 500, 1300} {
		r := newRig(t, config())
		a := r.ask(discover(macMaster, firmwareOf["x64"], option(57, 2, 64), option(82, make([]byte, n)...)))
		require.NotNil(t, a.Reply, a.Why)
		require.False(t, a.Reply.Options.Has(dhcpv4.OptionRelayAgentInformation))
		require.True(t, a.Reply.Options.Has(dhcpv4.OptionDomainName), "there is place for the rest now")
		require.Equal(t, "snponly.efi", a.Reply.BootFileName)
		require.LessOrEqual(t, len(a.Reply.ToBytes()), smallest-headers)
		require.EqualValues(t, 1, testutil.ToFloat64(r.metrics.deviated.WithLabelValues("relay information does not fit")))
	}
	r := newRig(t, config())
	require.Contains(t, r.ask(discover(macMaster, firmwareOf["x64"], option(82, make([]byte, 40)...))).Reply.Options, uint8(optRelay))
}

func FuzzTolerate(f *testing.F) {
	for _, p := range malformedPackets {
		f.Add(p.data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		before := bytes.Clone(data)
		mended, found := tolerate(data)
		require.Equal(t, before, data, "the packet itself stays as it is")
		if len(found) == 0 {
			require.Equal(t, data, mended)
			return
		}
		if again, more := tolerate(mended); len(more) > 0 {
			t.Fatalf("mended once more: %q of %x and %x", more, mended, again)
		}
	})
}
