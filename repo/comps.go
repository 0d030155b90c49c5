package repo

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
)

// comps is the group metadata of a repository.
type comps struct {
	groups       map[string]bool // by id, and by name: kickstarts may say either
	environments map[string]bool
}

func newComps() *comps { return &comps{groups: map[string]bool{}, environments: map[string]bool{}} }

// parseComps reads comps.xml, the format of Fedora's comps.dtd.
func parseComps(r io.Reader) (*comps, error) {
	c := newComps()
	t := newTokens(r, "comps")
	err := t.document(func(tag xml.StartElement) error {
		into := map[string]map[string]bool{"group": c.groups, "environment": c.environments}[tag.Name.Local]
		if into == nil {
			return t.skip()
		}
		return t.children(func(tag xml.StartElement) error {
			translated := attribute(tag, "lang") != ""
			if tag.Name.Local != "id" && (tag.Name.Local != "name" || translated) {
				return t.skip()
			}
			text, err := t.text()
			if text = strings.TrimSpace(text); text != "" {
				into[text] = true
			}
			if len(into) > 1<<16 {
				return errors.New("it has too many groups")
			}
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	return c, nil
}
