package kickstart

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	shell "mvdan.cc/sh/v3/syntax"
)

// The programs that scripts may call, by the package that brings them. Anaconda's second stage is a system of
// its own from which lorax removes much: what stands here was read in lorax's runtime-install.tmpl and
// runtime-cleanup.tmpl (branches rhel7-branch and rhel9-branch), of the packages' files only what is left.
var (
	everywhere = []string{
		// coreutils, but for [, base64, chcon, cksum, comm, expand, factor, fold, groups, install, join, link, mkfifo,
		// nice, nl, nohup, nproc, pathchk, pr, printenv, printf, ptx, runcon, sha224sum, sha384sum, sha512sum, shuf,
		// stdbuf, stty, su, sum, test, timeout, truncate, tsort, unexpand, unlink, users, who, whoami and yes
		"basename", "cat", "chgrp", "chmod", "chown", "chroot", "cp", "cut", "date", "dd", "df", "dirname", "du", "env", "expr",
		"head", "id", "ln", "ls", "md5sum", "mkdir", "mknod", "mktemp", "mv", "od", "paste", "readlink", "realpath", "rm", "rmdir",
		"seq", "sha1sum", "sha256sum", "sleep", "sort", "split", "sync", "tac", "tail", "tee", "touch", "tr", "tty", "uname", "uniq", "wc",
		// util-linux, --allbut a list; so there is neither setsid nor nsenter nor taskset
		"dmesg", "getopt", "lsblk", "more", "mount", "umount", "mountpoint", "agetty", "blkid", "blockdev", "clock", "fdisk",
		"fsck", "hwclock", "losetup", "mkswap", "sfdisk", "swapoff", "swapon", "wipefs", "partx", "logger", "hexdump", "flock",
		// systemd, systemd-sysv
		"systemctl", "journalctl", "udevadm", "reboot", "poweroff", "halt", "shutdown",
		// of their own names, or nearly
		"bash", "sh", "grep", "egrep", "fgrep", "sed", "awk", "gawk", "find", "xargs", "curl", "tar", "gzip", "gunzip", "zcat", "xz", "ip", "rpm",
		"modprobe", "lsmod", "rmmod", "depmod", "efibootmgr", "ethtool", "chronyd", "chronyc", "nmcli", "tmux",
		"lvm", "vgs", "pvs", "lvs", "vgchange", "vgscan", "pvscan", "dmsetup", "multipath", "mpathconf", "mdadm", "parted", "sgdisk",
		"smartctl", "hdparm", "lspci", "lsusb", "dmidecode", "ipmitool", "ps", "pgrep", "pkill", "free", "sysctl",
	}
	inStage2 = map[string][]string{
		"rhel7": everywhere,
		"rhel9": slices.Concat(everywhere, []string{"stat", "eject", "findmnt", "lscpu", "setpriv", "hostname", "nvme"}),
	}
	// The installed system is whole: what @core brings, with what it requires.
	inCore = slices.Concat(everywhere, []string{
		"stat", "timeout", "truncate", "nproc", "install", "base64", "comm", "join", "fold", "nl", "printenv", "setsid", "findmnt", "hostname",
		"yum", "grubby", "restorecon", "chcon", "getent", "useradd", "usermod", "gpg", "ssh-keygen",
	})
)

// builtins are bash's own, and need no file.
var builtins = strings.Fields(`. : [ alias bg bind break builtin cd command continue declare dirs disown echo enable eval exec exit
	export false fg getopts hash history jobs kill let local logout mapfile popd printf pushd pwd read readarray readonly return
	set shift shopt source suspend test times trap true type typeset ulimit umask unalias unset wait`)

// prefixes run the word that follows their options.
var prefixes = []string{"command", "builtin", "exec", "env", "xargs", "chroot"}

// ours are programs that the script itself has put there: the agent, and a script of the user's.
var ours = []string{`"$agent"`, "/root/rackstrap-own-script"}

