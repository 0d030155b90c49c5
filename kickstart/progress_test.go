package kickstart

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"rackstrap/inventory"
)

// told are the progress reports, in the order of their percentages: they are sent side by side.
func (s *sandbox) told() (reports []told) {
	s.t.Helper()
	for line := range strings.Lines(s.read("progress")) {
		var r told
		require.NoError(s.t, json.Unmarshal([]byte(line), &r), line)
		reports = append(reports, r)
	}
	slices.SortFunc(reports, func(a, b told) int { return a.Percent - b.Percent })
	return reports
}

// event is the report that was sent last, progress apart.
func (s *sandbox) event() (e told) {
	s.t.Helper()
	require.NoError(s.t, json.Unmarshal([]byte(s.read("curl.body")), &e), s.read("curl.body"))
	return e
}

type told struct {
	Attempt, Percent  int
	Kind, Phase, Text string
}

// Every step of %post is reported, with a percentage that only rises.
func TestPostReportsItsSteps(t *testing.T) {
	s := newSandbox(t)
	in := fullInput("centos-7.9")
	in.Machine.Install.PostScripts = []inventory.Script{{Name: `motd "x"`, Text: "#!/bin/bash\ntrue\n"}}
	s.write("etc/sysconfig/kernel", "DEFAULTKERNEL=kernel\n")
	post := script(t, newRenderer(t), in, "%post")
	out, status := s.run(post)
	require.Zero(t, status, out)
	reports := s.told()
	require.Equal(t, strings.Count(post, "\nstep "), len(reports))
	require.Equal(t, told{3, 1, "progress", "post", "hosts"}, reports[0])
	require.Equal(t, told{3, 100, "progress", "post", "finished"}, reports[len(reports)-1])
	var said []string
	for i, r := range reports {
		require.True(t, i == 0 || r.Percent > reports[i-1].Percent, "%v", r)
		said = append(said, r.Text)
	}
	require.Contains(t, said, "kernel lt")
	require.Contains(t, said, `own script motd "x"`)
	var steps []string // as the script says them, in its order
	for line := range strings.Lines(out) {
		if step, ok := strings.CutPrefix(line, "rackstrap: "); ok {
			steps = append(steps, strings.TrimSpace(step))
		}
	}
	require.Equal(t, steps, said, "the percentages are in the order of the steps")
	require.Contains(t, lastLine(s.read("calls")), "event.json", "the report of the end waits for all of them")
	require.Contains(t, s.read("calls.progress"), "--max-time 2 ")
	require.NotContains(t, out+s.read("calls.progress"), testSecret)
}

// An appliance that does not listen to progress keeps nobody from being installed.
func TestProgressThatIsNotHeard(t *testing.T) {
	r := newRenderer(t)
	s := newSandbox(t)
	s.write("refuse.progress", "999")
	out, status := s.run(script(t, r, input("centos-7.9", "knode1"), "%post"))
	require.Zero(t, status, out)
	require.NotContains(t, out, "failed")
	require.Contains(t, s.read("curl.body"), `"kind":"installed"`)

	s = newSandbox(t)
	s.write("refuse.progress", "999")
	s.write("disks", "vda 53"+gb+" disk 0 0\n")
	s.write("udev/vda", "")
	in := input("centos-7.9", "knode1")
	in.Machine.Install.Disk = ""
	out, status = s.run(script(t, r, in, "%pre"))
	require.Zero(t, status, out)
	require.True(t, s.exists("tmp/rackstrap-storage.ks"))
}

func TestPreReportsTheDisk(t *testing.T) {
	s := newSandbox(t)
	s.write("disks", "vda 53"+gb+" disk 0 0\n")
	s.write("udev/vda", "")
	in := input("centos-7.9", "knode1")
	in.Machine.Install.Disk = ">=40G"
	out, status := s.run(script(t, newRenderer(t), in, "%pre"))
	require.Zero(t, status, out)
	require.Equal(t, []told{{3, 50, "progress", "pre", "looking for the disk: >=40G"}, {3, 100, "progress", "pre", "the disk is vda"}}, s.told())
}

// While a step takes long, the appliance goes on hearing of it.
func TestPostIsHeardDuringALongStep(t *testing.T) {
	s := newSandbox(t)
	s.write("fast", "") // four minutes are a quarter of a second
	s.write("slow", `[ "$2" = install ] || exit 0
for i in {1..500}; do
  [ "$(grep -c '"text":"packages"' /progress)" -lt 3 ] || exit 0
  /usr/bin/sleep 0.1
done
exit 1
`)
	out, status := s.run(script(t, newRenderer(t), input("centos-7.9", "knode1"), "%post"))
	require.Zero(t, status, out)
	require.GreaterOrEqual(t, strings.Count(s.read("progress"), `"percent":5,"text":"packages"`), 3)
	require.Contains(t, s.read("curl.body"), `"kind":"installed"`)
}
