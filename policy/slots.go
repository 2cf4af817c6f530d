package policy

import (
	"slices"
	"strings"
)

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

// SlotCount chooses how many slots backends with these weights get, from
// classes in ascending order: the fewest in which every weight is met exactly,
// else the fewest in which no share is off by more than a sixteenth of itself,
// else the largest. Weights below one get no slot.
func SlotCount(weights, classes []int) int {
	unit, total, least := 0, 0, 0
	for _, w := range weights {
		if w < 1 {
			continue
		}
		unit = gcd(unit, w)
		total += w
		if least == 0 || w < least {
			least = w
		}
	}
	if total == 0 {
		return 0
	}
	for _, c := range classes {
		if c%(total/unit) == 0 {
			return c
		}
	}
	for _, c := range classes {
		if c*least >= 8*total { // rounding moves a share by half a slot
			return c
		}
	}
	return classes[len(classes)-1]
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// byName returns the indices of names in the order of the names.
func byName(names []string) []int {
	order := make([]int, len(names))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return strings.Compare(names[a], names[b]) })
	return order
}
