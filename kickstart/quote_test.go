package kickstart

import (
	"encoding/json"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"rackstrap/internal/shlex"
	"rackstrap/internal/testenv"
)

// nasty are values that mean something to one reader or another.
var nasty = []string{
	"", "x", "a b", "'", `"`, `\`, `\\`, `x\`, "$HOME", "$(touch /pwned)", "`touch /pwned`", "; touch /pwned", "a\tb", "*", "~", "!", "#", "a#b", "%end", "%%", "%h",
	"|", "&", "END", "-n", "--flag", "{}", "[x]", "a: b", "- a", "null", "yes", "é", "日本", "\U0001F600", `'"'"'`, `\n`, `\U0000000A`, "@DISK@", "x,y",
}

// hostile are those that no place of one line may take.
var hostile = []string{
	"a\nb", "a\n%end\n%post\ntouch /pwned", "a\r\n", "a\rb", "\x00", "a\vb", "a\fb", "\x1c", "\x1d", "\x1e", "\u0085", "\u2028", "x\u2029%end", "\x1b[2J", "\x7f", "\xff", "\xc3(",
}

func TestOneLineOnly(t *testing.T) {
	for name, quote := range map[string]func(string) (string, error){
		"ks": ks, "sh": sh, "line": line, "word": word, "name": name, "pkg": pkg, "unit": unit, "curl": curlString,
	} {
		for _, value := range hostile {
			_, err := quote(value)
			require.Error(t, err, "%s %q", name, value)
			require.NotContains(t, err.Error(), value)
		}
	}
	// These can spell them.
	for name, quote := range map[string]func(string) (string, error){"yaml": escaped, "json": jsonString} {
		for _, value := range append(hostile, nasty...) {
			got, err := quote(value)
			if !utf8.ValidString(value) {
				require.Error(t, err)
				continue
			}
			require.NoError(t, err)
			require.NoError(t, oneLine(got), "%s %q", name, value)
		}
	}
}

func TestShellQuoting(t *testing.T) {
	bash := testenv.NeedTool(t, "bash")
	for _, value := range nasty {
		quoted, err := sh(value)
		require.NoError(t, err, value)
		cmd := exec.Command(bash, "-c", "printf %s "+quoted)
		cmd.Dir = t.TempDir()
		out, err := cmd.Output()
		require.NoError(t, err, value)
		require.Equal(t, value, string(out))
	}
}

func TestKickstartQuoting(t *testing.T) {
	for _, value := range nasty {
		quoted, err := ks(value)
		if ascii(value) != nil {
			require.Error(t, err, value)
			continue
		}
		require.NoError(t, err, value)
		words, err := shlex.Split("command --option=" + quoted + " next")
		require.NoError(t, err, value)
		require.Equal(t, []string{"command", "--option=" + value, "next"}, words)
	}
}

func TestYAMLQuoting(t *testing.T) {
	for _, value := range append(hostile, nasty...) {
		quoted, err := escaped(value)
		if !utf8.ValidString(value) {
			continue
		}
		require.NoError(t, err)
		var got any
		require.NoError(t, yaml.Unmarshal([]byte("- "+quoted+" # x\n"), &got), quoted)
		require.Equal(t, []any{value}, got)
	}
}

// There is no TOML reader among our libraries. Its basic strings are a part of Go's.
func TestTOMLQuoting(t *testing.T) {
	for _, value := range append(hostile, nasty...) {
		if quoted, err := escaped(value); err == nil {
			got, err := strconv.Unquote(quoted)
			require.NoError(t, err, quoted)
			require.Equal(t, value, got)
		}
	}
}

func TestJSONQuoting(t *testing.T) {
	for _, value := range append(hostile, nasty...) {
		if quoted, err := jsonString(value); err == nil {
			var got string
			require.NoError(t, json.Unmarshal([]byte(quoted), &got))
			require.Equal(t, value, got)
		}
	}
}

func TestLinesComeBackThroughSed(t *testing.T) {
	sed := testenv.NeedTool(t, "sed")
	text := strings.Join(nasty, "\n") + "\n|\n||x\n  %end\nEND\n\n"
	quoted, err := lines(text)
	require.NoError(t, err)
	for l := range strings.Lines(quoted) {
		require.Equal(t, byte('|'), l[0])
	}
	cmd := exec.Command(sed, "s/^|//")
	cmd.Stdin = strings.NewReader(quoted + "\n")
	out, err := cmd.Output()
	require.NoError(t, err)
	require.Equal(t, text, string(out))
	for _, value := range []string{"a\r\nb", "x\u2028%end", "\x00", "\xff"} {
		_, err := lines(value)
		require.ErrorContains(t, err, "line 1 ")
	}
}

func FuzzQuoting(f *testing.F) {
	for _, value := range append(hostile, nasty...) {
		f.Add(value)
	}
	f.Fuzz(func(t *testing.T, value string) {
		if quoted, err := ks(value); err == nil {
			words, err := shlex.Split(quoted)
			require.NoError(t, err)
			require.Equal(t, []string{value}, words)
		}
		if quoted, err := sh(value); err == nil && quoted != value {
			require.Equal(t, value, strings.ReplaceAll(quoted[1:len(quoted)-1], `'\''`, "'"))
		}
		if quoted, err := escaped(value); err == nil {
			got, err := strconv.Unquote(quoted)
			require.NoError(t, err)
			require.Equal(t, value, got)
			require.NoError(t, oneLine(quoted))
		}
		if quoted, err := jsonString(value); err == nil {
			var got string
			require.NoError(t, json.Unmarshal([]byte(quoted), &got))
			require.Equal(t, value, got)
			require.NoError(t, oneLine(quoted))
		}
		if quoted, err := lines(value); err == nil {
			for l := range strings.Lines(quoted) {
				require.Equal(t, byte('|'), l[0])
			}
		}
	})
}
