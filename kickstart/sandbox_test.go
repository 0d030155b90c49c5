package kickstart

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/internal/testenv"
)

// sandbox is a root directory in which scripts of kickstarts run for real: this system's programs, read-only,
// with stand-ins for those that would need a CentOS around them, in namespaces without a network.
type sandbox struct {
	t    *testing.T
	root string
}

// standIns take the place of the programs of an installer, and of an installed system. All that they are
// asked is appended to /calls.
var standIns = map[string]string{
	"yum":        `echo "yum $*" >>/calls; [ ! -e /slow ] || bash /slow "$@"; case " $* " in *" $(cat /missing 2>/dev/null) "*) echo "No package available." ;; esac`,
	"rpm":        `echo "rpm $*" >>/calls; case "$*" in *--queryformat*) echo /boot/vmlinuz-5.4.278-1.el7.elrepo.x86_64 ;; *) [ "$2" != "$(cat /missing 2>/dev/null)" ] || { echo "package $2 is not installed"; exit 1; } ;; esac`,
	"systemctl":  `echo "systemctl $*" >>/calls`,
	"grubby":     `echo "grubby $*" >>/calls; case $1 in --set-default=*) echo "${1#*=}" >/default ;; *) cat /default ;; esac`,
	"mpathconf":  `echo "mpathconf $*" >>/calls; if [ -e /multipath ]; then mkdir -p /mapped/dev; cp /multipath /mapped/dev/sda; fi`,
	"vgs":        `[[ "$*" =~ \^/dev/([a-z0-9]+)\(p ]] && cat "/vgs/${BASH_REMATCH[1]}"`,
	"restorecon": `echo "restorecon $*" >>/calls; [ ! -e /unlabelled ]`,
	"lsblk":      `case "$*" in *--raw*NAME,TYPE*) cat "/mapped${@: -1}" 2>/dev/null || true ;; *--raw*) cat /disks ;; *) echo "(table)" ;; esac`,
	"tmux":       `case $1 in list-panes) [ -e /console ] && echo 1 || echo 0 ;; *) cat /console ;; esac`,
	"udevadm":    `for a; do case $a in --name=/dev/*) cat "/udev/${a#--name=/dev/}" 2>/dev/null ;; esac; done`,
	"sleep":      `[ "$1" != 2 ] || exec /usr/bin/sleep 2; [ "$1" != 11 ] || exec /usr/bin/sleep $([ -e /fast ] && echo 0.01 || echo 11); echo "sleep $*" >>/calls`,
	"curl": `case $* in */installation*) echo ask >>/asked; cat /verdict; exit ;; esac
case $* in *progress*) echo "curl $*" >>/calls.progress ;; *) echo "curl $*" >>/calls ;; esac
refuse=/refuse
while [ $# -gt 0 ]; do
  case $1 in
  --config) stat -c '%a %u' "$2" >/curl.mode; cp "$2" /curl.conf; shift ;;
  --cacert) cp "$2" /curl.ca; shift ;;
  --data-binary)
    case $2 in
    *progress*) cat "${2#@}" >>/progress; refuse=/refuse.progress ;;
    *) cp "${2#@}" /curl.body ;;
    esac
    shift
    ;;
  --output) [ "$2" = /dev/null ] || { cp /agent "$2"; refuse=/refuse.agent; }; shift ;;
  esac
  shift
done
n=$(cat $refuse 2>/dev/null || echo 0)
[ "$n" -eq 0 ] || { echo $((n - 1)) >$refuse; exit 22; }
printf 204`,
}

