package inventory

import (
	"maps"
	"reflect"
	"slices"
	"strings"
)

// field is a key of a section and the type of its value.
type field struct {
	key   string
	value reflect.Type
}

// fields lists the keys of a raw struct, those of squashed structs included.
func fields(section reflect.Type) (list []field) {
	for i := range section.NumField() {
		f := section.Field(i)
		if tag := f.Tag.Get("mapstructure"); tag == ",squash" {
			list = append(list, fields(f.Type)...)
		} else {
			list = append(list, field{tag, f.Type})
		}
	}
	return list
}

// scalars lists every key outside of lists and free-form maps, by its path: server.interface, install.repos
// not. A list of texts counts as one value. These are the keys that the environment can override.
func scalars(section reflect.Type, prefix string) map[string]reflect.Type {
	found := map[string]reflect.Type{}
	for _, f := range fields(section) {
		path := prefix + f.key
		switch {
		case f.value.Kind() == reflect.Struct:
			maps.Copy(found, scalars(f.value, path+"."))
		case f.value.Kind() != reflect.Map && (f.value.Kind() != reflect.Slice || f.value.Elem().Kind() == reflect.String):
			found[path] = f.value
		}
	}
	return found
}

// allPaths lists every key with its path; [] stands for the entries of a list, * for a free name.
func allPaths(section reflect.Type, prefix string) (paths []string) {
	for _, f := range fields(section) {
		path := prefix + f.key
		paths = append(paths, path)
		switch value := f.value; {
		case value.Kind() == reflect.Struct:
			paths = append(paths, allPaths(value, path+".")...)
		case value.Kind() == reflect.Slice && value.Elem().Kind() == reflect.Struct:
			paths = append(paths, allPaths(value.Elem(), path+"[].")...)
		case value.Kind() == reflect.Map && value.Elem().Kind() == reflect.Struct:
			paths = append(paths, allPaths(value.Elem(), path+".*.")...)
		}
	}
	return paths
}

// suggest finds what the writer of an unknown key may have meant: a key of the same section that is spelt
// nearly so, or else the same key in another section.
func suggest(key string, section reflect.Type) string {
	best, distance := "", len(key)/3+2
	for _, f := range fields(section) {
		if d := editDistance(strings.ToLower(key), f.key); d < distance {
			best, distance = f.key, d
		}
	}
	if best != "" {
		return best
	}
	paths := allPaths(reflect.TypeFor[rawConfig](), "")
	i := slices.IndexFunc(paths, func(path string) bool { return path == key || strings.HasSuffix(path, "."+key) })
	if i < 0 {
		return ""
	}
	return paths[i]
}

// editDistance is Levenshtein's: how many letters must be changed, added or left out.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
