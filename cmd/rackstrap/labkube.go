package main

import (
	"fmt"
	"log/slog"

	"github.com/spf13/cobra"

	"rackstrap/lab/kube"
)

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
	cmd.Flags().StringVar(&repository, "repository", "registry.aliyuncs.com/google_containers",
		"name the images as this `REPOSITORY` would (cluster.image_repository)")
	return cmd
}
