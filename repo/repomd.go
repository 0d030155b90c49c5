package repo

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// maxRepomd bounds repomd.xml: real ones have 2 to 10 KB.
const maxRepomd = 1 << 20

// maxMetadata bounds the files of repodata together, as they are on disk, where nothing removes them as long as they are in force.
// The largest repositories have some 300 MB. One whose size is not said counts, and may have, unsaidSize.
const (
	maxMetadata = 768 << 20
	unsaidSize  = 96 << 20
)

// want is a file that is known by its checksum before it is fetched.
type want struct {
	path string // below the repository, clean
	at   place  // where it is, if it is not below the repository; path is then what it is served as
	sum  sum
	size int64 // -1: not known
	time time.Time
}

// metadata is what one <data> of repomd.xml says.
type metadata struct {
	want
	kind     string // primary, filelists, group, …
	unpacked int64  // bytes, 0: not said
	database int    // version of a database's format; yum 3.4.3 reads 10
}

const repomdPath = "repodata/repomd.xml"

// parseRepomd reads repomd.xml. The format has no standard but createrepo's own.
func parseRepomd(text []byte) (list []metadata, revision int64, err error) {
	if len(text) > maxRepomd {
		return nil, 0, fmt.Errorf("it is larger than %d KiB", maxRepomd>>10)
	}
	size := int64(0)
	paths, primary := map[string]bool{}, false
	t := newTokens(bytes.NewReader(text), "repomd")
	err = t.document(func(tag xml.StartElement) error {
		switch tag.Name.Local {
		case "data":
		case "revision":
			text, err := t.text()
			revision, _ = strconv.ParseInt(strings.TrimSpace(text), 10, 64) // some have words there
			return err
		default:
			return t.skip()
		}
		m, err := t.data(attribute(tag, "type"))
		if err != nil {
			return fmt.Errorf("data %.40q: %w", m.kind, err)
		}
		if paths[m.path] {
			return fmt.Errorf("data %.40q: %s is there twice", m.kind, m.path)
		}
		paths[m.path] = true
		primary = primary || m.kind == "primary"
		if list = append(list, m); len(list) > 256 {
			return errors.New("it names too many files")
		}
		if wanted(m.kind) {
			size += m.most()
		}
		if size > maxMetadata {
			return fmt.Errorf("its files have more than %d MiB together", maxMetadata>>20)
		}
		return nil
	})
	if err == nil && !primary {
		err = errors.New("it names no primary metadata")
	}
	if err != nil {
		return nil, 0, err
	}
	return list, revision, nil
}

// most is how many bytes a file may have.
func (w want) most() int64 {
	if w.size < 0 {
		return unsaidSize
	}
	return w.size
}

func (t *tokens) data(kind string) (m metadata, err error) {
	m = metadata{want: want{size: -1}, kind: kind}
	err = t.children(func(tag xml.StartElement) error {
		if tag.Name.Local == "location" {
			if m.path, _, err = location(tag); err != nil {
				return err
			}
			return t.skip()
		}
		text, err := t.text()
		if err != nil {
			return err
		}
		text = strings.TrimSpace(text)
		switch tag.Name.Local {
		case "checksum":
			m.sum, err = newSum(attribute(tag, "type"), text)
		case "size":
			m.size, err = number(text, maxMetadata)
		case "open-size":
			m.unpacked, err = number(text, maxUnpacked)
		case "database_version":
			m.database, _ = strconv.Atoi(text)
		case "timestamp":
			m.time = timestamp(text)
		}
		return err
	})
	switch {
	case err != nil:
	case m.path == "":
		err = errors.New("it has no location")
	case m.path == repomdPath:
		err = errors.New("its location is repomd.xml itself")
	case m.sum.kind == "":
		err = errors.New("it has no checksum")
	}
	return m, err
}

func number(text string, most int64) (int64, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 || n > most {
		return 0, fmt.Errorf("%.40q is no size up to %d", text, most)
	}
	return n, nil
}

// timestamp is in seconds, in some repositories with a fraction.
func timestamp(text string) time.Time {
	seconds, err := strconv.ParseFloat(text, 64)
	if err != nil || seconds <= 0 || seconds > 1<<40 {
		return time.Time{}
	}
	return time.Unix(int64(seconds), 0)
}

const maxLocation = 3 << 10 // 1,024 bytes, each of them encoded

// errElsewhere is a location that is not below the repository.
var errElsewhere = errors.New("its location is not below the repository")

// location is the path of a file below the repository, decoded: clients may send it encoded in several ways. A file
// that is elsewhere is errElsewhere; where it is says its second result.
func location(tag xml.StartElement) (string, place, error) {
	at := place{base: attribute(tag, "base"), href: attribute(tag, "href")} // xml:base
	if len(at.base) > maxLocation || len(at.href) > maxLocation {
		return "", place{}, errors.New("its location is too long")
	}
	href := at.href
	if plain, err := url.PathUnescape(href); err == nil {
		href = plain
	}
	name := path.Clean(href)
	switch {
	case href == "" || name == ".":
		return "", at, errors.New("its location is empty")
	case len(name) > 1024 || strings.ContainsFunc(name, unicode.IsControl) || strings.Contains(name, `\`):
		return "", at, errors.New("its location is no path")
	case !fs.ValidPath(path.Base(name)):
		return "", at, errors.New("its location is no path")
	case at.base != "" || name[0] == '/' || strings.HasPrefix(name, "../"):
		return "", at, errElsewhere
	case !fs.ValidPath(name):
		return "", at, errors.New("its location is no path")
	}
	return name, place{}, nil
}
