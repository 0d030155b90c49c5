package kickstart

import (
	"bytes"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"rackstrap/internal/shlex"
	"rackstrap/inventory"
)

// visit calls f for every string in a value, keys of maps included, with its path and how to change it.
func visit(path string, v reflect.Value, f func(path string, get string, set func(string))) {
	switch v.Kind() {
	case reflect.String:
		f(path, v.String(), v.SetString)
	case reflect.Pointer, reflect.Interface:
		if !v.IsNil() {
			visit(path, v.Elem(), f)
		}
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[netip.Addr]() || v.Type() == reflect.TypeFor[netip.Prefix]() {
			return
		}
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				visit(path+"."+v.Type().Field(i).Name, v.Field(i), f)
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			visit(fmt.Sprintf("%s[%d]", path, i), v.Index(i), f)
		}
	case reflect.Map:
		keys := v.MapKeys()
		slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
		for _, key := range keys {
			value := reflect.New(v.Type().Elem()).Elem()
			value.Set(v.MapIndex(key))
			now := key
			f(path+" key "+key.String(), key.String(), func(s string) {
				v.SetMapIndex(now, reflect.Value{})
				now = reflect.ValueOf(s)
				v.SetMapIndex(now, value)
			})
			visit(path+"["+key.String()+"]", value, func(p, get string, set func(string)) {
				f(p, get, func(s string) {
					set(s)
					v.SetMapIndex(key, value)
				})
			})
		}
	}
}

// skeleton is what must not depend on a value: the sections with their arguments, and at the top level each
// command with the names of its options.
func skeleton(t *testing.T, r *Renderer, text []byte) (shape []string) {
	t.Helper()
	s := r.syntaxes["rhel7"]
	inside := false
	for l := range strings.Lines(string(text)) {
		l = strings.TrimSpace(l)
		first, _, _ := strings.Cut(l, " ")
		switch {
		case s.Sections[first] != nil || first == "%include" || first == "%end":
			shape = append(shape, l)
			inside = first != "%end" && first != "%include"
		case inside || l == "" || l[0] == '#':
		default:
			words, err := shlex.Split(l)
			require.NoError(t, err, l)
			for i, w := range words {
				if i == 0 || strings.HasPrefix(w, "--") {
					w, _, _ = strings.Cut(w, "=")
					shape = append(shape, w)
				} else {
					shape = append(shape, "…")
				}
			}
		}
	}
	return shape
}

// free are fields whose text is a program: running it is their purpose.
func free(field string) bool {
	return strings.HasPrefix(field, ".Machine.Install.PostScripts[") && strings.HasSuffix(field, ".Text")
}

// chooses are fields whose value decides what is rendered: it may change the shape.
var chooses = []string{".Machine.Install.Disk"}

func TestNoFieldChangesTheShape(t *testing.T) {
	r := newRenderer(t)
	in := fullInput("centos-7.9")
	base, err := r.Render(in)
	require.NoError(t, err)
	want := skeleton(t, r, base)
	payloads := slices.Concat(nasty, hostile, []string{"\n%include /etc/shadow", "\n%end\n%pre\ntouch /pwned\n%end\n", "END\ntouch /pwned", "\nEND\ntouch /pwned\n", " --plaintext x", "x\nrootpw x", "\u2028rootpw x"})
	fields, accepted := 0, 0
	visit("", reflect.ValueOf(&in), func(field, old string, set func(string)) {
		fields++
		set(old + "x")
		text, err := r.Render(in)
		printed := err != nil || !bytes.Equal(text, base)
		for i, payload := range payloads {
			if !printed && i%5 != fields%5 { // most fields have no part in a kickstart, whatever they say
				continue
			}
			for _, value := range []string{payload, old + payload} {
				set(value)
				text, err := r.Render(in)
				if err != nil {
					continue
				}
				accepted++
				if bytes.Equal(text, base) {
					continue // a field that is not printed
				}
				require.Empty(t, noBash(r, text), "%s = %q", field, value)
				if value != "" && !slices.Contains(chooses, field) {
					require.Equal(t, want, skeleton(t, r, text), "%s = %q", field, value)
				}
			}
		}
		set(old)
	})
	again, err := r.Render(in)
	require.NoError(t, err)
	require.Equal(t, string(base), string(again), "the test puts everything back")
	t.Logf("%d fields, %d payloads: %d kickstarts were rendered", fields, len(payloads), accepted)
	require.Greater(t, fields, 60)
	require.Greater(t, accepted, 500)
}

// noBash is Check without its processes.
func noBash(r *Renderer, text []byte) []Problem {
	c := &checker{syntax: r.syntaxes["rhel7"]}
	c.read(text)
	c.includesExist()
	c.dracut()
	return c.problems
}

// All hostile values that are accepted are put into one kickstart: its scripts run to their end, and nothing of
// the values runs with them.
func TestNoFieldIsExecuted(t *testing.T) {
	r := newRenderer(t)
	for name, payload := range map[string]string{
		"everything":   `x'"$(touch /pwned)` + "`touch /pwned`" + `;touch /pwned #`,
		"double":       `x";touch /pwned;"`,
		"single":       `x';touch /pwned;'`,
		"substitution": `$(touch${IFS}/pwned)`,
		"backslash":    `x\`,
		"margin":       "|$(touch /pwned)",
	} {
		for _, keep := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/%v", name, keep), func(t *testing.T) {
				in := fullInput("centos-7.9")
				in.Machine.Install.PostScripts = []inventory.Script{{Name: "motd", Text: "#!/bin/bash\nexit 0\n"}}
				var taken []string
				before, err := r.Render(in)
				require.NoError(t, err)
				visit("", reflect.ValueOf(&in), func(field, old string, set func(string)) {
					if free(field) {
						return
					}
					value := payload
					if keep {
						value = old + payload
					}
					set(value)
					if text, err := r.Render(in); err != nil {
						set(old)
					} else if !bytes.Equal(text, before) {
						taken, before = append(taken, field), text
					}
				})
				t.Log(taken)
				require.NotEmpty(t, taken)
				text, err := r.Render(in)
				require.NoError(t, err)
				require.Empty(t, r.Check(text, "rhel7"))
				s := newSandbox(t)
				s.write("disks", "sda 500"+gb+" disk 0 0\n")
				s.write("etc/sysconfig/kernel", "DEFAULTKERNEL=kernel\n")
				ran := 0
				for _, section := range r.Sections(text, "rhel7") {
					if r.syntaxes["rhel7"].Sections[section.Name].Script {
						out, status := s.run(section.Body)
						require.Zero(t, status, "%s:\n%s", section.Name, out)
						require.False(t, s.exists("pwned"), "%s:\n%s", section.Name, out)
						ran++
					}
				}
				require.Equal(t, 3, ran)
			})
		}
	}
}
