package store

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/lifecycle"
)

// sample is a database with every kind of page: branches, leaves, inline buckets, overflow, a free list.
func sample(t testing.TB) []byte {
	path := t.TempDir() + "/sample.db"
	s, err := Open(path)
	require.NoError(t, err)
	fill(t, s, 40)
	huge := event(hostA, string(bytes.Repeat([]byte{'x'}, 20000)))
	require.NoError(t, s.Append(ctx, []lifecycle.Event{huge, huge}, nil))
	require.NoError(t, s.Close())
	raw, err := os.ReadFile(path)
	require.NoError(t, err)
	return raw
}

// tryOpen opens these bytes as a database and uses it. The only acceptable outcomes are a typed error,
// or a store that works.
func tryOpen(t testing.TB, path string, raw []byte) (opened bool) {
	require.NoError(t, os.WriteFile(path, raw, 0o600))
	s, err := Open(path)
	if err != nil {
		var corrupt *CorruptError
		var version *lifecycle.VersionError
		require.True(t, errors.As(err, &corrupt) || errors.As(err, &version), "%v", err)
		after, err := os.ReadFile(path)
		require.NoError(t, err)
		require.True(t, bytes.Equal(raw, after), "a refused file is not touched")
		return false
	}
	for range 2 {
		_, _ = s.Events(ctx, lifecycle.EventQuery{})
		require.NoError(t, s.PutLease(ctx, lease(1)))
		require.NoError(t, s.Append(ctx, []lifecycle.Event{event(hostA, "x"), event(mac(1), "y")}, nil))
	}
	require.NoError(t, s.Close())
	s, err = Open(path)
	require.NoError(t, err, "what was accepted and written to is sound")
	require.NoError(t, s.Close())
	return true
}

func TestTruncated(t *testing.T) {
	raw, path := sample(t), t.TempDir()+"/cut.db"
	require.True(t, tryOpen(t, path, raw))
	for size := 0; size < len(raw); size += 1 + size/3 {
		opened := tryOpen(t, path, raw[:size])
		require.False(t, opened && size < len(raw)/4, "of %d bytes only %d", len(raw), size)
	}
	for _, size := range []int{1, 16, 79, 80, 4095, 4096, 4097, 8191, 8192, 16384} {
		require.False(t, tryOpen(t, path, raw[:size]), size)
	}
}

func TestGarbage(t *testing.T) {
	path := t.TempDir() + "/garbage.db"
	random := rand.New(rand.NewPCG(1, 2))
	for _, size := range []int{1, 100, 4096, 100_000} {
		raw := make([]byte, size)
		require.False(t, tryOpen(t, path, raw), "zeros")
		for i := range raw {
			raw[i] = byte(random.Uint32())
		}
		require.False(t, tryOpen(t, path, raw), "noise")
	}
	require.False(t, tryOpen(t, path, []byte("server:\n  interface: eth1\n")), "a text file")
}

// Every field of every page header is overwritten with nasty values, and bits are flipped all over.
func TestBitFlips(t *testing.T) {
	raw, path := sample(t), t.TempDir()+"/flipped.db"
	random := rand.New(rand.NewPCG(3, 4))
	refused, accepted := 0, 0
	try := func(damaged []byte) {
		if tryOpen(t, path, damaged) {
			accepted++
		} else {
			refused++
		}
	}
	written := bytes.TrimRight(raw, "\x00") // what follows was only reserved
	for page := 0; page < len(written); page += 4096 {
		for field := page; field < page+48 && field < len(raw); field += 4 {
			damaged := bytes.Clone(raw)
			nasty := []byte{0xff, 0xff, 0xff, 0xff}
			if random.IntN(2) == 0 {
				nasty = []byte{byte(random.IntN(32)), 0, 0, 0}
			}
			copy(damaged[field:], nasty)
			try(damaged)
		}
	}
	for deadline := time.Now().Add(3 * time.Second); time.Now().Before(deadline); {
		damaged := bytes.Clone(raw)
		for range 1 + random.IntN(4) {
			damaged[random.IntN(len(written))] ^= 1 << random.IntN(8)
		}
		try(damaged)
	}
	t.Logf("%d bytes: %d damaged copies refused, %d accepted (damage in free pages or in text)", len(raw), refused, accepted)
	require.NotZero(t, refused)
}

// FuzzOpen puts foreign bytes over a sound database at some place.
func FuzzOpen(f *testing.F) {
	raw := sample(f)
	for _, at := range []int{0, 16, 4096, 8192, 8208, 12288, 16384} {
		f.Add(at, []byte{0xff, 0xff, 0, 1})
	}
	path := f.TempDir() + "/fuzz.db"
	f.Fuzz(func(t *testing.T, at int, patch []byte) {
		damaged := bytes.Clone(raw)
		copy(damaged[uint(at)%uint(len(damaged)):], patch)
		tryOpen(t, path, damaged)
	})
}
