package agent

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/e2e/fakekube"
	"rackstrap/firstboot/api"
)

const (
	key       = "26f41da9ee66656fb91993f9b28eeda9db9b2290d4424a3dc87fd36c67605cb6"
	cni       = "apiVersion: apps/v1\nkind: DaemonSet\nmetadata: {name: flannel, namespace: kube-flannel}\n"
	otherHash = "sha256:9990000000000000000000000000000000000000000000000000000000000000"
)

// cluster is a fake cluster and its machines.
type cluster struct {
	t    *testing.T
	file *fakekube.File
	dir  string
	ips  map[string]string
}

func newCluster(t *testing.T) *cluster {
	dir := t.TempDir()
	return &cluster{t: t, file: fakekube.Open(filepath.Join(dir, "cluster.json")), dir: dir,
		ips: map[string]string{"kmaster": "10.10.10.80", "knode1": "10.10.10.81", "knode2": "10.10.10.82", "knode3": "10.10.10.83"}}
}

func (c *cluster) root(name string) string { return filepath.Join(c.dir, name) }

func (c *cluster) host(name string) *Host { return c.hostWith(name, fakekube.Host{Images: true}) }

func (c *cluster) hostWith(name string, h fakekube.Host) *Host {
	h.Cluster, h.Name, h.IP = filepath.Join(c.dir, "cluster.json"), name, c.ips[name]
	require.NoError(c.t, fakekube.Install(c.root(name), h))
	return NewHost(HostOptions{Config: api.Config{Name: name, State: filepath.Join(c.root(name), "var/lib/rackstrap"), Token: installToken},
		Root: c.root(name), Version: "test", Log: slog.New(slog.DiscardHandler), Now: time.Now, Pause: 10 * time.Millisecond})
}

func (c *cluster) state() *fakekube.State {
	s, err := c.file.Read()
	require.NoError(c.t, err)
	return s
}

// do carries out a work, with patience unless the work says otherwise.
func (c *cluster) do(h *Host, w api.Work) Outcome {
	c.t.Helper()
	w.ID = "w"
	if w.Seconds == 0 {
		w.Seconds = 120
	}
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Duration(w.Seconds)*time.Second)
	defer cancel()
	out := h.Do(ctx, w, func(string, int) {})
	require.NoDirExists(c.t, h.own(runDir), "what was secret is gone")
	require.LessOrEqual(c.t, len(out.Output), api.MaxOutput)
	if !out.OK {
		require.NotEmpty(c.t, out.Error)
		require.NotContains(c.t, out.Error, "\n")
	}
	return out
}

func (c *cluster) ok(h *Host, w api.Work) api.Result {
	c.t.Helper()
	out := c.do(h, w)
	require.True(c.t, out.OK, "%s: %s\n%s", w.Action, out.Error, out.Output)
	return out.Result
}

func (c *cluster) initConfig(name string) string {
	return fmt.Sprintf(`apiVersion: kubeadm.k8s.io/v1beta3
kind: InitConfiguration
certificateKey: %s
localAPIEndpoint: {advertiseAddress: %s, bindPort: 6443}
nodeRegistration: {name: %s, criSocket: "unix:///run/containerd/containerd.sock", imagePullPolicy: IfNotPresent}
---
apiVersion: kubeadm.k8s.io/v1beta3
kind: ClusterConfiguration
kubernetesVersion: v1.28.2
imageRepository: registry.aliyuncs.com/google_containers
controlPlaneEndpoint: k8s-api.lab:6443
networking: {podSubnet: 10.244.0.0/16, serviceSubnet: 10.1.0.0/16}
`, key, c.ips[name], name)
}

func (c *cluster) init() (*Host, api.Result) {
	c.t.Helper()
	h := c.host("kmaster")
	return h, c.ok(h, c.initWork("kmaster"))
}

func (c *cluster) initWork(name string) api.Work {
	return api.Work{Action: api.Init, KubeadmConfig: c.initConfig(name), CNIManifest: cni,
		EndpointName: "k8s-api.lab", EndpointAddresses: []string{"10.10.10.80"}}
}

