package firstboot

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"rackstrap/cluster"
	"rackstrap/firstboot/api"
	"rackstrap/internal/fakenode"
	"rackstrap/internal/testenv"
	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

// appliance is a node plane over TLS, for machines with addresses of the loopback network.
type appliance struct {
	t         *testing.T
	cfg       *inventory.Config
	store     lifecycle.Store
	authority *Authority
	logDir    string
	log       *testenv.Buffer
	port      int

	rack    *lifecycle.Rack
	cluster *cluster.Coordinator
	stop    func()
}

func newAppliance(t *testing.T, masters, workers int) *appliance {
	t.Helper()
	a := &appliance{t: t, store: lifecycle.NewMemoryStore(), logDir: t.TempDir(), log: &testenv.Buffer{}, cfg: inventory.Default()}
	a.cfg.Machines = nil
	for i := range masters + workers {
		m := inventory.Machine{Name: fmt.Sprintf("kmaster%d", i+1), Role: inventory.RoleControlPlane, Install: inventory.Install{Attempts: 99}}
		if i >= masters {
			m.Name, m.Role = fmt.Sprintf("knode%d", i-masters+1), inventory.RoleWorker
		}
		m.MAC, m.IP = inventory.MAC{0x52, 0x54, 0, 0, 1, byte(i)}, netip.AddrFrom4([4]byte{127, 0, 7, byte(10 + i)})
		a.cfg.Machines = append(a.cfg.Machines, m)
	}
	var err error
	a.authority, err = OpenAuthority(t.TempDir(), time.Now())
	require.NoError(t, err)
	a.start()
	t.Cleanup(func() { a.stop() })
	return a
}

// start begins a daemon on what an earlier one left.
func (a *appliance) start() {
	a.t.Helper()
	log := slog.New(slog.NewTextHandler(a.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	var err error
	a.rack, err = lifecycle.New(context.Background(), a.cfg, lifecycle.Options{Store: a.store, Log: log, Now: time.Now})
	require.NoError(a.t, err)
	a.cluster = cluster.New(cluster.Options{Rack: a.rack, Log: log, Now: time.Now, CheckEvery: 20 * time.Millisecond})
	server, err := Listen(Options{Rack: a.rack, Cluster: a.cluster, Authority: a.authority, Log: log, Now: time.Now,
		LogDir: a.logDir, Address: netip.MustParseAddr("127.0.0.1"), Port: a.port})
	require.NoError(a.t, err)
	if a.port == 0 {
		a.port = server.Addr().(*net.TCPAddr).Port
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { a.cluster.Run(ctx) })
	running.Go(func() {
		if err := server.Run(ctx); err != nil {
			a.t.Error(err)
		}
	})
	a.stop = sync.OnceFunc(func() { cancel(); running.Wait() })
}

// client is a machine's HTTP client: it calls from the machine's address, and believes the appliance's CA alone.
func (a *appliance) client(from netip.Addr) *http.Client {
	roots := x509.NewCertPool()
	require.True(a.t, roots.AppendCertsFromPEM(a.authority.PEM()))
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: from.AsSlice()}, Timeout: 10 * time.Second}
	transport := &http.Transport{DialContext: dialer.DialContext, TLSClientConfig: &tls.Config{RootCAs: roots}}
	a.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 90 * time.Second}
}

// node is a machine and its agent.
type node struct {
	*fakenode.Machine
	a          *appliance
	listed     inventory.Machine
	http       *http.Client
	attempt    int
	token      string
	credential string
}

func (a *appliance) node(name string, kube *fakenode.Kube) *node {
	m, ok := a.cfg.ByName(name)
	require.True(a.t, ok)
	return &node{Machine: &fakenode.Machine{Name: name, IP: m.IP.String(), Kube: kube}, a: a, listed: *m, http: a.client(m.IP)}
}

// install boots it into its installer and out of it.
func (n *node) install() *node {
	n.a.t.Helper()
	rec, token, err := n.a.rack.BeginInstall(context.Background(), n.listed.MAC, n.a.rack.Ticket(n.listed.MAC))
	require.NoError(n.a.t, err)
	_, err = n.a.rack.Apply(context.Background(), n.Name, lifecycle.ReportDone, "reported")
	require.NoError(n.a.t, err)
	n.attempt, n.token, n.credential = rec.Attempt, token, ""
	return n
}

