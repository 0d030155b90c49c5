package httpboot

import (
	"bytes"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"rackstrap/media"
)

// initrd is larger than all buffers, and goes by sendfile.
var initrd = bytes.Repeat([]byte("0123456789abcdef"), 3<<20/16)

// Ranges and conditions are what http.ServeContent makes of them, from inside an ISO as from a directory,
// whole or by sendfile.
func TestRanges(t *testing.T) {
	dir := treeDir(t)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "images/pxeboot/initrd.img"), initrd, 0o644))
	library, err := media.OpenLibrary([]media.Spec{{Name: "iso", ISO: makeISO(t, dir)}, {Name: "dir", Dir: dir}})
	require.NoError(t, err)
	p := planeOf(t, library).run()

	const file = "images/pxeboot/initrd.img"
	n := len(initrd)
	for _, name := range []string{"iso", "dir"} {
		tree, _ := library.Tree(name)
		entry, err := tree.Lookup(file)
		require.NoError(t, err)
		etag, modified := entry.ETag(), entry.ModTime.UTC().Format(http.TimeFormat)
		reference := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", etag)
			w.Header().Set("Content-Type", "application/vnd.efi-img")
			http.ServeContent(w, r, file, entry.ModTime, bytes.NewReader(initrd))
		}))
		defer reference.Close()
		for _, headers := range [][]string{
			{},
			{"Range", "bytes=0-0"},
			{"Range", "bytes=0-"},
			{"Range", "bytes=1000-"},
			{"Range", fmt.Sprintf("bytes=%d-", n-1)},
			{"Range", fmt.Sprintf("bytes=%d-", n)},
			{"Range", fmt.Sprintf("bytes=%d-%d", n-10, n+10)},
			{"Range", "bytes=-1"},
			{"Range", "bytes=-0"},
			{"Range", fmt.Sprintf("bytes=-%d", n+1)},
			{"Range", "bytes=5-4"},
			{"Range", "bytes=-"},
			{"Range", "bytes="},
			{"Range", "bytes=x-y"},
			{"Range", "bytes=-1--2"},
			{"Range", "lines=1-2"},
			{"Range", "bytes=0-18446744073709551616"},
			{"Range", "bytes=99999999999999999999999-"},
			{"Range", "bytes=9223372036854775807-9223372036854775807"},
			{"Range", "bytes=100-1999999"},
			{"Range", "bytes=0-0,-1"},
			{"Range", "bytes=0-9, 1000-1999 ,100000-1500000"},
			{"Range", "bytes=0-,0-,0-,0-"},
			{"Range", "bytes=" + strings.Repeat("0-0,", 1500) + "1-1"},
			{"Range", "bytes=0-9", "If-Range", etag},
			{"Range", "bytes=0-9", "If-Range", `"other"`},
			{"Range", "bytes=0-9", "If-Range", "W/" + etag},
			{"Range", "bytes=0-9", "If-Range", modified},
			{"Range", "bytes=0-9", "If-Range", "Thu, 01 Jan 1970 00:00:00 GMT"},
			{"If-Match", etag},
			{"If-Match", `"a", ` + etag},
			{"If-Match", `"other"`},
			{"If-Match", "*"},
			{"If-Match", etag, "Range", "bytes=1000000-"}, // how edk2 resumes
			{"If-Match", `"other"`, "Range", "bytes=1000000-"},
			{"If-None-Match", etag},
			{"If-None-Match", "W/" + etag},
			{"If-None-Match", `"other"`},
			{"If-None-Match", "*"},
			{"If-Modified-Since", modified},
			{"If-Modified-Since", "Thu, 01 Jan 1970 00:00:00 GMT"},
			{"If-Modified-Since", "nonsense"},
			{"If-Unmodified-Since", modified},
			{"If-Unmodified-Since", "Thu, 01 Jan 1970 00:00:00 GMT"},
		} {
			for _, method := range []string{http.MethodGet, http.MethodHead} {
				t.Run(fmt.Sprintf("%s %s %.60q", name, method, headers), func(t *testing.T) {
					got := p.request(method, "/media/"+name+"/"+file, ipNobody, headers...)
					want := ask(t, method, reference.URL, ipNobody, headers...)
					require.Equal(t, want.StatusCode, got.StatusCode)
					for _, h := range []string{"Content-Range", "Content-Length", "ETag", "Last-Modified", "Accept-Ranges"} {
						require.Equal(t, want.Header.Get(h), got.Header.Get(h), h)
					}
					require.Equal(t, parts(t, want.Header, want.body), parts(t, got.Header, got.body))
				})
			}
		}
	}
}

// parts takes a body apart: boundaries are random.
func parts(t *testing.T, h http.Header, body string) []string {
	kind, params, err := mime.ParseMediaType(h.Get("Content-Type"))
	if err != nil || kind != "multipart/byteranges" || body == "" {
		return []string{body}
	}
	var all []string
	r := multipart.NewReader(strings.NewReader(body), params["boundary"])
	for {
		part, err := r.NextPart()
		if err == io.EOF {
			return all
		}
		require.NoError(t, err)
		text, err := io.ReadAll(part)
		require.NoError(t, err)
		all = append(all, part.Header.Get("Content-Range"), string(text))
	}
}

// Offsets beyond 4 GiB: a sparse file of 5.
func TestHugeFile(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "huge.img"))
	require.NoError(t, err)
	const size = 5<<30 + 17
	require.NoError(t, f.Truncate(size))
	for _, at := range []int64{4<<30 - 3, size - 6} {
		_, err = f.WriteAt([]byte("marker"), at)
		require.NoError(t, err)
	}
	require.NoError(t, f.Close())
	library, err := media.OpenLibrary([]media.Spec{{Name: "dir", Dir: dir}})
	require.NoError(t, err)
	p := planeOf(t, library).run()

	head := p.request(http.MethodHead, "/media/dir/huge.img", ipNobody)
	require.EqualValues(t, size, head.ContentLength)
	for _, c := range []struct {
		ranges string
		want   string
	}{
		{fmt.Sprintf("bytes=%d-%d", int64(4<<30-3), int64(4<<30+2)), "marker"},
		{fmt.Sprintf("bytes=%d-%d", int64(4<<30-2<<20), int64(4<<30+2<<20-1)), strings.Repeat("\x00", 2<<20-3) + "marker" + strings.Repeat("\x00", 2<<20-3)},
		{"bytes=-6", "marker"},
		{fmt.Sprintf("bytes=%d-", int64(size-8)), "\x00\x00marker"},
		{fmt.Sprintf("bytes=%d-%d", int64(size-3<<20), int64(size)), strings.Repeat("\x00", 3<<20-6) + "marker"}, // by sendfile
	} {
		got := p.get("/media/dir/huge.img", "Range", c.ranges)
		require.Equal(t, http.StatusPartialContent, got.StatusCode)
		require.True(t, c.want == got.body, c.ranges)
	}
	require.Equal(t, http.StatusRequestedRangeNotSatisfiable, p.get("/media/dir/huge.img", "Range", fmt.Sprintf("bytes=%d-", int64(size))).StatusCode)
}
