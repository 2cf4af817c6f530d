package policy

import (
	"math"
	"testing"
	"time"
)

// TestScaler: what a minute and a half of loads, one a second, leads to, by the
// rules of Knative's autoscaler. Each replica should carry ten flows.
func TestScaler(t *testing.T) {
	t.Parallel()
	c := Scaling{Max: 20, Flows: 10, Utilization: 1, Stable: 60 * time.Second, Panic: 6 * time.Second}
	constant := func(n int) func(int) int { return func(int) int { return n } }
	for _, tt := range []struct {
		name  string
		load  func(second int) int
		ready int // all the time
		at    map[int]int
	}{
		{"as much as is carried", constant(30), 3, map[int]int{1: 3, 30: 3, 90: 3}},
		{"a little more, inside the dead band", constant(33), 3, map[int]int{90: 3}},
		{"a little less, inside the dead band", constant(28), 3, map[int]int{90: 3}},
		{"more", constant(34), 3, map[int]int{5: 4, 90: 4}},
		{"less, once the most of the window has passed", func(s int) int {
			if s < 10 {
				return 30
			}
			return 10
		}, 3, map[int]int{9: 3, 40: 3, 60: 3, 90: 2}},
		{"slowly more", func(s int) int { return 20 + s/6 }, 2, map[int]int{10: 2, 85: 3}},
		{"suddenly more: by the last seconds, not by the minute", func(s int) int {
			if s < 50 {
				return 10
			}
			return 100
		}, 1, map[int]int{49: 1, 51: 4, 55: 10, 60: 10}},
		{"suddenly more, for a moment: not down for a minute", func(s int) int {
			if s >= 20 && s < 26 {
				return 100
			}
			return 10
		}, 1, map[int]int{19: 1, 25: 10, 40: 10, 80: 10}},
		{"more than there may be", constant(1000), 1, map[int]int{1: 20, 90: 20}},
		{"nothing", constant(0), 3, map[int]int{90: 1}},
	} {
		var sc scaler
		now := time.Unix(1e9, 0)
		for s := range 91 {
			sc.observe(now, c.Stable, tt.load(s), 0, 0)
			got := sc.desired(now, c, tt.ready)
			if want, ok := tt.at[s]; ok && got != want {
				t.Errorf("%s: %d wanted after %d s, want %d", tt.name, got, s, want)
			}
			now = now.Add(time.Second)
		}
	}
}

// TestScalerPanic: inside a panic there is no way down, and it ends a stable
// window after the last sign of it.
func TestScalerPanic(t *testing.T) {
	t.Parallel()
	c := Scaling{Max: 20, Flows: 10, Utilization: 1, Stable: 10 * time.Second, Panic: 2 * time.Second}
	var sc scaler
	now := time.Unix(1e9, 0)
	for s := range 40 {
		load, ready := 10, 5
		if s < 3 {
			load, ready = 50, 1
		}
		sc.observe(now, c.Stable, load, 0, 0)
		got := sc.desired(now, c, ready)
		switch {
		case s < 12 && got < 5:
			t.Errorf("%d wanted after %d s, inside the panic", got, s)
		case s > 25 && got != 1:
			t.Errorf("%d wanted after %d s, long after the panic", got, s)
		}
		if s == 10 {
			if n := sc.recs[len(sc.recs)-1].n; n < 5 {
				t.Errorf("%d recommended inside the panic", n)
			}
		}
		now = now.Add(time.Second)
	}
}

// TestScalerRate: a rate is per second, however short the time that it was seen
// in, and does not count what began before.
func TestScalerRate(t *testing.T) {
	t.Parallel()
	c := Scaling{Max: 1000, Rate: 5, Utilization: 0.5, Stable: 20 * time.Second, Panic: 4 * time.Second}
	sc := scaler{total: 1000}
	now := time.Unix(1e9, 0)
	sc.observe(now, c.Stable, 1, 0, 1000)
	sc.observe(now.Add(time.Millisecond), c.Stable, 1, 0, 1003)
	if n := sc.desired(now.Add(time.Millisecond), c, 1); n != 2 { // 3 a second, 2.5 for each
		t.Errorf("%d wanted for three flows in a millisecond", n)
	}
	for i := range 20 {
		now = now.Add(time.Second)
		sc.observe(now, c.Stable, 1, 0, 1003+uint64(i+1)*10)
	}
	if need := sc.need(now, c, c.Stable); math.Abs(need-4) > 0.1 {
		t.Errorf("%.2f needed for ten flows a second, want 4", need)
	}
	if begun := sc.observe(now, c.Stable, 1, 0, 7); begun {
		t.Error("a lower total is no new flow")
	}
}

// TestScalerForgets: loads are not kept beyond the window where nobody asks what
// they call for: of a service that idles at its minimum, of one without replicas,
// and of one for which members serve.
func TestScalerForgets(t *testing.T) {
	t.Parallel()
	idle := testSpec()
	idle.Min = 1
	fixed := testSpec()
	fixed.Max = 0
	spare := testSpec()
	spare.Priority = 1
	for name, spec := range map[string]Spec{"idle": idle, "fixed": fixed, "spare": spare} {
		w := newWorld(t, spec)
		if name != "idle" {
			w.list(1 | 1<<2)
		}
		w.pass(10 * time.Minute)
		if n := len(w.s.scaler.samples); w.s.Phase() != Warm || n > 21 {
			t.Errorf("%s, %v: %d loads kept", name, w.s.Phase(), n)
		}
	}
}
