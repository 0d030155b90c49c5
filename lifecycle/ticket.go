package lifecycle

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"rackstrap/inventory"
)

// bootFor is how long a boot that was seen lasts: from the firmware's DHCP to the script, and again from the script to
// the kickstart. An installer of half a GiB over a slow TFTP takes a quarter of an hour.
const bootFor = time.Hour

// A ticket is what a boot script hands to the installer, as the last part of the kickstart's path: the time of the script, in
// milliseconds, and a MAC (RFC 2104) over it and over the machine, of 128 bits. Who has not read the script of that machine
// cannot know it; nothing has to be kept.
const (
	ticketTime = 8
	ticketSum  = 16
)

// ticketKeySize is the size of the key, in bytes.
const ticketKeySize = 32

// LoadTicketKey reads the key of the tickets from the data directory, and makes it the first time, so that boots outlive
// a restart of the daemon.
func LoadTicketKey(dir string) ([]byte, error) {
	name := filepath.Join(dir, "ticket.key")
	key, err := os.ReadFile(name)
	if err == nil && len(key) == ticketKeySize {
		return key, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("key of the boot scripts' tickets: %w", err)
	}
	key = newTicketKey()
	if err := os.WriteFile(name+".new", key, 0o600); err != nil {
		return nil, fmt.Errorf("key of the boot scripts' tickets: %w", err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		return nil, fmt.Errorf("key of the boot scripts' tickets: %w", err)
	}
	return key, nil
}

func newTicketKey() []byte {
	key := make([]byte, ticketKeySize)
	rand.Read(key)
	return key
}

// Ticket makes a ticket for the machine with this MAC.
func (r *Rack) Ticket(mac inventory.MAC) string {
	var at [ticketTime]byte
	binary.BigEndian.PutUint64(at[:], uint64(r.now().UnixMilli()))
	return base64.RawURLEncoding.EncodeToString(append(at[:], r.ticketSum(mac, at)...))
}

func (r *Rack) ticketSum(mac inventory.MAC, at [ticketTime]byte) []byte {
	sum := hmac.New(sha256.New, r.ticketKey)
	sum.Write(mac[:])
	sum.Write(at[:])
	return sum.Sum(nil)[:ticketSum]
}

// issued is when a ticket of the machine with this MAC was made; false: it is none.
func (r *Rack) issued(mac inventory.MAC, ticket string) (time.Time, bool) {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(ticket)
	if err != nil || len(raw) != ticketTime+ticketSum {
		return time.Time{}, false
	}
	at := [ticketTime]byte(raw)
	if !hmac.Equal(raw[ticketTime:], r.ticketSum(mac, at)) {
		return time.Time{}, false
	}
	return time.UnixMilli(int64(binary.BigEndian.Uint64(at[:]))), true
}

// admits tells whether a kickstart may be given for a ticket, by the record of its machine: nil, or why not. The ticket of the
// installation that runs is good for the same boot again (curl --retry) until its installer has reported; another has to be of a
// script that was read since that installation began. What a machine was installed with is worth nothing when it is armed anew.
func (rec Record) admits(ticket string, issued, now time.Time, sameBoot, reported bool) error {
	switch used := rec.Ticket != "" && hashSecret(ticket) == rec.Ticket; {
	case now.Sub(issued) > bootFor:
		return errors.New("its boot script is too old")
	case used && !sameBoot, !used && rec.State != Armed && issued.Before(past(rec.Since, now).Truncate(time.Millisecond)):
		return errors.New("its boot script belongs to an earlier boot")
	case used && reported:
		return errors.New("its installer runs already, with another copy of it: two parties act as this machine")
	}
	return nil
}

// DecideBoot is DecideFrom for one that asks for its boot script: a machine is sent to its installer only in a boot that
// was seen, which is to say that its firmware asked by DHCP since the machine was armed, or its last installation ended, and not
// long ago. Otherwise it waits, and asks by DHCP again. With network.dhcp.mode off no boot is ever seen. The decision to install
// has a ticket.
func (r *Rack) DecideBoot(mac inventory.MAC, client netip.Addr) Decision {
	r.mu.RLock()
	d := r.at(r.decide(mac, ""), client)
	seesBoots := r.config.Network.DHCP.Mode != inventory.DHCPOff
	r.mu.RUnlock()
	if d.Action != ActionInstall {
		return d
	}
	last, now := r.lastBoot(d.Record), r.now()
	if seesBoots && (last.Before(past(d.Record.Since, now)) || now.Sub(last) > bootFor) {
		d.Action, d.Unseen = ActionWait, true
		d.Reason = fmt.Sprintf("%s waits: it was not seen to boot from the network since it is to be installed: it asks by DHCP again", d.Machine.Name)
		return d
	}
	d.Ticket = r.Ticket(mac)
	return d
}
