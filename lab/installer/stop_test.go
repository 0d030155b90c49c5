package installer

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// killed is a %post that a signal ended.
func killed(t *testing.T, kind string) error {
	t.Helper()
	err := exec.Command("/bin/sh", "-c", "kill -9 $$").Run()
	require.Error(t, err)
	return fmt.Errorf("x: %w", &scriptError{kind: kind, place: "ks.cfg:120", err: err, output: "a\nb\n"})
}

// How Anaconda stops, by release, mode and cause: whether %onerror runs, whether it asks, whether the machine reboots.
func TestHowAnacondaStops(t *testing.T) {
	plain := errors.New("cause")
	for _, c := range []struct {
		release release
		cmdline bool
		kind    kind
		err     error
		want    string // onerror, prompt, dead (the process ends, and nothing else), reboot; then the error's severities
	}{
		{7, true, inPre, killed(t, "pre"), "dead 3"},
		{7, false, inPre, killed(t, "pre"), "dead 3"},
		{9, true, inPre, killed(t, "pre"), "dead 3"},
		{7, true, inKickstart, plain, "dead "},
		{9, true, inKickstart, plain, "dead 3"},
		{7, true, inPost, killed(t, "post"), "reboot 332"},
		{7, false, inPost, killed(t, "post"), "prompt 3"},
		{9, true, inPost, killed(t, "post"), "prompt 3"},
		{7, true, inStorage, plain, "reboot 332"},
		{7, false, inStorage, plain, "prompt 3"},
		{9, true, inStorage, plain, "onerror reboot 732"},
		{9, false, inStorage, plain, "prompt 7"},
		{7, true, inSoftware, plain, "reboot 32"},
		{7, false, inSoftware, plain, "prompt "},
		{9, true, inSoftware, plain, "onerror reboot 32"},
		{7, true, inTransaction, plain, "onerror reboot 33"},
		{7, false, inTransaction, plain, "prompt 3"},
		{7, true, inSource, plain, "reboot 33332"},
		{7, true, inBootLoader, plain, "reboot 332"},
		{9, true, inBootLoader, plain, "onerror reboot 2"},
		{7, true, unforeseen, plain, "reboot 2"},
		{7, false, unforeseen, plain, "onerror prompt 2"},
		{9, false, unforeseen, plain, "onerror prompt 2"},
		{7, true, inDracut, plain, "prompt "},
	} {
		s := stopOf(c.release, c.cmdline, c.kind, c.err)
		var said []string
		if s.onError {
			said = append(said, "onerror")
		}
		switch {
		case s.prompt:
			said = append(said, "prompt")
		case s.reboots:
			said = append(said, "reboot")
		default:
			said = append(said, "dead")
		}
		severities := ""
		for _, e := range s.log {
			severities += fmt.Sprint(e.severity)
		}
		require.Equal(t, c.want, strings.Join(append(said, severities), " "), "release %d, cmdline %v, %d", c.release, c.cmdline, c.kind)
		require.False(t, s.prompt && s.after > 0)
		require.LessOrEqual(t, s.after, noticed)
	}
	require.Equal(t, 3*time.Minute, noticed)
	s := stopOf(7, true, inPost, killed(t, "post"))
	require.Equal(t, "Error code -9 running the kickstart script at line 120", s.log[0].text)
}
