package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/stretchr/testify/require"

	"rackstrap/internal/repotest"
	"rackstrap/internal/testenv"
	"rackstrap/operator"
)

const (
	stormListed  = 500 // machines with a reservation
	stormUnknown = 500 // machines that get an address of the pool
	stormEnv     = "RACKSTRAP_E2E_STORM"
)

// network is two namespaces joined by a veth pair: the appliance (10.20.0.1, srv0) and its clients
// (10.20.0.2, cli0).
type network struct{ servers, clients string }

func newNetwork(t *testing.T, name string) network {
	t.Helper()
	testenv.NeedRoot(t)
	n := network{name + "-srv", name + "-cli"}
	remove := func() {
		exec.Command("ip", "netns", "del", n.servers).Run()
		exec.Command("ip", "netns", "del", n.clients).Run()
	}
	remove()
	t.Cleanup(remove)
	for _, line := range []string{
		"netns add " + n.servers, "netns add " + n.clients,
		"-n " + n.servers + " link add srv0 type veth peer name cli0 netns " + n.clients,
		"-n " + n.servers + " addr add 10.20.0.1/16 dev srv0", "-n " + n.clients + " addr add 10.20.0.2/16 dev cli0",
		"-n " + n.servers + " link set lo up", "-n " + n.servers + " link set srv0 up",
		"-n " + n.clients + " link set lo up", "-n " + n.clients + " link set cli0 up",
	} {
		out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput()
		require.NoError(t, err, "ip %s: %s", line, out)
	}
	return n
}

// daemon is a `rackstrap serve` inside a namespace.
type daemon struct {
	cmd *exec.Cmd
	log string
}

func (n network) serve(t *testing.T, config string) *daemon {
	t.Helper()
	d := &daemon{cmd: exec.Command("ip", "netns", "exec", n.servers, binary, "--config", config, "serve"),
		log: filepath.Join(t.TempDir(), "serve.log")}
	file, err := os.Create(d.log)
	require.NoError(t, err)
	defer file.Close()
	d.cmd.Stdout, d.cmd.Stderr = file, file
	require.NoError(t, d.cmd.Start())
	t.Cleanup(func() {
		d.kill()
		if t.Failed() {
			text, _ := os.ReadFile(d.log)
			t.Logf("the daemon's log ends:\n%s", text[max(0, len(text)-4000):])
		}
	})
	require.Eventually(t, func() bool {
		text, _ := os.ReadFile(d.log)
		return strings.Contains(string(text), "\nready\n")
	}, time.Minute, 20*time.Millisecond, "the daemon is not ready")
	return d
}

// kill ends the daemon without a chance to tidy up (`ip netns exec` has become it).
func (d *daemon) kill() {
	d.cmd.Process.Kill()
	d.cmd.Wait()
}

func stormMAC(i int) net.HardwareAddr {
	return net.HardwareAddr{0x52, 0x54, 0, 1, byte(i >> 8), byte(i)}
}

func stormConfig(t *testing.T, machines int) (path string) {
	t.Helper()
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	require.NoError(t, repotest.Medium().Write(tree))
	var text strings.Builder
	fmt.Fprintf(&text, "server: {interface: srv0, address: 10.20.0.1, data_dir: %s/data}\n", dir)
	fmt.Fprintf(&text, "network: {subnet: 10.20.0.0/16, dhcp: {pool: 10.20.100.0-10.20.110.255}}\n")
	fmt.Fprintf(&text, "media: [{name: tree, dir: %s}]\nmachines:\n", tree)
	for i := range machines {
		role := "worker"
		if i == 0 {
			role = "control-plane"
		}
		fmt.Fprintf(&text, "  - {name: m%d, mac: %q, ip: 10.20.%d.%d, role: %s}\n", i, stormMAC(i), 1+i/200, 1+i%200, role)
	}
	path = filepath.Join(dir, "rackstrap.yaml")
	require.NoError(t, os.WriteFile(path, []byte(text.String()), 0o600))
	return path
}

