package kube

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"time"
)

//go:embed pause/main.go
var pauseSource string

//go:embed web/main.go
var webSource string

// kubernetesToolchain builds Kubernetes: it is the Go of its time. Built with Go 1.25 or later, kubeadm's
// preflight check HTTPProxyCIDR fails ("invalid IP-literal"): it writes IPv4 addresses in brackets, which the
// newer net/url refuses.
const kubernetesToolchain = "go1.21.13"

// module is one Go module with the programs that are built from it.
type module struct {
	path, version string
	toolchain     string // empty: the installed Go
	goLine        string // of the go.mod that asks for it
	also          []string
	sums          string // go.sum lines that the checksum database does not have
	ldflags       string
	cgo           bool
	programs      []program
}

// program is one main package of a module.
type program struct {
	name, pkg string
	source    string // of a program of our own, in place of pkg
}

// modules are built in this order: what a node needs first, first.
var modules = []module{
	{
		path: "k8s.io/kubernetes", version: Version, toolchain: kubernetesToolchain,
		ldflags: "-X k8s.io/component-base/version.gitVersion=" + Version +
			" -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=28",
		programs: []program{
			{name: "kubeadm", pkg: "k8s.io/kubernetes/cmd/kubeadm"},
			{name: "kubectl", pkg: "k8s.io/kubernetes/cmd/kubectl"},
			{name: "kubelet", pkg: "k8s.io/kubernetes/cmd/kubelet"},
			{name: "kube-proxy", pkg: "k8s.io/kubernetes/cmd/kube-proxy"},
			{name: "kube-apiserver", pkg: "k8s.io/kubernetes/cmd/kube-apiserver"},
			{name: "kube-controller-manager", pkg: "k8s.io/kubernetes/cmd/kube-controller-manager"},
			{name: "kube-scheduler", pkg: "k8s.io/kubernetes/cmd/kube-scheduler"},
		},
	},
	{
		// CRI v1 is what kubeadm 1.28, containerd 1.6 and this release have in common.
		path: "sigs.k8s.io/cri-tools", version: CrictlVersion, goLine: "1.24.0",
		ldflags:  "-X sigs.k8s.io/cri-tools/pkg/version.Version=" + CrictlVersion,
		programs: []program{{name: "crictl", pkg: "sigs.k8s.io/cri-tools/cmd/crictl"}},
	},
	{
		path: "go.etcd.io/etcd/server/v3", version: EtcdVersion, goLine: "1.20",
		also: []string{"go.etcd.io/etcd/etcdctl/v3 " + EtcdVersion},
		programs: []program{
			{name: "etcd", pkg: "go.etcd.io/etcd/server/v3"},
			{name: "etcdctl", pkg: "go.etcd.io/etcd/etcdctl/v3"},
		},
	},
	{
		path: "github.com/coredns/coredns", version: CoreDNSVersion, goLine: "1.20",
		programs: []program{{name: "coredns", pkg: "github.com/coredns/coredns"}},
	},
	{
		// With cgo: its UDP backend, which is always linked in, is C. The sums are those of the module as it was
		// when this was written; not every checksum database knows it.
		path: "github.com/flannel-io/flannel", version: FlannelVersion, toolchain: kubernetesToolchain, goLine: "1.20",
		sums: "github.com/flannel-io/flannel v0.22.0 h1:Ib0+Spsz5c0hBiYc7mnn3vD0ATL/EtQ781hJ7+RbWSY=\n" +
			"github.com/flannel-io/flannel v0.22.0/go.mod h1:hIJovSDgmgiIJeSdtl0f5JO1ZxvJ75fKRAFdoIjSOZE=\n",
		ldflags:  "-extldflags=-static -X github.com/flannel-io/flannel/pkg/version.Version=" + FlannelVersion,
		cgo:      true,
		programs: []program{{name: "flanneld", pkg: "github.com/flannel-io/flannel"}},
	},
	{
		path: "github.com/containernetworking/plugins", version: cniPluginsVersion, goLine: "1.20",
		programs: []program{{name: "flannel", pkg: "github.com/containernetworking/plugins/plugins/meta/flannel"}},
	},
	{
		programs: []program{{name: "pause", source: pauseSource}, {name: "web", source: webSource}},
	},
}

// buildRevision is part of every program's key: raise it when the way they are built changes.
const buildRevision = "1"

// place is where a program lies in the cache.
func (m module) place(p program, dir string) string {
	version := m.version
	if version == "" {
		version = "own"
	}
	k := key(buildRevision, m.path, m.version, m.toolchain, m.goLine, strings.Join(m.also, "\n"), m.sums, m.ldflags,
		fmt.Sprint(m.cgo), p.pkg, p.source)
	return filepath.Join(dir, "programs", p.name+"-"+version+"-"+k, p.name)
}

// Build finds the programs in the cache directory (empty: DefaultCacheDir), or builds those that are missing,
// one after the other, and tells the log of each. It needs Go, a C compiler, and the module proxy that the
// environment names. What was built before an interruption is kept. Processes that build at the same time wait
// for each other.
func Build(ctx context.Context, cacheDir string, log *slog.Logger) (Binaries, error) {
	dir := root(cacheDir)
	found := Binaries{paths: map[string]string{}}
	missing := 0
	for _, m := range modules {
		for _, p := range m.programs {
			path := m.place(p, dir)
			found.paths[p.name] = path
			if !exists(path) {
				missing++
			}
		}
	}
	if missing == 0 {
		return found, nil
	}
	err := exclusively(ctx, dir, log, func() error {
		log.Info("building Kubernetes from its Go modules: ten minutes on two cores the first time",
			"programs", missing, "cache", dir)
		started := time.Now()
		for _, m := range modules {
			if err := m.build(ctx, dir, log); err != nil {
				return err
			}
		}
		log.Info("Kubernetes is built", "took", time.Since(started).Round(time.Second))
		return nil
	})
	if err != nil {
		return Binaries{}, fmt.Errorf("kube: %w", err)
	}
	return found, nil
}

