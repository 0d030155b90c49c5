// Package images is a directory of container images in archives, as `docker save` and `ctr images export` write them:
// what machines import before kubeadm starts, so that they need no registry.
//
// The archives are opened and hashed when the directory is read. What is served later is what was hashed then.
package images

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Archive is one file with images.
type Archive struct {
	File    string // name in the directory
	Size    int64
	SHA256  string   // lower-case hex
	Names   []string // references of the images inside, sorted
	ModTime time.Time

	f *os.File
}

// Set is what a directory held when it was opened.
type Set struct {
	dir      string
	archives []*Archive
	Ignored  []string // files that are no .tar: for people
}

// maxIndex bounds what is read of an archive's index; those of real images have some KiB.
const maxIndex = 4 << 20

// Open reads a directory; "" is an empty one. A file *.tar that is no archive of images is an error that names it. What
// an earlier Set of the same directory has hashed, and was not changed since, is not hashed again.
func Open(dir string, earlier *Set) (*Set, error) {
	s := &Set{dir: dir}
	if dir == "" {
		return s, nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("cluster.images: %w", err)
	}
	for _, entry := range entries {
		name := entry.Name()
		if strings.HasPrefix(name, ".") {
			continue
		}
		if !strings.HasSuffix(name, ".tar") {
			s.Ignored = append(s.Ignored, name)
			continue
		}
		a, err := open(filepath.Join(dir, name), earlier.find(dir, name))
		if err != nil {
			s.Close()
			return nil, fmt.Errorf("cluster.images: %s: %w", name, err)
		}
		s.archives = append(s.archives, a)
	}
	return s, nil
}

func (s *Set) find(dir, name string) *Archive {
	if s == nil || s.dir != dir {
		return nil
	}
	return s.Find(name)
}

// Find is the archive of that name; nil if there is none.
func (s *Set) Find(name string) *Archive {
	for _, a := range s.archives {
		if a.File == name {
			return a
		}
	}
	return nil
}

// Archives lists what there is, in the order of the names.
func (s *Set) Archives() []*Archive { return slices.Clone(s.archives) }

// Close closes the files: nobody may be sent one any more.
func (s *Set) Close() error {
	var errs []error
	for _, a := range s.archives {
		errs = append(errs, a.f.Close())
	}
	return errors.Join(errs...)
}

func open(path string, known *Archive) (_ *Archive, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("is not a regular file")
	}
	a := &Archive{File: filepath.Base(path), Size: info.Size(), ModTime: info.ModTime(), f: f}
	if known != nil && known.same(info) {
		a.SHA256, a.Names = known.SHA256, known.Names
		return a, nil
	}
	if a.Names, err = names(io.NewSectionReader(f, 0, a.Size)); err != nil {
		return nil, err
	}
	sum := sha256.New()
	n, err := io.Copy(sum, io.NewSectionReader(f, 0, a.Size))
	if err != nil {
		return nil, err
	}
	if n != a.Size {
		return nil, errors.New("has become shorter while it was read")
	}
	a.SHA256 = hex.EncodeToString(sum.Sum(nil))
	return a, nil
}

// same tells whether the file is the one that was hashed.
func (a *Archive) same(info os.FileInfo) bool {
	then, err := a.f.Stat()
	return err == nil && os.SameFile(then, info) && info.Size() == a.Size && info.ModTime().Equal(a.ModTime)
}

// ErrChanged is an archive that was written to since it was hashed.
var ErrChanged = errors.New("the archive was changed since it was read: `rackstrap reload` reads it again")

// Region is where its bytes lie: a file that others read too, from its start. ErrChanged, if they are others by now.
func (a *Archive) Region() (*os.File, error) {
	if info, err := a.f.Stat(); err != nil {
		return nil, err
	} else if !a.same(info) {
		return nil, ErrChanged
	}
	return a.f, nil
}

// names reads which images an archive holds: of manifest.json, as docker writes it, and of index.json (OCI image
// layout; containerd notes the whole reference in an annotation of its own).
func names(archive io.ReadSeeker) ([]string, error) {
	found, indexes := map[string]bool{}, 0
	for files := tar.NewReader(archive); ; {
		header, err := files.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("is no tar archive: %w", err)
		}
		read := map[string]func([]byte) ([]string, error){"manifest.json": dockerNames, "index.json": ociNames}[strings.TrimPrefix(header.Name, "./")]
		if read == nil || header.Typeflag != tar.TypeReg {
			continue
		}
		if header.Size > maxIndex {
			return nil, fmt.Errorf("its %s is too large", header.Name)
		}
		text, err := io.ReadAll(files)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", header.Name, err)
		}
		list, err := read(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", header.Name, err)
		}
		indexes++
		for _, name := range list {
			if name != "" {
				found[name] = true
			}
		}
	}
	if indexes == 0 {
		return nil, errors.New("is no archive of images: it has neither manifest.json nor index.json")
	}
	if len(found) == 0 {
		return nil, errors.New("names none of its images: save them by name, not by ID")
	}
	var list []string
	for name := range found {
		list = append(list, name)
	}
	slices.Sort(list)
	return list, nil
}

func dockerNames(text []byte) (list []string, err error) {
	var manifests []struct{ RepoTags []string }
	if err := json.Unmarshal(text, &manifests); err != nil {
		return nil, err
	}
	for _, m := range manifests {
		list = append(list, m.RepoTags...)
	}
	return list, nil
}

func ociNames(text []byte) (list []string, err error) {
	var index struct {
		Manifests []struct{ Annotations map[string]string }
	}
	if err := json.Unmarshal(text, &index); err != nil {
		return nil, err
	}
	for _, m := range index.Manifests {
		name := m.Annotations["io.containerd.image.name"]
		if ref := m.Annotations["org.opencontainers.image.ref.name"]; name == "" && strings.Contains(ref, "/") {
			name = ref // else it is a tag alone, which the OCI allows
		}
		list = append(list, name)
	}
	return list, nil
}
