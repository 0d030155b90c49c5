package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"rackstrap/firstboot/api"
)

// nodeCalls plays a machine's calls by curl, from the namespace that has the machine's address.
type nodeCalls struct {
	*installer
	config, name, token string
}

// newNodeCalls installs m0 as far as the node plane sees it: it has its kickstart, and reports that it was followed.
func newNodeCalls(t *testing.T, n network, config string) *nodeCalls {
	i := newInstaller(t, n, config, 0)
	c := &nodeCalls{installer: i, config: config, name: "m0", token: i.kickstart[strings.Index(i.kickstart, "Bearer ")+7:][:64]}
	status, _ := c.call("POST", "events", c.token, api.Event{Attempt: 1, Kind: "installed"})
	require.Equal(t, 204, status)
	return c
}

func (c *nodeCalls) call(method, path, secret string, body any) (status int, answer string) {
	c.t.Helper()
	args := []string{"curl", "-sSk", "-X", method, "-w", "\n%{http_code}", "-H", "Content-Type: application/json",
		"-H", "Authorization: Bearer " + secret, "-H", api.HeaderAttempt + ": 1"}
	if body != nil {
		text, err := json.Marshal(body)
		require.NoError(c.t, err)
		c.write("body", string(text), 0o600)
		args = append(args, "--data-binary", "@"+filepath.Join(c.root, "body"))
	}
	out := c.inside(append(args, "https://10.20.0.1:8443/api/v1/nodes/"+c.name+"/"+path)...)
	at := strings.LastIndexByte(strings.TrimSpace(out), '\n')
	_, err := fmt.Sscan(out[at+1:], &status)
	require.NoError(c.t, err, out)
	return status, out[:max(at, 0)]
}

// exchange makes a credential, as a thief or the machine would.
func (c *nodeCalls) exchange() (status int, credential string) {
	status, answer := c.call("POST", "exchange", c.token, api.Exchange{Attempt: 1, MAC: stormMAC(0).String(),
		Facts: api.Facts{Hostname: c.name, CPUs: 4, MemoryMiB: 8192, OS: "CentOS Linux 7", Board: "ACME R1", Serial: "S-17"}})
	var got api.Credential
	if status == http.StatusOK {
		require.NoError(c.t, json.Unmarshal([]byte(answer), &got))
	}
	return status, got.Credential
}

func (c *nodeCalls) rackstrap(args ...string) string {
	c.t.Helper()
	return rackstrap(c.t, append([]string{"--config", c.config}, args...)...)
}

// A stranger at the machine's address, behind the same relay, makes a thousand bad calls: the machine goes on.
func TestAttackLockout(t *testing.T) {
	n := newNetwork(t, "e2elock")
	config := stormConfig(t, 1)
	n.serve(t, config)
	c := newNodeCalls(t, n, config)
	bad := func() {
		c.write("calls", strings.Repeat("url = https://10.20.0.1:8443/api/v1/nodes/m0/work\noutput = /dev/null\n", 125), 0o600)
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				c.inside("curl", "-sSk", "-K", filepath.Join(c.root, "calls"), "-H", "Authorization: Bearer guess", "-H", api.HeaderAttempt+": 1")
			})
		}
		all.Wait()
	}
	bad()
	status, _ := c.call("GET", "work", "guess", nil)
	require.Equal(t, http.StatusTooManyRequests, status, "the stranger is not heard for a while")
	status, credential := c.exchange()
	require.Equal(t, http.StatusOK, status, "the machine is, with its install token")
	bad()
	for range 5 {
		status, answer := c.call("GET", "work", credential, nil)
		require.Equal(t, http.StatusOK, status, "%s: and with its credential", answer)
	}
	require.Contains(t, c.rackstrap("events", "m0"), "refused")
}

