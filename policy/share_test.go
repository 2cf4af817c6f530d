package policy

import "testing"

// TestServeWeights: held connections level the loads of members in proportion to
// their weights, and one whose weight is 0 gets none.
func TestServeWeights(t *testing.T) {
	t.Parallel()
	spec := testSpec()
	spec.Max = 0
	w := newWorld(t, spec)
	weights := []int{1, 0, 3}
	var list []Member
	for i, weight := range weights {
		w.up[FirstMember+i], w.members = true, true
		list = append(list, Member{Index: FirstMember + i, Weight: weight})
	}
	w.step(Members{list})
	w.calm()
	for _, c := range []struct{ loads, want [3]int }{
		{[3]int{0, 0, 0}, [3]int{10, 0, 30}},
		{[3]int{20, 5, 20}, [3]int{20, 5, 60}},
	} {
		for i, load := range c.loads {
			w.flows[FirstMember+i] = load
		}
		w.load()
		for range 40 {
			w.accept()
		}
		for i, b := range w.s.View().Backends {
			if b.Flows != c.want[i] {
				w.failf("weights %v, loads %v and 40 connections: backend %d has %d, want %v", weights, c.loads, i, b.Flows, c.want)
			}
		}
	}
}
