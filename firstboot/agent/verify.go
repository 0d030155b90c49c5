package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"rackstrap/firstboot/api"
	"rackstrap/internal/httpcall"
	"rackstrap/internal/plain"
)

// verifyNamespace holds what the availability check makes; removing it removes all.
const verifyNamespace = "rackstrap-verify"

// verify makes a deployment of a web server, exposes it, and asks for its page through every node's address. It is
// removed afterwards, whatever happened, and so is what an interrupted check left.
func (j *job) verify(ctx context.Context) (result api.Result, err error) {
	if err := j.removeVerify(ctx); err != nil {
		return result, err
	}
	defer func() {
		cleaning, cancel := context.WithTimeout(context.WithoutCancel(ctx), 90*time.Second)
		defer cancel()
		if gone := j.removeVerify(cleaning); gone != nil && err == nil {
			err = retryf("the cluster works, but what the check made could not be removed: %w", gone)
		}
	}()
	objects, err := json.Marshal(verifyObjects(j.work.Image, min(len(j.work.Addresses), 3)))
	if err != nil {
		return result, err
	}
	file, err := j.file("verify.json", string(objects))
	if err != nil {
		return result, err
	}
	j.tell("starting a web server in the cluster", 10)
	if _, err := j.kubectl(ctx, "apply", "-f", file, "--request-timeout=60s"); err != nil {
		return result, err
	}
	if _, err := j.kubectl(ctx, "-n", verifyNamespace, "rollout", "status", "deployment/web", "--timeout", j.half(ctx)); err != nil {
		why, _ := j.kubectl(ctx, "-n", verifyNamespace, "get", "pods", "-o", "wide")
		return result, retryf("the web server (%s) did not start: %w; %s", j.work.Image, err, plain.Line(why, 300))
	}
	out, err := j.kubectl(ctx, "-n", verifyNamespace, "get", "service", "web", "-o", "json")
	if err != nil {
		return result, err
	}
	port, err := nodePort(out)
	if err != nil {
		return result, err
	}
	for i, address := range j.work.Addresses {
		j.tell("asking for its page through "+address, 50+40*i/len(j.work.Addresses))
		if err := j.fetchPage(ctx, net.JoinHostPort(address, strconv.Itoa(port))); err != nil {
			return result, retryf("the web server is not reached through %s: %w", address, err)
		}
	}
	return result, nil
}

// half is half of the time that is left, as kubectl wants it.
func (j *job) half(ctx context.Context) string {
	limit := 5 * time.Minute
	if deadline, ok := ctx.Deadline(); ok {
		limit = time.Until(deadline) / 2
	}
	return strconv.Itoa(max(1, int(limit/time.Second))) + "s"
}

func (j *job) removeVerify(ctx context.Context) error {
	_, err := j.kubectl(ctx, "delete", "namespace", verifyNamespace, "--ignore-not-found", "--timeout=80s")
	return err
}

type object map[string]any

// verifyObjects are namespace, deployment and service. It tolerates the masters' taint: a rack may have nothing else.
func verifyObjects(image string, replicas int) object {
	labels := object{"app": "rackstrap-verify"}
	meta := func(name string) object { return object{"name": name, "namespace": verifyNamespace} }
	container := object{"name": "web", "image": image, "imagePullPolicy": "IfNotPresent",
		"ports":          []object{{"containerPort": 80}},
		"readinessProbe": object{"httpGet": object{"path": "/", "port": 80}, "periodSeconds": 2}}
	return object{"apiVersion": "v1", "kind": "List", "items": []object{
		{"apiVersion": "v1", "kind": "Namespace", "metadata": object{"name": verifyNamespace}},
		{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta("web"), "spec": object{
			"replicas": replicas,
			"selector": object{"matchLabels": labels},
			"template": object{"metadata": object{"labels": labels}, "spec": object{
				"tolerations":                   []object{{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists", "effect": "NoSchedule"}},
				"terminationGracePeriodSeconds": 1,
				"containers":                    []object{container}}}}},
		{"apiVersion": "v1", "kind": "Service", "metadata": meta("web"), "spec": object{
			"type": "NodePort", "selector": labels, "ports": []object{{"port": 80, "targetPort": 80}}}},
	}}
}

func nodePort(text string) (int, error) {
	var service struct {
		Spec struct {
			Ports []struct {
				NodePort int `json:"nodePort"`
			} `json:"ports"`
		} `json:"spec"`
	}
	if err := json.Unmarshal([]byte(text), &service); err != nil {
		return 0, fmt.Errorf("kubectl get service: %w", err)
	}
	if len(service.Spec.Ports) != 1 || service.Spec.Ports[0].NodePort < 1 || service.Spec.Ports[0].NodePort > 65535 {
		return 0, fmt.Errorf("kubectl get service: no port of the nodes")
	}
	return service.Spec.Ports[0].NodePort, nil
}

// fetchPage asks until the page comes; the rules of kube-proxy reach the nodes one after the other.
func (j *job) fetchPage(ctx context.Context, address string) error {
	client := httpcall.Client(&http.Transport{DisableKeepAlives: true}, 5*time.Second)
	var err error
	for try := 1; try <= 15; try++ {
		begun := time.Now()
		if err = onePage(ctx, client, "http://"+address+"/"); err == nil {
			j.session.note("%s: a page in %s", address, time.Since(begun).Round(time.Millisecond))
			return nil
		}
		if sleep(ctx, j.pause()) != nil {
			break
		}
	}
	return err
}

func onePage(ctx context.Context, client *http.Client, page string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, page, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s", strings.TrimSpace(resp.Status))
	}
	return nil
}
