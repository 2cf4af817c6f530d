package policy

import (
	"errors"
	"slices"
	"testing"
)

// paused returns a service that has fallen asleep with its replica paused.
func paused(t testing.TB, edit ...func(*Spec)) *world {
	t.Helper()
	spec := testSpec()
	spec.Sleep = SleepPause
	for _, e := range edit {
		e(&spec)
	}
	w := warm(t, spec)
	w.pass(spec.Idle + 2*1e9)
	if s := w.states()[1]; s != Sleeping {
		w.failf("state %s, want asleep", s)
	}
	return w
}

// TestDiesDuringCall: a replica that dies while it is paused or thawed leaves
// the map at once, and goes when the call has returned, however that ends.
func TestDiesDuringCall(t *testing.T) {
	t.Parallel()
	for _, call := range []string{"pause", "thaw"} {
		for _, err := range []error{nil, errors.New("no such container")} {
			w := paused(t)
			w.step(Alarm{1})
			if call == "pause" {
				w.calm()
				for w.call[1] == "" {
					w.now = w.now.Add(1e9)
					w.load()
				}
			}
			if w.call[1] != call {
				w.failf("%q is in flight, want %s", w.call[1], call)
			}
			w.die(1)
			if slices.Contains(w.asked, 1) {
				w.failf("%s: the map still names it", call)
			}
			w.step(Died{1, "said twice"})
			w.finish(1, err, false)
			w.ack()
			if s := w.states()[1]; s != Stopping {
				w.failf("%s, %v: state %s, want it to go", call, err, s)
			}
			w.calm()
			w.pass(60 * 1e9)
			if v := w.s.View(); v.Ready != 0 {
				w.failf("%s, %v: %+v", call, err, v)
			}
		}
	}
}
