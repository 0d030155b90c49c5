package kickstart

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"rackstrap/inventory"
)

// Every script of both profiles runs, and what it leaves behind is what the plan prescribes.
func TestPostPreparesTheNode(t *testing.T) {
	r := newRenderer(t)
	for _, profile := range r.Profiles() {
		t.Run(profile, func(t *testing.T) {
			s := newSandbox(t)
			in := input(profile, "knode1")
			in.Machine.Install.SSHAuthorizedKeys = []string{testLogin + " one", testLogin + " it's $HOME `two`"}
			out, status := s.run(script(t, r, in, "%post"))
			require.Zero(t, status, out)
			require.Equal(t, "127.0.0.1 localhost localhost.localdomain localhost4 localhost4.localdomain4\n"+
				"::1 localhost localhost.localdomain localhost6 localhost6.localdomain6\n"+
				"10.10.10.80 kmaster k8s-api.lab\n10.10.10.81 knode1\n10.10.10.82 knode2\n", s.read("etc/hosts"))
			repos := s.read("etc/yum.repos.d/rackstrap.repo")
			require.Contains(t, repos, "exclude=kubelet kubeadm kubectl")
			require.Contains(t, repos, "$basearch")
			require.Contains(t, repos, "repo_gpgcheck=0")
			require.Equal(t, "[own]\n", s.read("etc/yum.repos.d/own.repo"))
			own := map[string]string{"centos-7.9": "fs.may_detach_mounts = 1\n"}[profile]
			require.Equal(t, "net.bridge.bridge-nf-call-iptables = 1\nnet.bridge.bridge-nf-call-ip6tables = 1\nnet.ipv4.ip_forward = 1\nvm.swappiness = 0\n"+own, s.read("etc/sysctl.d/k8s.conf"))
			require.Equal(t, "overlay br_netfilter ip_vs ip_vs_rr ip_vs_wrr ip_vs_sh nf_conntrack_ipv4", strings.Join(strings.Fields(s.read("etc/modules-load.d/k8s.conf")), " "))
			require.Equal(t, "/dev/mapper/centos-root / xfs defaults 0 0\n# /dev/mapper/centos-swap swap swap defaults 0 0 # off for kubelet\n# UUID=1 none\tswap sw 0 0 # off for kubelet\n# swap\n", s.read("etc/fstab"))
			containerd := s.read("etc/containerd/config.toml")
			require.Contains(t, containerd, `sandbox_image = "registry.aliyuncs.com/google_containers/pause:3.9"`)
			require.Contains(t, containerd, "SystemdCgroup = true")
			require.Contains(t, containerd, `config_path = "/etc/containerd/certs.d"`)
			require.NotContains(t, containerd, "|")
			require.Contains(t, s.read("etc/crictl.yaml"), "runtime-endpoint: unix:///run/containerd/containerd.sock\n")
			require.True(t, json.Valid([]byte(s.read("etc/docker/daemon.json"))))
			require.Contains(t, s.read("etc/udev/rules.d/90-flannel.rules"), "tx-checksum-ip-generic off")
			require.Equal(t, testLogin+" one\n"+testLogin+" it's $HOME `two`\n", s.read("root/.ssh/authorized_keys"))
			for file, mode := range map[string]os.FileMode{"root/.ssh": 0o700, "root/.ssh/authorized_keys": 0o600} {
				info, err := os.Stat(filepath.Join(s.root, file))
				require.NoError(t, err)
				require.Equal(t, mode, info.Mode().Perm(), file)
			}
			calls := s.read("calls")
			for _, call := range []string{
				"systemctl enable containerd\n", "systemctl enable docker\n", "systemctl enable kubelet\n",
				"yum --assumeyes install --disableexcludes=kubernetes kubelet-1.28.2 kubeadm-1.28.2 kubectl-1.28.2\n",
				"rpm --query kubeadm-1.28.2\n", "rpm --query docker-ce-26.1.4\n",
			} {
				require.Contains(t, calls, call)
			}
			require.False(t, s.exists(ksScript), "the script holds the token, and would stay in /tmp")
			restored := strings.Index(calls, "restorecon -ir ")
			require.Greater(t, restored, strings.LastIndex(calls, "systemctl enable"), "labels come when all is written")
			for _, dir := range []string{"/boot", "/etc", "/root", "/usr/local", "/var/lib"} {
				require.Contains(t, strings.SplitN(calls[restored:], "\n", 2)[0]+" ", " "+dir+" ")
			}
			require.NotContains(t, calls, "start", "nothing runs in the installer's chroot")
			require.Contains(t, lastLine(calls), "curl", "the report is the last action")
		})
	}
}

