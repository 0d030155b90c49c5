package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"rackstrap/inventory"
	"rackstrap/lab"
	"rackstrap/lab/kube"
)

// labISO is the lab's own image, in its state directory.
const labISO = "lab.iso"

// labFlags are shared by the lab's commands.
type labFlags struct {
	name     string
	stateDir string
}

// dataDir is where the lab's appliance keeps its state.
func (f *labFlags) dataDir() string { return filepath.Join(f.stateDir, "data") }

func (f *labFlags) open() *lab.Lab {
	return lab.New(lab.Spec{Name: f.name, StateDir: f.stateDir}, newLogger(slog.LevelWarn, false))
}

func (a *app) labCommand() *cobra.Command {
	flags := &labFlags{}
	cmd := &cobra.Command{Use: "lab", Short: "Rehearse a rack with QEMU machines on this host (needs root)", Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.PersistentFlags().StringVar(&flags.name, "name", "rackstrap", "`NAME` of the lab: its network namespace")
	cmd.PersistentFlags().StringVar(&flags.stateDir, "state", "", "`DIR` for disks and logs (default /var/lib/rackstrap-lab/NAME)")
	cmd.PersistentPreRun = func(*cobra.Command, []string) {
		if flags.stateDir == "" {
			flags.stateDir = filepath.Join("/var/lib/rackstrap-lab", flags.name)
		}
	}
	cmd.AddCommand(a.labUpCommand(flags), labStatusCommand(flags), labConsoleCommand(flags), labScreenshotCommand(flags),
		labPowerCommand(flags), labExecCommand(flags), labPlantCommand(flags), labSSHCommand(flags), labKubernetesCommand(),
		labDownCommand(flags))
	return cmd
}

// labUp is how a virtual rack is put up.
type labUp struct {
	*labFlags
	system   string // root file system of namespace machines
	iso      string
	bootOnly bool
	firmware []string
	twoNICs  []string // machines with a second NIC
	off      bool
	wait     time.Duration
	out      io.Writer
}

func (a *app) labUpCommand(flags *labFlags) *cobra.Command {
	up := &labUp{labFlags: flags}
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Put up the rack of the configuration (or of the embedded default) and power it on",
		Args:  args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if up.off && up.wait > 0 {
				return &usageError{errors.New("--off and --wait exclude each other: there is nothing to wait for")}
			}
			up.out = cmd.OutOrStdout()
			text, err := a.labSource()
			if err != nil {
				return err
			}
			return up.run(cmd.Context(), text)
		},
	}
	cmd.Flags().StringVar(&up.iso, "iso", "", "install from this `FILE` instead of the lab's own image")
	cmd.Flags().BoolVar(&up.bootOnly, "boot-only", false, "use a small image that ends where the installer would begin")
	cmd.Flags().StringSliceVar(&up.firmware, "firmware", []string{"bios", "uefi", "uefi-http"},
		"firmware of the machines in their order, the list begins anew at its end; or NAME=FIRMWARE\n"+
			"(bios, uefi, uefi-http, uefi-secureboot; namespace: Linux namespaces instead of QEMU)")
	cmd.Flags().StringSliceVar(&up.twoNICs, "second-nic", nil, "`MACHINES` that have another NIC, found before the one that boots, with nobody at its end")
	cmd.Flags().BoolVar(&up.off, "off", false, "leave the machines powered off")
	cmd.Flags().DurationVar(&up.wait, "wait", 0, "wait so long for every machine to be installed and to call home from its disk\n"+
		"(with --boot-only: to reach the installer), and tell the timeline")
	return cmd
}

// labSource is the text of the configuration that is rehearsed.
func (a *app) labSource() ([]byte, error) {
	path, err := inventory.Find(a.configPath)
	if err == nil {
		return os.ReadFile(path)
	}
	if a.configPath != "" {
		return nil, &configError{err}
	}
	return inventory.Reference(), nil
}

