package operator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/labstack/echo/v4"

	"rackstrap/cluster"
	"rackstrap/lifecycle"
)

// Cluster is what the operator can have done to the cluster, through its control planes. Errors: *cluster.RefusedError
// for what would do harm or cannot be now.
type Cluster interface {
	Status() cluster.Status
	Reinstall(ctx context.Context, name string, o cluster.ReinstallOptions, say func(string)) (lifecycle.Record, error)
	Hold(ctx context.Context, name string, o cluster.HoldOptions, say func(string)) (lifecycle.Record, error)
	Unhold(ctx context.Context, name string) (lifecycle.Record, error)
	Adopt(ctx context.Context, name string) (lifecycle.Record, error)
	Confirm(ctx context.Context, name, fingerprint, by string) (lifecycle.Record, error)
	// Current tells whether what an agent reported is still so.
	Current(name string, p lifecycle.Progress) bool
	Kubeconfig(ctx context.Context) (string, error)
	Verify(ctx context.Context, say func(string)) error
}

// line is one line of an answer that tells what happens while it does: any number of Say, then at most one of the
// others.
type line struct {
	Say    string            `json:"say,omitempty"`
	Record *lifecycle.Record `json:"record,omitempty"`
	Error  string            `json:"error,omitempty"`
}

// telling runs something that takes a while, and sends what it says as lines of JSON. An error before the first line is
// an ordinary answer.
func telling(c echo.Context, do func(ctx context.Context, say func(string)) (*lifecycle.Record, error)) error {
	lines := json.NewEncoder(c.Response())
	begun := false
	send := func(l line) {
		if !begun {
			c.Response().Header().Set(echo.HeaderContentType, "application/x-ndjson")
			begun = true
		}
		lines.Encode(l) // a client that went away ends the context
		c.Response().Flush()
	}
	rec, err := do(c.Request().Context(), func(text string) { send(line{Say: text}) })
	switch {
	case err != nil && !begun:
		return err
	case err != nil:
		send(line{Error: err.Error()})
	default:
		send(line{Record: rec})
	}
	return nil
}

func (s *Server) reinstall(c echo.Context) error {
	var o cluster.ReinstallOptions
	if err := c.Bind(&o); err != nil {
		return err
	}
	return telling(c, func(ctx context.Context, say func(string)) (*lifecycle.Record, error) {
		rec, err := s.o.Cluster.Reinstall(ctx, c.Param("name"), o, say)
		rec = rec.Public()
		return &rec, err
	})
}

func (s *Server) hold(c echo.Context) error {
	var o cluster.HoldOptions
	if err := c.Bind(&o); err != nil {
		return err
	}
	return telling(c, func(ctx context.Context, say func(string)) (*lifecycle.Record, error) {
		rec, err := s.o.Cluster.Hold(ctx, c.Param("name"), o, say)
		rec = rec.Public()
		return &rec, err
	})
}

// kubeconfig is written of what a control plane sends; it is kept nowhere.
func (s *Server) kubeconfig(c echo.Context) error {
	text, err := s.o.Cluster.Kubeconfig(c.Request().Context())
	if err != nil {
		return err
	}
	c.Response().Header().Set("Cache-Control", "no-store")
	return c.Blob(http.StatusOK, "application/yaml", []byte(text))
}

func (s *Server) verify(c echo.Context) error {
	return telling(c, func(ctx context.Context, say func(string)) (*lifecycle.Record, error) {
		return nil, s.o.Cluster.Verify(ctx, say)
	})
}

// Reinstall arms a machine anew, and calls say with what is done for that.
func (c *Client) Reinstall(ctx context.Context, name string, o cluster.ReinstallOptions, say func(string)) (lifecycle.Record, error) {
	return c.told(ctx, "/api/v1/machines/"+url.PathEscape(name)+"/reinstall", o, say)
}

// Hold has a machine boot its disk until Unhold, and may give up the init lock that it holds.
func (c *Client) Hold(ctx context.Context, name string, o cluster.HoldOptions, say func(string)) (lifecycle.Record, error) {
	return c.told(ctx, "/api/v1/machines/"+url.PathEscape(name)+"/hold", o, say)
}

// Unhold ends the hold of a machine.
func (c *Client) Unhold(ctx context.Context, name string) (lifecycle.Record, error) {
	var rec lifecycle.Record
	return rec, c.call(ctx, http.MethodPost, "/api/v1/machines/"+url.PathEscape(name)+"/unhold", nil, &rec)
}

// Kubeconfig is an administrator's, of what a control plane has sent just now.
func (c *Client) Kubeconfig(ctx context.Context) ([]byte, error) {
	body, err := c.open(ctx, http.MethodPost, "/api/v1/cluster/kubeconfig", nil)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(body)
}

// Verify runs the availability check, and calls say with what it tells.
func (c *Client) Verify(ctx context.Context, say func(string)) error {
	_, err := c.told(ctx, "/api/v1/cluster/verify", nil, say)
	return err
}

// told makes a request whose answer tells what happens while it does.
func (c *Client) told(ctx context.Context, path string, in any, say func(string)) (lifecycle.Record, error) {
	body, err := c.open(ctx, http.MethodPost, path, in)
	if err != nil {
		return lifecycle.Record{}, err
	}
	defer body.Close()
	var rec lifecycle.Record
	for lines := json.NewDecoder(body); ; {
		var l line
		switch err := decode(lines, &l); {
		case errors.Is(err, io.EOF):
			return rec, nil
		case err != nil:
			return rec, fmt.Errorf("the daemon broke off: %w", err)
		case l.Error != "":
			return rec, errors.New(l.Error)
		case l.Say != "":
			say(l.Say)
		case l.Record != nil:
			rec = *l.Record
		}
	}
}
