package policy

import (
	"errors"
	"slices"
	"testing"
	"time"
)

// many is a service with n ready replicas, which carry flows as given.
func many(t testing.TB, spec Spec, flows ...int) *world {
	t.Helper()
	spec.Max = max(spec.Max, len(flows))
	w := warm(t, spec)
	w.step(Scale{len(flows)})
	w.calm()
	for i, n := range flows {
		w.flows[i+1] = n
	}
	w.load()
	if v := w.s.View(); v.Ready != len(flows) {
		w.failf("%d replicas, want %d", v.Ready, len(flows))
	}
	return w
}

// TestVictim: the least busy goes, of equals the newest; one at a time.
func TestVictim(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		flows []int
		want  int
	}{
		{[]int{1, 5, 5}, 1}, {[]int{5, 1, 5}, 2}, {[]int{5, 5, 1}, 3}, {[]int{2, 2, 2}, 3}, {[]int{2, 2, 9}, 2},
	} {
		w := many(t, testSpec(), tt.flows...)
		w.step(Scale{1})
		var drained []int
		for i, s := range w.states() {
			if s == DrainingFlows {
				drained = append(drained, i)
			}
		}
		if !slices.Equal(drained, []int{tt.want}) {
			t.Errorf("%v: %v drained, want %d", tt.flows, drained, tt.want)
		}
	}
}

// TestUndrain: of two that drain the busier is taken back.
func TestUndrain(t *testing.T) {
	t.Parallel()
	for want, flows := range map[int][]int{1: {0, 7, 3}, 2: {0, 3, 7}} {
		w := many(t, testSpec(), flows[1], flows[2])
		w.step(Drain{0})
		w.step(Wake{})
		w.step(Scale{1})
		if s := w.states(); s[want] != Ready || s[3-want] != DrainingFlows {
			t.Errorf("%v: %v, want %d ready", flows, s, want)
		}
	}
}

// TestUndrainNever: one that drains and has never been ready is not taken back.
func TestUndrainNever(t *testing.T) {
	t.Parallel()
	w := newWorld(t, testSpec())
	w.accept()
	w.calm()
	w.step(Scale{2})
	w.finish(2, nil, false) // is being checked
	spec := w.spec
	spec.Hash = "b"
	w.step(Configure{spec})
	if s := w.states()[2]; s != DrainingFlows {
		w.failf("state %s, want the outdated one to go", s)
	}
	spec.Hash = "a"
	w.step(Configure{spec})
	if s := w.states()[2]; s != DrainingFlows {
		w.failf("state %s, want it not to be taken back", s)
	}
}

// TestReplace: replicas of an older configuration go one by one, the new ones
// first, and all at once when none is wanted.
func TestReplace(t *testing.T) {
	t.Parallel()
	for _, n := range []int{2, 0} {
		w := many(t, testSpec(), 1, 1)
		w.flows[1], w.flows[2] = 1, 1
		spec := w.spec
		spec.Hash = "b"
		w.step(Scale{n})
		w.step(Configure{spec})
		for w.ack() || w.call[3] != "" {
			w.finish(3, nil, false)
			if w.probed[3] && w.up[3] && !w.healthy[3] {
				w.health(3, true)
			}
		}
		draining := 0
		for _, s := range w.states() {
			if s == DrainingFlows {
				draining++
			}
		}
		if want := 2 - n/2; draining != want {
			t.Errorf("%d wanted: %d drain, want %d: %v", n, draining, want, w.states())
		}
	}
}

// TestRetryAfterFailure: a retry that is due does not end the pause after a
// failed wake.
func TestRetryAfterFailure(t *testing.T) {
	t.Parallel()
	w := warm(t, testSpec())
	w.health(1, false)
	w.ack()
	w.accept()
	w.finish(2, errors.New("no such image"), true)
	if v := w.s.View(); v.Phase != Failed || w.resets != 1 {
		w.failf("%+v", v)
	}
	w.die(1)
	w.calm()
	w.now = w.now.Add(tryBase)
	w.accept()
	if v := w.s.View(); v.Phase != Failed || len(w.call) > 0 {
		w.failf("%+v, calls %v", v, w.call)
	}
	w.now = w.now.Add(failBase)
	w.accept()
	if v := w.s.View(); v.Phase != Waking {
		w.failf("%+v", v)
	}
}

// TestLateMap: the kernel's word that the replica is in the map may come at the
// very moment in which the wake would have failed.
func TestLateMap(t *testing.T) {
	t.Parallel()
	w := newWorld(t, testSpec())
	w.ack()
	w.accept()
	w.finish(1, nil, false)
	w.health(1, true)
	w.now = w.now.Add(w.spec.StartTimeout)
	w.ack()
	if v := w.s.View(); v.Phase != Warm || w.served != 1 || w.resets != 0 {
		w.failf("%+v", v)
	}
}

// TestRate: new flows per second count as live ones do, the larger answer wins,
// and two reports at the same time are no rate.
func TestRate(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		flows int
		rate  float64
		live  int
		want  int
	}{
		{"rate alone", 0, 5, 100, 3},
		{"flows alone", 10, 0, 20, 2},
		{"the larger", 10, 5, 20, 3},
	} {
		spec := testSpec()
		spec.Flows, spec.Rate = tt.flows, tt.rate
		w := warm(t, spec)
		w.flows[1] = tt.live
		for range 30 {
			w.now = w.now.Add(time.Second)
			w.begun += 14
			w.load()
			w.begun++
			w.load()
			w.calm()
		}
		if v := w.s.View(); v.Desired != tt.want {
			t.Errorf("%s: %d wanted, want %d", tt.name, v.Desired, tt.want)
		}
	}
}

