package store

import (
	"bytes"
	"errors"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"rackstrap/inventory"
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
	s.db.NoSync = true
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
		for field := page; field < page+48 && field < len(raw); field += 4 + 4*random.IntN(3) {
			damaged := bytes.Clone(raw)
			nasty := []byte{0xff, 0xff, 0xff, 0xff}
			if random.IntN(2) == 0 {
				nasty = []byte{byte(random.IntN(32)), 0, 0, 0}
			}
			copy(damaged[field:], nasty)
			try(damaged)
		}
	}
	for range 200 {
		damaged := bytes.Clone(raw)
		for range 1 + random.IntN(4) {
			damaged[random.IntN(len(written))] ^= 1 << random.IntN(8)
		}
		try(damaged)
	}
	t.Logf("%d bytes: %d damaged copies refused, %d accepted (damage in free pages or in text)", len(raw), refused, accepted)
	require.NotZero(t, refused)
}

// Damage that no random bit finds: a free list that would hand out a page in use, and a file that lost
// nothing but free pages.
func TestSubtleDamage(t *testing.T) {
	path := t.TempDir() + "/subtle.db"
	s, err := Open(path)
	require.NoError(t, err)
	huge := event(hostA, string(bytes.Repeat([]byte{'x'}, 50000)))
	require.NoError(t, s.Append(ctx, []lifecycle.Event{huge}, nil))
	require.NoError(t, s.Forget(ctx, []inventory.MAC{hostA})) // frees the pages at the end
	require.NoError(t, s.PutLease(ctx, lease(1)))
	require.NoError(t, s.Close())
	raw, err := os.ReadFile(path)
	require.NoError(t, err)

	x, m := walk(t, path)
	list := bytes.Clone(raw)
	at := int64(m.freelist)*x.pageSize + pageHeader
	order.PutUint64(list[at:], m.root) // only the first entry, so that the order may be wrong as well
	order.PutUint16(list[at-pageHeader+10:], 1)
	require.False(t, tryOpen(t, path, list), "a used page is free")

	last := slices.Max(slices.Collect(maps.Keys(x.used)))
	require.Less(t, last+1, m.highWater, "the last pages are free")
	require.False(t, tryOpen(t, path, raw[:int64(last+1)*x.pageSize]), "cut off behind the last used page")
}

// A branch whose key is a little lower than its child's first: reading still works, but the next write would
// refer to the child twice.
func TestBranchKeyDiffersFromChild(t *testing.T) {
	raw, path := sample(t), t.TempDir()+"/branch.db"
	require.NoError(t, os.WriteFile(path, raw, 0o600))
	x, _ := walk(t, path)
	branches := 0
	for id := range x.used {
		page := int(int64(id) * x.pageSize)
		if order.Uint16(raw[page+8:]) != flagBranch {
			continue
		}
		branches++
		at := page + pageHeader + elementHeader // the second element
		key := at + int(order.Uint32(raw[at:])) + int(order.Uint32(raw[at+4:])) - 1
		damaged := bytes.Clone(raw)
		damaged[key]--
		require.False(t, tryOpen(t, path, damaged), "page %d", id)
	}
	require.NotZero(t, branches)
}

// walk examines a sound database, and returns what was learnt of it.
func walk(t *testing.T, path string) (*examiner, meta) {
	f, err := os.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	info, err := f.Stat()
	require.NoError(t, err)
	x := &examiner{file: f, size: info.Size(), used: map[uint64]bool{}}
	m, err := x.meta()
	require.NoError(t, err)
	x.pageSize, x.highWater = int64(m.pageSize), m.highWater
	require.NoError(t, x.tree(m.root, nil, keyRange{}, 0))
	require.NoError(t, x.freelist(m.freelist))
	return x, m
}

// Whatever the store itself writes, it reads again: pages split, merge, empty and come free in random order.
func TestChurn(t *testing.T) {
	path := t.TempDir() + "/churn.db"
	random := rand.New(rand.NewPCG(5, 6))
	leases := map[int]bool{}
	for range 12 {
		s, err := Open(path)
		require.NoError(t, err)
		s.db.NoSync = true
		shrink := random.IntN(3) == 0
		for range 60 {
			i := random.IntN(2000)
			switch {
			case shrink && random.IntN(4) > 0:
				for j := i; j < i+200; j++ {
					delete(leases, j)
					require.NoError(t, s.DropLease(ctx, lease(j).IP))
				}
				require.NoError(t, s.Forget(ctx, []inventory.MAC{mac(i % 60), mac(i % 7)}))
			default:
				for j := i; j < i+10; j++ {
					leases[j] = true
					require.NoError(t, s.PutLease(ctx, lease(j)))
				}
				text := string(bytes.Repeat([]byte{'x'}, random.IntN(3000)))
				require.NoError(t, s.Append(ctx, []lifecycle.Event{event(mac(i%60), text), event(mac(i%7), text)},
					[]lifecycle.Sighting{{MAC: mac(i % 60), First: noon}}))
			}
		}
		got, err := s.Leases(ctx)
		require.NoError(t, err)
		require.Equal(t, len(leases), len(got))
		require.NoError(t, s.Close())
	}
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
