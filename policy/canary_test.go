package policy

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// TestDivide: whatever the numbers and weights on either side, the canary has
// its part of the slots to less than one slot, and each side's slots follow the
// weights likewise.
func TestDivide(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(3, 4))
	for n := range 3000 {
		shares := make([]Share, 2+r.IntN(14))
		for i := range shares {
			shares[i] = Share{i, ReplicaWeight * (1 + r.IntN(slowSteps)) / slowSteps, i > 0 && (i == 1 || r.IntN(2) == 0)}
		}
		r.Shuffle(len(shares), func(i, j int) { shares[i], shares[j] = shares[j], shares[i] })
		percent := r.IntN(101)
		size := DivideCount(shares, percent, classes())
		checkDivided(t, shares, percent, Divide(shares, percent, size), size, func(float64) float64 { return 1 })

		if n%10 > 0 {
			continue // it takes long
		}
		names := make([]string, len(shares))
		for i := range names {
			names[i] = fmt.Sprintf("10.88.%d.%d:80", percent, i)
		}
		checkDivided(t, shares, percent, DivideConsistent(names, shares, percent), ConsistentSize,
			func(side float64) float64 { return 1 + max(slack*side, 1) })
	}
	// One side alone has all slots.
	for _, canary := range []bool{false, true} {
		one := []Share{{1, 100, canary}, {2, 50, canary}}
		if got := Divide(one, 10, DivideCount(one, 10, classes())); !slices.Equal(got, []int{0, 1, 0}) {
			t.Errorf("one side alone: %v", got)
		}
		if n := counts(DivideConsistent([]string{"a", "b"}, one, 10)); math.Abs(float64(n[0])-ConsistentSize*2/3) > ConsistentSize/100 {
			t.Errorf("one side alone: %v", n)
		}
	}
	// Twenty percent of what one stable and one canary get, in turn.
	if got := Divide([]Share{{1, 100, false}, {2, 100, true}}, 20, 5); counts(got) != [2]int{4, 1} {
		t.Errorf("twenty percent of five slots: %v", got)
	}
}

// checkDivided checks the slots of each side, and of each share to within off,
// which is told how many slots its side has.
func checkDivided(t *testing.T, shares []Share, percent int, slots []int, size int, off func(side float64) float64) {
	t.Helper()
	if len(slots) != size {
		t.Fatalf("%d slots, want %d", len(slots), size)
	}
	got := make([]int, len(shares))
	var side, weight [2]int
	of := func(sh Share) int {
		if sh.Canary {
			return 1
		}
		return 0
	}
	for _, i := range slots {
		got[i]++
		side[of(shares[i])]++
	}
	for _, sh := range shares {
		weight[of(sh)] += sh.Weight
	}
	if want := float64(size*percent) / 100; math.Abs(float64(side[1])-want) >= 1 {
		t.Fatalf("%v: the canary has %d of %d slots, want %.2f", shares, side[1], size, want)
	}
	for i, sh := range shares {
		total := float64(side[of(sh)])
		ideal := total * float64(sh.Weight) / float64(weight[of(sh)])
		if math.Abs(float64(got[i])-ideal) >= off(total) {
			t.Fatalf("%v, %d %%: share %d has %d of the %d slots of its side, want %.2f", shares, percent, i, got[i], int(total), ideal)
		}
	}
}

// TestDivideConsistentDisruption: a backend that comes or goes moves slots of
// its own side only, and a percent more moves a percent of the slots to the
// canary and none away from it.
func TestDivideConsistentDisruption(t *testing.T) {
	t.Parallel()
	var names []string
	var shares []Share
	for i := range 10 {
		names = append(names, fmt.Sprintf("10.88.0.%d:80", i+2))
		shares = append(shares, Share{i, 100, i >= 7})
	}
	before := DivideConsistent(names, shares, 20)
	after := DivideConsistent(names[:9], shares[:9], 20)
	for slot, i := range before {
		if !shares[i].Canary && after[slot] != i {
			t.Fatalf("slot %d of a stable backend moved when a canary left", slot)
		}
	}
	more := DivideConsistent(names, shares, 21)
	gained := 0
	for slot, i := range before {
		switch was, is := shares[i].Canary, shares[more[slot]].Canary; {
		case was && !is:
			t.Fatalf("slot %d left the canary, which gets more", slot)
		case !was && is:
			gained++
		}
	}
	if want := ConsistentSize / 100; gained < want-1 || gained > want+2 {
		t.Errorf("one percent more has moved %d slots to the canary", gained)
	}
}

