package inventory

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// prepared is the good configuration with every key that says how the installed system is prepared.
func prepared(t testing.TB) string {
	text := edit(t, good, "  local_boot: auto\n", `  local_boot: auto
  kernel: lt
  selinux: enforcing
  docker: false
  kdump: true
  sandbox_image: registry.lab:5000/pause:3.9
  registry_mirrors:
    docker.io: [http://mirror.lab:5000]
    ghcr.io: [https://a.lab, https://b.lab/x]
  proxy: http://user:topsecret@proxy.lab:3128
  boot_args: [quiet]
  extra_packages: [tmux, glibc.i686]
  post_scripts: ["#!/bin/sh\necho topsecret\n"]
  timeout: 90m
  stall: 10m
  confirm: control-plane
`)
	return edit(t, text, "      via: appliance\n", "      via: appliance\n      gpgkey: file:///etc/KEY http://mirror.lab/KEY\n")
}

func TestPreparedHasEveryKey(t *testing.T) {
	text := prepared(t)
	for _, path := range allPaths(reflect.TypeFor[rawInstall](), "") {
		key := path[strings.LastIndex(path, ".")+1:]
		require.Regexp(t, `(?m)[\s{]`+regexp.QuoteMeta(key)+`:`, text, path)
	}
	c, err := parse(text)
	require.NoError(t, err)
	want := c.Install
	want.Kernel, want.SELinux, want.Docker, want.SandboxImage = "lt", "enforcing", false, "registry.lab:5000/pause:3.9"
	want.RegistryMirrors = map[string][]string{"docker.io": {"http://mirror.lab:5000"}, "ghcr.io": {"https://a.lab", "https://b.lab/x"}}
	want.Proxy, want.BootArgs, want.ExtraPackages = "http://user:topsecret@proxy.lab:3128", []string{"quiet"}, []string{"tmux", "glibc.i686"}
	want.PostScripts = []Script{{Name: "post_scripts[0]", Text: "#!/bin/sh\necho topsecret\n"}}
	want.Kdump, want.Timeout, want.Stall = true, 90*time.Minute, 10*time.Minute
	require.Equal(t, want, c.Install)
	require.Equal(t, c.Install, c.Machines[0].Install, "inherited")
	require.Equal(t, "file:///etc/KEY http://mirror.lab/KEY", c.Install.Repos["docker-ce"].GPGKey)
}

func TestMachinesArePreparedInTheirOwnWay(t *testing.T) {
	c, err := parse(prepared(t) + `    kernel: stock
    selinux: disabled
    docker: true
    sandbox_image: ""
    registry_mirrors: {ghcr.io: [http://own.lab], quay.io: []}
    proxy: ""
    boot_args: []
    extra_packages: [vim]
    post_scripts: []
    timeout: 2h
    stall: 1m
    disk: ">=40G smallest"
`)
	require.NoError(t, err)
	got := c.Machines[2].Install
	want := c.Install
	want.KernelArgs, want.LocalBoot, want.Disk = []string{"nomodeset"}, LocalExit, ">=40G smallest"
	want.Kernel, want.SELinux, want.Docker, want.SandboxImage, want.Proxy = "stock", "disabled", true, "", ""
	want.RegistryMirrors = map[string][]string{"docker.io": {"http://mirror.lab:5000"}, "ghcr.io": {"http://own.lab"}, "quay.io": {}}
	want.BootArgs, want.ExtraPackages, want.PostScripts = []string{}, []string{"vim"}, nil
	want.Timeout, want.Stall = 2*time.Hour, time.Minute
	require.Equal(t, want, got)
	require.Len(t, c.Install.RegistryMirrors, 2, "the section stays as it is")
}

