package lifecycle

import (
	"fmt"
	"net/netip"

	"rackstrap/inventory"
)

// DecideFrom is Decide for a client that asks from this address: the one verdict on an installation. The kickstart,
// which holds a secret, goes to the machine's reserved address only; so a machine that another DHCP server gave
// another one is not sent to an installer that would be refused there, but waits, and the operator learns why.
func (r *Rack) DecideFrom(mac inventory.MAC, client netip.Addr) Decision {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.at(r.decide(mac, ""), client)
}

// at is the decision for a client with that address. The caller holds mu.
func (r *Rack) at(d Decision, client netip.Addr) Decision {
	if d.Action != ActionInstall || client == d.Machine.IP {
		return d
	}
	advice := fmt.Sprintf("reserve that for %s there, or change its ip in the list", d.MAC)
	if r.config.Network.DHCP.Mode == inventory.DHCPServer {
		if l, ok := r.leases.byIP(client); ok && d.Machine.Has(l.MAC) {
			return d // approved in the waiting screen: the installer asks this appliance, and gets the reserved one
		}
		advice = "no other DHCP server may answer on this network (`rackstrap doctor` looks for it)"
	}
	by := "another DHCP server"
	if s, ok := r.sightings[d.MAC]; ok && s.Server.IsValid() && s.Address == client {
		by = "the DHCP server " + s.Server.String()
	}
	d.Action = ActionWait
	d.Reason = fmt.Sprintf("%s waits: %s gave it %s, the list says %s: %s", d.Machine.Name, by, client, d.Machine.IP, advice)
	return d
}

// SeeAddress notes the address that a machine of the list has from another DHCP server, in the modes in which that is
// foreseen. The server is the zero Addr where it is not known.
func (r *Rack) SeeAddress(mac inventory.MAC, address, server netip.Addr) {
	r.mu.RLock()
	_, listed := r.names[mac]
	s, seen := r.sightings[mac]
	same := seen && s.Address == address && (s.Server == server || !server.IsValid())
	foreseen := r.config.Network.DHCP.Mode != inventory.DHCPServer
	_, near := r.config.SubnetOf(address)
	ours := address == r.config.Server.Address // an operator on the appliance
	r.mu.RUnlock()
	if listed && foreseen && near && !ours && !same {
		r.See(Sighting{MAC: mac, Address: address, Server: server})
	}
}

// MayInstall tells whether BeginInstall would begin an installation now: nil, or a *NotInstallingError.
func (r *Rack) MayInstall(mac inventory.MAC, ticket string) error {
	_, err := r.mayInstall(r.Decide(mac), ticket)
	return err
}

// mayInstall tells, too, whether the kickstart is that of an installation which began in this boot already.
func (r *Rack) mayInstall(d Decision, ticket string) (sameBoot bool, err error) {
	sameBoot = d.Listed && d.Record.State == Installing && !r.bootedSince(d.Record)
	if d.Action != ActionInstall && !sameBoot {
		return false, &NotInstallingError{Reason: d.Reason}
	}
	issued, ok := r.issued(d.MAC, ticket)
	if !ok {
		return false, &NotInstallingError{Reason: "its path is not the one that the machine's boot script names"}
	}
	_, reported := r.progress(d.Record)
	if err := d.Record.admits(ticket, issued, r.now(), sameBoot, reported); err != nil {
		return false, &NotInstallingError{Reason: err.Error()}
	}
	return sameBoot, nil
}
