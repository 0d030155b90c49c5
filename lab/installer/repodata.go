package installer

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"rackstrap/internal/rpm"
)

const (
	maxMetadata = 256 << 20
	httpTimeout = 10 * time.Minute // of one file, on an emulated machine
)

// statusError is an answer that is not 200.
type statusError struct {
	url    string
	status int
}

func (e *statusError) Error() string { return fmt.Sprintf("%s: HTTP %d", e.url, e.status) }

// fetch gets a URL into w. As `curl --retry 3 --fail` does, it tries again when the server has a fault, and not when it says no.
func fetch(ctx context.Context, client *http.Client, target string, header http.Header, w func() (io.Writer, error)) (err error) {
	for try := 1; ; try++ {
		var again bool
		if again, err = fetchOnce(ctx, client, target, header, w); err == nil || !again || try > 3 {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Duration(try) * time.Second):
		}
	}
}

func fetchOnce(ctx context.Context, client *http.Client, target string, header http.Header, w func() (io.Writer, error)) (again bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, httpTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return false, err
	}
	req.Header = header.Clone()
	if req.Header == nil {
		req.Header = http.Header{}
	}
	resp, err := client.Do(req)
	if err != nil {
		return true, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return resp.StatusCode >= 500, &statusError{target, resp.StatusCode}
	}
	into, err := w()
	if err != nil {
		return false, err
	}
	n, err := io.Copy(into, resp.Body)
	if err == nil && resp.ContentLength >= 0 && n != resp.ContentLength {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return true, fmt.Errorf("%s: %w", target, err)
	}
	return false, nil
}

// fetchBytes gets a small file.
func fetchBytes(ctx context.Context, client *http.Client, target string, header http.Header) ([]byte, error) {
	var body bytes.Buffer
	err := fetch(ctx, client, target, header, func() (io.Writer, error) { body.Reset(); return &limited{&body, maxMetadata}, nil })
	return body.Bytes(), err
}

type limited struct {
	w    io.Writer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	if l.left -= len(p); l.left < 0 {
		return 0, errors.New("the file is too large")
	}
	return l.w.Write(p)
}

// checksum is one of repodata.
type checksum struct {
	Type  string `xml:"type,attr"`
	Value string `xml:",chardata"`
}

func (c checksum) hash() (hash.Hash, error) {
	switch c.Type {
	case "sha256":
		return sha256.New(), nil
	case "sha", "sha1":
		return sha1.New(), nil
	}
	return nil, fmt.Errorf("checksum of type %q is not known", c.Type)
}

func (c checksum) verify(sum []byte) error {
	if got := hex.EncodeToString(sum); got != strings.TrimSpace(c.Value) {
		return fmt.Errorf("its %s is %s, the metadata says %s", c.Type, got, strings.TrimSpace(c.Value))
	}
	return nil
}

// rpmEntry is a capability that a package provides or requires.
type rpmEntry struct {
	Name  string `xml:"name,attr"`
	Flags string `xml:"flags,attr"`
	Epoch string `xml:"epoch,attr"`
	Ver   string `xml:"ver,attr"`
	Rel   string `xml:"rel,attr"`
}

func (e rpmEntry) String() string {
	sign := map[string]string{"EQ": "=", "GE": ">=", "LE": "<=", "GT": ">", "LT": "<"}[e.Flags]
	if sign == "" {
		return e.Name
	}
	v := e.Ver
	if e.Rel != "" {
		v += "-" + e.Rel
	}
	if e.Epoch != "" && e.Epoch != "0" {
		v = e.Epoch + ":" + v
	}
	return e.Name + " " + sign + " " + v
}

// pack is one package of a repository.
type pack struct {
	Name    string `xml:"name"`
	Arch    string `xml:"arch"`
	Version struct {
		Epoch string `xml:"epoch,attr"`
		Ver   string `xml:"ver,attr"`
		Rel   string `xml:"rel,attr"`
	} `xml:"version"`
	Checksum checksum `xml:"checksum"`
	Size     struct {
		Package int64 `xml:"package,attr"`
	} `xml:"size"`
	Location struct {
		Base string `xml:"base,attr"`
		Href string `xml:"href,attr"`
	} `xml:"location"`
	Format struct {
		Provides []rpmEntry `xml:"provides>entry"`
		Requires []rpmEntry `xml:"requires>entry"`
		Files    []string   `xml:"file"`
	} `xml:"format"`

	repo *repository
}

func (p *pack) String() string {
	return fmt.Sprintf("%s-%s-%s.%s", p.Name, p.Version.Ver, p.Version.Rel, p.Arch)
}

