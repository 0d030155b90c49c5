package lab

import (
	"fmt"
	"io"
)

// cpioEntry is one file of an initramfs: a regular file, a directory, a symlink or a device, by its mode.
type cpioEntry struct {
	name         string
	mode         uint32 // type and permissions, as in stat(2)
	data         []byte // content, or a symlink's target
	major, minor uint32 // of a device
}

// Types of cpioEntry.mode.
const (
	cpioDir     = 0o040000
	cpioFile    = 0o100000
	cpioSymlink = 0o120000
	cpioChar    = 0o020000
)

// writeCPIO writes an archive of the format "newc", as the kernel reads it
// (Documentation/driver-api/early-userspace/buffer-format.rst): ASCII headers, everything on 4 bytes. Parents
// must come before what they hold. Times are 0, so that equal entries give equal bytes.
func writeCPIO(w io.Writer, entries []cpioEntry) error {
	for i, e := range append(entries, cpioEntry{name: "TRAILER!!!"}) {
		links := 1
		if e.mode&0o170000 == cpioDir {
			links = 2
		}
		header := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
			i+1, e.mode, 0, 0, links, 0, len(e.data), 0, 0, e.major, e.minor, len(e.name)+1, 0)
		for _, part := range []string{padded(header + e.name + "\x00"), padded(string(e.data))} {
			if _, err := io.WriteString(w, part); err != nil {
				return err
			}
		}
	}
	return nil
}

// padded fills up to a multiple of 4 bytes.
func padded(s string) string { return s + "\x00\x00\x00"[:(4-len(s)%4)%4] }
