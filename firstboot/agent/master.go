package agent

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"rackstrap/firstboot/api"
)

var (
	tokenForm      = regexp.MustCompile(`^[a-z0-9]{6}\.[a-z0-9]{16}$`)
	tokenID        = regexp.MustCompile(`^[a-z0-9]{6}$`)
	certificateKey = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

// kubeadm runs a command of kubeadm that talks to this host's API server.
func (j *job) kubeadm(ctx context.Context, args ...string) (string, error) {
	config, err := j.localKubeconfig()
	if err != nil {
		return "", err
	}
	return j.run(ctx, j.session, "kubeadm", append(args, "--kubeconfig", config)...)
}

// bootstrapToken is one object of `kubeadm token list -o json`.
type bootstrapToken struct {
	Token       string   `json:"token"`
	Description string   `json:"description"`
	Usages      []string `json:"usages"`
}

func (t bootstrapToken) id() string { id, _, _ := strings.Cut(t.Token, "."); return id }

// parseTokens reads a stream of objects.
func parseTokens(text string) ([]bootstrapToken, error) {
	var all []bootstrapToken
	decode := json.NewDecoder(strings.NewReader(text))
	for {
		var t bootstrapToken
		err := decode.Decode(&t)
		switch {
		case errors.Is(err, io.EOF):
			return all, nil
		case err != nil:
			return nil, fmt.Errorf("kubeadm token list: %w", err)
		case !tokenForm.MatchString(t.Token):
			return nil, errors.New("kubeadm token list: an object without a token")
		}
		all = append(all, t)
	}
}

// dropTokens deletes the join tokens with a description.
func (j *job) dropTokens(ctx context.Context, description string) error {
	out, err := j.kubeadm(ctx, "token", "list", "-o", "json")
	if err != nil {
		return err
	}
	all, err := parseTokens(out)
	if err != nil {
		return err
	}
	for _, t := range all {
		if len(t.Usages) > 0 && t.Description == description { // without usages: kubeadm's timer of the certificates
			if err := j.dropToken(ctx, t.id()); err != nil {
				return err
			}
		}
	}
	return nil
}

func (j *job) dropToken(ctx context.Context, id string) error {
	_, err := j.kubeadm(ctx, "token", "delete", id)
	var p *programError
	if errors.As(err, &p) && strings.Contains(p.Output, "not found") {
		return nil
	}
	return err
}

// dropDefaultTokens deletes the token, good for a day, that kubeadm init leaves for people. It has no description.
func (j *job) dropDefaultTokens(ctx context.Context) error {
	if err := j.dropTokens(ctx, ""); err != nil {
		return retryf("the token of kubeadm init could not be deleted: %w", err)
	}
	return nil
}

// mintToken makes a token for one node, under the ID that the appliance chose; a token that has it is replaced. The
// secret half stands in a file: command lines are seen by everybody, pods included.
func (j *job) mintToken(ctx context.Context) (api.Result, error) {
	var result api.Result
	if j.work.TTLSeconds <= 0 || j.work.Description == "" {
		return result, fatalf("a token needs a life and a description")
	}
	version, err := j.run(ctx, j.session, "kubeadm", "version", "-o", "short")
	if err != nil {
		return result, err
	}
	token := j.work.TokenID + "." + randomWord(16)
	config, err := tokenConfig(token, j.work.Description, j.work.TTLSeconds, strings.TrimSpace(version), j.o.Config.Name)
	if err != nil {
		return result, err
	}
	file, err := j.file("token.yaml", config)
	if err != nil {
		return result, err
	}
	if err := j.dropToken(ctx, j.work.TokenID); err != nil {
		return result, err
	}
	out, err := j.kubeadm(ctx, "token", "create", "--config", file)
	if err != nil {
		return result, err
	}
	if !slices.Contains(words(out), token) {
		return result, errors.New("kubeadm token create did not print the token")
	}
	result.Token = token
	return result, nil
}

// tokenConfig is the configuration of `kubeadm token create`. It holds more than the token, for what it does not hold
// kubeadm finds out: the version on the internet, address and container runtime on the host.
func tokenConfig(token, description string, seconds int, version, name string) (string, error) {
	initial, err := yaml.Marshal(object{
		"apiVersion": "kubeadm.k8s.io/v1beta3", "kind": "InitConfiguration",
		"bootstrapTokens": []object{{"token": token, "description": description, "ttl": strconv.Itoa(seconds) + "s",
			"usages": []string{"signing", "authentication"}, "groups": []string{"system:bootstrappers:kubeadm:default-node-token"}}},
		"nodeRegistration": object{"name": name, "criSocket": criSocket},
		"localAPIEndpoint": object{"advertiseAddress": "192.0.2.1"}, // not used
	})
	if err != nil {
		return "", err
	}
	cluster, err := yaml.Marshal(object{"apiVersion": "kubeadm.k8s.io/v1beta3", "kind": "ClusterConfiguration", "kubernetesVersion": version})
	return string(initial) + "---\n" + string(cluster), err
}

// randomWord is made of the characters of a token's secret half.
func randomWord(length int) string {
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789"
	word := make([]byte, 0, length)
	for len(word) < length {
		var raw [1]byte
		rand.Read(raw[:])
		if int(raw[0]) < 256/len(letters)*len(letters) { // no letter more often than another
			word = append(word, letters[int(raw[0])%len(letters)])
		}
	}
	return string(word)
}

func (j *job) deleteToken(ctx context.Context) (api.Result, error) {
	return api.Result{}, j.dropToken(ctx, j.work.TokenID)
}

// uploadCerts uploads the control plane's certificates, encrypted under the key of the configuration. kubeadm looks
// the version up on the internet unless it has a configuration, and refuses --certificate-key beside it.
func (j *job) uploadCerts(ctx context.Context) (api.Result, error) {
	var result api.Result
	config, err := j.file("kubeadm.yaml", j.work.KubeadmConfig)
	if err != nil {
		return result, err
	}
	out, err := j.kubeadm(ctx, "init", "phase", "upload-certs", "--upload-certs", "--config", config)
	if err != nil {
		return result, err
	}
	for _, word := range words(out) {
		if certificateKey.MatchString(word) {
			result.CertificateKey = word
		}
	}
	if result.CertificateKey == "" {
		return result, errors.New("kubeadm printed no certificate key")
	}
	return result, nil
}

// checkNode asks whether a node is Ready. Of a master its API server and its etcd must be, too: the next one joins
// only then.
func (j *job) checkNode(ctx context.Context) (api.Result, error) {
	var result api.Result
	n, err := j.node(ctx, j.work.Node)
	switch {
	case err != nil:
		return result, err
	case n == nil:
		result.Reason = "the cluster does not know it yet"
		return result, nil
	}
	result.Address = n.address()
	if result.Ready, result.Reason = n.ready(); !result.Ready {
		return result, nil
	}
	result.Reason = ""
	if j.work.ControlPlane {
		result.Reason, err = j.controlPlaneFault(ctx, n)
		result.Ready = err == nil && result.Reason == ""
	}
	return result, err
}

func (j *job) node(ctx context.Context, name string) (*node, error) {
	out, err := j.kubectl(ctx, "get", "node", name, "-o", "json", "--ignore-not-found", "--request-timeout=20s")
	if err != nil {
		return nil, err
	}
	return parseNode(out)
}

// controlPlaneFault says what a master lacks, "" if nothing.
func (j *job) controlPlaneFault(ctx context.Context, n *node) (string, error) {
	if !n.marked() {
		return "it is not marked as a control plane yet", nil
	}
	for _, pod := range []string{"kube-apiserver-", "etcd-"} {
		pod += n.Metadata.Name
		out, err := j.kubectl(ctx, "-n", "kube-system", "get", "pod", pod, "-o", "json", "--ignore-not-found", "--request-timeout=20s")
		if err != nil {
			return "", err
		}
		p, err := parseNode(out) // a pod has its conditions at the same place
		if err != nil {
			return "", err
		}
		if p == nil {
			return pod + " is not there yet", nil
		}
		if ready, why := p.ready(); !ready {
			return pod + " is not ready: " + why, nil
		}
	}
	return "", nil
}

// deleteNode takes a node out of the cluster: its pods leave, its etcd member goes, then the object. A node that is
// dead cannot be drained, so draining has a limit and may fail.
func (j *job) deleteNode(ctx context.Context) (api.Result, error) {
	var result api.Result
	name := j.work.Node
	if name == j.o.Config.Name {
		return result, fatalf("a master cannot take itself out of the cluster")
	}
	n, err := j.node(ctx, name)
	if err != nil {
		return result, err
	}
	if n != nil {
		limit := 2 * time.Minute
		if deadline, ok := ctx.Deadline(); ok {
			limit = min(limit, time.Until(deadline)/2)
		}
		j.tell("draining "+name, 0)
		if _, err := j.kubectl(ctx, "drain", name, "--ignore-daemonsets", "--delete-emptydir-data", "--force",
			"--timeout", strconv.Itoa(max(1, int(limit/time.Second)))+"s"); err != nil {
			j.session.note("not drained: %v", err)
			j.tell(name+" could not be drained, and is deleted all the same", 0)
		}
	}
	if j.work.ControlPlane {
		if err := j.removeMember(ctx, name, j.work.IP); err != nil {
			return result, retryf("etcd member of %s: %w", name, err)
		}
	}
	_, err = j.kubectl(ctx, "delete", "node", name, "--ignore-not-found", "--timeout=60s")
	return result, err
}

// member is one of etcd's. An ID is 64 bits: no float, and the command wants it in hexadecimal.
type member struct {
	ID       uint64   `json:"ID"`
	Name     string   `json:"name"`
	PeerURLs []string `json:"peerURLs"`
}

func parseMembers(text string) ([]member, error) {
	start := strings.IndexByte(text, '{')
	if start < 0 {
		return nil, errors.New("etcdctl member list: no JSON")
	}
	var list struct {
		Members []member `json:"members"`
	}
	if err := json.NewDecoder(bytes.NewReader([]byte(text[start:]))).Decode(&list); err != nil {
		return nil, fmt.Errorf("etcdctl member list: %w", err)
	}
	if len(list.Members) == 0 {
		return nil, errors.New("etcdctl member list: none")
	}
	return list.Members, nil
}

// memberOf finds the member of a node: by its name, or by its address if it was added and never started.
func memberOf(all []member, name, ip string) (member, bool) {
	for _, m := range all {
		if m.Name == name {
			return m, true
		}
		for _, peer := range m.PeerURLs {
			if u, err := url.Parse(peer); err == nil && m.Name == "" && ip != "" && u.Hostname() == ip {
				return m, true
			}
		}
	}
	return member{}, false
}

func (j *job) removeMember(ctx context.Context, name, ip string) error {
	out, err := j.etcdctl(ctx, "member", "list", "-w", "json")
	if err != nil {
		return err
	}
	all, err := parseMembers(out)
	if err != nil {
		return err
	}
	m, found := memberOf(all, name, ip)
	if !found {
		return nil
	}
	if len(all) == 1 {
		return errors.New("it is the last")
	}
	j.tell("removing the etcd member of "+name, 0)
	_, err = j.etcdctl(ctx, "member", "remove", strconv.FormatUint(m.ID, 16))
	return err
}

// etcdctl runs inside this master's etcd container, where the program and the certificates are. containerd starts it:
// `kubectl exec` has kubelet ask the cluster's endpoint whether it may, and that may lead to the very master that is gone.
func (j *job) etcdctl(ctx context.Context, args ...string) (string, error) {
	containers, err := j.run(ctx, j.session, "ctr", "-n", containerdNamespace, "containers", "ls", "-q", `labels."io.kubernetes.container.name"==etcd`)
	if err != nil {
		return "", err
	}
	tasks, err := j.run(ctx, j.session, "ctr", "-n", containerdNamespace, "tasks", "ls")
	if err != nil {
		return "", err
	}
	id := runningTask(tasks, words(containers))
	if id == "" {
		return "", retryf("etcd does not run on this master")
	}
	inside := []string{"-n", containerdNamespace, "tasks", "exec", "--exec-id", "rackstrap-" + randomWord(12), id,
		"etcdctl", "--endpoints", "https://127.0.0.1:2379", "--cacert", "/etc/kubernetes/pki/etcd/ca.crt",
		"--cert", "/etc/kubernetes/pki/etcd/server.crt", "--key", "/etc/kubernetes/pki/etcd/server.key", "--command-timeout=20s"}
	return j.run(ctx, j.session, "ctr", append(inside, args...)...)
}

// runningTask finds the one of some containers that runs in what `ctr tasks ls` prints: an etcd that was started anew
// leaves its former container behind.
func runningTask(tasks string, among []string) string {
	for line := range strings.SplitSeq(tasks, "\n") {
		if fields := strings.Fields(line); len(fields) == 3 && fields[2] == "RUNNING" && slices.Contains(among, fields[0]) {
			return fields[0]
		}
	}
	return ""
}

// kubeconfig hands out admin.conf as it is: with the cluster's endpoint, not this host's.
func (j *job) kubeconfig() (api.Result, error) {
	text, err := os.ReadFile(j.path(adminConf))
	if err != nil {
		return api.Result{}, fmt.Errorf("this is no master: %w", err)
	}
	return api.Result{Kubeconfig: string(text)}, nil
}
