package lifecycle

import (
	"context"
	"crypto/subtle"
	"net/netip"
	"time"
)

// byAppliance is who holds a machine that two parties seem to act as.
const byAppliance = "rackstrap"

// SignOfInstaller notes that the installer of the machine with an address of the list was seen at work: it fetched its
// second stage, a package or the agent. Its reports and its log are signs, too (Report).
func (r *Rack) SignOfInstaller(from netip.Addr) {
	mac, ok := r.MACByIP(from)
	if !ok {
		return
	}
	r.mu.RLock()
	name, listed := r.names[mac]
	r.mu.RUnlock()
	if listed {
		r.signOfInstaller(name)
	}
}

func (r *Rack) signOfInstaller(name string) {
	r.mu.RLock()
	rec := r.records[name]
	r.mu.RUnlock()
	if !rec.mayCallHome() {
		return
	}
	r.lives.mu.Lock()
	defer r.lives.mu.Unlock()
	r.lives.get(name).installer = rec.Attempt
}

// mayCallHome tells whether the end of an installation is still to come: it runs, or it failed, and may turn out to have
// been slow only. Who has its token can report a failure, so that the second is no other case than the first.
func (rec Record) mayCallHome() bool { return rec.State == Installing || rec.recovers(CallHome) }

// installerSeen tells whether the installer of a machine's attempt was seen at work, or the daemon was not there all the
// time to see it. Of an installation that failed it is not known when it began, only when the first of its tries did.
func (r *Rack) installerSeen(rec Record) bool {
	began := rec.Since
	if rec.State == Failed {
		began = rec.Begun
	}
	if r.started.After(began) {
		return true
	}
	r.lives.mu.Lock()
	defer r.lives.mu.Unlock()
	return r.lives.get(rec.Name).installer == rec.Attempt
}

// CheckInstaller holds a machine that calls as if it were installed although nothing was seen of its installer: *HeldError.
// Whoever has read its kickstart could do so at once. The secret is the attempt's; one that is not is somebody else's business.
func (r *Rack) CheckInstaller(ctx context.Context, name string, attempt int, secret string) error {
	rec, err := r.record(name)
	if err != nil || !rec.mayCallHome() || rec.checkSecret(attempt, secret, rec.SecretHash) != nil || r.installerSeen(rec) {
		return nil
	}
	return r.suspect(ctx, rec, "it calls as if it were installed, and nothing was seen of its installer: no step of its scripts, no log, "+
		"no request for its second stage, its packages or the agent")
}

// CheckSpent holds a machine in whose name an install token is presented that was exchanged already, and whose credential has
// been in use since: *HeldError. One of the two is not the machine.
func (r *Rack) CheckSpent(ctx context.Context, name string, attempt int, secret string) error {
	rec, err := r.record(name)
	if err != nil || attempt != rec.Attempt || rec.Node.SpentHash == "" ||
		subtle.ConstantTimeCompare([]byte(hashSecret(secret)), []byte(rec.Node.SpentHash)) != 1 {
		return nil
	}
	return r.suspect(ctx, rec, "two parties act as this machine: its install token was presented again after it had been exchanged and its credential used")
}

// CheckConnection looks at a call of a machine's agent on a connection that was made at a time: where firmware asked by DHCP
// in its name since, that was somebody else, for a machine that boots has lost its connections. That is an alarm, once for each
// such boot; it holds nothing, since anybody can make DHCP requests up.
func (r *Rack) CheckConnection(name string, made time.Time) {
	rec, err := r.record(name)
	if err != nil {
		return
	}
	boot := r.lastBoot(rec)
	if made.IsZero() || !boot.After(made) {
		return
	}
	r.lives.mu.Lock()
	l := r.lives.get(name)
	news := !l.parties.Equal(boot)
	l.parties = boot
	r.lives.mu.Unlock()
	if news {
		r.Observe(Event{MAC: rec.MAC, Machine: name, Attempt: rec.Attempt, Source: "lifecycle", Kind: "suspect", Level: Alarm,
			Text: "two parties act as this machine: firmware asked by DHCP in its name, while a connection of its agent from before goes on"})
	}
}

// partiesFor is how long `status` shows that somebody asked in a machine's name while it ran.
const partiesFor = time.Hour

// twoParties tells what `status` says of a machine in whose name somebody else asked; "": nobody did.
func (r *Rack) twoParties(name string) string {
	r.lives.mu.Lock()
	defer r.lives.mu.Unlock()
	if at := r.lives.get(name).parties; !at.IsZero() && r.now().Sub(at) < partiesFor {
		return "somebody else asked by DHCP in its name while it ran (" + at.UTC().Format(time.TimeOnly) + ")"
	}
	return ""
}

// suspect holds a machine, with an alarm, until the operator has looked.
func (r *Rack) suspect(ctx context.Context, rec Record, reason string) error {
	if !rec.IsHeld() {
		var err error
		if rec, err = r.Hold(ctx, rec.Name, byAppliance, reason); err != nil {
			return err
		}
		r.Observe(Event{MAC: rec.MAC, Machine: rec.Name, Attempt: rec.Attempt, Source: "lifecycle", Kind: "suspect", Level: Alarm, Text: reason})
	}
	return rec.RefuseHeld()
}
