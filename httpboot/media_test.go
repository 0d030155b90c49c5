package httpboot

import (
	"bytes"
	"context"
	"fmt"
	"html"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/lifecycle"
	"rackstrap/media"
)

// crawl follows every link of the listings and returns every file's path and content.
func crawl(t *testing.T, p *plane, page string, found map[string]string) {
	links := regexp.MustCompile(`<a href="([^"]+)">([^<]*)</a>`)
	got := p.get(page)
	require.Equal(t, 200, got.StatusCode, page)
	require.Equal(t, "text/html; charset=utf-8", got.Header.Get("Content-Type"))
	for _, link := range links.FindAllStringSubmatch(got.body, -1) {
		target := html.UnescapeString(link[1])
		switch {
		case link[2] == "..":
		case target[len(target)-1] == '/':
			require.Equal(t, got.body, p.get(page+"/").body) // with and without a slash at the end
			crawl(t, p, target[:len(target)-1], found)
		default:
			file := p.get(target)
			require.Equal(t, 200, file.StatusCode, target)
			found[target] = file.body
		}
	}
}

// Every file of a tree is reached through the listings, under odd names too, and nothing else.
func TestListings(t *testing.T) {
	p := newPlane(t).run()
	for _, medium := range []string{"centos-7.9", "unpacked"} {
		found := map[string]string{}
		crawl(t, p, "/media/"+medium, found)
		for name, text := range files {
			target := escape("/media/" + medium + "/" + name)
			require.Equal(t, text, found[target], target)
		}
		require.Equal(t, files["images/pxeboot/vmlinuz"], found["/media/"+medium+"/kernel"]) // a link
		require.Len(t, found, len(files)+1)
	}
	page := p.get("/media/unpacked/Packages").body
	require.Contains(t, page, "a b &amp; &lt;i&gt;c.rpm")
	require.NotContains(t, page, "<i>")
	require.Regexp(t, `bash-4\.2\.46\.rpm</a></td><td align="right">20000</td>`, page)
	require.Equal(t, 404, p.get("/media/none").StatusCode)
	require.Equal(t, 404, p.get("/media").StatusCode)
}

func TestMIMETypes(t *testing.T) {
	for name, want := range map[string]string{
		"BOOTX64.EFI": "application/efi", "grubx64.efi": "application/efi", "x.iso": "application/vnd.efi-iso",
		"initrd.img": "application/vnd.efi-img", "vmlinuz": "application/octet-stream", "undionly.kpxe": "application/octet-stream",
		".treeinfo": "text/plain; charset=utf-8", "repomd.xml": "text/xml; charset=utf-8",
	} {
		require.Equal(t, want, mimeType(name), name)
	}
}

// Kernel and initrd are steps of a boot, packages are not: a hundred machines fetch five hundred each.
func TestMediaEvents(t *testing.T) {
	p := newPlane(t).run()
	for _, name := range []string{"images/pxeboot/vmlinuz", "images/pxeboot/initrd.img", "Packages/bash-4.2.46.rpm", ".treeinfo", "none.rpm"} {
		p.request(http.MethodHead, "/media/centos-7.9/"+name, ipMaster)
		p.request(http.MethodGet, "/media/centos-7.9/"+name, ipMaster)
		p.request(http.MethodGet, "/media/centos-7.9/"+name, ipNobody)
	}
	eventually(t, func() bool { return len(p.events("initrd")) == 1 && len(p.events("kernel")) == 1 }, "kernel and initrd")
	all, err := p.rack.Events(t.Context(), lifecycle.EventQuery{MAC: macMaster})
	require.NoError(t, err)
	var http []lifecycle.Event
	for _, e := range all {
		if e.Source == "http" {
			http = append(http, e)
		}
	}
	require.Len(t, http, 2)
	require.Equal(t, "images/pxeboot/vmlinuz of centos-7.9 sent to 127.0.0.80 (\"Go-http-client/1.1\"): 68 KiB in 0s", p.events("kernel")[0].Text)
}

