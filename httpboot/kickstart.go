package httpboot

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/labstack/echo/v4"

	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

// kickstart answers the installer of one machine with its kickstart, which holds the secret of this
// installation: the only secret of the boot plane. The gate opens
//
//  1. to the machine's reserved address only, and there to its hardware address, where the appliance sees it,
//  2. only if one of the NICs that the installer names is one of the machine's: our kernel arguments have inst.ks.sendmac,
//     and dracut of both releases sends it (anaconda-ks-sendheaders.sh),
//  3. only while the lifecycle wants the machine installed,
//  4. only to who has read the machine's boot script in this boot: its ticket is the end of the path.
//
// Plan.Decide asks the same before it says "install", but for part 2, which nobody knows before the installer runs.
// Everybody else is refused and reported, and not told why. Over plain HTTP that is as much as there is: who takes over
// both addresses of a machine while it is installed can read the secret.
//
// A GET begins the installation; a HEAD only says whether it would be answered.
func (s *Server) kickstart(c echo.Context) error {
	c.Response().Header().Set("Cache-Control", "no-store")
	mac, err := macOf(c)
	if err != nil {
		return err
	}
	m, err := s.admit(c, mac)
	if err != nil {
		return err
	}
	ticket := c.Param("ticket")
	if s.o.Kickstart == nil {
		return &unavailable{"this build renders no kickstarts"}
	}
	if c.Request().Method == http.MethodHead {
		if err := s.o.Rack.MayInstall(mac, ticket); err != nil {
			return s.beginError(c, m, err)
		}
		c.Response().Header().Set("Content-Type", kickstartType)
		c.Response().Writer.WriteHeader(http.StatusOK) // its length is not known before it is rendered
		return nil
	}
	rec, secret, err := s.o.Rack.BeginInstall(c.Request().Context(), mac, ticket)
	if err != nil {
		return s.beginError(c, m, err)
	}
	text, err := s.o.Kickstart.Render(c.Request().Context(), m, rec, secret)
	if err != nil {
		return fmt.Errorf("kickstart of %s: %s", m.Name, strings.ReplaceAll(err.Error(), secret, "[secret]"))
	}
	defer s.delivery(c, "kickstart", mac, fmt.Sprintf("kickstart of %s, attempt %d,", m.Name, rec.Attempt), int64(len(text)))()
	return sendBytes(c, http.StatusOK, kickstartType, text)
}

// notYours is all that those are told who are refused: the reason is for the operator.
const notYours = "this is not for you: the appliance's events say why"

const kickstartType = "text/plain; charset=utf-8"

// admit checks who asks: parts 1 and 2 of the gate.
func (s *Server) admit(c echo.Context, mac inventory.MAC) (inventory.Machine, error) {
	m, listed := s.o.Rack.Machine(mac)
	if !listed {
		reason := fmt.Sprintf("%s is not in the list", mac)
		return m, &denial{reason: notYours, level: lifecycle.Alarm,
			event: fmt.Sprintf("kickstart of %s asked for by %s: %s", mac, asker(c), reason)}
	}
	if client(c) != m.IP {
		return m, s.denyKickstart(c, m, fmt.Sprintf("it is for %s only", m.IP))
	}
	if hardware, _ := s.o.Plan.Recognise(mac, client(c)); !hardware.IsZero() {
		return m, s.denyKickstart(c, m, fmt.Sprintf("it has the hardware address %s", hardware))
	}
	nics, sent := provisioningMACs(c.Request().Header)
	switch {
	case !sent:
		return m, s.denyKickstart(c, m, "it does not name its NICs, as an installer does")
	case !slices.ContainsFunc(m.Cards(), func(own inventory.MAC) bool { return nics[own] }):
		return m, s.denyKickstart(c, m, "none of the NICs that it names is the machine's")
	}
	return m, nil
}

func (s *Server) denyKickstart(c echo.Context, m inventory.Machine, why string) error {
	whose := ""
	if own, known := s.o.Rack.MACByIP(client(c)); known && !m.Has(own) {
		whose = ", the address of " + s.nameOf(own)
	}
	return &denial{mac: m.MAC, level: lifecycle.Alarm,
		reason: notYours,
		event:  fmt.Sprintf("kickstart of %s asked for by %s%s: refused: %s", m.Name, asker(c), whose, why)}
}

// beginError tells a machine that is not to be installed from a store that has a fault.
func (s *Server) beginError(c echo.Context, m inventory.Machine, err error) error {
	var (
		notNow     *lifecycle.NotInstallingError
		transition *lifecycle.TransitionError
		unknown    *lifecycle.UnknownMachineError // the list changed meanwhile
	)
	switch {
	case errors.As(err, &notNow):
		return s.denyKickstart(c, m, notNow.Reason)
	case errors.As(err, &transition), errors.As(err, &unknown), errors.Is(err, lifecycle.ErrNoHardware):
		return s.denyKickstart(c, m, err.Error())
	}
	return fmt.Errorf("begin installation: %v", err)
}

// provisioningMACs are the NICs that Anaconda and dracut name with inst.ks.sendmac, one a header:
// `X-RHN-Provisioning-MAC-0: eth0 52:54:00:00:00:80`, counted from 0. What is no Ethernet address (an
// InfiniBand port has 20 octets) is passed over.
func provisioningMACs(h http.Header) (nics map[inventory.MAC]bool, sent bool) {
	nics = map[inventory.MAC]bool{}
	for name, values := range h {
		if !strings.HasPrefix(name, "X-Rhn-Provisioning-Mac-") { // as net/http spells it
			continue
		}
		sent = true
		for _, value := range values {
			fields := strings.Fields(value)
			if len(fields) != 2 {
				continue
			}
			if mac, err := inventory.ParseMAC(fields[1]); err == nil {
				nics[mac] = true
			}
		}
	}
	return nics, sent
}
