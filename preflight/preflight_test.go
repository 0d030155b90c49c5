package preflight

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/assets"
	"rackstrap/bootplan"
	"rackstrap/internal/repotest"
	"rackstrap/inventory"
	"rackstrap/kickstart"
	"rackstrap/lifecycle"
	"rackstrap/media"
	"rackstrap/repo"
)

// examine looks at a rack of one machine, whose medium is this tree, and whose repositories are on servers.
func examine(t *testing.T, tree repotest.Tree, profile string, loaders map[string][]byte, change func(*Options, *inventory.Config)) Report {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, tree.Write(filepath.Join(dir, "medium")))
	path := filepath.Join(dir, "rackstrap.yaml")
	require.NoError(t, os.WriteFile(path, []byte(`server: {interface: eth1, address: 10.10.10.1}
network: {subnet: 10.10.10.0/24}
media: [{name: m, dir: medium}]
install: {profile: `+profile+`, root_password_hash: "$6$saltsalt$xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"}
machines: [{name: kmaster, mac: "52:54:00:00:00:80", ip: 10.10.10.80, role: control-plane}]
`), 0o600))
	cfg, err := inventory.Load(path, nil)
	require.NoError(t, err)
	library, err := media.OpenLibrary([]media.Spec{{Name: "m", Dir: filepath.Join(dir, "medium")}})
	require.NoError(t, err)
	t.Cleanup(func() { library.Close() })
	rack, err := lifecycle.New(t.Context(), cfg, lifecycle.Options{Store: lifecycle.NewMemoryStore(), Log: slog.New(slog.DiscardHandler), Now: time.Now})
	require.NoError(t, err)
	renderer, err := kickstart.New(assets.Profiles())
	require.NoError(t, err)
	o := Options{Rack: rack, Plan: bootplan.New(rack, assets.LoadersFrom(loaders), library), Agents: []string{"amd64"},
		Sources: func(m inventory.Machine) (kickstart.Sources, error) {
			return renderer.Sources(kickstart.Input{Config: cfg, Machine: m, Medium: "http://10.10.10.1/media/m"})
		}}
	if change != nil {
		change(&o, cfg)
	}
	return Examine(t.Context(), o)
}

func goodLoaders() map[string][]byte {
	return map[string][]byte{"undionly.kpxe": []byte("pxe"), "snponly.efi": []byte("MZ")}
}

func TestLoadersAndAgents(t *testing.T) {
	require.Empty(t, examine(t, repotest.Medium(), "centos-7.9", goodLoaders(), nil))
	for name, c := range map[string]struct {
		loader string
		data   []byte
		want   []string
	}{
		"none for BIOS": {"undionly.kpxe", nil, []string{"loaders: none for bios: build with `make`, which embeds them, or name a directory in server.loaders_dir"}},
		"empty":         {"undionly.kpxe", []byte{}, []string{"loaders: undionly.kpxe, for bios: is empty"}},
		"no program": {"snponly.efi", []byte("<html>"), []string{"loaders: snponly.efi, for uefi-x64: is no EFI program",
			"loaders: snponly.efi, for http-x64: is no EFI program"}},
	} {
		loaders := goodLoaders()
		if loaders[c.loader] = c.data; c.data == nil {
			delete(loaders, c.loader)
		}
		require.Equal(t, c.want, examine(t, repotest.Medium(), "centos-7.9", loaders, nil).Faults(), name)
		require.Empty(t, examine(t, repotest.Medium(), "centos-7.9", loaders, func(_ *Options, cfg *inventory.Config) {
			cfg.Network.DHCP.Mode = inventory.DHCPOff
		}), "%s: somebody else offers them", name)
	}
	report := examine(t, repotest.Medium(), "centos-7.9", goodLoaders(), func(o *Options, _ *inventory.Config) { o.Agents = []string{"arm64"} })
	require.Equal(t, []string{"agents: there is none for x86_64, which medium m is for: put it as linux-amd64 into server.agents_dir"}, report.Faults())
}

