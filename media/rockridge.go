package media

import (
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"time"
)

// rockRidge reads System Use Sharing Protocol entries (SUSP 1.12), and of those the ones of the Rock Ridge
// Interchange Protocol (RRIP 1.12): POSIX names, modes, times and links for an ISO 9660 tree.
type rockRidge struct {
	src       *source
	blockSize int64
	skip      int    // bytes before the first entry of a system use area: LEN_SKP of SUSP 5.3
	area      []byte // the continuation area being read, reused
}

// attributes is what the entries of one directory record say.
type attributes struct {
	name     []byte      // NM
	mode     fs.FileMode // PX: type and permissions
	hasMode  bool
	target   []byte    // SL
	modified time.Time // TF; zero if not recorded

	childBlock int64 // CL: the logical block of the directory that belongs here but was moved
	hasChild   bool
	relocated  bool // RE: moved here only because ISO 9660 allows no more than eight levels

	isRockRidge bool // an entry that only Rock Ridge has was seen: asked in the root directory only

	next          continuation // CE of the area being read
	nameEnded     bool         // the NM read last had no CONTINUE
	linkContinues bool         // the SL component read last goes on in the next one
}

// continuation is where a system use area goes on: the content of CE.
type continuation struct{ block, offset, length uint32 }

// Flags of NM (RRIP 4.1.4).
const (
	nmContinue = 1 << 0
	nmCurrent  = 1 << 1
	nmParent   = 1 << 2
)

// Flags of the components of SL (RRIP 4.1.3.1).
const (
	slContinue = 1 << 0
	slCurrent  = 1 << 1
	slParent   = 1 << 2
	slRoot     = 1 << 3
)

// entryReaders are the entries that are understood, by signature; all others are skipped, as SUSP 4.1
// wants it. PL is among those: the tree is read from the root down, so nobody asks for a parent.
var entryReaders = map[string]func(a *attributes, e []byte, at int64) error{
	"CE": (*attributes).readContinuation,
	"ER": (*attributes).readExtension,
	"RR": (*attributes).readMarker,
	"NM": (*attributes).readName,
	"PX": (*attributes).readMode,
	"SL": (*attributes).readLink,
	"TF": (*attributes).readTimes,
	"CL": (*attributes).readChild,
	"RE": (*attributes).readRelocated,
	"SF": (*attributes).readUnsupported, // sparse file, RRIP 4.1.7
	"ZF": (*attributes).readUnsupported, // zisofs: the content is compressed
}

// detectRockRidge looks at the "." record of the root directory: SP (SUSP 5.3) says that the volume uses
// SUSP at all, and ER (SUSP 5.5), or an entry that only Rock Ridge has, that it uses Rock Ridge. It returns
// nil where it does not.
func detectRockRidge(src *source, self record, blockSize int64) (*rockRidge, error) {
	const afterXA = 14 // SUSP 5.3: on a CD-ROM XA disc SP follows 14 bytes of XA attributes
	for _, start := range []int{0, afterXA} {
		if len(self.systemUse) < start+7 {
			continue
		}
		sp := self.systemUse[start:]
		if string(sp[:2]) != "SP" || sp[4] != 0xbe || sp[5] != 0xef {
			continue
		}
		rr := &rockRidge{src: src, blockSize: blockSize, skip: start}
		a, err := rr.read(self)
		if err != nil || !a.isRockRidge {
			return nil, err
		}
		rr.skip = int(sp[6])
		return rr, nil
	}
	return nil, nil
}

// read reads the entries of a record's system use area and of the continuation areas that it leads to
// (SUSP 5.1). A chain that loops ends at maxContinuations.
func (rr *rockRidge) read(r record) (attributes, error) {
	var a attributes
	if len(r.systemUse) < rr.skip {
		return a, nil
	}
	at := r.at + int64(r.systemUseAt+rr.skip)
	area := r.systemUse[rr.skip:]
	for range maxContinuations {
		a.next = continuation{}
		if err := a.readArea(area, at); err != nil || a.next.length == 0 {
			return a, err
		}
		if a.next.length > maxContinuation {
			return a, corrupt(at, "a continuation area of %d bytes", a.next.length)
		}
		at = int64(a.next.block)*rr.blockSize + int64(a.next.offset)
		if cap(rr.area) < int(a.next.length) {
			rr.area = make([]byte, maxContinuation)
		}
		area = rr.area[:a.next.length]
		if err := rr.src.read(area, at, "continuation area"); err != nil {
			return a, err
		}
	}
	return a, corrupt(at, "more than %d continuation areas in a chain", maxContinuations)
}

// readArea reads the entries of one area (SUSP 4). It ends at ST (SUSP 5.4), or where fewer than four bytes
// or padding is left.
func (a *attributes) readArea(area []byte, at int64) error {
	for len(area) >= 4 && area[0] != 0 {
		signature, n := string(area[:2]), int(area[2])
		if n < 4 || n > len(area) {
			return corrupt(at, "a system use entry %q of %d bytes, where %d are left", signature, n, len(area))
		}
		if signature == "ST" {
			return nil
		}
		if read := entryReaders[signature]; read != nil {
			if err := read(a, area[:n], at); err != nil {
				return err
			}
		}
		area, at = area[n:], at+int64(n)
	}
	return nil
}

// readContinuation reads CE, SUSP 5.1.
func (a *attributes) readContinuation(e []byte, at int64) (err error) {
	if len(e) < 28 {
		return corrupt(at, "a CE entry of %d bytes", len(e))
	}
	var c continuation
	if c.block, err = both32(e[4:12], at+4, "block of continuation area"); err != nil {
		return err
	}
	if c.offset, err = both32(e[12:20], at+12, "offset of continuation area"); err != nil {
		return err
	}
	if c.length, err = both32(e[20:28], at+20, "length of continuation area"); err != nil {
		return err
	}
	a.next = c
	return nil
}