// A machine that loses power while it loads leaves a trace.
func TestBrokenOffTransfer(t *testing.T) {
	dir := treeDir(t)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "images/pxeboot/initrd.img"), bytes.Repeat([]byte("x"), 64<<20), 0o644))
	library, err := media.OpenLibrary([]media.Spec{{Name: "centos-7.9", Dir: dir}})
	require.NoError(t, err)
	p := planeOf(t, library).run()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: ipMaster.AsSlice()}}
	conn, err := dialer.Dial("tcp", p.Addr().String())
	require.NoError(t, err)
	fmt.Fprintf(conn, "GET /media/centos-7.9/images/pxeboot/initrd.img HTTP/1.1\r\nHost: x\r\n\r\n")
	io.CopyN(io.Discard, conn, 1<<20)
	conn.Close()
	eventually(t, func() bool { return len(p.events("initrd")) == 1 }, "an event")
	e := p.events("initrd")[0]
	require.Equal(t, lifecycle.Warn, e.Level)
	require.Regexp(t, `broke off after .* of 64 MiB`, e.Text)
	require.Empty(t, p.events("fault"), "a client that leaves is no fault of ours")
}

// A reload changes the media while somebody loads from the old ones: that transfer ends well, the next ones
// are from the new.
func TestReloadDuringDownloads(t *testing.T) {
	open := func(content byte) *media.Library {
		dir := treeDir(t)
		require.NoError(t, os.WriteFile(filepath.Join(dir, "images/pxeboot/initrd.img"), bytes.Repeat([]byte{content}, 32<<20), 0o644))
		library, err := media.OpenLibrary([]media.Spec{{Name: "centos-7.9", ISO: makeISO(t, dir)}, {Name: "unpacked", Dir: dir}})
		require.NoError(t, err)
		return library
	}
	p := planeOf(t, open('a')).run()
	for _, medium := range []string{"centos-7.9", "unpacked"} {
		resp, err := http.Get(p.url("/media/" + medium + "/images/pxeboot/initrd.img"))
		require.NoError(t, err)
		defer resp.Body.Close()
		got := make([]byte, 1<<20)
		_, err = io.ReadFull(resp.Body, got)
		require.NoError(t, err)
		if medium == "centos-7.9" {
			require.NoError(t, p.plan.SetLibrary(open('b')).Close())
		} else {
			require.NoError(t, p.plan.SetLibrary(open('c')).Close())
		}
		first := got[0]
		rest, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.Equal(t, 32<<20, len(got)+len(rest))
		require.Equal(t, len(rest), bytes.Count(rest, []byte{first}))
		next := p.get("/media/" + medium + "/images/pxeboot/initrd.img")
		require.Equal(t, first+1, next.body[0])
		require.NotEqual(t, resp.Header.Get("ETag"), next.Header.Get("ETag"))
	}
}

// Many clients while the media change under them: every answer is whole, from one medium or the other.
func TestManyClientsAndReloads(t *testing.T) {
	dir := treeDir(t)
	iso := makeISO(t, dir)
	open := func() *media.Library {
		library, err := media.OpenLibrary([]media.Spec{{Name: "centos-7.9", ISO: iso}, {Name: "unpacked", Dir: dir}})
		require.NoError(t, err)
		return library
	}
	p := planeOf(t, open()).run()
	stop := make(chan struct{})
	var reloads sync.WaitGroup
	reloads.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				p.plan.SetLibrary(open()).Close()
			}
		}
	})
	paths := []string{"/media/centos-7.9/images/pxeboot/initrd.img", "/media/unpacked/images/pxeboot/vmlinuz", "/media/unpacked/.treeinfo",
		"/boot/52-54-00-00-00-80/ipxe", "/loader/ipxe.efi", "/media/centos-7.9/Packages", "/ks/52-54-00-00-00-81", "/healthz", "/metrics"}
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 32}}
	defer client.CloseIdleConnections()
	var clients sync.WaitGroup
	for i := range 16 {
		clients.Go(func() {
			for n := range 20 {
				path := paths[(i+n)%len(paths)]
				resp, err := client.Get(p.url(path))
				if err != nil {
					t.Error(path, err)
					return
				}
				body, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || resp.StatusCode != 200 && path[:4] != "/ks/" {
					t.Error(path, resp.Status, err, string(body[:min(100, len(body))]))
				}
			}
		})
	}
	clients.Wait()
	close(stop)
	reloads.Wait()
}

