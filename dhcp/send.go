package dhcp

import (
	"errors"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

// Limits of replies to addresses that a client or a relay agent only claims to have (ciaddr, giaddr, the sender's). Until
// the kernel knows the link address behind it, or gave up after three seconds, a reply waits in the socket's send buffer
// and in the neighbour table, which holds 1,024 entries on most hosts: who makes up addresses would fill both, and the
// replies to all others would be lost.
const (
	// sendBuffer is that of a socket; strangers' replies are only sent while less than a quarter of it waits.
	sendBuffer = 4 << 20
	// destinations is how many addresses not sent to lately are sent to anew in a second.
	destinations, destinationsAtOnce = rate.Limit(32), 128
	// recently is how long an address counts as one sent to lately; maxRecent how many are remembered.
	recently, maxRecent = time.Minute, 8192
)

var errSendQueue = errors.New("too many replies wait for their destinations' link addresses")

// send sends a reply, or fails: no worker ever waits for room in the socket's buffer.
func (l *listener) send(data, oob []byte, to netip.AddrPort, urgent bool) error {
	raw, err := l.conn.SyscallConn()
	if err != nil {
		return err
	}
	destination := &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}
	var sent error
	err = raw.Write(func(fd uintptr) bool {
		if waiting, err := unix.IoctlGetInt(int(fd), unix.SIOCOUTQ); err == nil && waiting > sendBuffer/4 && !urgent {
			sent = errSendQueue
			return true
		}
		_, sent = unix.SendmsgN(int(fd), data, oob, destination, unix.MSG_DONTWAIT)
		return true
	})
	return errors.Join(err, sent)
}

// reach bounds how many addresses are sent to anew.
type reach struct {
	mu     sync.Mutex
	last   map[netip.Addr]time.Time
	budget *rate.Limiter
}

func newReach() *reach {
	return &reach{last: map[netip.Addr]time.Time{}, budget: rate.NewLimiter(destinations, destinationsAtOnce)}
}

// allow tells whether a reply may go to an address now.
func (r *reach) allow(to netip.Addr, now time.Time) bool {
	if to == broadcast {
		return true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	last, known := r.last[to]
	if (!known || now.Sub(last) >= recently) && !r.budget.AllowN(now, 1) {
		return false
	}
	if !known && len(r.last) >= maxRecent {
		clear(r.last)
	}
	r.last[to] = now
	return true
}
