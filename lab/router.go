package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/mdlayher/ndp"
	"golang.org/x/net/ipv6"
)

// routerAddress is the lab's link-local address on the bridge. It is given, not derived from the MAC: a
// derived one is there only once a machine is plugged in and duplicate address detection has passed.
const routerAddress = "fe80::1"

// NoRouter answers on an interface whoever asks for an IPv6 router, until ctx ends: there is none.
//
// iPXE configures IPv6 before it boots, also on a rack that has none, and repeats its question for a router
// for some 15 s; the iPXE of Debian 12 does so at every boot. An advertisement ends the wait at once. Ours has a
// router lifetime of zero (RFC 4861 section 4.2: not a default router) and no prefix, so that nobody gets a
// route or an address from it.
func NoRouter(ctx context.Context, iface string) error {
	nic, err := net.InterfaceByName(iface)
	if err != nil {
		return fmt.Errorf("interface %s: %w", iface, err)
	}
	conn, _, err := ndp.Listen(nic, ndp.Addr(routerAddress))
	if err != nil {
		return fmt.Errorf("neighbour discovery on %s: %w", iface, err)
	}
	defer conn.Close()
	var filter ipv6.ICMPFilter
	filter.SetAll(true)
	filter.Accept(ipv6.ICMPTypeRouterSolicitation)
	if err := conn.SetICMPFilter(&filter); err != nil {
		return fmt.Errorf("neighbour discovery on %s: %w", iface, err)
	}
	if err := conn.JoinGroup(netip.IPv6LinkLocalAllRouters()); err != nil {
		return fmt.Errorf("neighbour discovery on %s: all routers: %w", iface, err)
	}
	if err := conn.SetControlMessage(ipv6.FlagHopLimit, true); err != nil {
		return fmt.Errorf("neighbour discovery on %s: %w", iface, err)
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	none := &ndp.RouterAdvertisement{CurrentHopLimit: 64, // all that is not said means "none" or "unspecified"
		Options: []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: nic.HardwareAddr}}}
	for {
		_, control, _, err := conn.ReadFrom()
		var broken *net.OpError
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.As(err, &broken):
			return fmt.Errorf("neighbour discovery on %s: %w", iface, err)
		case err != nil || control == nil || control.HopLimit != ndp.HopLimit:
			continue // malformed, or from beyond the link (RFC 4861 section 6.1.1)
		}
		// To all, as an answer to an asker without an address has to be.
		if err := conn.WriteTo(none, nil, netip.IPv6LinkLocalAllNodes()); err != nil && ctx.Err() == nil {
			return fmt.Errorf("advertise on %s: %w", iface, err)
		}
	}
}
