package inventory

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseDisk(t *testing.T) {
	for text, want := range map[string]Disk{
		"":                    {},
		"sda":                 {Name: "sda"},
		"/dev/nvme0n1":        {Name: "nvme0n1"},
		"disk/by-id/wwn-0x50": {Name: "disk/by-id/wwn-0x50"},
		"serial:A_b-1":        {Identity: "serial", Value: "A_b-1"},
		"wwn:0x5000C5":        {Identity: "wwn", Value: "5000c5"},
		"smallest":            {Order: "smallest"},
		">=40G  largest":      {Order: "largest", AtLeast: 40e9},
		">40GiB <=1T":         {AtLeast: 40<<30 + 1, AtMost: 1e12},
		"<500":                {AtMost: 499},
	} {
		got, err := ParseDisk(text)
		require.NoError(t, err, text)
		got.text = ""
		require.Equal(t, want, got, text)
	}
	for _, text := range []string{
		"sda sdb", "sda smallest", "serial:", "serial:a b", "serial:a'b", "wwn:$(x)", "smallest largest", "serial:a wwn:b", ">=40X", ">=", ">40G >50G",
		">=50G <=40G", ">=9999999999T", "<0", "../etc", "disk/../x", "-sda", "sda;x", "s\u00e4a", ">=0",
	} {
		_, err := ParseDisk(text)
		require.Error(t, err, text)
	}
}

func FuzzParseDisk(f *testing.F) {
	for _, seed := range []string{"", "sda", "/dev/disk/by-id/x", "serial:x", "wwn:0x1", ">=40G smallest", "<1Ti largest"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		d, err := ParseDisk(text)
		if err != nil {
			return
		}
		require.False(t, d.Name != "" && (d.Identity != "" || d.Order != "" || d.AtLeast != 0 || d.AtMost != 0))
		require.GreaterOrEqual(t, d.AtLeast, int64(0))
		require.GreaterOrEqual(t, d.AtMost, int64(0))
		for _, word := range []string{d.Name, d.Value, d.Order} {
			require.Regexp(t, `^[A-Za-z0-9._:+/-]*$`, word, "nothing that shells or the installer would take for more")
		}
	})
}
