package e2e

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/lab/kube"
)

// What is rendered is what the real kubeadm takes, word for word: unknown fields are errors to it.
func TestRealKubeadmAcceptsWhatIsRendered(t *testing.T) {
	if testing.Short() {
		t.Skip("builds Kubernetes: not in -short")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	programs, err := kube.Build(ctx, "", slog.New(slog.NewTextHandler(os.Stderr, nil)))
	require.NoError(t, err)
	validate := func(text string) (string, error) {
		path := filepath.Join(t.TempDir(), "kubeadm.yaml")
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		out, err := exec.CommandContext(ctx, programs.Path("kubeadm"), "config", "validate", "--config", path).CombinedOutput()
		return strings.ToLower(string(out)), err
	}
	// The golden files of package cluster: each kind, with and without a balancer before the API.
	files, err := filepath.Glob("../cluster/testdata/*.yaml")
	require.NoError(t, err)
	seen := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		if !strings.Contains(string(text), "kubeadm.k8s.io/") {
			continue // flannel's
		}
		out, err := validate(string(text))
		require.NoError(t, err, "%s: %s", file, out)
		require.NotContains(t, out, "warning", file)
		seen++
	}
	require.Equal(t, 5, seen)

	config := stormConfig(t, 3)
	for _, what := range []string{"init-config", "join-config"} {
		text := rackstrap(t, "--config", config, "render", what, "m1")
		out, err := validate(text)
		require.NoError(t, err, "%s: %s", what, out)
		broken := strings.NewReplacer("podSubnet", "podSubnets", "caCertHashes", "caCertHash").Replace(text)
		require.NotEqual(t, text, broken)
		out, err = validate(broken)
		require.True(t, err != nil || strings.Contains(out, "unknown field"), "it looks at all: %s", out)
	}
}
