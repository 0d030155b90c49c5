package firstboot

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/labstack/echo/v4"

	"rackstrap/cluster"
	"rackstrap/firstboot/api"
	"rackstrap/internal/plain"
)

// maxLogs is how many logs of one machine are kept; the oldest go first. Each is at most api.MaxLog long.
const maxLogs = 32

// agentLog is the name of a file here; the installer's own log is beside them, and bounded by package syslog.
var agentLog = regexp.MustCompile(`^[0-9]+-`)

var logShape = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)

// errNoLogs is a log where none are kept.
var errNoLogs = echo.NewHTTPError(http.StatusNotFound, "logs are not kept here")

// logs keeps what agents leave: dir/NAME/ATTEMPT-LOG, mode 0600. What looks like a secret is removed before, and the
// lines are plain ones: people read them in terminals.
type logs struct {
	dir   string
	turns sync.Map // by machine: one write at a time
}

func (l *logs) put(machine string, attempt int, name string, text []byte) error {
	if l.dir == "" {
		return errNoLogs
	}
	if !logShape.MatchString(name) {
		return echo.NewHTTPError(http.StatusBadRequest, "a log's name has lower-case letters, digits, dots and hyphens, at most 64")
	}
	plainText := []byte(plain.Lines(cluster.Redact(string(text)), api.MaxLog))
	dir := filepath.Join(l.dir, machine) // a machine of the list: its name is a label of DNS
	turn, _ := l.turns.LoadOrStore(machine, &sync.Mutex{})
	turn.(*sync.Mutex).Lock()
	defer turn.(*sync.Mutex).Unlock()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("logs: %w", err)
	}
	path := filepath.Join(dir, fmt.Sprintf("%d-%s", attempt, name))
	if err := writeAtomically(path, plainText); err != nil {
		return fmt.Errorf("logs: %w", err)
	}
	return l.prune(dir)
}

// prune removes the oldest logs of a machine, beyond maxLogs.
func (l *logs) prune(dir string) error {
	for {
		entries, err := os.ReadDir(dir)
		entries = slices.DeleteFunc(entries, func(e os.DirEntry) bool { return !agentLog.MatchString(e.Name()) })
		if err != nil || len(entries) <= maxLogs {
			return err
		}
		var oldest string
		var when time.Time
		for _, e := range entries {
			info, err := e.Info()
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			if oldest == "" || info.ModTime().Before(when) {
				oldest, when = e.Name(), info.ModTime()
			}
		}
		if err := os.Remove(filepath.Join(dir, oldest)); err != nil {
			return err
		}
	}
}
