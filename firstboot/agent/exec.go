package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"rackstrap/internal/plain"
)

// searched is where programs are looked up; what PATH the service manager had does not matter.
var searched = []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}

const (
	maxKept   = 256 << 10 // of a program's output, its end
	maxStdout = 8 << 20   // of what is parsed: more is an error
)

// errNotFound is a program that this host does not have.
var errNotFound = errors.New("is not installed")

// programError is how a program failed, with the line that says why.
type programError struct {
	Program string
	Code    int  // -1: ended by a signal
	Expired bool // ended by the deadline of its work
	Output  string
	Stderr  string // the part of it where reasons stand: the order between the two is lost
}

func (e *programError) Error() string {
	words := lastWords(e.Output)
	switch {
	case e.Expired:
		return fmt.Sprintf("%s did not end in time and was killed, after: %s", e.Program, words)
	case e.Code < 0:
		return fmt.Sprintf("%s was killed, after: %s", e.Program, words)
	case strings.TrimSpace(e.Stderr) != "":
		words = lastWords(e.Stderr)
	}
	return fmt.Sprintf("%s failed (%d): %s", e.Program, e.Code, words)
}

// lastWords picks the line that tells the reason: the first of a list of fatal errors, else the last that is not
// kubeadm's advice.
func lastWords(output string) string {
	last := "no output"
	for line := range strings.SplitSeq(output, "\n") {
		line = strings.TrimSpace(line)
		switch {
		case line == "", strings.HasPrefix(line, "To see the stack trace"), strings.HasPrefix(line, "[preflight] If you know what"):
		case strings.HasPrefix(line, "[ERROR "):
			return plain.Line(line, 400)
		default:
			last = line
		}
	}
	return plain.Line(last, 400)
}

// lookUp finds a program by its name.
func (h *Host) lookUp(name string) (string, error) {
	for _, dir := range searched {
		path := filepath.Join(h.o.Root, dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s %w", name, errNotFound)
}

// run runs a program of this host to its end and returns its standard output. All it prints is also kept in the log
// of the work under way. It dies, and all that it started with it, when ctx ends; and when the agent dies.
func (h *Host) run(ctx context.Context, s *session, name string, args ...string) (string, error) {
	return h.feed(ctx, s, "", name, args...)
}

func (h *Host) feed(ctx context.Context, s *session, input, name string, args ...string) (string, error) {
	path, err := h.lookUp(name)
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = "/"
	// No proxy: kubeadm would copy it into its static pods. LC_ALL: messages are recognised by their text.
	cmd.Env = []string{"PATH=" + strings.Join(searched, ":"), "HOME=/root", "LC_ALL=C", "LANG=C"}
	cmd.Stdin = strings.NewReader(input)
	both := &tailWriter{limit: maxKept}
	stdout, stderr := &limitedBuffer{limit: maxStdout}, &tailWriter{limit: maxKept}
	cmd.Stdout, cmd.Stderr = fork{stdout, both, s.watch}, fork{stderr, both}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second // a grandchild may hold the pipes

	ended := make(chan error, 1)
	go func() { // Pdeathsig is sent when the thread dies that started the program: it has to stay
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		ended <- cmd.Run()
	}()
	err = <-ended
	s.add(name, args, both.String())
	if err == nil && stdout.over {
		err = fmt.Errorf("%s printed more than %d bytes", name, maxStdout)
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) || err != nil && ctx.Err() != nil {
		failure := &programError{Program: name + subcommand(args), Code: -1, Expired: errors.Is(ctx.Err(), context.DeadlineExceeded),
			Output: h.redact(both.String()), Stderr: h.redact(stderr.String())}
		if exit != nil {
			failure.Code = exit.ExitCode()
		}
		return stdout.String(), failure
	}
	return stdout.String(), err
}

// subcommand is the beginning of a command line that tells what it does: the words up to the first flag, two at most.
func subcommand(args []string) string {
	text := ""
	for i, arg := range args {
		if i == 2 || strings.HasPrefix(arg, "-") {
			break
		}
		text += " " + arg
	}
	return text
}

// session collects what the programs of one work printed.
type session struct {
	mu    sync.Mutex
	log   tailWriter
	watch *lineWatcher
}

func newSession(tell func(string)) *session {
	return &session{log: tailWriter{limit: 1 << 20}, watch: &lineWatcher{tell: tell}}
}

func (s *session) add(name string, args []string, output string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(&s.log, "$ %s %s\n%s", name, strings.Join(args, " "), output)
	if !strings.HasSuffix(output, "\n") {
		s.log.Write([]byte("\n"))
	}
}

func (s *session) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(&s.log, "# "+format+"\n", args...)
}

func (s *session) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.String()
}

// fork writes to all.
type fork []interface{ Write([]byte) (int, error) }

func (f fork) Write(p []byte) (int, error) {
	for _, w := range f {
		w.Write(p)
	}
	return len(p), nil
}

// tailWriter keeps the end of what is written. A program's standard output and error are written at the same time.
type tailWriter struct {
	mu    sync.Mutex
	limit int
	text  []byte
}

func (w *tailWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.text = append(w.text, p...)
	if len(w.text) > 2*w.limit {
		w.text = append(w.text[:0], w.text[len(w.text)-w.limit:]...)
	}
	return len(p), nil
}

func (w *tailWriter) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return tail(string(w.text), w.limit)
}

// limitedBuffer keeps the beginning, and remembers that there was more.
type limitedBuffer struct {
	bytes.Buffer
	limit int
	over  bool
}

func (b *limitedBuffer) Write(p []byte) (int, error) {
	if b.Len()+len(p) > b.limit {
		b.over = true
		b.Buffer.Write(p[:b.limit-b.Len()])
		return len(p), nil
	}
	return b.Buffer.Write(p)
}

// lineWatcher tells each phase that kubeadm announces ("[certs] …") once, as it begins.
type lineWatcher struct {
	mu   sync.Mutex
	tell func(string)
	rest []byte
	last string
}

func (w *lineWatcher) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rest = append(w.rest, p...)
	for {
		at := bytes.IndexByte(w.rest, '\n')
		if at < 0 {
			break
		}
		w.line(string(w.rest[:at]))
		w.rest = w.rest[at+1:]
	}
	if len(w.rest) > 4096 {
		w.rest = nil
	}
	return len(p), nil
}

func (w *lineWatcher) line(line string) {
	rest, ok := strings.CutPrefix(line, "[")
	phase, _, closed := strings.Cut(rest, "]")
	if !ok || !closed || len(phase) > 32 || strings.Contains(phase, " ") || phase == w.last || w.tell == nil {
		return
	}
	w.last = phase
	w.tell(phase)
}
