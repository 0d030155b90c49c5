// Package api is what an agent and the node plane say to each other: the bodies of the HTTP calls below
// /api/v1/nodes/{name}/. It holds no behaviour, so that both sides, and tests, can share it.
//
//	POST exchange           Exchange  -> Credential   with the install token of the attempt as bearer
//	POST events             Event     -> 204          with the install token (installer) or the credential (agent)
//	GET  installation?wait=10 -> 200 Installation     with the install token; at once without wait, or once it has ended
//	GET  work?wait=50       -> 200 Work, or 202 Waiting with Retry-After; at once without wait
//	POST work/{id}/result   Result    -> 204
//	PUT  logs/{log}         text      -> 204
//
// Every call but exchange and installation carries the credential as bearer, and every call the header HeaderAttempt. The statuses:
// 400 not understood, 401 bad token, 403 another address or MAC than the machine's own, 404 no such machine or work,
// 409 not possible in this state, 410 a newer attempt has superseded this one, 413 too large, 429 too many calls,
// 503 with Retry-After: a fault of the appliance. An agent gives up at 401, 403 and 410; it repeats everything else,
// but for a result: one that is answered 400, 404, 409 or 413 is wanted by nobody any more, and is dropped.
//
// An agent does one thing at a time: it asks for work when it has none, with the result of the last one accepted. So
// the appliance takes the question for "I have nothing", and hands out again, under the same ID, what it had handed
// out. A work may therefore arrive twice, also with another token in it; doing it twice must be harmless.
package api

import "time"

// HeaderAttempt carries the number of the attempt that the caller belongs to.
const HeaderAttempt = "Rackstrap-Attempt"

// HeaderClock carries the machine's clock with each question for work, RFC 3339: a machine whose clock is far off gets
// none before it is right. A call without it is judged by Facts.Clock.
const HeaderClock = "Rackstrap-Clock"

// Limits of the bodies, in bytes.
const (
	MaxBody   = 256 << 10 // of any call but logs
	MaxLog    = 1 << 20   // of one log
	MaxOutput = 16 << 10  // of Result.Output: the tail of what the programs printed
)

// Config is the file that the kickstart writes for the agent, /etc/rackstrap/agent.json, mode 0600.
type Config struct {
	Server  string `json:"server"`  // https://10.10.10.1:8443
	CA      string `json:"ca"`      // path of the appliance's CA, PEM
	Name    string `json:"name"`    // of the machine
	MAC     string `json:"mac"`     // of the boot NIC
	Role    string `json:"role"`    // control-plane or worker
	Attempt int    `json:"attempt"` // which the token belongs to
	Token   string `json:"token"`   // install token: exchanged once
	State   string `json:"state"`   // directory of the agent's state; default /var/lib/rackstrap
}

// Exchange asks for a credential. The MAC must be the machine's own.
type Exchange struct {
	Attempt int    `json:"attempt"`
	MAC     string `json:"mac"`
	Facts   Facts  `json:"facts"`
}

// Facts are what a machine tells of itself: for the operator, and for the checks before kubeadm.
type Facts struct {
	Hostname   string    `json:"hostname"`
	MACs       []string  `json:"macs"`
	CPUs       int       `json:"cpus"`
	MemoryMiB  int       `json:"memory_mib"`
	Kernel     string    `json:"kernel"`
	OS         string    `json:"os"`
	Containerd string    `json:"containerd,omitempty"`
	Kubeadm    string    `json:"kubeadm,omitempty"`
	Agent      string    `json:"agent"`
	Clock      time.Time `json:"clock"`  // of the machine, when it asked
	Joined     bool      `json:"joined"` // a kubelet configuration of an earlier join lies on the disk
	Boot       Boot      `json:"boot,omitzero"`
	Board      string    `json:"board,omitempty"`  // vendor and product, of SMBIOS
	Serial     string    `json:"serial,omitempty"` // of SMBIOS
	UUID       string    `json:"uuid,omitempty"`   // of SMBIOS
}

