package agent

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net/http"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/firstboot/api"
)

// scripted is a Machine whose work is a function.
type scripted struct {
	do        func(ctx context.Context, w api.Work) Outcome
	importing func([]api.Image) error
}

func (s *scripted) Import(_ context.Context, images []api.Image, tell func(string, int)) error {
	tell("importing", 50)
	return s.importing(images)
}

func (s *scripted) Facts(context.Context) api.Facts { return api.Facts{Hostname: "knode1", CPUs: 2} }

func (s *scripted) Do(ctx context.Context, w api.Work, tell func(string, int)) Outcome {
	tell("under way", 50)
	if s.do == nil {
		return Outcome{Result: api.Result{OK: true}}
	}
	return s.do(ctx, w)
}

func worker(t *testing.T, h *home) *box { return newBox(t, h, "knode1", "worker", "", "10.10.10.81") }

func TestWorkerGoesThroughItsLife(t *testing.T) {
	h := newHome(t)
	b := worker(t, h)
	b.start(&scripted{})
	require.True(t, h.do(api.Work{Action: api.Join}).OK)
	require.True(t, h.do(api.Work{Action: api.Done}).OK)
	require.NoError(t, b.stop())
	require.FileExists(t, b.file("joined"))
	require.NoFileExists(t, b.file("work.json"))
	for _, file := range []string{"credential", "joined", "attempt"} {
		info, err := os.Stat(b.file(file))
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), info.Mode().Perm(), file)
	}
	h.await("progress", func() bool { return len(h.events) > 0 && h.events[0].Text == "under way" && h.events[0].Attempt == 3 })
	clock, err := time.Parse(time.RFC3339, h.clocks[0])
	require.NoError(t, err)
	require.WithinDuration(t, time.Now(), clock, time.Hour)

	calls := len(h.calls)
	require.NoError(t, b.run(t.Context(), &scripted{}), "it has nothing to do any more")
	require.Len(t, h.calls, calls)
	require.NotContains(t, b.log.String(), credential)
	require.NotContains(t, b.log.String(), installToken)
}

// While there is nothing to do, images are brought in: once, and if it fails that is no more than a line in the log.
func TestImagesAreImportedMeanwhile(t *testing.T) {
	for name, fault := range map[string]error{"": nil, "fails": errors.New("disk full")} {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			h.images = []api.Image{{URL: "http://10.10.10.1:8080/images/pause.tar", SHA256: "ab", Size: 7, Names: []string{"pause:3.9"}}}
			var got [][]api.Image
			b := worker(t, h)
			b.start(&scripted{importing: func(images []api.Image) error {
				got = append(got, images)
				return fault
			}})
			h.await("a question that waits", func() bool { return len(h.waits) > 2 })
			require.True(t, h.do(api.Work{Action: api.Join, Images: h.images}).OK)
			require.True(t, h.do(api.Work{Action: api.Done}).OK)
			require.NoError(t, b.stop())
			require.Equal(t, [][]api.Image{h.images}, got)
			require.Equal(t, []string{"0", "50", "50"}, h.waits[:3])
			h.await("progress", func() bool { return len(h.events) > 1 && h.events[1].Phase == api.PhaseMeanwhile })
			if fault != nil {
				require.Contains(t, h.events[1].Text, "disk full")
			}
		})
	}
}

func TestNothingIsImportedWhenThereIsWork(t *testing.T) {
	h := newHome(t)
	h.images = []api.Image{{URL: "http://10.10.10.1:8080/images/pause.tar"}}
	h.hand(api.Work{Action: api.Join})
	b := worker(t, h)
	imports := 0
	b.start(&scripted{importing: func([]api.Image) error { imports++; return nil }})
	require.True(t, h.do(api.Work{Action: api.Done}).OK)
	require.NoError(t, b.stop())
	require.Zero(t, imports)
}

func TestMasterStays(t *testing.T) {
	h := newHome(t)
	b := newBox(t, h, "knode1", "control-plane", "", "10.10.10.81")
	b.start(&scripted{})
	require.True(t, h.do(api.Work{Action: api.Done}).OK)
	require.True(t, h.do(api.Work{Action: api.CheckNode, Node: "knode2"}).OK)
	require.NoFileExists(t, b.file("joined"))
}

func TestGivesUp(t *testing.T) {
	for _, status := range []int{http.StatusUnauthorized, http.StatusForbidden, http.StatusGone} {
		for _, at := range []string{"exchange", "work", "work/w1/result"} {
			h := newHome(t)
			h.hand(api.Work{Action: api.Join})
			h.trouble = func(call string, w http.ResponseWriter) bool {
				if call == at {
					http.Error(w, `{"error":"not you\nany more"}`, status)
				}
				return call == at
			}
			b := worker(t, h)
			var gone *GiveUpError
			require.ErrorAs(t, b.run(t.Context(), &scripted{}), &gone, at)
			require.Equal(t, status, gone.Status)
			require.Contains(t, gone.Error(), "refuses this machine")
		}
	}
}

