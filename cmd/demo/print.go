package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// page prints the story: numbered headlines with the time since the beginning,
// and lines below them.
type page struct {
	w     io.Writer
	begin time.Time
	n     int
}

func (p *page) head(format string, args ...any) {
	p.n++
	title := fmt.Sprintf("%d. %s", p.n, fmt.Sprintf(format, args...))
	fmt.Fprintf(p.w, "\n%-70s %6.1f s\n", title, time.Since(p.begin).Seconds())
}

// say prints one line of prose.
func (p *page) say(format string, args ...any) {
	fmt.Fprintf(p.w, "   %s\n", fmt.Sprintf(format, args...))
}

// at prints what happened at a moment of a timeline.
func (p *page) at(at time.Duration, format string, args ...any) {
	fmt.Fprintf(p.w, "   %8.1f ms  %s\n", ms(at), fmt.Sprintf(format, args...))
}

// A moment is a line of a timeline that consists of steps.
type moment struct {
	at   time.Duration
	took time.Duration // of the step that ends here, if any
	name string
	text string
}

// timeline prints moments in their order. (What a process sees may come after
// what another one has made of it.)
func (p *page) timeline(ms []moment) {
	slices.SortStableFunc(ms, func(a, b moment) int { return cmp.Compare(a.at, b.at) })
	fmt.Fprintf(p.w, "   %11s %9s\n", "since SYN", "step")
	for _, m := range ms {
		step := ""
		if m.took > 0 {
			step = fmt.Sprintf("%+.1f", float64(m.took)/float64(time.Millisecond))
		}
		p.at(m.at, "%8s  %-8s %s", step, m.name, m.text)
	}
}

// quote prints the output of a program.
func (p *page) quote(text string) {
	for line := range strings.Lines(text) {
		fmt.Fprintf(p.w, "   | %s\n", strings.TrimRight(line, " \n"))
	}
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
