package inventory

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/go-viper/mapstructure/v2"
	"github.com/spf13/viper"
)

// FileName is how the configuration is called where nothing else is said.
const FileName = "rackstrap.yaml"

// systemFile is where a service's configuration is looked for last.
const systemFile = "/etc/rackstrap/" + FileName

// maxFile bounds what is read: 10,000 machines take some 2 MiB.
const maxFile = 16 << 20

//go:embed rackstrap.yaml
var reference []byte

// Reference is the commented reference configuration, which `rackstrap init` writes: a copy.
func Reference() []byte { return bytes.Clone(reference) }

// Default is the reference configuration.
func Default() *Config {
	c, err := Parse(bytes.NewReader(reference), FileName, nil)
	if err != nil {
		panic(err) // a test sees to it that it is valid
	}
	return c
}

// WriteReference writes the reference configuration to a new file of mode 0600: it will hold the hash of a
// password. It never replaces a file: the error is fs.ErrExist then.
func WriteReference(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%w; remove it first, or name another file", err)
	}
	if err != nil {
		return err
	}
	_, err = f.Write(reference)
	if err = errors.Join(err, f.Close()); err != nil {
		os.Remove(path)
	}
	return err
}

// Find is the file that commands use: the one of the --config flag, else rackstrap.yaml here, else the one
// in /etc/rackstrap. If there is none the error is fs.ErrNotExist.
func Find(flag string) (string, error) { return find(flag, FileName, systemFile) }

func find(flag string, places ...string) (string, error) {
	if flag != "" {
		return flag, nil
	}
	for _, path := range places {
		_, err := os.Stat(path)
		if err == nil {
			return path, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	return "", fmt.Errorf("no configuration (%s): `rackstrap init` writes one, --config names another: %w",
		strings.Join(places, ", "), fs.ErrNotExist)
}

// Load reads a configuration file, with the environment (as of os.Environ, or nil) laid over it. Relative
// paths in it start at the file's directory. The error is one of reading, or Faults: all that it has.
func Load(path string, environ []string) (*Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	c, err := Parse(f, path, environ)
	if err != nil {
		return nil, err
	}
	if c.Path, err = filepath.Abs(path); err != nil {
		return nil, err
	}
	c.anchor(filepath.Dir(c.Path))
	if err := c.readTexts(); err != nil {
		return nil, err
	}
	return c, nil
}

// Parse reads a configuration; name is what faults call it. See Load. Files that it names need not exist:
// CheckFiles looks for them. Relative paths stay as they are, and Path is empty.
func Parse(r io.Reader, name string, environ []string) (*Config, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	col := &collector{origin: newOrigin(name)}
	if len(text) > maxFile {
		return nil, Faults{{Source: name, Text: fmt.Sprintf("the file is larger than %d MiB", maxFile>>20)}}
	}
	document := (&reader{col}).document(bytes.NewReader(text))
	if document == nil {
		return nil, col.err()
	}
	raw, warnings, err := col.values(document, environ)
	if err != nil {
		return nil, err
	}
	c := (&typer{collector: col}).config(raw)
	c.Warnings = append(c.Warnings, warnings...)
	c.origin = col.origin
	(&checker{collector: col, c: c}).all()
	if err := col.err(); err != nil {
		return nil, err
	}
	c.index()
	return c, nil
}

// keyDelimiter stands between the keys of a path inside viper. Its default, a dot, would tear apart the
// name of a repository; NUL cannot be in YAML.
const keyDelimiter = "\x00"

// values has viper lay the environment over the document over the defaults, and decodes the result.
func (c *collector) values(document map[string]any, environ []string) (raw rawConfig, warnings []string, err error) {
	path := func(key string) string { return strings.ReplaceAll(key, ".", keyDelimiter) }
	v := viper.NewWithOptions(viper.KeyDelimiter(keyDelimiter))
	for key, value := range defaults() {
		v.SetDefault(path(key), value)
	}
	if err := v.MergeConfigMap(document); err != nil {
		return raw, nil, fmt.Errorf("%s: %w", c.name, err)
	}
	repos := slices.Collect(maps.Keys(v.GetStringMap(path("install.repos"))))
	values, warnings := c.overrides(environ, repos)
	for key, value := range values {
		if name, repo := strings.CutPrefix(key, "install.repos."); repo { // the name may have dots
			v.Set(path("install.repos")+keyDelimiter+name, value)
		} else {
			v.Set(path(key), value)
		}
	}
	if machines, ok := v.Get("machines").([]any); ok {
		install, _ := v.AllSettings()["install"].(map[string]any)
		v.Set("machines", lay(machines, install))
	}
	err = v.UnmarshalExact(&raw, func(d *mapstructure.DecoderConfig) {
		d.WeaklyTypedInput, d.DecodeHook = false, nil // the kinds are right already
	})
	if err != nil {
		return raw, nil, fmt.Errorf("%s: %w", c.name, err)
	}
	return raw, warnings, nil
}

// lay puts each machine's own keys over the install section. Repositories and the mirrors of registries are
// replaced one by one.
func lay(machines []any, install map[string]any) []any {
	laid := make([]any, len(machines))
	for i, m := range machines {
		own, _ := m.(map[string]any)
		merged := maps.Clone(install)
		if merged == nil {
			merged = map[string]any{}
		}
		maps.Copy(merged, own)
		for _, key := range []string{"repos", "registry_mirrors"} {
			common, ok := install[key].(map[string]any)
			owned, ownOK := own[key].(map[string]any)
			if ok && ownOK {
				both := maps.Clone(common)
				maps.Copy(both, owned)
				merged[key] = both
			}
		}
		laid[i] = merged
	}
	return laid
}

// anchor makes the paths of files absolute.
func (c *Config) anchor(dir string) {
	absolute := func(path *string) {
		if *path != "" && !filepath.IsAbs(*path) {
			*path = filepath.Join(dir, *path)
		}
	}
	absolute(&c.Server.DataDir)
	absolute(&c.Server.LoadersDir)
	absolute(&c.Server.AgentsDir)
	absolute(&c.Server.RepoDir)
	for i := range c.Media {
		absolute(&c.Media[i].ISO)
		absolute(&c.Media[i].Dir)
	}
	absolute(&c.Cluster.CNIManifest)
	absolute(&c.Cluster.Images)
	anchor := func(in *Install) {
		absolute(&in.SecureBootDir)
		anchorRepos(in.Repos, absolute)
		for i := range in.PostScripts {
			absolute(&in.PostScripts[i].Path)
		}
	}
	anchor(&c.Install)
	for i := range c.Machines {
		anchor(&c.Machines[i].Install)
	}
}
