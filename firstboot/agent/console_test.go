package agent

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"rackstrap/firstboot/api"
)

// The fingerprint is on the console, once, as long as the confirmation is awaited.
func TestFingerprintOnTheConsole(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"etc", "dev"} {
		require.NoError(t, os.Mkdir(filepath.Join(root, dir), 0o755))
	}
	const original = "\\S\nKernel \\r on an \\m\n\n"
	issue, console := filepath.Join(root, "etc/issue"), filepath.Join(root, "dev/console")
	require.NoError(t, os.WriteFile(issue, []byte(original), 0o644))
	require.NoError(t, os.WriteFile(console, nil, 0o600))
	h := NewHost(HostOptions{Config: api.Config{Name: "kmaster1"}, Root: root, Log: slog.New(slog.DiscardHandler)})
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
	h.ShowFingerprint("")
	require.Equal(t, original, read(issue))
	h.ShowFingerprint("")
	require.Equal(t, original, read(issue))
}
