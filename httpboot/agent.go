package httpboot

import (
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/labstack/echo/v4"

	"rackstrap/media"
)

// agentMachines are the architectures that nodes may have, by Go's name.
var agentMachines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}

// Agents are the programs that installed machines run, by architecture. Each is opened and hashed once: what is
// served is what the kickstarts' checksums were made of, also if the file is replaced by an upgrade.
type Agents struct {
	dir      string // "" for none
	programs map[string]*program
}

type program struct {
	f       *os.File
	size    int64
	modTime time.Time
	sha256  string // lower-case hex
	static  bool
}

// OpenAgents opens what nodes can be given: the program that runs now, for its own architecture, and below dir
// ("" for none) linux-amd64 and linux-arm64, which take precedence. A file there that is no program of its
// architecture is an error; one that is not there is not.
func OpenAgents(dir string) (*Agents, error) {
	a := &Agents{dir: dir, programs: map[string]*program{}}
	for arch, machine := range agentMachines {
		if dir != "" {
			p, err := openProgram(filepath.Join(dir, "linux-"+arch), machine)
			if err == nil {
				a.programs[arch] = p
				continue
			}
			if !errors.Is(err, fs.ErrNotExist) {
				a.Close()
				return nil, fmt.Errorf("server.agents_dir: %w", err)
			}
		}
		if arch != runtime.GOARCH {
			continue
		}
		p, err := openProgram("/proc/self/exe", machine) // os.Executable's path may hold another version by now
		if err != nil {
			a.Close()
			return nil, fmt.Errorf("own program: %w", err)
		}
		a.programs[arch] = p
	}
	return a, nil
}

func openProgram(path string, machine elf.Machine) (_ *program, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	header, err := elf.NewFile(f)
	if err != nil {
		return nil, fmt.Errorf("%s is not a program: %w", path, err)
	}
	if header.Machine != machine {
		return nil, fmt.Errorf("%s is a program for %v, not for %v", path, header.Machine, machine)
	}
	sum := sha256.New()
	size, err := io.Copy(sum, io.NewSectionReader(f, 0, info.Size()))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &program{f: f, size: size, modTime: info.ModTime(), sha256: hex.EncodeToString(sum.Sum(nil)),
		static: !slices.ContainsFunc(header.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })}, nil
}

// Architectures lists what there is a program for, sorted.
func (a *Agents) Architectures() []string { return slices.Sorted(maps.Keys(a.programs)) }

// SHA256 is the checksum of an architecture's program, in hex; "" if there is none.
func (a *Agents) SHA256(arch string) string {
	if p, ok := a.programs[arch]; ok {
		return p.sha256
	}
	return ""
}

// Dynamic lists the architectures whose program needs libraries of the system that it was built on: it may not
// start on a node.
func (a *Agents) Dynamic() (archs []string) {
	for _, arch := range a.Architectures() {
		if !a.programs[arch].static {
			archs = append(archs, arch)
		}
	}
	return archs
}

// Close closes the programs: nobody may be sent one any more.
func (a *Agents) Close() error {
	var errs []error
	for _, p := range a.programs {
		errs = append(errs, p.f.Close())
	}
	return errors.Join(errs...)
}

// content reads a program from its start. Closing it leaves the file open for the others.
type content struct {
	*io.SectionReader
	f *os.File
}

func (c content) Close() error { return nil }

// Region implements media.Content.
func (c content) Region() (*os.File, int64, int64, bool) { return c.f, 0, c.Size(), true }

var _ media.Content = content{}

// missing says why there is no program for an architecture.
func (a *Agents) missing(arch string) string {
	if _, known := agentMachines[arch]; !known {
		return fmt.Sprintf("no node can be of the architecture %.20q: amd64 or arm64", arch)
	}
	if a.dir == "" {
		return fmt.Sprintf("this appliance is %s itself and has no agent for %s: set server.agents_dir, and put the program there as linux-%s", runtime.GOARCH, arch, arch)
	}
	return fmt.Sprintf("server.agents_dir holds no linux-%s", arch)
}

// agent sends the program of one architecture. It holds no secret: whoever asks may have it.
func (s *Server) agent(c echo.Context) error {
	s.o.Rack.SignOfInstaller(client(c))
	arch := c.Param("arch")
	if s.o.Agents == nil {
		return &absent{"this appliance has no agents"}
	}
	p, ok := s.o.Agents.programs[arch]
	if !ok {
		return &absent{s.o.Agents.missing(arch)}
	}
	name := "linux-" + arch
	if mac, known := s.o.Rack.MACByIP(client(c)); known {
		defer s.delivery(c, "agent", mac, "agent "+name, p.size)()
	}
	return sendFile(c, file{content: content{io.NewSectionReader(p.f, 0, p.size), p.f}, name: name, modTime: p.modTime, etag: `"` + p.sha256 + `"`})
}
