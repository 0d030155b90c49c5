package installer

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// minimal is the least that installs, with a place for one more line.
const minimal = `lang en_US.UTF-8
rootpw --lock
timezone UTC --isUtc
network --device=52:54:00:00:00:81 --bootproto=static --ip=10.10.10.81 --netmask=255.255.255.0 --hostname=knode1
zerombr
clearpart --all --initlabel --drives=sda
reqpart --add-boot
part pv.01 --ondisk=sda --size=10240 --grow
volgroup centos pv.01
logvol / --vgname=centos --name=root --fstype=xfs --size=8192 --grow
bootloader --location=mbr --append="cgroup.memory=nokmem quiet" --leavebootorder
reboot
%packages
@core
%end
%addon com_redhat_kdump --disable
%end
`

func planOf(t *testing.T, text string) (*plan, error) {
	t.Helper()
	ks, err := parse("ks.cfg", []byte(text), t.TempDir(), false)
	if err != nil {
		return nil, err
	}
	p, err := understand(ks)
	if err != nil {
		return nil, err
	}
	return p, p.check()
}

func TestPlan(t *testing.T) {
	p, err := planOf(t, minimal)
	require.NoError(t, err)
	require.Equal(t, Reboot, p.end)
	require.Equal(t, "knode1", p.hostname)
	require.Equal(t, "10.10.10.81/24", p.networks[0].address.String())
	require.True(t, p.rootpw.locked)
	require.True(t, p.utc && p.zeroMBR && p.addBoot && p.loader.leaveBootOrder)
	require.Equal(t, "cgroup.memory=nokmem quiet", p.loader.args)
	require.Equal(t, []string{"core"}, p.packages.groups)
	require.Equal(t, "root", p.lvs[0].name)
}

// The add-on for dumps reserves memory unless it is told not to.
func TestKdump(t *testing.T) {
	for given, want := range map[string]string{
		"":                            "quiet crashkernel=auto",
		"--enable":                    "quiet crashkernel=auto",
		"--enable --reserve-mb=auto":  "quiet crashkernel=auto",
		"--enable --reserve-mb='128'": "quiet crashkernel=128M",
		"--reserve-mb=128M":           "quiet crashkernel=128M",
		"--disable":                   "quiet",
	} {
		ks, err := parse("ks.cfg", []byte("bootloader --append=quiet\n%addon com_redhat_kdump "+given+"\n%end\n"), "/nonexistent", false)
		require.NoError(t, err)
		p, err := understand(ks)
		require.NoError(t, err)
		require.Equal(t, want, p.loader.args, given)
	}
	ks, err := parse("ks.cfg", []byte("bootloader --append=quiet\n"), "/nonexistent", false)
	require.NoError(t, err)
	p, err := understand(ks)
	require.NoError(t, err)
	require.Equal(t, "quiet crashkernel=auto", p.loader.args, "without a word")
}

// What Anaconda refuses, and what the stand-in cannot do, is refused with its place: nothing is ignored.
func TestWhatIsRefused(t *testing.T) {
	for text, want := range map[string]string{
		"autopart --noswap":                            "ks.cfg:1: autopart: unknown command",
		"%addon com_redhat_dump --disable\n%end":       "ks.cfg:1: com_redhat_dump: Unknown name of the %addon section.",
		"%addon com_redhat_kdump --reserve-mb=x\n%end": "Invalid value x for --reserve-mb",
		"%addon com_redhat_kdump --off\n%end":          "unknown option --off",
		"%addon\n%end":                                 "unknown section",
		"sshkey --username=root x":                     "sshkey: unknown command",
		"reboot --kexec":                               "unknown option --kexec",
		"user --name=joe --sshkey=x":                   "unknown option --sshkey",
		"network --bootproto=query":                    "knows dhcp and static",
		"network --bootproto=static --ip=10.0.0.300 --netmask=255.255.255.0": "not an IPv4 address",
		"network --bootproto=static --ip=10.0.0.3 --netmask=255.0.255.0":     "not a netmask",
		"network --hostname=a;b":                    "not a host name",
		"clearpart --linux":                         "knows --all alone",
		"clearpart --all --drives=../../etc":        "not the name of a disk",
		"ignoredisk --only-use=":                    "names no disk",
		"part / --size=ten":                         "want a number",
		"part /a/../b --size=10":                    "not a mount point",
		"part / --size=10 --fstype=reiserfs":        "stand-in knows xfs",
		"logvol /x --vgname=none --name=x --size=1": "no such volgroup",
		"volgroup x pv.99":                          "no part is called pv.99",
		"selinux --permissive --enforcing":          "exclude each other",
		"firewall --enabled":                        "no firewalld",
		"services --enabled=../../x":                "is not a service",
		"bootloader --append=\"it's\"":              "quotation mark",
		"rootpw":                                    "want one password",
		"eula":                                      "",
		"eula --agreed now":                         "unexpected",
		"url --mirrorlist=http://x":                 "unknown option --mirrorlist",
		"%pre --nochroot\n%end":                     "of %post alone",
		"%sometimes\n%end":                          "unknown section",
		"%end":                                      "without a section",
		"lang \"en":                                 "is not closed",
		"%packages\n--frob\n%end":                   "unknown option --frob",
		"%include /tmp/none.ks":                     "no such file",
		"%include http://x/y":                       "files alone",
		"timezone":                                  "want one time zone",
	} {
		_, err := planOf(t, text+"\n"+minimal)
		if want == "" {
			require.NoError(t, err, text)
			continue
		}
		require.ErrorContains(t, err, want, text)
	}
	for drop, want := range map[string]string{
		"logvol":     "no root file system",
		"bootloader": "no command bootloader",
		"rootpw":     "root's password",
	} {
		var kept []string
		for line := range strings.Lines(minimal) {
			if !strings.HasPrefix(line, drop) {
				kept = append(kept, line)
			}
		}
		_, err := planOf(t, strings.Join(kept, ""))
		require.ErrorContains(t, err, want)
	}
	_, err := planOf(t, "%packages\n@core\n")
	require.ErrorContains(t, err, "ks.cfg:1: section %packages has no %end")
	_, err = planOf(t, minimal+"part /boot --size=100\n")
	require.ErrorContains(t, err, "/boot is to be mounted twice")
}

