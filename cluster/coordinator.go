package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"rackstrap/firstboot/api"
	"rackstrap/internal/plain"
	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

// Options are the dependencies of a Coordinator. A time of zero is the default.
type Options struct {
	Rack   *lifecycle.Rack
	Log    *slog.Logger
	Now    func() time.Time
	Images func() []api.Image // archives near by; nil: none

	// CheckEvery is how long a master rests between two looks at the same node (3 s).
	CheckEvery time.Duration
	// Silence is after how long without a call a master counts as gone (90 s): longer than a long poll.
	Silence time.Duration
}

const (
	defaultCheckEvery = 3 * time.Second
	defaultSilence    = 90 * time.Second
	// recheck is after how long a waiting agent's situation is looked at again without a reason: nothing depends on it
	// but how soon a change that nobody announced is seen.
	recheck = 10 * time.Second
	// settle is how long after a restart nothing is timed out that began before: agents have to find the appliance
	// again first.
	settle = 2 * time.Minute
	// tick is how often deadlines are looked at.
	tick = time.Second
	// lateness is what an agent that gives up in time may take to say so: its own word, with a reason and another try,
	// is better than a deadline here.
	lateness = 30 * time.Second
)

// Coordinator takes the machines into the cluster. All its methods are safe for concurrent use.
type Coordinator struct {
	o       Options
	started time.Time

	mu      sync.Mutex
	pollers map[string]*poller       // by machine: its agent's question that waits for an answer
	seen    map[string]time.Time     // when a machine last called
	skews   map[string]time.Duration // of clocks, by the last question
	reasons map[string]string        // what a machine waits for, for the status
	stalls  map[string]string        // what the operator was told that a machine waits for too long
	tokens  map[string]secret        // by node; see secret
	keys    map[string]secret        // certificate keys, by node
	handed  map[string]handed        // what a machine is at
	view    view                     // what Kubernetes said of all nodes last
	asked   map[string]string        // by machine: the fingerprint that the operator was asked to confirm
	boots   map[string]*boot         // by machine: its agent is asked to choose the network for the next boot
	chores  chores
}

// secret is something minted for one node that can still be handed out. It is never on the disk.
type secret struct {
	text    string
	attempt int // of the node
	until   time.Time
}

// New makes a coordinator.
func New(o Options) *Coordinator {
	o.CheckEvery = cmp.Or(o.CheckEvery, defaultCheckEvery)
	o.Silence = cmp.Or(o.Silence, defaultSilence)
	if o.Images == nil {
		o.Images = func() []api.Image { return nil }
	}
	return &Coordinator{
		o: o, started: o.Now(),
		pollers: map[string]*poller{}, seen: map[string]time.Time{}, skews: map[string]time.Duration{},
		reasons: map[string]string{}, stalls: map[string]string{}, tokens: map[string]secret{}, keys: map[string]secret{},
		handed: map[string]handed{}, boots: map[string]*boot{}, asked: map[string]string{}, chores: newChores(),
	}
}