// EL9's medium has its packages in variants, which .treeinfo names.
func TestVariants(t *testing.T) {
	tree := repotest.BootFiles()
	tree[".treeinfo"] = []byte("[tree]\narch = x86_64\n[stage2]\nmainimage = images/install.img\n[variant-BaseOS]\nrepository = BaseOS\n[variant-AppStream]\nrepository = AppStream\n")
	tree["images/install.img"] = tree["LiveOS/squashfs.img"]
	for dir, packages := range map[string][]string{"BaseOS": {"bash-5-1.x86_64.rpm", "chrony-4-1.x86_64.rpm", "kernel-5-1.x86_64.rpm"}, "AppStream": {"vim-8-1.x86_64.rpm"}} {
		for path, text := range repotest.Make("xz", repotest.RPMs("zstd", packages...)) {
			tree[dir+"/"+path] = text
		}
	}
	require.Empty(t, examine(t, tree, "rocky-9", goodLoaders(), nil))

	broken := maps.Clone(tree)
	delete(broken, "BaseOS/chrony-4-1.x86_64.rpm")
	require.Equal(t, []string{"packages of kmaster: medium m: chrony-4-1.x86_64 is not there"}, examine(t, broken, "rocky-9", goodLoaders(), nil).Faults())
	delete(broken, "AppStream/repodata/repomd.xml")
	require.Equal(t, []string{"medium m: /AppStream has no repodata/repomd.xml: createrepo_c makes it"}, examine(t, broken, "rocky-9", goodLoaders(), nil).Faults())
}

// Of a medium on a server the files that machines boot are looked at there, within the time.
func TestMediumOnAServer(t *testing.T) {
	tree := repotest.Medium()
	var mu sync.Mutex
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		text, ok := tree[strings.TrimPrefix(r.URL.Path, "/os/")]
		mu.Unlock()
		if !ok {
			http.NotFound(w, r)
			return
		}
		w.Write(text)
	}))
	defer server.Close()
	ask := func() (list []string) {
		report := examine(t, repotest.Medium(), "centos-7.9", goodLoaders(), func(o *Options, cfg *inventory.Config) {
			cfg.Media[0] = inventory.Medium{Name: "m", URL: server.URL + "/os/"}
			library, err := media.OpenLibrary(nil)
			require.NoError(t, err)
			o.Plan, o.Servers = bootplan.New(o.Rack, o.Plan.Loaders(), library), 5*time.Second
			o.Fetch.Proxy = func(r *http.Request) (*url.URL, error) {
				if r.URL.Host != strings.TrimPrefix(server.URL, "http://") {
					return nil, errors.New("tests stay on this host")
				}
				return nil, nil
			}
		})
		return append(report.About("medium").Faults(), report.About("medium").Warnings()...)
	}
	require.Empty(t, ask())
	delete(tree, ".treeinfo")
	require.Empty(t, ask(), "by the release's defaults")
	tree["images/pxeboot/vmlinuz"] = tree["images/pxeboot/vmlinuz"][:2000]
	require.Equal(t, []string{"medium m: images/pxeboot/vmlinuz of its server breaks off: it has 2000 bytes of 2560"}, ask())
	delete(tree, "images/pxeboot/vmlinuz")
	tree["images/pxeboot/initrd.img"] = nil
	require.Equal(t, []string{"medium m: images/pxeboot/initrd.img of its server is empty", "medium m: its server does not have images/pxeboot/vmlinuz"}, ask())
	server.Close()
	require.Contains(t, ask()[0], "medium m: was not looked up: ")
}

// What this appliance fetches through is judged by the metadata that it serves.
func TestServedMetadataIsJudged(t *testing.T) {
	x, err := repo.ReadIndex(os.DirFS(writeTree(t, repotest.Make("gz", map[string][]byte{"socat-1-1.x86_64.rpm": nil}))))
	require.NoError(t, err)
	var mu sync.Mutex
	asked := map[string]bool{}
	report := examine(t, repotest.Medium(), "centos-7.9", goodLoaders(), func(o *Options, cfg *inventory.Config) {
		o.Servers = time.Second
		cfg.Machines[0].Install.Repos = map[string]inventory.Repo{}
		for _, name := range []string{"base", "updates", "extras", "docker-ce", "kubernetes"} {
			cfg.Machines[0].Install.Repos[name] = inventory.Repo{URL: "http://127.0.0.1:9/", Via: inventory.ViaAppliance, GPGKey: inventory.NoGPGKey}
		}
		o.Served = func(_ context.Context, name string) (*repo.Index, error) {
			mu.Lock()
			defer mu.Unlock()
			asked[name] = true
			return x, nil
		}
	})
	require.Len(t, asked, 5)
	require.Contains(t, report.Faults(), "packages of kmaster: ethtool is in none of the repositories")
	require.NotContains(t, strings.Join(report.Faults(), "\n"), "socat")
}

func writeTree(t *testing.T, tree repotest.Tree) string {
	dir := t.TempDir()
	require.NoError(t, tree.Write(dir))
	return dir
}

