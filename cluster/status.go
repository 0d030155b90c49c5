package cluster

import (
	"fmt"
	"time"

	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

// Status is the cluster for the operator: no secrets.
type Status struct {
	Name        string            `json:"name"`
	Version     string            `json:"kubernetes_version"`
	Endpoint    string            `json:"endpoint"`
	Holder      string            `json:"lock_holder,omitempty"` // of the init lock
	Locked      time.Time         `json:"locked,omitzero"`
	Initialised time.Time         `json:"initialised,omitzero"`
	CAHash      string            `json:"ca_hash,omitempty"`
	Joining     string            `json:"joining,omitempty"` // the control plane whose turn it is
	Masters     []Master          `json:"masters"`
	Ready       int               `json:"ready"`
	Machines    int               `json:"machines"`
	Waiting     map[string]string `json:"waiting"` // by machine: what it waits for
	Begun       time.Time         `json:"begun,omitzero"`
	Complete    time.Time         `json:"complete,omitzero"` // when the last machine was ready; zero while one is not
	Latest      string            `json:"latest,omitempty"`  // the machine that completed the rack
	Nodes       Nodes             `json:"nodes"`             // what Kubernetes says now

	// When the rack was complete for the first time, and the first power-on before it.
	FirstComplete time.Time `json:"first_complete,omitzero"`
	FirstPowerOn  time.Time `json:"first_power_on,omitzero"`
}

// Master is a control plane that may serve others.
type Master struct {
	Name  string    `json:"name"`
	Seen  time.Time `json:"seen,omitzero"` // when its agent last called
	Alive bool      `json:"alive"`
}

// Status tells how far the cluster is.
func (c *Coordinator) Status() Status {
	cfg, cl := c.o.Rack.Config(), c.o.Rack.Cluster()
	st := Status{
		Name: cfg.Cluster.Name, Version: cfg.Cluster.KubernetesVersion, Endpoint: cfg.Cluster.ControlPlaneEndpoint,
		Holder: cl.Holder, Locked: cl.Locked, Initialised: cl.Initialised, CAHash: cl.CAHash, Joining: cl.Joining,
		Machines: len(cfg.Machines), Waiting: map[string]string{}, Masters: []Master{},
		FirstComplete: cl.FirstComplete, FirstPowerOn: cl.FirstPowerOn,
	}
	members := c.o.Rack.Members("")
	st.Nodes = c.nodesNow(members)
	var latest time.Time
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range members {
		rec := m.Record
		if !rec.Begun.IsZero() && (st.Begun.IsZero() || rec.Begun.Before(st.Begun)) {
			st.Begun = rec.Begun
		}
		if m.Machine.Role == inventory.RoleControlPlane && serves(m) {
			st.Masters = append(st.Masters, Master{Name: rec.Name, Seen: c.seen[rec.Name], Alive: c.heardLocked(rec.Name)})
		}
		switch rec.State {
		case lifecycle.Ready:
			st.Ready++
			if rec.Since.After(latest) {
				st.Latest, latest = rec.Name, rec.Since
			}
		case lifecycle.Installed, lifecycle.Firstboot, lifecycle.Waiting, lifecycle.Joining, lifecycle.Joined, lifecycle.Initialising:
			why := c.reasons[rec.Name]
			if waits := rec.State == lifecycle.Firstboot || rec.State == lifecycle.Waiting; waits && !c.heardLocked(rec.Name) {
				why = "its agent does not call any more"
				if last, ok := c.seen[rec.Name]; ok {
					why = fmt.Sprintf("its agent has not called for %s", c.o.Now().Sub(last).Round(time.Second))
				}
			}
			if why != "" {
				st.Waiting[rec.Name] = why
			}
		}
	}
	if st.Ready == st.Machines && st.Machines > 0 {
		st.Complete = cl.Complete
	} else {
		st.Latest = ""
	}
	return st
}

// RenderInit is what a machine would get for kubeadm init, with a token that opens nothing.
func RenderInit(cfg *inventory.Config, m inventory.Machine) string {
	return InitConfig(cfg, m, "abcdef.0123456789abcdef", cfg.Cluster.Timeouts.Init, "node="+m.Name+" attempt=1")
}

// RenderJoin is what a machine would get for kubeadm join, with a token, a pin and a key that open nothing; the pin is
// the cluster's, where one is given.
func RenderJoin(cfg *inventory.Config, m inventory.Machine, caHash string) string {
	if caHash == "" {
		caHash = "sha256:" + zeros
	}
	return JoinConfig(cfg, m, "abcdef.0123456789abcdef", caHash, zeros)
}

const zeros = "0000000000000000000000000000000000000000000000000000000000000000"
