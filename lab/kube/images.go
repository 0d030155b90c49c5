package kube

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// Archive is a docker archive of one image.
type Archive struct {
	Path string
	Name string // the reference inside
}

// imagesRevision is part of the key of the archives: raise it when their making changes.
const imagesRevision = "1"

// image is what one archive holds. All have a single layer.
type image struct {
	name       string
	entrypoint string
	programs   map[string]string // path in the image -> program
	system     bool              // with iptables, conntrack, kmod and busybox of Debian
	bare       bool              // nothing but the programs
}

// etcdTag and the like are how kubeadm 1.28.2 spells them.
const etcdTag = "3.5.9-0"

// imagesOf lists the images under the names that kubeadm makes of this repository. kubeadm flattens CoreDNS's
// name, as mirrors do, unless the repository is the default one.
func imagesOf(repository string) []image {
	binary := func(name string) image {
		return image{name: repository + "/" + name + ":" + Version, entrypoint: "/usr/local/bin/" + name,
			programs: map[string]string{"/usr/local/bin/" + name: name}}
	}
	coredns := repository + "/coredns:" + CoreDNSVersion
	if repository == "registry.k8s.io" {
		coredns = repository + "/coredns/coredns:" + CoreDNSVersion
	}
	proxy := binary("kube-proxy")
	proxy.system = true
	return []image{
		{name: repository + "/pause:" + PauseVersion, entrypoint: "/pause", programs: map[string]string{"/pause": "pause"}, bare: true},
		binary("kube-apiserver"), binary("kube-controller-manager"), binary("kube-scheduler"), proxy,
		{name: repository + "/etcd:" + etcdTag, entrypoint: "/usr/local/bin/etcd",
			programs: map[string]string{"/usr/local/bin/etcd": "etcd", "/usr/local/bin/etcdctl": "etcdctl"}},
		{name: coredns, entrypoint: "/coredns", programs: map[string]string{"/coredns": "coredns"}},
		// The two of flannel's own manifest, whose init containers run cp(1) in them.
		{name: FlannelImage, entrypoint: "/opt/bin/flanneld",
			programs: map[string]string{"/opt/bin/flanneld": "flanneld"}, system: true},
		{name: FlannelCNIImage, entrypoint: "/flannel",
			programs: map[string]string{"/flannel": "flannel"}, system: true},
		{name: WebImage, entrypoint: "/web", programs: map[string]string{"/web": "web"}, bare: true},
	}
}

// Images returns a directory in the cache that holds nothing but the archives of all images that a cluster of the
// lab needs, kubeadm's under names of this repository: what `cluster.images` of the configuration can name. Those
// that are not there are made of the programs, which takes seconds, and of a few Debian packages.
func Images(ctx context.Context, cacheDir, repository string, log *slog.Logger) (dir string, archives []Archive, err error) {
	programs, err := Build(ctx, cacheDir, log)
	if err != nil {
		return "", nil, err
	}
	base := root(cacheDir)
	all := imagesOf(repository)
	parts := []string{imagesRevision, repository, systemPackages}
	for _, i := range all {
		for _, p := range slices.Sorted(maps.Keys(i.programs)) {
			parts = append(parts, i.name, p, programs.Path(i.programs[p]))
		}
	}
	dir = filepath.Join(base, "images-"+key(parts...))
	for _, i := range all {
		archives = append(archives, Archive{Path: filepath.Join(dir, i.file()), Name: i.name})
	}
	if exists(dir) {
		return dir, archives, nil
	}
	err = exclusively(ctx, base, log, func() error {
		if exists(dir) {
			return nil
		}
		system, err := systemRoot(ctx, base, log)
		if err != nil {
			return err
		}
		made, err := os.MkdirTemp(base, ".images-*")
		if err != nil {
			return err
		}
		defer os.RemoveAll(made)
		started := time.Now()
		for _, i := range all {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := i.write(filepath.Join(made, i.file()), programs, system); err != nil {
				return fmt.Errorf("image %s: %w", i.name, err)
			}
		}
		if err := os.Chmod(made, 0o755); err != nil {
			return err
		}
		log.Info("images are packed", "images", len(all), "took", time.Since(started).Round(time.Second))
		return os.Rename(made, dir)
	})
	if err != nil {
		return "", nil, fmt.Errorf("kube: %w", err)
	}
	return dir, archives, nil
}

// file is the archive's name: the reference without its registry and what file names should not hold.
func (i image) file() string {
	return strings.NewReplacer(":", "_", "/", "_").Replace(path.Base(i.name)) + ".tar"
}

