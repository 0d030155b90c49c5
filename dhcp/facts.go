package dhcp

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net/netip"
	"strings"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"rackstrap/assets"
	"rackstrap/internal/plain"
	"rackstrap/inventory"
)

// Arrival is how a packet came in.
type Arrival struct {
	Interface int            // index of the NIC; 0: not known
	From      netip.AddrPort // of the sender
	To        netip.Addr     // destination: our address, or a broadcast address
	PXE       bool           // at the PXE port (4011), not at the server port (67)
}

// role is what kind of client asks. Boot clients are those that want to be told what to boot.
type role int

const (
	plainClient role = iota // an operating system's DHCP client: dhclient, NetworkManager, a phone
	pxeClient               // firmware that loads by TFTP (option 60 PXEClient)
	httpClient              // firmware that loads by HTTP (option 60 HTTPClient, UEFI 2.8 section 24.7)
	ipxeClient              // iPXE, whatever it was started by: it takes the URL of a script
)

// userClassOurs is the user class that our own iPXE scripts set before they ask again. It breaks the loop in
// which iPXE would load iPXE for ever, where a build of iPXE does not name itself.
const userClassOurs = "rackstrap"

// userClassProbe marks the DISCOVER of another Rackstrap that looks for foreign servers: it gets a reply,
// but no address and no slot of the list.
const userClassProbe = "rackstrap-probe"

// facts is what one packet says, read once.
type facts struct {
	req *dhcpv4.DHCPv4
	via Arrival

	kind   dhcpv4.MessageType
	mac    inventory.MAC
	ciaddr netip.Addr // zero Addr where the field is 0.0.0.0, as with all addresses here
	giaddr netip.Addr
	link   netip.Addr // RFC 3527 link selection, of a relay agent
	stands netip.Addr // RFC 5107 server identifier override: the relay agent that stands for us towards the client
	wants  netip.Addr // option 50
	server netip.Addr // option 54

	role        role
	firmware    assets.Firmware // valid for boot clients
	probe       bool            // another Rackstrap looks for servers
	vendorClass string          // option 60, printable
	hostname    string          // option 12, printable
	machineID   []byte          // option 97, to be echoed
	limit       int             // bytes that a reply may have
	asked       [256]bool       // option 55
	askedAny    bool            // option 55 was there
}

// Reasons to drop a packet without a reply and without a word to the operator; see metrics.
var (
	errNotRequest = errors.New("not a BOOTREQUEST")
	errHardware   = errors.New("hardware address is not Ethernet's six octets of one station")
	errForeignNIC = errors.New("hardware is not Ethernet")
	errNoType     = errors.New("no DHCP message type: BOOTP is not served")
	errOption     = errors.New("an option has a length that its RFC does not allow")
	errRelay      = errors.New("giaddr is no address of a relay agent")
)

// gather reads a packet. Its errors are the ones above.
func gather(req *dhcpv4.DHCPv4, via Arrival) (*facts, error) {
	f := &facts{req: req, via: via, kind: req.MessageType()}
	var ok bool
	switch {
	case req.OpCode != dhcpv4.OpcodeBootRequest:
		return f, errNotRequest
	case !ethernetLike(byte(req.HWType)):
		return f, errForeignNIC
	}
	// A group address (bit 0 of the first octet) is nobody's own: no reservation, no lease.
	if f.mac, ok = inventory.MACOf(req.ClientHWAddr); !ok || f.mac.IsZero() || f.mac[0]&1 != 0 {
		return f, errHardware
	}
	if f.kind == dhcpv4.MessageTypeNone {
		return f, errNoType
	}
	f.ciaddr, f.giaddr = addrOf(req.ClientIPAddr), addrOf(req.GatewayIPAddr)
	for _, o := range []struct {
		code dhcpv4.OptionCode
		into *netip.Addr
	}{
		{dhcpv4.OptionRequestedIPAddress, &f.wants},
		{dhcpv4.OptionServerIdentifier, &f.server},
	} {
		if raw := req.Options.Get(o.code); raw != nil {
			if len(raw) != 4 {
				return f, errOption
			}
			*o.into = addrOf(raw)
		}
	}
	if f.giaddr.IsValid() && !unicast(f.giaddr) {
		return f, errRelay
	}
	if raw := req.Options.Get(dhcpv4.OptionRelayAgentInformation); raw != nil && f.giaddr.IsValid() {
		f.link = relayAddress(raw, subLink)
		if f.stands = relayAddress(raw, subOverride); !unicast(f.stands) {
			f.stands = netip.Addr{}
		}
	}
	f.readIdentity()
	f.limit = sizeLimit(req.Options.Get(dhcpv4.OptionMaximumDHCPMessageSize))
	if list := req.Options.Get(dhcpv4.OptionParameterRequestList); list != nil {
		f.askedAny = true
		for _, code := range list {
			f.asked[code] = true
		}
	}
	return f, nil
}

