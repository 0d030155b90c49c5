package agent

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"rackstrap/internal/plain"
)

// Files of kubeadm and kubelet.
const (
	adminConf      = "/etc/kubernetes/admin.conf"
	controllerConf = "/etc/kubernetes/controller-manager.conf"
	kubeletConf    = "/etc/kubernetes/kubelet.conf"
	caFile         = "/etc/kubernetes/pki/ca.crt"
	manifests      = "/etc/kubernetes/manifests"
	apiManifest    = manifests + "/kube-apiserver.yaml"
	etcdData       = "/var/lib/etcd"
	criSocket      = "unix:///run/containerd/containerd.sock"
)

// localKubeconfig is admin.conf, pointed at this host's own API server: the cluster's endpoint may lead to a master
// that is gone, and a Ready master must be able to serve without it.
func (h *Host) localKubeconfig() (string, error) {
	admin, err := os.ReadFile(h.path(adminConf))
	if err != nil {
		return "", fmt.Errorf("this is no master: %w", err)
	}
	controller, err := os.ReadFile(h.path(controllerConf)) // kubeadm gives it the local endpoint
	if err != nil {
		return h.path(adminConf), nil
	}
	local, err := pointTo(admin, controller)
	if err != nil {
		return "", fmt.Errorf("admin.conf: %w", err)
	}
	return h.file("admin.conf", string(local))
}

// kubeconfig is as much of the file's form as is changed here.
type kubeconfig struct {
	Clusters []struct {
		Cluster struct {
			Server string `yaml:"server"`
		} `yaml:"cluster"`
	} `yaml:"clusters"`
}

// pointTo gives the first kubeconfig the server of the second.
func pointTo(admin, other []byte) ([]byte, error) {
	var from kubeconfig
	if err := yaml.Unmarshal(other, &from); err != nil {
		return nil, err
	}
	var whole map[string]any
	if err := yaml.Unmarshal(admin, &whole); err != nil {
		return nil, err
	}
	clusters, _ := whole["clusters"].([]any)
	if len(clusters) != 1 || len(from.Clusters) != 1 {
		return nil, errors.New("not exactly one cluster")
	}
	entry, _ := clusters[0].(map[string]any)
	cluster, _ := entry["cluster"].(map[string]any)
	server, err := url.Parse(from.Clusters[0].Cluster.Server)
	if cluster == nil || err != nil || server.Scheme != "https" || server.Host == "" {
		return nil, errors.New("no server")
	}
	cluster["server"] = server.String()
	return yaml.Marshal(whole)
}

// kubectl runs it against this host's API server.
func (j *job) kubectl(ctx context.Context, args ...string) (string, error) {
	config, err := j.localKubeconfig()
	if err != nil {
		return "", err
	}
	return j.run(ctx, j.session, "kubectl", append([]string{"--kubeconfig", config}, args...)...)
}

// answers tells whether this host's API server is alive.
func (j *job) answers(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := j.kubectl(ctx, "get", "--raw", "/livez", "--request-timeout=5s")
	return err == nil && strings.TrimSpace(out) == "ok"
}

// awaitAPI waits for this host's API server: after a reboot its pods need a while.
func (j *job) awaitAPI(ctx context.Context, limit time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for !j.answers(ctx) {
		if sleep(ctx, j.pause()) != nil {
			return false
		}
	}
	return true
}

// node is what matters of a node object.
type node struct {
	Metadata struct {
		Name   string            `json:"name"`
		Labels map[string]string `json:"labels"`
	} `json:"metadata"`
	Status struct {
		Addresses  []struct{ Type, Address string } `json:"addresses"`
		Conditions []condition                      `json:"conditions"`
	} `json:"status"`
}

type condition struct{ Type, Status, Reason, Message string }

// parseNode reads what kubectl printed; nothing at all is a node that does not exist.
func parseNode(text string) (*node, error) {
	if strings.TrimSpace(text) == "" {
		return nil, nil
	}
	var n node
	if err := json.Unmarshal([]byte(text), &n); err != nil {
		return nil, fmt.Errorf("kubectl get node: %w", err)
	}
	if n.Metadata.Name == "" {
		return nil, errors.New("kubectl get node: an object without a name")
	}
	return &n, nil
}

func (n *node) address() string {
	for _, a := range n.Status.Addresses {
		if a.Type == "InternalIP" {
			return a.Address
		}
	}
	return ""
}

// marked tells whether the node has the label of control planes, which the last phase of kubeadm join gives it.
func (n *node) marked() bool {
	_, ok := n.Metadata.Labels["node-role.kubernetes.io/control-plane"]
	return ok
}

// ready tells whether kubelet says so, and if not why.
func (n *node) ready() (bool, string) {
	for _, c := range n.Status.Conditions {
		if c.Type == "Ready" {
			return c.Status == "True", plain.Line(c.Reason+": "+c.Message, 300)
		}
	}
	return false, "kubelet has not reported yet"
}

// publicKeyHash is what kubeadm pins: the SHA-256 of the SubjectPublicKeyInfo.
func publicKeyHash(text []byte) (string, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE" {
		return "", errors.New("no certificate")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return "sha256:" + hex.EncodeToString(sum[:]), nil
}

// leftovers tells what of kubeadm lies on this host; "" is nothing.
func (h *Host) leftovers() string {
	for _, pattern := range []string{manifests + "/*.yaml", adminConf, kubeletConf, "/etc/kubernetes/bootstrap-kubelet.conf", caFile, etcdData + "/member", "/var/lib/kubelet/config.yaml"} {
		if found, _ := filepath.Glob(h.path(pattern)); len(found) > 0 {
			return strings.TrimPrefix(found[0], strings.TrimSuffix(h.path("/"), "/"))
		}
	}
	return ""
}

// counter reads how often kubeadm init was begun on this machine in this attempt.
func (h *Host) tries() int {
	text, _ := os.ReadFile(h.own(fileTries))
	n, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	return n
}

func (h *Host) setTries(n int) error {
	return writeAtomically(h.own(fileTries), []byte(strconv.Itoa(n)+"\n"))
}
