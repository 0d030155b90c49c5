package dhcp

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"
	"github.com/stretchr/testify/require"

	"rackstrap/assets"
	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

var (
	ours       = netip.MustParseAddr("10.10.10.1")
	masterIP   = netip.MustParseAddr("10.10.10.80")
	farIP      = netip.MustParseAddr("10.20.0.50")
	relay      = netip.MustParseAddr("10.20.0.1")
	macMaster  = inventory.MAC{0x52, 0x54, 0, 0, 0, 0x80}
	macNode    = inventory.MAC{0x52, 0x54, 0, 0, 0, 0x81}
	macFar     = inventory.MAC{0x52, 0x54, 0, 0, 0, 0x50}
	macUnknown = inventory.MAC{0x52, 0x54, 0, 0, 0, 0x99}
	macOther   = inventory.MAC{0x52, 0x54, 0, 0, 0, 0x9a}
)

// clock is a clock that tests turn.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) forward(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// bootTable is a Boot that offers what package assets prefers, as if all loaders were there.
type bootTable struct{ refusal string }

func (b bootTable) Loader(d lifecycle.Decision, fw assets.Firmware) (string, error) {
	if b.refusal != "" {
		return "", errors.New(b.refusal)
	}
	name, ok := map[assets.Firmware]string{
		assets.BIOS: "undionly.kpxe", assets.EFIIA32: "snponly-ia32.efi", assets.EFIX64: "snponly.efi",
		assets.EFIARM32: "snponly-arm32.efi", assets.EFIARM64: "snponly-arm64.efi",
		assets.HTTPIA32: "snponly-ia32.efi", assets.HTTPX64: "snponly.efi", assets.HTTPARM32: "snponly-arm32.efi",
		assets.HTTPARM64: "snponly-arm64.efi", assets.RaspberryPi: "bootcode.bin",
	}[fw]
	if !ok {
		return "", errors.New("no loader for " + string(fw) + " is at hand")
	}
	if d.Listed && d.Machine.Install.SecureBoot {
		return "shim/centos-7.9/BOOTX64.EFI", nil
	}
	return name, nil
}

func config(edit ...func(*inventory.Config)) *inventory.Config {
	install := inventory.Install{Attempts: 3, LocalBoot: inventory.LocalAuto}
	cfg := &inventory.Config{
		Server: inventory.Server{Address: ours, HTTPPort: 8080},
		Network: inventory.Network{
			Subnet: inventory.Subnet{
				Prefix:  netip.MustParsePrefix("10.10.10.0/24"),
				Gateway: netip.MustParseAddr("10.10.10.121"),
				DNS:     []netip.Addr{netip.MustParseAddr("8.8.4.4")},
				Pool:    inventory.Range{First: netip.MustParseAddr("10.10.10.200"), Last: netip.MustParseAddr("10.10.10.250")},
			},
			Domain: "rack.lab",
			NTP:    []string{"time1.aliyun.com", "10.10.10.2"},
			Relayed: []inventory.Subnet{{
				Prefix:  netip.MustParsePrefix("10.20.0.0/24"),
				Gateway: relay,
				Pool:    inventory.Range{First: netip.MustParseAddr("10.20.0.100"), Last: netip.MustParseAddr("10.20.0.110")},
			}},
			DHCP: inventory.DHCP{Mode: inventory.DHCPServer, Unknown: inventory.UnknownDiscover, LeaseTime: 12 * time.Hour},
		},
		Machines: []inventory.Machine{
			{Name: "kmaster", MAC: macMaster, IP: masterIP, Install: install},
			{Name: "knode1", MAC: macNode, IP: netip.MustParseAddr("10.10.10.81"), Install: install},
			{Name: "far1", MAC: macFar, IP: farIP, Install: install},
			{Name: "slot", IP: netip.MustParseAddr("10.10.10.89"), Install: install}, // free
		},
	}
	for _, e := range edit {
		e(cfg)
	}
	return cfg
}

// rig is a server without sockets.
type rig struct {
	*Server
	t     testing.TB
	clock *clock
	store *lifecycle.MemoryStore
}

