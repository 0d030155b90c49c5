package media

import (
	"bytes"
	"strings"
	"time"
)

const (
	sectorSize       = 2048            // ECMA-119 6.1.2
	firstDescriptor  = 16 * sectorSize // ECMA-119 6.2.1: sectors 0 to 15 are the system area
	rootRecordLength = 34              // ECMA-119 8.4.18
	standardID       = "CD001"         // ECMA-119 8.1.2
)

// Volume descriptor types, ECMA-119 8.1.1.
const (
	descriptorPrimary       = 1
	descriptorSupplementary = 2
	descriptorTerminator    = 255
)

// volume is what one volume descriptor says about its tree.
type volume struct {
	id         string
	created    time.Time
	createdRaw [17]byte // as recorded: part of the image's identity even when it is no valid time
	blockSize  int64    // bytes per logical block: what extents count in
	root       record
}

// readVolumes reads the volume descriptor set (ECMA-119 6.7.1) and returns the primary volume, and the
// Joliet volume or nil.
func readVolumes(src *source) (primary, joliet *volume, err error) {
	if src.size < firstDescriptor+sectorSize {
		return nil, nil, corrupt(src.size, "the image ends before its volume descriptor at byte %d", firstDescriptor)
	}
	sector := make([]byte, sectorSize)
	for i := range int64(maxDescriptors) {
		at := firstDescriptor + i*sectorSize
		if err := src.read(sector, at, "volume descriptor"); err != nil {
			return nil, nil, err
		}
		kind := sector[0]
		if string(sector[1:6]) != standardID {
			if primary == nil {
				return nil, nil, corrupt(at, "no ISO 9660 volume descriptor here (no %q)", standardID)
			}
			break // a set without terminator: the primary descriptor is all that is needed
		}
		switch {
		case kind == descriptorTerminator && primary == nil:
			return nil, nil, corrupt(at, "the volume descriptors end without a primary one")
		case kind == descriptorTerminator:
			return primary, joliet, nil
		case kind == descriptorPrimary && primary == nil:
			if primary, err = parsePrimary(sector, at, src.size); err != nil {
				return nil, nil, err
			}
		case kind == descriptorSupplementary && joliet == nil && isJoliet(sector):
			if joliet, err = parseVolume(sector, at); err != nil {
				return nil, nil, err
			}
		}
	}
	if primary == nil {
		return nil, nil, corrupt(firstDescriptor, "no primary volume descriptor among the first %d", maxDescriptors)
	}
	return primary, joliet, nil
}

// parsePrimary reads the primary volume descriptor (ECMA-119 8.4) and compares the volume space size
// (8.4.8) with the size of the image, which finds every truncated download at once.
func parsePrimary(sector []byte, at, imageSize int64) (*volume, error) {
	v, err := parseVolume(sector, at)
	if err != nil {
		return nil, err
	}
	blocks, err := both32(sector[80:88], at+80, "volume space size")
	if err != nil {
		return nil, err
	}
	if want := int64(blocks) * v.blockSize; want > imageSize {
		return nil, corrupt(imageSize, "the image is truncated: it ends here, but its volume has %d bytes", want)
	}
	return v, nil
}

// parseVolume reads the fields that a primary (ECMA-119 8.4) and a supplementary volume descriptor (8.5)
// have in common.
func parseVolume(sector []byte, at int64) (*volume, error) {
	size, err := both16(sector[128:132], at+128, "logical block size")
	if err != nil {
		return nil, err
	}
	if size != 512 && size != 1024 && size != 2048 { // ECMA-119 6.2.2
		return nil, corrupt(at+128, "logical block size %d is none of 512, 1024, 2048", size)
	}
	v := &volume{
		id:        strings.TrimRight(decodeName(sector[40:72]), " \x00"),
		blockSize: int64(size),
		created:   longTime(sector[813:830]),
	}
	copy(v.createdRaw[:], sector[813:830])
	v.root, err = parseRecord(sector[156:156+rootRecordLength], at+156, v.blockSize)
	if err != nil {
		return nil, err
	}
	if !v.root.isDir() {
		return nil, corrupt(at+156, "the root directory's record is not a directory")
	}
	return v, nil
}

// isJoliet looks at the escape sequences (ECMA-119 8.5.6) for UCS-2 level 1, 2 or 3, which is how the
// Joliet specification marks its supplementary volume descriptor.
func isJoliet(sector []byte) bool {
	escapes := sector[88:120]
	for _, level := range []string{"%/@", "%/C", "%/E"} {
		if bytes.HasPrefix(escapes, []byte(level)) {
			return true
		}
	}
	return false
}
