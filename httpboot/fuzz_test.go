package httpboot

import (
	"bufio"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"rackstrap/inventory"
	"rackstrap/media"
)

// FuzzPath asks for any target with any Range. Nothing panics, nothing is a fault of ours, nothing from
// outside the trees is sent, and no installation begins.
func FuzzPath(f *testing.F) {
	for _, target := range []string{
		"/media/unpacked/.treeinfo", "/media/unpacked/../outside.txt", "/media/unpacked/%2e%2e/outside.txt", `/media/unpacked/..\outside.txt`,
		"/media/unpacked/escape", "/media/unpacked/loop/loop/outside.txt", "//media//unpacked/./Packages/", "/boot/52-54-00-00-00-80/ipxe",
		"/boot/525400000080/grub.cfg", "/loader/ipxe.efi", "/loader/shim/centos-7.9//grubx64.efi", "/grub/grub.cfg", "/grub/host-52:54:00:00:00:80.cfg",
		"/ks/52-54-00-00-00-80", "/healthz", "*", "http://x/media", "/%00", "/media/unpacked/%ff", "/media/%2f/..", "/?/../", "/media/unpacked/a#b",
		"/loader/media/unpacked/images/pxeboot/vmlinuz",
	} {
		f.Add(target, "bytes=0-1,-1")
	}
	f.Add("/media/unpacked/images/pxeboot/initrd.img", "bytes=9223372036854775807-,0-0")
	dir := treeDir(f)
	require.NoError(f, os.Symlink("..", filepath.Join(dir, "loop")))
	require.NoError(f, os.Symlink(filepath.Join(filepath.Dir(dir), "outside.txt"), filepath.Join(dir, "absolute")))
	library, err := media.OpenLibrary([]media.Spec{{Name: "unpacked", Dir: dir}})
	require.NoError(f, err)
	p := planeOf(f, library, func(o *Options, cfg *inventory.Config) {
		cfg.Media = cfg.Media[1:]
		for i := range cfg.Machines {
			cfg.Machines[i].Install.Medium = "unpacked"
		}
	})
	f.Fuzz(func(t *testing.T, target, ranges string) {
		p.t = t
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader("GET " + target + " HTTP/1.1\r\nHost: x\r\n\r\n")))
		if err != nil {
			return // net/http's 400
		}
		r.RemoteAddr = "127.0.0.1:1234"
		r.Header.Set("Range", ranges)
		w := httptest.NewRecorder()
		p.Handler().ServeHTTP(w, r)
		require.NotContains(t, w.Body.String(), outside)
		require.Less(t, w.Code, 500, "%s", w.Body)
		require.Zero(t, p.count("rackstrap_http_panics_total"))
		require.Zero(t, p.rack.Decide(macMaster).Record.Tries)
	})
}

// FuzzProvisioningMACs reads the header in which the installer names its NICs.
func FuzzProvisioningMACs(f *testing.F) {
	for _, value := range []string{"eth0 52:54:00:00:00:80", "eth0", "", " ", "eth0 52:54:00:00:00:80 x", "ib0 80:00:02:08:fe:80:00:00:00:00:00:00:f4:52:14:03:00:8b:d1:61"} {
		f.Add("X-RHN-Provisioning-MAC-0", value)
	}
	f.Fuzz(func(t *testing.T, name, value string) {
		h := http.Header{}
		h.Set(name, value)
		nics, sent := provisioningMACs(h)
		if len(nics) > 0 && !sent {
			t.Fatal("NICs that nobody sent")
		}
		if nics[macMaster] && !strings.Contains(value, " ") {
			t.Fatal("a NIC without a name")
		}
	})
}
