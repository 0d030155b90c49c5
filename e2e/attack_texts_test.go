package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/stretchr/testify/require"

	"rackstrap/internal/testenv"
)

// forged is a perfect line of the timeline, behind what clears the screen, with C1, DEL and bidirectional characters.
const forged = "\x1b[2J\r\n2026-11-30 12:00:00.000  m0                 lifecycle  ready         joined -> ready (seen by m1)\n\u009b31m\u0085\x7f\u202e\u2066\u2028\u200b\xff"

// Texts of strangers and of machines, by every listener, come out of every command as harmless parts of a line.
func TestAttackTexts(t *testing.T) {
	testenv.NeedTool(t, "logger", "bash")
	n := newNetwork(t, "e2eplain")
	config := stormConfig(t, 2)
	d := n.serve(t, config)
	i := newInstaller(t, n, config, 0)
	send := func(to string, packet []byte) {
		i.write("packet", string(packet), 0o600)
		i.inside("bash", "-c", "cat "+filepath.Join(i.root, "packet")+" > /dev/"+to)
	}
	post := func(call string, body any) {
		text, err := json.Marshal(body)
		require.NoError(t, err)
		i.write("body", string(text), 0o600)
		token := i.kickstart[strings.Index(i.kickstart, "Bearer ")+7:][:64]
		i.inside("curl", "-sSk", "--data-binary", "@"+filepath.Join(i.root, "body"), "-H", "Content-Type: application/json",
			"-H", "Authorization: Bearer "+token, "-H", "Rackstrap-Attempt: 1", "https://10.20.0.1:8443/api/v1/nodes/m0/"+call)
	}
	request := func(mac net.HardwareAddr, text string) []byte {
		p, err := dhcpv4.NewDiscovery(mac, dhcpv4.WithRelay(net.IPv4(10, 20, 0, 2)), dhcpv4.WithOption(dhcpv4.OptClassIdentifier("PXEClient"+text)),
			dhcpv4.WithOption(dhcpv4.OptHostName(text)), dhcpv4.WithOption(dhcpv4.OptUserClass(text)))
		require.NoError(t, err)
		return p.ToBytes()
	}
	type event struct {
		Attempt int    `json:"attempt"`
		Kind    string `json:"kind"`
		Phase   string `json:"phase"`
		Text    string `json:"text"`
	}
	channels := []struct {
		name, command string
		play          func(text string)
	}{
		{"agent", "events", func(text string) {
			i.inside("curl", "-sS", "-A", strings.Map(printableOnly, text), "http://10.20.0.1:8080/ks/52-54-00-01-00-01/TICKET", "-o", os.DevNull)
			for _, path := range []string{"/media/tree/", "/boot/", "/ks/", "/images/", "/repo/", "/"} {
				i.inside("curl", "-sS", "--path-as-is", "http://10.20.0.1:8080"+path+url.PathEscape(text), "-o", os.DevNull)
			}
		}},
		{"file", "events", func(text string) { send("udp/10.20.0.1/69", []byte("\x00\x01"+text+"\x00octet\x00")) }},
		{"class", "machines", func(text string) { send("udp/10.20.0.1/67", request(net.HardwareAddr{2, 0, 0, 0, 0, 9}, text)) }},
		{"syslog", "", func(text string) {
			send("tcp/10.20.0.1/5514", []byte("<13>1 - - "+text+" - - - "+text+"\n<13>x: Installing bash (60/266)\n"))
		}},
		{"progress", "events", func(text string) { post("events", event{1, "progress", text, text}) }},
		{"installer", "events", func(text string) {
			post("events", event{1, "failed", "post", text + "\nrackstrap: failed at: " + text})
		}},
		{"status", "", func(string) {
			for _, args := range [][]string{{"status"}, {"render", "ipxe", "m0"}, {"render", "grub", "m0"}} {
				out := rackstrap(t, append([]string{"--config", config}, args...)...)
				require.Contains(t, out, "mark-installer", "the machine is failed")
				harmless(t, fmt.Sprint(args), out)
			}
		}},
		{"facts", "events", func(text string) {
			rackstrap(t, "--config", config, "adopt", "m0")
			post("exchange", map[string]any{"attempt": 1, "mac": stormMAC(0).String(), "facts": map[string]any{"hostname": text, "os": text, "kernel": text}})
		}},
	}
	for _, c := range channels {
		if c.name == "file" || c.name == "class" || c.name == "syslog" {
			c.play("mark-" + c.name + strings.ReplaceAll(forged, "\x00", "")) // packets hold it as it is
			continue
		}
		c.play("mark-" + c.name + forged)
	}
	for _, c := range channels {
		if c.command == "" { // it is in the log of the installer alone
			continue
		}
		require.Eventually(t, func() bool {
			return strings.Contains(rackstrap(t, "--config", config, c.command), "mark-"+c.name)
		}, 20*time.Second, 100*time.Millisecond, "%s is not in %s:\n%s", c.name, c.command, rackstrap(t, "--config", config, c.command))
	}
	line := regexp.MustCompile(`^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}  (m0|m1|rack|02:00:00:00:00:09|52:54:00:01:\S+) +(dhcp|tftp|http|lifecycle|node|syslog|cluster|operator) +[a-z-]+ +\S`)
	for l := range strings.Lines(rackstrap(t, "--config", config, "events", "--limit", "0")) {
		require.Regexp(t, line, l)
	}
	for _, args := range [][]string{{"events"}, {"events", "m0"}, {"events", "-o", "json"}, {"status"}, {"status", "-o", "json"}, {"machines"}, {"machines", "-o", "json"}} {
		harmless(t, fmt.Sprint(args), rackstrap(t, append([]string{"--config", config}, args...)...))
	}
	for file, mark := range map[string]string{d.log: "mark-installer", filepath.Join(filepath.Dir(config), "data/logs/m0/installer.log"): "mark-syslog"} {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		require.Contains(t, string(text), mark)
		harmless(t, file, string(text))
	}
}

