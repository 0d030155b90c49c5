// Package kickstart renders the answer file of one machine, which installs it and makes a Kubernetes node
// of it, and checks such files against the syntax of the installer that will read them.
//
// What is installed is data: a profile is a directory of assets/profiles with a description and a template.
// This package knows how machine and configuration become values, how they are quoted, and nothing of any
// release. Rendering is pure: the same input gives the same bytes.
package kickstart

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"text/template"

	"rackstrap/inventory"
)

// Input is all that a kickstart depends on.
type Input struct {
	Config   *inventory.Config
	Machine  inventory.Machine
	Medium   string // URL of the installation tree
	Callback Callback
}

// Callback is how the installing machine reports to the appliance. If a text is missing, the kickstart
// reports nothing.
type Callback struct {
	URL     string // of the node plane: https://10.10.10.1:8443
	CA      string // PEM of the certificate that the node plane is checked with
	Secret  string // token of this attempt; never in an error of this package
	Attempt int
	Agents  []Agent // the node's program, one for each architecture; none: no agent is installed
}

// Agent is the program that makes a node of an installed machine of one architecture.
type Agent struct {
	Arch   string // as `uname -m` says it: x86_64, aarch64
	URL    string // on the boot plane
	SHA256 string // lower-case hex
}

func (c Callback) complete() bool { return c.URL != "" && c.CA != "" && c.Secret != "" }

// Renderer renders and checks kickstarts. It is immutable, and safe for concurrent use.
type Renderer struct {
	profiles map[string]*profile
	syntaxes map[string]*syntax
}

// New reads all profiles (see assets.Profiles) and parses their templates: a fault in one shows at start-up.
// It refuses a template that prints a value without quoting it for the place where it stands.
func New(profiles fs.FS) (*Renderer, error) {
	r := &Renderer{profiles: map[string]*profile{}, syntaxes: map[string]*syntax{}}
	files, err := fs.Glob(profiles, "*.syntax.yaml")
	if err != nil {
		return nil, err
	}
	zones, err := readZones(profiles)
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		s := &syntax{}
		if err := readYAML(profiles, file, s); err != nil {
			return nil, err
		}
		if err := s.prepare(); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if err := s.Values.prepare(zones); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		r.syntaxes[strings.TrimSuffix(file, ".syntax.yaml")] = s
	}
	descriptions, err := fs.Glob(profiles, "*/"+profileFile)
	if err != nil {
		return nil, err
	}
	for _, file := range descriptions {
		dir := path.Dir(file)
		p, err := readProfile(profiles, dir)
		if err != nil {
			return nil, err
		}
		if r.syntaxes[p.Syntax] == nil {
			return nil, fmt.Errorf("%s: there is no %s.syntax.yaml", file, p.Syntax)
		}
		r.profiles[dir] = p
	}
	return r, nil
}

// Profiles lists the names of the profiles, sorted.
func (r *Renderer) Profiles() []string { return slices.Sorted(maps.Keys(r.profiles)) }

// Syntax names the kickstart syntax of a profile, for Check; "" if there is no such profile.
func (r *Renderer) Syntax(profile string) string {
	if p, ok := r.profiles[profile]; ok {
		return p.Syntax
	}
	return ""
}

// Render renders the kickstart of a machine. An error tells what of the input cannot be rendered, and never
// holds the secret or the hash of a password.
func (r *Renderer) Render(in Input) ([]byte, error) {
	text, err := r.render(in)
	if err != nil {
		return nil, fmt.Errorf("kickstart of %q: %w", in.Machine.Name, err)
	}
	return text, nil
}

func (r *Renderer) render(in Input) ([]byte, error) {
	p, v, err := r.view(in)
	if err != nil {
		return nil, err
	}
	return p.execute(v)
}

// view is what the templates of a machine's profile see.
func (r *Renderer) view(in Input) (*profile, *view, error) {
	p, ok := r.profiles[in.Machine.Install.Profile]
	if !ok {
		return nil, nil, fmt.Errorf("there is no profile %q; there are: %s", in.Machine.Install.Profile, strings.Join(r.Profiles(), ", "))
	}
	v, err := newView(in, p)
	if err != nil {
		return nil, nil, err
	}
	s := r.syntaxes[p.Syntax]
	return p, v, s.Values.check(in.Machine.Install, s.Title)
}

func (p *profile) execute(v *view) ([]byte, error) {
	var out bytes.Buffer
	out.Grow(32 << 10)
	if err := p.templates.ExecuteTemplate(&out, templateFile, v); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// parseTemplates makes one set of the templates that profiles share and those of one profile, which may replace the
// shared ones by name.
func parseTemplates(files fs.FS, dir string) (*template.Template, error) {
	set := template.New("").Option("missingkey=error")
	set.Funcs(quoting).Funcs(plain).Funcs(template.FuncMap{
		// margin prints another template behind a margin. What it holds is quoted there already.
		"margin": func(name string, data any) (string, error) {
			var out strings.Builder
			if err := set.ExecuteTemplate(&out, name, data); err != nil {
				return "", err
			}
			return lines(out.String())
		},
	})
	for _, pattern := range []string{"*.tmpl", dir + "/*.tmpl"} {
		names, err := fs.Glob(files, pattern)
		if err != nil {
			return nil, err
		}
		if len(names) == 0 {
			continue
		}
		if _, err := set.ParseFS(files, pattern); err != nil {
			return nil, fmt.Errorf("profile %s: %w", dir, err)
		}
	}
	if set.Lookup(templateFile) == nil {
		return nil, fmt.Errorf("profile %s has no %s", dir, templateFile)
	}
	for _, t := range set.Templates() {
		if err := guard(t); err != nil {
			return nil, fmt.Errorf("profile %s: %w", dir, err)
		}
	}
	return set, nil
}
