package installer

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// fakePackage is a package of a fake repository: its metadata, and bytes in place of an RPM file.
type fakePackage struct {
	name, version, requires, provides string
}

// serveRepository serves metadata as createrepo_c writes it. damage may change any file's bytes.
func serveRepository(t *testing.T, packages []fakePackage, damage func(path string, content []byte) []byte) *httptest.Server {
	files := map[string][]byte{}
	var primary strings.Builder
	primary.WriteString(`<metadata xmlns="http://linux.duke.edu/metadata/common" xmlns:rpm="http://linux.duke.edu/metadata/rpm">`)
	entry := func(list string) string {
		var all strings.Builder
		for _, name := range strings.Fields(list) {
			fmt.Fprintf(&all, `<rpm:entry name=%q/>`, name)
		}
		return all.String()
	}
	for _, p := range packages {
		href := "Packages/" + p.name + "-" + p.version + ".rpm"
		files["/"+href] = []byte("content of " + p.name)
		fmt.Fprintf(&primary, `<package type="rpm"><name>%s</name><arch>x86_64</arch><version epoch="0" ver=%q rel="1"/>
<checksum type="sha256" pkgid="YES">%x</checksum><location href=%q/><format>
<rpm:provides><rpm:entry name=%q flags="EQ" epoch="0" ver=%q rel="1"/>%s</rpm:provides><rpm:requires>%s</rpm:requires><file>/usr/bin/%s</file></format></package>`,
			p.name, p.version, sha256.Sum256(files["/"+href]), href, p.name, p.version, entry(p.provides), entry(p.requires), p.name)
	}
	primary.WriteString("</metadata>")
	var packed bytes.Buffer
	zip := gzip.NewWriter(&packed)
	io.WriteString(zip, primary.String())
	require.NoError(t, zip.Close())
	comps := []byte(`<comps><group><id>core</id><packagelist><packagereq>a</packagereq></packagelist></group>
<environment><id>minimal</id><grouplist><groupid>core</groupid></grouplist></environment></comps>`)
	files["/repodata/primary.xml.gz"], files["/repodata/comps.xml"] = packed.Bytes(), comps
	files["/repodata/repomd.xml"] = fmt.Appendf(nil, `<repomd><data type="primary"><checksum type="sha256">%x</checksum><location href="repodata/primary.xml.gz"/></data>
<data type="group"><checksum type="sha256">%x</checksum><location href="repodata/comps.xml"/></data></repomd>`, sha256.Sum256(packed.Bytes()), sha256.Sum256(comps))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		content, ok := files[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		if damage != nil {
			content = damage(r.URL.Path, content)
		}
		w.Write(content)
	}))
	t.Cleanup(server.Close)
	return server
}

func loaded(t *testing.T, packages []fakePackage, damage func(string, []byte) []byte) (*repository, error) {
	server := serveRepository(t, packages, damage)
	r := &repository{id: "test", base: server.URL, client: server.Client()}
	return r, r.load(t.Context(), t.TempDir())
}

func anyPackage(*pack) bool { return true }

func TestRepository(t *testing.T) {
	r, err := loaded(t, []fakePackage{
		{"a", "1.2", "b /usr/bin/c rpmlib(CompressedFileNames)", ""}, {"a", "1.10", "nothing", ""},
		{"b", "1", "virtual", ""}, {"c", "1", "", "virtual"}, {"d", "1", "a", ""},
	}, nil)
	require.NoError(t, err)
	require.Equal(t, []string{"core"}, r.envs["minimal"])
	require.Equal(t, []string{"a"}, r.groups["core"])
	repos := []*repository{r}

	newest, err := find(repos, "a", anyPackage)
	require.NoError(t, err)
	require.Equal(t, "a-1.10-1.x86_64", newest.String())
	pinned, err := find(repos, "a-1.2", anyPackage)
	require.NoError(t, err)
	require.Equal(t, "1.2", pinned.Version.Ver)
	for _, spec := range []string{"e", "a-1.1", "a-1.2-2", ""} {
		_, err = find(repos, spec, anyPackage)
		var unknown *unknownPackage
		require.ErrorAs(t, err, &unknown, spec)
	}
	all, err := resolve([]*pack{pinned}, repos, func(rpmEntry) bool { return false }, anyPackage)
	require.NoError(t, err)
	require.Len(t, all, 3, "b, and c for its file, which also is what b wants: %v", all)
	_, err = resolve([]*pack{newest}, repos, func(rpmEntry) bool { return false }, anyPackage)
	require.ErrorContains(t, err, "a-1.10-1.x86_64 requires nothing, which nothing provides")
	_, err = resolve([]*pack{newest}, repos, func(e rpmEntry) bool { return e.Name == "nothing" }, anyPackage)
	require.NoError(t, err, "the system has it")

	dir := t.TempDir()
	file, err := pinned.download(t.Context(), dir)
	require.NoError(t, err)
	content, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, "content of a", string(content))
}