// Whatever the appliance answers for a while, and however often its answers are lost, the work is done once.
func TestTroubleIsOutlasted(t *testing.T) {
	h := newHome(t)
	n := 0
	h.trouble = func(call string, w http.ResponseWriter) bool {
		n++
		switch n % 5 {
		case 0:
			return false
		case 1:
			http.Error(w, "down", http.StatusServiceUnavailable)
		case 2:
			panic(http.ErrAbortHandler) // the connection is cut
		case 3:
			if call == "work" {
				w.Write([]byte(`{"id":`))
			} else {
				http.Error(w, "", http.StatusBadGateway)
			}
		case 4:
			w.Header().Set("Retry-After", "0")
			http.Error(w, "", http.StatusTooManyRequests)
		}
		return true
	}
	var done atomic.Int32
	b := worker(t, h)
	b.start(&scripted{do: func(context.Context, api.Work) Outcome { done.Add(1); return Outcome{Result: api.Result{OK: true}} }})
	require.True(t, h.do(api.Work{Action: api.Join}).OK)
	require.EqualValues(t, 1, done.Load())
}

func TestResultNobodyWantsIsDropped(t *testing.T) {
	for _, status := range []int{http.StatusBadRequest, http.StatusNotFound, http.StatusConflict, http.StatusRequestEntityTooLarge} {
		h := newHome(t)
		h.trouble = func(call string, w http.ResponseWriter) bool {
			if call != "work/w1/result" {
				return false
			}
			h.queue = nil
			w.WriteHeader(status)
			return true
		}
		h.hand(api.Work{Action: api.Join})
		b := worker(t, h)
		b.start(&scripted{})
		h.await("the result", func() bool {
			return len(h.queue) == 0 && h.last() == "GET work"
		})
		require.NoFileExists(t, b.file("work.json"))
		require.NoError(t, b.stop())
	}
}

// A result that could not be delivered is sent by the next run, and the work is not done again.
func TestResultSurvivesARestart(t *testing.T) {
	h := newHome(t)
	h.hand(api.Work{Action: api.Join, KubeadmConfig: "token: abcdef.0123456789abcdef"})
	down := true
	h.trouble = func(call string, w http.ResponseWriter) bool {
		if call == "work/w1/result" && down {
			http.Error(w, "", http.StatusServiceUnavailable)
			return true
		}
		return false
	}
	var done atomic.Int32
	machine := &scripted{do: func(context.Context, api.Work) Outcome {
		done.Add(1)
		return Outcome{Result: api.Result{Error: "it broke", Retryable: true}, Log: "all of it"}
	}}
	b := worker(t, h)
	b.start(machine)
	h.await("a try", func() bool { return h.last() == "POST work/w1/result" })
	require.NoError(t, b.stop())
	saved, err := os.ReadFile(b.file("work.json"))
	require.NoError(t, err)
	require.NotContains(t, string(saved), "0123456789abcdef", "what it was made of is gone")
	require.Equal(t, "all of it", h.logs["join"])

	h.mu.Lock()
	down = false
	h.mu.Unlock()
	b.start(machine)
	h.await("the result", func() bool { return len(h.results["w1"]) == 1 })
	require.Equal(t, "it broke", h.results["w1"][0].Error)
	require.EqualValues(t, 1, done.Load())
	require.Equal(t, 1, count(h.calls, "POST exchange"), "the credential was kept")
}

// A work that a stop interrupted is handed to the machine again, in full and with the time that is left.
func TestInterruptedWorkIsResumed(t *testing.T) {
	h := newHome(t)
	h.hand(api.Work{Action: api.Init, KubeadmConfig: "the whole of it", Seconds: 1000})
	begun := make(chan time.Time, 2)
	machine := &scripted{do: func(ctx context.Context, w api.Work) Outcome {
		deadline, _ := ctx.Deadline()
		begun <- deadline
		if w.KubeadmConfig != "the whole of it" {
			return Outcome{Result: api.Result{Error: "half of it"}}
		}
		if len(begun) < 2 {
			<-ctx.Done()
		}
		return Outcome{Result: api.Result{OK: ctx.Err() == nil}}
	}}
	b := worker(t, h)
	b.start(machine)
	h.await("the beginning", func() bool { return len(begun) == 1 })
	require.NoError(t, b.stop())
	require.Empty(t, h.results)
	b.start(machine)
	h.await("the result", func() bool { return len(h.results["w1"]) == 1 })
	require.True(t, h.results["w1"][0].OK)
	require.WithinDuration(t, <-begun, <-begun, time.Second, "its time goes on")
}

