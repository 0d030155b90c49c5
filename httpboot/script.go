package httpboot

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"

	"github.com/labstack/echo/v4"

	"rackstrap/bootplan"
	"rackstrap/lifecycle"
)

func (s *Server) ipxe(c echo.Context) error { return s.script(c, "iPXE", s.o.Plan.IPXE) }

func (s *Server) grub(c echo.Context) error { return s.script(c, "GRUB", s.o.Plan.GRUB) }

// script sends what the machine that the path names boots next. A client that is another machine, by its hardware
// address or by the address that it was given, does not get an install script: it would install itself in that one's
// place. Who is not seen to be the machine learns neither its name nor why it boots what.
func (s *Server) script(c echo.Context, language string, render func(lifecycle.Decision) ([]byte, error)) error {
	mac, err := macOf(c)
	if err != nil {
		return err
	}
	d := s.o.Plan.Decide(mac, client(c))
	if !d.Hardware.IsZero() {
		return &denial{mac: mac, level: lifecycle.Alarm, reason: notYours,
			event: fmt.Sprintf("boot script of %s asked for by %s, which has the hardware address %s", d.Machine.Name, asker(c), d.Hardware)}
	}
	if own, known := s.o.Rack.MACByIP(client(c)); known && !s.o.Rack.SameMachine(own, mac) && wantsInstall(d) {
		return &denial{mac: mac, level: lifecycle.Alarm,
			reason: notYours,
			event:  fmt.Sprintf("install script of %s asked for by %s, whose address belongs to %s", d.Machine.Name, asker(c), s.nameOf(own))}
	}
	text, err := again(func() ([]byte, error) { return render(d) })
	if err != nil {
		return fmt.Errorf("%s script: %v", language, err) // not %w: a kernel that is missing is no 404 of the script
	}
	if c.Request().Method == http.MethodGet {
		s.o.Rack.SeeAddress(mac, client(c), netip.Addr{})
		if client(c) == d.Machine.IP {
			s.o.Rack.UseCard(mac) // without DHCP of ours this is the first to tell which card boots
		}
		e := lifecycle.Event{MAC: mac, Kind: "script", Level: lifecycle.Info,
			Text: fmt.Sprintf("%s script %q for %s: %s", language, d.Action, asker(c), d.Reason)}
		switch d.Action { // screens that wait ask every 10 s
		case lifecycle.ActionWait:
			if e.Level = lifecycle.Alarm; d.Unseen {
				e.Level = lifecycle.Warn
			}
			fallthrough
		case lifecycle.ActionDiscover:
			s.noteOnce(c, e)
		default:
			s.note(e)
		}
	}
	c.Response().Header().Set("Cache-Control", "no-store")
	return sendText(c, http.StatusOK, string(text))
}

// wantsInstall tells whether a decision is about an installation, be it that something is in its way.
func wantsInstall(d lifecycle.Decision) bool {
	return d.Action == lifecycle.ActionInstall || d.Action == lifecycle.ActionWait
}

// loader sends what TFTP would send under the same path.
func (s *Server) loader(c echo.Context) error { return s.bootFile(c, c.Param("*")) }

// grubFile is what GRUB asks for beside its own path: its prefix is the root of the server.
func (s *Server) grubFile(c echo.Context) error { return s.bootFile(c, "grub/"+c.Param("*")) }

func (s *Server) bootFile(c echo.Context, name string) error {
	from := client(c)
	mac, known := s.o.Rack.MACByIP(from)
	f, err := again(func() (*bootplan.File, error) { return s.o.Plan.Open(name, from) })
	var refused *bootplan.Refusal
	if errors.As(err, &refused) {
		return &denial{mac: mac, level: lifecycle.Warn, reason: notYours,
			event: fmt.Sprintf("%s refused to %s: %s", name, asker(c), refused.Reason)}
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if f.ETag == "" { // rendered for this client
		c.Response().Header().Set("Cache-Control", "no-store")
	}
	if known {
		defer s.delivery(c, "loader", mac, name, f.Size)()
	}
	return sendFile(c, file{content: f, name: f.Name, modTime: f.ModTime, etag: f.ETag})
}
