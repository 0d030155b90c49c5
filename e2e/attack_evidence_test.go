package e2e

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/stretchr/testify/require"

	"rackstrap/firstboot/api"
)

// Whoever makes noise in a machine's name pushes nothing of its story out of its timeline, and the noise is counted.
func TestAttackEvidence(t *testing.T) {
	n := newNetwork(t, "e2eevidence")
	config := stormConfig(t, 2)
	n.serve(t, config)
	c := newNodeCalls(t, n, config)
	story := []string{"armed (listed)", "armed -> installing (kickstart fetched), attempt 1", "installing -> installed (reported by its %post)"}

	// 1,200 calls that are refused, and as many boot files that are.
	urls := &bytes.Buffer{}
	for i := range 1200 {
		fmt.Fprintf(urls, "url=\"http://10.20.0.1:8080/ks/52-54-00-01-00-00/%d\"\noutput=/dev/null\nurl=\"http://10.20.0.1:8080/grub/host-52:54:00:01:00:01.cfg?%d\"\noutput=/dev/null\n", i, i)
	}
	c.write("urls", urls.String(), 0o600)
	c.inside("curl", "-sS", "--config", filepath.Join(c.root, "urls"))
	// DHCP in its name, from a relay, as fast as a shell sends it.
	discover, err := dhcpv4.NewDiscovery(stormMAC(0), dhcpv4.WithRelay([]byte{10, 20, 0, 2}), dhcpv4.WithOption(dhcpv4.OptClassIdentifier("PXEClient")))
	require.NoError(t, err)
	c.write("packet", string(discover.ToBytes()), 0o600)
	c.write("spoof", "for ((i = 0; i < 4000; i++)); do cat \"$1\" >/dev/udp/10.20.0.1/67; done\n", 0o600)
	c.inside("bash", filepath.Join(c.root, "spoof"), filepath.Join(c.root, "packet"))

	events := rackstrap(t, "--config", config, "events", "m0", "--limit", "0")
	for _, line := range story {
		require.Contains(t, events, line)
	}
	require.LessOrEqual(t, strings.Count(events, "kickstart of m0 asked for by"), 30, "alarms are counted")
	require.Less(t, strings.Count(events, "\n"), 1000)
}

// A worker that somebody has taken over floods the appliance with reports and logs: it is asked to wait, what is kept is
// bounded, and the operator's commands are answered meanwhile.
func TestAttackWorkerFlood(t *testing.T) {
	n := newNetwork(t, "e2eflood")
	config := stormConfig(t, 2)
	d := n.serve(t, config)
	c := newNodeCalls(t, n, config)
	status, credential := c.exchange()
	require.Equal(t, 200, status)

	report := strings.Repeat("x", 3500)
	c.write("report", `{"attempt":1,"kind":"failed","phase":"`+report[:200]+`","text":"`+report+`"}`, 0o600)
	c.write("log", strings.Repeat("token=0123456789abcdef $6$aaaaaaaa$bbbbbbbbbbbbbbbbb\n", api.MaxLog/64), 0o600)
	c.write("calls", strings.Repeat("url=\"https://10.20.0.1:8443/api/v1/nodes/m0/events\"\noutput=/dev/null\n", 9000), 0o600)
	header := []string{"curl", "-sSk", "--parallel", "--parallel-max", "8", "--no-progress-meter", "-w", "%{http_code}\n", "-H", "Authorization: Bearer " + credential,
		"-H", api.HeaderAttempt + ": 1", "-H", "Content-Type: application/json"}
	codes := c.inside(append(header, "--data-binary", "@"+filepath.Join(c.root, "report"), "--config", filepath.Join(c.root, "calls"))...)
	require.Greater(t, strings.Count(codes, "429"), 5000, "it is asked to wait")
	kept := 0
	for i := range 120 {
		code := c.inside("curl", "-sSk", "-o", os.DevNull, "-w", "%{http_code}", "-X", "PUT", "--data-binary", "@"+filepath.Join(c.root, "log"), "-H", "Authorization: Bearer "+credential,
			"-H", api.HeaderAttempt+": 1", fmt.Sprintf("https://10.20.0.1:8443/api/v1/nodes/m0/logs/l%d.log", i))
		require.Contains(t, []string{"204", "429"}, code)
		if code == "204" {
			kept++
		}
	}
	require.Less(t, kept, 100)
	require.Positive(t, kept)
	require.Contains(t, rackstrap(t, "--config", config, "status"), "m1")
	events := rackstrap(t, "--config", config, "events", "m0", "--limit", "0")
	require.Contains(t, events, "installing -> installed (reported by its %post)")
	require.Less(t, strings.Count(events, "\n"), 700)
	require.Contains(t, events, "it sends more reports or logs than a machine may")
	size := int64(0)
	require.NoError(t, filepath.WalkDir(filepath.Join(filepath.Dir(config), "data", "logs"), func(_ string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			info, _ := e.Info()
			size += info.Size()
		}
		return err
	}))
	require.LessOrEqual(t, size, int64(33<<20))
	log, err := os.Stat(d.log)
	require.NoError(t, err)
	require.Less(t, log.Size(), int64(4<<20), "the daemon's own log")
}
