package fakekube

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"rackstrap/internal/testca"
)

// Files of kubeadm and kubelet.
const (
	adminConf      = "/etc/kubernetes/admin.conf"
	controllerConf = "/etc/kubernetes/controller-manager.conf"
	kubeletConf    = "/etc/kubernetes/kubelet.conf"
	caFile         = "/etc/kubernetes/pki/ca.crt"
	apiManifest    = "/etc/kubernetes/manifests/kube-apiserver.yaml"
	etcdMember     = "/var/lib/etcd/member/snap/db"
	version        = "v1.28.2"
)

var (
	tokenForm   = regexp.MustCompile(`^([a-z0-9]{6})\.([a-z0-9]{16})$`)
	tokenIDForm = regexp.MustCompile(`^[a-z0-9]{6}$`)
	keyForm     = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

func kubeadm(c *call) error {
	words, flags, err := c.flags(c.args, []string{"--config", "--kubeconfig", "-o", "--cri-socket"}, []string{"--upload-certs", "-f", "--force"})
	if err != nil {
		return err
	}
	line := strings.Join(words, " ")
	c.file.Update(func(s *State) error { s.Commands = append(s.Commands, c.host.Name+": kubeadm "+line); return nil })
	switch {
	case line == "version" && flags["-o"] == "short":
		c.say(version)
		return nil
	case line == "config images list":
		return c.imagesList(flags["--config"])
	case line == "config images pull":
		return c.imagesPull(flags["--config"])
	case line == "init":
		return c.init(flags["--config"], flags["--upload-certs"] == "true")
	case line == "init phase upload-certs" && flags["--upload-certs"] == "true":
		return c.uploadCerts(flags["--config"], flags["--kubeconfig"])
	case line == "join phase control-plane-join mark-control-plane":
		return c.markPhase(flags["--config"])
	case line == "join":
		return c.join(flags["--config"])
	case line == "reset" && flags["-f"]+flags["--force"] != "":
		return c.reset()
	case line == "token list":
		return c.tokenList(flags["--kubeconfig"], flags["-o"])
	case line == "token create" && flags["--config"] != "":
		return c.tokenCreate(flags["--config"], flags["--kubeconfig"])
	case len(words) == 3 && strings.HasPrefix(line, "token delete "):
		return c.tokenDelete(words[2], flags["--kubeconfig"])
	}
	return failf("unknown command %q for \"kubeadm\"", line)
}

func (c *call) configuration(path string) (configuration, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return configuration{}, failf("unable to read config from %q : open %s: no such file or directory", path, path)
	}
	if info, err := os.Stat(path); err == nil && info.Mode().Perm()&0o077 != 0 {
		return configuration{}, failf("fakekube: %s holds secrets and is readable by others", path)
	}
	conf, err := parseConfiguration(string(text))
	if err != nil {
		return conf, failf("error unmarshaling configuration: %v", err)
	}
	return conf, nil
}

func (c *call) needed(path string) ([]string, error) {
	conf, err := c.configuration(path)
	if err != nil {
		return nil, err
	}
	if conf.Cluster == nil || conf.Cluster.KubernetesVersion != version {
		return nil, failf("fakekube: kubernetesVersion %s is not given: the real one asks the internet", version)
	}
	repository := conf.Cluster.ImageRepository
	if repository == "" {
		repository = "registry.k8s.io"
	}
	var names []string
	for _, name := range []string{"kube-apiserver:" + version, "kube-controller-manager:" + version, "kube-scheduler:" + version,
		"kube-proxy:" + version, "pause:3.9", "etcd:3.5.9-0", "coredns:v1.10.1"} {
		names = append(names, repository+"/"+name)
	}
	return names, nil
}

func (c *call) imagesList(path string) error {
	names, err := c.needed(path)
	for _, name := range names {
		c.say("%s", name)
	}
	return err
}

func (c *call) imagesPull(path string) error {
	names, err := c.needed(path)
	if err != nil {
		return err
	}
	have := c.images()
	for _, name := range names {
		if !c.host.Images && !slices.Contains(have, name) {
			return failf("failed to pull image %q: output: E1126 15:00:00.000000 1 remote_image.go:171] \"PullImage from image service failed\" err=\"dial tcp: lookup failed: no such host\": exit status 1", name)
		}
		c.say("[config/images] Pulled %s", name)
		c.addImages(name)
	}
	return nil
}

