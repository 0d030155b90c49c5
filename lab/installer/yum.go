package installer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// yum stands in for yum 3.4 in the lab's systems: repositories as in /etc/yum.repos.d, metadata and packages over
// HTTP, and the real rpm for the rest. What yum refuses it refuses too; options and commands that it does not
// know are errors.
type yum struct {
	system system
	out    io.Writer

	assumeYes       bool
	disableExcludes map[string]bool // by repository; "all"
	enable, disable []string
	command         string
	specs           []string
}

const (
	repoDir  = "/etc/yum.repos.d"
	yumCache = "/var/cache/yum"
)

// runYum is main of yum.
func runYum(ctx context.Context, args []string, out, complaints io.Writer) int {
	y := &yum{system: system{root: "/"}, out: out, disableExcludes: map[string]bool{}}
	err := y.parse(args)
	if err == nil {
		err = y.run(ctx)
	}
	if err != nil {
		fmt.Fprintln(complaints, "Error:", err)
		return 1
	}
	return 0
}

func (y *yum) parse(args []string) error {
	for _, a := range args {
		name, value, _ := strings.Cut(a, "=")
		switch {
		case a == "-y", a == "--assumeyes":
			y.assumeYes = true
		case a == "-q", a == "--quiet", a == "-v", a == "--verbose":
		case name == "--disableexcludes" && value != "":
			for _, r := range strings.Split(value, ",") {
				y.disableExcludes[r] = true
			}
		case name == "--enablerepo" && value != "":
			y.enable = append(y.enable, strings.Split(value, ",")...)
		case name == "--disablerepo" && value != "":
			y.disable = append(y.disable, strings.Split(value, ",")...)
		case strings.HasPrefix(a, "-"):
			return fmt.Errorf("the stand-in for yum knows no option %s", a)
		case y.command == "":
			y.command = a
		default:
			y.specs = append(y.specs, a)
		}
	}
	return nil
}

func (y *yum) run(ctx context.Context) error {
	switch y.command {
	case "clean":
		return os.RemoveAll(y.system.path(yumCache))
	case "makecache":
		_, err := y.repositories(ctx)
		return err
	case "repolist":
		repos, err := y.repositories(ctx)
		for _, r := range repos {
			fmt.Fprintf(y.out, "%s %d\n", r.id, len(r.packages))
		}
		return err
	case "install", "update", "upgrade":
	default:
		return fmt.Errorf("the stand-in for yum knows no command %q", y.command)
	}
	if !y.assumeYes {
		return errors.New("the stand-in for yum cannot ask: use --assumeyes")
	}
	if len(y.specs) == 0 {
		return fmt.Errorf("%s: names no package", y.command)
	}
	repos, err := y.repositories(ctx)
	if err != nil {
		return err
	}
	wanted, err := y.choose(ctx, repos)
	if err != nil {
		return err
	}
	if len(wanted) == 0 {
		fmt.Fprintln(y.out, "Nothing to do")
		return nil
	}
	all, err := resolve(wanted, repos, y.system.provided(ctx), y.usable)
	if err != nil {
		return err
	}
	for _, p := range all {
		fmt.Fprintf(y.out, "Installing: %s from %s\n", p, p.repo.id)
	}
	n := 0
	err = y.system.fetchAndInstall(ctx, all, func(p *pack, file string) error { return y.checkSignature(ctx, p, file) },
		func(name string) { n++; fmt.Fprintf(y.out, "  Installing : %s  %d/%d\n", name, n, len(all)) })
	if err == nil {
		fmt.Fprintln(y.out, "Complete!")
	}
	return err
}

