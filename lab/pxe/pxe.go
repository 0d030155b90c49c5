// Package pxe boots from the network as firmware and iPXE do, without being either: it asks by DHCP as UEFI (x64)
// does, fetches the loader that it is offered, asks again as iPXE, and follows the script that it gets then. What
// comes out is a decision: the installer with its kernel arguments, or the local disk.
//
// It is the firmware of the lab's namespace machines. Kernel and initrd are fetched to the last byte and looked
// at, and thrown away.
package pxe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/insomniacslk/dhcp/iana"
	"github.com/pin/tftp/v3"
	"github.com/vishvananda/netlink"
)

// Options describe the machine.
type Options struct {
	Interface string           // of the rack's network, in the network namespace of the caller
	MAC       net.HardwareAddr // of the interface
	UUID      [16]byte         // of the machine (SMBIOS), for DHCP option 97
	Say       func(format string, args ...any)
}

// Action is what a network boot came to.
type Action string

// The actions.
const (
	Install   Action = "install"
	LocalDisk Action = "local-disk"
)

// Decision is how the machine goes on.
type Decision struct {
	Action     Action
	KernelArgs string // of the installer
}

// ErrNoOffer is silence on the network: firmware goes on to its disk then.
var ErrNoOffer = errors.New("no DHCP offer")

// What UEFI x64 firmware sends (RFC 4578, and docs/booting.md).
const (
	vendorClass = "PXEClient:Arch:00007:UNDI:003000"
	ipxeClass   = "iPXE"
)

// maxFile bounds what is fetched: an installer's initrd has some 60 MB, Debian's 100.
const maxFile = 1 << 30

// Boot boots once. It returns when the script has come to a decision; a machine that is told to wait, waits.
func Boot(ctx context.Context, o Options) (Decision, error) {
	b := &booter{Options: o, http: &http.Client{Transport: &http.Transport{Proxy: nil}, Timeout: 10 * time.Minute}}
	defer b.http.CloseIdleConnections()
	return b.boot(ctx)
}

type booter struct {
	Options
	http *http.Client
	args string // of the kernel that was loaded
}

func (b *booter) boot(ctx context.Context) (Decision, error) {
	lease, err := b.lease(ctx, dhcpv4.WithOption(dhcpv4.OptClassIdentifier(vendorClass)))
	if err != nil {
		return Decision{}, err
	}
	file := bootFile(lease)
	if file == "" {
		b.Say("no boot file is offered")
		return Decision{Action: LocalDisk}, nil
	}
	loader, err := b.loader(ctx, lease, file)
	if err != nil {
		return Decision{}, err
	}
	if !bytes.HasPrefix(loader, []byte("MZ")) {
		return Decision{}, fmt.Errorf("loader %s: not an EFI program", file)
	}
	b.Say("loader %s: %d bytes", file, len(loader))

	lease, err = b.lease(ctx, ipxeStage()...)
	if err != nil {
		return Decision{}, err
	}
	script := bootFile(lease)
	if !strings.HasPrefix(script, "http://") {
		return Decision{}, fmt.Errorf("iPXE is offered %q, not the URL of a script", script)
	}
	for script != "" {
		text, err := b.fetch(ctx, script, 1<<20)
		if err != nil {
			return Decision{}, fmt.Errorf("script: %w", err)
		}
		b.Say("script %s: %d bytes", script, len(text))
		run := &interpreter{booter: b}
		next, decision, err := run.script(ctx, string(text))
		if err != nil || decision.Action != "" {
			return decision, err
		}
		script = next
	}
	return Decision{Action: LocalDisk}, nil
}

// ipxeStage is what iPXE says of itself in its DHCP messages.
func ipxeStage() []dhcpv4.Modifier {
	return []dhcpv4.Modifier{
		dhcpv4.WithOption(dhcpv4.OptClassIdentifier(vendorClass)), dhcpv4.WithUserClass(ipxeClass, false),
		dhcpv4.WithOption(dhcpv4.OptGeneric(dhcpv4.GenericOptionCode(175), []byte{177, 5, 1, 0x1a, 0xf4, 0x10, 0, 235, 3, 1, 21, 1})),
	}
}

// lease gets an address, and gives it to the interface.
func (b *booter) lease(ctx context.Context, stage ...dhcpv4.Modifier) (*dhcpv4.DHCPv4, error) {
	client, err := nclient4.New(b.Interface, nclient4.WithHWAddr(b.MAC), nclient4.WithTimeout(4*time.Second), nclient4.WithRetry(2))
	if err != nil {
		return nil, fmt.Errorf("DHCP on %s: %w", b.Interface, err)
	}
	defer client.Close()
	guid := append([]byte{0}, b.UUID[:]...)
	modifiers := append([]dhcpv4.Modifier{
		dhcpv4.WithOption(dhcpv4.OptClientArch(iana.EFI_BC)), // 7, x64
		dhcpv4.WithOption(dhcpv4.OptGeneric(dhcpv4.OptionClientNetworkInterfaceIdentifier, []byte{1, 3, 0})),
		dhcpv4.WithOption(dhcpv4.OptGeneric(dhcpv4.OptionClientMachineIdentifier, guid)),
		dhcpv4.WithOption(dhcpv4.OptMaxMessageSize(1472)),
		dhcpv4.WithBroadcast(true),
		dhcpv4.WithRequestedOptions(dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter, dhcpv4.OptionTFTPServerName, dhcpv4.OptionBootfileName),
	}, stage...)
	lease, err := client.Request(ctx, modifiers...)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("%w on %s: %v", ErrNoOffer, b.Interface, err)
	}
	if echo := lease.ACK.Options.Get(dhcpv4.OptionClientMachineIdentifier); echo != nil && !bytes.Equal(echo, guid) {
		return nil, fmt.Errorf("the answer names another machine: option 97 = %x", echo)
	}
	link, err := netlink.LinkByName(b.Interface)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", b.Interface, err)
	}
	address := &net.IPNet{IP: lease.ACK.YourIPAddr, Mask: lease.ACK.SubnetMask()}
	if address.Mask == nil {
		address.Mask = address.IP.DefaultMask()
	}
	if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: address}); err != nil {
		return nil, fmt.Errorf("interface %s: %s: %w", b.Interface, address, err)
	}
	b.Say("address %s, boot file %q", address, bootFile(lease.ACK))
	return lease.ACK, nil
}