// preflight lists what real kubeadm finds on a used machine.
func (c *call) preflight(paths ...string) error {
	c.say("[preflight] Running pre-flight checks")
	var faults []string
	for _, path := range paths {
		if c.has(path) {
			faults = append(faults, fmt.Sprintf("\t[ERROR FileAvailable-%s]: %s already exists", strings.ReplaceAll(path, "/", "-"), path))
		}
	}
	if c.has("/var/lib/etcd/member") && len(paths) > 3 {
		faults = append(faults, "\t[ERROR DirAvailable--var-lib-etcd]: /var/lib/etcd is not empty")
	}
	if len(faults) > 0 {
		return failf("error execution phase preflight: [preflight] Some fatal errors occurred:\n%s\n[preflight] If you know what you are doing, you can make a check non-fatal with `--ignore-preflight-errors=...`",
			strings.Join(faults, "\n"))
	}
	return nil
}

func (c *call) init(path string, upload bool) error {
	conf, err := c.configuration(path)
	if err != nil {
		return err
	}
	switch {
	case conf.Init == nil || conf.Cluster == nil:
		return failf("fakekube: an init needs InitConfiguration and ClusterConfiguration")
	case conf.Init.NodeRegistration.Name != c.host.Name || conf.Init.LocalAPIEndpoint.AdvertiseAddress != c.host.IP:
		return failf("fakekube: %s (%s) is configured as %s (%s)", c.host.Name, c.host.IP, conf.Init.NodeRegistration.Name, conf.Init.LocalAPIEndpoint.AdvertiseAddress)
	case conf.Cluster.ControlPlaneEndpoint == "" || conf.Cluster.Networking.PodSubnet == "" || conf.Cluster.Networking.ServiceSubnet == "":
		return failf("fakekube: endpoint or networks are not given")
	case upload && !keyForm.MatchString(conf.Init.CertificateKey) && conf.Init.CertificateKey != "":
		return failf("certificateKey: Invalid value")
	}
	c.say("[init] Using Kubernetes version: %s", version)
	manifests := []string{apiManifest, "/etc/kubernetes/manifests/kube-controller-manager.yaml", "/etc/kubernetes/manifests/kube-scheduler.yaml", "/etc/kubernetes/manifests/etcd.yaml"}
	if err := c.preflight(manifests...); err != nil {
		return err
	}
	c.say("[preflight] Pulling images required for setting up a Kubernetes cluster")
	if names, err := c.needed(path); err != nil {
		return err
	} else if have := c.images(); !c.host.Images && slices.ContainsFunc(names, func(n string) bool { return !slices.Contains(have, n) }) {
		return failf("error execution phase preflight: [preflight] Some fatal errors occurred:\n\t[ERROR ImagePull]: failed to pull image %s: output: no such host", names[0])
	}
	ca := testca.New()
	c.say("[certs] Using certificateDir folder \"/etc/kubernetes/pki\"")
	err = c.file.Update(func(s *State) error {
		for name, h := range s.Hosts {
			if name != c.host.Name && there(filepath.Join(h.Root, apiManifest)) {
				s.violate("a second kubeadm init on %s, while %s is a master", c.host.Name, name)
				return failf("fakekube: a second kubeadm init, while %s is a master", name)
			}
		}
		commands, kept := s.Commands, s.Hosts
		s.clear()
		s.Commands, s.Hosts, s.CA, s.CAKey, s.Endpoint, s.Phase = commands, kept, ca.Cert, ca.Key, conf.Cluster.ControlPlaneEndpoint, "certs"
		return nil
	})
	if err != nil {
		return err
	}
	if err := c.becomeMaster(ca.Cert); err != nil {
		return err
	}
	c.say("[kubelet-start] Starting the kubelet\n[wait-control-plane] Waiting for the kubelet to boot up the control plane as static Pods from directory \"/etc/kubernetes/manifests\". This can take up to 4m0s")
	c.pace()
	c.say("[apiclient] All control plane components are healthy after 9.506628 seconds")
	if err := c.file.Update(func(s *State) error {
		s.Created, s.Phase = time.Now(), "api"
		s.Members = []Member{c.member()}
		s.register(c, true)
		return nil
	}); err != nil {
		return err
	}
	c.say("[upload-config] Storing the configuration used in ConfigMap \"kubeadm-config\" in the \"kube-system\" Namespace")
	c.pace()
	key := conf.Init.CertificateKey
	if key == "" {
		key = randomHex(32)
	}
	token := randomToken()
	err = c.file.Update(func(s *State) error {
		if upload {
			s.uploadCerts(key)
		}
		for _, t := range conf.Init.BootstrapTokens {
			if err := s.addToken(t); err != nil {
				return err
			}
		}
		if len(conf.Init.BootstrapTokens) == 0 { // kubeadm's default, for a day
			s.Tokens[token[:6]] = Token{Secret: token[7:], Expires: time.Now().Add(24 * time.Hour), Usages: []string{"authentication", "signing"}}
		}
		s.Objects["kube-public/configmap/cluster-info"], s.Objects["kube-system/daemonset/kube-proxy"] = true, true
		s.Phase = "complete"
		s.Inits = append(s.Inits, c.host.Name)
		return nil
	})
	if err != nil {
		return err
	}
	c.say("[upload-certs] Using certificate key:\n%s\n[bootstrap-token] Using token: %s\n[addons] Applied essential addon: CoreDNS\n[addons] Applied essential addon: kube-proxy\n\nYour Kubernetes control-plane has initialized successfully!\n", key, token)
	c.say("kubeadm join %s --token %s \\\n\t--discovery-token-ca-cert-hash %s \\\n\t--control-plane --certificate-key %s", conf.Cluster.ControlPlaneEndpoint, token, ca.Hash(), key)
	return nil
}