func (up *labUp) run(ctx context.Context, source []byte) error {
	cfg, path, err := up.configure(ctx, source)
	if err != nil {
		return err
	}
	machines, err := up.machines(cfg)
	if err != nil {
		return err
	}
	subnet := cfg.Network.Prefix
	rack := lab.New(lab.Spec{Name: up.name, StateDir: up.stateDir, Bridge: cfg.Server.Interface,
		Gateway: netip.PrefixFrom(cfg.Server.Address, subnet.Bits()), Machines: machines, System: up.system}, newLogger(slog.LevelWarn, false))
	if err := rack.Up(ctx); err != nil {
		return err
	}
	fmt.Fprintf(up.out, "rack %s: namespace %s, bridge %s, %s\n", up.name, up.name, cfg.Server.Interface, cfg.Server.Address)
	if err := up.serve(ctx, rack, path); err != nil {
		return err
	}
	fmt.Fprintf(up.out, "appliance is ready; try: rackstrap --config %s status\n", path)
	if up.off {
		return nil
	}
	start := time.Now()
	for _, m := range machines {
		if err := rack.PowerOn(ctx, m.Name); err != nil && !errors.Is(err, lab.ErrRunning) { // `lab up` again
			return err
		}
		fmt.Fprintf(up.out, "%-10s powered on: %s, %s\n", m.Name, m.Firmware, m.MAC)
	}
	if up.wait == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, up.wait)
	defer cancel()
	return up.follow(ctx, rack, cfg, machines, start)
}

// configure writes the configuration of the rehearsal: the user's, but for the state directory, the medium
// and a serial console.
func (up *labUp) configure(ctx context.Context, source []byte) (*inventory.Config, string, error) {
	if err := os.MkdirAll(up.stateDir, 0o700); err != nil {
		return nil, "", err
	}
	iso, system, err := up.medium(ctx)
	if err != nil {
		return nil, "", err
	}
	if system != nil {
		up.system = system.Tree
	}
	file := map[string]any{}
	if err := yaml.Unmarshal(source, &file); err != nil {
		return nil, "", &configError{err}
	}
	name := "centos-7.9"
	if media, ok := file["media"].([]any); ok && len(media) > 0 {
		if first, ok := media[0].(map[string]any); ok && first["name"] != nil {
			name = fmt.Sprint(first["name"])
		}
	}
	file["media"] = []any{map[string]any{"name": name, "iso": iso}}
	server := section(file, "server")
	server["data_dir"] = up.dataDir()
	if server["address"] == nil {
		if prefix, err := netip.ParsePrefix(fmt.Sprint(section(file, "network")["subnet"])); err == nil {
			server["address"] = prefix.Addr().Next().String()
		}
	}
	install := section(file, "install")
	args, _ := install["kernel_args"].([]any)
	install["kernel_args"] = append(args, "console=ttyS0,115200")
	if system != nil {
		key, err := up.sshKey(ctx)
		if err != nil {
			return nil, "", err
		}
		keys, _ := install["ssh_authorized_keys"].([]any)
		install["ssh_authorized_keys"] = append(keys, key)
		// The repositories of the lab take the place of those on the internet, which machines in here do not reach.
		repos := section(install, "repos")
		for _, name := range lab.RepositoryNames() {
			repos[name] = map[string]any{"dir": filepath.Join(system.Repositories, name), "gpgkey": inventory.NoGPGKey}
		}
		if err := up.cluster(ctx, file); err != nil {
			return nil, "", err
		}
	}
	if list, ok := file["machines"].([]any); ok {
		for i, entry := range list {
			if m, ok := entry.(map[string]any); ok && up.firmwareOf(i, fmt.Sprint(m["name"])) == string(lab.UEFISecureBoot) {
				m["secure_boot"] = true
			}
		}
	}
	text, err := yaml.Marshal(file)
	if err != nil {
		return nil, "", err
	}
	path := filepath.Join(up.stateDir, "rackstrap.yaml")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return nil, "", err
	}
	cfg, err := inventory.Load(path, nil)
	if err != nil {
		return nil, "", &configError{err}
	}
	return cfg, path, nil
}

// cluster has machines take what they would otherwise fetch from the internet from the appliance.
func (up *labUp) cluster(ctx context.Context, file map[string]any) error {
	cluster, network := section(file, "cluster"), section(file, "network")
	appliance := section(file, "server")["address"]
	if network["gateway"] != nil { // the lab answers there that nothing else can be reached
		network["gateway"] = appliance
	}
	network["ntp"] = []any{appliance}
	if cluster["images"] != nil {
		return nil
	}
	repository, ok := cluster["image_repository"].(string)
	if !ok {
		repository = defaultRepository
	}
	dir, _, err := kube.Images(ctx, "", repository, newLogger(slog.LevelInfo, false))
	if err != nil {
		return err
	}
	cluster["images"], cluster["verify_image"] = dir, kube.WebImage
	cluster["flannel_image"], cluster["flannel_cni_image"] = kube.FlannelImage, kube.FlannelCNIImage
	return nil
}

