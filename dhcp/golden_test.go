package dhcp

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the golden files anew")

// dump writes a message as text: what a change of it changes shows in the diff.
func dump(m *dhcpv4.DHCPv4) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s flags=%#04x yiaddr=%s siaddr=%s giaddr=%s\n", m.MessageType(), m.Flags, m.YourIPAddr, m.ServerIPAddr, m.GatewayIPAddr)
	fmt.Fprintf(&b, "sname=%q\nfile=%q\n", m.ServerHostName, m.BootFileName)
	for _, code := range slices.Sorted(maps.Keys(m.Options)) {
		fmt.Fprintf(&b, "%3d %x %q\n", code, m.Options[code], m.Options[code])
	}
	return b.String()
}

// TestGolden compares the whole OFFER and ACK that each firmware gets.
func TestGolden(t *testing.T) {
	for name, firmware := range firmwareOf {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, config())
			var got strings.Builder
			for _, req := range []*dhcpv4.DHCPv4{
				discover(macMaster, firmware),
				request(macMaster, firmware, server(ours), wants(masterIP)),
			} {
				a := r.ask(req)
				sane(t, r.view(), req, a)
				back, err := dhcpv4.FromBytes(a.Reply.ToBytes())
				require.NoError(t, err)
				got.WriteString(dump(back))
			}
			got.WriteString(strings.Join(r.events(macMaster), "\n") + "\n")
			path := filepath.Join("testdata", name+".golden")
			if *update {
				require.NoError(t, os.MkdirAll("testdata", 0o755))
				require.NoError(t, os.WriteFile(path, []byte(got.String()), 0o644))
			}
			want, err := os.ReadFile(path)
			require.NoError(t, err)
			require.Equal(t, string(want), got.String())
		})
	}
}