// called tells whether yum would take the package for the name: kubelet, kubelet-1.28.2, kubelet-1.28.2-0,
// each with or without the architecture.
func (p *pack) called(spec string) bool {
	for _, form := range []string{p.Name, p.Name + "-" + p.Version.Ver, p.Name + "-" + p.Version.Ver + "-" + p.Version.Rel} {
		if spec == form || spec == form+"."+p.Arch {
			return true
		}
	}
	return false
}

func (p *pack) newer(than *pack) bool {
	if c := rpm.Compare(p.Version.Epoch, than.Version.Epoch); c != 0 {
		return c > 0
	}
	if c := rpm.Compare(p.Version.Ver, than.Version.Ver); c != 0 {
		return c > 0
	}
	return rpm.Compare(p.Version.Rel, than.Version.Rel) > 0
}

// provides tells whether the package satisfies a requirement.
func (p *pack) provides(want rpmEntry) bool {
	if strings.HasPrefix(want.Name, "/") && slices.Contains(p.Format.Files, want.Name) {
		return true
	}
	for _, have := range p.Format.Provides {
		if have.Name == want.Name && satisfies(have, want) {
			return true
		}
	}
	return false
}

func satisfies(have, want rpmEntry) bool {
	if want.Flags == "" || have.Flags == "" {
		return true
	}
	c := rpm.Compare(have.Epoch, want.Epoch)
	if c == 0 {
		c = rpm.Compare(have.Ver, want.Ver)
	}
	if c == 0 && want.Rel != "" && have.Rel != "" {
		c = rpm.Compare(have.Rel, want.Rel)
	}
	switch want.Flags {
	case "EQ":
		return c == 0
	case "GE":
		return c >= 0
	case "LE":
		return c <= 0
	case "GT":
		return c > 0
	case "LT":
		return c < 0
	}
	return false
}

// repository is one of yum's, or the medium's.
type repository struct {
	id       string
	base     string // URL without a slash at its end
	exclude  []string
	gpgCheck bool
	gpgKeys  []string
	client   *http.Client

	packages []*pack
	groups   map[string][]string // comps: the packages of a group
	envs     map[string][]string // comps: the groups of an environment
}

type repomd struct {
	Data []struct {
		Type     string   `xml:"type,attr"`
		Checksum checksum `xml:"checksum"`
		Location struct {
			Href string `xml:"href,attr"`
		} `xml:"location"`
	} `xml:"data"`
}

// escaped finds what urlgrabber takes for an encoded path already (URLParser.guess_should_quote).
var escaped = regexp.MustCompile(`%[0-9A-Fa-f]{2}`)

// url is what yum 3.4.3 asks for: the base and the location with a slash between them, `..` and all
// (YumRepository._getFile, urlgrabber's MirrorGroup._join_url); libcurl resolves dots from 7.32 on, and EL7 has 7.29. An
// xml:base takes the place of the repository's URL; one that is relative makes a file of this machine of it.
func (r *repository) url(base, href string) (string, error) {
	if !escaped.MatchString(href) {
		href = (&url.URL{Path: "/" + href}).EscapedPath()[1:]
	}
	if base == "" {
		return r.base + "/" + href, nil
	}
	if u, err := url.Parse(base); err != nil || u.Scheme != "http" && u.Scheme != "https" {
		return "", fmt.Errorf("repository %s: %s/%s: no such file on this machine", r.id, base, href)
	}
	return base + "/" + href, nil
}

// load reads the metadata. cache, if it is not "", keeps what has a checksum.
func (r *repository) load(ctx context.Context, cache string) error {
	raw, err := fetchBytes(ctx, r.client, r.base+"/repodata/repomd.xml", nil)
	if err != nil {
		return fmt.Errorf("repository %s: %w", r.id, err)
	}
	var index repomd
	if err := xml.Unmarshal(raw, &index); err != nil {
		return fmt.Errorf("repository %s: repomd.xml: %v", r.id, err)
	}
	found := false
	for _, d := range index.Data {
		var read func([]byte) error
		switch d.Type {
		case "primary":
			found, read = true, r.readPrimary
		case "group":
			read = r.readComps
		default:
			continue
		}
		text, err := r.metadata(ctx, cache, d.Location.Href, d.Checksum)
		if err == nil {
			err = read(text)
		}
		if err != nil {
			return fmt.Errorf("repository %s: %s: %w", r.id, d.Location.Href, err)
		}
	}
	if !found {
		return fmt.Errorf("repository %s: repomd.xml names no primary metadata", r.id)
	}
	return nil
}