func TestFaultsOfThePreparation(t *testing.T) {
	const script = `["#!/bin/sh\necho topsecret\n"]`
	for _, row := range []struct{ old, new, want string }{
		{"  kernel: lt", "  kernel: rt", `@: install.kernel: "rt" is not one of stock, lt, ml`},
		{"  selinux: enforcing", "  selinux: off", `@: install.selinux: "off" is not one of enforcing, permissive, disabled`},
		{"  docker: false", "  docker: no", "@: install.docker: must be true or false"},
		{"  kdump: true", "  kdump: 128M", "@: install.kdump: must be true or false"},
		{"registry.lab:5000/pause:3.9", "https://registry.lab/pause", `@: install.sandbox_image: "https://registry.lab/pause" is not an image, such as registry.example.org/pause:3.9`},
		{"    docker.io: [http://mirror.lab:5000]", "    Docker.io: [http://mirror.lab:5000]", "@: install.registry_mirrors.Docker.io: is not the host of a registry in lower case: docker.io, registry.example.org:5000"},
		{"    docker.io: [http://mirror.lab:5000]", "    ../etc: [http://mirror.lab:5000]", "@: install.registry_mirrors.../etc: is not the host of a registry in lower case: docker.io, registry.example.org:5000"},
		{"    docker.io: [http://mirror.lab:5000]", "    docker.io: http://mirror.lab:5000", "@: install.registry_mirrors.docker.io: must be a list of texts: [one, two]"},
		{"https://b.lab/x", "b.lab", "@: install.registry_mirrors.ghcr.io[1]: is not a URL: http://host/path or https://host/path"},
		{"https://b.lab/x", `""`, "@: install.registry_mirrors.ghcr.io[1]: is empty"},
		{"http://user:topsecret@proxy.lab:3128", "socks://user:topsecret@proxy.lab", "@: install.proxy: is not a URL: http://host/path or https://host/path"},
		{"http://user:topsecret@proxy.lab:3128", `"http://user:topsecret@proxy.lab:3128\n"`, "@: install.proxy: is not a URL: http://host/path or https://host/path"},
		{"[quiet]", `[quiet, "a b"]`, `@: install.boot_args[1]: "a b" must be one argument, without blanks, quotes and what a boot loader's script would interpret`},
		{"[tmux, glibc.i686]", "[tmux, --nogpgcheck]", `@: install.extra_packages[1]: "--nogpgcheck" is not the name of a package`},
		{"[tmux, glibc.i686]", `["@core"]`, `@: install.extra_packages[0]: "@core" is not the name of a package`},
		{script, `[""]`, "@: install.post_scripts[0]: is empty"},
		{script, `["echo topsecret\n"]`, "@: install.post_scripts[0]: has no interpreter in its first line: #!/bin/bash"},
		{script, `["#!topsecret"]`, "@: install.post_scripts[0]: has no interpreter in its first line: #!/bin/bash"},
		{script, `["#!/bin/sh\r\necho topsecret\r\n"]`, "@: install.post_scripts[0]: has the line ends of DOS"},
		{script, `["#!/bin/sh\necho \u2028topsecret\n"]`, "@: install.post_scripts[0]: holds a control character"},
		{script, `["/srv/\ttopsecret"]`, "@: install.post_scripts[0]: is neither the path of a file nor a script that begins with #!/bin/bash"},
		{script, "[" + `"#!/bin/sh\n` + strings.Repeat("x", maxScript) + `"]`, "@: install.post_scripts[0]: is larger than 64 KiB"},
		{"  timeout: 90m", "  timeout: 30s", "@: install.timeout: 30s is too short: at least 1m0s"},
		{"  stall: 10m", "  stall: 10", `@: install.stall: "10" is not a time with its unit: 90s, 30m, 12h`},
		{"file:///etc/KEY", "ftp://mirror.lab/KEY", "@: install.repos.docker-ce.gpgkey: is not a URL: http://host/path or https://host/path"},
		{"file:///etc/KEY", "/srv/KEY", "@: install.repos.docker-ce.gpgkey: is not a URL: http://host/path or https://host/path"},
		{"file:///etc/KEY http://mirror.lab/KEY", "/srv/KEY /srv/KEY2", "@: install.repos.docker-ce.gpgkey: is neither none, nor the URL of a key, nor one file"},
		{"file:///etc/KEY http://mirror.lab/KEY", "' '", "@: install.repos.docker-ce.gpgkey: is neither none, nor the URL of a key, nor one file"},
		{"file:///etc/KEY", `file:///etc/$(touch`, ""},
		{"file:///etc/KEY", "file:///etc/`KEY`", "@: install.repos.docker-ce.gpgkey: is not a URL: file:///path, http://host/path or https://host/path"},
		{"  disk: sda", `  disk: "smallest largest"`, `@: install.disk: "smallest largest": says the same thing twice`},
		{"    local_boot: exit", "    kernel: rt\n    boot_args: [a b]\n    post_scripts: ['#!topsecret']\n    stall: never", `@[kernel: rt]machines[2] "knode2": kernel "rt" is not one of stock, lt, ml` + "\n" +
			`@[a b]machines[2] "knode2": boot_args[0] "a b" must be one argument, without blanks, quotes and what a boot loader's script would interpret` + "\n" +
			`@['#!topsecret']machines[2] "knode2": post_scripts[0] has no interpreter in its first line: #!/bin/bash` + "\n" +
			`@[stall: never]machines[2] "knode2": stall "never" is not a time with its unit: 90s, 30m, 12h`},
	} {
		t.Run(strings.TrimSpace(row.new[:min(40, len(row.new))]), func(t *testing.T) {
			if row.want == "" {
				_, err := parse(edit(t, prepared(t), row.old, row.new))
				require.NoError(t, err, "harmless where it stands: package kickstart quotes it")
				return
			}
			checkFault(t, prepared(t), row.old, row.new, row.want)
		})
	}
}

