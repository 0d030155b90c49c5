package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"time"
)

// tailLines is how much of a log an error shows.
const tailLines = 25

// detachKey leaves a console: Ctrl-], as with telnet and virsh.
const detachKey = 0x1d

// SerialLog is the path of the log of everything that the machine has printed on its serial port since its
// latest power-on; empty before the first.
func (l *Lab) SerialLog(name string) string {
	s, err := readState(l.statePath())
	if err != nil || s == nil {
		return ""
	}
	m, err := s.machine(name)
	if err != nil {
		return ""
	}
	return m.SerialLog
}

// WaitSerial waits until the pattern matches what the machine has printed since its latest power-on or
// Reset, without terminal escapes and carriage returns, and returns the match and its groups. It ends with
// the context, or when the machine goes off; the error then holds the end of the log.
func (l *Lab) WaitSerial(ctx context.Context, name string, pattern *regexp.Regexp) (match []string, err error) {
	s, err := l.load()
	if err != nil {
		return nil, err
	}
	m, err := s.machine(name)
	if err != nil {
		return nil, err
	}
	if m.SerialLog == "" {
		return nil, fmt.Errorf("lab: %s: %w", name, ErrOff)
	}
	match, err = waitLog(ctx, m.SerialLog, m.SerialFrom, pattern, m.Process.alive)
	if err != nil {
		return nil, fmt.Errorf("lab: %s: serial port: %w", name, err)
	}
	return match, nil
}

// WaitLog waits for a pattern in a log that an appliance writes (see Start), as WaitSerial does.
func (l *Lab) WaitLog(ctx context.Context, path string, pattern *regexp.Regexp) (match []string, err error) {
	s, err := l.load()
	if err != nil {
		return nil, err
	}
	writing := func() bool { return true }
	for _, a := range s.Appliances {
		if a.Log == path {
			writing = a.Process.alive
		}
	}
	return waitLog(ctx, path, 0, pattern, writing)
}

// waitLog reads the log again whenever it has grown. A writer that has ended gets one last look.
func waitLog(ctx context.Context, path string, from int64, pattern *regexp.Regexp, writing func() bool) ([]string, error) {
	started := time.Now()
	var text string
	var match []string
	seen := int64(-1)
	look := func() error {
		info, err := os.Stat(path)
		if errors.Is(err, os.ErrNotExist) {
			return nil // not opened yet
		}
		if err != nil || info.Size() == seen {
			return err
		}
		seen = info.Size()
		raw, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		text = plain(raw[min(from, int64(len(raw))):])
		match = pattern.FindStringSubmatch(text)
		return nil
	}
	err := poll(ctx, func() (bool, error) {
		ended := !writing()
		if err := look(); err != nil || match != nil {
			return true, err
		}
		if ended {
			return false, errors.New("the writer has ended")
		}
		return false, nil
	})
	if match != nil {
		return match, nil
	}
	return nil, fmt.Errorf("no match for %q after %s: %w; %s ends with:\n%s",
		pattern, time.Since(started).Round(time.Millisecond), err, path, tail(text, tailLines))
}

// escapes are the terminal sequences that firmware, GRUB and iPXE paint with (ECMA-48 CSI, and two-byte ones).
var escapes = regexp.MustCompile(`\x1b(\[[0-?]*[ -/]*[@-~]|[()][0-9A-Za-z]|[=>78cDEHM])`)

// plain is the text of a serial log.
func plain(raw []byte) string {
	raw = escapes.ReplaceAll(raw, nil)
	raw = bytes.ReplaceAll(raw, []byte("\r"), nil)
	return strings.ToValidUTF8(string(bytes.ReplaceAll(raw, []byte{0}, nil)), "?")
}

// tail is the last lines of a text that hold anything.
func tail(text string, lines int) string {
	var kept []string
	for _, line := range strings.Split(text, "\n") {
		if strings.TrimSpace(line) != "" {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept[max(0, len(kept)-lines):], "\n")
}

// lastLine reads the end of a serial log alone, for Status.
func lastLine(path string) string {
	file, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer file.Close()
	const end = 4096
	if info, err := file.Stat(); err == nil && info.Size() > end {
		file.Seek(-end, io.SeekEnd)
	}
	raw, _ := io.ReadAll(file)
	return strings.TrimSpace(tail(plain(raw), 1))
}

// Console connects in and out to the machine's serial port until in ends or holds Ctrl-], the machine goes
// off, or the context ends. A terminal must be in raw mode. QEMU serves one console at a time. The goroutine
// that reads in ends with in, at the latest after the next byte.
func (l *Lab) Console(ctx context.Context, name string, in io.Reader, out io.Writer) error {
	if _, err := l.running(name); err != nil {
		return err
	}
	conn, err := dialUnix(ctx, l.machineDir(name), serialSocket)
	if err != nil {
		return fmt.Errorf("lab: %s: console: %w", name, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()

	left := make(chan struct{})
	go func() {
		defer conn.Close()
		defer close(left) // before the connection ends, which ends the copying
		buffer := make([]byte, 256)
		for {
			n, err := in.Read(buffer)
			typed, _, detach := bytes.Cut(buffer[:n], []byte{detachKey})
			if _, werr := conn.Write(typed); werr != nil || err != nil || detach {
				return
			}
		}
	}()
	_, err = io.Copy(out, conn)
	select {
	case <-left:
		return nil
	default:
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}
