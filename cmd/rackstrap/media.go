package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"rackstrap/inventory"
	"rackstrap/media"
	"rackstrap/preflight"
)

func (a *app) mediaCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "media", Short: "Look at the installation media", Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(a.mediaListCommand(), a.mediaVerifyCommand())
	return cmd
}

// medium is what `media list` tells of one medium.
type medium struct {
	Name    string `json:"name"`
	Where   string `json:"where"`
	Product string `json:"product,omitempty"`
	Kernel  string `json:"kernel,omitempty"`
	Shim    string `json:"shim,omitempty"`
	Files   int    `json:"files,omitempty"`
	Fault   string `json:"fault,omitempty"`
	Warning string `json:"warning,omitempty"`
}

func (a *app) mediaListCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "list", Short: "Show what each medium holds", Args: args(cobra.NoArgs)}
	format := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := a.loadConfig()
		if err != nil {
			return err
		}
		report := verdict(cmd.Context(), cfg, reach{})
		list := []medium{}
		for _, m := range cfg.Media {
			list = append(list, inspect(m, report.About("medium "+m.Name)))
		}
		return print(cmd, *format, list, func(w io.Writer) {
			row(w, "NAME", "WHERE", "PRODUCT", "KERNEL", "SHIM", "FILES", "VERDICT")
			for _, m := range list {
				row(w, m.Name, m.Where, or(m.Product, "-"), or(m.Kernel, "-"), or(m.Shim, "-"), m.Files, m.verdict())
			}
		})
	}
	return cmd
}

func (m medium) verdict() string {
	switch {
	case m.Fault != "":
		return "FAULT: " + m.Fault
	case m.Warning != "":
		return "warning: " + m.Warning
	}
	return "good"
}

func inspect(m inventory.Medium, report preflight.Report) medium {
	out := medium{Name: m.Name, Where: or(m.ISO, or(m.Dir, m.URL))}
	for _, f := range report {
		into := &out.Fault
		if f.Warning {
			into = &out.Warning
		}
		*into = strings.TrimPrefix(*into+"; "+f.Text, "; ")
	}
	if m.URL != "" {
		return out // on a mirror: nothing to look into
	}
	library, err := media.OpenLibrary([]media.Spec{{Name: m.Name, ISO: m.ISO, Dir: m.Dir}})
	if err != nil {
		return out // it is in the report
	}
	defer library.Close()
	tree, _ := library.Tree(m.Name)
	if image, ok := tree.(*media.Image); ok {
		out.Files = image.Files()
	}
	if info, err := media.ReadTreeInfo(tree); err == nil {
		out.Product, out.Kernel = info.Family+" "+info.Version+" "+info.Arch, info.Kernel
	}
	if dir, shim, _, err := media.FindShim(tree); err == nil {
		out.Shim = dir + "/" + shim
	}
	return out
}

func (a *app) mediaVerifyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "verify [NAME]",
		Short: "Compare the ISO images with the SHA-256 of the configuration, and look for what installations need",
		Args:  args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, given []string) error {
			cfg, err := a.loadConfig()
			if err != nil {
				return err
			}
			out, seen := cmd.OutOrStdout(), false
			report := verdict(cmd.Context(), cfg, reach{})
			faults := preflight.Report{}
			for _, m := range cfg.Media {
				if len(given) == 1 && m.Name != given[0] {
					continue
				}
				seen = true
				about := report.About("medium " + m.Name)
				faults = append(faults, about...)
				warn(cmd, about.Warnings())
				if m.ISO == "" || m.SHA256 == "" {
					fmt.Fprintf(out, "%s: nothing to compare: it has no iso with a sha256\n", m.Name)
					continue
				}
				if err := media.Verify(cmd.Context(), m.ISO, m.SHA256, progress(m.Name)); err != nil {
					return fmt.Errorf("%s: %w", m.Name, err)
				}
				if len(about.Faults()) == 0 {
					fmt.Fprintf(out, "%s: good\n", m.Name)
				}
			}
			if !seen && len(given) == 1 {
				return &usageError{fmt.Errorf("no medium %q in the configuration", given[0])}
			}
			return faults.Err()
		},
	}
}

// progress tells on a terminal how far the reading of a large file is.
func progress(name string) func(done, total int64) {
	if info, err := os.Stderr.Stat(); err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return nil
	}
	last := int64(-1)
	return func(done, total int64) {
		if percent := 100 * done / max(total, 1); percent != last {
			last = percent
			fmt.Fprintf(os.Stderr, "\r%s: %d %%\r", name, percent)
		}
	}
}
