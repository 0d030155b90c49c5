package inventory

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// origin remembers where the values of a Config came from, so that a fault found later can name the line.
// Keys are paths as in `network.relayed[0].pool`.
type origin struct {
	name  string            // of the file
	lines map[string]int    // of every key and entry of the file
	env   map[string]string // of every key that the environment sets: the variable
	names map[string]string // of the entries of a list: machines[2] -> knode2
	bad   map[string]bool   // keys that already have a fault, and whose value was left out
}

func newOrigin(name string) *origin {
	return &origin{name: name, lines: map[string]int{}, env: map[string]string{}, names: map[string]string{}, bad: map[string]bool{}}
}

// collector gathers faults about the values of one origin.
type collector struct {
	*origin
	faults Faults
}

// fault notes what is wrong at a path. The text goes on from the key: "is not …", or "10.0.0.1 is not …".
func (c *collector) fault(path, format string, args ...any) {
	f := Fault{Source: c.name, Line: c.line(path), Place: path, Text: fmt.Sprintf(format, args...)}
	if variable := c.env[path]; variable != "" {
		f.Source, f.Line = variable, 0
	}
	if entry, key := splitEntry(path); c.names[entry] != "" {
		f.Place = entry + " " + strconv.Quote(c.names[entry])
		if key != "" {
			f.Text = key + " " + f.Text
		}
	}
	c.faults = append(c.faults, f)
}

// missing notes a required key that is not there; unless it is, with a fault.
func (c *collector) missing(path, format string, args ...any) {
	if !c.bad[path] {
		c.fault(path, format, args...)
	}
}

// line is that of the path, or of the closest thing around it.
func (c *collector) line(path string) int {
	for {
		if line, ok := c.lines[path]; ok {
			return line
		}
		cut := strings.LastIndexAny(path, ".[")
		if cut < 0 {
			return 0
		}
		path = path[:cut]
	}
}

// err is the faults in the order of their lines, or nil; what has no line comes last.
func (c *collector) err() error {
	if len(c.faults) == 0 {
		return nil
	}
	slices.SortStableFunc(c.faults, func(a, b Fault) int {
		if (a.Line == 0) != (b.Line == 0) {
			return cmp.Compare(b.Line, a.Line)
		}
		return cmp.Compare(a.Line, b.Line)
	})
	return c.faults
}

// splitEntry divides the path of something in an entry of a list: machines[2].repos.base is the entry
// machines[2] and the key repos.base.
func splitEntry(path string) (entry, key string) {
	end := strings.IndexByte(path, ']')
	if end < 0 {
		return "", path
	}
	return path[:end+1], strings.TrimPrefix(path[end+1:], ".")
}

// entry is the path of the i-th entry of a list.
func entry(list string, i int) string { return fmt.Sprintf("%s[%d]", list, i) }
