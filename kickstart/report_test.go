package kickstart

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"rackstrap/inventory"
)

// However the work of %post ends, its failure is reported once, with what was said last; and never as installed.
func TestPostReportsHoweverItEnds(t *testing.T) {
	r := newRenderer(t)
	for name, c := range map[string]struct{ own, said string }{
		"a status":        {"echo no room; exit 3", "no room\nrackstrap: failed at: /root/rackstrap-own-script (status 3)"},
		"its shell dies":  {"kill -9 $PPID; sleep 1", "killed by signal 9"},
		"its shell exits": {"kill -TERM $PPID; sleep 1", "killed by signal 15"},
		"a pipe":          {"set -eo pipefail\nfalse | cat", "failed at: /root/rackstrap-own-script (status 1)"},
		"not found":       {"no-such-program", "(status 127)"},
		"quotes":          {"echo '\"\\' >&2; exit 1", "\"\\\nrackstrap: failed at"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSandbox(t)
			in := input("centos-7.9", "knode1")
			in.Machine.Install.PostScripts = []inventory.Script{{Name: "own", Text: "#!/bin/bash\n" + c.own + "\n"}}
			out, status := s.run(script(t, r, in, "%post"))
			require.NotZero(t, status)
			e := s.event()
			require.Equal(t, told{3, 0, "failed", "post", e.Text}, e)
			require.Contains(t, e.Text, c.said)
			require.Contains(t, out, c.said, "Anaconda shows and keeps it")
			require.Equal(t, 1, strings.Count(s.read("calls"), "event.json"), "reported once")
			require.True(t, s.exists("root/rackstrap-post.log"))
		})
	}
}

// What the shell itself complains of ends the work as well.
func TestPreReportsAShellsError(t *testing.T) {
	s := newSandbox(t)
	s.write("disks", "vda 53"+gb+" disk 0 0\n")
	in := input("centos-7.9", "knode1")
	in.Machine.Install.Disk = ""
	pre := script(t, newRenderer(t), in, "%pre")
	out, status := s.run(strings.Replace(pre, "\nlist=\n", "\nlist=$nowhere\n", 1))
	require.NotZero(t, status, out)
	require.Contains(t, s.event().Text, "nowhere: unbound variable")
}

// A failure that nobody hears makes the machine reboot all the same, after half an hour.
func TestFailureThatIsNotHeard(t *testing.T) {
	s := newSandbox(t)
	s.write("refuse", "999")
	s.write("missing", "socat")
	out, status := s.run(script(t, newRenderer(t), input("centos-7.9", "knode1"), "%post"))
	require.NotZero(t, status, out)
	require.True(t, s.exists("tmp/rackstrap-unheard"))
	require.Greater(t, strings.Count(s.read("calls"), "event.json"), 50)
}

// What %pre leaves running reboots the machine when the appliance says so, or when a failure was not heard; it reports
// what Anaconda printed before it ended; and it ends itself when its token is good for nothing any more.
func TestWatch(t *testing.T) {
	r := newRenderer(t)
	for name, c := range map[string]struct {
		files    map[string]string
		reboots  bool
		reported string
		ends     bool
	}{
		"go on":              {map[string]string{"verdict": `{"next":"go-on"}200`}, false, "", false},
		"stay":               {map[string]string{"verdict": `{"next":"stay"}200`}, false, "", false},
		"reboot":             {map[string]string{"verdict": `{"next":"reboot"}200`}, true, "", false},
		"the appliance down": {map[string]string{"verdict": "000"}, false, "", false},
		"its fault":          {map[string]string{"verdict": `{"error":"a fault of the appliance: try again"}503`}, false, "", false},
		"a bad token":        {map[string]string{"verdict": `{"error":"token is not valid"}401`}, false, "", true},
		"not heard":          {map[string]string{"mnt/sysimage/tmp/rackstrap-unheard": ""}, true, "", false},
		"not heard, EL9":     {map[string]string{"mnt/sysroot/tmp/rackstrap-unheard": ""}, true, "", false},
		"Anaconda ended": {map[string]string{"console": "Starting installer\n\nThe following problem occurred on line 9 of the kickstart file:\n\nDisk \"vdz\" does not exist.\n\n\nPane is dead\n"},
			false, "Starting installer\nThe following problem occurred on line 9 of the kickstart file:\nDisk \"vdz\" does not exist.", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSandbox(t)
			s.write("disks", "vda 53"+gb+" disk 0 0\n")
			s.write("udev/vda", "")
			for file, text := range c.files {
				s.write(file, text)
			}
			in := input("centos-7.9", "knode1")
			in.Machine.Install.Disk = ""
			s.write("pre", script(t, r, in, "%pre"))
			out, status := s.run("set -o pipefail\nbash /pre | cat\nstatus=$?\n/usr/bin/sleep 7\nexit $status\n") // as Anaconda, which reads to the end
			require.Zero(t, status, out)
			calls := ""
			if s.exists("calls") {
				calls = s.read("calls")
			}
			require.Equal(t, c.reboots, strings.Contains(calls, "systemctl --force --force reboot\n"), calls)
			if c.reported != "" {
				require.Equal(t, told{3, 0, "failed", "install", c.reported}, s.event())
			}
			require.Equal(t, c.reported != "", strings.Contains(calls, "ended.json"))
			asked := strings.Count(s.read("asked"), "\n")
			require.Equal(t, c.ends, asked == 1, asked)
			require.NotContains(t, out+calls, testSecret)
		})
	}
}
