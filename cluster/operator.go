package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"rackstrap/firstboot/api"
	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

// RefusedError is an operator's wish that would do harm, or cannot be met now: the text says what would help.
type RefusedError struct{ Reason string }

func (e *RefusedError) Error() string { return e.Reason }

func refuse(format string, args ...any) error { return &RefusedError{fmt.Sprintf(format, args...)} }

// takeWithin is how long an operator's chore waits for a master to take it: one that waits for work takes it at once,
// one that is at something else ends that first.
const takeWithin = 75 * time.Second

// ask has a master do something for the operator, and waits for it.
func (c *Coordinator) ask(ctx context.Context, n need, attempt int, say func(string), work func(*api.Work)) (answer, error) {
	if len(c.mastersExcept(n.node)) == 0 {
		return answer{}, refuse("there is no control plane in the cluster that could do it")
	}
	answers, taken := make(chan answer, 1), make(chan string, 1)
	ch := &chore{need: n, attempt: attempt, work: work, answer: answers, taken: taken}
	c.mu.Lock()
	if old := c.chores.by[n]; old != nil && old.answer == nil {
		c.chores.remove(old)
	}
	added := c.chores.add(ch)
	c.mu.Unlock()
	if !added {
		return answer{}, refuse("somebody else has asked for the same, and it is not done yet")
	}
	defer c.finish(ch)
	c.wakeMasters()

	patience := time.NewTimer(takeWithin)
	defer patience.Stop()
	who := ""
	for {
		select {
		case a := <-answers:
			if !a.result.OK {
				return a, fmt.Errorf("%s: %s", a.master, failureText(a.result))
			}
			return a, nil
		case who = <-taken:
			say(fmt.Sprintf("%s is at it", who))
			patience.Reset(time.Duration(n.seconds())*time.Second + 10*time.Second)
		case <-patience.C:
			if who == "" {
				return answer{}, refuse("%s", c.silentMastersOr(n.node, "the control planes are busy, try again"))
			}
			return answer{}, fmt.Errorf("%s took it and did not answer within %d s", who, n.seconds())
		case <-ctx.Done():
			return answer{}, ctx.Err()
		}
	}
}

func (c *Coordinator) silentMastersOr(name, otherwise string) string {
	if why := c.silentMasters(name); why != "" {
		return why
	}
	return otherwise
}

// ReinstallOptions are what an operator may say with a reinstallation.
type ReinstallOptions struct {
	Force       bool `json:"force"`        // do not take the node out of the cluster first
	ReleaseLock bool `json:"release_lock"` // it holds the init lock, or is the last control plane: forget the cluster
}