func canarySpec(percent int) Spec {
	spec := testSpec()
	spec.Canary = Canary{"canary", percent}
	return spec
}

// sides counts the ready backends of either side, and tells the canary's part
// of the map.
func (w *world) sides() (stable, canaries, percent int) {
	return w.s.ready(false), w.s.ready(true), w.percent
}

// TestCanaryWake: a stable replica first, then the canary, at its percent.
func TestCanaryWake(t *testing.T) {
	t.Parallel()
	for _, limit := range []int{1, 2, 10} {
		spec := canarySpec(10)
		spec.Max = limit
		w := newWorld(t, spec)
		w.accept()
		if len(w.call) != 1 || w.s.backend(1).canary {
			t.Fatalf("woken with %v", w.call)
		}
		w.finish(1, nil, false)
		w.health(1, true)
		if len(w.maps) != 2 || !w.ack() || w.call[2] != "" {
			t.Fatalf("the canary starts before anyone serves: %v", w.call)
		}
		w.ack()
		if w.served != 1 || w.call[2] != "start" || !w.s.backend(2).canary {
			t.Fatalf("served %d, calls %v", w.served, w.call)
		}
		w.calm()
		if st, ca, p := w.sides(); st != 1 || ca != 1 || p != 10 {
			t.Errorf("max %d: %d stable, %d canaries, %d %%", limit, st, ca, p)
		}
		if v := w.s.View(); v.Desired != 2 || v.Ready != 2 {
			t.Errorf("%+v", v)
		}
		w.pass(time.Minute)
		if v := w.s.View(); v.Phase != Cold || len(v.Backends) != 0 {
			t.Errorf("does not sleep: %+v", v)
		}
	}
}

// TestCanarySize: both sides are sized for their part of the load, and by Max
// together.
func TestCanarySize(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ n, percent, max, stable, canaries int }{
		{1, 10, 1, 1, 1}, {1, 10, 8, 1, 1}, {4, 10, 8, 4, 1}, {4, 10, 4, 3, 1}, {4, 50, 4, 2, 2}, {10, 25, 20, 8, 3},
		{4, 99, 4, 1, 3}, {4, 100, 4, 0, 4}, {4, 0, 4, 4, 0}, {20, 10, 40, 18, 2}, {21, 10, 40, 19, 3}, {2, 1, 2, 1, 1},
	} {
		spec := canarySpec(c.percent)
		spec.Max = c.max
		w := newWorld(t, spec)
		w.accept()
		w.calm()
		for range 60 { // full by the target: no less and no more
			at := w.indices()
			clear(w.flows)
			for k := range c.n * 10 {
				w.flows[at[k%len(at)]]++
			}
			w.pass(time.Second)
		}
		if st, ca, p := w.sides(); st != c.stable || ca != c.canaries || c.percent < 100 && p != c.percent {
			t.Errorf("%+v: %d stable, %d canaries, %d %%", c, st, ca, p)
		}
	}
}

// TestCanaryFails: one that cannot be made, does not start, or dies leaves all to
// the stable replicas, is tried less and less often, and the service is well.
func TestCanaryFails(t *testing.T) {
	t.Parallel()
	boom := errors.New("no such image")
	for name, fail := range map[string]func(w *world, i int){
		"no image": func(w *world, i int) { w.finish(i, boom, true) },
		"start":    func(w *world, i int) { w.finish(i, boom, false) },
		"crash": func(w *world, i int) {
			w.finish(i, nil, false)
			w.health(i, true)
			for w.ack() {
			}
			w.die(i)
		},
	} {
		for _, percent := range []int{20, 100} {
			spec := canarySpec(percent)
			spec.Min = 1
			w := newWorld(t, spec)
			starts := 0
			for end := w.now.Add(30 * time.Minute); w.now.Before(end); {
				for _, i := range w.indices() {
					b := w.s.backend(i)
					switch {
					case w.call[i] == "start" && b.canary:
						starts++
						fail(w, i)
					case w.call[i] != "":
						w.finish(i, nil, false)
					case w.probed[i] && !w.healthy[i] && w.up[i]:
						w.health(i, true)
					}
				}
				for w.ack() || w.count(0, true) {
				}
				w.now = w.now.Add(time.Second)
				w.load()
				if w.now.After(end.Add(-29*time.Minute)) && (w.s.ready(false) != 1 || w.s.Phase() != Warm || w.s.err != nil) {
					w.failf("%s at %d %%: the service is harmed: %+v", name, percent, w.s.View())
				}
			}
			if v := w.s.View(); v.Trial == nil {
				t.Errorf("%s at %d %%: nobody is told: %+v", name, percent, v)
			}
			if starts < 8 || starts > 16 {
				t.Errorf("%s at %d %%: %d starts in half an hour", name, percent, starts)
			}
			// Mended: its part is its own again, and its failures are forgotten.
			w.pass(6 * time.Minute)
			if st, ca, p := w.sides(); percent < 100 && (st != 1 || ca != 1 || p != percent) || percent == 100 && (st != 0 || ca != 1) {
				t.Errorf("%s at %d %%, mended: %d stable, %d canaries, %d %%", name, percent, st, ca, p)
			}
			if v := w.s.View(); v.Trial != nil || w.s.trial.tries != 0 {
				t.Errorf("%s at %d %%, mended: %+v, %d tries", name, percent, v, w.s.trial.tries)
			}
		}
	}
}

