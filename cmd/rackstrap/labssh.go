package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"rackstrap/inventory"
)

// sshKeyFile is the key by which root of the lab's machines is reached: made anew for each lab, and of no use elsewhere.
const sshKeyFile = "ssh_key"

// sshKey makes the lab's key, unless there is one, and returns its public half.
func (f *labFlags) sshKey(ctx context.Context) (string, error) {
	path := filepath.Join(f.stateDir, sshKeyFile)
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		out, err := exec.CommandContext(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "the lab", "-f", path).CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("ssh-keygen (Debian package openssh-client): %v: %s", err, out)
		}
	}
	public, err := os.ReadFile(path + ".pub")
	return strings.TrimSpace(string(public)), err
}

func labSSHCommand(flags *labFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ssh NAME [COMMAND...]",
		Short: "Run a command on an installed machine, or a shell, as root",
		Args:  args(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, given []string) error {
			cfg, err := inventory.Load(filepath.Join(flags.stateDir, "rackstrap.yaml"), nil)
			if err != nil {
				return &configError{err}
			}
			machine, ok := cfg.ByName(given[0])
			if !ok {
				return &usageError{fmt.Errorf("no machine %q in the lab", given[0])}
			}
			// A machine that is installed again has other keys; the network is the lab's own. One that has just booted makes its
			// keys for half a minute before it listens, and is tried once a second.
			ssh := flags.open().Command(cmd.Context(), "ssh", append([]string{"-i", filepath.Join(flags.stateDir, sshKeyFile),
				"-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
				"-o", "LogLevel=ERROR", "-o", "ConnectTimeout=20", "-o", "ConnectionAttempts=180", "-F", "none", "root@" + machine.IP.String(), "--"}, given[1:]...)...)
			ssh.Stdin, ssh.Stdout, ssh.Stderr = cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()
			return ssh.Run()
		},
	}
	cmd.Flags().SetInterspersed(false) // options behind the name are the command's
	return cmd
}
