package kickstart

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"flag"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/assets"
	"rackstrap/internal/testenv"
	"rackstrap/inventory"
)

var update = flag.Bool("update", false, "write the golden files anew")

const (
	testSecret = "2b7e151628aed2a6abf7158809cf4f3c"
	testHash   = "$6$saltsalt$Jm0nAbC.dEfGhIjKlMnOpQrStUvWxYz0123456789/abcdefghijklmnopqrstuvwxyzABCDEFGHI.JKL/...."
	testLogin  = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8g" // the public key of nobody
)

// testKey is a key of a repository, as far as anybody here looks.
const testKey = "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nmQINBF\n=abcd\n-----END PGP PUBLIC KEY BLOCK-----\n"

// testAgent is what curl fetches in the sandbox, and %post runs.
const testAgent = `#!/bin/bash
echo "rackstrap $*" >>/calls
[ ! -e /no-variables ] || { echo "the variables cannot be read" >&2; exit 1; }
echo "UEFI PXEv4 is first"
`

var testAgentSum = fmt.Sprintf("%x", sha256.Sum256([]byte(testAgent)))

// testCA is no certificate, only its envelope: the kickstart passes it on.
var testCA = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("not a certificate, but what stands in its place here")}))

func newRenderer(t testing.TB) *Renderer {
	t.Helper()
	r, err := New(assets.Profiles())
	require.NoError(t, err)
	return r
}

// input is the kickstart of one machine of the reference configuration, for a profile.
func input(profile, machine string) Input {
	c := inventory.Default()
	for i := range c.Machines {
		c.Machines[i].Install.Profile = profile
		if profile != "centos-7.9" { // the reference configuration's repositories are those of CentOS
			c.Machines[i].Install.Repos = nil
		}
	}
	m, ok := c.ByName(machine)
	if !ok {
		panic(machine)
	}
	return Input{
		Config: c, Machine: *m, Medium: "http://10.10.10.1:8080/media/" + profile,
		Callback: Callback{URL: "https://10.10.10.1:8443", CA: testCA, Secret: testSecret, Attempt: 3, Agents: []Agent{
			{"x86_64", "http://10.10.10.1:8080/agent/linux-amd64", testAgentSum}, {"aarch64", "http://10.10.10.1:8080/agent/linux-arm64", testAgentSum}}},
	}
}

// fullInput uses every key that there is.
func fullInput(profile string) Input {
	in := input(profile, "knode1")
	in.Config.Network.Domain = "rack.lab"
	in.Config.Network.NTP = append(in.Config.Network.NTP, "10.10.10.1")
	in.Machine.Install.RootPasswordHash = testHash
	in.Machine.Install.SSHAuthorizedKeys = []string{testLogin + " it's me <me@example.org>"}
	in.Machine.Install.Repos = map[string]inventory.Repo{
		"kubernetes": {URL: "https://upstream.example.org/$basearch/", Via: inventory.ViaAppliance},
		"ours":       {URL: "https://rpm.example.org/ours/"},
	}
	in.Machine.Install.Repos = map[string]inventory.Repo{
		"kubernetes": {URL: "http://10.10.10.1:8080/repo/kubernetes/", GPGKey: inventory.NoGPGKey},
		"ours":       {URL: "https://rpm.example.org/ours/", GPGKey: "https://rpm.example.org/KEY"},
		"theirs":     {Dir: "/srv/theirs", Via: inventory.ViaAppliance, GPGKey: "/srv/KEY", Key: testKey},
	}
	o := &in.Machine.Install
	o.Kernel, o.Docker, o.SELinux, o.Disk = inventory.KernelLT, true, "disabled", ">=40G smallest"
	o.BootArgs = []string{"console=ttyS0,115200n8", "quiet"}
	o.ExtraPackages = []string{"tmux", "vim-enhanced"}
	o.PostScripts = []inventory.Script{{Name: "motd", Text: "#!/bin/bash\nprintf '%s\\n' \"$HOSTNAME\" >/etc/motd\n%include /etc/passwd\n  %end\nEND\n"}}
	o.Proxy = "http://user:p%40ss@proxy.example.org:3128"
	o.SandboxImage = "registry.example.org/pause:3.9"
	o.RegistryMirrors = map[string][]string{"docker.io": {"https://mirror.example.org", "http://10.10.10.1:5000"}, "ghcr.io": {"https://ghcr.example.org"}}
	return in
}

