package media

import (
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// decodeName makes valid UTF-8, which fs.FS requires, of a name recorded as bytes: as it is when it is
// UTF-8 already, else read as ISO 8859-1, so that different names stay different.
func decodeName(b []byte) string {
	if utf8.Valid(b) {
		return string(b)
	}
	runes := make([]rune, len(b))
	for i, c := range b {
		runes[i] = rune(c)
	}
	return string(runes)
}

// isoName reads a file or directory identifier of the primary tree (ECMA-119 7.5, 7.6). Without version and
// without the separator that a name with an empty extension ends in: "VMLINUZ.;1" is "VMLINUZ".
func isoName(ident []byte) string {
	name, _ := cutVersion(decodeName(ident))
	return strings.TrimSuffix(name, ".")
}

// jolietName reads an identifier of the Joliet tree: UCS-2, big-endian (and, as found in practice, UTF-16).
// A dot at the end is part of the name, unless it was put there for the sake of a version.
func jolietName(ident []byte) string {
	units := make([]uint16, len(ident)/2)
	for i := range units {
		units[i] = uint16(ident[2*i])<<8 | uint16(ident[2*i+1])
	}
	name, cut := cutVersion(string(utf16.Decode(units)))
	if cut {
		name = strings.TrimSuffix(name, ".")
	}
	return name
}

// cutVersion drops the version number (ECMA-119 7.5.1), and the NULs that some programs pad with.
func cutVersion(name string) (base string, cut bool) {
	name = strings.TrimRight(name, "\x00")
	i := strings.LastIndexByte(name, ';')
	if i < 0 || i == len(name)-1 || strings.Trim(name[i+1:], "0123456789") != "" {
		return name, false
	}
	return name[:i], true
}

// checkName refuses names that no path can have.
func checkName(name string, at int64) error {
	switch {
	case name == "" || name == "." || name == "..":
		return corrupt(at, "an entry named %q", name)
	case len(name) > maxName:
		return corrupt(at, "a name of %d bytes", len(name))
	case strings.ContainsAny(name, "/\x00"):
		return corrupt(at, "a slash or NUL in the name %q", name)
	}
	return nil
}
