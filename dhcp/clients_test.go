package dhcp

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/internal/testenv"
	"rackstrap/inventory"
)

// TestClients lets real clients talk to a real server through real sockets, in network namespaces.
func TestClients(t *testing.T) {
	testenv.NeedTool(t, "udhcpc", "dhclient", "dhcrelay", "perfdhcp", "dnsmasq")
	n := newNetwork(t)
	for _, tc := range []struct {
		name string
		run  func(*testing.T, *network)
	}{
		{"udhcpc as firmware", asFirmware},
		{"udhcpc renews and releases", renewRelease},
		{"udhcpc declines", declines},
		{"dhclient", dhclient},
		{"dhclient renews", dhclientRenews},
		{"relay agent", relayed},
		{"perfdhcp", perfdhcp},
		{"conflict check", conflictCheck},
		{"second server", secondServer},
		{"foreign server", foreignServer},
		{"proxy", proxyBesideDnsmasq},
		{"made-up addresses", madeUpAddresses},
		{"dnsmasq's opinion", dnsmasqOpinion},
		{"several cards", severalCards},
	} {
		t.Run(tc.name, func(t *testing.T) { tc.run(t, n) })
	}
}

func asFirmware(t *testing.T, n *network) {
	d := n.serve(t, "plain")
	n.mac("cli", macMaster)
	for _, tc := range []struct {
		name, file string
		args       []string
	}{
		{"bios", "undionly.kpxe", udhcpcAs("PXEClient:Arch:00000:UNDI:002001", "0000")},
		{"ia32", "snponly-ia32.efi", udhcpcAs("PXEClient:Arch:00006:UNDI:003000", "0006")},
		{"x64", "snponly.efi", udhcpcAs("PXEClient:Arch:00007:UNDI:003000", "0007")},
		{"arm64", "snponly-arm64.efi", udhcpcAs("PXEClient:Arch:00011:UNDI:003000", "000b")},
		{"http-x64", "http://10.10.10.1:8080/loader/snponly.efi", udhcpcAs("HTTPClient:Arch:00016:UNDI:003000", "0010")},
		{"ipxe", "http://10.10.10.1:8080/boot/52-54-00-00-00-80/ipxe", udhcpcAs("PXEClient:Arch:00007:UNDI:003010", "0007", "-x", "0x4d:69505845")},
		{"broadcast flag", "undionly.kpxe", udhcpcAs("PXEClient:Arch:00000:UNDI:002001", "0000", "-B")},
		{"operating system", "", []string{"-O", "tftp", "-O", "bootfile"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			lease, log := n.udhcpc(t, "cli", tc.args...)
			require.Equal(t, "10.10.10.80", lease["ip"], log)
			require.Equal(t, "255.255.255.0", lease["subnet"])
			require.Equal(t, "10.10.10.121", lease["router"])
			require.Equal(t, "8.8.4.4", lease["dns"])
			require.Equal(t, "kmaster", lease["hostname"])
			require.Equal(t, "43200", lease["lease"])
			require.Equal(t, "10.10.10.1", lease["serverid"])
			require.Equal(t, tc.file, lease["boot_file"])
			require.Equal(t, tc.file, strings.TrimRight(lease["bootfile"], "\x00"))
			if tc.file != "" {
				require.Equal(t, "10.10.10.1", lease["siaddr"])
				require.Equal(t, "10.10.10.1", lease["tftp"])
			}
		})
	}
	n.mac("cli", macUnknown)
	lease, log := n.udhcpc(t, "cli", udhcpcAs("PXEClient:Arch:00007:UNDI:003000", "0007")...)
	require.Regexp(t, `^10\.10\.10\.2[0-5]\d$`, lease["ip"], log)
	require.Equal(t, "snponly.efi", lease["boot_file"])
	again, _ := n.udhcpc(t, "cli")
	require.Equal(t, lease["ip"], again["ip"], "the system that it boots gets the same address")
	d.await("ack", "ACK "+lease["ip"])
}

