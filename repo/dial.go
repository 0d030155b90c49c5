package repo

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// door decides which addresses are connected to for one repository. Its own servers, which the operator has named, may have
// any address: mirrors in the rack are usual. Wherever redirects and the metadata (xml:base) send us must be on the
// internet, or the very address and port that one of the repository's own servers has. It is looked at the address that is
// dialled, so that a name cannot mean another one in between; a name that once meant an address on the internet
// does not come to mean a private one (DNS rebinding).
type door struct {
	proxy    func(*http.Request) (*url.URL, error)
	internet func(netip.Addr) bool

	hosts map[string]bool // host:port of the repository's servers

	mu      sync.Mutex
	reached map[netip.AddrPort]bool // where these were found
	public  map[string]bool         // those of hosts that were found on the internet
	proxies map[string]bool         // host:port
}

const maxReached = 256

// lookupTimeout is for networks without name servers, which have a proxy instead.
const lookupTimeout = 2 * time.Second

func newDoor(o Options, servers ...*url.URL) *door {
	d := &door{proxy: o.Proxy, internet: o.internet, hosts: map[string]bool{}, reached: map[netip.AddrPort]bool{}, public: map[string]bool{}, proxies: map[string]bool{}}
	if d.internet == nil {
		d.internet = onInternet
	}
	for _, u := range servers {
		d.hosts[hostPort(u)] = true
	}
	return d
}

// hostPort is what net/http dials for a URL.
func hostPort(u *url.URL) string {
	port := u.Port()
	switch {
	case port != "":
	case u.Scheme == "https":
		port = "443"
	case u.Scheme == "http":
		port = "80"
	}
	return net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}

// sameServer is true for a URL of the same server: the same scheme and port, or its HTTPS.
func sameServer(from, to *url.URL) bool {
	if !strings.EqualFold(from.Hostname(), to.Hostname()) {
		return false
	}
	upgraded := from.Scheme == "http" && to.Scheme == "https" && from.Port() == "" && to.Port() == ""
	return upgraded || from.Scheme == to.Scheme && hostPort(from) == hostPort(to)
}

// dial is net/http's DialContext.
func (d *door) dial(dialer net.Dialer) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, name string) (net.Conn, error) {
		dialer := dialer // one for each call: Control knows the name
		dialer.Control = func(_, address string, _ syscall.RawConn) error {
			to, err := netip.ParseAddrPort(address)
			if err != nil {
				return err
			}
			return d.permit(strings.ToLower(name), netip.AddrPortFrom(to.Addr().Unmap(), to.Port()))
		}
		return dialer.DialContext(ctx, network, name)
	}
}

func (d *door) permit(name string, to netip.AddrPort) error {
	public := d.internet(to.Addr())
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.proxies[name]:
		return nil
	case d.hosts[name] && !public && d.public[name]:
		return &fault{reason: "has another address than before, which is not on the internet", detail: name + " is now " + to.String(), lie: true, final: true}
	case d.hosts[name]:
		if len(d.reached) >= maxReached {
			clear(d.reached) // a name with that many addresses is none of a mirror in the rack
		}
		d.reached[to] = true
		d.public[name] = d.public[name] || public
		return nil
	case public || d.reached[to]:
		return nil
	}
	return errInward(name + " is " + to.String())
}

func errInward(detail string) *fault {
	return &fault{reason: "sends us to an address that is not on the internet", detail: detail, lie: true, final: true}
}

// through is net/http's Proxy. What a proxy connects to is not seen here: the name is looked at before.
func (d *door) through(r *http.Request) (*url.URL, error) {
	if d.proxy == nil {
		return nil, nil
	}
	proxy, err := d.proxy(r)
	if proxy == nil || err != nil {
		return nil, err
	}
	d.mu.Lock()
	d.proxies[hostPort(proxy)] = true
	own := d.hosts[hostPort(r.URL)]
	d.mu.Unlock()
	if own {
		return proxy, nil
	}
	ctx, cancel := context.WithTimeout(r.Context(), lookupTimeout)
	defer cancel()
	found, _ := net.DefaultResolver.LookupNetIP(ctx, "ip", r.URL.Hostname()) // an address means itself; the proxy may know names that we do not
	for _, a := range found {
		if !d.internet(a.Unmap()) {
			return nil, errInward(r.URL.Host + " is " + a.String())
		}
	}
	return proxy, nil
}

// inward are networks that are not the internet (IANA's registries of special-purpose addresses), or lead out of it:
// relays of IPv4 in IPv6.
var inward = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"), // of carriers' NAT
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("192.88.99.0/24"), // 6to4's relays
	netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("224.0.0.0/4"),
	netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("2001::/32"), // Teredo
	netip.MustParsePrefix("2002::/16"), // 6to4
}

var (
	globalUnicast = netip.MustParsePrefix("2000::/3")
	nat64         = netip.MustParsePrefix("64:ff9b::/96") // RFC 6052
)

// onInternet is false for addresses of private networks and the like, and for those of this host.
func onInternet(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	if nat64.Contains(a) {
		b := a.As16()
		return onInternet(netip.AddrFrom4([4]byte(b[12:])))
	}
	if !a.IsValid() || a.Is6() && !globalUnicast.Contains(a) || slices.ContainsFunc(inward, func(p netip.Prefix) bool { return p.Contains(a) }) {
		return false
	}
	own, err := net.InterfaceAddrs()
	return err == nil && !slices.ContainsFunc(own, func(o net.Addr) bool {
		p, err := netip.ParsePrefix(o.String())
		return err == nil && p.Addr().Unmap() == a
	})
}
