package fakekube

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/internal/testca"
)

func TestMain(m *testing.M) {
	if Called() {
		Main()
	}
	os.Exit(m.Run())
}

// said is what a program said.
type said struct {
	code     int
	out, err []string
}

// recorded reads what the real ones said.
func recorded(t *testing.T) map[string]said {
	text, err := os.ReadFile("testdata/recorded.txt")
	require.NoError(t, err)
	all := map[string]said{}
	name := ""
	for line := range strings.SplitSeq(string(text), "\n") {
		s := all[name]
		switch {
		case strings.HasPrefix(line, "== "):
			name = line[3:]
			continue
		case strings.HasPrefix(line, "exit "):
			fmt.Sscanf(line, "exit %d", &s.code)
		case strings.HasPrefix(line, "! "):
			s.err = append(s.err, line[2:])
		case strings.HasPrefix(line, "| "):
			s.out = append(s.out, line[2:])
		}
		all[name] = s
	}
	return all
}

// What differs from run to run.
var volatile = []struct {
	find *regexp.Regexp
	put  string
}{
	{regexp.MustCompile(`\b[a-z0-9]{6}\.[a-z0-9]{16}\b`), "TOKEN"},
	{regexp.MustCompile(`sha256:[0-9a-f]{64}`), "HASH"},
	{regexp.MustCompile(`\b[0-9a-f]{64}\b`), "KEY"},
	{regexp.MustCompile(`"?/\S+/[^/ "]+\.(yaml|tar)"?`), "FILE"},
	{regexp.MustCompile(`[0-9]+\.[0-9]+ seconds`), "SECONDS"},
}

func normal(lines []string) []string {
	var all []string
	for _, line := range lines {
		if strings.Contains(line, "[ERROR File") || strings.Contains(line, "manifests/") { // paths that matter
			all = append(all, line)
			continue
		}
		for _, v := range volatile {
			line = v.find.ReplaceAllString(line, v.put)
		}
		all = append(all, line)
	}
	return all
}

type lab struct {
	t    *testing.T
	dir  string
	real map[string]said
	seen map[string]bool
}

func newLab(t *testing.T) *lab {
	l := &lab{t: t, dir: t.TempDir(), real: recorded(t), seen: map[string]bool{}}
	for i, name := range []string{"kmaster", "knode1", "knode2"} {
		require.NoError(t, Install(filepath.Join(l.dir, name), Host{Cluster: filepath.Join(l.dir, "cluster.json"), Name: name, IP: fmt.Sprintf("10.10.10.%d", 80+i), Images: true}))
	}
	return l
}

