package syslog

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/lifecycle"
)

// el7 and el9 are lines as rsyslog forwards them: of EL7's Anaconda the logger is the tag, EL9's names it in the text.
func el7(severity int, logger, text string) string {
	return fmt.Sprintf("<%d>Nov 26 15:04:05 localhost %s: %s\n", 17<<3|severity, logger, text)
}

func el9(severity int, logger, text string) string {
	return fmt.Sprintf("<%d>Nov 26 15:04:05 localhost anaconda[1729]: %s: %s\n", 17<<3|severity, logger, text)
}

func traceback(exception string) string {
	return "Traceback (most recent call last):\n\n  File \"/usr/sbin/anaconda\", line 1390, in <module>\n    anaconda._intf.run()\n\n" + exception
}

// What Anaconda of either release logs before it stops, and what the appliance shows of it.
var stops = map[string]struct{ log, reason string }{
	"7: storage": {
		el7(3, "anaconda", "storage configuration failed: Unable to allocate requested partition scheme.") +
			el7(3, "anaconda", "CmdlineError: The following mandatory spokes are not completed:\nInstallation Destination") +
			el7(2, "anaconda", traceback("CmdlineError: The following mandatory spokes are not completed:\nInstallation Destination")),
		"storage configuration failed: Unable to allocate requested partition scheme."},
	"7: storage, in text mode": {el7(3, "anaconda", "storage configuration failed: not enough free space on disks"), "storage configuration failed: not enough free space on disks"},
	"7: the storage's check": {
		el7(3, "anaconda", "You have not defined a root partition (/), which is required for installation to continue.") +
			el7(3, "anaconda", "CmdlineError: The following mandatory spokes are not completed:#012Installation Destination"),
		"You have not defined a root partition (/), which is required for installation to continue.; then: CmdlineError: The following mandatory spokes are not completed: Installation Destination"},
	"7: a package": {
		el7(3, "packaging", "CmdlineError: Missing package: chrony") + el7(2, "anaconda", traceback("CmdlineError: CmdlineError: Missing package: chrony")),
		"CmdlineError: Missing package: chrony"},
	"7: dependencies": {
		el7(4, "packaging", "3:foo-1-1.x86_64 requires bar") + el7(3, "anaconda", "CmdlineError: The following mandatory spokes are not completed:\nSoftware selection"),
		"3:foo-1-1.x86_64 requires bar; then: CmdlineError: The following mandatory spokes are not completed: Software selection"},
	"7: the source": {
		el7(3, "packaging", "reason for repo removal: failure: repodata/repomd.xml from anaconda: [Errno 256] No more mirrors to try.") + el7(3, "packaging", "No base repo configured") +
			el7(3, "anaconda", "CmdlineError: The following mandatory spokes are not completed:\nInstallation Source\nSoftware selection"),
		"reason for repo removal: failure: repodata/repomd.xml from anaconda: [Errno 256] No more mirrors to try.; then: CmdlineError: The following mandatory spokes are not completed: Installation Source Software selection"},
	"7: the transaction": {
		el7(3, "packaging", "Error unpacking rpm package glibc") + el7(3, "anaconda", "The following error occurred while installing.  This is a fatal error and installation will be aborted.\n\nError unpacking rpm package glibc"),
		"The following error occurred while installing. This is a fatal error and installation will be aborted. Error unpacking rpm package glibc"},
	"7: the boot loader": {
		el7(3, "anaconda", "bootloader.write failed: boot loader install failed") + el7(3, "anaconda", "The following error occurred while installing the boot loader. The system will not be bootable. Would you like to ignore this and continue with installation?\n\nboot loader install failed"),
		"The following error occurred while installing the boot loader. The system will not be bootable. Would you like to ignore this and continue with installation? boot loader install failed"},
	"7: an exception":     {el7(2, "anaconda", traceback("KeyError: 'sda'\n")), "KeyError: 'sda'"},
	"7: an escaped one":   {el7(2, "anaconda", strings.ReplaceAll(traceback("blivet.errors.DeviceError: ('cannot commit', 'sda')"), "\n", "#012")), "blivet.errors.DeviceError: ('cannot commit', 'sda')"},
	"7: a script, killed": {el7(3, "anaconda", "Error code -9 running the kickstart script at line 120"), "Error code -9 running the kickstart script at line 120"},
	"9: a script, killed": {el9(3, "anaconda: kickstart.script", "Error code -9 running the kickstart script at line 120"), "Error code -9 running the kickstart script at line 120"},
	"9: the kickstart":    {el9(3, "anaconda: kickstart.parsing", "The following problem occurred on line 29 of the kickstart file:\n\nDisk \"sdx\" given in ignoredisk command does not exist.\n"), `The following problem occurred on line 29 of the kickstart file: Disk "sdx" given in ignoredisk command does not exist.`},
	"9: a package": {
		el9(3, "packaging", "DNF marking error: MarkingErrors('Problems in request:\\nmissing packages: chrony')") +
			el9(2, "anaconda: exception", traceback("pyanaconda.errors.NonInteractiveError: Non interactive installation failed: Problems in request:\nmissing packages: chrony\n")),
		`DNF marking error: MarkingErrors('Problems in request:\nmissing packages: chrony')`},
	"9: storage": {
		el9(7, "anaconda: ui.tui.spokes.storage", "Partitioning has been applied: ValidationReport(error_messages=['Unable to allocate requested partition scheme.'], warning_messages=[])") +
			el9(3, "anaconda: ui.tui.hubs.summary", "CmdlineError: The following mandatory spokes are not completed:\nInstallation Destination"),
		"Partitioning has been applied: ValidationReport(error_messages=['Unable to allocate requested partition scheme.'], warning_messages=[]); then: CmdlineError: The following mandatory spokes are not completed: Installation Destination"},
	"9: the boot loader": {
		el9(2, "anaconda: exception", traceback("pyanaconda.errors.NonInteractiveError: Non interactive installation failed: failed to write boot loader configuration\n")),
		"pyanaconda.errors.NonInteractiveError: Non interactive installation failed: failed to write boot loader configuration"},
}