func (c *cluster) joinWork(name, token, hash, certificateKey string) api.Work {
	w := api.Work{Action: api.Join, KubeadmConfig: fmt.Sprintf(`apiVersion: kubeadm.k8s.io/v1beta3
kind: JoinConfiguration
discovery:
  bootstrapToken: {apiServerEndpoint: "k8s-api.lab:6443", token: %q, caCertHashes: [%q]}
  timeout: 1m0s
nodeRegistration: {name: %s, criSocket: "unix:///run/containerd/containerd.sock"}
`, token, hash, name)}
	if certificateKey != "" {
		w.Action = api.JoinControlPlane
		w.KubeadmConfig += fmt.Sprintf("controlPlane:\n  certificateKey: %s\n  localAPIEndpoint: {advertiseAddress: %s, bindPort: 6443}\n", certificateKey, c.ips[name])
	}
	return w
}

func (c *cluster) mint(master *Host, id, node string) string {
	c.t.Helper()
	return c.ok(master, api.Work{Action: api.MintToken, Node: node, TokenID: id, TTLSeconds: 1800, Description: "node=" + node + " attempt=3"}).Token
}

func TestClusterFromInitToDeleteNode(t *testing.T) {
	c := newCluster(t)
	master, result := c.init()
	hash, err := publicKeyHash([]byte(result.CACert))
	require.NoError(t, err)
	require.Empty(t, c.state().JoinTokens(), "kubeadm's own token is deleted")
	require.Equal(t, []string{"kmaster"}, c.state().Inits)
	hosts, err := os.ReadFile(filepath.Join(c.root("kmaster"), "etc/hosts"))
	require.NoError(t, err)
	require.Contains(t, string(hosts), "10.10.10.80 k8s-api.lab ")

	again := c.ok(master, c.initWork("kmaster"))
	require.Equal(t, result.CACert, again.CACert, "an init that is asked for again is answered, not repeated")
	require.Equal(t, []string{"kmaster"}, c.state().Inits)

	// A worker.
	worker := c.host("knode1")
	token := c.mint(master, "abc123", "knode1")
	require.Regexp(t, `^abc123\.[a-z0-9]{16}$`, token)
	require.Equal(t, []string{"abc123 node=knode1 attempt=3"}, c.state().JoinTokens())
	r := c.ok(master, api.Work{Action: api.CheckNode, Node: "knode1"})
	require.False(t, r.Ready)
	require.Contains(t, r.Reason, "does not know it")
	join := c.joinWork("knode1", token, hash, "")
	c.ok(worker, join)
	c.ok(worker, join)
	require.Equal(t, []string{"knode1"}, c.state().Joins, "a join that arrives twice is done once")
	r = c.ok(master, api.Work{Action: api.CheckNode, Node: "knode1"})
	require.True(t, r.Ready, r.Reason)
	require.Equal(t, "10.10.10.81", r.Address)
	c.ok(master, api.Work{Action: api.DeleteToken, TokenID: "abc123"})
	c.ok(master, api.Work{Action: api.DeleteToken, TokenID: "abc123"})
	require.Empty(t, c.state().JoinTokens())

	// Two more masters.
	for i, name := range []string{"knode2", "knode3"} {
		r = c.ok(master, api.Work{Action: api.UploadCerts, KubeadmConfig: c.initConfig("kmaster")})
		require.Equal(t, key, r.CertificateKey)
		id := fmt.Sprintf("cp000%d", i)
		more := c.joinWork(name, c.mint(master, id, name), hash, key)
		c.ok(c.host(name), more)
		r = c.ok(master, api.Work{Action: api.CheckNode, Node: name, ControlPlane: true})
		require.True(t, r.Ready, r.Reason)
		c.ok(master, api.Work{Action: api.DeleteToken, TokenID: id})
	}
	require.Len(t, c.state().Members, 3)
	require.Equal(t, []string{"kmaster True 10.10.10.80", "knode1 True 10.10.10.81", "knode2 True 10.10.10.82", "knode3 True 10.10.10.83"}, c.nodes(master))

	// The first is lost: another one serves, and takes it out of the cluster.
	require.NoError(t, c.file.Update(func(s *fakekube.State) error {
		h := s.Hosts["kmaster"]
		h.Down = true
		s.Hosts["kmaster"] = h
		return nil
	}))
	second := c.host("knode2")
	out := c.do(master, api.Work{Action: api.ListNodes})
	require.False(t, out.OK, "what no API server answers for is not known")
	require.Contains(t, out.Error, "was refused")
	require.Empty(t, out.Output+out.Log, "every half a minute")
	require.Equal(t, "kmaster Unknown 10.10.10.80 NodeStatusUnknown", c.nodes(second)[0])
	r = c.ok(second, api.Work{Action: api.CheckNode, Node: "kmaster", ControlPlane: true})
	require.False(t, r.Ready)
	c.ok(second, api.Work{Action: api.DeleteNode, Node: "kmaster", ControlPlane: true, IP: "10.10.10.80"})
	c.ok(second, api.Work{Action: api.DeleteNode, Node: "kmaster", ControlPlane: true, IP: "10.10.10.80"})
	require.Len(t, c.state().Members, 2)
	require.NotContains(t, c.state().Nodes, "kmaster")

	r = c.ok(second, api.Work{Action: api.Kubeconfig})
	require.Contains(t, r.Kubeconfig, "k8s-api.lab:6443", "the cluster's endpoint, not this master's")
	require.Empty(t, c.state().Violations)
}