// readIdentity tells the roles apart. The user class counts before all: iPXE, once it runs, comes as
// PXEClient or HTTPClient of the firmware's architecture, and would otherwise be told to load iPXE.
func (f *facts) readIdentity() {
	opts := f.req.Options
	class := opts.Get(dhcpv4.OptionClassIdentifier)
	f.vendorClass = printable(class)
	f.hostname = printable(opts.Get(dhcpv4.OptionHostName))
	if id := opts.Get(dhcpv4.OptionClientMachineIdentifier); len(id) > 0 && len(id) <= 32 {
		f.machineID = id // 1 + 16 bytes by RFC 4578; some ROMs deviate, and want their own back
	}
	http := strings.HasPrefix(f.vendorClass, "HTTPClient")
	f.firmware = f.readFirmware(http)

	userClass := opts.Get(dhcpv4.OptionUserClassInformation)
	switch {
	case hasUserClass(userClass, userClassProbe):
		f.probe = true
	case hasUserClass(userClass, "iPXE"), hasUserClass(userClass, userClassOurs):
		f.role = ipxeClient
	case userClass == nil && opts.Has(dhcpv4.OptionEtherboot):
		f.role = ipxeClient // FlexBoot of Mellanox: iPXE without its user class
	case http:
		f.role = httpClient
	case strings.HasPrefix(f.vendorClass, "PXEClient"):
		f.role = pxeClient
	}
}

func (f *facts) readFirmware(http bool) assets.Firmware {
	raw := f.req.Options.Get(dhcpv4.OptionClientSystemArchitectureType)
	var archs []uint16
	for i := 0; i+1 < len(raw); i += 2 {
		archs = append(archs, uint16(raw[i])<<8|uint16(raw[i+1]))
	}
	// A Raspberry Pi 4's boot ROM says architecture 0, and is known by its identifier, which begins with the
	// characters of its model.
	if len(f.machineID) == 17 && string(f.machineID[1:4]) == "RPi" {
		return assets.RaspberryPi
	}
	return assets.FirmwareOf(archs, http)
}

// boots tells whether the client wants to be told what to boot.
func (f *facts) boots() bool { return f.role != plainClient }

// hasUserClass reads option 77 as it is seen: raw text (iPXE), or RFC 3004's list of texts, each behind
// its length.
func hasUserClass(raw []byte, class string) bool {
	if string(raw) == class {
		return true
	}
	for len(raw) > 0 {
		n := int(raw[0])
		if n == 0 || n > len(raw)-1 {
			return false
		}
		if string(raw[1:1+n]) == class {
			return true
		}
		raw = raw[1+n:]
	}
	return false
}

// Sub-options of option 82 that are addresses.
const (
	subLink     = 5  // RFC 3527: the network of the client, where the relay agent's giaddr is on another one
	subOverride = 11 // RFC 5107: what replies name as server identifier, so that renewals go through the relay agent
)

// relayAddress reads an address out of option 82. The zero Addr: not there, or not readable.
func relayAddress(raw []byte, code byte) netip.Addr {
	for len(raw) >= 2 {
		n := int(raw[1])
		if len(raw) < 2+n {
			break
		}
		if raw[0] == code && n == 4 {
			return addrOf(raw[2:6])
		}
		raw = raw[2+n:]
	}
	return netip.Addr{}
}

// Sizes of a DHCP message, without the headers of UDP and IP.
const (
	headers  = 28   // IP 20, UDP 8: option 57 counts them (RFC 2132 section 9.10)
	smallest = 576  // every client takes a datagram of so many bytes
	biggest  = 1472 // edk2 ignores offers beyond, and an Ethernet frame holds no more
)

// sizeLimit is what option 57 allows, and at most what everybody takes.
func sizeLimit(raw []byte) int {
	limit := smallest
	if len(raw) == 2 {
		limit = max(smallest, min(int(raw[0])<<8|int(raw[1]), biggest))
	}
	return limit - headers
}

// addrOf is the zero Addr for 0.0.0.0, which means "none" in every field of DHCP.
func addrOf(raw []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(raw)
	a = a.Unmap()
	if !a.Is4() || a.IsUnspecified() {
		return netip.Addr{}
	}
	return a
}

// unicast tells whether an IPv4 address can be somebody's own on a network.
func unicast(a netip.Addr) bool {
	return a.Is4() && !a.IsUnspecified() && !a.IsMulticast() && !a.IsLoopback() && a.As4()[0] != 0 && a.As4()[0] < 240
}

// printable is a text off the wire as a plain line, without the NUL that some firmware ends it with.
func printable(raw []byte) string { return plain.Line(string(bytes.TrimRight(raw, "\x00")), 128) }

// uuidText writes option 97 as UUIDs are written, in the order of its bytes.
func uuidText(id []byte) string {
	if len(id) != 17 {
		return ""
	}
	h := hex.EncodeToString(id[1:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}