func newRig(t testing.TB, cfg *inventory.Config, edit ...func(*Options)) *rig {
	t.Helper()
	c := &clock{now: time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)}
	store := lifecycle.NewMemoryStore()
	log := slog.New(slog.DiscardHandler)
	rack, err := lifecycle.New(t.Context(), cfg, lifecycle.Options{Store: store, Log: log, Now: c.Now})
	require.NoError(t, err)
	o := Options{Rack: rack, Boot: bootTable{}, Log: log, Now: c.Now, Address: ours}
	for _, e := range edit {
		e(&o)
	}
	s, err := newServer(o)
	require.NoError(t, err)
	return &rig{s, t, c, store}
}

// keepIn has the rack keep everything in another store.
func (r *rig) keepIn(store lifecycle.Store) {
	r.t.Helper()
	rack, err := lifecycle.New(r.t.Context(), r.rack.Config(), lifecycle.Options{Store: store, Log: r.log, Now: r.now})
	require.NoError(r.t, err)
	r.rack = rack
}

// ask hands a message to the server as if it came by broadcast.
func (r *rig) ask(req *dhcpv4.DHCPv4) Answer {
	return r.Handle(context.Background(), req, Arrival{Interface: 2, From: netip.MustParseAddrPort("0.0.0.0:68"), To: broadcast})
}

// straight hands a message to the server as if it came to its address.
func (r *rig) straight(req *dhcpv4.DHCPv4, from string) Answer {
	return r.Handle(context.Background(), req, Arrival{Interface: 2, From: netip.MustParseAddrPort(from), To: ours})
}

// events are the texts of a machine's timeline.
func (r *rig) events(mac inventory.MAC) (texts []string) {
	r.t.Helper()
	all, err := r.rack.Events(r.t.Context(), lifecycle.EventQuery{MAC: mac})
	require.NoError(r.t, err)
	for _, e := range all {
		if e.MAC == mac && e.Source == "dhcp" {
			texts = append(texts, string(e.Level)+" "+e.Kind+": "+e.Text)
		}
	}
	return texts
}

type edit = func(*dhcpv4.DHCPv4)

// message makes a client's message.
func message(kind dhcpv4.MessageType, mac inventory.MAC, edits ...edit) *dhcpv4.DHCPv4 {
	m := &dhcpv4.DHCPv4{
		OpCode: dhcpv4.OpcodeBootRequest, HWType: iana.HWTypeEthernet, ClientHWAddr: mac.HardwareAddr(),
		TransactionID: dhcpv4.TransactionID{1, 2, 3, 4}, Options: dhcpv4.Options{optType: {byte(kind)}},
		ClientIPAddr: net.IPv4zero, YourIPAddr: net.IPv4zero, ServerIPAddr: net.IPv4zero, GatewayIPAddr: net.IPv4zero,
	}
	for _, e := range edits {
		e(m)
	}
	return m
}

func discover(mac inventory.MAC, edits ...edit) *dhcpv4.DHCPv4 {
	return message(dhcpv4.MessageTypeDiscover, mac, edits...)
}

func request(mac inventory.MAC, edits ...edit) *dhcpv4.DHCPv4 {
	return message(dhcpv4.MessageTypeRequest, mac, edits...)
}

func option(code uint8, value ...byte) edit {
	return func(m *dhcpv4.DHCPv4) { m.Options[code] = value }
}

func text(code uint8, value string) edit { return option(code, []byte(value)...) }

func wants(ip netip.Addr) edit  { return option(50, ip.AsSlice()...) }
func server(ip netip.Addr) edit { return option(54, ip.AsSlice()...) }
func ciaddr(ip netip.Addr) edit { return func(m *dhcpv4.DHCPv4) { m.ClientIPAddr = ip.AsSlice() } }
func giaddr(ip netip.Addr) edit { return func(m *dhcpv4.DHCPv4) { m.GatewayIPAddr = ip.AsSlice() } }

func flags(bits uint16) edit { return func(m *dhcpv4.DHCPv4) { m.Flags = bits } }

