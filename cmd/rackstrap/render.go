package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/pmezard/go-difflib/difflib"
	"github.com/spf13/cobra"

	"rackstrap/assets"
	"rackstrap/cluster"
	"rackstrap/inventory"
	"rackstrap/kickstart"
	"rackstrap/lifecycle"
	"rackstrap/operator"
)

func (a *app) renderCommand() *cobra.Command {
	diff := false
	cmd := &cobra.Command{
		Use:   "render {ipxe|grub|kickstart|init-config|join-config} NAME",
		Short: "Print what a machine is served: now, or (without a daemon) what the configuration says for a new one",
		Long: "Prints what a machine is served: now, or (without a daemon) what the configuration says for a new one.\n" +
			"A kickstart is always that of the file, with a token that opens nothing. With --diff it is compared with\n" +
			"that of the configuration that the daemon has in force; then NAME may be left out: all machines. What is\n" +
			"under server takes effect at the next start only.\n" +
			"The files for kubeadm init and join have tokens and keys that open nothing, too.",
		ValidArgs: []string{"ipxe", "grub", "kickstart", "init-config", "join-config"},
	}
	cmd.Flags().BoolVar(&diff, "diff", false, "kickstart: show what a reload of the file would change")
	cmd.Args = func(cmd *cobra.Command, given []string) error {
		if diff && len(given) > 0 && given[0] == "kickstart" {
			return args(cobra.MaximumNArgs(2))(cmd, given)
		}
		if diff {
			return &usageError{errors.New("--diff is for kickstarts: rackstrap render kickstart [NAME] --diff")}
		}
		return args(cobra.ExactArgs(2))(cmd, given)
	}
	cmd.RunE = func(cmd *cobra.Command, given []string) error {
		cfg, err := a.loadConfig()
		if err != nil {
			return err
		}
		client := operator.NewClient(cfg.Server.DataDir)
		switch what := given[0]; {
		case diff:
			return diffKickstarts(cmd, client, cfg, given[1:])
		case what == "kickstart": // the daemon's own would hold a live secret
			return printKickstart(cmd, cfg, given[1])
		default:
			text, err := client.Render(cmd.Context(), what, given[1])
			var absent *operator.NotRunningError
			if errors.As(err, &absent) {
				text, err = renderOffline(cmd.Context(), cfg, what, given[1])
			}
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(text)
			return err
		}
	}
	return cmd
}