// choose is what the names ask for. As yum of EL7 does, it is content with a part of them.
func (y *yum) choose(ctx context.Context, repos []*repository) ([]*pack, error) {
	var wanted []*pack
	satisfied := 0
	for _, spec := range y.specs {
		if strings.HasPrefix(spec, "@") {
			return nil, fmt.Errorf("%s: the stand-in for yum installs no groups", spec)
		}
		p, err := find(repos, spec, y.usable)
		var unknown *unknownPackage
		if errors.As(err, &unknown) {
			if have, err := y.system.installed(ctx, spec); err == nil && have != nil {
				satisfied++ // installed from elsewhere
				continue
			}
			fmt.Fprintf(y.out, "No package %s available.\n", spec)
			continue
		}
		if err != nil {
			return nil, err
		}
		have, err := y.system.installed(ctx, p.Name)
		if err != nil {
			return nil, err
		}
		switch {
		case have == nil && y.command != "install":
			fmt.Fprintf(y.out, "Package(s) %s available, but not installed.\n", p.Name)
			satisfied++
		case have != nil && !p.newer(have):
			fmt.Fprintf(y.out, "Package %s already installed and latest version\n", have)
			satisfied++
		case !slices.Contains(wanted, p):
			wanted = append(wanted, p)
		}
	}
	if len(wanted) == 0 && satisfied == 0 && y.command == "install" {
		return nil, errors.New("Nothing to do")
	}
	return wanted, nil
}

// usable is false for what its repository's exclude= names.
func (y *yum) usable(p *pack) bool {
	if y.disableExcludes["all"] || y.disableExcludes[p.repo.id] {
		return true
	}
	for _, pattern := range p.repo.exclude {
		if hit, _ := path.Match(pattern, p.Name); hit {
			return false
		}
	}
	return true
}

// checkSignature does what gpgcheck=1 asks for: the repository's keys are imported when they are needed, and
// an unsigned package is refused.
func (y *yum) checkSignature(ctx context.Context, p *pack, file string) error {
	if !p.repo.gpgCheck {
		return nil
	}
	signed := func() bool {
		out, err := y.system.run(ctx, "/usr/bin/rpmkeys", "--checksig", file)
		return err == nil && strings.Contains(out, "signatures OK")
	}
	if signed() {
		return nil
	}
	if len(p.repo.gpgKeys) == 0 {
		return fmt.Errorf("package %s is not signed, or by an unknown key, and repository %s has no gpgkey", p, p.repo.id)
	}
	for _, key := range p.repo.gpgKeys {
		if err := y.importKey(ctx, p.repo, key); err != nil {
			return fmt.Errorf("repository %s: gpgkey %s: %w", p.repo.id, key, err)
		}
	}
	if !signed() {
		return fmt.Errorf("package %s is not signed by a key of repository %s", p, p.repo.id)
	}
	return nil
}

func (y *yum) importKey(ctx context.Context, r *repository, key string) error {
	file, local := strings.CutPrefix(key, "file://")
	if !local {
		raw, err := fetchBytes(ctx, r.client, key, nil)
		if err != nil {
			return err
		}
		tmp, err := os.CreateTemp(y.system.path("/var/tmp"), "key-")
		if err != nil {
			return err
		}
		defer os.Remove(tmp.Name())
		defer tmp.Close()
		if _, err := tmp.Write(raw); err != nil {
			return err
		}
		file = "/var/tmp/" + filepath.Base(tmp.Name())
	}
	_, err := y.system.run(ctx, "/usr/bin/rpmkeys", "--import", file)
	return err
}

// repositories are those that are enabled, with their metadata. One that cannot be reached is an error, as with
// yum, unless it says skip_if_unavailable=1.
func (y *yum) repositories(ctx context.Context) ([]*repository, error) {
	files, err := filepath.Glob(y.system.path(repoDir + "/*.repo"))
	if err != nil {
		return nil, err
	}
	slices.Sort(files)
	cache := y.system.path(yumCache)
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, err
	}
	var all []*repository
	for _, file := range files {
		sections, err := readRepoFile(file)
		if err != nil {
			return nil, err
		}
		for _, s := range sections {
			on := s.get("enabled") != "0"
			for _, pattern := range y.disable {
				if hit, _ := path.Match(pattern, s.id); hit {
					on = false
				}
			}
			if slices.Contains(y.enable, s.id) {
				on = true
			}
			if !on {
				continue
			}
			r, err := s.repository()
			if err == nil {
				err = r.load(ctx, cache)
			}
			if err != nil {
				if s.get("skip_if_unavailable") == "1" {
					fmt.Fprintln(y.out, err)
					continue
				}
				return nil, err
			}
			all = append(all, r)
		}
	}
	if len(all) == 0 {
		return nil, errors.New("There are no enabled repos.")
	}
	return all, nil
}