// addr is the address of a pool's network by its last number.
func addr(last byte) netip.Addr { return netip.AddrFrom4([4]byte{10, 10, 10, last}) }

// firmwareOf makes a message that of a firmware, as measured (protocols.md).
var firmwareOf = map[string]edit{
	"dhclient": func(m *dhcpv4.DHCPv4) {
		text(12, "localhost")(m)
		option(55, 1, 28, 2, 3, 15, 6, 119, 12, 44, 47, 26, 121, 42)(m)
	},
	"bios": pxe(0, "PXEClient:Arch:00000:UNDI:002001", option(94, 1, 2, 1), option(57, 5, 192)),
	"ia32": pxe(6, "PXEClient:Arch:00006:UNDI:003000", option(94, 1, 3, 0), option(57, 255, 0), flags(0x8000)),
	"x64":  pxe(7, "PXEClient:Arch:00007:UNDI:003000", option(94, 1, 3, 0), option(57, 255, 0), flags(0x8000)),
	"x64bc": pxe(9, "PXEClient:Arch:00009:UNDI:003000", option(94, 1, 3, 0), option(57, 255, 0),
		flags(0x8000)),
	"arm32":     pxe(10, "PXEClient:Arch:00010:UNDI:003000", option(94, 1, 3, 0), option(57, 5, 192), flags(0x8000)),
	"arm64":     pxe(11, "PXEClient:Arch:00011:UNDI:003000", option(94, 1, 3, 0), option(57, 5, 192), flags(0x8000)),
	"http-x64":  pxe(16, "HTTPClient:Arch:00016:UNDI:003000", option(94, 1, 3, 0), option(57, 5, 192), flags(0x8000)),
	"http-arm":  pxe(19, "HTTPClient:Arch:00019:UNDI:003000", option(94, 1, 3, 0), option(57, 5, 192), flags(0x8000)),
	"ipxe-rom":  pxe(0, "PXEClient:Arch:00000:UNDI:002001", text(77, "iPXE"), option(175, 177, 5, 1), option(57, 5, 192), clientID),
	"ipxe-efi":  pxe(7, "PXEClient:Arch:00007:UNDI:003010", text(77, "iPXE"), option(175, 177, 5, 1), option(57, 5, 192), clientID),
	"ipxe-3004": pxe(7, "PXEClient:Arch:00007:UNDI:003010", text(77, "\x04iPXE"), option(57, 5, 192)),
	"rackstrap": pxe(7, "PXEClient:Arch:00007:UNDI:003010", text(77, "rackstrap"), option(57, 5, 192)),
	"flexboot":  pxe(0, "PXEClient:Arch:00000:UNDI:002001", option(175, 177, 5, 1), option(57, 5, 192)),
	"pi":        pxe(41, "PXEClient:Arch:00041:UNDI:002001", option(57, 5, 192)),
	"pi4": pxe(0, "PXEClient:Arch:00000:UNDI:002001", func(m *dhcpv4.DHCPv4) {
		m.Options[97] = append([]byte("\x00RPi4"), 0x11, 0x31, 0xc0, 0, 1, 2, 3, 4, 5, 6, 7, 8)
	}),
	"old-rom": func(m *dhcpv4.DHCPv4) { // neither 93 nor 97
		text(60, "PXEClient")(m)
	},
	"itanium": pxe(2, "PXEClient:Arch:00002:UNDI:002001"),
}

func clientID(m *dhcpv4.DHCPv4) { m.Options[61] = append([]byte{1}, m.ClientHWAddr...) }

func pxe(arch byte, class string, edits ...edit) edit {
	return func(m *dhcpv4.DHCPv4) {
		text(60, class)(m)
		option(93, 0, arch)(m)
		option(97, 0, 0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x1b, 0x1c, 0x1d, 0x1e, 0x1f)(m)
		option(55, 1, 2, 3, 4, 5, 6, 12, 13, 15, 17, 18, 22, 23, 28, 40, 41, 42, 43, 50, 51, 54, 58, 59, 60, 66, 67, 97, 128)(m)
		for _, e := range edits {
			e(m)
		}
	}
}
