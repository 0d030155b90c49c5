package operator

import (
	"context"
	"net/http"
	"net/url"

	"github.com/labstack/echo/v4"

	"rackstrap/lifecycle"
)

// confirmation is the body of POST /api/v1/machines/{name}/confirm.
type confirmation struct {
	Fingerprint string `json:"fingerprint"` // that was compared
	By          string `json:"by"`          // who
}

// claims answers what is known of the machines that wait for a confirmation.
func (s *Server) claims(c echo.Context) error {
	all := []lifecycle.Claim{}
	for _, m := range s.o.Rack.Members("") {
		if claim, err := s.o.Rack.Claim(m.Machine.Name); err == nil && claim.Needed {
			all = append(all, claim)
		}
	}
	return c.JSON(http.StatusOK, all)
}

func (s *Server) claim(c echo.Context) error {
	claim, err := s.o.Rack.Claim(c.Param("name"))
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, claim)
}

func (s *Server) confirm(c echo.Context) error {
	var body confirmation
	if err := c.Bind(&body); err != nil {
		return err
	}
	return s.change(func(ctx context.Context, name string) (lifecycle.Record, error) {
		return s.o.Cluster.Confirm(ctx, name, body.Fingerprint, body.By)
	})(c)
}

// Claims is what is known of the machines that wait for a confirmation.
func (c *Client) Claims(ctx context.Context) ([]lifecycle.Claim, error) {
	var all []lifecycle.Claim
	return all, c.call(ctx, http.MethodGet, "/api/v1/confirmations", nil, &all)
}

// Claim is what is known of one machine.
func (c *Client) Claim(ctx context.Context, name string) (lifecycle.Claim, error) {
	var claim lifecycle.Claim
	return claim, c.call(ctx, http.MethodGet, "/api/v1/machines/"+url.PathEscape(name)+"/confirmation", nil, &claim)
}

// Confirm says that a machine's console shows this fingerprint.
func (c *Client) Confirm(ctx context.Context, name, fingerprint, by string) (lifecycle.Record, error) {
	var rec lifecycle.Record
	return rec, c.call(ctx, http.MethodPost, "/api/v1/machines/"+url.PathEscape(name)+"/confirm", confirmation{fingerprint, by}, &rec)
}
