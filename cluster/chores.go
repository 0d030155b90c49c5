package cluster

import (
	"fmt"
	"slices"
	"time"

	"rackstrap/firstboot/api"
	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

// chore is a need that waits for a master, or that a master is at. All of them may be done twice, so one whose master
// does not answer is given to the next that asks; but for those of the operator, who is told instead.
type chore struct {
	need
	id           string
	attempt      int       // of the node
	after        time.Time // not before
	tries        int
	master       string // who is at it; "" nobody
	until        time.Time
	shunned      string // the master that failed at it last; others have the precedence until shunnedUntil
	shunnedUntil time.Time
	key          string // upload-certs: the certificate key
	work         func(*api.Work)
	answer       chan<- answer // of the operator, who waits; nil: nobody
	taken        chan<- string // the operator is told which master takes it
}

// answer is what became of a chore of the operator.
type answer struct {
	master string
	result api.Result
}

// chores are what masters have to do, most urgent first.
type chores struct {
	boot   string // tells this run's ids from those of another one
	serial int
	by     map[need]*chore
	queues [4][]*chore // by urgency
}

func newChores() chores { return chores{boot: randomText(6), by: map[need]*chore{}} }

// urgency: somebody waits at the terminal; a machine waits; a machine will be looked at; tidying.
func (n need) urgency() int {
	switch n.action {
	case api.Kubeconfig, api.VerifyCluster:
		return 0
	case api.CheckNode:
		return 2
	case api.DeleteToken, api.ListNodes:
		return 3
	}
	return 1
}

// seconds is how long a master may take. It is short: this is also how long a chore lies at a master that died.
func (n need) seconds() int {
	switch n.action {
	case api.UploadCerts:
		return 60
	case api.DeleteNode:
		return 300
	case api.VerifyCluster:
		return 600
	}
	return 30
}

// add enters a chore; if there is one for this need already, that one stays.
func (cs *chores) add(ch *chore) bool {
	if _, there := cs.by[ch.need]; there {
		return false
	}
	cs.serial++
	ch.id = fmt.Sprintf("%s.%s.%d", ch.action, cs.boot, cs.serial)
	cs.by[ch.need] = ch
	u := ch.urgency()
	cs.queues[u] = append(cs.queues[u], ch)
	return true
}

// remove takes a chore out.
func (cs *chores) remove(ch *chore) {
	if cs.by[ch.need] != ch {
		return
	}
	delete(cs.by, ch.need)
	u := ch.urgency()
	if i := slices.Index(cs.queues[u], ch); i >= 0 {
		cs.queues[u] = slices.Delete(cs.queues[u], i, i+1)
	}
}

// find is the chore of that id.
func (cs *chores) find(id string) *chore {
	for _, queue := range cs.queues {
		for _, ch := range queue {
			if ch.id == id {
				return ch
			}
		}
	}
	return nil
}

// pick is the next chore for a master: what it had been given and has forgotten, or else the most urgent one that nobody
// is at. If there is none, soonest is when there may be one; the zero time: nobody knows.
func (cs *chores) pick(master string, now time.Time) (ch *chore, soonest time.Time) {
	for _, queue := range cs.queues {
		for _, ch := range queue {
			if ch.action == api.DeleteNode && ch.node == master {
				continue // it cannot drain itself and tell
			}
			if ch.master != "" && ch.master != master && now.Before(ch.until) {
				soonest = earlier(soonest, ch.until)
				continue
			}
			if ch.shunned == master && now.Before(ch.shunnedUntil) {
				soonest = earlier(soonest, ch.shunnedUntil)
				continue
			}
			if now.Before(ch.after) {
				soonest = earlier(soonest, ch.after)
				continue
			}
			if ch.answer != nil && ch.master != "" && ch.master != master {
				continue // the operator is told that its master went away
			}
			return ch, time.Time{}
		}
	}
	return nil, soonest
}

func earlier(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

// want enters a chore for a machine, and wakes the masters if it is new.
func (c *Coordinator) want(m lifecycle.Member, n need) {
	ch := &chore{need: n, attempt: m.Record.Attempt, work: c.choreWork(n, m)}
	c.mu.Lock()
	old := c.chores.by[n]
	if old != nil && old.attempt != ch.attempt && old.answer == nil { // of its former self
		c.chores.remove(old)
	}
	if n.action == api.DeleteToken { // after whoever may still be making it
		if mint := c.chores.by[need{api.MintToken, n.node}]; mint != nil {
			c.chores.remove(mint)
			if mint.master != "" {
				ch.after = mint.until
			}
		}
	}
	if n.action == api.UploadCerts {
		ch.key = newCertificateKey()
	}
	added := c.chores.add(ch)
	c.mu.Unlock()
	if added {
		c.wakeMasters()
	}
}

// choreWork fills in what a chore needs to know.
func (c *Coordinator) choreWork(n need, m lifecycle.Member) func(*api.Work) {
	isMaster := m.Machine.Role == inventory.RoleControlPlane
	switch n.action {
	case api.MintToken:
		ttl := c.tokenTTL()
		return func(w *api.Work) {
			w.Node, w.TokenID, w.TTLSeconds = n.node, m.Record.Node.TokenID, int(ttl.Seconds())
			w.Description = describe(m)
		}
	case api.DeleteToken:
		return func(w *api.Work) { w.Node, w.TokenID = n.node, m.Record.Node.TokenID }
	case api.CheckNode:
		return func(w *api.Work) { w.Node, w.IP, w.ControlPlane = n.node, m.Machine.IP.String(), isMaster }
	case api.DeleteNode:
		return func(w *api.Work) { w.Node, w.IP, w.ControlPlane = n.node, m.Machine.IP.String(), isMaster }
	}
	return func(*api.Work) {}
}

// describe is how `kubeadm token list` tells whom a token is for.
func describe(m lifecycle.Member) string {
	return fmt.Sprintf("node=%s attempt=%d", m.Machine.Name, m.Record.Attempt)
}

// tokenTTL is how long a token lives. It is handed out in its first half, and the join must end in the second.
func (c *Coordinator) tokenTTL() time.Duration {
	return max(20*time.Minute, 2*c.o.Rack.Config().Cluster.Timeouts.Join)
}

// serve hands a chore to a master. If there is none, soonest is when to look again.
func (c *Coordinator) serve(m lifecycle.Member) (work *api.Work, soonest time.Time) {
	now := c.o.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	ch, soonest := c.chores.pick(m.Machine.Name, now)
	if ch == nil {
		return nil, soonest
	}
	ch.master = m.Machine.Name
	ch.until = now.Add(time.Duration(ch.seconds())*time.Second + 10*time.Second)
	work = &api.Work{ID: ch.id, Action: ch.action, Seconds: ch.seconds()}
	ch.work(work)
	if ch.action == api.UploadCerts {
		work.KubeadmConfig = UploadConfig(c.o.Rack.Config(), m.Machine, ch.key)
	}
	if ch.taken != nil {
		select {
		case ch.taken <- ch.master:
		default:
		}
	}
	return work, time.Time{}
}
