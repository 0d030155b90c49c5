package repo

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
)

// comps is the group metadata of a repository.
type comps struct {
	groups       map[string]*group // by id, and by name: kickstarts may say either
	environments map[string]*group
}

// group is a group of packages, or an environment of groups.
type group struct{ members []string }

func newComps() *comps { return &comps{groups: map[string]*group{}, environments: map[string]*group{}} }

const maxComps = 32 << 20 // bytes; CentOS's has 1 MB

const maxGroups = 1 << 16 // and members of one

// parseComps reads comps.xml, the format of Fedora's comps.dtd.
func parseComps(r io.Reader) (*comps, error) {
	c := newComps()
	t := newTokens(r, "comps")
	err := t.document(func(tag xml.StartElement) error {
		into := map[string]map[string]*group{"group": c.groups, "environment": c.environments}[tag.Name.Local]
		if into == nil {
			return t.skip()
		}
		g := &group{}
		err := t.children(func(tag xml.StartElement) error {
			switch translated := attribute(tag, "lang") != ""; {
			case tag.Name.Local == "id", tag.Name.Local == "name" && !translated:
				text, err := t.text()
				if text = strings.TrimSpace(text); text != "" {
					into[text] = g
				}
				return err
			case tag.Name.Local == "packagelist", tag.Name.Local == "grouplist":
				return t.members(g)
			}
			return t.skip()
		})
		if len(into) > maxGroups || len(g.members) > maxGroups {
			return errors.New("it has too many groups")
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return c, nil
}

// members reads what is installed with a group: optional packages are not, and conditional ones with others only.
func (t *tokens) members(g *group) error {
	return t.children(func(tag xml.StartElement) error {
		kind := attribute(tag, "type")
		name, err := t.text()
		if name = strings.TrimSpace(name); name != "" && (kind == "" || kind == "mandatory" || kind == "default") {
			g.members = append(g.members, name)
		}
		return err
	})
}
