package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"rackstrap/cluster"
	"rackstrap/lifecycle"
	"rackstrap/operator"
)

// How often wait looks, and how often it says of one machine that it goes on in the same state.
const (
	waitLook = 2 * time.Second
	waitSay  = 15 * time.Second
)

func (a *app) waitCommand() *cobra.Command {
	limit := time.Duration(0)
	cmd := &cobra.Command{
		Use:   "wait [NAME...]",
		Short: "Wait until all machines (or those named) are Ready, and tell each step",
		Long: "Wait until all machines of the list (or those named) are Ready nodes, and tell each step. Ends with 1 as soon as\n" +
			"one of them is held, for then somebody has to decide, and when the time is over.",
		RunE: func(cmd *cobra.Command, names []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			if limit > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, limit)
				defer cancel()
			}
			w := &waiter{out: cmd.OutOrStdout(), names: names, said: map[string]said{}, begun: time.Now(), now: time.Now}
			return w.run(ctx, client.Status)
		},
	}
	cmd.Flags().DurationVar(&limit, "timeout", 0, "give up after so long; 0: never")
	return cmd
}

// waiter follows machines to Ready.
type waiter struct {
	out   io.Writer
	names []string // none: all of the list
	said  map[string]said
	begun time.Time
	now   func() time.Time
	last  operator.Status
}

// said is the last line about a machine.
type said struct {
	state lifecycle.State
	what  string
	at    time.Time
}

// run looks until all are ready. An appliance that restarts is waited for, if it was there at first.
func (w *waiter) run(ctx context.Context, status func(context.Context) (operator.Status, error)) error {
	tick := time.NewTicker(waitLook)
	defer tick.Stop()
	for first := true; ; first = false {
		st, err := status(ctx)
		switch {
		case err == nil:
			w.last = st
			done, err := w.look(st)
			if err != nil {
				return err
			}
			if done {
				fmt.Fprintf(w.out, "%8s  %s\n", w.since(st), "all Ready")
				return nil
			}
		case first:
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not Ready when the time was over: %s", strings.Join(w.missing(), ", "))
		case <-tick.C:
		}
	}
}

// machines are those that are waited for.
func (w *waiter) machines(st operator.Status) ([]lifecycle.Status, error) {
	var found []lifecycle.Status
	for _, m := range st.Machines {
		if m.Name != "" && (len(w.names) == 0 || slices.Contains(w.names, m.Name)) {
			found = append(found, m)
		}
	}
	for _, name := range w.names {
		if !slices.ContainsFunc(found, func(m lifecycle.Status) bool { return m.Name == name }) {
			return nil, &usageError{&lifecycle.UnknownMachineError{Name: name}}
		}
	}
	return found, nil
}

// look tells what is new. done: all are ready.
func (w *waiter) look(st operator.Status) (done bool, err error) {
	machines, err := w.machines(st)
	if err != nil {
		return false, err
	}
	ready := 0
	for _, m := range machines {
		w.tell(st, m)
		switch {
		case isReady(st, m):
			ready++
		case m.State == lifecycle.Ready: // its node is not any more: it may be again
		case m.Action == lifecycle.ActionWait, m.Action == lifecycle.ActionHold: // what is held is handed nothing
			return false, errors.New(m.Reason)
		}
	}
	return ready == len(machines), nil
}

// isReady tells whether a machine is a Ready node, as far as anybody knows.
func isReady(st operator.Status, m lifecycle.Status) bool {
	now := st.Cluster.Nodes.Of[m.Name].Condition
	return m.State == lifecycle.Ready && now != cluster.NodeNotReady && now != cluster.NodeMissing
}

// tell prints a machine's line, if its state is new, or what it is at is and it was not heard of for a while.
func (w *waiter) tell(st operator.Status, m lifecycle.Status) {
	what, before := whatText(st, m), w.said[m.Name]
	if m.State == before.state && (what == before.what || w.now().Sub(before.at) < waitSay) {
		return
	}
	w.said[m.Name] = said{m.State, what, w.now()}
	fmt.Fprintf(w.out, "%8s  %-10s %-12s %s\n", w.since(st), m.Name, or(string(m.State), "-"), what)
}

// since is the time since the rack's first power-on until it is complete for the first time, else since the command began.
func (w *waiter) since(st operator.Status) string {
	if c := st.Cluster; !c.Begun.IsZero() && (c.FirstComplete.IsZero() || !w.begun.After(c.FirstComplete)) {
		return age(w.now(), st.Cluster.Begun)
	}
	return age(w.now(), w.begun)
}

// missing names those that are not ready, with their states.
func (w *waiter) missing() []string {
	machines, _ := w.machines(w.last)
	var names []string
	for _, m := range machines {
		if !isReady(w.last, m) {
			text := or(string(m.State), "never seen")
			if m.State == lifecycle.Ready {
				text = nodeTrouble(w.last, m)
			}
			names = append(names, fmt.Sprintf("%s (%s)", m.Name, text))
		}
	}
	return names
}
