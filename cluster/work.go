package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"
	"time"

	"rackstrap/firstboot/api"
	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

// poller is an agent's question for work.
type poller struct {
	wake chan struct{} // something may have changed
	gone chan struct{} // the agent has asked anew
}

// poll enters an agent's question; an older one of the same machine ends: its agent has gone away.
func (c *Coordinator) poll(name string) *poller {
	p := &poller{wake: make(chan struct{}, 1), gone: make(chan struct{})}
	c.mu.Lock()
	defer c.mu.Unlock()
	if old := c.pollers[name]; old != nil {
		close(old.gone)
	}
	c.pollers[name] = p
	return p
}

func (c *Coordinator) unpoll(name string, p *poller) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pollers[name] == p {
		delete(c.pollers, name)
	}
}

// wake has a waiting agent's situation looked at again.
func (c *Coordinator) wake(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pollers[name].nudge()
}

func (p *poller) nudge() {
	if p == nil {
		return
	}
	select {
	case p.wake <- struct{}{}:
	default: // it will look anyway
	}
}

func (c *Coordinator) wakeAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.pollers {
		p.nudge()
	}
}

// wakeMasters wakes those who may do a chore.
func (c *Coordinator) wakeMasters() {
	for _, m := range c.o.Rack.Members(inventory.RoleControlPlane) {
		if serves(m) {
			c.wake(m.Machine.Name)
		}
	}
}

// Question is an agent asking for work.
type Question struct {
	Name    string
	Attempt int
	Clock   time.Time     // of the machine; zero: it did not say
	Wait    time.Duration // for how long it would wait for work
}

// Work answers an agent's question, at once if there is something to do, else when there is, or when it has waited long
// enough: then the answer is why it waits. Errors: lifecycle.ErrSuperseded, *lifecycle.UnknownMachineError,
// lifecycle.ErrNoHardware, the context's, and those of the store.
func (c *Coordinator) Work(ctx context.Context, q Question) (*api.Work, api.Waiting, error) {
	if !q.Clock.IsZero() {
		c.mu.Lock()
		c.skews[q.Name] = q.Clock.Sub(c.o.Now())
		c.mu.Unlock()
	}
	c.setHanded(q.Name, handed{}) // who asks has nothing to do
	p := c.poll(q.Name)
	defer c.unpoll(q.Name, p)
	deadline := time.NewTimer(q.Wait)
	defer deadline.Stop()
	for {
		work, waiting, soonest, err := c.next(ctx, q.Name, q.Attempt)
		if work != nil {
			c.setHanded(q.Name, handed{string(work.Action), c.o.Now(), work.Seconds})
		} else if err == nil && q.Wait <= 0 && len(waiting.Meanwhile) > 0 {
			c.setHanded(q.Name, handed{api.PhaseMeanwhile, c.o.Now(), meanwhileSeconds})
		}
		if work != nil || err != nil || q.Wait <= 0 {
			return work, waiting, err
		}
		pause := recheck
		if !soonest.IsZero() {
			pause = min(pause, max(soonest.Sub(c.o.Now()), 10*time.Millisecond))
		}
		again := time.NewTimer(pause)
		select {
		case <-p.wake:
		case <-again.C:
		case <-deadline.C:
			again.Stop()
			return nil, waiting, nil
		case <-p.gone:
			again.Stop()
			return nil, waiting, nil
		case <-ctx.Done():
			again.Stop()
			return nil, waiting, ctx.Err()
		}
		again.Stop()
	}
}

// errAgain is a step that somebody else's was faster than: the situation is another one now.
var errAgain = errors.New("the situation has changed")

// maxSteps bounds how many steps are carried out for one question; more would be a circle.
const maxSteps = 12

