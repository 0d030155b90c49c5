package repo

import (
	"bytes"
	"compress/gzip"
	"encoding/xml"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/internal/repotest"
)

// packageFile is bytes that begin as a package's do.
func packageFile(name string) []byte { return append([]byte{0xed, 0xab, 0xee, 0xdb}, name...) }

func put(t *testing.T, file string, text []byte) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
	require.NoError(t, os.WriteFile(file, text, 0o644))
}

// served is the text of a file as clients get it.
func served(l *Local, name string) ([]byte, error) {
	f, err := l.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Content.Close()
	return io.ReadAll(f.Content)
}

// asClient reads the metadata as yum and dnf do: the location of every package by its name, after the checksums were right.
func asClient(t *testing.T, open func(string) ([]byte, error)) map[string]string {
	t.Helper()
	text, err := open(repomdPath)
	require.NoError(t, err)
	list, _, err := parseRepomd(text)
	require.NoError(t, err)
	primary, _ := pick(list)
	packed, err := open(primary.path)
	require.NoError(t, err)
	require.Equal(t, primary.sum, sumOf(packed))
	require.EqualValues(t, primary.size, len(packed))
	unpacked, err := gzip.NewReader(bytes.NewReader(packed))
	require.NoError(t, err)
	var metadata struct {
		Packages []struct {
			Name     string `xml:"name"`
			Location struct {
				Base string `xml:"base,attr"`
				Href string `xml:"href,attr"`
			} `xml:"location"`
		} `xml:"package"`
	}
	plain, err := io.ReadAll(unpacked)
	require.NoError(t, err)
	require.EqualValues(t, primary.unpacked, len(plain))
	require.NoError(t, xml.Unmarshal(plain, &metadata))
	found := map[string]string{}
	for _, p := range metadata.Packages {
		if p.Location.Base != "" {
			p.Location.Href = p.Location.Base + "/" + p.Location.Href
		}
		found[p.Name] = p.Location.Href
	}
	return found
}

// Packages that a directory's metadata names outside of it are served, within limits, under locations below it.
func TestPackagesOutsideOfTheDirectory(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "a", "srv", "yum", "repos", "k")
	srv := filepath.Join(root, "a", "srv")
	type where struct{ base, href string }
	rows := map[string]struct {
		where
		at     string // where the package is; "" for nowhere
		served bool
	}{
		"inside":     {where{"", "Packages/inside-1-1.x86_64.rpm"}, dir + "/Packages/inside-1-1.x86_64.rpm", true},
		"pool":       {where{"", "../../pool/pool-1-1.x86_64.rpm"}, srv + "/yum/pool/pool-1-1.x86_64.rpm", true},
		"encoded":    {where{"", "..%2f..%2Fpool/encoded%2B-1-1.x86_64.rpm"}, srv + "/yum/pool/encoded+-1-1.x86_64.rpm", true},
		"relative":   {where{"../shared", "relative-1-1.x86_64.rpm"}, srv + "/yum/repos/shared/relative-1-1.x86_64.rpm", true},
		"filebase":   {where{"file://" + srv + "/yum/pool", "filebase-1-1.x86_64.rpm"}, srv + "/yum/pool/filebase-1-1.x86_64.rpm", true},
		"copied":     {where{"http://mirror.lab/os", "Packages/copied-1-1.x86_64.rpm"}, dir + "/Packages/copied-1-1.x86_64.rpm", true},
		"highest":    {where{"", "../../../highest-1-1.x86_64.rpm"}, srv + "/highest-1-1.x86_64.rpm", true},
		"toofar":     {where{"", "../../../../toofar-1-1.x86_64.rpm"}, root + "/a/toofar-1-1.x86_64.rpm", false},
		"filefar":    {where{"file://" + root, "filefar-1-1.x86_64.rpm"}, root + "/filefar-1-1.x86_64.rpm", false},
		"absolute":   {where{"", root + "/absolute-1-1.x86_64.rpm"}, root + "/absolute-1-1.x86_64.rpm", false},
		"basepath":   {where{"/pool", "basepath-1-1.x86_64.rpm"}, srv + "/yum/pool/basepath-1-1.x86_64.rpm", false},
		"nowhere":    {where{"", "../../pool/nowhere-1-1.x86_64.rpm"}, "", false},
		"nopackage":  {where{"", "../../pool/shadow"}, srv + "/yum/pool/shadow", false},
		"secret":     {where{"", "../../pool/secret-1-1.x86_64.rpm"}, srv + "/yum/pool/secret-1-1.x86_64.rpm", false},
		"linkedaway": {where{"", "../../pool/linkedaway-1-1.x86_64.rpm"}, "", false},
		"adirectory": {where{"", "../../pool/adirectory-1-1.x86_64.rpm"}, srv + "/yum/pool/adirectory-1-1.x86_64.rpm/x", false},
	}
	packages := map[string][]byte{}
	for name := range rows {
		packages[name+"-1-1.x86_64.rpm"] = packageFile(name)
	}
	all := repotest.MakeWith(packages, repotest.Options{Packing: "gz", Locate: func(path string) (base, href string) {
		row := rows[strings.TrimSuffix(path, "-1-1.x86_64.rpm")]
		return row.base, row.href
	}})
	for name := range packages {
		delete(all, name)
	}
	require.NoError(t, all.Write(dir))
	for name, row := range rows {
		if row.at != "" {
			put(t, row.at, packageFile(name))
		}
	}
	put(t, rows["secret"].at, []byte("root:$6$..."))
	put(t, root+"/away.rpm", packageFile("away"))
	require.NoError(t, os.Symlink(root+"/away.rpm", srv+"/yum/pool/linkedaway-1-1.x86_64.rpm"))

	for _, path := range []string{dir, link(t, root, dir)} {
		l, err := OpenLocal(path)
		require.NoError(t, err)
		defer l.Close()
		locations := asClient(t, func(name string) ([]byte, error) { return served(l, name) })
		require.Len(t, locations, len(rows))
		for name, row := range rows {
			location := locations[name]
			require.True(t, fs.ValidPath(location), "%s: %s", name, location)
			text, err := served(l, location)
			if row.served {
				require.NoError(t, err, name)
				require.Equal(t, packageFile(name), text)
			} else {
				require.ErrorIs(t, err, fs.ErrNotExist, name)
			}
		}
		_, err = served(l, placesDir+"0123456789abcdef/pool-1-1.x86_64.rpm")
		require.ErrorIs(t, err, fs.ErrNotExist, "only what the metadata names")
		_, err = l.Open("repodata")
		require.ErrorIs(t, err, ErrDirectory)
	}
}

