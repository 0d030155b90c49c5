package installer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"rackstrap/internal/shlex"
)

// Options says what is installed, and where.
type Options struct {
	// KernelArgs is the installer's kernel command line, as /proc/cmdline has it. Required.
	KernelArgs string
	// Root is the directory to install into, which holds the lab's system; "" for a machine with a disk, where
	// the program runs in the installer's own system.
	Root string
	// Handover is where the initrd has left what it fetched (ks.cfg, stage2); machines with a disk alone.
	Handover string
	// Interface is the NIC that boots, and MAC its address, for a Root.
	Interface string
	MAC       net.HardwareAddr
	// Serial is the machine's serial number; default that of the hardware.
	Serial string
	// Program is this program's file, which becomes yum; default os.Executable.
	Program string
	// Console is told each step in a line `rackstrap-lab: …`; default os.Stdout.
	Console io.Writer
}

const (
	sysimage = "/mnt/sysimage" // where Anaconda mounts the system that it installs
	agentID  = "anaconda-Linux 3.10.0-1160.el7.x86_64 x86_64"
	curlName = "curl/7.29.0"
	yumName  = "urlgrabber/3.10 yum/3.4.3"
)

// job is one installation.
type job struct {
	Options
	args         map[string]string // kernel arguments; the last one counts
	lab          system            // the installer's own
	target       system            // the installed one
	plan         *plan
	ks           *kickstart
	text         []byte // of the kickstart
	log          *logs
	client       *http.Client
	disk         *storage // nil for a Root
	medium       *repository
	distribution distribution    // of the medium
	reset        <-chan struct{} // closed when a program of the machine has rebooted it; for a Root

	connections []connection // the network cards' configurations that were written
}

// Run installs. When an installation stops, the machine stands as it would with Anaconda, and Run does not return before
// it is reset, with how that came and the error: Reboot where the machine did it by itself, "" where ctx ended.
func Run(ctx context.Context, o Options) (Outcome, error) {
	if o.Console == nil {
		o.Console = os.Stdout
	}
	if o.Program == "" {
		self, err := os.Executable()
		if err != nil {
			return "", fmt.Errorf("installer: %v", err)
		}
		o.Program = self
	}
	j := &job{Options: o, args: kernelArgs(o.KernelArgs), client: &http.Client{Transport: &http.Transport{Proxy: nil}}}
	type result struct {
		outcome Outcome
		err     error
	}
	done := make(chan result, 1)
	go func() {
		// Mounts are this thread's own, and its children's: it is never unlocked, so it ends with them.
		if o.Root != "" {
			runtime.LockOSThread()
		}
		outcome, err := j.run(ctx)
		done <- result{outcome, err}
	}()
	r := <-done
	return r.outcome, r.err
}

func (j *job) run(ctx context.Context) (Outcome, error) {
	undo, err := j.prepare()
	defer undo()
	if err != nil {
		return "", fmt.Errorf("installer: %w", err)
	}
	defer j.log.close()
	j.log.serve(j.args["inst.syslog"])
	if k, err := j.install(ctx); err != nil {
		j.say("FAILED %s", strings.ReplaceAll(err.Error(), "\n", " | "))
		outcome := j.stopped(ctx, k, err)
		if j.disk != nil {
			j.disk.unmount(context.WithoutCancel(ctx))
		}
		return outcome, fmt.Errorf("installer: %w", err)
	}
	j.say("installation finished: %s", j.plan.end)
	return j.plan.end, nil
}

// install is the order of Anaconda's work.
func (j *job) install(ctx context.Context) (kind, error) {
	for _, step := range []struct {
		do     func(context.Context) error
		failed kind
	}{
		{j.dracut, inDracut}, {j.pre, inKickstart}, {j.readPlan, inKickstart}, {j.loadMedium, inSource}, {j.partition, inStorage},
		{j.layDown, unforeseen}, {j.installPackages, inTransaction}, {j.configure, unforeseen}, {j.bootLoader, inBootLoader},
		{j.post, inPost}, {j.setRoutes, unforeseen}, {j.finish, unforeseen},
	} {
		err := j.injected(step.failed)
		if err == nil {
			err = step.do(ctx)
		}
		var script *scriptError
		var missing *missingError
		switch {
		case err == nil:
			continue
		case errors.As(err, &missing):
			return inSoftware, err
		case errors.As(err, &script) && script.kind == "pre":
			return inPre, err
		}
		return step.failed, err
	}
	return 0, nil
}

func kernelArgs(line string) map[string]string {
	args := map[string]string{}
	for _, word := range strings.Fields(line) {
		key, value, _ := strings.Cut(word, "=")
		args[key] = value
	}
	return args
}

