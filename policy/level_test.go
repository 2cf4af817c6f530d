package policy

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// TestLevel: slots are all used, everyone has one, and who carries less per
// weight never gets fewer slots per weight.
func TestLevel(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(5, 6))
	for range 5000 {
		n := 1 + r.IntN(12)
		flows, weights := make([]int, n), make([]int, n)
		for i := range flows {
			flows[i], weights[i] = r.IntN(300), 100
		}
		out := Level(flows, weights, r.IntN(200))
		sum := 0
		for i := range out {
			sum += out[i]
			if out[i] < 1 {
				t.Fatalf("%v: backend %d has no slot: %v", flows, i, out)
			}
			for j := range out {
				if flows[i] < flows[j] && out[i] < out[j] {
					t.Fatalf("%v: %v", flows, out)
				}
			}
		}
		if sum != LevelSize {
			t.Fatalf("%v: %d slots", out, sum)
		}
	}
	if out := Level([]int{0, 50, 100}, []int{100, 100, 100}, 20); out[0] < 60 {
		t.Errorf("an idle backend gets %v", out)
	}
	if out := Level([]int{0, 0, 0, 0}, []int{100, 100, 100, 100}, 1); !slices.Equal(out, []int{16, 16, 16, 16}) {
		t.Errorf("equal backends get %v", out)
	}
	if out := Level([]int{0, 0}, []int{100, 300}, 100); out[1] < 2*out[0] {
		t.Errorf("weights 1:3 get %v", out)
	}
	if out := Level([]int{5, 5}, []int{0, 1}, 100); !slices.Equal(out, []int{0, LevelSize}) {
		t.Errorf("weights 0:1 get %v", out)
	}
}

// TestLevelTrace: on a trace of short and long connections the loads stay as
// level as when each connection goes to the least loaded backend.
func TestLevelTrace(t *testing.T) {
	t.Parallel()
	const backends, ticks, perTick = 8, 2000, 10
	worst := func(choose func(flows []int, slots []int, k int) int) float64 {
		r := rand.New(rand.NewPCG(7, 8))
		flows, weights := make([]int, backends), make([]int, backends)
		for i := range weights {
			weights[i] = 100
		}
		ends := map[int][]int{}
		sum := 0.0
		for tick := range ticks {
			for _, b := range ends[tick] {
				flows[b]--
			}
			delete(ends, tick)
			slots := spreadCounts(Level(flows, weights, perTick))
			for k := range perTick {
				b := choose(flows, slots, tick*perTick+k)
				flows[b]++
				life := 1 + r.IntN(5)
				if r.IntN(10) == 0 {
					life = 200 + r.IntN(400)
				}
				ends[tick+life] = append(ends[tick+life], b)
			}
			if tick > 500 {
				total := 0
				for _, f := range flows {
					total += f
				}
				sum += float64(slices.Max(flows)) * backends / float64(total)
			}
		}
		return sum / (ticks - 501)
	}
	level := worst(func(_, slots []int, k int) int { return slots[k%len(slots)] })
	least := worst(func(flows, _ []int, _ int) int { return slices.Index(flows, slices.Min(flows)) })
	t.Logf("maximum to mean load: by slots %.3f, one by one %.3f", level, least)
	if level > 1.1*least {
		t.Errorf("slots keep loads %.3f uneven, connection by connection it is %.3f", level, least)
	}
}

func spreadCounts(counts []int) []int { return Spread(counts, LevelSize) }

// TestLevelMany: more backends than slots are not levelled.
func TestLevelMany(t *testing.T) {
	t.Parallel()
	flows, weights := make([]int, LevelSize+1), make([]int, LevelSize+1)
	for i := range weights {
		weights[i] = 1
	}
	if out := Level(flows, weights, 1); slices.Max(out) > 0 {
		t.Errorf("%v", out)
	}
	if out := Level(flows[1:], weights[1:], 1); slices.Min(out) != 1 || slices.Max(out) != 1 {
		t.Errorf("%v", out)
	}
}
