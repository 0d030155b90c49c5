package fakekube

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// reach tells whether a host gets an answer from the API server that a kubeconfig names.
func (s *State) reach(c *call, server string) error {
	refused := failf("The connection to the server %s was refused - did you specify the right host or port?", strings.TrimPrefix(server, "https://"))
	u, err := url.Parse(server)
	if err != nil || s.Created.IsZero() || s.Hosts[c.host.Name].Down || !s.quorum() {
		return refused
	}
	for name, h := range s.Hosts {
		if s.serves(name) && (u.Host == s.Endpoint || u.Hostname() == h.IP) { // the endpoint's name leads to all masters
			return nil
		}
	}
	return refused
}

// admit reaches the server of a kubeconfig as an administrator.
func (s *State) admit(c *call, path string) error {
	key, err := s.connect(c, path)
	if err == nil && !slices.Contains(s.Admins, key) {
		err = failf("error: You must be logged in to the server (Unauthorized)")
	}
	return err
}

func (s *State) connect(c *call, path string) (key string, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", failf("error: stat %s: no such file or directory", path)
	}
	var k kubeconfig
	if err := yaml.Unmarshal(text, &k); err != nil || len(k.Clusters) != 1 || len(k.Users) != 1 {
		return "", failf("error: error loading config file %q", path)
	}
	return k.Users[0].User.Key, s.reach(c, k.Clusters[0].Cluster.Server)
}

func kubectl(c *call) error {
	words, flags, err := c.flags(c.args, []string{"--kubeconfig", "-n", "-o", "--raw", "-f", "--timeout", "--request-timeout"},
		[]string{"--ignore-not-found", "--ignore-daemonsets", "--delete-emptydir-data", "--force"})
	if err != nil {
		return err
	}
	if flags["--kubeconfig"] == "" {
		return failf("The connection to the server localhost:8080 was refused - did you specify the right host or port?")
	}
	slow := time.Duration(0)
	err = c.file.Update(func(s *State) error {
		s.expire()
		key, err := s.connect(c, flags["--kubeconfig"])
		if err != nil {
			return err
		}
		if name, ok := s.kubelet(key); ok { // the node authorizer: its own node, to read
			if len(words) != 3 || words[0] != "get" || words[1] != "node" || words[2] != name {
				return failf("Error from server (Forbidden): User \"system:node:%s\" cannot do this", name)
			}
		} else if !slices.Contains(s.Admins, key) {
			return failf("error: You must be logged in to the server (Unauthorized)")
		}
		slow, err = c.kubectl(s, words, flags)
		return err
	})
	time.Sleep(slow)
	return err
}

func (s *State) kubelet(key string) (string, bool) {
	for name, k := range s.Kubelets {
		if k == key {
			return name, true
		}
	}
	return "", false
}

