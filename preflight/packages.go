package preflight

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"rackstrap/internal/rpm"
	"rackstrap/inventory"
	"rackstrap/kickstart"
	"rackstrap/media"
	"rackstrap/repo"
)

// need is what the installation of a machine fetches, and of all that are installed like it.
type need struct {
	machine, medium string
	kickstart.Sources
}

// offer is what one place has, a medium or a repository, or why it was not looked at.
type offer struct {
	shelves []shelf
	err     error
	near    bool // on this host: an error is a fault
	close   func() error
}

// shelf is one repository; a medium may have several.
type shelf struct {
	*repo.Index
	files  files             // nil on a server
	absent map[string]string // why packages cannot be had, by their path
	remote int               // packages that this appliance does not have, and machines ask some server for
}

// files are those of a repository of this host, by the names that clients ask for them by.
type files interface {
	Stat(name string) (int64, error)
	Open(name string) (*repo.File, error)
	// Origin is where the repository's own metadata says that a package is, if that is not its path; else "".
	Origin(p repo.Package) string
}

var errNotAsked = errors.New("not asked")

// installations looks at what all installations fetch.
func (e *examination) installations(ctx context.Context) {
	e.collect()
	e.read(ctx)
	defer func() {
		for _, o := range e.offers {
			if o.close != nil {
				o.close()
			}
		}
	}()
	for _, name := range slices.Sorted(maps.Keys(e.offers)) {
		e.offered(name, e.offers[name])
	}
	for _, n := range e.needs {
		e.fromMedium(n)
		e.fromRepos(n)
	}
	e.keys(ctx)
}

// collect lists the different needs.
func (e *examination) collect() {
	seen := map[string]bool{}
	for _, m := range e.cfg.Machines {
		sources, err := e.Sources(m)
		if err != nil {
			e.Fault("kickstarts", "%v", err)
			continue
		}
		if kind := fmt.Sprintf("%s %+v", e.mediumOf(m), sources); !seen[kind] {
			seen[kind] = true
			e.needs = append(e.needs, need{m.Name, e.mediumOf(m), sources})
		}
	}
}

// Subjects of offers; machines of different profiles may mean different repositories by one name, but then none that this
// appliance serves.
func mediumSubject(name string) string { return "medium " + name }
func repoSubject(s kickstart.Source) string {
	return "repository " + s.Name
}

// read reads all indexes, at the same time.
func (e *examination) read(ctx context.Context) {
	reads := map[string]func(context.Context) offer{}
	for _, n := range e.needs {
		reads[mediumSubject(n.medium)] = func(ctx context.Context) offer { return e.readMedium(ctx, n.medium) }
		for _, s := range n.Repos {
			reads[offerKey(s)] = func(ctx context.Context) offer { return e.readRepo(ctx, s) }
		}
	}
	var mu sync.Mutex
	var group errgroup.Group
	group.SetLimit(8)
	for key, read := range reads {
		group.Go(func() error {
			o := read(ctx)
			mu.Lock()
			defer mu.Unlock()
			e.offers[key] = o
			return nil
		})
	}
	group.Wait()
}

func offerKey(s kickstart.Source) string { return repoSubject(s) + " " + s.Dir + s.URL }

func (e *examination) readMedium(ctx context.Context, name string) offer {
	tree, ok := e.Plan.Library().Tree(name)
	if !ok {
		m, configured := e.cfg.Medium(name)
		if !configured || m.URL == "" {
			return offer{err: errNotAsked} // it could not be opened, and that was said
		}
		return e.readServer(ctx, m.URL)
	}
	info, _ := media.ReadTreeInfo(tree) // what is wrong with it is said elsewhere
	if len(info.Repositories) == 0 {
		info.Repositories = []string{"."}
	}
	o := offer{near: true}
	for _, dir := range info.Repositories {
		sub, err := fs.Sub(tree, dir)
		if err == nil {
			var x *repo.Index
			if x, err = repo.ReadIndex(sub); err == nil {
				o.shelves = append(o.shelves, look(x, treeFiles{tree, dir}))
				continue
			}
		}
		o.err = errors.Join(o.err, metadataError(path.Join("/", dir), tree, dir, err))
	}
	return o
}

// treeFiles are the files of a repository on a medium.
type treeFiles struct {
	tree media.Tree
	dir  string
}