// becomeMaster writes what makes a host a master, but for its credentials.
func (c *call) becomeMaster(ca string) error {
	files := map[string]string{caFile: ca, etcdMember: "data"}
	for _, name := range []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "etcd"} {
		files["/etc/kubernetes/manifests/"+name+".yaml"] = "apiVersion: v1\nkind: Pod\n"
	}
	for path, text := range files {
		if err := c.write(path, text); err != nil {
			return err
		}
	}
	return nil
}

func (c *call) member() Member {
	var raw [8]byte
	rand.Read(raw[:])
	return Member{ID: binary.BigEndian.Uint64(raw[:]) | 1<<63, Name: c.host.Name, Peer: "https://" + c.host.IP + ":2380"} // beyond a float's digits
}

// register makes the node object and its credentials.
func (s *State) register(c *call, master bool) error {
	kubelet := testca.Pair{Cert: "", Key: randomHex(48)} // a key that is nothing but a secret
	key := s.secret(base64.StdEncoding.EncodeToString([]byte(kubelet.Key)))
	s.Nodes[c.host.Name] = Node{IP: c.host.IP, ControlPlane: master, Joined: time.Now()}
	s.Kubelets[c.host.Name] = key
	server := "https://" + s.Endpoint
	if err := c.write(kubeletConf, testca.Kubeconfig(server, "system:node:"+c.host.Name, s.CA, kubelet)); err != nil {
		return err
	}
	if err := c.write("/var/lib/kubelet/config.yaml", "kind: KubeletConfiguration\n"); err != nil || !master {
		return err
	}
	pair := testca.Pair{Cert: s.CA, Key: s.CAKey}.Admin()
	s.secret(pair.Key)
	s.Admins = append(s.Admins, s.secret(base64.StdEncoding.EncodeToString([]byte(pair.Key))))
	if err := c.write(controllerConf, testca.Kubeconfig("https://"+c.host.IP+":6443", "system:kube-controller-manager", s.CA, pair)); err != nil {
		return err
	}
	return c.write(adminConf, testca.Kubeconfig(server, "kubernetes-admin", s.CA, pair))
}

func (s *State) uploadCerts(key string) {
	s.Certs = &Certs{KeyHash: hashed(s.secret(key)), Expires: time.Now().Add(2 * time.Hour)}
	for id, t := range s.Tokens { // one timer at a time
		if len(t.Usages) == 0 {
			delete(s.Tokens, id)
		}
	}
	token := randomToken()
	s.Tokens[token[:6]] = Token{Secret: token[7:], Description: "Proxy for managing TTL for the kubeadm-certs secret", Expires: s.Certs.Expires}
}

func (s *State) addToken(t bootstrapToken) error {
	parts := tokenForm.FindStringSubmatch(t.Token)
	if parts == nil {
		return failf("the bootstrap token %q was not of the form %q", t.Token, `\A([a-z0-9]{6})\.([a-z0-9]{16})\z`)
	}
	if _, taken := s.Tokens[parts[1]]; taken {
		return failf("a token with id %q already exists", parts[1])
	}
	life, err := time.ParseDuration(t.TTL)
	if err != nil && t.TTL != "" {
		return failf("error unmarshaling JSON: while decoding JSON: time: invalid duration %q", t.TTL)
	}
	if t.TTL == "" {
		life = 24 * time.Hour
	}
	usages := t.Usages
	if len(usages) == 0 {
		usages = []string{"signing", "authentication"}
	}
	s.Tokens[parts[1]] = Token{Secret: s.secret(parts[2]), Description: t.Description, Expires: time.Now().Add(life), Usages: usages}
	return nil
}