// next carries out steps for a machine until there is work for it, or nothing but waiting.
func (c *Coordinator) next(ctx context.Context, name string, attempt int) (*api.Work, api.Waiting, time.Time, error) {
	for range maxSteps {
		m, err := c.o.Rack.Member(name)
		if err != nil {
			return nil, api.Waiting{}, time.Time{}, err
		}
		if m.Record.Attempt != attempt {
			return nil, api.Waiting{}, time.Time{}, lifecycle.ErrSuperseded
		}
		if work := c.bootWork(name); work != nil {
			return work, api.Waiting{}, time.Time{}, nil
		}
		s := c.situation(m)
		d := decide(s)
		work, done, err := c.carryOut(ctx, m, s, d)
		var transition *lifecycle.TransitionError
		if errors.Is(err, errAgain) || errors.As(err, &transition) {
			continue
		}
		if work != nil || err != nil {
			c.setReason(name, "")
			return work, api.Waiting{}, time.Time{}, err
		}
		if !done {
			continue
		}
		waiting, soonest := api.Waiting{Reason: d.reason, Holder: d.holder, Confirm: d.confirm}, time.Time{}
		if d.confirm != "" {
			c.askConfirmation(m.Record, d.confirm)
		}
		if d.kind == stepServe {
			if work, soonest = c.serve(m); work != nil {
				return work, api.Waiting{}, time.Time{}, nil
			}
			if waiting.Reason == "" {
				waiting.Reason = "nothing to do"
			}
		}
		if d.kind == stepWait && len(d.needs) == 0 && !m.Record.IsHeld() {
			waiting.Meanwhile = c.meanwhile(m)
		}
		if m.Record.State != lifecycle.Joined { // there the last look of a master is the better reason
			c.setReason(name, d.reason)
		}
		return nil, waiting, soonest, nil
	}
	return nil, api.Waiting{}, time.Time{}, fmt.Errorf("%s: no end of steps", name)
}