func (t treeFiles) Stat(name string) (int64, error) {
	return repo.StatFile(t.tree, path.Join(t.dir, name))
}
func (t treeFiles) Open(name string) (*repo.File, error) {
	return repo.OpenFile(t.tree, path.Join(t.dir, name))
}

func (t treeFiles) Origin(p repo.Package) string { return p.Origin }

func (e *examination) readRepo(ctx context.Context, s kickstart.Source) offer {
	if s.Dir == "" {
		if s.Via == inventory.ViaAppliance && e.Served != nil && e.Servers > 0 {
			x, err := e.Served(ctx, s.Name)
			return offer{shelves: []shelf{{Index: x}}, err: err}
		}
		return e.readServer(ctx, s.URL)
	}
	l, err := repo.OpenLocal(s.Dir)
	if err != nil {
		return offer{err: err, near: true}
	}
	x, err := l.Index()
	if err != nil {
		l.Close()
		return offer{err: metadataError(s.Dir, l.Tree(), ".", err), near: true}
	}
	return offer{shelves: []shelf{look(x, l)}, near: true, close: l.Close}
}

// metadataError says that there is no metadata in other words than that a file of it is missing.
func metadataError(where string, tree media.Tree, dir string, err error) error {
	if _, absent := tree.Lookup(path.Join(dir, "repodata/repomd.xml")); missing(absent) {
		return fmt.Errorf("%s has no repodata/repomd.xml: createrepo_c makes it", where)
	}
	return err
}

func (e *examination) readServer(ctx context.Context, url string) offer {
	if e.Servers == 0 {
		return offer{err: errNotAsked}
	}
	ctx, cancel := context.WithTimeout(ctx, e.Servers)
	defer cancel()
	x, err := repo.FetchIndex(ctx, e.Fetch, url)
	return offer{shelves: []shelf{{Index: x}}, err: err}
}

// look asks for every package as clients will.
func look(x *repo.Index, from files) shelf {
	s := shelf{Index: x, files: from, absent: map[string]string{}}
	for _, p := range x.All() {
		size, err := from.Stat(p.Path)
		switch {
		case err != nil && strings.HasPrefix(p.Base, "http"):
			s.remote++
		case err != nil && from.Origin(p) != "":
			s.absent[p.Path] = fmt.Sprintf("at %s %s", from.Origin(p), reason(err))
		case err != nil:
			s.absent[p.Path] = reason(err)
		case strings.ContainsAny(p.Path, "?#"):
			s.absent[p.Path] = "has a name that no URL can have: no ? and #"
		case size == 0:
			s.absent[p.Path] = "is empty"
		case p.Size >= 0 && size != p.Size:
			s.absent[p.Path] = fmt.Sprintf("has %d bytes, and %d in the metadata", size, p.Size)
		}
	}
	return s
}

// offered tells what is wrong with a place, whoever needs it.
func (e *examination) offered(key string, o offer) {
	subject := subjectOf(key)
	switch {
	case o.err == nil:
	case errors.Is(o.err, errNotAsked):
	case o.near:
		e.Fault(subject, "%v", o.err)
	case missing(o.err):
		e.Fault(subject, "its server has no repodata/repomd.xml at this URL")
	default:
		e.Warn(subject, "was not looked up: %v", o.err)
	}
	if o.err != nil {
		return
	}
	for _, s := range o.shelves {
		if n := len(s.absent); n > 0 {
			first := slices.Min(slices.Collect(maps.Keys(s.absent)))
			e.Warn(subject, "%d of the %d packages that its metadata names cannot be had; whoever needs one fails: %s %s", n, s.Packages(), first, s.absent[first])
		}
		if s.remote > 0 {
			e.Warn(subject, "%d packages are not here, but on a server by the metadata's xml:base: machines ask it, not this appliance", s.remote)
		}
	}
	for _, n := range e.needs {
		if n.fetchesFrom(key) {
			for _, s := range o.shelves {
				for _, text := range unreadable(s.Files(), n.Reads) {
					e.Fault(subject, "%s cannot read %s", n.Release, text)
				}
			}
		}
	}
}

// subjectOf is the first two words of a key.
func subjectOf(key string) string {
	words := strings.SplitN(key, " ", 3)
	return strings.Join(words[:2], " ")
}

func (n need) fetchesFrom(key string) bool {
	return key == mediumSubject(n.medium) || slices.ContainsFunc(n.Repos, func(s kickstart.Source) bool { return offerKey(s) == key })
}

