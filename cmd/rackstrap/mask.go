package main

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"net/url"
	"slices"
	"strings"

	"rackstrap/inventory"
)

// maskMedia hides the passwords in the URLs of media.
func maskMedia(cfg *inventory.Config) *inventory.Config {
	other := *cfg
	other.Media = slices.Clone(cfg.Media)
	for i := range other.Media {
		other.Media[i].URL = maskURL(other.Media[i].URL)
	}
	return &other
}

// maskInstall makes the preparation of a machine fit to be shown: in place of the hash of a password, and of
// passwords in URLs, stand words that are others when the secrets are. What a script holds is shown as it is.
func maskInstall(in inventory.Install) inventory.Install {
	if in.RootPasswordHash != "" {
		in.RootPasswordHash = "$6$hidden$" + mask(in.RootPasswordHash) + strings.Repeat(".", 78) // as long as a real one
	}
	in.Proxy = maskURL(in.Proxy)
	in.Repos = maps.Clone(in.Repos)
	for name, r := range in.Repos {
		r.URL = maskURL(r.URL)
		keys := strings.Fields(r.GPGKey)
		for i := range keys {
			keys[i] = maskURL(keys[i])
		}
		r.GPGKey = strings.Join(keys, " ")
		in.Repos[name] = r
	}
	in.RegistryMirrors = maps.Clone(in.RegistryMirrors)
	for host, mirrors := range in.RegistryMirrors {
		list := slices.Clone(mirrors)
		for i := range list {
			list[i] = maskURL(list[i])
		}
		in.RegistryMirrors[host] = list
	}
	return in
}

// mask is a word that tells nothing but whether two secrets are the same.
func mask(secret string) string {
	sum := sha256.Sum256([]byte("rackstrap\x00" + secret))
	return hex.EncodeToString(sum[:4])
}

func maskURL(text string) string {
	u, err := url.Parse(text)
	if err != nil || u.User == nil {
		return text
	}
	if password, ok := u.User.Password(); ok {
		u.User = url.UserPassword(u.User.Username(), "hidden-"+mask(password))
		return u.String()
	}
	return text
}
