package policy

import (
	"testing"
	"time"
)

// TestTimeBack: an event that comes with an older time than the one before, as
// that of a tick that has waited, harms nothing.
func TestTimeBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t, testSpec())
	w.accept()
	w.calm()
	if v := w.s.View(); v.Phase != Warm {
		t.Fatalf("%+v", v)
	}
	before := w.s.Deadline()
	w.s.Step(w.now.Add(-time.Second), Load{Known: true, Flows: map[int]int{1: 1}})
	if d := w.s.Deadline(); d.Before(before) {
		t.Errorf("deadline %v, was %v", d, before)
	}
	w.pass(time.Minute)
	if v := w.s.View(); v.Phase != Cold {
		t.Errorf("does not come to rest: %+v", v)
	}
}

// TestStartedLater: a replica of an earlier run whose start lies ahead, by
// another clock, counts as ready now, with a full share of its own.
func TestStartedLater(t *testing.T) {
	t.Parallel()
	for _, slow := range []time.Duration{0, time.Nanosecond, 20 * time.Second} {
		spec := testSpec()
		spec.SlowStart = slow
		w := newWorld(t, spec, Replica{Index: 1, Running: true, Mapped: true, Hash: "a", Started: time.Unix(2e9, 0)})
		w.s.Deadline()
		w.calm()
		if v := w.s.View(); v.Ready != 1 || v.Backends[0].Weight != ReplicaWeight {
			t.Errorf("slow start %s: %+v", slow, v)
		}
	}
}
