package container

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Hierarchy is one mounted cgroup v1 hierarchy.
type Hierarchy struct {
	Name    string `json:"name"`    // systemd, or its controllers: cpu,cpuacct
	Options string `json:"options"` // for mount(2)

	dir string // the directory of the calling process in it, on the host
}

// wanted are the controllers that systemd, kubelet and runc use.
var wanted = []string{"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "hugetlb", "perf_event", "net_cls", "net_prio", "systemd"}

// Hierarchies looks at what this host has mounted (proc(5), cgroups(7)). Whoever `ip netns exec` starts does not see
// them any more: it mounts a new /sys.
func Hierarchies() ([]Hierarchy, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	return parseHierarchies(string(mounts), string(own))
}

func parseHierarchies(mountinfo, own string) ([]Hierarchy, error) {
	paths := map[string]string{}
	for line := range strings.Lines(own) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) == 3 {
			paths[strings.TrimPrefix(fields[1], "name=")] = fields[2]
		}
	}
	var found []Hierarchy
	for line := range strings.Lines(mountinfo) {
		before, after, ok := strings.Cut(line, " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 6 || len(kind) < 3 || kind[0] != "cgroup" {
			continue
		}
		root, point := fields[3], fields[4]
		var controllers []string
		options := ""
		for _, option := range strings.Split(kind[2], ",") {
			if name, named := strings.CutPrefix(option, "name="); named {
				controllers, options = []string{name}, "none,name="+name
			} else if slices.Contains(wanted, option) {
				controllers = append(controllers, option)
			}
		}
		name := strings.Join(controllers, ",")
		if len(controllers) == 0 || !slices.Contains(wanted, controllers[0]) || slices.ContainsFunc(found, func(h Hierarchy) bool { return h.Name == name }) {
			continue
		}
		if options == "" {
			options = name
		}
		path, known := paths[name]
		if !known {
			continue
		}
		relative, err := filepath.Rel(root, path)
		if err != nil || strings.HasPrefix(relative, "..") {
			relative = "." // a cgroup namespace whose root is above the mount
		}
		found = append(found, Hierarchy{Name: name, Options: options, dir: filepath.Join(point, relative)})
	}
	for _, needed := range []string{"systemd", "cpu", "memory", "pids", "devices"} {
		if !slices.ContainsFunc(found, func(h Hierarchy) bool { return slices.Contains(strings.Split(h.Name, ","), needed) }) {
			return nil, fmt.Errorf("this host has no cgroup v1 hierarchy %q: namespace machines need the v1 hierarchies", needed)
		}
	}
	return found, nil
}

// Cgroups are the directories that a machine of this name is to have, one in each hierarchy, below those of the
// calling process: whatever accounts for it accounts for its machines.
func Cgroups(name string) ([]string, error) {
	hierarchies, err := Hierarchies()
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, h := range hierarchies {
		dirs = append(dirs, filepath.Join(h.dir, name))
	}
	return dirs, nil
}

// EnterCgroups makes the directories and moves the calling process into them.
func EnterCgroups(dirs []string) error {
	for _, dir := range dirs {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		// A cpuset without processors and memory takes no process (cpuset(7)).
		for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
			value, err := os.ReadFile(filepath.Join(filepath.Dir(dir), name))
			if err != nil {
				continue
			}
			if err := os.WriteFile(filepath.Join(dir, name), value, 0o644); err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(dir, "cgroup.clone_children"), []byte("1"), 0o644); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0o644); err != nil {
			return fmt.Errorf("%s: %w", dir, err)
		}
	}
	return nil
}

// EmptyCgroups removes what lies below the directories; RemoveCgroups the directories too. Processes that are just
// dying keep theirs for a moment.
func EmptyCgroups(dirs []string) error { return removeCgroups(dirs, false) }

// RemoveCgroups see EmptyCgroups.
func RemoveCgroups(dirs []string) error { return removeCgroups(dirs, true) }

func removeCgroups(dirs []string, self bool) error {
	var last error
	for range 100 {
		last = nil
		for _, dir := range dirs {
			var below []string
			filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
				if err == nil && entry.IsDir() && (self || path != dir) {
					below = append(below, path)
				}
				return nil
			})
			for _, path := range slices.Backward(below) {
				if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
					last = err
				}
			}
		}
		if last == nil {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return last
}
