package tftp

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// throttle keeps the timelines readable: requests are cheap to send, and their sources can be made up.
// What it holds back is in the metrics.
type throttle struct {
	mu      sync.Mutex
	clients map[netip.Addr]*rate.Limiter
	others  *rate.Limiter
	said    map[saying]time.Time
}

// saying is an event that need not be repeated.
type saying struct {
	client netip.Addr
	ending ending
	name   string
}

const (
	// repeatAfter is how long the same event of the same client is not repeated.
	repeatAfter = time.Minute
	// clientBurst events of a client may come at once, and then one per clientEvery.
	clientBurst = 60
	clientEvery = time.Second
	// otherBurst events that no client has proved itself for by a whole transfer may come at once, and then
	// otherRate in a second.
	otherBurst, otherRate = 200, 10
	// maxRemembered bounds both tables. They are forgotten as a whole: it matters only in a flood.
	maxRemembered = 4096
)

func newThrottle() *throttle {
	return &throttle{clients: map[netip.Addr]*rate.Limiter{}, said: map[saying]time.Time{}, others: rate.NewLimiter(otherRate, otherBurst)}
}

// allow tells whether an event is told.
func (th *throttle) allow(now time.Time, client netip.Addr, end ending, name string) bool {
	th.mu.Lock()
	defer th.mu.Unlock()
	if end != endDone {
		key := saying{client, end, name}
		if last, ok := th.said[key]; ok && now.Sub(last) < repeatAfter {
			return false
		}
		if !th.others.AllowN(now, 1) {
			return false
		}
		if len(th.said) >= maxRemembered {
			clear(th.said)
		}
		th.said[key] = now
	}
	limiter, ok := th.clients[client]
	if !ok {
		if len(th.clients) >= maxRemembered {
			clear(th.clients)
		}
		limiter = rate.NewLimiter(rate.Every(clientEvery), clientBurst)
		th.clients[client] = limiter
	}
	return limiter.AllowN(now, 1)
}