// unreadable lists metadata that a release asks for and cannot read.
func unreadable(list []repo.MetadataFile, r kickstart.Reads) (texts []string) {
	files := map[string]repo.MetadataFile{}
	for _, f := range list {
		files[f.Kind] = f
	}
	for _, kind := range []string{"primary", "filelists", "group"} {
		f, ok := files[kind]
		if db, has := files[kind+"_db"]; r.Databases && has && db.Database == databaseVersion {
			f, ok = db, true
		}
		if gz, has := files["group_gz"]; kind == "group" && has {
			f, ok = gz, true
		}
		if !ok {
			continue
		}
		ending := strings.TrimPrefix(path.Ext(f.Path), ".")
		if ending == "xml" || ending == "sqlite" {
			ending = ""
		}
		switch {
		case ending != "" && !slices.Contains(r.Metadata, ending):
			texts = append(texts, fmt.Sprintf("%s: of compressed metadata only %s (createrepo_c --general-compress-type=gz)", f.Path, strings.Join(r.Metadata, ", ")))
		case f.Packed != "?" && f.Packed != ending:
			texts = append(texts, fmt.Sprintf("%s: it is compressed as %s, and its name says %s", f.Path, cmp.Or(f.Packed, "nothing"), cmp.Or(ending, "nothing")))
		}
	}
	return texts
}

// databaseVersion is the format that yum reads (sqlitecachec.DBVERSION).
const databaseVersion = 10

// fromMedium looks for what the installer takes from the medium.
func (e *examination) fromMedium(n need) {
	subject, o := mediumSubject(n.medium), e.offers[mediumSubject(n.medium)]
	if o.err != nil {
		return
	}
	indexes := o.indexes()
	var asked []string
	for _, spec := range n.Medium {
		group, isGroup := strings.CutPrefix(spec, "@")
		found := anyOf(indexes, func(x *repo.Index) bool { return x.Match(spec) })
		switch {
		case found && isGroup:
			for _, x := range indexes {
				asked = append(asked, x.Members(group)...) // those that the medium lacks are passed over by yum and dnf, too
			}
		case found:
			asked = append(asked, spec)
		case isGroup && !anyOf(indexes, (*repo.Index).HasGroups):
			e.Fault(subject, "it has no groups (comps), and %s is installed from it", spec)
		case isGroup:
			var groups []string
			for _, x := range indexes {
				groups = append(groups, x.Groups()...)
			}
			e.Fault(subject, "it has no group %s; it has: %s", group, strings.Join(groups, ", "))
		default:
			e.Fault(subject, "it has no package %s", spec)
		}
	}
	for _, spec := range n.Implied {
		if !anyOf(indexes, func(x *repo.Index) bool { return x.Match(spec) }) {
			e.Fault(subject, "it has no package %s, which the installer adds", spec)
		}
		asked = append(asked, spec)
	}
	e.installed(n, repo.Need(indexes, asked, func(string) bool { return false }), map[string]offer{subject: o}, nil)
}

func anyOf(indexes []*repo.Index, f func(*repo.Index) bool) bool {
	return slices.ContainsFunc(indexes, f)
}

func (o offer) indexes() (list []*repo.Index) {
	for _, s := range o.shelves {
		list = append(list, s.Index)
	}
	return list
}

// fromRepos looks for what is installed from the repositories.
func (e *examination) fromRepos(n need) {
	subject := "packages of " + n.machine
	var indexes []*repo.Index
	offers, signed := map[string]offer{}, map[string]bool{}
	unread := false
	for _, s := range n.Repos {
		o := e.offers[offerKey(s)]
		switch {
		case o.err == nil:
			indexes = append(indexes, o.indexes()...)
			offers[repoSubject(s)], signed[repoSubject(s)] = o, len(s.GPGKeys) > 0
		case o.near || errors.Is(o.err, errNotAsked) || missing(o.err):
			return // not asked, or a fault that was told: nothing certain can be said
		default:
			unread = true
		}
	}
	var nowhere, asked []string
	for _, spec := range n.Packages {
		switch {
		case anyOf(indexes, func(x *repo.Index) bool { return x.Match(spec) }):
			asked = append(asked, spec)
		case unread:
			nowhere = append(nowhere, spec)
		default:
			e.Fault(subject, "%s is in none of the repositories%s", spec, otherVersions(indexes, spec))
		}
	}
	if len(nowhere) > 0 && len(indexes) > 0 {
		e.Warn(subject, "not in the repositories that were looked up: %s", strings.Join(nowhere, ", "))
	}
	// What the medium provides may be installed already.
	medium := e.offers[mediumSubject(n.medium)]
	there := func(requirement string) bool {
		return medium.err != nil || anyOf(medium.indexes(), func(x *repo.Index) bool { return x.Provides(requirement) })
	}
	e.installed(n, repo.Need(indexes, asked, there), offers, signed)
}