// link is another path of a directory.
func link(t *testing.T, root, dir string) string {
	at := filepath.Join(root, "a", "b", "c", "link")
	require.NoError(t, os.MkdirAll(filepath.Dir(at), 0o755))
	require.NoError(t, os.Symlink(dir, at))
	return at
}

// A package with an xml:base of a server of which there is no copy is left to the machines; a directory without strange
// packages is served byte for byte.
func TestOnlyWhatMustBeIsRewritten(t *testing.T) {
	dir := t.TempDir()
	all := repotest.MakeWith(map[string][]byte{"a-1-1.noarch.rpm": packageFile("a")}, repotest.Options{Packing: "gz", Locate: func(path string) (string, string) {
		return "http://mirror.lab/os", path
	}})
	require.NoError(t, repotest.Tree(all).Write(dir))
	require.NoError(t, os.Remove(dir+"/a-1-1.noarch.rpm"))
	put(t, dir+"/"+repomdPath+".asc", []byte("signature"))
	l, err := OpenLocal(dir)
	require.NoError(t, err)
	defer l.Close()
	for _, name := range []string{repomdPath, repotest.Tree(all).Find("primary")} {
		text, err := served(l, name)
		require.NoError(t, err)
		require.Equal(t, all[name], text)
	}
	text, err := served(l, repomdPath+".asc")
	require.NoError(t, err)
	require.Equal(t, "signature", string(text))

	// A copy comes, and the metadata is written anew: it is noticed, and the signature is void.
	put(t, dir+"/a-1-1.noarch.rpm", packageFile("a"))
	later := time.Now().Add(time.Hour)
	require.NoError(t, os.Chtimes(dir+"/"+repomdPath, later, later))
	open := func(name string) ([]byte, error) { return served(l, name) }
	require.Regexp(t, `^\.elsewhere/`, asClient(t, open)["a"])
	_, err = served(l, repomdPath+".asc")
	require.ErrorIs(t, err, fs.ErrNotExist)

	put(t, dir+"/"+repomdPath, []byte("<html>"))
	text, err = served(l, repomdPath)
	require.NoError(t, err)
	require.Equal(t, "<html>", string(text), "check says what is wrong with it")
}

// Databases hold the old locations: they are left out. All else stays.
func TestReplaceData(t *testing.T) {
	text := `<?xml version="1.0"?>
<repomd xmlns="x"><revision>1</revision>
  <data type="filelists"><location href="f"/></data>
  <data type="primary"><location href="p"/></data><data type="primary_db"><location href="d"/></data>
  <data type="primary_zck"/><data type="group"/>
</repomd>`
	out, err := replaceData([]byte(text), []byte("<data/>"))
	require.NoError(t, err)
	require.Equal(t, `<?xml version="1.0"?>
<repomd xmlns="x"><revision>1</revision>
  <data type="filelists"><location href="f"/></data>
  <data/>
  <data type="group"/>
</repomd>`, string(out))
	_, err = replaceData([]byte(text[:100]), nil)
	require.Error(t, err)
}

