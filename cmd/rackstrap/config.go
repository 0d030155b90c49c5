package main

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/spf13/cobra"

	"rackstrap/internal/plain"
	"rackstrap/inventory"
)

// loadConfig reads the configuration that the flags name.
func (a *app) loadConfig() (*inventory.Config, error) {
	path, err := inventory.Find(a.configPath)
	if err != nil {
		return nil, &configError{err}
	}
	cfg, err := inventory.Load(path, os.Environ())
	if err != nil {
		return nil, &configError{err}
	}
	return cfg, nil
}

// resolveConfig is loadConfig for commands that serve: with the server's address, and all files there.
func (a *app) resolveConfig() (*inventory.Config, error) {
	cfg, err := a.loadConfig()
	if err != nil {
		return nil, err
	}
	if cfg, err = cfg.Resolve(interfaceAddresses); err != nil {
		return nil, &configError{err}
	}
	if err := cfg.CheckFiles(); err != nil {
		return nil, &configError{err}
	}
	return cfg, nil
}

// interfaceAddresses are the IPv4 addresses of an interface of this host.
func interfaceAddresses(name string) ([]netip.Prefix, error) {
	iface, err := net.InterfaceByName(name)
	if err != nil {
		return nil, err
	}
	addrs, err := iface.Addrs()
	if err != nil {
		return nil, err
	}
	var found []netip.Prefix
	for _, addr := range addrs {
		if prefix, err := netip.ParsePrefix(addr.String()); err == nil && prefix.Addr().Is4() {
			found = append(found, prefix)
		}
	}
	return found, nil
}

func warn(cmd *cobra.Command, warnings []string) {
	for _, w := range warnings {
		row(cmd.ErrOrStderr(), "warning: "+w)
	}
}

func newLogger(level slog.Level, asJSON bool) *slog.Logger {
	options := &slog.HandlerOptions{Level: level}
	if asJSON {
		return slog.New(slog.NewJSONHandler(plain.JSON(os.Stderr), options))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, options))
}

func (a *app) initCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "init [FILE]",
		Short: "Write a commented configuration with three example machines (default ./rackstrap.yaml)",
		Args:  args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, given []string) error {
			path := "rackstrap.yaml"
			if len(given) == 1 {
				path = given[0]
			}
			if err := inventory.WriteReference(path); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s written: set server.interface, the medium and the machines' MACs, then `rackstrap check`\n", path)
			return nil
		},
	}
}

func (a *app) checkCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Report every fault of the configuration, each with its place",
		Args:  args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.loadConfig()
			if err != nil {
				return err
			}
			warn(cmd, cfg.Warnings)
			if err := cfg.CheckFiles(); err != nil {
				return &configError{err}
			}
			report := verdict(cmd.Context(), cfg, reach{servers: serverTime, images: true})
			warn(cmd, report.Warnings())
			if err := report.Err(); err != nil {
				return &configError{err}
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: good: %d machines, %d media\n", cfg.Path, len(cfg.Machines), len(cfg.Media))
			return nil
		},
	}
}

// serverTime is how long upstream servers may take to tell `check` what they have.
const serverTime = 5 * time.Second

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  args(cobra.NoArgs),
		Run:   func(cmd *cobra.Command, _ []string) { fmt.Fprintln(cmd.OutOrStdout(), "rackstrap", version) },
	}
}
