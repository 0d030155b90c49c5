// Package archtest holds the architecture to its word.
package archtest

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// allowed is which of our packages each package may import: the table of docs/architecture.md. A package
// that does not stand here is a failure: its place in the design has to be thought of first.
var allowed = map[string][]string{
	"inventory":          {},
	"assets":             {},
	"media":              {},
	"images":             {},
	"lifecycle":          {"inventory", "internal/plain"},
	"store":              {"inventory", "lifecycle"},
	"bootplan":           {"inventory", "lifecycle", "assets", "media", "internal/neighbour", "internal/plain"},
	"dhcp":               {"inventory", "lifecycle", "assets", "internal/plain"},
	"tftp":               {"inventory", "lifecycle", "assets", "media", "bootplan", "internal/places", "internal/plain"},
	"httpboot":           {"inventory", "lifecycle", "assets", "media", "bootplan", "repo", "images", "internal/httpserve", "internal/places", "internal/plain"},
	"cluster":            {"inventory", "lifecycle", "firstboot/api", "internal/plain"},
	"firstboot":          {"inventory", "lifecycle", "cluster", "firstboot/api", "internal/httpserve", "internal/places", "internal/plain"},
	"firstboot/api":      {},
	"firstboot/agent":    {"firstboot/api", "internal/efiboot", "internal/httpcall", "internal/plain"},
	"repo":               {"media", "internal/rpm"},
	"syslog":             {"inventory", "lifecycle", "internal/plain"},
	"lab/kube":           {},
	"lab/kube/pause":     {},
	"lab/kube/web":       {},
	"lab/installer":      {"internal/shlex", "internal/rpm"},
	"operator":           {"inventory", "lifecycle", "bootplan", "cluster", "internal/httpcall", "internal/httpserve", "internal/plain"},
	"lab/container":      {},
	"lab/pxe":            {},
	"lab":                {"lab/kube", "lab/installer", "lab/container", "lab/pxe"},
	"kickstart":          {"inventory", "assets", "internal/shlex"},
	"preflight":          {"inventory", "lifecycle", "assets", "media", "repo", "kickstart", "bootplan", "internal/rpm"},
	"cmd/rackstrap":      {"*"},
	"e2e":                {"*"},
	"e2e/fakekube":       {"internal/testca"},
	"internal/testenv":   {},
	"internal/httpcall":  {},
	"internal/httpserve": {},
	"internal/shlex":     {},
	"internal/rpm":       {},
	"internal/efiboot":   {},
	"internal/neighbour": {"inventory"},
	"internal/places":    {},
	"internal/plain":     {},
	"internal/testca":    {},
	"internal/fakenode":  {"firstboot/api", "internal/testca"},
	"internal/repotest":  {},
}

type listed struct {
	ImportPath string
	Imports    []string
}

func packages(t *testing.T) []listed {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", "rackstrap/...").Output()
	require.NoError(t, err)
	var all []listed
	for decode := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := decode.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else {
			require.NoError(t, err)
		}
		all = append(all, p)
	}
}

func TestImportsGoInOneDirection(t *testing.T) {
	all := packages(t)
	require.Greater(t, len(all), 8)
	for _, p := range all {
		name := strings.TrimPrefix(p.ImportPath, "rackstrap/")
		if name == "internal/archtest" {
			continue
		}
		may, known := allowed[name]
		if !known {
			t.Errorf("%s is not in the table of allowed imports", p.ImportPath)
			continue
		}
		for _, imported := range p.Imports {
			ours, isOurs := strings.CutPrefix(imported, "rackstrap/")
			if isOurs && !slices.Contains(may, ours) && !slices.Contains(may, "*") {
				t.Errorf("%s imports %s", name, ours)
			}
		}
	}
}

// The inventory alone reads configuration: whoever else imported viper would make a second source of truth.
func TestOnlyInventoryImportsViper(t *testing.T) {
	for _, p := range packages(t) {
		for _, imported := range p.Imports {
			if strings.HasPrefix(imported, "github.com/spf13/viper") {
				require.Equal(t, "rackstrap/inventory", p.ImportPath)
			}
		}
	}
}
