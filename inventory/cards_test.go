package inventory

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// TestCards: the mac of a machine is a text, as ever, or a list of texts.
func TestCards(t *testing.T) {
	a, b, c := MAC{0x52, 0x54, 0, 0, 0, 1}, MAC{0x52, 0x54, 0, 0, 0, 2}, MAC{0x52, 0x54, 0, 0, 0, 3}
	for _, row := range []struct {
		name, mac string
		cards     []MAC
	}{
		{"a text", `"52:54:00:00:00:01"`, []MAC{a}},
		{"a list of one", `["52:54:00:00:00:01"]`, []MAC{a}},
		{"several", `["52:54:00:00:00:02", 52-54-00-00-00-01, 5254.0000.0003]`, []MAC{b, a, c}},
		{"in lines", "\n      - 52:54:00:00:00:02\n      - 52:54:00:00:00:01", []MAC{b, a}},
		{"nothing", "", nil},
		{"an empty text", `""`, nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			cfg, err := parse("server: {interface: eth1}\nnetwork: {subnet: 10.0.0.0/24}\nmachines:\n  - name: m\n    ip: 10.0.0.2\n    role: control-plane\n    mac: " + row.mac + "\n")
			require.NoError(t, err)
			m := &cfg.Machines[0]
			require.Equal(t, row.cards, m.Cards())
			require.Equal(t, len(row.cards) == 0, m.MAC.IsZero())
			for _, mac := range row.cards {
				require.True(t, m.Has(mac))
				found, ok := cfg.ByMAC(mac)
				require.True(t, ok)
				require.Equal(t, "m", found.Name)
			}
			require.False(t, m.Has(MAC{}))
			require.False(t, m.Has(MAC{0x52, 0x54, 0, 0, 0, 9}))
		})
	}
}

func TestDiffOfCards(t *testing.T) {
	of := func(macs ...MAC) *Config { return &Config{Machines: []Machine{{Name: "m", MAC: macs[0], MACs: macs}}} }
	require.Equal(t, []string{`machines "m".mac: 02:00:00:00:00:00 -> 02:00:00:00:00:00 03:00:00:00:00:00`},
		Diff(of(MAC{2}), of(MAC{2}, MAC{3})))
}