// medium is the image that machines install from. system is what the lab's own image installs; nil for others.
func (up *labUp) medium(ctx context.Context) (iso string, system *lab.System, err error) {
	if up.iso != "" {
		iso, err = filepath.Abs(up.iso)
		return iso, nil, err
	}
	iso, err = filepath.Abs(filepath.Join(up.stateDir, labISO))
	if err != nil {
		return "", nil, err
	}
	if up.bootOnly {
		return iso, nil, lab.BuildISO(ctx, iso, lab.ISOOptions{})
	}
	fmt.Fprintln(up.out, "preparing the lab's system and ISO (the first time takes some minutes)")
	built, err := lab.BuildSystem(ctx, "", newLogger(slog.LevelInfo, false))
	if err != nil {
		return "", nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return "", nil, err
	}
	return iso, &built, lab.BuildISO(ctx, iso, lab.ISOOptions{System: &built, Program: self})
}

// section is a map of the file, made if it is not there.
func section(file map[string]any, name string) map[string]any {
	if s, ok := file[name].(map[string]any); ok {
		return s
	}
	s := map[string]any{}
	file[name] = s
	return s
}

// firmwareOf is what the i-th machine of the list has.
func (up *labUp) firmwareOf(i int, name string) string {
	var inOrder []string
	for _, f := range up.firmware {
		if machine, firmware, named := strings.Cut(f, "="); !named {
			inOrder = append(inOrder, f)
		} else if machine == name {
			return firmware
		}
	}
	if len(inOrder) == 0 {
		return string(lab.BIOS)
	}
	return inOrder[i%len(inOrder)]
}

func (up *labUp) machines(cfg *inventory.Config) ([]lab.Machine, error) {
	for _, name := range up.twoNICs {
		if _, ok := cfg.ByName(name); !ok {
			return nil, &usageError{fmt.Errorf("--second-nic %s: no such machine", name)}
		}
	}
	var machines []lab.Machine
	for i, m := range cfg.Machines {
		mac := m.MAC
		if mac.IsZero() { // a free slot: QEMU's own range, by its place in the list
			mac = inventory.MAC{0x52, 0x54, 0x00, 0xee, byte(i >> 8), byte(i)}
		}
		firmware := lab.Firmware(up.firmwareOf(i, m.Name))
		if firmware == lab.Namespace && (up.bootOnly || up.iso != "") {
			return nil, &usageError{errors.New("--firmware namespace is for the lab's own image: neither --boot-only nor --iso")}
		}
		if !slices.Contains(lab.Firmwares(), firmware) {
			return nil, &usageError{fmt.Errorf("--firmware %s: one of %v", firmware, lab.Firmwares())}
		}
		spec := lab.Machine{Name: m.Name, MAC: mac.HardwareAddr(), Firmware: firmware, SecondNIC: slices.Contains(up.twoNICs, m.Name)}
		if !up.bootOnly {
			spec.MemoryMiB, spec.CPUs = 3072, 2 // Anaconda wants 2048; a control plane with its installation in memory more
		}
		machines = append(machines, spec)
	}
	return machines, nil
}

var daemonReady = regexp.MustCompile(`(?m)^ready$`)

