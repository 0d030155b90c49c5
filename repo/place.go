package repo

import (
	"crypto/sha256"
	"encoding/hex"
	"net/url"
	"path"
	"strings"
)

// place is where metadata says that a package is which is not below the repository: `../../pool/x.rpm`, or an
// xml:base. The zero value is below it.
//
// Clients make different URLs of such a location: yum 3.4.3 asks for /repo/k/../../pool/x.rpm, as libcurl resolves
// dots since 7.32 only, and dnf for /pool/x.rpm; a relative xml:base is no URL to either (YumRepository._getFile,
// librepo's downloader). So it is not what they are given: the metadata that is served names such a package by a path below
// the repository.
type place struct{ base, href string }

// placesDir is where packages are served that are not below the repository.
const placesDir = ".elsewhere/"

// servedAs is the path below the repository under which the package is served: one for each place, so that metadata
// of different days agrees.
func (p place) servedAs() string {
	sum := sha256.Sum256([]byte(p.base + "\x00" + p.href))
	return placesDir + hex.EncodeToString(sum[:8]) + "/" + path.Base(path.Clean(p.plain()))
}

// String is the place as the metadata has it; "" for the zero value.
func (p place) String() string {
	if p.base == "" {
		return p.href
	}
	return strings.TrimSuffix(p.base, "/") + "/" + p.href
}

// plain is the location without its encoding.
func (p place) plain() string {
	if plain, err := url.PathUnescape(p.href); err == nil {
		return plain
	}
	return p.href
}

// url is where a package of a repository on a server is. Others than HTTP's are nowhere.
func (p place) url(repository *url.URL) (*url.URL, bool) {
	at, err := url.Parse(p.base)
	if err != nil {
		return nil, false
	}
	root := *repository
	root.Path, root.RawPath = strings.TrimSuffix(root.Path, "/")+"/", ""
	if p.base != "" {
		at.Path, at.RawPath = strings.TrimSuffix(at.Path, "/")+"/", ""
		root = *root.ResolveReference(at)
	}
	found := root.ResolveReference(&url.URL{Path: p.plain()})
	return found, found.Host != "" && (found.Scheme == "http" || found.Scheme == "https")
}
