package cluster

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"time"

	"rackstrap/firstboot/api"
	"rackstrap/lifecycle"
)

const (
	// lookEvery is how often a control plane is asked what Kubernetes says of all nodes: one list call each time.
	lookEvery = 30 * time.Second
	// freshFor is for how long the answer is shown as what is so: longer than it takes until the next control plane has
	// answered in place of one that died with the question.
	freshFor = 4 * lookEvery
	// maxUnlisted bounds the names that are kept of nodes outside of the list.
	maxUnlisted = 50
)

// Condition is what is known of a machine's node now.
type Condition string

// The conditions.
const (
	NodeReady    Condition = "Ready"
	NodeNotReady Condition = "NotReady" // as kubectl shows it: kubelet says so, or says nothing any more
	NodeMissing  Condition = "missing"  // the machine was a node, and Kubernetes knows none of this name
	NodeUnknown  Condition = "unknown"  // nobody could look
)

// Conditions are all of them.
func Conditions() []Condition { return []Condition{NodeReady, NodeNotReady, NodeMissing, NodeUnknown} }

// Node is what Kubernetes says of a machine's node.
type Node struct {
	Condition Condition `json:"condition"`
	Since     time.Time `json:"since,omitzero"`    // of the condition; unknown: when Kubernetes was last asked, zero: not since the start
	Reason    string    `json:"reason,omitempty"`  // why it is not Ready: one word of Kubernetes
	Address   string    `json:"address,omitempty"` // its InternalIP, if it is not the one of the list
	Cordoned  bool      `json:"cordoned,omitempty"`
}

// Nodes is what Kubernetes says now, as one control plane saw it. It is kept in memory alone.
type Nodes struct {
	Seen     time.Time       `json:"seen,omitzero"` // when all nodes were last listed
	By       string          `json:"by,omitempty"`
	Fresh    bool            `json:"fresh"`           // what was seen is so now; else every node is unknown
	Fault    string          `json:"fault,omitempty"` // why it is not fresh
	Partial  bool            `json:"partial,omitempty"`
	Of       map[string]Node `json:"of"`                 // by machine of the list: those that have or had a node
	Unlisted []string        `json:"unlisted,omitempty"` // nodes that are no machine of the list
}

// Count is how many machines have each condition.
func (n Nodes) Count() map[Condition]int {
	count := map[Condition]int{}
	for _, node := range n.Of {
		count[node.Condition]++
	}
	return count
}

// view is the last look at all nodes.
type view struct {
	at       time.Time
	by       string
	partial  bool
	nodes    map[string]seenNode // by name, of machines of the list
	unlisted []string
	fault    string    // why the last try saw nothing
	asked    time.Time // when the chore was made last
}

type seenNode struct {
	api.Node
	missing time.Time // since when it is not there any more; zero: it is
}

// enlistLook makes the chore of looking at all nodes, when it is due.
func (c *Coordinator) enlistLook() {
	if len(c.mastersExcept("")) == 0 {
		return
	}
	now := c.o.Now()
	c.mu.Lock()
	due := !now.Before(c.view.asked.Add(lookEvery))
	added := due && c.chores.add(&chore{need: need{action: api.ListNodes}, work: func(*api.Work) {}})
	if added {
		c.view.asked = now
	}
	c.mu.Unlock()
	if added {
		c.wakeMasters()
	}
}

// looked takes in what a master saw of all nodes.
func (c *Coordinator) looked(master lifecycle.Member, ch *chore, r api.Result) error {
	fault := ""
	if !r.OK {
		fault = failureText(r)
	} else if err := checkNodes(r.Nodes); err != nil {
		fault = err.Error()
	}
	if fault != "" {
		c.mu.Lock()
		c.view.fault = fmt.Sprintf("%s: %s", master.Machine.Name, fault)
		c.mu.Unlock()
		c.putOff(ch, true)
		return nil
	}
	c.finish(ch)
	cfg, members, now := c.o.Rack.Config(), c.o.Rack.Members(""), c.o.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.view.nodes
	c.view = view{at: now, by: master.Machine.Name, partial: r.Partial, nodes: map[string]seenNode{}, asked: now}
	for _, n := range r.Nodes {
		if _, ok := cfg.ByName(n.Name); ok {
			n.Since = earliest(n.Since, now)
			c.view.nodes[n.Name] = seenNode{Node: n}
		} else if len(c.view.unlisted) < maxUnlisted {
			c.view.unlisted = append(c.view.unlisted, n.Name)
		}
	}
	slices.Sort(c.view.unlisted)
	for _, m := range members {
		name := m.Machine.Name
		if _, there := c.view.nodes[name]; there || m.Record.State != lifecycle.Ready || r.Partial {
			continue
		}
		gone := before[name]
		if gone.missing.IsZero() {
			gone = seenNode{missing: now}
		}
		c.view.nodes[name] = gone
	}
	return nil
}

