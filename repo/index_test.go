package repo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/stretchr/testify/require"
)

func indexed(tb testing.TB) *Index {
	all := makeRepo(tb, "zst", map[string][]byte{
		"kubelet-1.28.2-0.x86_64.rpm": []byte("a"), "kubelet-1.28.1-0.x86_64.rpm": []byte("b"), "conntrack-tools-1.4.4-7.el7.x86_64.rpm": []byte("c"),
		"only32-1-1.i686.rpm": []byte("d"), "java-1.8.0-openjdk-1.8.0.412-1.el7.x86_64.rpm": []byte("e"), "tzdata-2024a-1.el7.noarch.rpm": []byte("f")})
	x, err := ReadIndex(all.fs(tb))
	require.NoError(tb, err)
	return x
}

func TestIndex(t *testing.T) {
	x := indexed(t)
	require.Equal(t, 5, x.Packages())
	for _, spec := range []string{"kubelet", "kubelet-1.28.2", "kubelet-1.28.2-0", "kubelet-1.28.2-0.x86_64", "kubelet.x86_64", "kubelet-0:1.28.2",
		"conntrack-tools", "conntrack-tools-1.4.4", "java-1.8.0-openjdk", "java-1.8.0-openjdk-1.8.0.412", "tzdata.noarch", "kubelet-alias", "kube*", "kubelet-1.28.?",
		"@core", "@Core", "@^minimal"} {
		require.True(t, x.Match(spec), spec)
	}
	for _, spec := range []string{"kubeadm", "kubelet-1.28.3", "kubelet-1.28", "kubelet-1.28.2-1", "kubelet-1:1.28.2", "only32", "tzdata.x86_64", "kubelet-", "-kubelet", "", "libkubelet.so()(64bit)",
		"zz*", "[", "@base", "@Kern", "@^core", "@minimal", "@"} {
		require.False(t, x.Match(spec), spec)
	}
	require.True(t, x.Has("kubelet", ""))
	require.True(t, x.Has("kubelet", "1.28.2"))
	require.False(t, x.Has("kubelet", "1.28"))
	require.ElementsMatch(t, []string{"1.28.2-0", "1.28.1-0"}, x.Versions("kubelet"))
	require.Equal(t, []string{"Core", "core"}, x.Groups())
}

// ReadIndex believes nothing whose checksum is wrong, and says what is missing.
func TestReadIndexFaults(t *testing.T) {
	_, err := ReadIndex(fstest.MapFS{})
	require.ErrorIs(t, err, fs.ErrNotExist)
	all := small(t)
	primary, group := all.find(t, "primary"), all.find(t, "group")
	for name, change := range map[string]struct {
		do   func(t tree)
		want string
	}{
		"primary missing":  {func(t tree) { delete(t, primary) }, primary},
		"primary damaged":  {func(t tree) { t[primary][20] ^= 1 }, primary},
		"primary replaced": {func(tr tree) { tr[primary] = pack(t, "gz", []byte(`<metadata packages="0"/>`)) }, "sha256 differs"},
		"primary longer":   {func(t tree) { t[primary] = append(t[primary], 0) }, primary},
		"comps replaced":   {func(t tree) { t[group] = []byte("<comps/>") }, "sha256 differs"},
		"not XML":          {func(t tree) { t[repomdPath] = []byte("<html><body>") }, "it begins with <html>"},
		"endless repomd":   {func(t tree) { t[repomdPath] = make([]byte, maxRepomd+1) }, "longer than it may be"},
	} {
		t.Run(name, func(t *testing.T) {
			broken := tree{}
			for path, text := range all {
				broken[path] = bytes.Clone(text)
			}
			change.do(broken)
			_, err := ReadIndex(broken.fs(t))
			require.ErrorContains(t, err, change.want)
		})
	}
}

func TestFetchIndex(t *testing.T) {
	all := small(t)
	up := newUpstream(t, all)
	x, err := FetchIndex(t.Context(), Options{}, up.URL+"/up")
	require.NoError(t, err)
	require.True(t, x.Match("bash-4.2.46"))
	require.True(t, x.HasGroup("core"))
	_, err = FetchIndex(t.Context(), Options{}, up.URL+"/down")
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = FetchIndex(t.Context(), Options{}, "://")
	require.Error(t, err)

	up.set(func() {
		up.wrong = func(w http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true }
	})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = FetchIndex(ctx, Options{}, up.URL+"/up")
	require.ErrorContains(t, err, "it takes too long")
	require.NotContains(t, err.Error(), up.URL)
}

