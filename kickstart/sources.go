package kickstart

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"rackstrap/inventory"
)

// Sources is what an installation fetches, and from where.
type Sources struct {
	Release  string   // what is installed: title of the profile
	Medium   []string // what the installer takes from the medium: names of packages, and @groups
	Implied  []string // and what it adds to them
	Packages []string // what is installed from the repositories then, as yum and dnf are asked for it
	Repos    []Source
	Reads    Reads
}

// Source is one package repository of an installed machine.
type Source struct {
	Name string
	Dir  string            // a directory of the appliance's host, or
	URL  string            // where the packages come from in the end, without variables
	Keys map[string]string // URLs of the keys that the appliance serves at /repo/<name>/.keys/<key>
	Via  inventory.Via

	GPGKeys []string // URLs of the keys that packages must be signed with; none: they need not be
}

// Sources tells what the kickstart of a machine fetches.
func (r *Renderer) Sources(in Input) (Sources, error) {
	p, v, err := r.view(in)
	if err != nil {
		return Sources{}, fmt.Errorf("kickstart of %q: %w", in.Machine.Name, err)
	}
	s := Sources{Release: p.Title, Medium: p.Packages["medium"], Implied: p.Packages["implied"], Reads: p.Reads}
	s.Packages = slices.Concat(p.Packages["node"], v.KernelPackages, p.Packages["containerd"], v.Kubernetes)
	if v.Docker {
		s.Packages = append(s.Packages, p.Packages["docker"]...)
	}
	s.Packages = append(s.Packages, v.ExtraPackages...)
	for _, repo := range v.Repos {
		s.Repos = append(s.Repos, repo.source)
	}
	return s, nil
}

// keysDir is where the appliance has a repository's keys, below its URL.
const keysDir = ".keys/"

// viaAppliance notes where a repository's packages come from, and has machines fetch them from the appliance if
// that was asked for: with the keys that they are checked with, as such machines may reach nothing else.
func (r *repo) viaAppliance(s inventory.Server, configured inventory.Repo, release string) {
	expand := func(url string) string { return inventory.ExpandRepoURL(url, release) }
	r.source = Source{Name: r.Name, Dir: configured.Dir, Via: configured.Via}
	if configured.Dir == "" {
		r.source.URL = expand(r.URL)
	}
	for _, key := range strings.Fields(r.GPGKey) {
		r.source.GPGKeys = append(r.source.GPGKeys, expand(key))
	}
	if configured.Via != inventory.ViaAppliance {
		return
	}
	r.URL = s.RepoURL(r.Name, configured)
	keys := strings.Fields(r.GPGKey)
	for i, key := range keys {
		if !strings.HasPrefix(key, "http://") && !strings.HasPrefix(key, "https://") || configured.Dir != "" {
			continue // in the installed system; or, with a directory, wherever it was said to be
		}
		if r.source.Keys == nil {
			r.source.Keys = map[string]string{}
		}
		name := strconv.Itoa(i)
		r.source.Keys[name] = expand(key)
		keys[i] = r.URL + keysDir + name
	}
	r.GPGKey = strings.Join(keys, " ")
}
