package operator

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"rackstrap/internal/httpcall"
	"rackstrap/internal/plain"
	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

// NotRunningError is a data directory whose daemon does not answer.
type NotRunningError struct {
	Socket string
	Err    error
}

func (e *NotRunningError) Error() string {
	if errors.Is(e.Err, os.ErrPermission) {
		return fmt.Sprintf("%s: only root may talk to the daemon", e.Socket)
	}
	return fmt.Sprintf("no daemon answers at %s: is `rackstrap serve` running with this configuration?", e.Socket)
}

func (e *NotRunningError) Unwrap() error { return e.Err }

// Client talks to the daemon of one data directory.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient makes a client; nothing is dialled yet.
func NewClient(dataDir string) *Client {
	socket := filepath.Join(dataDir, SocketName)
	return &Client{socket: socket, http: httpcall.Client(&http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
	}, 0)}
}

// Status is the rack on one screen.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var st Status
	return st, c.call(ctx, http.MethodGet, "/api/v1/status", nil, &st)
}

// Reload makes the daemon read its file again.
func (c *Client) Reload(ctx context.Context) (ReloadResult, error) {
	var result ReloadResult
	return result, c.call(ctx, http.MethodPost, "/api/v1/reload", nil, &result)
}

// Approve binds a discovered machine to a free slot of the list. A further card of a known machine is refused, unless
// the operator vouches that it is another one.
func (c *Client) Approve(ctx context.Context, mac inventory.MAC, name string, otherMachine bool) (lifecycle.Record, error) {
	var rec lifecycle.Record
	return rec, c.call(ctx, http.MethodPost, "/api/v1/discovered/"+mac.Hyphens()+"/approve", approval{As: name, OtherMachine: otherMachine}, &rec)
}

// Adopt takes a machine whose disk holds a good system as installed.
func (c *Client) Adopt(ctx context.Context, name string) (lifecycle.Record, error) {
	var rec lifecycle.Record
	return rec, c.call(ctx, http.MethodPost, "/api/v1/machines/"+url.PathEscape(name)+"/adopt", nil, &rec)
}

// Release frees a slot that approve or enrolment filled.
func (c *Client) Release(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodPost, "/api/v1/machines/"+url.PathEscape(name)+"/release", nil, nil)
}

// Render is what the daemon would serve the machine now: "ipxe" or "grub"; or "kickstart", "init-config" or
// "join-config", of its configuration in force, with stand-ins for all secrets.
func (c *Client) Render(ctx context.Context, what, name string) ([]byte, error) {
	body, err := c.open(ctx, http.MethodGet, "/api/v1/render/"+what+"/"+url.PathEscape(name), nil)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(body)
}

// EventQuery selects events by the machine's name or MAC; "" is all of them.
type EventQuery struct {
	Machine string
	After   uint64
	Limit   int
	Follow  bool
}

// Events calls each for every event, oldest first; with Follow until ctx ends.
func (c *Client) Events(ctx context.Context, q EventQuery, each func(lifecycle.Event) error) error {
	values := url.Values{}
	if q.Machine != "" {
		values.Set("machine", q.Machine)
	}
	if q.After > 0 {
		values.Set("after", strconv.FormatUint(q.After, 10))
	}
	if q.Limit > 0 {
		values.Set("limit", strconv.Itoa(q.Limit))
	}
	if q.Follow {
		values.Set("follow", "1")
	}
	body, err := c.open(ctx, http.MethodGet, "/api/v1/events?"+values.Encode(), nil)
	if err != nil {
		return err
	}
	defer body.Close()
	for lines := json.NewDecoder(body); ; {
		var e lifecycle.Event
		if err := decode(lines, &e); errors.Is(err, io.EOF) || ctx.Err() != nil {
			return nil
		} else if err != nil {
			return fmt.Errorf("read events: %w", err)
		}
		if err := each(e); err != nil {
			return err
		}
	}
}

func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	body, err := c.open(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer body.Close()
	if out == nil {
		return nil
	}
	return decode(json.NewDecoder(body), out)
}

// maxText bounds each text of an answer, in bytes; the longest are events.
const maxText = 8 << 10

// decode reads a value of an answer, and makes its texts plain lines. They were that before they were stored, unless by
// an older version: whatever a command prints comes through here.
func decode(values *json.Decoder, into any) error {
	if err := values.Decode(into); err != nil {
		return err
	}
	plain.Deep(into, maxText)
	return nil
}

// open makes a request and returns the body of its success.
func (c *Client) open(ctx context.Context, method, path string, in any) (io.ReadCloser, error) {
	var send io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		send = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://rackstrap"+path, send)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) || errors.Is(err, syscall.ECONNREFUSED) {
			return nil, &NotRunningError{Socket: c.socket, Err: err}
		}
		return nil, err
	}
	if resp.StatusCode >= 300 {
		defer resp.Body.Close()
		var p problem
		if json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&p) != nil || p.Error == "" {
			p.Error = resp.Status
		}
		return nil, errors.New(plain.Lines(p.Error, maxText)) // the faults of a configuration are lines
	}
	return resp.Body, nil
}
