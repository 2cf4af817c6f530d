package policy

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestConsistent: shares are within 1 % of the weights, the order of the names does
// not matter, and a backend that leaves moves at most its own share plus 2 %.
func TestConsistent(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(3, 4))
	worst, most := 0.0, 0.0
	for range 200 {
		n := 2 + r.IntN(15)
		names, weights := make([]string, n), make([]int, n)
		total := 0
		for i := range names {
			names[i] = fmt.Sprintf("10.%d.%d.%d:80", r.IntN(256), r.IntN(256), i)
			weights[i] = 100
			if r.IntN(2) == 0 {
				weights[i] = 1 + r.IntN(200)
			}
			total += weights[i]
		}
		table := Consistent(names, weights)
		share := make([]float64, n)
		for _, b := range table {
			share[b] += 1.0 / ConsistentSize
		}
		for i, w := range weights {
			off := math.Abs(share[i] - float64(w)/float64(total))
			most = max(most, off)
			if off > 0.01 {
				t.Fatalf("%v: share of %d is %.4f, off by %.4f", weights, i, share[i], off)
			}
		}
		swapped := slices.Clone(names)
		slices.Reverse(swapped)
		back := slices.Clone(weights)
		slices.Reverse(back)
		for slot, b := range Consistent(swapped, back) {
			if swapped[b] != names[table[slot]] {
				t.Fatal("the order of the names matters")
			}
		}
		gone := r.IntN(n)
		rest := slices.Delete(slices.Clone(names), gone, gone+1)
		moved := 0
		for slot, b := range Consistent(rest, slices.Delete(slices.Clone(weights), gone, gone+1)) {
			if rest[b] != names[table[slot]] {
				moved++
			}
		}
		extra := float64(moved)/ConsistentSize - share[gone]
		worst = max(worst, extra)
	}
	t.Logf("worst share off by %.4f, worst disruption beyond the own share %.4f", most, worst)
	if worst > 0.02 {
		t.Errorf("a backend that left has moved %.4f more than its own share", worst)
	}
}