// Scripts in files are read with the configuration, and are a part of it.
func TestScriptsAreRead(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "rackstrap.yaml")
	text := edit(t, prepared(t), `["#!/bin/sh\necho topsecret\n"]`, "[own/motd.sh, /dev/null]") +
		"    post_scripts: ['#!/bin/true', own/motd.sh, absent]\n"
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	_, err := Load(path, nil)
	line := func(part string) string { return path + ":" + strconv.Itoa(lineOf(text, part)) + ": " }
	require.EqualError(t, err, line("[own/motd.sh")+"install.post_scripts[0]: "+dir+"/own/motd.sh: no such file or directory\n"+
		line("[own/motd.sh")+"install.post_scripts[1]: /dev/null: is not a regular file\n"+
		line("['#!")+`machines[2] "knode2": post_scripts[1] `+dir+"/own/motd.sh: no such file or directory\n"+
		line("['#!")+`machines[2] "knode2": post_scripts[2] `+dir+"/absent: no such file or directory")

	require.NoError(t, os.Mkdir(dir+"/own", 0o755))
	write := func(text string) { require.NoError(t, os.WriteFile(dir+"/own/motd.sh", []byte(text), 0o644)) }
	text = edit(t, edit(t, text, ", /dev/null", ""), ", absent", "")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	write("echo topsecret\n")
	_, err = Load(path, nil)
	require.ErrorContains(t, err, dir+"/own/motd.sh: has no interpreter in its first line")
	require.NotContains(t, err.Error(), "topsecret")
	write("#!/bin/sh\n" + strings.Repeat("x", maxScript))
	_, err = Load(path, nil)
	require.ErrorContains(t, err, "is larger than 64 KiB")

	write("#!/bin/sh\necho one\n")
	before, err := Load(path, nil)
	require.NoError(t, err)
	motd := Script{Name: "own/motd.sh", Path: dir + "/own/motd.sh", Text: "#!/bin/sh\necho one\n"}
	require.Equal(t, []Script{motd}, before.Install.PostScripts)
	require.Equal(t, []Script{{Name: "post_scripts[0]", Text: "#!/bin/true"}, motd}, before.Machines[2].Install.PostScripts)
	write("#!/bin/sh\necho two\n")
	after, err := Load(path, nil)
	require.NoError(t, err)
	require.Equal(t, []string{"install.post_scripts: changed", `machines "knode2".post_scripts: changed`}, Diff(before, after))
}

func TestDiffOfThePreparation(t *testing.T) {
	old, err := parse(prepared(t))
	require.NoError(t, err)
	text := prepared(t)
	for _, e := range [][2]string{
		{"topsecret@proxy.lab", "topsecret2@proxy.lab"},
		{"echo topsecret", "echo topsecret2"},
		{"    ghcr.io: [https://a.lab, https://b.lab/x]\n", "    ghcr.io: [https://u:topsecret@a.lab]\n"},
		{"file:///etc/KEY http://mirror.lab/KEY", "none"},
		{"  docker: false", "  docker: true"},
		{"  kdump: true", "  kdump: false"},
		{"  stall: 10m", "  stall: 5m"},
	} {
		text = edit(t, text, e[0], e[1])
	}
	new, err := parse(text)
	require.NoError(t, err)
	changes := Diff(old, new)
	require.Equal(t, []string{
		"install.repos.docker-ce: changed",
		"install.docker: false -> true",
		"install.kdump: true -> false",
		"install.registry_mirrors.ghcr.io: https://a.lab https://b.lab/x -> https://u:xxxxx@a.lab",
		"install.proxy: changed",
		"install.post_scripts: changed",
		"install.stall: 10m0s -> 5m0s",
	}, changes)
	require.NotContains(t, strings.Join(changes, "\n"), "topsecret")
}

// A key of this host is in the kickstart: the machines need not fetch it from anywhere.
func TestKeysAreRead(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "rackstrap.yaml")
	text := edit(t, prepared(t), "file:///etc/KEY http://mirror.lab/KEY", "own.asc")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	_, err := Load(path, nil)
	require.EqualError(t, err, path+":"+strconv.Itoa(lineOf(text, "own.asc"))+": install.repos.docker-ce.gpgkey: "+dir+"/own.asc: no such file or directory")
	require.NoError(t, os.WriteFile(dir+"/own.asc", []byte("binary\x00"), 0o644))
	_, err = Load(path, nil)
	require.ErrorContains(t, err, dir+"/own.asc: is not a public key in ASCII armour")
	require.NoError(t, os.WriteFile(dir+"/own.asc", []byte(keyBegins+"\r\n\r\nabc\r\n"), 0o644))
	c, err := Load(path, nil)
	require.NoError(t, err)
	want := Repo{URL: "http://mirror.lab/docker/", Via: ViaAppliance, GPGKey: dir + "/own.asc", Key: keyBegins + "\n\nabc\n"}
	require.Equal(t, want, c.Install.Repos["docker-ce"])
	require.Equal(t, want, c.Machines[0].Install.Repos["docker-ce"])
	require.NoError(t, os.WriteFile(dir+"/own.asc", []byte(keyBegins+"\nother\n"), 0o644))
	other, err := Load(path, nil)
	require.NoError(t, err)
	require.Equal(t, []string{"install.repos.docker-ce: changed"}, Diff(c, other))
}
