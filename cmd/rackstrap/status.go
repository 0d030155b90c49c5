package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"rackstrap/cluster"
	"rackstrap/lifecycle"
	"rackstrap/operator"
)

// statusTable is the rack on one screen: the appliance, the cluster, a line a machine.
func statusTable(w io.Writer, st operator.Status) {
	fmt.Fprintf(w, "rackstrap %s on %s (%s), DHCP %s, up %s\n", st.Version, st.Address, st.Interface, st.DHCPMode, age(st.Now, st.Started))
	for _, text := range clusterLines(st) {
		fmt.Fprintln(w, text)
	}
	for _, other := range st.Foreign {
		fmt.Fprintf(w, "WARNING: another DHCP server answers on this network: %s\n", other)
	}
	if st.Dropped > 0 {
		fmt.Fprintf(w, "WARNING: %d observations were lost: is the disk full?\n", st.Dropped)
	}
	if names := diskFirst(st); len(names) > 0 {
		fmt.Fprintf(w, "WARNING: the firmware does not boot the network first, as far as is known: %s; `rackstrap reinstall` says what to do then\n", strings.Join(names, ", "))
	}
	fmt.Fprintln(w)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	machinesTable(table, st)
	table.Flush()
}

// diskFirst are the machines that are installed and would not boot from the network by themselves.
func diskFirst(st operator.Status) (names []string) {
	for _, m := range st.Machines {
		if b := m.Record.Node.Boot; b.Firmware == "uefi" && !b.NetworkFirst && m.State != lifecycle.Armed && m.State != lifecycle.Installing {
			names = append(names, m.Name)
		}
	}
	return names
}

// clusterLines tell how far the cluster is: what it is, who leads, who is there.
func clusterLines(st operator.Status) []string {
	c := st.Cluster
	lines := []string{fmt.Sprintf("cluster %s: Kubernetes %s at %s, %s", c.Name, c.Version, c.Endpoint, clusterState(st))}
	var masters []string
	for _, m := range c.Masters {
		text := m.Name
		switch {
		case !m.Alive && m.Seen.IsZero():
			text += " (silent since the start)"
		case !m.Alive:
			text += fmt.Sprintf(" (silent for %s)", age(st.Now, m.Seen))
		}
		masters = append(masters, text)
	}
	if len(masters) > 0 {
		lines = append(lines, "control planes: "+strings.Join(masters, ", "))
	}
	if c.Joining != "" {
		lines = append(lines, fmt.Sprintf("%s joins the control plane; others wait for their turn", c.Joining))
	}
	if !c.Complete.IsZero() {
		lines = append(lines, completeLine(st))
	}
	if c.Ready > 0 {
		lines = append(lines, nodesLine(st))
	}
	return lines
}

// completeLine says how long the rack took, and after a reinstallation how long that machine did.
func completeLine(st operator.Status) string {
	c := st.Cluster
	took := ""
	if !c.FirstPowerOn.IsZero() {
		took = fmt.Sprintf("%s after the first power-on", age(c.FirstComplete, c.FirstPowerOn))
	}
	if c.Complete.Equal(c.FirstComplete) {
		return strings.TrimSuffix(fmt.Sprintf("complete: all %d machines have become ready, %s", c.Machines, took), ", ")
	}
	text := fmt.Sprintf("complete again: all %d machines have become ready", c.Machines)
	for _, m := range st.Machines {
		if m.Name == c.Latest && m.Name != "" && !m.Record.Begun.IsZero() {
			text += fmt.Sprintf(", %s %s after its power-on", m.Name, age(m.Record.Since, m.Record.Begun))
		}
	}
	if took != "" {
		text += "; the first time " + took
	}
	return text
}

// nodesLine is what Kubernetes says of all nodes now, or why nobody knows.
func nodesLine(st operator.Status) string {
	n := st.Cluster.Nodes
	if !n.Fresh {
		last := "not asked since the start"
		if !n.Seen.IsZero() {
			last = fmt.Sprintf("last asked %s ago", age(st.Now, n.Seen))
		}
		return fmt.Sprintf("Kubernetes: unknown, %s: %s", last, n.Fault)
	}
	count := n.Count()
	var parts []string
	for _, condition := range cluster.Conditions() {
		if k := count[condition]; k > 0 || condition == cluster.NodeReady {
			parts = append(parts, fmt.Sprintf("%d %s", k, condition))
		}
	}
	text := fmt.Sprintf("Kubernetes: nodes: %s, as %s saw %s ago", strings.Join(parts, ", "), n.By, age(st.Now, n.Seen))
	if len(n.Unlisted) > 0 {
		text += "; not in the list: " + cut(strings.Join(n.Unlisted, ", "), 100)
	}
	if n.Partial {
		text += "; there are more than it could name"
	}
	return text
}