// repoSection is a section of a .repo file.
type repoSection struct {
	id     string
	values map[string]string
}

func (s repoSection) get(key string) string { return s.values[key] }

// knownRepoKeys are the keys whose meaning is kept; any other one is refused, never ignored.
var knownRepoKeys = map[string]bool{"name": true, "baseurl": true, "enabled": true, "gpgcheck": true, "repo_gpgcheck": true, "gpgkey": true,
	"exclude": true, "excludepkgs": true, "proxy": true, "skip_if_unavailable": true, "mirrorlist": true, "metalink": true, "priority": true,
	"module_hotfixes": true, "sslverify": true, "countme": true, "metadata_expire": true}

// readRepoFile reads an INI file as Python's ConfigParser does: a line that begins with a blank goes on.
func readRepoFile(file string) ([]repoSection, error) {
	raw, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer raw.Close()
	var all []repoSection
	key := ""
	lines := bufio.NewScanner(raw)
	for n := 1; lines.Scan(); n++ {
		text := lines.Text()
		trimmed := strings.TrimSpace(text)
		switch {
		case trimmed == "" || trimmed[0] == '#' || trimmed[0] == ';':
		case trimmed[0] == '[' && strings.HasSuffix(trimmed, "]"):
			all, key = append(all, repoSection{id: trimmed[1 : len(trimmed)-1], values: map[string]string{}}), ""
		case len(all) == 0:
			return nil, fmt.Errorf("%s:%d: no section yet", file, n)
		case (text[0] == ' ' || text[0] == '\t') && key != "":
			all[len(all)-1].values[key] += " " + trimmed
		default:
			k, v, ok := strings.Cut(trimmed, "=")
			if key = strings.TrimSpace(k); !ok || !knownRepoKeys[key] {
				return nil, fmt.Errorf("%s:%d: the stand-in for yum does not know %q", file, n, key)
			}
			all[len(all)-1].values[key] = strings.TrimSpace(v)
		}
	}
	return all, lines.Err()
}

// repository makes the section usable.
func (s repoSection) repository() (*repository, error) {
	variables := strings.NewReplacer("$basearch", "x86_64", "$releasever", "7", "$arch", "x86_64")
	base := strings.TrimRight(variables.Replace(s.get("baseurl")), "/")
	if len(strings.Fields(base)) != 1 {
		return nil, fmt.Errorf("Cannot find a valid baseurl for repo: %s", s.id)
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.Proxy = nil
	switch proxy := s.get("proxy"); proxy {
	case "", "_none_":
	default:
		u, err := url.Parse(proxy)
		if err != nil {
			return nil, fmt.Errorf("repository %s: proxy is not a URL", s.id)
		}
		transport.Proxy = http.ProxyURL(u)
	}
	if s.get("repo_gpgcheck") == "1" {
		return nil, fmt.Errorf("repository %s: the stand-in for yum does not know repo_gpgcheck=1", s.id)
	}
	return &repository{id: s.id, base: base, client: &http.Client{Transport: transport}, gpgCheck: s.get("gpgcheck") == "1",
		gpgKeys: strings.Fields(variables.Replace(strings.ReplaceAll(s.get("gpgkey"), ",", " "))),
		exclude: strings.FieldsFunc(s.get("exclude")+" "+s.get("excludepkgs"), func(r rune) bool { return r == ' ' || r == ',' || r == '\t' })}, nil
}
