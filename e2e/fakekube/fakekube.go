// Package fakekube is a stand-in for kubeadm, kubectl, ctr, crictl, chronyc and containerd: one program that acts by
// the name it is called by, and one fake cluster behind it, a file. It lets tests try in milliseconds what takes real
// Kubernetes minutes, and count what must never happen (State.Violations).
//
// It is strict where the real programs are: command lines, configuration (v1beta3), tokens and their expiry, the
// certificate key, the pinned CA, leftovers, names that are taken, etcd's quorum. Its answers are those of kubeadm and
// kubectl 1.28.2 as far as an agent reads them: testdata/recorded.txt holds what the real ones said, and a test compares.
//
// A host is a directory (Install): its files, and the programs as links to the test's own binary, whose TestMain has to
// begin with
//
//	if fakekube.Called() {
//		fakekube.Main()
//	}
package fakekube

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// programs are the names under which the stand-in is called.
var programs = []string{"kubeadm", "kubectl", "ctr", "crictl", "chronyc", "containerd"}

// Host is one machine, as its programs find it in /etc/fakekube.json below its root.
type Host struct {
	Cluster string        `json:"cluster"` // path of the cluster's file
	Name    string        `json:"name"`
	IP      string        `json:"ip"`
	Pace    time.Duration `json:"pace"`   // of every phase that takes its time
	Slow    time.Duration `json:"slow"`   // from a join to Ready
	Images  bool          `json:"images"` // the images of kubeadm are there, or a registry is in reach
	Root    string        `json:"-"`
}

const hostFile = "etc/fakekube.json"

// Install makes a host below root, or resets its programs.
func Install(root string, h Host) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for _, dir := range []string{"etc", "usr/bin"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	for _, name := range programs {
		link := filepath.Join(root, "usr/bin", name)
		os.Remove(link)
		if err := os.Symlink(self, link); err != nil {
			return err
		}
	}
	text, err := json.Marshal(h)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(root, hostFile), text, 0o644)
}

// Called tells whether this process is one of the programs.
func Called() bool {
	return slices.Contains(programs, filepath.Base(os.Args[0])) && strings.Contains(os.Args[0], "/usr/bin/")
}

// Fault is something that the next call of a program does instead of its work.
type Fault struct {
	Command string `json:"command"` // beginning of the command line: "kubeadm join"
	// hang, garbage, pretend (exit 0 without doing it), crash (killed half-way), fail, leak, orphan (its parent is killed
	// half-way), unmarked (its parent is killed before the last phase of a control plane's join), late-orphan (its parent
	// is killed when all is done and nothing is said yet)
	Kind string `json:"kind"`
}

// PrivateKey is what a leak prints as one.
const PrivateKey = "MIIEowIBAAKCAQEAtFv"

const faultsFile = "etc/fakekube-faults.json"

// Plant makes the next calls of a host fail, each fault once.
func Plant(root string, faults ...Fault) error {
	text, err := json.Marshal(faults)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(root, faultsFile), text, 0o644)
}

func (c *call) fault() string {
	path := c.at(faultsFile)
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	var faults []Fault
	if err := json.Unmarshal(text, &faults); err != nil {
		return ""
	}
	line := c.name + " " + strings.Join(c.args, " ")
	for i, f := range faults {
		if strings.HasPrefix(line, f.Command) {
			Plant(c.host.Root, slices.Delete(faults, i, i+1)...)
			return f.Kind
		}
	}
	return ""
}

// call is one call of one program.
type call struct {
	host     Host
	name     string
	args     []string
	file     *File
	out, err io.Writer
	crash    bool // to be killed half-way
	orphan   bool // its parent is
	unmarked bool // its parent is, before the last phase of a control plane's join
}

// exit ends a program with a status, after its message went to standard error.
type exit struct {
	code int
	text string
}

func (e *exit) Error() string { return e.text }

func failf(format string, args ...any) error { return &exit{1, fmt.Sprintf(format, args...)} }

// Main acts as the program that the process was called as, and does not return. It leaves without os.Exit: of a binary
// built with -race that takes a second, and tests call hundreds of programs.
func Main() { syscall.Exit(act()) }

