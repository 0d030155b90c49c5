package agent

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/e2e/fakekube"
	"rackstrap/firstboot/api"
	"rackstrap/internal/testenv"
)

// The stand-ins for kubeadm and the others are this very binary, by other names.
func TestMain(m *testing.M) {
	testenv.OnLinux310()
	if fakekube.Called() {
		fakekube.Main()
	}
	os.Exit(m.Run())
}

const (
	installToken = "install-token-0123456789abcdef"
	credential   = "credential-0123456789abcdef"
)

// home is an appliance of a few lines: it knows one machine's token, hands out what a test queues, and keeps what it
// is told. trouble, if set, may answer a call in its place.
type home struct {
	t       *testing.T
	server  *httptest.Server
	mu      sync.Mutex
	queue   []api.Work
	results map[string][]api.Result
	events  []api.Event
	logs    map[string]string
	facts   []api.Facts
	clocks  []string
	calls   []string
	trouble func(call string, w http.ResponseWriter) bool
	images  []api.Image // to bring in while there is nothing to do
	waits   []string    // the questions for work
	changed chan struct{}
}

func newHome(t *testing.T) *home {
	h := &home{t: t, results: map[string][]api.Result{}, logs: map[string]string{}, changed: make(chan struct{}, 1)}
	h.server = httptest.NewUnstartedServer(h)
	h.server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	h.server.StartTLS()
	t.Cleanup(h.server.Close)
	return h
}

func (h *home) ca() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: h.server.Certificate().Raw})
}

func (h *home) notify() {
	select {
	case h.changed <- struct{}{}:
	default:
	}
}

func (h *home) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	call := strings.TrimPrefix(r.URL.Path, "/api/v1/nodes/knode1/")
	body, _ := io.ReadAll(r.Body)
	h.mu.Lock()
	defer h.mu.Unlock()
	defer h.notify()
	h.calls = append(h.calls, r.Method+" "+call)
	if h.trouble != nil && h.trouble(call, w) {
		return
	}
	want := "Bearer " + credential
	if call == "exchange" {
		want = "Bearer " + installToken
	}
	if r.Header.Get("Authorization") != want || r.Header.Get(api.HeaderAttempt) != "3" {
		http.Error(w, `{"error":"no"}`, http.StatusUnauthorized)
		return
	}
	read := func(into any) { require.NoError(h.t, json.Unmarshal(body, into)) }
	switch parts := strings.Split(call, "/"); {
	case call == "exchange":
		var e api.Exchange
		read(&e)
		h.facts = append(h.facts, e.Facts)
		json.NewEncoder(w).Encode(api.Credential{Credential: credential, Role: "worker"})
	case call == "events":
		var e api.Event
		read(&e)
		h.events = append(h.events, e)
		w.WriteHeader(http.StatusNoContent)
	case call == "work":
		h.clocks = append(h.clocks, r.Header.Get(api.HeaderClock))
		h.waits = append(h.waits, r.URL.Query().Get("wait"))
		if len(h.queue) == 0 {
			w.WriteHeader(http.StatusAccepted)
			json.NewEncoder(w).Encode(api.Waiting{Reason: "nothing to do", Meanwhile: h.images})
			return
		}
		json.NewEncoder(w).Encode(h.queue[0])
	case parts[0] == "work":
		var result api.Result
		read(&result)
		h.results[parts[1]] = append(h.results[parts[1]], result)
		if len(h.queue) > 0 && h.queue[0].ID == parts[1] {
			h.queue = h.queue[1:]
		}
		w.WriteHeader(http.StatusNoContent)
	case parts[0] == "logs":
		h.logs[parts[1]] = string(body)
		w.WriteHeader(http.StatusNoContent)
	default:
		http.NotFound(w, r)
	}
}

// hand queues a work and returns its ID.
func (h *home) hand(w api.Work) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	w.ID = "w" + strconv.Itoa(len(h.results)+len(h.queue)+1)
	if w.Seconds == 0 {
		w.Seconds = 60
	}
	h.queue = append(h.queue, w)
	return w.ID
}

// await waits, patiently, until a condition holds.
func (h *home) await(what string, holds func() bool) {
	h.t.Helper()
	deadline := time.After(2 * time.Minute)
	for {
		h.mu.Lock()
		ok := holds()
		h.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-h.changed:
		case <-time.After(50 * time.Millisecond):
		case <-deadline:
			h.t.Fatalf("never: %s; calls: %v", what, h.calls)
		}
	}
}

func (h *home) last() string {
	if len(h.calls) == 0 {
		return ""
	}
	return h.calls[len(h.calls)-1]
}

// do hands out a work and waits for its result.
func (h *home) do(w api.Work) api.Result {
	h.t.Helper()
	id := h.hand(w)
	h.await("result of "+string(w.Action), func() bool { return len(h.results[id]) > 0 })
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.results[id][0]
}

// box is the machine of a test: a root with the stand-ins, and an agent that can be started again and again.
type box struct {
	t      *testing.T
	home   *home
	root   string
	config api.Config
	host   fakekube.Host
	log    *testenv.Buffer
	stop   func() error
}

func newBox(t *testing.T, h *home, name, role, cluster, ip string) *box {
	b := &box{t: t, home: h, root: filepath.Join(t.TempDir(), name), log: &testenv.Buffer{}}
	b.host = fakekube.Host{Cluster: cluster, Name: name, IP: ip, Images: true}
	require.NoError(t, fakekube.Install(b.root, b.host))
	b.config = api.Config{Server: h.server.URL, CA: filepath.Join(b.root, "ca.pem"), Name: name, MAC: "52:54:00:00:00:81",
		Role: role, Attempt: 3, Token: installToken, State: filepath.Join(b.root, "var/lib/rackstrap")}
	return b
}

// run runs an agent to its end.
func (b *box) run(ctx context.Context, machine Machine) error {
	client, err := NewClient(b.home.ca(), nil)
	require.NoError(b.t, err)
	defer client.CloseIdleConnections()
	return Run(ctx, Options{Config: b.config, Machine: machine, Log: slog.New(slog.NewTextHandler(b.log, nil)), Now: time.Now,
		Client: client, Pause: 5 * time.Millisecond})
}

// start runs an agent in the background; stop ends it, at the end of the test at the latest.
func (b *box) start(machine Machine) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.run(ctx, machine) }()
	var once sync.Once
	var err error
	b.stop = func() error { once.Do(func() { cancel(); err = <-done }); return err }
	b.t.Cleanup(func() { b.stop() })
}

func (b *box) file(name string) string { return filepath.Join(b.config.State, name) }
