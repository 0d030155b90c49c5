package lifecycle

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"rackstrap/internal/plain"
	"rackstrap/inventory"
)

// Errors about an attempt's secret.
var (
	// ErrSuperseded is a call that belongs to an older attempt: 410.
	ErrSuperseded = errors.New("this attempt was superseded by a newer one")
	// ErrBadSecret is a token that is not the attempt's: 401.
	ErrBadSecret = errors.New("token is not valid for this attempt")
)

// NotInstallingError is a request for installation secrets by a machine that is not to be installed.
type NotInstallingError struct{ Reason string }

func (e *NotInstallingError) Error() string { return "not to be installed: " + e.Reason }

// Apply makes one transition of the named machine, on behalf of its current attempt. It returns once the
// new state is on disk. A trigger that changes nothing (a repeated report) writes nothing.
func (r *Rack) Apply(ctx context.Context, name string, t Trigger, why string) (Record, error) {
	return r.Advance(ctx, name, 0, t, why, nil)
}

// Fail notes that the machine's current phase failed.
func (r *Rack) Fail(ctx context.Context, name, reason string, retryable bool) (Record, error) {
	return r.update(ctx, name, "failed", func(rec *Record) error { return rec.fail(reason, retryable) })
}

// FailInstall notes that the installation of a machine failed, as itself reports it; another one may be tried.
// A machine whose installation is over cannot fail it any more.
func (r *Rack) FailInstall(ctx context.Context, name, reason string) (Record, error) {
	reason = plain.Line(reason, maxReason)
	return r.update(ctx, name, "reported", func(rec *Record) error {
		if rec.State == Failed && rec.Failure != nil && rec.Failure.Reason == reason {
			return nil // said twice
		}
		if rec.State != Installing {
			return &TransitionError{Machine: name, From: rec.State, Trigger: Fail}
		}
		return rec.fail(reason, true)
	})
}

// Adopt takes a machine whose disk holds a good system already as installed: it is not wiped. Should the cluster have it
// as Ready, a master finds that out.
func (r *Rack) Adopt(ctx context.Context, name string) (Record, error) {
	return r.Advance(ctx, name, 0, Adopt, "operator: adopt", func(rec *Record) error {
		rec.Node.Adopted = true
		return nil
	})
}

func (rec *Record) fail(reason string, retryable bool) error {
	to, err := Next(rec.State, Fail)
	if err != nil {
		return named(err, rec.Name)
	}
	phase := rec.State
	if phase == Failed && rec.Failure != nil {
		phase = rec.Failure.Phase
	}
	rec.State, rec.Failure = to, &Failure{Phase: phase, Reason: plain.Line(reason, maxReason), Retryable: retryable}
	return nil
}

// Reinstall arms a machine anew: a new attempt, with all its tries before it. It adopts the hardware that
// the list names now.
func (r *Rack) Reinstall(ctx context.Context, name string) (Record, error) {
	r.mu.RLock()
	listed, ok := r.config.ByName(name)
	r.mu.RUnlock()
	if !ok {
		return Record{}, &UnknownMachineError{Name: name}
	}
	return r.update(ctx, name, "operator: reinstall", func(rec *Record) error {
		if err := rec.RefuseHeld(); err != nil {
			return err
		}
		to, err := Next(rec.State, Reinstall)
		if err != nil {
			return named(err, rec.Name)
		}
		if !listed.MAC.IsZero() {
			rec.take(listed)
		}
		rec.arm(to)
		return nil
	})
}

// arm begins a new attempt. What the old attempt knew is worthless from here on.
func (rec *Record) arm(to State) {
	rec.State, rec.Failure = to, nil
	rec.Attempt, rec.Tries, rec.Begun = rec.Attempt+1, 0, time.Time{}
	rec.disown()
}

// disown voids what the machine proved itself with. What its former self may have left in the cluster stays known.
func (rec *Record) disown() {
	rec.SecretHash = ""
	rec.Node = Node{Member: rec.Node.Member, TokenID: rec.Node.TokenID, Boot: rec.Node.Boot}
}