// say tells a step on the console.
func (j *job) say(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	fmt.Fprintf(j.Console, "rackstrap-lab: %s\n", text)
	j.log.line(severityInfo, "anaconda", "%s", text)
}

// prepare makes the installer's own system usable: for a Root, mounts and tools in it.
func (j *job) prepare() (undo func(), err error) {
	undo = func() {}
	if j.Root == "" {
		j.lab, j.target = system{root: "/", env: []string{"PATH=" + installerTools + ":" + systemPath}}, system{root: sysimage}
		j.log = newLogs(j.lab)
		return undo, j.lab.linkTools(installerTools, "tmux", "systemctl")
	}
	root, err := filepath.Abs(j.Root)
	if err != nil {
		return undo, err
	}
	if _, err := os.Stat(filepath.Join(root, rpmProgram)); err != nil {
		return undo, fmt.Errorf("%s does not hold the lab's system: %v", root, err)
	}
	shadow := directoryTools + ":" + systemPath
	j.lab = system{root: root, env: []string{"PATH=" + installerTools + ":" + shadow}}
	j.target = system{root: root, env: []string{"PATH=" + shadow}}
	if err := mountBelow(root); err != nil {
		return undo, err
	}
	powerOff, err := j.powerOn()
	if err != nil {
		return undo, err
	}
	undo = func() {
		powerOff()
		os.RemoveAll(filepath.Join(root, installerTools))
		os.RemoveAll(filepath.Join(root, directoryTools))
		os.Remove(filepath.Join(root, sysimage))
	}
	j.log = newLogs(j.lab)
	if err := j.layProgram(); err != nil {
		return undo, err
	}
	if err := errors.Join(j.lab.linkTools(installerTools, "tmux", "systemctl"), j.lab.linkTools(directoryTools, "lsblk", "udevadm")); err != nil {
		return undo, err
	}
	return undo, link("/", filepath.Join(root, sysimage)) // where scripts look for the installed system
}

// layProgram puts this program where yum is a link to it.
func (j *job) layProgram() error {
	to := j.target.path(programDir + "/rackstrap")
	have, err1 := os.Stat(to)
	mine, err2 := os.Stat(j.Program)
	if err1 == nil && err2 == nil && have.Size() == mine.Size() && !mine.ModTime().After(have.ModTime()) {
		return nil
	}
	content, err := os.ReadFile(j.Program)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return os.WriteFile(to, content, 0o755)
}

// link makes a symbolic link, in place of one that is there.
func link(target, name string) error {
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.Symlink(target, name)
}

// dracut is what happens before Anaconda starts: address, kickstart, second stage. On a machine with a disk the
// initrd has done it.
func (j *job) dracut(ctx context.Context) error {
	if j.Handover != "" {
		var err error
		j.text, err = os.ReadFile(filepath.Join(j.Handover, "ks.cfg"))
		return err
	}
	j.say("kernel command line: %s", j.KernelArgs)
	if err := j.address(ctx); err != nil {
		return err
	}
	where := j.args["inst.ks"]
	if where == "" {
		return errors.New("no inst.ks on the kernel command line")
	}
	header := j.header()
	var err error
	j.text, err = fetchBytes(ctx, j.client, where, header)
	j.tell("kickstart", where, len(j.text), err)
	if err != nil {
		return fmt.Errorf("kickstart: %w", err)
	}
	base := strings.TrimRight(j.args["inst.stage2"], "/")
	if base == "" {
		if base, err = j.treeURL(); err != nil {
			return err
		}
	}
	treeinfo, err := fetchBytes(ctx, j.client, base+"/.treeinfo", header)
	j.tell("treeinfo", base+"/.treeinfo", len(treeinfo), err)
	if err != nil {
		return fmt.Errorf("installation tree: %w", err)
	}
	image := iniValue(treeinfo, "mainimage")
	if image == "" {
		image = "LiveOS/squashfs.img"
	}
	if err := j.secondStage(ctx, base+"/"+image, iniValue(treeinfo, image), header); err != nil {
		return err
	}
	for _, extra := range []string{"images/updates.img", "images/product.img"} {
		raw, err := fetchBytes(ctx, j.client, base+"/"+extra, header)
		var status *statusError
		if err == nil || !errors.As(err, &status) || status.status != http.StatusNotFound {
			j.tell(filepath.Base(extra), base+"/"+extra, len(raw), err)
			return fmt.Errorf("%s: the stand-in expects 404, as the medium has none", extra)
		}
	}
	j.say("installer reached")
	return nil
}

