// Package agent is the program on a node: it calls home after the first boot, does the work that the appliance
// hands out, one thing at a time, and reports how each ended. A worker's agent ends for good once its node is
// Ready; a master's stays, for it mints the tokens of those who join later.
//
// It expects everything to fail: the network, the appliance, the machine's power. What it was given to do lies
// on disk before it begins, a result before it is sent; a work that a restart interrupted is done again, and every
// action begins by examining how far it came. kubeadm dies with the agent that started it.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"rackstrap/firstboot/api"
)

// Machine is what the agent works on: this host (NewHost), or a simulated one.
type Machine interface {
	// Facts gathers what is known of the machine; what cannot be found out stays empty.
	Facts(ctx context.Context) api.Facts
	// Do carries out one work within ctx and never fails but through the result. It tells how far it is.
	Do(ctx context.Context, w api.Work, tell func(text string, percent int)) Outcome
	// Import brings in images ahead of the work that needs them, which tries again what fails.
	Import(ctx context.Context, images []api.Image, tell func(text string, percent int)) error
}

// Outcome is a result, and what the programs printed in full should it be a failure: redacted.
type Outcome struct {
	api.Result
	Log string
}

// Options are the dependencies of Run.
type Options struct {
	Config  api.Config // as ReadConfig returns it
	Machine Machine
	Log     *slog.Logger
	Now     func() time.Time
	Client  *http.Client  // trusts the appliance's CA alone: NewClient
	Pause   time.Duration // first pause after a failed call; 0: one second
	// Show has the console show the fingerprint that the operator has to confirm, "" none; nil: nowhere.
	Show func(fingerprint string)
}

// defaultSeconds is the time of a work that comes without.
const defaultSeconds = 15 * 60

// importing is for how long images are brought in ahead of their time: meanwhile the machine asks for no work.
const importing = 10 * time.Minute

// delivering is how long a worker whose node is Ready tries to say so before it ends.
const delivering = time.Minute

type agent struct {
	Options
	state  *state
	home   *caller
	events *reporter
}

// Run works until its node is Ready (workers: nil), the appliance no longer wants it (*GiveUpError), or ctx ends
// (nil). Only one can run for a state directory.
func Run(ctx context.Context, o Options) error {
	st, err := openState(o.Config.State)
	if err != nil {
		return err
	}
	defer st.close()
	if st.foreign(o.Config.Attempt) {
		o.Log.Info("a new attempt", "attempt", o.Config.Attempt)
		if err := st.forget(o.Config.Attempt); err != nil {
			return err
		}
	}
	if o.Config.Role != roleControlPlane && st.joined() {
		o.Log.Info("this node is Ready since an earlier run: nothing to do")
		return nil
	}
	a := &agent{Options: o, state: st, home: newCaller(o)}
	a.events = newReporter(a.home, o.Log)
	defer a.events.stop()
	err = a.run(ctx)
	var gone *GiveUpError
	switch {
	case errors.As(err, &gone):
		return err
	case ctx.Err() != nil:
		o.Log.Info("stopped", "work under way", st.busy())
		return nil
	}
	return err
}

func (a *agent) run(ctx context.Context) error {
	if err := a.identify(ctx); err != nil {
		return err
	}
	if ended, err := a.resume(ctx); ended || err != nil {
		return err
	}
	meanwhile := a.meanwhile
	for {
		work, err := a.home.awaitWork(ctx, meanwhile)
		if err != nil {
			return err
		}
		meanwhile = nil
		if ended, err := a.serve(ctx, work, false); ended || err != nil {
			return err
		}
	}
}

// meanwhile uses the time that the machine waits.
func (a *agent) meanwhile(ctx context.Context, images []api.Image) {
	bounded, cancel := context.WithTimeout(ctx, importing)
	defer cancel()
	begun := a.Now()
	tell := func(text string, percent int) { a.events.tell(api.PhaseMeanwhile, text, percent) }
	switch err := a.Machine.Import(bounded, images, tell); {
	case err == nil:
		a.Log.Info("the images are there", "took", a.Now().Sub(begun).Round(time.Millisecond))
		tell("the images are there", 100)
	case ctx.Err() == nil:
		a.Log.Warn("images cannot be imported yet: the join will try again", "err", err)
		tell("images cannot be imported yet: the join will try again: "+err.Error(), 0)
	}
}

// identify exchanges the install token, unless an earlier run did. The credential is on disk before its first use:
// once it was used, the install token is void.
func (a *agent) identify(ctx context.Context) error {
	if credential, ok := a.state.credential(); ok {
		a.home.credential = credential
		return nil
	}
	a.Log.Info("calling home", "server", a.Config.Server, "attempt", a.Config.Attempt)
	facts := a.Machine.Facts(ctx)
	credential, err := a.home.exchange(ctx, api.Exchange{Attempt: a.Config.Attempt, MAC: a.Config.MAC, Facts: facts})
	if err != nil {
		return err
	}
	if err := a.state.saveCredential(credential.Credential); err != nil {
		return err
	}
	a.home.credential = credential.Credential
	a.Log.Info("the appliance knows this machine", "name", a.Config.Name, "role", a.Config.Role)
	return nil
}

