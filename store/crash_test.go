package store

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/lifecycle"
)

// childEnv makes the test binary the daemon that is killed: its value is the database.
const childEnv = "RACKSTRAP_STORE_TEST_CHILD"

func TestMain(m *testing.M) {
	if path := os.Getenv(childEnv); path != "" {
		acknowledge(path)
	}
	os.Exit(m.Run())
}

// acknowledge writes for ever, from several goroutines, and prints each write once it was acknowledged.
func acknowledge(path string) {
	s, err := Open(path)
	if err != nil {
		fmt.Println("failed", err)
		os.Exit(1)
	}
	records, err := s.Records(ctx)
	if err != nil {
		fmt.Println("failed", err)
		os.Exit(1)
	}
	start := map[string]lifecycle.Record{}
	for _, r := range records {
		start[r.Name] = r
	}
	var out sync.Mutex
	say := func(format string, args ...any) {
		out.Lock()
		defer out.Unlock()
		fmt.Fprintf(os.Stdout, format+"\n", args...) // one write(2): nothing is buffered here
	}
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			rec := start[fmt.Sprint("rec", w)]
			rec.Name = fmt.Sprint("rec", w)
			for n := uint64(rec.Revision); ; n++ {
				text := fmt.Sprintf("%d-%d", w, n)
				var err error
				switch w {
				case 0, 1:
					if rec, err = s.Commit(ctx, rec, event(mac(w), text)); err == nil {
						say("record %s %d %s", rec.Name, rec.Revision, text)
					}
				case 2:
					if err = s.PutLease(ctx, lease(int(n))); err == nil {
						say("lease %v", lease(int(n)).IP)
					}
				case 3:
					if err = s.Append(ctx, []lifecycle.Event{event(mac(w), text)}, nil); err == nil {
						say("event %s", text)
					}
				}
				if err != nil {
					say("failed %v", err)
					os.Exit(1)
				}
			}
		})
	}
	wg.Wait()
}

// kill -9 at any instant loses nothing that was acknowledged.
func TestKill(t *testing.T) {
	path := t.TempDir() + "/rackstrap.db"
	rounds := 8
	if testing.Short() {
		rounds = 3
	}
	total := 0
	for round := range rounds {
		acknowledged := killedChild(t, path, round)
		total += len(acknowledged)
		s, err := Open(path)
		require.NoError(t, err)
		records, events, _, leases := contents(t, s)
		revision, stored := map[string]uint64{}, map[string]bool{}
		for _, r := range records {
			revision[r.Name] = r.Revision
		}
		for _, e := range events {
			stored[e.Text] = true
		}
		for _, l := range leases {
			stored[l.IP.String()] = true
		}
		// Only the newest events of each machine are kept; those acknowledged last must be among them.
		newest := map[string][]string{}
		for _, line := range acknowledged {
			var name, text string
			var rev uint64
			switch fields := strings.Fields(line); fields[0] {
			case "record":
				_, err := fmt.Sscanf(line, "record %s %d %s", &name, &rev, &text)
				require.NoError(t, err)
				require.GreaterOrEqual(t, revision[name], rev, line)
				newest[name] = append(newest[name], text)
			case "lease":
				require.True(t, stored[fields[1]], line)
			case "event":
				newest["event"] = append(newest["event"], fields[1])
			default:
				t.Fatal(line)
			}
		}
		for _, lines := range newest {
			// One more may have been stored than was acknowledged.
			for _, text := range lines[max(0, len(lines)-lifecycle.EventsPerMachine+1):] {
				require.True(t, stored[text], text)
			}
		}
		require.NoError(t, s.Close())
	}
	t.Logf("%d acknowledged writes in %d kills, none lost", total, rounds)
	require.Greater(t, total, 100)
}

// killedChild runs a writer, kills it after a while, and returns what it had acknowledged.
func killedChild(t *testing.T, path string, round int) (lines []string) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+path)
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	kill := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() }) // should it say nothing at all
	scan := bufio.NewScanner(stdout)
	for scan.Scan() {
		if lines = append(lines, scan.Text()); len(lines) == 1 {
			kill.Reset(time.Duration(rand.IntN(250)) * time.Millisecond)
		}
	}
	require.NoError(t, scan.Err())
	require.ErrorContains(t, cmd.Wait(), "killed", "round %d: %v", round, lines)
	return lines
}