func TestPostEmptiesTheVendorsRepositories(t *testing.T) {
	s := newSandbox(t)
	out, status := s.run(script(t, newRenderer(t), input("centos-7.9", "knode1"), "%post"))
	require.Zero(t, status, out)
	require.Empty(t, s.read("etc/yum.repos.d/CentOS-Base.repo"))
}

func TestPostWithEverything(t *testing.T) {
	s := newSandbox(t)
	in := fullInput("centos-7.9")
	in.Machine.Install.PostScripts = []inventory.Script{
		{Name: "greet 'em", Text: "#!/bin/bash\nprintf '%s\\n' \"a  b\" '$x' >/etc/motd\ncat >>/etc/motd <<END\n%end of all\n\ttab\nEND\n"},
		{Name: "second", Text: "#!/bin/sh\necho second >>/etc/motd\n"},
	}
	s.write("etc/sysconfig/kernel", "UPDATEDEFAULT=yes\nDEFAULTKERNEL=kernel\n")
	s.write("lib/modules/5.4.278-1.el7.elrepo.x86_64/kernel/nf_conntrack.ko", "")
	out, status := s.run(script(t, newRenderer(t), in, "%post"))
	require.Zero(t, status, out)
	require.Equal(t, "a  b\n$x\n%end of all\n\ttab\nsecond\n", s.read("etc/motd"))
	require.False(t, s.exists("root/rackstrap-own-script"))
	require.Equal(t, "UPDATEDEFAULT=yes\nDEFAULTKERNEL=kernel-lt\n", s.read("etc/sysconfig/kernel"))
	require.Equal(t, "/boot/vmlinuz-5.4.278-1.el7.elrepo.x86_64\n", s.read("default"))
	require.NotContains(t, s.read("etc/sysctl.d/k8s.conf"), "detach", "of the stock kernel alone")
	require.Equal(t, "nf_conntrack", lastLine(s.read("etc/modules-load.d/k8s.conf")), "the kernel that was installed decides")
	require.Equal(t, "server = \"https://registry-1.docker.io\"\n\n[host.\"https://mirror.example.org\"]\n  capabilities = [\"pull\", \"resolve\"]\n\n[host.\"http://10.10.10.1:5000\"]\n  capabilities = [\"pull\", \"resolve\"]\n",
		s.read("etc/containerd/certs.d/docker.io/hosts.toml"))
	require.Contains(t, s.read("etc/systemd/system/containerd.service.d/proxy.conf"), `Environment="HTTP_PROXY=http://user:p%%40ss@proxy.example.org:3128"`)
	repos := s.read("etc/yum.repos.d/rackstrap.repo")
	require.Contains(t, repos, "baseurl=http://10.10.10.1:8080/repo/kubernetes/\nenabled=1\ngpgcheck=0\nrepo_gpgcheck=0\nproxy=_none_\n")
	require.Contains(t, repos, "[elrepo]")
	require.Contains(t, repos, "proxy=http://user:p%40ss@proxy.example.org:3128\n")
	require.Equal(t, testKey, s.read("etc/pki/rpm-gpg/RPM-GPG-KEY-rackstrap-theirs"))
	require.Contains(t, repos, "gpgcheck=1\ngpgkey=file:///etc/pki/rpm-gpg/RPM-GPG-KEY-rackstrap-theirs\n")
	require.Contains(t, s.read("calls"), "rpm --query tmux\nrpm --query vim-enhanced\n")
}

