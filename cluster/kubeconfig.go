package cluster

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"rackstrap/firstboot/api"
	"rackstrap/inventory"
	"rackstrap/lifecycle"
)

// kubeconfig has the fields of the admin.conf that kubeadm writes, and no others: kubectl would run a program that an
// `exec` or `auth-provider` names, read files, or send what it sends through a proxy.
type kubeconfig struct {
	typeMeta       `yaml:",inline"`
	Clusters       []kubeCluster `yaml:"clusters"`
	Contexts       []kubeContext `yaml:"contexts"`
	CurrentContext string        `yaml:"current-context"`
	Preferences    struct{}      `yaml:"preferences,omitempty"`
	Users          []kubeUser    `yaml:"users"`
}

type kubeCluster struct {
	Name    string `yaml:"name"`
	Cluster struct {
		CA     string `yaml:"certificate-authority-data"`
		Server string `yaml:"server"`
	} `yaml:"cluster"`
}

type kubeContext struct {
	Name    string `yaml:"name"`
	Context struct {
		Cluster string `yaml:"cluster"`
		User    string `yaml:"user"`
	} `yaml:"context"`
}

type kubeUser struct {
	Name string `yaml:"name"`
	User struct {
		Certificate string `yaml:"client-certificate-data"`
		Key         string `yaml:"client-key-data"`
	} `yaml:"user"`
}

// maxKubeconfig is four times what kubeadm writes with the largest keys.
const maxKubeconfig = 64 << 10

// Kubeconfig has a master send its admin.conf, which is kept nowhere. Nothing of it is passed on but the client's
// certificate and key, once they are known to be that: a control plane that somebody has taken over must not have the
// operator's kubectl run a program or talk to somebody else.
func (c *Coordinator) Kubeconfig(ctx context.Context) (string, error) {
	a, err := c.ask(ctx, need{action: api.Kubeconfig}, 0, func(string) {}, func(*api.Work) {})
	if err != nil {
		return "", err
	}
	cluster := c.o.Rack.Cluster()
	ca, err := parseCA(cluster.CA)
	if err != nil {
		return "", fmt.Errorf("the CA of the cluster is not known: %w", err)
	}
	server, client, err := parseKubeconfig(a.result.Kubeconfig, ca, c.o.Now())
	if err == nil && !slices.Contains(c.servers(cluster), server) {
		err = fmt.Errorf("it names the server %q, which is neither the endpoint nor a control plane of the list", oneLine(server))
	}
	if err != nil {
		reason := fmt.Sprintf("what %s sent is no kubeconfig of this cluster: %s", a.master, oneLine(err.Error()))
		if m, err := c.o.Rack.Member(a.master); err == nil {
			c.say(m.Record, lifecycle.Alarm, "refused", "%s", reason)
		}
		return "", errors.New(reason)
	}
	return renderKubeconfig(c.o.Rack.Config().Cluster.Name, c.reachable(a.master), ca, client), nil
}

// servers are the URLs that a kubeconfig of the cluster may name.
func (c *Coordinator) servers(cluster lifecycle.Cluster) []string {
	cfg := c.o.Rack.Config()
	all := []string{"https://" + cfg.Cluster.ControlPlaneEndpoint, "https://" + cluster.Endpoint}
	for _, m := range cfg.Machines {
		if m.Role == inventory.RoleControlPlane {
			all = append(all, serverOf(cfg, m))
		}
	}
	return all
}

// reachable is the URL of the API for a host that does not know the endpoint's name, which stands in the hosts files of
// the rack alone: that of the master that answered, for its certificate has its address, too. An endpoint that is an
// address, a load balancer's for instance, stays.
func (c *Coordinator) reachable(master string) string {
	cfg := c.o.Rack.Config()
	m, listed := cfg.ByName(master)
	if host, _ := splitEndpoint(cfg.Cluster.ControlPlaneEndpoint); isAddress(host) || !listed {
		return "https://" + cfg.Cluster.ControlPlaneEndpoint
	}
	return serverOf(cfg, *m)
}

func serverOf(cfg *inventory.Config, m inventory.Machine) string {
	return "https://" + netip.AddrPortFrom(m.IP, uint16(bindPort(cfg))).String()
}

// clientPair is a client's certificate and its key, PEM.
type clientPair struct{ certificate, key []byte }

// parseKubeconfig reads a file with one cluster, whose CA is the given one, and one user with a certificate of that CA
// and its key. The server is a URL of host and port alone.
func parseKubeconfig(text string, ca *x509.Certificate, now time.Time) (server string, client clientPair, err error) {
	if len(text) > maxKubeconfig {
		return "", client, fmt.Errorf("it has %d bytes", len(text))
	}
	var k kubeconfig
	if err := decodeStrictly(text, &k); err != nil {
		return "", client, err
	}
	switch {
	case k.APIVersion != "v1" || k.Kind != "Config":
		return "", client, errors.New("it is not of kind Config, version v1")
	case len(k.Clusters) != 1 || len(k.Users) != 1 || len(k.Contexts) != 1:
		return "", client, fmt.Errorf("it has %d clusters, %d users and %d contexts, not one of each", len(k.Clusters), len(k.Users), len(k.Contexts))
	case k.CurrentContext != k.Contexts[0].Name, k.Contexts[0].Context.Cluster != k.Clusters[0].Name, k.Contexts[0].Context.User != k.Users[0].Name:
		return "", client, errors.New("its context is not that of its cluster and its user")
	}
	if server, err = serverURL(k.Clusters[0].Cluster.Server); err != nil {
		return "", client, err
	}
	given, err := dataBlock(k.Clusters[0].Cluster.CA, "CERTIFICATE")
	if err != nil {
		return "", client, fmt.Errorf("certificate-authority-data: %w", err)
	}
	if !bytes.Equal(given.Bytes, ca.Raw) {
		return "", client, errors.New("its CA is not that of the cluster")
	}
	if client, err = parseClient(k.Users[0].User.Certificate, k.Users[0].User.Key, ca, now); err != nil {
		return "", client, err
	}
	return server, client, nil
}