// relayed puts the machines of a configuration into a network of their own, behind a relay agent and router: the clients'
// namespace. There a thousand machines need no hardware addresses.
func (n network) relayed(t *testing.T, config string) string {
	t.Helper()
	text, err := os.ReadFile(config)
	require.NoError(t, err)
	changed := strings.NewReplacer("ip: 10.20.", "ip: 10.21.", "dhcp: {pool: 10.20.100.0-10.20.110.255}",
		"relayed: [{subnet: 10.21.0.0/16, gateway: 10.21.0.1, pool: 10.21.100.0-10.21.110.255}]").Replace(string(text))
	require.NoError(t, os.WriteFile(config, []byte(changed), 0o600))
	run(t, "ip", "-n", n.clients, "addr", "add", "10.21.0.1/16", "dev", "lo")                    // on a loopback the whole prefix is this host's
	run(t, "ip", "netns", "exec", n.clients, "sysctl", "-qw", "net.ipv4.icmp_echo_ignore_all=1") // nor is an address in use
	run(t, "ip", "-n", n.servers, "route", "add", "10.21.0.0/16", "via", "10.20.0.2")
	return config
}

// Done-when 6: kill -9 in the middle of a thousand boots.
func TestKillInTheMiddleOfAThousandBoots(t *testing.T) {
	n := newNetwork(t, "e2estorm")
	config := n.relayed(t, stormConfig(t, stormListed))
	first := n.serve(t, config)

	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	storm := exec.CommandContext(ctx, "ip", "netns", "exec", n.clients, os.Args[0], "-test.run", "^TestStormOfBoots$", "-test.v")
	storm.Env = append(os.Environ(), stormEnv+"=1")
	out, err := storm.StdoutPipe()
	require.NoError(t, err)
	storm.Stderr = os.Stderr
	require.NoError(t, storm.Start())

	// What the clients were told, in order.
	type ack struct{ mac, ip string }
	var acks []ack
	var adopted []string
	boots, killedAt, killedBoots := 0, -1, 0
	for lines := bufio.NewScanner(out); lines.Scan(); {
		words := strings.Fields(lines.Text())
		switch {
		case len(words) == 3 && words[0] == "ack":
			acks = append(acks, ack{words[1], words[2]})
		case len(words) == 2 && words[0] == "booted":
			boots++
		}
		if killedAt < 0 && len(acks)%50 == 0 && len(acks) > 0 && len(acks) < 400 {
			name := fmt.Sprintf("m%d", len(adopted))
			rackstrap(t, "--config", config, "adopt", name) // returned: it is on disk
			adopted = append(adopted, name)
		}
		if killedAt < 0 && len(acks) >= 400 {
			killedAt, killedBoots = len(acks), boots
			first.kill()
			n.serve(t, config)
		}
	}
	require.NoError(t, storm.Wait())
	require.Positive(t, killedAt)
	require.Less(t, killedBoots, stormListed+stormUnknown)
	require.Equal(t, stormListed+stormUnknown, boots, "every machine came to its script in the end")
	t.Logf("%d ACKs before the kill, %d in all, %d machines adopted before it", killedAt, len(acks), len(adopted))

	holder := map[string]string{}
	given := map[string]string{}
	for _, a := range acks {
		if other, taken := holder[a.ip]; taken {
			require.Equal(t, other, a.mac, "%s was given out twice", a.ip)
		}
		holder[a.ip] = a.mac
		if before, again := given[a.mac]; again {
			require.Equal(t, before, a.ip, "%s keeps its address over the crash", a.mac)
		}
		given[a.mac] = a.ip
	}
	require.Len(t, given, stormListed+stormUnknown)

	var st operator.Status
	require.NoError(t, json.Unmarshal([]byte(rackstrap(t, "--config", config, "status", "-o", "json")), &st))
	leases := map[string]string{}
	for _, l := range st.Leases {
		leases[l.MAC.String()] = l.IP.String()
	}
	for i := stormListed; i < stormListed+stormUnknown; i++ {
		mac := stormMAC(i).String()
		require.Equal(t, given[mac], leases[mac], "what was acknowledged to %s is in the database", mac)
	}
	states := map[string]string{}
	for _, m := range st.Machines {
		states[m.Name] = string(m.State)
	}
	for _, name := range adopted {
		require.Equal(t, "installed", states[name])
	}
}

