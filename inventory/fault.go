package inventory

import (
	"fmt"
	"strings"
)

// Fault is one thing that is wrong with a configuration. It never holds a secret.
type Fault struct {
	Source string // the file, or the environment variable, that says it
	Line   int    // in the file, from 1; 0 when it has none, such as a key that is missing
	Place  string // the key, or the entry of a list with its name: `machines[2] "knode2"`
	Text   string // what is wrong, and what would be right
}

// Error is one line: `rackstrap.yaml:34: machines[2] "knode2": ip 10.10.10.81 is also knode1's`.
func (f Fault) Error() string {
	var b strings.Builder
	if f.Source != "" {
		b.WriteString(f.Source)
		if f.Line > 0 {
			fmt.Fprintf(&b, ":%d", f.Line)
		}
		b.WriteString(": ")
	}
	if f.Place != "" {
		b.WriteString(f.Place + ": ")
	}
	b.WriteString(f.Text)
	return b.String()
}

// Faults are all the faults of a configuration, in the order of the file.
type Faults []Fault

// Error has one line for each fault.
func (f Faults) Error() string {
	lines := make([]string, len(f))
	for i, fault := range f {
		lines[i] = fault.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap gives errors.Is and errors.As each fault.
func (f Faults) Unwrap() []error {
	errs := make([]error, len(f))
	for i, fault := range f {
		errs[i] = fault
	}
	return errs
}
