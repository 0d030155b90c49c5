package agent

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"rackstrap/firstboot/api"
)

func TestRedact(t *testing.T) {
	const (
		blob = "LS0tLS1CRUdJTiBSU0EgUFJJVkFURSBLRVktLS0tLQpNSUlFb3dJQkFBS0NBUUVBdEZ2L0p2"
		pem  = "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nabc=\n-----END RSA PRIVATE KEY-----"
	)
	for _, c := range []struct{ text, want string }{
		{"kubeadm join 10.10.10.80:6443 --token cdk29y.pkqcxyrjpxyfb12e \\", "kubeadm join 10.10.10.80:6443 --token cdk29y.[redacted] \\"},
		{"[upload-certs] Using certificate key:\n" + key + "\n", "[upload-certs] Using certificate key:\n[redacted]\n"},
		{"--discovery-token-ca-cert-hash sha256:" + key, "--discovery-token-ca-cert-hash sha256:" + key},
		{"certificateKey: " + key + "\ntoken: cdk29y.pkqcxyrjpxyfb12e", "certificateKey: [redacted]\ntoken: [redacted]"},
		{"a\n" + pem + "\nb", "a\n[redacted]\nb"},
		{"a\n" + pem[:45], "a\n[redacted]"},
		{pem[40:] + "\nb", "[redacted]\nb"},
		{"    client-key-data: " + blob + "\n    client-certificate-data: QUJD\n", "    client-key-data: [redacted]\n    client-certificate-data: [redacted]\n"},
		{`{"password":"hunter2","token" : "abc"}`, `{"password":"[redacted]","token" : "[redacted]"}`},
		{"Authorization: Bearer eyJhbGciOi.J9.xyz", "Authorization: Bearer [redacted]"},
		{"a " + blob + " b", "a [redacted] b"},
		{"the planted-secret-1 and again planted-secret-1", "the [redacted] and again [redacted]"},
		{"error: nodes \"knode1\" not found, see /etc/kubernetes/manifests/kube-apiserver.yaml", "error: nodes \"knode1\" not found, see /etc/kubernetes/manifests/kube-apiserver.yaml"},
		{"image@sha256:" + key + " pulled", "image@sha256:" + key + " pulled"},
	} {
		require.Equal(t, c.want, redact(c.text, "planted-secret-1", ""))
	}
}

func TestTail(t *testing.T) {
	require.Equal(t, "abc", tail("abc", 3))
	require.Equal(t, "third\n", tail("first\nsecond\nthird\n", 8), "from the beginning of a line")
	require.Equal(t, "xxxxxxxx", tail(strings.Repeat("x", 100), 8))
	require.True(t, utf8.ValidString(tail(strings.Repeat("é", 100), 9)))
}

func TestLastWords(t *testing.T) {
	require.Equal(t, "[ERROR Port-6443]: Port 6443 is in use", lastWords("error execution phase preflight: [preflight] Some fatal errors occurred:\n\t[ERROR Port-6443]: Port 6443 is in use\n\t[ERROR Port-10250]: x\n[preflight] If you know what you are doing\nTo see the stack trace of this error execute with --v=5 or higher\n"))
	require.Equal(t, "error execution phase x: y", lastWords("[init] z\nerror execution phase x: y\nTo see the stack trace of this error execute with --v=5 or higher\n"))
	require.Equal(t, "no output", lastWords("\n\n"))
}

func TestFullName(t *testing.T) {
	for name, want := range map[string]string{
		"nginx":                             "docker.io/library/nginx:latest",
		"nginx:1.25":                        "docker.io/library/nginx:1.25",
		"flannel/flannel:v1":                "docker.io/flannel/flannel:v1",
		"ghcr.io/flannel-io/flannel:v0.26":  "ghcr.io/flannel-io/flannel:v0.26",
		"localhost/x":                       "localhost/x:latest",
		"registry:5000/x":                   "registry:5000/x:latest",
		"registry.k8s.io/pause@sha256:abcd": "registry.k8s.io/pause@sha256:abcd",
	} {
		require.Equal(t, want, fullName(name))
	}
}

func TestHostsFile(t *testing.T) {
	const before = "127.0.0.1 localhost\n10.10.10.80 kmaster k8s-api.lab # the first\n10.10.10.80 k8s-api.lab\n# k8s-api.lab is in a comment\n10.10.10.81 K8S-API.LAB\n"
	after := withEndpoint(before, "k8s-api.lab", []string{"10.10.10.82", "10.10.10.80"})
	require.Equal(t, "127.0.0.1 localhost\n10.10.10.80 kmaster # the first\n# k8s-api.lab is in a comment\n10.10.10.82 k8s-api.lab "+endpointMark+"\n10.10.10.80 k8s-api.lab "+endpointMark+"\n", after)
	require.Equal(t, after, withEndpoint(after, "k8s-api.lab", []string{"10.10.10.82", "10.10.10.80"}))
	require.Equal(t, "1.2.3.4 a "+endpointMark+"\n", withEndpoint("", "a", []string{"1.2.3.4"}))
}

