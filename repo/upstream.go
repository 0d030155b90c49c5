package repo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"
)

// UpstreamError tells why a file cannot be had from an upstream server. Its text names neither URL nor
// credentials: clients read it.
type UpstreamError struct {
	Repo, Path string
	Reason     string
	Detail     string // for the operator alone: addresses, and words of the server
	// Lie: what the server sent is wrong, and trying again soon will not help (502). Else it cannot be reached,
	// or is out of order for a while (503).
	Lie bool
}

func (e *UpstreamError) Error() string {
	return fmt.Sprintf("repository %s: %s: upstream %s", e.Repo, e.Path, e.Reason)
}

// Explain is Error with what only the operator may know.
func (e *UpstreamError) Explain() string { return withDetail(e.Error(), e.Detail) }

func withDetail(reason, detail string) string {
	if detail == "" {
		return reason
	}
	return reason + ": " + detail
}

// fault is one failure of an attempt.
type fault struct {
	reason string // clients read it
	detail string // the operator alone does
	lie    bool
	final  bool // another attempt would not help
	away   bool // it is a redirect that is not followed
}

func (f *fault) Error() string { return withDetail(f.reason, f.detail) }

func lie(format string, args ...any) *fault {
	return &fault{reason: fmt.Sprintf(format, args...), lie: true, final: true}
}

// quoting adds what the server has said.
func (f *fault) quoting(format string, args ...any) *fault {
	f.detail = fmt.Sprintf(format, args...)
	return f
}

// errAbsent is the upstream's 404.
var errAbsent = fmt.Errorf("not in the repository: %w", fs.ErrNotExist)

var errStalled = errors.New("sends nothing any more, or next to nothing")

// maxRedirects is how often an upstream may send us on. Mirrors do it once, or twice.
const maxRedirects = 5

// client makes the requests to the servers of one repository. It has connections of its own: what is connected to for one
// repository is not open to the redirects of another.
type client struct {
	http  *http.Client
	stall time.Duration
}

func newClient(o Options, servers ...*url.URL) *client {
	door := newDoor(o, servers...)
	transport := &http.Transport{
		Proxy:                 door.through,
		DialContext:           door.dial(net.Dialer{Timeout: o.StallTimeout, KeepAlive: 30 * time.Second}),
		ForceAttemptHTTP2:     true,
		TLSHandshakeTimeout:   o.StallTimeout,
		ResponseHeaderTimeout: o.StallTimeout,
		IdleConnTimeout:       90 * time.Second,
		MaxIdleConnsPerHost:   o.MaxConns,
		// What is fetched is compared with checksums of the files as they are: nothing may be unpacked on the way.
		DisableCompression:     true,
		MaxResponseHeaderBytes: 64 << 10,
	}
	return &client{stall: o.StallTimeout, http: &http.Client{Transport: transport, CheckRedirect: checkRedirect}}
}

// trust is why what a server sends is believed, which says where it may send us.
type trust int

const (
	byChecksum trust = iota // it is compared: any server of the internet may have it
	byServer                // it is passed on as it comes: only the server itself may have it
	byHTTPS                 // as byServer; but HTTPS may send us on to HTTPS. pkgs.k8s.io does, for repomd.xml
)

type trustKey struct{}

// trusting marks requests for what has no checksum.
func trusting(ctx context.Context, t trust) context.Context {
	return context.WithValue(ctx, trustKey{}, t)
}

// checkRedirect is net/http's CheckRedirect. Which addresses are connected to is door's matter.
func checkRedirect(req *http.Request, via []*http.Request) error {
	why, _ := req.Context().Value(trustKey{}).(trust)
	last := via[len(via)-1].URL
	switch {
	case len(via) > maxRedirects:
		return lie("redirects more than %d times", maxRedirects)
	case req.URL.Scheme != "https" && req.URL.Scheme != "http":
		return lie("redirects to what is no HTTP").quoting("%q", req.URL.Scheme)
	case last.Scheme == "https" && req.URL.Scheme != "https":
		return lie("redirects from HTTPS to HTTP").quoting("%s", req.URL.Host)
	case why == byChecksum || sameServer(last, req.URL):
		return nil
	case why == byHTTPS && last.Scheme == "https":
		return nil
	}
	return &fault{reason: "sends us to another server for a file that has no checksum", detail: req.URL.Host, final: true, away: true}
}

