package agent

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"rackstrap/firstboot/api"
	"rackstrap/internal/httpcall"
	"rackstrap/internal/plain"
)

// Times of the calls.
const (
	longPoll   = 50 * time.Second // that the appliance may keep a question for work
	callLimit  = 30 * time.Second // of every other call, and what a long poll may take beyond
	maxPause   = 30 * time.Second // between two tries
	maxAskedOf = 5 * time.Minute  // of Retry-After: a typing error there must not silence a machine
	maxAnswer  = 8 << 20          // a work can carry the manifest of a CNI
)

// GiveUpError is the appliance's last word: the token is not (or no longer) good, or another attempt has begun.
type GiveUpError struct{ StatusError }

func (e *GiveUpError) Error() string {
	return "the appliance refuses this machine: " + e.StatusError.Error()
}

// Unwrap gives the answer itself.
func (e *GiveUpError) Unwrap() error { return &e.StatusError }

// StatusError is an answer that is not the expected one.
type StatusError struct {
	Call       string
	Status     int
	Text       string
	RetryAfter time.Duration
}

func (e *StatusError) Error() string { return fmt.Sprintf("%s: %d %s", e.Call, e.Status, e.Text) }

// final tells whether repeating a result cannot help: it is not understood, too large, or nobody waits for it.
func (e *StatusError) final() bool {
	switch e.Status {
	case http.StatusBadRequest, http.StatusNotFound, http.StatusConflict, http.StatusRequestEntityTooLarge:
		return true
	}
	return false
}

// NewClient makes a client that believes the CA of the PEM text alone, and uses no proxy.
func NewClient(ca []byte, dial func(ctx context.Context, network, address string) (net.Conn, error)) (*http.Client, error) {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return nil, errors.New("the file of the appliance's CA holds no certificate")
	}
	if dial == nil {
		dial = (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext
	}
	return httpcall.Client(&http.Transport{
		DialContext:           dial,
		TLSClientConfig:       &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:   20 * time.Second,
		ResponseHeaderTimeout: longPoll + callLimit,
		MaxIdleConnsPerHost:   1, // a thousand agents with two each are a burden to the appliance
		IdleConnTimeout:       90 * time.Second,
	}, 0), nil
}

// caller speaks the protocol of package api for one machine.
type caller struct {
	http       *http.Client
	base       string
	attempt    int
	token      string
	credential string
	pause      time.Duration
	log        *slog.Logger
	now        func() time.Time
	show       func(fingerprint string)
	shown      *string // what it shows; nil: an earlier run may have left anything
}

// confirm has the console show what the operator is to compare, or nothing any more.
func (c *caller) confirm(fingerprint string) {
	if c.show != nil && (c.shown == nil || *c.shown != fingerprint) {
		c.show(fingerprint)
		c.shown = &fingerprint
	}
}

func newCaller(o Options) *caller {
	pause := o.Pause
	if pause <= 0 {
		pause = time.Second
	}
	return &caller{http: o.Client, base: strings.TrimSuffix(o.Config.Server, "/") + "/api/v1/nodes/" + url.PathEscape(o.Config.Name) + "/",
		attempt: o.Config.Attempt, token: o.Config.Token, pause: pause, log: o.Log, now: o.Now, show: o.Show}
}

// exchange repeats until there is a credential.
func (c *caller) exchange(ctx context.Context, e api.Exchange) (api.Credential, error) {
	var answer api.Credential
	err := c.insist(ctx, nil, func() error {
		_, _, err := c.call(ctx, http.MethodPost, "exchange", c.token, e, &answer)
		if err == nil && answer.Credential == "" {
			err = errors.New("exchange: no credential in the answer")
		}
		return err
	})
	return answer, err
}

// awaitWork asks until there is work. With meanwhile the first question is answered at once, and if there is nothing to do
// but images to bring in, it does that before the next.
func (c *caller) awaitWork(ctx context.Context, meanwhile func(context.Context, []api.Image)) (api.Work, error) {
	var work api.Work
	reason := ""
	for {
		var images []api.Image
		again, wait := time.Duration(0), longPoll
		if meanwhile != nil {
			wait = 0
		}
		err := c.insist(ctx, nil, func() error {
			var answer struct {
				api.Work
				api.Waiting
			}
			status, retry, err := c.call(ctx, http.MethodGet, "work?wait="+strconv.Itoa(int(wait/time.Second)), c.credential, nil, &answer)
			switch {
			case err != nil:
				return err
			case status == http.StatusAccepted:
				c.confirm(answer.Confirm)
				if answer.Reason != reason {
					reason = answer.Reason
					c.log.Info("waiting", "reason", reason, "holder", answer.Holder)
				}
				again, images = max(retry, 50*time.Millisecond), answer.Meanwhile
				return nil
			case answer.ID == "" || answer.Action == "":
				return errors.New("work: an answer without id or action")
			}
			c.confirm("")
			work = answer.Work
			return nil
		})
		if err != nil || work.ID != "" {
			return work, err
		}
		if meanwhile != nil {
			if len(images) > 0 {
				meanwhile(ctx, images)
			}
			meanwhile = nil
			continue
		}
		if err := sleep(ctx, jitter(again)); err != nil {
			return work, err
		}
	}
}

// result repeats until the result was taken, or is not wanted (StatusError.final).
func (c *caller) result(ctx context.Context, id string, r api.Result) error {
	unwanted := func(err error) bool {
		var status *StatusError
		return errors.As(err, &status) && status.final()
	}
	return c.insist(ctx, unwanted, func() error {
		_, _, err := c.call(ctx, http.MethodPost, "work/"+url.PathEscape(id)+"/result", c.credential, r, nil)
		return err
	})
}