// BeginInstall is the moment in which a machine's installer fetches its kickstart: the state becomes
// installing, and a secret for this attempt is made, which is returned once and kept as a hash.
//
// A machine that began before and has booted since lost its installation (a power cut, a crash): that is a
// new attempt, and one more try. A repeated fetch within one boot (curl --retry) is the same attempt with a
// new secret. The ticket is that of the machine's boot script. A machine that is not to be installed, and a ticket
// that is not for it, get a *NotInstallingError.
func (r *Rack) BeginInstall(ctx context.Context, mac inventory.MAC, ticket string) (rec Record, secret string, err error) {
	m, ok := r.Machine(mac)
	if !ok {
		return Record{}, "", &NotInstallingError{Reason: fmt.Sprintf("%s is not in the list", mac)}
	}
	secret, hash := newSecret()
	rec, err = r.update(ctx, m.Name, "kickstart fetched", func(rec *Record) error {
		sameBoot, err := r.mayInstall(r.Decide(mac), ticket)
		if err != nil {
			return err
		}
		to, err := Next(rec.State, BeginInstall)
		if err != nil {
			return named(err, rec.Name)
		}
		if !sameBoot {
			if rec.State != Armed { // arming already made the first attempt's number
				rec.Attempt++
			}
			rec.Tries++
			rec.disown()
		}
		if rec.Begun.IsZero() {
			rec.Begun = r.poweredOn(*rec)
		}
		rec.State, rec.Failure, rec.SecretHash, rec.Ticket = to, nil, hash, hashSecret(ticket)
		return nil
	})
	if err != nil {
		return rec, "", err
	}
	return rec, secret, nil
}

// bootedSince tells whether firmware began a network boot after the record last changed.
func (r *Rack) bootedSince(rec Record) bool {
	return r.lastBoot(rec).After(rec.Since)
}

// poweredOn is when the network boot began that brought the machine here.
func (r *Rack) poweredOn(rec Record) time.Time {
	if last := r.lastBoot(rec); last.After(rec.Since) {
		return last
	}
	return r.now()
}

// newSecret makes a 256-bit token and the hash under which it is kept.
func newSecret() (secret, hash string) {
	var raw [32]byte
	rand.Read(raw[:]) // never fails: it ends the program instead
	secret = hex.EncodeToString(raw[:])
	return secret, hashSecret(secret)
}

