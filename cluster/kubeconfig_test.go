package cluster

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"rackstrap/firstboot/api"
	"rackstrap/internal/testca"
)

func data(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }

// hostileKubeconfigs are what a control plane that somebody has taken over may send in place of an admin.conf, and the
// reason by which each is refused.
func hostileKubeconfigs(ca testca.Pair) map[string]struct{ text, reason string } {
	other, admin := testca.New(), ca.Admin()
	good := testca.Kubeconfig("https://k8s-api.lab:6443", "kubernetes-admin", ca.Cert, admin)
	edit := func(old, new string) string { return strings.Replace(good, old, new, 1) }
	with := func(client testca.Pair) string {
		return testca.Kubeconfig("https://k8s-api.lab:6443", "kubernetes-admin", ca.Cert, client)
	}
	user := func(more string) string {
		return edit("  user:\n    client-cert", "  user:\n    "+more+"\n    client-cert")
	}
	cluster := func(more string) string { return edit("- cluster:\n", "- cluster:\n    "+more+"\n") }
	keyLine := "    client-key-data: " + data(admin.Key)
	certLine := "    client-certificate-data: " + data(admin.Cert)
	return map[string]struct{ text, reason string }{
		"exec":                  {user(`exec: {apiVersion: client.authentication.k8s.io/v1, command: /bin/sh, args: [-c, id], interactiveMode: Never}`), "field exec not found"},
		"exec alone":            {edit(certLine+"\n"+keyLine, `    exec: {apiVersion: client.authentication.k8s.io/v1, command: sh, interactiveMode: Never}`), "field exec not found"},
		"exec in JSON":          {`{"apiVersion":"v1","kind":"Config","users":[{"name":"a","user":{"exec":{"command":"sh"}}}]}`, "field exec not found"},
		"auth-provider":         {user(`auth-provider: {name: gcp, config: {cmd-path: /bin/sh}}`), "field auth-provider not found"},
		"token":                 {user(`token: abc`), "field token not found"},
		"tokenFile":             {user(`tokenFile: /etc/shadow`), "field tokenFile not found"},
		"password":              {user(`password: abc`), "field password not found"},
		"as":                    {user(`as: root`), "field as not found"},
		"key in a file":         {user(`client-key: /etc/shadow`), "field client-key not found"},
		"certificate in a file": {user(`client-certificate: /etc/shadow`), "field client-certificate not found"},
		"proxy":                 {cluster(`proxy-url: http://192.0.2.1:3128`), "field proxy-url not found"},
		"server's name":         {cluster(`tls-server-name: evil`), "field tls-server-name not found"},
		"no TLS":                {cluster(`insecure-skip-tls-verify: true`), "field insecure-skip-tls-verify not found"},
		"CA in a file":          {cluster(`certificate-authority: /etc/ssl/evil.pem`), "field certificate-authority not found"},
		"extensions":            {cluster(`extensions: [{name: x, extension: {}}]`), "field extensions not found"},
		"namespace":             {edit("    cluster: kubernetes\n", "    cluster: kubernetes\n    namespace: evil\n"), "field namespace not found"},
		"preferences":           {edit("preferences: {}", "preferences: {colors: true}"), "field colors not found"},
		"other case":            {user(`Exec: {command: sh}`), "field Exec not found"},
		"twice":                 {edit("    server: ", "    server: https://192.0.2.1:6443\n    server: "), "already"},
		"two clusters":          {edit("clusters:\n", "clusters:\n- {name: evil, cluster: {server: 'https://192.0.2.1:6443'}}\n"), "2 clusters"},
		"two users":             {edit("users:\n", "users:\n- {name: evil, user: {}}\n"), "2 users"},
		"two contexts":          {edit("contexts:\n", "contexts:\n- {name: evil, context: {}}\n"), "2 contexts"},
		"no user":               {edit("users:", "users: []\nx:"), "field x not found"},
		"another context":       {edit("current-context: ", "current-context: x"), "its context is not"},
		"another user":          {edit("    user: kubernetes-admin", "    user: root"), "its context is not"},
		"two documents":         {good + "---\n" + user(`exec: {command: sh}`), "more than one document"},
		"a document before":     {"apiVersion: v1\nkind: Config\n---\n" + good, "more than one document"},
		"another kind":          {edit("kind: Config", "kind: List"), "not of kind Config"},
		"another version":       {edit("apiVersion: v1", "apiVersion: v2"), "not of kind Config"},
		"anchors":               {edit("preferences: {}", "preferences: &a {}"), "anchors, aliases and tags"},
		"aliases":               {edit("    user: kubernetes-admin", "    user: &u kubernetes-admin") + "\n", "anchors, aliases and tags"},
		"merge":                 {edit("preferences: {}", "preferences: {<<: {}}"), "anchors, aliases and tags"},
		"tags":                  {edit("kind: Config", "kind: !!str Config"), "anchors, aliases and tags"},
		"http":                  {edit("https://k8s-api.lab:6443", "http://k8s-api.lab:6443"), "no https://HOST:PORT"},
		"path":                  {edit("k8s-api.lab:6443", "k8s-api.lab:6443/proxy"), "no https://HOST:PORT"},
		"userinfo":              {edit("k8s-api.lab:6443", "k8s-api.lab:6443@192.0.2.1:6443"), "no https://HOST:PORT"},
		"query":                 {edit("k8s-api.lab:6443", "k8s-api.lab:6443?x"), "no https://HOST:PORT"},
		"no server":             {edit("https://k8s-api.lab:6443", `""`), "no https://HOST:PORT"},
		"another server":        {edit("k8s-api.lab:6443", "192.0.2.1:6443"), `"https://192.0.2.1:6443", which is neither`},
		"a worker's address":    {edit("k8s-api.lab:6443", "10.10.10.11:6443"), `"https://10.10.10.11:6443", which is neither`},
		"another port":          {edit("k8s-api.lab:6443", "k8s-api.lab:6444"), `"https://k8s-api.lab:6444", which is neither`},
		"another name's end":    {edit("k8s-api.lab:6443", "k8s-api.lab:6443.evil"), "no https://HOST:PORT"},
		"another CA":            {edit(data(ca.Cert), data(other.Cert)), "its CA is not that of the cluster"},
		"two CAs":               {edit(data(ca.Cert), data(ca.Cert+other.Cert)), "more than one block"},
		"no CA":                 {edit(data(ca.Cert), `""`), "no CERTIFICATE in PEM"},
		"CA not in base64":      {edit(data(ca.Cert), "$(reboot)"), "not in base64"},
		"another CA's client":   {with(other.Admin()), "not signed by the cluster's CA"},
		"the CA as client":      {with(ca), "not for a client"},
		"a server's":            {with(ca.Admin(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })), "not for a client"},
		"expired":               {with(ca.Admin(func(c *x509.Certificate) { c.NotAfter = testca.From.AddDate(1, 0, 0) })), "is in force from"},
		"not yet in force": {with(ca.Admin(func(c *x509.Certificate) {
			c.NotBefore = testca.From.AddDate(100, 0, 0)
			c.NotAfter = c.NotBefore.AddDate(1, 0, 0)
		})), "is in force from"},
		"another key":         {with(testca.Pair{Cert: admin.Cert, Key: ca.Admin().Key}), "not that of its certificate"},
		"no key":              {with(testca.Pair{Cert: admin.Cert}), "no RSA PRIVATE KEY in PEM"},
		"two keys":            {with(testca.Pair{Cert: admin.Cert, Key: admin.Key + other.Key}), "more than one block"},
		"text around the key": {with(testca.Pair{Cert: admin.Cert, Key: "\x1b[2J\n" + admin.Key}), "more than one block"},
		"headers":             {with(testca.Pair{Cert: admin.Cert, Key: strings.Replace(admin.Key, "KEY-----\n", "KEY-----\nProc-Type: 4,ENCRYPTED\n\n", 1)}), "more than one block"},
		"a chain":             {with(testca.Pair{Cert: admin.Cert + ca.Cert, Key: admin.Key}), "more than one block"},
		"nothing":             {"", "no YAML"},
		"no YAML":             {"apiVersion: [v1\n", "no YAML"},
		"a list":              {"[]", "other fields than"},
		"binary":              {"\x00\xff\x1b", "no YAML"},
		"too large":           {good + "#" + strings.Repeat("x", maxKubeconfig), "bytes"},
		"deep":                {strings.Repeat("[", 40_000), "no YAML"},
		"escapes":             {edit("k8s-api.lab:6443", `"`+`k8s\e[2J\n2026 joined -> ready"`), "other fields than|no YAML|no https"},
	}
}

