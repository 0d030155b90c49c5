package repo

import (
	"slices"
	"strings"
)

// Needed is a package that an installation fetches, and the index that it is in.
type Needed struct {
	Package
	From *Index
}

// Need lists what is certainly installed when these are asked for: of each the newest build that the indexes have, and what it
// requires, as long as packages of one name alone provide it. With several the choice is yum's and dnf's, and what
// satisfied is true for is there already. So a package that is not in the list may be installed nevertheless.
func Need(indexes []*Index, asked []string, satisfied func(requirement string) bool) (list []Needed) {
	seen := map[string]bool{}
	for len(asked) > 0 {
		spec := asked[0]
		asked = asked[1:]
		if seen[spec] {
			continue
		}
		seen[spec] = true
		n, ok := newest(indexes, spec)
		if !ok || slices.ContainsFunc(list, func(have Needed) bool { return have.Name == n.Name }) {
			continue
		}
		list = append(list, n)
		for _, requirement := range n.requires {
			if name, certain := provider(indexes, requirement); certain && !satisfied(requirement) {
				asked = append(asked, name)
			}
		}
	}
	return list
}

func newest(indexes []*Index, spec string) (found Needed, ok bool) {
	for _, x := range indexes {
		for _, p := range x.Find(spec) {
			if !ok || p.newer(found.Package) {
				found, ok = Needed{p, x}, true
			}
		}
	}
	return found, ok
}

// provider is the name of the packages that provide something, if all have the same.
func provider(indexes []*Index, requirement string) (name string, certain bool) {
	if strings.HasPrefix(requirement, "(") { // a condition on other packages
		return "", false
	}
	for _, x := range indexes {
		for _, n := range x.providers(requirement) {
			if name != "" && n != name {
				return "", false
			}
			name = n
		}
	}
	return name, name != ""
}

func (x *Index) providers(requirement string) []string {
	if len(x.packages[requirement]) > 0 {
		return append([]string{requirement}, x.provides[requirement]...)
	}
	return x.provides[requirement]
}

// Provides tells whether some package satisfies a requirement.
func (x *Index) Provides(requirement string) bool { return len(x.providers(requirement)) > 0 }
