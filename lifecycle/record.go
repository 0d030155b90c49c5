package lifecycle

import (
	"net/netip"
	"time"

	"rackstrap/inventory"
)

// Failure is why a machine failed.
type Failure struct {
	Phase     State  `json:"phase"`     // the state in which it failed
	Reason    string `json:"reason"`    // one line for people; never a secret
	Retryable bool   `json:"retryable"` // another installation may be tried
}

// Held is the operator's wish that a machine boots its disk, whatever its state would have it boot. It stands beside the
// state and changes nothing else.
type Held struct {
	Since  time.Time `json:"since"`            // zero: not held
	By     string    `json:"by,omitempty"`     // who asked for it; "": not known
	Reason string    `json:"reason,omitempty"` // one line for people
}

// Record is the persistent state of one machine of the list, keyed by its name.
type Record struct {
	Name       string        `json:"name"`
	MAC        inventory.MAC `json:"mac"`                // of the hardware that the state belongs to
	Cards      string        `json:"cards,omitempty"`    // all its MACs, where the list names several; with blanks between
	Enrolled   bool          `json:"enrolled,omitempty"` // the MAC was bound here by approve or enrolment, not by the list
	State      State         `json:"state"`
	Attempt    int           `json:"attempt"`               // counts armings and repeated installations, from 1; never falls
	Tries      int           `json:"tries"`                 // installations begun since the operator last armed it
	SecretHash string        `json:"secret_hash,omitempty"` // hex SHA-256 of the attempt's install token
	Ticket     string        `json:"ticket,omitempty"`      // hex SHA-256 of the ticket that the last kickstart was given for
	Since      time.Time     `json:"since"`                 // when State or Attempt last changed
	Begun      time.Time     `json:"begun,omitzero"`        // power-on of the first installation since it was last armed
	Node       Node          `json:"node,omitzero"`         // its way into the cluster
	Failure    *Failure      `json:"failure,omitempty"`     // set while State is Failed
	Held       Held          `json:"held,omitzero"`         // by the operator
	Revision   uint64        `json:"revision"`              // of the store; compare-and-swap
}

// Node is what has to be remembered of a machine's way into the cluster. Like everything in a Record it may be seen by
// the operator, but for the hash.
type Node struct {
	CredentialHash string    `json:"credential_hash,omitempty"` // hex SHA-256 of what the install token was exchanged for
	SpentHash      string    `json:"spent_hash,omitempty"`      // hex SHA-256 of the install token, once it is void
	CredentialUsed bool      `json:"credential_used,omitempty"` // the machine has it: the install token is void
	Boot           Boot      `json:"boot,omitzero"`             // what its firmware boots first; outlives an attempt
	CPUs           int       `json:"cpus,omitempty"`            // as the machine told
	MemoryMiB      int       `json:"memory_mib,omitempty"`      // as the machine told
	Skew           Skew      `json:"skew,omitempty"`            // of its clock, when it called home
	Work           string    `json:"work,omitempty"`            // id of the work that it was handed for itself: init, join, reset
	Done           string    `json:"done,omitempty"`            // id of the last one whose result was accepted
	Serial         int       `json:"serial,omitempty"`          // of those ids
	Tries          int       `json:"tries,omitempty"`           // inits or joins that failed
	TokenRefused   int       `json:"token_refused,omitempty"`   // joins whose token was not accepted
	Reset          bool      `json:"reset,omitempty"`           // has to be reset before the next init or join
	Deadline       time.Time `json:"deadline,omitzero"`         // of what it is waited for in its state
	Member         int       `json:"member,omitempty"`          // attempt that may be a node of the cluster; 0: none
	TokenID        string    `json:"token_id,omitempty"`        // public half of a bootstrap token that may exist for it
	Adopted        bool      `json:"adopted,omitempty"`         // a master has to look whether the cluster has it as Ready

	Call      Call         `json:"call,omitzero"`      // what it said of itself when it called home
	Confirmed Confirmation `json:"confirmed,omitzero"` // by the operator, of the credential that it uses
}