func TestGolden(t *testing.T) {
	r := newRenderer(t)
	require.Equal(t, []string{"centos-7.9", "rocky-9"}, r.Profiles())
	for _, profile := range r.Profiles() {
		cases := map[string]Input{"full": fullInput(profile)}
		for _, m := range inventory.Default().Machines {
			cases[m.Name] = input(profile, m.Name)
		}
		silent := input(profile, "kmaster")
		silent.Callback.URL = ""
		cases["silent"] = silent
		for name, in := range cases {
			t.Run(profile+"/"+name, func(t *testing.T) {
				got, err := r.Render(in)
				require.NoError(t, err)
				require.Empty(t, r.Check(got, r.Syntax(profile)))
				file := filepath.Join("testdata", profile+"."+name+".ks")
				if *update {
					require.NoError(t, os.WriteFile(file, got, 0o644))
				}
				want, err := os.ReadFile(file)
				require.NoError(t, err, "run with -update to write it")
				require.Equal(t, string(want), string(got))
			})
		}
	}
}

func TestSilentWithoutAllOfTheCallback(t *testing.T) {
	r := newRenderer(t)
	for name, clear := range map[string]func(*Callback){
		"url": func(c *Callback) { c.URL = "" }, "ca": func(c *Callback) { c.CA = "" }, "secret": func(c *Callback) { c.Secret = "" },
	} {
		in := input("centos-7.9", "knode1")
		clear(&in.Callback)
		text, err := r.Render(in)
		require.NoError(t, err, name)
		require.NotContains(t, string(text), "curl", name)
		require.NotContains(t, string(text), testSecret, name)
		require.NotContains(t, string(text), "%onerror", name)
	}
}

// The report of the installed system is what the last section of the machine's own ends with.
func TestReportIsTheLastAction(t *testing.T) {
	r := newRenderer(t)
	text, err := r.Render(fullInput("centos-7.9"))
	require.NoError(t, err)
	for _, s := range r.Sections(text, "rhel7") {
		if s.Name == "%post" {
			lines := strings.Split(strings.TrimSpace(s.Body), "\n")
			require.Equal(t, "conclude post $? /root/rackstrap-post.log", lines[len(lines)-1])
			return
		}
	}
	t.Fatal("there is no post section")
}

func TestRefused(t *testing.T) {
	r := newRenderer(t)
	for name, c := range map[string]struct {
		change func(*Input)
		want   string
	}{
		"profile":   {func(in *Input) { in.Machine.Install.Profile = "gentoo" }, `there is no profile "gentoo"; there are: centos-7.9, rocky-9`},
		"free slot": {func(in *Input) { in.Machine.MAC = inventory.MAC{} }, "MAC address is not known yet"},
		"foreign network": {func(in *Input) {
			in.Machine.IP = in.Machine.IP.Next()
			in.Config.Network.Prefix = in.Config.Cluster.PodCIDR
		}, "in none of the networks"},
		"medium":           {func(in *Input) { in.Medium = "ftp://x/y" }, "medium: is not a URL"},
		"disk":             {func(in *Input) { in.Machine.Install.Disk = "sda sdb" }, `disk "sda sdb"`},
		"kernel":           {func(in *Input) { in.Machine.Install.Kernel = "rt" }, `kernel: "rt" is not one of stock, lt, ml`},
		"selinux":          {func(in *Input) { in.Machine.Install.SELinux = "off" }, `selinux: "off"`},
		"proxy":            {func(in *Input) { in.Machine.Install.Proxy = "socks://x" }, "proxy: is not a URL"},
		"repo":             {func(in *Input) { in.Machine.Install.Repos = map[string]inventory.Repo{"x": {URL: "y"}} }, "repos.x: is not a URL"},
		"plain node plane": {func(in *Input) { in.Callback.URL = "http://10.10.10.1:8443" }, "not one of HTTPS"},
		"CA":               {func(in *Input) { in.Callback.CA = "trust me" }, "CA is not one certificate"},
		"agent's sum":      {func(in *Input) { in.Callback.Agents[0].SHA256 = "" }, `agent of "x86_64" has no SHA-256 sum`},
		"agent's URL":      {func(in *Input) { in.Callback.Agents[0].URL = "file:///x" }, "agent of x86_64: is not a URL"},
		"script":           {func(in *Input) { in.Machine.Install.PostScripts = []inventory.Script{{Name: "x", Text: "echo"}} }, "post_scripts[0] has no interpreter"},
		"script from DOS": {func(in *Input) {
			in.Machine.Install.PostScripts = []inventory.Script{{Name: "x", Text: "#!/bin/sh\r\n"}}
		}, "line 1 holds a control character"},
		"key with a newline": {func(in *Input) { in.Machine.Install.SSHAuthorizedKeys = []string{testLogin + " a\n" + testLogin} }, "control character"},
		"group":              {func(in *Input) { in.Machine.Install.ExtraPackages = []string{"--nogpgcheck"} }, "is not the name of a package"},
	} {
		t.Run(name, func(t *testing.T) {
			in := input("centos-7.9", "knode1")
			c.change(&in)
			_, err := r.Render(in)
			require.ErrorContains(t, err, c.want)
			require.ErrorContains(t, err, `kickstart of "knode1"`)
		})
	}
}