// earliest is a time of the cluster's clocks, which may be ahead of the appliance's.
func earliest(t, now time.Time) time.Time {
	if t.After(now) {
		return now
	}
	return t
}

// nodeGone notes in the last look that a node was deleted since.
func (c *Coordinator) nodeGone(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.view.nodes, name)
}

// seenReady notes in the last look what a master saw of one node since: the node is Ready.
func (c *Coordinator) seenReady(name, address string) {
	now := c.o.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.view.nodes == nil {
		return // nobody has looked yet; one node is not all
	}
	if n := c.view.nodes[name]; n.Ready != "True" || !n.missing.IsZero() {
		c.view.nodes[name] = seenNode{Node: api.Node{Name: name, Ready: "True", Since: now, Address: address}}
	}
}

var (
	nodeName   = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$`)
	nodeReason = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_,:]{0,63}$`)
)

// checkNodes refuses what is no list of nodes. Its size is bounded by that of the body.
func checkNodes(nodes []api.Node) error {
	if len(nodes) == 0 {
		return fmt.Errorf("it lists no node: a cluster has one at least")
	}
	names := map[string]bool{}
	for i, n := range nodes {
		switch {
		case !nodeName.MatchString(n.Name):
			return fmt.Errorf("node %d of its list: %q is no name of a node", i+1, oneLine(n.Name[:min(len(n.Name), 100)]))
		case names[n.Name]:
			return fmt.Errorf("its list has %s twice", n.Name)
		case n.Ready != "True" && n.Ready != "False" && n.Ready != "Unknown" && n.Ready != "":
			return fmt.Errorf("%s of its list: %q is no status of a condition", n.Name, oneLine(n.Ready[:min(len(n.Ready), 100)]))
		case n.Reason != "" && !nodeReason.MatchString(n.Reason):
			return fmt.Errorf("%s of its list: the reason is not one word", n.Name)
		case n.Address != "" && !isAddress(n.Address):
			return fmt.Errorf("%s of its list: %q is no address", n.Name, oneLine(n.Address[:min(len(n.Address), 100)]))
		}
		names[n.Name] = true
	}
	return nil
}

// nodesNow is what Kubernetes says of the machines' nodes. What was seen too long ago is shown as unknown, since then.
func (c *Coordinator) nodesNow(members []lifecycle.Member) Nodes {
	silent := c.silentMasters("")
	c.mu.Lock()
	defer c.mu.Unlock()
	v, now := c.view, c.o.Now()
	out := Nodes{Seen: v.at, By: v.by, Partial: v.partial, Of: map[string]Node{}, Unlisted: v.unlisted}
	out.Fresh = !v.at.IsZero() && now.Sub(v.at) < freshFor
	if !out.Fresh {
		switch {
		case silent != "":
			out.Fault = silent
		case v.fault != "":
			out.Fault = v.fault
		default:
			out.Fault = "no control plane has answered yet"
		}
		out.Unlisted = nil
	}
	for _, m := range members {
		n, known := v.nodes[m.Machine.Name]
		switch {
		case m.Record.State != lifecycle.Ready && (!known || !n.missing.IsZero() || !out.Fresh):
		case !out.Fresh || !known:
			out.Of[m.Machine.Name] = Node{Condition: NodeUnknown, Since: v.at}
		default:
			out.Of[m.Machine.Name] = n.shown(m.Machine.IP)
		}
	}
	return out
}

// shown is a node as the operator sees it.
func (n seenNode) shown(listed netip.Addr) Node {
	switch {
	case !n.missing.IsZero():
		return Node{Condition: NodeMissing, Since: n.missing}
	case n.Ready == "True":
		out := Node{Condition: NodeReady, Since: n.Since, Cordoned: n.Cordoned}
		if n.Address != listed.String() {
			out.Address = n.Address
		}
		return out
	}
	return Node{Condition: NodeNotReady, Since: n.Since, Reason: n.Reason, Cordoned: n.Cordoned}
}
