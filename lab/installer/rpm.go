package installer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// system is a root directory in which programs are run.
type system struct {
	root string   // "/" or a directory to chroot into
	env  []string // beside PATH
}

const systemPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// command prepares a program of the system; name is an absolute path in it.
func (s system) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append([]string{"PATH=" + systemPath, "HOME=/root", "TERM=linux", "LC_ALL=C"}, s.env...)
	cmd.Dir = "/"
	if s.root != "/" {
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: s.root}
		cmd.Err = nil // LookPath has looked outside
		cmd.Path = name
	}
	return cmd
}

// run runs a program of the system; what it complained of is in the error.
func (s system) run(ctx context.Context, name string, args ...string) (string, error) {
	return output(s.command(ctx, name, args...))
}

func output(cmd *exec.Cmd) (string, error) {
	var out, complaint strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		said := strings.TrimSpace(complaint.String())
		if said == "" {
			said = strings.TrimSpace(out.String())
		}
		return out.String(), fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, tail(said, 5))
	}
	return out.String(), nil
}

func tail(text string, lines int) string {
	all := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// path is where a path of the system lies.
func (s system) path(name string) string { return filepath.Join(s.root, name) }

const rpmProgram = "/usr/bin/rpm"

// provided asks the package database.
func (s system) provided(ctx context.Context) func(rpmEntry) bool {
	known := map[string]bool{}
	return func(want rpmEntry) bool {
		key := want.String()
		has, asked := known[key]
		if !asked {
			out, err := s.run(ctx, rpmProgram, "--query", "--whatprovides", "--queryformat", `[%{PROVIDENAME}\t%{PROVIDEVERSION}\n]`, want.Name)
			if err == nil && strings.HasPrefix(want.Name, "/") {
				has = true
			}
			for line := range strings.Lines(out) {
				name, version, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
				if err == nil && name == want.Name && satisfies(provided(name, version), want) {
					has = true
				}
			}
			known[key] = has
		}
		return has
	}
}

func provided(name, version string) rpmEntry {
	e := rpmEntry{Name: name}
	if version == "" {
		return e
	}
	e.Flags = "EQ"
	if epoch, rest, ok := strings.Cut(version, ":"); ok {
		e.Epoch, version = epoch, rest
	}
	e.Ver, e.Rel, _ = strings.Cut(version, "-")
	return e
}

// installed is the newest version of a package in the database; nil if it is not installed.
func (s system) installed(ctx context.Context, name string) (*pack, error) {
	out, err := s.run(ctx, rpmProgram, "--query", "--queryformat", `%{NAME}\t%{EPOCHNUM}\t%{VERSION}\t%{RELEASE}\t%{ARCH}\n`, name)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var best *pack
	for line := range strings.Lines(out) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(f) != 5 {
			return nil, fmt.Errorf("rpm --query %s: %q", name, line)
		}
		p := &pack{Name: f[0], Arch: f[4]}
		p.Version.Epoch, p.Version.Ver, p.Version.Rel = f[1], f[2], f[3]
		if best == nil || p.newer(best) {
			best = p
		}
	}
	return best, nil
}

// install has rpm install files, which lie in the directory dir of the system, in one transaction. each is
// told every package as rpm begins it.
func (s system) install(ctx context.Context, dir string, files []string, each func(name string)) error {
	// Debian's rpm wants to be told that this is no Debian system.
	args := []string{"--upgrade", "--verbose", "--force-debian"}
	for _, f := range files {
		args = append(args, filepath.Join(dir, filepath.Base(f)))
	}
	cmd := s.command(ctx, rpmProgram, args...)
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("rpm: %w", err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if text := lines.Text(); !strings.HasSuffix(text, "...") && !strings.ContainsAny(text, " ") && text != "" {
			each(text)
		}
	}
	io.Copy(io.Discard, out) // after a line that is too long
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("rpm: %w: %s", err, tail(complaint.String(), 10))
	}
	return nil
}

// fetchAndInstall downloads packages and installs them.
func (s system) fetchAndInstall(ctx context.Context, packs []*pack, check func(p *pack, path string) error, each func(name string)) error {
	const dir = "/var/cache/rackstrap-lab"
	if err := os.MkdirAll(s.path(dir), 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(s.path(dir))
	var files []string
	for _, p := range packs {
		file, err := p.download(ctx, s.path(dir))
		if err != nil {
			return err
		}
		if err := check(p, filepath.Join(dir, filepath.Base(file))); err != nil {
			return err
		}
		files = append(files, file)
	}
	return s.install(ctx, dir, files, each)
}
