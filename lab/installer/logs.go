package installer

import (
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// logs are Anaconda's log files, and the lines that it sends to inst.syslog.
type logs struct {
	system system

	mu     sync.Mutex
	queue  chan string // nil: no server
	ended  chan struct{}
	opened map[string]*os.File
}

const (
	syslogPort    = "514"
	syslogQueue   = 4096
	syslogPatient = 3 * time.Second // for the last lines
)

func newLogs(s system) *logs { return &logs{system: s, opened: map[string]*os.File{}} }

// line writes to /tmp/NAME.log and to the server.
func (l *logs) line(name, format string, args ...any) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	text := fmt.Sprintf(format, args...)
	file := l.opened[name]
	if file == nil {
		path := l.system.path("/tmp/" + name + ".log")
		if f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600); err == nil {
			file, l.opened[name] = f, f
		}
	}
	if file != nil {
		fmt.Fprintf(file, "%s,%03d %s\n", now.Format("15:04:05"), now.Nanosecond()/1e6, text)
	}
	if l.queue == nil {
		return
	}
	// rsyslog's traditional forward format; <142> is local1.info (RFC 3164, 4.1.1).
	host, _ := os.Hostname()
	select {
	case l.queue <- fmt.Sprintf("<142>%s %s %s: %s\n", now.Format(time.Stamp), host, name, text):
	default: // an installation is not to wait for its log
	}
}

func (l *logs) files() []string {
	return []string{"/tmp/anaconda.log", "/tmp/packaging.log", "/tmp/storage.log"}
}

// serve begins to send lines to a server, HOST or HOST:PORT, over TCP: Anaconda writes `*.* @@HOST:PORT`.
func (l *logs) serve(server string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if server == "" || l.queue != nil {
		return
	}
	if _, _, err := net.SplitHostPort(server); err != nil {
		server = net.JoinHostPort(server, syslogPort)
	}
	l.queue, l.ended = make(chan string, syslogQueue), make(chan struct{})
	go send(server, l.queue, l.ended)
}

// send connects, and connects again, until the queue is closed.
func send(server string, queue <-chan string, ended chan<- struct{}) {
	defer close(ended)
	var conn net.Conn
	for text := range queue {
		for try := 0; ; try++ {
			if conn == nil {
				c, err := net.DialTimeout("tcp", server, 5*time.Second)
				if err != nil {
					if try == 2 {
						break
					}
					time.Sleep(200 * time.Millisecond)
					continue
				}
				conn = c
			}
			conn.SetWriteDeadline(time.Now().Add(10 * time.Second))
			if _, err := io.WriteString(conn, text); err == nil {
				break
			}
			conn.Close()
			if conn = nil; try == 2 {
				break
			}
		}
	}
	if conn != nil {
		conn.Close()
	}
}

// close sends what is left, for a moment.
func (l *logs) close() {
	l.mu.Lock()
	queue, ended := l.queue, l.ended
	l.queue = nil
	for _, f := range l.opened {
		f.Close()
	}
	l.opened = map[string]*os.File{}
	l.mu.Unlock()
	if queue == nil {
		return
	}
	close(queue)
	select {
	case <-ended:
	case <-time.After(syslogPatient):
	}
}
