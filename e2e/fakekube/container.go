package fakekube

import (
	"archive/tar"
	"encoding/json"
	"os"
	"slices"
	"strings"
)

const imagesFile = "/var/lib/fakekube-images.json"

// images is what containerd has in the namespace k8s.io.
func (c *call) images() []string {
	var names []string
	text, _ := os.ReadFile(c.at(imagesFile))
	json.Unmarshal(text, &names)
	return names
}

func (c *call) addImages(names ...string) error {
	have := c.images()
	for _, name := range names {
		if !slices.Contains(have, name) {
			have = append(have, name)
		}
	}
	text, err := json.Marshal(have)
	if err != nil {
		return err
	}
	return c.write(imagesFile, string(text))
}

func ctr(c *call) error {
	if len(c.args) < 2 || c.args[0] != "-n" || c.args[1] != "k8s.io" {
		return failf("ctr: not the namespace k8s.io: %s", strings.Join(c.args, " "))
	}
	args := c.args[2:]
	switch line := strings.Join(args, " "); {
	case line == "images ls -q":
		for _, name := range c.images() {
			c.say("%s", name)
		}
		return nil
	case len(args) == 3 && strings.HasPrefix(line, "images import "):
		return c.importArchive(args[2])
	case line == `containers ls -q labels."io.kubernetes.container.name"==etcd`:
		if c.has(etcdMember) {
			c.say("%s\n%s", hashed("an etcd that ended"), hashed("etcd"))
		}
		return nil
	case line == "tasks ls":
		c.say("TASK                                                                PID     STATUS    ")
		if c.has(etcdMember) {
			c.say("%s    1709    STOPPED\n%s    1710    RUNNING", hashed("an etcd that ended"), hashed("etcd"))
		}
		return nil
	case len(args) > 6 && strings.HasPrefix(line, "tasks exec --exec-id ") && args[4] == hashed("etcd") && args[5] == "etcdctl":
		return c.file.Update(func(s *State) error { return c.etcdctl(s, args[6:]) })
	}
	return failf("ctr: no such command: %s", strings.Join(c.args, " "))
}

// importArchive reads a docker archive: manifest.json names what is inside.
func (c *call) importArchive(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return failf("ctr: open %s: no such file or directory", path)
	}
	defer file.Close()
	for archive := tar.NewReader(file); ; {
		header, err := archive.Next()
		if err != nil {
			return failf("ctr: %v", err)
		}
		if header.Name != "manifest.json" {
			continue
		}
		var entries []struct{ RepoTags []string }
		if err := json.NewDecoder(archive).Decode(&entries); err != nil {
			return failf("ctr: unrecognized image format")
		}
		for _, e := range entries {
			if err := c.addImages(e.RepoTags...); err != nil {
				return err
			}
			for _, tag := range e.RepoTags {
				c.say("unpacking %s (sha256:%s)...done", tag, hashed(tag))
			}
		}
		return nil
	}
}

func crictl(c *call) error {
	c.say("CONTAINER           IMAGE               CREATED             STATE               NAME                ATTEMPT             POD ID              POD")
	return nil
}

func chronyc(c *call) error {
	if len(c.args) == 0 || c.args[0] != "waitsync" {
		return failf("Unrecognized command")
	}
	c.say("try: 1, refid: 0A0A0A01, correction: 0.000012345, skew: 0.123")
	return nil
}

func containerd(c *call) error {
	c.say("containerd containerd.io 1.6.33 d2d58213f83a351ca8f528a95fbd145f5654e957")
	return nil
}
