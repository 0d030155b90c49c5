package httpboot

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

// at is a path with a ticket for the machine that it names in the place of TICKET.
func (p *plane) at(path string) string {
	return strings.Replace(path, "TICKET", cmp.Or(p.ticket, p.rack.Ticket(macMaster)), 1)
}

const ksMaster = "/ks/52-54-00-00-00-80/TICKET"

// The gate before the secret. Nobody but the machine itself gets in, and only while it is to be installed.
func TestKickstartGate(t *testing.T) {
	const nic = "X-RHN-Provisioning-MAC-"
	adopt := func(p *plane) {
		_, err := p.rack.Adopt(p.t.Context(), "kmaster")
		require.NoError(p.t, err)
	}
	for _, c := range []struct {
		name    string
		path    string
		from    netip.Addr
		headers []string
		before  func(*plane)
		want    int
		reason  string // in the answer and in the event
	}{
		{name: "curl on the machine", path: ksMaster, from: ipMaster, want: 403, reason: "does not name its NICs"},
		{name: "other spelling", path: "/ks/52:54:00:00:00:80/TICKET", from: ipMaster, headers: sendmac(macMaster), want: 200},
		{name: "its hardware address", path: ksMaster, from: ipMaster, headers: sendmac(macMaster), before: func(p *plane) { p.hardware[ipMaster] = macMaster }, want: 200},
		{name: "another hardware address", path: ksMaster, from: ipMaster, headers: sendmac(macMaster), before: func(p *plane) { p.hardware[ipMaster] = macUnknown },
			want: 403, reason: "it has the hardware address " + macUnknown.String()},
		{name: "another one, behind proxy ARP", path: ksMaster, from: ipMaster, headers: sendmac(macMaster), before: func(p *plane) {
			p.hardware[ipMaster] = macUnknown
			p.rack.Config().Network.ProxiedARP = true
		}, want: 200},
		{name: "no ticket", path: "/ks/52-54-00-00-00-80", from: ipMaster, headers: sendmac(macMaster), want: 404},
		{name: "a guessed ticket", path: "/ks/52-54-00-00-00-80/AAABnLxJ6gAAAAAAAAAAAAAAAAAAAAAA", from: ipMaster, headers: sendmac(macMaster), want: 403, reason: "not the one that the machine's boot script names"},
		{name: "no base64", path: "/ks/52-54-00-00-00-80/!", from: ipMaster, headers: sendmac(macMaster), want: 403, reason: "not the one that the machine's boot script names"},
		{name: "an old ticket", path: ksMaster, from: ipMaster, headers: sendmac(macMaster), before: func(p *plane) {
			p.ticket = p.rack.Ticket(macMaster)
			*p.now = p.now.Add(2 * time.Hour)
		}, want: 403, reason: "its boot script is too old"},
		{name: "dracut", path: ksMaster, from: ipMaster, headers: []string{nic + "0", "eth0 52:54:00:00:00:80", "X-System-Serial-Number", "1"}, want: 200},
		{name: "second NIC of several", path: ksMaster, from: ipMaster, headers: []string{
			nic + "0", "ib0 80:00:02:08:fe:80:00:00:00:00:00:00:f4:52:14:03:00:8b:d1:61",
			nic + "1", "eth1 52:54:00:00:00:A0", nic + "2", "eth0 52:54:00:00:00:80"}, want: 200},
		{name: "none of the NICs", path: ksMaster, from: ipMaster, headers: []string{nic + "0", "eth0 52:54:00:00:00:81", nic + "1", "eth1 52:54:00:00:00:82"}, want: 403, reason: "none of the NICs"},
		{name: "malformed NIC", path: ksMaster, from: ipMaster, headers: []string{nic + "0", "52:54:00:00:00:80"}, want: 403, reason: "none of the NICs"},
		{name: "empty NIC", path: ksMaster, from: ipMaster, headers: []string{nic + "0", ""}, want: 403, reason: "none of the NICs"},
		{name: "another machine", path: ksMaster, from: ipNode, headers: []string{nic + "0", "eth0 52:54:00:00:00:80"}, want: 403, reason: "for 127.0.0.80 only"},
		{name: "an unlisted machine", path: ksMaster, from: ipLeased, want: 403, reason: "for 127.0.0.80 only"},
		{name: "nobody's address", path: ksMaster, from: ipForeign, headers: []string{"X-Forwarded-For", "127.0.0.80", "X-Real-IP", "127.0.0.80"}, want: 403, reason: "for 127.0.0.80 only"},
		{name: "this host", path: ksMaster, from: ipNobody, want: 403, reason: "for 127.0.0.80 only"},
		{name: "a MAC that is not listed", path: "/ks/52-54-00-00-00-99/TICKET", from: ipLeased, want: 403, reason: "not in the list"},
		{name: "an installed machine", path: ksMaster, from: ipMaster, headers: sendmac(macMaster), before: adopt, want: 403, reason: "kmaster is installed"},
		{name: "a held machine", path: ksMaster, from: ipMaster, headers: sendmac(macMaster), before: func(p *plane) {
			_, err := p.rack.Hold(p.t.Context(), "kmaster", "", "")
			require.NoError(p.t, err)
		}, want: 403, reason: "held by the operator"},
		{name: "no MAC", path: "/ks/kmaster/TICKET", from: ipMaster, want: 404},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := planeOf(t, emptyLibrary(t))
			if c.before != nil {
				c.before(p)
			}
			before := p.rack.Decide(macMaster).Record
			for _, method := range []string{http.MethodHead, http.MethodGet} {
				got := p.direct(method, p.at(c.path), c.from, c.headers...)
				require.Equal(t, c.want, got.Code, method)
				if c.want != 404 {
					require.Equal(t, "no-store", got.Header().Get("Cache-Control"))
				}
				if method == http.MethodHead {
					require.Equal(t, before, p.rack.Decide(macMaster).Record, "HEAD began an installation")
					continue
				}
				if c.want == 403 {
					require.Equal(t, notYours+"\n", got.Body.String(), "no name, no state, no MAC")
				}
				if c.want == 200 {
					require.Contains(t, got.Body.String(), "# kmaster attempt 1")
					require.Contains(t, got.Body.String(), p.answers.secret)
				} else {
					require.NotContains(t, got.Body.String(), "token")
				}
			}
			after := p.rack.Decide(macMaster).Record
			if c.want == 200 {
				require.Equal(t, lifecycle.Installing, after.State)
				require.NoError(t, p.rack.CheckSecret("kmaster", 1, p.answers.secret))
				require.Len(t, p.events("kickstart"), 1)
				require.Empty(t, p.events("refused"))
				require.NotContains(t, p.everything(), p.answers.secret)
				return
			}
			require.Equal(t, before, after)
			require.Empty(t, p.answers.secret)
			if c.want == 403 {
				refused := p.events("refused")
				require.Len(t, refused, 1)
				require.Equal(t, lifecycle.Alarm, refused[0].Level)
				require.Contains(t, refused[0].Text, c.reason)
				require.Contains(t, refused[0].Text, "asked for by "+c.from.String())
				require.EqualValues(t, 2, p.count("rackstrap_http_requests_total", "route", "ks", "code", "403"), "HEAD and GET")
			}
		})
	}
}

