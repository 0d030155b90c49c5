package assets

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestFirmwareOf(t *testing.T) {
	for _, c := range []struct {
		archs []uint16
		http  bool
		want  Firmware
	}{
		{nil, false, BIOS}, // old PXE ROMs send no option 93
		{nil, true, Unsupported},
		{[]uint16{0}, false, BIOS},
		{[]uint16{6}, false, EFIIA32},
		{[]uint16{7}, false, EFIX64},
		{[]uint16{9}, false, EFIX64},
		{[]uint16{10}, false, EFIARM32},
		{[]uint16{11}, false, EFIARM64},
		{[]uint16{15}, true, HTTPIA32},
		{[]uint16{16}, true, HTTPX64},
		{[]uint16{18}, true, HTTPARM32},
		{[]uint16{19}, true, HTTPARM64},
		{[]uint16{41}, false, RaspberryPi},
		{[]uint16{16}, false, Unsupported}, // an HTTP architecture that does not say HTTPClient takes no URL
		{[]uint16{7}, true, Unsupported},
		{[]uint16{99}, false, Unsupported},
		{[]uint16{99, 7}, false, EFIX64}, // the first one that is known
	} {
		require.Equal(t, c.want, FirmwareOf(c.archs, c.http), "%v http=%v", c.archs, c.http)
	}
}

func TestNamesOfFirmware(t *testing.T) {
	for _, f := range Firmwares() {
		parsed, ok := ParseFirmware(string(f))
		require.True(t, ok)
		require.Equal(t, f, parsed)
		require.NotEmpty(t, f.candidates(), f)
	}
	_, ok := ParseFirmware("toaster")
	require.False(t, ok)
	require.False(t, BIOS.EFI())
	require.True(t, HTTPX64.EFI())
	require.True(t, HTTPX64.HTTP())
	require.False(t, EFIX64.HTTP())
}

func TestLoadersDirIsLaidOverTheEmbedded(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "snponly-arm64.efi"), []byte("arm"), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "real.kpxe"), []byte("own bios"), 0o644))
	require.NoError(t, os.Symlink("real.kpxe", filepath.Join(dir, "undionly.kpxe")))
	require.NoError(t, os.Symlink("nowhere", filepath.Join(dir, "dangling.efi")))
	require.NoError(t, os.Mkdir(filepath.Join(dir, "folder"), 0o755))
	set, err := OpenLoaders(dir)
	require.NoError(t, err)

	loader, ok := set.For(EFIARM64)
	require.True(t, ok)
	require.Equal(t, "snponly-arm64.efi", loader.Name)
	loader, ok = set.For(BIOS)
	require.True(t, ok)
	require.Equal(t, "own bios", string(loader.Data))
	_, ok = set.Get("UNDIONLY.KPXE")
	require.True(t, ok, "some firmware upper-cases what DHCP told it")
	for _, name := range []string{"dangling.efi", "folder", "README.md"} {
		_, ok = set.Get(name)
		require.False(t, ok, name)
	}
	_, err = OpenLoaders(filepath.Join(dir, "none"))
	require.ErrorContains(t, err, "server.loaders_dir")
}

func TestScriptsNeedEveryValue(t *testing.T) {
	for _, action := range []string{"install", "discover", "ignore", "local-disk", "hold", "pass", "wait"} {
		text, err := Script{Action: action, Local: "auto"}.IPXE()
		require.NoError(t, err)
		require.Regexp(t, `^#!ipxe\n`, string(text))
		_, err = Script{Action: action, Local: "auto"}.GRUB()
		require.NoError(t, err)
	}
}