func (c *call) kubectl(s *State, words []string, flags map[string]string) (time.Duration, error) {
	line := strings.Join(words, " ")
	if words[0] != "get" {
		s.Commands = append(s.Commands, c.host.Name+": kubectl "+line)
	}
	object := func() string { return flags["-n"] + "/" + words[len(words)-1] }
	switch {
	case line == "get" && slices.Contains([]string{"/livez", "/healthz", "/readyz"}, flags["--raw"]):
		fmt.Fprint(c.out, "ok")
		return 0, nil
	case strings.HasPrefix(line, "get node ") && flags["-o"] == "json":
		return 0, c.getNode(s, words[2], flags["--ignore-not-found"] != "")
	case line == "get nodes" && flags["-o"] == nodeColumns:
		c.listNodes(s)
		return 0, nil
	case strings.HasPrefix(line, "get pod ") && flags["-o"] == "json" && flags["-n"] == "kube-system":
		return 0, c.getPod(s, words[2])
	case len(words) == 2 && words[0] == "get" && flags["-o"] == "name":
		if s.Objects[object()] {
			c.say("%s", words[1])
		}
		return 0, nil
	case line == "get service web" && flags["-o"] == "json" && s.Objects[flags["-n"]+"/Service/web"]:
		c.say(`{"kind":"Service","spec":{"ports":[{"port":80,"nodePort":%d}]}}`, s.NodePort)
		return 0, nil
	case line == "get pods":
		c.say("NAME READY STATUS")
		return 0, nil
	case line == "rollout status deployment/web":
		if !s.Objects[flags["-n"]+"/Deployment/web"] || len(s.Ready()) == 0 {
			return 0, failf("error: timed out waiting for the condition")
		}
		c.say("deployment \"web\" successfully rolled out")
		return 0, nil
	case line == "apply":
		return 0, c.apply(s, flags["-f"])
	case len(words) == 3 && strings.HasPrefix(line, "delete namespace "):
		for name := range s.Objects {
			if strings.HasPrefix(name, words[2]+"/") {
				delete(s.Objects, name)
			}
		}
		return 0, nil
	case len(words) == 2 && words[0] == "drain":
		return c.drain(s, words[1])
	case len(words) == 3 && strings.HasPrefix(line, "delete node "):
		if _, known := s.Nodes[words[2]]; !known {
			if flags["--ignore-not-found"] != "" {
				return 0, nil
			}
			return 0, failf("Error from server (NotFound): nodes %q not found", words[2])
		}
		delete(s.Nodes, words[2])
		c.say("node %q deleted", words[2])
		return 0, nil
	}
	return 0, failf("error: unknown command %q for \"kubectl\"", line)
}

func (c *call) getNode(s *State, name string, ignore bool) error {
	n, known := s.Nodes[name]
	switch {
	case !known && ignore:
		return nil
	case !known:
		return failf("Error from server (NotFound): nodes %q not found", name)
	}
	status, reason := s.condition(name)
	labels := map[string]string{"kubernetes.io/hostname": name}
	if n.ControlPlane {
		labels["node-role.kubernetes.io/control-plane"] = ""
	}
	return c.print(map[string]any{
		"apiVersion": "v1", "kind": "Node", "metadata": map[string]any{"name": name, "labels": labels},
		"status": map[string]any{
			"addresses":  []map[string]string{{"type": "InternalIP", "address": n.IP}, {"type": "Hostname", "address": name}},
			"conditions": []map[string]string{{"type": "Ready", "status": status, "reason": reason, "message": "as fakekube sees it"}},
		}})
}

// nodeColumns is the one template that is understood. What is printed for it is what kubectl 1.28.2 prints: a field that is
// missing is empty.
const nodeColumns = `jsonpath={range .items[*]}{.metadata.name}{"\t"}{.status.conditions[?(@.type=="Ready")].status}{"\t"}` +
	`{.status.conditions[?(@.type=="Ready")].lastTransitionTime}{"\t"}{.status.conditions[?(@.type=="Ready")].reason}{"\t"}` +
	`{.status.addresses[?(@.type=="InternalIP")].address}{"\t"}{.spec.unschedulable}{"\n"}{end}`

func (c *call) listNodes(s *State) {
	for _, name := range slices.Sorted(maps.Keys(s.Nodes)) {
		n, cordoned := s.Nodes[name], ""
		if n.Unscheduled {
			cordoned = "true"
		}
		status, reason := s.condition(name)
		c.say("%s\t%s\t%s\t%s\t%s\t%s", name, status, n.Joined.UTC().Format(time.RFC3339), reason, n.IP, cordoned)
	}
}

// condition is a node's condition Ready.
func (s *State) condition(name string) (status, reason string) {
	ready, reason := s.ready(name)
	switch {
	case ready:
		return "True", reason
	case reason == "NodeStatusUnknown":
		return "Unknown", reason
	}
	return "False", reason
}

func (c *call) getPod(s *State, pod string) error {
	name := strings.TrimPrefix(strings.TrimPrefix(pod, "etcd-"), "kube-apiserver-")
	if _, known := s.Nodes[name]; !known || !s.isMember(name) {
		return nil
	}
	status := map[bool]string{true: "True", false: "False"}[s.serves(name)]
	return c.print(map[string]any{"kind": "Pod", "metadata": map[string]any{"name": pod},
		"status": map[string]any{"conditions": []map[string]string{{"type": "Ready", "status": status}}}})
}

