package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"rackstrap/assets"
	"rackstrap/inventory"
	"rackstrap/kickstart"
	"rackstrap/media"
	"rackstrap/repo"
)

// packageCheck holds what installations fetch against what media and repositories offer.
type packageCheck struct {
	cfg     *inventory.Config
	library *media.Library
	lookUp

	mu      sync.Mutex
	indexes map[string]offer // by directory or URL, and "medium "+name
}

// lookUp says how far to look. The zero value looks at what is on this host.
type lookUp struct {
	servers time.Duration                                               // how long servers may take to tell what they have; 0: they are not asked
	served  func(ctx context.Context, name string) (*repo.Index, error) // of what this appliance fetches through; nil: ask the upstream
}

// offer is the index of one place, or why there is none.
type offer struct {
	index *repo.Index
	err   error
	near  bool // on this host: an error is a fault
}

// checkPackages tells what the installations of all machines would look for in vain: groups of the medium,
// packages and pinned versions of the repositories. What cannot be looked up, because a server is not reached in
// a short time or a medium has no metadata, is a warning.
func checkPackages(ctx context.Context, cfg *inventory.Config, library *media.Library, how lookUp) (warnings []string, err error) {
	renderer, err := kickstart.New(assets.Profiles())
	if err != nil {
		return nil, err
	}
	if _, err := repoSpecs(renderer, cfg); err != nil {
		return nil, err
	}
	type need struct {
		machine, medium string
		sources         kickstart.Sources
	}
	var needs []need
	seen := map[string]bool{}
	for _, m := range cfg.Machines {
		sources, err := machineSources(renderer, cfg, m)
		if err != nil {
			return nil, err // repoSpecs found it already
		}
		medium, _ := cfg.Medium(m.Install.Medium)
		kind := fmt.Sprintf("%s %+v", medium.Name, sources)
		if !seen[kind] {
			seen[kind] = true
			needs = append(needs, need{m.Name, medium.Name, sources})
		}
	}
	c := &packageCheck{cfg: cfg, library: library, lookUp: how, indexes: map[string]offer{}}
	var wanted []func(context.Context)
	for _, n := range needs {
		wanted = append(wanted, c.wantMedium(n.medium)...)
		for _, s := range n.sources.Repos {
			wanted = append(wanted, c.wantRepo(s)...)
		}
	}
	c.read(ctx, wanted)

	var faults []error
	note := func(machine string, w []string, f []string) {
		for _, text := range w {
			if warning := "packages: " + text; !slices.Contains(warnings, warning) {
				warnings = append(warnings, warning)
			}
		}
		for _, text := range f {
			faults = append(faults, fmt.Errorf("packages of %s: %s", machine, text))
		}
	}
	for _, n := range needs {
		w, f := c.medium(n.medium, n.sources.Medium)
		note(n.machine, w, f)
		w, f = c.packages(n.sources)
		note(n.machine, w, f)
	}
	return warnings, errors.Join(faults...)
}

// read reads all indexes at the same time.
func (c *packageCheck) read(ctx context.Context, wanted []func(context.Context)) {
	var group errgroup.Group
	group.SetLimit(8)
	for _, f := range wanted {
		group.Go(func() error { f(ctx); return nil })
	}
	group.Wait()
}

// want plans the reading of one index, once.
func (c *packageCheck) want(key string, near bool, read func(context.Context) (*repo.Index, error)) []func(context.Context) {
	if _, planned := c.indexes[key]; planned {
		return nil
	}
	c.indexes[key] = offer{err: errNotAsked, near: near}
	if !near && c.servers == 0 {
		return nil
	}
	return []func(context.Context){func(ctx context.Context) {
		if !near {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, c.servers)
			defer cancel()
		}
		index, err := read(ctx)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.indexes[key] = offer{index, err, near}
	}}
}

var errNotAsked = errors.New("not asked")

func (c *packageCheck) wantMedium(name string) []func(context.Context) {
	if tree, ok := c.library.Tree(name); ok {
		return c.want("medium "+name, true, func(context.Context) (*repo.Index, error) { return repo.ReadIndex(tree) })
	}
	m, _ := c.cfg.Medium(name)
	return c.want("medium "+name, false, func(ctx context.Context) (*repo.Index, error) { return c.fetch(ctx, m.URL) })
}

