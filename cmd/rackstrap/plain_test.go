package main

import (
	"bytes"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/lifecycle"
)

// A cell that holds tabs, lines and escapes stays one cell.
func TestRowOfATable(t *testing.T) {
	var out bytes.Buffer
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	row(w, "NAME", "LAST LINE", "UPTIME")
	row(w, "knode1", "login:\t\x1b[2J\nkmaster  ready\u202e", 3*time.Second)
	require.NoError(t, w.Flush())
	require.Equal(t, "NAME    LAST LINE                   UPTIME\nknode1  login: ?[2J kmaster ready?  3s\n", out.String())
}

func TestLineOfAnEvent(t *testing.T) {
	e := lifecycle.Event{Source: "tftp", Kind: "refused", Level: lifecycle.Warn, Text: "a\n2026-11-30 joined -> ready\x1b[A"}
	require.Regexp(t, `^\S+ \S+  rack +tftp +refused +WARN a 2026-11-30 joined -> ready\?\[A$`, eventLine(e))
}
