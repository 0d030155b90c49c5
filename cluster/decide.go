package cluster

import (
	"fmt"
	"time"

	"rackstrap/firstboot/api"
	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

// What kubeadm itself demands of a control plane, in its preflight checks: said before anything was begun.
const (
	minCPUs      = 2
	minMemoryMiB = 1700
)

// maxSkew is by how much a machine's clock may be off before TLS and tokens make no sense: kubeadm backdates its
// certificates by five minutes.
const maxSkew = 5 * time.Minute

// maxTries is how often an init or a join is tried; maxRefusals is how often a token may not be accepted.
const (
	maxTries    = 3
	maxRefusals = 10
)

// situation is all that the next step of one machine depends on.
type situation struct {
	cluster     lifecycle.Cluster
	machine     inventory.Machine
	record      lifecycle.Record
	first       string        // the control plane whose turn it is to initialise; "" if there is none
	unlisted    bool          // the holder of the init lock is not in the list any more
	skew        time.Duration // of the machine's clock
	unconfirmed bool          // the operator has to confirm it, and has not
	token       bool          // one was minted for it that can still be handed out
	key         bool          // the control plane's certificates were uploaded for it
	masters     string        // why no master can do anything at the moment; "" if one can
}

// stepKind is what is to be done with a machine that asks for work.
type stepKind int

const (
	stepWait    stepKind = iota // for what reason says; needs are what masters have to do first
	stepEnter                   // it has a good system and a good credential: into the cluster with it
	stepJoined                  // it had joined already
	stepFail                    // it can never be part of the cluster as it is
	stepTurn                    // take the turn of joining as a control plane
	stepTokenID                 // choose the public half of its token
	stepReset                   // hand out a reset
	stepInit                    // take the init lock, hand out the init
	stepJoin                    // hand out the join
	stepDone                    // tell its agent that it is done
	stepServe                   // a master: whatever there is to do for others
)

// step is the outcome of decide.
type step struct {
	kind   stepKind
	reason string // of waiting and failing, for people
	holder string // of the init lock, while that is what is waited for
	needs  []need

	confirm string // the fingerprint that the operator has to confirm first; "": nothing is to be confirmed
}

// need is what a master has to do for a node.
type need struct {
	action api.Action
	node   string
}

// decide finds the next step of a machine that has asked for work. It is a pure function: what is true in the situation
// is all there is.
func decide(s situation) step { return guard(s, decideUnguarded(s)) }

func decideUnguarded(s situation) step {
	rec, name := s.record, s.machine.Name
	switch rec.State {
	case lifecycle.Installed:
		return step{kind: stepEnter}
	case lifecycle.Firstboot, lifecycle.Waiting:
		return decideBefore(s)
	case lifecycle.Initialising:
		if s.cluster.Holder != name {
			return step{kind: stepFail, reason: "the init lock was taken from it by the operator while it was initialising"}
		}
		return resetOr(rec, step{kind: stepInit})
	case lifecycle.Joining:
		if !s.token {
			return wait(s, "a master mints a new token for it", need{api.MintToken, name})
		}
		if s.machine.Role == inventory.RoleControlPlane && !s.key {
			return wait(s, "a master uploads the certificates for it", need{api.UploadCerts, name})
		}
		return resetOr(rec, step{kind: stepJoin})
	case lifecycle.Joined:
		return serveOr(s, wait(s, "a master sees it Ready, with its address of the list", need{api.CheckNode, name}))
	case lifecycle.Ready:
		return serveOr(s, step{kind: stepDone})
	case lifecycle.Failed:
		if rec.Failure == nil {
			return step{reason: "failed"}
		}
		return step{reason: "failed: " + rec.Failure.Reason}
	}
	return step{reason: fmt.Sprintf("it is %s", rec.State)}
}

// decideBefore is for a machine that is installed and no part of the cluster yet.
func decideBefore(s situation) step {
	rec, name := s.record, s.machine.Name
	master := s.machine.Role == inventory.RoleControlPlane
	if vouchedFor(s) { // before anything is done to a node that may be a good one
		return wait(s, "a master looks whether the cluster has it as Ready", need{api.CheckNode, name})
	}
	if fault := preflight(s.machine, rec.Node); fault != "" {
		return step{kind: stepFail, reason: fault}
	}
	if s.skew.Abs() > maxSkew {
		return step{reason: fmt.Sprintf("its clock is %s: chronyd has to set it first", skewText(s.skew))}
	}
	if s.cluster.Initialised.IsZero() {
		switch {
		case s.cluster.Holder == "" && s.first == "":
			return step{reason: "waits for a control plane: all of the list have failed or are held"}
		case master && (s.cluster.Holder == name || s.cluster.Holder == "" && s.first == name):
			return resetOr(rec, step{kind: stepInit})
		case s.cluster.Holder != "" && s.unlisted:
			return step{reason: fmt.Sprintf("waits for %s, which holds the init lock and is not in the list any more: `rackstrap hold %s --release-lock`",
				s.cluster.Holder, s.cluster.Holder), holder: s.cluster.Holder}
		case s.cluster.Holder != "":
			return step{reason: fmt.Sprintf("waits for %s to initialise the cluster", s.cluster.Holder), holder: s.cluster.Holder}
		default:
			return step{reason: fmt.Sprintf("waits for %s, the first control plane of the list, to call home", s.first)}
		}
	}

	if rec.Node.Reset { // before its node is deleted: a kubelet that still runs would enter it again
		return step{kind: stepReset}
	}
	if rec.State == lifecycle.Firstboot {
		switch {
		case rec.Node.Member == rec.Attempt && joined(rec.Node.Done):
			return step{kind: stepJoined}
		case rec.Node.TokenID != "":
			return wait(s, "a master deletes the token of its former self", need{api.DeleteToken, name})
		}
	}
	if rec.Node.Member != 0 {
		return wait(s, "a master deletes its former self from the cluster", need{api.DeleteNode, name})
	}
	if master && s.cluster.Joining != name {
		if s.cluster.Joining != "" {
			return step{reason: fmt.Sprintf("waits for %s to join: control planes join one at a time", s.cluster.Joining)}
		}
		return step{kind: stepTurn}
	}
	if rec.State == lifecycle.Firstboot || rec.Node.TokenID == "" {
		return step{kind: stepTokenID}
	}
	var needs []need
	what := "a master mints a token for it"
	if !s.token {
		needs = append(needs, need{api.MintToken, name})
	}
	if master && !s.key {
		needs = append(needs, need{api.UploadCerts, name})
		what = "a master mints a token and uploads the certificates for it"
	}
	if len(needs) > 0 {
		return wait(s, what, needs...)
	}
	return step{kind: stepJoin}
}

// vouchedFor tells whether a machine was adopted, and may be a good node of the cluster although the appliance has not heard
// so: its result was lost, or came after somebody had given up. One whose result was accepted has joined anyway.
func vouchedFor(s situation) bool {
	rec, n := s.record, s.record.Node
	accepted := n.Member == rec.Attempt && joined(n.Done) && !n.Reset
	return rec.State == lifecycle.Firstboot && n.Adopted && n.Member != 0 && !accepted && !s.cluster.Initialised.IsZero()
}

// wait is until masters have met the needs; if none can at the moment, that is the reason.
func wait(s situation, what string, needs ...need) step {
	reason := "waits until " + what
	if s.masters != "" {
		reason += "; " + s.masters
	}
	return step{reason: reason, needs: needs}
}

// resetOr clears away what a failed init or join left behind, before the next one.
func resetOr(rec lifecycle.Record, otherwise step) step {
	if rec.Node.Reset {
		return step{kind: stepReset}
	}
	return otherwise
}

// serveOr has a master work for others.
func serveOr(s situation, otherwise step) step {
	if s.machine.Role == inventory.RoleControlPlane {
		otherwise.kind = stepServe
	}
	return otherwise
}

// preflight is why a machine cannot be a control plane; "" if it can, or if it did not say.
func preflight(m inventory.Machine, n lifecycle.Node) string {
	if m.Role != inventory.RoleControlPlane {
		return ""
	}
	switch {
	case n.CPUs > 0 && n.CPUs < minCPUs:
		return fmt.Sprintf("it has %d CPU, a control plane needs %d: give it more, then `rackstrap adopt %s`, or make it a worker", n.CPUs, minCPUs, m.Name)
	case n.MemoryMiB > 0 && n.MemoryMiB < minMemoryMiB:
		return fmt.Sprintf("it has %d MiB of memory, a control plane needs %d: give it more, then `rackstrap adopt %s`, or make it a worker", n.MemoryMiB, minMemoryMiB, m.Name)
	}
	return ""
}

func skewText(d time.Duration) string {
	if d < 0 {
		return (-d).Round(time.Second).String() + " behind the appliance's"
	}
	return d.Round(time.Second).String() + " ahead of the appliance's"
}
