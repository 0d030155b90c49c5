package kickstart

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"text/template"
	"unicode"
	"unicode/utf8"
)

// quoting are the functions through which every printed value of a template goes, by the place where it is
// printed. They return an error for what cannot stand there, and never quote the value in it: it may be a
// secret. The installer splits a kickstart at every line end that Python knows (str.splitlines: also VT, FF,
// FS, GS, RS, NEL, LS and PS), looks for sections behind leading blanks, and does both inside of scripts:
// so no value may hold a line end, and no line may begin with a value.
var quoting = template.FuncMap{
	"ks":     ks,
	"arg":    arg,
	"sh":     sh,
	"yaml":   escaped,
	"toml":   escaped,
	"json":   jsonString,
	"unit":   unit,
	"curl":   curlString,
	"line":   line,
	"word":   word,
	"name":   name,
	"pkg":    pkg,
	"lines":  lines,
	"margin": func(string, any) (string, error) { return "", errors.New("not bound") }, // see parseTemplates
	"num":    func(n any) (string, error) { return number(n) },
}

// plain are the functions that make values for those of quoting.
var plain = template.FuncMap{
	"join": func(by string, list []string) string { return strings.Join(list, by) },
}

var (
	errControl  = errors.New("holds a control character or a line end")
	errEncoding = errors.New("is not UTF-8")
	errASCII    = errors.New("holds a character other than printable ASCII")
	errEmpty    = errors.New("is empty")
)

// What is escaped within double quotes, by reader. A Replacer is built at its first use: not once per value.
var (
	ksEscapes   = strings.NewReplacer(`\`, `\\`, `"`, `\"`)
	unitEscapes = strings.NewReplacer(`\`, `\\`, `"`, `\"`, `%`, `%%`)
	curlEscapes = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\t", `\t`)
)

// oneLine checks that no reader sees more than one line.
func oneLine(s string) error {
	if plainASCII(s) {
		return nil
	}
	if !utf8.ValidString(s) {
		return errEncoding
	}
	if strings.ContainsFunc(s, breaks) {
		return errControl
	}
	return nil
}

// plainASCII is the quick answer for nearly every value.
func plainASCII(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' && s[i] != '\t' || s[i] > '~' {
			return false
		}
	}
	return true
}

func breaks(r rune) bool {
	return unicode.IsControl(r) && r != '\t' || r == '\u2028' || r == '\u2029'
}

func ascii(s string) error {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return errASCII
		}
	}
	return nil
}

// ks is one word of a kickstart command, which the installer splits by shlex. Python 2's shlex is for ASCII.
func ks(s string) (string, error) {
	if err := ascii(s); err != nil {
		return "", err
	}
	if safe(s) {
		return s, nil
	}
	return `"` + ksEscapes.Replace(s) + `"`, nil
}

// arg is like ks, for a word that stands by itself: quotation marks would not keep it from being an option.
func arg(s string) (string, error) {
	switch {
	case s == "":
		return "", errEmpty
	case s[0] == '-':
		return "", errors.New("begins with a hyphen")
	}
	return ks(s)
}

// sh is one word of a shell script.
func sh(s string) (string, error) {
	if err := oneLine(s); err != nil {
		return "", err
	}
	if safe(s) {
		return s, nil
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'", nil
}

// safe text means nothing but itself to shells and shlex, wherever it stands in a word.
func safe(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte("@_+:,./-", c) >= 0:
		default:
			return false
		}
	}
	return s != ""
}

// escaped is a double-quoted string of YAML 1.2 and of TOML 1.0, whose escapes have these in common.
func escaped(s string) (string, error) {
	if !utf8.ValidString(s) {
		return "", errEncoding
	}
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == 0 || !unicode.IsPrint(r):
			fmt.Fprintf(&b, `\U%08X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String(), nil
}

// jsonString is a string of JSON (RFC 8259), with all escaped that any reader takes for a line end.
func jsonString(s string) (string, error) {
	if !utf8.ValidString(s) {
		return "", errEncoding
	}
	quoted, err := json.Marshal(s) // escapes all of C0, U+2028 and U+2029
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for _, r := range string(quoted) {
		if unicode.IsControl(r) { // DEL and C1
			fmt.Fprintf(&b, `\u%04x`, r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String(), nil
}

// unit is one quoted assignment in a unit file of systemd, where % begins a specifier.
func unit(s string) (string, error) {
	if err := oneLine(s); err != nil {
		return "", err
	}
	return `"` + unitEscapes.Replace(s) + `"`, nil
}

// curlString is a quoted value in a configuration file of curl.
func curlString(s string) (string, error) {
	if err := oneLine(s); err != nil {
		return "", err
	}
	return `"` + curlEscapes.Replace(s) + `"`, nil
}

// line is the text of a comment, or the rest of a line of a here-document behind something else.
func line(s string) (string, error) { return s, oneLine(s) }

// word is text without blanks, such as a URL.
func word(s string) (string, error) {
	if s == "" {
		return "", errEmpty
	}
	if strings.ContainsFunc(s, unicode.IsSpace) {
		return "", errors.New("holds a blank")
	}
	return s, oneLine(s)
}

var (
	plainName   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)
	packageName = regexp.MustCompile(`^@?[A-Za-z0-9^][A-Za-z0-9._+~:^-]{0,199}$`)
)

// name is the name of a section of a configuration file.
func name(s string) (string, error) {
	if !plainName.MatchString(s) {
		return "", errors.New("is not a name of letters, digits, dots, hyphens and underscores")
	}
	return s, nil
}

// pkg is the name of a package, which may have its version and architecture, or in %packages of a group.
func pkg(s string) (string, error) {
	if !packageName.MatchString(s) {
		return "", errors.New("is not the name of a package")
	}
	return s, nil
}

// lines is text of several lines, each behind a margin, which `sed 's/^|//'` takes away again.
func lines(s string) (string, error) {
	list := strings.Split(strings.TrimSuffix(s, "\n"), "\n")
	for i, l := range list {
		if err := oneLine(l); err != nil {
			return "", fmt.Errorf("line %d %w", i+1, err)
		}
		list[i] = "|" + l
	}
	return strings.Join(list, "\n"), nil
}

func number(n any) (string, error) {
	switch n := n.(type) {
	case int, int64:
		return fmt.Sprint(n), nil
	}
	return "", fmt.Errorf("is not a number: %T", n)
}
