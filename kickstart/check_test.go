package kickstart

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"rackstrap/internal/testenv"
)

// whole is a kickstart around what is tried, so that only that is complained of. It begins in line 3.
func whole(text string) []byte {
	return []byte("url --url=http://10.10.10.1:8080/media/x\nnetwork --bootproto=dhcp\n" + text)
}

func TestCheck(t *testing.T) {
	testenv.NeedTool(t, "bash")
	r := newRenderer(t)
	for name, c := range map[string]struct {
		version, text string
		want          []string // beginnings of the problems; none: it is fine
	}{
		"swap-free shape": {"rhel7", "ignoredisk --only-use=sda\nzerombr\nclearpart --all --initlabel --drives=sda\nreqpart --add-boot\npart pv.01 --ondisk=sda --size=10240 --grow\nvolgroup centos pv.01\nlogvol / --vgname=centos --name=root --fstype=xfs --size=8192 --grow\nbootloader --location=mbr --append=\"cgroup.memory=nokmem\"\nservices --enabled=chronyd,sshd,NetworkManager-wait-online --disabled=firewalld\n", nil},
		"accepted by 7":   {"rhel7", "autopart --nohome\nrepo --name=x --baseurl=http://x/ --install\nnetwork --bindto=mac --device=bootif\ntimezone Asia/Shanghai --ntpservers=a,b\n%pre --erroronfail --log=/tmp/x\n%end\n%post --erroronfail --log=/x --nochroot\n%end\n%onerror\n%end\n", nil},
		"comments":        {"rhel7", "# autopart --noswap\n   \nlang en_US.UTF-8 # --noswap\n", nil},
		"value apart":     {"rhel7", "rootpw --iscrypted $6$x\nlogvol / --name root --vgname 'a b'\n", nil},

		"URLs":         {"rhel7", "repo --name=x --baseurl=http://10.10.10.1:8080/repo/x/\nrepo --name=y --baseurl https://m.lab/$basearch --proxy=p.lab:3128\nliveimg --url=file:///run/x.img\n", nil},
		"no host":      {"rhel7", "repo --name=x --baseurl=http:///x\n", []string{"line 3: repo: --baseurl is not a URL"}},
		"no such port": {"rhel7", "repo --name=x --baseurl=http://m.lab:99999/x\nrepo --name=y --mirrorlist http://m.lab:/x\n", []string{"line 3: repo: --baseurl names a port that there is not", "line 4: repo: --mirrorlist names a port"}},
		"no scheme":    {"rhel7", "repo --name=x --baseurl=m.lab/x --proxy='http://u:secret@p lab'\n", []string{"line 3: repo: --baseurl is not a URL", "line 3: repo: --proxy is not a URL"}},

		"noswap on 7":        {"rhel7", "autopart --noswap", []string{"line 3: autopart has no option --noswap in RHEL 7: it came with RHEL 8"}},
		"noboot on 7":        {"rhel7", "autopart --type=lvm --noboot", []string{"line 3: autopart has no option --noboot in RHEL 7"}},
		"7.9's own":          {"rhel7", "sshkey --username=root \"ssh-rsa A\"\nmount /dev/sda1 /x --reformat=xfs\nreboot --kexec\n", nil},
		"user sshkey on 7":   {"rhel7", `user --name=a --sshkey=b`, []string{"line 3: user has no option --sshkey in RHEL 7: there is no such option"}},
		"timesource on 7":    {"rhel7", `timesource --ntp-server=a`, []string{`line 3: there is no command "timesource" in RHEL 7`}},
		"metalink on 7":      {"rhel7", `url --metalink=http://x/`, []string{"line 3: url has no option --metalink in RHEL 7"}},
		"abbreviations":      {"rhel7", "rootpw --iscr $6$x\nclearpart --dri=sda\nclearpart --lis x", nil},
		"of two options":     {"rhel7", "network --bootproto=dhcp --bond=x", []string{"line 3: network has no option --bond in RHEL 7"}},
		"short options":      {"rhel7", "part / -s 5", []string{"line 3: part has no option -s in RHEL 7"}},
		"sectors on 7":       {"rhel7", "part / --start=1 --end=2", []string{"line 3: part has no option --start in RHEL 7: it came with RHEL 8"}},
		"a value if any":     {"rhel9", "mount /dev/sda1 /x --reformat\nmount --reformat xfs /dev/sda1 /x\nmount --reformat=xfs /dev/sda1 /x", nil},
		"deprecated on 9":    {"rhel9", "timezone UTC --isUtc\n%traceback\n%end\n", []string{"line 3: timezone has no option --isUtc in RHEL 9: use --utc", "line 4: there is no section %traceback in RHEL 9: RHEL 9 only still tolerates it", "line 5: %end"}},
		"add-ons":            {"rhel7", "%addon com_redhat_kdump --enable --reserve-mb='auto'\n%end\n%addon org_fedora_oscap\n  content-type = x\n%end\n", nil},
		"an unknown add-on":  {"rhel9", "%addon com_redhat_dump --disable\n%end\n", []string{`line 3: %addon: there is no add-on "com_redhat_dump" in RHEL 9`}},
		"fadump on 7":        {"rhel7", "%addon com_redhat_kdump --enablefadump\n%end\n", []string{"line 3: %addon com_redhat_kdump has no option --enablefadump in RHEL 7"}},
		"a nameless addon":   {"rhel7", "%addon\n%end\n", []string{"line 3: %addon: an argument is missing"}},
		"weakdeps on 7":      {"rhel7", "%packages --exclude-weakdeps\n@core\n%end\n", []string{"line 3: %packages has no option --exclude-weakdeps in RHEL 7: weak dependencies"}},
		"the same on 9":      {"rhel9", "autopart --noswap --noboot\nsshkey --username=root \"ssh-rsa A\"\ntimesource --ntp-server=a\nurl --metalink=http://x/\nreboot --kexec\n%packages --exclude-weakdeps\n@core\n%end\n", nil},
		"ntpservers on 9":    {"rhel9", "timezone UTC --ntpservers=a", []string{"line 3: timezone has no option --ntpservers in RHEL 9: use timesource"}},
		"install on 9":       {"rhel9", "install", []string{`line 3: there is no command "install" in RHEL 9: it went with RHEL 8`}},
		"unknown version":    {"rhel6", "", []string{`there is no syntax "rhel6"`}},
		"unknown command":    {"rhel7", "swapoff now", []string{`line 3: there is no command "swapoff"`}},
		"shell at top level": {"rhel7", "touch /pwned", []string{`line 3: there is no command "touch"`}},
		"unknown option":     {"rhel7", "lang --quick en_US", []string{"line 3: lang has no option --quick"}},
		"flag with a value":  {"rhel7", "firewall --disabled=yes", []string{"line 3: firewall: option --disabled takes no value"}},
		"no value":           {"rhel7", "part / --fstype --size=1", []string{"line 3: part: option --fstype has no value"}},
		"no value at end":    {"rhel7", "part / --fstype", []string{"line 3: part: option --fstype has no value"}},
		"too many words":     {"rhel7", "lang en_US de_DE", []string{"line 3: lang: too many arguments: 2, at most 1"}},
		"too few words":      {"rhel7", "lang", []string{"line 3: lang: an argument is missing"}},
		"required option":    {"rhel7", "logvol / --name=root", []string{"line 3: logvol needs the option --vgname"}},
		"open quote":         {"rhel7", `rootpw "x`, []string{"line 3: a quotation mark is not closed"}},
		"backslash":          {"rhel7", `rootpw x\`, []string{"line 3: a backslash stands at the end"}},

		"section not closed": {"rhel7", "%packages\n@core\n", []string{"line 3: section %packages is not closed"}},
		"section in section": {"rhel7", "%packages\n@core\n%post\n%end\n", []string{"line 5: section %packages of line 3 is not closed"}},
		"section in script":  {"rhel7", "%post\ncat <<X\n   %pre\nX\n%end\n", []string{"line 5: section %post of line 3 is not closed", "line 6: %pre: syntax", "line 6"}[:1]},
		"end without":        {"rhel7", "%end\n", []string{"line 3: %end without a section"}},
		"end in a heredoc":   {"rhel7", "%post\ncat <<X\n%end\nX\n%end\n", []string{"line 4: %post: ", `line 6: there is no command "X"`, "line 7: %end without a section"}},
		"percent in script":  {"rhel7", "%post\nprintf x\n%foo\n%end\n", nil},
		"unknown section":    {"rhel7", "%firstboot\n%end\n", []string{"line 3: there is no section %firstboot", "line 4: %end without"}},
		"option of section":  {"rhel7", "%post --chroot\n%end\n", []string{"line 3: %post has no option --chroot"}},
		"addon":              {"rhel7", "%addon com_redhat_kdump --disable\n%end\n", nil},

		"packages":         {"rhel7", "%packages --ignoremissing\n@^minimal\n@core --nodefaults\n-kexec-tools\nglibc.i686 # old\n\n%end\n", nil},
		"no package":       {"rhel7", "%packages\nrm -rf /; true\n%end\n", []string{`line 4: "rm -rf /; true" is neither`}},
		"include":          {"rhel7", "%include /tmp/disk.ks\n%pre\necho >/tmp/disk.ks\n%end\n", nil},
		"nobody writes it": {"rhel7", "%include /tmp/disk.ks\n%pre\necho >/tmp/disk.ks2\n%end\n", []string{"line 3: %include /tmp/disk.ks: no %pre script writes it"}},
		"%post is late":    {"rhel7", "%include /tmp/disk.ks\n%post\necho >/tmp/disk.ks\n%end\n", []string{"line 3: %include /tmp/disk.ks: no %pre"}},
		"relative include": {"rhel7", "%include ../x\n", []string{"line 3: %include ../x: not the full path"}},
		"remote include":   {"rhel7", "%include http://x/y\n", []string{"line 3: %include http://x/y: not the full path"}},
		"include nothing":  {"rhel7", "%include\n", []string{"line 3: %include needs one file"}},
		"include in post":  {"rhel7", "%post\n  %include /etc/shadow\n%end\n", []string{"line 4: %include /etc/shadow: no %pre script"}},

		"bash syntax":     {"rhel7", "%post --interpreter=/bin/bash\ntrue\nif true; then\n%end\n", []string{"line 6: %post: syntax error"}},
		"sh by default":   {"rhel7", "%pre\n)\n%end\n", []string{"line 4: %pre: syntax error", "line 4"}},
		"open document":   {"rhel7", "%post\ncat <<END\nx\n%end\n", []string{"line 5: %post: warning: here-document"}},
		"python is not":   {"rhel7", "%post --interpreter /usr/bin/python\nif x:\n  pass\n%end\n", nil},
		"hidden line end": {"rhel7", "lang en_US\u2028%end\n", []string{"line 3: holds a character that ends a line"}},
		"DOS":             {"rhel7", "lang en_US\r\n", []string{"line 3: holds a character that ends a line"}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, p := range r.Check(whole(c.text), c.version) {
				got = append(got, p.String())
			}
			require.Len(t, got, len(c.want), "%q", got)
			for i, want := range c.want {
				require.True(t, strings.HasPrefix(got[i], want), "%q", got[i])
			}
		})
	}
}

func TestCheckWantsSourceAndNetworkAtTheTop(t *testing.T) {
	r := newRenderer(t)
	problems := r.Check([]byte("%include /tmp/x\n%pre\necho 'url --url=http://x/' >/tmp/x\n%end\n"), "rhel7")
	require.Len(t, problems, 2)
	require.Contains(t, problems[0].String(), "no installation source (url) at the top level")
	require.Contains(t, problems[1].String(), "no network at the top level")
	require.Empty(t, r.Check([]byte("cdrom\nnetwork\n"), "rhel7"))
}

func TestCheckNotUTF8(t *testing.T) {
	require.NotEmpty(t, newRenderer(t).Check(whole("# \xff\n"), "rhel7"))
}

func TestEveryRefusalIsOne(t *testing.T) {
	r := newRenderer(t)
	for version, s := range r.syntaxes {
		for what := range s.Refused {
			name, option, _ := strings.Cut(what, " ")
			g := s.Commands[name]
			if g == nil {
				g = s.Sections[name]
			}
			if option == "" {
				require.Nil(t, g, "%s: %s is a command", version, what)
				continue
			}
			require.NotNil(t, g, "%s: %s", version, what)
			require.NotContains(t, g.options, option, "%s: %s is accepted", version, what)
		}
	}
}

func FuzzCheck(f *testing.F) {
	golden, _ := filepath.Glob("testdata/*.ks")
	for _, file := range golden {
		text, err := os.ReadFile(file)
		require.NoError(f, err)
		f.Add(text)
	}
	f.Add(whole("%post --interpreter=/usr/bin/python\n%end\n%include x\n\"\\"))
	r := newRenderer(f)
	f.Fuzz(func(t *testing.T, text []byte) {
		s := r.syntaxes["rhel7"]
		c := &checker{syntax: s} // as Check does, but for bash: a process for each input is too slow
		c.read(text)
		c.includesExist()
		c.dracut()
		lines := strings.Count(string(text), "\n") + 1
		for _, p := range c.problems {
			require.LessOrEqual(t, p.Line, lines)
		}
	})
}