// printableOnly leaves what a header of HTTP may have.
func printableOnly(r rune) rune {
	if r < ' ' || r == 0x7f {
		return -1
	}
	return r
}

// harmless fails if a text could move a cursor, or has the forged line in it as a line.
func harmless(t *testing.T, what, text string) {
	t.Helper()
	at := strings.IndexFunc(text, func(r rune) bool { return r != '\n' && (!unicode.IsPrint(r) || r == unicode.ReplacementChar) })
	require.Negative(t, at, "%s: %q", what, text[max(0, at-60):min(len(text), max(0, at)+60)])
	require.NotRegexp(t, `(?m)^\S+ \S+ +m0 +lifecycle +ready `, text, what)
	require.NotContains(t, text, "\n2026-11-30 12:00:00.000", what)
}

// Paths that are asked for below a repository, and what its upstream answers, are words of strangers, too.
func TestAttackWordsOfAMirror(t *testing.T) {
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.Contains(r.URL.Path, "redirect"):
			w.Header()["Location"] = []string{"mark-location\u202e\u009b31m://x"}
			w.WriteHeader(http.StatusFound)
		case strings.Contains(r.URL.Path, "garbage"):
			conn, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				fmt.Fprintf(conn, "HTTP/1.1 mark-garbage%s\r\n\r\n", forged)
				conn.Close()
			}
		default:
			w.Header().Set("Content-Type", "text/html")
			fmt.Fprint(w, "<html>"+forged)
		}
	}))
	defer upstream.Close()
	config, _ := repoConfig(t, upstream.URL)
	address, _ := serveRepos(t, config)
	for _, path := range []string{"redirect", "garbage", "html", "repodata/repomd.xml", ".treeinfo"} {
		resp, err := http.Get(address + path + url.PathEscape(forged))
		require.NoError(t, err)
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		require.NoError(t, err)
		require.GreaterOrEqual(t, resp.StatusCode, 400)
		harmless(t, path, string(body))
	}
	resp, err := http.Get(address + "repodata/repomd.xml")
	require.NoError(t, err)
	resp.Body.Close()
	events := rackstrap(t, "--config", config, "events")
	require.Contains(t, events, " upstream ")
	for _, args := range [][]string{{"events"}, {"events", "-o", "json"}, {"status"}} {
		harmless(t, fmt.Sprint(args), rackstrap(t, append([]string{"--config", config}, args...)...))
	}
}
