package installer

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"rackstrap/internal/shlex"
)

// line is one command of a kickstart, with the place that an error names.
type line struct {
	place string // "ks.cfg:12"
	words []string
}

func (l line) fault(format string, args ...any) error {
	return fmt.Errorf("%s: %s: %s", l.place, l.words[0], fmt.Sprintf(format, args...))
}

// script is a section of shell, or of what its interpreter reads.
type script struct {
	kind        string // pre, pre-install, post, onerror, traceback
	place       string
	interpreter string // default /bin/sh
	errorOnFail bool
	log         string // path; in the installed system for a %post without --nochroot
	noChroot    bool
	text        string
}

// selection is the section %packages.
type selection struct {
	given         bool
	groups        []string // "core", "^minimal": environments carry the ^
	packages      []string
	excluded      []string
	ignoreMissing bool
	noCore        bool
}

// kickstart is an answer file, divided but not yet understood.
type kickstart struct {
	commands []line
	packages selection
	scripts  []script
	addons   []line // their first lines, from the name on
}

func (k *kickstart) of(kind string) (found []script) {
	for _, s := range k.scripts {
		if s.kind == kind {
			found = append(found, s)
		}
	}
	return found
}

// scriptSections are those whose text is a program.
var scriptSections = map[string]bool{"pre": true, "pre-install": true, "post": true, "onerror": true, "traceback": true}

// parser reads a kickstart as pykickstart does. Includes are read from disk: Anaconda looks at them only after
// %pre has run, because %pre writes them.
type parser struct {
	root        string // where the paths of %include start
	ignoreGone  bool   // an include that is not there is no fault: before %pre
	into        kickstart
	includeDeep int
}

// parse reads the text. beforePre is Anaconda's first reading, which is for %pre alone.
func parse(name string, text []byte, root string, beforePre bool) (*kickstart, error) {
	p := &parser{root: root, ignoreGone: beforePre}
	if err := p.read(name, text, false); err != nil {
		return nil, err
	}
	return &p.into, nil
}

