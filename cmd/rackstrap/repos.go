package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"rackstrap/bootplan"
	"rackstrap/inventory"
	"rackstrap/kickstart"
	"rackstrap/repo"
)

// openRepos opens the package repositories that the appliance serves, and their cache.
func openRepos(r *kickstart.Renderer, cfg *inventory.Config, config func() *inventory.Config, listed func(netip.Addr) bool, metrics prometheus.Registerer, alarm func(string), log *slog.Logger) (*repo.Service, error) {
	s, err := repo.Open(repo.Options{Dir: filepath.Join(cfg.Server.DataDir, "cache"), Limit: cfg.Server.CacheSize,
		Log: log, Now: time.Now, Metrics: metrics, Alarm: alarm, Proxy: proxyOf(config),
		Listed: listed})
	if err != nil {
		return nil, err
	}
	specs, err := repoSpecs(r, cfg)
	if err == nil {
		err = s.Set(specs)
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// proxyOf is install.proxy for requests to upstream servers, but for those in the rack.
func proxyOf(config func() *inventory.Config) func(*http.Request) (*url.URL, error) {
	return func(r *http.Request) (*url.URL, error) {
		cfg := config()
		if cfg.Install.Proxy == "" {
			return nil, nil
		}
		if a, err := netip.ParseAddr(r.URL.Hostname()); err == nil {
			if _, near := cfg.SubnetOf(a); near || a.IsLoopback() {
				return nil, nil
			}
		}
		return url.Parse(cfg.Install.Proxy)
	}
}

// repoSpecs are the repositories that the appliance serves: those that machines are sent to it for, and what
// else is in server.repo_dir.
func repoSpecs(r *kickstart.Renderer, cfg *inventory.Config) ([]repo.Spec, error) {
	specs := map[string]repo.Spec{}
	var faults []error
	for _, m := range cfg.Machines {
		sources, err := machineSources(r, cfg, m)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		for _, source := range sources.Repos {
			if source.Via != inventory.ViaAppliance {
				continue
			}
			if strings.Contains(source.URL, "$") {
				faults = append(faults, fmt.Errorf("%s: repos.%s: its URL has a variable that the appliance cannot resolve: only $basearch and $releasever, or via: direct", m.Name, source.Name))
				continue
			}
			spec := repo.Spec{Name: source.Name, Dir: source.Dir, URL: source.URL, Keys: source.Keys}
			other, twice := specs[spec.Name]
			switch {
			case !twice:
				specs[spec.Name] = spec
			case other.Dir != spec.Dir || other.URL != spec.URL || !maps.Equal(other.Keys, spec.Keys):
				// Inventory has compared what is written; profiles can make different URLs and keys of it.
				faults = append(faults, fmt.Errorf("%s: repos.%s is another repository than the one which the appliance serves under this name to machines of another profile: give it a name of its own", m.Name, spec.Name))
			}
		}
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	found, err := localRepos(cfg.Server.RepoDir)
	for name, dir := range found {
		if _, taken := specs[name]; !taken {
			specs[name] = repo.Spec{Name: name, Dir: dir}
		}
	}
	return slices.SortedFunc(maps.Values(specs), func(a, b repo.Spec) int { return strings.Compare(a.Name, b.Name) }), err
}

var repoDirName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// localRepos are the directories with repodata in server.repo_dir, by name.
func localRepos(dir string) (map[string]string, error) {
	found := map[string]string{}
	if dir == "" {
		return found, nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("server.repo_dir: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if !repoDirName.MatchString(e.Name()) {
			continue
		}
		switch _, err := os.Stat(filepath.Join(path, "repodata", "repomd.xml")); {
		case err == nil:
			found[e.Name()] = path
		case !errors.Is(err, fs.ErrNotExist) && e.IsDir():
			return nil, fmt.Errorf("server.repo_dir: %w", err)
		}
	}
	return found, nil
}

// machineSources is what a machine's installation fetches. As in renderSample a free slot has a made-up MAC.
func machineSources(r *kickstart.Renderer, cfg *inventory.Config, m inventory.Machine) (kickstart.Sources, error) {
	if m.MAC.IsZero() {
		m.MAC = inventory.MAC{0x02}
	}
	medium, ok := cfg.Medium(m.Install.Medium)
	if !ok {
		return kickstart.Sources{}, fmt.Errorf("%s: medium %q is not configured", m.Name, m.Install.Medium)
	}
	return r.Sources(kickstart.Input{Config: cfg, Machine: m, Medium: bootplan.MediumURL(cfg.Server, *medium)})
}
