package dhcp

import (
	"bytes"
	"strconv"

	"github.com/insomniacslk/dhcp/iana"
)

// deviation is something that firmware gets wrong in a request, and that other servers take: what it meant is clear.
type deviation struct {
	name string
	// mend makes the request what it was meant to be, and tells whether there was anything to mend.
	mend func(m *rawRequest) bool
}

// deviations are all that are tolerated. Each mends the bytes, so that whatever reads the request afterwards knows
// only what the RFCs allow.
var deviations = []deviation{
	// dnsmasq, Kea and ISC's server read as far as there are whole options.
	{"no end option, or an option that is cut off", func(m *rawRequest) bool { return m.cut }},
	// Some ROMs give the length of the field (16), or none, for Ethernet's six octets. ISC's and dnsmasq take it.
	{"hardware address length", func(m *rawRequest) bool {
		address := m.head[offChaddr : offChaddr+16]
		if m.head[offHLen] == 6 || m.head[offHLen] > 16 || !ethernetLike(m.head[offHType]) || !zeros(address[6:]) || zeros(address[:6]) {
			return false
		}
		m.head[offHLen] = 6
		return true
	}},
	// RFC 2132 section 9.3: the fields file and sname may hold options; that is allowed, but the library reads none.
	{"option overload", (*rawRequest).unload},
	// RFC 3396 joins repeated options, which makes eight bytes of an address. The first one is meant.
	{"message type longer than a byte", func(m *rawRequest) bool { return m.shorten(optType, 1) }},
	{"requested address longer than an address", func(m *rawRequest) bool { return m.shorten(optRequested, 4) }},
	{"server identifier longer than an address", func(m *rawRequest) bool { return m.shorten(optServer, 4) }},
	{"requested address shorter than an address", func(m *rawRequest) bool { return m.discard(optRequested, 4) }},
	{"server identifier shorter than an address", func(m *rawRequest) bool { return m.discard(optServer, 4) }},
	// PXE 2.1 section 2.2.3 has the architecture in the class, too: "PXEClient:Arch:00007:UNDI:003016". Relay agents
	// and old ROMs leave option 93 out.
	{"architecture in the vendor class alone", (*rawRequest).architecture},
}

// Options that only requests carry.
const (
	optPad       = 0
	optRequested = 50
	optOverload  = 52
	optArch      = 93 // RFC 4578
	optEnd       = 255
)

// ethernetLike tells whether a hardware type has Ethernet's addresses: Ethernet itself, and IEEE 802, which some
// firmware gives for a NIC that is plain Ethernet. Other servers answer whatever type it is.
func ethernetLike(htype byte) bool {
	return iana.HWType(htype) == iana.HWTypeEthernet || iana.HWType(htype) == iana.HWTypeIEEE802
}

// rawRequest is a request on its way to what the RFCs allow.
type rawRequest struct {
	head    []byte // with the cookie
	options []rawOption
	cut     bool // the options end without an end option
}

// rawOption is one as it stands: repeated ones are not joined.
type rawOption struct {
	code  byte
	value []byte
}

// tolerate mends what firmware got wrong, and names it. A request that is right, or beyond help, is returned as it
// is; one that is mended is a new one.
func tolerate(data []byte) (mended []byte, found []string) {
	if len(data) < offOptions || right(data) {
		return data, nil
	}
	m := &rawRequest{head: bytes.Clone(data[:offOptions])}
	m.options, m.cut = readOptions(data[offOptions:])
	for _, d := range deviations {
		if d.mend(m) {
			found = append(found, d.name)
		}
	}
	if found == nil {
		return data, nil
	}
	return m.bytes(), found
}

