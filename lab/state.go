package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

const (
	stateFile = "lab.json"
	lockFile  = "lab.lock"
)

// state is StateDir/lab.json: everything that Down has to take away again.
type state struct {
	BootID     string            `json:"boot_id"`
	Namespace  string            `json:"namespace"`
	Inode      uint64            `json:"namespace_inode"` // 0: recorded, but not known to be created
	Bridge     string            `json:"bridge"`
	Gateway    netip.Prefix      `json:"gateway"`
	Accel      string            `json:"accel,omitempty"`
	System     string            `json:"system,omitempty"`  // of namespace machines
	Program    string            `json:"program,omitempty"` // that they run
	Up         bool              `json:"up"`                // false: a crash came in between
	Appliances []applianceRecord `json:"appliances"`
	Machines   []*machineRecord  `json:"machines"`
}

type applianceRecord struct {
	Args    []string `json:"args"`
	Log     string   `json:"log"`
	Process process  `json:"process"`
}

type machineRecord struct {
	Machine
	MAC        string    `json:"mac"`
	Tap        string    `json:"tap"`
	Process    process   `json:"process"`
	PoweredOn  time.Time `json:"powered_on,omitzero"`
	PowerOns   int       `json:"power_ons"`
	SerialLog  string    `json:"serial_log,omitempty"`  // of the latest power-on
	SerialFrom int64     `json:"serial_from,omitempty"` // where the latest reset begins in it

	// Of a namespace machine; recorded before they are made.
	Netns   string   `json:"netns,omitempty"`
	Cgroups []string `json:"cgroups,omitempty"`
}

// machine finds a record by name.
func (s *state) machine(name string) (*machineRecord, error) {
	for _, m := range s.Machines {
		if m.Name == name {
			return m, nil
		}
	}
	return nil, fmt.Errorf("lab: %q: %w", name, ErrUnknownMachine)
}

// readState returns nil without an error when there is no lab.
func readState(path string) (*state, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	s := new(state)
	if err := json.Unmarshal(raw, s); err != nil {
		return nil, fmt.Errorf("%s: %v", path, err)
	}
	for _, m := range s.Machines {
		if m.Machine.MAC, err = net.ParseMAC(m.MAC); err != nil {
			return nil, fmt.Errorf("%s: machine %q: %v", path, m.Name, err)
		}
	}
	if s.BootID != bootID() {
		s.forgetEarlierBoot()
	}
	return s, nil
}

// forgetEarlierBoot drops what ended with the host's earlier boot: processes, the namespace.
func (s *state) forgetEarlierBoot() {
	s.Up, s.Inode, s.Appliances = false, 0, nil
	for _, m := range s.Machines {
		m.Process = process{}
	}
}

func writeState(path string, s *state) error {
	for _, m := range s.Machines {
		m.MAC = m.Machine.MAC.String()
	}
	return writeFile(path, func(w io.Writer) error {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(s)
	})
}

func (l *Lab) statePath() string { return filepath.Join(l.spec.StateDir, stateFile) }

// load reads the record of a lab that is up.
func (l *Lab) load() (*state, error) {
	s, err := readState(l.statePath())
	if err != nil {
		return nil, fmt.Errorf("lab: %v", err)
	}
	if s == nil || !s.Up {
		return nil, fmt.Errorf("lab in %s: %w", l.spec.StateDir, ErrNotUp)
	}
	return s, nil
}

// locked runs alone among all processes that handle this lab.
func (l *Lab) locked(ctx context.Context, do func() error) error {
	if l.spec.StateDir == "" {
		return errors.New("lab: no state directory")
	}
	if err := os.MkdirAll(l.spec.StateDir, 0o755); err != nil {
		return fmt.Errorf("lab: %v", err)
	}
	return lockedFile(ctx, filepath.Join(l.spec.StateDir, lockFile), do)
}

// lockedFile holds an flock(2) on the file meanwhile; the kernel releases it when the process dies.
func lockedFile(ctx context.Context, path string, do func() error) error {
	lock, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return fmt.Errorf("lab: %v", err)
	}
	defer lock.Close()
	err = poll(ctx, func() (bool, error) {
		err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if errors.Is(err, syscall.EWOULDBLOCK) || errors.Is(err, syscall.EINTR) {
			return false, nil
		}
		return err == nil, err
	})
	if err != nil {
		return fmt.Errorf("lab: waiting for %s, which another process holds: %w", path, err)
	}
	return do()
}

// update changes the record of a lab that is up; what do changed is kept even when it failed, because it
// may have started something.
func (l *Lab) update(ctx context.Context, do func(*state) error) error {
	return l.locked(ctx, func() error {
		s, err := l.load()
		if err != nil {
			return err
		}
		err = do(s)
		return errors.Join(err, writeState(l.statePath(), s))
	})
}

// freeTap is a tap name that no machine has.
func (s *state) freeTap() string {
	for n := 0; ; n++ {
		tap := fmt.Sprintf("tap%d", n)
		if !slices.ContainsFunc(s.Machines, func(m *machineRecord) bool { return m.Tap == tap }) {
			return tap
		}
	}
}