// write makes the archive: manifest, configuration and one layer, as `docker save` lays them. Times and owners
// are fixed, so that the same programs make the same image.
func (i image) write(to string, programs Binaries, system string) error {
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer out.Close()
	layer, err := os.CreateTemp(filepath.Dir(to), ".layer-*")
	if err != nil {
		return err
	}
	defer os.Remove(layer.Name())
	defer layer.Close()
	sum := sha256.New()
	if err := i.layer(layer, sum, programs, system); err != nil {
		return err
	}
	size, err := layer.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	if _, err := layer.Seek(0, io.SeekStart); err != nil {
		return err
	}

	const epoch = "1970-01-01T00:00:00Z"
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "created": epoch,
		"config": map[string]any{
			"Env":        []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			"Entrypoint": []string{i.entrypoint},
		},
		"rootfs":  map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sum.Sum(nil))}},
		"history": []any{map[string]any{"created": epoch, "created_by": "rackstrap lab"}},
	})
	if err != nil {
		return err
	}
	manifest, err := json.Marshal([]any{map[string]any{
		"Config": "config.json", "RepoTags": []string{i.name}, "Layers": []string{"layer.tar"},
	}})
	if err != nil {
		return err
	}
	archive := tar.NewWriter(out)
	for _, part := range []struct {
		name string
		size int64
		from io.Reader
	}{
		{"manifest.json", int64(len(manifest)), bytes.NewReader(manifest)},
		{"config.json", int64(len(config)), bytes.NewReader(config)},
		{"layer.tar", size, layer},
	} {
		if err := archive.WriteHeader(header(part.name, tar.TypeReg, 0o644, part.size)); err != nil {
			return err
		}
		if _, err := io.Copy(archive, part.from); err != nil {
			return err
		}
	}
	if err := archive.Close(); err != nil {
		return err
	}
	return out.Close()
}

func header(name string, kind byte, mode, size int64) *tar.Header {
	return &tar.Header{Name: name, Typeflag: kind, Mode: mode, Size: size, ModTime: time.Unix(0, 0), Format: tar.FormatGNU}
}

// layer writes the root file system, and its digest on the way.
func (i image) layer(out io.Writer, sum hash.Hash, programs Binaries, system string) error {
	w := tar.NewWriter(io.MultiWriter(out, sum))
	made := map[string]bool{}
	var mkdir func(dir string, mode int64) error
	mkdir = func(dir string, mode int64) error {
		if dir == "." || made[dir] {
			return nil
		}
		if err := mkdir(path.Dir(dir), 0o755); err != nil {
			return err
		}
		made[dir] = true
		return w.WriteHeader(header(dir+"/", tar.TypeDir, mode, 0))
	}
	text := func(name, content string) error {
		if err := mkdir(path.Dir(name), 0o755); err != nil {
			return err
		}
		if err := w.WriteHeader(header(name, tar.TypeReg, 0o644, int64(len(content)))); err != nil {
			return err
		}
		_, err := io.WriteString(w, content)
		return err
	}
	if i.system {
		if err := addTree(w, system, made); err != nil {
			return err
		}
	}
	if !i.bare {
		if err := mkdir("tmp", 0o1777); err != nil {
			return err
		}
		for _, f := range [][2]string{
			{"etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"}, {"etc/group", "root:x:0:\n"}, {"etc/nsswitch.conf", "hosts: files dns\n"},
		} {
			if err := text(f[0], f[1]); err != nil {
				return err
			}
		}
	}
	for _, to := range slices.Sorted(maps.Keys(i.programs)) {
		name := strings.TrimPrefix(to, "/")
		if err := mkdir(path.Dir(name), 0o755); err != nil {
			return err
		}
		if err := addFile(w, name, programs.Path(i.programs[to]), 0o755); err != nil {
			return err
		}
	}
	return w.Close()
}

func addFile(w *tar.Writer, name, from string, mode int64) error {
	file, err := os.Open(from)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if err := w.WriteHeader(header(name, tar.TypeReg, mode, info.Size())); err != nil {
		return err
	}
	_, err = io.Copy(w, file)
	return err
}