func TestKubeconfigIsReadStrictly(t *testing.T) {
	r := newRack(t, 1, 1).all()
	r.until("settled", r.settled)
	var file string
	r.agent("kmaster1").spoil = func(w api.Work, result *api.Result) {
		if w.Action == api.Kubeconfig {
			result.Kubeconfig = file
		}
	}
	fetch := func(text string) (string, error) {
		file = text
		return ask(r, func() (string, error) { return r.c.Kubeconfig(context.Background()) })
	}
	for what, hostile := range hostileKubeconfigs(r.kube.CA()) {
		text, err := fetch(hostile.text)
		require.Empty(t, text, what)
		require.ErrorContains(t, err, "what kmaster1 sent is no kubeconfig of this cluster: ", what)
		require.Regexp(t, hostile.reason, err.Error(), what)
		require.NotRegexp(t, `[^ -~…]`, err.Error(), what)
		require.LessOrEqual(t, len(err.Error()), 1000, what)
	}
	require.True(t, r.told("kmaster1", "alarm refused: what kmaster1 sent is no kubeconfig of this cluster: "))
	r.noSecrets()

	ca := r.kube.CA()
	admin := ca.Admin()
	for _, server := range []string{"k8s-api.lab:6443", "10.10.10.10:6443"} {
		given := testca.Kubeconfig("https://"+server, "$(reboot)", ca.Cert, admin)
		text, err := fetch(given)
		require.NoError(t, err)
		require.NotContains(t, text, "reboot", "names are the appliance's")
		require.Contains(t, text, "server: https://10.10.10.10:6443\n", "the master that answered: the endpoint's name is known in the rack alone")
		var k kubeconfig
		require.NoError(t, yaml.Unmarshal([]byte(text), &k))
		require.Equal(t, "kubernetes-admin@lab", k.CurrentContext)
		require.Equal(t, data(ca.Cert), k.Clusters[0].Cluster.CA)
		require.Equal(t, data(admin.Cert), k.Users[0].User.Certificate)
		require.Equal(t, data(admin.Key), k.Users[0].User.Key)
	}
}

