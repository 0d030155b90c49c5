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

// What is no whole disk is refused with what it is.
func TestNotDisks(t *testing.T) {
	for text, want := range map[string]string{
		"sda1":                       "a partition: the whole disk is erased, which is sda",
		"/dev/nvme0n1p1":             "which is nvme0n1",
		"mmcblk0p2":                  "which is mmcblk0",
		"vda12":                      "which is vda",
		"xvdb1":                      "which is xvdb",
		"dasda1":                     "which is dasda",
		"cciss/c0d0p1":               "which is cciss/c0d0",
		"disk/by-id/ata-SSD_1-part3": "which is disk/by-id/ata-SSD_1",
		"/dev/disk/by-path/pci-0000:00:1f.2-ata-1-part1": "which is disk/by-path/pci-0000:00:1f.2-ata-1",
		"disk/by-uuid/c1b9d5a2":                          "what is on a disk",
		"disk/by-label/root":                             "what is on a disk",
		"disk/by-partuuid/1":                             "what is on a disk",
		"nvme0":                                          "no disk",
		"mmcblk0boot0":                                   "no disk",
		"sr0":                                            "not a disk",
		"loop0":                                          "not a disk",
		"loop0p1":                                        "which is loop0",
	} {
		_, err := ParseDisk(text)
		require.ErrorContains(t, err, want, text)
	}
	for _, text := range []string{"sda", "sdaa", "nvme0n1", "nvme10n12", "mmcblk0", "vda", "cciss/c0d0", "dasda", "md126", "mapper/mpatha",
		"disk/by-id/ata-QEMU_HARDDISK_part-1", "disk/by-id/wwn-0x5000c500a1b2c3d4", "disk/by-id/dm-uuid-mpath-3600508b1", "disk/by-path/pci-0000:00:1f.2-ata-1"} {
		_, err := ParseDisk(text)
		require.NoError(t, err, text)
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
