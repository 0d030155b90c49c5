package e2e

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/lab/kube"
)

// netPods are a web server on every node, and a service for all of them.
const netPods = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: net}
spec:
  selector: {matchLabels: {app: net}}
  template:
    metadata: {labels: {app: net}}
    spec:
      terminationGracePeriodSeconds: 0
      tolerations: [{operator: Exists}]
      containers:
        - {name: web, image: "` + kube.WebImage + `", imagePullPolicy: Never}
---
apiVersion: v1
kind: Service
metadata: {name: net}
spec:
  selector: {app: net}
  ports: [{port: 80}]
`

// requireNetwork: the rack has no gateway, and the default route of some machines leads elsewhere. All the same each node
// is found at the address of the list, a pod reaches the pods of every node and the cluster's DNS, and each host reaches
// services, whether they run on another host (the API server) or in pods.
func (r *kubeRack) requireNetwork(nodes map[string]kubeNode) {
	r.t.Helper()
	requireAnnounced(r.t, nodes)
	r.kubectlDo(netPods, "apply", "-f", "-")
	r.kubectlDo("", "rollout", "status", "daemonset/net", "--timeout=100s")
	r.kubectlDo("", "-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=100s")

	var pods struct {
		Items []struct {
			Metadata struct{ Name string }
			Spec     struct{ NodeName string }
			Status   struct{ PodIP string }
		}
	}
	require.NoError(r.t, json.Unmarshal([]byte(r.kubectlDo("", "get", "pods", "-l", "app=net", "-o", "json")), &pods))
	require.Len(r.t, pods.Items, len(nodes))
	service := strings.TrimSpace(r.kubectlDo("", "get", "service", "net", "-o", "jsonpath={.spec.clusterIP}"))
	for _, from := range pods.Items {
		// The programs of the machine in the network namespace of its pod: the image has none.
		pid := strings.TrimSpace(r.inside(from.Spec.NodeName, "sh", "-c", "crictl inspect --output go-template --template '{{.info.pid}}' "+
			"$(crictl ps --quiet --name web --label io.kubernetes.pod.name="+from.Metadata.Name+")"))
		pod := func(args ...string) string {
			return r.inside(from.Spec.NodeName, append([]string{"nsenter", "--target", pid, "--net"}, args...)...)
		}
		for _, to := range pods.Items {
			require.Contains(r.t, pod(fetch("http://"+to.Status.PodIP+"/")...), to.Metadata.Name, "from %s to %s", from.Spec.NodeName, to.Spec.NodeName)
		}
		require.Contains(r.t, pod("bash", "-c", askDNS), "0a010001", "the address of kubernetes.default, from %s", from.Spec.NodeName)
	}
	for name, n := range nodes {
		route := r.inside(name, "ip", "route", "get", "10.1.0.1")
		require.Contains(r.t, route, "dev eth0 src "+n.internalIP(), name)
		for _, url := range []string{"https://10.1.0.1/version", "http://" + service + "/", "http://" + service + "/", "http://" + service + "/"} {
			r.inside(name, fetch(url)...)
		}
		require.Contains(r.t, r.inside(name, "bash", "-c", askDNS), "0a010001", "the address of kubernetes.default, from %s", name)
	}
	r.kubectlDo(netPods, "delete", "--wait=false", "-f", "-")
}

func fetch(url string) []string {
	return []string{"curl", "--silent", "--show-error", "--fail", "--insecure", "--max-time", "5", url}
}

// askDNS asks the cluster's DNS, by its ClusterIP and UDP, for the address of kubernetes.default.svc.cluster.local. The
// question stands in base64, which is decoded into one datagram.
const askDNS = `exec 3<>/dev/udp/10.1.0.10/53
base64 --decode >&3 <<<EjQBAAABAAAAAAAACmt1YmVybmV0ZXMHZGVmYXVsdANzdmMHY2x1c3RlcgVsb2NhbAAAAQAB
timeout 5 dd bs=512 count=1 status=none <&3 | od -An -v -t x1 | tr -d ' \n'`

// requireAnnounced: what flannel announces for its tunnels is the address that the kubelet took from the list.
func requireAnnounced(t testing.TB, nodes map[string]kubeNode) {
	t.Helper()
	for name, n := range nodes {
		require.Equal(t, n.internalIP(), n.Metadata.Annotations["flannel.alpha.coreos.com/public-ip"], name)
	}
}

func (n kubeNode) internalIP() string {
	for _, a := range n.Status.Addresses {
		if a.Type == "InternalIP" {
			return a.Address
		}
	}
	return ""
}

// kubectlDo repeats a command for a while: an API server that has just started may refuse it.
func (r *kubeRack) kubectlDo(input string, args ...string) string {
	r.t.Helper()
	for try := 1; ; try++ {
		out, err := r.kubectlOnce(input, args...)
		if err == nil {
			return string(out)
		}
		if try == 3 {
			require.NoError(r.t, err)
		}
		time.Sleep(2 * time.Second)
	}
}
