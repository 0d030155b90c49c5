package store

import (
	"errors"
	"sync"

	bolt "go.etcd.io/bbolt"

	"rackstrap/lifecycle"
)

// maxBatch bounds how many changes share a transaction, and with that how long the first of them waits.
const maxBatch = 1024

// change is a write that waits for its commit.
type change struct {
	apply func(*bolt.Tx) error
	done  chan error
}

// committer runs changes in transactions that they share: whatever arrives while one commit is being
// synced goes into the next one. Against bbolt's own Batch this needs no delay, so a lone writer does not
// wait for company, and a refused change (ErrConflict) does not roll its neighbours back.
//
// The condition for sharing: a change that returns lifecycle.ErrConflict has changed nothing. Any other
// error of a change fails the whole transaction, so everything that the caller may have got wrong (sizes
// of keys, encoding) is to be checked before. A change runs once.
type committer struct {
	db    *bolt.DB
	queue chan *change
	ended chan struct{}

	mu     sync.RWMutex // held for reading while something is put into the queue
	closed bool
}

// newCommitter starts the one goroutine that writes; close ends it.
func newCommitter(db *bolt.DB) *committer {
	c := &committer{db: db, queue: make(chan *change, maxBatch), ended: make(chan struct{})}
	go c.run()
	return c
}

// do returns when the change is on stable storage, or did not happen.
func (c *committer) do(apply func(*bolt.Tx) error) error {
	w := &change{apply: apply, done: make(chan error, 1)}
	c.mu.RLock()
	if c.closed {
		c.mu.RUnlock()
		return ErrClosed
	}
	c.queue <- w
	c.mu.RUnlock()
	return <-w.done
}

// close lets the queued changes finish and ends the goroutine.
func (c *committer) close() {
	c.mu.Lock()
	if !c.closed {
		c.closed = true
		close(c.queue)
	}
	c.mu.Unlock()
	<-c.ended
}

func (c *committer) run() {
	defer close(c.ended)
	for first := range c.queue {
		c.commit(c.gather(first))
	}
}

// gather takes what else has already arrived.
func (c *committer) gather(first *change) []*change {
	batch := []*change{first}
	for len(batch) < maxBatch {
		select {
		case w, ok := <-c.queue:
			if !ok {
				return batch
			}
			batch = append(batch, w)
		default:
			return batch
		}
	}
	return batch
}

func (c *committer) commit(batch []*change) {
	refused := make([]error, len(batch))
	err := c.db.Update(func(tx *bolt.Tx) error {
		for i, w := range batch {
			err := w.apply(tx)
			if err != nil && !errors.Is(err, lifecycle.ErrConflict) {
				return err
			}
			refused[i] = err
		}
		return nil
	})
	for i, w := range batch {
		if err == nil {
			w.done <- refused[i]
		} else {
			w.done <- err
		}
	}
}