func act() int {
	name := filepath.Base(os.Args[0])
	root := filepath.Dir(filepath.Dir(filepath.Dir(os.Args[0])))
	c := &call{name: name, args: os.Args[1:], out: os.Stdout, err: os.Stderr}
	text, err := os.ReadFile(filepath.Join(root, hostFile))
	if err == nil {
		err = json.Unmarshal(text, &c.host)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "fakekube:", err)
		return 99
	}
	c.host.Root = root
	c.file = Open(c.host.Cluster)
	if err := c.file.Update(func(s *State) error { s.Hosts[c.host.Name] = c.host.record(s.Hosts[c.host.Name]); return nil }); err != nil {
		fmt.Fprintln(os.Stderr, "fakekube:", err)
		return 99
	}
	switch c.fault() {
	case "hang":
		time.Sleep(time.Hour)
	case "garbage":
		fmt.Fprintf(c.out, "\x1b[2J\x00\xff\xfe{{{ %s\n", strings.Repeat("garbage ", 2000))
		return 1
	case "pretend":
		fmt.Fprintln(c.out, "[preflight] Running pre-flight checks")
		return 0
	case "fail":
		fmt.Fprintln(c.err, "error execution phase kubelet-start: something else failed")
		return 1
	case "leak": // all that it knows goes into the failure
		for _, arg := range c.args {
			if text, err := os.ReadFile(arg); err == nil {
				fmt.Fprintf(c.out, "%s\n", text)
			}
		}
		fmt.Fprintf(c.err, "-----BEGIN RSA PRIVATE KEY-----\n%s\n-----END RSA PRIVATE KEY-----\n", PrivateKey)
		fmt.Fprintln(c.err, "error execution phase kubelet-start: something failed, with all its secrets")
		return 1
	case "crash":
		c.crash = true
	case "orphan":
		if c.orphan = name == "kubeadm" && (c.args[0] == "init" || c.args[0] == "join"); !c.orphan { // the others have no half
			killParent()
		}
	case "unmarked":
		c.unmarked = true
	case "late-orphan":
		c.out = io.Discard
		defer killParent()
	}
	run := map[string]func(*call) error{"kubeadm": kubeadm, "kubectl": kubectl, "ctr": ctr, "crictl": crictl,
		"chronyc": chronyc, "containerd": containerd}[name]
	err = run(c)
	var status *exit
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		if status.text != "" {
			fmt.Fprintln(c.err, status.text)
		}
		if name == "kubeadm" {
			fmt.Fprintln(c.err, "To see the stack trace of this error execute with --v=5 or higher")
		}
		return status.code
	}
	fmt.Fprintln(c.err, "fakekube:", err)
	return 98
}

// at is a path on the host.
func (c *call) at(path string) string { return filepath.Join(c.host.Root, path) }

func (c *call) has(path string) bool { return there(c.at(path)) }

func there(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// write makes a file of the host.
func (c *call) write(path, text string) error {
	if err := os.MkdirAll(filepath.Dir(c.at(path)), 0o755); err != nil {
		return err
	}
	return os.WriteFile(c.at(path), []byte(text), 0o600)
}

func (c *call) say(format string, args ...any) { fmt.Fprintf(c.out, format+"\n", args...) }

// pace takes the time of a phase; a crash happens here.
func (c *call) pace() {
	time.Sleep(c.host.Pace)
	if c.orphan {
		killParent()
	}
	if c.crash {
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}

// killParent kills the agent that called. It has this process killed with it; should it not, that is not waited for.
func killParent() {
	syscall.Kill(os.Getppid(), syscall.SIGKILL)
	time.Sleep(5 * time.Second)
}

// flags takes a command line apart: words, and flags with their values. Every flag must be known, as with the real
// ones; those in single take no value.
func (c *call) flags(args []string, known, single []string) (words []string, values map[string]string, err error) {
	values = map[string]string{}
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if arg == "--" {
			return append(words, args[i:]...), values, nil
		}
		if !strings.HasPrefix(arg, "-") || arg == "-" {
			words = append(words, arg)
			continue
		}
		name, value, given := strings.Cut(arg, "=")
		switch {
		case slices.Contains(single, name):
			if !given {
				value = "true"
			}
		case slices.Contains(known, name):
			if !given {
				if i++; i == len(args) {
					return nil, nil, failf("flag needs an argument: %s", name)
				}
				value = args[i]
			}
		default:
			return nil, nil, failf("unknown flag: %s", name)
		}
		values[name] = value
	}
	return words, values, nil
}