// situation gathers what decide depends on.
func (c *Coordinator) situation(m lifecycle.Member) situation {
	name := m.Machine.Name
	s := situation{cluster: c.o.Rack.Cluster(), machine: m.Machine, record: m.Record, skew: m.Record.Node.Skew, unconfirmed: m.NeedsConfirmation()}
	if s.cluster.Initialised.IsZero() {
		s.first = c.firstControlPlane()
		if s.cluster.Holder != "" {
			_, listed := c.o.Rack.Config().ByName(s.cluster.Holder)
			s.unlisted = !listed
		}
	} else {
		s.masters = c.silentMasters(name)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if skew, ok := c.skews[name]; ok {
		s.skew = skew
	}
	now := c.o.Now()
	usable := func(x secret) bool { return x.text != "" && x.attempt == m.Record.Attempt && now.Before(x.until) }
	s.token = usable(c.tokens[name]) && strings.HasPrefix(c.tokens[name].text, m.Record.Node.TokenID+".")
	s.key = usable(c.keys[name])
	return s
}

// firstControlPlane is whose turn it is to initialise: the first one of the list that has not failed and is not held. A held
// one may never be installed.
func (c *Coordinator) firstControlPlane() string {
	for _, m := range c.o.Rack.Members(inventory.RoleControlPlane) {
		if m.Record.State != lifecycle.Failed && !m.Record.IsHeld() {
			return m.Machine.Name
		}
	}
	return ""
}

// carryOut does what was decided. It returns work to be handed out; or done, if there is nothing but waiting; or neither,
// if the situation has changed by it.
func (c *Coordinator) carryOut(ctx context.Context, m lifecycle.Member, s situation, d step) (work *api.Work, done bool, err error) {
	rack, name, attempt := c.o.Rack, m.Machine.Name, m.Record.Attempt
	for _, n := range d.needs {
		c.want(m, n)
	}
	switch d.kind {
	case stepWait, stepServe:
		if m.Record.State == lifecycle.Firstboot && s.cluster.Initialised.IsZero() {
			_, err = rack.Advance(ctx, name, attempt, lifecycle.MustWait, d.reason, nil)
			return nil, err == nil, err
		}
		return nil, true, nil
	case stepEnter:
		_, err = rack.Advance(ctx, name, attempt, lifecycle.CallHome, "its agent asks for work", nil)
	case stepJoined:
		_, err = rack.Advance(ctx, name, attempt, lifecycle.ReportJoined, "it had joined before", func(rec *lifecycle.Record) error {
			rec.Node.Deadline = c.o.Now().Add(rack.Config().Cluster.Timeouts.Ready)
			return nil
		})
	case stepFail:
		_, err = rack.FailIn(ctx, name, attempt, m.Record.State, d.reason, false)
	case stepTurn:
		_, err = rack.UpdateCluster(ctx, func(cl *lifecycle.Cluster) (*lifecycle.Event, error) {
			if cl.Joining != "" && cl.Joining != name {
				return nil, errAgain
			}
			cl.Joining = name
			return nil, nil
		})
	case stepTokenID:
		why := "for its token"
		if m.Record.State == lifecycle.Waiting {
			why = ""
		}
		_, err = rack.Advance(ctx, name, attempt, lifecycle.MustWait, why, func(rec *lifecycle.Record) error {
			if rec.Node.TokenID == "" {
				rec.Node.TokenID = newTokenID()
			}
			return nil
		})
	case stepReset:
		work, err = c.handReset(ctx, m)
	case stepInit:
		work, err = c.handInit(ctx, m)
	case stepJoin:
		work, err = c.handJoin(ctx, m, s)
	case stepDone:
		work = c.ownWork(m, "done."+fmt.Sprint(attempt), api.Done, 60)
	}
	return work, false, err
}

// hand notes that a machine is handed a work for itself: the one that it was handed already, if its result is still
// awaited, else a new one.
func hand(rec *lifecycle.Record, action api.Action, deadline time.Time) {
	n := &rec.Node
	if actionOf(n.Work) == action && n.Work != n.Done {
		return
	}
	n.Serial++
	n.Work = fmt.Sprintf("%s.%d.%d", action, rec.Attempt, n.Serial)
	n.Deadline = deadline
}

// actionOf is what a machine was handed under an id: init.2.1 is the first work of attempt 2.
func actionOf(id string) api.Action {
	action, _, _ := strings.Cut(id, ".")
	return api.Action(action)
}

// joined tells whether the result that was accepted last made a node of the machine.
func joined(id string) bool {
	switch actionOf(id) {
	case api.Init, api.Join, api.JoinControlPlane:
		return true
	}
	return false
}

func (c *Coordinator) handReset(ctx context.Context, m lifecycle.Member) (*api.Work, error) {
	rec, err := c.o.Rack.Advance(ctx, m.Machine.Name, m.Record.Attempt, "", "", func(rec *lifecycle.Record) error {
		if !rec.Node.Reset || rec.IsHeld() || rec.State != m.Record.State {
			return errAgain
		}
		hand(rec, api.Reset, rec.Node.Deadline)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return c.ownWork(m, rec.Node.Work, api.Reset, 300), nil
}

// handInit takes the init lock and hands the init out. The lock comes first: two control planes that are here at once
// find only one of them holding it.
func (c *Coordinator) handInit(ctx context.Context, m lifecycle.Member) (*api.Work, error) {
	rack, name, attempt := c.o.Rack, m.Machine.Name, m.Record.Attempt
	cfg := rack.Config()
	manifest, err := manifests(cfg)
	if err != nil {
		return nil, err
	}
	_, err = rack.UpdateCluster(ctx, func(cl *lifecycle.Cluster) (*lifecycle.Event, error) {
		if cl.Holder != "" && cl.Holder != name {
			return nil, errAgain
		}
		if cl.Holder == name && cl.Attempt == attempt {
			return nil, nil
		}
		cl.Holder, cl.Attempt, cl.Locked = name, attempt, c.o.Now()
		return &lifecycle.Event{MAC: m.Record.MAC, Machine: name, Attempt: attempt, Source: "cluster", Kind: "lock",
			Text: name + " holds the init lock"}, nil
	})
	if err != nil {
		return nil, err
	}
	timeout := cfg.Cluster.Timeouts.Init
	rec, err := rack.Advance(ctx, name, attempt, lifecycle.TakeInitLock, whyHanded(m, api.Init), func(rec *lifecycle.Record) error {
		if rec.Node.Reset || rec.IsHeld() {
			return errAgain
		}
		hand(rec, api.Init, c.o.Now().Add(timeout+lateness))
		rec.Node.Member = attempt
		if rec.Node.TokenID == "" {
			rec.Node.TokenID = newTokenID()
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	m.Record = rec
	work := c.ownWork(m, rec.Node.Work, api.Init, int(timeout.Seconds()))
	work.KubeadmConfig = InitConfig(cfg, m.Machine, rec.Node.TokenID+"."+randomText(16), timeout, describe(m))
	work.CNIManifest = manifest
	work.Images = c.images(m.Machine.Role)
	return work, nil
}

func (c *Coordinator) handJoin(ctx context.Context, m lifecycle.Member, s situation) (*api.Work, error) {
	rack, name, attempt := c.o.Rack, m.Machine.Name, m.Record.Attempt
	cfg := rack.Config()
	action, timeout := api.Join, cfg.Cluster.Timeouts.Join
	if m.Machine.Role == inventory.RoleControlPlane {
		action = api.JoinControlPlane
	}
	c.mu.Lock()
	token, key := c.tokens[name].text, c.keys[name].text
	c.mu.Unlock()
	if action == api.Join {
		key = ""
	}
	if !tokenShape.MatchString(token) || action == api.JoinControlPlane && !keyShape.MatchString(key) {
		return nil, errAgain // it was taken back in between
	}
	rec, err := rack.Advance(ctx, name, attempt, lifecycle.BeginJoin, whyHanded(m, action), func(rec *lifecycle.Record) error {
		if rec.Node.Reset || rec.IsHeld() || !strings.HasPrefix(token, rec.Node.TokenID+".") {
			return errAgain
		}
		hand(rec, action, c.o.Now().Add(timeout+lateness))
		rec.Node.Member = attempt
		return nil
	})
	if err != nil {
		return nil, err
	}
	work := c.ownWork(m, rec.Node.Work, action, int(timeout.Seconds()))
	work.KubeadmConfig = JoinConfig(cfg, m.Machine, token, s.cluster.CAHash, key)
	work.Images = c.images(m.Machine.Role)
	return work, nil
}

// images are the archives that a machine of a role has use for.
func (c *Coordinator) images(role inventory.Role) []api.Image {
	if role == inventory.RoleControlPlane {
		return c.o.Images()
	}
	return workerImages(c.o.Images())
}

// meanwhileSeconds is for how long an agent brings in images before it asks again.
const meanwhileSeconds = 600

// meanwhile is what a machine may bring in while it waits for its turn: minutes that its join need not take. Nothing once
// a token is about to be made for it, for that does not keep.
func (c *Coordinator) meanwhile(m lifecycle.Member) []api.Image {
	switch m.Record.State {
	case lifecycle.Firstboot, lifecycle.Waiting:
		return c.images(m.Machine.Role)
	}
	return nil
}

// whyHanded is the reason of a transition by which a machine is handed something; when it asks again there is none.
func whyHanded(m lifecycle.Member, action api.Action) string {
	if m.Record.State == lifecycle.Initialising || m.Record.State == lifecycle.Joining {
		return ""
	}
	return string(action) + " is handed out"
}

// ownWork is something that a machine does for itself.
func (c *Coordinator) ownWork(m lifecycle.Member, id string, action api.Action, seconds int) *api.Work {
	work := &api.Work{ID: id, Action: action, Seconds: seconds}
	switch action {
	case api.Init, api.Join, api.JoinControlPlane, api.Done:
		work.EndpointName, work.EndpointAddresses = c.endpoint(m.Machine.Name, action == api.Init)
	}
	return work
}

func isAddress(host string) bool {
	a, err := netip.ParseAddr(host)
	return err == nil && a.Zone() == "" // a zone may be any text
}

// controlPlaneImages run on masters alone: half of what there is to import.
var controlPlaneImages = []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "etcd"}

// workerImages leaves out the archives that hold nothing for a worker. One whose content is not known stays.
func workerImages(all []api.Image) []api.Image {
	return slices.DeleteFunc(slices.Clone(all), func(archive api.Image) bool {
		return len(archive.Names) > 0 && !slices.ContainsFunc(archive.Names, func(name string) bool {
			name, _, _ = strings.Cut(path.Base(name), ":")
			name, _, _ = strings.Cut(name, "@")
			return !slices.Contains(controlPlaneImages, name)
		})
	})
}