// call makes a call with the credential, or whatever secret is given.
func (n *node) call(ctx context.Context, method, path, secret string, body, into any) (int, error) {
	text, ok := body.(string)
	if !ok {
		encoded, err := json.Marshal(body)
		if err != nil {
			return 0, err
		}
		text = string(encoded)
	}
	req, err := http.NewRequestWithContext(ctx, method, fmt.Sprintf("https://127.0.0.1:%d/api/v1/nodes/%s", n.a.port, path), strings.NewReader(text))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer "+secret)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set(api.HeaderAttempt, fmt.Sprint(n.attempt))
	resp, err := n.http.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && into != nil && resp.StatusCode < 300 {
		err = json.Unmarshal(answer, into)
	}
	return resp.StatusCode, err
}

func (n *node) exchange(ctx context.Context) (int, error) {
	var c api.Credential
	status, err := n.call(ctx, http.MethodPost, n.Name+"/exchange", n.token, api.Exchange{Attempt: n.attempt, MAC: n.listed.MAC.String(),
		Facts: api.Facts{Hostname: n.Name, CPUs: 4, MemoryMiB: 4096, Clock: time.Now()}}, &c)
	if status == http.StatusOK {
		n.credential = c.Credential
	}
	return status, err
}

// live is what an agent does all its life.
func (n *node) live(ctx context.Context) {
	var result *api.Result
	var work api.Work
	for ctx.Err() == nil {
		var status int
		var err error
		switch {
		case n.credential == "":
			status, err = n.exchange(ctx)
		case result != nil:
			if status, err = n.call(ctx, http.MethodPost, n.Name+"/work/"+work.ID+"/result", n.credential, result, nil); err == nil && status < 500 {
				result = nil
				if work.Action == api.Done {
					return
				}
			}
		default:
			work = api.Work{}
			if status, err = n.call(ctx, http.MethodGet, n.Name+"/work?wait=20", n.credential, "", &work); err == nil && status == http.StatusOK {
				done := n.Do(work)
				result = &done
			}
		}
		if err != nil || status >= 400 {
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
		}
		if status == http.StatusUnauthorized || status == http.StatusForbidden || status == http.StatusGone {
			n.a.t.Errorf("%s gives up: %d", n.Name, status)
			return
		}
	}
}

// A whole rack over TLS, all at once, and a daemon that is replaced in between.
func TestWholeRack(t *testing.T) {
	a := newAppliance(t, 3, 5)
	kube := fakenode.New()
	ctx, cancel := context.WithCancel(t.Context())
	var agents sync.WaitGroup
	var nodes []*node
	for _, m := range a.cfg.Machines {
		n := a.node(m.Name, kube).install()
		nodes = append(nodes, n)
		agents.Go(func() { n.live(ctx) })
	}
	until := func(what string, holds func() bool) {
		t.Helper()
		if !assert.Eventually(t, holds, time.Minute, 5*time.Millisecond) {
			require.Fail(t, "never: "+what, "%+v\n%s", a.cluster.Status(), a.log.String())
		}
	}
	ready := func() int { return a.cluster.Status().Ready }
	until("two are Ready", func() bool { return ready() >= 2 })
	a.stop()
	a.start()
	until("all are Ready", func() bool { return ready() == len(nodes) })
	until("no token is left", func() bool { return len(kube.TokensLeft()) == 0 })

	text, err := a.cluster.Kubeconfig(ctx)
	require.NoError(t, err)
	require.Contains(t, text, "kind: Config")
	cancel()
	agents.Wait()
	require.Empty(t, kube.Faults)
	require.Equal(t, 1, kube.Inits)

	events, err := a.rack.Events(context.Background(), lifecycle.EventQuery{})
	require.NoError(t, err)
	seen := a.log.String() + fmt.Sprintf("%+v", events)
	for secret := range kube.Secrets {
		require.NotContains(t, seen, secret)
	}
	for _, n := range nodes {
		require.NotContains(t, seen, n.token)
		require.NotContains(t, seen, n.credential)
	}
}

