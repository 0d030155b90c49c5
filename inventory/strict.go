package inventory

import (
	"errors"
	"io"
	"reflect"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// reader takes a YAML document apart against the raw structs, before viper reads its values: viper folds
// the case of keys, and knows neither lines nor kinds. Whatever is faulty is noted and left out, so that
// one reading finds all faults.
type reader struct{ *collector }

// yamlLine finds the line in a syntax error of the YAML library, which has no type for it.
var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)`)

// document reads the text into a tree of maps; nil if it is no YAML at all.
func (r *reader) document(text io.Reader) map[string]any {
	decoder := yaml.NewDecoder(text)
	var doc, more yaml.Node
	switch err := decoder.Decode(&doc); {
	case errors.Is(err, io.EOF):
		r.faults = append(r.faults, Fault{Source: r.name, Text: "the file is empty; `rackstrap init` writes one to start from"})
		return nil
	case err != nil:
		r.syntax(err)
		return nil
	}
	if err := decoder.Decode(&more); !errors.Is(err, io.EOF) {
		if err != nil {
			r.syntax(err)
		} else {
			r.faults = append(r.faults, Fault{Source: r.name, Line: more.Line, Text: "the file holds a second document; only one is read"})
		}
		return nil
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		r.faults = append(r.faults, Fault{Source: r.name, Line: root.Line, Text: "the file must hold sections (server, network, …)"})
		return nil
	}
	return r.section("", root, reflect.TypeFor[rawConfig]())
}

func (r *reader) syntax(err error) {
	// More lines may follow the first, with excerpts of the file; it may hold a secret.
	first, _, _ := strings.Cut(err.Error(), "\n")
	f := Fault{Source: r.name, Text: "not YAML"}
	if found := yamlLine.FindStringSubmatch(first); found != nil {
		f.Line, _ = strconv.Atoi(found[1])
		f.Text += ": " + found[2]
	}
	r.faults = append(r.faults, f)
}

// section reads a mapping whose keys are the fields of a struct.
func (r *reader) section(path string, node *yaml.Node, section reflect.Type) map[string]any {
	known := map[string]reflect.Type{}
	for _, f := range fields(section) {
		known[f.key] = f.value
	}
	return r.mapping(path, node, func(key, path string, value *yaml.Node) (any, bool) {
		kind, ok := known[key]
		if !ok {
			better := suggest(key, section)
			if better != "" {
				better = "; did you mean " + better + "?"
			}
			r.fault(path, "is not a key that rackstrap knows%s", better)
			return nil, false
		}
		return r.value(path, value, kind)
	})
}

// mapping reads the entries of a mapping, each key once.
func (r *reader) mapping(path string, node *yaml.Node, read func(key, path string, value *yaml.Node) (any, bool)) map[string]any {
	if !r.is(path, node, yaml.MappingNode, "a section of keys") {
		return nil
	}
	found := map[string]any{}
	seen := map[string]int{}
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		if key.Kind != yaml.ScalarNode || key.Value == "" {
			r.lineFault(key, path, "a key must be a plain word")
			continue
		}
		inner := strings.TrimPrefix(path+"."+key.Value, ".")
		if first, twice := seen[key.Value]; twice {
			r.lineFault(key, inner, "is there twice, first in line "+strconv.Itoa(first))
			continue
		}
		seen[key.Value], r.lines[inner] = key.Line, key.Line
		if value.Kind == yaml.ScalarNode && value.ShortTag() == "!!null" {
			continue // a key without a value is as good as none
		}
		if v, ok := read(key.Value, inner, value); ok {
			found[key.Value] = v
		} else {
			r.bad[inner] = true
		}
	}
	return found
}

// value reads what the type asks for.
func (r *reader) value(path string, node *yaml.Node, kind reflect.Type) (any, bool) {
	switch kind.Kind() {
	case reflect.Struct:
		v := r.section(path, node, kind)
		return v, v != nil
	case reflect.Map:
		if kind.Elem().Kind() == reflect.Slice {
			return r.mirrors(path, node, kind.Elem())
		}
		return r.repos(path, node)
	case reflect.Slice:
		if kind == reflect.TypeFor[oneOrMore]() && node.Kind != yaml.SequenceNode {
			return r.single(path, node)
		}
		return r.list(path, node, kind.Elem())
	case reflect.Int:
		if !r.is(path, node, yaml.ScalarNode, "a number") {
			return nil, false
		}
		n, err := strconv.Atoi(node.Value)
		if err != nil {
			r.fault(path, "must be a number")
		}
		return n, err == nil
	case reflect.Bool:
		if !r.is(path, node, yaml.ScalarNode, "true or false") {
			return nil, false
		}
		b, ok := map[string]bool{"true": true, "false": false}[node.Value]
		if !ok {
			r.fault(path, "must be true or false")
		}
		return b, ok
	default:
		// A text is taken as it is written, also where YAML would see a number: 1.30 is a version.
		return node.Value, r.is(path, node, yaml.ScalarNode, "a text")
	}
}

// single reads the only text of what may be a list. An empty one is none.
func (r *reader) single(path string, node *yaml.Node) (any, bool) {
	if !r.is(path, node, yaml.ScalarNode, "a text, or a list of texts: [one, two]") {
		return nil, false
	}
	if node.Value == "" {
		return nil, true
	}
	return []any{node.Value}, true
}

func (r *reader) list(path string, node *yaml.Node, element reflect.Type) (any, bool) {
	what := "a list"
	if element.Kind() == reflect.String {
		what = "a list of texts: [one, two]"
	}
	if !r.is(path, node, yaml.SequenceNode, what) {
		return nil, false
	}
	list := []any{}
	for i, child := range node.Content {
		inner := entry(path, i)
		r.lines[inner] = child.Line
		if element.Kind() == reflect.Struct {
			r.names[inner] = nameOf(child)
		}
		// An entry that cannot be read keeps its place, so that the others keep their numbers.
		v, ok := r.value(inner, child, element)
		if !ok {
			r.bad[inner] = true
			v = reflect.Zero(element).Interface()
			if element.Kind() == reflect.Struct {
				v = map[string]any{}
			}
		}
		list = append(list, v)
	}
	return list, true
}

// nameOf is the name of a list's entry, which faults show beside its number.
func nameOf(node *yaml.Node) string {
	for i := 0; node.Kind == yaml.MappingNode && i+1 < len(node.Content); i += 2 {
		if value := node.Content[i+1]; node.Content[i].Value == "name" && value.Kind == yaml.ScalarNode {
			return value.Value
		}
	}
	return ""
}

// repoName is what can be the name of a file, a section of yum's configuration and a part of a URL. Lower
// case, because viper folds keys.
var repoName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)

// registryHost is the host of a container registry, in lower case for the same reason.
var registryHost = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,252}[a-z0-9])?(:[0-9]{1,5})?$`)