// nodes is what a master says of all nodes.
func (c *cluster) nodes(master *Host) (lines []string) {
	r := c.ok(master, api.Work{Action: api.ListNodes})
	require.False(c.t, r.Partial)
	require.Empty(c.t, r.Output)
	for _, n := range r.Nodes {
		require.False(c.t, n.Since.IsZero(), n.Name)
		lines = append(lines, strings.TrimSpace(fmt.Sprintf("%s %s %s %s", n.Name, n.Ready, n.Address, n.Reason)))
	}
	return lines
}

// A control plane whose power was cut before the last phase of its join serves and is no control plane to Kubernetes: the
// phase is made up for, once. It needs a token, which may have gone meanwhile.
func TestControlPlaneThatLacksItsMarkIsMarked(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	master, result := c.init()
	hash, err := publicKeyHash([]byte(result.CACert))
	require.NoError(t, err)
	key := c.ok(master, api.Work{Action: api.UploadCerts, KubeadmConfig: c.initConfig("kmaster")}).CertificateKey
	join := c.joinWork("knode2", c.mint(master, "cp0000", "knode2"), hash, key)
	h := c.host("knode2")
	c.ok(h, join)
	unmark := func() {
		t.Helper()
		require.NoError(t, c.file.Update(func(s *fakekube.State) error {
			n := s.Nodes["knode2"]
			n.ControlPlane = false
			s.Nodes["knode2"] = n
			return nil
		}))
		r := c.ok(master, api.Work{Action: api.CheckNode, Node: "knode2", ControlPlane: true})
		require.Equal(t, "it is not marked as a control plane yet", r.Reason)
	}
	unmark()
	c.ok(h, join)
	require.True(t, c.ok(master, api.Work{Action: api.CheckNode, Node: "knode2", ControlPlane: true}).Ready)
	c.ok(h, join)
	commands := c.state().Commands
	require.Equal(t, 1, count(commands, "knode2: kubeadm join phase control-plane-join mark-control-plane"))
	require.Zero(t, count(commands, "knode2: kubeadm reset"))

	unmark()
	c.ok(master, api.Work{Action: api.DeleteToken, TokenID: "cp0000"})
	out := c.do(h, join)
	require.False(t, out.OK)
	require.True(t, out.AuthError, out.Error)
	c.ok(h, c.joinWork("knode2", c.mint(master, "cp0000", "knode2"), hash, key))
	require.True(t, c.ok(master, api.Work{Action: api.CheckNode, Node: "knode2", ControlPlane: true}).Ready)
	require.Empty(t, c.state().Violations)
}

