package repo

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Which addresses are on the internet.
func TestOnInternet(t *testing.T) {
	for text, want := range map[string]bool{
		"8.8.8.8": true, "203.0.113.1": true, "2606:4700::1": true, "64:ff9b::808:808": true, "::ffff:8.8.8.8": true,
		"127.0.0.1": false, "127.9.9.9": false, "10.0.0.1": false, "172.31.255.255": false, "172.32.0.1": true, "192.168.1.1": false, "169.254.169.254": false,
		"100.64.0.1": false, "100.128.0.1": true, "0.0.0.0": false, "0.1.2.3": false, "224.0.0.1": false, "255.255.255.255": false, "192.0.0.1": false, "198.18.0.1": false,
		"::": false, "::1": false, "fe80::1": false, "fe80::1%eth0": false, "fc00::1": false, "fd12::1": false, "ff02::1": false, "::ffff:10.0.0.1": false, "::ffff:127.0.0.1": false,
		"64:ff9b::a00:1": false, "64:ff9b::7f00:1": false, "64:ff9b:1::a00:1": false, "2002:a00:1::1": false, "2001:0:1::1": false, "::10.0.0.1": false, "fec0::1": false,
	} {
		require.Equal(t, want, onInternet(netip.MustParseAddr(text)), text)
	}
	require.False(t, onInternet(netip.Addr{}))
}

// Where a repository's own servers, its redirects and its names may lead.
func TestDoor(t *testing.T) {
	d := newDoor(Options{internet: func(a netip.Addr) bool { return a.As4()[0] == 8 }}, &url.URL{Scheme: "http", Host: "Mirror.example"}, &url.URL{Scheme: "https", Host: "lan:8443"})
	permit := func(name, address string) error { return d.permit(name, netip.MustParseAddrPort(address)) }
	require.NoError(t, permit("lan:8443", "10.0.0.5:8443"), "a mirror in the rack")
	require.NoError(t, permit("other.example:443", "10.0.0.5:8443"), "the same one by another name")
	require.Error(t, permit("lan:80", "10.0.0.5:80"), "another port of it")
	require.Error(t, permit("other.example:443", "10.0.0.6:443"))
	require.NoError(t, permit("other.example:443", "8.1.1.1:443"))
	require.NoError(t, permit("mirror.example:80", "8.1.1.2:80"))
	require.ErrorContains(t, permit("mirror.example:80", "127.0.0.1:80"), "another address than before", "DNS rebinding")
	require.NoError(t, permit("mirror.example:80", "8.1.1.3:80"))

	d.proxy = func(*http.Request) (*url.URL, error) { return url.Parse("http://10.0.0.9:3128") }
	for target, want := range map[string]string{"http://lan:8443/x": "", "http://8.1.1.1/": "", "http://10.0.0.7/": "not on the internet", "http://localhost/": "not on the internet", "http://name.invalid/": ""} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, target, nil)
		require.NoError(t, err)
		proxy, err := d.through(r)
		if want != "" {
			require.ErrorContains(t, err, want, target)
			continue
		}
		require.NoError(t, err, target)
		require.Equal(t, "10.0.0.9:3128", proxy.Host)
	}
	require.NoError(t, permit("10.0.0.9:3128", "10.0.0.9:3128"))
}

// Which redirects are followed, by why the file is believed.
func TestCheckRedirect(t *testing.T) {
	for _, c := range []struct {
		from, to string
		why      trust
		ok       bool
	}{
		{"http://a/x", "http://b/x", byChecksum, true},
		{"http://a/x", "https://b/x", byChecksum, true},
		{"https://a/x", "http://a/x", byChecksum, false},
		{"http://a/x", "ftp://a/x", byChecksum, false},
		{"http://a/x", "http://b/x", byServer, false},
		{"http://a/x", "http://A/y", byServer, true},
		{"http://a/x", "http://a:80/y", byServer, true},
		{"http://a/x", "http://a:81/y", byServer, false},
		{"http://a/x", "https://a/y", byServer, true},
		{"http://a:81/x", "https://a/y", byServer, false},
		{"https://a/x", "https://b/x", byServer, false},
		{"https://a/x", "https://b/x", byHTTPS, true},
		{"http://a/x", "https://b/x", byHTTPS, false},
		{"http://a/x", "http://b/x", byHTTPS, false},
	} {
		via, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.from, nil)
		require.NoError(t, err)
		to, err := http.NewRequestWithContext(trusting(t.Context(), c.why), http.MethodGet, c.to, nil)
		require.NoError(t, err)
		require.Equal(t, c.ok, checkRedirect(to, []*http.Request{via}) == nil, "%+v", c)
	}
}

// A look ends with its last client, and not before.
func TestLookEndsWithItsClients(t *testing.T) {
	up := newUpstream(t, small(t))
	ended := make(chan struct{}, 10)
	begun := make(chan struct{}, 10)
	up.set(func() {
		up.wrong = func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, "/.treeinfo") {
				return false
			}
			begun <- struct{}{}
			<-r.Context().Done()
			ended <- struct{}{}
			return true
		}
	})
	b := serve(t, up, t.TempDir())
	first, leaveFirst := context.WithCancel(t.Context())
	second, leaveSecond := context.WithCancel(t.Context())
	done := make(chan error, 2)
	for _, ctx := range []context.Context{first, second} {
		go func() {
			_, err := b.Open(ctx, Request{Repo: "up", Path: ".treeinfo"})
			done <- err
		}()
	}
	<-begun
	others := &b.mirrors["up"].others
	require.Eventually(t, func() bool {
		others.mu.Lock()
		defer others.mu.Unlock()
		return others.calls[".treeinfo"].waiting == 2
	}, time.Minute, time.Millisecond)
	leaveFirst()
	require.ErrorIs(t, <-done, context.Canceled)
	select {
	case <-ended:
		t.Fatal("somebody still waits")
	case <-time.After(50 * time.Millisecond):
	}
	leaveSecond()
	require.ErrorIs(t, <-done, context.Canceled)
	<-ended
	up.set(func() { up.wrong = nil })
	_, err := b.get(".treeinfo")
	require.ErrorIs(t, err, fs.ErrNotExist, "the next one asks anew")
}

