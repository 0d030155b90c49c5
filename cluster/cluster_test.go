package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/firstboot/api"
	"rackstrap/internal/fakenode"
	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

// clock is a clock that only tests move.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) forward(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// testConfig is a rack of so many masters and workers.
func testConfig(masters, workers int) *inventory.Config {
	cfg := inventory.Default()
	cfg.Machines = nil
	install := inventory.Install{Attempts: 100, LocalBoot: inventory.LocalAuto}
	for i := range masters + workers {
		m := inventory.Machine{Name: fmt.Sprintf("kmaster%d", i+1), Role: inventory.RoleControlPlane, Install: install}
		if i >= masters {
			m.Name, m.Role = fmt.Sprintf("knode%d", i-masters+1), inventory.RoleWorker
		}
		m.MAC = inventory.MAC{0x52, 0x54, 0, 0, byte(i >> 8), byte(i)}
		m.IP = netip.AddrFrom4([4]byte{10, 10, 10 + byte(i/200), byte(10 + i%200)})
		cfg.Machines = append(cfg.Machines, m)
	}
	return cfg
}

// rack is an appliance in memory, its machines, and their agents. Nothing happens in it by itself: step lets each agent
// do one thing.
type rack struct {
	t      *testing.T
	cfg    *inventory.Config
	clock  *clock
	log    *bytes.Buffer
	store  lifecycle.Store
	rack   *lifecycle.Rack
	c      *Coordinator
	kube   *fakenode.Kube
	agents []*agent
}

// agent is the agent of one machine: what it has on its disk, and what it is at.
type agent struct {
	*fakenode.Machine
	mac        inventory.MAC
	attempt    int
	token      string
	credential string
	role       string
	work       *api.Work
	result     *api.Result
	ended      bool // its work is done for good
	gaveUp     error
	down       bool
	clock      time.Duration               // by how much its clock is ahead
	spoil      func(api.Work, *api.Result) // what goes wrong on it
	facts      func(*api.Facts)
	trace      []api.Action
}

func newRack(t *testing.T, masters, workers int) *rack {
	t.Helper()
	return newRackOn(t, lifecycle.NewMemoryStore(), masters, workers)
}

func newRackOn(t *testing.T, store lifecycle.Store, masters, workers int) *rack {
	t.Helper()
	r := &rack{t: t, cfg: testConfig(masters, workers), clock: &clock{now: time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)},
		log: &bytes.Buffer{}, store: store, kube: fakenode.New()}
	for _, m := range r.cfg.Machines {
		r.agents = append(r.agents, &agent{Machine: &fakenode.Machine{Name: m.Name, IP: m.IP.String(), Kube: r.kube}, mac: m.MAC})
	}
	return r
}

// start is the start of the appliance, also after a kill.
func (r *rack) start() error {
	log := slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	rk, err := lifecycle.New(context.Background(), r.cfg, lifecycle.Options{Store: r.store, Log: log, Now: r.clock.Now})
	if err != nil {
		return err
	}
	r.rack, r.c = rk, New(Options{Rack: rk, Log: log, Now: r.clock.Now})
	return nil
}

func (r *rack) agent(name string) *agent {
	for _, a := range r.agents {
		if a.Name == name {
			return a
		}
	}
	r.t.Fatalf("no machine %s", name)
	return nil
}

func (r *rack) record(name string) lifecycle.Record {
	m, err := r.rack.Member(name)
	require.NoError(r.t, err)
	return m.Record
}

func (r *rack) state(name string) lifecycle.State { return r.record(name).State }

// install boots a machine into its installer and out of it.
func (r *rack) install(a *agent) error {
	r.clock.forward(time.Second)
	r.rack.See(lifecycle.Sighting{MAC: a.mac, LastBoot: r.clock.Now()})
	r.clock.forward(time.Second)
	rec, token, err := r.rack.BeginInstall(context.Background(), a.mac, r.rack.Ticket(a.mac))
	if err != nil {
		return err
	}
	a.Wipe()
	a.attempt, a.token, a.credential, a.work, a.result, a.ended, a.gaveUp = rec.Attempt, token, "", nil, nil, false, nil
	_, err = r.rack.Apply(context.Background(), a.Name, lifecycle.ReportDone, "reported")
	return err
}

