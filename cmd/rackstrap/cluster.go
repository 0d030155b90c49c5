package main

import (
	"cmp"
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"rackstrap/cluster"
	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

// saying prints what is done while it is, apart from the result.
func saying(cmd *cobra.Command) func(string) {
	return func(text string) { fmt.Fprintln(cmd.ErrOrStderr(), text) }
}

// machineCommand does something with one machine, and tells what it is then.
func (a *app) machineCommand(use, short, done string, do func(ctx context.Context, cmd *cobra.Command, name string) (lifecycle.Record, error)) *cobra.Command {
	return &cobra.Command{
		Use:   use,
		Short: short,
		Args:  args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, given []string) error {
			rec, err := do(cmd.Context(), cmd, given[0])
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s is %s (attempt %d)\n", rec.Name, done, rec.Attempt)
			return nil
		},
	}
}

func (a *app) reinstallCommand() *cobra.Command {
	var o cluster.ReinstallOptions
	cmd := a.machineCommand("reinstall NAME", "Install a machine anew at its next network boot", "armed: its next network boot installs it",
		func(ctx context.Context, cmd *cobra.Command, name string) (lifecycle.Record, error) {
			client, err := a.client()
			if err != nil {
				return lifecycle.Record{}, err
			}
			return client.Reinstall(ctx, name, o, saying(cmd))
		})
	cmd.Long = "Install a machine anew at its next network boot. A node of the cluster is drained and deleted from it\n" +
		"first, with its etcd member, by a control plane; it joins again by itself once it is installed.\n" +
		"It does not reboot the machine. What its firmware boots next is told, as far as it is known: a machine with UEFI\n" +
		"that would boot its disk, and whose agent runs, is made to boot from the network once."
	cmd.Flags().BoolVar(&o.Force, "force", false, "do not take it out of the cluster now: no control plane answers")
	cmd.Flags().BoolVar(&o.ReleaseLock, "release-lock", false, "it holds the init lock, or is the only control plane: forget that cluster")
	return cmd
}

func (a *app) holdCommand() *cobra.Command {
	var o cluster.HoldOptions
	cmd := a.machineCommand("hold NAME", "Have a machine boot its disk, until unhold", "held: it boots its disk",
		func(ctx context.Context, cmd *cobra.Command, name string) (lifecycle.Record, error) {
			client, err := a.client()
			if err != nil {
				return lifecycle.Record{}, err
			}
			o.By = cmp.Or(os.Getenv("SUDO_USER"), os.Getenv("USER"))
			return client.Hold(ctx, name, o, saying(cmd))
		})
	cmd.Long = "Have a machine boot its disk from now on, whatever its state: it is neither installed nor reinstalled until\n" +
		"`rackstrap unhold NAME`. It keeps its state, but is handed neither work nor secrets, and what it reports as done waits."
	cmd.Flags().StringVar(&o.Reason, "reason", "", "`TEXT` that is shown with it")
	cmd.Flags().BoolVar(&o.Revoke, "revoke", false, "somebody else may have its token or credential: end them, until it is reinstalled")
	cmd.Flags().BoolVar(&o.ReleaseLock, "release-lock", false, "it holds the init lock, and is off: another control plane may initialise the cluster")
	return cmd
}

func (a *app) unholdCommand() *cobra.Command {
	return a.machineCommand("unhold NAME", "End the hold of a machine: it boots what its state has it boot", "held no more",
		func(ctx context.Context, _ *cobra.Command, name string) (lifecycle.Record, error) {
			client, err := a.client()
			if err != nil {
				return lifecycle.Record{}, err
			}
			return client.Unhold(ctx, name)
		})
}

func (a *app) adoptCommand() *cobra.Command {
	return a.machineCommand("adopt NAME", "Take a machine whose disk holds a good system as installed; one that is a Ready node becomes ready", "installed: it boots its disk",
		func(ctx context.Context, _ *cobra.Command, name string) (lifecycle.Record, error) {
			client, err := a.client()
			if err != nil {
				return lifecycle.Record{}, err
			}
			return client.Adopt(ctx, name)
		})
}

func (a *app) kubeconfigCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "kubeconfig",
		Short: "Print the cluster's admin kubeconfig, fetched from a control plane just now",
		Long:  "Prints the cluster's admin kubeconfig. A control plane sends it just now; the appliance keeps no copy.\nkubectl --kubeconfig <(rackstrap kubeconfig) get nodes",
		Args:  args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			text, err := client.Kubeconfig(cmd.Context())
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(text)
			return err
		},
	}
}

func (a *app) verifyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "verify",
		Short: "Check that the cluster works: a web server, reached through every node's address, then removed",
		Args:  args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			if err := client.Verify(cmd.Context(), saying(cmd)); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "the cluster works")
			return nil
		},
	}
}

// checkCluster renders what kubeadm and kubectl are given, so that a fault shows before a machine does.
func checkCluster(cfg *inventory.Config) error {
	_, err := cluster.CNIManifest(cfg)
	return err
}