func TestHalfDoneInitIsResetThreeTimesAtMost(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	h := c.host("kmaster")
	require.NoError(t, fakekube.Plant(c.root("kmaster"), fakekube.Fault{Command: "kubeadm init", Kind: "crash"}))
	c.ok(h, c.initWork("kmaster"))
	require.Equal(t, []string{"kmaster"}, c.state().Inits)
	require.Equal(t, 1, count(c.state().Commands, "kmaster: kubeadm reset"))

	c = newCluster(t)
	h = c.host("kmaster")
	crash := fakekube.Fault{Command: "kubeadm init", Kind: "crash"}
	require.NoError(t, fakekube.Plant(c.root("kmaster"), crash, crash, crash, crash))
	out := c.do(h, c.initWork("kmaster"))
	require.False(t, out.OK)
	require.False(t, out.Retryable)
	out = c.do(h, c.initWork("kmaster"))
	require.False(t, out.Retryable)
	require.Contains(t, out.Error, "begun 3 times")
	require.Equal(t, 3, count(c.state().Commands, "kmaster: kubeadm init"))
	c.ok(h, api.Work{Action: api.Reset})
	require.NoError(t, fakekube.Plant(c.root("kmaster")))
	c.ok(h, c.initWork("kmaster"))
}

// An init that died after the API server answered but before its last phase is half-done, too.
func TestInitThatLacksItsLastPhasesIsHalfDone(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	h, _ := c.init()
	require.NoError(t, os.Remove(h.own(fileInitialised)))
	require.NoError(t, c.file.Update(func(s *fakekube.State) error { delete(s.Objects, "kube-system/daemonset/kube-proxy"); return nil }))
	require.NoError(t, os.Remove(h.own(fileTries)))
	c.ok(h, c.initWork("kmaster"))
	require.Equal(t, []string{"kmaster", "kmaster"}, c.state().Inits)
	require.Equal(t, 1, count(c.state().Commands, "kmaster: kubeadm reset"))
}

// Never reset what was a cluster: an API server that is silent may come back.
func TestInitialisedClusterIsNeverReset(t *testing.T) {
	c := newCluster(t)
	h, _ := c.init()
	require.NoError(t, os.Remove(filepath.Join(c.root("kmaster"), adminConf)))
	out := c.do(h, c.initWork("kmaster"))
	require.False(t, out.OK)
	require.Contains(t, out.Error, "an operator decides")
	require.Equal(t, 0, count(c.state().Commands, "kmaster: kubeadm reset"))
}

// A second master that half joined must not lose its etcd's data before it is out of the cluster: the first one alone
// would have no quorum, and never get it again.
func TestMemberOfEtcdIsNotResetBeforeItIsOut(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	master, result := c.init()
	hash, _ := publicKeyHash([]byte(result.CACert))
	c.ok(master, api.Work{Action: api.UploadCerts, KubeadmConfig: c.initConfig("kmaster")})
	second := c.host("knode1")
	require.NoError(t, fakekube.Plant(c.root("knode1"), fakekube.Fault{Command: "kubeadm join", Kind: "crash"}))
	out := c.do(second, c.joinWork("knode1", c.mint(master, "abc123", "knode1"), hash, key))
	require.False(t, out.OK)
	require.Len(t, c.state().Members, 2)
	cut := func(down bool) {
		require.NoError(t, c.file.Update(func(s *fakekube.State) error {
			h := s.Hosts["knode1"]
			h.Down = down
			s.Hosts["knode1"] = h
			return nil
		}))
	}
	cut(true)
	out = c.do(second, api.Work{Action: api.Reset, Seconds: 3})
	require.False(t, out.OK)
	require.True(t, out.Retryable)
	require.FileExists(t, filepath.Join(c.root("knode1"), etcdData, "member/snap/db"))
	require.Equal(t, 0, count(c.state().Commands, "knode1: kubeadm reset"))
	cut(false)
	c.ok(second, api.Work{Action: api.Reset})
	require.Len(t, c.state().Members, 1)
	c.ok(master, api.Work{Action: api.CheckNode, Node: "kmaster", ControlPlane: true})

	// The same by a join that finds the leftovers of the one before.
	require.NoError(t, fakekube.Plant(c.root("knode1"), fakekube.Fault{Command: "kubeadm join", Kind: "crash"}))
	token := c.mint(master, "abc123", "knode1")
	require.False(t, c.do(second, c.joinWork("knode1", token, hash, key)).OK)
	c.ok(second, c.joinWork("knode1", token, hash, key))
	require.Len(t, c.state().Members, 2)
	require.Empty(t, c.state().Violations)
}