// severalCards: each card of the list has the machine's address; one that is not in it, but on the same board, takes
// neither a slot nor a loader, so that firmware goes on to the next card.
func severalCards(t *testing.T, n *network) {
	d := n.serve(t, "cards")
	args := []string{"-V", "PXEClient:Arch:00007:UNDI:003000", "-x", "0x5d:0007", "-x", "0x61:004c4c4544004235108054b4c04f4a3132", "-O", "tftp", "-O", "bootfile"}
	for _, mac := range []inventory.MAC{macMaster, macSecond} {
		n.mac("cli", mac)
		lease, log := n.udhcpc(t, "cli", args...)
		require.Equal(t, "10.10.10.80", lease["ip"], log)
		require.Equal(t, "snponly.efi", lease["boot_file"])
	}
	n.mac("cli", macUnknown)
	lease, log := n.udhcpc(t, "cli", args...)
	require.Regexp(t, `^10\.10\.10\.2[0-5]\d$`, lease["ip"], log)
	require.Empty(t, lease["boot_file"])
	d.await("ack", "is a further card of kmaster (the same UUID)")
}

// renewRelease: a client that stays renews its lease straight with the server, and gives it back at the end.
func renewRelease(t *testing.T, n *network) {
	d := n.serve(t, "plain")
	n.mac("cli", macUnknown)
	configure := script(t, `case "$1" in bound|renew) ip addr replace $ip/24 dev $interface;; esac`+"\n")
	c := n.command("cli", "udhcpc", "-i", "eth0", "-f", "-R", "-r", "10.10.10.233", "-s", configure)
	c.Stdout, c.Stderr = &testenv.Buffer{}, &testenv.Buffer{}
	require.NoError(t, c.Start())
	d.await("ack", "ACK 10.10.10.233")
	require.Eventually(t, func() bool { // udhcpc has configured its address
		return strings.Contains(n.run("cli", "ip", "addr", "show", "dev", "eth0"), "10.10.10.233")
	}, 30*time.Second, 20*time.Millisecond)
	stop := n.capture(t, "srv", "udp port 67")
	require.NoError(t, c.Process.Signal(syscall.SIGUSR1))
	require.Eventually(t, func() bool {
		return strings.Contains(fmt.Sprint(c.Stdout, c.Stderr), "10.10.10.233 obtained") &&
			strings.Count(fmt.Sprint(c.Stdout, c.Stderr), "obtained") == 2
	}, 30*time.Second, 20*time.Millisecond)
	require.NoError(t, c.Process.Signal(syscall.SIGTERM))
	c.Wait()
	d.await("release", "RELEASE 10.10.10.233")
	traffic := stop()
	require.Contains(t, traffic, "10.10.10.233.68 > 10.10.10.1.67", "the renewal is unicast")
	require.Contains(t, traffic, "10.10.10.1.67 > 10.10.10.233.68", "and so is its ACK")
}

// capture runs tcpdump until the returned function is called, which returns what it saw.
func (n *network) capture(t *testing.T, ns, filter string) (stop func() string) {
	testenv.NeedTool(t, "tcpdump")
	var out, said testenv.Buffer
	c := n.command(ns, "tcpdump", "-n", "-l", "--immediate-mode", "-i", "eth0", filter)
	c.Stdout, c.Stderr = &out, &said
	require.NoError(t, c.Start())
	require.Eventually(t, func() bool { return strings.Contains(said.String(), "listening on") }, 30*time.Second, 10*time.Millisecond)
	return func() string {
		c.Process.Signal(syscall.SIGINT)
		c.Wait()
		return out.String()
	}
}

// declines: somebody else uses the reserved address, and udhcpc finds out by ARP.
func declines(t *testing.T, n *network) {
	d := n.serve(t, "plain")
	n.mac("cli", macMaster)
	n.batch("occ", "address add 10.10.10.80/24 dev eth0\n")
	defer n.batch("occ", "address del 10.10.10.80/24 dev eth0\n")
	c := n.command("cli", "udhcpc", "-i", "eth0", "-f", "-a300", "-s", "/bin/true") // it would ask for ever
	require.NoError(t, c.Start())
	defer c.Wait()
	defer c.Process.Kill()
	e := d.await("decline", "DECLINE 10.10.10.80")
	require.Equal(t, "DECLINE 10.10.10.80: its reserved address is in use by 52:54:00:00:00:aa", e.Text)
	require.Equal(t, "kmaster", e.Machine)
}