// foreignCommands are the commands of a script that are in no list, each as `line N: name`.
func foreignCommands(t testing.TB, script string, known []string) []string {
	t.Helper()
	file := parseShell(t, script)
	functions := map[string]bool{}
	shell.Walk(file, func(n shell.Node) bool {
		if f, ok := n.(*shell.FuncDecl); ok {
			functions[f.Name.Value] = true
		}
		return true
	})
	var foreign []string
	shell.Walk(file, func(n shell.Node) bool {
		call, ok := n.(*shell.CallExpr)
		if !ok || len(call.Args) == 0 {
			return true
		}
		for _, word := range programs(call.Args) {
			name := word.Lit()
			switch {
			case slices.Contains(ours, printed(word)):
			case name == "":
				foreign = append(foreign, fmt.Sprintf("line %d: %s", word.Pos().Line(), printed(word)))
			case functions[name], slices.Contains(builtins, name), slices.Contains(known, name):
			default:
				foreign = append(foreign, fmt.Sprintf("line %d: %s", word.Pos().Line(), name))
			}
		}
		return true
	})
	return foreign
}

// programs are the words of a call that name programs: the first one, and behind a prefix the next one.
func programs(words []*shell.Word) []*shell.Word {
	list := words[:1]
	if !slices.Contains(prefixes, words[0].Lit()) {
		return list
	}
	for _, w := range words[1:] {
		if lit := w.Lit(); strings.HasPrefix(lit, "-") || strings.Contains(lit, "=") || strings.HasPrefix(lit, "/") {
			continue
		}
		return append(slices.Clone(list), programs([]*shell.Word{w})...)
	}
	return list
}

func parseShell(t testing.TB, script string) *shell.File {
	t.Helper()
	file, err := shell.NewParser(shell.Variant(shell.LangBash)).Parse(strings.NewReader(script), "")
	require.NoError(t, err)
	return file
}

func printed(n shell.Node) string {
	var b strings.Builder
	if err := shell.NewPrinter().Print(&b, n); err != nil {
		return err.Error()
	}
	return b.String()
}

// runsInStage2 tells whether a section is a script that runs in the installer's own system.
func runsInStage2(s Section) bool {
	switch s.Name {
	case "%pre", "%pre-install", "%onerror", "%traceback":
		return true
	case "%post":
		return slices.Contains(s.Args, "--nochroot")
	}
	return false
}

// everyScript calls do with each script of each kickstart that the profiles can render: every case of the
// golden files, and each way to name a disk.
func everyScript(t *testing.T, do func(t *testing.T, syntax string, s Section)) {
	t.Helper()
	r := newRenderer(t)
	for _, profile := range r.Profiles() {
		inputs := map[string]Input{"full": fullInput(profile), "kmaster": input(profile, "kmaster"), "knode1": input(profile, "knode1")}
		for _, disk := range []string{"sda", "disk/by-id/ata-X_1", "serial:S3Z9NB0K1", "wwn:0x5000c500a1b2c3d4", "smallest", ""} {
			in := input(profile, "knode1")
			in.Machine.Install.Disk = disk
			inputs["disk "+disk] = in
		}
		for name, in := range inputs {
			text, err := r.Render(in)
			require.NoError(t, err, name)
			for _, s := range r.Sections(text, r.Syntax(profile)) {
				if strings.HasPrefix(s.Name, "%packages") || s.Name == "%addon" || s.Name == "%anaconda" {
					continue
				}
				t.Run(profile+"/"+name+"/"+s.Name, func(t *testing.T) { do(t, r.Syntax(profile), s) })
			}
		}
	}
}

func TestScriptsCallOnlyWhatIsThere(t *testing.T) {
	everyScript(t, func(t *testing.T, release string, s Section) {
		known := inCore
		if runsInStage2(s) {
			known = inStage2[release]
			require.NotEmpty(t, known, release)
		}
		for _, text := range slices.Concat([]string{s.Body}, innerScripts(t, s.Body)) {
			require.Empty(t, foreignCommands(t, text, known))
		}
	})
}