func (c *call) join(path string) error {
	conf, err := c.configuration(path)
	if err != nil {
		return err
	}
	if conf.Join == nil {
		return failf("no JoinConfiguration found in config file %q", path)
	}
	want := conf.Join
	token := want.Discovery.BootstrapToken
	switch {
	case token == nil || len(token.CACertHashes) == 0:
		return failf("discovery.bootstrapToken.caCertHashes: Invalid value: \"\": using token-based discovery without caCertHashes can be unsafe")
	case !tokenForm.MatchString(token.Token):
		return failf("discovery.bootstrapToken.token: Invalid value: \"\": the bootstrap token is invalid")
	case want.ControlPlane != nil && !keyForm.MatchString(want.ControlPlane.CertificateKey):
		return failf("controlPlane.certificateKey: Invalid value")
	case want.ControlPlane != nil && want.ControlPlane.LocalAPIEndpoint.AdvertiseAddress != c.host.IP:
		return failf("fakekube: %s (%s) is to serve as %s", c.host.Name, c.host.IP, want.ControlPlane.LocalAPIEndpoint.AdvertiseAddress)
	}
	if err := c.preflight(kubeletConf, caFile, "/etc/kubernetes/bootstrap-kubelet.conf"); err != nil {
		return err
	}
	if err := c.discover("preflight", token); err != nil {
		return err
	}
	c.say("[preflight] Reading configuration from the cluster...")
	if want.ControlPlane != nil {
		return c.joinControlPlane(want)
	}
	err = c.file.Update(func(s *State) error {
		if err := s.free(c, want); err != nil {
			return err
		}
		return c.write(caFile, s.CA)
	})
	if err != nil {
		return err
	}
	c.say("[kubelet-start] Starting the kubelet\n[kubelet-start] Waiting for the kubelet to perform the TLS Bootstrap...")
	c.pace()
	return c.file.Update(func(s *State) error {
		if err := s.reach(c, "https://"+s.Endpoint); err != nil {
			return failf("error execution phase kubelet-start: timed out waiting for the condition")
		}
		s.Joins = append(s.Joins, c.host.Name)
		c.say("\nThis node has joined the cluster:")
		return s.register(c, false)
	})
}

