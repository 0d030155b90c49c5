package lab

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var mustMatch = regexp.MustCompile

// detached matches nothing.
var detached = regexp.MustCompile(`^\b$`)

func TestWaitLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "serial.log")
	running := func() bool { return true }

	t.Run("what comes later", func(t *testing.T) {
		written := make(chan error, 1)
		time.AfterFunc(2*pollEvery, func() {
			written <- os.WriteFile(path, []byte("\x1b[2J\x1b[01;01Hone\r\naddress 10.0.0.7\r\n"), 0o644)
		})
		match, err := waitLog(deadline(t, 10*time.Second), path, 0, mustMatch(`(?m)^one\naddress (\S+)$`), running)
		require.NoError(t, err)
		require.Equal(t, "10.0.0.7", match[1])
		require.NoError(t, <-written)
	})
	t.Run("not what came before the reset", func(t *testing.T) {
		info, err := os.Stat(path)
		require.NoError(t, err)
		_, err = waitLog(deadline(t, 3*pollEvery), path, info.Size(), mustMatch("address"), running)
		require.ErrorIs(t, err, context.DeadlineExceeded)
	})
	t.Run("the error holds the tail", func(t *testing.T) {
		_, err := waitLog(deadline(t, 3*pollEvery), path, 0, mustMatch("installer reached"), running)
		require.ErrorContains(t, err, `"installer reached"`)
		require.ErrorContains(t, err, "address 10.0.0.7")
		require.ErrorContains(t, err, path)
	})
	t.Run("a writer that has ended", func(t *testing.T) {
		ctx := deadline(t, 10*time.Second)
		_, err := waitLog(ctx, path, 0, mustMatch("two"), func() bool { return false })
		require.ErrorContains(t, err, "ended")
		require.NoError(t, ctx.Err())
		_, err = waitLog(ctx, path, 0, mustMatch("one"), func() bool { return false })
		require.NoError(t, err, "its last words count")
	})
}

func TestPlain(t *testing.T) {
	for raw, want := range map[string]string{
		"\x1bc\x1b[?7l\x1b[2J\x1b[0mSeaBIOS\r\n":        "SeaBIOS\n",
		"\x1b[37m\x1b[40m>>Start PXE over IPv4.\x1b[0m": ">>Start PXE over IPv4.",
		"a\x00b\xffc": "ab?c",
	} {
		require.Equal(t, want, plain([]byte(raw)))
	}
	require.Equal(t, "c\nd", tail("a\nb\n\nc\n \nd\n\n", 2))
	require.Equal(t, "", tail("", 2))
}
