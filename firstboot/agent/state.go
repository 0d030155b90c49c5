package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"rackstrap/firstboot/api"
)

// Files of the state directory. All are written whole or not at all, and none is for others than root.
const (
	fileLock       = "agent.lock"
	fileAttempt    = "attempt"
	fileCredential = "credential"
	fileWork       = "work.json"
	fileJoined     = "joined" // systemd's ConditionPathExists=! of a worker
)

// state is the agent's memory.
type state struct {
	dir  string
	lock *os.File
}

// record is the work under way, in full, and once it ended its result alone.
type record struct {
	Work   api.Work    `json:"work"`
	Begun  time.Time   `json:"begun"`
	Result *api.Result `json:"result,omitempty"`
}

func openState(dir string) (*state, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, fileLock), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("another agent runs already (%s is locked)", filepath.Join(dir, fileLock))
		}
		return nil, err
	}
	return &state{dir: dir, lock: lock}, nil
}

func (s *state) close() { s.lock.Close() }

func (s *state) path(name string) string { return filepath.Join(s.dir, name) }

// foreign tells whether what lies here belongs to another attempt: it is void, its marker included.
func (s *state) foreign(attempt int) bool {
	text, err := os.ReadFile(s.path(fileAttempt))
	return err != nil || strings.TrimSpace(string(text)) != strconv.Itoa(attempt)
}

// forget makes the directory that of an attempt. The number is written last: a half-forgotten one is forgotten again.
func (s *state) forget(attempt int) error {
	for _, name := range []string{fileCredential, fileWork, fileJoined, fileTries, fileInitialised, fileUnmembered} {
		if err := os.Remove(s.path(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return s.write(fileAttempt, []byte(strconv.Itoa(attempt)+"\n"))
}

func (s *state) credential() (string, bool) {
	text, err := os.ReadFile(s.path(fileCredential))
	credential := strings.TrimSpace(string(text))
	return credential, err == nil && credential != ""
}

func (s *state) saveCredential(credential string) error {
	return s.write(fileCredential, []byte(credential+"\n"))
}

func (s *state) work() (record, bool, error) {
	var r record
	text, err := os.ReadFile(s.path(fileWork))
	if errors.Is(err, os.ErrNotExist) {
		return r, false, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &r)
	}
	if err == nil && r.Work.ID == "" {
		err = errors.New("no id")
	}
	return r, err == nil, err
}

func (s *state) saveWork(r record) error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return s.write(fileWork, text)
}

func (s *state) dropWork() error {
	if err := os.Remove(s.path(fileWork)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (s *state) busy() string {
	r, ok, _ := s.work()
	if !ok || r.Result != nil {
		return "none"
	}
	return string(r.Work.Action)
}

func (s *state) joined() bool { return exists(s.path(fileJoined)) }

func (s *state) markJoined() error {
	return s.write(fileJoined, []byte("This node joined its cluster and was seen Ready: rackstrap-agent does not start again.\n"))
}

func (s *state) write(name string, text []byte) error { return writeAtomically(s.path(name), text) }

// writeAtomically replaces a file, mode 0600; what it returns without an error is on disk.
func writeAtomically(path string, text []byte) error {
	dir := filepath.Dir(path)
	file, err := os.CreateTemp(dir, ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	_, err = file.Write(text)
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	if err := os.Rename(file.Name(), path); err != nil {
		return err
	}
	parent, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(parent.Sync(), parent.Close())
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
