package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"rackstrap/firstboot/api"
	"rackstrap/internal/plain"
)

// nodeColumns has kubectl print a line a node: nodes in full are some 20 KiB each, for the list of images in them. A field
// that a node lacks is empty; of several values of one field (two addresses) there is a blank between.
const nodeColumns = `jsonpath={range .items[*]}{.metadata.name}{"\t"}` +
	`{.status.conditions[?(@.type=="Ready")].status}{"\t"}` +
	`{.status.conditions[?(@.type=="Ready")].lastTransitionTime}{"\t"}` +
	`{.status.conditions[?(@.type=="Ready")].reason}{"\t"}` +
	`{.status.addresses[?(@.type=="InternalIP")].address}{"\t"}` +
	`{.spec.unschedulable}{"\n"}{end}`

// listNodes asks what Kubernetes says of every node now: one list call to this host's API server.
func (j *job) listNodes(ctx context.Context) (api.Result, error) {
	out, err := j.kubectl(ctx, "get", "nodes", "-o", nodeColumns, "--request-timeout=20s")
	if err != nil {
		return api.Result{}, err
	}
	nodes, err := parseNodes(out)
	if err != nil {
		return api.Result{}, err
	}
	fit := fitting(nodes)
	return api.Result{Nodes: nodes[:fit], Partial: fit < len(nodes)}, nil
}

// reasonWord is how Kubernetes writes the reason of a condition.
var reasonWord = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_,:]{0,63}$`)

// parseNodes reads the lines of nodeColumns.
func parseNodes(text string) ([]api.Node, error) {
	var all []api.Node
	for line := range strings.Lines(text) {
		fields := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(fields) != 6 || !nodeName.MatchString(fields[0]) {
			return nil, fmt.Errorf("kubectl get nodes: a line that is none of a node: %q", plain.Line(line, 100))
		}
		n := api.Node{Name: fields[0], Ready: fields[1]}
		switch n.Ready {
		case "True", "":
		case "False", "Unknown":
			if reasonWord.MatchString(fields[3]) {
				n.Reason = fields[3]
			}
		default:
			return nil, fmt.Errorf("kubectl get nodes: %s: %q is no status of a condition", n.Name, plain.Line(n.Ready, 20))
		}
		n.Since, _ = time.Parse(time.RFC3339, fields[2])
		n.Address, _, _ = strings.Cut(fields[4], " ")
		n.Cordoned, _ = strconv.ParseBool(fields[5])
		all = append(all, n)
	}
	return all, nil
}

// fitting is how many of the nodes fit into one result.
func fitting(nodes []api.Node) int {
	room := api.MaxBody - 8<<10 // for the rest of the result
	for i, n := range nodes {
		text, _ := json.Marshal(n)
		if room -= len(text) + 1; room < 0 {
			return i
		}
	}
	return len(nodes)
}
