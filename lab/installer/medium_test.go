package installer

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// A group or package that the medium does not have stops the installation, before the disk is touched.
func TestPackagesOfTheMedium(t *testing.T) {
	r, err := loaded(t, []fakePackage{{"a", "1", "", ""}, {"kernel", "3.10.0", "", ""}, {"chrony", "3.4", "", ""}, {"grub2-pc", "2", "", ""}}, nil)
	require.NoError(t, err)
	choose := func(disk *storage, ntp []string, s selection) ([]string, error) {
		j := &job{medium: r, disk: disk, plan: &plan{packages: s, ntp: ntp}}
		wanted, err := j.choose()
		var names []string
		for _, p := range wanted {
			names = append(names, p.Name)
		}
		return names, err
	}
	names, err := choose(nil, nil, selection{given: true})
	require.NoError(t, err)
	require.Equal(t, []string{"kernel", "a"}, names, "@core is always there, and so is the kernel")
	names, err = choose(&storage{}, []string{"ntp"}, selection{given: true, noCore: true})
	require.NoError(t, err)
	require.Equal(t, []string{"kernel", "grub2-pc", "chrony"}, names)
	names, err = choose(nil, nil, selection{groups: []string{"^minimal"}, excluded: []string{"a"}})
	require.NoError(t, err)
	require.Equal(t, []string{"kernel"}, names)

	_, err = choose(nil, nil, selection{groups: []string{"gnome", "^desktop"}, packages: []string{"emacs"}})
	require.ErrorContains(t, err, "@gnome, @^desktop, emacs")
	_, err = choose(nil, nil, selection{groups: []string{"gnome"}, ignoreMissing: true})
	require.NoError(t, err)
	_, err = choose(&storage{uefi: true}, nil, selection{})
	require.ErrorContains(t, err, "grub2-efi-x64, shim-x64, efibootmgr")
}
