package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"rackstrap/inventory"
)

// ErrConflict is a commit of a record whose stored revision is another one: somebody was faster.
var ErrConflict = errors.New("record was changed in between")

// VersionError is a database that a newer Rackstrap wrote.
type VersionError struct {
	Path            string
	Found, Supports int
}

func (e *VersionError) Error() string {
	return fmt.Sprintf("%s: database has version %d, this rackstrap reads up to version %d: use the newer rackstrap, or another server.data_dir",
		e.Path, e.Found, e.Supports)
}

// EventQuery selects events.
type EventQuery struct {
	MAC   inventory.MAC   // zero: of all machines
	Cards []inventory.MAC // of these, too: the further cards of the machine
	After uint64          // only events with a higher Seq
	Limit int             // the newest so many; 0: all that are kept
}

// MACs are those whose events are wanted; none: all.
func (q EventQuery) MACs() []inventory.MAC {
	if q.MAC.IsZero() || slices.Contains(q.Cards, q.MAC) {
		return q.Cards
	}
	return append([]inventory.MAC{q.MAC}, q.Cards...)
}

// Has tells whether the events of a MAC are wanted.
func (q EventQuery) Has(mac inventory.MAC) bool {
	macs := q.MACs()
	return len(macs) == 0 || slices.Contains(macs, mac)
}

// Change is a record to be stored, and the events that tell of it.
type Change struct {
	Record Record
	Events []Event
}

// Store persists records, events, sightings and leases. When a method returns nil, what it was given is on
// stable storage (fsync). All methods are safe for concurrent use; concurrent writers may share one fsync.
type Store interface {
	// Records returns every record.
	Records(ctx context.Context) ([]Record, error)
	// Commit stores rec, if rec.Revision is the stored one (0: no such record yet; else ErrConflict),
	// together with the events, in one transaction. It returns rec with its new revision.
	Commit(ctx context.Context, rec Record, events ...Event) (Record, error)
	// CommitAll does that for several records, each of another name: all in one transaction, or none. It
	// returns them with their new revisions, in the same order.
	CommitAll(ctx context.Context, changes []Change) ([]Record, error)
	// Delete removes the record of that name, if the revision is the stored one, and appends the events.
	Delete(ctx context.Context, rec Record, events ...Event) error

	// Cluster returns the record of the cluster; the zero Cluster, if there is none yet.
	Cluster(ctx context.Context) (Cluster, error)
	// CommitCluster stores the record of the cluster, if its revision is the stored one (else ErrConflict), together
	// with the events, in one transaction. It returns it with its new revision.
	CommitCluster(ctx context.Context, c Cluster, events ...Event) (Cluster, error)

	// Append stores events and sightings, which replace those of the same MAC. The store gives the events
	// their Seq and keeps a bounded number per MAC, dropping the oldest.
	Append(ctx context.Context, events []Event, sightings []Sighting) error
	// Events returns the selected events, oldest first.
	Events(ctx context.Context, q EventQuery) ([]Event, error)
	// Sightings returns every sighting.
	Sightings(ctx context.Context) ([]Sighting, error)
	// Forget removes the sightings and the events of these MACs.
	Forget(ctx context.Context, macs []inventory.MAC) error

	// Leases returns every lease, expired ones included.
	Leases(ctx context.Context) ([]Lease, error)
	// PutLease stores a lease under its address.
	PutLease(ctx context.Context, l Lease) error
	// DropLease removes the lease of an address; none there is no error.
	DropLease(ctx context.Context, ip netip.Addr) error

	Close() error
}