// decodeStrictly reads one document of YAML without fields that are not known, keys that are there twice, anchors,
// aliases and tags: no program writes a kubeconfig with them, and readers differ in what they make of them.
func decodeStrictly(text string, into any) error {
	var tree yaml.Node
	if err := yaml.NewDecoder(strings.NewReader(text)).Decode(&tree); err != nil {
		return fmt.Errorf("it is no YAML: %w", err)
	}
	if err := simple(&tree); err != nil {
		return err
	}
	dec := yaml.NewDecoder(strings.NewReader(text))
	dec.KnownFields(true)
	if err := dec.Decode(into); err != nil {
		return fmt.Errorf("it has other fields than an admin.conf: %w", err)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return errors.New("it has more than one document")
	}
	return nil
}

func simple(n *yaml.Node) error {
	if n.Kind == yaml.AliasNode || n.Anchor != "" || n.Style&yaml.TaggedStyle != 0 || n.Tag == "!!merge" {
		return fmt.Errorf("line %d: anchors, aliases and tags are not read", n.Line)
	}
	for _, below := range n.Content {
		if err := simple(below); err != nil {
			return err
		}
	}
	return nil
}

// serverURL is https://HOST:PORT, as kubeadm writes it.
func serverURL(text string) (string, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" || u.Host == "" || text != "https://"+u.Host {
		return "", fmt.Errorf("the server %q is no https://HOST:PORT", oneLine(text))
	}
	return text, nil
}

// parseClient takes a certificate that is for clients, of that CA and in force, and the key that belongs to it.
func parseClient(certificate, key string, ca *x509.Certificate, now time.Time) (clientPair, error) {
	certBlock, err := dataBlock(certificate, "CERTIFICATE")
	if err != nil {
		return clientPair{}, fmt.Errorf("client-certificate-data: %w", err)
	}
	keyBlock, err := dataBlock(key, "RSA PRIVATE KEY", "EC PRIVATE KEY", "PRIVATE KEY")
	if err != nil {
		return clientPair{}, fmt.Errorf("client-key-data: %w", err)
	}
	cert, err := x509.ParseCertificate(certBlock.Bytes)
	if err != nil {
		return clientPair{}, fmt.Errorf("client-certificate-data: %w", err)
	}
	switch err := cert.CheckSignatureFrom(ca); {
	case err != nil:
		return clientPair{}, fmt.Errorf("the client's certificate is not signed by the cluster's CA: %w", err)
	case !bytes.Equal(cert.RawIssuer, ca.RawSubject):
		return clientPair{}, errors.New("the client's certificate names another issuer")
	case cert.IsCA || !slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageClientAuth):
		return clientPair{}, errors.New("the client's certificate is not for a client")
	case !inForce(cert, now):
		return clientPair{}, fmt.Errorf("the client's certificate is in force from %s to %s", cert.NotBefore.Format(time.RFC3339), cert.NotAfter.Format(time.RFC3339))
	}
	client := clientPair{pem.EncodeToMemory(certBlock), pem.EncodeToMemory(keyBlock)}
	if _, err := tls.X509KeyPair(client.certificate, client.key); err != nil {
		return clientPair{}, errors.New("the client's key is not that of its certificate") // the error may quote it
	}
	return client, nil
}

// inForce allows for the clock of the machine that made the certificate.
func inForce(cert *x509.Certificate, now time.Time) bool {
	return !now.Add(maxSkew).Before(cert.NotBefore) && now.Before(cert.NotAfter)
}

func dataBlock(data string, types ...string) (*pem.Block, error) {
	text, err := base64.StdEncoding.DecodeString(data)
	if err != nil {
		return nil, errors.New("it is not in base64")
	}
	return oneBlock(string(text), types...)
}

// oneBlock reads a text that is one block of PEM, without headers, and nothing else.
func oneBlock(text string, types ...string) (*pem.Block, error) {
	block, rest := pem.Decode([]byte(text))
	switch {
	case block == nil, !slices.Contains(types, block.Type):
		return nil, fmt.Errorf("it is no %s in PEM", types[0])
	case !strings.HasPrefix(strings.TrimSpace(text), "-----BEGIN "), len(bytes.TrimSpace(rest)) != 0, len(block.Headers) != 0:
		return nil, errors.New("there is more than one block of PEM")
	}
	return block, nil
}

// renderKubeconfig writes what was read, with names of the appliance's own.
func renderKubeconfig(name, server string, ca *x509.Certificate, client clientPair) string {
	const user = "kubernetes-admin"
	context := user + "@" + name
	k := kubeconfig{typeMeta: typeMeta{"v1", "Config"}, CurrentContext: context,
		Clusters: []kubeCluster{{Name: name}}, Contexts: []kubeContext{{Name: context}}, Users: []kubeUser{{Name: user}}}
	k.Clusters[0].Cluster.Server = server
	k.Clusters[0].Cluster.CA = base64.StdEncoding.EncodeToString([]byte(certificateText(ca)))
	k.Contexts[0].Context.Cluster, k.Contexts[0].Context.User = name, user
	k.Users[0].User.Certificate = base64.StdEncoding.EncodeToString(client.certificate)
	k.Users[0].User.Key = base64.StdEncoding.EncodeToString(client.key)
	return documents(k)
}

func certificateText(cert *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
}