// step lets an agent do one thing. An error is what a real one would try again after.
func (r *rack) step(a *agent) error {
	if a.ended || a.down || a.gaveUp != nil {
		return nil
	}
	ctx := context.Background()
	err := func() error {
		switch {
		case a.credential == "":
			facts := api.Facts{Hostname: a.Name, CPUs: 4, MemoryMiB: 4096, OS: "CentOS Linux 7", Kernel: "3.10.0", Agent: "test", Joined: a.Joined,
				Clock: r.clock.Now().Add(a.clock)}
			if a.facts != nil {
				a.facts(&facts)
			}
			got, err := r.c.Exchange(ctx, a.Name, a.token, api.Exchange{Attempt: a.attempt, MAC: a.mac.String(), Facts: facts})
			a.credential, a.role = got.Credential, got.Role
			return err
		case a.result != nil:
			if err := r.authenticate(a); err != nil {
				return err
			}
			err := r.c.Result(ctx, a.Name, a.attempt, a.work.ID, *a.result)
			var transition *lifecycle.TransitionError
			if err != nil && !errors.Is(err, ErrUnknownWork) && !errors.Is(err, ErrNotHolder) && !errors.As(err, &transition) {
				return err
			}
			a.ended = a.work.Action == api.Done
			a.work, a.result = nil, nil
			return nil
		case a.work != nil:
			result := a.Do(*a.work)
			if a.spoil != nil {
				a.spoil(*a.work, &result)
			}
			a.trace = append(a.trace, a.work.Action)
			a.result = &result
			return nil
		default:
			if err := r.authenticate(a); err != nil {
				return err
			}
			work, waiting, err := r.c.Work(ctx, Question{Name: a.Name, Attempt: a.attempt, Clock: r.clock.Now().Add(a.clock)})
			if err == nil && work == nil {
				require.NotEmpty(r.t, waiting.Reason, a.Name)
			}
			a.work = work
			return err
		}
	}()
	var held *lifecycle.HeldError
	if errors.As(err, &held) { // it asks again
		return nil
	}
	if errors.Is(err, lifecycle.ErrSuperseded) || errors.Is(err, lifecycle.ErrBadSecret) {
		a.gaveUp = err
		return nil
	}
	return err
}

func (r *rack) authenticate(a *agent) error {
	if err := r.rack.CheckCredential(context.Background(), a.Name, a.attempt, a.credential); err != nil {
		return err
	}
	r.c.Heard(a.Name)
	return nil
}

// round lets each agent do one thing, and a second pass.
func (r *rack) round() error {
	for _, a := range r.agents {
		if err := r.step(a); err != nil {
			return err
		}
	}
	r.c.Sweep(context.Background())
	r.clock.forward(time.Second)
	return nil
}

// until plays rounds until it is so.
func (r *rack) until(what string, so func() bool) {
	r.t.Helper()
	for range 2000 {
		if so() {
			return
		}
		require.NoError(r.t, r.round())
	}
	r.t.Fatalf("it never was so: %s\n%s\n%s", what, r.picture(), r.log)
}

func (r *rack) picture() string {
	var b strings.Builder
	for _, m := range r.rack.Members("") {
		fmt.Fprintf(&b, "%s %s %+v: %s\n", m.Machine.Name, m.Record.State, m.Record.Node, r.c.reason(m.Machine.Name))
	}
	fmt.Fprintf(&b, "%+v\n", r.rack.Cluster())
	return b.String()
}

func (r *rack) ready(names ...string) func() bool {
	return func() bool {
		for _, m := range r.rack.Members("") {
			if m.Record.State != lifecycle.Ready && (len(names) == 0 || strings.Contains(strings.Join(names, " ")+" ", m.Machine.Name+" ")) {
				return false
			}
		}
		return true
	}
}

// settled is the end of everything: all ready, no token left, workers' agents ended.
func (r *rack) settled() bool {
	for _, m := range r.rack.Members("") {
		if m.Record.Node.TokenID != "" {
			return false
		}
		if a := r.agent(m.Machine.Name); m.Machine.Role == inventory.RoleWorker && !a.ended && !a.down {
			return false
		}
	}
	return r.ready()() && r.rack.Cluster().Stray == ""
}

func newKube() *fakenode.Kube { return fakenode.New() }

// relink has the machines see the cluster that took the old one's place.
func (r *rack) relink() {
	for _, a := range r.agents {
		a.Kube = r.kube
		a.Wipe()
	}
}

// all installs every machine.
func (r *rack) all() *rack {
	r.t.Helper()
	if r.rack == nil {
		require.NoError(r.t, r.start())
	}
	for _, a := range r.agents {
		require.NoError(r.t, r.install(a))
	}
	return r
}

// sound checks what must hold in the end, whatever happened.
func (r *rack) sound() {
	r.t.Helper()
	require.Empty(r.t, r.kube.Faults)
	require.Equal(r.t, 1, r.kube.Inits, "one init")
	require.Empty(r.t, r.kube.TokensLeft(), "no token left behind")
	for _, a := range r.agents {
		if !a.down {
			require.NotNil(r.t, r.kube.Nodes[a.Name], "no node lost: %s", a.Name)
		}
	}
	r.noSecrets()
}

