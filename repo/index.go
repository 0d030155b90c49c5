package repo

import (
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
)

// Index is what a repository offers: its packages with their versions, and its groups. It is immutable.
type Index struct {
	packages map[string][]build  // by name
	provides map[string]struct{} // further names that packages can be asked for by
	groups   *comps              // nil: the repository has no groups
	count    int
}

// build is one build of a package.
type build struct{ arch, epoch, version, release string }

// Packages is how many builds of packages there are.
func (x *Index) Packages() int { return x.count }

// Has tells whether there is a package of that name; with a version (1.28.2, 1.28.2-0, 0:1.28.2-0), of that one.
func (x *Index) Has(name, version string) bool {
	return slices.ContainsFunc(x.packages[name], func(b build) bool { return version == "" || b.is(version) })
}

// Versions lists what there is of a package: newest-looking last, as the repository lists them.
func (x *Index) Versions(name string) []string {
	var list []string
	for _, b := range x.packages[name] {
		if v := (rpmPackage{epoch: b.epoch, version: b.version, release: b.release}).evr(); !slices.Contains(list, v) {
			list = append(list, v)
		}
	}
	return list
}

func (b build) is(version string) bool {
	epoch, rest, has := strings.Cut(version, ":")
	if !has {
		rest = version
	} else if epoch != b.epoch && (epoch != "0" || b.epoch != "") {
		return false
	}
	return rest == b.version || rest == b.version+"-"+b.release
}

// Match tells whether what was written for yum or dnf install names something in the repository: a name,
// name.arch, name-version, name-version-release, either with .arch, a pattern of these with * and ?, a name that
// a package provides, or @group.
func (x *Index) Match(spec string) bool {
	if group, ok := strings.CutPrefix(spec, "@"); ok {
		return x.HasGroup(group)
	}
	if strings.ContainsAny(spec, "*?[") {
		return x.matchPattern(spec)
	}
	if _, ok := x.provides[spec]; ok || x.Has(spec, "") {
		return true
	}
	if x.split(spec, "") {
		return true
	}
	if i := strings.LastIndexByte(spec, '.'); i > 0 && arches[spec[i+1:]] {
		return x.split(spec[:i], spec[i+1:])
	}
	return false
}

// arches are the architectures that are looked for: those of the nodes.
var arches = map[string]bool{"x86_64": true, "noarch": true}

// split tries every hyphen as the one between name and version.
func (x *Index) split(spec, arch string) bool {
	is := func(name, version string) bool {
		return slices.ContainsFunc(x.packages[name], func(b build) bool {
			return (arch == "" || b.arch == arch) && (version == "" || b.is(version))
		})
	}
	if is(spec, "") {
		return true
	}
	for i, c := range spec {
		if c == '-' && i > 0 && i+1 < len(spec) && is(spec[:i], spec[i+1:]) {
			return true
		}
	}
	return false
}

func (x *Index) matchPattern(pattern string) bool {
	for name, builds := range x.packages {
		for _, b := range builds {
			for _, text := range []string{name, name + "." + b.arch, name + "-" + b.version, name + "-" + b.version + "-" + b.release,
				name + "-" + b.version + "-" + b.release + "." + b.arch} {
				if ok, err := path.Match(pattern, text); ok && err == nil {
					return true
				}
			}
		}
	}
	return false
}

// HasGroup tells whether there is a group of that id or name, or (^id) an environment.
func (x *Index) HasGroup(group string) bool {
	if x.groups == nil {
		return false
	}
	if environment, ok := strings.CutPrefix(group, "^"); ok {
		return x.groups.environments[environment]
	}
	return x.groups.groups[group]
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
	return readIndex(func(name string) (io.ReadCloser, error) { return tree.Open(name) })
}

// FetchIndex reads the index of a repository on a server, without keeping anything. It takes as long as ctx
// lives. Its error does not hold the URL.
func FetchIndex(ctx context.Context, o Options, from string) (*Index, error) {
	base, err := url.Parse(from)
	if err != nil || base.Host == "" {
		return nil, errors.New("its URL is none")
	}
	o.StallTimeout = cmp.Or(o.StallTimeout, defaultStall)
	o.MaxConns = 4
	c := newClient(o)
	defer c.http.CloseIdleConnections()
	x, err := readIndex(func(name string) (io.ReadCloser, error) {
		r, err := c.get(trusting(ctx), join(base, name), http.Header{})
		if err != nil {
			return nil, err
		}
		if err := r.check(); err != nil {
			r.close()
			return nil, err
		}
		return body{r}, nil
	})
	if err != nil && ctx.Err() != nil {
		return nil, fmt.Errorf("it takes too long: %w", ctx.Err())
	}
	return x, err
}

type body struct{ *response }

func (b body) Close() error { b.close(); return nil }

func readIndex(open func(name string) (io.ReadCloser, error)) (*Index, error) {
	f, err := open(repomdPath)
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(&limited{f, maxRepomd})
	f.Close()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", repomdPath, err)
	}
	list, err := parseRepomd(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", repomdPath, err)
	}
	x := &Index{packages: map[string][]build{}, provides: map[string]struct{}{}}
	primary, groups := pick(list)
	err = readVerified(open, primary, func(r io.Reader) error { return parsePrimary(r, true, x.add) })
	if err != nil || groups.path == "" {
		return x, err
	}
	return x, readVerified(open, groups, func(r io.Reader) (err error) {
		x.groups, err = parseComps(r)
		return err
	})
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
	x.packages[p.name] = append(x.packages[p.name], build{p.arch, p.epoch, p.version, p.release})
	for _, name := range p.provides {
		if name != p.name && len(x.provides) < maxPackages {
			x.provides[name] = struct{}{}
		}
	}
	return nil
}

// readVerified reads a file of repodata to its end, and then compares its checksum: what was read before is
// used only if it is right.
func readVerified(open func(string) (io.ReadCloser, error), m metadata, read func(io.Reader) error) error {
	f, err := open(m.path)
	if err != nil {
		return fmt.Errorf("%s: %w", m.path, err)
	}
	defer f.Close()
	h := m.sum.hash()
	all := io.TeeReader(&limited{f, maxMetadata}, h)
	wrong := readPacked(all, m.unpacked, read)
	if _, err := io.Copy(io.Discard, all); err != nil {
		return fmt.Errorf("%s: %w", m.path, err)
	}
	if !m.sum.matches(h) {
		return fmt.Errorf("%s is not the file that repomd.xml names: its %s differs", m.path, m.sum.kind)
	}
	if wrong != nil {
		return fmt.Errorf("%s: %w", m.path, wrong)
	}
	return nil
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
	return readIndex(func(name string) (io.ReadCloser, error) {
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
