// Package fakenode is a Kubernetes cluster and the programs that drive it, in memory, for tests: what an agent would do
// with a work is done to the model, which notes everything that must never happen. It carries nothing anywhere: tests
// bring works and results to and fro.
package fakenode

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"go.yaml.in/yaml/v3"

	"rackstrap/firstboot/api"
	"rackstrap/internal/testca"
)

// Kube is the one cluster of the machines of a test.
type Kube struct {
	mu      sync.Mutex
	ca      testca.Pair
	tokens  map[string]string // by id: the secret half
	key     string            // of the certificates uploaded last
	Nodes   map[string]*Node
	Inits   int // kubeadm inits that ran
	Minted  int
	Faults  []string        // what must never happen, and did
	Secrets map[string]bool // every secret that there ever was
	joining string          // the control plane whose join is under way
}

// Node is a node of the cluster.
type Node struct {
	Master bool
	Ready  bool
	IP     string
}

// New makes a cluster that is not initialised.
func New() *Kube {
	return &Kube{tokens: map[string]string{}, Nodes: map[string]*Node{}, Secrets: map[string]bool{}}
}

// CA is the cluster's, once it is initialised.
func (k *Kube) CA() testca.Pair {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.ca
}

// Machine is one machine's disk, and the programs on it.
type Machine struct {
	Name, IP string
	Kube     *Kube
	Joined   bool // its disk holds what kubeadm left
}

// Wipe is a new installation.
func (m *Machine) Wipe() { m.Joined = false }

func (k *Kube) fault(format string, args ...any) {
	k.Faults = append(k.Faults, fmt.Sprintf(format, args...))
}

// TokensLeft are the ids of the tokens that exist.
func (k *Kube) TokensLeft() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var ids []string
	for id := range k.tokens {
		ids = append(ids, id)
	}
	return ids
}

// Expire forgets a token, as its TTL would.
func (k *Kube) Expire() {
	k.mu.Lock()
	defer k.mu.Unlock()
	clear(k.tokens)
}

// Lose takes a machine away for good: its node stays, and is not Ready.
func (k *Kube) Lose(name string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if n := k.Nodes[name]; n != nil {
		n.Ready = false
	}
}

type document struct {
	Kind            string
	BootstrapTokens []struct{ Token string }
	CertificateKey  string
	Discovery       struct {
		BootstrapToken struct {
			Token, APIServerEndpoint string
			CACertHashes             []string
		}
	}
	NodeRegistration struct{ Name string }
	ControlPlane     *struct{ CertificateKey string }
}

// UnmarshalYAML maps kubeadm's spelling.
func (d *document) UnmarshalYAML(n *yaml.Node) error {
	var raw struct {
		Kind            string `yaml:"kind"`
		BootstrapTokens []struct {
			Token string `yaml:"token"`
		} `yaml:"bootstrapTokens"`
		CertificateKey string `yaml:"certificateKey"`
		Discovery      struct {
			BootstrapToken struct {
				Token        string   `yaml:"token"`
				Endpoint     string   `yaml:"apiServerEndpoint"`
				CACertHashes []string `yaml:"caCertHashes"`
			} `yaml:"bootstrapToken"`
		} `yaml:"discovery"`
		NodeRegistration struct {
			Name string `yaml:"name"`
		} `yaml:"nodeRegistration"`
		ControlPlane *struct {
			CertificateKey string `yaml:"certificateKey"`
		} `yaml:"controlPlane"`
	}
	if err := n.Decode(&raw); err != nil {
		return err
	}
	d.Kind, d.CertificateKey = raw.Kind, raw.CertificateKey
	for _, t := range raw.BootstrapTokens {
		d.BootstrapTokens = append(d.BootstrapTokens, struct{ Token string }{t.Token})
	}
	b := &d.Discovery.BootstrapToken
	b.Token, b.APIServerEndpoint, b.CACertHashes = raw.Discovery.BootstrapToken.Token, raw.Discovery.BootstrapToken.Endpoint, raw.Discovery.BootstrapToken.CACertHashes
	d.NodeRegistration.Name = raw.NodeRegistration.Name
	if raw.ControlPlane != nil {
		d.ControlPlane = &struct{ CertificateKey string }{raw.ControlPlane.CertificateKey}
	}
	return nil
}

func firstDocument(text string) (d document, err error) {
	return d, yaml.NewDecoder(strings.NewReader(text)).Decode(&d)
}

