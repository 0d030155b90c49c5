package kickstart

import (
	"bytes"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"text/template"

	"go.yaml.in/yaml/v3"

	"rackstrap/inventory"
)

// The files of a profile.
const (
	profileFile  = "profile.yaml"
	templateFile = "kickstart.tmpl"
)

// profile is the description of what is installed.
type profile struct {
	Title        string                 `yaml:"title"`
	Syntax       string                 `yaml:"syntax"`        // of the installer: <syntax>.syntax.yaml
	Release      string                 `yaml:"release"`       // what yum and dnf call $releasever
	VolumeGroup  string                 `yaml:"volume_group"`  // what the name of the one with the root file system begins with
	BootArgs     []string               `yaml:"boot_args"`     // kernel arguments of the installed system
	Sysctl       map[string][]string    `yaml:"sysctl"`        // settings of the kernel, by kernel
	VendorRepos  []string               `yaml:"vendor_repos"`  // prefixes of repository files that are put out of use
	SandboxImage string                 `yaml:"sandbox_image"` // below the cluster's image repository
	Reads        Reads                  `yaml:"reads"`         // not rendered
	Packages     map[string][]string    `yaml:"packages"`      // by purpose: the template's matter; and by kernel
	Repos        map[string]profileRepo `yaml:"repos"`

	templates *template.Template
}

// Reads is what the programs of a release can read. It is for those who look whether that is what they will be given.
type Reads struct {
	Stage2    string   `yaml:"stage2"`    // path of the installer's second stage in a tree that does not say it
	Metadata  []string `yaml:"metadata"`  // endings of the names of compressed metadata
	Databases bool     `yaml:"databases"` // metadata in databases (version 10) is preferred
	Payload   []string `yaml:"payload"`   // how packages may be compressed
	Features  []string `yaml:"features"`  // that packages may need of rpm, as rpmlib(…)
}

// profileRepo is a package repository of the installed machine.
type profileRepo struct {
	Title   string   `yaml:"title"`
	URL     string   `yaml:"url"`     // {kubernetes} stands for the first two numbers of its version
	GPGKey  string   `yaml:"gpgkey"`  // URLs, divided by blanks; "": signatures are not checked
	Exclude []string `yaml:"exclude"` // packages that an update does not touch
	Kernels []string `yaml:"kernels"` // only with these kernels; none: always
}

func readProfile(files fs.FS, dir string) (*profile, error) {
	p := &profile{}
	file := dir + "/" + profileFile
	if err := readYAML(files, file, p); err != nil {
		return nil, err
	}
	if p.Title == "" || p.Syntax == "" || p.VolumeGroup == "" || p.SandboxImage == "" {
		return nil, fmt.Errorf("%s: title, syntax, volume_group and sandbox_image are needed", file)
	}
	var err error
	p.templates, err = parseTemplates(files, dir)
	return p, err
}

// kernels are the values that the option Kernel may have.
func (p *profile) kernels() []string {
	var list []string
	for _, k := range []string{inventory.KernelLT, inventory.KernelML} {
		if len(p.Packages[k]) > 0 {
			list = append(list, k)
		}
	}
	return append([]string{inventory.KernelStock}, list...)
}

func (r profileRepo) wanted(kernel string) bool {
	return len(r.Kernels) == 0 || slices.Contains(r.Kernels, kernel)
}

// expand replaces {kubernetes} by the version's first two numbers.
func expand(text, kubernetes string) string {
	minor := kubernetes
	if i := strings.LastIndexByte(kubernetes, '.'); i > 0 {
		minor = kubernetes[:i]
	}
	return strings.ReplaceAll(text, "{kubernetes}", minor)
}

// readYAML reads a file strictly: an unknown key is an error.
func readYAML(files fs.FS, name string, into any) error {
	text, err := fs.ReadFile(files, name)
	if err != nil {
		return err
	}
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
