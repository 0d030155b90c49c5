package kickstart

import (
	"fmt"
	"strconv"
	"strings"
)

// syntax is what one version of the installer accepts: see assets/profiles/*.syntax.yaml.
type syntax struct {
	Title    string              `yaml:"title"`
	Sections map[string]*grammar `yaml:"sections"`
	Commands map[string]*grammar `yaml:"commands"`
	Refused  map[string]string   `yaml:"refused"` // "command" or "command --option": why, and what to do instead
}

// grammar is what may follow a command or the name of a section.
type grammar struct {
	Args     string `yaml:"args"`     // how many words beside the options: "0", "0-1", "1+"
	Options  string `yaml:"options"`  // divided by blanks; "=" at the end: takes a value
	Required string `yaml:"required"` // of these options, those that must be there
	Free     bool   `yaml:"free"`     // options are passed on to something else: unchecked
	Script   bool   `yaml:"script"`   // a section of shell, or of what --interpreter says

	least, most int // words; most < 0: any number
	options     map[string]bool
	required    []string
}

func (s *syntax) prepare() error {
	for _, table := range []map[string]*grammar{s.Sections, s.Commands} {
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
	g.options = map[string]bool{}
	for _, option := range strings.Fields(g.Options) {
		name, takesValue := strings.CutSuffix(option, "=")
		if !strings.HasPrefix(name, "--") {
			return fmt.Errorf("option %q does not begin with --", option)
		}
		g.options[name] = takesValue
	}
	for _, option := range strings.Fields(g.Required) {
		name := strings.TrimSuffix(option, "=")
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

// check finds what is wrong with the words that follow a command.
func (s *syntax) check(name string, g *grammar, words []string) (faults []string) {
	if g.Free {
		return nil
	}
	given := map[string]bool{}
	count := 0
	for i := 0; i < len(words); i++ {
		if !strings.HasPrefix(words[i], "--") {
			count++
			continue
		}
		option, _, hasValue := strings.Cut(words[i], "=")
		given[option] = true
		takesValue, known := g.options[option]
		switch {
		case !known:
			faults = append(faults, fmt.Sprintf("%s has no option %s in %s%s", name, option, s.Title, s.hint(name+" "+option)))
			return faults // what follows may be its value
		case hasValue && !takesValue:
			faults = append(faults, fmt.Sprintf("%s: option %s takes no value", name, option))
		case takesValue && !hasValue:
			i++ // the value is the next word
			if i >= len(words) || strings.HasPrefix(words[i], "--") {
				faults = append(faults, fmt.Sprintf("%s: option %s has no value", name, option))
				i--
			}
		}
	}
	for _, option := range g.required {
		if !given[option] {
			faults = append(faults, fmt.Sprintf("%s needs the option %s", name, option))
		}
	}
	switch {
	case count < g.least:
		faults = append(faults, fmt.Sprintf("%s: an argument is missing", name))
	case g.most >= 0 && count > g.most:
		faults = append(faults, fmt.Sprintf("%s: too many arguments: %d, at most %d", name, count, g.most))
	}
	return faults
}

func (s *syntax) hint(what string) string {
	if why := s.Refused[what]; why != "" {
		return ": " + why
	}
	return ""
}