// Boot is what a machine's firmware boots first, as its agent has told.
type Boot struct {
	Firmware     string `json:"firmware,omitempty"`      // bios, uefi; "": not known
	NetworkFirst bool   `json:"network_first,omitempty"` // UEFI: the first boot entry leads to the network
	First        string `json:"first,omitempty"`         // UEFI: label of that entry; "": not known
}

// Skew is by how much a machine's clock is ahead of the appliance's; negative: behind.
type Skew = time.Duration

// Cluster is the persistent state of the one cluster that the machines form: who may initialise it, and what is
// known of it since. There is one record; its revision makes taking the lock a compare-and-swap.
type Cluster struct {
	Holder      string    `json:"holder,omitempty"`  // of the init lock: the machine that initialises, or did
	Attempt     int       `json:"attempt,omitempty"` // of the holder, when it last took the lock
	Locked      time.Time `json:"locked,omitzero"`
	Initialised time.Time `json:"initialised,omitzero"`
	CA          string    `json:"ca,omitempty"`       // certificate, PEM
	CAHash      string    `json:"ca_hash,omitempty"`  // sha256:…, of its SubjectPublicKeyInfo; made by the appliance
	Endpoint    string    `json:"endpoint,omitempty"` // host:port, that it was initialised with
	Joining     string    `json:"joining,omitempty"`  // the control plane that may join now: one at a time
	Stray       string    `json:"stray,omitempty"`    // ids of tokens that nobody waits for, to be deleted; with blanks between
	Complete    time.Time `json:"complete,omitzero"`  // when every machine of the list was last seen ready
	Revision    uint64    `json:"revision"`

	// Of the first time that every machine of the list was ready: when that was, and the first power-on before it. What is
	// reinstalled later does not change them.
	FirstComplete time.Time `json:"first_complete,omitzero"`
	FirstPowerOn  time.Time `json:"first_power_on,omitzero"`
}

// Level says how much an event matters.
type Level string

// The levels.
const (
	Info  Level = "info"
	Warn  Level = "warn"
	Alarm Level = "alarm" // an operator should look
)

// Event is one line of a machine's timeline. Events are for people and never hold a secret.
type Event struct {
	Seq     uint64        `json:"seq"` // given by the store, rising over all machines
	Time    time.Time     `json:"time"`
	MAC     inventory.MAC `json:"mac"`               // zero: concerns the whole rack
	Machine string        `json:"machine,omitempty"` // name in the list, if it has one
	Attempt int           `json:"attempt,omitempty"`
	Source  string        `json:"source"` // dhcp, tftp, http, lifecycle, operator, …
	Kind    string        `json:"kind"`   // offer, ack, nak, loader, script, transition, …
	Level   Level         `json:"level"`
	Text    string        `json:"text"`
}

// Sighting is what the wire told about a machine, known or not.
type Sighting struct {
	MAC         inventory.MAC `json:"mac"`
	First       time.Time     `json:"first"`
	Last        time.Time     `json:"last"`
	LastBoot    time.Time     `json:"last_boot,omitzero"`     // last network boot begun by firmware
	DiskBoot    time.Time     `json:"disk_boot,omitzero"`     // last DHCP by an installed system: proof that the disk boots
	VendorClass string        `json:"vendor_class,omitempty"` // option 60
	Firmware    string        `json:"firmware,omitempty"`     // see assets.Firmware
	UUID        string        `json:"uuid,omitempty"`         // option 97
	Relay       netip.Addr    `json:"relay,omitzero"`         // giaddr
	Hostname    string        `json:"hostname,omitempty"`     // option 12
	Address     netip.Addr    `json:"address,omitzero"`       // last address handed out, here or by another server
	Server      netip.Addr    `json:"server,omitzero"`        // other DHCP server that handed Address out, if one did
}

// LeaseState tells what a pool address is used for.
type LeaseState string

// The lease states.
const (
	LeaseBound       LeaseState = "bound"       // acknowledged to a client
	LeaseQuarantined LeaseState = "quarantined" // declined by a client or found in use: not handed out until it expires
)

// Lease is one address of a pool that is in use. Reservations are not leases: the list is their authority.
type Lease struct {
	IP      netip.Addr    `json:"ip"`
	MAC     inventory.MAC `json:"mac"` // zero for a quarantined address
	State   LeaseState    `json:"state"`
	Expires time.Time     `json:"expires"`
}
