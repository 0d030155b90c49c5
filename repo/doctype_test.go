package repo

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestCompsNamesItsDTD: every CentOS's comps file does. One that declares entities is refused all the same.
func TestCompsNamesItsDTD(t *testing.T) {
	const head, group = `<?xml version="1.0" encoding="UTF-8"?>`, `<comps><group><id>core</id></group></comps>`
	c, err := parseComps(strings.NewReader(head + `<!DOCTYPE comps PUBLIC "-//CentOS//DTD Comps info//EN" "comps.dtd">` + group))
	require.NoError(t, err)
	require.NotNil(t, c.groups["core"])
	_, err = parseComps(strings.NewReader(head + `<!DOCTYPE comps [<!ENTITY a "b">]>` + group))
	require.ErrorContains(t, err, "document type")
}
