package httpboot

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/internal/places"
	"rackstrap/inventory"
	"rackstrap/media"
)

// bigFile is larger than all buffers of the kernel.
const bigFile = 24 << 20

// bigPlane serves a big file out of an ISO (by sendfile) and one that has no region (by copying).
func bigPlane(t *testing.T, edit func(*Options)) *plane {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "big"), bytes.Repeat([]byte("big "), bigFile/4), 0o644))
	library, err := media.OpenLibrary([]media.Spec{{Name: "dir", Dir: dir}})
	require.NoError(t, err)
	return planeOf(t, library, func(o *Options, _ *inventory.Config) { edit(o) }).run()
}

// dial connects from an address, with small buffers at this end.
func (p *plane) dial(from netip.Addr) *net.TCPConn {
	p.t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: from.AsSlice()}, Timeout: 5 * time.Second}
	c, err := dialer.Dial("tcp", p.Addr().String())
	require.NoError(p.t, err)
	p.t.Cleanup(func() { c.Close() })
	conn := c.(*net.TCPConn)
	require.NoError(p.t, conn.SetReadBuffer(16<<10))
	require.NoError(p.t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	return conn
}

// The two ways in which a file is sent.
var ways = map[string]string{
	"sendfile": "",
	"copied":   fmt.Sprintf("Range: bytes=0-%d,%d-%d\r\n", bigFile/2-1, bigFile/2, bigFile-1), // a multipart body comes out of a pipe
}

// A client that stops reading loses its connection, and what it held is free.
func TestStalledClient(t *testing.T) {
	for way, header := range ways {
		t.Run(way, func(t *testing.T) {
			const stall = 200 * time.Millisecond
			p := bigPlane(t, func(o *Options) { o.StallTimeout = stall })
			conn := p.dial(ipNobody)
			fmt.Fprintf(conn, "GET /media/dir/big HTTP/1.1\r\nHost: x\r\n%s\r\n", header)
			_, err := io.ReadFull(conn, make([]byte, 1000))
			require.NoError(t, err)
			eventually(t, func() bool { return p.count("rackstrap_http_stalled_total") == 1 }, "stalled")
			eventually(t, func() bool { return p.count("rackstrap_http_connections") == 0 }, "closed")
			require.Zero(t, p.count("rackstrap_http_in_flight"))
			require.Empty(t, p.events("fault"))
			_, err = io.Copy(io.Discard, conn)
			require.Error(t, err) // reset: what it did not take is gone
		})
	}
}

// A client that is slow, but takes a little now and then, gets all of it, however long that takes. A loaded
// machine may keep the client itself from reading for as long as the server is patient: then its end shows
// nothing, and it is tried again with more patience.
func TestSlowClientIsNotStalled(t *testing.T) {
	for way, header := range ways {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			for stall := 400 * time.Millisecond; ; stall *= 3 {
				pause, err := slowClient(t, header, stall)
				if err == nil {
					return
				}
				t.Logf("stall timeout %v: the client read nothing for %v, and then: %v", stall, pause, err)
				require.True(t, pause > stall/2 && stall < 3*time.Second, "the server was not patient")
			}
		})
	}
}

// slowClient fetches the big file, so slowly for six stall timeouts that the server has to wait, and reports the
// longest time in which it took nothing.
func slowClient(t *testing.T, header string, stall time.Duration) (pause time.Duration, err error) {
	p := bigPlane(t, func(o *Options) { o.StallTimeout = stall })
	conn := p.dial(ipNobody)
	require.NoError(t, conn.SetDeadline(time.Now().Add(6*stall+20*time.Second)))
	fmt.Fprintf(conn, "GET /media/dir/big HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%s\r\n", header)
	var got int64
	begin := time.Now()
	for last := begin; time.Since(begin) < 6*stall; {
		n, err := io.CopyN(io.Discard, conn, 24<<10)
		got += n
		pause, last = max(pause, time.Since(last)), time.Now()
		if err != nil {
			return pause, err
		}
		time.Sleep(stall / 10) // the slowness is what is tested
	}
	require.NoError(t, conn.SetReadBuffer(4<<20))
	rest, err := io.Copy(io.Discard, conn)
	switch stalled := p.count("rackstrap_http_stalled_total"); {
	case err != nil:
		return pause, err
	case got+rest < bigFile:
		return pause, fmt.Errorf("%d bytes came", got+rest)
	case stalled != 0:
		return pause, fmt.Errorf("%v connections were taken for stalled", stalled)
	}
	return pause, nil
}

