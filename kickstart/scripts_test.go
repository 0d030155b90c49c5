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
	require.Equal(t, `{"attempt":3,"kind":"installed","phase":"post","percent":0,"text":"boot order: UEFI PXEv4 is first"}`+"\n", s.read("curl.body"))
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
	disks = "sr0 1073741312 rom 1 0\nsda 500" + gb + " disk 0 0\nsdb 32" + gb + " disk 0 0\nsdc 500" + gb + " disk 0 0\nnvme0n1 960" + gb + " disk 0 0\nsdd 16" + gb + " disk 1 0\nsde 8" + gb + " disk 0 1\nsdf 2000" + gb + " disk 0 0\nsdg 500" + gb + " disk 0 0\nzram0 4" + gb + " disk 0 0\n"
)

// pre runs %pre for a choice of the disk.
func (s *sandbox) pre(t *testing.T, r *Renderer, disk string) (out string, status int) {
	in := input("centos-7.9", "knode1")
	in.Machine.Install.Disk = disk
	return s.run(script(t, r, in, "%pre"))
}

// complains checks that %pre erases nothing, and tells the appliance why.
func (s *sandbox) complains(t *testing.T, r *Renderer, disk, complaint string) {
	out, status := s.pre(t, r, disk)
	require.Equal(t, 1, status, out)
	require.Contains(t, out, "rackstrap: "+complaint+"; nothing was erased")
	require.False(t, s.exists("tmp/rackstrap-storage.ks"))
	require.Contains(t, s.read("curl.body"), `"kind":"failed","phase":"pre"`)
	require.Contains(t, s.read("curl.body"), "rackstrap: "+complaint)
}

// chooses checks what %pre writes for Anaconda.
func (s *sandbox) chooses(t *testing.T, r *Renderer, disk, chosen, group string) {
	out, status := s.pre(t, r, disk)
	require.Zero(t, status, out)
	storage := s.read("tmp/rackstrap-storage.ks")
	for _, l := range []string{"ignoredisk --only-use=" + chosen, "clearpart --all --initlabel --drives=" + chosen,
		"part pv.01 --ondisk=" + chosen + " --size=10240 --grow", "volgroup " + group + " pv.01"} {
		require.Contains(t, storage, l+"\n")
	}
	require.Contains(t, storage, " --vgname="+group+" ")
	require.Contains(t, storage, " --boot-drive="+chosen+" ")
	require.NotContains(t, storage, "@")
	require.Empty(t, r.Check([]byte("url --url=http://x/\nnetwork --bootproto=dhcp\n"+storage), "rhel7"))
}