// resume settles what an earlier run left: a result that was not delivered, or a work that was interrupted.
func (a *agent) resume(ctx context.Context) (ended bool, err error) {
	saved, ok, err := a.state.work()
	if err != nil {
		a.Log.Warn("the record of the last work cannot be read and is dropped", "err", err)
		return false, a.state.dropWork()
	}
	switch {
	case !ok:
		return false, nil
	case saved.Result != nil:
		a.Log.Info("delivering the result of an earlier run", "work", saved.Work.ID, "action", saved.Work.Action)
		return a.deliver(ctx, saved.Work, Outcome{Result: *saved.Result})
	}
	a.Log.Info("an earlier run was interrupted", "work", saved.Work.ID, "action", saved.Work.Action)
	a.events.tell(string(saved.Work.Action), "interrupted by a restart: examining how far it came", 0)
	return a.serve(ctx, saved.Work, true)
}

// serve does one work and delivers its result. ended: the agent has nothing more to do, ever.
func (a *agent) serve(ctx context.Context, w api.Work, resumed bool) (ended bool, err error) {
	limit := time.Duration(w.Seconds) * time.Second
	if limit <= 0 {
		limit = defaultSeconds * time.Second
	}
	log, level := a.Log.With("work", w.ID, "action", w.Action), slog.LevelInfo
	if looks(w.Action) { // every half a minute, for ever
		level = slog.LevelDebug
	}
	if w.Action == api.Done {
		return a.finish(ctx, w)
	}
	begun := a.Now()
	if keeps(w.Action) {
		if resumed { // its time runs since it was handed out; a clock that was set may not lengthen it
			if saved, ok, _ := a.state.work(); ok {
				begun = saved.Begun
				limit = min(limit, limit-a.Now().Sub(begun))
			}
		}
		if err := a.state.saveWork(record{Work: w, Begun: begun}); err != nil {
			return false, err
		}
	}
	var out Outcome
	if limit <= 0 {
		out.Error, out.Retryable = fmt.Sprintf("%s was interrupted, and its %d s are over", w.Action, w.Seconds), true
	} else {
		log.Log(ctx, level, "working", "limit", limit)
		bounded, cancel := context.WithTimeout(ctx, limit)
		out = a.Machine.Do(bounded, w, func(text string, percent int) { a.events.tell(string(w.Action), text, percent) })
		cancel()
		if ctx.Err() != nil {
			return false, ctx.Err() // the record stays: the next run examines
		}
	}
	if out.OK {
		log.Log(ctx, level, "done", "took", a.Now().Sub(begun).Round(time.Millisecond))
	} else {
		log.Error("failed", "took", a.Now().Sub(begun).Round(time.Millisecond), "err", out.Error, "retryable", out.Retryable)
	}
	if keeps(w.Action) {
		if err := a.state.saveWork(record{Work: api.Work{ID: w.ID, Action: w.Action}, Begun: begun, Result: &out.Result}); err != nil {
			return false, err
		}
	}
	return a.deliver(ctx, w, out)
}

// keeps tells whether an action changes something, so that it and its result must survive a restart. Asking can be
// asked again, and a kubeconfig shall not lie about.
func keeps(action api.Action) bool {
	return !looks(action) && action != api.Kubeconfig && action != api.Done
}

// looks tells whether an action only looks at the cluster, as masters do again and again.
func looks(action api.Action) bool { return action == api.CheckNode || action == api.ListNodes }

// deliver sends a result until the appliance has it, or does not want it.
func (a *agent) deliver(ctx context.Context, w api.Work, out Outcome) (bool, error) {
	if !out.OK && out.Log != "" {
		a.home.putLog(ctx, string(w.Action), out.Log)
	}
	err := a.home.result(ctx, w.ID, out.Result)
	var refused *StatusError
	switch {
	case errors.As(err, &refused) && refused.final():
		a.Log.Warn("the appliance does not want the result", "work", w.ID, "action", w.Action, "err", err)
	case err != nil:
		return false, err
	}
	return false, a.state.dropWork()
}

// finish ends a worker's agent for good. The marker comes first, for the work itself is done: the node is Ready.
// A master's stays.
func (a *agent) finish(ctx context.Context, w api.Work) (ended bool, err error) {
	out := a.Machine.Do(ctx, w, func(string, int) {})
	if a.Config.Role == roleControlPlane || !out.OK {
		return a.deliver(ctx, w, out)
	}
	if err := a.state.markJoined(); err != nil {
		return false, err
	}
	bounded, cancel := context.WithTimeout(ctx, delivering)
	defer cancel()
	if _, err := a.deliver(bounded, w, out); err != nil {
		a.Log.Warn("the appliance could not be told that this agent ends", "err", err)
	}
	a.Log.Info("the node is Ready: this agent has nothing more to do")
	return true, nil
}
