package policy

import (
	"hash/fnv"
	"math"
)

// A consistent table has ConsistentSize slots. The share of a backend may be
// off by slack: the price for moving little when backends come and go.
const (
	ConsistentSize = 2048
	slack          = 0.008
)

// Consistent fills a table of ConsistentSize slots with indices into names, so
// that hosts with the same names and weights, in any order, fill it alike,
// shares follow the weights to 1 % of the table, and little more than its own
// slots moves when a backend comes or goes. Weights below one get no slot;
// with no weight at all there are no slots.
//
// It serves where Maglev does (Eisenbud et al., "Maglev", NSDI 2016), at a
// size at which Maglev's own way of filling the table moves up to a tenth of
// all slots needlessly, which ends only above 60,000 slots: each slot takes the
// backend that weighted rendezvous hashing prefers for it, then slots that
// prefer least move from backends that have too many to those that have room.
func Consistent(names []string, weights []int) []int {
	slots := make([]int, ConsistentSize)
	for i := range slots {
		slots[i] = i
	}
	return consistent(names, weights, slots)
}

// consistent fills the given slots of a table.
func consistent(names []string, weights, slots []int) []int {
	total := 0
	for _, w := range weights {
		total += max(w, 0)
	}
	if total == 0 {
		return nil
	}
	size := float64(len(slots))
	play := max(slack*size, 1) // less than a slot leaves some without a taker
	f := &filling{order: byName(names), weights: weights, slots: slots}
	f.seeds = make([]uint64, len(names))
	f.least, f.most, f.have = make([]int, len(names)), make([]int, len(names)), make([]int, len(names))
	for i, n := range names {
		h := fnv.New64a()
		_, _ = h.Write([]byte(n)) // never fails
		f.seeds[i] = h.Sum64()
		share := float64(max(weights[i], 0)) / float64(total)
		f.least[i] = int(math.Ceil(size*share - play))
		f.most[i] = int(size*share + play)
		if weights[i] < 1 {
			f.most[i] = 0
		}
	}
	f.table = make([]int, len(slots))
	for slot := range f.table {
		best, _ := f.prefer(slot, func(i int) bool { return weights[i] > 0 })
		f.table[slot] = best
		f.have[best]++
	}
	for _, i := range f.order {
		for f.have[i] > f.most[i] {
			f.move(func(from int) bool { return from == i }, func(to int) bool { return f.have[to] < f.most[to] })
		}
	}
	for _, i := range f.order {
		for f.have[i] < f.least[i] {
			f.move(func(from int) bool { return f.have[from] > f.least[from] }, func(to int) bool { return to == i })
		}
	}
	return f.table
}

// filling is a consistent table in the making.
type filling struct {
	order             []int // indices by name
	weights           []int
	slots             []int // their numbers in the whole table
	seeds             []uint64
	table             []int
	have, least, most []int
}

// score says how much a slot prefers a backend.
func (f *filling) score(slot, i int) float64 {
	u := (float64(mix(f.seeds[i]^mix(uint64(f.slots[slot])))>>11) + 0.5) / (1 << 53) //nolint:gosec // a slot is not negative
	return -float64(f.weights[i]) / math.Log(u)
}

// prefer returns the backend that a slot prefers among those allowed.
func (f *filling) prefer(slot int, ok func(int) bool) (best int, score float64) {
	best = -1
	for _, i := range f.order {
		if f.weights[i] < 1 || !ok(i) {
			continue
		}
		if sc := f.score(slot, i); best < 0 || sc > score {
			best, score = i, sc
		}
	}
	return best, score
}

// move moves the slot that minds it least.
func (f *filling) move(from, to func(int) bool) {
	slot, target, regret := -1, -1, 0.0
	for s, b := range f.table {
		if !from(b) {
			continue
		}
		// There is always one: of all slots less than all backends may have
		// are taken, and more than all have to have are.
		t, sc := f.prefer(s, func(i int) bool { return i != b && to(i) })
		if r := f.score(s, b) / sc; slot < 0 || r < regret {
			slot, target, regret = s, t, r
		}
	}
	f.have[f.table[slot]]--
	f.have[target]++
	f.table[slot] = target
}

// mix spreads what little differs between similar names over all bits
// (the finaliser of SplitMix64).
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