// serve starts the appliance inside the lab and waits until it is ready. Beside it, one answers whoever asks for
// an IPv6 router.
func (up *labUp) serve(ctx context.Context, rack *lab.Lab, config string) error {
	all, err := rack.Appliances()
	if err != nil {
		return err
	}
	running := func(command string) bool { // `lab up` again
		return slices.ContainsFunc(all, func(a lab.ApplianceStatus) bool { return a.Running && slices.Contains(a.Args, command) })
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if router := labRouterCommand().Name(); !running(router) {
		if _, err := rack.Start(ctx, exec.Command(self, router, rack.Bridge())); err != nil {
			return err
		}
	}
	if !running(lab.MachineCommand) { // the time server; machines themselves are no appliances
		if err := rack.StartNTP(ctx); err != nil {
			return err
		}
	}
	if running("serve") {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	// Not CommandContext: the appliance outlives this command.
	log, err := rack.Start(ctx, exec.Command(self, "--config", config, "serve", "--log-level", "debug"))
	if err != nil {
		return err
	}
	if _, err := rack.WaitLog(ctx, log, daemonReady); err != nil {
		return fmt.Errorf("the appliance did not become ready: %w", err)
	}
	return nil
}

// milestones are the lines of the serial console that make up a boot's timeline, until the installer.
var milestones = []*regexp.Regexp{
	milestone(`kernel command line: .*`),
	milestone(`address .*`),
	milestone(`kickstart .*`),
	milestone(`installer reached`),
}

// installMilestones are those that follow when the lab's own installer installs.
var installMilestones = []*regexp.Regexp{
	milestone(`storage: .*`),
	milestone(`system laid down .*`),
	milestone(`installing \d+ packages`),
	milestone(`running %post`),
	milestone(`installation finished: .*`),
}

// diskBooted is what the installed system shows once systemd has come up.
func diskBooted(name string) *regexp.Regexp {
	return regexp.MustCompile(`(?s)installation finished: .*\n(` + regexp.QuoteMeta(name) + ` login: )`)
}

// milestone is one such line; a failure ends the wait for any of them.
func milestone(line string) *regexp.Regexp {
	return regexp.MustCompile(`rackstrap-lab: (` + line + `|FAILED .*)`)
}

func labStatusCommand(flags *labFlags) *cobra.Command {
	cmd := &cobra.Command{Use: "status", Short: "Show the virtual machines", Args: args(cobra.NoArgs)}
	format := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		machines, err := flags.open().Status()
		if err != nil {
			return err
		}
		return print(cmd, *format, machines, func(w io.Writer) {
			row(w, "NAME", "MAC", "FIRMWARE", "POWER", "UPTIME", "LAST LINE")
			for _, m := range machines {
				power := "off"
				if m.Running {
					power = "on"
				}
				row(w, m.Name, m.MAC, m.Firmware, power, m.Uptime.Round(time.Second), or(m.LastLine, "-"))
			}
		})
	}
	return cmd
}

func labConsoleCommand(flags *labFlags) *cobra.Command {
	return &cobra.Command{Use: "console NAME", Short: "Talk to a machine's serial console (end with Ctrl-C)", Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, given []string) error {
			return flags.open().Console(cmd.Context(), given[0], cmd.InOrStdin(), cmd.OutOrStdout())
		}}
}

func labScreenshotCommand(flags *labFlags) *cobra.Command {
	return &cobra.Command{Use: "screenshot NAME FILE.png", Short: "Save what a machine's screen shows", Args: args(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, given []string) error {
			path, err := filepath.Abs(given[1])
			if err != nil {
				return err
			}
			return flags.open().Screenshot(cmd.Context(), given[0], path)
		}}
}

func labPowerCommand(flags *labFlags) *cobra.Command {
	return &cobra.Command{Use: "power {on|off|reset} NAME", Short: "Switch a machine, as its power button would", Args: args(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, given []string) error {
			rack := flags.open()
			do, ok := map[string]func(context.Context, string) error{"on": rack.PowerOn, "off": rack.PowerOff, "reset": rack.Reset}[given[0]]
			if !ok {
				return &usageError{fmt.Errorf("power %s: on, off or reset", given[0])}
			}
			return do(cmd.Context(), given[1])
		}}
}

func labPlantCommand(flags *labFlags) *cobra.Command {
	return &cobra.Command{Use: "plant NAME", Short: "Lay a small bootable system on a machine's disk, to see local boot", Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, given []string) error {
			return flags.open().PlantDisk(cmd.Context(), given[0])
		}}
}

func labDownCommand(flags *labFlags) *cobra.Command {
	return &cobra.Command{Use: "down", Short: "Power off and remove everything but the logs, also after a crash", Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := flags.open().Down(cmd.Context()); err != nil {
				return err
			}
			// The blank disks of the next rack are to be installed, whatever this one came to.
			// Its image is of no use any more, and large.
			return errors.Join(os.RemoveAll(flags.dataDir()), os.RemoveAll(filepath.Join(flags.stateDir, labISO)),
				os.RemoveAll(filepath.Join(flags.stateDir, sshKeyFile)), os.RemoveAll(filepath.Join(flags.stateDir, sshKeyFile+".pub")))
		}}
}
