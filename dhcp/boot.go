package dhcp

import (
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"

	"rackstrap/assets"
)

// maxFile is what the header's file field holds beside its NUL. The library cuts what is longer, silently.
const maxFile = 127

// boot is the file that a boot client is told to load, or the reason why none is; both are "" for others.
func (x *exchange) boot() (file, refusal string) {
	if reason, yes := x.d.OffersNothing(); yes && x.f.boots() {
		return "", reason
	}
	switch x.f.role {
	case ipxeClient: // it runs already: no loader is needed
		file = x.url("/boot/" + x.f.mac.Hyphens() + "/ipxe")
	case pxeClient, httpClient:
		if x.f.firmware == assets.Unsupported {
			return "", "no loader is known for " + x.f.architectures()
		}
		name, err := x.s.boot.Loader(x.d, x.f.firmware)
		if err != nil {
			return "", err.Error()
		}
		file = name
		if x.f.role == httpClient {
			file = x.url((&url.URL{Path: "/loader/" + name}).EscapedPath())
		}
	default:
		return "", ""
	}
	if len(file) > maxFile {
		return "", fmt.Sprintf("%q is longer than the %d bytes of DHCP's file field: shorten its name", file, maxFile)
	}
	return file, ""
}

// architectures names the architectures of option 93, by IANA's registry "Processor Architecture Types".
func (f *facts) architectures() string {
	raw := f.req.Options.Get(dhcpv4.OptionClientSystemArchitectureType)
	var names []string
	for i := 0; i+1 < len(raw) && i < 8; i += 2 {
		arch := iana.Arch(raw[i])<<8 | iana.Arch(raw[i+1])
		names = append(names, fmt.Sprintf("architecture %d (%s)", arch, arch))
	}
	if len(names) == 0 {
		return "a client that names no architecture (option 93)"
	}
	if f.role == httpClient {
		names[0] = "HTTP Boot of " + names[0]
	}
	return strings.Join(names, ", ")
}

// url names the appliance by address: UEFI HTTP Boot would need a DNS server of its own for a name.
func (x *exchange) url(path string) string {
	port := x.s.httpPort
	if port == 0 {
		port = x.v.config.Server.HTTPPort
	}
	host := x.s.addressText
	if port != 80 {
		host += ":" + strconv.Itoa(port)
	}
	return "http://" + host + path
}

// Vendor options (43) of PXE 2.1 section 2.4. Without them edk2 asks the PXE port and gives up where nobody
// answers (PXE-E16).
var (
	// Discovery control (6) = 8: load the file of this reply, without menu and without boot servers.
	vendorPXE = []byte{6, 1, 8, 255}
	// The Pi's boot ROM looks for the text "Raspberry Pi Boot" in the boot menu (9), and wants a prompt (10).
	vendorPi = append(append([]byte{6, 1, 3, 10, 4, 0, 'P', 'X', 'E', 9, 20, 0, 0, 17}, "Raspberry Pi Boot"...), 255)
	// iPXE's own options (175): sub-option 176 = 1 (no-pxedhcp) spares it the wait for proxyDHCP.
	vendorIPXE = []byte{176, 1, 1}
)

// withBoot says what to load: in the header fields, which shim and GRUB read alone, and in options 66 and
// 67, which edk2 prefers. Both say the same.
func (x *exchange) withBoot(file string) modifier {
	return func(r *dhcpv4.DHCPv4) {
		if file == "" {
			return
		}
		o := r.Options
		r.ServerIPAddr = x.s.addressBytes
		r.ServerHostName = x.s.addressText
		r.BootFileName = file
		o[optTFTPServer] = []byte(x.s.addressText)
		bootfile := make([]byte, len(file)+1) // the NUL is for edk2, which writes one behind what it got
		copy(bootfile, file)
		o[optBootfile] = bootfile
		if x.f.machineID != nil {
			o[optMachineID] = x.f.machineID
		}
		switch {
		case x.f.role == httpClient:
			o[optClass] = []byte("HTTPClient") // exactly; UEFI 2.8 section 24.7.3
			return
		case x.f.role == ipxeClient:
			o[optIPXE] = vendorIPXE
		}
		o[optClass] = []byte("PXEClient")
		o[optVendor] = vendorPXE
		if x.f.firmware == assets.RaspberryPi && x.f.role == pxeClient {
			o[optVendor] = vendorPi
		}
	}
}

// bootText tells the machine's timeline what it was answered.
func bootText(verb string, ip netip.Addr, f *facts, file, refusal string) string {
	text := verb
	if ip.IsValid() {
		text += " " + ip.String()
	}
	switch {
	case f.role == plainClient:
		return text
	case file == "":
		return text + ", no boot file: " + refusal
	case f.role == ipxeClient:
		return text + ", script " + file + " (ipxe)"
	}
	return text + ", loader " + file + " (" + string(f.firmware) + ")"
}
