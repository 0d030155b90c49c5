package installer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// kind is what stops an installation: Anaconda does something else for each.
type kind int

const (
	unforeseen    kind = iota // an exception that nobody catches
	inDracut                  // before Anaconda runs
	inKickstart               // a command that it does not understand, or that names a disk that is not there
	inPre                     // a %pre with --erroronfail
	inStorage                 // the storage that the kickstart wants cannot be
	inSource                  // the repository of the packages
	inSoftware                // what %packages names is not there
	inTransaction             // rpm
	inBootLoader
	inPost // a %post with --erroronfail
)

// injections are the values of the kernel argument rackstrap.fault: what goes wrong, and Anaconda's own words for it.
var injections = map[string]struct {
	at  kind
	err error
}{
	"source":      {inSource, errors.New("failure: repodata/repomd.xml from anaconda: [Errno 256] No more mirrors to try.")},
	"package":     {inSource, &missingError{[]string{"rackstrap-fault"}}},
	"storage":     {inStorage, errors.New("Unable to allocate requested partition scheme.")},
	"exception":   {unforeseen, errors.New("rackstrap.fault=exception")},
	"transaction": {inTransaction, errors.New("Error unpacking rpm package rackstrap-fault")},
	"boot-loader": {inBootLoader, errors.New("boot loader install failed")},
}

// injected is the fault that the kernel arguments ask for at a step.
func (j *job) injected(at kind) error {
	if f, known := injections[j.args["rackstrap.fault"]]; known && f.at == at {
		return f.err
	}
	return nil
}

// release is the major release whose Anaconda is played.
type release int

// released tells by the commands: the first is one of EL9 that every kickstart of ours for it has.
func (k *kickstart) released() release {
	for _, l := range k.commands {
		if l.words[0] == "timesource" {
			return 9
		}
	}
	return 7
}

// cmdline tells whether nobody is to be asked (inst.cmdline, or the command, which dracut makes an argument of).
func (j *job) cmdline() bool {
	if _, given := j.args["inst.cmdline"]; given || j.ks == nil {
		return given
	}
	for _, l := range j.ks.commands {
		if l.words[0] == "cmdline" {
			return true
		}
	}
	return false
}

// stop is how Anaconda stops: what it logs and prints before, and whether the machine reboots by itself.
type stop struct {
	log     []entry
	prints  string        // on its console
	onError bool          // %onerror is run
	prompt  bool          // it waits for a key, for ever
	after   time.Duration // how long what is printed can be read before the process ends
	reboots bool          // the process reboots the machine when it ends; else tmux keeps its pane
}

type entry struct {
	severity int
	logger   string // anaconda, packaging; of EL9 with the module: "anaconda: ui.tui.hubs.summary"
	text     string
}

// noticed is how long Anaconda shows an error in cmdline mode (exception.py, handleException).
const noticed = 180 * time.Second

