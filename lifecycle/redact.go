package lifecycle

import (
	"net/url"
	"regexp"
	"strings"
)

// hidden stands where a secret stood.
const hidden = "(hidden)"

var (
	cryptHash = regexp.MustCompile(`\$[0-9a-z]{1,4}\$[A-Za-z0-9./$=,-]{8,200}`) // of crypt(3), whoever's
	hexSecret = regexp.MustCompile(`[0-9a-f]{64}`)                              // the shape of an install token; see newSecret
)

// Redact takes the secrets of a machine out of a text that it sent: its install token, hashes of passwords, and the
// passwords in the URLs of its configuration. Installers log more than they should.
func (r *Rack) Redact(name, text string) string {
	if strings.Contains(text, "$") {
		text = cryptHash.ReplaceAllString(text, hidden)
	}
	r.mu.RLock()
	rec := r.records[name]
	listed, ok := r.config.ByName(name)
	r.mu.RUnlock()
	if len(text) >= 64 {
		text = hexSecret.ReplaceAllStringFunc(text, func(word string) string {
			if sum := hashSecret(word); sum == rec.SecretHash || sum == rec.Node.CredentialHash || sum == rec.Node.SpentHash {
				return hidden
			}
			return word
		})
	}
	if !ok {
		return text
	}
	hide := func(address string) {
		u, err := url.Parse(address)
		if err != nil || u.User == nil {
			return
		}
		if password, set := u.User.Password(); set && len(password) > 3 {
			text = strings.ReplaceAll(text, password, hidden)
			_, escaped, _ := strings.Cut(u.User.String(), ":")
			text = strings.ReplaceAll(text, escaped, hidden)
		}
	}
	hide(listed.Install.Proxy)
	for _, repo := range listed.Install.Repos {
		hide(repo.URL)
	}
	return text
}
