package syslog

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
)

// LogFile is where the log of a machine's installer is, below server.data_dir.
func LogFile(dataDir, machine string) string {
	return filepath.Join(dataDir, "logs", machine, "installer.log")
}

// maxFile is how large a log becomes before it is put aside as installer.log.1, in place of the one before: twice
// that is what a machine can take of the disk. A whole installation logs some 3 MiB.
const maxFile = 8 << 20

// files are the logs that are written to, by machine. Several connections of one machine share its file.
type files struct {
	dataDir string
	limit   int64

	mu   sync.Mutex
	open map[string]*logFile
}

type logFile struct {
	mu    sync.Mutex
	path  string
	limit int64
	f     *os.File
	size  int64
	users int // guarded by files.mu
}

// take opens the log of a machine; give closes it again.
func (l *files) take(machine string) (*logFile, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if f := l.open[machine]; f != nil {
		f.users++
		return f, nil
	}
	f := &logFile{path: LogFile(l.dataDir, machine), limit: l.limit, users: 1}
	if err := os.MkdirAll(filepath.Dir(f.path), 0o700); err != nil {
		return nil, err
	}
	if err := f.reopen(); err != nil {
		return nil, err
	}
	l.open[machine] = f
	return f, nil
}

func (l *files) give(machine string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.open[machine]
	if f.users--; f.users == 0 {
		delete(l.open, machine)
		f.mu.Lock()
		defer f.mu.Unlock()
		f.f.Close()
	}
}

func (f *logFile) reopen() (err error) {
	if f.f, err = os.OpenFile(f.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600); err != nil {
		return err
	}
	info, err := f.f.Stat()
	if err != nil {
		f.f.Close()
		return err
	}
	f.size = info.Size()
	return nil
}

// write appends a line. It is not synced: a log is not worth it, and the journal has what is.
func (f *logFile) write(line string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.size > 0 && f.size+int64(len(line)) > f.limit {
		if err := f.f.Close(); err != nil && !errors.Is(err, fs.ErrClosed) {
			return err
		}
		if err := os.Rename(f.path, f.path+".1"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := f.reopen(); err != nil {
			return err
		}
	}
	n, err := f.f.WriteString(line)
	f.size += int64(n)
	return err
}