// innerScripts are the here-documents of a script that are scripts of our own, without their margin. Those of
// the configuration are the user's: they run in the installed system and may need what they have installed.
func innerScripts(t testing.TB, script string) []string {
	t.Helper()
	var list []string
	for _, text := range hereDocuments(t, script) {
		if strings.HasPrefix(text, "#!/bin/bash\n# Written by Rackstrap") {
			list = append(list, text)
		}
	}
	return list
}

// hereDocuments are the texts of a script's here-documents, without their margin.
func hereDocuments(t testing.TB, script string) []string {
	t.Helper()
	var list []string
	shell.Walk(parseShell(t, script), func(n shell.Node) bool {
		if r, ok := n.(*shell.Redirect); ok && r.Hdoc != nil {
			var b strings.Builder
			for _, part := range r.Hdoc.Parts {
				if lit, ok := part.(*shell.Lit); ok {
					b.WriteString(lit.Value)
				}
			}
			lines := strings.Split(b.String(), "\n")
			for i := range lines {
				lines[i] = strings.TrimPrefix(lines[i], "|")
			}
			list = append(list, strings.Join(lines, "\n"))
		}
		return true
	})
	return list
}

// What the walk is there to find.
func TestForeignCommandsAreFound(t *testing.T) {
	for _, c := range []struct{ script, want string }{
		{"setsid bash -c true", "line 1: setsid"},
		{"true\nif x=$(jq . </dev/null); then :; fi", "line 2: jq"},
		{"f() { timeout 3 curl x; }\nf", "line 1: timeout"},
		{"command stat -c %s /x", "line 1: stat"},
		{"env A=b nohup x &", "line 1: nohup"},
		{"curl x | perl -e 1", "line 1: perl"},
		{`"$tool" --version`, `line 1: "$tool"`},
		{"! diff a b || cmp a b", "line 1: diff"},
	} {
		found := foreignCommands(t, c.script, inStage2["rhel7"])
		require.NotEmpty(t, found, c.script)
		require.Equal(t, c.want, found[0])
	}
	require.Empty(t, foreignCommands(t, "f() { :; }\nset -e\nf; [ -e /x ] && echo x | sed s/x/y/", inStage2["rhel7"]))
	require.Empty(t, foreignCommands(t, "stat /", inStage2["rhel9"]), "lorax of EL9 leaves it there")
}

// newerShell are the places of a script that bash 4.2, EL7's, does not understand or understands otherwise.
func newerShell(t testing.TB, script string) []string {
	t.Helper()
	file := parseShell(t, script)
	var found []string
	add := func(n shell.Node, why string) {
		found = append(found, fmt.Sprintf("line %d: %s: %s", n.Pos().Line(), printed(n), why))
	}
	nounset := strings.Contains(script, "set -u") || strings.Contains(script, "set -eu") || strings.Contains(script, "set -Eeu")
	guarded := map[*shell.ParamExp]bool{}
	emptied := map[string]bool{} // arrays that are empty at some time
	shell.Walk(file, func(n shell.Node) bool {
		if a, ok := n.(*shell.Assign); ok && a.Array != nil && len(a.Array.Elems) == 0 {
			emptied[a.Name.Value] = true
		}
		return true
	})
	shell.Walk(file, func(n shell.Node) bool {
		switch n := n.(type) {
		case *shell.ParamExp:
			if n.Param != nil && slices.Contains(newerVariables, n.Param.Value) {
				add(n, "a variable of a newer bash")
			}
			if n.Exp != nil && n.Exp.Op == shell.OtherParamOps {
				add(n, "${name@operator} came with bash 4.4")
			}
			if n.Exp != nil && n.Exp.Op == shell.AlternateUnset && n.Exp.Word != nil {
				shell.Walk(n.Exp.Word, func(inner shell.Node) bool {
					if p, ok := inner.(*shell.ParamExp); ok {
						guarded[p] = true
					}
					return true
				})
			}
			if nounset && !guarded[n] && !n.Length && n.Exp == nil && n.Slice == nil && n.Repl == nil && allElements(n) && emptied[n.Param.Value] {
				add(n, "under set -u bash before 4.4 takes an empty array for unset: write ${a[@]+\"${a[@]}\"} or ${a[*]-}")
			}
		case *shell.DeclClause:
			for _, a := range n.Args {
				if a.Naked && a.Value != nil {
					if o := a.Value.Lit(); strings.HasPrefix(o, "-") && strings.Contains(o, "n") {
						add(n, "references came with bash 4.3")
					}
					if o := a.Value.Lit(); o == "-" || strings.HasPrefix(o, "-") && strings.Contains(o, "I") {
						add(n, "came with bash 4.4 or 5.0")
					}
				}
			}
		case *shell.CallExpr:
			for _, o := range newerOptions {
				if len(n.Args) > 1 && n.Args[0].Lit() == o.command && slices.ContainsFunc(n.Args[1:], func(w *shell.Word) bool {
					return o.short && strings.HasPrefix(w.Lit(), "-") && !strings.HasPrefix(w.Lit(), "--") && strings.Contains(w.Lit(), o.option) || w.Lit() == o.option
				}) {
					add(n, o.since)
				}
			}
		}
		return true
	})
	return found
}

