package main

import (
	"testing"

	"github.com/stretchr/testify/require"

	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

func TestCardsText(t *testing.T) {
	a, b := inventory.MAC{2, 0, 0, 0, 0, 1}, inventory.MAC{2, 0, 0, 0, 0, 2}
	require.Equal(t, "-", cardsText(lifecycle.Status{}))
	require.Equal(t, "02:00:00:00:00:01", cardsText(lifecycle.Status{MAC: a}))
	require.Equal(t, "02:00:00:00:00:02 +1", cardsText(lifecycle.Status{MAC: b, MACs: []inventory.MAC{a, b}}))
}

// Doctor repeats what a machine that waits is shown, and says whose business addresses are.
func TestAddressFaults(t *testing.T) {
	wait := lifecycle.Status{Name: "kmaster", Action: lifecycle.ActionWait, Reason: "kmaster waits: another DHCP server gave it 10.10.10.77"}
	require.NoError(t, addressFaults([]lifecycle.Status{{Name: "knode1", Action: lifecycle.ActionHold, Reason: "held"}}))
	require.EqualError(t, addressFaults([]lifecycle.Status{{Name: "knode1", Action: lifecycle.ActionInstall}, wait}), wait.Reason)
	cfg := inventory.Default()
	require.Empty(t, addressAdvice(cfg))
	cfg.Network.DHCP.Mode = inventory.DHCPProxy
	require.Contains(t, addressAdvice(cfg), "network.dhcp.mode: proxy the other DHCP server has to reserve them, by MAC")
}
