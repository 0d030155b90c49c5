package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"rackstrap/firstboot/api"
)

// join joins this machine, as what the configuration of the work makes of it. Leftovers of a failed join are
// reset first; a machine that is in the cluster already is not touched.
func (j *job) join(ctx context.Context) (api.Result, error) {
	var result api.Result
	j.awaitClock(ctx)
	want, err := parseJoin(j.work.KubeadmConfig)
	if err != nil {
		return result, fatalf("configuration for kubeadm join: %w", err)
	}
	if (j.work.Action == api.JoinControlPlane) != want.controlPlane {
		return result, fatalf("the configuration for kubeadm does not fit %s", j.work.Action)
	}
	if exists(j.path(kubeletConf)) {
		if n, err := j.isMember(ctx, want, 15*time.Second); err == nil {
			j.tell("this node is in the cluster already", 0)
			if want.controlPlane && !n.marked() {
				err = j.mark(ctx)
			}
			return result, err
		}
	}
	if err := j.importImages(ctx); err != nil {
		return result, err
	}
	if left := j.leftovers(); left != "" {
		j.tell("a join that failed left its traces: kubeadm reset", 0)
		j.session.note("%s is there: reset", left)
		if err := j.leave(ctx); err != nil {
			return result, err
		}
	}
	if err := os.RemoveAll(j.own(fileTries)); err != nil { // from here on what lies here is not that of an init
		return result, err
	}
	config, err := j.file("kubeadm.yaml", j.work.KubeadmConfig)
	if err != nil {
		return result, err
	}
	j.tell("kubeadm join", 0)
	out, err := j.run(ctx, j.session, "kubeadm", "join", "--config", config)
	os.Remove(config)
	if err != nil {
		return result, joinError(err)
	}
	// kubeadm's exit code is not believed: only what the API server says to kubelet's own credential.
	n, err := j.isMember(ctx, want, time.Minute)
	switch {
	case err != nil:
		j.session.note("kubeadm printed %d bytes and ended well", len(out))
		return result, retryf("kubeadm join ended well, but this node is not in the cluster: %w", err)
	case want.controlPlane && !n.marked():
		return result, retryf("kubeadm join ended well, but this node is not marked as a control plane")
	}
	return result, nil
}

// mark carries out the last phase of the join of a control plane, for one whose power was cut just before it: such a
// node serves, and counts as a worker for good.
func (j *job) mark(ctx context.Context) error {
	config, err := j.file("kubeadm.yaml", j.work.KubeadmConfig)
	if err != nil {
		return err
	}
	j.tell("kubeadm join was interrupted before its last phase, mark-control-plane", 0)
	_, err = j.run(ctx, j.session, "kubeadm", "join", "phase", "control-plane-join", "mark-control-plane", "--config", config)
	os.Remove(config)
	if err != nil {
		return joinError(err)
	}
	return nil
}

// joinConfig is what matters of a JoinConfiguration.
type joinConfig struct {
	hashes       []string
	controlPlane bool
}

func parseJoin(text string) (joinConfig, error) {
	decode := yaml.NewDecoder(strings.NewReader(text))
	for {
		var document struct {
			Kind      string `yaml:"kind"`
			Discovery struct {
				BootstrapToken struct {
					CACertHashes []string `yaml:"caCertHashes"`
				} `yaml:"bootstrapToken"`
			} `yaml:"discovery"`
			ControlPlane *yaml.Node `yaml:"controlPlane"`
		}
		if err := decode.Decode(&document); err != nil {
			return joinConfig{}, fmt.Errorf("no JoinConfiguration: %w", err)
		}
		if document.Kind == "JoinConfiguration" {
			return joinConfig{document.Discovery.BootstrapToken.CACertHashes, document.ControlPlane != nil}, nil
		}
	}
}

// isMember asks with kubelet's own credential for this node, until limit. The CA on disk must be the one that is
// pinned: what is left of another cluster does not count.
func (j *job) isMember(ctx context.Context, want joinConfig, limit time.Duration) (*node, error) {
	ca, err := os.ReadFile(j.path(caFile))
	if err != nil {
		return nil, err
	}
	hash, err := publicKeyHash(ca)
	if err != nil {
		return nil, err
	}
	if len(want.hashes) > 0 && !slices.Contains(want.hashes, hash) {
		return nil, errors.New("the CA on this machine is that of another cluster")
	}
	if want.controlPlane && !exists(j.path(apiManifest)) {
		return nil, errors.New("there is no manifest of the API server")
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		n, err := j.ownNode(ctx)
		if err == nil && want.controlPlane && !j.answers(ctx) {
			err = errors.New("this master's API server does not answer")
		}
		if err == nil {
			return n, nil
		}
		if sleep(ctx, j.pause()) != nil {
			return nil, err
		}
	}
}

func (j *job) ownNode(ctx context.Context) (*node, error) {
	out, err := j.run(ctx, j.session, "kubectl", "--kubeconfig", j.path(kubeletConf), "get", "node", j.o.Config.Name, "-o", "json", "--request-timeout=10s")
	if err != nil {
		return nil, err
	}
	n, err := parseNode(out)
	if err == nil && (n == nil || n.Metadata.Name != j.o.Config.Name) {
		err = errors.New("no such node")
	}
	return n, err
}

// What kubeadm says when the token or the certificate key is not (or no longer) good. It hangs rather than fails when
// a token expires on the way: discovery ends with the JWS message, the bootstrap of kubelet with a time-out.
var authErrors = regexp.MustCompile(`(?i)could not find a JWS signature|failed to verify JWS signature|token id "?[a-z0-9]{6}"? is invalid|` +
	`\bunauthorized\b|timed out waiting for the condition|` +
	`configmaps "cluster-info" is forbidden|cannot get resource "configmaps"|` +
	`error downloading certs|secret "kubeadm-certs" (was )?not found|error decoding (secret|certificate key)`)

// discovered is printed once the token was good enough to read the cluster's configuration.
const discovered = "Reading configuration from the cluster"

func joinError(err error) error {
	var p *programError
	if !errors.As(err, &p) {
		return retry(err)
	}
	switch {
	case strings.Contains(p.Output, "are pinned"), strings.Contains(p.Output, "cluster CA found in cluster-info"):
		return retryf("the API server that answered has another CA: %w", err)
	case authErrors.MatchString(p.Output):
		return unauthorized(err)
	case p.Expired && (!strings.Contains(p.Output, discovered) || strings.Contains(p.Output, "TLS Bootstrap")):
		return unauthorized(fmt.Errorf("%w (its token may have expired)", err))
	case hopeless(err):
		return fatal(err)
	}
	return retry(err)
}