// What a server serves is believed only if its sums are right.
func TestDamagedRepository(t *testing.T) {
	flip := func(which string) func(string, []byte) []byte {
		return func(path string, content []byte) []byte {
			if strings.Contains(path, which) {
				content = bytes.Clone(content)
				content[len(content)/2] ^= 1
			}
			return content
		}
	}
	packages := []fakePackage{{"a", "1", "", ""}}
	_, err := loaded(t, packages, flip("primary"))
	require.ErrorContains(t, err, "the metadata says")
	r, err := loaded(t, packages, flip("Packages"))
	require.NoError(t, err)
	_, err = r.packages[0].download(t.Context(), t.TempDir())
	require.ErrorContains(t, err, "the metadata says")

	none := &repository{id: "none", base: r.base + "/none", client: r.client}
	var status *statusError
	require.True(t, errors.As(none.load(t.Context(), ""), &status))
	require.Equal(t, 404, status.status)
}

// Locations are joined as yum 3.4.3 does it: nothing is resolved.
func TestLocationsAreJoined(t *testing.T) {
	r := &repository{id: "r", base: "http://10.10.10.1:8080/repo/k"}
	for _, c := range []struct{ base, href, want string }{
		{"", "Packages/a b-1.rpm", "http://10.10.10.1:8080/repo/k/Packages/a%20b-1.rpm"},
		{"", "../../pool/a-1.rpm", "http://10.10.10.1:8080/repo/k/../../pool/a-1.rpm"},
		{"", "libstdc++-4.8.5~rc1.rpm", "http://10.10.10.1:8080/repo/k/libstdc++-4.8.5~rc1.rpm"},
		{"", "a%2Bb-1.rpm", "http://10.10.10.1:8080/repo/k/a%2Bb-1.rpm"},
		{"http://mirror.lab/os", "a-1.rpm", "http://mirror.lab/os/a-1.rpm"},
		{"../pool", "a-1.rpm", ""},
		{"file:///srv/pool", "a-1.rpm", ""},
	} {
		got, err := r.url(c.base, c.href)
		require.Equal(t, c.want == "", err != nil, "%v", err)
		require.Equal(t, c.want, got)
	}
}

func TestRepoFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.repo")
	write := func(text string) { require.NoError(t, os.WriteFile(path, []byte(text), 0o600)) }
	write("# a comment\n[base]\nname=Base\nbaseurl=http://10.10.10.1:8080/repo/$basearch/$releasever/\nenabled=1\ngpgcheck=1\n" +
		"gpgkey=file:///a\n  http://b\nexclude=kube* cri-tools\n\n[off]\nenabled=0\nbaseurl=http://x\n")
	sections, err := readRepoFile(path)
	require.NoError(t, err)
	require.Len(t, sections, 2)
	r, err := sections[0].repository()
	require.NoError(t, err)
	require.Equal(t, "http://10.10.10.1:8080/repo/x86_64/7", r.base)
	require.Equal(t, []string{"file:///a", "http://b"}, r.gpgKeys)
	require.True(t, r.gpgCheck)
	y := &yum{disableExcludes: map[string]bool{}}
	kubelet := &pack{Name: "kubelet", repo: r}
	require.False(t, y.usable(kubelet))
	require.True(t, y.usable(&pack{Name: "bash", repo: r}))
	y.disableExcludes["base"] = true
	require.True(t, y.usable(kubelet))

	write("[x]\nfrobnicate=1\n")
	_, err = readRepoFile(path)
	require.ErrorContains(t, err, `does not know "frobnicate"`)
	write("key=1\n")
	_, err = readRepoFile(path)
	require.ErrorContains(t, err, "no section yet")
	write("[base]\nmirrorlist=http://mirrorlist.centos.org/?x=y\n")
	sections, err = readRepoFile(path)
	require.NoError(t, err)
	_, err = sections[0].repository()
	require.ErrorContains(t, err, "Cannot find a valid baseurl for repo: base")
}

func TestYumRefusesWhatItDoesNotKnow(t *testing.T) {
	for want, args := range map[string][]string{
		"no option --frob":        {"--frob", "install", "x"},
		`no command "autoremove"`: {"autoremove"},
		"use --assumeyes":         {"install", "x"},
		"names no package":        {"--assumeyes", "install"},
	} {
		var out bytes.Buffer
		require.Equal(t, 1, runYum(t.Context(), args, io.Discard, &out))
		require.Contains(t, out.String(), want)
	}
}