// addTree copies directories, files and symbolic links, in the order of their names.
func addTree(w *tar.Writer, tree string, made map[string]bool) error {
	return filepath.WalkDir(tree, func(file string, entry fs.DirEntry, err error) error {
		if err != nil || file == tree {
			return err
		}
		name, err := filepath.Rel(tree, file)
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		mode := int64(info.Mode().Perm())
		switch {
		case entry.IsDir():
			made[name] = true
			return w.WriteHeader(header(name+"/", tar.TypeDir, mode, 0))
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(file)
			if err != nil {
				return err
			}
			link := header(name, tar.TypeSymlink, 0o777, 0)
			link.Linkname = target
			return w.WriteHeader(link)
		case info.Mode().IsRegular():
			return addFile(w, name, file, mode)
		}
		return nil
	})
}

// systemPackages are Debian's, which with what they depend on make the root of images that set up networks.
const systemPackages = "iptables,conntrack,kmod,busybox-static"

// systemLinks are what the packages' own scripts, which are not run, would have laid.
var systemLinks = map[string]string{
	"usr/sbin/iptables": "xtables-nft-multi", "usr/sbin/iptables-save": "xtables-nft-multi", "usr/sbin/iptables-restore": "xtables-nft-multi",
	"usr/sbin/ip6tables": "xtables-nft-multi", "usr/sbin/ip6tables-save": "xtables-nft-multi", "usr/sbin/ip6tables-restore": "xtables-nft-multi",
}

// busyboxApplets are those that a test in a container, or an init container, may want.
var busyboxApplets = []string{"sh", "cp", "ls", "cat", "ip", "ping", "wget", "nc", "nslookup", "hostname", "sleep", "mkdir", "mount", "ps", "mv", "rm", "ln"}

// systemRoot unpacks the packages once.
func systemRoot(ctx context.Context, base string, log *slog.Logger) (string, error) {
	suite, sources, err := debian()
	if err != nil {
		return "", err
	}
	to := filepath.Join(base, "system-"+suite+"-"+key(imagesRevision, systemPackages))
	if exists(to) {
		return to, nil
	}
	log.Info("unpacking Debian's iptables for the images", "packages", systemPackages)
	tmp, err := os.MkdirTemp(base, ".system-*")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	tree := filepath.Join(tmp, "tree")
	// "extract" runs none of the packages' scripts.
	cmd := exec.CommandContext(ctx, "mmdebstrap", append([]string{"--quiet", "--variant=extract", "--include=" + systemPackages,
		"--dpkgopt=path-exclude=/usr/share/*", suite, tree}, sources...)...)
	cmd.WaitDelay = 10 * time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("mmdebstrap: %v (Debian package mmdebstrap): %s", err, lastLines(string(out), 8))
	}
	for _, dir := range []string{"dev", "var", "tmp", "usr/share"} {
		if err := os.RemoveAll(filepath.Join(tree, dir)); err != nil {
			return "", err
		}
	}
	links := map[string]string{}
	for name, target := range systemLinks {
		links[name] = target
	}
	for _, applet := range busyboxApplets {
		if !exists(filepath.Join(tree, "bin", applet)) && !exists(filepath.Join(tree, "usr/bin", applet)) {
			links["usr/local/bin/"+applet] = busyboxIn(tree)
		}
	}
	if !exists(filepath.Join(tree, "bin/sh")) {
		links["bin/sh"] = busyboxIn(tree)
	}
	for name, target := range links {
		if err := os.MkdirAll(filepath.Join(tree, filepath.Dir(name)), 0o755); err != nil {
			return "", err
		}
		if err := os.Symlink(target, filepath.Join(tree, name)); err != nil {
			return "", err
		}
	}
	return to, os.Rename(tree, to)
}

// busyboxIn is busybox's place, which moved to /usr/bin with Debian 13.
func busyboxIn(tree string) string {
	if exists(filepath.Join(tree, "usr/bin/busybox")) {
		return "/usr/bin/busybox"
	}
	return "/bin/busybox"
}

// debian names the release of this host, and the files with its package sources: mmdebstrap takes from them what
// this host's own apt-get is allowed to.
func debian() (suite string, sources []string, err error) {
	release, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "", nil, err
	}
	for line := range strings.Lines(string(release)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "VERSION_CODENAME="); ok {
			suite = strings.Trim(name, `"`)
		}
	}
	for _, file := range []string{"/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"} {
		if info, err := os.Stat(file); err == nil && info.Size() > 0 {
			sources = append(sources, file)
		}
	}
	if suite == "" || len(sources) == 0 {
		return "", nil, fmt.Errorf("this host is not a Debian with package sources: the lab takes iptables from there")
	}
	return suite, sources, nil
}
