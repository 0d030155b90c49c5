package inventory

import (
	"encoding/hex"
	"fmt"
	"net"
	"strings"
)

// MAC is a 48-bit Ethernet address: a comparable value, fit to be the key of a map. The zero MAC means
// "not known yet": a free slot of the list.
type MAC [6]byte

// ParseMAC reads an address as firmware, boot loaders and people write it: six octets in hex, divided by
// colons or hyphens, or three groups divided by dots, or twelve digits; in any case. A leading hardware
// type of BOOTIF (`01-`) is not accepted here.
func ParseMAC(s string) (MAC, error) {
	if len(s) == 12 && !strings.ContainsAny(s, ":-.") {
		var m MAC
		if _, err := hex.Decode(m[:], []byte(s)); err != nil {
			return MAC{}, fmt.Errorf("%q is not a MAC address", s)
		}
		return m, nil
	}
	hw, err := net.ParseMAC(s)
	if err != nil || len(hw) != len(MAC{}) {
		return MAC{}, fmt.Errorf("%q is not a MAC address of six octets", s)
	}
	return MAC(hw), nil
}

// MACOf takes a hardware address off the wire; ok is false unless it has the six octets of Ethernet.
func MACOf(hw net.HardwareAddr) (m MAC, ok bool) {
	if len(hw) != len(m) {
		return MAC{}, false
	}
	return MAC(hw), true
}

// String is the address with colons, in lower case: 52:54:00:00:00:80.
func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// Hyphens is the address as URLs and BOOTIF carry it: 52-54-00-00-00-80. iPXE escapes colons in URLs, and
// hyphens survive it (`${mac:hexhyp}`).
func (m MAC) Hyphens() string { return strings.ReplaceAll(m.String(), ":", "-") }

// IsZero tells whether the address is not known.
func (m MAC) IsZero() bool { return m == MAC{} }

// HardwareAddr is the address as package net wants it; a copy.
func (m MAC) HardwareAddr() net.HardwareAddr { return net.HardwareAddr(append([]byte(nil), m[:]...)) }

// MarshalText writes String, or nothing for the zero MAC.
func (m MAC) MarshalText() ([]byte, error) {
	if m.IsZero() {
		return nil, nil
	}
	return []byte(m.String()), nil
}

// UnmarshalText reads what ParseMAC reads; empty text is the zero MAC.
func (m *MAC) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*m = MAC{}
		return nil
	}
	parsed, err := ParseMAC(string(text))
	if err != nil {
		return err
	}
	*m = parsed
	return nil
}
