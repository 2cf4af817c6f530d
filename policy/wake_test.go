package policy

import (
	"errors"
	"testing"
	"time"
)

// TestAcceptModes: asleep one connection is accepted, then none until there is
// a replica, then all.
func TestAcceptModes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, testSpec())
	at := func(when string, want AcceptMode) {
		t.Helper()
		if w.mode != want {
			w.failf("%s: mode %d, want %d", when, w.mode, want)
		}
	}
	w.ack()
	at("asleep", AcceptOne)
	w.accept()
	at("waking", AcceptOff)
	w.finish(1, nil, false)
	w.health(1, true)
	at("before the map", AcceptOff)
	w.ack()
	at("awake", AcceptAll)
	w.pass(time.Minute)
	at("asleep again", AcceptOne)
	w.accept()
	w.finish(1, errors.New("no such image"), true)
	at("failed", AcceptAll)
}

// TestAlarmWakes: what is sent to a paused replica wakes the service as a
// connection does, and keeps it awake for its idle time.
func TestAlarmWakes(t *testing.T) {
	t.Parallel()
	w := paused(t)
	w.step(Alarm{1})
	if v := w.s.View(); v.Phase != Waking || v.Desired != 1 || w.call[1] != "thaw" {
		w.failf("%+v, calls %v", v, w.call)
	}
	w.calm()
	w.pass(w.spec.Idle - 2*time.Second)
	if v := w.s.View(); v.Phase != Warm {
		w.failf("%+v", v)
	}
}

// TestStartPauses: after a failed start the next one waits, each time twice as
// long, up to a bound; a success forgets that.
func TestStartPauses(t *testing.T) {
	t.Parallel()
	spec := testSpec()
	spec.StartTimeout = 10 * time.Minute
	w := newWorld(t, spec)
	w.accept()
	for n := range 10 {
		if w.call[1] != "start" {
			w.failf("attempt %d: calls %v", n, w.call)
		}
		w.finish(1, errors.New("boom"), false)
		w.finish(1, nil, false) // the stop
		want := min(tryBase<<n, tryMax)
		w.now = w.now.Add(want - 1)
		w.tick()
		if len(w.call) > 0 {
			w.failf("attempt %d: calls %v after less than %s", n, w.call, want)
		}
		if d := w.s.Deadline(); !d.Equal(w.now.Add(1)) {
			w.failf("attempt %d: next at %v, want %v", n, d, w.now.Add(1))
		}
		w.now = w.now.Add(1)
		w.tick()
	}
	w.calm()
	w.load()
	w.die(1)
	if d := w.s.Deadline().Sub(w.now); d != tryBase {
		w.failf("the first pause after a success is %s", d)
	}
}

// TestOpenWithoutReports: flows that were known last count until something else
// is known.
func TestOpenWithoutReports(t *testing.T) {
	t.Parallel()
	w := warm(t, testSpec())
	w.flows[1] = 1
	w.load()
	w.now = w.now.Add(2 * w.spec.Idle)
	w.tick()
	if s := w.states()[1]; s != Ready {
		w.failf("state %s", s)
	}
}

// TestSlowStart: a new replica's share grows in steps to all of it.
func TestSlowStart(t *testing.T) {
	t.Parallel()
	spec := testSpec()
	spec.SlowStart = 20 * time.Second
	w := many(t, spec, 1, 1)
	w.pass(20 * time.Second)
	w.step(Scale{3})
	w.calm()
	var got []int
	for range 10 {
		got = append(got, w.s.View().Backends[2].Weight)
		w.now = w.now.Add(2 * time.Second)
		w.load()
		w.ack()
	}
	for i, n := range got {
		if n != min(10*(i+1), 100) {
			w.failf("shares over time %v", got)
		}
	}
}

// TestCrashLoop: replicas that become ready and end soon after are started less and
// less often, until one lives.
func TestCrashLoop(t *testing.T) {
	t.Parallel()
	spec := testSpec()
	spec.Min = 1
	w := newWorld(t, spec)
	died := func() (waits []time.Duration) {
		for _, i := range w.indices() {
			if w.healthy[i] && !w.dead[i] {
				w.die(i)
			}
		}
		for _, n := range w.notes {
			if n.Kind == NoteRetry {
				waits = append(waits, n.For)
			}
		}
		w.notes = nil
		w.calm()
		return waits
	}
	starts := 0
	for end := w.now.Add(10 * time.Minute); w.now.Before(end); {
		w.calm()
		starts += len(died())
		w.pass(time.Second)
	}
	if starts < 40 || starts > 120 {
		t.Errorf("%d starts in ten minutes", starts)
	}
	w.pass(time.Minute)
	if waits := died(); len(waits) > 0 {
		t.Errorf("after a minute's life put off by %v", waits)
	}
	w.pass(2 * time.Second)
	if waits := died(); len(waits) != 1 || waits[0] != tryBase {
		t.Errorf("the first death after that puts the next start off by %v", waits)
	}
}