func TestPreChoosesTheDisk(t *testing.T) {
	r := newRenderer(t)
	for rule, c := range map[string]struct{ disks, chosen, complaint string }{
		"":                                {"vda 53" + gb + " disk 0 0\nsr0 0 rom 1 0\n", "vda", ""},
		" ":                               {disks, "", "there are several disks (sda sdb sdc nvme0n1): install.disk says which"},
		"\t":                              {"sdd 16" + gb + " disk 1 0\n", "", "there is no disk"},
		"smallest":                        {disks, "sdb", ""},
		"largest":                         {disks, "nvme0n1", ""},
		">=40G":                           {disks, "", "several disks fit >=40G (sda sdc nvme0n1)"},
		">=40G smallest":                  {disks, "", "several disks fit >=40G smallest (sda sdc)"},
		">500G":                           {disks, "nvme0n1", ""},
		"<500G":                           {disks, "sdb", ""},
		">=1T":                            {disks, "", "no disk fits >=1T"},
		"<=500G largest":                  {disks, "", "several disks fit <=500G largest (sda sdc)"},
		"serial:S3Z9NB0K1":                {disks, "sdc", ""},
		"serial:ATA_SSD_S3Z9NB0K1":        {disks, "sdc", ""},
		"serial:S3Z9NB0K":                 {disks, "", "no disk fits serial:S3Z9NB0K"},
		"serial:TWICE":                    {disks, "", "several disks fit serial:TWICE (sda sdb)"},
		"wwn:0x5000C500A1B2C3D4":          {disks, "sda", ""},
		"wwn:eui.0025388b710116ac":        {disks, "nvme0n1", ""},
		"serial:TWICE largest":            {disks, "sda", ""},
		"serial:REMOVABLE":                {disks, "", "no disk fits serial:REMOVABLE"},
		"largest <=600G serial:S3Z9NB0K1": {disks, "sdc", ""},
		"smallest >1G":                    {"", "", "no disk fits smallest >1G"},

		"sda":                        {disks, "sda", ""},
		"/dev/nvme0n1":               {disks, "nvme0n1", ""},
		"disk/by-id/ata-SSD":         {disks, "sdc", ""},
		"/dev/disk/by-path/pci-0":    {disks, "sdb", ""},
		"sdz":                        {disks, "", "there is no disk sdz"},
		"disk/by-id/ata-GONE":        {disks, "", "there is no disk disk/by-id/ata-GONE"},
		"disk/by-id/dangling":        {disks, "", "there is no disk disk/by-id/dangling"},
		"disk/by-path/pci-0-part-of": {disks, "", "disk/by-path/pci-0-part-of is not a whole disk"},
		"sdd":                        {disks, "", "sdd is removable"},
		"sdf":                        {disks, "", "sdf is on USB"},
		"disk/by-id/usb-STICK":       {disks, "sdd", ""},
		"disk/by-id/usb-DRIVE":       {disks, "sdf", ""},
		"sde":                        {disks, "", "sde is read-only"},
		"disk/by-id/READONLY":        {disks, "", "sde is read-only"},
		"sdg":                        {disks, "", "sdg is part of a firmware RAID"},
		"dm-0":                       {disks, "", "dm-0 is not a whole disk"},
	} {
		t.Run(rule, func(t *testing.T) {
			s := newSandbox(t)
			s.write("disks", c.disks)
			for name, properties := range map[string]string{
				"sda": "DEVNAME=/dev/sda\nID_WWN=0x5000c500a1b2c3d4\nID_SERIAL=TWICE\nID_FS_TYPE=linux_raid_member\n",
				"sdb": "ID_SERIAL_SHORT=TWICE\n", "sdc": "ID_SERIAL=ATA_SSD_S3Z9NB0K1\nID_SERIAL_SHORT=S3Z9NB0K1\n",
				"nvme0n1": "ID_WWN=eui.0025388b710116ac\n", "sdd": "ID_SERIAL=REMOVABLE\nID_BUS=usb\n", "vda": "",
				"sdf": "ID_BUS=usb\n", "sdg": "ID_BUS=ata\nID_FS_TYPE=isw_raid_member\n",
			} {
				s.write("udev/"+name, properties)
				s.write("dev/"+name, "")
			}
			for _, name := range []string{"sde", "sdb1", "dm-0"} {
				s.write("dev/"+name, "")
			}
			for link, to := range map[string]string{"by-id/ata-SSD": "sdc", "by-path/pci-0": "sdb", "by-id/dangling": "sdy/x", "by-path/pci-0-part-of": "sdb1",
				"by-id/usb-STICK": "sdd", "by-id/usb-DRIVE": "sdf", "by-id/READONLY": "sde"} {
				require.NoError(t, os.MkdirAll(filepath.Join(s.root, "dev/disk", filepath.Dir(link)), 0o755))
				require.NoError(t, os.Symlink("../../"+to, filepath.Join(s.root, "dev/disk", link)))
			}
			choice := strings.TrimSpace(rule)
			if c.complaint == "" {
				s.chooses(t, r, choice, c.chosen, "centos_knode1")
				return
			}
			s.complains(t, r, choice, c.complaint)
			if c.disks == disks {
				require.Contains(t, s.read("curl.body"), "; the disks: sda (500 GB), sdb (32 GB), sdc (500 GB), nvme0n1 (960 GB); "+
					"passed over: sdd (16 GB, removable), sde (8 GB, read-only), sdf (2000 GB, on USB), sdg (500 GB, part of a firmware RAID)")
			}
		})
	}
}

// Several paths to a LUN are one disk, and Anaconda gets what multipath makes of them.
func TestPreKnowsPaths(t *testing.T) {
	r := newRenderer(t)
	const twoLUNs = "sda 500" + gb + " disk 0 0\nsdb 500" + gb + " disk 0 0\nsdc 500" + gb + " disk 0 0\nsdd 900" + gb + " disk 0 0\nsde 900" + gb + " disk 0 0\n"
	array := func(t *testing.T) *sandbox {
		s := newSandbox(t)
		s.write("disks", twoLUNs)
		for disk, lun := range map[string]string{"sda": "1", "sdb": "1", "sdc": "1", "sdd": "2", "sde": "2"} {
			s.write("udev/"+disk, "ID_WWN=0x600508b1001c0000\nID_WWN_WITH_EXTENSION=0x600508b1001c0000000000000000000"+lun+"\nID_SERIAL=3600508b"+lun+"\n")
			s.write("dev/"+disk, "")
		}
		return s
	}
	t.Run("started by %pre", func(t *testing.T) {
		s := array(t)
		s.write("multipath", "sda disk\nmpatha mpath\n")
		s.chooses(t, r, "smallest", "mpatha", "centos_knode1")
		require.Contains(t, s.read("calls"), "mpathconf --find_multipaths y --user_friendly_names y --with_multipathd y")
	})
	for _, disk := range []string{"sdb", "serial:3600508b1", "wwn:0x600508b1001c00000000000000000001", "mapper/mpatha"} {
		t.Run("running, "+disk, func(t *testing.T) {
			s := array(t)
			s.write("mapped/dev/sda", "sda disk\nmpatha mpath\nmpatha1 part\n")
			s.write("dev/dm-0", "")
			s.write("sys/block/dm-0/dm/uuid", "mpath-3600508b1\n")
			s.write("sys/block/dm-0/slaves/sda", "")
			s.write("sys/block/dm-0/slaves/sdb", "")
			require.NoError(t, os.MkdirAll(filepath.Join(s.root, "dev/mapper"), 0o755))
			require.NoError(t, os.Symlink("../dm-0", filepath.Join(s.root, "dev/mapper/mpatha")))
			s.chooses(t, r, disk, "mpatha", "centos_knode1")
			require.False(t, s.exists("calls"), "multipath runs already")
		})
	}
	t.Run("none made", func(t *testing.T) {
		array(t).complains(t, r, "smallest", "sda sdb sdc are paths to one disk, of which multipath makes no device")
	})
	t.Run("two LUNs", func(t *testing.T) {
		array(t).complains(t, r, "", "there are several disks (sda sdd): install.disk says which")
	})
}

