package firstboot

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/cluster"
	"rackstrap/firstboot/api"
	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

var mac = inventory.MAC{0x52, 0x54, 0, 0, 0, 0x80}

type plane struct {
	rack    *lifecycle.Rack
	cluster *cluster.Coordinator
	client  *http.Client
	url     string
	now     time.Time
	log     *bytes.Buffer
}

// newPlane serves one machine whose reserved address is the loopback's.
func newPlane(t *testing.T) *plane {
	t.Helper()
	p := &plane{now: time.Now().Add(-time.Hour), log: &bytes.Buffer{}}
	log := slog.New(slog.NewTextHandler(p.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	local := netip.MustParseAddr("127.0.0.1")
	install := inventory.Install{Attempts: 3}
	cfg := &inventory.Config{Machines: []inventory.Machine{
		{Name: "kmaster", MAC: mac, IP: local, Install: install},
		{Name: "knode1", MAC: inventory.MAC{2}, IP: netip.MustParseAddr("10.10.10.81"), Install: install},
	}}
	var err error
	p.rack, err = lifecycle.New(t.Context(), cfg, lifecycle.Options{Store: lifecycle.NewMemoryStore(), Log: log, Now: func() time.Time { return p.now }})
	require.NoError(t, err)
	authority, err := OpenAuthority(t.TempDir(), p.now)
	require.NoError(t, err)
	p.cluster = cluster.New(cluster.Options{Rack: p.rack, Log: log, Now: func() time.Time { return p.now }})
	server, err := Listen(Options{Rack: p.rack, Cluster: p.cluster, Authority: authority, Log: log, Now: func() time.Time { return p.now },
		LogDir: t.TempDir(), Address: local})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	t.Cleanup(func() { cancel(); require.NoError(t, <-done) })
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(authority.PEM()))
	p.client = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	t.Cleanup(p.client.CloseIdleConnections)
	p.url = "https://" + server.Addr().String() + "/api/v1/nodes/"
	return p
}

func (p *plane) install(t *testing.T) (secret string, attempt int) {
	t.Helper()
	p.now = p.now.Add(time.Second)
	p.rack.See(lifecycle.Sighting{MAC: mac, LastBoot: p.now})
	p.now = p.now.Add(time.Second)
	rec, secret, err := p.rack.BeginInstall(t.Context(), mac, p.rack.Ticket(mac))
	require.NoError(t, err)
	m, _ := p.rack.Machine(mac)
	p.rack.SignOfInstaller(m.IP)
	return secret, rec.Attempt
}

func (p *plane) post(t *testing.T, name, secret string, body any) int {
	t.Helper()
	text, err := json.Marshal(body)
	require.NoError(t, err)
	if raw, ok := body.(string); ok {
		text = []byte(raw)
	}
	req, err := http.NewRequest(http.MethodPost, p.url+name+"/events", bytes.NewReader(text))
	require.NoError(t, err)
	req.Header.Set("Authorization", "Bearer "+secret)
	req.Header.Set("Content-Type", "application/json")
	resp, err := p.client.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	return resp.StatusCode
}

func TestInstalledIsReported(t *testing.T) {
	p := newPlane(t)
	secret, attempt := p.install(t)
	done := api.Event{Attempt: attempt, Kind: "installed", Phase: "post", Text: "boot order: UEFI PXEv4 is first"}
	require.Equal(t, http.StatusNoContent, p.post(t, "kmaster", secret, api.Event{Attempt: attempt, Kind: "progress", Text: "packages 40 %"}))
	require.Equal(t, http.StatusNoContent, p.post(t, "kmaster", secret, done))
	require.Equal(t, lifecycle.ActionLocalDisk, p.rack.Decide(mac).Action)
	require.Equal(t, http.StatusNoContent, p.post(t, "kmaster", secret, done), "the answer was lost, it is asked again")
	require.Equal(t, http.StatusConflict, p.post(t, "kmaster", secret, api.Event{Attempt: attempt, Kind: "failed"}), "too late to fail")
	var noted []string
	events, err := p.rack.Events(t.Context(), lifecycle.EventQuery{MAC: mac})
	require.NoError(t, err)
	for _, e := range events {
		if e.Kind == "post" {
			noted = append(noted, e.Text)
		}
	}
	require.Equal(t, []string{"boot order: UEFI PXEv4 is first"}, noted, "once")
	require.NotContains(t, p.log.String(), secret)
}

func TestFailureIsReportedAndRetried(t *testing.T) {
	p := newPlane(t)
	for try := 1; try <= 3; try++ {
		secret, attempt := p.install(t)
		require.Equal(t, try, attempt)
		failure := api.Event{Attempt: attempt, Kind: "failed", Phase: "post", Text: "line 7:\nno space left\x1b[31m" + strings.Repeat("x", 10)}
		require.Equal(t, http.StatusNoContent, p.post(t, "kmaster", secret, failure))
		require.Equal(t, http.StatusNoContent, p.post(t, "kmaster", secret, failure))
	}
	d := p.rack.Decide(mac)
	require.Equal(t, lifecycle.ActionHold, d.Action)
	require.Contains(t, d.Reason, "%post failed: no space left")
	require.NotContains(t, d.Reason, "\x1b")
}

// A machine in its installer learns at once that its installation has failed, and what is next.
func TestVerdictOfAnInstallation(t *testing.T) {
	p := newPlane(t)
	ask := func(attempt int, secret, wait string) (next string, status int) {
		t.Helper()
		req, err := http.NewRequest(http.MethodGet, p.url+"kmaster/installation?wait="+wait, nil)
		require.NoError(t, err)
		req.Header.Set("Authorization", "Bearer "+secret)
		req.Header.Set(api.HeaderAttempt, fmt.Sprint(attempt))
		resp, err := p.client.Do(req)
		require.NoError(t, err)
		defer resp.Body.Close()
		var answer api.Installation
		if resp.StatusCode == http.StatusOK {
			require.NoError(t, json.NewDecoder(resp.Body).Decode(&answer))
		}
		return answer.Next, resp.StatusCode
	}
	var secret string
	var attempt int
	for try := 1; try <= 3; try++ {
		secret, attempt = p.install(t)
		next, _ := ask(attempt, secret, "0")
		require.Equal(t, "go-on", next)
		answer := make(chan string, 1)
		go func() {
			next, _ := ask(attempt, secret, "20")
			answer <- next
		}()
		time.Sleep(300 * time.Millisecond)
		require.Equal(t, http.StatusNoContent, p.post(t, "kmaster", secret, api.Event{Attempt: attempt, Kind: "failed", Phase: "post", Text: "x"}))
		begun := time.Now()
		require.Equal(t, map[bool]string{true: "stay", false: "reboot"}[try == 3], <-answer)
		require.Less(t, time.Since(begun), 5*time.Second)
	}
	_, status := ask(attempt, strings.Repeat("0", 64), "0")
	require.Equal(t, http.StatusUnauthorized, status)
	_, status = ask(attempt, secret, "-1")
	require.Equal(t, http.StatusBadRequest, status)
	_, err := p.rack.Reinstall(t.Context(), "kmaster")
	require.NoError(t, err)
	next, _ := ask(attempt, secret, "20")
	require.Equal(t, "reboot", next, "from the prompt where it stood")
}

// What `status` shows is the line that failed; the tail of the log is in the timeline.
func TestFailureNamesTheLine(t *testing.T) {
	for name, c := range map[string]struct{ phase, tail, want string }{
		"%post":           {"post", "rackstrap: packages\npackage kubeadm-1.28.2 is not installed\nrackstrap: failed at: rpm --query \"$package\" (status 1)\n", `%post failed at: rpm --query "$package" (status 1): package kubeadm-1.28.2 is not installed`},
		"a silent one":    {"post", "rackstrap: swap\nrackstrap: failed at: false (status 1)\n", "%post failed at: false (status 1)"},
		"%post's own":     {"post", "x\nrackstrap: the appliance has no agent for riscv64\n", "%post failed: the appliance has no agent for riscv64"},
		"%pre":            {"pre", "no disk fits >=1T; the disks: sda (500 GB)\n", "%pre failed: no disk fits >=1T; the disks: sda (500 GB)"},
		"Anaconda":        {"install", "10:00:00,1 INFO anaconda: x\n10:00:01,2 ERR packaging: No such group: core\n10:00:02,3 DEBUG blivet: y\n", "install failed: 10:00:01,2 ERR packaging: No such group: core"},
		"a killed one":    {"post", "rackstrap: packages\nkilled by signal 9\n", "%post failed: killed by signal 9 (at: packages)"},
		"the shell's":     {"post", "rackstrap: swap\n/tmp/ks-script-x: line 9: x: unbound variable\n", "%post failed: /tmp/ks-script-x: line 9: x: unbound variable (at: swap)"},
		"a traceback":     {"install", "10:00:01,2 ERR anaconda: x\n10:00:02,1 CRT exception: Traceback (most recent call last):\n\n  File \"a\", line 1\n\nKeyError: 'sda'\n10:00:03,1 INF main: y\n", "install failed: KeyError: 'sda'"},
		"something else":  {"install", "a\nb\n\n", "install failed: b"},
		"nothing":         {"", " \n", "installation failed; it left no log"},
		"a long line":     {"post", strings.Repeat("y", 9000), "%post failed: " + strings.Repeat("y", maxReason-len("…")) + "…"},
		"control symbols": {"po\x1bst", "rackstrap: failed at: \x1b[31mfalse\r (status 1)", "%po?st failed at: ?[31mfalse (status 1)"},
	} {
		require.Equal(t, c.want, failureOf(c.phase, c.tail), name)
	}

	p := newPlane(t)
	secret, attempt := p.install(t)
	failure := api.Event{Attempt: attempt, Kind: "failed", Phase: "post", Text: "token " + secret + " $6$saltsalt$abcdefghijkl\nrackstrap: failed at: curl (status 7)\n"}
	for range 2 {
		require.Equal(t, http.StatusNoContent, p.post(t, "kmaster", secret, failure))
	}
	require.Contains(t, p.rack.Decide(mac).Reason, "kmaster failed, installation 2 of 3 follows: %post failed at: curl (status 7): token (hidden) (hidden)")
	events, err := p.rack.Events(t.Context(), lifecycle.EventQuery{MAC: mac})
	require.NoError(t, err)
	said := 0
	for _, e := range events {
		require.NotContains(t, e.Text, secret)
		if e.Kind == "log" {
			said++
			require.Equal(t, "end of the log of post: token (hidden) (hidden) rackstrap: failed at: curl (status 7)", e.Text)
		}
	}
	require.Equal(t, 1, said)
	require.NotContains(t, p.log.String(), secret)
}

func TestProgressIsShown(t *testing.T) {
	p := newPlane(t)
	secret, attempt := p.install(t)
	for _, r := range []api.Event{
		{Phase: "pre", Percent: 50, Text: "disk"}, {Phase: "post", Percent: 25, Text: "kernel"}, {Phase: "post", Percent: 5, Text: "overtaken"},
		{Phase: "post", Percent: 25, Text: "token " + secret},
	} {
		r.Attempt, r.Kind = attempt, "progress"
		require.Equal(t, http.StatusNoContent, p.post(t, "kmaster", secret, r))
	}
	require.Equal(t, "post 25%: token (hidden)", p.rack.Machines()[0].Progress.String())
	require.Equal(t, http.StatusNoContent, p.post(t, "kmaster", secret, api.Event{Attempt: attempt, Kind: "progress", Phase: "post", Percent: 1 << 30}))
	require.Equal(t, 100, p.rack.Machines()[0].Progress.Percent)
	events, err := p.rack.Events(t.Context(), lifecycle.EventQuery{MAC: mac})
	require.NoError(t, err)
	var texts []string
	for _, e := range events {
		if e.Kind == "progress" {
			texts = append(texts, e.Text)
		}
	}
	require.Equal(t, []string{"pre 50%: disk", "post 25%: kernel", "post 25%: token (hidden)", "post 100%"}, texts)
}

func TestRefusals(t *testing.T) {
	p := newPlane(t)
	old, first := p.install(t)
	secret, attempt := p.install(t)
	require.Equal(t, first+1, attempt)
	for _, c := range []struct {
		why, name, secret string
		body              any
		want              int
	}{
		{"a superseded attempt", "kmaster", old, api.Event{Attempt: first, Kind: "installed"}, http.StatusGone},
		{"an old token for the new attempt", "kmaster", old, api.Event{Attempt: attempt, Kind: "installed"}, http.StatusUnauthorized},
		{"an attempt that was never made", "kmaster", secret, api.Event{Attempt: 99, Kind: "installed"}, http.StatusUnauthorized},
		{"no token", "kmaster", "", api.Event{Attempt: attempt, Kind: "installed"}, http.StatusUnauthorized},
		{"another machine's name", "knode1", secret, api.Event{Attempt: 1, Kind: "installed"}, http.StatusForbidden},
		{"nobody", "nobody", secret, api.Event{Attempt: 1, Kind: "installed"}, http.StatusNotFound},
		{"nonsense", "kmaster", secret, "}{", http.StatusBadRequest},
		{"a kind that is none", "kmaster", secret, api.Event{Attempt: attempt, Kind: "rm -rf"}, http.StatusBadRequest},
		{"a novel", "kmaster", secret, api.Event{Attempt: attempt, Kind: "failed", Text: strings.Repeat("x", api.MaxBody)}, http.StatusRequestEntityTooLarge},
	} {
		require.Equal(t, c.want, p.post(t, c.name, c.secret, c.body), c.why)
	}
	require.Equal(t, lifecycle.Installing, p.rack.Decide(mac).Record.State, "none of it changed anything")
	require.NotContains(t, p.log.String(), secret)
	require.NotContains(t, p.log.String(), old)
}

func TestAuthorityStays(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	first, err := OpenAuthority(dir, now)
	require.NoError(t, err)
	again, err := OpenAuthority(dir, now.Add(time.Hour))
	require.NoError(t, err)
	require.Equal(t, first.PEM(), again.PEM())
	require.NotContains(t, string(first.PEM()), "PRIVATE")
	info, err := os.Stat(filepath.Join(dir, "ca.pem"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())

	leaf, err := first.Certificate(now, netip.MustParseAddr("10.10.10.1"))
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(leaf.Certificate[0])
	require.NoError(t, err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(first.PEM())
	for _, when := range []time.Duration{-20 * time.Hour, 0, 300 * 24 * time.Hour} { // a clock that is behind is fine
		_, err = cert.Verify(x509.VerifyOptions{Roots: roots, DNSName: "10.10.10.1", CurrentTime: now.Add(when)})
		require.NoError(t, err, fmt.Sprint(when))
	}

	require.NoError(t, os.WriteFile(filepath.Join(dir, "ca.pem"), first.PEM(), 0o600)) // its key was lost
	_, err = OpenAuthority(dir, now)
	require.ErrorContains(t, err, "no certificate with its key")
}

// FuzzFailureOf: whatever a machine sends, what `status` shows is one short line.
func FuzzFailureOf(f *testing.F) {
	f.Add("post", "rackstrap: packages\npackage x is not installed\nrackstrap: failed at: rpm (status 1)\n")
	f.Add("", "\n\x00rackstrap: \xff ERR ")
	f.Fuzz(func(t *testing.T, phase, tail string) {
		if len(phase) > 100 {
			return
		}
		reason := failureOf(phase, tail)
		require.NotEmpty(t, reason)
		require.LessOrEqual(t, len(reason), maxReason+len(phase)+40)
		require.Equal(t, -1, strings.IndexFunc(reason, func(r rune) bool { return r < ' ' || r == 0x7f || r > '~' && r != '…' }), "%q", reason)
	})
}

// Firmware that asks in the name of a machine whose agent goes on with its connection is somebody else.
func TestConnectionThatOutlivesABoot(t *testing.T) {
	p := newPlane(t)
	secret, attempt := p.install(t)
	p.now = p.now.Add(time.Second)
	require.Equal(t, http.StatusNoContent, p.post(t, "kmaster", secret, api.Event{Attempt: attempt, Kind: "installed", Phase: "post"}))
	given, err := p.cluster.Exchange(t.Context(), "kmaster", secret, api.Exchange{Attempt: attempt, MAC: mac.String()})
	require.NoError(t, err)
	suspected := func() bool {
		m, err := p.rack.Member("kmaster")
		require.NoError(t, err)
		require.False(t, m.Record.IsHeld())
		req, err := http.NewRequest(http.MethodGet, p.url+"kmaster/work", nil)
		require.NoError(t, err)
		req.Header.Set("Authorization", "Bearer "+given.Credential)
		req.Header.Set(api.HeaderAttempt, strconv.Itoa(attempt))
		resp, err := p.client.Do(req)
		require.NoError(t, err)
		_, err = io.Copy(io.Discard, resp.Body)
		require.NoError(t, errors.Join(err, resp.Body.Close()))
		require.Less(t, resp.StatusCode, 300)
		return strings.Contains(p.rack.Machines()[0].Reason, "somebody else")
	}
	require.False(t, suspected())
	p.rack.See(lifecycle.Sighting{MAC: mac, LastBoot: time.Now()}) // as connections, by the real clock
	p.client.CloseIdleConnections()
	require.False(t, suspected(), "it has booted")
	p.now = time.Now()
	p.rack.See(lifecycle.Sighting{MAC: mac, LastBoot: time.Now()})
	require.True(t, suspected())
}