// nodeText is the column NODE: the condition of a machine's node now, "-" without one.
func nodeText(st operator.Status, m lifecycle.Status) string {
	n, ok := st.Cluster.Nodes.Of[m.Name]
	if !ok || m.Name == "" {
		return "-"
	}
	return string(n.Condition)
}

// nodeTrouble says what is not as it should be with the node of a machine; "" if nothing is, or if nobody knows: then a
// line above says why.
func nodeTrouble(st operator.Status, m lifecycle.Status) string {
	n := st.Cluster.Nodes.Of[m.Name]
	var parts []string
	switch n.Condition {
	case cluster.NodeNotReady:
		text := "node NotReady"
		if !n.Since.IsZero() {
			text += " for " + age(st.Now, n.Since)
		}
		if n.Reason != "" {
			text += " (" + n.Reason + ")"
		}
		parts = append(parts, text)
	case cluster.NodeMissing:
		parts = append(parts, fmt.Sprintf("Kubernetes has had no node of this name for %s", age(st.Now, n.Since)))
	}
	if n.Address != "" {
		parts = append(parts, fmt.Sprintf("its node has the address %s", n.Address))
	}
	if n.Cordoned {
		parts = append(parts, "cordoned")
	}
	return strings.Join(parts, "; ")
}

func clusterState(st operator.Status) string {
	c := st.Cluster
	switch {
	case !c.Initialised.IsZero():
		return fmt.Sprintf("initialised %s ago by %s, %d of %d machines ready", age(st.Now, c.Initialised), c.Holder, c.Ready, c.Machines)
	case c.Holder != "":
		return fmt.Sprintf("not initialised; %s has held the init lock for %s", c.Holder, age(st.Now, c.Locked))
	}
	return "not initialised; nobody holds the init lock"
}

// machinesTable is one line a machine; the discovered ones say how they are approved.
func machinesTable(w io.Writer, st operator.Status) {
	row(w, "NAME", "MAC", "ADDRESS", "ROLE", "STATE", "FOR", "NODE", "TRY", "BOOTS", "WHAT")
	for _, m := range st.Machines {
		try, since := "-", "-"
		if m.Record.Attempt > 0 {
			try, since = fmt.Sprintf("%d/%d", m.Record.Tries, m.Limit), age(st.Now, m.Record.Since)
		} else if !m.Sighting.First.IsZero() {
			since = age(st.Now, m.Sighting.First)
		}
		row(w, or(m.Name, "?"), cardsText(m), addrText(m),
			or(string(m.Role), "-"), or(string(m.State), "-"), since, nodeText(st, m), try, or(string(m.Action), "-"), whatText(st, m))
	}
}

// cardsText is the card that a machine uses, and how many others it has.
func cardsText(m lifecycle.Status) string {
	text := or(macText(m.MAC), "-")
	if more := len(m.MACs) - 1; more > 0 {
		text += fmt.Sprintf(" +%d", more)
	}
	return text
}

// whatText is what a machine is at, what it waits for, or why it boots what it boots: the most telling of them.
func whatText(st operator.Status, m lifecycle.Status) string {
	var parts []string
	if text := nodeTrouble(st, m); text != "" && m.State == lifecycle.Ready {
		parts = append(parts, text)
	}
	if m.Progress != nil {
		parts = append(parts, m.Progress.String())
	}
	if why := st.Cluster.Waiting[m.Name]; why != "" {
		parts = append(parts, why)
	}
	if m.State == lifecycle.Ready && !m.Record.Begun.IsZero() {
		parts = append(parts, fmt.Sprintf("Ready %s after its power-on", age(m.Record.Since, m.Record.Begun)))
	}
	if len(parts) == 0 || m.Action == lifecycle.ActionHold || m.State == lifecycle.Failed {
		parts = append(parts, m.Reason)
	}
	return cut(strings.Join(parts, "; "), 160)
}

// cut keeps a text to a column.
func cut(text string, most int) string {
	if runes := []rune(text); len(runes) > most {
		return string(runes[:most-1]) + "…"
	}
	return text
}
