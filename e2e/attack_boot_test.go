package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"rackstrap/lifecycle"
)

// thief is somebody in the clients' namespace of a network, with whatever addresses it gives itself.
type thief struct {
	network
	t      *testing.T
	config string

	attempt int
}

// get is an answer of the boot plane: its status, and its body.
func (a *thief) get(url string, headers ...string) (status, body string) {
	a.t.Helper()
	args := []string{"netns", "exec", a.clients, "curl", "-sS", "--max-time", "20", "--path-as-is", "-w", "\n%{http_code}"}
	for _, h := range headers {
		args = append(args, "-H", h)
	}
	out, err := exec.Command("ip", append(args, url)...).CombinedOutput()
	require.NoError(a.t, err, "%s", out)
	at := strings.LastIndex(string(out), "\n")
	return string(out)[at+1:], string(out)[:at]
}

// post makes a call of the node plane.
func (a *thief) post(name, call, token, body string) (status string) {
	a.t.Helper()
	out, err := exec.Command("ip", "netns", "exec", a.clients, "curl", "-sSk", "-o", os.DevNull, "-w", "%{http_code}", "--data-binary", body,
		"-H", "Authorization: Bearer "+token, "-H", fmt.Sprintf("Rackstrap-Attempt: %d", a.attempt), "-H", "Content-Type: application/json",
		"https://10.20.0.1:8443/api/v1/nodes/"+name+"/"+call).CombinedOutput()
	require.NoError(a.t, err, "%s", out)
	return string(out)
}

func (a *thief) events(name string) string {
	a.t.Helper()
	return rackstrap(a.t, "--config", a.config, "events", name, "--limit", "0")
}

func (a *thief) requireArmed(name string) {
	a.t.Helper()
	for _, m := range (&virtualRack{t: a.t, state: filepath.Dir(a.config)}).status().Machines {
		if m.Name == name {
			require.Equal(a.t, lifecycle.Armed, m.State, "nothing was stolen")
		}
	}
}

var installToken = regexp.MustCompile(`Authorization: Bearer ([0-9a-f]{64})`)

// An armed machine that is switched off is not installed by somebody who takes its address, whatever else it knows; the
// real one is installed afterwards.
func TestAttackTheft(t *testing.T) {
	n := newNetwork(t, "e2etheft")
	config := stormConfig(t, 2)
	n.serve(t, config)
	a := &thief{n, t, config, 1}
	for machine, name := range []string{"m0", "m1"} { // a control plane, a worker
		a.attempt = 1
		mac, ip := stormMAC(machine).String(), fmt.Sprintf("10.20.1.%d", machine+1)
		hyphens := strings.ReplaceAll(mac, ":", "-")
		script, grub, ks := "http://10.20.0.1:8080/boot/"+hyphens+"/ipxe", "http://10.20.0.1:8080/grub/grub.cfg", "http://10.20.0.1:8080/ks/"+hyphens
		header := "X-RHN-Provisioning-MAC-0: eth0 " + mac
		noScript := func(why string) {
			t.Helper()
			for _, url := range []string{script, grub, "http://10.20.0.1:8080/boot/" + hyphens + "/grub.cfg", "http://10.20.0.1:8080/grub/host-" + mac + ".cfg"} {
				_, text := a.get(url)
				require.NotContains(t, text, "inst.ks", "%s: %s", why, url)
			}
		}
		anonymous := func(why string) {
			t.Helper()
			for _, url := range []string{script, grub, ks, ks + "/TICKET"} {
				status, text := a.get(url)
				require.NotContains(t, text, name+" ", "%s: %s", why, url)
				require.NotContains(t, text, "armed", "%s: %s", why, url)
				require.NotEqual(t, "200", status, "%s: %s", why, url)
			}
		}

		// Its address on any card, without DHCP: as the audit did.
		n.become(t, "02:00:00:00:00:66", ip)
		noScript("another card")
		anonymous("another card")
		status, _ := a.get(ks+"/TICKET", header)
		require.Equal(t, "403", status)
		require.Contains(t, a.events(name), "which has the hardware address 02:00:00:00:00:66")
		require.Contains(t, a.events(name), "ALARM kickstart of "+name+" asked for by "+ip)

		// Its hardware address, too, but no boot was seen.
		n.become(t, mac, ip)
		noScript("no DHCP")
		status, _ = a.get(ks+"/AAABnLxJ6gAAAAAAAAAAAAAAAAAAAAAA", header)
		require.Equal(t, "403", status, "a guess")

		// While the real machine boots: its address is not enough, nor are the other machine's papers.
		n.bootAs(t, machine)
		_, real := a.get(script)
		kickstart, err := kickstartOf(real)
		require.NoError(t, err)
		n.become(t, "02:00:00:00:00:66", ip)
		noScript("another card, while it boots")
		status, _ = a.get(kickstart, header)
		require.Equal(t, "403", status, "with the ticket, from another card")
		n.become(t, mac, "10.20.5.5")
		status, _ = a.get(kickstart, header)
		require.Equal(t, "403", status, "from another address")
		n.become(t, mac, ip)
		status, _ = a.get(kickstart)
		require.Equal(t, "403", status, "no installer")
		status, _ = a.get(kickstart, "X-RHN-Provisioning-MAC-0: eth0 02:00:00:00:00:66")
		require.Equal(t, "403", status)
		a.requireArmed(name)

		// Whoever has all of it gets the kickstart, and no further without an installer that is seen.
		status, text := a.get(kickstart, header)
		require.Equal(t, "200", status)
		token := installToken.FindStringSubmatch(text)
		require.NotNil(t, token)
		require.Equal(t, "423", a.post(name, "exchange", token[1], `{"attempt":1,"mac":"`+mac+`"}`))
		require.Equal(t, "423", a.post(name, "exchange", token[1], `{"attempt":1,"mac":"`+mac+`"}`))
		out := rackstrap(t, "--config", config, "status")
		require.Contains(t, out, name+" is held by the appliance (it calls as if it were installed")
		require.Contains(t, a.events(name), "ALARM it calls as if it were installed")

		// Nor does it get on by reporting first that the installation failed, in a boot of its own.
		rackstrap(t, "--config", config, "unhold", name)
		rackstrap(t, "--config", config, "reinstall", name)
		n.bootAs(t, machine)
		_, script2 := a.get(script)
		kickstart, err = kickstartOf(script2)
		require.NoError(t, err)
		_, text = a.get(kickstart, header)
		token = installToken.FindStringSubmatch(text)
		require.NotNil(t, token)
		a.attempt = 2
		require.Equal(t, "204", a.post(name, "events", token[1], `{"attempt":2,"kind":"failed","phase":"pre","text":"no disk"}`))
		require.Equal(t, "423", a.post(name, "events", token[1], `{"attempt":2,"kind":"installed","phase":"post"}`))
		require.Equal(t, "423", a.post(name, "exchange", token[1], `{"attempt":2,"mac":"`+mac+`"}`))
		require.Contains(t, a.events(name), "ALARM it calls as if it were installed")

		// The operator looks, and has the real one installed.
		rackstrap(t, "--config", config, "unhold", name)
		rackstrap(t, "--config", config, "reinstall", name)
		status, _ = a.get(kickstart, header)
		require.Equal(t, "403", status, "the ticket of the former boot")
		i := newInstaller(t, n, config, machine)
		i.run("%post", "tmp/ks-script.log")
		require.Contains(t, a.events(name), "installing -> installed (reported by its %post)")
	}
}
