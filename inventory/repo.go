package inventory

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Via is the way on which machines get the packages of a repository.
type Via string

// The values of install.repos.<name>.via.
const (
	ViaDirect    Via = "direct"    // from its own URL
	ViaAppliance Via = "appliance" // from /repo/<name>/ of the appliance
)

// Repo is one package repository: on a server (URL), or in a directory of the appliance's host (Dir).
type Repo struct {
	URL string // may hold $basearch and $releasever; "" with Dir
	Dir string // "" with URL
	Via Via    // ViaAppliance with Dir; "" is direct

	// GPGKey is where its keys are: URLs for the machines, divided by blanks, or a file of this host, whose text Load
	// puts into Key; "" for what the profile says, and NoGPGKey to leave signatures unchecked.
	GPGKey string
	Key    string `json:"-"` // in ASCII armour
}

// NoGPGKey is the gpgkey of a repository whose packages are not signed.
const NoGPGKey = "none"

// RepoURL is where machines find a repository, with a slash at its end if it is on the appliance.
func (s Server) RepoURL(name string, r Repo) string {
	if r.Via != ViaAppliance {
		return r.URL
	}
	return "http://" + net.JoinHostPort(s.Address.String(), strconv.Itoa(s.HTTPPort)) + "/repo/" + name + "/"
}

// ExpandRepoURL resolves the two variables of yum and dnf that URLs of repositories use: $releasever, and
// $basearch, which is always x86_64 here.
func ExpandRepoURL(url, release string) string {
	// Not a strings.Replacer: making one costs more than rendering the rest of a repository.
	for variable, value := range map[string]string{"basearch": "x86_64", "releasever": release} {
		if strings.Contains(url, variable) {
			url = strings.ReplaceAll(strings.ReplaceAll(url, "$"+variable, value), "${"+variable+"}", value)
		}
	}
	return url
}

// repo reads one repository; faults are noted if its keys are those of the section that is read.
func (t *typer) repo(path, name string, raw rawRepo, own bool) Repo {
	r := Repo{URL: raw.URL, Dir: raw.Dir, Via: cmp.Or(Via(raw.Via), ViaDirect), GPGKey: raw.GPGKey}
	fault := func(format string, args ...any) {
		if own {
			t.fault(path, format, args...)
		}
	}
	if own {
		t.gpgKey(path+".gpgkey", raw.GPGKey)
	}
	switch {
	case raw.URL != "" && raw.Dir != "":
		fault("needs one of url and dir, not both")
	case raw.URL != "":
		if own {
			t.url(path, raw.URL)
			r.Via = oneOf(t, path+".via", r.Via, ViaAppliance, ViaDirect)
		}
		return r
	case raw.Dir == "" && r.Via != ViaAppliance:
		fault("has no URL")
		return r
	case raw.Dir == "" && t.repoDir == "":
		fault("has neither url nor dir, and there is no server.repo_dir where it could be")
	case raw.Dir == "":
		r.Dir = filepath.Join(t.repoDir, name)
	case raw.Via != "" && r.Via != ViaAppliance:
		fault("is a directory of the appliance's host: machines reach it via: appliance only")
	}
	if own && t.path(path+".dir", raw.Dir) != raw.Dir {
		r.Dir = ""
	}
	r.Via = ViaAppliance
	return r
}

// keyInFile tells whether a gpgkey is a file of this host, in place of URLs.
func keyInFile(gpgKey string) bool {
	return gpgKey != "" && gpgKey != NoGPGKey && !strings.Contains(gpgKey, "://")
}