// An ISO that is cut short under the daemon: what lies before the cut is served, what lies behind is a fault
// of ours, before the status is sent; what is cut through breaks off.
func TestTruncatedISO(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "a-first"), bytes.Repeat([]byte("1"), 1000), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "b-second"), bytes.Repeat([]byte("2"), 4<<20), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "c-third"), bytes.Repeat([]byte("3"), 4<<20), 0o644))
	iso := makeISO(t, dir)
	library, err := media.OpenLibrary([]media.Spec{{Name: "iso", ISO: iso}})
	require.NoError(t, err)
	p := planeOf(t, library).run()
	image, err := os.ReadFile(iso)
	require.NoError(t, err)
	require.NoError(t, os.Truncate(iso, int64(bytes.Index(image, []byte("22222222"))+2<<20)))

	require.Equal(t, 200, p.get("/media/iso/a-first").StatusCode)
	third := p.get("/media/iso/c-third")
	require.Equal(t, http.StatusServiceUnavailable, third.StatusCode)
	require.Equal(t, retryAfter, third.Header.Get("Retry-After"))
	require.Empty(t, third.Header.Get("ETag"))
	require.NotContains(t, third.body, "EOF")
	require.Equal(t, http.StatusServiceUnavailable, p.get("/media/iso/c-third", "Range", "bytes=1000000-").StatusCode)

	resp, err := http.Get(p.url("/media/iso/b-second"))
	require.NoError(t, err)
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.EqualValues(t, 2<<20, n)
	require.Equal(t, 206, p.get("/media/iso/b-second", "Range", "bytes=0-1999999").StatusCode)
	require.Equal(t, 200, p.get("/media/iso/a-first").StatusCode)
	eventually(t, func() bool { return len(p.events("fault")) >= 2 }, "faults are reported")
	require.Contains(t, p.log.String(), "c-third")
}

// An image that was damaged before it was opened is an error at start-up; the daemon's library has none.
func TestCorruptImageIsNoLibrary(t *testing.T) {
	iso := makeISO(t, treeDir(t))
	info, err := os.Stat(iso)
	require.NoError(t, err)
	require.NoError(t, os.Truncate(iso, info.Size()/2))
	_, err = media.OpenLibrary([]media.Spec{{Name: "centos-7.9", ISO: iso}})
	var corrupt *media.CorruptError
	require.ErrorAs(t, err, &corrupt)
}

// The end of the daemon: what is short ends well, what is long is cut, and Run ends in any case.
func TestGracefulEnd(t *testing.T) {
	p := newPlane(t)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	conn, err := net.Dial("tcp", p.Addr().String())
	require.NoError(t, err)
	defer conn.Close()
	fmt.Fprint(conn, "GET /media/unpacked/images/pxeboot/initrd.img HTTP/1.1\r\nHost: x\r\n\r\n")
	_, err = io.ReadFull(conn, make([]byte, 100))
	require.NoError(t, err)
	stop()
	n, _ := io.Copy(io.Discard, conn)
	require.Greater(t, n, int64(len(files["images/pxeboot/initrd.img"])))
	select {
	case err := <-ended:
		require.NoError(t, err)
	case <-time.After(2 * grace):
		t.Fatal("Run does not end")
	}
	_, err = net.Dial("tcp", p.Addr().String())
	require.Error(t, err)
}

// What is neither file nor directory has no content and is in no listing.
func TestSpecialFiles(t *testing.T) {
	dir := treeDir(t)
	require.NoError(t, syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o644))
	library, err := media.OpenLibrary([]media.Spec{{Name: "dir", Dir: dir}})
	require.NoError(t, err)
	p := planeOf(t, library)
	require.Equal(t, 404, p.direct(http.MethodGet, "/media/dir/fifo", ipNobody).Code)
	require.NotContains(t, p.direct(http.MethodGet, "/media/dir", ipNobody).Body.String(), "fifo")
}