func TestScriptsAndIncludes(t *testing.T) {
	dir := t.TempDir()
	text := "%pre --interpreter=/bin/bash --erroronfail --log=/tmp/pre.log\n" +
		"echo '%packages' # kept as it is\n  indented\n%end\n" +
		"%include /storage.ks\n%packages\n%include /more\nchrony -postfix\n%end\n%post --nochroot\nx\n%end\n"
	ks, err := parse("ks.cfg", []byte(text), dir, true)
	require.NoError(t, err, "before %pre an include may be missing")
	pre := ks.of("pre")[0]
	require.Equal(t, "echo '%packages' # kept as it is\n  indented\n", pre.text)
	require.Equal(t, "/bin/bash", pre.interpreter)
	require.Equal(t, "/tmp/pre.log", pre.log)
	require.True(t, pre.errorOnFail)

	require.NoError(t, os.WriteFile(filepath.Join(dir, "storage.ks"), []byte("zerombr\n"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "more"), []byte("@core\n"), 0o600))
	ks, err = parse("ks.cfg", []byte(text), dir, false)
	require.NoError(t, err)
	require.Equal(t, "storage.ks:1", filepath.Base(ks.commands[0].place))
	require.Equal(t, []string{"core"}, ks.packages.groups)
	require.Equal(t, []string{"chrony"}, ks.packages.packages)
	require.Equal(t, []string{"postfix"}, ks.packages.excluded)
	require.True(t, ks.of("post")[0].noChroot)

	require.NoError(t, os.WriteFile(filepath.Join(dir, "loop.ks"), []byte("%include /loop.ks\n"), 0o600))
	_, err = parse("ks.cfg", []byte("%include /loop.ks\n"), dir, false)
	require.ErrorContains(t, err, "nested too deep")
}

// Every kickstart that the project renders is understood, with what %pre writes in place of its include.
func TestRenderedKickstarts(t *testing.T) {
	files, err := filepath.Glob("../../kickstart/testdata/*.ks")
	require.NoError(t, err)
	require.Greater(t, len(files), 8)
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		dir := t.TempDir()
		require.NoError(t, os.Mkdir(filepath.Join(dir, "tmp"), 0o755))
		storage := ""
		for line := range strings.Lines(string(text)) {
			if rest, ok := strings.CutPrefix(line, "|"); ok && strings.Contains("ignoredisk zerombr clearpart reqpart part volgroup logvol bootloader", strings.Fields(rest + " -")[0]) {
				storage += strings.NewReplacer("@DISK@", "sda", "@GROUP@", "centos_knode1").Replace(rest)
			}
		}
		require.NoError(t, os.WriteFile(filepath.Join(dir, "tmp", "rackstrap-storage.ks"), []byte(storage), 0o600))
		ks, err := parse(file, text, dir, false)
		require.NoError(t, err)
		p, err := understand(ks)
		require.NoError(t, err)
		require.NoError(t, p.check(), file)
		require.Equal(t, Reboot, p.end)
		require.Equal(t, []string{"sda"}, p.onlyUse)
		require.NotEmpty(t, ks.of("post"))
	}
}

// FuzzParse: whatever %pre writes, or a wrong server serves, ends in an error.
func FuzzParse(f *testing.F) {
	f.Add(minimal)
	f.Add("%pre\n%end\n%packages\n@\n")
	f.Add("network --ip=\nuser --name\n")
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Contains(text, "%include") {
			return // would read this host's files
		}
		ks, err := parse("ks.cfg", []byte(text), "/nonexistent", false)
		if err != nil {
			return
		}
		if p, err := understand(ks); err == nil {
			p.check()
		}
	})
}

func TestGrow(t *testing.T) {
	list := []*sizes{{size: 1024}, {size: 100, grow: true, max: 150}, {size: 100, grow: true}}
	require.NoError(t, grow(list, 2000))
	require.Equal(t, 1024, list[0].size)
	require.Equal(t, 150, list[1].size)
	require.Equal(t, 826, list[2].size)
	require.ErrorContains(t, grow([]*sizes{{size: 11}}, 10), "1 MiB are missing")
	odd := []*sizes{{size: 1, grow: true}, {size: 1, grow: true}, {size: 1, grow: true}}
	require.NoError(t, grow(odd, 10))
	require.Equal(t, 10, odd[0].size+odd[1].size+odd[2].size)
}