// Packages that an upstream's metadata names outside of its URL are fetched through as all others are, also by a daemon that
// starts with the kept metadata.
func TestPackagesOutsideOfTheUpstream(t *testing.T) {
	serveOther := func(w http.ResponseWriter, r *http.Request) {
		w.Write(packageFile(strings.Split(path.Base(r.URL.Path), "-")[0]))
	}
	other, inward := serverAt(t, internetAddress, serveOther), serverAt(t, "127.0.0.1", serveOther)
	all := repotest.MakeWith(map[string][]byte{"near-1-1.noarch.rpm": packageFile("near"), "pool-1-1.noarch.rpm": packageFile("pool"), "other-1-1.noarch.rpm": packageFile("other"),
		"relative-1-1.noarch.rpm": packageFile("relative"), "media-1-1.noarch.rpm": packageFile("media"), "wrong-1-1.noarch.rpm": packageFile("wrong"), "inward-1-1.noarch.rpm": packageFile("inward")},
		repotest.Options{Packing: "zst", Locate: func(path string) (base, href string) {
			switch name, _, _ := strings.Cut(path, "-"); name {
			case "pool", "wrong":
				return "", "../../pool/" + path
			case "other":
				return other.URL + "/os/", path
			case "inward":
				return inward.URL + "/os/", path
			case "relative":
				return "sub", path
			case "media":
				return "media:1", path
			}
			return "", path
		}})
	files := map[string][]byte{"/yum/pool/pool-1-1.noarch.rpm": packageFile("pool"), "/yum/repos/k/sub/relative-1-1.noarch.rpm": packageFile("relative"),
		"/yum/pool/wrong-1-1.noarch.rpm": packageFile("wronG")}
	for name, text := range all {
		files["/yum/repos/k/"+name] = text
	}
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, ok := files[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		w.Write(text)
	}))
	defer up.Close()
	cache := t.TempDir()
	for round := range 2 {
		s, err := Open(Options{Dir: cache, Log: slog.New(slog.DiscardHandler), Now: time.Now, Backoff: time.Millisecond, internet: isInternetAddress})
		require.NoError(t, err)
		require.NoError(t, s.Set([]Spec{{Name: "k", URL: up.URL + "/yum/repos/k"}}))
		open := func(name string) ([]byte, error) {
			f, err := s.Open(t.Context(), Request{Repo: "k", Path: name})
			if err != nil {
				return nil, err
			}
			defer f.Content.Close()
			return io.ReadAll(f.Content)
		}
		locations := asClient(t, open)
		require.Len(t, locations, 7)
		require.Equal(t, "near-1-1.noarch.rpm", locations["near"])
		for _, name := range []string{"near", "pool", "other", "relative"} {
			text, err := open(locations[name])
			require.NoError(t, err, "%s: %s", name, locations[name])
			require.Equal(t, packageFile(name), text)
		}
		_, err = open(locations["inward"])
		require.ErrorContains(t, err, "an address that is not on the internet", "the metadata sends us to another server of this network")
		require.NotContains(t, err.Error(), "127.0")
		require.Equal(t, "media:1/media-1-1.noarch.rpm", locations["media"], "it is on no server")
		_, err = open(locations["wrong"])
		require.ErrorContains(t, err, "sha256 is not the one", "round %d", round)
		x, err := s.Index(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, locations["pool"], x.Find("pool")[0].Path)
		require.NoError(t, s.Close())
		if round == 0 { // what is kept is enough
			delete(files, "/yum/repos/k/"+all.Find("primary"))
		}
	}
}

// What is rewritten names the same packages, all of them below the repository.
func FuzzMoveLocations(f *testing.F) {
	all := repotest.MakeWith(map[string][]byte{"a-1-1.noarch.rpm": nil, "b-1-1.noarch.rpm": nil}, repotest.Options{
		Locate: func(path string) (string, string) { return "", "../" + path }})
	f.Add(all[all.Find("primary")])
	f.Add([]byte(`<metadata><package><location  href='../x"&lt;.rpm'  ></location></package><!-- <location href="../y"/> --></metadata>`))
	f.Fuzz(func(t *testing.T, text []byte) {
		parse := func(text []byte) (list []rpmPackage, err error) {
			err = parsePrimary(bytes.NewReader(text), false, func(p rpmPackage) error { list = append(list, p); return nil })
			return list, err
		}
		before, err := parse(text)
		if err != nil {
			return
		}
		moved, err := moveLocations(text, func(place) bool { return true })
		require.NoError(t, err)
		after, err := parse(moved)
		require.NoError(t, err, "%s", moved)
		require.Len(t, after, len(before))
		for i := range before {
			require.Equal(t, before[i].path, after[i].path)
			require.Zero(t, after[i].at)
		}
	})
}
