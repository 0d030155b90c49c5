package installer

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestReleaseOf(t *testing.T) {
	r, err := distributionOf([]byte("[general]\nname = CentOS-7\nfamily = CentOS\nversion = 7\n"))
	require.NoError(t, err)
	require.Equal(t, distribution{"CentOS", 7}, r)
	r, err = distributionOf([]byte("[general]\nfamily = Rocky Linux\nversion = 9.4\n"))
	require.NoError(t, err)
	require.Equal(t, distribution{"Rocky Linux", 9}, r)
	_, err = distributionOf([]byte("[general]\nname = x\n"))
	require.Error(t, err)
}

// EL7 always puts its entry first, and leaves the old one with --leavebootorder; EL9 leaves the order with it.
func TestBootEntryOfTheReleases(t *testing.T) {
	for _, c := range []struct {
		major   int
		leave   bool
		removes bool
		create  string
	}{{7, false, true, "-c"}, {7, true, false, "-c"}, {9, false, true, "-c"}, {9, true, false, "-C"}} {
		removes, create := distribution{major: c.major}.bootEntry(c.leave)
		require.Equal(t, []any{c.removes, c.create}, []any{removes, create}, c)
	}
}

func TestEntriesLabelled(t *testing.T) {
	// efibootmgr 17, of EL7 and Debian 12; 16 of EL9 prints the same.
	listed := "BootCurrent: 0002\nTimeout: 0 seconds\nBootOrder: 0004,0002,0003,0001,0000\nBoot0000* UiApp\nBoot0001* UEFI QEMU QEMU HARDDISK \n" +
		"Boot0002* UEFI PXEv4 (MAC:525400000081)\nBoot0004* CentOS\nBoot000A  CentOS\nBoot000B* CentOS Linux\n"
	require.Equal(t, []string{"0004", "000A"}, entriesLabelled(listed, "CentOS"))
	require.Equal(t, []string{"000B"}, entriesLabelled(listed, "CentOS Linux"))
	// 18 prints the path, too: Anaconda does not find its entry then.
	require.Empty(t, entriesLabelled("Boot0004* CentOS\tHD(1,GPT,9a0f)/\\EFI\\centos\\shimx64.efi\n", "CentOS"))
}
