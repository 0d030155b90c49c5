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

// isoName reads a file or directory identifier of the primary tree (ECMA-119 7.5, 7.6).
func isoName(ident []byte) string { return trimVersion(decodeName(ident)) }

// jolietName reads an identifier of the Joliet tree: UCS-2, big-endian (and, as found in practice, UTF-16).
func jolietName(ident []byte) string {
	units := make([]uint16, len(ident)/2)
	for i := range units {
		units[i] = uint16(ident[2*i])<<8 | uint16(ident[2*i+1])
	}
	return trimVersion(string(utf16.Decode(units)))
}

// trimVersion drops the version number (ECMA-119 7.5.1) and the separator that a name without extension
// ends in: "VMLINUZ.;1" is "VMLINUZ".
func trimVersion(name string) string {
	name = strings.TrimRight(name, "\x00")
	if base, version, ok := strings.Cut(name, ";"); ok && strings.Trim(version, "0123456789") == "" {
		name = base
	}
	return strings.TrimSuffix(name, ".")
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
