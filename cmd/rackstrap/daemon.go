package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"rackstrap/assets"
	"rackstrap/bootplan"
	"rackstrap/cluster"
	"rackstrap/dhcp"
	"rackstrap/firstboot"
	"rackstrap/firstboot/api"
	"rackstrap/httpboot"
	"rackstrap/images"
	"rackstrap/inventory"
	"rackstrap/kickstart"
	"rackstrap/lifecycle"
	"rackstrap/media"
	"rackstrap/operator"
	"rackstrap/repo"
	"rackstrap/store"
	"rackstrap/syslog"
	"rackstrap/tftp"
)

// component is one part of the daemon that runs until its context ends.
type component struct {
	name string
	addr string // where it listens; "" for none
	run  func(context.Context) error
}

// daemon is everything bound and ready to run.
type daemon struct {
	load       func() (*inventory.Config, error) // the configuration anew, for reload
	log        *slog.Logger
	store      io.Closer
	rack       *lifecycle.Rack
	plan       *bootplan.Plan
	cluster    *cluster.Coordinator
	images     atomic.Pointer[images.Set]
	repos      *repo.Service
	renderer   *kickstart.Renderer
	foreign    func() []string
	started    time.Time
	config     atomic.Pointer[inventory.Config]
	components []component
	closers    []io.Closer // sockets, should binding end half-way
}

// newDaemon opens the state and the media and binds every socket: what cannot work is said before the first
// packet is answered.
func newDaemon(ctx context.Context, cfg *inventory.Config, load func() (*inventory.Config, error), log *slog.Logger) (_ *daemon, err error) {
	d := &daemon{load: load, log: log, started: time.Now(), foreign: func() []string { return nil }}
	d.config.Store(cfg)
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	if err := os.MkdirAll(cfg.Server.DataDir, 0o700); err != nil {
		return nil, fmt.Errorf("server.data_dir: %w", err)
	}
	loaders, err := assets.OpenLoaders(cfg.Server.LoadersDir)
	if err != nil {
		return nil, err
	}
	library, err := media.OpenLibrary(mediaSpecs(cfg))
	if err != nil {
		return nil, err
	}
	db, err := store.Open(filepath.Join(cfg.Server.DataDir, "rackstrap.db"))
	if err != nil {
		library.Close()
		return nil, err
	}
	d.store = db
	key, err := lifecycle.LoadTicketKey(cfg.Server.DataDir)
	if err != nil {
		library.Close()
		return nil, err
	}
	if d.rack, err = lifecycle.New(ctx, cfg, lifecycle.Options{Store: db, Log: log, Now: time.Now, TicketKey: key}); err != nil {
		library.Close()
		return nil, err
	}
	d.plan = bootplan.New(d.rack, loaders, library)

	metrics := prometheus.NewRegistry()
	metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return d, d.bind(cfg, metrics)
}