// The text of the alarm is what an operator reads.
func TestKickstartAlarm(t *testing.T) {
	p := planeOf(t, emptyLibrary(t))
	p.direct(http.MethodGet, p.at(ksMaster), ipNode, "User-Agent", "curl/7.29.0")
	e := p.events("refused")[0]
	require.Equal(t, "kmaster", e.Machine)
	require.Equal(t, `kickstart of kmaster asked for by 127.0.0.81 ("curl/7.29.0"), the address of knode1 (52:54:00:00:00:81): refused: it is for 127.0.0.80 only`, e.Text)
	for range 180 { // dracut tries for three minutes
		p.direct(http.MethodGet, p.at(ksMaster), ipNode, "User-Agent", "curl/7.29.0")
	}
	require.Len(t, p.events("refused"), 1)
}

func TestKickstartOfABuildWithout(t *testing.T) {
	p := planeOf(t, emptyLibrary(t), func(o *Options, _ *inventory.Config) { o.Kickstart = nil })
	before := p.rack.Decide(macMaster).Record
	got := p.direct(http.MethodGet, p.at(ksMaster), ipMaster, sendmac(macMaster)...)
	require.Equal(t, http.StatusServiceUnavailable, got.Code)
	require.Equal(t, "this build renders no kickstarts\n", got.Body.String())
	require.Equal(t, retryAfter, got.Header().Get("Retry-After"))
	require.Equal(t, before, p.rack.Decide(macMaster).Record)
	require.Equal(t, http.StatusForbidden, p.direct(http.MethodGet, p.at(ksMaster), ipNode).Code)
}

// curl --retry: the same attempt, another secret. A fault of ours is a 503, without its reason.
func TestKickstartAgain(t *testing.T) {
	p := planeOf(t, emptyLibrary(t))
	p.answers.err = errors.New("template broken")
	got := p.direct(http.MethodGet, p.at(ksMaster), ipMaster, sendmac(macMaster)...)
	require.Equal(t, http.StatusServiceUnavailable, got.Code)
	require.Equal(t, retryAfter, got.Header().Get("Retry-After"))
	require.NotContains(t, got.Body.String(), "template")
	first := p.answers.secret
	require.Len(t, first, 64)
	require.NotContains(t, p.everything(), first, "the renderer's error named the secret")
	require.Contains(t, p.everything(), "template broken: near token=[secret]")

	p.answers.err = nil
	got = p.direct(http.MethodGet, p.at(ksMaster), ipMaster, sendmac(macMaster)...)
	require.Equal(t, 200, got.Code)
	require.NotEqual(t, first, p.answers.secret)
	rec := p.rack.Decide(macMaster).Record
	require.Equal(t, 1, rec.Attempt)
	require.Equal(t, 1, rec.Tries)
	require.ErrorIs(t, p.rack.CheckSecret("kmaster", 1, first), lifecycle.ErrBadSecret)
	require.NoError(t, p.rack.CheckSecret("kmaster", 1, p.answers.secret))

	p.store.fill(errors.New("no space left on device"))
	got = p.direct(http.MethodGet, p.at(ksMaster), ipMaster, sendmac(macMaster)...)
	require.Equal(t, http.StatusServiceUnavailable, got.Code)
	require.NotContains(t, got.Body.String(), "space")
}

// everything is all that anybody but the machine could read: events, log and metrics.
func (p *plane) everything() string {
	p.t.Helper()
	events, err := p.rack.Events(p.t.Context(), lifecycle.EventQuery{})
	require.NoError(p.t, err)
	var all strings.Builder
	all.WriteString(p.log.String())
	for _, e := range events {
		fmt.Fprintln(&all, e)
	}
	all.WriteString(p.direct(http.MethodGet, "/metrics", ipNobody).Body.String())
	return all.String()
}