// A machine is held after a theft: what the thief has opens nothing, and the machine goes on when the hold ends.
func TestAttackHeldNode(t *testing.T) {
	n := newNetwork(t, "e2eheld")
	config := stormConfig(t, 1)
	n.serve(t, config)
	c := newNodeCalls(t, n, config)
	c.rackstrap("hold", "m0", "--reason", "stolen")
	status, _ := c.exchange()
	require.Equal(t, http.StatusLocked, status)
	c.rackstrap("unhold", "m0")
	status, credential := c.exchange()
	require.Equal(t, http.StatusOK, status)
	status, answer := c.call("GET", "work", credential, nil)
	require.Equal(t, http.StatusOK, status)
	var work api.Work
	require.NoError(t, json.Unmarshal([]byte(answer), &work))
	require.Equal(t, api.Init, work.Action)

	c.rackstrap("hold", "m0", "--reason", "stolen")
	status, answer = c.call("GET", "work", credential, nil)
	require.Equal(t, http.StatusAccepted, status)
	require.Contains(t, answer, "held")
	require.NotContains(t, answer, "kubeadm")
	status, _ = c.call("POST", "work/"+work.ID+"/result", credential, api.Result{OK: true, CACert: "a CA of its own"})
	require.Equal(t, http.StatusLocked, status)
	require.NotContains(t, c.rackstrap("events"), "is initialised")
	status, _ = c.call("POST", "events", credential, api.Event{Attempt: 1, Kind: "progress", Text: "still here"})
	require.Equal(t, http.StatusNoContent, status, "what it says is heard")
	c.rackstrap("unhold", "m0")
	status, _ = c.call("GET", "work", credential, nil)
	require.Equal(t, http.StatusOK, status)

	c.rackstrap("reinstall", "m0")
	status, _ = c.call("GET", "work", credential, nil)
	require.Equal(t, http.StatusGone, status, "a reinstallation ends the credential")
}

// A thief who has called home in the name of the first control plane gets nothing before the operator has compared the
// fingerprints.
func TestAttackWithoutConfirmation(t *testing.T) {
	n := newNetwork(t, "e2econfirm")
	config := stormConfig(t, 2)
	text, err := os.ReadFile(config)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(config, append(text, "install: {confirm: control-plane}\n"...), 0o600))
	n.serve(t, config)
	c := newNodeCalls(t, n, config)
	out, err := tryRackstrap(t, "--config", config, "confirm", "m0", "--yes")
	require.Error(t, err)
	require.Contains(t, out, "it has not called home yet")
	status, credential := c.exchange()
	require.Equal(t, http.StatusOK, status)
	status, answer := c.call("GET", "work", credential, nil)
	require.Equal(t, http.StatusAccepted, status, answer)
	var waiting api.Waiting
	require.NoError(t, json.Unmarshal([]byte(answer), &waiting))
	require.Regexp(t, `^SHA256:\S{43}$`, waiting.Confirm)
	status, _ = c.call("POST", "work/init.1.1/result", credential, api.Result{OK: true, CACert: "a CA of its own"})
	require.Equal(t, http.StatusNotFound, status)
	require.Contains(t, c.rackstrap("status"), "rackstrap confirm m0")
	require.Contains(t, c.rackstrap("events", "m0"), waiting.Confirm)
	shown := c.rackstrap("confirm")
	for _, fact := range []string{"m0", "10.20.1.1", stormMAC(0).String(), "ACME R1", "S-17", waiting.Confirm} {
		require.Contains(t, shown, fact)
	}
	_, err = tryRackstrap(t, "--config", config, "confirm", "m0", "--fingerprint", "SHA256:another")
	require.Error(t, err)
	out, err = tryRackstrap(t, "--config", config, "confirm", "m0") // nobody says yes
	require.Error(t, err)
	require.Regexp(t, regexp.QuoteMeta(waiting.Confirm)+`\? \[y/N\]`, out)
	status, _ = c.call("GET", "work", credential, nil)
	require.Equal(t, http.StatusAccepted, status)

	c.rackstrap("confirm", "m0", "--fingerprint", waiting.Confirm)
	status, answer = c.call("GET", "work", credential, nil)
	require.Equal(t, http.StatusOK, status)
	require.Contains(t, answer, "kubeadm")
	require.Contains(t, c.rackstrap("confirm", "m0", "--yes"), "confirmed already")
	require.Contains(t, c.rackstrap("events", "m0"), "has confirmed m0")
	c.rackstrap("hold", "m0", "--revoke")
	status, _ = c.call("GET", "work", credential, nil)
	require.Equal(t, http.StatusUnauthorized, status)
}