func TestForms(t *testing.T) {
	good := repotest.BootFiles()
	kernel, stage2 := good["images/pxeboot/vmlinuz"], good["LiveOS/squashfs.img"]
	old := bytes.Clone(kernel)
	old[0x1f1] = 0 // means four sectors
	arm := make([]byte, 64)
	copy(arm[56:], "ARM\x64")
	endless := bytes.Clone(kernel)
	binary.LittleEndian.PutUint32(endless[0x1f4:], 1<<32-1)
	for _, c := range []struct {
		form form
		data []byte
		want string // "" for good
	}{
		{kernelX86, kernel, ""}, {kernelX86, append(kernel, 0), ""}, {kernelX86, kernel[:600], "breaks off"}, {kernelX86, old, "breaks off"}, {kernelX86, endless, "breaks off"},
		{kernelX86, nil, "is empty"}, {kernelX86, []byte("MZ"), "is no kernel"}, {kernelX86, arm, "is no kernel"}, {kernelX86, stage2, "is no kernel"},
		{kernelARM, arm, ""}, {kernelARM, []byte("\x1f\x8b\x08"), ""}, {kernelARM, kernel, "is no kernel for aarch64"},
		{squashfs, stage2, ""}, {squashfs, stage2[:4095], "breaks off: it has 4095 bytes of 4096"}, {squashfs, []byte("hsqs"), "is no squashfs"}, {squashfs, kernel, "is no squashfs"},
		{initrd, []byte("070701"), ""}, {initrd, []byte("\x1f\x8b"), ""}, {initrd, []byte("\xfd7zXZ\x00"), ""}, {initrd, []byte("\x28\xb5\x2f\xfd"), ""}, {initrd, []byte("\x02\x21\x4c\x18"), ""},
		{initrd, []byte("0"), "is no initrd"}, {initrd, kernel, "is no initrd"}, {initrd, nil, "is empty"},
		{efiProgram, []byte("MZ"), ""}, {efiProgram, []byte("M"), "is no EFI program"}, {anything, []byte("x"), ""}, {anything, nil, "is empty"},
	} {
		err := whole(bytes.NewReader(c.data), int64(len(c.data)), c.form)
		if c.want == "" {
			require.NoError(t, err, "%s %.20q", c.form.what, c.data)
		} else {
			require.ErrorContains(t, err, c.want, "%s %.20q", c.form.what, c.data)
		}
	}
	require.ErrorContains(t, whole(bytes.NewReader(kernel[:100]), 1000, kernelX86), "cannot be read", "a file that became shorter")
}

// Which metadata a release asks for, and can read, by the names of the files.
func TestUnreadable(t *testing.T) {
	seven := kickstart.Reads{Metadata: []string{"gz", "bz2", "xz"}, Databases: true}
	nine := kickstart.Reads{Metadata: []string{"gz", "bz2", "xz", "zst"}}
	file := func(kind, ending string) repo.MetadataFile {
		f := repo.MetadataFile{Kind: kind, Path: "repodata/" + kind + ending, Packed: "?"}
		if strings.HasSuffix(kind, "_db") {
			f.Database = databaseVersion
		}
		return f
	}
	old := file("primary_db", ".sqlite.bz2")
	old.Database = 9
	hidden := file("primary", ".xml")
	hidden.Packed = "gz"
	for _, c := range []struct {
		files       []repo.MetadataFile
		seven, nine string
	}{
		{[]repo.MetadataFile{file("primary", ".xml.gz"), file("filelists", ".xml.xz"), file("group", ".xml"), file("other", ".xml.zst")}, "", ""},
		{[]repo.MetadataFile{file("primary", ".xml.zst")}, "repodata/primary.xml.zst: ", ""},
		{[]repo.MetadataFile{file("primary", ".xml.zst"), file("primary_db", ".sqlite.xz")}, "", ""},
		{[]repo.MetadataFile{file("primary", ".xml.gz"), file("primary_db", ".sqlite.zst")}, "repodata/primary_db.sqlite.zst: ", ""},
		{[]repo.MetadataFile{file("primary", ".xml.zst"), old}, "repodata/primary.xml.zst: ", ""},
		{[]repo.MetadataFile{file("primary", ".xml.gz"), file("filelists", ".xml.zst")}, "repodata/filelists.xml.zst: ", ""},
		{[]repo.MetadataFile{file("group", ".xml.zst"), file("group_gz", ".xml.gz")}, "", ""},
		{[]repo.MetadataFile{file("primary", ".xml.lz4")}, "repodata/primary.xml.lz4: ", "repodata/primary.xml.lz4: "},
		{[]repo.MetadataFile{hidden}, "repodata/primary.xml: it is compressed as gz", "repodata/primary.xml: it is compressed as gz"},
	} {
		for r, want := range map[*kickstart.Reads]string{&seven: c.seven, &nine: c.nine} {
			got := strings.Join(unreadable(c.files, *r), "\n")
			require.Equal(t, want == "", got == "", "%v: %s", c.files, got)
			require.Contains(t, got, want, fmt.Sprint(c.files))
		}
	}
}
