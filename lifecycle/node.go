package lifecycle

import (
	"context"
	"fmt"
	"time"

	"rackstrap/inventory"
)

// Public is the record without what nobody needs to see.
func (rec Record) Public() Record {
	rec.SecretHash, rec.Node.CredentialHash, rec.Node.SpentHash, rec.Ticket = "", "", "", ""
	return rec
}

// recovers tells whether good news of a machine that failed by a timeout can still be taken: it was slow, not wrong.
func (rec Record) recovers(t Trigger) bool {
	if rec.State != Failed || rec.Failure == nil || !rec.Failure.Retryable {
		return false
	}
	switch rec.Failure.Phase {
	case Installing:
		return t == ReportDone || t == CallHome
	case Initialising, Joining:
		return t == ReportJoined
	case Joined:
		return t == SeenReady
	}
	return false
}

// Awaited tells whether a machine is looked for in the cluster, and becomes ready when it is seen there: it joined, also if
// it was not seen in time; or it was adopted, and may be a node since long. The agent of such a worker has ended.
func (rec Record) Awaited() bool {
	switch rec.State {
	case Joined:
		return true
	case Installed: // one that this attempt made a node of was adopted by a version that did not look
		return rec.Node.Adopted || rec.Node.Member != 0 && rec.Node.Member == rec.Attempt
	case Firstboot:
		return rec.Node.Adopted
	}
	return rec.recovers(SeenReady)
}

// SeeReady notes that a master saw the node of a machine Ready, with its address of the list.
func (r *Rack) SeeReady(ctx context.Context, name string, attempt int, master string) (Record, error) {
	return r.update(ctx, name, "seen by "+master, func(rec *Record) error {
		if attempt != rec.Attempt {
			return ErrSuperseded
		}
		to, err := rec.next(SeenReady)
		if err != nil {
			return named(err, name)
		}
		if rec.State == Installed || rec.State == Firstboot { // a node since before it was adopted
			rec.Begun, rec.Node.Member, rec.Node.Reset = time.Time{}, rec.Attempt, false
		}
		rec.State, rec.Node.Adopted, rec.Node.Deadline = to, false, time.Time{}
		return nil
	})
}

// Member is a machine of the list that has hardware, with its record.
type Member struct {
	Machine inventory.Machine // its MAC is filled in
	Record  Record
}