// Reinstall arms a machine anew. One that may be a node of the cluster is drained and deleted from it first, with its
// etcd member, by another control plane; what happens is said. Errors: *RefusedError, and those of
// lifecycle.Rack.Reinstall.
func (c *Coordinator) Reinstall(ctx context.Context, name string, o ReinstallOptions, say func(string)) (lifecycle.Record, error) {
	m, err := c.o.Rack.Member(name)
	if err != nil {
		return lifecycle.Record{}, err
	}
	if err := m.Record.RefuseHeld(); err != nil { // before its node is drained
		return m.Record, err
	}
	cl := c.o.Rack.Cluster()
	isMaster := m.Machine.Role == inventory.RoleControlPlane
	inCluster := !cl.Initialised.IsZero() && m.Record.Node.Member != 0
	last := inCluster && isMaster && len(c.mastersExcept(name)) == 0
	switch {
	case last && !o.ReleaseLock:
		return m.Record, refuse("%s is the only control plane of the cluster: without it the cluster is lost. With --release-lock "+
			"it is forgotten, and every machine that had joined has to be reinstalled", name)
	case o.ReleaseLock && cl.Holder != name && !last:
		return m.Record, refuse("%s does not hold the init lock, and is not the only control plane", name)
	case o.ReleaseLock && !cl.Initialised.IsZero() && !last:
		return m.Record, refuse("the cluster is initialised, and others of its control planes live: reinstall %s without --release-lock", name)
	case inCluster && !last && !o.Force:
		say(fmt.Sprintf("draining %s and deleting it from the cluster", name))
		_, err := c.ask(ctx, need{api.DeleteNode, name}, m.Record.Attempt, say, func(w *api.Work) {
			w.Node, w.IP, w.ControlPlane = name, m.Machine.IP.String(), isMaster
		})
		if err != nil {
			return m.Record, fmt.Errorf("%s is not taken out of the cluster, and not reinstalled: %w (--force does not take it out)", name, err)
		}
		if _, err := c.o.Rack.Advance(ctx, name, m.Record.Attempt, "", "deleted from the cluster", func(rec *lifecycle.Record) error {
			rec.Node.Member = 0
			return nil
		}); err != nil {
			return m.Record, err
		}
		c.nodeGone(name)
		say(fmt.Sprintf("%s is out of the cluster", name))
	case inCluster && !last:
		say(fmt.Sprintf("%s is not taken out of the cluster now; a control plane does so before it joins again", name))
	}
	if o.ReleaseLock {
		if err := c.releaseLock(ctx, m, say); err != nil {
			return m.Record, err
		}
	}
	next := c.prepareBoot(ctx, m)
	rec, err := c.o.Rack.Reinstall(ctx, name)
	if err != nil {
		return rec, err
	}
	say(next)
	c.forget(name)
	c.releaseTurn(ctx)
	c.wakeAll()
	return rec, nil
}

// HoldOptions are what an operator may say with a hold.
type HoldOptions struct {
	By          string `json:"by"`           // who
	Reason      string `json:"reason"`       // why
	ReleaseLock bool   `json:"release_lock"` // it holds the init lock, and is off
	Revoke      bool   `json:"revoke"`       // somebody else has its secrets: end them for good
}

// Hold has a machine boot its disk from now on, and changes nothing else. With ReleaseLock the init lock that it holds is
// given up: whoever says so answers for it that the machine does not initialise the cluster after all.
// A holder that is in the list no more can be released too.
func (c *Coordinator) Hold(ctx context.Context, name string, o HoldOptions, say func(string)) (lifecycle.Record, error) {
	release := o.ReleaseLock
	cl := c.o.Rack.Cluster()
	m, err := c.o.Rack.Member(name)
	var unlisted *lifecycle.UnknownMachineError
	if errors.As(err, &unlisted) && release && cl.Holder == name && cl.Initialised.IsZero() {
		m.Machine.Name = name
		err = c.releaseLock(ctx, m, say)
		c.wakeAll()
		return lifecycle.Record{Name: name, State: lifecycle.Failed}, err
	}
	if err != nil {
		return lifecycle.Record{}, err
	}
	if release && (cl.Holder != name || !cl.Initialised.IsZero()) {
		return m.Record, refuse("%s does not hold the init lock of a cluster that is not initialised yet", name)
	}
	rec, err := c.o.Rack.Hold(ctx, name, shortLine(o.By), shortLine(o.Reason))
	if err != nil {
		return rec, err
	}
	if o.Revoke {
		if rec, err = c.revoke(ctx, rec, say); err != nil {
			return rec, err
		}
	}
	if release {
		// Before the lock: what it was handed must be refused by then. Should it come back, what its init left must go
		// before it joins the other one's cluster.
		rec, err = c.o.Rack.Advance(ctx, name, rec.Attempt, "", "", func(rec *lifecycle.Record) error {
			rec.Node.Reset = true
			switch {
			case rec.State == lifecycle.Initialising:
				return rec.MarkFailed("the init lock was taken from it by the operator while it was initialising", false)
			case rec.State == lifecycle.Failed && rec.Failure != nil && rec.Failure.Phase == lifecycle.Initialising:
				return rec.MarkFailed(rec.Failure.Reason, false)
			}
			return nil
		})
		if err != nil {
			return rec, err
		}
		if err := c.releaseLock(ctx, m, say); err != nil {
			return rec, err
		}
	}
	c.wakeAll() // another one may be the first control plane now
	return rec, nil
}

