package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"rackstrap/firstboot/api"
	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

// ErrUnknownWork is a result that nobody waits for any more: 404.
var ErrUnknownWork = errors.New("nobody waits for this result")

// ErrNotHolder is the result of an init by a machine that does not hold the init lock: 409.
var ErrNotHolder = errors.New("this machine does not hold the init lock")

// Result takes how a work ended. It returns once what follows is on disk; a result that is sent again, because its
// answer was lost, changes nothing.
func (c *Coordinator) Result(ctx context.Context, name string, attempt int, id string, r api.Result) error {
	m, err := c.o.Rack.Member(name)
	if err != nil {
		return err
	}
	if m.Record.Attempt != attempt {
		return lifecycle.ErrSuperseded
	}
	if err := m.Record.RefuseHeld(); err != nil { // the agent keeps it: the hold may end
		return err
	}
	c.setHanded(name, handed{})
	switch {
	case id == "":
		return ErrUnknownWork
	case actionOf(id) == api.BootNetwork:
		return c.bootResult(name, id, r)
	case id == m.Record.Node.Done, actionOf(id) == api.Done:
		return nil
	case id == m.Record.Node.Work:
		return c.ownResult(ctx, m, id, r)
	}
	return c.choreResult(ctx, m, id, r)
}

// ownResult is of what a machine did for itself.
func (c *Coordinator) ownResult(ctx context.Context, m lifecycle.Member, id string, r api.Result) error {
	action := actionOf(id)
	if !r.OK {
		return c.ownFailure(ctx, m, id, r)
	}
	rack, name, attempt := c.o.Rack, m.Machine.Name, m.Record.Attempt
	switch action {
	case api.Reset:
		_, err := rack.Advance(ctx, name, attempt, "", "", func(rec *lifecycle.Record) error {
			rec.Node.Done, rec.Node.Reset = id, false
			return nil
		})
		c.wake(name)
		return err
	case api.Init:
		if err := c.initialised(ctx, m, r); err != nil {
			var bad *badInit
			if errors.As(err, &bad) {
				return c.ownFailure(ctx, m, id, api.Result{Error: bad.Error(), Retryable: true})
			}
			return err
		}
	}
	rec, err := rack.Advance(ctx, name, attempt, lifecycle.ReportJoined, string(action)+" is done", func(rec *lifecycle.Record) error {
		rec.Node.Done, rec.Node.Tries, rec.Node.TokenRefused = id, 0, 0
		rec.Node.Deadline = c.o.Now().Add(rack.Config().Cluster.Timeouts.Ready)
		return nil
	})
	if err != nil {
		return err
	}
	c.forget(name)
	if action == api.Init {
		c.wakeAll()
	}
	m.Record = rec
	c.enlist(rack.Cluster(), m)
	return nil
}

// forget drops what was minted for a machine: it has been used.
func (c *Coordinator) forget(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.tokens, name)
	delete(c.keys, name)
	delete(c.reasons, name)
}

// badInit is an init that says it went well, with a CA that is none.
type badInit struct{ err error }

func (e *badInit) Error() string { return "kubeadm init reported a CA that is none: " + e.err.Error() }

// initialised notes what the cluster is pinned by from now on.
func (c *Coordinator) initialised(ctx context.Context, m lifecycle.Member, r api.Result) error {
	ca, err := parseCA(r.CACert)
	if err != nil {
		return &badInit{err}
	}
	hash := hashOf(ca)
	_, err = c.o.Rack.UpdateCluster(ctx, func(cl *lifecycle.Cluster) (*lifecycle.Event, error) {
		switch {
		case cl.Holder != m.Machine.Name:
			return nil, ErrNotHolder
		case !cl.Initialised.IsZero() && cl.CAHash != hash:
			return nil, &badInit{errors.New("it is another one than that of the cluster, which is initialised already")}
		case !cl.Initialised.IsZero():
			return nil, nil
		}
		cl.Initialised, cl.CA, cl.CAHash = c.o.Now(), certificateText(ca), hash
		cl.Endpoint = c.o.Rack.Config().Cluster.ControlPlaneEndpoint
		return &lifecycle.Event{MAC: m.Record.MAC, Machine: m.Machine.Name, Attempt: m.Record.Attempt, Source: "cluster", Kind: "initialised",
			Text: fmt.Sprintf("the cluster is initialised, its CA is %s", hash)}, nil
	})
	return err
}

