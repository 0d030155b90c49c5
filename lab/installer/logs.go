package installer

import (
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"
)

// logs are Anaconda's log files, and the lines that it sends to inst.syslog.
type logs struct {
	system  system
	release release // 0, before the kickstart is known: as 7

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

// Severities of RFC 5424, section 6.2.1.
const (
	severityCrit  = 2
	severityErr   = 3
	severityWarn  = 4
	severityInfo  = 6
	severityDebug = 7
)

// levels are the names of the severities in Anaconda's files, which EL9's calls otherwise.
var (
	levels  = map[int]string{severityCrit: "CRIT", severityErr: "ERR", severityWarn: "WARN", severityInfo: "INFO", severityDebug: "DEBUG"}
	levels9 = map[int]string{severityCrit: "CRT", severityErr: "ERR", severityWarn: "WRN", severityInfo: "INF", severityDebug: "DBG"}
)

const local1 = 17 << 3 // ANACONDA_SYSLOG_FACILITY

// line writes to /tmp/LOGGER.log and to the server. EL7's Anaconda sends `anaconda: text`, with the level in the priority
// alone (anaconda_log.py); EL9's comes by the journal, `anaconda[1234]: anaconda: module: text` (anaconda_logging.py), and the
// logger is "anaconda: module". Several lines of text are several lines on the wire: neither journal nor rsyslog escapes them.
func (l *logs) line(severity int, logger, format string, args ...any) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	text := fmt.Sprintf(format, args...)
	name, _, _ := strings.Cut(logger, ":")
	file := l.opened[name]
	if file == nil {
		path := l.system.path("/tmp/" + name + ".log")
		if f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600); err == nil {
			file, l.opened[name] = f, f
		}
	}
	if file != nil {
		level := levels[severity]
		if l.release == 9 {
			level = levels9[severity]
		}
		fmt.Fprintf(file, "%s,%03d %s %s: %s\n", now.Format("15:04:05"), now.Nanosecond()/1e6, level, logger, text)
	}
	if l.queue == nil {
		return
	}
	// rsyslog's traditional forward format (RFC 3164, 4.1).
	host, _ := os.Hostname()
	sender := logger
	if l.release == 9 {
		sender = "anaconda[1000]: " + logger
	}
	select {
	case l.queue <- fmt.Sprintf("<%d>%s %s %s: %s\n", local1|severity, now.Format(time.Stamp), host, sender, text):
	default: // an installation is not to wait for its log
	}
}

func (l *logs) files() []string {
	return []string{"/tmp/anaconda.log", "/tmp/packaging.log", "/tmp/program.log", "/tmp/storage.log"}
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
