package cluster

import (
	"slices"
	"time"

	"rackstrap/firstboot/api"
	"rackstrap/lifecycle"
)

// handed is what a machine was handed and has not answered: an agent does one thing at a time.
type handed struct {
	phase   string    // "": nothing
	at      time.Time // when
	seconds int       // how long it may take; 0: not known
}

func (c *Coordinator) setHanded(name string, h handed) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.handed[name] = h
}

// Current tells whether what an agent reported of its progress is still so: the machine is at it, reported it since it was
// handed it, and is not over the time for it. The reports of an agent come in the background and may be late; what its
// power was cut in, it never ends. What installers report is not the cluster's.
func (c *Coordinator) Current(name string, p lifecycle.Progress) bool {
	if p.Phase != api.PhaseMeanwhile && !slices.Contains(api.Actions(), api.Action(p.Phase)) {
		return true
	}
	m, err := c.o.Rack.Member(name)
	if err != nil {
		return false
	}
	c.mu.Lock()
	h, known := c.handed[name]
	c.mu.Unlock()
	if n := m.Record.Node; !known && n.Work != n.Done { // handed out before the appliance's start
		h.phase = string(actionOf(n.Work))
	}
	over := h.seconds > 0 && c.o.Now().After(h.at.Add(time.Duration(h.seconds)*time.Second+lateness))
	return h.phase == p.Phase && !p.At.Before(h.at) && !over
}
