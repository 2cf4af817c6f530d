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

// TestDiesBeforeFence: a paused replica that a member has just displaced, and
// that dies, goes only once the kernel does not send to it any more.
func TestDiesBeforeFence(t *testing.T) {
	t.Parallel()
	w := paused(t, func(s *Spec) { s.Priority = 1 })
	w.step(Alarm{1})
	w.calm()
	for w.call[1] != "pause" {
		w.now = w.now.Add(1e9)
		w.load()
	}
	w.up[FirstMember], w.members = true, true
	w.step(Members{[]Member{{Index: FirstMember, Weight: 1}}})
	w.health(FirstMember, true)
	w.finish(1, nil, false)
	if slices.Contains(w.asked, 1) || !slices.Contains(w.kernel, 1) || w.states()[1] != Sleeping {
		w.failf("the map names %v, the kernel has %v, states %v", w.asked, w.kernel, w.states())
	}
	w.die(1)
	w.calm()
	if w.s.Has(1) {
		w.failf("states %v", w.states())
	}
}

// TestPauseCount: what was sent between the decision to pause and the pause
// shows in a count, and wakes; so does a count that fails.
func TestPauseCount(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name          string
		flows, barred int
		known, thaws  bool
	}{
		{"as before", 2, 0, true, false},
		{"fewer", 1, 0, true, false},
		{"more", 3, 0, true, true},
		{"more, barred", 9, 7, true, false},
		{"more, barred and not", 9, 6, true, true},
		{"unknown", 2, 0, false, true},
	} {
		spec := testSpec()
		spec.Sleep, spec.IdleBytes = SleepPause, true
		w := warm(t, spec)
		w.flows[1] = 2
		for w.call[1] == "" {
			w.now = w.now.Add(1e9)
			w.load()
		}
		w.finish(1, nil, false)
		w.flows[1], w.barred = tt.flows, tt.barred
		w.load()
		w.count(0, tt.known)
		if (w.call[1] == "thaw") != tt.thaws {
			t.Errorf("%s: %v, calls %v", tt.name, w.states(), w.call)
		}
	}
}

// TestDoubt: what has come while nobody listened shows in a count: before an
// earlier run's paused replica was adopted, or whenever an alarm may have been
// missed.
func TestDoubt(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		flows, barred int
		thaws         bool
	}{{0, 0, false}, {2, 2, false}, {2, 1, true}} {
		spec := testSpec()
		spec.Sleep = SleepPause
		w := newWorld(t, spec, Replica{Index: 1, Paused: true, Mapped: true, Hash: spec.Hash})
		w.flows[1], w.barred = tt.flows, tt.barred
		w.count(0, true)
		if (w.call[1] == "thaw") != tt.thaws {
			t.Errorf("adopted with %+v: %v, calls %v", tt, w.states(), w.call)
		}
		w = paused(t)
		for w.count(0, true) {
		}
		w.flows[1], w.barred = tt.flows, tt.barred
		w.load()
		if w.step(Doubt{1}); len(w.counts) != 1 {
			w.failf("%d counts", len(w.counts))
		}
		w.count(0, true)
		if (w.call[1] == "thaw") != tt.thaws {
			t.Errorf("in doubt with %+v: %v, calls %v", tt, w.states(), w.call)
		}
	}
}

// TestFloodedLadder: a paused replica is stopped after its time though half-open
// flows keep coming to it, and these do not wake it; an alarm does.
func TestFloodedLadder(t *testing.T) {
	t.Parallel()
	for _, alarm := range []bool{false, true} {
		w := paused(t, func(s *Spec) { s.StopAfter = 10 * 1e9 })
		w.barred = 1 << 20
		for range 20 {
			w.now = w.now.Add(1e9)
			w.flows[1]++
			w.begun++
			w.load()
			w.calm()
			if s := w.states()[1]; s != Sleeping {
				break
			}
		}
		if s := w.states()[1]; s != DrainingFlows {
			w.failf("state %s", s)
		}
		if alarm {
			w.step(Alarm{1})
		}
		if thaws := w.call[1] == "thaw"; thaws != alarm {
			w.failf("alarm %v: calls %v", alarm, w.call)
		}
	}
}

// TestPausedDies: a paused replica that dies leaves the map, then goes; one
// that was only prepared goes at once.
func TestPausedDies(t *testing.T) {
	t.Parallel()
	w := paused(t)
	w.die(1)
	if s := w.states()[1]; s != DrainingFlows || len(w.asked) > 0 {
		w.failf("state %s, the map names %v", s, w.asked)
	}
	w.ack()
	if s := w.states()[1]; s != Stopping {
		w.failf("state %s", s)
	}
	spec := testSpec()
	spec.Sleep = SleepPrepared
	w = newWorld(t, spec)
	w.calm()
	w.die(1)
	if s := w.states()[1]; s != Stopping {
		w.failf("state %s", s)
	}
}

// TestDrainAsleep: an order to drain takes also what sleeps.
func TestDrainAsleep(t *testing.T) {
	t.Parallel()
	for _, depth := range []Sleep{SleepPause, SleepPrepared} {
		w := paused(t, func(s *Spec) { s.Sleep = SleepPause })
		if depth == SleepPrepared {
			spec := testSpec()
			spec.Sleep = SleepPrepared
			w = newWorld(t, spec)
			w.calm()
		}
		w.step(Drain{1})
		w.ack()
		w.count(0, true)
		if s := w.states()[1]; s != Stopping {
			w.failf("depth %d: state %s", depth, s)
		}
	}
}
