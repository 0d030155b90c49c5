package repo

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// maxPackages bounds a repository, maxPackage one package.
const (
	maxPackages = 1 << 17
	maxPackage  = 16 << 30
	maxEntries  = 1 << 16 // what one package provides, or requires
)

// rpmPackage is what primary.xml says about one package.
type rpmPackage struct {
	want
	name, arch              string
	epoch, version, release string
	provides, requires      []string // names of capabilities and files; only if asked for
}

// parsePrimary reads primary.xml, and calls f for every package. What each provides and requires is read if asked for. How many
// packages the root element announces is not held against it: yum and dnf do not either, and the checksum in
// repomd.xml tells a whole file from a part.
func parsePrimary(r io.Reader, dependencies bool, f func(rpmPackage) error) error {
	t := newTokens(r, "metadata")
	n := 0
	return t.document(func(tag xml.StartElement) error {
		if tag.Name.Local != "package" {
			return t.skip()
		}
		p, err := t.rpm(dependencies)
		if err != nil {
			return fmt.Errorf("package %d %.80q: %w", n+1, p.name, err)
		}
		if n++; n > maxPackages {
			return errors.New("it lists too many packages")
		}
		return f(p)
	})
}

func (t *tokens) rpm(dependencies bool) (p rpmPackage, err error) {
	p.size = -1
	err = t.children(func(tag xml.StartElement) (err error) {
		switch tag.Name.Local {
		case "name":
			p.name, err = t.text()
			return err
		case "arch":
			p.arch, err = t.text()
			return err
		case "checksum":
			kind := attribute(tag, "type")
			text, err := t.text()
			if err == nil {
				p.sum, err = newSum(kind, text)
			}
			return err
		case "version":
			p.epoch, p.version, p.release = attribute(tag, "epoch"), attribute(tag, "ver"), attribute(tag, "rel")
		case "time":
			p.time = timestamp(attribute(tag, "file"))
		case "size":
			if p.size, err = number(attribute(tag, "package"), maxPackage); err != nil {
				return err
			}
		case "location":
			if p.path, p.at, err = location(tag); errors.Is(err, errElsewhere) {
				p.path, err = p.at.servedAs(), nil
			}
			if err != nil {
				return err
			}
		case "format":
			if dependencies {
				return t.format(&p)
			}
		}
		return t.skip()
	})
	switch {
	case err != nil:
	case p.name == "" || p.version == "" || p.arch == "":
		err = errors.New("it has no name, version or architecture")
	case len(p.name)+len(p.arch)+len(p.epoch)+len(p.version)+len(p.release) > 2048:
		err = errors.New("its name is too long")
	case p.path == "" || p.sum.kind == "":
		err = errors.New("it has no location or checksum")
	case p.path == repomdPath:
		err = errors.New("its location is repomd.xml")
	}
	return p, err
}

// format reads what a package provides, files included, and what it requires.
func (t *tokens) format(p *rpmPackage) error {
	return t.children(func(tag xml.StartElement) error {
		switch tag.Name.Local {
		case "provides":
			return t.entries(&p.provides)
		case "requires":
			return t.entries(&p.requires)
		case "file":
			name, err := t.text()
			p.provides = append(p.provides, name)
			if err == nil && len(p.provides) > maxEntries {
				err = errTooMuch
			}
			return err
		}
		return t.skip()
	})
}

func (t *tokens) entries(into *[]string) error {
	seen := map[string]bool{}
	return t.children(func(entry xml.StartElement) error {
		name := attribute(entry, "name")
		switch {
		case name == "" || seen[name]:
		case len(name) > maxLocation || len(*into) >= maxEntries:
			return errTooMuch
		default:
			seen[name] = true
			*into = append(*into, name)
		}
		return t.skip()
	})
}

// evr is epoch, version and release as people write them.
func (p rpmPackage) evr() string {
	text := p.version
	if p.release != "" {
		text += "-" + p.release
	}
	if n, err := strconv.Atoi(p.epoch); err == nil && n > 0 {
		text = p.epoch + ":" + text
	}
	return text
}
