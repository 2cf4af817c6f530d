package policy

import (
	"math"
	"slices"
)

// LevelSize is the number of slots of a service whose flows are levelled.
const LevelSize = 64

// Level divides LevelSize slots so that the next arrivals flows leave backends
// with loads in proportion to their weights, as far as arrivals can: those that
// carry least get most. Each backend with a weight keeps at least one slot.
// The slots of a service that has least-connections are set to this whenever
// its loads are known anew.
func Level(flows, weights []int, arrivals int) []int {
	n := len(flows)
	out := make([]int, n)
	var on []int
	for i, w := range weights {
		if w > 0 {
			on = append(on, i)
		}
	}
	if len(on) == 0 || len(on) > LevelSize {
		return out
	}
	// Fill up to a common level of flows per weight, lowest first.
	slices.SortStableFunc(on, func(a, b int) int { return flows[a]*weights[b] - flows[b]*weights[a] })
	room := float64(max(arrivals, 1))
	level, width := float64(flows[on[0]])/float64(weights[on[0]]), 0.0
	for k, i := range on {
		width += float64(weights[i])
		next := math.Inf(1)
		if k+1 < len(on) {
			next = float64(flows[on[k+1]]) / float64(weights[on[k+1]])
		}
		if (next-level)*width >= room {
			level += room / width
			break
		}
		room -= (next - level) * width
		level = next
	}
	// One slot each, the rest by what is missing to the level.
	missing, total := make([]float64, n), 0.0
	for _, i := range on {
		missing[i] = max(level*float64(weights[i])-float64(flows[i]), 0)
		total += missing[i]
		out[i] = 1
	}
	spare := LevelSize - len(on)
	left := spare
	for _, i := range on {
		k := int(missing[i] / total * float64(spare))
		out[i] += k
		left -= k
		missing[i] -= float64(k) * total / float64(spare)
	}
	slices.SortStableFunc(on, func(a, b int) int {
		switch {
		case missing[a] > missing[b]:
			return -1
		case missing[a] < missing[b]:
			return 1
		}
		return 0
	})
	for k := range left {
		out[on[k%len(on)]]++
	}
	return out
}
