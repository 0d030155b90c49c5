package installer

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// loadMedium reads the installation tree as a package repository, as Anaconda does once it runs: .treeinfo again,
// then the metadata. A group or a package that the medium does not have stops an unattended installation, and
// better so before the disk is erased.
func (j *job) loadMedium(ctx context.Context) error {
	base, err := j.treeURL()
	if err != nil {
		return err
	}
	header := http.Header{"User-Agent": {yumName}}
	treeinfo, err := fetchBytes(ctx, j.client, base+"/.treeinfo", header)
	var status *statusError
	if errors.As(err, &status) && status.status == http.StatusNotFound {
		treeinfo, err = fetchBytes(ctx, j.client, base+"/treeinfo", header)
	}
	if err != nil {
		return fmt.Errorf("installation tree: %w", err)
	}
	if j.distribution, err = distributionOf(treeinfo); err != nil {
		return err
	}
	j.medium = &repository{id: "anaconda", base: base, client: j.client}
	if err := j.medium.load(ctx, ""); err != nil {
		return err
	}
	wanted, err := j.choose()
	if err != nil {
		return err
	}
	j.say("%d packages wanted of %d on the medium", len(wanted), len(j.medium.packages))
	return nil
}

// distribution is what a medium holds, as its .treeinfo has it.
type distribution struct {
	product string // CentOS, Rocky Linux
	major   int
}

func distributionOf(treeinfo []byte) (distribution, error) {
	d := distribution{product: iniValue(treeinfo, "family")}
	major, _, _ := strings.Cut(iniValue(treeinfo, "version"), ".")
	var err error
	if d.major, err = strconv.Atoi(major); err != nil || d.product == "" {
		return d, fmt.Errorf("installation tree: .treeinfo names no family and version")
	}
	return d, nil
}

// bootPackages are what Anaconda adds for the boot loader, by firmware.
func (j *job) bootPackages() []string {
	if j.disk == nil {
		return nil
	}
	if j.disk.uefi {
		return []string{"grub2-efi-x64", "shim-x64", "efibootmgr"}
	}
	return []string{"grub2-pc"}
}

// choose is the packages that %packages names, with those that Anaconda always adds.
func (j *job) choose() ([]*pack, error) {
	s := j.plan.packages
	names := []string{"kernel"}
	names = append(names, j.bootPackages()...)
	groups := slices.Clone(s.groups)
	if !s.noCore {
		groups = append([]string{"core"}, groups...)
	}
	var missing []string
	for i := 0; i < len(groups); i++ {
		if env, ok := strings.CutPrefix(groups[i], "^"); ok {
			members, known := j.medium.envs[env]
			if !known {
				missing = append(missing, "@^"+env)
			}
			groups = append(groups, members...)
			continue
		}
		members, known := j.medium.groups[groups[i]]
		if !known {
			missing = append(missing, "@"+groups[i])
		}
		names = append(names, members...)
	}
	names = append(names, s.packages...)
	if len(j.plan.ntp) > 0 {
		names = append(names, "chrony")
	}
	usable := func(p *pack) bool { return !slices.Contains(s.excluded, p.Name) }
	var wanted []*pack
	for _, name := range names {
		p, err := find([]*repository{j.medium}, name, usable)
		if err != nil {
			if !slices.Contains(s.excluded, name) {
				missing = append(missing, name)
			}
			continue
		}
		if !slices.Contains(wanted, p) {
			wanted = append(wanted, p)
		}
	}
	if len(missing) > 0 && !s.ignoreMissing {
		return nil, &missingError{missing}
	}
	return wanted, nil
}

// missingError is what %packages names and the medium does not have.
type missingError struct{ names []string }

func (e *missingError) Error() string { return strings.Join(e.names, ", ") }

// installPackages has rpm install %packages.
func (j *job) installPackages(ctx context.Context) error {
	wanted, err := j.choose()
	if err != nil {
		return err
	}
	usable := func(p *pack) bool { return !slices.Contains(j.plan.packages.excluded, p.Name) }
	all, err := resolve(wanted, []*repository{j.medium}, j.target.provided(ctx), usable)
	if err != nil {
		return err
	}
	var fresh []*pack
	for _, p := range all {
		have, err := j.target.installed(ctx, p.Name)
		if err != nil {
			return err
		}
		if have == nil || p.newer(have) {
			fresh = append(fresh, p)
		}
	}
	j.say("installing %d packages", len(fresh))
	if len(fresh) == 0 {
		return nil
	}
	n := 0
	return j.target.fetchAndInstall(ctx, fresh, func(*pack, string) error { return nil }, func(name string) {
		n++
		j.log.line(severityInfo, "packaging", "Installing %s (%d/%d)", name, n, len(fresh))
	})
}
