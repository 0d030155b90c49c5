// Package repotest makes package repositories for tests and benchmarks: right repodata for packages that are
// any bytes.
package repotest

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// Tree is a repository: its files by path.
type Tree map[string][]byte

// Comps is the group metadata of every repository that Make makes: the group core, the environment minimal.
const Comps = `<?xml version="1.0"?><!DOCTYPE comps PUBLIC "-//CentOS//DTD Comps info//EN" "comps.dtd"><!-- made by hand --><comps>
<group><id>core</id><name>Core</name><name xml:lang="de">Kern</name><packagelist><packagereq>bash</packagereq></packagelist></group>
<environment><id>minimal</id><name>Minimal Install</name></environment></comps>`

// Content is the bytes of a made-up package, which nothing compresses.
func Content(seed uint64, size int) []byte {
	r := rand.NewChaCha8(sha256.Sum256(fmt.Append(nil, seed)))
	text := make([]byte, size)
	r.Read(text)
	return text
}

// Make makes a repository of packages, whose paths end as in name-version-release.arch.rpm. packing is that of
// the metadata: gz, xz, zst or "" for none.
func Make(packing string, packages map[string][]byte) Tree {
	return MakeWith(packages, Options{Packing: packing})
}

// Options are what else can be said of a repository.
type Options struct {
	Packing  string
	Locate   func(path string) (base, href string) // xml:base and location of a package; nil: its path
	Requires map[string][]string                   // by name of a package
}

// MakeWith is Make with options.
func MakeWith(packages map[string][]byte, o Options) Tree {
	t := maps.Clone(Tree(packages))
	if t == nil {
		t = Tree{}
	}
	var primary strings.Builder
	fmt.Fprintf(&primary, `<?xml version="1.0" encoding="UTF-8"?>
<metadata xmlns="http://linux.duke.edu/metadata/common" xmlns:rpm="http://linux.duke.edu/metadata/rpm" packages="%d">`, len(packages))
	for _, path := range slices.Sorted(maps.Keys(packages)) {
		rest, arch := cutLast(strings.TrimSuffix(filepath.Base(path), ".rpm"), ".")
		rest, release := cutLast(rest, "-")
		name, version := cutLast(rest, "-")
		location := `href="` + path + `"`
		if o.Locate != nil {
			base, href := o.Locate(path)
			location = fmt.Sprintf(`xml:base="%s" href="%s"`, base, href)
		}
		requires := ""
		for _, r := range o.Requires[name] {
			requires += `<rpm:entry name="` + r + `"/>`
		}
		fmt.Fprintf(&primary, `<package type="rpm"><name>%s</name><arch>%s</arch><version epoch="0" ver="%s" rel="%s"/>
<checksum type="sha256" pkgid="YES">%x</checksum><summary>x</summary><time file="1600000000" build="1600000000"/>
<size package="%d" installed="1" archive="1"/><location %s/>
<format><rpm:license>GPL</rpm:license><rpm:provides><rpm:entry name="%s"/><rpm:entry name="lib%s.so()(64bit)"/><rpm:entry name="%s-alias"/></rpm:provides><rpm:requires>%s</rpm:requires>
<file>/usr/bin/%s</file></format></package>`, name, arch, version, release, sha256.Sum256(packages[path]), len(packages[path]), location, name, name, name, requires, name)
	}
	primary.WriteString("</metadata>\n")
	t.data(o.Packing, map[string]string{"primary": primary.String(), "filelists": "<filelists>" + primary.String(), "group": Comps})
	return t
}

// MakeOf makes a repository of texts of metadata by kind, whatever is in them.
func MakeOf(packing string, files map[string]string) Tree {
	t := Tree{}
	t.data(packing, files)
	return t
}

func cutLast(s, sep string) (before, after string) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, ""
	}
	return s[:i], s[i+len(sep):]
}

// data puts files of metadata and their repomd.xml into the tree.
func (t Tree) data(packing string, files map[string]string) {
	var repomd strings.Builder
	repomd.WriteString(`<?xml version="1.0" encoding="UTF-8"?><repomd xmlns="http://linux.duke.edu/metadata/repo"><revision>1</revision>`)
	for _, kind := range slices.Sorted(maps.Keys(files)) {
		how := packing
		if kind == "group" {
			how = ""
		}
		packed := Pack(how, []byte(files[kind]))
		path := fmt.Sprintf("repodata/%x-%s.xml", sha256.Sum256(packed), kind)
		if how != "" {
			path += "." + how
		}
		t[path] = packed
		fmt.Fprintf(&repomd, `<data type="%s"><checksum type="sha256">%x</checksum><open-checksum type="sha256">%x</open-checksum><location href="%s"/><timestamp>1600000000.5</timestamp><size>%d</size><open-size>%d</open-size></data>`,
			kind, sha256.Sum256(packed), sha256.Sum256([]byte(files[kind])), path, len(packed), len(files[kind]))
	}
	repomd.WriteString("</repomd>\n")
	t["repodata/repomd.xml"] = []byte(repomd.String())
}

// Pack compresses a text.
func Pack(kind string, text []byte) []byte {
	var out bytes.Buffer
	var w io.WriteCloser
	var err error
	switch kind {
	case "gz":
		w = gzip.NewWriter(&out)
	case "xz":
		w, err = xz.NewWriter(&out)
	case "zst":
		w, err = zstd.NewWriter(&out)
	default:
		return text
	}
	if err != nil {
		panic(err) // a buffer takes everything
	}
	w.Write(text)
	w.Close()
	return out.Bytes()
}

// Packages lists the paths of the packages, sorted.
func (t Tree) Packages() (list []string) {
	for name := range t {
		if strings.HasSuffix(name, ".rpm") {
			list = append(list, name)
		}
	}
	slices.Sort(list)
	return list
}

// Find is the path of a file of metadata (primary, filelists, group); "" if there is none.
func (t Tree) Find(kind string) string {
	for name := range t {
		if strings.Contains(name, "-"+kind+".xml") {
			return name
		}
	}
	return ""
}

// Write writes the repository into a directory.
func (t Tree) Write(dir string) error {
	for name, text := range t {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, text, 0o644); err != nil {
			return err
		}
	}
	return nil
}