func TestRepomdFaults(t *testing.T) {
	const data = `<data type="primary"><checksum type="sha256">%s</checksum><location href="%s"/></data>`
	digits := strings.Repeat("ab", 32)
	entry := func(sum, href string) string { return fmt.Sprintf(data, sum, href) }
	wrap := func(s string) string { return `<repomd xmlns="http://linux.duke.edu/metadata/repo">` + s + `</repomd>` }
	good := entry(digits, "repodata/p.xml")
	for text, want := range map[string]string{
		"":                                              "no <repomd> in it",
		"not XML at all":                                "outside of all elements",
		"<html/>":                                       "it begins with <html>",
		wrap(""):                                        "no primary",
		wrap(good) + "x":                                "outside of all elements",
		wrap(good) + wrap(good):                         "more follows its end",
		wrap(good + good):                               "is there twice",
		wrap(entry("xyz", "p")):                         "no checksum of the kind",
		wrap(entry(digits[2:], "p")):                    "no checksum of the kind",
		wrap(entry(digits, "")):                         "location is empty",
		wrap(entry(digits, "/etc/passwd")):              "not below",
		wrap(entry(digits, "../../x")):                  "not below",
		wrap(entry(digits, "%2e%2e/x")):                 "not below",
		wrap(entry(digits, "a/../../x")):                "not below",
		wrap(entry(digits, `a\..\x`)):                   "no path",
		wrap(entry(digits, "a&#10;b")):                  "no path",
		wrap(entry(digits, repomdPath)):                 "repomd.xml itself",
		wrap(strings.Replace(good, "sha256", "md5", 1)): "unknown kind",
		wrap(strings.Replace(good, "</data>", "<size>-1</size></data>", 1)):                    "is no size",
		wrap(strings.Replace(good, "</data>", "<size>9e9</size></data>", 1)):                   "is no size",
		wrap(strings.Replace(good, `<location href`, `<location xml:base="http://x" href`, 1)): "not below",
		`<!DOCTYPE repomd [<!ENTITY a "b">]>` + wrap(good):                                     "document type",
		wrap(good)[:100]:                 "EOF",
		wrap(strings.Repeat("<x>", 100)): "nested too deeply",
		wrap(strings.Repeat(`<data type="other"><checksum type="sha256">`+digits+`</checksum><location href="@"/></data>`, 1)): "no primary",
	} {
		_, _, err := parseRepomd([]byte(text))
		require.ErrorContains(t, err, want, text)
	}
	list, _, err := parseRepomd([]byte(wrap(entry(digits, "repodata/./a%2Bb.xml"))))
	require.NoError(t, err)
	require.Equal(t, "repodata/a+b.xml", list[0].path)
	require.EqualValues(t, -1, list[0].size)
}

func TestPrimaryFaults(t *testing.T) {
	good := `<package><name>a</name><arch>noarch</arch><version epoch="0" ver="1" rel="1"/><checksum type="sha">` + strings.Repeat("0a", 20) + `</checksum><size package="5"/><location href="a.rpm"/></package>`
	parse := func(text string) (list []rpmPackage, err error) {
		err = parsePrimary(strings.NewReader(text), true, func(p rpmPackage) error { list = append(list, p); return nil })
		return list, err
	}
	list, err := parse(`<metadata packages="1">` + good + `</metadata>`)
	require.NoError(t, err)
	require.Equal(t, "sha1", list[0].sum.kind)
	list, err = parse(`<metadata packages="1">` + strings.Replace(good, `"a.rpm"`, `"../../pool/a.rpm"`, 1) + `</metadata>`)
	require.NoError(t, err)
	require.Equal(t, place{href: "../../pool/a.rpm"}, list[0].at, "Google's repositories were like that")
	require.Regexp(t, `^\.elsewhere/[0-9a-f]{16}/a\.rpm$`, list[0].path)
	for text, want := range map[string]string{
		`<metadata packages="2"><x>` + good + `</metadata>`: "syntax error",
		`<metadata>` + good: "EOF",
		`<metadata>` + strings.Replace(good, "<name>a</name>", "", 1) + `</metadata>`:                           "no name, version",
		`<metadata>` + strings.Replace(good, `<location href="a.rpm"/>`, "", 1) + `</metadata>`:                 "no location",
		`<metadata>` + strings.Replace(good, `package="5"`, `package="-5"`, 1) + `</metadata>`:                  "is no size",
		`<metadata>` + strings.Replace(good, `a.rpm`, repomdPath, 1) + `</metadata>`:                            "is repomd.xml",
		`<metadata>` + strings.Replace(good, ">a<", ">"+strings.Repeat("a", 3000)+"<", 1) + `</metadata>`:       "too long",
		`<metadata>` + strings.Replace(good, ">a<", ">"+strings.Repeat("a", 2*maxToken)+"<", 1) + `</metadata>`: "lon",
	} {
		_, err := parse(text)
		require.ErrorContains(t, err, want, "%.100s", text)
	}
}