// Invariant 4 of the design: no secret in an error.
func TestErrorsHoldNoSecret(t *testing.T) {
	r := newRenderer(t)
	for _, change := range []func(*Input){
		func(in *Input) { in.Callback.Secret = testSecret + "\n" },
		func(in *Input) { in.Callback.Secret = testSecret + `"` },
		func(in *Input) { in.Machine.Install.RootPasswordHash = testSecret + "\n" },
		func(in *Input) { in.Machine.Install.RootPasswordHash = testSecret + "\u2028" },
		func(in *Input) { in.Machine.Install.Proxy = "http://u:" + testSecret + " @x" },
		func(in *Input) {
			in.Machine.Install.Repos = map[string]inventory.Repo{"x": {URL: "http://u:" + testSecret + "@/"}}
		},
	} {
		in := input("centos-7.9", "knode1")
		change(&in)
		_, err := r.Render(in)
		require.Error(t, err)
		require.NotContains(t, err.Error(), testSecret)
	}
}

func TestARealCAIsPassedOn(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1)}, &x509.Certificate{}, &key.PublicKey, key)
	require.NoError(t, err)
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	in := input("centos-7.9", "knode1")
	in.Callback.CA = ca
	text, err := newRenderer(t).Render(in)
	require.NoError(t, err)
	require.Contains(t, string(text), "|"+strings.Join(strings.Split(strings.TrimSpace(ca), "\n"), "\n|")+"\n")
}

// A profile is data: one that is put beside the others is found, and can use what they share.
func TestProfileIsData(t *testing.T) {
	files := fstest.MapFS{
		"mini.syntax.yaml":     {Data: []byte("title: Mini\nsections: {\"%post\": {script: true}}\ncommands: {url: {args: '1'}, network: {args: 0+}}\n")},
		"shared.tmpl":          {Data: []byte(`{{define "net"}}network {{ks .IP}}{{end}}`)},
		"mini/profile.yaml":    {Data: []byte("{title: Mini, syntax: mini, volume_group: v, sandbox_image: p}")},
		"mini/kickstart.tmpl":  {Data: []byte("url {{ks .Medium}}\n{{template \"net\" .}}\n")},
		"mini/README.md":       {Data: []byte("ignored")},
		"README.md":            {Data: []byte("ignored")},
		"unrelated/nothing.go": {Data: []byte("ignored")},
	}
	r, err := New(files)
	require.NoError(t, err)
	require.Equal(t, []string{"mini"}, r.Profiles())
	text, err := r.Render(input("mini", "kmaster"))
	require.NoError(t, err)
	require.Equal(t, "url http://10.10.10.1:8080/media/mini\nnetwork 10.10.10.80\n", string(text))
	require.Empty(t, r.Check(text, "mini"))
}

