package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"

	"rackstrap/firstboot/agent"
	"rackstrap/internal/efiboot"
)

// exitRefused ends an agent that the appliance no longer wants: RestartPreventExitStatus of its unit.
const exitRefused = 77

func (a *app) agentCommand() *cobra.Command {
	var (
		level slog.Level
		root  string
	)
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run on a node: call the appliance, initialise or join the cluster (started by systemd)",
		Args:  args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			path := a.configPath
			if path == "" {
				path = agent.DefaultConfig
			}
			config, err := agent.ReadConfig(path)
			if err != nil {
				return &configError{err}
			}
			ca, err := os.ReadFile(config.CA)
			if err != nil {
				return &configError{fmt.Errorf("ca: %w", err)}
			}
			client, err := agent.NewClient(ca, nil)
			if err != nil {
				return &configError{fmt.Errorf("%s: %w", config.CA, err)}
			}
			log := newLogger(level, false).With("machine", config.Name, "mac", config.MAC)
			host := agent.NewHost(agent.HostOptions{Config: config, Root: root, Version: version, Log: log, Now: time.Now})
			err = agent.Run(cmd.Context(), agent.Options{Config: config, Machine: host, Log: log, Now: time.Now, Client: client, Show: host.ShowFingerprint})
			var gone *agent.GiveUpError
			if errors.As(err, &gone) {
				log.Error("giving up: this agent does not start again until the machine is reinstalled", "status", gone.Status, "err", gone)
			}
			return err
		},
	}
	cmd.AddCommand(bootOrderCommand())
	cmd.Flags().TextVar(&level, "log-level", slog.LevelInfo, "debug, info, warn or error")
	cmd.Flags().StringVar(&root, "root", "", "look for the host's files and programs below `DIR`")
	cmd.Flags().MarkHidden("root") // tests: several nodes on one host
	return cmd
}

// bootOrderCommand is run by %post, and at every start of an installed machine.
func bootOrderCommand() *cobra.Command {
	var (
		remember bool
		root     string
	)
	cmd := &cobra.Command{
		Use:   "boot-order",
		Short: "Put the network first in the boot order of a UEFI machine, its own system second",
		Args:  args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			firmware := efiboot.Host{Root: root, Memory: agent.BootMemory}
			if remember {
				if err := firmware.Remember(); err != nil && !errors.Is(err, efiboot.ErrBIOS) {
					return err
				}
			}
			report, err := firmware.Restore()
			if errors.Is(err, efiboot.ErrBIOS) {
				fmt.Fprintln(cmd.OutOrStdout(), err)
				return nil
			}
			if report.First != "" || err == nil {
				fmt.Fprintln(cmd.OutOrStdout(), report)
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&remember, "remember", false, "in an installation: note that what this installer was booted by is to be first")
	cmd.Flags().StringVar(&root, "root", "", "look for the host's files below `DIR`")
	cmd.Flags().MarkHidden("root") // tests
	return cmd
}
