package media

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// TreeInfo is what the file .treeinfo says about an installation tree of the Red Hat family. Every field may
// be empty: a tree of packages only has no kernel.
type TreeInfo struct {
	Family  string // "CentOS"
	Version string // "7"
	Arch    string // "x86_64"

	// Paths in the tree, fit for fs.FS.
	Kernel    string // of the installer: "images/pxeboot/vmlinuz"
	Initrd    string // "images/pxeboot/initrd.img"
	MainImage string // of its second stage: "LiveOS/squashfs.img"

	Repositories []string          // directories of package repositories; "." where there is none but the tree itself
	Checksums    map[string]string // SHA-256 by path in lower case, in hexadecimal
}

// ReadTreeInfo reads .treeinfo, or treeinfo, which is what mirrors call it and what Anaconda asks for second.
// It knows both formats: that of CentOS 7, with [general], and productmd's, with [release] and [tree]. If neither file is
// there, the error names the first.
func ReadTreeInfo(fsys fs.FS) (TreeInfo, error) {
	f, err := fsys.Open(".treeinfo")
	if errors.Is(err, fs.ErrNotExist) {
		if other, errOther := fsys.Open("treeinfo"); !errors.Is(errOther, fs.ErrNotExist) {
			f, err = other, errOther
		}
	}
	if err != nil {
		return TreeInfo{}, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxTreeInfo+1))
	if err != nil {
		return TreeInfo{}, fmt.Errorf("read treeinfo: %w", err)
	}
	if len(text) > maxTreeInfo {
		return TreeInfo{}, fmt.Errorf("treeinfo: more than %d bytes", maxTreeInfo)
	}
	return ParseTreeInfo(string(text))
}

// ParseTreeInfo is ReadTreeInfo for the text of the file.
func ParseTreeInfo(text string) (TreeInfo, error) {
	ini, err := parseINI(text)
	if err != nil {
		return TreeInfo{}, fmt.Errorf("treeinfo: %w", err)
	}
	first := func(places ...[2]string) string {
		for _, p := range places {
			if value := ini[p[0]][p[1]]; value != "" {
				return value
			}
		}
		return ""
	}
	info := TreeInfo{
		Family:  first([2]string{"general", "family"}, [2]string{"release", "name"}),
		Version: first([2]string{"general", "version"}, [2]string{"release", "version"}),
		Arch:    first([2]string{"general", "arch"}, [2]string{"tree", "arch"}),
	}
	images := ini["images-"+info.Arch]
	for _, p := range []struct {
		key, value string
		to         *string
	}{
		{"kernel", images["kernel"], &info.Kernel},
		{"initrd", images["initrd"], &info.Initrd},
		{"mainimage", ini["stage2"]["mainimage"], &info.MainImage},
	} {
		if p.value == "" {
			continue
		}
		*p.to = path.Clean(p.value)
		if !fs.ValidPath(*p.to) {
			return TreeInfo{}, fmt.Errorf("treeinfo: %s %q is no path inside the tree", p.key, p.value)
		}
	}
	info.Repositories = repositories(ini)
	info.Checksums = map[string]string{}
	for name, sum := range ini["checksums"] {
		if digits, ok := strings.CutPrefix(sum, "sha256:"); ok {
			info.Checksums[name] = strings.ToLower(digits)
		}
	}
	return info, nil
}

// repositories are those of the tree's variants, as Anaconda takes them since EL8: BaseOS and AppStream.
func repositories(ini map[string]map[string]string) (list []string) {
	for section, keys := range ini {
		if name := path.Clean(keys["repository"]); strings.HasPrefix(section, "variant-") && keys["repository"] != "" && fs.ValidPath(name) && !slices.Contains(list, name) {
			list = append(list, name)
		}
	}
	if len(list) == 0 {
		return []string{"."}
	}
	slices.Sort(list)
	return list
}

// parseINI reads sections of "key = value", as Python's ConfigParser, which writes .treeinfo, defines them,
// but for values that go on on the next line. Keys are lower-cased.
func parseINI(text string) (map[string]map[string]string, error) {
	ini := map[string]map[string]string{}
	var section map[string]string
	number := 0
	for line := range strings.Lines(text) {
		number++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		if line[0] == '[' {
			name, ok := strings.CutSuffix(line[1:], "]")
			if !ok {
				return nil, fmt.Errorf("line %d: a section without \"]\"", number)
			}
			if section = ini[name]; section == nil {
				section = map[string]string{}
				ini[name] = section
			}
			continue
		}
		at := strings.IndexAny(line, "=:")
		if at <= 0 || section == nil {
			return nil, fmt.Errorf("line %d: neither a section nor \"key = value\"", number)
		}
		section[strings.ToLower(strings.TrimSpace(line[:at]))] = strings.TrimSpace(line[at+1:])
	}
	return ini, nil
}
