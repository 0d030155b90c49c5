package main

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/spf13/cobra"

	"rackstrap/lab/installer"
)

// labInstallerCommand is run by the lab's machines, not by people: see package lab/installer.
func labInstallerCommand() *cobra.Command {
	var o installer.Options
	var mac string
	cmd := &cobra.Command{Use: "lab-installer", Short: "Execute a kickstart as Anaconda would, inside a machine of the lab", Hidden: true,
		Args: args(cobra.NoArgs)}
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		if mac != "" {
			if o.MAC, err = net.ParseMAC(mac); err != nil {
				return &usageError{fmt.Errorf("--mac %s: %v", mac, err)}
			}
		}
		if (o.Root == "") == (o.Handover == "") {
			return &usageError{fmt.Errorf("either --root or --handover")}
		}
		if o.KernelArgs == "" {
			line, err := os.ReadFile("/proc/cmdline")
			if err != nil {
				return err
			}
			o.KernelArgs = string(line)
		}
		o.Console = cmd.OutOrStdout()
		outcome, err := installer.Run(cmd.Context(), o)
		if o.Handover == "" {
			return err
		}
		return errors.Join(err, outcome.End())
	}
	f := cmd.Flags()
	f.StringVar(&o.Root, "root", "", "install into this `DIR`, which holds the lab's system")
	f.StringVar(&o.Handover, "handover", "", "`DIR` in which the initrd has left what it fetched: install onto the disk")
	f.StringVar(&o.KernelArgs, "kernel-args", "", "the installer's kernel command `LINE` (default that of the running kernel)")
	f.StringVar(&o.Interface, "interface", "", "the `NIC` that boots (with --root)")
	f.StringVar(&mac, "mac", "", "its `ADDRESS` (with --root)")
	f.StringVar(&o.Serial, "serial", "", "serial `NUMBER` of the machine (default that of the hardware)")
	return cmd
}