// TestIdle: what counts as load: connections, or by bytes only those that move
// some, and new ones in any case.
func TestIdle(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name         string
		bytes        bool
		live         int
		begun, moved uint64
		asleep       bool
	}{
		{"nothing", false, 0, 0, 0, true},
		{"open", false, 1, 0, 0, false},
		{"open, by bytes", true, 1, 0, 0, true},
		{"moving, by bytes", true, 1, 0, 1, false},
		{"short ones, by bytes", true, 0, 1, 0, false},
		{"bytes of no flow", true, 0, 0, 1, true},
	} {
		spec := testSpec()
		spec.IdleBytes = tt.bytes
		w := warm(t, spec)
		w.flows[1] = tt.live
		for range 15 {
			w.now = w.now.Add(time.Second)
			w.begun += tt.begun
			w.moved += tt.moved
			w.load()
			for w.ack() || w.count(0, true) {
			}
		}
		if v := w.s.View(); (v.Ready == 0) != tt.asleep {
			t.Errorf("%s: %+v", tt.name, v)
		}
	}
}

// TestRateOfShortFlows: a load that comes a moment after the one before it, as
// when a backend has just lost its last flow, counts for that moment only. Nor
// does the scaler keep all of them.
func TestRateOfShortFlows(t *testing.T) {
	t.Parallel()
	spec := testSpec()
	spec.Flows, spec.Rate = 3, 20
	w := warm(t, spec)
	for n := range 240 {
		w.now = w.now.Add(249 * time.Millisecond)
		if n%4 == 0 {
			w.load()
		}
		w.begun++
		w.flows[1] = 2
		w.now = w.now.Add(time.Millisecond)
		w.load()
		w.flows[1] = 0
		w.load()
		if v := w.s.View(); v.Desired != 1 {
			w.failf("%d wanted for four flows a second", v.Desired)
		}
	}
	for range 100_000 {
		w.now = w.now.Add(100 * time.Microsecond)
		w.begun++
		w.s.Step(w.now, Load{Known: true, New: w.begun})
	}
	if n := len(w.s.scaler.samples); n > 2*int(spec.Stable/grain) {
		t.Errorf("%d samples are kept", n)
	}
}

// TestWakeCountsQueue: a wake starts replicas for all that wait, held or queued,
// however fast they come.
func TestWakeCountsQueue(t *testing.T) {
	t.Parallel()
	w := newWorld(t, testSpec())
	w.accept()
	w.now = w.now.Add(time.Microsecond)
	w.step(Load{Known: true, Queued: 24})
	if v := w.s.View(); v.Desired != 3 || len(w.call) != 3 {
		t.Errorf("%+v, calls %v", v, w.call)
	}
}

// TestReplaceUnused: what is prepared from an older configuration is not used,
// not even if it is needed at that very moment.
func TestReplaceUnused(t *testing.T) {
	t.Parallel()
	spec := testSpec()
	spec.Min = 1
	w := newWorld(t, spec, Replica{Index: 1, Hash: "a", Prepared: true}, Replica{Index: 2, Hash: "a", Prepared: true})
	w.calm()
	w.load()
	if s := w.states(); s[1] != Ready || s[2] != Sleeping {
		w.failf("%v", s)
	}
	spec.Hash, spec.Min = "b", 2
	w.step(Configure{spec})
	if w.call[2] != "stop" {
		w.failf("calls %v", w.call)
	}
	w.calm()
	if v := w.s.View(); v.Ready != 2 || v.Backends[0].Outdated || v.Backends[1].Outdated {
		w.failf("%+v", v)
	}

	spec = testSpec()
	spec.Sleep = SleepPrepared
	w = newWorld(t, spec)
	spec.Hash = "b"
	w.step(Configure{spec}) // while the first is being prepared
	w.finish(1, nil, false)
	if w.call[1] != "stop" {
		w.failf("calls %v", w.call)
	}
	w.calm()
	if v := w.s.View(); len(v.Backends) != 1 || v.Backends[0].Outdated || v.Backends[0].State != Sleeping {
		w.failf("%+v", v)
	}
}

// TestReplaceUnknown: while no load is known, and in a panic, the replicas that
// stand in for older ones do not make the service want more.
func TestReplaceUnknown(t *testing.T) {
	t.Parallel()
	for _, flows := range []int{0, 25} { // nothing reported; more than twice the target
		spec := testSpec()
		spec.Min, spec.Max = 2, 6
		w := newWorld(t, spec)
		w.calm()
		w.flows[1], w.flows[2] = max(flows, 1), max(flows, 1)
		if flows > 0 {
			w.load()
			w.calm()
		}
		want := w.s.View().Desired
		spec.Hash = "b"
		w.step(Configure{spec})
		for again := true; again; {
			again = w.ack()
			for i := 1; i <= spec.Max+2; i++ {
				if w.call[i] != "" {
					w.finish(i, nil, false)
					again = true
				}
				if w.probed[i] && w.up[i] && !w.healthy[i] {
					w.health(i, true)
					again = true
				}
			}
			if v := w.s.View(); v.Desired > want {
				w.failf("%d wanted, %d before replicas were replaced", v.Desired, want)
			}
		}
		if w.states()[want+1] != Ready {
			w.failf("nothing was replaced: %v", w.states())
		}
	}
}
