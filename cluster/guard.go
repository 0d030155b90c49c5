package cluster

import (
	"context"
	"fmt"
	"slices"

	"rackstrap/firstboot/api"
	"rackstrap/lifecycle"
)

// guard is the one place where it is decided whether a machine gets what decide has for it. A machine that is held is
// handed nothing; one that the operator has to confirm, nothing that leads to a secret of the cluster.
func guard(s situation, d step) step {
	switch {
	case s.record.IsHeld() && hands(d):
		return step{reason: fmt.Sprintf("it is held: `rackstrap unhold %s` goes on", s.machine.Name)}
	case s.unconfirmed && leads(d):
		return step{reason: fmt.Sprintf("waits for the operator to compare the fingerprint on its console: `rackstrap confirm %s`", s.machine.Name),
			confirm: s.record.Fingerprint()}
	}
	return d
}

// hands tells whether a step hands something out, or has somebody else make something for the machine. Done says that
// nothing is left to do.
func hands(d step) bool {
	switch d.kind {
	case stepReset, stepServe:
		return true
	}
	return leads(d)
}

// leads tells whether a step leads to a secret of the cluster: the cluster's own keys, a token, the certificate key.
func leads(d step) bool {
	switch d.kind {
	case stepInit, stepJoin, stepTurn, stepTokenID:
		return true
	}
	return slices.ContainsFunc(d.needs, func(n need) bool { return n.action == api.MintToken || n.action == api.UploadCerts })
}

// askConfirmation tells the operator, once for each credential, that a machine waits for a confirmation.
func (c *Coordinator) askConfirmation(rec lifecycle.Record, fingerprint string) {
	c.mu.Lock()
	asked := c.asked[rec.Name] == fingerprint
	c.asked[rec.Name] = fingerprint
	c.mu.Unlock()
	if !asked {
		c.say(rec, lifecycle.Warn, "confirm", "it waits for `rackstrap confirm %s`, with the fingerprint %s", rec.Name, fingerprint)
	}
}

// Confirm notes that the operator has compared a machine's fingerprint with that on its console: what it waits for is
// handed out. Errors: *RefusedError, and those of lifecycle.Rack.Confirm.
func (c *Coordinator) Confirm(ctx context.Context, name, fingerprint, by string) (lifecycle.Record, error) {
	m, err := c.o.Rack.Member(name)
	if err != nil {
		return lifecycle.Record{}, err
	}
	if !m.Machine.NeedsConfirmation() {
		return m.Record, refuse("%s needs no confirmation: install.confirm is %q", name, m.Machine.Install.Confirm)
	}
	rec, err := c.o.Rack.Confirm(ctx, name, fingerprint, shortLine(by))
	if err != nil {
		return rec, err
	}
	if rec.Revision != m.Record.Revision {
		text := "the operator"
		if by := rec.Node.Confirmed.By; by != "" {
			text += " (" + by + ")"
		}
		c.o.Rack.Observe(lifecycle.Event{MAC: rec.MAC, Machine: name, Attempt: rec.Attempt, Source: "operator", Kind: "confirm",
			Level: lifecycle.Info, Text: fmt.Sprintf("%s has confirmed %s, with the fingerprint %s", text, name, rec.Fingerprint())})
	}
	c.wake(name)
	return rec, nil
}

// revoke ends all that a machine proves itself with. Only a reinstallation gives it something new.
func (c *Coordinator) revoke(ctx context.Context, rec lifecycle.Record, say func(string)) (lifecycle.Record, error) {
	rec, err := c.o.Rack.Advance(ctx, rec.Name, rec.Attempt, "", "", func(rec *lifecycle.Record) error {
		rec.SecretHash, rec.Node.CredentialHash, rec.Node.SpentHash, rec.Node.Confirmed = "", "", "", lifecycle.Confirmation{}
		return nil
	})
	if err != nil {
		return rec, err
	}
	c.forget(rec.Name)
	c.say(rec, lifecycle.Warn, "revoke", "its token and its credential are revoked by the operator")
	say(fmt.Sprintf("the token and the credential of %s are good no more: after `rackstrap unhold %s`, `rackstrap reinstall %s` gives it new ones", rec.Name, rec.Name, rec.Name))
	return rec, nil
}