// The volume group is the machine's own, whatever groups there are on disks that are not touched.
func TestPreNamesTheVolumeGroup(t *testing.T) {
	r := newRenderer(t)
	const three = "sda 500" + gb + " disk 0 0\nsdb 900" + gb + " disk 0 0\nsdc 900" + gb + " disk 0 0\n"
	for name, c := range map[string]struct {
		vgs       map[string]string
		group     string
		complaint string
	}{
		"none":             {nil, "centos_knode1", ""},
		"on the disk":      {map[string]string{"sda": "  centos_knode1 UU-1 0\n"}, "centos_knode1", ""},
		"another's":        {map[string]string{"sdb": "  centos_kmaster UU-1 0\n  centos UU-2 0\n"}, "centos_knode1", ""},
		"an older disk's":  {map[string]string{"sdb": "  centos_knode1 UU-1 0\n"}, "centos_knode1_2", ""},
		"two older disks'": {map[string]string{"sdb": "  centos_knode1 UU-1 0\n", "sdc": "  data UU-2 0\n  centos_knode1_2 UU-3 0\n"}, "centos_knode1_3", ""},
		"a copy":           {map[string]string{"sda": "  centos_knode1 UU-1 0\n", "sdb": "  centos_knode1 UU-1 0\n"}, "centos_knode1_2", ""},
		"a disk gone":      {map[string]string{"sda": "  data UU-1 1\n", "sdb": "  other UU-2 1\n"}, "centos_knode1", ""},
		"over two disks":   {map[string]string{"sda": "  old UU-3 0\n  data UU-1 1\n", "sdc": "  data UU-1 1\n"}, "", "the volume group data is on sda and on sdc, which is not to be touched: remove it (vgremove data), or choose another disk"},
		"over other two":   {map[string]string{"sdb": "  data UU-1 1\n", "sdc": "  data UU-1 1\n"}, "centos_knode1", ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSandbox(t)
			s.write("disks", three)
			for disk, text := range c.vgs {
				s.write("vgs/"+disk, text)
			}
			if c.complaint != "" {
				s.complains(t, r, "smallest", c.complaint)
				return
			}
			s.chooses(t, r, "smallest", "sda", c.group)
		})
	}
}

// A disk that is named is looked for as well, so that its absence is heard of; with and without reports.
func TestEveryDiskIsLookedFor(t *testing.T) {
	r := newRenderer(t)
	for _, disk := range []string{"", "sda", "/dev/disk/by-id/ata-SSD_S3Z9NB0K1", "serial:x", ">=40G smallest"} {
		for _, url := range []string{"", "https://10.10.10.1:8443"} {
			in := input("centos-7.9", "knode1")
			in.Machine.Install.Disk, in.Callback.URL = disk, url
			text, err := r.Render(in)
			require.NoError(t, err)
			require.Contains(t, string(text), "\n%include /tmp/rackstrap-storage.ks\n")
			require.Contains(t, string(text), "\n%pre -")
			require.NotContains(t, string(text), "\nignoredisk", "only %pre knows the disk")
		}
	}
}

// A volume group has a name that LVM takes, and no two machines' groups have the same one.
func TestVolumeGroupsAreTheMachinesOwn(t *testing.T) {
	seen := map[string]bool{}
	for _, machine := range []string{"kmaster", "knode1", "rack-1-node-2", "a", strings.Repeat("x", 63), "1"} {
		name, err := volumeGroup("centos", machine)
		require.NoError(t, err)
		require.Regexp(t, `^[a-zA-Z0-9+_.][a-zA-Z0-9+_.-]{0,126}$`, name)
		require.NotContains(t, name, "-", "it would be doubled in /dev/mapper")
		require.False(t, seen[name])
		seen[name] = true
	}
	_, err := volumeGroup("centos", `a\`)
	require.Error(t, err)
}