func (p *parser) read(name string, text []byte, inPackages bool) error {
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, 4<<20)
	number := 0
	var open *line   // the section that is open
	var body *script // if it is a script
	var collect []string
	for lines.Scan() {
		number++
		raw := lines.Text()
		place := fmt.Sprintf("%s:%d", name, number)
		trimmed := strings.TrimSpace(raw)
		if body != nil { // verbatim until %end
			if trimmed == "%end" {
				body.text = strings.Join(collect, "\n") + "\n"
				p.into.scripts = append(p.into.scripts, *body)
				open, body, collect = nil, nil, nil
				continue
			}
			collect = append(collect, raw)
			continue
		}
		words, err := shlex.Split(raw)
		if err != nil {
			return fmt.Errorf("%s: %w", place, err)
		}
		if len(words) == 0 {
			continue
		}
		at := line{place: place, words: words}
		ignored := open != nil && open.words[0] != "%packages"
		switch {
		case words[0] == "%end":
			if open == nil {
				return fmt.Errorf("%s: %%end without a section", place)
			}
			open = nil
		case ignored: // %addon, %anaconda
		case words[0] == "%include" || words[0] == "%ksappend":
			if err := p.include(at, inPackages || open != nil); err != nil {
				return err
			}
		case open != nil || (inPackages && !strings.HasPrefix(words[0], "%")):
			if err := p.into.packages.add(place, words); err != nil {
				return err
			}
		case strings.HasPrefix(words[0], "%"):
			if open, body, err = p.section(at); err != nil {
				return err
			}
		default:
			p.into.commands = append(p.into.commands, at)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if open != nil {
		return fmt.Errorf("%s: section %s has no %%end", open.place, open.words[0])
	}
	return nil
}

func (p *parser) section(at line) (open *line, body *script, err error) {
	kind := strings.TrimPrefix(at.words[0], "%")
	switch {
	case scriptSections[kind]:
		o, err := at.options("--erroronfail", "--interpreter=", "--log=", "--logfile=", "--nochroot")
		if err != nil {
			return nil, nil, err
		}
		if len(o.args) > 0 {
			return nil, nil, at.fault("unexpected %q", o.args[0])
		}
		if o.has("--nochroot") && kind != "post" {
			return nil, nil, at.fault("option --nochroot is of %%post alone")
		}
		body = &script{kind: kind, place: at.place, interpreter: "/bin/sh", errorOnFail: o.has("--erroronfail"),
			log: o.get("--log"), noChroot: o.has("--nochroot")}
		if body.log == "" {
			body.log = o.get("--logfile")
		}
		if given := o.get("--interpreter"); given != "" {
			body.interpreter = given
		}
		return &at, body, nil
	case kind == "packages":
		o, err := at.options("--default", "--excludedocs", "--ignoremissing", "--instLangs=", "--multilib", "--nobase", "--nocore",
			"--retries=", "--timeout=", "--exclude-weakdeps", "--excludeWeakdeps", "--inst-langs=", "--ignorebroken")
		if err != nil {
			return nil, nil, err
		}
		s := &p.into.packages
		s.given, s.ignoreMissing, s.noCore = true, s.ignoreMissing || o.has("--ignoremissing"), s.noCore || o.has("--nocore")
		return &at, nil, nil
	case kind == "addon" && len(at.words) > 1:
		p.into.addons = append(p.into.addons, line{place: at.place, words: at.words[1:]})
		return &at, nil, nil
	case kind == "anaconda":
		return &at, nil, nil
	}
	return nil, nil, at.fault("unknown section")
}

func (p *parser) include(at line, inPackages bool) error {
	if at.words[0] == "%ksappend" || len(at.words) != 2 {
		return at.fault("want the path of one file")
	}
	name := at.words[1]
	if strings.Contains(name, "://") {
		return at.fault("%s: the stand-in includes files alone", name)
	}
	if p.includeDeep++; p.includeDeep > 16 {
		return at.fault("%s: includes are nested too deep", name)
	}
	defer func() { p.includeDeep-- }()
	text, err := os.ReadFile(path.Join(p.root, name))
	if errors.Is(err, fs.ErrNotExist) && p.ignoreGone {
		return nil
	}
	if err != nil {
		return at.fault("%v", err)
	}
	return p.read(name, text, inPackages)
}

func (s *selection) add(place string, words []string) error {
	for _, w := range words {
		switch {
		case w == "@" || w == "-" || w == "@^":
			return fmt.Errorf("%s: %%packages: %q names nothing", place, w)
		case strings.HasPrefix(w, "-@"):
			return fmt.Errorf("%s: %%packages: %s: the stand-in excludes packages, not groups", place, w)
		case strings.HasPrefix(w, "@"):
			s.groups = append(s.groups, w[1:])
		case strings.HasPrefix(w, "--"):
			return fmt.Errorf("%s: %%packages: unknown option %s", place, w)
		case strings.HasPrefix(w, "-"):
			s.excluded = append(s.excluded, w[1:])
		default:
			s.packages = append(s.packages, w)
		}
	}
	return nil
}

// options are the words after a command.
type options struct {
	args   []string
	values map[string][]string
}

func (o options) has(name string) bool { return len(o.values[name]) > 0 }

// get is the last value given, as optparse has it; "" without one.
func (o options) get(name string) string {
	if all := o.values[name]; len(all) > 0 {
		return all[len(all)-1]
	}
	return ""
}

// list divides the values at commas.
func (o options) list(name string) (all []string) {
	for _, v := range o.values[name] {
		for _, one := range strings.Split(v, ",") {
			if one = strings.TrimSpace(one); one != "" {
				all = append(all, one)
			}
		}
	}
	return all
}

// options sorts the words after the command. known are the options' names, with "=" where a value belongs to
// them, as the next word or behind "="; others are refused, never ignored.
func (l line) options(known ...string) (options, error) {
	takes := map[string]bool{}
	for _, k := range known {
		name, value := strings.CutSuffix(k, "=")
		takes[name] = value
	}
	o := options{values: map[string][]string{}}
	for i := 1; i < len(l.words); i++ {
		w := l.words[i]
		if !strings.HasPrefix(w, "--") {
			o.args = append(o.args, w)
			continue
		}
		name, value, hasValue := strings.Cut(w, "=")
		takesValue, ok := takes[name]
		switch {
		case !ok:
			return o, l.fault("unknown option %s", name)
		case !takesValue && hasValue:
			return o, l.fault("option %s takes no value", name)
		case takesValue && !hasValue:
			if i++; i >= len(l.words) {
				return o, l.fault("option %s has no value", name)
			}
			value = l.words[i]
		}
		o.values[name] = append(o.values[name], value)
	}
	return o, nil
}
