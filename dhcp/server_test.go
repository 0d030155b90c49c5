package dhcp

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"rackstrap/assets"
	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

var loopback = netip.MustParseAddr("127.0.0.1")

// running is a server on ports of the loopback interface. Its relay agents are on 127.0.0.0/8 and would be
// refused; renewals are not.
func running(t *testing.T, boot Boot, edit ...func(*Options)) (s *Server, dial func(pxe bool) *net.UDPConn, registry *prometheus.Registry) {
	t.Helper()
	client, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	t.Cleanup(func() { client.Close() })
	cfg := config(func(c *inventory.Config) {
		c.Network.Subnet = inventory.Subnet{Prefix: netip.MustParsePrefix("127.0.0.0/8"), Pool: rangeOf("127.0.0.1", "127.0.9.9")}
		c.Machines[0].IP = loopback
	})
	r := newRig(t, cfg)
	registry = prometheus.NewRegistry()
	o := Options{Rack: r.rack, Boot: boot, Log: r.log, Now: time.Now, Metrics: registry, Address: loopback,
		ClientPort: client.LocalAddr().(*net.UDPAddr).Port}
	for _, e := range edit {
		e(&o)
	}
	s, err = Listen(o)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			require.NoError(t, err)
		case <-time.After(20 * time.Second):
			t.Fatal("Run does not end")
		}
	})
	return s, func(pxe bool) *net.UDPConn {
		if pxe {
			c, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: s.Addrs()[1].(*net.UDPAddr).Port})
			require.NoError(t, err)
			return c
		}
		return client
	}, registry
}

func ask(t *testing.T, s *Server, conn *net.UDPConn, data []byte) *dhcpv4.DHCPv4 {
	t.Helper()
	var err error
	if conn.RemoteAddr() == nil {
		_, err = conn.WriteTo(data, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: s.Addrs()[0].(*net.UDPAddr).Port})
	} else {
		_, err = conn.Write(data)
	}
	require.NoError(t, err)
	conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	buf := make([]byte, 2048)
	n, err := conn.Read(buf)
	require.NoError(t, err)
	m, err := dhcpv4.FromBytes(buf[:n])
	require.NoError(t, err)
	return m
}

// TestConflictChecksHoldNobodyUp: however many new clients wait for their conflict check, the others are served.
func TestConflictChecksHoldNobodyUp(t *testing.T) {
	var prober held
	s, dial, _ := running(t, nil, func(o *Options) { o.Prober = prober.probe })
	client := dial(false)
	for i := 0; prober.count() <= workers+listedWorkers; i++ { // packets may get lost
		_, err := client.WriteTo(discover(mac(i)).ToBytes(), &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: s.Addrs()[0].(*net.UDPAddr).Port})
		require.NoError(t, err)
		time.Sleep(100 * time.Microsecond)
	}
	time.Sleep(2 * probeTime) // a check that is over its time must not take the others with it
	reply := ask(t, s, client, request(macMaster, ciaddr(loopback)).ToBytes())
	require.Equal(t, dhcpv4.MessageTypeAck, reply.MessageType())
}

// TestLoop: what is malformed, or makes us panic, ends nothing.
func TestLoop(t *testing.T) {
	s, dial, registry := running(t, fragile{})
	client, pxe := dial(false), dial(true)
	renew := request(macMaster, ciaddr(loopback)).ToBytes()
	bad := []*dhcpv4.DHCPv4{request(macMaster, ciaddr(loopback), firmwareOf["bios"])} // fragile panics
	for _, m := range bad {
		_, err := client.WriteTo(m.ToBytes(), &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: s.Addrs()[0].(*net.UDPAddr).Port})
		require.NoError(t, err)
	}
	for _, tc := range malformedPackets {
		if tc.drop == "" || tc.drop == DropTooBig {
			continue // they get a reply, by broadcast
		}
		for _, port := range s.Addrs() {
			client.WriteTo(tc.data, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port.(*net.UDPAddr).Port})
		}
	}
	client.WriteTo(make([]byte, maxPacket+1), &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: s.Addrs()[0].(*net.UDPAddr).Port})
	require.Equal(t, ackT, ask(t, s, client, renew).MessageType())
	require.Equal(t, "snponly.efi", ask(t, s, pxe, request(macMaster, firmwareOf["x64"]).ToBytes()).BootFileName)
	require.Eventually(t, func() bool {
		return testutil.ToFloat64(s.metrics.dropped.WithLabelValues("panic")) == 1 &&
			testutil.ToFloat64(s.metrics.dropped.WithLabelValues("truncated")) == 1 &&
			testutil.ToFloat64(s.metrics.dropped.WithLabelValues("malformed")) > 20
	}, 20*time.Second, 10*time.Millisecond)
	require.Eventually(t, func() bool { // an answer is counted after it was sent
		return testutil.ToFloat64(s.metrics.sent.WithLabelValues("ACK")) == 2
	}, 20*time.Second, 10*time.Millisecond)
	require.NoError(t, testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP rackstrap_dhcp_pool_addresses Addresses of the pools, by network and state (bound, quarantined, free).
# TYPE rackstrap_dhcp_pool_addresses gauge
rackstrap_dhcp_pool_addresses{network="10.20.0.0/24",state="bound"} 0
rackstrap_dhcp_pool_addresses{network="10.20.0.0/24",state="free"} 11
rackstrap_dhcp_pool_addresses{network="10.20.0.0/24",state="quarantined"} 0
rackstrap_dhcp_pool_addresses{network="127.0.0.0/8",state="bound"} 0
rackstrap_dhcp_pool_addresses{network="127.0.0.0/8",state="free"} 2313
rackstrap_dhcp_pool_addresses{network="127.0.0.0/8",state="quarantined"} 0
`), "rackstrap_dhcp_pool_addresses"))
}

// fragile is a Boot that breaks on BIOS machines.
type fragile struct{}

func (fragile) Loader(d lifecycle.Decision, fw assets.Firmware) (string, error) {
	if fw == assets.BIOS {
		panic("fragile")
	}
	return bootTable{}.Loader(d, fw)
}

// TestReadErrors: a port that fails to read for a while is read again.
func TestReadErrors(t *testing.T) {
	s, dial, _ := running(t, bootTable{})
	client := dial(false)
	require.NoError(t, s.server.conn.SetReadDeadline(time.Unix(1, 0))) // every read fails
	time.Sleep(20 * time.Millisecond)
	require.NoError(t, s.server.conn.SetReadDeadline(time.Time{}))
	require.Equal(t, ackT, ask(t, s, client, request(macMaster, ciaddr(loopback)).ToBytes()).MessageType())
}

func TestListenFails(t *testing.T) {
	s, _, _ := running(t, bootTable{})
	port := s.Addrs()[0].(*net.UDPAddr).Port
	r := newRig(t, config())
	_, err := Listen(Options{Rack: r.rack, Boot: bootTable{}, Log: r.log, Now: time.Now, Address: loopback, Port: port})
	var pe *PortError
	require.ErrorAs(t, err, &pe)
	require.Equal(t, port, pe.Port)
	require.Contains(t, err.Error(), "address already in use")

	_, err = Listen(Options{Rack: r.rack, Boot: bootTable{}, Log: r.log, Now: time.Now, Address: loopback, Interface: "nonesuch0"})
	require.ErrorContains(t, err, "interface nonesuch0")
	_, err = Listen(Options{Rack: r.rack, Boot: bootTable{}, Log: r.log, Now: time.Now})
	require.ErrorContains(t, err, "server.address")
}