// stopOf says what Anaconda does: pyanaconda of 21.48.22.159 (kickstart.py, errors.py, exception.py, ui/tui) for
// release 7, of 34.25.7 for release 9.
func stopOf(r release, cmdline bool, k kind, err error) stop {
	text := err.Error()
	traceback := func(exception string) string {
		return "Traceback (most recent call last):\n\n  File \"/usr/sbin/anaconda\", line 1, in <module>\n\n" + exception + "\n"
	}
	var script *scriptError
	var failed entry
	if errors.As(err, &script) {
		failed = entry{severityErr, "anaconda", fmt.Sprintf("Error code %d running the kickstart script at line %d", script.code(), script.line())}
		if r == 9 {
			failed.logger = "anaconda: kickstart.script"
		}
	}
	const fatal = "This is a fatal error and installation will be aborted."
	switch k { // what does not depend on the mode
	case inDracut:
		return stop{prints: "dracut-initqueue: " + text + "\nEntering emergency mode.", prompt: true}
	case inPre: // there is no user interface yet, nor an exception handler: an exception of Python
		return stop{log: []entry{failed}, prints: traceback("pyanaconda.errors.ScriptError")}
	case inKickstart:
		if r == 9 {
			return stop{log: []entry{{severityErr, "anaconda: kickstart.parsing", text}}, after: 10 * time.Second,
				prints: "\nAn error occurred during reading the kickstart file:\n" + text + "\n\nThe installer will now terminate."}
		}
		return stop{prints: text}
	}
	if r == 9 {
		return stopOf9(cmdline, k, text, failed, traceback)
	}
	details := text
	if script != nil {
		details = script.output
	}
	asked := map[kind]struct {
		before []entry // in both modes
		dialog string  // what text mode shows, and cmdline logs
		raised string  // what cmdline ends in
		log    []entry // in cmdline mode, in place of the dialog
		quits  bool    // progressQ.send_quit: at once, after %onerror
	}{
		inStorage: {before: []entry{{severityErr, "anaconda", "storage configuration failed: " + text}}, log: incomplete("anaconda", "Installation Destination"), raised: "CmdlineError"},
		inSource: {before: []entry{{severityErr, "packaging", "base repo (url/http://x/) not valid -- removing it"},
			{severityErr, "packaging", "reason for repo removal: " + text}, {severityErr, "packaging", "No base repo configured"}},
			log: incomplete("anaconda", "Installation Source"), raised: "CmdlineError"},
		inSoftware: {log: []entry{{severityErr, "packaging", "CmdlineError: Missing package: " + text}}, raised: "CmdlineError: CmdlineError: Missing package: " + text,
			dialog: "You have specified that the package '" + text + "' should be installed.  This package does not exist.  Would you like to ignore this package and continue with installation?"},
		inTransaction: {before: []entry{{severityErr, "packaging", text}}, dialog: "The following error occurred while installing.  This is a fatal error and installation will be aborted.\n\n" + text, quits: true},
		inBootLoader: {before: []entry{{severityErr, "anaconda", "bootloader.write failed: " + text}}, raised: "BootLoaderError: " + text,
			dialog: "The following error occurred while installing the boot loader. The system will not be bootable. Would you like to ignore this and continue with installation?\n\n" + text},
		inPost: {before: []entry{failed}, dialog: fmt.Sprintf("There was an error running the kickstart script at line %d.  %s  The details of this error are:\n\n%s", script.line(), fatal, details), raised: "SystemExit: 0"},
	}[k]
	s := stop{log: asked.before, prints: asked.dialog}
	switch {
	case k == unforeseen:
		s.log = []entry{{severityCrit, "anaconda", traceback("RuntimeError: " + text)}}
		s.onError = !cmdline // postWriteHook of python-meh, which cmdline mode does not come to
	case cmdline:
		if asked.log == nil {
			asked.log = []entry{{severityErr, "anaconda", asked.dialog}}
		}
		s.log = append(s.log, asked.log...)
		if asked.raised != "" {
			s.log = append(s.log, entry{severityCrit, "anaconda", traceback(asked.raised)})
		}
		s.onError = asked.quits
	}
	if s.prompt = !cmdline; !s.prompt {
		s.reboots = true
		if !asked.quits {
			s.after = noticed
		}
	}
	return s
}

// incomplete is what cmdline mode logs of a screen that somebody would have to fill in (hubs/summary.py).
func incomplete(logger, spoke string) []entry {
	return []entry{{severityErr, logger, "CmdlineError: The following mandatory spokes are not completed:\n" + spoke}}
}

