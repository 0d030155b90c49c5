// Package dhcp answers DHCP (RFC 2131) on the provisioning network: the reserved address for every machine
// of the list, a pool for the others, and what their firmware shall boot. Beside an existing DHCP server it
// says only the latter (PXE 2.1 proxyDHCP).
//
// A packet goes one way: server.go receives it, backlog.go has it wait by its urgency, facts.go reads it once, handle.go
// picks the file of its message (discover.go, request.go, …), reply.go and boot.go build the answer, send.go sends it.
// Server.Handle is everything but the two ends, and never sends.
package dhcp

import (
	"log/slog"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"rackstrap/assets"
	"rackstrap/lifecycle"
)

// Boot says which file a firmware shall load. Package bootplan implements it.
type Boot interface {
	// Loader is a path without a leading slash ("undionly.kpxe", "shim/centos-7.9/BOOTX64.EFI"), which TFTP
	// serves as it is and HTTP below /loader/, or an error whose text is why none is offered.
	Loader(d lifecycle.Decision, fw assets.Firmware) (string, error)
}

// Prober finds out whether a host uses an address at this moment, and who ("52:54:00:00:00:99"). It is called before
// a pool address is offered, does not wait, and calls done once, within probeTime or so.
type Prober func(ip netip.Addr, done func(inUse bool, by string))

// The UDP ports of the protocols. Tests use others.
const (
	portServer = 67   // RFC 2131 section 4.1; relay agents listen there, too
	portClient = 68   // RFC 2131 section 4.1
	portPXE    = 4011 // PXE 2.1 section 2.2.3: the boot server's and proxyDHCP's own port
)

// Times that are not configurable.
const (
	offerTime      = time.Minute            // an address offered waits so long for its REQUEST
	quarantineTime = time.Hour              // an address that was declined, or answered, rests so long
	probeTime      = 450 * time.Millisecond // for one conflict check; edk2 waits 3.5 s for all offers
	quietTime      = 5 * time.Second        // what repeats within it is one event
)

// Options are the dependencies of a Server.
type Options struct {
	Rack    *lifecycle.Rack
	Boot    Boot
	Log     *slog.Logger
	Now     func() time.Time
	Metrics prometheus.Registerer // nil: no metrics

	// Interface is the only NIC that is served; "" serves all, without conflict checks and without looking
	// for foreign servers.
	Interface string
	// Address is the server identifier (option 54) and the source of every reply: the interface's own.
	Address  netip.Addr
	HTTPPort int // of the boot plane, for URLs; 0: as configured

	Port       int // 0 is an ephemeral one, for tests; everybody else says 67
	ProxyPort  int // 0: 4011, or an ephemeral one where Port is one
	ClientPort int // where replies go to; 0: 68

	Prober Prober // nil: ARP on the interface's own network, ICMP echo behind relay agents
}
