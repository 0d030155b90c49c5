package httpboot

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path"
	"strings"
	"testing"

	"github.com/labstack/echo/v4"
	"github.com/stretchr/testify/require"

	"rackstrap/assets"
	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

// Invariant 1 of the design: every loader that DHCP can offer is served, byte for byte the same, and HEAD
// says what GET does.
func TestEveryOfferedLoaderIsServed(t *testing.T) {
	p := newPlane(t).run()
	if len(p.plan.Loaders().Names()) == 0 {
		t.Fatal("no loaders: `make loaders`")
	}
	served := 0
	for _, firmware := range assets.Firmwares() {
		t.Run(string(firmware), func(t *testing.T) {
			name, err := p.plan.Loader(p.rack.Decide(macMaster), firmware)
			if err != nil {
				t.Logf("DHCP offers nothing: %v", err)
				return
			}
			loader, ok := p.plan.Loaders().Get(name)
			require.True(t, ok)
			got := p.request(http.MethodGet, "/loader/"+name, ipMaster)
			require.Equal(t, http.StatusOK, got.StatusCode)
			require.Equal(t, string(loader.Data), got.body)
			require.Equal(t, `"`+loader.SHA256+`"`, got.Header.Get("ETag"))
			require.NotEmpty(t, got.Header.Get("Last-Modified"))
			if path.Ext(name) == ".efi" {
				require.Equal(t, "application/efi", got.Header.Get("Content-Type"))
			}
			served++
		})
	}
	require.NotZero(t, served)
}

// With secure_boot, DHCP offers the medium's shim, and shim asks for GRUB with two slashes.
func TestShimAndWhatItAsksFor(t *testing.T) {
	p := newPlane(t, func(_ *Options, cfg *inventory.Config) { cfg.Machines[0].Install.SecureBoot = true }).run()
	name, err := p.plan.Loader(p.rack.Decide(macMaster), assets.HTTPX64)
	require.NoError(t, err)
	require.Equal(t, files["EFI/BOOT/BOOTX64.EFI"], p.request(http.MethodGet, "/loader/"+name, ipMaster).body)
	dir := "/loader/" + path.Dir(name)
	for _, spelled := range []string{"//grubx64.efi", "/grubx64.efi", `\grubx64.efi`, "%5cgrubx64.efi", "/./grubx64.efi"} {
		got := p.request(http.MethodGet, dir+spelled, ipMaster)
		require.Equal(t, http.StatusOK, got.StatusCode, spelled)
		require.Equal(t, files["EFI/BOOT/grubx64.efi"], got.body, spelled)
	}
	require.Equal(t, http.StatusNotFound, p.request(http.MethodGet, dir+"/revocations_sbat.efi", ipMaster).StatusCode)
	require.Equal(t, http.StatusNotFound, p.request(http.MethodGet, "/grub/x86_64-efi/command.lst", ipMaster).StatusCode)

	config := p.request(http.MethodGet, "/grub/grub.cfg", ipMaster)
	require.Equal(t, http.StatusOK, config.StatusCode)
	require.Contains(t, config.body, "installing from centos-7.9")
	require.Equal(t, "no-store", config.Header.Get("Cache-Control"))
	require.Equal(t, config.body, p.request(http.MethodGet, "/boot/"+macMaster.Hyphens()+"/grub.cfg", ipMaster).body)
	// The kernel that it names is there.
	for line := range strings.Lines(config.body) {
		if fields := strings.Fields(line); len(fields) > 1 && (fields[0] == "linux" || fields[0] == "initrd") {
			require.Equal(t, http.StatusOK, p.request(http.MethodHead, fields[1], ipMaster).StatusCode, fields[1])
		}
	}
}

func TestHEADSaysWhatGETDoes(t *testing.T) {
	p := newPlane(t).run()
	for _, path := range []string{
		"/boot/52-54-00-00-00-80/ipxe", "/boot/52-54-00-00-00-80/grub.cfg", "/loader/undionly.kpxe", "/grub/grub.cfg",
		"/media/centos-7.9/images/pxeboot/initrd.img", "/media/centos-7.9/empty", "/media/centos-7.9", "/media/unpacked/Packages/",
		"/media/unpacked/.treeinfo", "/healthz", "/nothing", "/media/nothing", "/ks/nothing", "/loader/nothing", "/loader/..%2fx",
		"/ks/52-54-00-00-00-81",
	} {
		t.Run(path, func(t *testing.T) {
			get, head := p.request(http.MethodGet, path, ipMaster), p.request(http.MethodHead, path, ipMaster)
			require.Equal(t, get.StatusCode, head.StatusCode)
			require.Empty(t, head.body)
			get.Header.Del("Date")
			head.Header.Del("Date")
			require.Equal(t, get.Header, head.Header)
			require.EqualValues(t, len(get.body), get.ContentLength)
			require.Empty(t, get.TransferEncoding)
		})
	}
}