// right tells whether nothing can be wrong with a request that tolerate mends. It is asked for every packet.
func right(data []byte) bool {
	if data[offHLen] != 6 {
		return false
	}
	class := false
	arch := false
	var seen [256]bool
	for rest := data[offOptions:]; ; {
		switch {
		case len(rest) == 0:
			return false
		case rest[0] == optEnd:
			return arch || !class
		case rest[0] == optPad:
			rest = rest[1:]
			continue
		case len(rest) < 2 || len(rest)-2 < int(rest[1]):
			return false
		}
		code, n := rest[0], int(rest[1])
		switch code {
		case optType:
			if n != 1 || seen[code] {
				return false
			}
		case optRequested, optServer:
			if n != 4 || seen[code] {
				return false
			}
		case optOverload:
			return false
		case optClass:
			class = true
		case optArch:
			arch = n >= 2
		}
		seen[code] = true
		rest = rest[2+n:]
	}
}

// readOptions reads options up to the end option, or to where they are cut off.
func readOptions(data []byte) (options []rawOption, cut bool) {
	for len(data) > 0 {
		switch {
		case data[0] == optEnd:
			return options, false
		case data[0] == optPad:
			data = data[1:]
			continue
		case len(data) < 2 || len(data)-2 < int(data[1]):
			return options, true
		}
		n := 2 + int(data[1])
		options = append(options, rawOption{data[0], data[2:n]})
		data = data[n:]
	}
	return options, true
}

// bytes is the request as it goes on.
func (m *rawRequest) bytes() []byte {
	out := m.head
	for _, o := range m.options {
		out = append(append(out, o.code, byte(len(o.value))), o.value...)
	}
	return append(out, optEnd)
}

// first is the first option of that code, or nil.
func (m *rawRequest) first(code byte) *rawOption {
	for i := range m.options {
		if m.options[i].code == code {
			return &m.options[i]
		}
	}
	return nil
}

// remove takes options of that code out, but the first keep of them.
func (m *rawRequest) remove(code byte, keep int) (removed bool) {
	kept := m.options[:0]
	for _, o := range m.options {
		if o.code == code {
			if keep--; keep < 0 {
				removed = true
				continue
			}
		}
		kept = append(kept, o)
	}
	m.options = kept
	return removed
}

// shorten leaves of an option its first instance, and of that the first n bytes.
func (m *rawRequest) shorten(code byte, n int) bool {
	o := m.first(code)
	if o == nil {
		return false
	}
	long := len(o.value) > n
	if long {
		o.value = o.value[:n]
	}
	return m.remove(code, 1) || long
}

// discard takes an option out that has less than n bytes.
func (m *rawRequest) discard(code byte, n int) bool {
	o := m.first(code)
	return o != nil && len(o.value) < n && m.remove(code, 0)
}

// unload takes the options out of the fields file and sname, in the order that RFC 3396 section 5 gives them.
func (m *rawRequest) unload() bool {
	o := m.first(optOverload)
	if o == nil || len(o.value) != 1 || o.value[0] < 1 || o.value[0] > 3 {
		return false
	}
	which := o.value[0]
	m.remove(optOverload, 0)
	for _, field := range []struct {
		bit      byte
		from, to int
	}{{1, offFile, offCookie}, {2, offSname, offFile}} {
		if which&field.bit == 0 {
			continue
		}
		more, _ := readOptions(bytes.Clone(m.head[field.from:field.to]))
		m.options = append(m.options, more...)
		clear(m.head[field.from:field.to])
	}
	m.remove(optOverload, 0) // within the fields it means nothing
	return true
}

// architecture makes option 93 out of the vendor class, where the client sends none that can be read.
func (m *rawRequest) architecture() bool {
	class := m.first(optClass)
	if o := m.first(optArch); class == nil || o != nil && len(o.value) >= 2 {
		return false
	}
	_, rest, ok := bytes.Cut(class.value, []byte("Client:Arch:"))
	if !ok || len(rest) < 5 {
		return false
	}
	n, err := strconv.ParseUint(string(rest[:5]), 10, 16)
	if err != nil {
		return false
	}
	m.remove(optArch, 0)
	m.options = append(m.options, rawOption{optArch, []byte{byte(n >> 8), byte(n)}})
	return true
}

// zeros tells whether there is nothing but zeros.
func zeros(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }
