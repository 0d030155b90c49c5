package efiboot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
)

// globalGUID is that of the variables which the UEFI specification defines.
const globalGUID = "-8be4df61-93ca-11d2-aa0d-00e098032b8c"

// attributes of a boot variable: non-volatile, for boot services, for the running system.
const attributes = 7

// variables is the directory of an efivarfs: a file for each variable, its attributes (4 bytes) before its value.
type variables string

func (v variables) read(name string) ([]byte, error) {
	raw, err := os.ReadFile(filepath.Join(string(v), name+globalGUID))
	if err == nil && len(raw) < 4 {
		err = fmt.Errorf("%s is cut off", name)
	}
	if err != nil {
		return nil, err
	}
	return raw[4:], nil
}

// write sets a variable: efivarfs hands each write to the firmware as the whole value, and a truncation not at all.
func (v variables) write(name string, value []byte) error {
	file, err := os.OpenFile(filepath.Join(string(v), name+globalGUID), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = file.Write(append(binary.LittleEndian.AppendUint32(nil, attributes), value...))
	return errors.Join(err, file.Close())
}

func (v variables) remove(name string) error {
	return os.Remove(filepath.Join(string(v), name+globalGUID))
}

// numbers reads a variable that holds numbers of boot entries. One that is not there has none.
func (v variables) numbers(name string) ([]uint16, error) {
	raw, err := v.read(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []uint16
	for ; len(raw) >= 2; raw = raw[2:] {
		all = append(all, binary.LittleEndian.Uint16(raw))
	}
	return all, nil
}

func (v variables) writeNumbers(name string, all []uint16) error {
	var raw []byte
	for _, n := range all {
		raw = binary.LittleEndian.AppendUint16(raw, n)
	}
	return v.write(name, raw)
}

var entryName = regexp.MustCompile(`^Boot([0-9A-F]{4})` + globalGUID + `$`)

func nameOf(number uint16) string { return fmt.Sprintf("Boot%04X", number) }

// state is what the firmware's variables say of booting.
type state struct {
	order   []uint16
	current *Entry // by which this system was booted; nil: not known
	entries map[uint16]Entry
}

// ErrNoVariables is firmware whose variables the running kernel does not show.
var ErrNoVariables = errors.New("the variables of the UEFI firmware cannot be read: efivarfs is not mounted, or the kernel was started without the firmware's services")

// load reads them. An entry that cannot be read is left out, and left alone.
func (v variables) load() (state, error) {
	s := state{entries: map[uint16]Entry{}}
	files, err := os.ReadDir(string(v))
	if err != nil || len(files) == 0 {
		return s, ErrNoVariables
	}
	if s.order, err = v.numbers("BootOrder"); err != nil {
		return s, err
	}
	for _, file := range files {
		found := entryName.FindStringSubmatch(file.Name())
		if found == nil {
			continue
		}
		number, _ := strconv.ParseUint(found[1], 16, 16)
		raw, err := v.read(nameOf(uint16(number)))
		if err != nil {
			continue
		}
		if e, err := parseEntry(uint16(number), raw); err == nil {
			s.entries[e.Number] = e
		}
	}
	current, err := v.numbers("BootCurrent")
	if err == nil && len(current) == 1 {
		if e, ok := s.entries[current[0]]; ok {
			s.current = &e
		}
	}
	return s, nil
}
