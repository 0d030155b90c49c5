package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"rackstrap/lifecycle"
)

func (a *app) confirmCommand() *cobra.Command {
	var (
		all, yes    bool
		fingerprint string
	)
	cmd := &cobra.Command{
		Use:   "confirm [NAME]",
		Short: "Confirm that a machine which waits for it is the one in the rack, so that it gets the cluster's secrets",
		Long: "Shows what is known of a machine that has called home, with the fingerprint of its credential, and asks whether the\n" +
			"machine's own console shows the same. Then it is handed what it waits for (install.confirm). A reinstallation, or\n" +
			"another credential, needs another confirmation. Without NAME it lists the machines that wait.",
		Args: args(cobra.MaximumNArgs(1)),
	}
	cmd.Flags().BoolVar(&all, "all", false, "all that wait, one after the other in a table")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.Flags().StringVar(&fingerprint, "fingerprint", "", "`SHA256:…` that the console shows: do not ask, and refuse another one")
	cmd.RunE = func(cmd *cobra.Command, given []string) error {
		switch {
		case all && (len(given) > 0 || fingerprint != ""):
			return &usageError{errors.New("--all goes without NAME and --fingerprint")}
		case len(given) == 0 && !all && (yes || fingerprint != ""):
			return &usageError{errors.New("NAME, or --all, is needed: the machine to be confirmed")}
		}
		client, err := a.client()
		if err != nil {
			return err
		}
		var claims []lifecycle.Claim
		if len(given) == 1 {
			claim, err := client.Claim(cmd.Context(), given[0])
			if err != nil {
				return err
			}
			if claims = append(claims, claim); fingerprint == "" {
				if err := claimTable(cmd.OutOrStdout(), claim); err != nil {
					return err
				}
			}
			if claim.Confirmed.Fingerprint != "" && (fingerprint == "" || fingerprint == claim.Fingerprint) {
				fmt.Fprintf(cmd.OutOrStdout(), "%s is confirmed already\n", claim.Name)
				return nil
			}
		} else {
			if claims, err = client.Claims(cmd.Context()); err != nil {
				return err
			}
			if len(claims) == 0 {
				fmt.Fprintln(cmd.OutOrStdout(), "no machine waits for a confirmation")
				return nil
			}
			if err := claimsTable(cmd.OutOrStdout(), claims); err != nil || !all {
				return err
			}
		}
		var refused []error
		for _, claim := range claims {
			if claim.Fingerprint == "" {
				if !all {
					return fmt.Errorf("%s is %s: it has not called home yet, so that there is nothing to confirm", claim.Name, claim.State)
				}
				continue
			}
			if !yes && fingerprint == "" {
				ok, err := sure(cmd, fmt.Sprintf("Does the console of %s show %s?", claim.Name, claim.Fingerprint))
				if err != nil {
					return err
				}
				if !ok {
					refused = append(refused, fmt.Errorf("%s is not confirmed", claim.Name))
					continue
				}
			}
			_, err := client.Confirm(cmd.Context(), claim.Name, cmp.Or(fingerprint, claim.Fingerprint), cmp.Or(os.Getenv("SUDO_USER"), os.Getenv("USER")))
			if err != nil {
				refused = append(refused, err)
				continue
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s is confirmed\n", claim.Name)
		}
		return errors.Join(refused...)
	}
	return cmd
}

// sure asks a question that only y answers with yes.
func sure(cmd *cobra.Command, question string) (bool, error) {
	fmt.Fprint(cmd.OutOrStdout(), question+" [y/N] ")
	answer := ""
	for one := make([]byte, 1); !strings.HasSuffix(answer, "\n") && len(answer) < 80; { // no more than the line: others follow
		n, err := cmd.InOrStdin().Read(one)
		answer += string(one[:n])
		if err != nil && !errors.Is(err, io.EOF) {
			return false, err
		}
		if err != nil {
			break
		}
	}
	answer = strings.ToLower(strings.TrimSpace(answer))
	return answer == "y" || answer == "yes", nil
}

func when(at time.Time) string {
	if at.IsZero() {
		return "not known"
	}
	return at.Local().Format("2006-01-02 15:04:05")
}

// claimTable is what is known of one machine, a line for each fact.
func claimTable(out io.Writer, c lifecycle.Claim) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	from := "this network"
	if c.Sighting.Relay.IsValid() {
		from = "by the relay " + c.Sighting.Relay.String()
	}
	for _, fact := range [][2]string{
		{"machine", fmt.Sprintf("%s, %s, %s, attempt %d", c.Name, c.Role, c.State, c.Attempt)},
		{"address", c.Address},
		{"MAC", c.Cards},
		{"UUID", fmt.Sprintf("%s by DHCP; %s by its agent", or(c.Sighting.UUID, "-"), or(c.CalledHome.UUID, "-"))},
		{"board", fmt.Sprintf("%s, serial %s", or(c.CalledHome.Board, "not known"), or(c.CalledHome.Serial, "not known"))},
		{"firmware", or(c.Sighting.Firmware, "-") + ", " + or(c.Sighting.VendorClass, "-")},
		{"release", or(c.CalledHome.OS, "not known") + ", kernel " + or(c.CalledHome.Kernel, "-")},
		{"network boot", when(c.Sighting.LastBoot) + ", " + from},
		{"installation", "power-on " + when(c.Begun)},
		{"disk boot", when(c.Sighting.DiskBoot)},
		{"called home", when(c.CalledHome.At)},
		{"fingerprint", or(c.Fingerprint, "none: it has not called home yet")},
	} {
		row(w, fact[0], fact[1])
	}
	return w.Flush()
}

// claimsTable is a line for each machine.
func claimsTable(out io.Writer, claims []lifecycle.Claim) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row(w, "NAME", "ROLE", "ADDRESS", "MAC", "STATE", "NETWORK BOOT", "CALLED HOME", "BOARD", "SERIAL", "FINGERPRINT")
	for _, c := range claims {
		row(w, c.Name, c.Role, c.Address, c.Cards, c.State, when(c.Sighting.LastBoot), when(c.CalledHome.At),
			or(c.CalledHome.Board, "-"), or(c.CalledHome.Serial, "-"), or(c.Fingerprint, "-"))
	}
	return w.Flush()
}
