package kickstart

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// What the real parser of each release says of lines with every command and section, every option of either release, and
// every number of words: "+" it takes the line, "-" it refuses it, "~" it takes it, but calls it deprecated. The verdicts are
// pykickstart's (1.99.66.22 and 3.32.15), run on these lines; left out are refusals that depend on two options together.
func TestSyntaxIsTheParsers(t *testing.T) {
	r := newRenderer(t)
	for _, version := range []string{"rhel7", "rhel9"} {
		t.Run(version, func(t *testing.T) {
			text, err := os.ReadFile("testdata/" + version + ".lines")
			require.NoError(t, err)
			checked := 0
			for l := range strings.Lines(string(text)) {
				verdict, tried, _ := strings.Cut(strings.TrimSpace(l), " ")
				whole := "url --url=http://x/\nnetwork --bootproto=dhcp\n" + tried + "\n"
				if strings.HasPrefix(tried, "%") {
					whole += "%end\n"
				}
				problems := r.Check([]byte(whole), version)
				if verdict == "+" {
					require.Empty(t, problems, tried)
				} else {
					require.NotEmpty(t, problems, "%s: the parser does not take it (%s)", tried, verdict)
				}
				checked++
			}
			require.Greater(t, checked, 1400)
		})
	}
}
