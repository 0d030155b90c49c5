package shlex

import (
	"encoding/json"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"

	"rackstrap/internal/testenv"
)

func TestSplit(t *testing.T) {
	for text, want := range map[string][]string{
		"":                            nil,
		"  # comment":                 nil,
		"a b\tc":                      {"a", "b", "c"},
		`--append="a b" 'c d'`:        {"--append=a b", "c d"},
		`a#b`:                         {"a"},
		`"a\"b" 'c\d' "e\f" g\ h`:     {`a"b`, `c\d`, `e\f`, "g h"},
		`""`:                          {""},
		"rootpw --iscrypted \"$6$x\"": {"rootpw", "--iscrypted", "$6$x"},
	} {
		got, err := Split(text)
		require.NoError(t, err)
		require.Equal(t, want, got, text)
	}
	for _, text := range []string{`"a`, `'a`, `a\`} {
		_, err := Split(text)
		require.Error(t, err, text)
	}
}

// What Python does is asked of Python.
func TestSplitIsPythons(t *testing.T) {
	python := testenv.NeedTool(t, "python3")
	texts := []string{
		`a b  c`, `a "b c" d`, `a 'b "c' "d 'e"`, `a\ b "c\"d\\e\$f"`, `'a\b'`, `a # b`, `a#b c`, `"#" x`, `--a="b"'c'd`, `""`, `a "" b`, "a\tb", `\#x`, `a\`, `"a`, `'`, `x "\a"`,
	}
	out, err := exec.Command(python, append([]string{"-c", `import json, shlex, sys
def split(text):
    try: return shlex.split(text, comments=True)
    except ValueError: return None
print(json.dumps([split(text) for text in sys.argv[1:]]))`}, texts...)...).Output()
	require.NoError(t, err)
	var want [][]string
	require.NoError(t, json.Unmarshal(out, &want))
	for i, text := range texts {
		got, err := Split(text)
		if want[i] == nil {
			require.Error(t, err, text)
			continue
		}
		require.NoError(t, err, text)
		require.Equal(t, want[i], got, text)
	}
}