// noSecrets looks for every secret there was, in everything that people may see.
func (r *rack) noSecrets() {
	r.t.Helper()
	events, err := r.rack.Events(context.Background(), lifecycle.EventQuery{})
	require.NoError(r.t, err)
	seen := r.log.String() + fmt.Sprintf("%+v %+v %+v", events, r.c.Status(), r.rack.Machines())
	for secret := range r.kube.Secrets {
		require.NotContains(r.t, seen, secret)
	}
	for _, a := range r.agents {
		if a.token != "" {
			require.NotContains(r.t, seen, a.token)
		}
		if a.credential != "" {
			require.NotContains(r.t, seen, a.credential)
		}
	}
}

func TestRackBecomesReady(t *testing.T) {
	r := newRack(t, 3, 3).all()
	r.until("settled", r.settled)
	r.sound()
	require.Equal(t, []api.Action{api.Init}, r.agent("kmaster1").trace[:1])
	require.Equal(t, []api.Action{api.JoinControlPlane}, r.agent("kmaster2").trace[:1])
	require.Equal(t, []api.Action{api.Join, api.Done}, r.agent("knode1").trace)
	st := r.c.Status()
	require.False(t, st.Complete.IsZero())
	require.Equal(t, 6, st.Ready)
	require.Len(t, st.Masters, 3)
	events, err := r.rack.Events(t.Context(), lifecycle.EventQuery{})
	require.NoError(t, err)
	complete := 0
	for _, e := range events {
		if e.Kind == "complete" {
			complete++
			require.Contains(t, e.Text, "the rack is complete: 6 machines are Ready, ")
		}
	}
	require.Equal(t, 1, complete)
}

// kill is a store whose machine loses power at a write: that one may still reach the disk, later ones do not.
type kill struct {
	lifecycle.Store
	at     int
	lands  bool // the fatal write is on the disk, but its caller never hears of it
	writes int
}

var errKilled = errors.New("killed")

func (k *kill) dead() bool { return k.at > 0 && k.writes >= k.at }

func write[T any](k *kill, do func() (T, error)) (T, error) {
	var none T
	if k.dead() {
		return none, errKilled
	}
	k.writes++
	if k.dead() {
		if k.lands {
			do()
		}
		return none, errKilled
	}
	return do()
}

func (k *kill) Commit(ctx context.Context, rec lifecycle.Record, events ...lifecycle.Event) (lifecycle.Record, error) {
	return write(k, func() (lifecycle.Record, error) { return k.Store.Commit(ctx, rec, events...) })
}

func (k *kill) CommitCluster(ctx context.Context, c lifecycle.Cluster, events ...lifecycle.Event) (lifecycle.Cluster, error) {
	return write(k, func() (lifecycle.Cluster, error) { return k.Store.CommitCluster(ctx, c, events...) })
}

func (k *kill) CommitAll(ctx context.Context, changes []lifecycle.Change) ([]lifecycle.Record, error) {
	return write(k, func() ([]lifecycle.Record, error) { return k.Store.CommitAll(ctx, changes) })
}

// The appliance is killed at each write of a rack's whole life, before and after it reaches the disk.
func TestKilledAtEveryWrite(t *testing.T) {
	play := func(at int, lands bool) (writes int) {
		disk := lifecycle.NewMemoryStore()
		k := &kill{Store: disk, at: at, lands: lands}
		r := newRackOn(t, k, 2, 2)
		restart := func() {
			r.store = disk
			require.NoError(t, r.start())
		}
		if err := r.start(); errors.Is(err, errKilled) {
			restart()
		} else {
			require.NoError(t, err)
		}
		installed := 0
		for round := 0; ; round++ {
			require.Less(t, round, 3000, "killed at write %d: %s\n%s", at, r.picture(), r.log)
			err := func() error {
				for ; installed < len(r.agents); installed++ {
					if err := r.install(r.agents[installed]); err != nil {
						return err
					}
				}
				return r.round()
			}()
			if k.dead() && r.store != disk {
				restart() // whatever was in memory is gone
				continue
			}
			if err != nil {
				var refused *lifecycle.NotInstallingError
				if errors.As(err, &refused) { // the report had reached the disk: the agent runs
					installed++
					continue
				}
				require.NoError(t, err)
			}
			if installed == len(r.agents) && r.settled() {
				break
			}
		}
		r.sound()
		return k.writes
	}
	total := play(0, false)
	require.Greater(t, total, 40)
	for at := 1; at <= total; at++ {
		play(at, false)
		play(at, true)
	}
	t.Logf("killed %d times", 2*total)
}
