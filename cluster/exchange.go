package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"rackstrap/firstboot/api"
	"rackstrap/internal/plain"
	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

// ErrForeignMAC is a machine that names another MAC than the one that its name belongs to: 403.
var ErrForeignMAC = errors.New("this is not the machine's MAC address")

// warnSkew is by how much a clock may be off before the operator hears of it.
const warnSkew = 30 * time.Second

// Exchange makes a credential of the install token of an attempt, and notes what the machine tells of itself. Errors: as
// of lifecycle.Rack.CallHome, and ErrForeignMAC.
func (c *Coordinator) Exchange(ctx context.Context, name, secret string, ex api.Exchange) (api.Credential, error) {
	m, err := c.o.Rack.Member(name)
	if err != nil {
		return api.Credential{}, err
	}
	if held := m.Record.RefuseHeld(); held != nil { // a credential is a secret: it is made when the hold ends
		return api.Credential{}, cmp.Or(c.o.Rack.CheckSecret(name, ex.Attempt, secret), held)
	}
	if err := cmp.Or(c.o.Rack.CheckInstaller(ctx, name, ex.Attempt, secret), c.o.Rack.CheckSpent(ctx, name, ex.Attempt, secret)); err != nil {
		return api.Credential{}, err
	}
	mac, err := inventory.ParseMAC(ex.MAC)
	if err != nil || !m.Machine.Has(mac) {
		if err := c.o.Rack.CheckSecret(name, ex.Attempt, secret); err != nil {
			return api.Credential{}, err // whoever has no token learns nothing of MACs
		}
		return api.Credential{}, ErrForeignMAC
	}
	skew := ex.Facts.Clock.Sub(c.o.Now())
	if ex.Facts.Clock.IsZero() {
		skew = 0
	}
	rec, credential, err := c.o.Rack.CallHome(ctx, name, ex.Attempt, secret, func(rec *lifecycle.Record) {
		rec.Node.CPUs, rec.Node.MemoryMiB, rec.Node.Skew = ex.Facts.CPUs, ex.Facts.MemoryMiB, skew
		rec.Node.Boot = bootOf(ex.Facts.Boot)
		rec.Node.Call = lifecycle.Call{At: c.o.Now(), OS: fact(ex.Facts.OS), Kernel: fact(ex.Facts.Kernel),
			Board: fact(ex.Facts.Board), Serial: fact(ex.Facts.Serial), UUID: fact(ex.Facts.UUID)}
		if ex.Facts.Joined && rec.State == lifecycle.Firstboot {
			rec.Node.Reset = true
		}
		rec.Node.Adopted = rec.Node.Adopted && ex.Facts.Joined // no node can be on a disk that never joined
	})
	if err != nil {
		return api.Credential{}, err
	}
	f := ex.Facts
	c.say(rec, lifecycle.Info, "facts", "%s", fmt.Sprintf("%d CPU, %d MiB, %s, kernel %s, containerd %s, kubeadm %s, agent %s",
		f.CPUs, f.MemoryMiB, fact(f.OS), fact(f.Kernel), fact(f.Containerd), fact(f.Kubeadm), fact(f.Agent)))
	if f.Hostname != "" && f.Hostname != name {
		c.say(rec, lifecycle.Warn, "facts", "it calls itself %s; its node will be called %s", fact(f.Hostname), name)
	}
	c.noteBoot(rec, f.Boot)
	switch {
	case skew.Abs() > maxSkew:
		c.say(rec, lifecycle.Alarm, "clock", "its clock is %s: it joins when that is right", skewText(skew))
	case skew.Abs() > warnSkew:
		c.say(rec, lifecycle.Warn, "clock", "its clock is %s", skewText(skew))
	}
	return api.Credential{Credential: credential, Role: string(m.Machine.Role)}, nil
}

// fact is a short text of a machine about itself.
func fact(text string) string { return Redact(plain.Line(text, 100)) }
