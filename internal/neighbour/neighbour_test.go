package neighbour

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

// Of a real neighbour: e2e TestAttackTheft.
func TestNoNeighbours(t *testing.T) {
	for _, ip := range []netip.Addr{{}, netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("198.51.100.77"), netip.MustParseAddr("::1")} {
		_, known := Of(ip)
		require.False(t, known, "%v", ip)
	}
}