func (l *lab) file(name, text string) string {
	path := filepath.Join(l.dir, name)
	require.NoError(l.t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

func (l *lab) run(host, program string, args ...string) said {
	cmd := exec.Command(filepath.Join(l.dir, host, "usr/bin", program), args...)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		require.NoError(l.t, err)
	}
	return said{cmd.ProcessState.ExitCode(), lines(out.String()), lines(stderr.String())}
}

func lines(text string) []string {
	var all []string
	for line := range strings.SplitSeq(text, "\n") {
		if strings.TrimSpace(line) != "" && !regexp.MustCompile(`^[WIE]\d{4} `).MatchString(line) {
			all = append(all, line)
		}
	}
	return all
}

// same runs the stand-in and compares: the status is the same, and what it says the real one said, too, the reason first.
func (l *lab) same(name, host, program string, args ...string) said {
	l.t.Helper()
	l.seen[name] = true
	want, ok := l.real[name]
	require.True(l.t, ok, "%s was not recorded", name)
	got := l.run(host, program, args...)
	require.Equal(l.t, want.code, got.code, "%s: %q", name, got.err)
	wantErr, gotErr := normal(want.err), normal(got.err)
	if want.code != 0 {
		require.Equal(l.t, wantErr[0], gotErr[0], name)
	}
	require.Subset(l.t, append(wantErr, ""), append(gotErr, ""), name)
	if len(want.out) > 0 {
		require.NotEmpty(l.t, got.out, name)
	}
	wantOut, gotOut := normal(want.out), normal(got.out)
	if len(wantOut) > 0 && strings.HasPrefix(wantOut[0], "{") {
		require.Subset(l.t, paths(l.t, want.out), paths(l.t, got.out), name)
		return got
	}
	for _, line := range gotOut {
		if program == "kubeadm" && name == "init" && !strings.HasPrefix(line, "[") || strings.HasPrefix(line, "[upload-certs]") || strings.HasPrefix(line, "[bootstrap-token]") || strings.HasPrefix(line, "[apiclient]") {
			continue
		}
		require.Contains(l.t, wantOut, line, name)
	}
	return got
}

// paths are the places in a stream of JSON objects.
func paths(t *testing.T, text []string) []string {
	var all []string
	decode := json.NewDecoder(strings.NewReader(strings.Join(text, "\n")))
	for decode.More() {
		var v any
		require.NoError(t, decode.Decode(&v))
		var walk func(string, any)
		walk = func(at string, v any) {
			switch v := v.(type) {
			case map[string]any:
				for key, inner := range v {
					walk(at+"."+key, inner)
				}
			case []any:
				for _, inner := range v {
					walk(at+"[]", inner)
				}
			default:
				all = append(all, fmt.Sprintf("%s %T", at, v))
			}
		}
		walk("", v)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

const clusterText = `---
apiVersion: kubeadm.k8s.io/v1beta3
kind: ClusterConfiguration
kubernetesVersion: v1.28.2
imageRepository: registry.aliyuncs.com/google_containers
controlPlaneEndpoint: 10.10.10.80:6443
networking: {podSubnet: 10.244.0.0/16, serviceSubnet: 10.1.0.0/16}
`

func initText(key string) string {
	return "apiVersion: kubeadm.k8s.io/v1beta3\nkind: InitConfiguration\ncertificateKey: " + key +
		"\nlocalAPIEndpoint: {advertiseAddress: 10.10.10.80, bindPort: 6443}\nnodeRegistration: {name: kmaster}\n" + clusterText
}

func joinText(name, token, hash, key string) string {
	text := fmt.Sprintf("apiVersion: kubeadm.k8s.io/v1beta3\nkind: JoinConfiguration\ndiscovery:\n  bootstrapToken: {apiServerEndpoint: '10.10.10.80:6443', token: %s, caCertHashes: [%q]}\nnodeRegistration: {name: %s}\n", token, hash, name)
	if key != "" {
		text += "controlPlane: {certificateKey: " + key + ", localAPIEndpoint: {advertiseAddress: 10.10.10.82, bindPort: 6443}}\n"
	}
	return text
}

// The whole of what was recorded, in its order.
func TestItSaysWhatTheRealOnesSay(t *testing.T) {
	l := newLab(t)
	key, otherKey := strings.Repeat("ab", 32), strings.Repeat("cd", 32)
	config := l.file("k.yaml", initText(key))
	admin := filepath.Join(l.dir, "kmaster", adminConf)
	kubectl := func(name string, args ...string) said {
		t.Helper()
		return l.same(name, "kmaster", "kubectl", append([]string{"--kubeconfig", admin}, args...)...)
	}

	l.same("version", "kmaster", "kubeadm", "version", "-o", "short")
	l.same("images-list", "kmaster", "kubeadm", "config", "images", "list", "--config", config)
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	manifest := `[{"RepoTags":["registry.aliyuncs.com/google_containers/pause:3.9"]}]`
	require.NoError(t, w.WriteHeader(&tar.Header{Name: "manifest.json", Size: int64(len(manifest)), Mode: 0o644}))
	w.Write([]byte(manifest))
	require.NoError(t, w.Close())
	l.same("import", "kmaster", "ctr", "-n", "k8s.io", "images", "import", l.file("pause.tar", archive.String()))
	l.same("import-missing", "kmaster", "ctr", "-n", "k8s.io", "images", "import", filepath.Join(l.dir, "nothing.tar"))
	l.same("import-garbage", "kmaster", "ctr", "-n", "k8s.io", "images", "import", l.file("garbage", strings.Repeat("root:x:0:0\n", 200)))

	l.same("init", "kmaster", "kubeadm", "init", "--config", config, "--upload-certs")
	l.same("init-again", "kmaster", "kubeadm", "init", "--config", config, "--upload-certs")
	kubectl("livez", "get", "--raw", "/livez")
	made := l.run("kmaster", "kubeadm", "token", "create", "--kubeconfig", admin, "--config", l.file("token.yaml",
		"apiVersion: kubeadm.k8s.io/v1beta3\nkind: InitConfiguration\nbootstrapTokens: [{token: cdk29y.0123456789abcdef, ttl: 30m0s, description: node=knode1 attempt=2}]\n"+clusterText))
	require.Equal(t, said{0, []string{"cdk29y.0123456789abcdef"}, nil}, made)
	l.same("token-list-json", "kmaster", "kubeadm", "token", "list", "-o", "json", "--kubeconfig", admin)
	state, err := Open(filepath.Join(l.dir, "cluster.json")).Read()
	require.NoError(t, err)
	hash := testca.Pair{Cert: state.CA}.Hash()

	bad := func(name, host, token, hash, key string) {
		t.Helper()
		l.same(name, host, "kubeadm", "join", "--config", l.file("bad.yaml", joinText(host, token, hash, key)))
	}
	bad("join-unknown-token", "knode1", "abcdef.0123456789abcdef", hash, "")
	bad("join-wrong-secret", "knode1", "cdk29y.fedcba9876543210", hash, "")
	bad("join-wrong-hash", "knode1", "cdk29y.0123456789abcdef", "sha256:"+otherKey, "")
	l.same("join", "knode1", "kubeadm", "join", "--config", l.file("j.yaml", joinText("knode1", "cdk29y.0123456789abcdef", hash, "")))
	l.same("join-again", "knode1", "kubeadm", "join", "--config", filepath.Join(l.dir, "j.yaml"))
	l.same("node-by-own-credential", "knode1", "kubectl", "--kubeconfig", filepath.Join(l.dir, "knode1", kubeletConf), "get", "node", "knode1", "-o", "json")
	bad("joincp-wrong-key", "knode2", "cdk29y.0123456789abcdef", hash, otherKey)
	l.same("upload-certs", "kmaster", "kubeadm", "init", "phase", "upload-certs", "--upload-certs", "--config", config, "--kubeconfig", admin)
	l.same("joincp", "knode2", "kubeadm", "join", "--config", l.file("j.yaml", joinText("knode2", "cdk29y.0123456789abcdef", hash, key)))
	mark := []string{"join", "phase", "control-plane-join", "mark-control-plane", "--config"}
	l.same("mark-unknown-token", "knode2", "kubeadm", append(mark, l.file("bad.yaml", joinText("knode2", "abcdef.0123456789abcdef", hash, key)))...)
	l.same("mark", "knode2", "kubeadm", append(mark, filepath.Join(l.dir, "j.yaml"))...)
	for _, name := range []string{"token-delete", "token-delete-again"} {
		l.same(name, "kmaster", "kubeadm", "token", "delete", "cdk29y", "--kubeconfig", admin)
	}
	l.same("token-delete-garbage", "kmaster", "kubeadm", "token", "delete", "nonsense", "--kubeconfig", admin)
	kubectl("apply-garbage", "apply", "-f", l.file("n.yaml", "kind: nonsense\n"))
	require.Zero(t, l.run("kmaster", "kubectl", "--kubeconfig", admin, "apply", "-f", l.file("cni.yaml", "{apiVersion: apps/v1, kind: DaemonSet, metadata: {name: f, namespace: f}}")).code)

	require.Zero(t, l.run("knode2", "kubeadm", "reset", "-f").code)
	require.NoError(t, Open(filepath.Join(l.dir, "cluster.json")).Update(func(s *State) error {
		s.Tokens["zzzzzz"] = Token{Secret: "0123456789abcdef", Usages: []string{"signing"}, Expires: time.Now().Add(time.Hour)}
		return nil
	}))
	l.same("join-taken-name", "knode2", "kubeadm", "join", "--config", l.file("bad.yaml", joinText("knode1", "zzzzzz.0123456789abcdef", hash, "")))
	kubectl("getnode-missing", "get", "node", "nobody", "-o", "json")
	kubectl("getnode-ignore", "get", "node", "nobody", "-o", "json", "--ignore-not-found")
	inside := []string{"-n", "k8s.io", "tasks", "exec", "--exec-id", "x", hashed("etcd"), "etcdctl", "--endpoints", "https://127.0.0.1:2379", "--cacert", "a", "--cert", "b", "--key", "c"}
	l.same("etcd-list", "kmaster", "ctr", append(inside, "member", "list", "-w", "json")...)
	kubectl("drain", "drain", "knode1", "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout", "20s")
	kubectl("drain-missing", "drain", "nobody", "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout", "20s")
	kubectl("delete-node", "delete", "node", "knode1")
	kubectl("delete-node-again", "delete", "node", "knode1")
	kubectl("delete-node-ignore", "delete", "node", "knode1", "--ignore-not-found")
	l.same("reset", "knode1", "kubeadm", "reset", "-f")

	for name := range l.real {
		require.True(t, name == "" || l.seen[name], "%s was recorded and is not compared", name)
	}
}