func allElements(p *shell.ParamExp) bool {
	w, ok := p.Index.(*shell.Word)
	return ok && (w.Lit() == "@" || w.Lit() == "*")
}

var newerVariables = []string{"EPOCHSECONDS", "EPOCHREALTIME", "SRANDOM", "BASH_ARGV0", "BASH_LOADABLES_PATH", "BASH_MONOSECONDS", "PS0"}

// newerOptions came after bash 4.2, by bash's own NEWS.
var newerOptions = []struct {
	command, option string
	short           bool
	since           string
}{
	{"wait", "n", true, "wait -n came with bash 4.3"},
	{"wait", "p", true, "wait -p came with bash 5.1"},
	{"mapfile", "d", true, "mapfile -d came with bash 4.4"},
	{"readarray", "d", true, "readarray -d came with bash 4.4"},
	{"unset", "n", true, "references came with bash 4.3"},
	{"shopt", "inherit_errexit", false, "came with bash 4.4"},
	{"shopt", "localvar_inherit", false, "came with bash 5.0"},
	{"shopt", "assoc_expand_once", false, "came with bash 5.0"},
}

func TestScriptsAreBash42(t *testing.T) {
	everyScript(t, func(t *testing.T, _ string, s Section) {
		for _, text := range slices.Concat([]string{s.Body}, innerScripts(t, s.Body)) {
			require.Empty(t, newerShell(t, text))
		}
	})
}

func TestNewerShellIsFound(t *testing.T) {
	for _, script := range []string{
		`echo "${x@Q}"`, `local -n ref=x`, `declare -gn ref=x`, `wait -n`, `mapfile -t -d '' list <x`, `echo "$EPOCHSECONDS"`,
		`shopt -s inherit_errexit`, "set -euo pipefail\na=()\nfor x in \"${a[@]}\"; do :; done", "set -u\na=()\necho \"${a[*]}\"", `f() { local -; }`,
	} {
		require.NotEmpty(t, newerShell(t, script), script)
	}
	for _, script := range []string{
		"set -u\na=(1)\necho \"${a[@]}\"", "set -u\na=()\necho \"${a[*]-}\"", "set -u\na=()\nfor x in ${a[@]+\"${a[@]}\"}; do :; done", `echo "${x,,}" "${x:1:-1}"`, "set -u\necho ${#a[@]}", `printf '%(%F)T' -1`, `wait "$pid"`, `local name=x`,
	} {
		require.Empty(t, newerShell(t, script), script)
	}
}