// A small file that unpacks to a large one is stopped.
func TestUnpackBounds(t *testing.T) {
	for _, kind := range []string{"gz", "xz", "zst"} {
		packed := pack(t, kind, make([]byte, 1<<20))
		r, err := unpack(bytes.NewReader(packed), 1<<20)
		require.NoError(t, err)
		n, err := io.Copy(io.Discard, r)
		require.NoError(t, err)
		require.EqualValues(t, 1<<20, n)
		r, err = unpack(bytes.NewReader(packed), 1<<20-1)
		require.NoError(t, err)
		_, err = io.Copy(io.Discard, r)
		require.ErrorIs(t, err, errTooLong)
		r, err = unpack(bytes.NewReader(packed[:len(packed)/2]), 1<<20)
		if err == nil {
			_, err = io.Copy(io.Discard, r)
		}
		require.Error(t, err, kind)
	}
}

func FuzzRepomd(f *testing.F) {
	f.Add([]byte(small(f)[repomdPath]))
	f.Add([]byte(`<repomd><data type="primary"><checksum type="sha">` + strings.Repeat("0", 40) + `</checksum><location href="x"/></data></repomd>`))
	f.Fuzz(func(t *testing.T, text []byte) {
		list, _, err := parseRepomd(text)
		if err != nil {
			return
		}
		for _, m := range list {
			if !fs.ValidPath(m.path) || m.path == "." || m.size < -1 || m.sum.kind == "" {
				t.Fatalf("accepted: %+v", m)
			}
		}
	})
}

func FuzzPrimary(f *testing.F) {
	for _, kind := range []string{"", "gz", "xz", "zst"} {
		t := makeRepo(f, kind, map[string][]byte{"a-1-1.noarch.rpm": []byte("x"), "b-1-1.x86_64.rpm": []byte("y")})
		f.Add(t[t.find(f, "primary")])
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		readPacked(bytes.NewReader(text), 1<<20, func(r io.Reader) error {
			return parsePrimary(r, true, func(p rpmPackage) error {
				if !fs.ValidPath(p.path) || p.size < -1 || p.sum.kind == "" {
					t.Fatalf("accepted: %+v", p)
				}
				return nil
			})
		})
	})
}

func FuzzComps(f *testing.F) {
	f.Add([]byte(compsXML))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := parseComps(bytes.NewReader(text))
		if (c == nil) == (err == nil) {
			t.Fatal(c, err)
		}
	})
}

func FuzzMatch(f *testing.F) {
	x := indexed(f)
	for _, s := range []string{"kubelet-1.28.2", "@core", "a*", "[", "-", "."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, spec string) { x.Match(spec) })
}

func TestSums(t *testing.T) {
	s, err := newSum(" SHA ", strings.Repeat("AB", 20))
	require.NoError(t, err)
	again, err := parseSum(s.String())
	require.NoError(t, err)
	require.Equal(t, s, again)
	for _, name := range []string{"", "sha1", "sha1-", "sha-" + strings.Repeat("ab", 20), "sha1-" + strings.Repeat("AB", 20), "../x", "sha256-" + strings.Repeat("ab", 20)} {
		_, err := parseSum(name)
		require.Error(t, err, name)
	}
	require.True(t, errors.Is(errAbsent, fs.ErrNotExist))
}

// How long a repository of the size of CentOS 7's base takes to read.
func BenchmarkPrimary(b *testing.B) {
	packages := map[string][]byte{}
	for i := range 10_000 {
		packages[fmt.Sprintf("Packages/package%d-1.0-1.el7.x86_64.rpm", i)] = nil
	}
	all := makeRepo(b, "gz", packages)
	packed := all[all.find(b, "primary")]
	for b.Loop() {
		n := 0
		err := readPacked(bytes.NewReader(packed), 0, func(r io.Reader) error {
			return parsePrimary(r, false, func(rpmPackage) error { n++; return nil })
		})
		if err != nil || n != len(packages) {
			b.Fatal(n, err)
		}
	}
	b.ReportMetric(float64(b.N*len(packages))/b.Elapsed().Seconds(), "packages/s")
}