// Whatever is taken is rendered as a file that is taken again, and has no other words in it than the appliance's.
func FuzzKubeconfig(f *testing.F) {
	ca := testca.New()
	pinned, err := parseCA(ca.Cert)
	require.NoError(f, err)
	f.Add(testca.Kubeconfig("https://k8s-api.lab:6443", "kubernetes-admin", ca.Cert, ca.Admin()))
	for _, hostile := range hostileKubeconfigs(ca) {
		if len(hostile.text) < 10_000 {
			f.Add(hostile.text)
		}
	}
	f.Fuzz(func(t *testing.T, text string) {
		server, client, err := parseKubeconfig(text, pinned, time.Now())
		if err != nil {
			return
		}
		rendered := renderKubeconfig("lab", server, pinned, client)
		for _, word := range []string{"exec", "auth-provider", "proxy-url", "insecure", "tokenFile"} {
			require.NotContains(t, rendered, word)
		}
		again, same, err := parseKubeconfig(rendered, pinned, time.Now())
		require.NoError(t, err)
		require.Equal(t, server, again)
		require.Equal(t, client, same)
	})
}

func TestCertificateInForce(t *testing.T) {
	cert := &x509.Certificate{NotBefore: testca.From, NotAfter: testca.From.AddDate(1, 0, 0)}
	require.True(t, inForce(cert, testca.From.Add(-maxSkew)), "the clock of the machine that made it may be ahead")
	require.False(t, inForce(cert, testca.From.Add(-maxSkew-time.Second)))
	require.True(t, inForce(cert, cert.NotAfter.Add(-time.Second)))
	require.False(t, inForce(cert, cert.NotAfter))
}

func TestParseCA(t *testing.T) {
	ca := testca.New()
	admin := ca.Admin()
	for what, text := range map[string]string{
		"none": "", "two": ca.Cert + testca.New().Cert, "a client's": admin.Cert, "a key": ca.Key, "with its key": ca.Cert + ca.Key,
		"text before": "x\n" + ca.Cert, "escapes before": "\x1b[2J" + ca.Cert, "text behind": ca.Cert + "x", "too large": ca.Cert + strings.Repeat("\n", maxCA),
		"headers": strings.Replace(ca.Cert, "CERTIFICATE-----\n", "CERTIFICATE-----\nA: b\n\n", 1), "cut": ca.Cert[:len(ca.Cert)/2],
	} {
		_, err := parseCA(text)
		require.Error(t, err, what)
	}
	hash, err := CAHash(ca.Cert + "\n")
	require.NoError(t, err)
	require.Equal(t, ca.Hash(), hash)
}

// An address of IPv6 may name a zone, which may be any text.
func TestAddressHasNoZone(t *testing.T) {
	require.True(t, isAddress("10.10.10.10"))
	require.False(t, isAddress("fe80::1%\x1b[2J\nkmaster is Ready"))
	require.Error(t, checkNodes([]api.Node{{Name: "knode1", Ready: "True", Address: "fe80::1%\x1b[2J"}}))
}
