package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"rackstrap/inventory"
	"rackstrap/lab"
	"rackstrap/lifecycle"
	"rackstrap/operator"
)

// milestones are those of a machine, in their order, of what its console shows: the timeline. A machine of namespaces has no
// disk to erase, and no login prompt. Of a medium of the user's the kernel's first line is known, and no more.
func (up *labUp) milestones(m lab.Machine) []*regexp.Regexp {
	switch {
	case up.iso != "":
		return []*regexp.Regexp{regexp.MustCompile(`(Linux version \S+)`)}
	case up.bootOnly:
		return milestones
	case m.Firmware == lab.Namespace:
		return append(slices.Concat(milestones, installMilestones[2:]), namespaceBooted)
	}
	return append(slices.Concat(milestones, installMilestones), diskBooted(m.Name))
}

// namespaceBooted is systemd's line in the journal, which such a machine shows on its console.
var namespaceBooted = regexp.MustCompile(`(?s)installation finished: .*(Reached target multi-user\.target)`)

// news is a line of a machine's timeline, or the timeline's end.
type news struct {
	machine string
	line    string
	over    bool
	err     error // the machine is off, or has failed before any installer
}

// serialPorts is a lab, as far as its machines' consoles go.
type serialPorts interface {
	WaitSerial(ctx context.Context, name string, pattern *regexp.Regexp) ([]string, error)
}

// timeline sends a machine's milestones as they come. What the installer could not do is not its end: the machine may be
// installed again.
func (up *labUp) timeline(ctx context.Context, rack serialPorts, m lab.Machine, send func(news)) {
	for _, milestone := range up.milestones(m) {
		match, err := rack.WaitSerial(ctx, m.Name, milestone)
		if err != nil {
			send(news{machine: m.Name, over: true, err: fmt.Errorf("%s: %w", m.Name, err)})
			return
		}
		send(news{machine: m.Name, line: match[1]})
		if strings.HasPrefix(match[1], "FAILED") {
			end := news{machine: m.Name, over: true}
			if up.bootOnly {
				end.err = errors.New(m.Name + ": " + match[1])
			}
			send(end)
			return
		}
	}
	send(news{machine: m.Name, over: true})
}

// lookEvery is how often the appliance is asked.
const lookEvery = time.Second

// follow waits for every machine and tells its milestones. With --boot-only these are all that there is; else a machine is
// there when its agent has called home from the disk, which the appliance knows, however the machine shows it and
// however often it was switched on before.
func (up *labUp) follow(ctx context.Context, rack serialPorts, cfg *inventory.Config, machines []lab.Machine, start time.Time) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	channel := make(chan news)
	send := func(n news) {
		select {
		case channel <- n:
		case <-ctx.Done():
		}
	}
	tell := func(name, line string) {
		fmt.Fprintf(up.out, "%6.1fs  %-10s %s\n", time.Since(start).Seconds(), name, line)
	}
	awaited := map[string]string{} // and where each one stands
	for _, m := range machines {
		if listed, ok := cfg.ByName(m.Name); ok && listed.MAC.IsZero() && !up.bootOnly && cfg.Network.DHCP.Unknown != inventory.UnknownEnroll {
			tell(m.Name, "is a free slot, which nobody takes before `rackstrap approve`: not waited for")
			continue
		}
		awaited[m.Name] = "nothing was heard of it"
		go up.timeline(ctx, rack, m, send)
	}
	appliance := operator.NewClient(cfg.Server.DataDir)
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	var faults []error
	for len(awaited) > 0 {
		select {
		case <-ctx.Done():
			for _, m := range machines {
				if where, ok := awaited[m.Name]; ok {
					faults = append(faults, fmt.Errorf("%s is not there after %v: %s", m.Name, time.Since(start).Round(time.Second), where))
				}
			}
			return errors.Join(faults...)
		case n := <-channel:
			_, waiting := awaited[n.machine]
			switch {
			case !waiting: // the appliance was faster
			case !n.over:
				tell(n.machine, n.line)
				awaited[n.machine] = n.line
			case n.err != nil:
				faults = append(faults, n.err)
				delete(awaited, n.machine)
			case up.bootOnly:
				delete(awaited, n.machine)
			}
		case <-look.C:
			if up.bootOnly {
				continue
			}
			status, err := appliance.Status(ctx)
			if err != nil {
				continue // it may be restarting; nothing is lost by asking again
			}
			for _, m := range status.Machines {
				if _, waiting := awaited[m.Name]; !waiting {
					continue
				}
				awaited[m.Name] = fmt.Sprintf("%s: %s", m.State, m.Reason)
				switch {
				case calledHome(m):
					tell(m.Name, fmt.Sprintf("runs from its disk: %s", m.State))
					delete(awaited, m.Name)
				case m.Action == lifecycle.ActionHold:
					faults = append(faults, fmt.Errorf("%s: %s", m.Name, awaited[m.Name]))
					delete(awaited, m.Name)
				}
			}
		}
	}
	return errors.Join(faults...)
}

// calledHome tells whether the agent of a machine's present installation has run: it told what the machine has.
func calledHome(m lifecycle.Status) bool { return m.Record.Node.CPUs > 0 }