// dhclient is the client of CentOS 7: fresh, INIT-REBOOT, and with a wrong address in its memory.
func dhclient(t *testing.T, n *network) {
	n.serve(t, "plain")
	n.mac("cli", macMaster)
	run := func(lease string) string {
		dir := t.TempDir()
		leases := filepath.Join(dir, "leases")
		require.NoError(t, os.WriteFile(leases, []byte(lease), 0o600))
		conf := filepath.Join(dir, "conf")
		require.NoError(t, os.WriteFile(conf, []byte("timeout 8;\nreboot 3;\nretry 1;\nbackoff-cutoff 2;\ninitial-interval 1;\n"), 0o600))
		log, _ := n.command("cli", "dhclient", "-1", "-v", "-d", "-sf", script(t, "[ \"$reason\" = BOUND -o \"$reason\" = REBOOT ] && kill -TERM $PPID\nexit 0\n"),
			"-lf", leases, "-pf", filepath.Join(dir, "pid"), "-cf", conf, "eth0").CombinedOutput()
		return string(log)
	}
	remembered := func(ip string) string {
		return fmt.Sprintf("lease {\n  interface \"eth0\";\n  fixed-address %s;\n  option subnet-mask 255.255.255.0;\n"+
			"  option dhcp-server-identifier 10.10.10.1;\n  option dhcp-lease-time 43200;\n"+
			"  renew 2 2035/01/01 00:00:00;\n  rebind 2 2035/01/02 00:00:00;\n  expire 2 2035/01/03 00:00:00;\n}\n", ip)
	}
	fresh := run("")
	require.Contains(t, fresh, "DHCPDISCOVER on eth0")
	require.Contains(t, fresh, "DHCPACK of 10.10.10.80 from 10.10.10.1")

	reboot := run(remembered("10.10.10.80"))
	require.NotContains(t, reboot, "DHCPDISCOVER")
	require.Contains(t, reboot, "DHCPREQUEST for 10.10.10.80 on eth0")
	require.Contains(t, reboot, "DHCPACK of 10.10.10.80 from 10.10.10.1")

	for _, wrong := range []string{"10.10.10.81", "10.10.10.222", "192.168.7.7"} {
		log := run(remembered(wrong))
		require.Contains(t, log, "DHCPREQUEST for "+wrong)
		require.Contains(t, log, "DHCPNAK from 10.10.10.1")
		require.Contains(t, log, "DHCPACK of 10.10.10.80 from 10.10.10.1", "and then it gets the right one")
	}

	n.mac("cli", macUnknown) // of whom there is no record
	log := run(remembered("10.10.10.222"))
	require.NotContains(t, log, "DHCPNAK")
	require.Contains(t, log, "DHCPDISCOVER on eth0", "after silence it begins anew")
	require.Contains(t, log, "DHCPACK of 10.10.10.2")
}

func dhclientRenews(t *testing.T, n *network) {
	d := n.serve(t, "short") // leases of four seconds: T1 is two
	n.mac("cli", macMaster)
	dir := t.TempDir()
	var log testenv.Buffer
	c := n.command("cli", "dhclient", "-v", "-d", "-sf", script(t, "[ -n \"$new_ip_address\" ] && ip addr replace $new_ip_address/24 dev eth0\nexit 0\n"),
		"-lf", filepath.Join(dir, "leases"), "-pf", filepath.Join(dir, "pid"), "eth0")
	c.Stdout, c.Stderr = &log, &log
	require.NoError(t, c.Start())
	defer c.Wait()
	defer c.Process.Signal(syscall.SIGTERM)
	d.await("ack", "ACK 10.10.10.80")
	require.Eventually(t, func() bool {
		return strings.Contains(log.String(), "DHCPREQUEST for 10.10.10.80 on eth0 to 10.10.10.1 port 67") &&
			strings.Count(log.String(), "DHCPACK of 10.10.10.80 from 10.10.10.1") == 2
	}, 30*time.Second, 50*time.Millisecond, log.String())
}