// bind binds the listeners, in the order of a boot.
func (d *daemon) bind(cfg *inventory.Config, metrics *prometheus.Registry) error {
	d.add("journal", "", nil, d.rack.Run)
	d.add("watchdog", "", nil, d.rack.Watch)
	if cfg.Network.DHCP.Mode != inventory.DHCPOff {
		server, err := dhcp.Listen(dhcp.Options{Rack: d.rack, Boot: d.plan, Log: d.log, Now: time.Now, Metrics: metrics,
			Interface: cfg.Server.Interface, Address: cfg.Server.Address, Port: cfg.Server.DHCPPort, HTTPPort: cfg.Server.HTTPPort})
		if err != nil {
			return err
		}
		d.foreign = server.Foreign
		d.add("dhcp", addresses(server.Addrs()), server, server.Run)
	}
	boot, err := tftp.Listen(tftp.Options{Rack: d.rack, Files: d.plan, Log: d.log, Now: time.Now, Metrics: metrics,
		Interface: cfg.Server.Interface, Address: cfg.Server.Address, Port: cfg.Server.TFTPPort})
	if err != nil {
		return err
	}
	d.add("tftp", boot.Addr().String(), boot, boot.Run)

	authority, err := firstboot.OpenAuthority(cfg.Server.DataDir, time.Now())
	if err != nil {
		return err
	}
	renderer, err := kickstart.New(assets.Profiles())
	if err != nil {
		return err
	}
	agents, err := httpboot.OpenAgents(cfg.Server.AgentsDir)
	if err != nil {
		return err
	}
	d.closers = append(d.closers, agents)
	for _, arch := range agents.Dynamic() {
		d.log.Warn("this agent is not a static program: it may not start on a node; build with `make`", "arch", arch)
	}
	near, err := images.Open(cfg.Cluster.Images, nil)
	if err != nil {
		return err
	}
	d.images.Store(near)
	for _, name := range near.Ignored {
		d.log.Warn("cluster.images: this file is no .tar, and not served", "file", name)
	}
	answers := &kickstarts{rack: d.rack, renderer: renderer, ca: string(authority.PEM()), agents: agents}
	d.plan.CheckAnswers(answers.check)
	if d.repos, err = openRepos(renderer, cfg, d.config.Load, d.rack.ListedAddress, metrics, d.alarm, d.log); err != nil {
		return err
	}
	d.add("repos", "", d.repos, d.repos.Run)
	d.add("packages", "", nil, d.watchServers)
	d.renderer = renderer
	web, err := httpboot.Listen(httpboot.Options{Rack: d.rack, Plan: d.plan, Repos: d.repos, Kickstart: answers, Agents: agents, Images: d.images.Load, Log: d.log, Now: time.Now, Metrics: metrics, Gatherer: metrics,
		Interface: cfg.Server.Interface, Address: cfg.Server.Address, Port: cfg.Server.HTTPPort})
	if err != nil {
		return err
	}
	d.add("http", web.Addr().String(), web, web.Run)

	d.cluster = cluster.New(cluster.Options{Rack: d.rack, Log: d.log, Now: time.Now, Images: d.nearImages})
	d.add("cluster", "", nil, d.cluster.Run)
	metrics.MustRegister(d.cluster)
	nodes, err := firstboot.Listen(firstboot.Options{Rack: d.rack, Cluster: d.cluster, Authority: authority, Log: d.log, Now: time.Now,
		Metrics: metrics, LogDir: filepath.Join(cfg.Server.DataDir, "logs"), Address: cfg.Server.Address, Port: cfg.Server.HTTPSPort})
	if err != nil {
		return err
	}
	d.add("https", nodes.Addr().String(), nodes, nodes.Run)

	if cfg.Server.SyslogPort != 0 {
		logs, err := syslog.Listen(syslog.Options{Rack: d.rack, Log: d.log, Now: time.Now, Metrics: metrics,
			Address: cfg.Server.Address, Port: cfg.Server.SyslogPort, DataDir: cfg.Server.DataDir})
		if err != nil {
			return err
		}
		d.add("syslog", logs.Addr().String(), logs, logs.Run)
	}

	desk, err := operator.Listen(operator.Options{DataDir: cfg.Server.DataDir, Rack: d.rack, Plan: d.plan, Cluster: d.cluster,
		Kickstart: func(name string) ([]byte, error) { return renderMasked(renderer, d.rack.Config(), name) },
		Reload:    d.reload, Status: d.status, Log: d.log, Now: time.Now})
	if err != nil {
		return err
	}
	d.add("operator", desk.Addr().String(), desk, desk.Run)
	d.add("signals", "", nil, d.reloadOnHangup)
	return nil
}

func (d *daemon) add(name, addr string, closer io.Closer, run func(context.Context) error) {
	d.components = append(d.components, component{name, addr, run})
	if closer != nil {
		d.closers = append(d.closers, closer)
	}
}

// run serves until ctx ends or a component does: one ends, all end. The journal is written last.
func (d *daemon) run(ctx context.Context) error {
	defer d.close()
	group, ctx := errgroup.WithContext(ctx)
	for _, c := range d.components {
		group.Go(func() error {
			if err := c.run(ctx); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			if ctx.Err() == nil {
				return fmt.Errorf("%s ended by itself", c.name)
			}
			return nil
		})
	}
	err := group.Wait()
	return errors.Join(err, d.rack.Flush(context.WithoutCancel(ctx)))
}