func renderOffline(ctx context.Context, cfg *inventory.Config, what, name string) ([]byte, error) {
	m, ok := cfg.ByName(name)
	if !ok {
		return nil, &lifecycle.UnknownMachineError{Name: name}
	}
	switch what { // what kubeadm is given depends on no medium, which may not be here yet
	case "init-config":
		return []byte(cluster.RenderInit(cfg, *m)), nil
	case "join-config":
		return []byte(cluster.RenderJoin(cfg, *m, "")), nil
	}
	plan, rack, err := offlinePlan(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer plan.Library().Close()
	switch decision := rack.Decide(m.MAC); what {
	case "ipxe":
		return plan.IPXE(decision)
	case "grub":
		return plan.GRUB(decision)
	}
	return nil, &usageError{fmt.Errorf("%s cannot be rendered: ipxe, grub, kickstart, init-config or join-config", what)}
}

// printKickstart prints the kickstart that a machine would get, with a token that opens nothing.
func printKickstart(cmd *cobra.Command, cfg *inventory.Config, name string) error {
	renderer, err := kickstart.New(assets.Profiles())
	if err != nil {
		return err
	}
	text, err := renderNamed(renderer, resolvedIfPossible(cfg), name)
	if err != nil {
		return err
	}
	_, err = cmd.OutOrStdout().Write(text)
	return err
}

// resolvedIfPossible completes the server's address on the appliance itself.
func resolvedIfPossible(cfg *inventory.Config) *inventory.Config {
	if resolved, err := cfg.Resolve(interfaceAddresses); err == nil {
		return resolved
	}
	return cfg
}

func renderNamed(renderer *kickstart.Renderer, cfg *inventory.Config, name string) ([]byte, error) {
	m, ok := cfg.ByName(name)
	if !ok {
		return nil, &lifecycle.UnknownMachineError{Name: name}
	}
	return renderSample(renderer, cfg, *m)
}

// renderMasked is a kickstart without secrets: neither those that only a daemon has, nor those of the file.
func renderMasked(renderer *kickstart.Renderer, cfg *inventory.Config, name string) ([]byte, error) {
	m, ok := cfg.ByName(name)
	if !ok {
		return nil, &lifecycle.UnknownMachineError{Name: name}
	}
	hidden := *m
	hidden.Install = maskInstall(m.Install)
	return renderSample(renderer, maskMedia(cfg), hidden)
}

// diffKickstarts prints, machine by machine, what the file on disk would change against what the daemon has in
// force. Secrets are shown on neither side.
func diffKickstarts(cmd *cobra.Command, client *operator.Client, cfg *inventory.Config, only []string) error {
	ctx, out := cmd.Context(), cmd.OutOrStdout()
	st, err := client.Status(ctx)
	if err != nil {
		return err
	}
	renderer, err := kickstart.New(assets.Profiles())
	if err != nil {
		return err
	}
	onDisk := resolvedIfPossible(cfg)
	if !onDisk.Server.Address.IsValid() {
		other := *onDisk
		other.Server.Address = st.Address
		onDisk = &other
	}
	names := only
	if len(only) == 0 {
		names = namesOf(st, cfg)
	}
	running := map[string]bool{}
	for _, m := range st.Machines {
		running[m.Name] = true
	}
	changed := 0
	for _, name := range names {
		var before, after []byte
		if running[name] {
			if before, err = client.Render(ctx, "kickstart", name); err != nil {
				return fmt.Errorf("%s, as the daemon has it: %w", name, err)
			}
		}
		var gone *lifecycle.UnknownMachineError
		if after, err = renderMasked(renderer, onDisk, name); err != nil && (!errors.As(err, &gone) || !running[name]) {
			return err
		}
		different, err := writeDiff(out, name, st.Config, cfg.Path, before, after)
		if err != nil {
			return err
		}
		if different {
			changed++
		}
	}
	switch {
	case len(only) > 0 && changed == 0:
		fmt.Fprintf(out, "%s: no change\n", only[0])
	case len(only) == 0 && changed == 0:
		fmt.Fprintf(out, "no change for any of %d machines\n", len(names))
	case len(only) == 0:
		fmt.Fprintf(out, "%d of %d machines change\n", changed, len(names))
	}
	return nil
}

// namesOf are the machines of the file, and then those that the daemon alone still has.
func namesOf(st operator.Status, cfg *inventory.Config) (names []string) {
	for _, m := range cfg.Machines {
		names = append(names, m.Name)
	}
	for _, m := range st.Machines {
		if _, still := cfg.ByName(m.Name); m.Name != "" && !still {
			names = append(names, m.Name)
		}
	}
	return names
}

// writeDiff writes a unified diff of one machine's kickstarts; nil is none at all.
func writeDiff(out io.Writer, name, from, to string, before, after []byte) (different bool, err error) {
	if string(before) == string(after) {
		return false, nil
	}
	if from += " (in force)"; before == nil {
		from = "/dev/null"
	}
	if after == nil {
		to = "/dev/null"
	}
	fmt.Fprintf(out, "kickstart of %s\n", name)
	return true, difflib.WriteUnifiedDiff(out, difflib.UnifiedDiff{
		A: lines(before), B: lines(after), FromFile: from, ToFile: to, Context: 3,
	})
}

// lines divides a text; that of no machine has none.
func lines(text []byte) []string {
	if len(text) == 0 {
		return nil
	}
	return difflib.SplitLines(string(text))
}
