package repo

import (
	"bytes"
	"fmt"
	"io"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/ulikunitz/xz"

	"rackstrap/internal/repotest"
)

// Every file of xz is followed to its end, whatever its blocks; a large dictionary is refused in any of them, before it is
// allocated.
func TestXZDictionaries(t *testing.T) {
	text := append(bytes.Repeat([]byte("repetition "), 300_000), content(1, 300_000)...) // chunks that are packed, and that are not
	packed := func(c xz.WriterConfig) []byte {
		var out bytes.Buffer
		w, err := c.NewWriter(&out)
		require.NoError(t, err)
		_, err = w.Write(text)
		require.NoError(t, err)
		require.NoError(t, w.Close())
		return out.Bytes()
	}
	read := func(file []byte) ([]byte, error) {
		r, err := unpack(bytes.NewReader(file), 1<<30)
		if err != nil {
			return nil, err
		}
		defer r.Close()
		return io.ReadAll(r)
	}
	var before, after runtime.MemStats
	for _, check := range []byte{xz.CRC32, xz.CRC64, xz.SHA256} {
		for _, block := range []int64{0, 100_001} {
			c := xz.WriterConfig{DictCap: 8 << 20, BlockSize: block, CheckSum: check}
			got, err := read(packed(c))
			require.NoError(t, err)
			require.True(t, bytes.Equal(text, got))
			c.DictCap = 64 << 20
			wrong := packed(c)
			runtime.ReadMemStats(&before)
			_, err = read(wrong)
			runtime.ReadMemStats(&after)
			require.ErrorIs(t, err, errDictionary)
			require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(4<<20))
		}
	}
	// As xz itself writes it, with the sizes in the blocks' headers.
	if _, err := exec.LookPath("xz"); err == nil {
		for args, want := range map[string]error{"-6": nil, "-9": errDictionary, "-T2 --block-size=100000": nil, "-0 -T2": nil} {
			cmd := exec.Command("xz", append(strings.Fields(args), "-c")...)
			cmd.Stdin = bytes.NewReader(text)
			file, err := cmd.Output()
			require.NoError(t, err)
			got, err := read(file)
			require.ErrorIs(t, err, want, args)
			require.True(t, want != nil || bytes.Equal(text, got), args)
		}
	}
}

// What a repository lists is bounded while it is read, in all its parts; what the largest real ones have fits.
func TestMemoryBounds(t *testing.T) {
	primary := func(n int, of func(i int) string) string {
		var text strings.Builder
		text.WriteString(`<metadata>`)
		for i := range n {
			fmt.Fprintf(&text, `<package><name>p%d</name><arch>noarch</arch><version epoch="0" ver="1.2.3" rel="4.el9"/><checksum type="sha256">%064x</checksum><size package="5"/>%s</package>`, i/2, i, of(i))
		}
		text.WriteString(`</metadata>`)
		return text.String()
	}
	entries := func(n, i int) string {
		var text strings.Builder
		for k := range n {
			fmt.Fprintf(&text, `<entry name="capability-%d-%d"/>`, i, k)
		}
		return text.String()
	}
	where := func(i int) string {
		return fmt.Sprintf(`<location href="Packages/p/package-of-a-usual-name-%d-1.2.3-4.el9.noarch.rpm"/>`, i)
	}
	epel := func(i int) string {
		return where(i) + "<format><provides>" + entries(8, i) + "</provides><requires>" + entries(20, i%3000) + "</requires></format>"
	}
	for _, c := range []struct {
		name          string
		text          string
		served, index error // by a mirror; as an Index
	}{
		{"EPEL 9", primary(25_000, epel), nil, nil},
		{"long paths", primary(60_000, func(i int) string { return fmt.Sprintf(`<location href="%s%d"/>`, strings.Repeat("x", 900), i) }), errTooMuch, nil},
		{"long encoded paths", primary(3, func(i int) string { return fmt.Sprintf(`<location href="%s%d"/>`, strings.Repeat("%2e/", 2000), i) }), errSome, errSome},
		{"long bases", primary(60_000, func(i int) string {
			return fmt.Sprintf(`<location xml:base="http://x/%s" href="%d"/>`, strings.Repeat("x", 2500), i)
		}), errTooMuch, errTooMuch},
		{"endless bases", primary(3, func(i int) string {
			return fmt.Sprintf(`<location xml:base="http://x/%s" href="%d"/>`, strings.Repeat("x", 5000), i)
		}), errSome, errSome},
		{"packages", primary(140_000, where), errSome, errSome},
		{"one package provides", primary(1, func(i int) string {
			return where(i) + "<format><provides>" + entries(70_000, i) + "</provides></format>"
		}), nil, errTooMuch},
		{"one package requires", primary(1, func(i int) string {
			return where(i) + "<format><requires>" + entries(70_000, i) + "</requires></format>"
		}), nil, errTooMuch},
		{"files", primary(1, func(i int) string {
			return where(i) + "<format>" + strings.Repeat("<file>/x</file>", 70_000) + "</format>"
		}), nil, errTooMuch},
		{"all provide", primary(2_000, func(i int) string { return where(i) + "<format><provides>" + entries(1000, i) + "</provides></format>" }), nil, errTooMuch},
	} {
		all := tree(repotest.MakeOf("gz", map[string]string{"primary": c.text}))
		x, err := ReadIndex(all.fs(t))
		same(t, c.name, c.index, err)
		if c.name == "EPEL 9" {
			t.Logf("%s: %d packages, %d MiB of %d", c.name, x.Packages(), x.cost>>20, maxIndex>>20)
		}
		up := newUpstream(t, all)
		b := serve(t, up, t.TempDir())
		_, err = b.get(repomdPath)
		if c.served != nil {
			b.fails(repomdPath, true, "upstream sends ")
			continue
		}
		require.NoError(t, err, c.name)
		t.Logf("%s: %d MiB of %d", c.name, b.mirrors["up"].sets[0].cost()>>20, maxNames>>20)
	}
}

var errSome = fmt.Errorf("some error")

func same(t *testing.T, what string, want, got error) {
	t.Helper()
	if want == errSome {
		require.Error(t, got, what)
		return
	}
	require.ErrorIs(t, got, want, what)
}

// Repositories share what there is: who comes too late keeps what it had, and is heard of.
func TestMemoryOfAll(t *testing.T) {
	b := budget{each: 10, most: 15, by: map[string]int64{}}
	require.True(t, b.take("a", 10))
	require.False(t, b.take("b", 6))
	require.True(t, b.take("b", 5))
	require.False(t, b.take("b", 6), "and has what it had")
	require.False(t, b.take("a", 11))
	require.True(t, b.take("a", 3))
	require.True(t, b.take("b", 10))
	b.drop("b")
	require.True(t, b.take("c", 10))
}
