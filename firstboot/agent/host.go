package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"rackstrap/firstboot/api"
	"rackstrap/internal/plain"
)

// HostOptions are the dependencies of a Host.
type HostOptions struct {
	Config  api.Config
	Root    string // where the host's files and programs begin; "" is /
	Version string // of the agent
	Log     *slog.Logger
	Now     func() time.Time
	Pause   time.Duration // between two looks at something that is awaited; 0: two seconds
}

// Host is the machine that the agent runs on: kubeadm, kubectl and containerd.
type Host struct {
	o     HostOptions
	timed sync.Once // the clock was waited for
}

// NewHost makes a Host; nothing is touched before Do.
func NewHost(o HostOptions) *Host { return &Host{o: o} }

func (h *Host) pause() time.Duration { return cmp.Or(h.o.Pause, 2*time.Second) }

// path is a file of the host.
func (h *Host) path(path string) string { return filepath.Join("/", h.o.Root, path) }

// own is a file in the agent's state directory.
func (h *Host) own(name string) string { return filepath.Join(h.o.Config.State, name) }

func (h *Host) redact(text string) string { return redact(text, h.o.Config.Token) }

// failure is how a work ends that did not succeed, in the words of the contract.
type failure struct {
	err       error
	retryable bool
	auth      bool
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

func fatal(err error) error            { return &failure{err: err} }
func fatalf(f string, a ...any) error  { return fatal(fmt.Errorf(f, a...)) }
func retry(err error) error            { return &failure{err: err, retryable: true} }
func retryf(f string, a ...any) error  { return retry(fmt.Errorf(f, a...)) }
func unauthorized(err error) error     { return &failure{err: err, retryable: true, auth: true} }
func expired(ctx context.Context) bool { return errors.Is(ctx.Err(), context.DeadlineExceeded) }

// Do carries out one work of the contract; there is no other.
func (h *Host) Do(ctx context.Context, w api.Work, tell func(text string, percent int)) Outcome {
	s := newSession(func(phase string) { tell("kubeadm: "+phase, 0) })
	job := &job{Host: h, session: s, work: w, tell: tell}
	var result api.Result
	err := h.prepareRun()
	if err == nil {
		result, err = job.do(ctx)
	}
	h.clearRun()
	output := h.redact(s.String())
	if looks(w.Action) { // it says what it saw, or in a line why it saw nothing; logs of it would displace those of joins
		output = ""
	}
	result.Output = tail(output, api.MaxOutput)
	result.OK = err == nil
	if err != nil {
		var f *failure
		if !errors.As(err, &f) {
			f = &failure{err: err, retryable: true}
		}
		result.Error, result.Retryable, result.AuthError = plain.Line(h.redact(err.Error()), 1000), f.retryable, f.auth
		if expired(ctx) {
			result.Error = fmt.Sprintf("%s did not end within %d s: %s", w.Action, w.Seconds, result.Error)
		}
		return Outcome{Result: result, Log: output + h.postMortem(w.Action)}
	}
	return Outcome{Result: result}
}

// Import brings in images ahead of the work that needs them.
func (h *Host) Import(ctx context.Context, images []api.Image, tell func(text string, percent int)) error {
	job := &job{Host: h, session: newSession(func(string) {}), work: api.Work{Images: images}, tell: tell}
	if err := job.importImages(ctx); err != nil {
		return errors.New(plain.Line(h.redact(err.Error()), 1000))
	}
	return nil
}

// job is one work under way.
type job struct {
	*Host
	session *session
	work    api.Work
	tell    func(text string, percent int)
}

func (j *job) do(ctx context.Context) (api.Result, error) {
	if err := j.check(); err != nil {
		return api.Result{}, fatal(err)
	}
	if err := j.pointEndpoint(); err != nil {
		return api.Result{}, err
	}
	switch j.work.Action {
	case api.Init:
		return j.initialise(ctx)
	case api.Join, api.JoinControlPlane:
		return j.join(ctx)
	case api.MintToken:
		return j.mintToken(ctx)
	case api.DeleteToken:
		return j.deleteToken(ctx)
	case api.UploadCerts:
		return j.uploadCerts(ctx)
	case api.CheckNode:
		return j.checkNode(ctx)
	case api.ListNodes:
		return j.listNodes(ctx)
	case api.DeleteNode:
		return j.deleteNode(ctx)
	case api.VerifyCluster:
		return j.verify(ctx)
	case api.Kubeconfig:
		return j.kubeconfig()
	case api.Done: // the hosts file was all
		return api.Result{}, nil
	case api.BootNetwork:
		entry, err := j.firmware().BootNetworkOnce()
		if err != nil {
			return api.Result{}, fatal(err)
		}
		return api.Result{BootEntry: entry}, nil
	case api.Reset:
		if err := j.leave(ctx); err != nil {
			return api.Result{}, err
		}
		return api.Result{}, os.RemoveAll(j.own(fileTries))
	}
	return api.Result{}, fatalf("%q is no action of this agent", j.work.Action)
}

// check refuses parameters that could be mistaken for something else on a command line.
func (j *job) check() error {
	w := j.work
	switch {
	case j.o.Config.Role == roleWorker && ofMasters(w.Action):
		return fmt.Errorf("%s is for a control plane, and this machine was installed as a worker: reinstall it", w.Action)
	case w.Node != "" && !nodeName.MatchString(w.Node):
		return fmt.Errorf("%q is no name of a node", w.Node)
	case w.Node == "" && (w.Action == api.CheckNode || w.Action == api.DeleteNode):
		return errors.New("no node is named")
	case (w.Action == api.DeleteToken || w.Action == api.MintToken) && !tokenID.MatchString(w.TokenID):
		return errors.New("the public half of a token has six characters")
	case strings.ContainsAny(w.Description, "\n\r\x00"):
		return errors.New("a description of several lines")
	case w.Action == api.VerifyCluster && (w.Image == "" || len(w.Addresses) == 0):
		return errors.New("no image or no addresses to verify the cluster with")
	case w.KubeadmConfig == "" && (w.Action == api.Init || w.Action == api.Join || w.Action == api.JoinControlPlane || w.Action == api.UploadCerts):
		return errors.New("no configuration for kubeadm")
	}
	return nil
}

// ofMasters tells whether an action is for masters: the agent of a worker does not stay to be one.
func ofMasters(action api.Action) bool {
	switch action {
	case api.Join, api.Reset, api.Done, api.BootNetwork:
		return false
	}
	return true
}

// runDir holds what programs are given as files and what is secret: emptied after every work.
const runDir = "run"

func (h *Host) prepareRun() error {
	h.clearRun()
	return os.MkdirAll(h.own(runDir), 0o700)
}

func (h *Host) clearRun() { os.RemoveAll(h.own(runDir)) }

// file writes a file for a program, mode 0600, and returns its path.
func (h *Host) file(name, text string) (string, error) {
	path := h.own(filepath.Join(runDir, name))
	return path, os.WriteFile(path, []byte(text), 0o600)
}

// awaitClock lets chronyd set the clock, once after the start of the agent and for a minute at most: certificates and
// tokens do not like clocks that jump. A host without chrony, or without a time server, is not held up for good.
func (j *job) awaitClock(ctx context.Context) {
	j.timed.Do(func() {
		j.tell("waiting for the clock", 0)
		bounded, cancel := context.WithTimeout(ctx, 75*time.Second)
		defer cancel()
		_, err := j.run(bounded, j.session, "chronyc", "waitsync", "60", "0.5", "0", "1")
		switch {
		case errors.Is(err, errNotFound):
			j.o.Log.Warn("chronyc is not installed: the clock is taken as it is")
		case err != nil:
			j.o.Log.Warn("the clock is not synchronised", "err", err)
			j.tell("the clock is not synchronised: "+err.Error(), 0)
		}
	})
}

// postMortem is what else may tell why kubeadm failed.
func (h *Host) postMortem(action api.Action) string {
	if action != api.Init && action != api.Join && action != api.JoinControlPlane {
		return ""
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	s := newSession(nil)
	h.run(ctx, s, "crictl", "ps", "-a")
	h.run(ctx, s, "journalctl", "-u", "kubelet", "-n", "200", "--no-pager", "-o", "short-iso")
	return h.redact(s.String())
}
