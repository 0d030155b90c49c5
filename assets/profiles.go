package assets

import (
	"embed"
	"io/fs"
)

//go:embed profiles
var profileFiles embed.FS

// Profiles is what can be installed, as data for package kickstart: a directory per profile (profile.yaml,
// kickstart.tmpl), templates that profiles share (*.tmpl) and the kickstart syntax of each installer
// (*.syntax.yaml).
func Profiles() fs.FS {
	sub, err := fs.Sub(profileFiles, "profiles")
	if err != nil {
		panic(err) // the name is a valid path: fs.Sub has no other error
	}
	return sub
}
