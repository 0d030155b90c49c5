package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"

	"rackstrap/assets"
	"rackstrap/bootplan"
	"rackstrap/inventory"
	"rackstrap/lifecycle"
	"rackstrap/media"
	"rackstrap/operator"
)

func (a *app) serveCommand() *cobra.Command {
	var (
		level   slog.Level
		jsonLog bool
	)
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve the rack: DHCP, TFTP, HTTP boot, kickstarts",
		Args:  args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.resolveConfig()
			if err != nil {
				return err
			}
			warn(cmd, cfg.Warnings)
			if err := checkBoot(cmd.Context(), cfg); err != nil {
				return &configError{err}
			}
			d, err := newDaemon(cmd.Context(), cfg, a.reloadConfig, newLogger(level, jsonLog))
			if err != nil {
				return err
			}
			limitMemory(cfg)
			d.announce(cmd.OutOrStdout())
			return d.run(cmd.Context())
		},
	}
	cmd.Flags().TextVar(&level, "log-level", slog.LevelInfo, "debug, info, warn or error")
	cmd.Flags().BoolVar(&jsonLog, "log-json", false, "log as JSON")
	return cmd
}

// limitMemory has the garbage collected more often once there is much of it: a rack that calls home at the same moment
// leaves plenty, and the host may be a small one. It is a soft limit that grows with the list; GOMEMLIMIT overrides it.
func limitMemory(cfg *inventory.Config) {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(96<<20 + int64(len(cfg.Machines))*16<<10)
	}
}

// reloadConfig reads and checks the file again, as serve did at first.
func (a *app) reloadConfig() (*inventory.Config, error) {
	cfg, err := a.resolveConfig()
	if err != nil {
		return nil, err
	}
	return cfg, checkBoot(context.Background(), cfg)
}

// checkBoot renders what every machine would boot, so that a fault shows before a machine does.
func checkBoot(ctx context.Context, cfg *inventory.Config) error {
	plan, rack, err := offlinePlan(ctx, cfg)
	if err != nil {
		return err
	}
	defer plan.Library().Close()
	var faults []error
	for _, m := range cfg.Machines {
		if m.MAC.IsZero() {
			continue
		}
		if _, err := plan.IPXE(rack.Decide(m.MAC)); err != nil {
			faults = append(faults, err)
		}
		if !m.Install.SecureBoot {
			continue
		}
		if _, err := plan.Loader(rack.Decide(m.MAC), assets.EFIX64); err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", m.Name, err))
		}
		if _, err := plan.GRUB(rack.Decide(m.MAC)); err != nil {
			faults = append(faults, err)
		}
	}
	faults = append(faults, checkKickstarts(rack.Config()), checkCluster(cfg))
	_, err = checkPackages(ctx, rack.Config(), plan.Library(), lookUp{})
	faults = append(faults, err)
	return errors.Join(faults...)
}

// offlinePlan is the plan of a rack whose machines are all new: what the configuration alone says.
func offlinePlan(ctx context.Context, cfg *inventory.Config) (*bootplan.Plan, *lifecycle.Rack, error) {
	if !cfg.Server.Address.IsValid() {
		if resolved, err := cfg.Resolve(interfaceAddresses); err == nil {
			cfg = resolved
		} else { // on another host than the appliance: any address shows the form
			other := *cfg
			other.Server.Address = netip.IPv4Unspecified()
			cfg = &other
		}
	}
	loaders, err := assets.OpenLoaders(cfg.Server.LoadersDir)
	if err != nil {
		return nil, nil, err
	}
	library, err := media.OpenLibrary(mediaSpecs(cfg))
	if err != nil {
		return nil, nil, err
	}
	rack, err := lifecycle.New(ctx, cfg, lifecycle.Options{Store: lifecycle.NewMemoryStore(),
		Log: slog.New(slog.DiscardHandler), Now: time.Now})
	if err != nil {
		return nil, nil, err
	}
	return bootplan.New(rack, loaders, library), rack, nil
}

func (a *app) reloadCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "reload",
		Short: "Put the changed configuration file in force without a restart",
		Args:  args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			result, err := client.Reload(cmd.Context())
			if err != nil {
				return &configError{fmt.Errorf("not reloaded, the old configuration stays:\n%w", err)}
			}
			warn(cmd, result.Warnings)
			for _, place := range result.Changes {
				fmt.Fprintln(cmd.OutOrStdout(), "changed:", place)
			}
			for _, place := range result.NeedsRestart {
				fmt.Fprintln(cmd.OutOrStdout(), "takes effect at the next start:", place)
			}
			if len(result.Changes)+len(result.NeedsRestart) == 0 {
				fmt.Fprintln(cmd.OutOrStdout(), "nothing has changed")
			}
			return nil
		},
	}
}

// client talks to the daemon of the configuration's data directory. The configuration may be faulty at the
// moment: then only the data directory of the environment or the default can be known.
func (a *app) client() (*operator.Client, error) {
	cfg, err := a.loadConfig()
	if err != nil {
		if dir := os.Getenv("RACKSTRAP_SERVER_DATA_DIR"); dir != "" {
			return operator.NewClient(dir), nil
		}
		return nil, err
	}
	return operator.NewClient(cfg.Server.DataDir), nil
}