// Slowloris: a header that never ends holds a connection for HeaderTimeout only, and never all connections.
func TestSlowloris(t *testing.T) {
	const timeout = 300 * time.Millisecond
	p := bigPlane(t, func(o *Options) {
		o.HeaderTimeout, o.Places = timeout, places.Limits{Total: 16, Each: 4, Strangers: 8, StrangersEach: 4}
	})
	attacker := netip.MustParseAddr("127.0.0.66")
	var held []*net.TCPConn
	for i := range 10 {
		if i >= 4 { // beyond its share
			p.requireRefused(attacker)
			continue
		}
		held = append(held, p.dial(attacker))
		fmt.Fprint(held[i], "GET /healthz HTTP/1.1\r\nHost: x\r\n")
	}
	require.Equal(t, 200, p.get("/healthz").StatusCode) // others do not notice
	require.Len(t, p.events("places"), 1)

	for _, conn := range held {
		go func() {
			for {
				if _, err := io.WriteString(conn, "X-Drip: x\r\n"); err != nil {
					return
				}
				time.Sleep(timeout / 20)
			}
		}()
	}
	eventually(t, func() bool { return p.count("rackstrap_http_connections") == 0 }, "closed")
	require.Equal(t, 200, p.request(http.MethodGet, "/healthz", attacker).StatusCode) // its share is free again
}

// requireRefused wants a new connection reset, which may be as early as in connect.
func (p *plane) requireRefused(from netip.Addr) {
	p.t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: from.AsSlice()}, Timeout: 5 * time.Second}
	conn, err := dialer.Dial("tcp", p.Addr().String())
	if err != nil {
		require.ErrorIs(p.t, err, syscall.ECONNRESET)
		return
	}
	defer conn.Close()
	require.NoError(p.t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	requireReset(p.t, conn.(*net.TCPConn))
}

// requireReset wants a connection ended that got no answer.
func requireReset(t testing.TB, conn *net.TCPConn) {
	t.Helper()
	_, err := conn.Read(make([]byte, 1))
	require.Error(t, err)
	require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
}

// A body that never comes is not waited for.
func TestBodyThatNeverComes(t *testing.T) {
	p := bigPlane(t, func(*Options) {})
	conn := p.dial(ipNobody)
	fmt.Fprint(conn, "GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
	status, _ := readReply(t, conn)
	require.Equal(t, http.StatusBadRequest, status)
	eventually(t, func() bool { return p.count("rackstrap_http_connections") == 0 }, "closed")
}

// request sends a request and leaves the connection open.
func request(t *testing.T, conn *net.TCPConn, path string) {
	t.Helper()
	_, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path)
	require.NoError(t, err)
}

// With all connections busy, the next one of a machine of the list waits, it is not refused; and those that have nothing
// to do give way, as does a client that takes next to nothing of what it asked for.
func TestAllConnectionsTaken(t *testing.T) {
	const stall = 4 * time.Second
	p := bigPlane(t, func(o *Options) {
		o.StallTimeout, o.Places = stall, places.Limits{Total: 4, Each: 4, Strangers: 2, StrangersEach: 2}
	})
	busy := func(from netip.Addr) *net.TCPConn {
		conn := p.dial(from)
		request(t, conn, "/media/dir/big")
		_, err := io.ReadFull(conn, make([]byte, 1000))
		require.NoError(t, err)
		return conn
	}
	busy(ipNobody)
	busy(ipNobody)
	p.requireRefused(ipForeignLoop) // strangers have their share
	kept := p.dial(ipMaster)
	request(t, kept, "/healthz")
	status, _ := readReply(t, kept)
	require.Equal(t, 200, status)
	slow := busy(ipMaster)
	for range 3 {
		next := p.dial(ipNode)
		request(t, next, "/healthz")
		status, _ := readReply(t, next)
		require.Equal(t, 200, status)
	}
	requireReset(t, kept) // it was idle for the longest time

	busy(ipNode) // in place of one that is idle
	waiting := p.dial(ipNode)
	request(t, waiting, "/healthz")
	require.NoError(t, waiting.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
	_, err := waiting.Read(make([]byte, 1))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded, "all are busy")
	require.NoError(t, waiting.SetReadDeadline(time.Now().Add(20*time.Second)))
	status, _ = readReply(t, waiting) // as soon as it shows that another one takes nothing
	require.Equal(t, 200, status)
	_ = slow
}

// HTTP/1.0 and keep-alive: several requests on one connection, the small, the copied and the sent file each
// complete before the next begins.
func TestManyRequestsOnOneConnection(t *testing.T) {
	p := newPlane(t).run()
	conn := p.dial(ipMaster)
	want := []string{"images/pxeboot/vmlinuz", "images/pxeboot/initrd.img", ".treeinfo", "empty", "images/pxeboot/initrd.img"}
	for range 3 {
		for _, name := range want { // pipelined
			fmt.Fprintf(conn, "GET /media/centos-7.9/%s HTTP/1.1\r\nHost: x\r\n\r\n", name)
		}
	}
	fmt.Fprint(conn, "GET /media/centos-7.9/.treeinfo HTTP/1.0\r\n\r\n")
	all, err := io.ReadAll(conn)
	require.NoError(t, err)
	r := bytes.NewReader(all)
	bodies := readAll(t, r)
	for i := range 15 {
		require.Equal(t, files[want[i%5]], bodies[i], i)
	}
	require.Equal(t, files[".treeinfo"], bodies[15])
}
