package dhcp

import (
	"net/netip"
	"sync/atomic"
	"testing"

	"rackstrap/inventory"
)

// BenchmarkHandle is one message from bytes to bytes, with a thousand machines in the list.
func BenchmarkHandle(b *testing.B) {
	relayed := netip.MustParseAddr("10.30.0.2")
	for _, bench := range []struct {
		name string
		req  func(i int) []byte
	}{
		{"known/DISCOVER", func(i int) []byte { return discover(mac(i), giaddr(relayed)).ToBytes() }},
		{"known/DISCOVER-x64", func(i int) []byte { return discover(mac(i), giaddr(relayed), firmwareOf["x64"]).ToBytes() }},
		{"known/REQUEST-x64", func(i int) []byte {
			return request(mac(i), giaddr(relayed), firmwareOf["x64"], server(ours), wants(addr4(0x0a1e0100+uint32(i)))).ToBytes()
		}},
		{"pool/DISCOVER", func(i int) []byte { return discover(mac(1_000_000+i), giaddr(relayed)).ToBytes() }},
	} {
		b.Run(bench.name, func(b *testing.B) {
			r := newRig(b, config(func(c *inventory.Config) { loaded(c); c.Network.DHCP.Unknown = inventory.UnknownDiscover }))
			packets := make([]packet, loadMachines)
			for i := range packets {
				packets[i].data = bench.req(i)
				packets[i].via = Arrival{Interface: 2, From: netip.MustParseAddrPort("10.30.0.2:67"), To: ours}
			}
			var n atomic.Int64
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					p := packets[n.Add(1)%loadMachines]
					a := r.answer(b.Context(), &p)
					if a.Reply == nil {
						b.Error(a.Why)
						return
					}
					a.Reply.ToBytes()
				}
			})
		})
	}
}