// gpgKey checks the places of keys.
func (t *typer) gpgKey(path, text string) {
	words := strings.Fields(text)
	switch {
	case text == "" || text == NoGPGKey:
		return
	case strings.ContainsFunc(text, unicode.IsControl), len(words) == 0, keyInFile(text) && len(words) > 1:
		t.fault(path, "is neither none, nor the URL of a key, nor one file")
		return
	case keyInFile(text):
		t.path(path, text)
		return
	}
	for _, word := range words {
		if !strings.HasPrefix(word, "file:///") {
			t.url(path, word)
		} else if strings.ContainsFunc(word, notInURL) {
			t.fault(path, "is not a URL: file:///path, http://host/path or https://host/path")
		}
	}
}

// keyBegins begins a key in ASCII armour (RFC 4880, section 6.2).
const keyBegins = "-----BEGIN PGP PUBLIC KEY BLOCK-----"

// checkKey tells whether a text can be the key of a repository.
func checkKey(text string) error {
	if !strings.Contains(text, keyBegins) || !utf8.ValidString(text) || strings.ContainsFunc(text, func(r rune) bool {
		return unicode.IsControl(r) && r != '\n' && r != '\t'
	}) {
		return errors.New("is not a public key in ASCII armour (" + keyBegins + ")")
	}
	return nil
}

// leastCache has room for the metadata of several repositories and the largest package there is.
const leastCache = 1 << 30

// size reads a number of bytes with its unit.
func (t *typer) size(path, text string, least int64) int64 {
	digits := strings.TrimRight(text, "KMGTiB")
	unit, known := map[string]int64{"MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}[text[len(digits):]]
	n, err := strconv.ParseInt(strings.TrimSpace(digits), 10, 64)
	switch {
	case err != nil || !known || n < 0 || n > 1<<62/unit:
		t.fault(path, "%q is not a size with its unit: 512MiB, 20GiB, 2TiB", text)
		return 0
	case n*unit < least:
		t.fault(path, "%s is too little: at least %dMiB", text, least>>20)
		return 0
	}
	return n * unit
}

// repos: the appliance serves every repository under its name alone, whichever machine asks.
func (k *checker) repos() {
	first := map[string]Repo{}
	see := func(path string, repos map[string]Repo) {
		for _, name := range slices.Sorted(maps.Keys(repos)) {
			r := repos[name]
			if r.Via != ViaAppliance || k.lines[path+".repos."+name] == 0 { // the latter is inherited
				continue
			}
			if other, twice := first[name]; !twice {
				first[name] = r
			} else if other.URL != r.URL || other.Dir != r.Dir {
				k.fault(path+".repos."+name, "is another repository than the one which the appliance serves under this name: give it a name of its own")
			}
		}
	}
	see("install", k.c.Install.Repos)
	for i, m := range k.c.Machines {
		see(entry("machines", i), m.Install.Repos)
	}
}

// ApplianceRepos are the repositories that the appliance serves because machines are told to come to it, by name.
func (c *Config) ApplianceRepos() map[string]Repo {
	found := map[string]Repo{}
	add := func(repos map[string]Repo) {
		for name, r := range repos {
			if r.Via == ViaAppliance {
				found[name] = r
			}
		}
	}
	add(c.Install.Repos)
	for _, m := range c.Machines {
		add(m.Install.Repos)
	}
	return found
}

// repoDirs looks for the directories of local repositories, but for those that a machine has inherited.
func (k *collector) repoDirs(path string, repos, inherited map[string]Repo) {
	for _, name := range slices.Sorted(maps.Keys(repos)) {
		r := repos[name]
		if r.Dir == "" || r == inherited[name] {
			continue
		}
		at := fmt.Sprintf("%s.repos.%s", path, name)
		if err := tryRead(filepath.Join(r.Dir, "repodata", "repomd.xml"), false); err != nil {
			k.fault(at, "%s is not a package repository (createrepo_c makes one of it): repodata/repomd.xml: %v", r.Dir, err)
		}
	}
}

func anchorRepos(repos map[string]Repo, absolute func(*string)) {
	for name, r := range repos {
		absolute(&r.Dir)
		if keyInFile(r.GPGKey) {
			absolute(&r.GPGKey)
		}
		repos[name] = r
	}
}
