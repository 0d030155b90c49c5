package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const hostsFile = "/etc/hosts"

// endpointMark ends the lines of the hosts file that are ours.
const endpointMark = "# control-plane endpoint (rackstrap)"

// pointEndpoint makes the name of the control plane's endpoint lead where the work says.
func (j *job) pointEndpoint() error {
	if j.work.EndpointName == "" || len(j.work.EndpointAddresses) == 0 {
		return nil
	}
	if !nodeName.MatchString(strings.ToLower(j.work.EndpointName)) {
		return fatalf("%q is no name of an endpoint", j.work.EndpointName)
	}
	for _, address := range j.work.EndpointAddresses {
		if _, err := netip.ParseAddr(address); err != nil {
			return fatalf("the address %q of the endpoint is none", address)
		}
	}
	path := j.path(hostsFile)
	before, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	after := withEndpoint(string(before), j.work.EndpointName, j.work.EndpointAddresses)
	if after == string(before) {
		return nil
	}
	return replaceHosts(path, after)
}

// withEndpoint is a hosts file (hosts(5)) in which the name has these addresses, in this order, and no others. Lines
// that also name something else stay, without the name.
func withEndpoint(text, name string, addresses []string) string {
	var lines []string
	text = strings.TrimSuffix(text, "\n")
	for line := range strings.SplitSeq(text, "\n") {
		if text == "" {
			break
		}
		content, comment, commented := strings.Cut(line, "#")
		words := strings.Fields(content)
		at := slices.IndexFunc(words, func(w string) bool { return strings.EqualFold(w, name) })
		switch {
		case at < 1:
			lines = append(lines, line)
		case len(words) > 2:
			kept := strings.Join(slices.DeleteFunc(words, func(w string) bool { return strings.EqualFold(w, name) }), " ")
			if commented {
				kept += " #" + comment
			}
			lines = append(lines, kept)
		}
	}
	for _, address := range addresses {
		lines = append(lines, fmt.Sprintf("%s %s %s", address, name, endpointMark))
	}
	return strings.Join(lines, "\n") + "\n"
}

// replaceHosts replaces the file whole. Everybody may read it, and SELinux knows it by a label of its own; where it is
// a mount, as in containers, it is written in place.
func replaceHosts(path, text string) error {
	file, err := os.CreateTemp(filepath.Dir(path), ".hosts-*")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	_, err = file.WriteString(text)
	if err = errors.Join(err, file.Chmod(0o644), file.Sync(), file.Close()); err != nil {
		return err
	}
	label := make([]byte, 256)
	if n, err := unix.Lgetxattr(path, "security.selinux", label); err == nil {
		unix.Lsetxattr(file.Name(), "security.selinux", label[:n], 0)
	}
	if err := os.Rename(file.Name(), path); errors.Is(err, unix.EBUSY) {
		return os.WriteFile(path, []byte(text), 0o644)
	} else if err != nil {
		return err
	}
	return nil
}
