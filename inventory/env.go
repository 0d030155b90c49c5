package inventory

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// envPrefix begins the name of every variable that overrides a key.
const envPrefix = "RACKSTRAP_"

// otherEnv are variables of that prefix that mean something else.
var otherEnv = map[string]bool{
	"RACKSTRAP_CI":     true, // a skipped test is a failure
	"RACKSTRAP_CONFIG": true, // for scripts that wrap the commands
}

// EnvName is the environment variable that overrides a key: server.http_port is RACKSTRAP_SERVER_HTTP_PORT.
func EnvName(key string) string {
	return envPrefix + strings.ToUpper(strings.NewReplacer(".", "_", "-", "_").Replace(key))
}

// overrides takes the variables (as of os.Environ) that set a key: by key, values of the key's kind. A
// repository that the file names has a variable too; lists of sections have none. Empty ones count as unset.
func (c *collector) overrides(environ []string, repos []string) (values map[string]any, warnings []string) {
	keys := map[string]string{} // by variable
	kinds := scalars(reflect.TypeFor[rawConfig](), "")
	for _, name := range repos {
		keys[EnvName("install.repos."+name)] = "install.repos." + name
	}
	for key := range kinds {
		keys[EnvName(key)] = key
	}
	values = map[string]any{}
	for _, assignment := range slices.Sorted(slices.Values(environ)) {
		name, text, _ := strings.Cut(assignment, "=")
		if !strings.HasPrefix(name, envPrefix) || otherEnv[name] || text == "" {
			continue
		}
		key, known := keys[name]
		if !known {
			warnings = append(warnings, fmt.Sprintf("the environment variable %s sets no key of the configuration%s", name, nearestName(name, keys)))
			continue
		}
		c.env[key] = name
		if v, ok := c.fromText(key, text, kinds[key]); ok {
			values[key] = v
		}
	}
	return values, warnings
}

// fromText reads a variable; kind is nil for a repository's URL.
func (c *collector) fromText(key, text string, kind reflect.Type) (any, bool) {
	switch {
	case kind == nil:
		return map[string]any{"url": text}, true
	case kind.Kind() == reflect.Int:
		n, err := strconv.Atoi(text)
		if err != nil {
			c.fault(key, "must be a number")
		}
		return n, err == nil
	case kind.Kind() == reflect.Bool:
		b, err := strconv.ParseBool(text)
		if err != nil {
			c.fault(key, "must be true or false")
		}
		return b, err == nil
	case kind.Kind() == reflect.Slice:
		list := strings.Split(text, ",")
		for i := range list {
			list[i] = strings.TrimSpace(list[i])
			c.env[entry(key, i)] = c.env[key]
		}
		return list, true
	default:
		return text, true
	}
}

func nearestName(name string, keys map[string]string) string {
	best, distance := "", 4
	for _, known := range slices.Sorted(maps.Keys(keys)) {
		if d := editDistance(name, known); d < distance {
			best, distance = known, d
		}
	}
	if best == "" {
		return ""
	}
	return "; did you mean " + best + "?"
}
