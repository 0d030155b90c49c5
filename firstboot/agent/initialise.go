package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"time"

	"rackstrap/firstboot/api"
)

const (
	fileTries       = "init-tries"
	fileInitialised = "initialised" // kubeadm init ended well: its state is not ours to reset
	maxTries        = 3
)

// afterReboot is how long the API server of an earlier init may take to answer.
const afterReboot = 2 * time.Minute

// initialise makes this machine the first master, and finds out first whether it is one already. A half-done init
// is reset and begun again, at most three times; one that succeeded never is.
func (j *job) initialise(ctx context.Context) (api.Result, error) {
	j.awaitClock(ctx)
	config, err := j.file("kubeadm.yaml", j.work.KubeadmConfig)
	if err != nil {
		return api.Result{}, err
	}
	done, err := j.initialised(ctx)
	if err != nil {
		return api.Result{}, err
	}
	var result api.Result
	if done {
		j.tell("kubeadm init was done already", 0)
	} else if result, err = j.init(ctx, config); err != nil {
		return result, err
	}
	if err := j.applyCNI(ctx); err != nil {
		return result, err
	}
	if err := j.dropDefaultTokens(ctx); err != nil {
		return result, err
	}
	ca, err := os.ReadFile(j.path(caFile))
	if err != nil {
		return result, err
	}
	if _, err := publicKeyHash(ca); err != nil {
		return result, fatalf("%s: %w", caFile, err)
	}
	result.CACert = string(ca)
	return result, nil
}

// initialised tells whether an earlier kubeadm init went all the way. Its last phases are the add-ons, the daemon set of
// kube-proxy at the very end, so an API server that answers is not enough.
func (j *job) initialised(ctx context.Context) (bool, error) {
	ours := exists(j.own(fileInitialised))
	if !exists(j.path(adminConf)) || !exists(j.path(apiManifest)) {
		if ours {
			return false, fatalf("this machine initialised the cluster, and %s is gone: an operator decides", adminConf)
		}
		return false, nil
	}
	if !j.awaitAPI(ctx, afterReboot) {
		if ours {
			return false, retryf("this machine initialised the cluster, and its API server does not answer")
		}
		return false, ctx.Err()
	}
	if ours {
		return true, nil
	}
	for _, object := range [][]string{{"-n", "kube-public", "configmap/cluster-info"}, {"-n", "kube-system", "daemonset/kube-proxy"}} {
		out, err := j.kubectl(ctx, append([]string{"get", "--ignore-not-found", "-o", "name", "--request-timeout=20s"}, object...)...)
		if err != nil {
			return false, retry(err) // rather ask again than reset what may be a cluster
		}
		if strings.TrimSpace(out) == "" {
			return false, nil
		}
	}
	return true, j.markInitialised()
}

func (j *job) markInitialised() error {
	return writeAtomically(j.own(fileInitialised), []byte("kubeadm init ended well on this machine.\n"))
}

// init runs kubeadm init, after the images, on a machine without leftovers.
func (j *job) init(ctx context.Context, config string) (api.Result, error) {
	var result api.Result
	if err := j.importImages(ctx); err != nil {
		return result, err
	}
	missing, err := j.missingImages(ctx, config)
	if err != nil {
		return result, err
	}
	if len(missing) > 0 {
		j.tell(fmt.Sprintf("pulling %d images that are not there", len(missing)), 0)
		if _, err := j.run(ctx, j.session, "kubeadm", "config", "images", "pull", "--config", config); err != nil {
			result.Missing = missing
			return result, retryf("images are missing (%s), and cannot be pulled: %w", strings.Join(missing, ", "), err)
		}
	}
	for {
		tries := j.tries()
		if tries >= maxTries {
			return result, fatalf("kubeadm init was begun %d times without success: `rackstrap reinstall %s` begins anew", tries, j.o.Config.Name)
		}
		if left := j.leftovers(); left != "" {
			j.tell("a half-done kubeadm init lies here: kubeadm reset", 0)
			j.session.note("%s is there: reset", left)
			if err := j.reset(ctx); err != nil {
				return result, err
			}
		}
		if err := j.setTries(tries + 1); err != nil {
			return result, err
		}
		j.tell(fmt.Sprintf("kubeadm init, try %d of %d", tries+1, maxTries), 0)
		_, err := j.run(ctx, j.session, "kubeadm", "init", "--config", config, "--upload-certs")
		switch {
		case err == nil && !exists(j.path(adminConf)):
			err = errors.New("kubeadm init ended well, but there is no admin.conf")
		case err == nil:
			return result, j.markInitialised()
		case ctx.Err() != nil, errors.Is(err, errNotFound):
			return result, err
		}
		j.session.note("%v", err)
		if hopeless(err) {
			return result, fatal(err)
		}
		if tries+1 >= maxTries {
			return result, fatal(err)
		}
		if err := sleep(ctx, j.pause()); err != nil {
			return result, err
		}
	}
}

// What a second try will not change: a machine that is too small, a file that kubeadm does not understand.
var hopelessErrors = regexp.MustCompile(`\[ERROR (NumCPU|Mem|Swap|SystemVerification|IsPrivilegedUser|FileExisting-[a-z]+)\]|unable to read config|error unmarshaling|unknown field|no kind `)

func hopeless(err error) bool {
	var p *programError
	return errors.As(err, &p) && hopelessErrors.MatchString(p.Output)
}

// applyCNI applies the manifest of the pod network. The API server may still be settling.
func (j *job) applyCNI(ctx context.Context) error {
	if j.work.CNIManifest == "" {
		return nil
	}
	j.tell("applying the pod network", 0)
	manifest, err := j.file("cni.yaml", j.work.CNIManifest)
	if err != nil {
		return err
	}
	for try := 1; ; try++ {
		if _, err = j.kubectl(ctx, "apply", "-f", manifest, "--request-timeout=60s"); err == nil || try == 5 || ctx.Err() != nil {
			break
		}
		if sleep(ctx, time.Duration(try)*j.pause()) != nil {
			break
		}
	}
	if err != nil {
		return retryf("the pod network could not be applied: %w", err)
	}
	return nil
}
