package main

import (
	"github.com/spf13/cobra"

	"rackstrap/lab"
)

// labRouterCommand is run by `lab up` inside the lab's namespace, not by people.
func labRouterCommand() *cobra.Command {
	return &cobra.Command{Use: "lab-router NIC", Short: "Tell who asks that the lab has no IPv6 router", Hidden: true, Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, given []string) error { return lab.NoRouter(cmd.Context(), given[0]) }}
}
