package lifecycle

import "sync"

// turns is a set of locks, one a name.
type turns struct {
	mu   sync.Mutex
	held map[string]*turn
}

type turn struct {
	sync.Mutex
	users int
}

// take waits for the name's lock and returns the function that gives it back.
func (t *turns) take(name string) (release func()) {
	t.mu.Lock()
	if t.held == nil {
		t.held = map[string]*turn{}
	}
	own := t.held[name]
	if own == nil {
		own = &turn{}
		t.held[name] = own
	}
	own.users++
	t.mu.Unlock()

	own.Lock()
	return func() {
		own.Unlock()
		t.mu.Lock()
		defer t.mu.Unlock()
		if own.users--; own.users == 0 {
			delete(t.held, name)
		}
	}
}