func TestRefusedCalls(t *testing.T) {
	a := newAppliance(t, 2, 1)
	kube := fakenode.New()
	master, other, worker := a.node("kmaster1", kube).install(), a.node("kmaster2", kube).install(), a.node("knode1", kube).install()
	ctx := t.Context()
	for _, n := range []*node{master, other, worker} {
		status, err := n.exchange(ctx)
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, status)
	}
	var init api.Work
	status, err := master.call(ctx, http.MethodGet, "kmaster1/work", master.credential, "", &init)
	require.NoError(t, err)
	require.Equal(t, []any{http.StatusOK, api.Init}, []any{status, init.Action})
	var again api.Work
	_, err = master.call(ctx, http.MethodGet, "kmaster1/work", master.credential, "", &again)
	require.NoError(t, err)
	require.Equal(t, init.ID, again.ID, "its answer was lost")
	var waiting api.Waiting
	status, err = other.call(ctx, http.MethodGet, "kmaster2/work", other.credential, "", &waiting)
	require.NoError(t, err)
	require.Equal(t, http.StatusAccepted, status)
	require.Equal(t, api.Waiting{Reason: "waits for kmaster1 to initialise the cluster", Holder: "kmaster1"}, waiting)
	status, err = worker.call(ctx, http.MethodGet, "knode1/work", worker.credential, "", &waiting)
	require.NoError(t, err)
	require.Equal(t, http.StatusAccepted, status)

	exchange := func(n *node) api.Exchange { return api.Exchange{Attempt: n.attempt, MAC: n.listed.MAC.String()} }
	foreign := *worker // the worker's address, with another's secret and name
	for _, c := range []struct {
		why          string
		as           *node
		method, path string
		secret       string
		body         any
		want         int
	}{
		{"a forged credential", worker, "GET", "knode1/work", "forged", "", 401},
		{"no credential", worker, "GET", "knode1/work", "", "", 401},
		{"the install token in its place", worker, "GET", "knode1/work", worker.token, "", 401},
		{"an attempt that was never made", worker, "POST", "knode1/exchange", worker.token, api.Exchange{Attempt: 9, MAC: worker.listed.MAC.String()}, 401},
		{"another's credential", worker, "GET", "knode1/work", master.credential, "", 401},
		{"another's name, with the own credential", &foreign, "GET", "kmaster1/work", worker.credential, "", 403},
		{"another's name, with its credential", &foreign, "GET", "kmaster1/work", master.credential, "", 403},
		{"another's exchange", &foreign, "POST", "kmaster1/exchange", master.token, exchange(master), 403},
		{"a worker that says it has initialised", worker, "POST", "knode1/work/" + init.ID + "/result", worker.credential, api.Result{OK: true}, 404},
		{"a master that says so without the lock", other, "POST", "kmaster2/work/" + init.ID + "/result", other.credential, api.Result{OK: true}, 404},
		{"work that nobody handed out", master, "POST", "kmaster1/work/mint-token.x.1/result", master.credential, api.Result{OK: true}, 404},
		{"a machine that is not listed", worker, "GET", "nobody/work", worker.credential, "", 404},
		{"a result of 10 MB", master, "POST", "kmaster1/work/" + init.ID + "/result", master.credential, api.Result{Output: strings.Repeat("x", 10<<20)}, 413},
		{"a log of 2 MB", master, "PUT", "kmaster1/logs/agent.log", master.credential, strings.Repeat("x", 2<<20), 413},
		{"a log that is elsewhere", master, "PUT", "kmaster1/logs/..%2f..%2fca.pem", master.credential, "x", 400},
		{"a log without a name", master, "PUT", "kmaster1/logs/UPPER", master.credential, "x", 400},
		{"nonsense", master, "POST", "kmaster1/work/" + init.ID + "/result", master.credential, "}{", 400},
		{"two bodies", master, "POST", "kmaster1/work/" + init.ID + "/result", master.credential, `{"ok":true}{"ok":true}`, 400},
		{"a wait that is none", master, "GET", "kmaster1/work?wait=soon", master.credential, "", 400},
		{"a method that is none", master, "DELETE", "kmaster1/work", master.credential, "", 405},
		{"a path that is none", master, "GET", "kmaster1/secrets", master.credential, "", 404},
	} {
		status, err := c.as.call(ctx, c.method, c.path, c.secret, c.body, nil)
		require.NoError(t, err, c.why)
		require.Equal(t, c.want, status, c.why)
	}
	require.Equal(t, lifecycle.Initialising, state(t, a, "kmaster1"), "none of it changed anything")
	require.Zero(t, a.rack.Cluster().Initialised)

	status, err = worker.call(ctx, "POST", "knode1/exchange", worker.token, exchange(worker), nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusLocked, status, "an install token that was exchanged and used: somebody else has it, too")
	_, err = a.rack.Unhold(ctx, "knode1")
	require.NoError(t, err)

	// The operator reinstalls it: what it knew is worthless.
	_, err = a.cluster.Reinstall(ctx, "knode1", cluster.ReinstallOptions{}, func(string) {})
	require.NoError(t, err)
	for _, c := range []struct{ method, path, secret string }{
		{"GET", "knode1/work", worker.credential}, {"POST", "knode1/exchange", worker.token}, {"POST", "knode1/events", worker.credential},
	} {
		status, err := worker.call(ctx, c.method, c.path, c.secret, exchange(worker), nil)
		require.NoError(t, err)
		require.Equal(t, http.StatusGone, status, c.path)
	}
	log := a.log.String()
	for _, secret := range []string{master.token, master.credential, worker.token, worker.credential} {
		require.NotContains(t, log, secret)
	}
}

