package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"rackstrap/firstboot/api"
	"rackstrap/lifecycle"
)

// bootWithin is how long a machine's agent may take to choose the network for the next boot. One that waits for work
// takes it at once.
const bootWithin = 15 * time.Second

// boot is an agent that is asked to choose the network for its machine's next boot.
type boot struct {
	id     string
	answer chan api.Result
}

// choose is how an operator has a machine boot from the network by hand.
const choose = "choose the network for its next boot (`ipmitool chassis bootdev pxe`, with options=efiboot for UEFI; F12 or F11 at its screen)"

// prepareBoot sees to it that the next boot of a machine is from the network, as far as its agent can, and returns what
// there is to do for the operator. It comes before the machine is armed: its agent is refused afterwards.
func (c *Coordinator) prepareBoot(ctx context.Context, m lifecycle.Member) string {
	name, b := m.Machine.Name, m.Record.Node.Boot
	switch {
	case b.Firmware == "":
		return fmt.Sprintf("reboot it; what %s boots first is not known: if that is its disk, %s", name, choose)
	case b.Firmware == string(api.BIOS):
		return fmt.Sprintf("reboot it; its BIOS says what %s boots first: if that is its disk, %s", name, choose)
	case b.NetworkFirst:
		return fmt.Sprintf("reboot it; %s boots from the network: %s was the first of its boot entries when it was installed", name, b.First)
	}
	entry, err := c.bootNetwork(ctx, m)
	if err == nil {
		return fmt.Sprintf("reboot it; its agent has chosen the network for the next boot of %s: %s", name, entry)
	}
	first := b.First
	if first == "" {
		first = "what is first in its boot order is not known"
	} else {
		first += " is first in its boot order"
	}
	return fmt.Sprintf("%s would not boot from the network: %s, and %v. Reboot it, and %s", name, first, err, choose)
}

// bootNetwork has a machine's own agent choose the network for the next boot.
func (c *Coordinator) bootNetwork(ctx context.Context, m lifecycle.Member) (entry string, err error) {
	name := m.Machine.Name
	b := &boot{id: fmt.Sprintf("%s.%s", api.BootNetwork, randomText(8)), answer: make(chan api.Result, 1)}
	c.mu.Lock()
	_, calls := c.pollers[name]
	if calls {
		c.boots[name] = b
	}
	c.pollers[name].nudge()
	c.mu.Unlock()
	if !calls {
		return "", errors.New("no agent of it waits for work that could change that")
	}
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.boots[name] == b {
			delete(c.boots, name)
		}
	}()
	patience := time.NewTimer(bootWithin)
	defer patience.Stop()
	select {
	case r := <-b.answer:
		if !r.OK {
			return "", fmt.Errorf("its agent could not change that: %s", failureText(r))
		}
		return oneLine(r.BootEntry), nil
	case <-patience.C:
		return "", fmt.Errorf("its agent did not change that within %v", bootWithin)
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// bootWork is what a machine's agent is asked to do for its next boot, if it is.
func (c *Coordinator) bootWork(name string) *api.Work {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.boots[name]
	if b == nil {
		return nil
	}
	return &api.Work{ID: b.id, Action: api.BootNetwork, Seconds: int(bootWithin / time.Second)}
}

// bootResult takes what became of it; nobody waits for one that comes late.
func (c *Coordinator) bootResult(name, id string, r api.Result) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.boots[name]
	if b == nil || b.id != id {
		return ErrUnknownWork
	}
	delete(c.boots, name)
	b.answer <- r
	return nil
}

// noteBoot writes down what a machine tells of its firmware, and says what an operator should know.
func (c *Coordinator) noteBoot(rec lifecycle.Record, b api.Boot) {
	switch {
	case b.Firmware != api.UEFI || b.NetworkFirst:
	case b.Error != "":
		c.say(rec, lifecycle.Warn, "boot-order", "it is not known what it boots first: %s", oneLine(b.Error))
	default:
		c.say(rec, lifecycle.Warn, "boot-order", "%q is first in its boot order, not the network: a reinstallation needs somebody to choose the network", oneLine(b.First))
	}
}

func bootOf(b api.Boot) lifecycle.Boot {
	if b.Firmware != api.BIOS && b.Firmware != api.UEFI {
		return lifecycle.Boot{}
	}
	return lifecycle.Boot{Firmware: string(b.Firmware), NetworkFirst: b.NetworkFirst, First: oneLine(b.First)}
}