// build makes the programs of the module that are missing, each under a temporary name first.
func (m module) build(ctx context.Context, dir string, log *slog.Logger) error {
	var work string
	for _, p := range m.programs {
		path := m.place(p, dir)
		if exists(path) {
			continue
		}
		if work == "" {
			var err error
			if work, err = os.MkdirTemp(dir, ".build-*"); err != nil {
				return err
			}
			defer os.RemoveAll(work)
			if err := m.prepare(ctx, work); err != nil {
				return fmt.Errorf("%s@%s: %w", m.path, m.version, err)
			}
		}
		log.Info("building", "program", p.name, "version", m.version)
		started := time.Now()
		made := filepath.Join(work, "made-"+p.name)
		if err := m.compile(ctx, p, work, made); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.Rename(made, path); err != nil {
			return err
		}
		log.Info("built", "program", p.name, "took", time.Since(started).Round(time.Second))
	}
	return nil
}

// prepare lays the go.mod that asks for the module.
func (m module) prepare(ctx context.Context, work string) error {
	gomod := fmt.Sprintf("module labbuild\n\ngo %s\n", m.goLine)
	switch m.path {
	case "": // our own programs import nothing
		gomod = "module labbuild\n\ngo 1.21\n"
	case "k8s.io/kubernetes":
		own, err := m.ownGoMod(ctx, work)
		if err != nil {
			return err
		}
		gomod = kubernetesGoMod(own, m.version)
	default:
		for _, require := range append([]string{m.path + " " + m.version}, m.also...) {
			gomod += "\nrequire " + require + "\n"
		}
	}
	if err := os.WriteFile(filepath.Join(work, "go.sum"), []byte(m.sums), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(work, "go.mod"), []byte(gomod), 0o644)
}

// ownGoMod is the module's own go.mod.
func (m module) ownGoMod(ctx context.Context, work string) ([]byte, error) {
	out, err := m.run(ctx, work, "mod", "download", "-json", m.path+"@"+m.version)
	if err != nil {
		return nil, err
	}
	var downloaded struct{ GoMod string }
	if err := json.Unmarshal(out, &downloaded); err != nil {
		return nil, fmt.Errorf("go mod download: %v", err)
	}
	return os.ReadFile(downloaded.GoMod)
}

var (
	moduleLine = regexp.MustCompile(`(?m)^module .*$`)
	staging    = regexp.MustCompile(`=> \./staging/src/(k8s\.io/\S+)`)
)

// kubernetesGoMod turns Kubernetes' own go.mod into one that builds it from outside its repository: that points
// at the staging directories k8s.io/api and so on, which are published as modules v0.28.2.
func kubernetesGoMod(own []byte, version string) string {
	text := moduleLine.ReplaceAllString(string(own), "module labbuild\n\nrequire k8s.io/kubernetes "+version)
	return staging.ReplaceAllString(text, "=> $1 v0"+strings.TrimPrefix(version, "v1"))
}

func (m module) compile(ctx context.Context, p program, work, to string) error {
	pkg := p.pkg
	if p.source != "" {
		if err := os.MkdirAll(filepath.Join(work, p.name), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(work, p.name, "main.go"), []byte(p.source), 0o644); err != nil {
			return err
		}
		pkg = "./" + p.name
	}
	args := []string{"build", "-p", fmt.Sprint(min(runtime.NumCPU(), 4)), "-ldflags", "-s -w " + m.ldflags, "-o", to}
	if m.cgo {
		args = append(args, "-tags", "netgo,osusergo")
	}
	_, err := m.run(ctx, work, append(args, pkg)...)
	return err
}

// run runs the go command in a process group of its own, which ends with the context: the compilers too.
func (m module) run(ctx context.Context, work string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = work
	cmd.Env = m.environment(os.Environ())
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 10 * time.Second
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err == nil {
		return out, nil
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if errors.Is(err, exec.ErrNotFound) {
		return nil, errors.New("the lab builds Kubernetes with Go, which is not installed here")
	}
	return nil, fmt.Errorf("go %s: %v: %s", args[0], err, lastLines(said.String(), 12))
}

// environment is the caller's, with its proxies and caches, but with our own way to build.
func (m module) environment(caller []string) []string {
	var env []string
	for _, entry := range caller {
		name, _, _ := strings.Cut(entry, "=")
		switch {
		case strings.HasPrefix(name, "GOTOOLCHAIN"): // also the marks of a go command that has switched already
		case name == "GOFLAGS", name == "GOWORK", name == "GOOS", name == "GOARCH", name == "CGO_ENABLED", name == "GOROOT":
		default:
			env = append(env, entry)
		}
	}
	toolchain, cgo := m.toolchain, "0"
	if toolchain == "" {
		toolchain = "auto"
	}
	if m.cgo {
		cgo = "1"
	}
	return append(env, "GOTOOLCHAIN="+toolchain, "GOFLAGS=-buildvcs=false -trimpath -mod=mod", "GOWORK=off",
		"GO111MODULE=on", "GOOS=linux", "GOARCH="+runtime.GOARCH, "CGO_ENABLED="+cgo)
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
