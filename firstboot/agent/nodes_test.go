package agent

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/firstboot/api"
)

// What kubectl 1.28.2 prints for nodeColumns: of a master, a cordoned node of two addresses that is silent, and one whose
// kubelet has not reported yet.
const nodesPrinted = "kmaster\tTrue\t2026-11-26T12:00:00Z\tKubeletReady\t10.0.0.1\t\n" +
	"knode1\tUnknown\t2026-11-26T12:00:00Z\tNodeStatusUnknown\t10.0.0.2 fd00::2\ttrue\n" +
	"new\t\t\t\t\t\n"

func TestParseNodes(t *testing.T) {
	noon := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	nodes, err := parseNodes(nodesPrinted)
	require.NoError(t, err)
	require.Equal(t, []api.Node{
		{Name: "kmaster", Ready: "True", Since: noon, Address: "10.0.0.1"},
		{Name: "knode1", Ready: "Unknown", Since: noon, Reason: "NodeStatusUnknown", Address: "10.0.0.2", Cordoned: true},
		{Name: "new"},
	}, nodes)
	nodes, err = parseNodes("")
	require.NoError(t, err)
	require.Empty(t, nodes)
	nodes, err = parseNodes("a\tFalse\tyesterday\tit is\\nbroken\t\t\n")
	require.NoError(t, err)
	require.Equal(t, []api.Node{{Name: "a", Ready: "False"}}, nodes, "what is not understood is left out")
	for _, text := range []string{"E1126 memcache.go:265] couldn't get current server API group list\n", "a\tTrue\n", "A B\tTrue\t\t\t\t\n",
		"a\tPerhaps\t\t\t\t\n", "\t\t\t\t\t\n", "\n", "a\tTrue\t\t\t\t\t\n"} {
		_, err = parseNodes(text)
		require.Error(t, err, text)
	}
}

// As many nodes as fit into one call are named, and a thousand do.
func TestNodesFitIntoAResult(t *testing.T) {
	var text strings.Builder
	for i := range 5000 {
		fmt.Fprintf(&text, "knode%d.%s\tUnknown\t2026-11-26T12:00:00Z\tNodeStatusUnknown\t10.10.%d.%d\ttrue\n", i, strings.Repeat("x", 40), i/250, i%250)
	}
	nodes, err := parseNodes(text.String())
	require.NoError(t, err)
	fit := fitting(nodes)
	require.Less(t, fit, 5000)
	require.Greater(t, fit, 1000)
	body, err := json.Marshal(api.Result{OK: true, Nodes: nodes[:fit], Partial: true, Output: strings.Repeat("x", 100)})
	require.NoError(t, err)
	require.Less(t, len(body), api.MaxBody)
}

func FuzzParseNodes(f *testing.F) {
	f.Add(nodesPrinted)
	f.Fuzz(func(t *testing.T, text string) {
		nodes, err := parseNodes(text)
		if err == nil {
			require.LessOrEqual(t, len(nodes), strings.Count(text, "\n")+1)
		}
	})
}