// Run watches deadlines until ctx ends.
func (c *Coordinator) Run(ctx context.Context) error {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		c.Sweep(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// Sweep looks at every machine once: what is overdue, what masters have to do for it, whether the rack is complete.
// Everything that a kill interrupted is taken up again here.
func (c *Coordinator) Sweep(ctx context.Context) {
	cluster := c.o.Rack.Cluster()
	for _, m := range c.o.Rack.Members("") {
		c.expire(ctx, m)
		c.enlist(cluster, m)
		c.watch(m)
	}
	if !cluster.Initialised.IsZero() {
		c.enlistStray(cluster)
		c.enlistLook()
	}
	c.releaseTurn(ctx)
	c.completeRack(ctx)
}

// expire fails a machine that took too long, and tells what was awaited.
func (c *Coordinator) expire(ctx context.Context, m lifecycle.Member) {
	rec, deadline := m.Record, m.Record.Node.Deadline
	if deadline.IsZero() || rec.IsHeld() || c.o.Now().Before(deadline) {
		return
	}
	t := c.o.Rack.Config().Cluster.Timeouts
	var reason string
	timeout := map[lifecycle.State]time.Duration{
		lifecycle.Initialising: t.Init, lifecycle.Joining: t.Join, lifecycle.Joined: t.Ready}[rec.State]
	if deadline.Add(-timeout-lateness).Before(c.started) && c.o.Now().Before(c.started.Add(settle)) {
		return // it began before a restart
	}
	switch rec.State {
	case lifecycle.Initialising:
		reason = fmt.Sprintf("no result of kubeadm init within %v: it keeps the init lock, for it may still be at it; "+
			"`rackstrap reinstall %s` starts it anew, with --release-lock another control plane initialises", t.Init, m.Machine.Name)
	case lifecycle.Joining:
		reason = fmt.Sprintf("no result of kubeadm join within %v", t.Join)
	case lifecycle.Joined:
		reason = fmt.Sprintf("no master saw the node Ready with the address %v within %v", m.Machine.IP, t.Ready)
		if why := c.reason(rec.Name); why != "" {
			reason += ": " + why
		}
	default:
		return
	}
	if _, err := c.o.Rack.FailIn(ctx, rec.Name, rec.Attempt, rec.State, reason, true); err != nil {
		c.note(err, "expiry of %s", rec.Name)
		return
	}
	c.wake(rec.Name)
}

// watch tells the operator, once, of a machine that has no deadline and waits for longer than a join may take: for
// somebody else, who may never come, or because its own agent is silent.
func (c *Coordinator) watch(m lifecycle.Member) {
	rec, patience := m.Record, c.o.Rack.Config().Cluster.Timeouts.Join
	what := ""
	switch {
	case c.o.Now().Sub(later(rec.Since, c.started)) < patience:
	case rec.State == lifecycle.Installed:
		what = "its agent has not called home: does it boot its disk?"
		if why := c.reason(rec.Name); rec.Awaited() && why != "" {
			what = why + "; " + what
		}
	case rec.State == lifecycle.Firstboot || rec.State == lifecycle.Waiting:
		if what = c.reason(rec.Name); !c.heard(rec.Name) || what == "" {
			what = "its agent does not call any more"
		}
	}
	key := fmt.Sprintf("%d %s %s", rec.Attempt, rec.State, what)
	c.mu.Lock()
	told := c.stalls[rec.Name] == key
	if what == "" {
		delete(c.stalls, rec.Name)
	} else {
		c.stalls[rec.Name] = key
	}
	c.mu.Unlock()
	if what != "" && !told {
		c.say(rec, lifecycle.Warn, "stall", "%s for %s: %s", rec.State, c.o.Now().Sub(rec.Since).Round(time.Second), what)
	}
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// enlist makes the chores that follow from a machine's record alone: to look whether it is Ready, and to delete a token
// that it has no use for any more.
func (c *Coordinator) enlist(cluster lifecycle.Cluster, m lifecycle.Member) {
	if cluster.Initialised.IsZero() {
		return
	}
	rec := m.Record
	if rec.Awaited() {
		c.want(m, need{api.CheckNode, rec.Name})
	}
	switch rec.State {
	case lifecycle.Waiting, lifecycle.Initialising, lifecycle.Joining, lifecycle.Joined:
	default:
		if rec.Node.TokenID != "" {
			c.want(m, need{api.DeleteToken, rec.Name})
		}
	}
}

// releaseTurn ends the turn of a control plane that is done with joining, failed, or went away before it had begun.
func (c *Coordinator) releaseTurn(ctx context.Context) {
	name := c.o.Rack.Cluster().Joining
	if name == "" {
		return
	}
	if m, err := c.o.Rack.Member(name); err == nil {
		switch m.Record.State {
		case lifecycle.Joining, lifecycle.Joined:
			return
		case lifecycle.Firstboot, lifecycle.Waiting:
			if c.heard(name) { // else it was handed nothing yet, and somebody else may go first
				return
			}
		}
	}
	_, err := c.o.Rack.UpdateCluster(ctx, func(cl *lifecycle.Cluster) (*lifecycle.Event, error) {
		if cl.Joining == name {
			cl.Joining = ""
		}
		return nil, nil
	})
	c.note(err, "end of the turn of %s", name)
	for _, m := range c.o.Rack.Members(inventory.RoleControlPlane) {
		c.wake(m.Machine.Name)
	}
}

// completeRack says, once each time, that every machine of the list is ready. The time since the first power-on is that of
// the first time; what is reinstalled later has its own.
func (c *Coordinator) completeRack(ctx context.Context) {
	var first, last time.Time
	var latest lifecycle.Record
	ready, all := 0, true
	c.o.Rack.EachMember(func(_ *inventory.Machine, rec lifecycle.Record) bool {
		if rec.State != lifecycle.Ready {
			all = false
			return false
		}
		ready++
		if !rec.Begun.IsZero() && (first.IsZero() || rec.Begun.Before(first)) {
			first = rec.Begun
		}
		if rec.Since.After(last) {
			last, latest = rec.Since, rec
		}
		return true
	})
	if !all || ready == 0 || ready < len(c.o.Rack.Config().Machines) { // fewer: a slot is still free
		return
	}
	_, err := c.o.Rack.UpdateCluster(ctx, func(cl *lifecycle.Cluster) (*lifecycle.Event, error) {
		if !cl.Complete.Before(last) {
			return nil, nil
		}
		text := fmt.Sprintf("the rack is complete: %d machines are Ready", ready)
		if again := !cl.Complete.IsZero(); again {
			text = fmt.Sprintf("the rack is complete again: %d machines are Ready", ready)
			if !latest.Begun.IsZero() {
				text += fmt.Sprintf(", %s %s after its power-on", latest.Name, last.Sub(latest.Begun).Round(time.Second))
			}
		} else {
			cl.FirstComplete, cl.FirstPowerOn = last, first
			if !first.IsZero() {
				text += fmt.Sprintf(", %s after the first power-on", last.Sub(first).Round(time.Second))
			}
		}
		cl.Complete = last
		return &lifecycle.Event{Source: "cluster", Kind: "complete", Text: text}, nil
	})
	c.note(err, "completion of the rack")
}

// note logs what went wrong where nobody waits for an answer. What somebody else did in between is no fault.
func (c *Coordinator) note(err error, format string, args ...any) {
	var transition *lifecycle.TransitionError
	if err == nil || errors.As(err, &transition) || errors.Is(err, lifecycle.ErrSuperseded) {
		return
	}
	c.o.Log.Error("cluster: "+fmt.Sprintf(format, args...), "err", err)
}

// say puts a line into a machine's timeline.
func (c *Coordinator) say(rec lifecycle.Record, level lifecycle.Level, kind, format string, args ...any) {
	c.o.Rack.Observe(lifecycle.Event{MAC: rec.MAC, Machine: rec.Name, Attempt: rec.Attempt, Source: "cluster", Kind: kind,
		Level: level, Text: fmt.Sprintf(format, args...)})
}

// Heard notes that a machine called.
func (c *Coordinator) Heard(name string) {
	c.mu.Lock()
	c.seen[name] = c.o.Now()
	c.mu.Unlock()
}

// heard tells whether a machine called lately, or cannot be expected to have done so since the appliance's start.
func (c *Coordinator) heard(name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.heardLocked(name)
}

func (c *Coordinator) heardLocked(name string) bool {
	last, ok := c.seen[name]
	if !ok {
		last = c.started
	}
	return c.o.Now().Sub(last) < c.o.Silence
}

// mastersExcept lists the machines that may serve others, but for one: in the order of the list.
func (c *Coordinator) mastersExcept(name string) (list []lifecycle.Member) {
	for _, m := range c.o.Rack.Members(inventory.RoleControlPlane) {
		if m.Machine.Name != name && serves(m) {
			list = append(list, m)
		}
	}
	return list
}

// serves tells whether a machine is a master of the cluster whose agent may be asked to do something: not one that is held.
func serves(m lifecycle.Member) bool {
	return m.Machine.Role == inventory.RoleControlPlane && !m.Record.IsHeld() && (m.Record.State == lifecycle.Joined || m.Record.State == lifecycle.Ready)
}

// silentMasters is why no master can do anything for a machine now; "" if one can.
func (c *Coordinator) silentMasters(name string) string {
	var silent []string
	now := c.o.Now()
	for _, m := range c.o.Rack.Members(inventory.RoleControlPlane) {
		if !serves(m) {
			continue
		}
		if c.heard(m.Machine.Name) {
			return ""
		}
		c.mu.Lock()
		last := c.seen[m.Machine.Name]
		c.mu.Unlock()
		if last.IsZero() {
			last = c.started
		}
		silent = append(silent, fmt.Sprintf("%s for %s", m.Machine.Name, now.Sub(last).Round(time.Second)))
	}
	if len(silent) == 0 {
		return "no control plane of the cluster is left that could"
	}
	return "no control plane has called: " + strings.Join(silent, ", ")
}

// endpoint is the name of the API's endpoint and where it is found, for a machine's hosts file: masters that answer
// first, then those of which less is known; the machine itself last, or first if it is the one that initialises.
func (c *Coordinator) endpoint(self string, first bool) (name string, addresses []string) {
	cfg := c.o.Rack.Config()
	host, _ := splitEndpoint(cfg.Cluster.ControlPlaneEndpoint)
	if isAddress(host) {
		return "", nil
	}
	classes := [4][]string{}
	for _, m := range c.o.Rack.Members(inventory.RoleControlPlane) {
		class := 2
		switch {
		case m.Machine.Name == self && first:
			class = 0
		case m.Machine.Name == self:
			class = 3
		case serves(m) && c.heard(m.Machine.Name):
			class = 1
		}
		classes[class] = append(classes[class], m.Machine.IP.String())
	}
	for _, class := range classes {
		addresses = append(addresses, class...)
	}
	return host, addresses
}

func (c *Coordinator) reason(name string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reasons[name]
}

// maxReason bounds what a machine waits for, in bytes.
const maxReason = 1000

func (c *Coordinator) setReason(name, reason string) {
	c.mu.Lock()
	c.reasons[name] = plain.Line(reason, maxReason)
	c.mu.Unlock()
}