func state(t *testing.T, a *appliance, name string) lifecycle.State {
	m, err := a.rack.Member(name)
	require.NoError(t, err)
	return m.Record.State
}

// Whoever guesses is not heard for a while; other addresses are.
func TestGuessing(t *testing.T) {
	a := newAppliance(t, 2, 0)
	kube := fakenode.New()
	one, two := a.node("kmaster1", kube).install(), a.node("kmaster2", kube).install()
	var statuses []int
	for range 60 {
		status, err := one.call(t.Context(), http.MethodPost, "kmaster1/exchange", "guess", api.Exchange{Attempt: one.attempt, MAC: one.listed.MAC.String()}, nil)
		require.NoError(t, err)
		statuses = append(statuses, status)
	}
	require.Equal(t, http.StatusUnauthorized, statuses[0])
	require.Contains(t, statuses, http.StatusTooManyRequests)
	status, err := two.exchange(t.Context())
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, status)
}

func TestLogsAreKept(t *testing.T) {
	a := newAppliance(t, 1, 0)
	n := a.node("kmaster1", fakenode.New()).install()
	_, err := n.exchange(t.Context())
	require.NoError(t, err)
	for i := range maxLogs + 5 {
		status, err := n.call(t.Context(), http.MethodPut, fmt.Sprintf("kmaster1/logs/agent-%d.log", i), n.credential, "line\ntoken abcdef.0123456789abcdef\n", nil)
		require.NoError(t, err)
		require.Equal(t, http.StatusNoContent, status)
	}
	entries, err := os.ReadDir(filepath.Join(a.logDir, "kmaster1"))
	require.NoError(t, err)
	require.Len(t, entries, maxLogs)
	path := filepath.Join(a.logDir, "kmaster1", fmt.Sprintf("1-agent-%d.log", maxLogs+4))
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "line\n(removed)\n", string(text))
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())

	// The output of what failed is a log too.
	var init api.Work
	_, err = n.call(t.Context(), http.MethodGet, "kmaster1/work", n.credential, "", &init)
	require.NoError(t, err)
	status, err := n.call(t.Context(), http.MethodPost, "kmaster1/work/"+init.ID+"/result", n.credential, api.Result{Error: "exit status 1", Output: "[preflight] no", Retryable: true}, nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusNoContent, status)
	text, err = os.ReadFile(filepath.Join(a.logDir, "kmaster1", "1-"+init.ID))
	require.NoError(t, err)
	require.Equal(t, "[preflight] no", string(text))
}

// A panic stays in the call that it happened in.
func TestPanicIsContained(t *testing.T) {
	a := newAppliance(t, 1, 0)
	s := &Server{o: Options{Rack: a.rack, Cluster: a.cluster, Log: slog.New(slog.NewTextHandler(a.log, nil))}, limits: newLimits(Options{CallsEach: 1, RefusedEach: 1})}
	var err error
	s.metrics, err = newMetrics(nil)
	require.NoError(t, err)
	e := echo.New()
	e.Use(s.observe)
	e.GET("/boom", func(echo.Context) error { panic("boom") })
	server := &http.Server{Handler: e}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	go server.Serve(listener)
	defer server.Close()
	resp, err := http.Get("http://" + listener.Addr().String() + "/boom")
	require.NoError(t, err)
	resp.Body.Close()
	require.Equal(t, http.StatusServiceUnavailable, resp.StatusCode)
	require.Contains(t, a.log.String(), "boom")
}

