package lifecycle

import (
	"context"
	"fmt"
	"net/netip"

	"rackstrap/inventory"
)

// LeaseTakenError is an address that belongs to somebody else.
type LeaseTakenError struct {
	IP     netip.Addr
	Holder inventory.MAC // zero: quarantined
}

func (e *LeaseTakenError) Error() string {
	if e.Holder.IsZero() {
		return fmt.Sprintf("%s is quarantined", e.IP)
	}
	return fmt.Sprintf("%s is leased to %s", e.IP, e.Holder)
}

// Bind leases a pool address, or renews it, and returns when that is on disk. An address that another
// client holds unexpired is refused with a *LeaseTakenError: no address is handed out twice.
func (r *Rack) Bind(ctx context.Context, l Lease) error {
	defer r.turns.take("lease " + l.IP.String())()
	r.mu.RLock()
	held, ok := r.leases.byIP(l.IP)
	before, moved := r.leases.byMAC(l.MAC)
	r.mu.RUnlock()
	if ok && held.MAC != l.MAC && held.Expires.After(r.now()) {
		return &LeaseTakenError{IP: l.IP, Holder: held.MAC}
	}
	if err := r.store.PutLease(ctx, l); err != nil {
		return fmt.Errorf("store lease %s: %w", l.IP, err)
	}
	r.mu.Lock()
	r.leases.put(l)
	r.mu.Unlock()
	if moved && before.IP != l.IP && !l.MAC.IsZero() {
		return r.store.DropLease(ctx, before.IP)
	}
	return nil
}

// Quarantine keeps an address from being handed out until l.Expires: somebody declined it, or it answered.
// It holds whoever had the address.
func (r *Rack) Quarantine(ctx context.Context, l Lease) error {
	defer r.turns.take("lease " + l.IP.String())()
	l.MAC, l.State = inventory.MAC{}, LeaseQuarantined
	if err := r.store.PutLease(ctx, l); err != nil {
		return fmt.Errorf("store lease %s: %w", l.IP, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.leases.put(l)
	return nil
}

// Unbind gives the lease of that client on that address back; it is no error if there is none.
func (r *Rack) Unbind(ctx context.Context, mac inventory.MAC, ip netip.Addr) error {
	defer r.turns.take("lease " + ip.String())()
	r.mu.RLock()
	held, ok := r.leases.byIP(ip)
	r.mu.RUnlock()
	if !ok || held.MAC != mac || mac.IsZero() {
		return nil
	}
	if err := r.store.DropLease(ctx, ip); err != nil {
		return fmt.Errorf("drop lease %s: %w", ip, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.leases.drop(ip)
	return nil
}

// LeaseOf is the lease of a client, expired or not.
func (r *Rack) LeaseOf(mac inventory.MAC) (Lease, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.leases.byMAC(mac)
}

// LeaseAt is the lease of an address, expired or not.
func (r *Rack) LeaseAt(ip netip.Addr) (Lease, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.leases.byIP(ip)
}

// Leases lists all leases by address, expired ones included.
func (r *Rack) Leases() []Lease {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.leases.all()
}
