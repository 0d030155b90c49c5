package fakekube

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// State is the fake cluster, and what was noticed.
type State struct {
	Created  time.Time            `json:"created"` // zero: there is none
	CA       string               `json:"ca"`      // PEM
	CAKey    string               `json:"ca_key"`
	Endpoint string               `json:"endpoint"`
	Phase    string               `json:"phase"` // of the init that made it: "complete" in the end
	Tokens   map[string]Token     `json:"tokens"`
	Certs    *Certs               `json:"certs"`
	Nodes    map[string]Node      `json:"nodes"`
	Members  []Member             `json:"members"`
	Admins   []string             `json:"admins"`   // client keys in the kubeconfigs of masters
	Kubelets map[string]string    `json:"kubelets"` // and of nodes
	Objects  map[string]bool      `json:"objects"`  // namespace/kind/name
	Hosts    map[string]HostState `json:"hosts"`
	NodePort int                  `json:"node_port"` // of the next service; the test serves there
	Joining  *Joining             `json:"joining"`   // the control-plane join under way

	// Violations are what must never happen; Inits and Joins what was done.
	Violations []string `json:"violations"`
	Inits      []string `json:"inits"`
	Joins      []string `json:"joins"`
	Commands   []string `json:"commands"` // every command line, with its host
	Secrets    []string `json:"secrets"`  // every secret that there ever was
}

// Token is a bootstrap token.
type Token struct {
	Secret      string    `json:"secret"`
	Description string    `json:"description"`
	Expires     time.Time `json:"expires"`
	Usages      []string  `json:"usages"` // none: kubeadm's timer of the certificates
}

// Certs are the uploaded certificates of the control plane.
type Certs struct {
	KeyHash string    `json:"key_hash"`
	Expires time.Time `json:"expires"`
}

// Node is a node object.
type Node struct {
	IP           string    `json:"ip"`
	ControlPlane bool      `json:"control_plane"`
	Joined       time.Time `json:"joined"`
	Unscheduled  bool      `json:"unscheduled"`
}

// Member is one of etcd's.
type Member struct {
	ID   uint64 `json:"id"`
	Name string `json:"name"`
	Peer string `json:"peer"`
}

// HostState is what the cluster sees of a machine. Down is set by the test: its network is cut, or it is off.
type HostState struct {
	Root string        `json:"root"`
	IP   string        `json:"ip"`
	Slow time.Duration `json:"slow"`
	Down bool          `json:"down"`
}

// Joining is a control-plane join that has touched etcd.
type Joining struct {
	Host string `json:"host"`
	PID  int    `json:"pid"`
}

func (h Host) record(before HostState) HostState {
	return HostState{Root: h.Root, IP: h.IP, Slow: h.Slow, Down: before.Down}
}

// File is the cluster's file.
type File struct{ path string }

// Open names the file; it need not exist.
func Open(path string) *File { return &File{path} }

// Update changes the state, alone.
func (f *File) Update(change func(*State) error) error {
	if err := os.MkdirAll(filepath.Dir(f.path), 0o755); err != nil {
		return err
	}
	lock, err := os.OpenFile(f.path+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return err
	}
	s := &State{}
	text, err := os.ReadFile(f.path)
	if err == nil {
		err = json.Unmarshal(text, s)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, m := range []*map[string]HostState{&s.Hosts} {
		if *m == nil {
			*m = map[string]HostState{}
		}
	}
	if s.Tokens == nil {
		s.clear()
	}
	failed := change(s)
	text, err = json.Marshal(s)
	if err != nil {
		return err
	}
	if err := os.WriteFile(f.path+".new", text, 0o644); err != nil {
		return err
	}
	return errors.Join(failed, os.Rename(f.path+".new", f.path))
}

// Read returns a copy.
func (f *File) Read() (*State, error) {
	var copied *State
	err := f.Update(func(s *State) error { copied = s; return nil })
	return copied, err
}

// clear forgets the cluster, not what was noticed.
func (s *State) clear() {
	s.Created, s.CA, s.CAKey, s.Phase, s.Certs, s.Members, s.Admins, s.Joining = time.Time{}, "", "", "", nil, nil, nil, nil
	s.Tokens, s.Nodes, s.Kubelets, s.Objects = map[string]Token{}, map[string]Node{}, map[string]string{}, map[string]bool{}
}

func (s *State) secret(text string) string {
	if !slices.Contains(s.Secrets, text) {
		s.Secrets = append(s.Secrets, text)
	}
	return text
}

func (s *State) violate(format string, args ...any) {
	s.Violations = append(s.Violations, time.Now().Format(time.TimeOnly)+" "+fmt.Sprintf(format, args...))
}

// expire forgets what is over.
func (s *State) expire() {
	for id, t := range s.Tokens {
		if time.Now().After(t.Expires) {
			delete(s.Tokens, id)
		}
	}
	if s.Certs != nil && time.Now().After(s.Certs.Expires) {
		s.Certs = nil
	}
}

// serves tells whether a host is up and runs the control plane of this cluster.
func (s *State) serves(name string) bool {
	h, known := s.Hosts[name]
	return known && !h.Down && there(filepath.Join(h.Root, apiManifest)) && s.isMember(name) && s.sameCA(h)
}

func (s *State) isMember(name string) bool {
	return slices.ContainsFunc(s.Members, func(m Member) bool { return m.Name == name })
}

func (s *State) sameCA(h HostState) bool {
	ca, _ := os.ReadFile(filepath.Join(h.Root, caFile))
	return string(ca) == s.CA
}

// quorum tells whether etcd can write.
func (s *State) quorum() bool {
	alive := 0
	for _, m := range s.Members {
		if s.serves(m.Name) {
			alive++
		}
	}
	return alive > len(s.Members)/2
}

// ready tells whether kubelet of a node says so: it runs, belongs to this cluster, and there is a pod network.
func (s *State) ready(name string) (bool, string) {
	n, h := s.Nodes[name], s.Hosts[name]
	switch {
	case h.Down:
		return false, "NodeStatusUnknown"
	case !s.kubeletRuns(name):
		return false, "NodeStatusUnknown"
	case !s.Objects["cni"]:
		return false, "KubeletNotReady"
	case time.Since(n.Joined) < h.Slow:
		return false, "KubeletNotReady"
	}
	return true, "KubeletReady"
}

func (s *State) kubeletRuns(name string) bool {
	h := s.Hosts[name]
	text, err := os.ReadFile(filepath.Join(h.Root, kubeletConf))
	return err == nil && clientKey(text) == s.Kubelets[name] && s.Kubelets[name] != ""
}

// Ready lists the nodes that are.
func (s *State) Ready() []string {
	var names []string
	for name := range s.Nodes {
		if ok, _ := s.ready(name); ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// JoinTokens lists the tokens that could still be joined with.
func (s *State) JoinTokens() []string {
	s.expire()
	var ids []string
	for id, t := range s.Tokens {
		if len(t.Usages) > 0 {
			ids = append(ids, id+" "+t.Description)
		}
	}
	slices.Sort(ids)
	return ids
}

func hashed(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

func randomHex(n int) string {
	raw := make([]byte, n)
	rand.Read(raw)
	return hex.EncodeToString(raw)
}
