package lifecycle

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strings"
	"time"

	"rackstrap/inventory"
)

// Confirmation is an operator's word that the machine which has called home is the one that stands in the rack. It is
// bound to the credential by which it proves itself, and void with that.
type Confirmation struct {
	Since       time.Time `json:"since,omitzero"`
	By          string    `json:"by,omitempty"`
	Fingerprint string    `json:"fingerprint,omitempty"`
}

// Fingerprint is a public name of a credential, of its hash as hex: the machine shows it on its console, and the operator
// compares it. It neither opens anything nor leads back to the credential, or to the hash in the database.
func Fingerprint(credentialHash string) string {
	sum := sha256.Sum256([]byte("rackstrap credential " + credentialHash))
	return "SHA256:" + base64.RawStdEncoding.EncodeToString(sum[:])
}

// Fingerprint is that of the credential which the machine uses; "" as long as it has used none.
func (rec Record) Fingerprint() string {
	if rec.Node.CredentialHash == "" || !rec.Node.CredentialUsed {
		return ""
	}
	return Fingerprint(rec.Node.CredentialHash)
}

// IsConfirmed tells whether the operator has confirmed the credential that the machine uses.
func (rec Record) IsConfirmed() bool {
	confirmed := rec.Node.Confirmed.Fingerprint
	return confirmed != "" && confirmed == rec.Fingerprint()
}

// NeedsConfirmation tells whether the machine gets no secret of the cluster before the operator has confirmed it. What was
// adopted, or joined before, has no need of one: it is handed nothing.
func (m Member) NeedsConfirmation() bool {
	return m.Machine.NeedsConfirmation() && !m.Record.IsConfirmed()
}

// ConfirmError is a confirmation that cannot be: nobody has called home, or somebody else than was looked at.
type ConfirmError struct{ Reason string }

func (e *ConfirmError) Error() string { return e.Reason }

// Confirm notes that the operator has compared the fingerprint with that on the machine's console.
func (r *Rack) Confirm(ctx context.Context, name, fingerprint, by string) (Record, error) {
	rec, err := r.update(ctx, name, "", func(rec *Record) error {
		if err := rec.RefuseHeld(); err != nil {
			return err
		}
		switch now := rec.Fingerprint(); {
		case now == "":
			return &ConfirmError{fmt.Sprintf("%s is %s: it has not called home yet, so that there is nothing to confirm", name, rec.State)}
		case now != strings.TrimSpace(fingerprint):
			return &ConfirmError{fmt.Sprintf("%s has called home with another fingerprint: %s. If its console shows this one, confirm it; "+
				"if not, somebody else calls in its name: `rackstrap hold %s`", name, now, name)}
		case !rec.IsConfirmed():
			rec.Node.Confirmed = Confirmation{Since: r.now(), By: by, Fingerprint: now}
		}
		return nil
	})
	if err != nil {
		return rec, err
	}
	return rec, nil
}

// Claim is what is known of a machine that has called home, for the operator who confirms it.
type Claim struct {
	Name        string         `json:"name"`
	Role        inventory.Role `json:"role"`
	State       State          `json:"state"`
	Attempt     int            `json:"attempt"`
	Address     string         `json:"address"`
	Cards       string         `json:"cards"`                 // MACs of the list, or of approve
	Needed      bool           `json:"needed"`                // install.confirm asks for it, and it was not given
	Confirmed   Confirmation   `json:"confirmed,omitzero"`    // of this fingerprint
	Fingerprint string         `json:"fingerprint,omitempty"` // "": it has not called home
	CalledHome  Call           `json:"called_home,omitzero"`
	Begun       time.Time      `json:"begun,omitzero"` // power-on of the installation
	Sighting    Sighting       `json:"seen,omitzero"`  // of DHCP: when it booted, by which relay, its firmware and UUID
}

// Call is what a machine said of itself when it called home: its own words.
type Call struct {
	At     time.Time `json:"at,omitzero"`
	OS     string    `json:"os,omitempty"`
	Kernel string    `json:"kernel,omitempty"`
	Board  string    `json:"board,omitempty"`  // vendor and product
	Serial string    `json:"serial,omitempty"` // of the board
	UUID   string    `json:"uuid,omitempty"`   // of the board
}

// Claim gathers what is known of a machine: *UnknownMachineError, or ErrNoHardware.
func (r *Rack) Claim(name string) (Claim, error) {
	m, err := r.Member(name)
	if err != nil {
		return Claim{}, err
	}
	rec := m.Record
	c := Claim{Name: name, Role: m.Machine.Role, State: rec.State, Attempt: rec.Attempt, Address: m.Machine.IP.String(),
		Cards: rec.Cards, Fingerprint: rec.Fingerprint(), CalledHome: rec.Node.Call, Begun: rec.Begun,
		Needed: m.NeedsConfirmation() && rec.AwaitsCluster()}
	if c.Cards == "" {
		c.Cards = rec.MAC.String()
	}
	if rec.IsConfirmed() {
		c.Confirmed = rec.Node.Confirmed
	}
	c.Sighting, _ = r.Sighting(rec.MAC)
	return c, nil
}

// AwaitsCluster tells whether the machine is installed, and not yet part of the cluster.
func (rec Record) AwaitsCluster() bool {
	switch rec.State {
	case Installed, Firstboot, Waiting, Initialising, Joining:
		return true
	}
	return false
}