// event is sent once: progress is worth no second try.
func (c *caller) event(ctx context.Context, e api.Event) error {
	e.Attempt = c.attempt
	_, _, err := c.call(ctx, http.MethodPost, "events", c.credential, e, nil)
	return err
}

// putLog is sent once: the result with its tail is what counts.
func (c *caller) putLog(ctx context.Context, name, text string) {
	if _, _, err := c.call(ctx, http.MethodPut, "logs/"+url.PathEscape(name), c.credential, tail(text, api.MaxLog), nil); err != nil {
		c.log.Warn("the log could not be delivered", "log", name, "err", err)
	}
}

// insist repeats a call with growing, jittered pauses until it succeeds, is refused for good, or over reports that
// its error is an answer.
func (c *caller) insist(ctx context.Context, over func(error) bool, call func() error) error {
	pause := c.pause
	for {
		err := call()
		var gone *GiveUpError
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.As(err, &gone), over != nil && over(err):
			return err
		}
		wait := jitter(pause)
		var status *StatusError
		if errors.As(err, &status) {
			wait = max(wait, status.RetryAfter+jitter(status.RetryAfter/4))
		}
		c.log.Warn("call failed, will be repeated", "in", wait.Round(time.Millisecond), "err", err)
		if err := sleep(ctx, wait); err != nil {
			return err
		}
		pause = min(2*pause, maxPause)
	}
}

// call makes one call. Statuses beyond 2xx are a *StatusError, those after which nothing helps a *GiveUpError.
func (c *caller) call(ctx context.Context, method, path, bearer string, body, answer any) (int, time.Duration, error) {
	limit := callLimit
	if method == http.MethodGet {
		limit += longPoll
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var content io.Reader
	kind := "application/json"
	switch b := body.(type) {
	case nil:
	case string:
		content, kind = strings.NewReader(b), "text/plain; charset=utf-8"
	default:
		text, err := json.Marshal(b)
		if err != nil {
			return 0, 0, err
		}
		content = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, content)
	if err != nil {
		return 0, 0, err
	}
	req.Header.Set("Authorization", "Bearer "+bearer)
	req.Header.Set(api.HeaderAttempt, strconv.Itoa(c.attempt))
	if method == http.MethodGet {
		req.Header.Set(api.HeaderClock, c.now().UTC().Format(time.RFC3339))
	}
	if content != nil {
		req.Header.Set("Content-Type", kind)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, 0, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	name, _, _ := strings.Cut(path, "?")
	retry := retryAfter(resp.Header.Get("Retry-After"))
	switch {
	case resp.StatusCode/100 != 2:
		status := StatusError{Call: name, Status: resp.StatusCode, Text: reasonOf(text), RetryAfter: retry}
		switch resp.StatusCode {
		case http.StatusUnauthorized, http.StatusForbidden, http.StatusGone:
			return resp.StatusCode, 0, &GiveUpError{status}
		}
		return resp.StatusCode, retry, &status
	case err != nil:
		return 0, 0, fmt.Errorf("%s: answer: %w", name, err)
	case len(text) > maxAnswer:
		return 0, 0, fmt.Errorf("%s: an answer of more than %d bytes", name, maxAnswer)
	case answer != nil && resp.StatusCode != http.StatusNoContent:
		if err := json.Unmarshal(text, answer); err != nil {
			return 0, 0, fmt.Errorf("%s: answer: %w", name, err)
		}
	}
	return resp.StatusCode, retry, nil
}

// reasonOf is the one line of a refusal: {"error": …}, or the beginning of whatever came.
func reasonOf(body []byte) string {
	var said struct{ Error, Message string }
	if json.Unmarshal(body, &said) == nil && said.Error+said.Message != "" {
		return plain.Line(said.Error+said.Message, 300)
	}
	return plain.Line(string(body[:min(len(body), 300)]), 300)
}

// retryAfter reads seconds; the date form (RFC 9110 10.2.3) is not used by the appliance, and needs a right clock.
func retryAfter(text string) time.Duration {
	seconds, err := strconv.Atoi(strings.TrimSpace(text))
	if err != nil || seconds < 0 {
		return 0
	}
	return min(time.Duration(min(seconds, 1<<20))*time.Second, maxAskedOf)
}

// jitter spreads a pause over its upper half, so that a rack does not call in step.
func jitter(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return d/2 + rand.N(d/2+1)
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// reporter sends progress in the background: it never holds the work up, and drops what is too much.
type reporter struct {
	queue  chan api.Event
	cancel context.CancelFunc
	done   chan struct{}
}

func newReporter(home *caller, log *slog.Logger) *reporter {
	ctx, cancel := context.WithCancel(context.Background())
	r := &reporter{queue: make(chan api.Event, 16), cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		for e := range r.queue {
			bounded, end := context.WithTimeout(ctx, 5*time.Second)
			if err := home.event(bounded, e); err != nil {
				log.Debug("progress not delivered", "err", err)
			}
			end()
		}
	}()
	return r
}

func (r *reporter) tell(phase, text string, percent int) {
	select {
	case r.queue <- api.Event{Kind: "progress", Phase: phase, Percent: percent, Text: plain.Line(text, 500)}:
	default:
	}
}

// stop ends it; what is queued gets two seconds.
func (r *reporter) stop() {
	close(r.queue)
	defer time.AfterFunc(2*time.Second, r.cancel).Stop()
	<-r.done
	r.cancel()
}
