package repo

import (
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"hash"
	"strings"
)

// sum is a checksum as repodata has it. It is the key of what is kept: two repositories that have the same
// package have one file.
type sum struct {
	kind string // sha1, sha256, sha512
	hex  string // lower case
}

// hashes are the kinds that are accepted. MD5, which createrepo wrote in its first years, is not: it proves nothing.
var hashes = map[string]func() hash.Hash{"sha1": sha1.New, "sha256": sha256.New, "sha512": sha512.New}

// kinds are their names in metadata: `sha` is what createrepo called SHA-1 up to EL5.
var kinds = map[string]string{"sha": "sha1", "sha1": "sha1", "sha256": "sha256", "sha512": "sha512"}

// newSum reads a checksum.
func newSum(kind, digits string) (sum, error) {
	name, known := kinds[strings.ToLower(strings.TrimSpace(kind))]
	if !known {
		return sum{}, fmt.Errorf("a checksum of the unknown kind %.20q", kind)
	}
	s, make := sum{name, strings.ToLower(strings.TrimSpace(digits))}, hashes[name]
	if raw, err := hex.DecodeString(s.hex); err != nil || len(raw) != make().Size() {
		return sum{}, fmt.Errorf("%.80q is no checksum of the kind %s", digits, s.kind)
	}
	if len(s.hex) < len(digits) {
		s.hex = strings.Clone(s.hex) // what is around it may be large
	}
	return s, nil
}

func sumOf(content []byte) sum {
	h := sha256.Sum256(content)
	return sum{"sha256", hex.EncodeToString(h[:])}
}

func (s sum) hash() hash.Hash { return hashes[s.kind]() }

func (s sum) matches(h hash.Hash) bool { return hex.EncodeToString(h.Sum(nil)) == s.hex }

// String is the sum as the name of a file.
func (s sum) String() string { return s.kind + "-" + s.hex }

// parseSum is the reverse of String.
func parseSum(name string) (sum, error) {
	kind, digits, _ := strings.Cut(name, "-")
	s, err := newSum(kind, digits)
	if err == nil && s.String() != name {
		err = fmt.Errorf("%q is not the name of a file of the cache", name)
	}
	return s, err
}

// etag is the strong entity tag of the content.
func (s sum) etag() string { return `"` + s.hex + `"` }