// Do does a work.
func (m *Machine) Do(w api.Work) api.Result {
	k := m.Kube
	k.mu.Lock()
	defer k.mu.Unlock()
	switch w.Action {
	case api.Init:
		return m.init(w)
	case api.Join, api.JoinControlPlane:
		return m.join(w)
	case api.Reset:
		m.Joined = false
		return api.Result{OK: true}
	case api.Done:
		return api.Result{OK: true}
	}
	if n := k.Nodes[m.Name]; n == nil || !n.Master || !m.Joined {
		k.fault("%s was asked for %s and is no master", m.Name, w.Action)
		return api.Result{Error: "no admin.conf"}
	}
	switch w.Action {
	case api.MintToken:
		token := w.TokenID + "." + random(8)
		k.tokens[w.TokenID] = token
		k.Secrets[token] = true
		k.Minted++
		return api.Result{OK: true, Token: token}
	case api.DeleteToken:
		delete(k.tokens, w.TokenID)
		return api.Result{OK: true}
	case api.UploadCerts:
		d, err := firstDocument(w.KubeadmConfig)
		if err != nil {
			return api.Result{Error: err.Error()}
		}
		k.key = d.CertificateKey
		k.Secrets[k.key] = true
		return api.Result{OK: true, CertificateKey: k.key}
	case api.CheckNode:
		n := k.Nodes[w.Node]
		if n == nil {
			return api.Result{OK: true, Reason: "there is no such node"}
		}
		if n.Ready && k.joining == w.Node {
			k.joining = ""
		}
		return api.Result{OK: true, Ready: n.Ready, Address: n.IP, Reason: "KubeletNotReady"}
	case api.ListNodes:
		result := api.Result{OK: true}
		for _, name := range slices.Sorted(maps.Keys(k.Nodes)) {
			n := k.Nodes[name]
			said := api.Node{Name: name, Ready: "True", Address: n.IP}
			if !n.Ready {
				said.Ready, said.Reason = "Unknown", "NodeStatusUnknown"
			}
			result.Nodes = append(result.Nodes, said)
		}
		return result
	case api.DeleteNode:
		if w.Node == m.Name {
			k.fault("%s was asked to delete itself", m.Name)
		}
		delete(k.Nodes, w.Node)
		if k.joining == w.Node {
			k.joining = ""
		}
		return api.Result{OK: true}
	case api.Kubeconfig:
		admin := k.ca.Admin()
		text := testca.Kubeconfig("https://"+m.IP+":6443", "kubernetes-admin", k.ca.Cert, admin)
		k.Secrets[admin.Key], k.Secrets[base64.StdEncoding.EncodeToString([]byte(admin.Key))] = true, true
		return api.Result{OK: true, Kubeconfig: text}
	case api.VerifyCluster:
		return api.Result{OK: true, Output: "reached through " + strings.Join(w.Addresses, " ")}
	}
	k.fault("%s was asked for %s", m.Name, w.Action)
	return api.Result{Error: "unknown action"}
}

func (m *Machine) init(w api.Work) api.Result {
	k := m.Kube
	if m.Joined { // admin.conf exists, and the API answers
		return api.Result{OK: true, CACert: k.ca.Cert}
	}
	d, err := firstDocument(w.KubeadmConfig)
	if err != nil {
		return api.Result{Error: err.Error()}
	}
	k.Inits++
	if k.ca.Cert != "" {
		k.fault("%s initialised a second cluster", m.Name)
	}
	k.ca = testca.New()
	for _, t := range d.BootstrapTokens {
		id, _, _ := strings.Cut(t.Token, ".")
		k.tokens[id] = t.Token
		k.Secrets[t.Token] = true
	}
	m.Joined = true
	k.Nodes[m.Name] = &Node{Master: true, Ready: true, IP: m.IP}
	return api.Result{OK: true, CACert: k.ca.Cert}
}

func (m *Machine) join(w api.Work) api.Result {
	k := m.Kube
	if m.Joined {
		return api.Result{OK: true}
	}
	d, err := firstDocument(w.KubeadmConfig)
	if err != nil {
		return api.Result{Error: err.Error()}
	}
	b := d.Discovery.BootstrapToken
	id, _, _ := strings.Cut(b.Token, ".")
	switch {
	case d.NodeRegistration.Name != m.Name:
		k.fault("%s was told to join as %s", m.Name, d.NodeRegistration.Name)
	case k.tokens[id] != b.Token:
		return api.Result{Error: "could not find a JWS signature for token ID", AuthError: true, Retryable: true}
	case len(b.CACertHashes) != 1 || b.CACertHashes[0] != k.ca.Hash():
		return api.Result{Error: "the CA is not the pinned one"}
	}
	if n := k.Nodes[m.Name]; n != nil && n.Ready {
		return api.Result{Error: "a Node with name " + m.Name + " and status Ready already exists"}
	}
	if w.Action == api.JoinControlPlane {
		if d.ControlPlane == nil || d.ControlPlane.CertificateKey != k.key || k.key == "" {
			return api.Result{Error: "the certificates cannot be decrypted", Retryable: true}
		}
		if k.joining != "" && k.joining != m.Name {
			k.fault("%s joined as a control plane while %s was at it", m.Name, k.joining)
		}
		k.joining = m.Name
	}
	m.Joined = true
	k.Nodes[m.Name] = &Node{Master: w.Action == api.JoinControlPlane, Ready: true, IP: m.IP}
	return api.Result{OK: true}
}

func random(bytes int) string {
	raw := make([]byte, bytes)
	rand.Read(raw)
	return hex.EncodeToString(raw)
}
