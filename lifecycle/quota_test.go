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

// textsOf are the texts of a machine's timeline.
func textsOf(t *testing.T, r *Rack, mac inventory.MAC) (texts []string) {
	t.Helper()
	events, err := r.Events(t.Context(), EventQuery{MAC: mac})
	require.NoError(t, err)
	for _, e := range events {
		texts = append(texts, e.Text)
	}
	return texts
}

// Made-up DHCP with two UUIDs in turns has the appliance itself note something each time.
func TestUUIDsInTurnsPushNothingOut(t *testing.T) {
	r, clock := newRack(t, NewMemoryStore(), config(func(c *inventory.Config) { c.Machines[1].MAC = macNode }))
	boot(r, clock, macMaster)
	_, _, err := r.BeginInstall(t.Context(), macMaster, r.Ticket(macMaster))
	require.NoError(t, err)
	uuids := []string{"4c4c4544-0042-3510-8052-b4c04f4e3132", "4c4c4544-0042-3510-8052-b4c04f4e3133"}
	r.See(Sighting{MAC: macNode, UUID: uuids[0]})
	for i := range 1200 {
		r.See(Sighting{MAC: macMaster, UUID: uuids[i%2]})
	}
	r.reportCounted(true)
	texts := textsOf(t, r, macMaster)
	require.Contains(t, texts, "armed -> installing (kickstart fetched), attempt 1")
	require.Contains(t, texts[len(texts)-1], "480 more of this kind since ")
	require.Less(t, len(texts), quotaOf+10)
}

// Alarms of one kind, however fast, push out none of another kind within a day.
func TestPatientAlarms(t *testing.T) {
	for _, aMinute := range []int{1, quotaOfAlarm, 1000} {
		t.Run(fmt.Sprint(aMinute), func(t *testing.T) {
			r, clock := newRack(t, NewMemoryStore(), config())
			r.Observe(Event{MAC: macMaster, Source: "node", Kind: "refused", Level: Alarm, Text: "of another kind"})
			for range 24 * 60 {
				for i := range aMinute {
					r.Observe(Event{MAC: macMaster, Source: "http", Kind: "refused", Level: Alarm, Text: fmt.Sprint(i)})
				}
				clock.forward(time.Minute)
				r.reportCounted(false)
			}
			require.Contains(t, textsOf(t, r, macMaster), "of another kind")
			clock.forward(3 * maxQuotaFor) // it is quiet
			r.reportCounted(false)
			clock.forward(3 * maxQuotaFor)
			r.reportCounted(false)
			r.Observe(Event{MAC: macMaster, Source: "http", Kind: "refused", Level: Alarm, Text: "after that"})
			require.Contains(t, textsOf(t, r, macMaster), "after that")
		})
	}
}