// bootFile is option 67, whose end some servers mark with a NUL, else the header's field.
func bootFile(m *dhcpv4.DHCPv4) string {
	if name := strings.TrimRight(m.BootFileNameOption(), "\x00"); name != "" {
		return name
	}
	return m.BootFileName
}

// loader is fetched by TFTP from the server that the answer names, or by HTTP from a URL.
func (b *booter) loader(ctx context.Context, lease *dhcpv4.DHCPv4, file string) ([]byte, error) {
	if strings.HasPrefix(file, "http://") {
		return b.fetch(ctx, file, 1<<26)
	}
	client, err := tftp.NewClient(net.JoinHostPort(lease.ServerIPAddr.String(), "69"))
	if err != nil {
		return nil, fmt.Errorf("loader %s: %w", file, err)
	}
	client.SetTimeout(2 * time.Second)
	client.SetBlockSize(1468)
	from, err := client.Receive(file, "octet")
	if err != nil {
		return nil, fmt.Errorf("loader %s: TFTP: %w", file, err)
	}
	var loader bytes.Buffer
	if _, err := from.WriteTo(&loader); err != nil {
		return nil, fmt.Errorf("loader %s: TFTP: %w", file, err)
	}
	return loader.Bytes(), ctx.Err()
}

func (b *booter) get(ctx context.Context, from string) (*http.Response, error) {
	if u, err := url.Parse(from); err != nil || u.Scheme != "http" || u.Host == "" {
		return nil, fmt.Errorf("%q: not an HTTP URL", from)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("User-Agent", "iPXE/1.21.1")
	answer, err := b.http.Do(request)
	if err != nil {
		return nil, err
	}
	if answer.StatusCode != http.StatusOK {
		answer.Body.Close()
		return nil, fmt.Errorf("%s: %s", from, answer.Status)
	}
	if answer.ContentLength < 0 {
		answer.Body.Close()
		return nil, fmt.Errorf("%s: no Content-Length, which firmware needs", from)
	}
	return answer, nil
}

func (b *booter) fetch(ctx context.Context, from string, limit int64) ([]byte, error) {
	answer, err := b.get(ctx, from)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	if answer.ContentLength > limit {
		return nil, fmt.Errorf("%s: %d bytes", from, answer.ContentLength)
	}
	return io.ReadAll(answer.Body) // less than Content-Length is an error
}

// load fetches a kernel or an initrd and returns its beginning.
func (b *booter) load(ctx context.Context, what, from string) ([]byte, error) {
	answer, err := b.get(ctx, from)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	if answer.ContentLength > maxFile {
		return nil, fmt.Errorf("%s: %d bytes", from, answer.ContentLength)
	}
	head := make([]byte, 1024)
	n, err := io.ReadFull(answer.Body, head)
	if err != nil {
		return nil, fmt.Errorf("%s: %d bytes: %w", from, n, err)
	}
	rest, err := io.Copy(io.Discard, answer.Body)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", from, err)
	}
	b.Say("%s %s: %d bytes", what, from, int64(n)+rest)
	return head, nil
}

// checkKernel looks for the signature of Linux's boot protocol on x86 (Documentation/arch/x86/boot.rst).
func checkKernel(head []byte) error {
	if len(head) < 0x206 || string(head[0x202:0x206]) != "HdrS" {
		return errors.New("not a Linux kernel: no HdrS at 0x202")
	}
	return nil
}

// checkArgs holds the installer's arguments to what the machine is: its kickstart, its NIC.
func (b *booter) checkArgs(args string) error {
	mac := strings.ReplaceAll(b.MAC.String(), ":", "-")
	found := map[string]string{}
	for _, word := range strings.Fields(args) {
		key, value, _ := strings.Cut(word, "=")
		found[key] = value
	}
	if ks := found["inst.ks"]; !strings.Contains(ks, "/ks/"+mac+"/") {
		return fmt.Errorf("inst.ks=%s is not this machine's kickstart (/ks/%s/…)", ks, mac)
	}
	if found["BOOTIF"] != "01-"+mac {
		return fmt.Errorf("BOOTIF=%s is not this machine's NIC", found["BOOTIF"])
	}
	return nil
}
