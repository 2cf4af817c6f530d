package policy

// Spread fills size slots with indices into weights, each as often as its
// weight asks for and as evenly spread as can be (smooth weighted round-robin:
// https://github.com/nginx/nginx/commit/52327e0627f49dbda1e8db695e63a4b0af4448b1).
// The shares differ from the weights by less than one slot. Weights below one
// get no slot; with no weight at all there are no slots.
func Spread(weights []int, size int) []int {
	total := 0
	for _, w := range weights {
		total += max(w, 0)
	}
	if total == 0 || size == 0 {
		return nil
	}
	out := make([]int, 0, size)
	credit := make([]int, len(weights))
	for range size {
		best := -1
		for i, w := range weights {
			if w < 1 {
				continue
			}
			credit[i] += w
			if best < 0 || credit[i] > credit[best] {
				best = i
			}
		}
		credit[best] -= total
		out = append(out, best)
	}
	return out
}

// SlotCount chooses how many slots n backends of equal weight get, from
// classes in ascending order: exactly n where there is such a class, else the
// first that divides evenly, else the first at which no backend's share is
// off by more than a sixteenth, else the largest.
func SlotCount(n int, classes []int) int {
	for _, c := range classes {
		if c >= n && c%n == 0 {
			return c
		}
	}
	for _, c := range classes {
		if c >= 16*n {
			return c
		}
	}
	return classes[len(classes)-1]
}
