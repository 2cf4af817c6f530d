package main

import (
	"fmt"
	"slices"

	"sluice/testenv"
)

// pairs are figures of two things that were measured in turn. The machine's
// other work changes from one moment to the next: the two of a pair have met
// the same.
type pairs struct{ with, without, ratio []float64 }

// add measures one more pair; which of the two comes first alternates.
func (p *pairs) add(t testenv.TB, with, without func() (float64, error)) {
	t.Helper()
	var got [2]float64
	turn := len(p.ratio) % 2
	for _, half := range []int{turn, 1 - turn} {
		n, err := []func() (float64, error){with, without}[half]()
		if err != nil {
			t.Fatalf("measure: %v", err)
		}
		got[half] = n
	}
	p.put(got[0], got[1])
}

func (p *pairs) put(with, without float64) {
	p.with, p.without = append(p.with, with), append(p.without, without)
	p.ratio = append(p.ratio, with/without)
}

func (p *pairs) report(r *report, name, goal string) {
	r.ratio(fmt.Sprintf("%s, median of %d pairs", name, len(p.ratio)), fmt.Sprintf("%.0f", median(p.with)),
		fmt.Sprintf("%.0f", median(p.without)), p.ratio, goal)
	with, without := slices.Max(p.with), slices.Max(p.without)
	r.row("  the same, best of all", fmt.Sprintf("%.0f", with), fmt.Sprintf("%.0f", without), fmt.Sprintf("%.3f", with/without), "")
}
