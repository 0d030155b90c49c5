package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"rackstrap/internal/plain"
	"rackstrap/inventory"
	"rackstrap/lifecycle"
	"rackstrap/operator"
)

// outputFlag adds -o to a command that prints a table.
func outputFlag(cmd *cobra.Command) *string {
	return cmd.Flags().StringP("output", "o", "table", "`FORMAT`: table or json")
}

// print writes a value as JSON, or as a table by the given function.
func print(cmd *cobra.Command, format string, value any, table func(io.Writer)) error {
	out := cmd.OutOrStdout()
	switch format {
	case "json":
		text := json.NewEncoder(plain.JSON(out))
		text.SetIndent("", "  ")
		return text.Encode(value)
	case "table":
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		table(w)
		return w.Flush()
	}
	return &usageError{fmt.Errorf("-o %s: table or json", format)}
}

// maxCell bounds a cell of a table, in bytes.
const maxCell = 1000

// row prints one line of a table: its cells hold what peers, media and consoles have in them, and none of it may move
// the cursor or begin a cell or a line of its own.
func row(w io.Writer, cells ...any) {
	texts := make([]string, len(cells))
	for i, cell := range cells {
		texts[i] = plain.Line(fmt.Sprint(cell), maxCell)
	}
	fmt.Fprintln(w, strings.Join(texts, "\t"))
}

func (a *app) statusCommand() *cobra.Command {
	watch := false
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the rack: every machine, what it boots next and why",
		Args:  args(cobra.NoArgs),
	}
	format := outputFlag(cmd)
	cmd.Flags().BoolVar(&watch, "watch", false, "repeat every 2 s")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		client, err := a.client()
		if err != nil {
			return err
		}
		for {
			st, err := client.Status(cmd.Context())
			if err != nil {
				return err
			}
			if watch && *format == "table" {
				fmt.Fprint(cmd.OutOrStdout(), "\x1b[H\x1b[2J") // home, clear
			}
			if err := print(cmd, *format, st, func(w io.Writer) { statusTable(w, st) }); err != nil || !watch {
				return err
			}
			select {
			case <-cmd.Context().Done():
				return nil
			case <-time.After(2 * time.Second):
			}
		}
	}
	return cmd
}

func macText(mac inventory.MAC) string {
	if mac.IsZero() {
		return ""
	}
	return mac.String()
}

func addrText(m lifecycle.Status) string {
	if !m.IP.IsValid() {
		return "-"
	}
	return m.IP.String()
}

func or(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}

// age is how long ago something was, in the largest unit that tells enough; "never" for the zero time.
func age(now, then time.Time) string {
	if then.IsZero() {
		return "never"
	}
	switch d := now.Sub(then); {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	default:
		return fmt.Sprintf("%dd", int(d.Hours()/24))
	}
}

func (a *app) machinesCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "machines",
		Short: "Show what the wire told about each machine",
		Args:  args(cobra.NoArgs),
	}
	format := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		client, err := a.client()
		if err != nil {
			return err
		}
		st, err := client.Status(cmd.Context())
		if err != nil {
			return err
		}
		return print(cmd, *format, st.Machines, func(w io.Writer) {
			row(w, "NAME", "MAC", "FIRMWARE", "VENDOR CLASS", "UUID", "RELAY", "HOST NAME", "FIRST SEEN", "LAST BOOT", "DISK BOOT")
			for _, m := range st.Machines {
				s := m.Sighting
				relay := "-"
				if s.Relay.IsValid() {
					relay = s.Relay.String()
				}
				row(w, or(m.Name, "?"), cardsText(m), or(s.Firmware, "-"),
					or(s.VendorClass, "-"), or(s.UUID, "-"), relay, or(s.Hostname, "-"),
					age(st.Now, s.First), age(st.Now, s.LastBoot), age(st.Now, s.DiskBoot))
			}
		})
	}
	return cmd
}

func (a *app) eventsCommand() *cobra.Command {
	q := operator.EventQuery{}
	cmd := &cobra.Command{
		Use:   "events [MACHINE]",
		Short: "Show the timeline of one machine (name or MAC), or of all",
		Args:  args(cobra.MaximumNArgs(1)),
	}
	format := outputFlag(cmd)
	cmd.Flags().BoolVarP(&q.Follow, "follow", "f", false, "go on until interrupted")
	cmd.Flags().IntVarP(&q.Limit, "limit", "n", 200, "the newest `N` only; 0 for all that are kept")
	cmd.RunE = func(cmd *cobra.Command, given []string) error {
		client, err := a.client()
		if err != nil {
			return err
		}
		if len(given) == 1 {
			q.Machine = given[0]
		}
		ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt)
		defer stop()
		lines := json.NewEncoder(plain.JSON(cmd.OutOrStdout()))
		return client.Events(ctx, q, func(e lifecycle.Event) error {
			switch *format {
			case "json":
				return lines.Encode(e)
			case "table":
				_, err := fmt.Fprintln(cmd.OutOrStdout(), eventLine(e))
				return err
			}
			return &usageError{fmt.Errorf("-o %s: table or json", *format)}
		})
	}
	return cmd
}

func eventLine(e lifecycle.Event) string {
	who := e.Machine
	if who == "" {
		who = or(macText(e.MAC), "rack")
	}
	mark := ""
	if e.Level != lifecycle.Info {
		mark = strings.ToUpper(string(e.Level)) + " "
	}
	e = e.Plain()
	return fmt.Sprintf("%s  %-17s  %-9s  %-12s  %s%s", e.Time.Local().Format("2006-01-02 15:04:05.000"), who, e.Source, e.Kind, mark, e.Text)
}

func (a *app) approveCommand() *cobra.Command {
	as, other := "", false
	cmd := &cobra.Command{
		Use:   "approve MAC --as NAME",
		Short: "Give a discovered machine a slot of the list; it is installed at its next poll",
		Long: "Gives a discovered machine a slot of the list; it is installed at its next poll.\n" +
			"A MAC that has the UUID of a known machine is a further card of that one, and is refused: its installation would\n" +
			"erase that machine's disk. --other-machine vouches that it is another machine, with a copied UUID.",
		Args: args(cobra.ExactArgs(1)),
	}
	cmd.Flags().StringVar(&as, "as", "", "`NAME` of a machine of the list without a mac")
	cmd.Flags().BoolVar(&other, "other-machine", false, "it is another machine than the known one with its UUID: erase its disk")
	cmd.RunE = func(cmd *cobra.Command, given []string) error {
		mac, err := inventory.ParseMAC(given[0])
		if err != nil {
			return &usageError{err}
		}
		if as == "" {
			return &usageError{errors.New("--as NAME is needed: the machine of the list that it becomes")}
		}
		client, err := a.client()
		if err != nil {
			return err
		}
		rec, err := client.Approve(cmd.Context(), mac, as, other)
		if err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%s is %s, %s\n", rec.MAC, rec.Name, rec.State)
		return nil
	}
	return cmd
}

func (a *app) releaseCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "release NAME",
		Short: "Free a slot that approve or enrolment filled",
		Args:  args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, given []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			if err := client.Release(cmd.Context(), given[0]); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s is a free slot again\n", given[0])
			return nil
		},
	}
}
