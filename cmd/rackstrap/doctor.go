package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"rackstrap/assets"
	"rackstrap/dhcp"
	"rackstrap/inventory"
	"rackstrap/lifecycle"
	"rackstrap/operator"
	"rackstrap/preflight"
)

// finding is the outcome of one check of `doctor`.
type finding struct {
	Check   string `json:"check"`
	OK      bool   `json:"ok"`
	Warning bool   `json:"warning,omitempty"` // of one that is OK: there is something to know
	Text    string `json:"text"`
}

// mark is how a table shows it.
func (f finding) mark() string {
	switch {
	case !f.OK:
		return "FAULT"
	case f.Warning:
		return "WARNING"
	}
	return "ok"
}

func (a *app) doctorCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "doctor", Short: "Look for what would keep the rack from booting", Args: args(cobra.NoArgs)}
	format := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		findings := a.examine(cmd.Context())
		err := print(cmd, *format, findings, func(w io.Writer) {
			for _, f := range findings {
				row(w, f.mark(), f.Check, f.Text)
			}
		})
		if err != nil {
			return err
		}
		faults := 0
		for _, f := range findings {
			if !f.OK {
				faults++
			}
		}
		if faults > 0 {
			return fmt.Errorf("%d of %d checks found a fault", faults, len(findings))
		}
		return nil
	}
	return cmd
}

// examine makes all checks; one that needs the outcome of another that failed is left out.
func (a *app) examine(ctx context.Context) []finding {
	var findings []finding
	found := func(check string, err error, good string, values ...any) bool {
		f := finding{Check: check, OK: err == nil, Text: fmt.Sprintf(good, values...)}
		if err != nil {
			f.Text = err.Error()
		}
		findings = append(findings, f)
		return f.OK
	}
	cfg, err := a.loadConfig()
	if !found("configuration", err, "good") {
		return findings
	}
	for _, w := range cfg.Warnings {
		findings = append(findings, finding{Check: "configuration", OK: true, Warning: true, Text: w})
	}
	resolved, err := cfg.Resolve(interfaceAddresses)
	up := found("interface", err, "%s", interfaceText(resolved))
	if up {
		cfg = resolved
	}
	found("files", cfg.CheckFiles(), "all there")
	findings = append(findings, judged(cfg, verdict(ctx, cfg, reach{servers: serverTime, images: true}))...)
	found("data directory", writable(cfg.Server.DataDir), "%s can be written", cfg.Server.DataDir)
	if !up {
		return findings
	}
	if st, err := operator.NewClient(cfg.Server.DataDir).Status(ctx); err == nil {
		found("daemon", nil, "runs since %s, listens on %s", age(st.Now, st.Started), strings.Join(st.Listeners, ", "))
		found("addresses", addressFaults(st.Machines), "no machine is known to have another one than the list's%s", addressAdvice(cfg))
	} else {
		for _, p := range ports(cfg) {
			found("port "+p.String(), p.free(cfg.Server.Address), "free")
		}
	}
	found("other DHCP servers", foreignServers(ctx, cfg), "none answers on %s", cfg.Server.Interface)
	return findings
}

// addressFaults are the machines that are to be installed and cannot, because another DHCP server gave them another
// address than the list's, or because of whatever else the appliance waits for.
func addressFaults(machines []lifecycle.Status) error {
	var faults []error
	for _, m := range machines {
		if m.Action == lifecycle.ActionWait {
			faults = append(faults, errors.New(m.Reason))
		}
	}
	return errors.Join(faults...)
}

// addressAdvice says what is up to the other DHCP server, where there is one.
func addressAdvice(cfg *inventory.Config) string {
	if cfg.Network.DHCP.Mode == inventory.DHCPServer {
		return ""
	}
	return fmt.Sprintf("; with network.dhcp.mode: %s the other DHCP server has to reserve them, by MAC", cfg.Network.DHCP.Mode)
}