// secondStage fetches the installer's system, which the directory holds already, for the sake of the request.
func (j *job) secondStage(ctx context.Context, from, want string, header http.Header) error {
	sum := sha256.New()
	counted := &counter{w: sum}
	err := fetch(ctx, j.client, from, header, func() (io.Writer, error) { sum.Reset(); counted.n = 0; return counted, nil })
	j.tell("stage2", from, counted.n, err)
	if err != nil {
		return fmt.Errorf("second stage: %w", err)
	}
	if got := fmt.Sprintf("sha256:%x", sum.Sum(nil)); want != "" && got != want {
		return fmt.Errorf("second stage %s: %s, .treeinfo says %s", from, got, want)
	}
	return nil
}

type counter struct {
	w io.Writer
	n int
}

func (c *counter) Write(p []byte) (int, error) { c.n += len(p); return c.w.Write(p) }

func (j *job) tell(what, url string, n int, err error) {
	var status *statusError
	switch {
	case err == nil:
		j.say("%s %s HTTP 200 %d bytes", what, url, n)
	case errors.As(err, &status):
		j.say("%s %s HTTP %d", what, url, status.status)
	default:
		j.say("%s %s: %v", what, url, err)
	}
}

// iniValue is the first value of a key, whatever its section.
func iniValue(text []byte, key string) string {
	for line := range bytes.Lines(text) {
		k, v, ok := strings.Cut(string(line), "=")
		if ok && strings.TrimSpace(k) == key {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// treeURL is where the installation tree lies: inst.repo, else the kickstart's url, which dracut reads with a
// pattern before any %pre has run.
func (j *job) treeURL() (string, error) {
	if repo := j.args["inst.repo"]; repo != "" {
		return strings.TrimRight(repo, "/"), nil
	}
	for raw := range bytes.Lines(j.text) {
		words, err := shlex.Split(strings.TrimRight(string(raw), "\n"))
		if err != nil || len(words) == 0 || words[0] != "url" {
			continue
		}
		o, err := line{place: "ks.cfg", words: words}.options("--url=", "--noverifyssl")
		if err == nil && o.get("--url") != "" {
			return strings.TrimRight(o.get("--url"), "/"), nil
		}
	}
	return "", errors.New("neither inst.repo nor the kickstart's command url says where the installation tree is")
}

// header is what inst.ks.sendmac and inst.ks.sendsn ask for: every NIC, counted from 0, and the serial number.
func (j *job) header() http.Header {
	h := http.Header{"User-Agent": {curlName}}
	if _, given := j.args["inst.ks.sendmac"]; given {
		nics, _ := net.Interfaces()
		nics = slices.DeleteFunc(nics, func(n net.Interface) bool { return len(n.HardwareAddr) != 6 || n.Flags&net.FlagLoopback != 0 })
		for i, nic := range nics {
			// Anaconda's spelling, which Go's own would not keep.
			h[fmt.Sprintf("X-RHN-Provisioning-MAC-%d", i)] = []string{nic.Name + " " + nic.HardwareAddr.String()}
		}
	}
	if _, given := j.args["inst.ks.sendsn"]; given {
		serial := j.Serial
		if serial == "" {
			raw, _ := os.ReadFile("/sys/class/dmi/id/product_serial")
			serial = strings.TrimSpace(string(raw))
		}
		h["X-System-Serial-Number"] = []string{serial}
	}
	return h
}

// pre runs the %pre scripts; Anaconda reads the kickstart once for them alone.
func (j *job) pre(ctx context.Context) error {
	if err := os.WriteFile(j.lab.path("/tmp/ks.cfg"), j.text, 0o600); err != nil {
		return err
	}
	ks, err := parse("ks.cfg", j.text, j.lab.root, true)
	if err != nil {
		return err
	}
	j.ks, j.log.release = ks, ks.released()
	for _, s := range ks.of("pre") {
		j.say("running %%pre")
		if err := j.runScript(ctx, s, j.lab, j.lab); err != nil {
			return err
		}
	}
	return nil
}

// readPlan reads the kickstart again, with what %pre has written.
func (j *job) readPlan(context.Context) error {
	ks, err := parse("ks.cfg", j.text, j.lab.root, false)
	if err != nil {
		return err
	}
	j.ks = ks
	if j.plan, err = understand(ks); err != nil {
		return err
	}
	for _, word := range j.plan.recorded {
		j.log.line(severityInfo, "anaconda", "noted: %s", word)
	}
	if _, given := j.args["inst.syslog"]; !given {
		j.log.serve(j.plan.logServer)
	}
	for _, disk := range j.plan.disks() {
		if !j.hasDisk(disk) {
			return fmt.Errorf("Disk %q given in ignoredisk command does not exist.", disk) // Anaconda's words
		}
	}
	return j.plan.check()
}

// post runs the %post scripts.
func (j *job) post(ctx context.Context) error {
	for _, s := range j.ks.of("post") {
		j.say("running %%post")
		where, logs := j.target, j.target
		if s.noChroot {
			where, logs = j.lab, j.lab
			where.env = append(slices.Clone(where.env), "ANA_INSTALL_PATH="+sysimage)
		}
		if err := j.runScript(ctx, s, where, logs); err != nil {
			return err
		}
	}
	return nil
}

// onError runs the %onerror scripts, in the installer's system, before the installation stops.
func (j *job) onError(ctx context.Context) {
	if j.ks == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Minute)
	defer cancel()
	for _, s := range j.ks.of("onerror") {
		// On the console alone: what failed is to be the log's last line, which the script reports.
		fmt.Fprintf(j.Console, "rackstrap-lab: running %%onerror\n")
		s.errorOnFail = false
		if err := j.runScript(ctx, s, j.lab, j.lab); err != nil {
			j.log.line(severityErr, "anaconda", "%v", err)
		}
	}
}

// runScript runs a section as Anaconda does: a file in /tmp, its interpreter, and its output through a pipe, which has to
// be closed by all who have it; only then it becomes the file of --log.
func (j *job) runScript(ctx context.Context, s script, where, logs system) error {
	if err := os.MkdirAll(where.path("/tmp"), 0o1777); err != nil {
		return err
	}
	// Anaconda does not remove it.
	file, err := os.CreateTemp(where.path("/tmp"), "ks-script-")
	if err != nil {
		return err
	}
	_, err = file.WriteString(s.text)
	if err := errors.Join(err, file.Chmod(0o700), file.Close()); err != nil {
		return err
	}
	name := "/tmp/" + filepath.Base(file.Name())
	logFile := j.lab.path(name + ".log") // outside of the chroot
	if s.log != "" {
		logFile = logs.path(s.log)
	}
	if err := os.MkdirAll(filepath.Dir(logFile), 0o755); err != nil {
		return err
	}
	begun := time.Now()
	var output bytes.Buffer
	cmd := where.command(ctx, s.interpreter, name)
	cmd.Stdout, cmd.Stderr = &output, &output
	err = cmd.Run()
	if err := os.WriteFile(logFile, output.Bytes(), 0o600); err != nil {
		return err
	}
	for line := range strings.Lines(output.String()) {
		j.log.line(severityInfo, "program", "%s", strings.TrimSpace(line))
	}
	j.log.line(severityInfo, "anaconda", "%%%s of %s ended after %s: %s", s.kind, s.place, time.Since(begun).Round(time.Millisecond), outcomeOf(err))
	if err == nil || !s.errorOnFail && s.kind != "onerror" {
		return nil
	}
	return &scriptError{kind: s.kind, place: s.place, err: err, output: output.String()}
}

func outcomeOf(err error) string {
	if err == nil {
		return "status 0"
	}
	return err.Error()
}

// finish keeps the logs and leaves the disk in order.
func (j *job) finish(ctx context.Context) error {
	to := j.target.path("/var/log/anaconda")
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	for _, name := range j.log.files() {
		text, err := os.ReadFile(j.lab.path(name))
		if err == nil {
			err = os.WriteFile(filepath.Join(to, filepath.Base(name)), text, 0o600)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := j.keepKickstart(); err != nil {
		return err
	}
	if j.disk == nil {
		return nil
	}
	// The system is there and has been reported: whatever keeps the disk busy must not keep it from its reboot.
	if err := j.disk.unmount(ctx); err != nil {
		fmt.Fprintf(j.Console, "rackstrap-lab: unmounting: %v\n", err)
	}
	return nil
}

// keepKickstart leaves the kickstart in the installed system, as it was fetched (99-copy-logs.ks) and as Anaconda writes
// it anew (install.py, _writeKS), unless inst.nosave forbids it.
func (j *job) keepKickstart() error {
	kept := map[string]string{"input_ks": "/root/original-ks.cfg", "output_ks": "/root/anaconda-ks.cfg"}
	for _, not := range strings.Split(j.args["inst.nosave"], ",") {
		switch not {
		case "all", "all_ks":
			clear(kept)
		default:
			delete(kept, not)
		}
	}
	for _, name := range kept {
		if err := j.target.write(name, string(j.text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// End ends the machine as the kickstart asks. Wait leaves that to whoever looks at the console.
func (o Outcome) End() error {
	syscall.Sync()
	how := map[Outcome]int{Reboot: syscall.LINUX_REBOOT_CMD_RESTART, PowerOff: syscall.LINUX_REBOOT_CMD_POWER_OFF, Halt: syscall.LINUX_REBOOT_CMD_HALT}
	what, known := how[o]
	if !known {
		return nil
	}
	return os.NewSyscallError("reboot", syscall.Reboot(what))
}
