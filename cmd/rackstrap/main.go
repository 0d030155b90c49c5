// Command rackstrap boots, installs and joins a rack of machines: see README.md.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"rackstrap/firstboot/agent"
	"rackstrap/internal/plain"
	"rackstrap/inventory"
	"rackstrap/lab"
	"rackstrap/lab/installer"
)

// Exit codes of every command.
const (
	exitFailed = 1 // it was tried and did not work
	exitUsage  = 2 // wrong usage, or an invalid configuration
)

// maxError bounds what is printed of an error, in bytes: the faults of a configuration have a line each.
const maxError = 64 << 10

// version is set by the build (-ldflags -X).
var version = "devel"

func main() {
	if status, called := installer.Tool(context.Background(), os.Args); called { // as yum, in the lab
		os.Exit(status)
	}
	if len(os.Args) > 1 && os.Args[1] == lab.MachineCommand { // a part of a namespace machine, in the lab
		os.Exit(lab.MachineMain(context.Background(), os.Args[2:]))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := rootCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "rackstrap:", plain.Lines(err.Error(), maxError))
		os.Exit(exitCode(err))
	}
}

func rootCommand() *cobra.Command {
	app := &app{}
	root := &cobra.Command{
		Use:           "rackstrap",
		Short:         "Boot, install and join a rack of blank machines",
		Long:          "Rackstrap takes a rack of blank machines to a Kubernetes cluster: DHCP, TFTP, HTTP boot,\nunattended installation and kubeadm, from one binary and one file.",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.PersistentFlags().StringVar(&app.configPath, "config", "", "configuration `FILE` (default ./rackstrap.yaml, else /etc/rackstrap/rackstrap.yaml)")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	root.AddCommand(
		app.initCommand(),
		app.checkCommand(),
		app.serveCommand(),
		app.reloadCommand(),
		app.doctorCommand(),
		app.statusCommand(),
		app.waitCommand(),
		app.machinesCommand(),
		app.eventsCommand(),
		app.approveCommand(),
		app.reinstallCommand(),
		app.confirmCommand(),
		app.holdCommand(),
		app.unholdCommand(),
		app.adoptCommand(),
		app.releaseCommand(),
		app.renderCommand(),
		app.kubeconfigCommand(),
		app.verifyCommand(),
		app.mediaCommand(),
		app.labCommand(),
		app.agentCommand(),
		labInstallerCommand(), labRouterCommand(),
		app.versionCommand(),
	)
	return root
}

// app is what all commands share.
type app struct{ configPath string }

// usageError is a wrong call of a command.
type usageError struct{ error }

func (e *usageError) Unwrap() error { return e.error }

// configError is a configuration that cannot be used.
type configError struct{ error }

func (e *configError) Unwrap() error { return e.error }

func exitCode(err error) int {
	var (
		usage  *usageError
		config *configError
		faults inventory.Faults

		refused *agent.GiveUpError
	)
	switch {
	case errors.As(err, &refused):
		return exitRefused
	case errors.As(err, &usage), errors.As(err, &config), errors.As(err, &faults),
		strings.HasPrefix(err.Error(), "unknown command"): // cobra has no type for it
		return exitUsage
	}
	return exitFailed
}

// args wraps cobra's check of positional arguments, so that a wrong number of them is a usage error.
func args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, given []string) error {
		if err := check(cmd, given); err != nil {
			return &usageError{fmt.Errorf("%w; usage: %s", err, cmd.UseLine())}
		}
		return nil
	}
}