func TestHopelessInitEndsAtOnce(t *testing.T) {
	c := newCluster(t)
	h := c.host("kmaster")
	w := c.initWork("kmaster")
	w.KubeadmConfig = strings.Replace(w.KubeadmConfig, "certificateKey", "certificateKeys", 1)
	out := c.do(h, w)
	require.False(t, out.OK)
	require.False(t, out.Retryable)
	require.Contains(t, out.Error, "certificateKeys")
}

func TestJoinFaults(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	master, result := c.init()
	hash, _ := publicKeyHash([]byte(result.CACert))
	token := c.mint(master, "abc123", "knode1")
	h := c.host("knode1")
	fails := func(w api.Work, retryable, auth bool, text string) {
		t.Helper()
		out := c.do(h, w)
		require.False(t, out.OK, text)
		require.Equal(t, retryable, out.Retryable, out.Error)
		require.Equal(t, auth, out.AuthError, out.Error)
		require.Contains(t, out.Error, text)
		require.NotContains(t, out.Log+out.Output+out.Error, token[7:])
	}
	fails(c.joinWork("knode1", "zzz999.0123456789abcdef", hash, ""), true, true, "could not find a JWS signature")
	fails(c.joinWork("knode1", "abc123.0123456789abcdef", hash, ""), true, true, "failed to verify JWS signature")
	fails(c.joinWork("knode1", token, otherHash, ""), true, false, "has another CA")
	fails(c.joinWork("knode1", token, hash, strings.Repeat("0", 64)), true, true, "error decoding secret data")
	for fault, want := range map[string]struct {
		auth bool
		text string
	}{
		"pretend": {false, "is not in the cluster"},
		"garbage": {false, "failed (1)"},
		"fail":    {false, "something else failed"},
		"crash":   {false, "was killed"},
	} {
		require.NoError(t, fakekube.Plant(c.root("knode1"), fakekube.Fault{Command: "kubeadm join", Kind: fault}))
		fails(c.joinWork("knode1", token, hash, ""), true, want.auth, want.text)
	}
	require.NoError(t, fakekube.Plant(c.root("knode1"), fakekube.Fault{Command: "kubeadm join", Kind: "hang"}))
	w := c.joinWork("knode1", token, hash, "")
	w.Seconds = 10
	fails(w, true, true, "did not end within 10 s")

	out := c.do(h, c.joinWork("knode1", token, hash, "not a key"))
	require.False(t, out.OK)
	wrong := c.joinWork("knode1", token, hash, "")
	wrong.Action = api.JoinControlPlane
	fails(wrong, false, false, "does not fit")
	fails(api.Work{Action: api.Join, KubeadmConfig: "kind: Nonsense"}, false, false, "no JoinConfiguration")

	c.ok(h, c.joinWork("knode1", token, hash, ""))
	require.Equal(t, []string{"knode1"}, c.state().Joins)
	require.Empty(t, c.state().Violations)
}

// What a join of another cluster left does not count as being joined.
func TestLeftoversOfAnotherClusterAreReset(t *testing.T) {
	c := newCluster(t)
	master, result := c.init()
	hash, _ := publicKeyHash([]byte(result.CACert))
	h := c.host("knode1")
	old := newCluster(t)
	_, other := old.init()
	for path, text := range map[string]string{caFile: other.CACert, kubeletConf: "apiVersion: v1\nkind: Config\n"} {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(c.root("knode1"), path)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(c.root("knode1"), path), []byte(text), 0o600))
	}
	c.ok(h, c.joinWork("knode1", c.mint(master, "abc123", "knode1"), hash, ""))
	require.Equal(t, 1, count(c.state().Commands, "knode1: kubeadm reset"))
}

func TestTokenOfAnIDIsReplaced(t *testing.T) {
	c := newCluster(t)
	master, _ := c.init()
	first := c.mint(master, "abc123", "knode1")
	second := c.mint(master, "abc123", "knode1")
	require.NotEqual(t, first, second)
	require.Len(t, c.state().JoinTokens(), 1)
	require.NotContains(t, strings.Join(c.state().Commands, "\n"), second[7:], "no secret on a command line")
}