// stopOf9 is stopOf for release 9, once its user interface runs. The modules' own logs stay on the machine.
func stopOf9(cmdline bool, k kind, text string, failed entry, traceback func(string) string) stop {
	const hub = "anaconda: ui.tui.hubs.summary"
	if k == inPost { // flags.ksprompt = True: it asks in cmdline mode, too, and logs no more
		return stop{log: []entry{failed}, prints: "There was an error running the kickstart script", prompt: true}
	}
	s := stop{onError: cmdline, prompt: !cmdline}
	raised := "pyanaconda.errors.NonInteractiveError: Non interactive installation failed: " + text
	switch k {
	case inStorage:
		s.log = []entry{{severityDebug, "anaconda: ui.tui.spokes.storage", fmt.Sprintf("Partitioning has been applied: ValidationReport(error_messages=[%q], warning_messages=[])", text)}}
		raised = "pyanaconda.errors.CmdlineError: The following mandatory spokes are not completed:\nInstallation Destination"
		if cmdline {
			s.log = append(s.log, incomplete(hub, "Installation Destination")...)
		}
	case inSource:
		s.log = []entry{{severityErr, "anaconda: payload.manager", "PayloadError: " + text}}
		raised = "pyanaconda.errors.CmdlineError: The following mandatory spokes are not completed:\nInstallation Source"
		if cmdline {
			s.log = append(s.log, incomplete(hub, "Installation Source")...)
		}
	case inSoftware:
		s.log = []entry{{severityErr, "packaging", fmt.Sprintf("DNF marking error: MarkingErrors(%q)", text)}}
	case unforeseen:
		raised, s.onError = "RuntimeError: "+text, true
	}
	if cmdline || k == unforeseen {
		s.log = append(s.log, entry{severityCrit, "anaconda: exception", traceback(raised)})
	}
	if cmdline {
		s.after, s.reboots = noticed, true
	}
	return s
}

// stopped carries a stop out, and returns when the machine is reset: by somebody's hand (ctx), by what %pre left
// running, or by Anaconda.
func (j *job) stopped(ctx context.Context, k kind, cause error) Outcome {
	s := stopOf(j.log.release, j.cmdline(), k, cause)
	for _, e := range s.log {
		j.log.line(e.severity, e.logger, "%s", e.text)
	}
	if s.prints != "" {
		j.print(s.prints)
	}
	if s.onError {
		j.onError(ctx)
	}
	if s.prompt {
		j.print("Press enter to exit.")
		return j.stand(ctx, 0)
	}
	if s.after > 0 {
		if o := j.stand(ctx, s.after); o != Wait {
			return o
		}
	}
	if s.reboots {
		return Reboot
	}
	j.print("Pane is dead")
	os.WriteFile(j.lab.path(paneDead), nil, 0o600)
	return j.stand(ctx, 0)
}

// stand waits: for so long (0: for ever), or for the machine's reset.
func (j *job) stand(ctx context.Context, long time.Duration) Outcome {
	var over <-chan time.Time
	if long > 0 {
		timer := time.NewTimer(long)
		defer timer.Stop()
		over = timer.C
	}
	select {
	case <-j.reset:
		return Reboot
	case <-ctx.Done():
		return ""
	case <-over:
		return Wait
	}
}

// print puts Anaconda's own words on its console, which tmux shows.
func (j *job) print(text string) {
	fmt.Fprintf(j.Console, "rackstrap-lab: anaconda: %s\n", strings.ReplaceAll(strings.TrimSpace(text), "\n", " | "))
	if f, err := os.OpenFile(j.lab.path(paneText), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600); err == nil {
		fmt.Fprintln(f, text)
		f.Close()
	}
}

// scriptError is a script with --erroronfail that failed.
type scriptError struct {
	kind, place string
	err         error
	output      string
}

func (e *scriptError) Error() string {
	return fmt.Sprintf("%%%s (%s): %v: %s", e.kind, e.place, e.err, tail(e.output, 5))
}

func (e *scriptError) Unwrap() error { return e.err }

// line is that of the script in the kickstart.
func (e *scriptError) line() int {
	if e == nil {
		return 0
	}
	_, after, _ := strings.Cut(e.place, ":")
	n, _ := strconv.Atoi(after)
	return n
}

// code is the exit status as Python's subprocess has it: negative for a signal.
func (e *scriptError) code() int {
	var exit *exec.ExitError
	if !errors.As(e.err, &exit) {
		return 1
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return -int(status.Signal())
	}
	return exit.ExitCode()
}
