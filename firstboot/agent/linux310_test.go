package agent

import (
	"context"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/internal/testenv"
)

// The agent runs on the kernel of CentOS 7 as well, whose system calls end with those of 2013: all of these tests once
// more, with newer calls refused.
func TestAgentOnLinux310(t *testing.T) {
	if testenv.IsLinux310() || testing.Short() {
		t.Skip("the tests run under Linux 3.10 already, or in -short") // not for want of anything
	}
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "-test.timeout=5m", "-test.count=1")
	cmd.Env = testenv.Linux310(t)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "PASS")
}