// leastPerStall is how much must come within the stall timeout: a server that sends a byte now and then would
// hold out everybody who waits for the file.
const leastPerStall = 4 << 10

// response is an answer whose body ends with an error if too little comes within the stall timeout.
type response struct {
	*http.Response
	since  int // bytes since the timer was set
	cancel context.CancelCauseFunc
	timer  *time.Timer
	client *client
	ctx    context.Context
}

// get asks for a file. The body must be closed.
func (c *client) get(ctx context.Context, from *url.URL, header http.Header) (*response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	r := &response{cancel: cancel, client: c, ctx: ctx}
	// Redirects each have the transport's timeouts; together they have this one.
	r.timer = time.AfterFunc(3*c.stall, func() { cancel(errStalled) })
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from.String(), nil)
	if err == nil {
		for name, values := range header {
			req.Header[name] = values
		}
		req.Header.Set("User-Agent", "rackstrap")
		r.Response, err = c.http.Do(req)
	}
	if err != nil {
		err = c.explain(ctx, err) // before the end of ctx
		r.end()
		return nil, err
	}
	r.timer.Reset(c.stall)
	return r, nil
}

func (r *response) end() {
	r.timer.Stop()
	r.cancel(nil)
}

func (r *response) Read(p []byte) (int, error) {
	n, err := r.Body.Read(p)
	if r.since += n; r.since >= leastPerStall {
		r.since = 0
		r.timer.Reset(r.client.stall)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = r.client.explain(r.ctx, err)
	}
	return n, err
}

func (r *response) close() {
	r.Body.Close()
	r.end()
}

// explain makes a fault of an error of net/http, without the URL, which may hold a password.
func (c *client) explain(ctx context.Context, err error) error {
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	var known *fault
	var name *net.DNSError
	var slow net.Error
	switch {
	case errors.As(err, &known):
		return known
	case errors.Is(context.Cause(ctx), errStalled):
		return &fault{reason: errStalled.Error()}
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF):
		return &fault{reason: "broke the connection"}
	case errors.As(err, &slow) && slow.Timeout(): // one of the transport's
		return &fault{reason: errStalled.Error()}
	case errors.As(err, &name):
		return &fault{reason: "cannot be reached: no address for its name"}
	}
	reason := "cannot be reached"
	if errors.Is(err, syscall.ECONNREFUSED) {
		reason += ": no server there"
	}
	return &fault{reason: reason, detail: strings.TrimSpace(err.Error())}
}

// check judges the status of an answer to an unconditional request.
func (r *response) check() error {
	switch code := r.StatusCode; {
	case code == http.StatusOK:
		return nil
	case code == http.StatusNotFound || code == http.StatusGone:
		return errAbsent
	case code == http.StatusTooManyRequests || code == http.StatusRequestTimeout || code >= 500:
		return &fault{reason: fmt.Sprintf("answers %d", code)}
	default:
		return &fault{reason: fmt.Sprintf("answers %d", code), final: true}
	}
}

// isHTML tells of a page where there should be a file: a captive portal's, or a mirror's excuses.
func (r *response) isHTML() bool {
	return strings.HasPrefix(strings.ToLower(strings.TrimSpace(r.Header.Get("Content-Type"))), "text/html")
}

// describe adds to a reason what may explain it.
func (r *response) describe() string {
	if r.isHTML() {
		return " (it is an HTML page)"
	}
	return ""
}

// readAll reads a small file. An announced length must be kept.
func (r *response) readAll(most int64) ([]byte, error) {
	if r.ContentLength > most {
		return nil, lie("announces %d bytes, where %d are the most", r.ContentLength, most)
	}
	text, err := io.ReadAll(io.LimitReader(r, most+1))
	switch {
	case err != nil:
		return nil, err
	case int64(len(text)) > most:
		return nil, lie("sends more than %d bytes", most)
	}
	return text, nil
}

// join makes the URL of a file below the repository.
func join(base *url.URL, file string) *url.URL {
	u := *base
	u.Path = strings.TrimSuffix(base.Path, "/") + "/" + file
	u.RawPath = ""
	return &u
}