// Member finds a machine by name: *UnknownMachineError, or ErrNoHardware.
func (r *Rack) Member(name string) (Member, error) {
	rec, err := r.record(name)
	if err != nil {
		return Member{}, err
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.member(name, rec), nil
}

// member puts the two together. The caller holds mu.
func (r *Rack) member(name string, rec Record) Member {
	m := Member{Record: rec}
	if listed, ok := r.config.ByName(name); ok {
		m.Machine = *listed
		m.Machine.MAC = rec.MAC
	}
	return m
}

// Members lists the machines of the list that have hardware, in its order; with a role "" all of them.
func (r *Rack) Members(role inventory.Role) []Member {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var all []Member
	for i := range r.config.Machines {
		listed := &r.config.Machines[i]
		if role != "" && listed.Role != role {
			continue
		}
		rec, ok := r.records[listed.Name]
		if !ok || listed.MAC.IsZero() && !rec.Enrolled {
			continue
		}
		m := Member{Machine: *listed, Record: rec}
		m.Machine.MAC = rec.MAC
		all = append(all, m)
	}
	return all
}

// EachMember calls each for the machines of Members(""), in that order, until it returns false. It copies nothing: each
// must neither change the machine nor call the Rack.
func (r *Rack) EachMember(each func(m *inventory.Machine, rec Record) bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for i := range r.config.Machines {
		m := &r.config.Machines[i]
		if rec, ok := r.records[m.Name]; ok && (!m.MAC.IsZero() || rec.Enrolled) && !each(m, rec) {
			return
		}
	}
}

// CallHome exchanges the install token of an attempt for a credential, which is returned once and kept as a hash. As
// long as no call has shown the credential to have arrived, the exchange can be repeated and makes a new one. A machine
// whose %post could not report its end is taken as installed: its agent would not run otherwise. The function notes what
// the machine tells of itself.
func (r *Rack) CallHome(ctx context.Context, name string, attempt int, secret string, note func(*Record)) (rec Record, credential string, err error) {
	credential, hash := newSecret()
	why := "its agent called home"
	if m, err := r.Member(name); err == nil && m.Record.State == Installing {
		why = "its agent called home; the report of %post never came"
	}
	rec, err = r.update(ctx, name, why, func(rec *Record) error {
		if err := rec.checkSecret(attempt, secret, rec.SecretHash); err != nil {
			return err
		}
		to, err := rec.next(CallHome)
		if err != nil {
			return named(err, name)
		}
		rec.State, rec.Node.CredentialHash = to, hash
		note(rec)
		return nil
	})
	if err != nil {
		return rec, "", err
	}
	return rec, credential, nil
}

// CheckCredential verifies the credential of a machine's attempt, and voids the install token once it was used:
// ErrSuperseded, ErrBadSecret, *UnknownMachineError, ErrNoHardware, an error of the store, or nil.
func (r *Rack) CheckCredential(ctx context.Context, name string, attempt int, credential string) error {
	check := func(rec Record) error { return rec.checkSecret(attempt, credential, rec.Node.CredentialHash) }
	rec, err := r.record(name)
	if err != nil {
		return err
	}
	if err := check(rec); err != nil || rec.Node.CredentialUsed {
		return err
	}
	_, err = r.update(ctx, name, "", func(rec *Record) error {
		if err := check(*rec); err != nil {
			return err
		}
		rec.Node.SpentHash, rec.SecretHash, rec.Node.CredentialUsed = rec.SecretHash, "", true
		return nil
	})
	return err
}

// next is Next, for a machine that failed only where that makes sense.
func (rec *Record) next(t Trigger) (State, error) {
	if rec.State == Failed && t != Adopt && everywhere[t] == "" && !rec.recovers(t) {
		return Failed, &TransitionError{From: Failed, Trigger: t}
	}
	if t == SeenReady && rec.State != Ready && !rec.Awaited() {
		return rec.State, &TransitionError{From: rec.State, Trigger: t}
	}
	return Next(rec.State, t)
}

// Advance changes the record of a machine on behalf of one attempt (0: of whatever is the current one), and returns
// once that is on disk. The trigger, unless it is "", makes its transition first; a change that fails undoes it. With
// why "" only a change of its state makes an event. Errors: ErrSuperseded, *TransitionError, and those of change.
func (r *Rack) Advance(ctx context.Context, name string, attempt int, t Trigger, why string, change func(*Record) error) (Record, error) {
	return r.update(ctx, name, why, func(rec *Record) error {
		if attempt != 0 && attempt != rec.Attempt {
			return ErrSuperseded
		}
		if t != "" {
			to, err := rec.next(t)
			if err != nil {
				return named(err, name)
			}
			rec.State = to
		}
		if change == nil {
			return nil
		}
		return change(rec)
	})
}

// MarkFailed notes in a change (see Advance) that the machine failed in its present state. Retryable: good news that
// comes late can still be taken.
func (rec *Record) MarkFailed(reason string, retryable bool) error {
	return rec.fail(reason, retryable)
}

// FailIn notes that the machine failed in a phase, if that is still the one it is in; else *TransitionError.
func (r *Rack) FailIn(ctx context.Context, name string, attempt int, phase State, reason string, retryable bool) (Record, error) {
	return r.update(ctx, name, "failed", func(rec *Record) error {
		if attempt != rec.Attempt {
			return ErrSuperseded
		}
		if rec.State != phase {
			return &TransitionError{Machine: name, From: rec.State, Trigger: Fail}
		}
		return rec.fail(reason, retryable)
	})
}

// Cluster is the record of the cluster.
func (r *Rack) Cluster() Cluster {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.cluster
}

// UpdateCluster changes the record of the cluster, and returns once that is on disk, with the event that the function
// returns, if any. An error of the function changes nothing.
func (r *Rack) UpdateCluster(ctx context.Context, change func(*Cluster) (*Event, error)) (Cluster, error) {
	r.clusterTurn.Lock()
	defer r.clusterTurn.Unlock()
	from := r.Cluster()
	to := from
	event, err := change(&to)
	if err != nil {
		return from, err
	}
	if to == from {
		return from, nil
	}
	var events []Event
	if event != nil {
		if event.Time.IsZero() {
			event.Time = r.now()
		}
		if event.Level == "" {
			event.Level = Info
		}
		events = append(events, event.Plain())
	}
	stored, err := r.store.CommitCluster(ctx, to, events...)
	if err != nil {
		return from, fmt.Errorf("cluster: store: %w", err)
	}
	r.mu.Lock()
	r.cluster = stored
	r.mu.Unlock()
	for _, e := range events {
		r.journal.announce(e)
		r.logEvent(e)
	}
	return stored, nil
}
