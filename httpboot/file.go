package httpboot

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"path"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

// mimeTypes by extension, lower case. Those of UEFI HTTP Boot are UEFI 2.8's (24.7.9, by which firmware tells
// a loader from a disk image); the rest is for people's browsers.
var mimeTypes = map[string]string{
	".efi":      "application/efi",
	".iso":      "application/vnd.efi-iso",
	".img":      "application/vnd.efi-img",
	".rpm":      "application/x-rpm",
	".deb":      "application/vnd.debian.binary-package",
	".gz":       "application/gzip",
	".bz2":      "application/x-bzip2",
	".xz":       "application/x-xz",
	".xml":      "text/xml; charset=utf-8",
	".html":     "text/html; charset=utf-8",
	".cfg":      "text/plain; charset=utf-8",
	".conf":     "text/plain; charset=utf-8",
	".txt":      "text/plain; charset=utf-8",
	".treeinfo": "text/plain; charset=utf-8",
}

func mimeType(name string) string {
	if t, ok := mimeTypes[strings.ToLower(path.Ext(name))]; ok {
		return t
	}
	return "application/octet-stream"
}

// file is what a transfer needs to know.
type file struct {
	content io.ReadSeeker
	name    string
	modTime time.Time
	etag    string // strong, with its quotes; "": none
}

// sendFile sends a file, or the part of it that was asked for: conditions and ranges are http.ServeContent's
// (RFC 9110 sections 13 and 14).
func sendFile(c echo.Context, f file) error {
	w := responseOf(c)
	h := w.Header()
	h.Set("Content-Type", mimeType(f.name))
	h.Set("X-Content-Type-Options", "nosniff")
	if f.etag != "" {
		h.Set("ETag", f.etag)
	}
	if f.modTime.Equal(time.Unix(0, 0)) {
		f.modTime = time.Unix(1, 0) // net/http takes the epoch, which embedded loaders have, for "not known"
	}
	http.ServeContent(w, c.Request(), f.name, f.modTime, f.content)
	if w.fault != nil {
		return fmt.Errorf("read %s after %d bytes: %w", f.name, w.bytes, w.fault)
	}
	return nil
}

// delivery notes the transfer of a file that marks a step of a boot: what it was, and whether all of it
// arrived. What is no such transfer (a HEAD, a resumed part, an error) is only counted.
func (s *Server) delivery(c echo.Context, kind string, mac inventory.MAC, what string, size int64) (done func()) {
	start := s.o.Now()
	return func() {
		r, w := c.Request(), responseOf(c)
		if r.Method != http.MethodGet || w.status != http.StatusOK {
			return
		}
		e := lifecycle.Event{MAC: mac, Source: "http", Kind: kind, Level: lifecycle.Info}
		took := s.o.Now().Sub(start).Round(time.Millisecond)
		if w.bytes == size {
			e.Text = fmt.Sprintf("%s sent to %s: %s in %s", what, asker(c), sizeText(size), took)
		} else {
			e.Level = lifecycle.Warn
			e.Text = fmt.Sprintf("%s to %s broke off after %s of %s and %s", what, asker(c), sizeText(w.bytes), sizeText(size), took)
		}
		s.o.Rack.Observe(e)
	}
}

// asker says who asked, for events: the address, and the program by its own account.
func asker(c echo.Context) string {
	agent := c.Request().UserAgent()
	if agent == "" {
		return client(c).String()
	}
	return fmt.Sprintf("%s (%.60q)", client(c), agent)
}

// sizeText is a number of bytes for people.
func sizeText(n int64) string {
	switch {
	case n < 10<<10:
		return fmt.Sprintf("%d B", n)
	case n < 10<<20:
		return fmt.Sprintf("%d KiB", n>>10)
	default:
		return fmt.Sprintf("%d MiB", n>>20)
	}
}

// again repeats what met media that were closed by a reload between being looked up and being opened: next
// time the new ones are there.
func again[T any](open func() (T, error)) (v T, err error) {
	for range 5 {
		if v, err = open(); !errors.Is(err, fs.ErrClosed) {
			break
		}
	}
	return v, err
}
