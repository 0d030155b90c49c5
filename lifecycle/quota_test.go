package lifecycle

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/inventory"
)

// What anybody can cause in number pushes out neither the story of a machine nor its alarms, and is counted.
func TestEvidenceStays(t *testing.T) {
	ctx := t.Context()
	r, clock := newRack(t, NewMemoryStore(), config())
	boot(r, clock, macMaster)
	_, _, err := r.BeginInstall(ctx, macMaster, r.Ticket(macMaster))
	require.NoError(t, err)
	r.Observe(Event{MAC: macMaster, Source: "http", Kind: "refused", Level: Alarm, Text: "the first alarm"})
	for minute := range 24 * 60 {
		for i := range 200 {
			r.Observe(Event{MAC: macMaster, Source: "http", Kind: "refused", Level: Warn, Text: fmt.Sprintf("path %d of minute %d", i, minute)})
			r.Observe(Event{MAC: macMaster, Source: "dhcp", Kind: "offer", Level: Info, Text: fmt.Sprint(i)})
			r.Observe(Event{MAC: macMaster, Source: "node", Kind: "progress", Level: Info, Text: fmt.Sprint(i)})
			r.Observe(Event{MAC: macMaster, Source: "cluster", Kind: "facts", Level: Info, Text: fmt.Sprint(i)})
			r.Observe(Event{MAC: macMaster, Source: "http", Kind: "refused", Level: Alarm, Text: fmt.Sprint(i)})
		}
		clock.forward(time.Minute)
		r.reportCounted(false)
	}
	events, err := r.Events(ctx, EventQuery{MAC: macMaster})
	require.NoError(t, err)
	of := map[Class]int{}
	texts := map[string]bool{}
	for _, e := range events {
		of[e.Class()]++
		texts[e.Text] = true
	}
	require.True(t, texts["armed (listed)"])
	require.True(t, texts["armed -> installing (kickstart fetched), attempt 1"])
	require.True(t, texts["the first alarm"])
	require.True(t, texts["80 more of this kind since 12:00:02; the last one: path 199 of minute 0"])
	require.Less(t, of[Alarms], 50, "a day of it takes a few places")
	require.LessOrEqual(t, of[Traces], EventsPerMachine)
}

func TestCounted(t *testing.T) {
	r, clock := newRack(t, NewMemoryStore(), config())
	for i := range 1200 {
		r.Observe(Event{MAC: macMaster, Source: "http", Kind: "refused", Level: Alarm, Text: fmt.Sprintf("call %d", i)})
	}
	events := func() (texts []string) {
		all, err := r.Events(t.Context(), EventQuery{MAC: macMaster})
		require.NoError(t, err)
		for _, e := range all {
			if e.Kind == "refused" {
				texts = append(texts, e.Text)
			}
		}
		return texts
	}
	require.Len(t, events(), quotaOfAlarm)
	clock.forward(quotaFor)
	r.reportCounted(false)
	require.Len(t, events(), quotaOfAlarm+1)
	require.Equal(t, "1190 more of this kind since 12:00:00; the last one: call 1199", events()[quotaOfAlarm])
	r.reportCounted(true)
	require.Len(t, events(), quotaOfAlarm+1, "once")
	r.Observe(Event{MAC: macMaster, Source: "http", Kind: "refused", Level: Alarm, Text: "later"})
	require.Equal(t, "later", events()[quotaOfAlarm+1])
}

// With a full table what concerns machines of the list is listed.
func TestCountedBeyondTheTable(t *testing.T) {
	q := &quotas{}
	now := time.Now()
	for i := range maxQuotas {
		q.admit(Event{Time: now, MAC: inventory.MAC{2, 0, byte(i >> 16), byte(i >> 8), byte(i)}, Source: "dhcp", Kind: "offer"})
	}
	require.Len(t, q.of, maxQuotas/2)
	require.True(t, q.admit(Event{Time: now, Machine: "kmaster", Source: "http", Kind: "refused", Level: Alarm}))
}
