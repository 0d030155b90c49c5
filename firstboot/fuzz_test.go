package firstboot

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/cluster"
	"rackstrap/firstboot/api"
	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

// Whatever a machine with a good credential sends ends in an answer for it alone, never in a fault of the appliance.
func FuzzCalls(f *testing.F) {
	for _, body := range []string{`{"attempt":1,"mac":"52:54:00:00:00:80","facts":{"cpus":2}}`, `{"attempt":1,"kind":"progress","percent":-7,"text":"x"}`,
		`{"attempt":1,"kind":"failed","phase":"post","text":"rackstrap: failed at: x"}`, `{"ok":true,"ca_cert":"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}`,
		`{"ok":false,"error":"\u0000\n","retryable":true,"missing":["x"]}`, `{"ok":true,"token":"abcdef.0123456789abcdef"}`, "", "null", "[]", "{", "\xff"} {
		for call := range uint8(5) {
			f.Add(call, "init.1.1", []byte(body))
		}
	}
	cfg := inventory.Default()
	name, machine := cfg.Machines[0].Name, cfg.Machines[0]
	log := slog.New(slog.DiscardHandler)
	rack, err := lifecycle.New(f.Context(), cfg, lifecycle.Options{Store: lifecycle.NewMemoryStore(), Log: log, Now: time.Now})
	require.NoError(f, err)
	coordinator := cluster.New(cluster.Options{Rack: rack, Log: log, Now: time.Now})
	s := &Server{o: Options{Rack: rack, Cluster: coordinator, Log: log, Now: time.Now}, logs: &logs{dir: f.TempDir()},
		limits: newLimits(Options{CallsEach: 1e9, RefusedEach: 1e9})}
	s.metrics, err = newMetrics(nil)
	require.NoError(f, err)
	handler := s.routes()
	rec, token, err := rack.BeginInstall(f.Context(), machine.MAC, rack.Ticket(machine.MAC))
	require.NoError(f, err)
	rack.SignOfInstaller(machine.IP)
	answer, err := coordinator.Exchange(f.Context(), name, token, api.Exchange{Attempt: rec.Attempt, MAC: machine.MAC.String()})
	require.NoError(f, err)

	f.Fuzz(func(t *testing.T, call uint8, id string, body []byte) {
		paths := []struct{ method, path string }{{"POST", "/exchange"}, {"POST", "/events"}, {"GET", "/work"},
			{"POST", "/work/x/result"}, {"PUT", "/logs/x"}}
		c := paths[int(call)%len(paths)]
		req := httptest.NewRequest(c.method, "/api/v1/nodes/"+name+c.path, bytes.NewReader(body))
		if c.path == "/work/x/result" {
			req.URL.Path, req.URL.RawPath = "/api/v1/nodes/"+name+"/work/"+id+"/result", ""
		}
		req.RemoteAddr = machine.IP.String() + ":1024"
		req.Header.Set("Authorization", "Bearer "+answer.Credential)
		req.Header.Set(api.HeaderAttempt, fmt.Sprint(rec.Attempt))
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, req)
		if w.Code >= http.StatusInternalServerError && c.path != "/work" { // a recorder has no deadlines, which that one sets
			t.Fatalf("%s %s: %d %s", c.method, c.path, w.Code, w.Body)
		}
	})
}