// mirrors reads a mapping from registries to lists.
func (r *reader) mirrors(path string, node *yaml.Node, list reflect.Type) (any, bool) {
	found := r.mapping(path, node, func(host, path string, value *yaml.Node) (any, bool) {
		if !registryHost.MatchString(host) {
			r.fault(path, "is not the host of a registry in lower case: docker.io, registry.example.org:5000")
			return nil, false
		}
		return r.value(path, value, list)
	})
	return found, found != nil
}

// repos reads a mapping with free keys. A repository may be written as its URL alone.
func (r *reader) repos(path string, node *yaml.Node) (any, bool) {
	found := r.mapping(path, node, func(name, path string, value *yaml.Node) (any, bool) {
		if !repoName.MatchString(name) {
			r.fault(path, "is not a name for a repository: lower-case letters, digits, dots, hyphens and underscores")
			return nil, false
		}
		if value.Kind == yaml.ScalarNode {
			return map[string]any{"url": value.Value}, true
		}
		v := r.section(path, value, reflect.TypeFor[rawRepo]())
		if v != nil && v["url"] == nil && v["dir"] == nil && v["via"] == nil {
			r.missing(path+".url", "is missing: or a dir")
			return nil, false
		}
		return v, v != nil
	})
	return found, found != nil
}

// is tells whether the node is of that kind, and notes a fault if not. Values are never quoted: this one
// may be a secret in the wrong place.
func (r *reader) is(path string, node *yaml.Node, kind yaml.Kind, want string) bool {
	switch {
	case node.Kind == yaml.AliasNode || node.Anchor != "":
		r.fault(path, "uses a YAML anchor, which is not supported: write the value out")
		return false
	case node.Kind != kind:
		r.fault(path, "must be %s", want)
		return false
	}
	return true
}

// lineFault is for a node that is not the one known under its path.
func (r *reader) lineFault(node *yaml.Node, path, text string) {
	r.fault(path, "%s", text)
	r.faults[len(r.faults)-1].Line = node.Line
}