// ownFailure decides whether an init or join that failed is tried again.
func (c *Coordinator) ownFailure(ctx context.Context, m lifecycle.Member, id string, r api.Result) error {
	action, name := actionOf(id), m.Machine.Name
	reason := failureText(r)
	refused := r.AuthError && action != api.Init && action != api.Reset
	c.mu.Lock()
	if refused {
		delete(c.tokens, name)
	}
	delete(c.keys, name) // the next try has the certificates uploaded anew
	c.mu.Unlock()
	timeouts := c.o.Rack.Config().Cluster.Timeouts
	var said string
	trigger, why := lifecycle.Trigger(""), ""
	if action == api.Join || action == api.JoinControlPlane {
		trigger, why = lifecycle.MustWait, "it failed to join"
	}
	rec, err := c.o.Rack.Advance(ctx, name, m.Record.Attempt, trigger, why, func(rec *lifecycle.Record) error {
		n := &rec.Node
		n.Done = id
		n.Reset = n.Reset || action != api.Init // what a failed init left the agent judges itself: it may be a cluster
		count, most := &n.Tries, maxTries
		if refused {
			count, most = &n.TokenRefused, maxRefusals
		}
		*count++
		said = fmt.Sprintf("%s failed, try %d of %d: %s", action, *count, most, reason)
		if *count >= most || !r.Retryable && !refused {
			rec.State = m.Record.State // it failed in this phase, not in the next
			return rec.MarkFailed(said, false)
		}
		if action == api.Init {
			n.Deadline = c.o.Now().Add(timeouts.Init + lateness)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if rec.State != lifecycle.Failed {
		c.say(rec, lifecycle.Warn, "retry", "%s", said)
	}
	c.wake(name)
	return nil
}

// failureText is a failed result in one line.
func failureText(r api.Result) string {
	text := oneLine(r.Error)
	if text == "" {
		text = oneLine(r.Output)
	}
	if text == "" {
		text = "the agent gave no reason"
	}
	if len(r.Missing) > 0 {
		text += "; images that are missing: " + oneLine(strings.Join(r.Missing, ", "))
	}
	return text
}

// choreResult is of what a master did for somebody else.
func (c *Coordinator) choreResult(ctx context.Context, m lifecycle.Member, id string, r api.Result) error {
	master := m.Machine.Name
	c.mu.Lock()
	ch := c.chores.find(id)
	if ch == nil || ch.master != master {
		c.mu.Unlock()
		if m.Machine.Role == inventory.RoleControlPlane { // nobody else was ever asked for a token
			if err := c.tooLate(ctx, r); err != nil {
				return err
			}
		}
		return ErrUnknownWork
	}
	if ch.answer != nil {
		c.chores.remove(ch)
		c.mu.Unlock()
		ch.answer <- answer{master, r} // buffered: nobody else sends
		return nil
	}
	c.mu.Unlock()
	if ch.action == api.ListNodes {
		return c.looked(m, ch, r)
	}
	if strings.HasPrefix(ch.node, strayPrefix) {
		return c.strayGone(ctx, ch, r)
	}

	node, err := c.o.Rack.Member(ch.node)
	if err != nil || node.Record.Attempt != ch.attempt {
		c.finish(ch) // the machine went away, or is another one now
		return nil
	}
	if !r.OK {
		c.say(node.Record, lifecycle.Warn, "retry", "%s: %s failed: %s", master, ch.action, failureText(r))
		c.setReason(ch.node, fmt.Sprintf("%s could not %s: %s", master, verb(ch.action), failureText(r)))
		c.putOff(ch, true)
		return nil
	}
	return c.choreDone(ctx, master, node, ch, r)
}

// tooLate takes in what nobody waits for any more: a token that was made then has to go.
func (c *Coordinator) tooLate(ctx context.Context, r api.Result) error {
	if !r.OK || !tokenShape.MatchString(r.Token) {
		return nil
	}
	id, _, _ := strings.Cut(r.Token, ".")
	for _, m := range c.o.Rack.Members("") {
		if m.Record.Node.TokenID == id {
			return nil // it goes with the machine's own
		}
	}
	_, err := c.o.Rack.UpdateCluster(ctx, func(cl *lifecycle.Cluster) (*lifecycle.Event, error) {
		if stray := strings.Fields(cl.Stray); !slices.Contains(stray, id) && len(stray) < maxStray {
			cl.Stray = strings.Join(append(stray, id), " ")
		}
		return nil, nil
	})
	c.enlistStray(c.o.Rack.Cluster())
	return err
}

// maxStray bounds how many tokens that came too late are remembered; beyond, their end is that of their time.
const maxStray = 256

// enlistStray makes the chores of deleting tokens that came too late.
func (c *Coordinator) enlistStray(cluster lifecycle.Cluster) {
	for _, id := range strings.Fields(cluster.Stray) {
		ch := &chore{need: need{api.DeleteToken, strayPrefix + id}, work: func(w *api.Work) { w.TokenID = id }}
		c.mu.Lock()
		added := c.chores.add(ch)
		c.mu.Unlock()
		if added {
			c.wakeMasters()
		}
	}
}

// strayPrefix tells the chores of tokens without a machine from those of machines.
const strayPrefix = "token "

// strayGone forgets a token that came too late.
func (c *Coordinator) strayGone(ctx context.Context, ch *chore, r api.Result) error {
	if !r.OK {
		c.putOff(ch, true)
		return nil
	}
	id := strings.TrimPrefix(ch.node, strayPrefix)
	_, err := c.o.Rack.UpdateCluster(ctx, func(cl *lifecycle.Cluster) (*lifecycle.Event, error) {
		stray := slices.DeleteFunc(strings.Fields(cl.Stray), func(other string) bool { return other == id })
		cl.Stray = strings.Join(stray, " ")
		return nil, nil
	})
	if err != nil {
		return err
	}
	c.finish(ch)
	return nil
}

// verb says for people what a chore is.
func verb(action api.Action) string {
	switch action {
	case api.MintToken:
		return "mint a token"
	case api.DeleteToken:
		return "delete its token"
	case api.UploadCerts:
		return "upload the certificates"
	case api.CheckNode:
		return "look at the node"
	case api.ListNodes:
		return "list the nodes"
	case api.DeleteNode:
		return "delete its former self"
	}
	return string(action)
}

// finish ends a chore.
func (c *Coordinator) finish(ch *chore) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.chores.remove(ch)
}

// shun is how much sooner than the master that has failed at a chore another one may try it.
const shun = 10 * time.Second

// putOff has a chore tried again later, by whoever asks first.
func (c *Coordinator) putOff(ch *chore, failed bool) {
	c.mu.Lock()
	master := ch.master
	c.mu.Unlock()
	others := len(c.mastersExcept(master))
	c.mu.Lock()
	defer c.mu.Unlock()
	pause := c.o.CheckEvery
	if failed {
		ch.tries++
		pause = min(pause*time.Duration(ch.tries), max(30*time.Second, pause))
		if others > 0 {
			ch.shunned, ch.shunnedUntil = ch.master, c.o.Now().Add(pause+shun)
		}
	}
	ch.master, ch.after = "", c.o.Now().Add(pause)
}

// choreDone takes in what a master brought. The chore ends last: should the disk fail, the result is sent again.
func (c *Coordinator) choreDone(ctx context.Context, master string, node lifecycle.Member, ch *chore, r api.Result) error {
	name, attempt := node.Machine.Name, node.Record.Attempt
	var err error
	switch ch.action {
	case api.MintToken:
		if !tokenShape.MatchString(r.Token) || !strings.HasPrefix(r.Token, node.Record.Node.TokenID+".") {
			c.say(node.Record, lifecycle.Alarm, "refused", "%s: what it calls a token is none, or not the one that it was asked for", master)
			c.putOff(ch, true)
			return nil
		}
		c.mu.Lock()
		c.tokens[name] = secret{r.Token, attempt, c.o.Now().Add(c.tokenTTL() / 2)}
		c.mu.Unlock()
		c.say(node.Record, lifecycle.Info, "token", "%s made token %s…", master, node.Record.Node.TokenID)
	case api.UploadCerts:
		if r.CertificateKey != "" && r.CertificateKey != ch.key {
			c.say(node.Record, lifecycle.Alarm, "refused", "%s: the certificate key that it reports is not the one that was ordered", master)
			c.putOff(ch, true)
			return nil
		}
		c.mu.Lock()
		clear(c.keys) // the cluster holds one copy, under the key of the last upload
		c.keys[name] = secret{ch.key, attempt, c.o.Now().Add(30 * time.Minute)}
		c.mu.Unlock()
		c.say(node.Record, lifecycle.Info, "certificates", "%s uploaded the control plane's certificates", master)
	case api.CheckNode:
		return c.checked(ctx, master, node, ch, r)
	case api.DeleteToken:
		id := node.Record.Node.TokenID
		_, err = c.o.Rack.Advance(ctx, name, attempt, "", "", func(rec *lifecycle.Record) error {
			if rec.Node.TokenID == id {
				rec.Node.TokenID = ""
			}
			return nil
		})
	case api.DeleteNode:
		_, err = c.o.Rack.Advance(ctx, name, attempt, "", "", func(rec *lifecycle.Record) error {
			if rec.State == lifecycle.Firstboot || rec.State == lifecycle.Waiting {
				rec.Node.Member = 0
			}
			return nil
		})
		c.nodeGone(name)
		c.say(node.Record, lifecycle.Info, "deleted", "%s deleted its former self from the cluster", master)
	}
	if err != nil {
		return err
	}
	c.finish(ch)
	c.wake(name)
	return nil
}

// notReady goes on after a look at a node that is not Ready. Of a machine that was adopted and whose agent calls, nothing
// good is expected in the cluster any more: it joins anew. One whose agent is silent may be ready soon, or never: its disk
// boots, or there is no node on it.
func (c *Coordinator) notReady(ctx context.Context, node lifecycle.Member, ch *chore) error {
	switch name := node.Machine.Name; node.Record.State {
	case lifecycle.Firstboot:
		_, err := c.o.Rack.Advance(ctx, name, node.Record.Attempt, "", "", func(rec *lifecycle.Record) error {
			if rec.State == lifecycle.Firstboot {
				rec.Node.Adopted = false
			}
			return nil
		})
		if err != nil {
			return err
		}
		c.finish(ch)
		c.wake(name)
		return nil
	case lifecycle.Installed:
		c.putOff(ch, true) // ever longer, up to half a minute
		return nil
	}
	c.putOff(ch, false)
	return nil
}

// checked takes in what a master saw of a node.
func (c *Coordinator) checked(ctx context.Context, master string, node lifecycle.Member, ch *chore, r api.Result) error {
	name := node.Machine.Name
	if !node.Record.Awaited() {
		c.finish(ch)
		return nil
	}
	if !r.Ready || r.Address != node.Machine.IP.String() {
		reason := "the node is not Ready"
		switch {
		case r.Ready:
			reason = fmt.Sprintf("the node is Ready with the address %s, the list says %v", oneLine(r.Address), node.Machine.IP)
		case r.Reason != "":
			reason += ": " + oneLine(r.Reason)
		}
		if reason != c.reason(name) {
			c.setReason(name, reason)
			c.say(node.Record, lifecycle.Info, "not-ready", "%s: %s", master, reason)
		}
		return c.notReady(ctx, node, ch)
	}
	rec, err := c.o.Rack.SeeReady(ctx, name, node.Record.Attempt, master)
	if err != nil {
		return err
	}
	c.finish(ch)
	c.seenReady(name, r.Address)
	c.setReason(name, "")
	node.Record = rec
	c.enlist(c.o.Rack.Cluster(), node) // its token
	c.releaseTurn(ctx)
	c.completeRack(ctx)
	c.wake(name)
	return nil
}
