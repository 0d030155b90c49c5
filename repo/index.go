package repo

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"

	"rackstrap/internal/rpm"
)

// Index is what a repository offers: its packages with their versions, and its groups. It is immutable.
type Index struct {
	packages map[string][]Package // by name
	provides map[string][]string  // names of packages, by what they can be asked for or required by, files included
	groups   *comps               // nil: the repository has no groups
	count    int
	files    []MetadataFile

	cost   int64
	memory *Memory           // nil: of its own
	names  map[string]string // while it is read
}

// Package is one build of a package.
type Package struct {
	Name, Arch, Epoch, Version, Release string

	Path   string // below the repository, as clients ask for it
	Size   int64  // -1: not said
	Base   string // its xml:base; "" for none
	Origin string // its location as it is written, if that is not below the repository

	requires []string
}

// String is the package as people write it.
func (p Package) String() string { return p.Name + "-" + p.evr() + "." + p.Arch }

func (p Package) evr() string {
	return rpmPackage{epoch: p.Epoch, version: p.Version, release: p.Release}.evr()
}

func (p Package) newer(than Package) bool {
	for _, pair := range [][2]string{{p.Epoch, than.Epoch}, {p.Version, than.Version}, {p.Release, than.Release}} {
		if c := rpm.Compare(pair[0], pair[1]); c != 0 {
			return c > 0
		}
	}
	return false
}

// MetadataFile is one file that repomd.xml names.
type MetadataFile struct {
	Kind, Path string
	Database   int    // version of the format of a database; 0 for none
	Packed     string // gz, xz, zst, bz2, or "" for not at all, by what is in it; "?" if it was not read
}

// Files lists what repomd.xml names.
func (x *Index) Files() []MetadataFile { return x.files }

// Packages is how many builds of packages there are.
func (x *Index) Packages() int { return x.count }

// All lists the packages, in the order of their names.
func (x *Index) All() []Package {
	list := make([]Package, 0, x.count)
	for _, name := range slices.Sorted(maps.Keys(x.packages)) {
		list = append(list, x.packages[name]...)
	}
	return list
}

// Has tells whether there is a package of that name; with a version (1.28.2, 1.28.2-0, 0:1.28.2-0), of that one.
func (x *Index) Has(name, version string) bool {
	return slices.ContainsFunc(x.packages[name], func(p Package) bool { return version == "" || p.is(version) })
}

// Versions lists what there is of a package: newest-looking last, as the repository lists them.
func (x *Index) Versions(name string) []string {
	var list []string
	for _, p := range x.packages[name] {
		if v := p.evr(); !slices.Contains(list, v) {
			list = append(list, v)
		}
	}
	return list
}

func (p Package) is(version string) bool {
	epoch, rest, has := strings.Cut(version, ":")
	if !has {
		rest = version
	} else if epoch != p.Epoch && (epoch != "0" || p.Epoch != "") {
		return false
	}
	return rest == p.Version || rest == p.Version+"-"+p.Release
}

// Match tells whether what was written for yum or dnf install names something in the repository: a name,
// name.arch, name-version, name-version-release, either with .arch, a pattern of these with * and ?, a name that
// a package provides, or @group.
func (x *Index) Match(spec string) bool {
	if group, ok := strings.CutPrefix(spec, "@"); ok {
		return x.HasGroup(group)
	}
	return len(x.Find(spec)) > 0
}

// Find lists the packages that a spec names, but for groups; see Match.
func (x *Index) Find(spec string) []Package {
	if strings.ContainsAny(spec, "*?[") {
		return x.findPattern(spec)
	}
	if found := x.split(spec, ""); len(found) > 0 {
		return found
	}
	if i := strings.LastIndexByte(spec, '.'); i > 0 && arches[spec[i+1:]] {
		if found := x.split(spec[:i], spec[i+1:]); len(found) > 0 {
			return found
		}
	}
	if strings.ContainsAny(spec, "()") { // what only the dependencies of other packages use
		return nil
	}
	var found []Package
	for _, name := range x.provides[spec] {
		found = append(found, x.packages[name]...)
	}
	return found
}

// arches are the architectures that are looked for: those of the nodes.
var arches = map[string]bool{"x86_64": true, "noarch": true}

// split tries every hyphen as the one between name and version.
func (x *Index) split(spec, arch string) []Package {
	find := func(name, version string) (found []Package) {
		for _, p := range x.packages[name] {
			if (arch == "" || p.Arch == arch) && (version == "" || p.is(version)) {
				found = append(found, p)
			}
		}
		return found
	}
	if found := find(spec, ""); len(found) > 0 {
		return found
	}
	for i, c := range spec {
		if c == '-' && i > 0 && i+1 < len(spec) {
			if found := find(spec[:i], spec[i+1:]); len(found) > 0 {
				return found
			}
		}
	}
	return nil
}

