package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
)

// fileUnmembered notes that the etcd member of this machine was removed and its data waits to be.
const fileUnmembered = "etcd-member-removed"

// leave resets a machine that joined, or half joined, a cluster that others are part of. `kubeadm reset` deletes etcd's
// data also when it could not take the member out of the cluster. That member is dead then and still counts: of two
// masters, the one that is left has no quorum, for good. So the member goes first, and as long as it cannot go, and the
// cluster does not answer without it, nothing is deleted.
func (j *job) leave(ctx context.Context) error {
	var reason error
	for {
		why := j.unmember(ctx)
		if why == nil {
			break
		}
		if reason == nil || ctx.Err() == nil { // the last one may be nothing but the deadline
			reason = why
			j.session.note("%v", why)
		}
		if sleep(ctx, j.pause()) != nil {
			return retryf("this machine may be a member of etcd without which the others have no quorum: not reset: %w", reason)
		}
	}
	return j.reset(ctx)
}

// unmember takes this machine out of etcd, if it may be in it. An error: it is not known to be out. What an init that
// never ended well left is nobody else's.
func (j *job) unmember(ctx context.Context) error {
	halfDoneInit := j.tries() > 0 && !exists(j.own(fileInitialised))
	if !exists(j.path(etcdData+"/member")) || exists(j.own(fileUnmembered)) || halfDoneInit {
		return nil
	}
	out, err := j.etcdctl(ctx, "member", "list", "-w", "json")
	if err != nil {
		if j.clusterAnswers(ctx) { // it has its quorum without what lies here
			return nil
		}
		return err
	}
	all, err := parseMembers(out)
	if err != nil {
		return err
	}
	m, found := memberOf(all, j.o.Config.Name, "")
	if found && len(all) > 1 {
		j.tell("removing this machine's etcd member", 0)
		if _, err := j.etcdctl(ctx, "member", "remove", fmt.Sprintf("%x", m.ID)); err != nil {
			return err
		}
	}
	return writeAtomically(j.own(fileUnmembered), nil)
}

// clusterAnswers asks the endpoint of the cluster, not this host.
func (j *job) clusterAnswers(ctx context.Context) bool {
	out, err := j.run(ctx, j.session, "kubectl", "--kubeconfig", j.path(adminConf), "get", "--raw", "/readyz", "--request-timeout=10s")
	return err == nil && strings.TrimSpace(out) == "ok"
}

// reset takes back what kubeadm did on this machine. What kubeadm reset leaves alone is removed too, as far as it is
// of our making: the CNI's configuration, etcd's data, the bridge of the pods with an address of the old cluster.
func (j *job) reset(ctx context.Context) error {
	if _, err := j.run(ctx, j.session, "kubeadm", "reset", "--force", "--cri-socket", criSocket); err != nil {
		return retryf("leftovers could not be reset: %w", err)
	}
	for _, pattern := range []string{
		"/etc/cni/net.d/10-flannel.conflist", "/etc/cni/net.d/10-calico.conflist", "/etc/cni/net.d/calico-kubeconfig",
		"/run/flannel", "/var/lib/cni/networks", "/var/lib/cni/results", "/var/lib/cni/flannel",
		etcdData + "/*", manifests + "/*.yaml", "/etc/kubernetes/*.conf", "/etc/kubernetes/pki", "/var/lib/kubelet/config.yaml",
	} {
		found, _ := filepath.Glob(j.path(pattern))
		for _, path := range found {
			if err := os.RemoveAll(path); err != nil {
				j.session.note("%v", err)
			}
		}
	}
	if strings.Trim(j.o.Root, "/") == "" {
		for _, name := range []string{"cni0", "flannel.1", "vxlan.calico"} {
			if link, err := netlink.LinkByName(name); err == nil {
				netlink.LinkDel(link)
			}
		}
	}
	if left := j.leftovers(); left != "" {
		return retryf("kubeadm reset left %s", left)
	}
	return errors.Join(os.RemoveAll(j.own(fileInitialised)), os.RemoveAll(j.own(fileUnmembered)))
}