// TestCanaryEnds: promoted, the canary's replicas stay and the others are
// replaced; aborted, they lose their slots in one step and drain.
func TestCanaryEnds(t *testing.T) {
	t.Parallel()
	set := func(percent int) *world {
		spec := canarySpec(percent)
		spec.Min, spec.Max = 2, 2
		if percent == 100 {
			spec.Max = 4 // two that drain, two in their place
		}
		w := newWorld(t, spec)
		w.pass(5 * time.Second)
		return w
	}
	w := set(50)
	var canary, stable int
	for _, b := range w.s.backends {
		if b.canary {
			canary = b.index
		} else {
			stable = b.index
		}
	}
	w.flows[canary], w.flows[stable] = 1, 1
	spec := w.spec
	spec.Hash, spec.Canary = "canary", Canary{}
	w.step(Configure{spec})
	if !slices.Contains(w.asked, stable) {
		t.Error("the stable replica leaves before there is another in its place")
	}
	w.pass(5 * time.Second)
	if b := w.s.backend(canary); b == nil || b.state != Ready || b.canary {
		t.Errorf("the promoted canary is not kept: %+v", b)
	}
	if b := w.s.backend(stable); b == nil || b.state != DrainingFlows || w.s.ready(false) != 2 {
		t.Errorf("the former replica does not drain, or is not replaced: %+v", w.s.View())
	}

	for _, percent := range []int{50, 100} {
		w = set(percent)
		for _, i := range w.asked {
			w.flows[i] = 1
		}
		spec = w.spec
		spec.Canary.Percent = 0
		w.step(Configure{spec})
		if percent == 50 {
			for _, i := range w.asked {
				if w.s.backend(i).canary {
					t.Errorf("an aborted canary, %d, is in the map", i)
				}
			}
		} else if len(w.asked) == 0 {
			t.Error("an aborted canary leaves before a stable replica serves")
		}
		w.pass(5 * time.Second)
		if st, ca, _ := w.sides(); st != 2 || ca != 0 {
			t.Errorf("aborted: %+v", w.s.View())
		}
		if n := len(w.s.backends); n < 3 {
			t.Errorf("the flows of an aborted canary are cut: %+v", w.s.View())
		}
		clear(w.flows)
		w.pass(5 * time.Second)
		if n := len(w.s.backends); n != 2 {
			t.Errorf("aborted: %+v", w.s.View())
		}
	}
}

// TestCanaryHeld: connections that the daemon gives away itself go by percent.
func TestCanaryHeld(t *testing.T) {
	t.Parallel()
	spec := canarySpec(20)
	spec.Min = 1
	w := newWorld(t, spec)
	w.calm()
	got := 0
	for range 100 {
		w.next++
		w.conns[w.next] = w.now
		for _, a := range w.s.Step(w.now, Accepted{Conn: w.next}) {
			if sv, ok := a.(Serve); ok && w.s.backend(sv.Index).canary {
				got++
			}
		}
	}
	if got != 20 {
		t.Errorf("the canary was given %d of 100 held connections, want 20", got)
	}
}

// TestDivideWeightless: what weighs nothing gets no slot on either side.
func TestDivideWeightless(t *testing.T) {
	t.Parallel()
	shares := []Share{{Index: 1, Weight: 100}, {Index: 2}, {Index: 3, Weight: 100, Canary: true}, {Index: 4, Canary: true}}
	for slot, i := range Divide(shares, 20, 10) {
		if i == 1 || i == 3 {
			t.Errorf("slot %d goes to %+v", slot, shares[i])
		}
	}
}