func TestPointTo(t *testing.T) {
	const admin = "apiVersion: v1\nclusters:\n- cluster: {certificate-authority-data: QUJD, server: 'https://k8s-api.lab:6443'}\n  name: kubernetes\nusers: [{name: a, user: {client-key-data: S0VZ}}]\n"
	out, err := pointTo([]byte(admin), []byte("clusters: [{cluster: {server: 'https://10.10.10.82:6443'}}]"))
	require.NoError(t, err)
	require.Contains(t, string(out), "https://10.10.10.82:6443")
	require.Contains(t, string(out), "S0VZ")
	require.NotContains(t, string(out), "k8s-api.lab")
	for _, bad := range []string{"", "clusters: []", "clusters: [{cluster: {server: 'http://x'}}]", "clusters: 7", "{"} {
		_, err := pointTo([]byte(admin), []byte(bad))
		require.Error(t, err, bad)
	}
}

func TestMembers(t *testing.T) { // what etcdctl 3.5.9 printed
	all, err := parseMembers(`{"header":{"cluster_id":28837961432880157,"member_id":16204348177780453131,"raft_term":3},"members":[{"ID":15759545949296272806,"name":"knode2","peerURLs":["https://10.10.10.82:2380"],"clientURLs":["https://10.10.10.82:2379"]},{"ID":16204348177780453131,"name":"","peerURLs":["https://10.10.10.80:2380"]}]}`)
	require.NoError(t, err)
	m, found := memberOf(all, "knode2", "10.10.10.82")
	require.True(t, found)
	require.EqualValues(t, uint64(15759545949296272806), m.ID, "no digit is lost")
	m, found = memberOf(all, "kmaster", "10.10.10.80")
	require.True(t, found, "it was added and never started")
	require.EqualValues(t, uint64(16204348177780453131), m.ID)
	_, found = memberOf(all, "kmaster", "")
	require.False(t, found)
}

func FuzzParsers(f *testing.F) {
	for _, seed := range []string{
		"", "{", "null", "[]", `{"token":"cdk29y.pkqcxyrjpxyfb12e","usages":["signing"]}`,
		`{"metadata":{"name":"knode1"},"status":{"conditions":[{"type":"Ready","status":"True"}],"addresses":[{"type":"InternalIP","address":"10.10.10.81"}]}}`,
		`x {"members":[{"ID":18446744073709551615,"name":"a","peerURLs":["https://[::1]:2380","%"]}]}`,
		"kind: JoinConfiguration\ndiscovery: {bootstrapToken: {caCertHashes: [a]}}\ncontrolPlane: {}\n", "a: &a [*a]", "---\n---\n",
		"clusters: [{cluster: {server: 'https://10.10.10.82:6443'}}]", `{"spec":{"ports":[{"nodePort":31000}]}}`,
		"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n", "MemTotal: 24684084 kB", "PRETTY_NAME=\"x\"",
		"10.10.10.80 kmaster k8s-api.lab # x\n", "registry.k8s.io/pause:3.9\nx y\n", "containerd containerd.io 1.6.33 d2d",
		"[certs] x\n[ERROR NumCPU]: x\n", "\n\n",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if n, err := parseNode(text); err == nil && n != nil {
			n.address()
			n.ready()
		}
		if tokens, err := parseTokens(text); err == nil {
			for _, token := range tokens {
				require.Len(t, token.id(), 6)
			}
		}
		if all, err := parseMembers(text); err == nil {
			memberOf(all, "a", "::1")
		}
		if port, err := nodePort(text); err == nil {
			require.True(t, port > 0 && port < 65536)
		}
		parseJoin(text)
		parseConfig([]byte(text))
		publicKeyHash([]byte(text))
		pointTo([]byte(text), []byte(text))
		memoryMiB(text)
		containerdVersion(text)
		require.NotContains(t, prettyName(text), "\n")
		require.GreaterOrEqual(t, retryAfter(text), retryAfter(""))
		reasonOf([]byte(text))
		joinError(&programError{Program: "kubeadm", Output: text})
		require.NotContains(t, lastWords(text), "\n")
		absent(words(text), words(text))
		once := withEndpoint(text, "k8s-api.lab", []string{"10.10.10.80"})
		require.Equal(t, once, withEndpoint(once, "k8s-api.lab", []string{"10.10.10.80"}))
		watcher := &lineWatcher{tell: func(phase string) { require.LessOrEqual(t, len(phase), 32) }}
		watcher.Write([]byte(text))
		var answer struct {
			api.Work
			api.Waiting
		}
		json.Unmarshal([]byte(text), &answer)
	})
}

func FuzzRedact(f *testing.F) {
	f.Add("a", "b\n", "cdk29y.pkqcxyrjpxyfb12e")
	f.Add("token: ", "-----END RSA PRIVATE KEY-----", key)
	f.Add("sha256:", "x", key)
	f.Fuzz(func(t *testing.T, before, after, secret string) {
		if len(secret) < 8 {
			return
		}
		out := redact(before+" "+secret+" "+after, secret)
		if !strings.Contains(redacted, secret) && !strings.Contains(before+after, secret) && strings.Contains(out, secret) {
			t.Fatalf("%q is still in %q", secret, out)
		}
		require.LessOrEqual(t, len(tail(out, 100)), 100)
	})
}