func (x *Index) findPattern(pattern string) (found []Package) {
	for name, builds := range x.packages {
		for _, p := range builds {
			full := name + "-" + p.Version + "-" + p.Release
			for _, text := range []string{name, name + "." + p.Arch, name + "-" + p.Version, full, full + "." + p.Arch} {
				if ok, err := path.Match(pattern, text); ok && err == nil {
					found = append(found, p)
					break
				}
			}
		}
	}
	return found
}

// HasGroup tells whether there is a group of that id or name, or (^id) an environment.
func (x *Index) HasGroup(group string) bool {
	if x.groups == nil {
		return false
	}
	if environment, ok := strings.CutPrefix(group, "^"); ok {
		return x.groups.environments[environment] != nil
	}
	return x.groups.groups[group] != nil
}

// Members lists the names of the packages that are installed with a group, or (^id) with an environment.
func (x *Index) Members(name string) (list []string) {
	if x.groups == nil {
		return nil
	}
	groups := []string{name}
	if environment, ok := strings.CutPrefix(name, "^"); ok {
		groups = nil
		if e := x.groups.environments[environment]; e != nil {
			groups = e.members
		}
	}
	for _, name := range groups {
		if g := x.groups.groups[name]; g != nil {
			list = append(list, g.members...)
		}
	}
	return list
}

// HasGroups tells whether the repository has group metadata at all.
func (x *Index) HasGroups() bool { return x.groups != nil }

// Groups lists the groups, by id and by name, sorted.
func (x *Index) Groups() []string {
	if x.groups == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(x.groups.groups))
}

// ReadIndex reads the index of a repository in a file tree. A tree without repodata is fs.ErrNotExist.
func ReadIndex(tree fs.FS) (*Index, error) {
	return readIndex(nil, func(name string) (io.ReadCloser, error) { return tree.Open(name) })
}

// FetchIndex reads the index of a repository on a server, without keeping anything. It takes as long as ctx
// lives. Its error does not hold the URL.
func FetchIndex(ctx context.Context, o Options, from string) (*Index, error) {
	open, done, err := opener(ctx, o, from)
	if err != nil {
		return nil, err
	}
	defer done()
	x, err := readIndex(o.Memory, open)
	return x, late(ctx, err)
}

// FetchFile fetches one small file, as FetchIndex does.
func FetchFile(ctx context.Context, o Options, from string, most int64) ([]byte, error) {
	open, done, err := opener(ctx, o, from)
	if err != nil {
		return nil, err
	}
	defer done()
	f, err := open("")
	if err != nil {
		return nil, late(ctx, err)
	}
	defer f.Close()
	text, err := io.ReadAll(&limited{f, most})
	return text, late(ctx, err)
}

// FetchBegin fetches the beginning of a file, as FetchIndex does, and how long the server says that the whole is (-1: it does not).
func FetchBegin(ctx context.Context, o Options, from string, most int64) (begin []byte, size int64, err error) {
	open, done, err := opener(ctx, o, from)
	if err != nil {
		return nil, 0, err
	}
	defer done()
	f, err := open("")
	if err != nil {
		return nil, 0, late(ctx, err)
	}
	defer f.Close()
	size = -1
	if b, ok := f.(body); ok {
		size = b.ContentLength
	}
	begin, err = io.ReadAll(io.LimitReader(f, most))
	return begin, size, late(ctx, err)
}

func late(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("it takes too long: %w", ctx.Err())
	}
	return err
}

// opener opens files of a server: "" is the URL itself.
func opener(ctx context.Context, o Options, from string) (open func(name string) (io.ReadCloser, error), done func(), err error) {
	base, err := url.Parse(from)
	if err != nil || base.Host == "" {
		return nil, nil, errors.New("its URL is none")
	}
	o.StallTimeout = cmp.Or(o.StallTimeout, defaultStall)
	o.MaxConns = 4
	c := newClient(o, base)
	return func(name string) (io.ReadCloser, error) {
		file := base
		if name != "" {
			file = join(base, name)
		}
		r, err := c.get(ctx, file, http.Header{})
		if err != nil {
			return nil, err
		}
		if err := r.check(); err != nil {
			r.close()
			return nil, err
		}
		return body{r}, nil
	}, c.http.CloseIdleConnections, nil
}

type body struct{ *response }

func (b body) Close() error { b.close(); return nil }

func readIndex(memory *Memory, open func(name string) (io.ReadCloser, error)) (*Index, error) {
	x := &Index{memory: memory}
	err := x.read(open)
	x.names = nil
	if err != nil && memory != nil {
		memory.used.Add(-x.cost)
	}
	return x, err
}

