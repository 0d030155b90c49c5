package rpm

import "strings"

// Compare is rpmvercmp: runs of digits and of letters are compared in turn, digits as numbers, a run of
// digits is newer than letters; ~ sorts before everything. An empty epoch is 0.
func Compare(a, b string) int {
	if a == "" {
		a = "0"
	}
	if b == "" {
		b = "0"
	}
	isDigit := func(c byte) bool { return c >= '0' && c <= '9' }
	isLetter := func(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }
	for a != "" || b != "" {
		for a != "" && !isDigit(a[0]) && !isLetter(a[0]) && a[0] != '~' {
			a = a[1:]
		}
		for b != "" && !isDigit(b[0]) && !isLetter(b[0]) && b[0] != '~' {
			b = b[1:]
		}
		tildeA, tildeB := strings.HasPrefix(a, "~"), strings.HasPrefix(b, "~")
		switch {
		case tildeA && tildeB:
			a, b = a[1:], b[1:]
			continue
		case tildeA:
			return -1
		case tildeB:
			return 1
		case a == "" || b == "":
			return len(a) - len(b)
		}
		kind := isLetter
		if isDigit(a[0]) {
			kind = isDigit
		}
		run := func(s string) (string, string) {
			n := 0
			for n < len(s) && kind(s[n]) {
				n++
			}
			return s[:n], s[n:]
		}
		var runA, runB string
		runA, a = run(a)
		runB, b = run(b)
		if runB == "" { // of different kinds
			if isDigit(runA[0]) {
				return 1
			}
			return -1
		}
		if isDigit(runA[0]) {
			runA, runB = strings.TrimLeft(runA, "0"), strings.TrimLeft(runB, "0")
			if len(runA) != len(runB) {
				return len(runA) - len(runB)
			}
		}
		if c := strings.Compare(runA, runB); c != 0 {
			return c
		}
	}
	return 0
}
