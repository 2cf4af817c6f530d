package simulate

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// A Curve says what load there is at each time of a trace.
type Curve struct {
	Length time.Duration
	Random bool // flows begin by chance (Poisson), and last so (exponential)
	Seed   uint64
	// at returns new flows per second, how long they last on average, and
	// until when at most this may be taken for unchanged.
	at func(t time.Duration) (rate float64, last, until time.Duration)
}

// grain is how long a rate that changes all the time is taken for constant.
const grain = 10 * time.Millisecond

// Shapes are the names that [Shape] knows.
func Shapes() []string { return []string{"constant", "ramp", "spike", "sine", "poisson"} }

// Bounds of what a trace may say, so that no sum of it overflows.
const (
	maxRate = 1e6 // per second
	maxTime = 10 * 366 * 24 * time.Hour
)

// Shape returns a synthetic load that reaches rate new flows per second, each
// of which lasts so long:
//
//   - constant is rate all the time,
//   - ramp grows from nothing to rate,
//   - spike is a tenth of rate, but all of it in the middle tenth of length,
//   - sine goes from nothing to rate and back once, as a day does,
//   - poisson is constant on average and random.
func Shape(name string, rate float64, last, length time.Duration) (*Curve, error) {
	if !slices.Contains(Shapes(), name) {
		return nil, fmt.Errorf("no shape %q: one of %s", name, strings.Join(Shapes(), ", "))
	}
	if !(rate > 0 && rate <= maxRate) {
		return nil, fmt.Errorf("rate %v: want more than 0 and at most %v new connections per second", rate, maxRate)
	}
	if length <= 0 || length > maxTime {
		return nil, fmt.Errorf("length %s: want more than 0s and at most %s", length, maxTime)
	}
	if last < 0 || last > maxTime {
		return nil, fmt.Errorf("duration %s: want at least 0s and at most %s", last, maxTime)
	}
	part := func(t time.Duration) float64 { return float64(t) / float64(length) }
	c := &Curve{Length: length, Random: name == "poisson"}
	c.at = func(t time.Duration) (float64, time.Duration, time.Duration) {
		switch name {
		case "ramp":
			return rate * part(t), last, t + grain
		case "spike":
			from, to := length*45/100, length*55/100
			switch {
			case t < from:
				return rate / 10, last, from
			case t < to:
				return rate, last, to
			}
			return rate / 10, last, length
		case "sine":
			return rate * (1 - math.Cos(2*math.Pi*part(t))) / 2, last, t + grain
		}
		return rate, last, length
	}
	return c, nil
}

// step is a load that holds until the next one.
type step struct {
	at   time.Duration
	rate float64
	last time.Duration
}

// steps makes a curve of loads in the order of their times. The last one holds
// for as long as the one before it, a single one for a minute.
func steps(list []step) (*Curve, error) {
	if len(list) == 0 {
		return nil, errors.New("has no line with a load")
	}
	hold := time.Minute
	if n := len(list); n > 1 {
		hold = list[n-1].at - list[n-2].at
	}
	c := &Curve{Length: list[len(list)-1].at + hold}
	c.at = func(t time.Duration) (float64, time.Duration, time.Duration) {
		i, ok := slices.BinarySearchFunc(list, t, func(s step, t time.Duration) int { return int(s.at - t) })
		if !ok {
			i--
		}
		if i < 0 {
			return 0, 0, list[0].at
		}
		until := time.Duration(math.MaxInt64)
		if i+1 < len(list) {
			until = list[i+1].at
		}
		return list[i].rate, list[i].last, until
	}
	return c, nil
}

// Source returns the flows of the curve until its length.
func (c *Curve) Source() Source {
	g := &generator{curve: *c, rand: rand.New(rand.NewPCG(c.Seed, 0))} //nolint:gosec // to be repeatable
	g.left = g.gap()
	return g
}

// generator walks along a curve: a flow begins each time that the area below
// it has grown by one, on average.
type generator struct {
	curve Curve
	rand  *rand.Rand
	now   time.Duration
	left  float64 // area until the next flow
}

func (g *generator) gap() float64 {
	if g.curve.Random {
		return g.rand.ExpFloat64()
	}
	return 1
}

func (g *generator) Next() (Flow, bool) {
	for g.now < g.curve.Length {
		rate, last, until := g.curve.at(g.now)
		until = min(until, g.curve.Length)
		if area := rate * (until - g.now).Seconds(); area < g.left {
			g.left -= area
			g.now = until
			continue
		}
		g.now += time.Duration(g.left / rate * float64(time.Second))
		g.left = g.gap()
		if g.curve.Random {
			last = time.Duration(min(g.rand.ExpFloat64()*float64(last), float64(maxTime)))
		}
		return Flow{Start: min(g.now, g.curve.Length), Last: last}, true
	}
	return Flow{}, false
}