func TestParametersAreChecked(t *testing.T) {
	c := newCluster(t)
	h, _ := c.init()
	for _, w := range []api.Work{
		{Action: "rm -rf /"},
		{Action: ""},
		{Action: api.CheckNode},
		{Action: api.CheckNode, Node: "--all"},
		{Action: api.DeleteNode, Node: "a;b"},
		{Action: api.DeleteNode, Node: "kmaster"},
		{Action: api.DeleteToken, TokenID: "--help"},
		{Action: api.MintToken, TokenID: "abc123", TTLSeconds: 60},
		{Action: api.MintToken, TokenID: "ABC", TTLSeconds: 60, Description: "d"},
		{Action: api.MintToken, TokenID: "abc123", TTLSeconds: 60, Description: "a\nb"},
		{Action: api.VerifyCluster},
		{Action: api.UploadCerts},
		{Action: api.Init, KubeadmConfig: "x", EndpointName: "a b", EndpointAddresses: []string{"10.0.0.1"}},
		{Action: api.Init, KubeadmConfig: "x", EndpointName: "a", EndpointAddresses: []string{"10.0.0.1 evil"}},
	} {
		out := c.do(h, w)
		require.False(t, out.OK, w)
		require.False(t, out.Retryable, w)
	}
	require.Contains(t, c.state().Nodes, "kmaster")
	fresh := c.host("knode1")
	for _, action := range []api.Action{api.Kubeconfig, api.CheckNode, api.MintToken} {
		require.False(t, c.do(fresh, api.Work{Action: action, Node: "kmaster", TokenID: "abc123", TTLSeconds: 60, Description: "d"}).OK, "it is no master")
	}
}

func TestVerify(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	h, _ := c.init()
	var pages atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { pages.Add(1) }))
	defer server.Close()
	require.NoError(t, c.file.Update(func(s *fakekube.State) error { s.NodePort = server.Listener.Addr().(*net.TCPAddr).Port; return nil }))
	c.ok(h, api.Work{Action: api.VerifyCluster, Image: "nginx:1.25", Addresses: []string{"127.0.0.1", "127.0.0.1"}})
	require.EqualValues(t, 2, pages.Load())
	gone := func() {
		t.Helper()
		for object := range c.state().Objects {
			require.NotContains(t, object, "rackstrap-verify/")
		}
	}
	gone()
	server.Close()
	out := c.do(h, api.Work{Action: api.VerifyCluster, Image: "nginx:1.25", Addresses: []string{"127.0.0.1"}})
	require.False(t, out.OK)
	require.Contains(t, out.Error, "is not reached through 127.0.0.1")
	gone()
}

// archive is a docker archive with one image.
func archive(t *testing.T, name string, padding int) []byte {
	var buffer bytes.Buffer
	w := tar.NewWriter(&buffer)
	manifest, err := json.Marshal([]map[string]any{{"RepoTags": []string{name}}})
	require.NoError(t, err)
	for _, f := range []struct {
		name string
		text []byte
	}{{"layer.tar", bytes.Repeat([]byte("x"), padding)}, {"manifest.json", manifest}} {
		require.NoError(t, w.WriteHeader(&tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.text))}))
		_, err := w.Write(f.text)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return buffer.Bytes()
}

