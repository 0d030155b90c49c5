package assets

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"
)

//go:embed all:loaders
var embedded embed.FS

// Loader is one boot loader file, whole in memory: they are at most a few MB, and served often.
type Loader struct {
	Name    string
	Data    []byte
	ModTime time.Time
	SHA256  string // lower-case hex
}

// NewReader reads the file from its start.
func (l *Loader) NewReader() *bytes.Reader { return bytes.NewReader(l.Data) }

// Loaders is the set of loader files at hand. It is immutable.
type Loaders struct{ files map[string]*Loader }

// OpenLoaders collects the loaders that the build embedded (`make loaders` takes them from Debian's ipxe
// and GRUB packages) and lays the files of dir over them; dir may be "".
func OpenLoaders(dir string) (*Loaders, error) {
	sub, err := fs.Sub(embedded, "loaders")
	if err != nil {
		return nil, err
	}
	set := &Loaders{files: map[string]*Loader{}}
	if err := set.add(sub); err != nil {
		return nil, fmt.Errorf("embedded loaders: %w", err)
	}
	if dir != "" {
		if err := set.add(os.DirFS(dir)); err != nil {
			return nil, fmt.Errorf("server.loaders_dir %s: %w", dir, err)
		}
	}
	return set, nil
}

// LoadersFrom makes a set of files given by name: for tests.
func LoadersFrom(files map[string][]byte) *Loaders {
	set := &Loaders{files: map[string]*Loader{}}
	for name, data := range files {
		set.put(name, data, time.Unix(0, 0))
	}
	return set
}

func (s *Loaders) add(fsys fs.FS) error {
	entries, err := fs.ReadDir(fsys, ".")
	if err != nil {
		return err
	}
	for _, entry := range entries {
		name := entry.Name()
		if name == "README.md" || strings.HasPrefix(name, ".") {
			continue
		}
		info, err := fs.Stat(fsys, name) // follows a symlink: distributions link undionly.kpxe
		if errors.Is(err, fs.ErrNotExist) || err == nil && !info.Mode().IsRegular() {
			continue
		}
		if err != nil {
			return err
		}
		data, err := fs.ReadFile(fsys, name)
		if err != nil {
			return err
		}
		modTime := info.ModTime()
		if modTime.IsZero() { // embedded files have no time, and HTTP wants a Last-Modified that never changes
			modTime = time.Unix(0, 0)
		}
		s.put(name, data, modTime)
	}
	return nil
}

func (s *Loaders) put(name string, data []byte, modTime time.Time) {
	sum := sha256.Sum256(data)
	s.files[name] = &Loader{Name: name, Data: data, ModTime: modTime, SHA256: hex.EncodeToString(sum[:])}
}

// For is the loader that this firmware gets; ok is false where none of its loaders is at hand.
func (s *Loaders) For(f Firmware) (loader *Loader, ok bool) {
	for _, name := range f.candidates() {
		if l, found := s.files[name]; found {
			return l, true
		}
	}
	return nil, false
}

// Get finds a loader by its file name, in any case: some firmware upper-cases what DHCP told it.
func (s *Loaders) Get(name string) (loader *Loader, ok bool) {
	if l, found := s.files[name]; found {
		return l, true
	}
	for have, l := range s.files {
		if strings.EqualFold(have, name) {
			return l, true
		}
	}
	return nil, false
}

// Names lists the files, sorted.
func (s *Loaders) Names() []string {
	var names []string
	for name := range s.files {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