// Unhold ends a hold.
func (c *Coordinator) Unhold(ctx context.Context, name string) (lifecycle.Record, error) {
	rec, err := c.o.Rack.Unhold(ctx, name)
	if err == nil {
		c.wakeAll()
	}
	return rec, err
}

// Adopt takes a machine whose disk holds a good system as installed, and has a master look whether the cluster has it as
// Ready.
func (c *Coordinator) Adopt(ctx context.Context, name string) (lifecycle.Record, error) {
	rec, err := c.o.Rack.Adopt(ctx, name)
	if err != nil {
		return rec, err
	}
	c.setReason(name, "")
	if m, err := c.o.Rack.Member(name); err == nil {
		c.enlist(c.o.Rack.Cluster(), m)
	}
	return rec, nil
}

// shortLine is what a person said, in a line that fits beside other text.
func shortLine(text string) string {
	const most = 100
	if runes := []rune(oneLine(text)); len(runes) > most {
		return string(runes[:most-1]) + "…"
	}
	return oneLine(text)
}

// releaseLock forgets the cluster, as an operator has decided: the machines that had joined it are failed.
func (c *Coordinator) releaseLock(ctx context.Context, m lifecycle.Member, say func(string)) error {
	name := m.Machine.Name
	for _, other := range c.o.Rack.Members("") {
		rec := other.Record
		if rec.Name == name {
			continue
		}
		switch rec.State {
		case lifecycle.Joining, lifecycle.Joined, lifecycle.Ready:
			reason := fmt.Sprintf("the cluster that it joined was given up with %s: `rackstrap reinstall %s`", name, rec.Name)
			if _, err := c.o.Rack.FailIn(ctx, rec.Name, rec.Attempt, rec.State, reason, false); err != nil {
				return err
			}
			say(rec.Name + " belonged to the cluster, and has to be reinstalled")
		}
	}
	c.mu.Lock()
	c.view = view{} // of the cluster that is given up
	c.mu.Unlock()
	_, err := c.o.Rack.UpdateCluster(ctx, func(cl *lifecycle.Cluster) (*lifecycle.Event, error) {
		*cl = lifecycle.Cluster{Revision: cl.Revision}
		return &lifecycle.Event{MAC: m.Record.MAC, Machine: name, Attempt: m.Record.Attempt, Source: "operator", Kind: "lock", Level: lifecycle.Warn,
			Text: "the operator released the init lock that " + name + " held"}, nil
	})
	if err == nil {
		say("the init lock is free")
	}
	return err
}

// maxLines is how many lines of a master's report the operator is shown.
const maxLines = 200

// Verify has a master run the availability check: a web server, reached through the address of every node that is
// ready.
func (c *Coordinator) Verify(ctx context.Context, say func(string)) error {
	var addresses []string
	for _, m := range c.o.Rack.Members("") {
		if m.Record.State == lifecycle.Ready {
			addresses = append(addresses, m.Machine.IP.String())
		}
	}
	if len(addresses) == 0 {
		return refuse("no machine is ready yet")
	}
	image := c.o.Rack.Config().Cluster.VerifyImage
	say(fmt.Sprintf("running %s, to be reached through %s", image, strings.Join(addresses, ", ")))
	a, err := c.ask(ctx, need{action: api.VerifyCluster}, 0, say, func(w *api.Work) { w.Image, w.Addresses = image, addresses })
	for i, line := range strings.Split(strings.TrimSpace(a.result.Output), "\n") {
		if i == maxLines {
			say("…")
			break
		}
		if line = oneLine(line); line != "" {
			say(line)
		}
	}
	return err
}