func TestStopsAreRecognised(t *testing.T) {
	for name, c := range stops {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newReceiver(t)
			conn := r.dial(ipMaster) // the connection stays, as rsyslog's does
			_, err := conn.Write([]byte(el7(6, "anaconda", "Running Thread: AnaStorageThread") + c.log + el7(6, "anaconda", "Thread Done")))
			require.NoError(t, err)
			begun := time.Now()
			r.eventually(func() bool { return r.rack.Machines()[0].State == lifecycle.Failed }, "failed")
			require.Less(t, time.Since(begun), 10*time.Second)
			rec := r.rack.Machines()[0].Record
			require.Equal(t, &lifecycle.Failure{Phase: lifecycle.Installing, Reason: "Anaconda stopped: " + c.reason, Retryable: true}, rec.Failure)
		})
	}
}

// Nothing that good installations log, errors included, fails one; nor does what other programs print.
func TestGoodInstallationsGoOn(t *testing.T) {
	for _, name := range []string{"el7", "el9"} {
		text, err := os.ReadFile("testdata/good-" + name + ".log")
		require.NoError(t, err)
		r := newReceiver(t)
		r.send(ipMaster, string(text))
		time.Sleep(2 * settle)
		require.Equal(t, lifecycle.Installing, r.rack.Machines()[0].State, "%s: %v", name, r.rack.Machines()[0].Record.Failure)
		require.Equal(t, 1+strings.Count(string(text), "\n"), len(texts(r.kept("kmaster"))))
	}
	for name, lines := range map[string]string{
		"a program's output":  el7(6, "program", "Traceback (most recent call last):") + el7(6, "program", "This is a fatal error and installation will be aborted."),
		"EL9's of a program":  el9(6, "program", "CmdlineError: x") + el9(3, "program", "CmdlineError: x"),
		"another's traceback": "<139>Nov 26 15:04:05 localhost NetworkManager[12]: Traceback (most recent call last):\n",
		"without priority":    "anaconda: CmdlineError: x\nTraceback (most recent call last):\n",
		"a note":              el7(6, "anaconda", "CmdlineError: x") + el7(4, "anaconda", "storage configuration failed: x"),
		"in the middle":       el7(3, "anaconda", "noted: CmdlineError: x"),
	} {
		r := newReceiver(t)
		r.send(ipMaster, lines)
		require.Equal(t, lifecycle.Installing, r.rack.Machines()[0].State, name)
	}
}

// What a script has reported stands; and one that stopped without a connection's end is noted at its end.
func TestStopThatWasReported(t *testing.T) {
	r := newReceiver(t)
	_, err := r.rack.FailInstall(t.Context(), "kmaster", "%post failed at: false")
	require.NoError(t, err)
	r.send(ipMaster, stops["7: a package"].log) // turned away: it does not install any more
	require.Equal(t, "%post failed at: false", r.rack.Machines()[0].Record.Failure.Reason)

	r = newReceiver(t)
	r.send(ipMaster, stops["7: an exception"].log)
	r.eventually(func() bool { return r.rack.Machines()[0].State == lifecycle.Failed }, "at the end of the connection")
}