// yum of EL7 says 0 although a package is missing.
func TestPostFailsOnAMissingPackage(t *testing.T) {
	s := newSandbox(t)
	s.write("missing", "kubeadm-1.28.2")
	out, status := s.run(script(t, newRenderer(t), input("centos-7.9", "knode1"), "%post"))
	require.NotZero(t, status)
	require.Contains(t, out, "package kubeadm-1.28.2 is not installed")
	require.Contains(t, out, `rackstrap: failed at: rpm --query "$package" (status 1)`)
	require.Contains(t, s.read("curl.body"), `"kind":"failed","phase":"post"`)
	require.Contains(t, s.read("curl.body"), `package kubeadm-1.28.2 is not installed\nrackstrap: failed at: rpm`)
	require.Equal(t, 1, strings.Count(s.read("calls"), "event.json"), "what failed is not reported as installed")
}

func TestReport(t *testing.T) {
	r := newRenderer(t)
	s := newSandbox(t)
	s.write("refuse", "3")
	out, status := s.run(script(t, r, input("centos-7.9", "knode1"), "%post"))
	require.Zero(t, status, out)
	require.Equal(t, `{"attempt":3,"kind":"installed","phase":"post","percent":0,"text":"the system is on its disk"}`+"\n", s.read("curl.body"))
	require.Equal(t, "600 0\n", s.read("curl.mode"))
	require.Equal(t, testCA, s.read("curl.ca"))
	require.Contains(t, lastLine(s.read("calls")), " https://10.10.10.1:8443/api/v1/nodes/knode1/events")
	require.Contains(t, s.read("curl.conf"), `header = "Authorization: Bearer `+testSecret+`"`)
	require.Equal(t, 4, strings.Count(s.read("calls"), "event.json"), "refused three times, then taken")
	require.NotContains(t, s.read("calls")+out, testSecret, "neither a command line nor the log may hold the token")
	left, err := filepath.Glob(filepath.Join(s.root, "tmp/rackstrap.*"))
	require.NoError(t, err)
	require.Empty(t, left)

	s.write("refuse", "99")
	_, status = s.run(script(t, r, input("centos-7.9", "knode1"), "%post"))
	require.NotZero(t, status, "a machine whose report is not heard would be installed for ever: better to fail")
}

func TestOnError(t *testing.T) {
	r := newRenderer(t)
	for name, c := range map[string]struct{ log, text string }{
		"of an exception": {strings.Repeat("x\n", 30) + "say \"no\" \\ to\ttabs\x07 ü\nlast", "say \"no\" \\ totabs \nlast"},
		"without logs":    {"", ""},
		"long":            {strings.Repeat("y", 9000), strings.Repeat("y", 3999)},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSandbox(t)
			s.write("tmp/anaconda.log", c.log+"\n")
			out, status := s.run(script(t, r, input("centos-7.9", "knode1"), "%onerror"))
			require.Zero(t, status, out)
			e := s.event()
			require.Equal(t, told{3, 0, "failed", "install", e.Text}, e)
			require.True(t, strings.HasSuffix(strings.TrimSuffix(e.Text, "\n"), c.text), "%q", e.Text)
		})
	}
}

const (
	gb    = "000000000"
	disks = "sr0 1073741312 rom 1 0\nsda 500" + gb + " disk 0 0\nsdb 32" + gb + " disk 0 0\nsdc 500" + gb + " disk 0 0\nnvme0n1 960" + gb + " disk 0 0\nsdd 16" + gb + " disk 1 0\nsde 8" + gb + " disk 0 1\nzram0 4" + gb + " disk 0 0\n"
)

