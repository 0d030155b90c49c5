package cluster

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/lifecycle"
)

// Everything that can happen to an appliance, its agents and what they say to each other, at random and all at once;
// then all heals, and the rack must become what it was to be.
func TestChaos(t *testing.T) {
	seeds := 150
	if testing.Short() {
		seeds = 25
	}
	for seed := range seeds {
		chaos(t, uint64(seed))
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func chaos(t *testing.T, seed uint64) {
	dice := rand.New(rand.NewPCG(seed, 7))
	once := func(in int) bool { return dice.IntN(in) == 0 }
	disk := lifecycle.NewMemoryStore()
	r := newRackOn(t, disk, 3, 2)
	defer func() {
		if v := recover(); v != nil || t.Failed() {
			t.Logf("seed %d", seed)
			if v != nil {
				panic(v)
			}
		}
	}()
	require.NoError(t, r.start())
	for _, a := range r.agents {
		require.NoError(t, r.install(a))
	}
	restart := func() {
		r.store = disk
		require.NoError(t, r.start())
	}
	reinstalled := 0
	for range 250 {
		switch { // the appliance
		case once(40):
			restart()
		case once(60): // its power goes at one of its next writes
			r.store = &kill{Store: disk, at: 1 + dice.IntN(8), lands: once(2)}
			require.NoError(t, r.start())
		case once(80):
			r.kube.Expire()
		case once(40): // an operator holds one, or ends it; or gives one up, and takes it back
			a := r.agents[dice.IntN(len(r.agents))]
			var err error
			switch st := r.state(a.Name); {
			case once(2) && !r.record(a.Name).IsHeld():
				_, err = r.c.Hold(context.Background(), a.Name, HoldOptions{}, func(string) {})
			case r.record(a.Name).IsHeld():
				_, err = r.c.Unhold(context.Background(), a.Name)
			case st == lifecycle.Ready:
				if _, err = r.rack.Fail(context.Background(), a.Name, "given up", false); err == nil {
					_, err = r.c.Adopt(context.Background(), a.Name)
				}
			}
			if errors.Is(err, errKilled) {
				restart()
			} else {
				require.NoError(t, err)
			}
		case once(60): // an operator
			a := r.agents[dice.IntN(len(r.agents))]
			if st := r.state(a.Name); reinstalled < 2 && st == lifecycle.Ready && (r.cfg.Machines[0].Name != a.Name || len(r.c.mastersExcept(a.Name)) > 0) {
				if _, err := r.c.Reinstall(context.Background(), a.Name, ReinstallOptions{Force: true}, func(string) {}); err == nil {
					reinstalled++
					if a.Machine.Joined {
						r.kube.Lose(a.Name)
					}
					if err := r.install(a); err != nil { // a kill in between: it is installed anew
						restart()
						var refused *lifecycle.NotInstallingError // its report had reached the disk
						if err := r.install(a); !errors.As(err, &refused) {
							require.NoError(t, err)
						}
					}
				}
			}
		}
		for _, a := range r.agents {
			if once(15) {
				if a.down = !a.down; a.down && a.result == nil {
					a.work = nil // killed before it had begun; one that is killed later is below
				}
			}
			if once(10) {
				continue // slow
			}
			before, had := *a, a.credential != ""
			err := r.step(a)
			if errors.Is(err, errKilled) {
				restart()
			} else {
				require.NoError(t, err)
			}
			if once(12) { // the answer is lost, or the agent is killed before it has written down what it got
				switch {
				case !had && a.credential != "":
					a.credential = ""
				case before.work == nil && a.work != nil:
					a.work = nil
				case before.result != nil && a.result == nil:
					a.work, a.result, a.ended = before.work, before.result, before.ended
				case before.result == nil && a.result != nil:
					a.work, a.result = nil, nil
				}
			}
		}
		r.c.Sweep(context.Background())
		r.clock.forward(time.Duration(dice.IntN(4000)) * time.Millisecond)
	}
	restart()
	for _, a := range r.agents {
		if f := r.record(a.Name).Failure; f != nil && f.Reason == "given up" { // the operator's wish reached the disk half
			_, err := r.c.Adopt(context.Background(), a.Name)
			require.NoError(t, err)
		}
		if r.record(a.Name).IsHeld() {
			_, err := r.c.Unhold(context.Background(), a.Name)
			require.NoError(t, err)
		}
		a.down = false
		if st := r.state(a.Name); st == lifecycle.Armed || st == lifecycle.Installing { // the operator's wish reached the disk, the answer did not
			r.kube.Lose(a.Name)
			require.NoError(t, r.install(a))
		}
	}
	for range 1500 {
		if r.settled() {
			break
		}
		require.NoError(t, r.round())
	}
	if !r.settled() {
		t.Fatalf("seed %d: never settled\n%s", seed, r.picture())
	}
	r.sound()
}