func TestInterruptedWorkWhoseTimeIsOverFails(t *testing.T) {
	h := newHome(t)
	b := worker(t, h)
	st, err := openState(b.config.State)
	require.NoError(t, err)
	require.NoError(t, st.forget(3))
	require.NoError(t, st.saveCredential(credential))
	require.NoError(t, st.saveWork(record{Work: api.Work{ID: "w1", Action: api.Join, Seconds: 5}, Begun: time.Now().Add(-time.Minute)}))
	st.close()
	b.start(&scripted{})
	h.await("the result", func() bool { return len(h.results["w1"]) == 1 })
	r := h.results["w1"][0]
	require.False(t, r.OK)
	require.True(t, r.Retryable)
	require.Contains(t, r.Error, "its 5 s are over")
}

func TestBrokenStateIsNoObstacle(t *testing.T) {
	for _, text := range []string{"", "{", "null", `{"work":{"id":7}}`, "\x00\xff"} {
		h := newHome(t)
		b := worker(t, h)
		require.NoError(t, os.MkdirAll(b.config.State, 0o700))
		require.NoError(t, os.WriteFile(b.file("attempt"), []byte("3\n"), 0o600))
		require.NoError(t, os.WriteFile(b.file("work.json"), []byte(text), 0o600))
		b.start(&scripted{})
		require.True(t, h.do(api.Work{Action: api.Join}).OK)
		require.NoError(t, b.stop())
	}
}

// The state of an earlier attempt is void: its credential, its marker, its work.
func TestNewAttemptForgets(t *testing.T) {
	h := newHome(t)
	b := worker(t, h)
	st, err := openState(b.config.State)
	require.NoError(t, err)
	require.NoError(t, st.forget(2))
	require.NoError(t, st.saveCredential("old"))
	require.NoError(t, st.markJoined())
	require.NoError(t, st.saveWork(record{Work: api.Work{ID: "old", Action: api.Join}}))
	st.close()
	b.start(&scripted{})
	require.True(t, h.do(api.Work{Action: api.Join}).OK)
	require.Empty(t, h.results["old"])
}

func TestOneAgentAtATime(t *testing.T) {
	h := newHome(t)
	b := worker(t, h)
	b.start(&scripted{})
	h.await("a call", func() bool { return len(h.calls) > 0 })
	require.ErrorContains(t, b.run(t.Context(), &scripted{}), "another agent runs already")
}

func TestAnotherApplianceIsNotBelieved(t *testing.T) {
	h := newHome(t)
	b := worker(t, h)
	_, err := NewClient([]byte("no PEM"), nil)
	require.Error(t, err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	client, err := NewClient(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	require.NoError(t, Run(ctx, Options{Config: b.config, Machine: &scripted{}, Log: slog.New(slog.NewTextHandler(b.log, nil)), Now: time.Now, Client: client, Pause: time.Millisecond}))
	require.Empty(t, h.calls)
	require.Contains(t, b.log.String(), "certificate")
}

func TestConfig(t *testing.T) {
	good := `{"server":"https://10.10.10.1:8443","ca":"/etc/rackstrap/ca.pem","name":"knode1","mac":"52:54:00:00:00:81","role":"worker","attempt":3,"token":"t"}`
	c, err := parseConfig([]byte(good))
	require.NoError(t, err)
	require.Equal(t, "/var/lib/rackstrap", c.State)
	for what, text := range map[string]string{
		"server": `{"server":"http://10.10.10.1","ca":"c","name":"n","mac":"52:54:00:00:00:81","role":"worker","attempt":1,"token":"t"}`,
		"name":   `{"server":"https://a","ca":"c","name":"-rf","mac":"52:54:00:00:00:81","role":"worker","attempt":1,"token":"t"}`,
		"mac":    `{"server":"https://a","ca":"c","name":"n","mac":"52","role":"worker","attempt":1,"token":"t"}`,
		"role":   `{"server":"https://a","ca":"c","name":"n","mac":"52:54:00:00:00:81","role":"king","attempt":1,"token":"t"}`,
		"token":  `{"server":"https://a","ca":"c","name":"n","mac":"52:54:00:00:00:81","role":"worker","attempt":1}`,
		"tokens": `{"tokens":"t"}`,
		"JSON":   `{`,
	} {
		_, err := parseConfig([]byte(text))
		require.Error(t, err, what)
	}
	_, err = ReadConfig("/nowhere/agent.json")
	require.True(t, errors.Is(err, os.ErrNotExist))
}

func TestRetryAfter(t *testing.T) {
	for text, want := range map[string]time.Duration{"": 0, "5": 5 * time.Second, " 7 ": 7 * time.Second, "-1": 0, "1e9": 0,
		"99999999999999999999": 0, "86400": maxAskedOf, "Fri, 31 Dec 1999 23:59:59 GMT": 0} {
		require.Equal(t, want, retryAfter(text), text)
	}
	for range 100 {
		d := jitter(time.Second)
		require.GreaterOrEqual(t, d, time.Second/2)
		require.LessOrEqual(t, d, time.Second)
	}
}

func count(list []string, what string) int {
	n := 0
	for _, l := range list {
		if l == what {
			n++
		}
	}
	return n
}