func newSandbox(t *testing.T) *sandbox {
	t.Helper()
	testenv.NeedRoot(t)
	testenv.NeedTool(t, "unshare", "chroot", "bash", "sed", "mount")
	s := &sandbox{t, t.TempDir()}
	for _, dir := range []string{"usr", "local", "tmp", "dev", "proc", "root", "stand-ins", "udev", "etc/yum.repos.d", "lib/modules/3.10.0-1160.el7.x86_64"} {
		require.NoError(t, os.MkdirAll(filepath.Join(s.root, dir), 0o755))
	}
	for _, link := range []string{"bin", "sbin", "lib64"} {
		require.NoError(t, os.Symlink("usr/"+link, filepath.Join(s.root, link)))
	}
	libraries, err := filepath.Glob("/usr/lib/*-linux-gnu")
	require.NoError(t, err)
	for _, l := range libraries { // /lib itself has to be writable: it holds the kernel's modules
		require.NoError(t, os.Symlink(".."+l, filepath.Join(s.root, "lib", filepath.Base(l))))
	}
	s.write("etc/fstab", "/dev/mapper/centos-root / xfs defaults 0 0\n/dev/mapper/centos-swap swap swap defaults 0 0\nUUID=1 none\tswap sw 0 0\n# swap\n")
	s.write("etc/yum.repos.d/CentOS-Base.repo", "[base]\nmirrorlist=http://gone/\n")
	s.write("etc/yum.repos.d/own.repo", "[own]\n")
	s.write("lib/modules/3.10.0-1160.el7.x86_64/kernel/nf_conntrack_ipv4.ko.xz", "")
	s.write("etc/sysconfig/network-scripts/ifcfg-ens192", "HWADDR=52:54:00:00:00:81\nTYPE=Ethernet\nIPADDR=10.10.10.81\nPREFIX=24\n")
	s.write("dev/null", "")
	s.write("agent", testAgent)
	s.write("verdict", `{"next":"go-on"}200`)
	for name, text := range standIns {
		s.write("stand-ins/"+name, "#!/bin/bash\n"+text+"\n")
		require.NoError(t, os.Chmod(filepath.Join(s.root, "stand-ins", name), 0o755))
	}
	return s
}

func (s *sandbox) write(name, text string) {
	s.t.Helper()
	file := filepath.Join(s.root, name)
	require.NoError(s.t, os.MkdirAll(filepath.Dir(file), 0o755))
	require.NoError(s.t, os.WriteFile(file, []byte(text), 0o644))
}

func (s *sandbox) read(name string) string {
	s.t.Helper()
	text, err := os.ReadFile(filepath.Join(s.root, name))
	require.NoError(s.t, err)
	return string(text)
}

func (s *sandbox) exists(name string) bool {
	_, err := os.Lstat(filepath.Join(s.root, name))
	return err == nil
}

// ksScript is where Anaconda writes a script before it runs it, and leaves it.
const ksScript = "tmp/ks-script-3fGk2p"

// run runs a script and returns what it printed and its exit status.
func (s *sandbox) run(script string) (output string, status int) {
	s.t.Helper()
	s.write(ksScript, script)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--propagation=private", "bash", "-euc", `
mount --bind /usr "$1/usr"
mount -o remount,bind,ro "$1/usr"
mount --bind "$1/local" "$1/usr/local"
mount --bind /dev/null "$1/dev/null"
mount -t proc none "$1/proc"
exec chroot "$1" /usr/bin/env -i PATH=/stand-ins:/usr/bin:/usr/sbin HOME=/root LC_ALL=C.UTF-8 /bin/bash "/$2"`, "sandbox", s.root, ksScript)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.t.Fatalf("the sandbox: %v", err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// script is a section of a kickstart.
func script(t *testing.T, r *Renderer, in Input, section string) string {
	t.Helper()
	text, err := r.Render(in)
	require.NoError(t, err)
	for _, s := range r.Sections(text, r.Syntax(in.Machine.Install.Profile)) {
		if s.Name == section {
			return s.Body
		}
	}
	require.Fail(t, "there is no "+section)
	return ""
}

func lastLine(s string) string {
	list := strings.Split(strings.TrimSpace(s), "\n")
	return list[len(list)-1]
}