func TestOtherMethods(t *testing.T) {
	p := newPlane(t).run()
	for _, method := range []string{"POST", "PUT", "DELETE", "PATCH", "TRACE", "PROPFIND", "BREW"} {
		got := p.request(method, "/media/centos-7.9/.treeinfo", ipNobody)
		require.Equal(t, http.StatusMethodNotAllowed, got.StatusCode, method)
		require.Contains(t, got.Header.Get("Allow"), "GET", method)
	}
	status, _ := p.raw("GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nsome of it")
	require.Equal(t, http.StatusBadRequest, status)
	status, _ = p.raw("GET /healthz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
	require.Equal(t, http.StatusBadRequest, status)
}

// What cannot be a path, or is none of ours, ends in an error for that client; nothing outside the trees is
// ever sent.
func TestTraversal(t *testing.T) {
	p := newPlane(t).run()
	for target, want := range map[string]int{
		"/media/unpacked/../outside.txt":                    400,
		"/media/unpacked/%2e%2e/outside.txt":                400,
		"/media/unpacked/%2e%2e%2foutside.txt":              400,
		"/media/unpacked/..%5coutside.txt":                  400,
		`/media/unpacked/..\outside.txt`:                    400,
		"/media/unpacked/Packages/../../outside.txt":        400,
		"/media/unpacked/%252e%252e/outside.txt":            404, // decoded once only
		"/media/unpacked/escape":                            404, // a link that leads out
		"/media/unpacked/.treeinfo%00.txt":                  400,
		"/media/unpacked/%ff%fe":                            400,
		"/media/..":                                         400,
		"/media/unpacked/....//outside.txt":                 404,
		"/media/%2e%2e/outside.txt":                         400,
		"/media//unpacked///.treeinfo":                      200,
		"//media/unpacked/.treeinfo":                        200,
		"/media/unpacked/./.treeinfo":                       200,
		`\media\unpacked\.treeinfo`:                         400, // net/http: a target begins with a slash
		"/media/unpacked/100%25":                            404,
		"/media/unpacked/Packages/100%2525.rpm":             200,
		"/media/unpacked/Packages/a%20b%20&%20%3Ci%3Ec.rpm": 200,
		"/media/unpacked/etc/passwd":                        404,
		"/loader/../media/unpacked/.treeinfo":               400,
		"/loader/%2fetc%2fpasswd":                           404,
		"/loader/":                                          404,
		"/loader":                                           404,
		"/grub/../loader/ipxe.efi":                          400,
		"/boot/xx/ipxe":                                     404,
		"/boot/52-54-00-00-00-80/other":                     404,
		"/boot/00-00-00-00-00-00/ipxe":                      404,
		"/boot/52-54-00-00-00-80%2fipxe":                    200, // decoded before it is routed
		"/":                                                 404,
		"http://elsewhere/media/unpacked/.treeinfo":         200, // absolute form (RFC 9112 3.2.2)
		"/media/unpacked/.treeinfo?x=../../outside.txt":     200,
		"*": 404,
		"/media/unpacked/" + strings.Repeat("a/", 3000): 404,
		"/media/unpacked/" + strings.Repeat("a", 9000):  404,
		"/" + strings.Repeat("%41", 64<<10/3):           431,
		"/media/unpacked/%zz":                           400,
	} {
		status, body := p.raw("GET " + target + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		require.Equal(t, want, status, "%.80s", target)
		require.NotContains(t, body, outside, "%.80s", target)
	}
	require.Zero(t, p.count("rackstrap_http_panics_total"))
	require.Equal(t, 200, p.get("/healthz").StatusCode)
}

func TestHeaderFlood(t *testing.T) {
	p := newPlane(t).run()
	status, _ := p.raw("GET /healthz HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("X-Flood: 0123456789abcdef\r\n", 10_000) + "\r\n")
	require.Equal(t, http.StatusRequestHeaderFieldsTooLarge, status)
	require.Equal(t, 200, p.get("/healthz").StatusCode)
}

func TestWhoMayHaveLoaders(t *testing.T) {
	p := newPlane(t, func(_ *Options, cfg *inventory.Config) { cfg.Network.DHCP.Unknown = inventory.UnknownIgnore })
	for _, c := range []struct {
		name string
		from netip.Addr
		want int
	}{
		{"a machine", ipMaster, 200},
		{"an ignored machine", ipLeased, 403},
		{"an address that is nobody's", ipForeign, 403},
		{"this host", ipNobody, 200},
	} {
		t.Run(c.name, func(t *testing.T) {
			require.Equal(t, c.want, p.direct(http.MethodGet, "/loader/ipxe.efi", c.from).Code)
		})
	}
	refused := p.events("refused")
	require.Len(t, refused, 2)
	require.Equal(t, macUnknown, refused[0].MAC)
	require.Contains(t, refused[1].Text, ipForeign.String())
	for range 50 { // firmware that tries again and again does not fill the log
		p.direct(http.MethodGet, "/loader/ipxe.efi", ipForeign)
	}
	require.Len(t, p.events("refused"), 2)
}

func TestLoaderEvents(t *testing.T) {
	p := newPlane(t)
	p.direct(http.MethodHead, "/loader/ipxe.efi", ipMaster)
	p.direct(http.MethodGet, "/loader/ipxe.efi", ipMaster, "Range", "bytes=100-")
	p.direct(http.MethodGet, "/loader/nothing.efi", ipMaster)
	p.direct(http.MethodGet, "/loader/ipxe.efi", ipMaster, "If-None-Match", "*")
	require.Empty(t, p.events("loader"))
	p.direct(http.MethodGet, "/loader/ipxe.efi", ipMaster, "User-Agent", "UefiHttpBoot/1.0")
	events := p.events("loader")
	require.Len(t, events, 1)
	require.Equal(t, macMaster, events[0].MAC)
	require.Equal(t, "kmaster", events[0].Machine)
	require.Contains(t, events[0].Text, "ipxe.efi sent to 127.0.0.80 (\"UefiHttpBoot/1.0\")")
}

func TestMetricsAndHealth(t *testing.T) {
	p := newPlane(t).run()
	p.get("/media/centos-7.9/images/pxeboot/vmlinuz")
	p.get("/media/centos-7.9/nothing")
	eventually(t, func() bool { return p.count("rackstrap_http_requests_total", "route", "media") == 2 }, "counted")
	got := p.get("/metrics", "Accept-Encoding", "gzip")
	require.Equal(t, 200, got.StatusCode)
	require.Empty(t, got.Header.Get("Content-Encoding"))
	require.Contains(t, got.body, `rackstrap_http_requests_total{code="200",route="media"} 1`)
	require.Contains(t, got.body, `rackstrap_http_requests_total{code="404",route="media"} 1`)
	require.EqualValues(t, len(files["images/pxeboot/vmlinuz"])+len("not found\n"), p.count("rackstrap_http_sent_bytes_total", "route", "media"))

	require.Equal(t, "ok\n", p.get("/healthz").body)
	p.store.fill(io.ErrShortWrite)
	p.rack.Observe(lifecycle.Event{MAC: macMaster, Source: "test", Kind: "test"})
	got = p.get("/healthz")
	require.Equal(t, http.StatusServiceUnavailable, got.StatusCode)
	require.Equal(t, retryAfter, got.Header.Get("Retry-After"))
	require.NotContains(t, got.body, "short write")
	require.Contains(t, p.log.String(), "short write")
	p.store.fill(nil)
	require.Equal(t, "ok\n", p.get("/healthz").body)
}

// A panic ends the request that it belongs to.
func TestPanicEndsOneRequest(t *testing.T) {
	p := newPlane(t).run()
	p.answers.panics = true
	got := p.request(http.MethodGet, p.kickstart(macMaster), ipMaster, sendmac(macMaster)...)
	require.Equal(t, http.StatusServiceUnavailable, got.StatusCode)
	require.NotContains(t, got.body, "told")
	require.Equal(t, 200, p.get("/media/centos-7.9/.treeinfo").StatusCode)
	require.EqualValues(t, 1, p.count("rackstrap_http_panics_total"))
	eventually(t, func() bool { return p.count("rackstrap_http_in_flight") == 0 }, "nothing in flight")
	require.Contains(t, p.log.String(), "as it was told")
	require.NotContains(t, p.log.String(), p.answers.secret)
}

// A panic in the middle of an answer cuts the connection: the client must not take what it has for whole.
func TestPanicInTheMiddleOfAnAnswer(t *testing.T) {
	p := planeOf(t, emptyLibrary(t))
	e := echo.New()
	e.Use(p.observe)
	e.GET("/", func(c echo.Context) error {
		c.Response().Header().Set("Content-Length", "100000")
		io.WriteString(c.Response(), strings.Repeat("begun ", 10_000))
		panic("too late for an error")
	})
	server := httptest.NewUnstartedServer(e)
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	server.Start()
	defer server.Close()
	resp, err := http.Get(server.URL)
	if err == nil {
		defer resp.Body.Close()
		_, err = io.ReadAll(resp.Body)
	}
	require.Error(t, err)
	require.EqualValues(t, 1, p.count("rackstrap_http_panics_total"))
}