// The description has every route, and nothing else; it is what was agreed upon.
func TestDocument(t *testing.T) {
	a := newAppliance(t, 1, 0)
	s := &Server{o: Options{Rack: a.rack, Cluster: a.cluster}}
	routes := s.routes().(*echo.Echo).Routes()
	var served, described []string
	for _, r := range routes {
		if path, ok := strings.CutPrefix(r.Path, base); ok {
			path, _ = parametersOf(base + path)
			served = append(served, r.Method+" "+path)
		}
	}
	var doc struct {
		Paths      map[string]map[string]any
		Components struct{ Schemas map[string]any }
	}
	require.NoError(t, json.Unmarshal(Document(), &doc))
	for path, methods := range doc.Paths {
		for method := range methods {
			described = append(described, strings.ToUpper(method)+" "+path)
		}
	}
	slices.Sort(served)
	slices.Sort(described)
	require.Equal(t, served, described)
	require.Len(t, served, 6)
	for _, name := range []string{"Exchange", "Facts", "Credential", "Event", "Installation", "Work", "Image", "Waiting", "Result", "Error"} {
		require.Contains(t, doc.Components.Schemas, name)
	}

	n := a.node("kmaster1", fakenode.New())
	resp, err := n.http.Get(fmt.Sprintf("https://127.0.0.1:%d/api/v1/openapi.json", a.port))
	require.NoError(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, string(Document()), string(text))
	want, err := os.ReadFile("testdata/openapi.json")
	if errors.Is(err, os.ErrNotExist) || os.Getenv("RACKSTRAP_UPDATE") != "" {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile("testdata/openapi.json", text, 0o644))
		t.Fatal("testdata/openapi.json is written anew: look at the difference")
	}
	require.NoError(t, err)
	require.Equal(t, string(want), string(text), "the contract has changed: RACKSTRAP_UPDATE=1 go test ./firstboot, if that is meant")
}

func TestAuthorityIsRenewed(t *testing.T) {
	dir := t.TempDir()
	begin := time.Now()
	old, err := OpenAuthority(dir, begin)
	require.NoError(t, err)
	later := begin.AddDate(authorityYears, 0, 0).Add(-renewAuthority).Add(time.Hour)
	renewed, err := OpenAuthority(dir, later)
	require.NoError(t, err)
	require.NotEqual(t, old.PEM(), renewed.PEM())
	again, err := OpenAuthority(dir, later)
	require.NoError(t, err)
	require.Equal(t, renewed.PEM(), again.PEM())

	address := netip.MustParseAddr("10.10.10.1")
	leaf, err := renewed.Certificate(later, address)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(leaf.Certificate[0])
	require.NoError(t, err)
	for name, pinned := range map[string]*Authority{"a machine of yesterday": old, "one of today": renewed} {
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(pinned.PEM())
		_, err = cert.Verify(x509.VerifyOptions{Roots: roots, DNSName: address.String(), CurrentTime: later.Add(time.Hour)})
		require.NoError(t, err, name)
	}
}

// The server's certificate is replaced before it ends, without a restart.
func TestCertificateIsRenewed(t *testing.T) {
	now := time.Now()
	authority, err := OpenAuthority(t.TempDir(), now)
	require.NoError(t, err)
	c := &certificates{authority: authority, now: func() time.Time { return now }, address: netip.MustParseAddr("10.10.10.1")}
	first, err := c.get(nil)
	require.NoError(t, err)
	now = now.Add(300 * 24 * time.Hour)
	same, err := c.get(nil)
	require.NoError(t, err)
	require.Same(t, first, same)
	now = now.Add(80 * 24 * time.Hour)
	next, err := c.get(nil)
	require.NoError(t, err)
	require.NotSame(t, first, next)
	cert, err := x509.ParseCertificate(next.Certificate[0])
	require.NoError(t, err)
	require.True(t, cert.NotAfter.After(now.Add(300*24*time.Hour)))
}