func TestPreChoosesTheDisk(t *testing.T) {
	r := newRenderer(t)
	for rule, c := range map[string]struct{ disks, chosen, complaint string }{
		"":                                {"vda 53" + gb + " disk 0 0\nsr0 0 rom 1 0\n", "vda", ""},
		" ":                               {disks, "", "several disks are the only one (sda sdb sdc nvme0n1)"},
		"smallest":                        {disks, "sdb", ""},
		"largest":                         {disks, "nvme0n1", ""},
		">=40G":                           {disks, "", "several disks are >=40G (sda sdc nvme0n1)"},
		">=40G smallest":                  {disks, "", "several disks are >=40G smallest (sda sdc)"},
		">500G":                           {disks, "nvme0n1", ""},
		"<500G":                           {disks, "sdb", ""},
		">=1T":                            {disks, "", "no disk is >=1T"},
		"<=500G largest":                  {disks, "", "several disks are <=500G largest (sda sdc)"},
		"serial:S3Z9NB0K1":                {disks, "sdc", ""},
		"serial:ATA_SSD_S3Z9NB0K1":        {disks, "sdc", ""},
		"serial:S3Z9NB0K":                 {disks, "", "no disk is serial:S3Z9NB0K"},
		"serial:TWICE":                    {disks, "", "several disks are serial:TWICE (sda sdb)"},
		"wwn:0x5000C500A1B2C3D4":          {disks, "sda", ""},
		"wwn:eui.0025388b710116ac":        {disks, "nvme0n1", ""},
		"serial:TWICE largest":            {disks, "sda", ""},
		"serial:REMOVABLE":                {disks, "", "no disk is serial:REMOVABLE"},
		"largest <=600G serial:S3Z9NB0K1": {disks, "sdc", ""},
		"smallest >1G":                    {"", "", "no disk is smallest >1G"},
	} {
		t.Run(rule, func(t *testing.T) {
			s := newSandbox(t)
			s.write("disks", c.disks)
			for name, properties := range map[string]string{
				"sda": "DEVNAME=/dev/sda\nID_WWN=0x5000c500a1b2c3d4\nID_SERIAL=TWICE\n",
				"sdb": "ID_SERIAL_SHORT=TWICE\n", "sdc": "ID_SERIAL=ATA_SSD_S3Z9NB0K1\nID_SERIAL_SHORT=S3Z9NB0K1\n",
				"nvme0n1": "ID_WWN=eui.0025388b710116ac\n", "sdd": "ID_SERIAL=REMOVABLE\n", "vda": "",
			} {
				s.write("udev/"+name, properties)
			}
			in := input("centos-7.9", "knode1")
			in.Machine.Install.Disk = rule
			if rule == "" || rule == " " {
				in.Machine.Install.Disk = ""
			}
			out, status := s.run(script(t, r, in, "%pre"))
			if c.complaint != "" {
				require.Equal(t, 1, status)
				require.Contains(t, out, "rackstrap: "+c.complaint+"; nothing was erased")
				require.False(t, s.exists("tmp/rackstrap-storage.ks"))
				e := s.event()
				require.Equal(t, told{3, 0, "failed", "pre", e.Text}, e)
				require.Contains(t, lastLine(e.Text), "rackstrap: "+c.complaint+"; nothing was erased; the disks: ")
				require.Equal(t, 1, strings.Count(s.read("calls"), "event.json"), "told once")
				return
			}
			require.Zero(t, status, out)
			storage := s.read("tmp/rackstrap-storage.ks")
			require.Contains(t, storage, "ignoredisk --only-use="+c.chosen+"\n")
			require.NotContains(t, storage, "@")
			whole := "url --url=http://x/\nnetwork --bootproto=dhcp\n" + storage
			require.Empty(t, r.Check([]byte(whole), "rhel7"))
		})
	}
}

// A disk that is named is at the top level; %pre is there for its reports, and for what it leaves running.
func TestNamedDiskIsAtTheTop(t *testing.T) {
	r := newRenderer(t)
	in := input("centos-7.9", "knode1")
	in.Machine.Install.Disk = "/dev/disk/by-id/ata-SSD_S3Z9NB0K1"
	text, err := r.Render(in)
	require.NoError(t, err)
	require.Contains(t, string(text), "\nignoredisk --only-use=disk/by-id/ata-SSD_S3Z9NB0K1\n")
	require.NotContains(t, string(text), "\n%include")
	s := newSandbox(t)
	out, status := s.run(script(t, r, in, "%pre"))
	require.Zero(t, status, out)
	require.Equal(t, "the disk is disk/by-id/ata-SSD_S3Z9NB0K1", s.told()[0].Text)
}
