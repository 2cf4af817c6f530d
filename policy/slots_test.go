package policy

import (
	"math"
	"math/rand/v2"
	"testing"
)

func classes() []int {
	return []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024}
}

// TestSpread: shares follow the weights to less than one slot, and equal
// weights alternate strictly.
func TestSpread(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		weights := make([]int, 1+r.IntN(20))
		total := 0
		for i := range weights {
			weights[i] = r.IntN(200)
			total += weights[i]
		}
		size := SlotCount(weights, classes())
		slots := Spread(weights, size)
		if total == 0 {
			if len(slots) != 0 {
				t.Fatalf("%v has slots", weights)
			}
			continue
		}
		got := make([]int, len(weights))
		for _, b := range slots {
			got[b]++
		}
		for i, w := range weights {
			ideal := float64(size) * float64(w) / float64(total)
			if math.Abs(float64(got[i])-ideal) >= 1 {
				t.Fatalf("weights %v: backend %d has %d of %d slots, want %.2f", weights, i, got[i], size, ideal)
			}
		}
	}
	for n := 1; n <= 16; n++ {
		weights := make([]int, n)
		for i := range weights {
			weights[i] = 100
		}
		slots := Spread(weights, SlotCount(weights, classes()))
		if len(slots) != n {
			t.Fatalf("%d equal backends have %d slots", n, len(slots))
		}
		for i, b := range slots {
			if b != i {
				t.Fatalf("%d equal backends: %v", n, slots)
			}
		}
	}
}

// TestNoSlots: with nothing to choose from, or nothing to fill, there are none.
func TestNoSlots(t *testing.T) {
	t.Parallel()
	for _, weights := range [][]int{nil, {0}, {0, -1}} {
		if s := Spread(weights, 8); len(s) > 0 {
			t.Errorf("%v: %v", weights, s)
		}
		if s := Consistent(make([]string, len(weights)), weights); len(s) > 0 {
			t.Errorf("%v: %v", weights, s)
		}
		if n := SlotCount(weights, classes()); n != 0 {
			t.Errorf("%v: %d slots", weights, n)
		}
	}
	if s := Spread([]int{1}, 0); len(s) > 0 {
		t.Errorf("of no slots: %v", s)
	}
	for _, b := range Consistent([]string{"a", "b", "c"}, []int{100, 0, 50}) {
		if b == 1 {
			t.Fatal("a backend without weight has a slot")
		}
	}
	if n := SlotCount([]int{1, 1000}, []int{1, 2, 16}); n != 16 {
		t.Errorf("%d slots, want the most there are", n)
	}
}
