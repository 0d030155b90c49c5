package main

import (
	"context"
	"encoding/pem"
	"fmt"
	"net"
	"runtime"
	"strconv"
	"strings"

	"rackstrap/bootplan"
	"rackstrap/httpboot"
	"rackstrap/inventory"
	"rackstrap/kickstart"
	"rackstrap/lifecycle"
)

// kickstarts renders the kickstart of a machine for the boot plane, with the way back to the node plane in it.
type kickstarts struct {
	rack     *lifecycle.Rack
	renderer *kickstart.Renderer
	ca       string // PEM
	agents   *httpboot.Agents
}

// Render implements httpboot.Kickstart.
func (k *kickstarts) Render(_ context.Context, m inventory.Machine, rec lifecycle.Record, secret string) ([]byte, error) {
	cfg := k.rack.Config()
	return renderKickstart(k.renderer, cfg, m, kickstart.Callback{URL: nodeURL(cfg.Server), CA: k.ca, Secret: secret, Attempt: rec.Attempt,
		Agents: agents(cfg.Server, k.agents.Architectures(), k.agents.SHA256)})
}

// check renders a machine's kickstart, with a token that opens nothing.
func (k *kickstarts) check(d lifecycle.Decision) error {
	_, err := k.Render(context.Background(), d.Machine, d.Record, strings.Repeat("0", 64))
	return err
}

// kernelArchs are the names that the kernel has for architectures.
var kernelArchs = map[string]string{"amd64": "x86_64", "arm64": "aarch64"}

// agents are the programs that nodes fetch, by architecture.
func agents(s inventory.Server, archs []string, sum func(arch string) string) (list []kickstart.Agent) {
	for _, arch := range archs {
		list = append(list, kickstart.Agent{Arch: kernelArchs[arch], URL: bootplan.AgentURL(s, arch), SHA256: sum(arch)})
	}
	return list
}

func renderKickstart(r *kickstart.Renderer, cfg *inventory.Config, m inventory.Machine, back kickstart.Callback) ([]byte, error) {
	medium, ok := cfg.Medium(m.Install.Medium)
	if !ok {
		return nil, fmt.Errorf("%s: medium %q is not configured", m.Name, m.Install.Medium)
	}
	return r.Render(kickstart.Input{Config: cfg, Machine: m, Medium: bootplan.MediumURL(cfg.Server, *medium), Callback: back})
}

// nodeURL is where the node plane is reached.
func nodeURL(s inventory.Server) string {
	return "https://" + net.JoinHostPort(s.Address.String(), strconv.Itoa(s.HTTPSPort))
}

// sampleCallback stands in for what only a running daemon has, so that the reports in a kickstart are
// checked too; its secret is none.
func sampleCallback(s inventory.Server) kickstart.Callback {
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("made by the appliance at its first start")})
	return kickstart.Callback{URL: nodeURL(s), CA: string(ca), Secret: "one-token-for-each-attempt", Attempt: 1,
		Agents: agents(s, []string{runtime.GOARCH}, func(string) string { return strings.Repeat("0", 64) })}
}

// renderSample is the kickstart that a machine would get. A free slot stands for hardware that is not known
// yet: it is rendered for a made-up, locally administered MAC.
func renderSample(r *kickstart.Renderer, cfg *inventory.Config, m inventory.Machine) ([]byte, error) {
	if m.MAC.IsZero() {
		m.MAC = inventory.MAC{0x02}
	}
	return renderKickstart(r, cfg, m, sampleCallback(cfg.Server))
}

// checkKickstarts renders every machine's kickstart, and reads it as its installer will. Machines that differ
// in nothing but name, MAC and address, which the inventory admits in harmless characters only, have the same
// syntax: one of them is read for all, since a thousand kickstarts are thousands of scripts for `bash -n`.
func checkKickstarts(renderer *kickstart.Renderer, cfg *inventory.Config) (faults []error) {
	read := map[string]bool{}
	for _, m := range cfg.Machines {
		text, err := renderSample(renderer, cfg, m)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		subnet, _ := cfg.SubnetOf(m.IP)
		kind := fmt.Sprintf("%#v %s %s", m.Install, m.Role, subnet.Prefix)
		if read[kind] {
			continue
		}
		read[kind] = true
		for _, problem := range renderer.Check(text, renderer.Syntax(m.Install.Profile)) {
			faults = append(faults, fmt.Errorf("kickstart of %s: %s", m.Name, problem))
		}
	}
	return faults
}