// Boot is what the machine's firmware boots first.
type Boot struct {
	Firmware     Firmware `json:"firmware,omitempty"`
	NetworkFirst bool     `json:"network_first,omitempty"` // UEFI: the first boot entry leads to the network
	First        string   `json:"first,omitempty"`         // UEFI: label of that entry
	Error        string   `json:"error,omitempty"`         // UEFI: why it is not known
}

// Firmware is the kind of a machine's firmware; "": not told.
type Firmware string

// The kinds. What BIOS boots first no operating system can find out.
const (
	BIOS Firmware = "bios"
	UEFI Firmware = "uefi"
)

// Credential is what the install token is exchanged for. As long as it was not used, the exchange can be repeated
// (its answer was lost) and gives a new one; then the install token is void.
type Credential struct {
	Credential string `json:"credential"`
	Role       string `json:"role"`
}

// Event is what a machine reports of itself. Kind: installed, failed, progress (both sides of the first boot).
type Event struct {
	Attempt int    `json:"attempt"`
	Kind    string `json:"kind"`
	Phase   string `json:"phase,omitempty"`   // pre, install, post; the Action under way; or PhaseMeanwhile
	Percent int    `json:"percent,omitempty"` // of the phase, where known: 1 to 100
	Text    string `json:"text"`
}

// Actions are all of them.
func Actions() []Action {
	return []Action{Init, Join, JoinControlPlane, MintToken, DeleteToken, UploadCerts, CheckNode, ListNodes, DeleteNode, VerifyCluster,
		Kubeconfig, Reset, Done}
}

// Installation is what a machine in its installer is to do next: "go-on", "reboot", "stay". The kickstart's shell looks for
// the word.
type Installation struct {
	Next string `json:"next"`
}

// PhaseMeanwhile is that of a machine that brings in images while it waits, see Waiting.Meanwhile.
const PhaseMeanwhile = "meanwhile"

// Action is what an agent can be asked to do. There is no other: never shell text.
type Action string

// The actions.
const (
	Init             Action = "init"               // kubeadm init, then the CNI
	Join             Action = "join"               // kubeadm join as a worker
	JoinControlPlane Action = "join-control-plane" // kubeadm join as a further master
	MintToken        Action = "mint-token"         // masters: a bootstrap token for one node
	DeleteToken      Action = "delete-token"       // masters
	UploadCerts      Action = "upload-certs"       // masters: the control plane's certificates, under a fresh key
	CheckNode        Action = "check-node"         // masters: is the node Ready, with its address?
	ListNodes        Action = "list-nodes"         // masters: what Kubernetes says of every node now
	DeleteNode       Action = "delete-node"        // masters: drain, delete, and remove its etcd member
	VerifyCluster    Action = "verify-cluster"     // masters: the availability check
	Kubeconfig       Action = "kubeconfig"         // masters: admin.conf
	Reset            Action = "reset"              // kubeadm reset -f
	BootNetwork      Action = "boot-network"       // UEFI: boot from the network the next time (BootNext)
	Done             Action = "done"               // workers: the node is Ready, the agent may end for good
)

// Work is one thing to do. The parameters that an action needs are set, no others.
type Work struct {
	ID      string `json:"id"`
	Action  Action `json:"action"`
	Seconds int    `json:"seconds"` // the agent gives up after so long

	KubeadmConfig string   `json:"kubeadm_config,omitempty"` // init, join…, upload-certs: the file for --config
	CNIManifest   string   `json:"cni_manifest,omitempty"`   // init: applied when the API answers
	Images        []Image  `json:"images,omitempty"`         // init, join…: imported into k8s.io before kubeadm starts
	Node          string   `json:"node,omitempty"`           // mint-token, check-node, delete-node: the node's name
	IP            string   `json:"ip,omitempty"`             // check-node, delete-node: the address of the list
	ControlPlane  bool     `json:"control_plane,omitempty"`  // check-node, delete-node: the node is a master
	TTLSeconds    int      `json:"ttl_seconds,omitempty"`    // mint-token
	Description   string   `json:"description,omitempty"`    // mint-token: node=… attempt=…
	TokenID       string   `json:"token_id,omitempty"`       // mint-token, delete-token: the public half, see below
	Image         string   `json:"image,omitempty"`          // verify-cluster: of the web server
	Addresses     []string `json:"addresses,omitempty"`      // verify-cluster: of the nodes

	// The name in control_plane_endpoint, unless that is an address, and the addresses under which it is found, the
	// best one first: for the machine's hosts file, before kubeadm starts. init, join…, done.
	EndpointName      string   `json:"endpoint_name,omitempty"`
	EndpointAddresses []string `json:"endpoint_addresses,omitempty"`
}