func TestFaultyProfilesAreRefused(t *testing.T) {
	for name, c := range map[string]struct{ file, text, want string }{
		"bare value":       {"p/kickstart.tmpl", "url {{.Medium}}", "not quoted"},
		"in a branch":      {"p/kickstart.tmpl", "{{with .NTP}}{{range .}}x{{else}}{{.Medium}}{{end}}{{end}}", "not quoted"},
		"in an if":         {"p/kickstart.tmpl", "{{if .NTP}}x{{else}}{{.Medium}}{{end}}", "not quoted"},
		"quoted too early": {"p/kickstart.tmpl", `{{print (ks .Medium) "x"}}`, "not quoted"},
		"plain function":   {"p/kickstart.tmpl", `{{join "," .NTP}}`, "not quoted"},
		"in a shared one":  {"x.tmpl", `{{define "x"}}{{.Medium}}{{end}}`, "not quoted"},
		"syntax of Go":     {"p/kickstart.tmpl", "{{if}}", "missing value for if"},
		"no template":      {"p/kickstart.tmpl", "", "has no kickstart.tmpl"},
		"unknown key":      {"p/profile.yaml", "{title: P, flavour: x}", "field flavour not found"},
		"no title":         {"p/profile.yaml", "{syntax: s}", "are needed"},
		"unknown syntax":   {"p/profile.yaml", "{title: P, syntax: t, volume_group: v, sandbox_image: p}", "no t.syntax.yaml"},
		"syntax table":     {"s.syntax.yaml", "{title: S, commands: {x: {args: many}}}", "many"},
		"required":         {"s.syntax.yaml", "{title: S, commands: {x: {required: --y}}}", "--y is required"},
		"option":           {"s.syntax.yaml", "{title: S, commands: {x: {options: y}}}", "does not begin with --"},
	} {
		t.Run(name, func(t *testing.T) {
			files := fstest.MapFS{
				"s.syntax.yaml":    {Data: []byte("title: S")},
				"p/profile.yaml":   {Data: []byte("{title: P, syntax: s, volume_group: v, sandbox_image: p}")},
				"p/kickstart.tmpl": {Data: []byte("url {{ks .Medium}}")},
			}
			files[c.file] = &fstest.MapFile{Data: []byte(c.text)}
			if c.text == "" {
				delete(files, c.file)
			}
			_, err := New(files)
			require.ErrorContains(t, err, c.want)
		})
	}
}

func TestMissingKeyIsAnError(t *testing.T) {
	files := fstest.MapFS{
		"s.syntax.yaml":    {Data: []byte("title: S")},
		"p/profile.yaml":   {Data: []byte("{title: P, syntax: s, volume_group: v, sandbox_image: p, packages: {a: [b]}}")},
		"p/kickstart.tmpl": {Data: []byte("{{range .Packages.medium}}{{pkg .}}{{end}}")},
	}
	r, err := New(files)
	require.NoError(t, err)
	_, err = r.Render(input("p", "kmaster"))
	require.ErrorContains(t, err, `no entry for key "medium"`)
}

func TestShellcheck(t *testing.T) {
	shellcheck := testenv.NeedTool(t, "shellcheck")
	r := newRenderer(t)
	seen := map[string]bool{}
	for _, profile := range r.Profiles() {
		for _, in := range []Input{input(profile, "kmaster"), input(profile, "knode1"), fullInput(profile)} {
			text, err := r.Render(in)
			require.NoError(t, err)
			for _, s := range r.Sections(text, r.Syntax(profile)) {
				if !strings.HasSuffix(s.Interpreter(), "bash") || !r.syntaxes[r.Syntax(profile)].Sections[s.Name].Script || seen[s.Body] {
					continue
				}
				seen[s.Body] = true
				cmd := exec.Command(shellcheck, "--shell=bash", "--severity=style", "--format=gcc", "-")
				cmd.Stdin = strings.NewReader(s.Body)
				out, err := cmd.CombinedOutput()
				require.NoError(t, err, "%s %s of %s:\n%s", in.Machine.Name, s.Name, profile, out)
			}
		}
	}
	require.Greater(t, len(seen), 10)
}

func TestConcurrentRenderingIsPure(t *testing.T) {
	r := newRenderer(t)
	in := fullInput("centos-7.9")
	want, err := r.Render(in)
	require.NoError(t, err)
	done := make(chan []byte)
	for range 8 {
		go func() {
			got, _ := r.Render(in)
			done <- got
		}()
	}
	for range 8 {
		require.True(t, bytes.Equal(want, <-done))
	}
}

func BenchmarkRender(b *testing.B) {
	r := newRenderer(b)
	for name, in := range map[string]Input{"default": input("centos-7.9", "kmaster"), "full": fullInput("centos-7.9")} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			before := cpu(b)
			for b.Loop() {
				if _, err := r.Render(in); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "kickstarts/s")
			b.ReportMetric(float64(b.N)/(cpu(b)-before).Seconds(), "kickstarts/cpu-s")
		})
	}
}

// The API endpoint resolves to every control plane, the first one first: the cluster outlives that machine.
func TestEndpointIsEveryControlPlane(t *testing.T) {
	in := input("centos-7.9", "knode1")
	for i := range in.Config.Machines {
		in.Config.Machines[i].Role = inventory.RoleControlPlane
	}
	lines, err := hosts(in.Config)
	require.NoError(t, err)
	require.Equal(t, "10.10.10.80 kmaster k8s-api.lab\n10.10.10.81 knode1 k8s-api.lab\n10.10.10.82 knode2 k8s-api.lab\n", lines)
}

// cpu is the processor time that this process has had: what means something on a machine that others use, too.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var usage syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
