package repo

import (
	"errors"
	"sync"
	"sync/atomic"
)

// Bounds of the memory that metadata takes: what is packed is small, and can name anything. Of the repositories that EL7
// and EL9 are installed from EPEL is the largest: 25,000 packages, which cost 8 MiB of maxNames and 60 MiB of maxIndex.
const (
	maxNames      = 48 << 20  // what the versions of one repository's metadata may cost that are in force
	maxNamesInAll = 128 << 20 // and those of all repositories
	maxIndex      = 128 << 20 // what an Index may cost, which holds what packages require and provide as well
	maxIndexInAll = 320 << 20 // and all that are read at once

	packageCost = 256 // of a package, besides its names
	entryCost   = 96  // of a further name of it
)

// errTooMuch: what a repository lists would take too much memory.
var errTooMuch = errors.New("it lists more than is held in memory")

// readers is how much metadata is unpacked and read at once.
const readers = 2

// budget is what each of several may have of something, and what they may have together.
type budget struct {
	mu         sync.Mutex
	each, most int64
	by         map[string]int64
}

// take sets what one has; false, and no change, if that is too much.
func (b *budget) take(owner string, n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := n
	for other, has := range b.by {
		if other != owner {
			all += has
		}
	}
	if n > b.each || all > b.most {
		return false
	}
	b.by[owner] = n
	return true
}

func (b *budget) drop(owner string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.by, owner)
}

// Memory bounds what several indexes take together.
type Memory struct{ used atomic.Int64 }

// charge adds to what an index costs.
func (x *Index) charge(n int) error {
	x.cost += int64(n)
	if x.cost > maxIndex || x.memory != nil && x.memory.used.Add(int64(n)) > maxIndexInAll {
		return errTooMuch
	}
	return nil
}

// intern is the one copy of a name in an index: what packages require repeats.
func (x *Index) intern(name string) (string, error) {
	if known, ok := x.names[name]; ok {
		return known, x.charge(stringCost)
	}
	x.names[name] = name
	return name, x.charge(entryCost + len(name))
}

const stringCost = 16 // of a further mention of a name