func (x *Index) read(open func(name string) (io.ReadCloser, error)) error {
	f, err := open(repomdPath)
	if err != nil {
		return err
	}
	text, err := io.ReadAll(&limited{f, maxRepomd})
	f.Close()
	if err != nil {
		return fmt.Errorf("%s: %w", repomdPath, err)
	}
	list, _, err := parseRepomd(text)
	if err != nil {
		return fmt.Errorf("%s: %w", repomdPath, err)
	}
	x.packages, x.provides, x.names = map[string][]Package{}, map[string][]string{}, map[string]string{}
	for _, m := range list {
		x.files = append(x.files, MetadataFile{m.kind, m.path, m.database, "?"})
	}
	primary, groups := pick(list)
	packed, err := readVerified(open, primary, func(r io.Reader) error { return parsePrimary(r, true, x.add) })
	x.packedBy(primary, packed)
	if err != nil || groups.path == "" {
		return err
	}
	packed, err = readVerified(open, groups, func(r io.Reader) (err error) {
		x.groups, err = parseComps(&limited{r, maxComps})
		return err
	})
	x.packedBy(groups, packed)
	return err
}

func (x *Index) packedBy(m metadata, packed string) {
	for i := range x.files {
		if x.files[i].Path == m.path {
			x.files[i].Packed = packed
		}
	}
}

// pick finds the primary metadata, and that of the groups; the packed twin of the latter if there is one.
func pick(list []metadata) (primary, groups metadata) {
	for _, m := range list {
		switch m.kind {
		case "primary":
			primary = m
		case "group_gz", "group_xz", "group_zst":
			groups = m
		case "group":
			if groups.path == "" {
				groups = m
			}
		}
	}
	return primary, groups
}

func (x *Index) add(p rpmPackage) error {
	if !arches[p.arch] {
		return nil // sources, and libraries for 32 bits
	}
	x.count++
	build := Package{Name: p.name, Arch: p.arch, Epoch: p.epoch, Version: p.version, Release: p.release,
		Path: p.path, Size: p.size, Base: p.at.base, Origin: p.at.String()}
	texts := 0
	for _, text := range []string{build.Name, build.Epoch, build.Version, build.Release, build.Path, build.Base, build.Origin} {
		texts += len(text)
	}
	if err := x.charge(packageCost + texts); err != nil {
		return err
	}
	for _, name := range p.requires {
		name, err := x.intern(name)
		if err != nil {
			return err
		}
		build.requires = append(build.requires, name)
	}
	x.packages[p.name] = append(x.packages[p.name], build)
	for _, name := range p.provides {
		if name == p.name || slices.Contains(x.provides[name][max(0, len(x.provides[name])-manyProvide):], p.name) {
			continue
		}
		name, err := x.intern(name)
		if err != nil {
			return err
		}
		x.provides[name] = append(x.provides[name], p.name)
	}
	return nil
}

// manyProvide is in how many places it is looked for the same package: builds of one follow each other, mostly.
const manyProvide = 128

// readVerified reads a file of repodata to its end, and then compares its checksum: what was read before is
// used only if it is right. packed is how it is compressed.
func readVerified(open func(string) (io.ReadCloser, error), m metadata, read func(io.Reader) error) (packed string, err error) {
	f, err := open(m.path)
	if err != nil {
		return "", fmt.Errorf("%s: %w", m.path, err)
	}
	defer f.Close()
	h := m.sum.hash()
	all := bufio.NewReader(io.TeeReader(&limited{f, maxMetadata}, h))
	magic, _ := all.Peek(6) // what is shorter is read below
	packed = packing(magic)
	wrong := readPacked(all, m.unpacked, read)
	if _, err := io.Copy(io.Discard, all); err != nil {
		return packed, fmt.Errorf("%s: %w", m.path, err)
	}
	if !m.sum.matches(h) {
		return packed, fmt.Errorf("%s is not the file that repomd.xml names: its %s differs", m.path, m.sum.kind)
	}
	if wrong != nil {
		return packed, fmt.Errorf("%s: %w", m.path, wrong)
	}
	return packed, nil
}

// Index reads the index of the metadata that is in force for a pull-through repository. Upstream is asked only if
// there is none yet.
func (s *Service) Index(ctx context.Context, name string) (*Index, error) {
	s.mu.Lock()
	m := s.mirrors[name]
	s.mu.Unlock()
	if m == nil {
		return nil, fmt.Errorf("no such repository: %w", fs.ErrNotExist)
	}
	newest, err := m.any(ctx)
	if err != nil {
		return nil, err
	}
	return readIndex(nil, func(name string) (io.ReadCloser, error) {
		if text, ok := newest.moved.open(name); ok {
			return io.NopCloser(bytes.NewReader(text)), nil
		}
		if name == repomdPath {
			return io.NopCloser(bytes.NewReader(newest.repomd)), nil
		}
		b, ok := s.store.open(newest.files[name].sum)
		if !ok {
			return nil, errors.New("it is not in the cache any more")
		}
		return b, nil
	})
}
