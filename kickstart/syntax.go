package kickstart

import (
	"fmt"
	"strconv"
	"strings"
)

// syntax is what one release accepts, its installer above all: see assets/profiles/*.syntax.yaml.
type syntax struct {
	Title    string              `yaml:"title"`
	Sections map[string]*grammar `yaml:"sections"`
	Addons   map[string]*grammar `yaml:"addons"` // of %addon
	Commands map[string]*grammar `yaml:"commands"`
	Refused  map[string]string   `yaml:"refused"` // "command" or "command --option": why, and what to do instead
	Values   values              `yaml:"values"`
}

// grammar is what may follow a command or the name of a section.
type grammar struct {
	Args     string `yaml:"args"`     // how many words beside the options: "0", "0-1", "1+"
	Options  string `yaml:"options"`  // divided by blanks; "=" at the end: takes a value, "[=]": may have one
	Required string `yaml:"required"` // of these options, those that must be there
	Free     bool   `yaml:"free"`     // options are passed on to something else: unchecked
	Script   bool   `yaml:"script"`   // a section of shell, or of what --interpreter says

	least, most int // words; most < 0: any number
	options     map[string]valued
	required    []string
}

// valued is whether an option has a value.
type valued int

const (
	never valued = iota
	always
	sometimes
)

// option reads one of the table's options.
func option(text string) (name string, value valued) {
	for _, form := range []struct {
		suffix string
		value  valued
	}{{"[=]", sometimes}, {"=", always}} {
		if name, found := strings.CutSuffix(text, form.suffix); found {
			return name, form.value
		}
	}
	return text, never
}

func (s *syntax) prepare() error {
	for _, table := range []map[string]*grammar{s.Sections, s.Addons, s.Commands} {
		for name, g := range table {
			if g == nil {
				return fmt.Errorf("%s: is empty, write {}", name)
			}
			if err := g.prepare(); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return nil
}

func (g *grammar) prepare() (err error) {
	if g.least, g.most, err = countRange(g.Args); err != nil {
		return err
	}
	g.options = map[string]valued{}
	for _, text := range strings.Fields(g.Options) {
		name, value := option(text)
		if !strings.HasPrefix(name, "--") {
			return fmt.Errorf("option %q does not begin with --", text)
		}
		g.options[name] = value
	}
	for _, text := range strings.Fields(g.Required) {
		name, _ := option(text)
		if _, known := g.options[name]; !known {
			return fmt.Errorf("%s is required, but not an option", name)
		}
		g.required = append(g.required, name)
	}
	return nil
}

// countRange reads "", "2", "0-1" and "1+".
func countRange(s string) (least, most int, err error) {
	low, high, ranged := strings.Cut(s, "-")
	low, open := strings.CutSuffix(low, "+")
	if s == "" {
		return 0, 0, nil
	}
	if least, err = strconv.Atoi(low); err != nil {
		return 0, 0, fmt.Errorf("args: %q is not like 0, 0-1 or 1+", s)
	}
	switch {
	case open:
		return least, -1, nil
	case !ranged:
		return least, least, nil
	}
	if most, err = strconv.Atoi(high); err != nil || most < least {
		return 0, 0, fmt.Errorf("args: %q is not like 0, 0-1 or 1+", s)
	}
	return least, most, nil
}

// find is the option that a word means: Python's parsers of options take an abbreviation that fits one option only.
func (g *grammar) find(word string) (name string, known bool) {
	if _, known := g.options[word]; known {
		return word, true
	}
	for full := range g.options {
		if strings.HasPrefix(full, word) {
			if known {
				return word, false
			}
			name, known = full, true
		}
	}
	return name, known
}

// check finds what is wrong with the words that follow a command.
func (s *syntax) check(name string, g *grammar, words []string) (faults []string) {
	if g.Free {
		return g.count(name, len(words))
	}
	given := map[string]bool{}
	count := 0
	for i := 0; i < len(words); i++ {
		if len(words[i]) < 2 || words[i][0] != '-' {
			count++
			continue
		}
		word, _, hasValue := strings.Cut(words[i], "=")
		option, known := g.find(word)
		if !known {
			faults = append(faults, fmt.Sprintf("%s has no option %s in %s%s", name, word, s.Title, s.hint(name+" "+word)))
			return faults // what follows may be its value
		}
		given[option] = true
		switch value := g.options[option]; {
		case hasValue && value == never:
			faults = append(faults, fmt.Sprintf("%s: option %s takes no value", name, option))
		case !hasValue && value == always:
			i++ // the value is the next word
			if i >= len(words) || strings.HasPrefix(words[i], "--") {
				faults = append(faults, fmt.Sprintf("%s: option %s has no value", name, option))
				i--
			}
		case !hasValue && value == sometimes && i+1 < len(words) && !strings.HasPrefix(words[i+1], "-"):
			i++
		}
	}
	for _, option := range g.required {
		if !given[option] {
			faults = append(faults, fmt.Sprintf("%s needs the option %s", name, option))
		}
	}
	return append(faults, g.count(name, count)...)
}

// count finds whether there are too few or too many words beside the options.
func (g *grammar) count(name string, words int) []string {
	switch {
	case words < g.least:
		return []string{name + ": an argument is missing"}
	case g.most >= 0 && words > g.most && !g.Free:
		return []string{fmt.Sprintf("%s: too many arguments: %d, at most %d", name, words, g.most)}
	}
	return nil
}

func (s *syntax) hint(what string) string {
	if why := s.Refused[what]; why != "" {
		return ": " + why
	}
	return ""
}