// directives of unit files that systemd 219, EL7's, knows, as far as this project uses them or may be tempted to. A
// newer one is ignored there with a warning in the log, which nobody reads: look it up in systemd's NEWS before it is
// added.
var directives = map[string][]string{
	"Unit": {"Description", "Documentation", "Wants", "Requires", "After", "Before", "BindsTo", "PartOf", "Conflicts", "DefaultDependencies",
		"ConditionPathExists", "ConditionFileNotEmpty", "ConditionVirtualization", "ConditionKernelCommandLine", "RequiresMountsFor", "OnFailure"},
	"Service": {"Type", "ExecStart", "ExecStartPre", "ExecStartPost", "ExecReload", "ExecStop", "Restart", "RestartSec", "RestartPreventExitStatus",
		"SuccessExitStatus", "RemainAfterExit", "PIDFile", "TimeoutStartSec", "TimeoutStopSec", "StartLimitInterval", "StartLimitBurst", "Environment",
		"EnvironmentFile", "User", "Group", "UMask", "WorkingDirectory", "StandardOutput", "StandardError", "KillMode", "LimitNOFILE", "PrivateTmp", "Nice"},
	"Install": {"WantedBy", "RequiredBy", "Alias", "Also"},
	"Socket":  {"ListenStream", "Accept"},
	"Timer":   {"OnBootSec", "OnUnitActiveSec", "OnCalendar", "Unit", "AccuracySec"},
	"Mount":   {"What", "Where", "Type", "Options"},
	"Path":    {"PathExists", "PathChanged", "Unit"},
}

// values that systemd 219 does not take, by directive.
var newerValues = map[string][]string{
	"Type":           {"exec", "notify-reload"}, // 240, 253
	"StandardOutput": {"append:", "file:", "truncate:"},
	"StandardError":  {"append:", "file:", "truncate:"},
	"ExecStart":      {"+", "!", ":", "-+"}, // 231, 239, 243
	"ExecStartPre":   {"+", "!", ":", "-+"},
	"ExecStartPost":  {"+", "!", ":", "-+"},
}

// newerUnit is what of a text systemd 219 does not know, if the text is a unit file.
func newerUnit(text string) []string {
	var found []string
	section, oneshot := "", false
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		if strings.HasPrefix(line, "[") {
			section = strings.Trim(line, "[]")
			if directives[section] == nil {
				found = append(found, line)
			}
			continue
		}
		key, value, _ := strings.Cut(line, "=")
		if !slices.Contains(directives[section], key) {
			found = append(found, fmt.Sprintf("[%s] %s", section, line))
		}
		for _, prefix := range newerValues[key] {
			if strings.HasPrefix(value, prefix) {
				found = append(found, line)
			}
		}
		oneshot = oneshot || line == "Type=oneshot"
		if oneshot && key == "Restart" { // systemd 244 takes it, with on-failure
			found = append(found, "Type=oneshot with "+line)
		}
	}
	return found
}

func TestUnitsAreOfSystemd219(t *testing.T) {
	units := 0
	everyScript(t, func(t *testing.T, _ string, s Section) {
		for _, text := range hereDocuments(t, s.Body) {
			if first, _, _ := strings.Cut(text, "\n"); first == "[Unit]" || first == "[Service]" {
				units++
				require.Empty(t, newerUnit(text))
			}
		}
	})
	require.NotZero(t, units)
	require.Empty(t, newerUnit("[Service]\nType=simple\nRestart=on-failure\n"))
	for _, text := range []string{
		"[Unit]\nStartLimitIntervalSec=0\n", "[Service]\nDynamicUser=yes\n", "[Service]\nStandardOutput=append:/x\n", "[Service]\nExecStart=+/x\n",
		"[Service]\nType=oneshot\nRestart=on-failure\n", "[Service]\nMemoryMax=1G\n", "[Service]\nType=exec\n",
	} {
		require.NotEmpty(t, newerUnit(text), text)
	}
}
