package preflight

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"maps"
	"math"
	"regexp"
	"slices"
	"strings"
	"sync"

	"rackstrap/bootplan"
	"rackstrap/inventory"
	"rackstrap/media"
	"rackstrap/repo"
)

// medium looks at what a medium is booted from: what the boot scripts name, and what dracut asks for then.
func (e *examination) medium(name string) {
	subject := mediumSubject(name)
	tree, _ := e.Plan.Library().Tree(name)
	info, err := media.ReadTreeInfo(tree)
	switch {
	case missing(err):
		// No fault by itself: dracut then fetches its default (anaconda-netroot.sh), and Anaconda takes its own version for the
		// tree's and the tree for the repository (21.48: PackagePayload._getTreeInfo, _getReleaseVersion).
		e.Warn(subject, "it has neither .treeinfo nor treeinfo, which say where things are: installers then look where their release has them")
	case err != nil:
		e.Fault(subject, "%v", err)
		return
	}
	if info.Arch == "" {
		info.Arch = "x86_64"
	}
	kernel, known := kernels[info.Arch]
	if !known {
		e.Fault(subject, "it is for %s: nodes are x86_64 or aarch64", info.Arch)
		return
	}
	if program := map[string]string{"x86_64": "amd64", "aarch64": "arm64"}[info.Arch]; !slices.Contains(e.Agents, program) {
		e.Fault("agents", "there is none for %s, which %s is for: put it as linux-%s into server.agents_dir", info.Arch, subject, program)
	}
	paths := e.Plan.InstallerPaths(tree)
	for _, file := range []struct {
		path string
		form form
	}{{paths.Kernel, kernel}, {paths.Initrd, initrd}} {
		e.file(subject, tree, file.path, file.form, info.Checksums)
	}
	stages := []string{info.MainImage}
	if info.MainImage == "" {
		stages = e.stages(name)
	}
	for _, stage := range stages {
		e.file(subject, tree, stage, squashfs, info.Checksums)
	}
}

// mirror looks at what machines boot from a medium that is on a server.
func (e *examination) mirror(ctx context.Context, m inventory.Medium) {
	ctx, cancel := context.WithTimeout(ctx, e.Servers)
	defer cancel()
	subject, root := mediumSubject(m.Name), strings.TrimSuffix(m.URL, "/")+"/"
	var info media.TreeInfo
	text, err := repo.FetchFile(ctx, e.Fetch, root+".treeinfo", 1<<20)
	if err == nil {
		info, err = media.ParseTreeInfo(string(text))
	}
	if err != nil && !missing(err) {
		e.Warn(subject, "was not looked up: %v", err)
		return
	}
	stages := []string{info.MainImage}
	if info.MainImage == "" {
		stages = e.stages(m.Name)
	}
	forms := map[string]form{}
	for _, stage := range stages {
		forms[stage] = squashfs
	}
	forms[bootplan.UsualKernel], forms[bootplan.UsualInitrd] = kernelX86, initrd
	for _, name := range slices.Sorted(maps.Keys(forms)) {
		begin, size, err := repo.FetchBegin(ctx, e.Fetch, root+name, beginSize)
		switch {
		case missing(err):
			e.Fault(subject, "its server does not have %s", name)
			continue
		case err != nil:
			e.Warn(subject, "%s was not looked up: %v", name, err)
			continue
		case size < 0: // not said: it cannot break off
			size = math.MaxInt64
		}
		if len(begin) == 0 {
			size = 0
		}
		if err := whole(bytes.NewReader(begin), size, forms[name]); err != nil {
			e.Fault(subject, "%s of its server %v", name, err)
		}
	}
}

// stages is where the releases that are installed from a medium look for the second stage.
func (e *examination) stages(medium string) (list []string) {
	for _, m := range e.cfg.Machines {
		if e.mediumOf(m) != medium {
			continue
		}
		if s, err := e.Sources(m); err == nil && !slices.Contains(list, s.Reads.Stage2) {
			list = append(list, s.Reads.Stage2)
		}
	}
	return list
}

// inURL is what a path may have in the script languages of iPXE and GRUB, in a kernel's command line, and in a URL that
// nobody escapes.
var inURL = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/+~-]*$`)

// file looks at one file of a medium.
func (e *examination) file(subject string, tree media.Tree, name string, f form, sums map[string]string) {
	if !inURL.MatchString(name) {
		e.Fault(subject, "%q cannot be named in a boot script: only letters, digits and ._/+~-", name)
		return
	}
	entry, err := tree.Lookup(name)
	if err != nil {
		e.Fault(subject, "%s %s", name, reason(err))
		return
	}
	if !entry.Mode.IsRegular() {
		e.Fault(subject, "%s is no regular file", name)
		return
	}
	content, err := tree.OpenEntry(entry)
	if err != nil {
		e.Fault(subject, "%s %s", name, reason(err))
		return
	}
	defer content.Close()
	if err := whole(content, entry.Size, f); err != nil {
		e.Fault(subject, "%s %v", name, err)
		return
	}
	if sum := sums[strings.ToLower(name)]; sum != "" {
		got, err := sums256.of(entry.ETag(), content)
		if err != nil {
			e.Fault(subject, "%s cannot be read: %v", name, err)
		} else if got != sum {
			e.Fault(subject, "%s is not the file that .treeinfo has the sha256 of: it is %s, not %s", name, got, sum)
		}
	}
}

// sumCache remembers checksums by the entity tags of files: a reload need not read half a gigabyte again.
type sumCache struct{ known sync.Map }

var sums256 sumCache

func (c *sumCache) of(tag string, content media.Content) (string, error) {
	if sum, ok := c.known.Load(tag); ok {
		return sum.(string), nil
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(content, 0, content.Size())); err != nil {
		return "", err
	}
	sum := hex.EncodeToString(h.Sum(nil))
	c.known.Store(tag, sum)
	return sum, nil
}
