package policy

import (
	"slices"
	"testing"
	"time"
)

// states of a service's backends, by index.
func (w *world) states() map[int]State {
	m := map[int]State{}
	for _, b := range w.s.View().Backends {
		m[b.Index] = b.State
	}
	return m
}

// warm wakes a service with one connection.
func warm(t testing.TB, spec Spec, adopt ...Replica) *world {
	t.Helper()
	w := newWorld(t, spec, adopt...)
	w.accept()
	w.calm()
	w.load()
	if v := w.s.View(); v.Phase != Warm {
		t.Fatalf("not warm: %+v", v)
	}
	return w
}

// TestStaleCount: an answer to a count that was begun before the backend served
// again says nothing of what it carries now.
func TestStaleCount(t *testing.T) {
	t.Parallel()
	w := warm(t, testSpec())
	w.step(Drain{0})
	w.ack()
	w.look(0) // sees no flow
	w.accept()
	w.ack() // needed again
	w.flows[1] = 1
	w.load()
	w.step(Drain{0})
	w.ack()
	if len(w.counts) != 2 {
		w.failf("%d counts, want two", len(w.counts))
	}
	w.count(0, true)
	if s := w.states()[1]; s != DrainingFlows {
		w.failf("state %s after an old count", s)
	}
	w.count(0, true)
	if s := w.states()[1]; s != DrainingFlows {
		w.failf("state %s though it carries a flow", s)
	}
	w.flows[1] = 0
	w.step(Quiet{1})
	w.count(0, true)
	if s := w.states()[1]; s != Stopping {
		w.failf("state %s without a flow", s)
	}
}

// TestAdoptedDuringDrain: the daemon was killed while a replica that still
// carried flows was drained. The next one does not need it either, nor does it
// cut what the replica carries: not for lack of load, not when its check does
// not succeed, not when a wake fails.
func TestAdoptedDuringDrain(t *testing.T) {
	t.Parallel()
	left := Replica{Index: 2, Hash: "a", Running: true}
	for name, end := range map[string]func(*world){
		"surplus": func(*world) {},
		"late": func(w *world) {
			w.now = w.now.Add(w.spec.StartTimeout)
			w.tick()
		},
		"failed": func(w *world) {
			w.accept()
			w.now = w.now.Add(w.spec.StartTimeout)
			w.tick()
		},
	} {
		spec := testSpec()
		adopt := []Replica{left}
		if name == "surplus" {
			adopt = append([]Replica{{Index: 1, Hash: "a", Running: true, Mapped: true}}, left)
		} else {
			spec.Min = 1
		}
		w := newWorld(t, spec, adopt...)
		w.flows[2] = 1
		end(w)
		for w.ack() || w.count(0, true) {
		}
		if s := w.states()[2]; s != DrainingFlows {
			w.failf("%s: state %s, want draining", name, s)
		}
		w.flows[2] = 0
		w.now = w.now.Add(time.Second)
		w.tick()
		w.count(0, true)
		if s := w.states()[2]; s != Stopping {
			w.failf("%s: state %s without a flow", name, s)
		}
	}
}

// TestDrainMember: a member that is drained by order stays away, also when it
// is drained again, until the service is woken.
func TestDrainMember(t *testing.T) {
	t.Parallel()
	spec := testSpec()
	spec.Max = 0
	w := newWorld(t, spec)
	w.list(1<<2 | 3) // two, with a weight
	w.calm()
	for range 2 {
		w.step(Drain{FirstMember})
		w.calm()
		if s := w.states()[FirstMember]; s != Sleeping {
			w.failf("state %s", s)
		}
	}
	w.accept()
	if len(w.asked) != 1 || w.served != 1 {
		w.failf("the map names %v, %d served", w.asked, w.served)
	}
	w.step(Wake{})
	w.calm()
	if s := w.states()[FirstMember]; s != Ready {
		w.failf("state %s", s)
	}

	// If it is listed no more while it is being stopped, nothing is left of it.
	w.step(Drain{FirstMember})
	for w.ack() || w.count(0, true) {
		continue
	}
	if s := w.states()[FirstMember]; s != Stopping {
		w.failf("state %s", s)
	}
	w.list(1<<2 | 2)
	w.calm()
	if w.s.Has(FirstMember) || !w.s.Has(FirstMember+1) {
		w.failf("backends %v", w.indices())
	}
}

// TestUndrainLate: a connection that cancels a drain, and so displaces the member
// that served meanwhile, waits no longer than others if the kernel does not take
// that map.
func TestUndrainLate(t *testing.T) {
	t.Parallel()
	w := warm(t, testSpec())
	w.list(1<<4 | 1<<2 | 1) // of the next priority
	w.calm()
	w.flows[1] = 1
	w.load()
	w.step(Drain{})
	w.calm()
	w.accept()
	if w.served != 1 || len(w.maps) != 1 || !slices.Equal(w.asked, []int{1}) || !slices.Equal(w.kernel, []int{FirstMember}) {
		w.failf("the map names %v, the kernel has %v, %d served", w.asked, w.kernel, w.served)
	}
	for w.resets == 0 {
		w.now = w.s.Deadline()
		w.tick() // fails if the connection waits too long
	}
}

// TestDrainDeadline: what a replica still carries is cut when its time is up,
// also when nobody knows how much that is; without a deadline it never is.
func TestDrainDeadline(t *testing.T) {
	t.Parallel()
	for _, known := range []bool{true, false} {
		for _, limit := range []time.Duration{time.Minute, 0} {
			spec := testSpec()
			spec.DrainTimeout = limit
			w := warm(t, spec)
			w.flows[1] = 3
			w.load()
			w.step(Drain{1})
			w.ack()
			for range 59 {
				w.count(0, known)
				w.now = w.now.Add(time.Second)
				w.tick()
				if s := w.states()[1]; s != DrainingFlows {
					w.failf("state %s before the deadline", s)
				}
			}
			var cut []int
			w.now = w.now.Add(time.Second)
			for _, a := range w.s.Step(w.now, Tick{}) {
				if s, ok := a.(Stop); ok && s.Index == 1 {
					cut = append(cut, s.Cut)
				}
			}
			if limit > 0 && (len(cut) != 1 || cut[0] != 3) || limit == 0 && len(cut) > 0 {
				t.Errorf("known %v, limit %s: cut %v", known, limit, cut)
			}
		}
	}
}

// TestTiers: members of the next priority get flows only while none of the first
// is ready.
func TestTiers(t *testing.T) {
	t.Parallel()
	spec := testSpec()
	spec.Max = 0
	w := newWorld(t, spec)
	w.up[FirstMember], w.up[FirstMember+1], w.members = true, true, true
	w.step(Members{[]Member{{Index: FirstMember, Weight: 1}, {Index: FirstMember + 1, Weight: 1, Priority: 1}}})
	w.calm()
	for _, healthy := range []bool{true, false, true} {
		want := FirstMember
		if !healthy {
			want++
		}
		if !healthy || !w.healthy[FirstMember] {
			w.health(FirstMember, healthy)
		}
		if len(w.asked) != 1 || w.asked[0] != want {
			w.failf("the map names %v, want %d", w.asked, want)
		}
	}
}