// relayed: a second network behind ISC's relay agent, which adds option 82.
func relayed(t *testing.T, n *network) {
	d := n.serve(t, "plain")
	r := n.command("rly", "dhcrelay", "-4", "-d", "-a", "--no-pid", "-id", "eth1", "-iu", "eth0", "10.10.10.1")
	var log testenv.Buffer
	r.Stdout, r.Stderr = &log, &log
	require.NoError(t, r.Start())
	defer r.Wait()
	defer r.Process.Kill()
	require.Eventually(t, func() bool { return strings.Contains(log.String(), "Sending on   Socket/fallback") }, 30*time.Second, 10*time.Millisecond)

	n.mac("far", macFar)
	lease, out := n.udhcpc(t, "far", udhcpcAs("PXEClient:Arch:00007:UNDI:003000", "0007")...)
	require.Equal(t, "10.20.0.50", lease["ip"], out+log.String())
	require.Equal(t, "10.20.0.1", lease["router"])
	require.Equal(t, "255.255.255.0", lease["subnet"])
	require.Equal(t, "snponly.efi", lease["boot_file"])

	n.mac("far", macMaster) // its address belongs to the other network
	lease, _ = n.udhcpc(t, "far", "-t", "1", "-T", "1")
	require.Empty(t, lease["ip"])
	d.await("silence", "asks from network 10.20.0.0/24 (relay agent 10.20.0.1), but its address 10.10.10.80 belongs to another one")

	n.batch("rly", "address add 10.20.0.105/24 dev eth1\n") // somebody uses it
	defer n.batch("rly", "address del 10.20.0.105/24 dev eth1\n")
	n.mac("far", macOther)
	lease, out = n.udhcpc(t, "far", "-r", "10.20.0.105")
	require.Regexp(t, `^10\.20\.0\.1(0\d|10)$`, lease["ip"], out)
	require.NotEqual(t, "10.20.0.105", lease["ip"])
	d.await("conflict", "10.20.0.105 is in the pool, but a host that answers ping uses it")

	// NAK by way of the relay agent: it must reach a client whose address is wrong.
	dir := t.TempDir()
	n.mac("far", macFar)
	leases := filepath.Join(dir, "leases")
	require.NoError(t, os.WriteFile(leases, []byte("lease {\n  interface \"eth0\";\n  fixed-address 10.10.10.50;\n"+
		"  option dhcp-server-identifier 10.10.10.1;\n  renew 2 2035/01/01 00:00:00;\n  rebind 2 2035/01/02 00:00:00;\n  expire 2 2035/01/03 00:00:00;\n}\n"), 0o600))
	said, _ := n.command("far", "dhclient", "-1", "-v", "-d", "-sf", script(t, "[ \"$reason\" = BOUND ] && kill -TERM $PPID\nexit 0\n"),
		"-lf", leases, "-pf", filepath.Join(dir, "pid"), "eth0").CombinedOutput()
	require.Contains(t, string(said), "DHCPNAK from")
	require.Contains(t, string(said), "DHCPACK of 10.20.0.50")
}

// perfdhcp plays a relay agent with a thousand machines behind it, all of them in the list.
func perfdhcp(t *testing.T, n *network) {
	n.serve(t, "load")
	n.loadNetwork(t)
	// Slow is not lost: -d and -W leave a shared machine time. How fast it is, `make bench` tells.
	report := n.perfdhcp(t, "-r", "300", "-R", strconv.Itoa(loadMachines), "-p", "4", "-d", "20", "-W", "8000000")
	require.Regexp(t, `(?s)DISCOVER-OFFER\*\*\*.*drops: 0\n.*REQUEST-ACK\*\*\*.*drops: 0\n`, report)
	received := regexp.MustCompile(`received packets: (\d+)`).FindAllStringSubmatch(report, -1)
	require.Len(t, received, 2)
	for _, r := range received {
		count, _ := strconv.Atoi(r[1])
		require.Greater(t, count, 300, report)
	}
}

// loadNetwork makes cli the relay agent of the scenario "load".
func (n *network) loadNetwork(t *testing.T) {
	n.mac("cli", macOther)
	n.batch("cli", "address add 10.30.0.2/16 dev eth0\nroute replace 10.10.10.0/24 dev eth0\n")
	n.batch("srv", "route replace 10.30.0.0/16 dev eth0\n")
	n.run("cli", "ping", "-c1", "-W2", "10.10.10.1") // ARP is done
	t.Cleanup(func() { n.batch("cli", "address flush dev eth0\n") })
}

