package lab

import (
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/internal/testenv"
)

// The proof must be able to succeed, else KVM would never be used, and to fail.
func TestProof(t *testing.T) {
	testenv.NeedQEMU(t)
	qemu, err := exec.LookPath(emulator)
	require.NoError(t, err)
	require.NoError(t, runProof(deadline(t, time.Minute), qemu, accelTCG))
	require.ErrorContains(t, runProof(deadline(t, time.Minute), qemu, "abacus"), "abacus")
	require.Error(t, runProof(deadline(t, 50*time.Millisecond), qemu, accelTCG), "a guest that hangs")
}

func TestAcceleratorIsProvedOncePerBoot(t *testing.T) {
	testenv.NeedQEMU(t)
	ctx := deadline(t, time.Minute)
	l := New(Spec{StateDir: t.TempDir()}, nil)
	proved, err := l.Accelerator(ctx)
	require.NoError(t, err)
	require.Contains(t, []string{accelKVM, accelTCG}, proved)

	path := filepath.Join(l.spec.StateDir, accelFile)
	raw, err := os.ReadFile(path)
	require.NoError(t, err)
	var record accelRecord
	require.NoError(t, json.Unmarshal(raw, &record))
	rewrite := func() {
		require.NoError(t, writeFile(path, func(w io.Writer) error { return json.NewEncoder(w).Encode(record) }))
	}

	record.Accel = "remembered"
	rewrite()
	got, err := l.Accelerator(ctx)
	require.NoError(t, err)
	require.Equal(t, "remembered", got)

	record.BootID = "of yesterday"
	rewrite()
	got, err = l.Accelerator(ctx)
	require.NoError(t, err)
	require.Equal(t, proved, got)

	got, err = New(Spec{StateDir: l.spec.StateDir, Accel: "told"}, nil).Accelerator(ctx)
	require.NoError(t, err)
	require.Equal(t, "told", got)
}
