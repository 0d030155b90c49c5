package main

import (
	"fmt"
	"log/slog"

	"github.com/spf13/cobra"

	"rackstrap/lab/kube"
)

// defaultRepository is the default of cluster.image_repository.
const defaultRepository = "registry.aliyuncs.com/google_containers"

// labExecCommand looks into a namespace machine.
func labExecCommand(flags *labFlags) *cobra.Command {
	return &cobra.Command{Use: "exec NAME COMMAND...", Short: "Run a command in a namespace machine, as root", Args: args(cobra.MinimumNArgs(2)),
		RunE: func(cmd *cobra.Command, given []string) error {
			inside, err := flags.open().Inside(cmd.Context(), given[0], given[1:]...)
			if err != nil {
				return err
			}
			inside.Stdin, inside.Stdout, inside.Stderr = cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()
			return inside.Run()
		}}
}

// labKubernetesCommand builds ahead what namespace machines run: the first time takes ten minutes.
func labKubernetesCommand() *cobra.Command {
	repository := ""
	cmd := &cobra.Command{
		Use:   "kubernetes",
		Short: "Build Kubernetes and its images for the lab from Go modules, and print the directory of the images",
		Args:  args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, _, err := kube.Images(cmd.Context(), "", repository, newLogger(slog.LevelInfo, false))
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), dir)
			return nil
		},
	}
	cmd.Flags().StringVar(&repository, "repository", defaultRepository,
		"name the images as this `REPOSITORY` would (cluster.image_repository)")
	return cmd
}
