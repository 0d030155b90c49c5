// Package operator is the operator's plane: a unix socket in the data directory that only root may open,
// and the client that the commands use.
package operator

import (
	"net/netip"
	"time"

	"rackstrap/cluster"
	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

// SocketName is the socket's file in server.data_dir.
const SocketName = "rackstrap.sock"

// Status is the answer of GET /api/v1/status: the rack on one screen.
type Status struct {
	Version   string             `json:"version"`
	Started   time.Time          `json:"started"`
	Now       time.Time          `json:"now"`
	Config    string             `json:"config"` // path of the file in force
	Address   netip.Addr         `json:"address"`
	Interface string             `json:"interface"`
	Listeners []string           `json:"listeners"`
	DHCPMode  inventory.DHCPMode `json:"dhcp_mode"`
	Foreign   []string           `json:"foreign_dhcp"` // other DHCP servers seen on the network
	Dropped   uint64             `json:"events_dropped"`
	Cluster   cluster.Status     `json:"cluster"`
	Machines  []lifecycle.Status `json:"machines"` // the list's, then the discovered ones
	Leases    []lifecycle.Lease  `json:"leases"`
}

// ReloadResult is the answer of POST /api/v1/reload.
type ReloadResult struct {
	Changes      []string `json:"changes"`       // places of the file that differ
	NeedsRestart []string `json:"needs_restart"` // changed keys that take effect only at the next start
	Warnings     []string `json:"warnings"`
}

// approval is the body of POST /api/v1/discovered/{mac}/approve.
type approval struct {
	As           string `json:"as"`
	OtherMachine bool   `json:"other_machine,omitempty"` // though it has the UUID of a known one
}

// problem is the body of every answer that is not a success.
type problem struct {
	Error string `json:"error"`
}
