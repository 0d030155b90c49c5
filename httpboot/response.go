package httpboot

import (
	"errors"
	"io"
	"net/http"
	"strconv"
	"sync"

	"github.com/labstack/echo/v4"
)

// response is the writer below echo's: it counts, copies files, and holds the status back until there is a
// first byte to send, so that a file that cannot be read is answered with an error, not with a promise that
// is broken.
type response struct {
	http.ResponseWriter
	status    int   // 0: none yet
	bytes     int64 // of the body
	committed bool  // the status is on its way
	fault     error // why the body could not be read
	conn      *conn // beneath it all; nil in tests without a network
}

// responseOf is the request's response. observe has put it there.
func responseOf(c echo.Context) *response { return c.Response().Writer.(*response) }

// Unwrap is for http.ResponseController.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader notes the status; the first byte, or the end of the handler, sends it.
func (w *response) WriteHeader(status int) {
	if !w.committed {
		w.status = status
	}
}

// commit sends the status.
func (w *response) commit() {
	if w.committed {
		return
	}
	w.committed = true
	if w.status == 0 {
		w.status = http.StatusOK
	}
	w.ResponseWriter.WriteHeader(w.status)
}

func (w *response) Write(p []byte) (int, error) {
	w.commit()
	n, err := w.ResponseWriter.Write(p)
	w.bytes += int64(n)
	return n, err
}

// buffers is what files are copied through. net/http's own are 32 KiB; with larger ones a file costs fewer
// system calls.
var buffers = sync.Pool{New: func() any { return new([copyBuffer]byte) }}

const copyBuffer = 128 << 10

// ReadFrom sends a file: http.ServeContent ends up here. It tells a file that cannot be read (fault) from a
// client that went away.
//
// The first buffer is copied, so that a file that cannot be read is known before the status is sent; most
// packages end with it. What is left of a larger file goes by sendfile, if that can be.
func (w *response) ReadFrom(src io.Reader) (total int64, err error) {
	buf := buffers.Get().(*[copyBuffer]byte)
	defer buffers.Put(buf)
	for {
		n, errRead := src.Read(buf[:])
		if n > 0 {
			written, err := w.writeJoined(buf[:n])
			total += int64(written)
			if err != nil {
				return total, err
			}
		}
		switch {
		case errors.Is(errRead, io.EOF):
			return total, nil
		case errRead != nil:
			w.fault = errRead
			return total, errRead
		}
		if r, ok := regionOf(src); ok && w.conn != nil {
			n, err := w.ResponseWriter.(io.ReaderFrom).ReadFrom(r) // net/http's, which calls conn's
			w.bytes += n
			w.fault = r.fault
			return total + n, err
		}
	}
}

// writeJoined is Write, with the header in the same system call as p.
func (w *response) writeJoined(p []byte) (int, error) {
	if w.conn != nil && !w.committed && len(p) > joinFrom {
		w.conn.join = true
		defer func() { w.conn.join = false }()
	}
	return w.Write(p)
}

// joinFrom is from where on net/http writes the first buffer of a file in two: 4 KiB with the header, and
// the rest. Joined, they cost one system call, and the client one wake-up.
const joinFrom = 16 << 10

// sendText sends a short text of ours.
func sendText(c echo.Context, status int, text string) error {
	return sendBytes(c, status, "text/plain; charset=utf-8", []byte(text))
}

// sendBytes sends a whole body, to HEAD its header only.
func sendBytes(c echo.Context, status int, contentType string, body []byte) error {
	w := responseOf(c)
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	if c.Request().Method == http.MethodHead {
		return nil
	}
	w.Write(body) // a client that went away is no error of ours
	return nil
}