func (n *network) perfdhcp(t *testing.T, args ...string) string {
	t.Helper()
	var macs strings.Builder
	for i := range loadMachines {
		fmt.Fprintln(&macs, mac(i))
	}
	list := filepath.Join(t.TempDir(), "macs.txt")
	require.NoError(t, os.WriteFile(list, []byte(macs.String()), 0o600))
	out, err := n.command("cli", "perfdhcp", append(append([]string{"-4", "-l", "10.30.0.2", "-M", list}, args...), "10.10.10.1")...).CombinedOutput()
	require.NoError(t, err, string(out))
	return string(out)
}

// conflictCheck: an address of the pool that somebody uses without having asked is not offered.
func conflictCheck(t *testing.T, n *network) {
	d := n.serve(t, "plain")
	n.batch("occ", "address add 10.10.10.222/24 dev eth0\n")
	defer n.batch("occ", "address del 10.10.10.222/24 dev eth0\n")
	n.mac("cli", macUnknown)
	lease, log := n.udhcpc(t, "cli", "-r", "10.10.10.222")
	require.Regexp(t, `^10\.10\.10\.2\d\d$`, lease["ip"], log)
	require.NotEqual(t, "10.10.10.222", lease["ip"])
	d.await("conflict", "10.10.10.222 is in the pool, but 52:54:00:00:00:aa uses it")
}

func secondServer(t *testing.T, n *network) {
	first := n.serve(t, "plain")
	_, fault := n.tryServe(t, "plain")
	require.Regexp(t, `UDP port 67: address already in use: \S+ \(process \d+\) has it`, fault)
	first.stop()
	n.serve(t, "plain").stop()

	n.dnsmasq(t, "srv", "--dhcp-range=10.10.10.200,10.10.10.220,1h")
	_, fault = n.tryServe(t, "plain")
	require.Contains(t, fault, "UDP port 67: address already in use: dnsmasq (process ")
}

// dnsmasq runs dnsmasq as a DHCP server in a namespace until the test, or the returned function, ends it.
func (n *network) dnsmasq(t *testing.T, ns string, args ...string) (stop func()) {
	t.Helper()
	var log testenv.Buffer
	ctx, cancel := context.WithCancel(context.Background())
	c := n.command(ns, "dnsmasq", append([]string{"--no-daemon", "--conf-file=/dev/null", "--port=0", "--interface=eth0", "--bind-interfaces",
		"--log-dhcp", "--dhcp-leasefile=" + filepath.Join(t.TempDir(), "leases"), "--user=root"}, args...)...)
	c.Stdout, c.Stderr = &log, &log
	require.NoError(t, c.Start())
	done := make(chan struct{})
	go func() { c.Wait(); close(done); cancel() }()
	stop = func() { c.Process.Kill(); <-done }
	t.Cleanup(stop)
	require.Eventually(t, func() bool {
		return strings.Contains(log.String(), "sockets bound exclusively") || strings.Contains(log.String(), "DHCP") || ctx.Err() != nil
	}, 30*time.Second, 10*time.Millisecond)
	require.NoError(t, ctx.Err(), log.String())
	return stop
}

// foreignServer: another DHCP server appears, is named, and goes away again.
func foreignServer(t *testing.T, n *network) {
	n.batch("occ", "address add 10.10.10.5/24 dev eth0\n")
	defer n.batch("occ", "address del 10.10.10.5/24 dev eth0\n")
	look := func(ns string, own netip.Addr) (found []Foreign) {
		require.NoError(t, n.inside(ns, func() (err error) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			found, err = ProbeForeign(ctx, "eth0", own)
			return err
		}))
		return found
	}
	require.Empty(t, look("srv", ours))

	d := n.serve(t, "probe")
	stop := n.dnsmasq(t, "occ", "--no-ping", "--dhcp-range=10.10.10.150,10.10.10.160,1h", "--dhcp-boot=other.0")
	e := d.await("foreign-dhcp", "another DHCP server answers on this network: 10.10.10.5 (52:54:00:00:00:aa) offers 10.10.10.1")
	require.Equal(t, "alarm", string(e.Level))
	require.Contains(t, e.Text, `boot file "other.0"`)
	found := look("cli", netip.Addr{}) // from elsewhere, both are seen
	var ids []string
	for _, f := range found {
		ids = append(ids, f.ServerID.String())
	}
	require.ElementsMatch(t, []string{"10.10.10.1", "10.10.10.5"}, ids)
	stop()
	d.await("foreign-dhcp", "no other DHCP server answers any more")
}