// TestStormOfBoots is the clients' side, run inside their namespace: a relay agent with a thousand machines
// behind it, each of which tries until it has its script.
func TestStormOfBoots(t *testing.T) {
	if os.Getenv(stormEnv) == "" {
		return // only ever run by TestKillInTheMiddleOfAThousandBoots
	}
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(10, 21, 0, 1), Port: 67})
	require.NoError(t, err)
	relay := &relay{conn: conn, waiting: map[dhcpv4.TransactionID]chan *dhcpv4.DHCPv4{}}
	go relay.receive()
	var wait sync.WaitGroup
	slots := make(chan struct{}, 60)
	for i := range stormListed + stormUnknown {
		wait.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			for attempt := 0; attempt < 60; attempt++ {
				if relay.boot(stormMAC((i*7)%(stormListed+stormUnknown))) == nil {
					return
				}
				time.Sleep(250 * time.Millisecond)
			}
		})
	}
	wait.Wait()
	conn.Close()
}

type relay struct {
	conn    *net.UDPConn
	mu      sync.Mutex
	waiting map[dhcpv4.TransactionID]chan *dhcpv4.DHCPv4
}

func (r *relay) receive() {
	buffer := make([]byte, 2048)
	for {
		n, err := r.conn.Read(buffer)
		if err != nil {
			if strings.Contains(err.Error(), "closed") {
				return
			}
			continue // port unreachable, while the daemon is dead
		}
		reply, err := dhcpv4.FromBytes(buffer[:n])
		if err != nil {
			continue
		}
		r.mu.Lock()
		if ch, ok := r.waiting[reply.TransactionID]; ok {
			select {
			case ch <- reply:
			default:
			}
		}
		r.mu.Unlock()
	}
}

// exchange sends a request and waits for its answer.
func (r *relay) exchange(req *dhcpv4.DHCPv4) (*dhcpv4.DHCPv4, error) {
	ch := make(chan *dhcpv4.DHCPv4, 1)
	r.mu.Lock()
	r.waiting[req.TransactionID] = ch
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		delete(r.waiting, req.TransactionID)
		r.mu.Unlock()
	}()
	if _, err := r.conn.WriteToUDP(req.ToBytes(), &net.UDPAddr{IP: net.IPv4(10, 20, 0, 1), Port: 67}); err != nil {
		return nil, err
	}
	select {
	case reply := <-ch:
		return reply, nil
	case <-time.After(2 * time.Second):
		return nil, fmt.Errorf("no answer to %s", req.MessageType())
	}
}

// boot takes one machine from DISCOVER to its script, and tells each acknowledgement on the standard output.
func (r *relay) boot(mac net.HardwareAddr) error {
	firmware := []dhcpv4.Modifier{
		dhcpv4.WithGatewayIP(net.IPv4(10, 21, 0, 1)),
		dhcpv4.WithOption(dhcpv4.OptClassIdentifier("PXEClient:Arch:00000:UNDI:002001")),
		dhcpv4.WithOption(dhcpv4.OptGeneric(dhcpv4.OptionClientSystemArchitectureType, []byte{0, 0})),
		dhcpv4.WithOption(dhcpv4.OptUserClass("iPXE")),
	}
	discover, err := dhcpv4.NewDiscovery(mac, firmware...)
	if err != nil {
		return err
	}
	offer, err := r.exchange(discover)
	if err != nil {
		return err
	}
	request, err := dhcpv4.NewRequestFromOffer(offer, firmware...)
	if err != nil {
		return err
	}
	reply, err := r.exchange(request)
	if err != nil {
		return err
	}
	if reply.MessageType() != dhcpv4.MessageTypeAck {
		return fmt.Errorf("%s", reply.MessageType())
	}
	ip, _ := netip.AddrFromSlice(reply.YourIPAddr.To4())
	fmt.Printf("ack %s %s\n", mac, ip)
	client := http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: reply.YourIPAddr}}).DialContext}}
	resp, err := client.Get(reply.BootFileName)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	script, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || !strings.HasPrefix(string(script), "#!ipxe") {
		return fmt.Errorf("%s: %s", reply.BootFileName, resp.Status)
	}
	fmt.Printf("booted %s\n", mac)
	return nil
}
