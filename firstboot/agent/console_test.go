package agent

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/firstboot/api"
)

// The fingerprint is on the console, once, as long as the confirmation is awaited.
func TestFingerprintOnTheConsole(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"etc", "dev", "run"} {
		require.NoError(t, os.Mkdir(filepath.Join(root, dir), 0o755))
	}
	const original = "\\S\nKernel \\r on an \\m\n\n"
	issue, console := filepath.Join(root, "etc/issue"), filepath.Join(root, "dev/console")
	require.NoError(t, os.WriteFile(issue, []byte(original), 0o644))
	require.NoError(t, os.WriteFile(console, nil, 0o600))
	h := NewHost(HostOptions{Config: api.Config{Name: "kmaster1"}, Root: root, Log: slog.New(slog.DiscardHandler), Now: time.Now})
	reload := filepath.Join(root, "run/agetty.reload")
	require.NoError(t, os.WriteFile(reload, nil, 0o644))
	require.NoError(t, os.Chtimes(reload, time.Unix(1, 0), time.Unix(1, 0)))
	read := func(path string) string {
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		return string(text)
	}
	for _, fingerprint := range []string{"SHA256:one", "SHA256:one", "SHA256:two"} {
		h.ShowFingerprint(fingerprint)
		require.Equal(t, original+issueBegin+"kmaster1  "+fingerprint+"\n"+issueEnd, read(issue))
		require.Contains(t, read(console), "kmaster1  "+fingerprint+"\r\n")
	}
	touched, err := os.Stat(reload)
	require.NoError(t, err)
	require.WithinDuration(t, time.Now(), touched.ModTime(), time.Minute)
	h.ShowFingerprint("")
	require.Equal(t, original, read(issue))
	h.ShowFingerprint("")
	require.Equal(t, original, read(issue))
}

// What the appliance awaits is shown while it does, each once, and is taken away when there is work.
func TestFingerprintIsShownWhileItIsAwaited(t *testing.T) {
	answers := []string{`{"reason":"a","confirm":"SHA256:one"}`, `{"reason":"a","confirm":"SHA256:one"}`, `{"reason":"b"}`, `{"id":"init.1.1","action":"init"}`}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if len(answers) > 1 {
			w.WriteHeader(http.StatusAccepted)
		}
		io.WriteString(w, answers[0])
		answers = answers[1:]
	}))
	defer server.Close()
	var shown []string
	c := newCaller(Options{Config: api.Config{Server: server.URL, Name: "kmaster1", Attempt: 1}, Client: server.Client(), Now: time.Now,
		Log: slog.New(slog.DiscardHandler), Show: func(fingerprint string) { shown = append(shown, fingerprint) }})
	work, err := c.awaitWork(t.Context(), nil)
	require.NoError(t, err)
	require.Equal(t, api.Init, work.Action)
	require.Equal(t, []string{"SHA256:one", ""}, shown)
}