// judged is the verdict as findings: a line for each fault and warning, and one for each subject that has none and could be
// looked at.
func judged(cfg *inventory.Config, report preflight.Report) (findings []finding) {
	examined := len(report.About("profiles"))+len(report.About("repositories")) == 0
	good := func(text, subject string, depends ...string) {
		for _, other := range depends {
			if len(report.About(other).Faults()) > 0 {
				return
			}
		}
		if examined && len(report.About(subject)) == 0 {
			findings = append(findings, finding{Check: subject, OK: true, Text: text})
		}
	}
	for _, m := range cfg.Media {
		if m.URL == "" {
			good("there, whole and readable", "medium "+m.Name)
		}
	}
	good(loaderText(cfg), "loaders")
	good("of every machine renders", "boot", "medium", "loaders")
	if len(report.About("repository")) == 0 { // its warnings are about packages
		good("all are where they will be looked for", "packages", "medium")
	}
	good("are what their installers read", "kickstarts")
	good("there for every medium", "agents", "medium")
	good("all can be imported", "images")
	good("what kubeadm and kubectl are given renders", "cluster")
	for _, f := range report {
		findings = append(findings, finding{Check: f.Subject, OK: f.Warning, Warning: f.Warning, Text: f.Text})
	}
	return findings
}

func interfaceText(cfg *inventory.Config) string {
	if cfg == nil {
		return ""
	}
	return fmt.Sprintf("%s has %s", cfg.Server.Interface, cfg.Server.Address)
}

// loaderText lists what each firmware gets.
func loaderText(cfg *inventory.Config) string {
	loaders, err := assets.OpenLoaders(cfg.Server.LoadersDir)
	if err != nil {
		return ""
	}
	var text, none []string
	for _, f := range assets.Firmwares() {
		if l, ok := loaders.For(f); ok {
			text = append(text, string(f)+" "+l.Name)
		} else {
			none = append(none, string(f))
		}
	}
	out := strings.Join(text, ", ")
	if len(none) > 0 {
		out += " (none for " + strings.Join(none, ", ") + ")"
	}
	return out
}

func writable(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	probe, err := os.CreateTemp(dir, "doctor-*")
	if err != nil {
		return err
	}
	defer os.Remove(probe.Name())
	_, err = probe.Write(make([]byte, 1<<20)) // a full disk shows here, not in the middle of an installation
	return errors.Join(err, probe.Sync(), probe.Close())
}

// port is one that the daemon will want.
type port struct {
	network string
	number  int
	key     string
}

func (p port) String() string { return fmt.Sprintf("%s/%d (%s)", p.network, p.number, p.key) }

func ports(cfg *inventory.Config) []port {
	all := []port{{"tcp", cfg.Server.HTTPPort, "server.http_port"}, {"tcp", cfg.Server.HTTPSPort, "server.https_port"}, {"udp", cfg.Server.TFTPPort, "server.tftp_port"}}
	if cfg.Server.SyslogPort != 0 {
		all = append(all, port{"tcp", cfg.Server.SyslogPort, "server.syslog_port"})
	}
	if cfg.Network.DHCP.Mode != inventory.DHCPOff {
		all = append(all, port{"udp", cfg.Server.DHCPPort, "DHCP"}, port{"udp", 4011, "PXE"})
	}
	return all
}

// free tells who is in the way. The wildcard address is tried too: a server bound to it would take the
// packets.
func (p port) free(at netip.Addr) error {
	for _, host := range []string{at.String(), ""} {
		where := net.JoinHostPort(host, strconv.Itoa(p.number))
		var socket io.Closer
		var err error
		if p.network == "udp" {
			socket, err = net.ListenPacket("udp4", where)
		} else {
			socket, err = net.Listen("tcp4", where)
		}
		if err != nil {
			return fmt.Errorf("%w: `ss -lpn sport = :%d` tells who has it", err, p.number)
		}
		socket.Close()
	}
	return nil
}

func foreignServers(ctx context.Context, cfg *inventory.Config) error {
	if cfg.Network.DHCP.Mode != inventory.DHCPServer {
		return nil // one is expected
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	found, err := dhcp.ProbeForeign(ctx, cfg.Server.Interface, cfg.Server.Address)
	if err != nil {
		return err
	}
	var names []string
	for _, f := range found {
		names = append(names, f.String())
	}
	if len(names) > 0 {
		return fmt.Errorf("%s: switch it off, or set network.dhcp.mode: proxy", strings.Join(names, "; "))
	}
	return nil
}
