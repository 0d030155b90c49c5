package preflight

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// form is what a file has to be for the program that reads it.
type form struct {
	what  string
	check func(begin []byte, size int64) error // the first bytes, and how many there are in all
}

// beginSize is how much a form looks at.
const beginSize = 1 << 10

var (
	errForm     = errors.New("is none")
	errNotWhole = errors.New("breaks off")
)

var (
	anything   = form{"file", func([]byte, int64) error { return nil }}
	efiProgram = form{"EFI program", magics("MZ")}

	// What Linux unpacks (init/initramfs.c, lib/decompress.c).
	initrd = form{"initrd (cpio, or compressed)", magics("070701", "070702", "\x1f\x8b", "BZh", "\x5d\x00\x00", "\xfd7zXZ\x00", "\x89LZO", "\x02\x21\x4c\x18", "\x28\xb5\x2f\xfd")}

	squashfs = form{"squashfs image", func(begin []byte, size int64) error {
		if !bytes.HasPrefix(begin, []byte("hsqs")) || len(begin) < 48 {
			return errForm
		}
		return atLeast(size, binary.LittleEndian.Uint64(begin[40:])) // bytes_used of the superblock
	}}

	// Linux, Documentation/arch/x86/boot.rst: HdrS at 0x202; setup_sects at 0x1f1, and syssize, in 16 bytes, at 0x1f4.
	kernelX86 = form{"kernel for x86_64 (bzImage)", func(begin []byte, size int64) error {
		if len(begin) < 0x206 || string(begin[0x202:0x206]) != "HdrS" {
			return errForm
		}
		setup := uint64(begin[0x1f1])
		if setup == 0 {
			setup = 4
		}
		return atLeast(size, (setup+1)*512+uint64(binary.LittleEndian.Uint32(begin[0x1f4:]))*16)
	}}

	// Linux, Documentation/arch/arm64/booting.rst; distributions compress it, too.
	kernelARM = form{"kernel for aarch64", func(begin []byte, size int64) error {
		if bytes.HasPrefix(begin, []byte("\x1f\x8b")) || len(begin) >= 60 && string(begin[56:60]) == "ARM\x64" {
			return nil
		}
		return errForm
	}}
)

// kernels are the forms of kernels, by the architecture of the tree.
var kernels = map[string]form{"x86_64": kernelX86, "aarch64": kernelARM}

func magics(any ...string) func([]byte, int64) error {
	return func(begin []byte, _ int64) error {
		for _, magic := range any {
			if bytes.HasPrefix(begin, []byte(magic)) {
				return nil
			}
		}
		return errForm
	}
}

func atLeast(size int64, want uint64) error {
	if uint64(size) < want {
		return fmt.Errorf("%w: it has %d bytes of %d", errNotWhole, size, want)
	}
	return nil
}

// whole reads the beginning of a file, and tells why it is not what it has to be.
func whole(r io.Reader, size int64, f form) error {
	if size == 0 {
		return errors.New("is empty")
	}
	begin := make([]byte, min(size, beginSize))
	if _, err := io.ReadFull(r, begin); err != nil {
		return fmt.Errorf("cannot be read: %w", err)
	}
	err := f.check(begin, size)
	if errors.Is(err, errForm) {
		return fmt.Errorf("is no %s", f.what)
	}
	return err
}
