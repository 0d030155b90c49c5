package media

import (
	"fmt"
	"io/fs"
	"path"
)

// FindShim finds the signed boot loaders of a medium, for UEFI x64 with Secure Boot: the directory where the
// UEFI specification (3.5.1.1, removable media) wants the first loader, and in it the names of shim, BOOTX64.EFI,
// and of the GRUB that it starts, grubx64.efi. All are found in any case and returned as the medium spells
// them. What is missing is an error that wraps fs.ErrNotExist.
func FindShim(fsys fs.FS) (dir, shim, grub string, err error) {
	dir = "."
	for _, want := range []string{"EFI", "BOOT"} {
		found, err := spelled(fsys, dir, want)
		if err != nil {
			return "", "", "", err
		}
		dir = path.Join(dir, found)
	}
	if shim, err = spelled(fsys, dir, "BOOTX64.EFI"); err != nil {
		return "", "", "", err
	}
	if grub, err = spelled(fsys, dir, "grubx64.efi"); err != nil {
		return "", "", "", err
	}
	return dir, shim, grub, nil
}

// spelled returns how a directory spells a name that it has.
func spelled(fsys fs.FS, dir, want string) (string, error) {
	list, err := fs.ReadDir(fsys, dir)
	if err != nil {
		return "", fmt.Errorf("find %s: %w", path.Join(dir, want), err)
	}
	found, ok := matchFold(list, want)
	if !ok {
		return "", fmt.Errorf("find %s: %w", path.Join(dir, want), fs.ErrNotExist)
	}
	return found, nil
}