func hashSecret(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// CheckSecret verifies the install token of a machine's attempt: ErrSuperseded, ErrBadSecret,
// *UnknownMachineError or nil.
func (r *Rack) CheckSecret(name string, attempt int, secret string) error {
	r.mu.RLock()
	rec, ok := r.records[name]
	r.mu.RUnlock()
	if !ok {
		return &UnknownMachineError{Name: name}
	}
	return rec.checkSecret(attempt, secret, rec.SecretHash)
}

// checkSecret holds what a caller presents against the hash of what it must be.
func (rec Record) checkSecret(attempt int, secret, hash string) error {
	switch {
	case attempt < rec.Attempt:
		return ErrSuperseded
	case attempt != rec.Attempt || hash == "":
		return ErrBadSecret
	case subtle.ConstantTimeCompare([]byte(hashSecret(secret)), []byte(hash)) != 1:
		return ErrBadSecret
	}
	return nil
}

// Approve binds a discovered machine to a free slot of the list and arms it. A further card of a known machine is a
// *FurtherCardError.
func (r *Rack) Approve(ctx context.Context, mac inventory.MAC, name string) (Record, error) {
	r.change.Lock()
	defer r.change.Unlock()
	if err := r.refuseCard(mac); err != nil {
		return Record{}, err
	}
	return r.bind(ctx, mac, name, "approved")
}

// ErrNoFreeSlot is an enrolment with every worker's slot of the list taken.
var ErrNoFreeSlot = errors.New("every worker of the list has its hardware")

// Enroll gives an unknown machine the next free slot of a worker, in the order of the list: a control plane is handed
// the cluster's keys, so that somebody has to approve it. A machine that has a slot keeps it; a further card of a known
// machine gets none (*FurtherCardError).
func (r *Rack) Enroll(ctx context.Context, mac inventory.MAC) (Record, error) {
	r.change.Lock()
	defer r.change.Unlock()
	r.mu.RLock()
	bound, known := r.names[mac]
	rec := r.records[bound]
	slot := r.slot
	r.mu.RUnlock()
	if known {
		return rec, nil
	}
	if err := r.refuseCard(mac); err != nil {
		return Record{}, err
	}
	if slot == "" {
		return Record{}, ErrNoFreeSlot
	}
	return r.bind(ctx, mac, slot, "enrolled")
}

// freeSlot is the first worker of the list without hardware. The caller holds mu.
func (r *Rack) freeSlot() string {
	for _, m := range r.config.Machines {
		if m.Role != inventory.RoleControlPlane && m.MAC.IsZero() && !r.records[m.Name].Enrolled {
			return m.Name
		}
	}
	return ""
}

// BindError is an approval that cannot be: the slot or the hardware is taken.
type BindError struct{ Reason string }

func (e *BindError) Error() string { return e.Reason }

// bind gives a slot its hardware. The caller holds change.
func (r *Rack) bind(ctx context.Context, mac inventory.MAC, name, why string) (Record, error) {
	r.mu.RLock()
	listed, ok := r.config.ByName(name)
	rec := r.records[name]
	taken, isTaken := r.names[mac]
	r.mu.RUnlock()
	switch {
	case !ok:
		return Record{}, &UnknownMachineError{Name: name}
	case isTaken && taken == name:
		return rec, nil // said twice
	case isTaken:
		return Record{}, &BindError{fmt.Sprintf("%s is %s already", mac, taken)}
	case !listed.MAC.IsZero():
		return Record{}, &BindError{fmt.Sprintf("%s has the MAC %s in the list: change it there, then `rackstrap reload`", name, listed.MAC)}
	case rec.Enrolled:
		return Record{}, &BindError{fmt.Sprintf("%s has the hardware %s: `rackstrap release %s` frees the slot", name, rec.MAC, name)}
	}
	from := rec
	rec.Name, rec.MAC, rec.Cards, rec.Enrolled, rec.Since = name, mac, "", true, r.now()
	rec.arm(Armed)
	if err := r.commit(ctx, rec, r.transitionEvent(from, rec, why)); err != nil {
		return Record{}, err
	}
	return r.record(name)
}

// Release frees a slot that approve or enrolment filled: the hardware is unknown again.
func (r *Rack) Release(ctx context.Context, name string) error {
	r.change.Lock()
	defer r.change.Unlock()
	rec, err := r.record(name)
	if err != nil {
		return err
	}
	if !rec.Enrolled {
		return &BindError{fmt.Sprintf("%s has its MAC from the list: change it there", name)}
	}
	if rec.Node.Member != 0 && !r.Cluster().Initialised.IsZero() {
		return &BindError{fmt.Sprintf("%s may be a node of the cluster: `rackstrap reinstall %s` takes it out first", name, name)}
	}
	e := Event{Time: r.now(), MAC: rec.MAC, Machine: name, Source: "operator", Kind: "release", Level: Info,
		Text: fmt.Sprintf("%s is no longer %s", rec.MAC, name)}
	if err := r.store.Delete(ctx, rec, e); err != nil {
		return fmt.Errorf("%s: store: %w", name, err)
	}
	r.mu.Lock()
	delete(r.records, name)
	r.known(r.config)
	r.mu.Unlock()
	r.journal.announce(e)
	r.logEvent(e)
	return nil
}

// update changes the record of a machine of the list, and returns when that is on disk. With why "" only a change of
// its state or attempt makes an event.
func (r *Rack) update(ctx context.Context, name, why string, change func(*Record) error) (Record, error) {
	r.change.RLock()
	defer r.change.RUnlock()
	defer r.turns.take(name)()

	from, err := r.record(name)
	if err != nil {
		return Record{}, err
	}
	to := from
	if err := change(&to); err != nil {
		return from, err
	}
	if to == from {
		return from, nil
	}
	if to.State != Failed {
		to.Failure = nil
	}
	if to.State != from.State || to.Attempt != from.Attempt {
		to.Since = r.now()
	}
	var events []Event
	if why != "" || to.State != from.State || to.Attempt != from.Attempt {
		events = append(events, r.transitionEvent(from, to, why))
	}
	if err := r.commit(ctx, to, events...); err != nil {
		return from, err
	}
	return r.record(name)
}

// record is the current record of a machine of the list.
func (r *Rack) record(name string) (Record, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	listed, ok := r.config.ByName(name)
	if !ok {
		return Record{}, &UnknownMachineError{Name: name}
	}
	rec, ok := r.records[name]
	if !ok || listed.MAC.IsZero() && !rec.Enrolled {
		return Record{}, fmt.Errorf("%s: %w", name, ErrNoHardware)
	}
	return rec, nil
}

func named(err error, name string) error {
	var te *TransitionError
	if errors.As(err, &te) {
		te.Machine = name
	}
	return err
}
