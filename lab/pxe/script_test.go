package pxe

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// bootServer has a kernel that looks like one, an initrd, and one that is cut short.
func bootServer(t *testing.T) string {
	kernel := make([]byte, 1536) // short enough for a Content-Length of its own
	copy(kernel[0x202:], "HdrS")
	mux := http.NewServeMux()
	mux.HandleFunc("/vmlinuz", func(w http.ResponseWriter, _ *http.Request) { w.Write(kernel) })
	mux.HandleFunc("/initrd.img", func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, 1536)) })
	mux.HandleFunc("/short", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "8192")
		w.Write(kernel)
	})
	mux.HandleFunc("/chunked", func(w http.ResponseWriter, _ *http.Request) {
		w.(http.Flusher).Flush()
		w.Write(kernel)
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server.URL
}

const goodArgs = "inst.ks=http://10.0.0.1/ks/52-54-00-00-00-81/TICKET BOOTIF=01-52-54-00-00-00-81 ip=dhcp"

func TestScripts(t *testing.T) {
	base := bootServer(t)
	install := "kernel " + base + "/vmlinuz initrd=initrd.img %s || goto again\ninitrd --name initrd.img " + base + "/initrd.img || goto again\nboot || goto again\n:again\nexit 1\n"
	for _, tt := range []struct {
		name, script string
		want         Decision
		chain        string
		fault        string
	}{
		{name: "install", script: fmt.Sprintf(install, goodArgs), want: Decision{Install, "initrd=initrd.img " + goodArgs}},
		{name: "another machine's kickstart", script: fmt.Sprintf(install, strings.Replace(goodArgs, "81/TICKET BOOTIF", "82/TICKET BOOTIF", 1)), want: Decision{Action: LocalDisk}},
		{name: "another machine's NIC", script: fmt.Sprintf(install, strings.Replace(goodArgs, "81 ip", "82 ip", 1)), want: Decision{Action: LocalDisk}},
		{name: "no kernel", script: "kernel " + base + "/initrd.img || goto disk\nboot\n:disk\nsanboot --no-describe --drive 0x80 || exit 1", want: Decision{Action: LocalDisk}},
		{name: "cut short", script: "kernel " + base + "/short " + goodArgs + "\nboot", fault: "unexpected EOF"},
		{name: "without a length", script: "kernel " + base + "/chunked " + goodArgs + "\nboot", fault: "no Content-Length"},
		{name: "404", script: "kernel " + base + "/nothing " + goodArgs + "\nboot", fault: "404"},
		{name: "boot without a kernel", script: "boot", fault: "no kernel and initrd"},
		{name: "UEFI exits, BIOS boots", script: "iseq ${platform} efi && exit 1 ||\nfrobnicate", want: Decision{Action: LocalDisk}},
		{name: "the other way", script: "iseq ${platform} pcbios && frobnicate ||\nexit 1", want: Decision{Action: LocalDisk}},
		{name: "either", script: "iseq ${platform} pcbios && exit 1 || chain --replace --autofree http://10.0.0.1/b", chain: "http://10.0.0.1/b"},
		{name: "waits and asks again", script: ":wait\necho hello ${platform}\nsleep 0\nchain --replace --autofree http://10.0.0.1/x || goto wait", chain: "http://10.0.0.1/x"},
		{name: "ends", script: "echo nothing to do", want: Decision{Action: LocalDisk}},
		{name: "unknown command", script: "frobnicate --all || exit 1", fault: `command "frobnicate" is not known`},
		{name: "unknown label", script: "goto nowhere", fault: `no label "nowhere"`},
		{name: "circle", script: ":a\ngoto a", fault: "in circles"},
		{name: "file URL", script: "kernel file:///etc/passwd", fault: "not an HTTP URL"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := &booter{Options: Options{MAC: net.HardwareAddr{0x52, 0x54, 0, 0, 0, 0x81}, Say: t.Logf}, http: http.DefaultClient}
			chain, decision, err := (&interpreter{booter: b}).script(t.Context(), "#!ipxe\n"+tt.script)
			if tt.fault != "" {
				require.ErrorContains(t, err, tt.fault)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tt.want, decision)
			require.Equal(t, tt.chain, chain)
		})
	}
}

func TestScriptNeedsItsFirstLine(t *testing.T) {
	b := &booter{Options: Options{Say: t.Logf}}
	_, _, err := (&interpreter{booter: b}).script(t.Context(), "<html>")
	require.ErrorContains(t, err, "#!ipxe")
}

func TestSleepEndsWithTheContext(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	b := &booter{Options: Options{Say: t.Logf}}
	_, _, err := (&interpreter{booter: b}).script(ctx, "#!ipxe\nsleep 3600 || exit 1")
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

func FuzzScript(f *testing.F) {
	f.Add("#!ipxe\n:a\niseq ${platform} efi && exit 1 ||\nkernel file:///x || goto a\nchain http://a/b")
	f.Add("#!ipxe\n|| && ||\necho")
	f.Fuzz(func(t *testing.T, text string) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		b := &booter{Options: Options{Say: func(string, ...any) {}}, http: &http.Client{Transport: refusing{}}}
		(&interpreter{booter: b}).script(ctx, text)
	})
}

type refusing struct{}

func (refusing) RoundTrip(*http.Request) (*http.Response, error) { return nil, http.ErrServerClosed }