// discover is the bootstrap by token: the cluster is reached, has the pinned CA, and knows the token.
func (c *call) discover(phase string, t *tokenDiscovery) error {
	prefix := "error execution phase " + phase + ": couldn't validate the identity of the API Server: "
	id, secret, _ := strings.Cut(t.Token, ".")
	var answer error
	for range 10 { // the real one tries for discovery.timeout
		answer = nil
		err := c.file.Update(func(s *State) error {
			s.expire()
			known, there := s.Tokens[id]
			switch {
			case s.reach(c, "https://"+t.APIServerEndpoint) != nil:
				answer = failf("%sGet \"https://%s/api/v1/namespaces/kube-public/configmaps/cluster-info?timeout=10s\": dial tcp: connect: connection refused", prefix, t.APIServerEndpoint)
			case !s.Objects["kube-public/configmap/cluster-info"]:
				answer = failf("%sconfigmaps \"cluster-info\" is forbidden", prefix)
			case !there || !slices.Contains(known.Usages, "signing"):
				answer = failf("%scould not find a JWS signature in the cluster-info ConfigMap for token ID %q", prefix, id)
			case known.Secret != secret:
				answer = failf("%sfailed to verify JWS signature of received cluster info object, can't trust this API Server", prefix)
			case !slices.Contains(t.CACertHashes, testca.Pair{Cert: s.CA}.Hash()):
				answer = failf("%scluster CA found in cluster-info ConfigMap is invalid: none of the public keys %q are pinned", prefix, testca.Pair{Cert: s.CA}.Hash())
			}
			return nil
		})
		if err != nil || answer == nil {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
	return answer
}

// free refuses a name that a living node has.
func (s *State) free(c *call, want *joinConfiguration) error {
	name := want.NodeRegistration.Name
	if _, known := s.Nodes[name]; known {
		if ready, _ := s.ready(name); ready {
			return failf("error execution phase kubelet-start: a Node with name %q and status \"Ready\" already exists in the cluster. You must delete the existing Node or change the name of this new joining Node", name)
		}
	}
	if name != c.host.Name {
		return failf("fakekube: %s is to join as %s", c.host.Name, name)
	}
	return nil
}

// joinControlPlane adds a master. From the moment that its etcd member is added until it runs nobody else may do so.
func (c *call) joinControlPlane(want *joinConfiguration) error {
	err := c.file.Update(func(s *State) error {
		switch {
		case s.Certs == nil:
			return failf("error execution phase control-plane-prepare/download-certs: error downloading certs: error downloading the secret: Secret \"kubeadm-certs\" was not found in the \"kube-system\" Namespace. This Secret might have expired. Please, run `kubeadm init phase upload-certs --upload-certs` on a control plane to generate a new one")
		case s.Certs.KeyHash != hashed(want.ControlPlane.CertificateKey):
			return failf("error execution phase control-plane-prepare/download-certs: error downloading certs: error decoding secret data with provided key: cipher: message authentication failed")
		}
		if j := s.Joining; j != nil && j.Host != c.host.Name && syscall.Kill(j.PID, 0) == nil {
			s.violate("%s joins as a control plane while %s does", c.host.Name, j.Host)
			return failf("error execution phase etcd-join: etcdserver: unhealthy cluster")
		}
		for _, m := range s.Members {
			if m.Name != c.host.Name && !s.serves(m.Name) {
				return failf("error execution phase check-etcd: etcd cluster is not healthy: failed to dial endpoint %s with maintenance client: context deadline exceeded", m.Peer)
			}
		}
		if err := s.free(c, want); err != nil {
			return err
		}
		s.Joining = &Joining{Host: c.host.Name, PID: os.Getpid()}
		if !s.isMember(c.host.Name) {
			s.Members = append(s.Members, c.member())
		}
		return c.becomeMaster(s.CA)
	})
	if err != nil {
		return err
	}
	c.say("[etcd] Announced new etcd member joining to the existing etcd cluster")
	c.pace()
	c.say("[etcd] Waiting for the new etcd member to join the cluster. This can take up to 40s")
	c.pace()
	err = c.file.Update(func(s *State) error {
		s.Joining = nil
		if !s.isMember(c.host.Name) {
			return failf("error execution phase control-plane-join/etcd: the etcd member was removed")
		}
		s.Joins = append(s.Joins, c.host.Name)
		if err := s.register(c, true); err != nil {
			return err
		}
		s.mark(c.host.Name, false)
		return nil
	})
	if err != nil {
		return err
	}
	if c.unmarked {
		killParent()
	}
	time.Sleep(c.host.Pace)
	return c.file.Update(func(s *State) error {
		s.mark(c.host.Name, true)
		c.say("\nThis node has joined the cluster and a new control plane instance was created:")
		return nil
	})
}

// mark labels a node as a control plane, or does not yet.
func (s *State) mark(name string, marked bool) {
	if n, known := s.Nodes[name]; known {
		n.ControlPlane = marked
		s.Nodes[name] = n
	}
}

// markPhase is the last phase of a control plane's join by itself.
func (c *call) markPhase(path string) error {
	conf, err := c.configuration(path)
	if err != nil {
		return err
	}
	if conf.Join == nil || conf.Join.ControlPlane == nil || conf.Join.Discovery.BootstrapToken == nil {
		return failf("fakekube: no JoinConfiguration of a control plane with a token")
	}
	if err := c.discover("control-plane-join/mark-control-plane", conf.Join.Discovery.BootstrapToken); err != nil {
		return err
	}
	c.say("[preflight] Reading configuration from the cluster...")
	return c.file.Update(func(s *State) error {
		name := conf.Join.NodeRegistration.Name
		if _, known := s.Nodes[name]; !known || !c.has(adminConf) {
			return failf("error execution phase control-plane-join/mark-control-plane: error applying control-plane label and taints: nodes %q not found", name)
		}
		s.mark(name, true)
		c.say("[mark-control-plane] Marking the node %s as control-plane by adding the labels: [node-role.kubernetes.io/control-plane node.kubernetes.io/exclude-from-external-load-balancers]", name)
		return nil
	})
}

func (c *call) reset() error {
	c.say("[preflight] Running pre-flight checks")
	fmt.Fprintln(c.err, "W1126 15:00:00.000000     782 removeetcdmember.go:106] [reset] No kubeadm config, using etcd pod spec to get data directory")
	err := c.file.Update(func(s *State) error {
		if s.Joining != nil && s.Joining.Host == c.host.Name {
			s.Joining = nil
		}
		if c.has(apiManifest) && len(s.Members) > 1 && s.quorum() {
			s.Members = slices.DeleteFunc(s.Members, func(m Member) bool { return m.Name == c.host.Name })
		}
		return nil
	})
	if err != nil {
		return err
	}
	c.say("[reset] Stopping the kubelet service\n[reset] Deleting contents of directories: [/etc/kubernetes/manifests /var/lib/kubelet /etc/kubernetes/pki]")
	for _, path := range []string{"/etc/kubernetes/manifests", "/var/lib/kubelet", "/etc/kubernetes/pki", adminConf, kubeletConf, controllerConf, "/etc/kubernetes/scheduler.conf", "/etc/kubernetes/bootstrap-kubelet.conf", "/var/lib/etcd/member"} {
		if err := os.RemoveAll(c.at(path)); err != nil {
			return err
		}
	}
	return nil
}

func (c *call) uploadCerts(path, kubeconfig string) error {
	conf, err := c.configuration(path)
	if err != nil {
		return err
	}
	if conf.Init == nil || !keyForm.MatchString(conf.Init.CertificateKey) {
		return failf("fakekube: the certificate key is not in the configuration")
	}
	return c.file.Update(func(s *State) error {
		if err := s.admit(c, kubeconfig); err != nil {
			return err
		}
		s.uploadCerts(conf.Init.CertificateKey)
		c.say("[upload-certs] Storing the certificates in Secret \"kubeadm-certs\" in the \"kube-system\" Namespace\n[upload-certs] Using certificate key:\n%s", conf.Init.CertificateKey)
		return nil
	})
}

func (c *call) tokenList(kubeconfig, output string) error {
	return c.file.Update(func(s *State) error {
		s.expire()
		if err := s.admit(c, kubeconfig); err != nil {
			return err
		}
		if output != "json" {
			return failf("fakekube: token list -o json")
		}
		for id, t := range s.Tokens {
			object := map[string]any{"kind": "BootstrapToken", "apiVersion": "output.kubeadm.k8s.io/v1alpha2", "token": id + "." + t.Secret,
				"expires": t.Expires.UTC().Format(time.RFC3339)}
			if t.Description != "" {
				object["description"] = t.Description
			}
			if len(t.Usages) > 0 {
				object["usages"], object["groups"] = t.Usages, []string{"system:bootstrappers:kubeadm:default-node-token"}
			}
			text, err := json.MarshalIndent(object, "", "    ")
			if err != nil {
				return err
			}
			c.say("%s", text)
		}
		return nil
	})
}

func (c *call) tokenCreate(path, kubeconfig string) error {
	conf, err := c.configuration(path)
	if err != nil {
		return err
	}
	if conf.Init == nil || len(conf.Init.BootstrapTokens) != 1 || conf.Cluster == nil || conf.Cluster.KubernetesVersion == "" {
		return failf("fakekube: not one token and a version: the real one asks the internet")
	}
	return c.file.Update(func(s *State) error {
		s.expire()
		if err := s.admit(c, kubeconfig); err != nil {
			return err
		}
		if err := s.addToken(conf.Init.BootstrapTokens[0]); err != nil {
			return err
		}
		c.say("%s", conf.Init.BootstrapTokens[0].Token)
		return nil
	})
}

func (c *call) tokenDelete(id, kubeconfig string) error {
	if parts := tokenForm.FindStringSubmatch(id); parts != nil {
		id = parts[1]
	}
	if !tokenIDForm.MatchString(id) {
		return failf("given token didn't match pattern %q or %q", `\A([a-z0-9]{6})\.([a-z0-9]{16})\z`, `\A([a-z0-9]{6})\z`)
	}
	return c.file.Update(func(s *State) error {
		s.expire()
		if err := s.admit(c, kubeconfig); err != nil {
			return err
		}
		if _, known := s.Tokens[id]; !known {
			return failf("failed to delete bootstrap token %q: secrets \"bootstrap-token-%s\" not found", id, id)
		}
		delete(s.Tokens, id)
		c.say("bootstrap token %q deleted", id)
		return nil
	})
}

func randomToken() string { text := randomHex(11); return text[:6] + "." + text[6:22] }
