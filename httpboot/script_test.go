package httpboot

import (
	"net/http"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/inventory"
	"rackstrap/lifecycle"
	"rackstrap/media"
)

func TestScripts(t *testing.T) {
	p := newPlane(t)
	for _, mac := range []string{"52-54-00-00-00-80", "52:54:00:00:00:80", "525400000080", "5254.0000.0080", "52%3A54%3A00%3A00%3A00%3A80"} {
		got := p.direct(http.MethodGet, "/boot/"+mac+"/ipxe", ipMaster)
		require.Equal(t, 200, got.Code, mac)
		want, err := p.plan.IPXE(p.plan.Decide(macMaster, ipMaster))
		require.NoError(t, err)
		require.Equal(t, string(want), got.Body.String(), mac)
		require.Equal(t, "no-store", got.Header().Get("Cache-Control"))
		require.Contains(t, got.Body.String(), "inst.ks=http://127.0.0.1:8080/ks/52-54-00-00-00-80")
	}
	got := p.direct(http.MethodGet, "/boot/52-54-00-00-00-80/grub.cfg", ipMaster)
	require.Equal(t, 200, got.Code)
	require.Contains(t, got.Body.String(), "linux /media/centos-7.9/images/pxeboot/vmlinuz")
	events := p.events("script")
	require.Len(t, events, 6)
	require.Equal(t, "kmaster", events[0].Machine)
	require.Contains(t, events[0].Text, `iPXE script "install" for 127.0.0.80: kmaster is armed`)
	require.Contains(t, events[5].Text, "GRUB")

	p.direct(http.MethodHead, "/boot/52-54-00-00-00-80/ipxe", ipMaster)
	require.Len(t, p.events("script"), 6)

	_, err := p.rack.Adopt(t.Context(), "kmaster")
	require.NoError(t, err)
	got = p.direct(http.MethodGet, "/boot/52-54-00-00-00-80/ipxe", ipMaster)
	require.Contains(t, got.Body.String(), "booting the local disk")
}

func TestInstallScriptOfAnotherMachine(t *testing.T) {
	p := newPlane(t)
	for _, c := range []struct {
		name string
		from netip.Addr
		want int
	}{
		{"the machine", ipMaster, 200},
		{"another machine", ipNode, 403},
		{"a discovered machine", ipLeased, 403},
		{"an operator", ipNobody, 200},
		{"an address that is nobody's", ipForeign, 200},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, kind := range []string{"ipxe", "grub.cfg"} {
				got := p.direct(http.MethodGet, "/boot/"+macMaster.Hyphens()+"/"+kind, c.from)
				require.Equal(t, c.want, got.Code)
				if c.want == 403 {
					require.Equal(t, notYours+"\n", got.Body.String())
				}
			}
		})
	}
	refused := p.events("refused")
	require.Len(t, refused, 2) // iPXE's and GRUB's are the same text
	require.Equal(t, macMaster, refused[0].MAC)
	require.Equal(t, lifecycle.Alarm, refused[0].Level)
	require.Contains(t, refused[0].Text, "install script of kmaster asked for by 127.0.0.81, whose address belongs to knode1 (52:54:00:00:00:81)")

	// What is no installation, anybody may see.
	_, err := p.rack.Adopt(t.Context(), "kmaster")
	require.NoError(t, err)
	require.Equal(t, 200, p.direct(http.MethodGet, "/boot/"+macMaster.Hyphens()+"/ipxe", ipNode).Code)
}

// The waiting screen asks every 10 s: that is one event a minute.
func TestWaitingScreenIsNotedOnceAMinute(t *testing.T) {
	p := newPlane(t)
	for range 12 {
		got := p.direct(http.MethodGet, "/boot/"+macUnknown.Hyphens()+"/ipxe", ipLeased)
		require.Contains(t, got.Body.String(), "rackstrap approve")
		*p.now = p.now.Add(10 * time.Second)
	}
	require.Len(t, p.events("script"), 2)
}

// A medium that cannot be read is our fault: firmware tries again, the operator learns why.
func TestScriptThatCannotBeRendered(t *testing.T) {
	dir := treeDir(t)
	library, err := media.OpenLibrary([]media.Spec{{Name: "centos-7.9", Dir: dir}})
	require.NoError(t, err)
	require.NoError(t, os.Remove(dir+"/images/pxeboot/vmlinuz"))
	p := planeOf(t, library)
	got := p.direct(http.MethodGet, "/boot/"+macMaster.Hyphens()+"/ipxe", ipMaster)
	// The file is missing, but the script is not: that must not look like a 404.
	require.Equal(t, http.StatusServiceUnavailable, got.Code)
	require.Equal(t, retryAfter, got.Header().Get("Retry-After"))
	require.NotContains(t, got.Body.String(), "vmlinuz")
	faults := p.events("fault")
	require.Len(t, faults, 1)
	require.Contains(t, faults[0].Text, "vmlinuz")
	require.Equal(t, macMaster, faults[0].MAC)
	require.Equal(t, lifecycle.Alarm, faults[0].Level)
}

func TestIgnoredMachine(t *testing.T) {
	p := newPlane(t, func(_ *Options, cfg *inventory.Config) { cfg.Network.DHCP.Unknown = inventory.UnknownIgnore })
	got := p.direct(http.MethodGet, "/boot/"+macUnknown.Hyphens()+"/ipxe", ipLeased)
	require.Equal(t, 200, got.Code)
	require.Contains(t, got.Body.String(), "exit 1")
}