// maxListed is how many packages of one place are named.
const maxListed = 8

// installed looks at packages that are certainly installed: there, whole, readable.
func (e *examination) installed(n need, list []repo.Needed, offers map[string]offer, signed map[string]bool) {
	subject := "packages of " + n.machine
	for _, where := range slices.Sorted(maps.Keys(offers)) {
		faults := 0
		for _, s := range offers[where].shelves {
			for _, p := range list {
				if s.Index != p.From || s.files == nil {
					continue
				}
				why, absent := s.absent[p.Path]
				if !absent {
					why = refused(s.files, p.Package, n.Sources, signed[where])
				}
				if why == "" {
					continue
				}
				if faults++; faults <= maxListed {
					e.Fault(subject, "%s: %s %s", where, p, why)
				}
			}
		}
		if faults > maxListed {
			e.Fault(subject, "%s: the same or the like is so with %d more", where, faults-maxListed)
		}
	}
}

// refused tells why the release would not install a package.
func refused(from files, p repo.Package, s kickstart.Sources, signed bool) string {
	f, err := from.Open(p.Path)
	switch {
	case err != nil && strings.HasPrefix(p.Base, "http"):
		return "" // on a server
	case err != nil:
		return reason(err)
	}
	defer f.Content.Close()
	h, err := rpm.ReadHeader(f.Content)
	if err != nil {
		return err.Error()
	}
	for _, feature := range h.Features {
		if !slices.Contains(s.Reads.Features, feature) {
			return fmt.Sprintf("needs rpmlib(%s), which %s does not have", feature, s.Release)
		}
	}
	switch {
	case h.Name != p.Name || h.Version != p.Version || h.Release != p.Release || h.Arch != p.Arch:
		return fmt.Sprintf("is another package, %s-%s-%s.%s", h.Name, h.Version, h.Release, h.Arch)
	case !slices.Contains(s.Reads.Payload, h.Payload):
		return fmt.Sprintf("is packed by %s, which %s cannot read", h.Payload, s.Release)
	case signed && !h.Signed:
		return "is not signed, and the repository has a gpgkey: gpgkey: none leaves signatures unchecked"
	}
	return ""
}

// otherVersions says what there is of a package in place of the version that is not there.
func otherVersions(indexes []*repo.Index, spec string) string {
	for i := len(spec); i > 0; i = strings.LastIndexByte(spec[:i], '-') {
		var found []string
		for _, x := range indexes {
			for _, v := range x.Versions(spec[:i]) {
				if !slices.Contains(found, v) {
					found = append(found, v)
				}
			}
		}
		if len(found) > 0 {
			return fmt.Sprintf("; of %s there is %s", spec[:i], strings.Join(found[max(0, len(found)-8):], ", "))
		}
	}
	return ""
}

// keyBegins begins a key in ASCII armour (RFC 4880, section 6.2), which rpm wants.
const keyBegins = "-----BEGIN PGP PUBLIC KEY BLOCK-----"

// keys looks at the keys of repositories that come from servers.
func (e *examination) keys(ctx context.Context) {
	if e.Servers == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, e.Servers)
	defer cancel()
	seen := map[string]string{}
	for _, n := range e.needs {
		for _, s := range n.Repos {
			for _, key := range s.GPGKeys {
				if strings.HasPrefix(key, "http") && seen[key] == "" {
					seen[key] = repoSubject(s)
				}
			}
		}
	}
	var mu sync.Mutex
	var group errgroup.Group
	group.SetLimit(8)
	for key, subject := range seen {
		group.Go(func() error {
			text, err := repo.FetchFile(ctx, e.Fetch, key, 1<<20)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case missing(err):
				e.Fault(subject, "its server does not have the gpgkey %s", path.Base(key))
			case err != nil:
				e.Warn(subject, "its gpgkey was not looked up: %v", err)
			case !strings.Contains(string(text), keyBegins):
				e.Fault(subject, "its gpgkey %s is no key (%s)", path.Base(key), keyBegins)
			}
			return nil
		})
	}
	group.Wait()
}