// The appliance chooses the public half of a token (Work.TokenID) and writes it down before it asks a master for the
// token, so that whatever happens to agent or appliance in between, it can be deleted later. The master makes the
// secret half. To mint a token whose ID exists already is to replace it, and to delete one that does not exist is done.
// A CertificateKey, in the same way, stands in the KubeadmConfig of upload-certs already; the result may repeat it.

// Image is one archive of container images that the appliance holds.
type Image struct {
	URL    string   `json:"url"` // on the boot plane
	SHA256 string   `json:"sha256"`
	Size   int64    `json:"size"`
	Names  []string `json:"names"` // references inside
}

// Waiting is the answer to an agent for which there is nothing to do yet.
type Waiting struct {
	Reason string `json:"reason"`           // what is awaited
	Holder string `json:"holder,omitempty"` // of the init lock

	// The fingerprint of this machine's credential, which the operator compares with that on its console before it is
	// handed anything; "": no confirmation is awaited.
	Confirm string `json:"confirm,omitempty"`

	// What its join will need, while nothing else is asked of the machine: best effort, the join looks again.
	Meanwhile []Image `json:"meanwhile,omitempty"`
}

// Result is how a work ended. The fields that the action produces are set if OK.
type Result struct {
	OK        bool   `json:"ok"`
	Error     string `json:"error,omitempty"`      // one line
	Retryable bool   `json:"retryable,omitempty"`  // another try may succeed
	AuthError bool   `json:"auth_error,omitempty"` // join…: the token was not accepted, a new one is needed
	Output    string `json:"output,omitempty"`     // tail of the programs' output, redacted

	CACert         string   `json:"ca_cert,omitempty"`         // init: PEM of the cluster's CA
	Token          string   `json:"token,omitempty"`           // mint-token
	CertificateKey string   `json:"certificate_key,omitempty"` // upload-certs
	Ready          bool     `json:"ready,omitempty"`           // check-node
	Address        string   `json:"address,omitempty"`         // check-node: the node's InternalIP
	Reason         string   `json:"reason,omitempty"`          // check-node: why it is not Ready
	Nodes          []Node   `json:"nodes,omitempty"`           // list-nodes: as many as fit into MaxBody
	Partial        bool     `json:"partial,omitempty"`         // list-nodes: there are more
	Kubeconfig     string   `json:"kubeconfig,omitempty"`      // kubeconfig
	BootEntry      string   `json:"boot_entry,omitempty"`      // boot-network: label of the entry
	Missing        []string `json:"missing,omitempty"`         // init, join…: images that kubeadm needs and that are not there
}

// Node is what Kubernetes says of one node: its condition Ready.
type Node struct {
	Name     string    `json:"name"`
	Ready    string    `json:"ready"`              // True, False or Unknown; "": kubelet has not reported yet
	Since    time.Time `json:"since,omitzero"`     // when that last changed, by the cluster's clocks
	Reason   string    `json:"reason,omitempty"`   // why it is not: one word, such as NodeStatusUnknown
	Address  string    `json:"address,omitempty"`  // the node's InternalIP
	Cordoned bool      `json:"cordoned,omitempty"` // no pods are scheduled on it
}
