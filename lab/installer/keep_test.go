package installer

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// The stand-in leaves what Anaconda leaves in the installed system: a test of secrets would be worth nothing otherwise.
func TestKickstartIsKept(t *testing.T) {
	for args, want := range map[string][]string{
		"":                                  {"anaconda-ks.cfg", "original-ks.cfg"},
		"inst.nosave=logs":                  {"anaconda-ks.cfg", "original-ks.cfg"},
		"inst.nosave=input_ks":              {"anaconda-ks.cfg"},
		"inst.nosave=output_ks,logs":        {"original-ks.cfg"},
		"inst.nosave=input_ks,output_ks":    nil,
		"inst.ks.sendsn inst.nosave=all_ks": nil,
		"inst.nosave=all":                   nil,
	} {
		root := t.TempDir()
		j := &job{args: kernelArgs(args), target: system{root: root}, text: []byte("rootpw --iscrypted secret\n")}
		require.NoError(t, j.keepKickstart(), args)
		entries, err := os.ReadDir(filepath.Join(root, "root"))
		if want != nil {
			require.NoError(t, err, args)
		}
		var got []string
		for _, e := range entries {
			got = append(got, e.Name())
		}
		require.Equal(t, want, got, args)
	}
}

func TestScriptsAreKept(t *testing.T) {
	here := system{root: "/"}
	j := &job{Options: Options{Console: io.Discard}, lab: here, target: here, log: newLogs(system{root: t.TempDir()})}
	require.NoError(t, os.MkdirAll(j.log.system.path("/tmp"), 0o755))
	out := filepath.Join(t.TempDir(), "name")
	run := func(text string) string {
		require.NoError(t, j.runScript(t.Context(), script{kind: "post", interpreter: "/bin/sh", log: out, text: text}, here, here))
		name, err := os.ReadFile(out)
		require.NoError(t, err)
		return string(name)
	}
	left := run("printf %s \"$0\"")
	require.Regexp(t, "^/tmp/ks-script-", left)
	require.FileExists(t, left)
	require.NoError(t, os.Remove(left))
	require.NoFileExists(t, run("rm -f \"$0\"\nprintf %s \"$0\""), "a script that removes itself goes on")
}
