package plain

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

func TestLine(t *testing.T) {
	for _, tc := range []struct{ name, text, want string }{
		{"nothing", "", ""},
		{"plain", "GET /boot/52-54-00-00-00-50 (404)", "GET /boot/52-54-00-00-00-50 (404)"},
		{"letters", "Größe 日本 é", "Größe 日本 é"},
		{"escape", "a\x1b[2Jb", "a?[2Jb"},
		{"operating system command", "a\x1b]0;title\x07b", "a?]0;title?b"},
		{"new lines", "a\nb\r\nc\vd\fe", "a b c d e"},
		{"NUL and backspace", "a\x00b\bc", "a?b?c"},
		{"DEL", "a\x7fb", "a?b"},
		{"C1 in UTF-8", "a\u009b2Jb", "a?2Jb"},
		{"C1 as a byte", "a\x9b2Jb", "a?2Jb"},
		{"next line", "a\u0085b", "a b"},
		{"separators", "a\u2028b\u2029c", "a b c"},
		{"right to left", "a\u202eb\u2066c\u2069d\u200fe\u061cf", "a?b?c?d?e?f"},
		{"format", "a\u200bb\u00adc\ufeffd\U000e0041e", "a?b?c?d?e"},
		{"private and unassigned", "a\ue000b\uffffc", "a?b?c"},
		{"fillers and selectors", "a\u3164b\u034fc\ufe0fd", "a?b?c?d"},
		{"invalid", "a\xc3(b\xff\xfe", "a?(b??"},
		{"surrogate", "a\xed\xa0\x80b", "a???b"},
		{"replacement", "a\ufffdb", "a?b"},
		{"blanks", "  a      b\u00a0\u3000\u2003c\t", "a b c"},
	} {
		require.Equal(t, tc.want, Line(tc.text, 1000), tc.name)
		require.Equal(t, tc.want, End(tc.text, 1000), tc.name)
		require.Equal(t, tc.want, Line(tc.want, 1000), "%s: twice is once", tc.name)
	}
	require.Equal(t, "Gr??e ??", ASCII("Größe 日本", 100))
	require.Equal(t, "a\n b?  c\n\nd", Lines("a\n\tb\x1b  c\n\nd", 100))
	require.Equal(t, " a  b c", Spaced("\ta  b\nc\n", 100))
}

func TestJSON(t *testing.T) {
	text := map[string]string{"a": "\x1b\x7f\u009b\u202e\U000e0041\u2028\n\xff é日"}
	var b strings.Builder
	require.NoError(t, json.NewEncoder(JSON(&b)).Encode(text))
	require.Equal(t, `{"a":"\u001b\u007f\u009b\u202e\udb40\udc41\u2028\n\ufffd é日"}`+"\n", b.String())
	var back map[string]string
	require.NoError(t, json.Unmarshal([]byte(b.String()), &back))
	require.Equal(t, strings.ToValidUTF8(text["a"], "\ufffd"), back["a"], "nothing is lost")
}

// A text is cut at a bound in bytes, between characters, and shows that it was.
func TestBounds(t *testing.T) {
	for _, text := range []string{strings.Repeat("x", 1<<20), strings.Repeat("ü", 1<<20), strings.Repeat("\x1b", 1<<20), strings.Repeat("日\x1b", 1<<20)} {
		for most := 3; most < 40; most++ {
			for _, short := range []string{Line(text, most), End(text, most), Spaced(text, most)} {
				require.LessOrEqual(t, len(short), most)
				require.True(t, utf8.ValidString(short))
				require.Contains(t, short, "…")
			}
		}
	}
	require.Equal(t, "abc…", Line("abcdefgh", 6))
	require.Equal(t, "…fgh", End("abcdefgh", 6))
	require.Equal(t, "reason", End(strings.Repeat("\n", 1<<20)+"reason", 100))
}

func FuzzLine(f *testing.F) {
	for _, seed := range []string{"", "a\x1b[2J", "\u202e", "\xff\n\n", "  a  b "} {
		f.Add(seed, 20)
	}
	f.Fuzz(func(t *testing.T, text string, most int) {
		most = min(max(most, 3), 200)
		for _, got := range []string{Line(text, most), End(text, most), ASCII(text, most)} {
			require.LessOrEqual(t, len(got), most)
			require.True(t, utf8.ValidString(got))
			require.False(t, strings.ContainsFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }), "%q", got)
			require.NotContains(t, got, "  ")
		}
	})
}

func TestDeep(t *testing.T) {
	type state string
	type inner struct {
		Text  string
		State state
	}
	value := struct {
		At    time.Time
		MAC   [6]byte
		Inner *inner
		None  *inner
		List  []inner
		Names []string
		By    map[string]inner
		Any   map[state]string
		own   string
	}{
		At: time.Unix(1, 0), MAC: [6]byte{1}, Inner: &inner{"a\nb", "c\x1b"}, List: []inner{{"\u202e", ""}}, Names: []string{"x\ty"},
		By: map[string]inner{"k\n1": {"v\n", "s"}}, Any: map[state]string{"a": "b\x7f"}, own: "\n",
	}
	Deep(&value, 100)
	require.Equal(t, inner{"a b", "c?"}, *value.Inner)
	require.Equal(t, []inner{{"?", ""}}, value.List)
	require.Equal(t, []string{"x y"}, value.Names)
	require.Equal(t, map[string]inner{"k 1": {"v", "s"}}, value.By)
	require.Equal(t, map[state]string{"a": "b?"}, value.Any)
	require.Equal(t, "\n", value.own)
	require.Equal(t, time.Unix(1, 0), value.At)
	require.Equal(t, [6]byte{1}, value.MAC)
}
