// Package kube makes a real Kubernetes for the lab, out of Go modules: the programs that a node's packages would
// install, and the container images that kubeadm asks for, as archives. Nothing of it is ever committed; it is
// built once into a cache, which takes about ten minutes on two cores, and found there afterwards.
//
//	programs   Kubernetes 1.28.2, etcd 3.5.9, CoreDNS 1.10.1, flannel 0.22.0, crictl, each from its own module
//	images     docker archives (`docker save`, `ctr images import`) of these under the names that kubeadm and
//	           flannel's manifest use, kube-proxy's and flannel's with Debian's iptables around them
//
// What differs from the published images is said in docs/namespace-machines.md.
package kube

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// Versions of what is built. They fit together: kubeadm 1.28.2 asks for just this etcd, CoreDNS and pause.
const (
	Version        = "v1.28.2" // of Kubernetes
	EtcdVersion    = "v3.5.9"
	CoreDNSVersion = "v1.10.1"
	PauseVersion   = "3.9"
	FlannelVersion = "v0.22.0"
	CrictlVersion  = "v1.34.0"

	// cniPluginsVersion is the last release of the CNI project's plugins that holds flannel's; its own
	// repository came later, and its modules are not served everywhere.
	cniPluginsVersion = "v0.9.1"
)

// WebImage is the web server for the availability check: a page that names the machine, on port 80. It is the
// lab's own, where a rack would use nginx.
const WebImage = "rackstrap.lab/web:1"

// The images of flannel, as its own manifest names them.
const (
	FlannelImage    = "docker.io/flannel/flannel:" + FlannelVersion
	FlannelCNIImage = "docker.io/flannel/flannel-cni-plugin:v1.1.2"
)

// Binaries are the programs in the cache.
type Binaries struct {
	paths map[string]string
}

// Path is the file of a program: kubeadm, kubectl, kubelet, kube-apiserver, kube-controller-manager,
// kube-scheduler, kube-proxy, etcd, etcdctl, coredns, crictl, flanneld, flannel (the CNI plugin), pause or web.
// Any other name is empty.
func (b Binaries) Path(name string) string { return b.paths[name] }

// DefaultCacheDir is where lab.DefaultCacheDir is: $XDG_CACHE_HOME/rackstrap/lab.
func DefaultCacheDir() string {
	base, err := os.UserCacheDir()
	if err != nil {
		base = os.TempDir()
	}
	return filepath.Join(base, "rackstrap", "lab")
}

// root is this package's part of a cache directory.
func root(cacheDir string) string {
	if cacheDir == "" {
		cacheDir = DefaultCacheDir()
	}
	return filepath.Join(cacheDir, "kube")
}

// key names content by what it is made of.
func key(parts ...string) string {
	sum := sha256.New()
	for _, part := range append(parts, runtime.GOARCH) {
		fmt.Fprintf(sum, "%d:%s", len(part), part)
	}
	return fmt.Sprintf("%x", sum.Sum(nil))[:12]
}

// exclusively runs do while no other process builds into the same cache: two of them would only build the same
// twice, each at half the speed. The kernel lets go of the lock when its holder dies.
func exclusively(ctx context.Context, dir string, log *slog.Logger, do func() error) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "build.lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer lock.Close()
	for told := false; ; told = true {
		err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return do()
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return fmt.Errorf("%s: %v", lock.Name(), err)
		}
		if !told {
			log.Info("another process is building; waiting for it", "lock", lock.Name())
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s, which another process holds: %w", lock.Name(), ctx.Err())
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