// readExtension reads ER, SUSP 5.5, which names Rock Ridge in one of three ways (RRIP 4.3).
func (a *attributes) readExtension(e []byte, at int64) error {
	if len(e) < 8 || len(e) < 8+int(e[4]) {
		return corrupt(at, "an ER entry of %d bytes", len(e))
	}
	switch string(e[8 : 8+int(e[4])]) {
	case "RRIP_1991A", "IEEE_P1282", "IEEE_1282":
		a.isRockRidge = true
	}
	return nil
}

// readMarker reads RR, which only the drafts of RRIP had.
func (a *attributes) readMarker([]byte, int64) error {
	a.isRockRidge = true
	return nil
}

// readName reads NM, RRIP 4.1.4: a part of the name, or a mark on "." and "..", which have none.
func (a *attributes) readName(e []byte, at int64) error {
	if len(e) < 5 {
		return corrupt(at, "an NM entry of %d bytes", len(e))
	}
	flags := e[4]
	if a.nameEnded || flags&(nmCurrent|nmParent) != 0 {
		return nil
	}
	if len(a.name)+len(e)-5 > maxName {
		return corrupt(at, "a name of more than %d bytes", maxName)
	}
	a.name = append(a.name, e[5:]...)
	a.nameEnded = flags&nmContinue == 0
	return nil
}

// readMode reads PX, RRIP 4.1.1: st_mode.
func (a *attributes) readMode(e []byte, at int64) error {
	if len(e) < 12 {
		return corrupt(at, "a PX entry of %d bytes", len(e))
	}
	mode, err := both32(e[4:12], at+4, "file mode")
	if err != nil {
		return err
	}
	a.mode, a.hasMode, a.isRockRidge = fileMode(mode), true, true
	return nil
}

// fileMode translates st_mode as RRIP 4.1.1 (and POSIX) define it.
func fileMode(st uint32) fs.FileMode {
	mode := fs.FileMode(st & 0o777)
	switch st & 0o170000 {
	case 0o040000:
		mode |= fs.ModeDir
	case 0o120000:
		mode |= fs.ModeSymlink
	case 0o140000:
		mode |= fs.ModeSocket
	case 0o010000:
		mode |= fs.ModeNamedPipe
	case 0o020000:
		mode |= fs.ModeDevice | fs.ModeCharDevice
	case 0o060000:
		mode |= fs.ModeDevice
	}
	for bit, special := range map[uint32]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if st&bit != 0 {
			mode |= special
		}
	}
	return mode
}

// readLink reads SL, RRIP 4.1.3: components of the target, of which one may go on in the next, even across
// entries.
func (a *attributes) readLink(e []byte, at int64) error {
	if len(e) < 5 {
		return corrupt(at, "an SL entry of %d bytes", len(e))
	}
	for c := e[5:]; len(c) > 0; c = c[2+int(c[1]):] {
		if len(c) < 2 || len(c) < 2+int(c[1]) {
			return corrupt(at, "an SL entry ends inside a component")
		}
		flags, text := c[0], c[2:2+int(c[1])]
		if n := len(a.target); n > 0 && a.target[n-1] != '/' && !a.linkContinues {
			a.target = append(a.target, '/')
		}
		switch flags &^ slContinue {
		case 0:
			a.target = append(a.target, text...)
		case slCurrent:
			a.target = append(a.target, '.')
		case slParent:
			a.target = append(a.target, '.', '.')
		case slRoot: // xorriso also writes it for an empty component, "a//b"
			a.target = append(a.target, '/')
		default:
			return corrupt(at, "a component of a symbolic link has flags %#x", flags)
		}
		a.linkContinues = flags&slContinue != 0
		if len(a.target) > maxTarget {
			return corrupt(at, "a symbolic link with a target of more than %d bytes", maxTarget)
		}
	}
	return nil
}

// readTimes reads TF, RRIP 4.1.6, of which only the modification time is wanted. The times that are
// recorded stand in the order of their flags.
func (a *attributes) readTimes(e []byte, at int64) error {
	const (
		creation = 1 << 0
		modify   = 1 << 1
		longForm = 1 << 7
	)
	if len(e) < 5 {
		return corrupt(at, "a TF entry of %d bytes", len(e))
	}
	flags := e[4]
	if flags&modify == 0 {
		return nil
	}
	size, read := 7, shortTime
	if flags&longForm != 0 {
		size, read = 17, longTime
	}
	start := 5 + size*bits.OnesCount8(flags&creation)
	if len(e) < start+size {
		return corrupt(at, "a TF entry of %d bytes with flags %#x", len(e), flags)
	}
	a.modified = read(e[start:])
	return nil
}

// readChild reads CL, RRIP 4.1.5.1: this record, a file to plain ISO 9660, stands for a directory that was
// moved elsewhere.
func (a *attributes) readChild(e []byte, at int64) error {
	if len(e) < 12 {
		return corrupt(at, "a CL entry of %d bytes", len(e))
	}
	block, err := both32(e[4:12], at+4, "location of relocated directory")
	if err != nil {
		return err
	}
	a.childBlock, a.hasChild = int64(block), true
	return nil
}

// readRelocated reads RE, RRIP 4.1.5.3: a directory that belongs elsewhere, where a CL stands for it.
func (a *attributes) readRelocated([]byte, int64) error {
	a.relocated = true
	return nil
}

func (a *attributes) readUnsupported(e []byte, at int64) error {
	return fmt.Errorf("sparse or compressed file (%q) at byte %d: %w", e[:2], at, errors.ErrUnsupported)
}