func (c *call) print(object any) error {
	text, err := json.MarshalIndent(object, "", "    ")
	c.say("%s", text)
	return err
}

// apply takes YAML documents or a JSON list; what it does not understand it refuses in kubectl's words.
func (c *call) apply(s *State, path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return failf("error: the path %q does not exist", path)
	}
	type object struct {
		APIVersion string `yaml:"apiVersion"`
		Kind       string `yaml:"kind"`
		Metadata   struct {
			Name      string `yaml:"name"`
			Namespace string `yaml:"namespace"`
		} `yaml:"metadata"`
		Items []object `yaml:"items"`
	}
	decode := yaml.NewDecoder(strings.NewReader(string(text)))
	var all []object
	for {
		var o object
		if decode.Decode(&o) != nil {
			break
		}
		all = append(append(all, o), o.Items...)
	}
	if len(all) == 0 {
		return failf("error: no objects passed to apply")
	}
	for _, o := range all {
		switch {
		case o.APIVersion == "":
			return failf("error: error validating %q: error validating data: apiVersion not set; if you choose to ignore these errors, turn validation off with --validate=false", path)
		case o.Kind == "List":
			continue
		case o.Kind == "DaemonSet":
			s.Objects["cni"] = true
		}
		s.Objects[o.Metadata.Namespace+"/"+o.Kind+"/"+o.Metadata.Name] = true
		c.say("%s/%s created", strings.ToLower(o.Kind), o.Metadata.Name)
	}
	return nil
}

func (c *call) drain(s *State, name string) (time.Duration, error) {
	n, known := s.Nodes[name]
	if !known {
		return 0, failf("Error from server (NotFound): nodes %q not found", name)
	}
	n.Unscheduled = true
	s.Nodes[name] = n
	c.say("node/%s cordoned", name)
	if ready, _ := s.ready(name); !ready { // pods of a dead node do not go
		return 200 * time.Millisecond, failf("error: unable to drain node %q due to error:[error when waiting for pod \"web\" terminating: global timeout reached: 20s]", name)
	}
	c.say("node/%s drained", name)
	return 0, nil
}

// etcdctl answers inside the etcd container of this host.
func (c *call) etcdctl(s *State, words []string) error {
	inside, flags, err := c.flags(words, []string{"--endpoints", "--cacert", "--cert", "--key", "-w"}, []string{"--command-timeout"})
	if err != nil {
		return err
	}
	if flags["--cacert"] == "" || flags["--cert"] == "" || flags["--key"] == "" || !s.quorum() || s.Hosts[c.host.Name].Down {
		return failf("{\"level\":\"warn\",\"error\":\"rpc error: code = DeadlineExceeded\"}\nError: context deadline exceeded")
	}
	switch {
	case strings.Join(inside, " ") == "member list" && flags["-w"] == "json":
		type member struct {
			ID       uint64   `json:"ID"`
			Name     string   `json:"name"`
			PeerURLs []string `json:"peerURLs"`
		}
		list := []member{}
		for _, m := range s.Members {
			list = append(list, member{m.ID, m.Name, []string{m.Peer}})
		}
		text, err := json.Marshal(map[string]any{"header": map[string]any{"cluster_id": 1}, "members": list})
		c.say("%s", text)
		return err
	case len(inside) == 3 && inside[0] == "member" && inside[1] == "remove":
		id, err := strconv.ParseUint(inside[2], 16, 64)
		before := len(s.Members)
		s.Members = slices.DeleteFunc(s.Members, func(m Member) bool { return m.ID == id })
		if err != nil || len(s.Members) == before {
			return failf("Error: etcdserver: member not found")
		}
		c.say("Member %s removed from cluster 1", inside[2])
		return nil
	}
	return failf("Error: unknown command")
}