func (c *packageCheck) wantRepo(s kickstart.Source) []func(context.Context) {
	if s.Dir != "" {
		return c.want(s.Dir, true, func(context.Context) (*repo.Index, error) { return repo.ReadIndex(os.DirFS(s.Dir)) })
	}
	return c.want(s.URL, false, func(ctx context.Context) (*repo.Index, error) {
		if s.Via == inventory.ViaAppliance && c.served != nil {
			return c.served(ctx, s.Name)
		}
		return c.fetch(ctx, s.URL)
	})
}

func (c *packageCheck) fetch(ctx context.Context, url string) (*repo.Index, error) {
	return repo.FetchIndex(ctx, repo.Options{Proxy: proxyOf(func() *inventory.Config { return c.cfg })}, url)
}

// medium checks what the installer takes from the medium.
func (c *packageCheck) medium(name string, specs []string) (warnings, faults []string) {
	o := c.indexes["medium "+name]
	switch {
	case errors.Is(o.err, errNotAsked):
		return nil, nil
	case o.near && !errors.Is(o.err, fs.ErrNotExist) && o.err != nil:
		return nil, []string{fmt.Sprintf("medium %q: %v", name, o.err)}
	case o.err != nil && o.near:
		return []string{fmt.Sprintf("medium %q has no repodata: what is installed from it was not looked up", name)}, nil
	case o.err != nil:
		return []string{fmt.Sprintf("medium %q was not looked up: %v", name, o.err)}, nil
	}
	for _, spec := range specs {
		switch group, isGroup := strings.CutPrefix(spec, "@"); {
		case o.index.Match(spec):
		case isGroup && !o.index.HasGroups():
			warnings = append(warnings, fmt.Sprintf("medium %q has no groups: %s was not looked up", name, spec))
		case isGroup:
			faults = append(faults, fmt.Sprintf("medium %q has no group %s; it has: %s", name, group, strings.Join(o.index.Groups(), ", ")))
		default:
			faults = append(faults, fmt.Sprintf("medium %q has no package %s", name, spec))
		}
	}
	return warnings, faults
}

// packages checks what is installed from the repositories.
func (c *packageCheck) packages(s kickstart.Sources) (warnings, faults []string) {
	var indexes []*repo.Index
	var unread []string
	asked := true
	for _, source := range s.Repos {
		o := c.indexes[source.URL+source.Dir]
		switch {
		case o.err == nil:
			indexes = append(indexes, o.index)
		case errors.Is(o.err, errNotAsked):
			asked = false
		case o.near:
			faults = append(faults, fmt.Sprintf("repository %s: %v", source.Name, o.err))
		case errors.Is(o.err, fs.ErrNotExist):
			faults = append(faults, fmt.Sprintf("repository %s: its server has no repodata/repomd.xml at this URL", source.Name))
		default:
			unread = append(unread, source.Name)
			warnings = append(warnings, fmt.Sprintf("repository %s was not looked up: %v", source.Name, o.err))
		}
	}
	if len(faults) > 0 || !asked {
		return warnings, faults
	}
	var nowhere []string
	for _, spec := range s.Packages {
		switch {
		case slices.ContainsFunc(indexes, func(x *repo.Index) bool { return x.Match(spec) }):
		case len(unread) > 0:
			nowhere = append(nowhere, spec)
		default:
			faults = append(faults, fmt.Sprintf("%s is in none of the repositories%s", spec, otherVersions(indexes, spec)))
		}
	}
	if len(nowhere) > 0 && len(indexes) > 0 {
		warnings = append(warnings, fmt.Sprintf("not in the repositories that were looked up: %s", strings.Join(nowhere, ", ")))
	}
	return warnings, faults
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

// watchPackages looks once, in the background, for what installations would look for in vain on servers: at the
// start there is no time to wait for them.
func (d *daemon) watchPackages(ctx context.Context) error {
	warnings, err := checkPackages(ctx, d.config.Load(), d.plan.Library(), lookUp{servers: 2 * time.Minute, served: d.repos.Index})
	if ctx.Err() == nil {
		for _, w := range warnings {
			d.log.Warn(w)
		}
		if err != nil {
			for text := range strings.Lines(err.Error()) {
				d.log.Error(strings.TrimSpace(text))
			}
		}
	}
	<-ctx.Done()
	return nil
}
