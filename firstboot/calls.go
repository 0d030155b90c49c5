package firstboot

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"rackstrap/cluster"
	"rackstrap/firstboot/api"
	"rackstrap/internal/plain"
	"rackstrap/lifecycle"
)

// maxText bounds the text of a report, in bytes: its end is kept.
const maxText = 4000

// decode reads a body of JSON. Fields that are not known are passed over: an agent may be newer than the appliance.
func decode(c echo.Context, into any) error {
	dec := json.NewDecoder(c.Request().Body)
	err := dec.Decode(into)
	if err == nil {
		if _, err = dec.Token(); errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = errors.New("more than one value")
		}
	}
	var large *http.MaxBytesError
	if errors.As(err, &large) {
		return err
	}
	return echo.NewHTTPError(http.StatusBadRequest, "the body is not understood").SetInternal(err)
}

func (s *Server) exchange(c echo.Context, who caller) error {
	var body api.Exchange
	if err := decode(c, &body); err != nil {
		return err
	}
	credential, err := s.o.Cluster.Exchange(c.Request().Context(), who.machine.Name, who.secret, body)
	if err != nil {
		return err
	}
	s.o.Cluster.Heard(who.machine.Name)
	return c.JSON(http.StatusOK, credential)
}

// event takes a report of the installer, which has the install token, or of the agent, which has the credential.
func (s *Server) event(c echo.Context, who caller) error {
	var e api.Event
	if err := decode(c, &e); err != nil {
		return err
	}
	if e.Attempt == 0 {
		e.Attempt = who.attempt
	}
	ctx, name := c.Request().Context(), who.machine.Name
	byAgent := false
	if err := s.o.Rack.CheckSecret(name, e.Attempt, who.secret); err != nil {
		if !errors.Is(err, lifecycle.ErrBadSecret) {
			return err
		}
		if err := s.o.Rack.CheckCredential(ctx, name, e.Attempt, who.secret); err != nil {
			return err
		}
		byAgent = true
		s.o.Cluster.Heard(name)
	}
	if err := s.apply(ctx, name, who.secret, e, byAgent); err != nil {
		return err
	}
	return c.NoContent(http.StatusNoContent)
}

// apply carries a report out. It returns when what it changed is on disk; a report that is repeated, because its answer
// was lost, changes nothing.
func (s *Server) apply(ctx context.Context, name, secret string, e api.Event, byAgent bool) error {
	e.Text = s.o.Rack.Redact(name, e.Text)
	if byAgent {
		e.Text = cluster.Redact(e.Text)
	}
	text := printable(e.Text)
	switch {
	case e.Kind == "progress":
		s.progressOf(name, e, text)
		return nil
	case e.Kind == "failed" && byAgent: // what fails a machine is the result of its work
		s.o.Rack.Observe(s.eventOf(name, lifecycle.Warn, "agent", printable(e.Phase)+": "+text))
		return nil
	}
	before, err := s.o.Rack.Member(name)
	if err != nil {
		return err
	}
	switch e.Kind {
	case "installed":
		if err := s.o.Rack.CheckInstaller(ctx, name, e.Attempt, secret); err != nil {
			return err
		}
		after, err := s.o.Rack.Apply(ctx, name, lifecycle.ReportDone, "reported by its %post")
		if err == nil && text != "" && after.Revision != before.Record.Revision { // else it is said again
			s.o.Rack.Observe(s.eventOf(name, lifecycle.Info, "post", text))
		}
		return err
	case "failed":
		after, err := s.o.Rack.FailInstall(ctx, name, failureOf(e.Phase, e.Text))
		if err == nil && after.Revision != before.Record.Revision {
			s.logTail(name, e.Phase, text)
		}
		return err
	}
	return echo.NewHTTPError(http.StatusBadRequest, "kind: installed, failed or progress")
}

// waitOf is how long a caller waits for its answer, and sees to it that the connection lasts: net/http's limits are for
// calls that are answered at once; with its ReadTimeout over, it would take the client for gone.
func waitOf(c echo.Context) (time.Duration, error) {
	text := c.QueryParam("wait")
	if text == "" {
		text = "0"
	}
	seconds, err := strconv.Atoi(text)
	if err != nil || seconds < 0 {
		return 0, echo.NewHTTPError(http.StatusBadRequest, "wait is a number of seconds")
	}
	wait := maxWait
	if seconds < int(maxWait/time.Second) {
		wait = time.Duration(seconds) * time.Second
	}
	conn := http.NewResponseController(c.Response())
	return wait, errors.Join(conn.SetReadDeadline(time.Time{}), conn.SetWriteDeadline(time.Now().Add(wait+answerTimeout)))
}

