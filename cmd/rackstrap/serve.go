package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"

	"github.com/spf13/cobra"

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
			cfg, err := a.reloadConfig()
			if err != nil {
				return err
			}
			warn(cmd, cfg.Warnings)
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

// reloadConfig reads and checks the file, as serve does at first.
func (a *app) reloadConfig() (*inventory.Config, error) {
	cfg, err := a.resolveConfig()
	if err != nil {
		return nil, err
	}
	report := verdict(context.Background(), cfg, reach{})
	cfg.Warnings = append(cfg.Warnings, report.Warnings()...)
	if err := report.Err(); err != nil {
		return nil, &configError{err}
	}
	return cfg, nil
}

// offlinePlan is planOf with the configuration's media, all of which must be there.
func offlinePlan(ctx context.Context, cfg *inventory.Config) (*bootplan.Plan, *lifecycle.Rack, error) {
	cfg = forShow(cfg)
	library, err := media.OpenLibrary(mediaSpecs(cfg))
	if err != nil {
		return nil, nil, err
	}
	plan, rack, err := planOf(ctx, cfg, library)
	if err != nil {
		library.Close()
	}
	return plan, rack, err
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