func (r *repository) metadata(ctx context.Context, cache, href string, sum checksum) ([]byte, error) {
	h, err := sum.hash()
	if err != nil {
		return nil, err
	}
	kept := filepath.Join(cache, r.id+"-"+path.Base(href))
	raw, err := os.ReadFile(kept)
	if h.Write(raw); cache == "" || err != nil || sum.verify(h.Sum(nil)) != nil {
		from, err := r.url("", href)
		if err != nil {
			return nil, err
		}
		if raw, err = fetchBytes(ctx, r.client, from, nil); err != nil {
			return nil, err
		}
		h.Reset()
		h.Write(raw)
		if err := sum.verify(h.Sum(nil)); err != nil {
			return nil, err
		}
		if cache != "" {
			os.WriteFile(kept, raw, 0o644) // a cache: what is not kept is fetched again
		}
	}
	switch path.Ext(href) {
	case ".gz":
		unzip, err := gzip.NewReader(bytes.NewReader(raw))
		if err != nil {
			return nil, err
		}
		return io.ReadAll(io.LimitReader(unzip, maxMetadata))
	case ".xml":
		return raw, nil
	}
	return nil, fmt.Errorf("the stand-in reads .xml and .xml.gz")
}

func (r *repository) readPrimary(text []byte) error {
	var list struct {
		Packages []*pack `xml:"package"`
	}
	if err := xml.Unmarshal(text, &list); err != nil {
		return err
	}
	for _, p := range list.Packages {
		switch p.Arch {
		case "x86_64", "noarch":
			p.repo = r
			r.packages = append(r.packages, p)
		}
	}
	return nil
}

func (r *repository) readComps(text []byte) error {
	var comps struct {
		Groups []struct {
			ID       string   `xml:"id"`
			Packages []string `xml:"packagelist>packagereq"`
		} `xml:"group"`
		Environments []struct {
			ID     string   `xml:"id"`
			Groups []string `xml:"grouplist>groupid"`
		} `xml:"environment"`
	}
	if err := xml.Unmarshal(text, &comps); err != nil {
		return err
	}
	r.groups, r.envs = map[string][]string{}, map[string][]string{}
	for _, g := range comps.Groups {
		r.groups[strings.TrimSpace(g.ID)] = g.Packages
	}
	for _, e := range comps.Environments {
		r.envs[strings.TrimSpace(e.ID)] = e.Groups
	}
	return nil
}

// download fetches a package into a directory and checks it against the metadata.
func (p *pack) download(ctx context.Context, dir string) (string, error) {
	from, err := p.repo.url(p.Location.Base, p.Location.Href)
	if err != nil {
		return "", err
	}
	sum, err := p.Checksum.hash()
	if err != nil {
		return "", fmt.Errorf("%s: %w", p, err)
	}
	to := filepath.Join(dir, path.Base(p.Location.Href))
	file, err := os.Create(to)
	if err != nil {
		return "", err
	}
	defer file.Close()
	err = fetch(ctx, p.repo.client, from, nil, func() (io.Writer, error) {
		sum.Reset()
		if _, err := file.Seek(0, io.SeekStart); err != nil {
			return nil, err
		}
		return io.MultiWriter(file, sum), file.Truncate(0)
	})
	if err != nil {
		return "", err
	}
	if err := p.Checksum.verify(sum.Sum(nil)); err != nil {
		return "", fmt.Errorf("%s: %w", from, err)
	}
	return to, nil
}

// unknownPackage is what no repository has.
type unknownPackage struct{ spec string }

func (e *unknownPackage) Error() string { return "no package " + e.spec + " available" }

// find is the newest package that answers to the name.
func find(repos []*repository, spec string, usable func(*pack) bool) (*pack, error) {
	var best *pack
	for _, r := range repos {
		for _, p := range r.packages {
			if p.called(spec) && usable(p) && (best == nil || p.newer(best)) {
				best = p
			}
		}
	}
	if best == nil {
		return nil, &unknownPackage{spec}
	}
	return best, nil
}

// resolve adds what the packages need and neither they nor the installed system provide.
func resolve(wanted []*pack, repos []*repository, installed func(rpmEntry) bool, usable func(*pack) bool) ([]*pack, error) {
	all := slices.Clone(wanted)
	for i := 0; i < len(all); i++ {
	requirements:
		for _, need := range all[i].Format.Requires {
			if strings.HasPrefix(need.Name, "rpmlib(") || installed(need) {
				continue
			}
			for _, p := range all {
				if p.provides(need) {
					continue requirements
				}
			}
			var best *pack
			for _, r := range repos {
				for _, p := range r.packages {
					if usable(p) && p.provides(need) && (best == nil || p.Name == best.Name && p.newer(best)) {
						best = p
					}
				}
			}
			if best == nil {
				return nil, fmt.Errorf("%s requires %s, which nothing provides", all[i], need)
			}
			all = append(all, best)
		}
	}
	return all, nil
}