func TestImagesAreFetchedImportedAndNamedIfMissing(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	const repository = "registry.aliyuncs.com/google_containers/"
	names := []string{"kube-apiserver:v1.28.2", "kube-controller-manager:v1.28.2", "kube-scheduler:v1.28.2", "kube-proxy:v1.28.2", "pause:3.9", "etcd:3.5.9-0"}
	files := map[string][]byte{}
	var images []api.Image
	for _, name := range names {
		text := archive(t, repository+name, 100_000)
		sum := sha256.Sum256(text)
		files["/images/"+name] = text
		images = append(images, api.Image{SHA256: hex.EncodeToString(sum[:]), Size: int64(len(text)), Names: []string{repository + name}})
	}
	var ranges, cuts, served atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		served.Add(1)
		if r.Header.Get("Range") != "" {
			ranges.Add(1)
		} else if cuts.Add(1) == 1 { // the first one breaks off half-way
			w.Header().Set("Content-Length", fmt.Sprint(len(files[r.URL.Path])))
			w.Write(files[r.URL.Path][:50_000])
			return
		}
		http.ServeContent(w, r, "x.tar", time.Time{}, bytes.NewReader(files[r.URL.Path]))
	}))
	defer server.Close()
	for i, name := range names {
		images[i].URL = server.URL + "/images/" + name
	}
	h := c.hostWith("kmaster", fakekube.Host{})
	w := c.initWork("kmaster")
	w.Images = images
	out := c.do(h, w)
	require.False(t, out.OK)
	require.Equal(t, []string{repository + "coredns:v1.10.1"}, out.Missing)
	require.True(t, out.Retryable)
	require.Contains(t, out.Error, "coredns")
	require.EqualValues(t, 1, ranges.Load(), "the rest of the first")
	require.EqualValues(t, len(names)+1, served.Load())

	text := archive(t, repository+"coredns:v1.10.1", 10)
	sum := sha256.Sum256(text)
	files["/images/coredns"] = text
	w.Images = append(w.Images, api.Image{URL: server.URL + "/images/coredns", SHA256: hex.EncodeToString(sum[:]), Size: int64(len(text)), Names: []string{repository + "coredns:v1.10.1"}})
	c.ok(h, w)
	require.EqualValues(t, len(names)+2, served.Load(), "what is there is not fetched again")
	left, err := os.ReadDir(h.own("images"))
	require.NoError(t, err)
	require.Empty(t, left, "the archives are deleted")

	for what, bad := range map[string]api.Image{
		"another digest": {URL: server.URL + "/images/coredns", SHA256: strings.Repeat("0", 64), Size: int64(len(text))},
		"larger":         {URL: server.URL + "/images/coredns", SHA256: hex.EncodeToString(sum[:]), Size: 10},
		"not there":      {URL: server.URL + "/images/nobody", SHA256: hex.EncodeToString(sum[:]), Size: 10},
		"not by HTTP":    {URL: "file:///etc/shadow", SHA256: hex.EncodeToString(sum[:]), Size: 10},
	} {
		w := c.joinWork("knode1", "abc123.0123456789abcdef", otherHash, "")
		w.Images = []api.Image{bad}
		out := c.do(c.host("knode1"), w)
		require.False(t, out.OK, what)
	}
}

// What is left of a program that was killed does not hold the agent up, and goes with it.
func TestDeadlineKillsTheWholeGroup(t *testing.T) {
	c := newCluster(t)
	h := c.host("kmaster")
	pid := filepath.Join(c.dir, "pid")
	script := "#!/bin/sh\nsleep 600 &\necho $! >" + pid + ".new\nmv " + pid + ".new " + pid + "\nwait\n"
	path := filepath.Join(c.root("kmaster"), "usr/bin/crictl")
	require.NoError(t, os.Remove(path))
	require.NoError(t, os.WriteFile(path, []byte(script), 0o755))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		for !exists(pid) && t.Context().Err() == nil {
			time.Sleep(10 * time.Millisecond)
		}
		cancel()
	}()
	_, err := h.run(ctx, newSession(nil), "crictl", "ps")
	var p *programError
	require.ErrorAs(t, err, &p)
	require.Contains(t, err.Error(), "was killed")
	text, err := os.ReadFile(pid)
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		status, err := os.ReadFile("/proc/" + strings.TrimSpace(string(text)) + "/stat")
		return err != nil || strings.Contains(string(status), ") Z ")
	}, time.Minute, 10*time.Millisecond, "the grandchild is gone")
	_, err = h.run(t.Context(), newSession(nil), "nonsense")
	require.ErrorIs(t, err, errNotFound)
}

