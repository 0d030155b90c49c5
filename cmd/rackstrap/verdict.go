package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"rackstrap/assets"
	"rackstrap/bootplan"
	"rackstrap/httpboot"
	"rackstrap/images"
	"rackstrap/inventory"
	"rackstrap/kickstart"
	"rackstrap/lifecycle"
	"rackstrap/media"
	"rackstrap/preflight"
	"rackstrap/repo"
)

// reach says how far a verdict looks. The zero value looks at what is on this host.
type reach struct {
	servers time.Duration                                               // how long servers may take to tell what they have; 0: they are not asked
	served  func(ctx context.Context, name string) (*repo.Index, error) // of what this appliance fetches through; nil: ask the upstream
	images  bool                                                        // the archives of images are read: gigabytes
}

// verdict is what check, doctor, media and serve tell of the configuration's files. What keeps it from being found out
// is a fault in it.
func verdict(ctx context.Context, cfg *inventory.Config, how reach) (report preflight.Report) {
	cfg = forShow(cfg)
	library, broken := openMedia(cfg)
	defer library.Close()
	for name, err := range broken {
		report.Fault("medium "+name, "%v", err)
	}
	renderer, err := kickstart.New(assets.Profiles())
	if err != nil {
		report.Fault("profiles", "%v", err)
		return report
	}
	if _, err := repoSpecs(renderer, cfg); err != nil {
		report.Fault("repositories", "%v", err)
		return report
	}
	plan, rack, err := planOf(ctx, cfg, library)
	if err != nil {
		report.Fault("loaders", "%v", err)
		return report
	}
	report = append(report, preflight.Examine(ctx, preflight.Options{
		Rack: rack, Plan: plan,
		Sources: func(m inventory.Machine) (kickstart.Sources, error) { return machineSources(renderer, cfg, m) },
		Agents:  examineAgents(&report, cfg.Server.AgentsDir),
		Servers: how.servers, Served: how.served,
		Fetch: repo.Options{Proxy: proxyOf(func() *inventory.Config { return cfg }), Memory: new(repo.Memory)},
	})...)
	for _, err := range checkKickstarts(renderer, cfg) {
		report.Fault("kickstarts", "%v", err)
	}
	if err := checkCluster(cfg); err != nil {
		report.Fault("cluster", "%v", err)
	}
	if how.images {
		examineImages(&report, cfg.Cluster.Images)
	}
	return report
}

// openMedia opens the media of this host that can be opened.
func openMedia(cfg *inventory.Config) (library *media.Library, broken map[string]error) {
	var good []media.Spec
	broken = map[string]error{}
	for _, spec := range mediaSpecs(cfg) {
		one, err := media.OpenLibrary([]media.Spec{spec})
		if err != nil {
			broken[spec.Name] = err
			continue
		}
		one.Close()
		good = append(good, spec)
	}
	library, err := media.OpenLibrary(good)
	if err != nil { // gone between the two
		broken["of this host"] = err
		library, _ = media.OpenLibrary(nil)
	}
	return library, broken
}

// examineAgents looks at the programs that nodes will be given.
func examineAgents(report *preflight.Report, dir string) (archs []string) {
	agents, err := httpboot.OpenAgents(dir)
	if err != nil {
		report.Fault("agents", "%v", err)
		return nil
	}
	defer agents.Close()
	if dynamic := agents.Dynamic(); len(dynamic) > 0 {
		report.Warn("agents", "the program for %s needs libraries of the system that it was built on, and may not start on a node: build with `make`", strings.Join(dynamic, ", "))
	}
	return agents.Architectures()
}

// examineImages reads the archives of container images.
func examineImages(report *preflight.Report, dir string) {
	near, err := images.Open(dir, nil)
	if err != nil {
		report.Fault("images", "%v", err)
		return
	}
	defer near.Close()
	for _, name := range near.Ignored {
		report.Warn("images", "cluster.images: %s is no .tar, and not served", name)
	}
}

// forShow completes the server's address. On another host than the appliance any address shows the form.
func forShow(cfg *inventory.Config) *inventory.Config {
	if cfg.Server.Address.IsValid() {
		return cfg
	}
	if resolved, err := cfg.Resolve(interfaceAddresses); err == nil {
		return resolved
	}
	other := *cfg
	other.Server.Address = netip.IPv4Unspecified()
	return &other
}

// planOf is the plan of a rack whose machines are all new: what the configuration alone says.
func planOf(ctx context.Context, cfg *inventory.Config, library *media.Library) (*bootplan.Plan, *lifecycle.Rack, error) {
	loaders, err := assets.OpenLoaders(cfg.Server.LoadersDir)
	if err != nil {
		return nil, nil, err
	}
	rack, err := lifecycle.New(ctx, cfg, lifecycle.Options{Store: lifecycle.NewMemoryStore(),
		Log: slog.New(slog.DiscardHandler), Now: time.Now})
	if err != nil {
		return nil, nil, fmt.Errorf("lifecycle: %w", err)
	}
	return bootplan.New(rack, loaders, library), rack, nil
}

// watchServers looks once, in the background, for what installations would look for in vain on servers: at the
// start there is no time to wait for them. What is on this host was told then.
func (d *daemon) watchServers(ctx context.Context) error {
	cfg := d.config.Load()
	for _, f := range verdict(ctx, cfg, reach{servers: 2 * time.Minute, served: d.repos.Index}) {
		switch {
		case ctx.Err() != nil || slices.Contains(cfg.Warnings, f.String()):
		case f.Warning:
			d.log.Warn(f.String())
		default:
			d.log.Error(f.String())
		}
	}
	<-ctx.Done()
	return nil
}
