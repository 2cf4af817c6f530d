package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// report prints a table, line by line as figures come in.
type report struct{ w io.Writer }

func newReport(w io.Writer) *report { return &report{w} }

func (r *report) title(version string) {
	var u unix.Utsname
	kernel := "?"
	if unix.Uname(&u) == nil {
		kernel = unix.ByteSliceToString(u.Release[:])
	}
	load, _ := os.ReadFile("/proc/loadavg") // for the reader's judgement only
	busy, _, _ := strings.Cut(string(load), " ")
	fmt.Fprintf(r.w, "%s\nkernel %s, %d processors, load average %s when begun\n\n", strings.TrimSpace(version), kernel, runtime.NumCPU(), busy)
	r.row("", "sluice", "without", "figure", "goal")
}

func (r *report) row(what, with, without, figure, goal string) {
	fmt.Fprintf(r.w, "%-56s %12s %12s %12s   %s\n", what, with, without, figure, goal)
}

// ratio is a row whose figure is the median of ratios, each of two things that
// were measured in turn, with what is certain about the goal.
func (r *report) ratio(what, with, without string, all []float64, goal string) {
	lo, hi := interval(all)
	verdict := ""
	if limit, err := strconv.ParseFloat(strings.TrimPrefix(goal, ">= "), 64); err == nil {
		switch {
		case lo >= limit:
			verdict = ": met"
		case hi < limit:
			verdict = ": missed"
		default:
			verdict = ": undecided"
		}
	}
	r.row(what, with, without, fmt.Sprintf("%.3f", median(all)), fmt.Sprintf("%s%s (95 %% sure: %.3f to %.3f)", goal, verdict, lo, hi))
}

// part begins a part of the table.
func (r *report) part(what string) { fmt.Fprintf(r.w, "\n%s\n", what) }

func mebi(bytes int64) string { return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20)) }

func msec(d time.Duration) string {
	return fmt.Sprintf("%.2f ms", float64(d)/float64(time.Millisecond))
}

// quantile is the smallest value that at least the share q of all do not exceed.
func quantile[T cmp.Ordered](all []T, q float64) T {
	all = slices.Sorted(slices.Values(all))
	return all[min(int(q*float64(len(all))), len(all)-1)]
}

func median[T cmp.Ordered](all []T) T { return quantile(all, 0.5) }