// kubeadm must not go on when the agent is killed: the next one examines what lies there, and finds it at rest.
func TestProgramsDieWithTheAgent(t *testing.T) {
	c := newCluster(t)
	pid := filepath.Join(c.dir, "pid")
	h := c.host("kmaster")
	path := filepath.Join(c.root("kmaster"), "usr/bin/crictl")
	require.NoError(t, os.Remove(path))
	require.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\necho $$ >"+pid+".new\nmv "+pid+".new "+pid+"\nexec sleep 600\n"), 0o755))
	if root := os.Getenv("RACKSTRAP_TEST_AGENT_ROOT"); root != "" { // the agent that is going to be killed
		h.o.Root = root
		h.run(t.Context(), newSession(nil), "crictl", "ps")
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run", "^TestProgramsDieWithTheAgent$")
	cmd.Env = append(os.Environ(), "RACKSTRAP_TEST_AGENT_ROOT="+c.root("kmaster"), "TMPDIR="+t.TempDir()) // it cannot clean up
	require.NoError(t, cmd.Start())
	require.Eventually(t, func() bool { return exists(pid) }, time.Minute, 10*time.Millisecond)
	text, err := os.ReadFile(pid)
	require.NoError(t, err)
	require.NoError(t, cmd.Process.Kill())
	cmd.Wait()
	require.Eventually(t, func() bool {
		status, err := os.ReadFile("/proc/" + strings.TrimSpace(string(text)) + "/stat")
		return err != nil || strings.Contains(string(status), ") Z ")
	}, time.Minute, 10*time.Millisecond, "the program is gone")
}

func TestWorkersDoNotServe(t *testing.T) {
	c := newCluster(t)
	h := c.host("knode1")
	h.o.Config.Role = roleWorker
	for _, action := range []api.Action{api.Init, api.JoinControlPlane, api.MintToken, api.Kubeconfig, "nonsense"} {
		out := c.do(h, api.Work{Action: action, KubeadmConfig: "x"})
		require.False(t, out.OK)
		require.False(t, out.Retryable)
		require.Contains(t, out.Error, "installed as a worker")
	}
}

func TestFacts(t *testing.T) {
	c := newCluster(t)
	h := c.host("knode1")
	require.NoError(t, os.WriteFile(filepath.Join(c.root("knode1"), "etc/os-release"), []byte("NAME=\"CentOS Linux\"\nPRETTY_NAME=\"CentOS Linux 7 (Core)\"\n"), 0o644))
	f := h.Facts(t.Context())
	require.Equal(t, "v1.28.2", f.Kubeadm)
	require.Equal(t, "1.6.33", f.Containerd)
	require.Equal(t, "CentOS Linux 7 (Core)", f.OS)
	require.Positive(t, f.MemoryMiB)
	require.Positive(t, f.CPUs)
	require.NotEmpty(t, f.Kernel)
	require.False(t, f.Joined)
}

// A machine tells what its firmware boots first, and boots the network the next time when it is asked to.
func TestBootOrder(t *testing.T) {
	c := newCluster(t)
	h, root := c.host("knode1"), c.root("knode1")
	require.Equal(t, api.Boot{Firmware: api.BIOS}, h.Facts(t.Context()).Boot)
	ask := func() api.Result {
		return h.Do(t.Context(), api.Work{ID: "boot-network.x", Action: api.BootNetwork, Seconds: 15}, func(string, int) {}).Result
	}
	r := ask()
	require.False(t, r.OK)
	require.Contains(t, r.Error, "BIOS")

	vars := filepath.Join(root, "sys/firmware/efi/efivars")
	require.NoError(t, os.MkdirAll(vars, 0o755))
	require.Contains(t, h.Facts(t.Context()).Boot.Error, "cannot be read")
	write := func(name, value string) {
		require.NoError(t, os.WriteFile(filepath.Join(vars, name+"-8be4df61-93ca-11d2-aa0d-00e098032b8c"), []byte("\x07\x00\x00\x00"+value), 0o644))
	}
	// Active, a path of 4 bytes (its end), the label, the path.
	write("Boot0001", "\x01\x00\x00\x00\x04\x00D\x00i\x00s\x00k\x00\x00\x00\x7f\xff\x04\x00")
	write("Boot0002", "\x01\x00\x00\x00\x04\x00P\x00X\x00E\x00\x00\x00\x7f\xff\x04\x00")
	write("BootOrder", "\x01\x00\x02\x00")
	require.Equal(t, api.Boot{Firmware: api.UEFI, First: "Disk"}, h.Facts(t.Context()).Boot)
	r = ask()
	require.True(t, r.OK, r.Error)
	require.Equal(t, "PXE", r.BootEntry)
	next, err := os.ReadFile(filepath.Join(vars, "BootNext-8be4df61-93ca-11d2-aa0d-00e098032b8c"))
	require.NoError(t, err)
	require.Equal(t, "\x07\x00\x00\x00\x02\x00", string(next))
	write("BootOrder", "\x02\x00\x01\x00")
	require.Equal(t, api.Boot{Firmware: api.UEFI, NetworkFirst: true, First: "PXE"}, h.Facts(t.Context()).Boot)
}