func (d *daemon) close() {
	for _, c := range d.closers {
		c.Close() // most are closed already
	}
	if d.plan != nil {
		d.plan.Library().Close()
	}
	if near := d.images.Load(); near != nil {
		near.Close()
	}
	if d.store != nil {
		d.store.Close()
	}
}

// announce prints a line per listener and `ready`: scripts wait for it.
func (d *daemon) announce(out io.Writer) {
	for _, c := range d.components {
		if c.addr != "" {
			fmt.Fprintf(out, "%-8s %s\n", c.name, c.addr)
		}
	}
	fmt.Fprintln(out, "ready")
}

// reload puts the changed file in force. A faulty one is refused, and the old one stays.
func (d *daemon) reload(ctx context.Context) (operator.ReloadResult, error) {
	old := d.config.Load()
	cfg, err := d.load()
	if err != nil {
		return operator.ReloadResult{}, err
	}
	result := operator.ReloadResult{Changes: inventory.Diff(old, cfg), NeedsRestart: inventory.NeedsRestart(old, cfg), Warnings: cfg.Warnings}
	cfg.Server = old.Server // sockets and files stay where they are until the next start
	cfg.Network.DHCP.Mode = old.Network.DHCP.Mode
	library, err := media.OpenLibrary(mediaSpecs(cfg))
	if err != nil {
		return operator.ReloadResult{}, err
	}
	near, err := images.Open(cfg.Cluster.Images, d.images.Load())
	if err != nil {
		library.Close()
		return operator.ReloadResult{}, err
	}
	if err := d.setRepos(cfg); err != nil {
		near.Close()
		library.Close()
		return operator.ReloadResult{}, err
	}
	if err := d.rack.Reload(ctx, cfg); err != nil {
		library.Close()
		near.Close()
		return operator.ReloadResult{}, errors.Join(err, d.setRepos(old))
	}
	d.images.Swap(near).Close()
	d.config.Store(cfg)
	d.plan.SetLibrary(library).Close()
	d.log.Info("configuration reloaded", "path", cfg.Path, "changes", len(result.Changes))
	return result, nil
}

// alarm is an event of the rack that an operator should see.
func (d *daemon) alarm(text string) {
	d.rack.Observe(lifecycle.Event{Source: "repo", Kind: "upstream", Level: lifecycle.Alarm, Text: text})
}

// setRepos puts the configuration's package repositories in force.
func (d *daemon) setRepos(cfg *inventory.Config) error {
	specs, err := repoSpecs(d.renderer, cfg)
	if err != nil {
		return err
	}
	return d.repos.Set(specs)
}

// reloadOnHangup reloads at every SIGHUP.
func (d *daemon) reloadOnHangup(ctx context.Context) error {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hangup:
			if _, err := d.reload(ctx); err != nil {
				d.log.Error("configuration not reloaded, the old one stays", "err", err)
			}
		}
	}
}

func (d *daemon) status() operator.Status {
	cfg := d.config.Load()
	st := operator.Status{Version: version, Started: d.started, Config: cfg.Path, Address: cfg.Server.Address,
		Interface: cfg.Server.Interface, DHCPMode: cfg.Network.DHCP.Mode, Foreign: d.foreign()}
	for _, c := range d.components {
		if c.addr != "" {
			st.Listeners = append(st.Listeners, c.name+" "+c.addr)
		}
	}
	return st
}

// nearImages are the archives that machines are offered, as they are fetched from the boot plane.
func (d *daemon) nearImages() (list []api.Image) {
	server := d.config.Load().Server
	for _, a := range d.images.Load().Archives() {
		list = append(list, api.Image{URL: bootplan.ImageURL(server, a.File), SHA256: a.SHA256, Size: a.Size, Names: a.Names})
	}
	return list
}

// mediaSpecs are the media that this host holds; those on a mirror are fetched from there.
func mediaSpecs(cfg *inventory.Config) []media.Spec {
	var specs []media.Spec
	for _, m := range cfg.Media {
		if m.URL == "" {
			specs = append(specs, media.Spec{Name: m.Name, ISO: m.ISO, Dir: m.Dir})
		}
	}
	return specs
}

func addresses(addrs []net.Addr) string {
	text := ""
	for i, a := range addrs {
		if i > 0 {
			text += " "
		}
		text += a.String()
	}
	return text
}
