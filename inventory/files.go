package inventory

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// CheckFiles looks for the files that the configuration names: images, trees, boot loaders. It is apart
// from Load because a configuration can be valid on a host that lacks them. The error is Faults.
func (c *Config) CheckFiles() error {
	k := c.collector()
	if len(c.Media) == 0 {
		k.fault("media", "is empty: machines cannot be installed without a medium")
	}
	for i, m := range c.Media {
		path := entry("media", i)
		k.names[path] = m.Name
		if m.ISO != "" {
			k.readable(path+".iso", m.ISO, false)
		}
		if m.Dir != "" {
			k.readable(path+".dir", m.Dir, true)
		}
	}
	if c.Server.LoadersDir != "" {
		k.readable("server.loaders_dir", c.Server.LoadersDir, true)
	}
	if c.Server.AgentsDir != "" {
		k.readable("server.agents_dir", c.Server.AgentsDir, true)
	}
	if c.Server.RepoDir != "" {
		k.readable("server.repo_dir", c.Server.RepoDir, true)
	}
	k.repoDirs("install", c.Install.Repos, nil)
	if c.Install.SecureBootDir != "" {
		k.readable("install.secure_boot_dir", c.Install.SecureBootDir, true)
	}
	if c.Cluster.CNIManifest != "" {
		k.readable("cluster.cni_manifest", c.Cluster.CNIManifest, false)
	}
	if c.Cluster.Images != "" {
		k.readable("cluster.images", c.Cluster.Images, true)
	}
	for i, m := range c.Machines {
		k.names[entry("machines", i)] = m.Name
		k.repoDirs(entry("machines", i), m.Install.Repos, c.Install.Repos)
		if dir := m.Install.SecureBootDir; dir != "" && dir != c.Install.SecureBootDir {
			k.readable(entry("machines", i)+".secure_boot_dir", dir, true)
		}
	}
	return k.err()
}

// readable opens a file or directory, which must be of the right kind.
func (k *collector) readable(path, file string, dir bool) {
	if err := tryRead(file, dir); err != nil {
		k.fault(path, "%s: %v", file, err)
	}
}

func tryRead(file string, dir bool) error {
	// O_NONBLOCK: the open of a named pipe would wait for its writer.
	f, err := os.OpenFile(file, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		var pathError *fs.PathError
		if errors.As(err, &pathError) {
			return pathError.Err
		}
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return err
	case dir && !info.IsDir():
		return errors.New("is not a directory")
	case !dir && !info.Mode().IsRegular():
		return errors.New("is not a regular file")
	case !dir && info.Size() == 0:
		return errors.New("is empty")
	}
	return nil
}

// collector gathers faults of a loaded Config; one made by hand has no lines.
func (c *Config) collector() *collector {
	name := c.Path
	if name == "" {
		name = FileName
	}
	o := newOrigin(name)
	if c.origin != nil {
		o.name, o.lines, o.env = c.origin.name, c.origin.lines, c.origin.env
		for path, name := range c.origin.names {
			o.names[path] = name
		}
	}
	return &collector{origin: o}
}