// Strangers get few places; who is listed has a download go on that a stranger waits for; what is known of keys stays bounded.
func TestStrangers(t *testing.T) {
	packages := map[string][]byte{}
	for i := range 40 {
		packages[fmt.Sprintf("p%d-1-1.noarch.rpm", i)] = content(uint64(i), 100)
	}
	all := makeRepo(t, "gz", packages)
	up := newUpstream(t, all)
	release := make(chan struct{})
	asked := make(chan string, 100)
	up.set(func() {
		up.wrong = func(w http.ResponseWriter, r *http.Request) bool {
			if strings.HasSuffix(r.URL.Path, ".rpm") {
				asked <- r.URL.Path
				<-release
			}
			return false
		}
	})
	listed := netip.MustParseAddr("10.0.0.1")
	b := serve(t, up, t.TempDir(), func(o *Options) {
		o.MaxConns = 4
		o.Listed = func(a netip.Addr) bool { return a == listed }
	})
	b.good(repomdPath, all[repomdPath])
	open := func(client netip.Addr, name string) error {
		f, err := b.Open(t.Context(), Request{Repo: "up", Path: name, Client: client})
		if err == nil {
			f.Content.Close()
		}
		return err
	}
	for i := range 8 { // two strangers, four each
		require.NoError(t, open(netip.AddrFrom4([4]byte{10, 0, 1, byte(1 + i/4)}), fmt.Sprintf("p%d-1-1.noarch.rpm", i)))
	}
	first := []string{<-asked, <-asked}
	waiting := 0 // a package that a stranger waits for
	for slices.Contains(first, fmt.Sprintf("/up/p%d-1-1.noarch.rpm", waiting)) {
		waiting++
	}
	wanted := fmt.Sprintf("p%d-1-1.noarch.rpm", waiting)
	select {
	case name := <-asked:
		t.Fatalf("more than half of the places: %s", name)
	case <-time.After(50 * time.Millisecond):
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := b.Open(ctx, Request{Repo: "up", Path: "p20-1-1.noarch.rpm", Client: netip.MustParseAddr("10.0.1.1")})
	require.ErrorIs(t, err, context.DeadlineExceeded, "it has four")
	require.NoError(t, open(listed, "p30-1-1.noarch.rpm"))
	require.NoError(t, open(listed, wanted))
	got := []string{<-asked, <-asked}
	require.ElementsMatch(t, []string{"/up/p30-1-1.noarch.rpm", "/up/" + wanted}, got)
	close(release)
	for name, text := range packages {
		b.good(name, text)
	}
	b.Service.mu.Lock()
	require.Empty(t, b.loads)
	require.Zero(t, b.strangers)
	b.Service.mu.Unlock()

	for i := range 2 * maxKeyFiles {
		require.ErrorIs(t, open(netip.MustParseAddr("10.0.1.1"), fmt.Sprintf("RPM-GPG-KEY-%d", i)), fs.ErrNotExist)
	}
	require.Len(t, b.mirrors["up"].others.entries, maxKeyFiles)
}

// Older metadata does not replace newer, but where revisions are no dates, or are not said, nothing can be compared.
func TestRevisionGoesBack(t *testing.T) {
	of := func(revision, file string) tree {
		all := makeRepo(t, "gz", map[string][]byte{file: content(1, 10)})
		all[repomdPath] = bytes.Replace(all[repomdPath], []byte("<revision>1</revision>"), []byte(revision), 1)
		return all
	}
	for _, c := range []struct {
		before, after string
		back          bool
	}{
		{"<revision>1700000000</revision>", "<revision>1699999999</revision>", true},
		{"<revision>20261130</revision>", "<revision> 20261129 </revision>", true},
		{"<revision>2</revision>", "<revision>1</revision>", true},
		{"<revision>1</revision>", "<revision>2</revision>", false},
		{"<revision>2</revision>", "<revision>2</revision>", false},
		{"<revision>8.5</revision>", "<revision>8.4</revision>", false},
		{"<revision>2</revision>", "", false},
		{"", "<revision>2</revision>", false},
		{"<revision>9000000000000000000</revision>", "<revision>1700000000</revision>", false}, // a lie of one day does not hold for ever
	} {
		first, second := of(c.before, "a-1-1.noarch.rpm"), of(c.after, "b-1-1.noarch.rpm")
		up := newUpstream(t, first)
		var alarms []string
		b := serve(t, up, t.TempDir(), func(o *Options) { o.Alarm = func(text string) { alarms = append(alarms, text) } })
		b.good(repomdPath, first[repomdPath])
		up.set(func() { up.tree = second })
		b.clock.pass(2 * time.Minute)
		if !c.back {
			b.good(repomdPath, second[repomdPath])
			require.Empty(t, alarms)
			continue
		}
		b.good(repomdPath, first[repomdPath])
		require.Len(t, alarms, 1)
		require.Contains(t, alarms[0], "goes back from revision")
	}
}