// lookEvery is how often the verdict of an installation is derived while a machine waits for it.
const lookEvery = 500 * time.Millisecond

// installation answers a machine in its installer, once there is something else to do than to go on. It is no sign of life:
// what asks goes on asking while Anaconda stands at a prompt. The token of a superseded attempt cannot be checked any more,
// and the answer to it is no secret.
func (s *Server) installation(c echo.Context, who caller) error {
	wait, err := waitOf(c)
	if err != nil {
		return err
	}
	name, ctx := who.machine.Name, c.Request().Context()
	if err := s.o.Rack.CheckSecret(name, who.attempt, who.secret); err != nil && !errors.Is(err, lifecycle.ErrSuperseded) {
		return err
	}
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	over := time.After(wait)
	for {
		v := s.o.Rack.Verdict(name, who.attempt)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-over:
		default:
			if v == lifecycle.GoOn && wait > 0 {
				select {
				case <-look.C:
				case <-ctx.Done():
				}
				continue
			}
		}
		s.o.Rack.Asked(name, who.attempt, v)
		return c.JSON(http.StatusOK, api.Installation{Next: string(v)})
	}
}

// work answers a question for work, at once or when there is some.
func (s *Server) work(c echo.Context, who caller) error {
	wait, err := waitOf(c)
	if err != nil {
		return err
	}
	q := cluster.Question{Name: who.machine.Name, Attempt: who.attempt, Wait: wait}
	if text := c.Request().Header.Get(api.HeaderClock); text != "" {
		clock, err := time.Parse(time.RFC3339, text)
		if err != nil {
			return echo.NewHTTPError(http.StatusBadRequest, api.HeaderClock+" is a time of RFC 3339")
		}
		q.Clock = clock
	}
	s.metrics.polls.Inc()
	defer s.metrics.polls.Dec()
	work, waiting, err := s.o.Cluster.Work(c.Request().Context(), q)
	switch {
	case err != nil:
		return err
	case work != nil:
		s.metrics.works.WithLabelValues(string(work.Action)).Inc()
		return c.JSON(http.StatusOK, work)
	}
	c.Response().Header().Set("Retry-After", "1")
	return c.JSON(http.StatusAccepted, waiting)
}

func (s *Server) result(c echo.Context, who caller) error {
	var r api.Result
	if err := decode(c, &r); err != nil {
		return err
	}
	id := c.Param("id")
	if err := s.o.Cluster.Result(c.Request().Context(), who.machine.Name, who.attempt, id, r); err != nil {
		return err
	}
	if !r.OK && r.Output != "" {
		if err := s.logs.put(who.machine.Name, who.attempt, logName(id), []byte(r.Output)); err != nil && !errors.Is(err, errNoLogs) {
			s.o.Log.Error("output of a failed work is not kept", "machine", who.machine.Name, "err", err)
		}
	}
	return c.NoContent(http.StatusNoContent)
}

// logName makes the name of a log of a work's id.
func logName(id string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '.' || r == '-' {
			return r
		}
		return '_'
	}, id)
}

func (s *Server) putLog(c echo.Context, who caller) error {
	text, err := io.ReadAll(c.Request().Body)
	if err != nil {
		return err
	}
	if err := s.logs.put(who.machine.Name, who.attempt, c.Param("log"), text); err != nil {
		return err
	}
	return c.NoContent(http.StatusNoContent)
}

func (s *Server) alarm(name, text string) {
	s.o.Rack.Observe(s.eventOf(name, lifecycle.Alarm, "refused", text))
}

func (s *Server) eventOf(name string, level lifecycle.Level, kind, text string) lifecycle.Event {
	e := lifecycle.Event{Machine: name, Source: "node", Kind: kind, Level: level, Text: text}
	if m, err := s.o.Rack.Member(name); err == nil {
		e.MAC, e.Attempt = m.Record.MAC, m.Record.Attempt
	}
	return e
}

// printable makes a peer's text a plain line: its end, where a failure gives its reason.
func printable(text string) string { return plain.End(text, maxText) }
