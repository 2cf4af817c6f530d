package policy

import (
	"math"
	"time"
)

// Scaling says how many replicas a load needs. The rules are those of the
// Knative pod autoscaler: averages over a stable and a panic window.
type Scaling struct {
	Min, Max    int
	Flows       int           // live flows that one replica should carry; 0: not looked at
	Rate        float64       // new flows per second that one replica should take; 0: not looked at
	Utilization float64       // share of the two above to aim for
	Stable      time.Duration // window of ordinary decisions, and of the scale-down maximum
	Panic       time.Duration // window that finds a sudden rise
}

const (
	panicThreshold = 2.0                    // times what the replicas should carry
	deadBand       = 0.1                    // of the target: no change inside it
	grain          = 100 * time.Millisecond // loads that come faster replace each other
	least          = time.Second            // a load stands for at least so long
)

// A sample is one known load, and recommendation what it led to. Loads come at
// any time, often just when a backend has lost its last flow: each counts for
// as long as it stood.
type sample struct {
	at    time.Time
	flows float64
	total uint64 // flows begun until then
}

type recommendation struct {
	at time.Time
	n  int
}

// scaler turns loads into a number of replicas.
type scaler struct {
	samples []sample
	recs    []recommendation
	panicAt time.Time // last time the panic threshold was crossed; zero: no panic
	total   uint64    // new flows at the last sample
}

// reset forgets everything: the service has just woken.
func (sc *scaler) reset() {
	sc.samples, sc.recs, sc.panicAt = sc.samples[:0], sc.recs[:0], time.Time{}
}

// observe adds a load and says whether any flow has begun since the last. Loads
// older than keep go: there may be nobody who asks for a number of replicas.
func (sc *scaler) observe(now time.Time, keep time.Duration, flows, queued int, total uint64) (begun bool) {
	sc.forget(now, keep)
	if n := len(sc.samples); n > 1 && sc.samples[n-1].at.Sub(sc.samples[n-2].at) < grain {
		sc.samples = sc.samples[:n-1]
	}
	begun = total > sc.total
	sc.total = max(total, sc.total)
	sc.samples = append(sc.samples, sample{now, float64(flows + queued), sc.total})
	return begun
}

func (sc *scaler) forget(now time.Time, keep time.Duration) {
	for len(sc.samples) > 0 && now.Sub(sc.samples[0].at) > keep {
		sc.samples = sc.samples[1:]
	}
}

// desired recommends a number of replicas between 1 and Max for what was
// observed, of which ready carry it now. Without any sample it says ready.
func (sc *scaler) desired(now time.Time, c Scaling, ready int) int {
	sc.forget(now, c.Stable)
	for len(sc.recs) > 0 && now.Sub(sc.recs[0].at) > c.Stable {
		sc.recs = sc.recs[1:]
	}
	if len(sc.samples) == 0 {
		return max(ready, 1)
	}
	stable := sc.need(now, c, c.Stable)
	sudden := sc.need(now, c, c.Panic)
	carried := float64(max(ready, 1))

	if sudden/carried >= panicThreshold {
		sc.panicAt = now
	} else if !sc.panicAt.IsZero() && now.Sub(sc.panicAt) >= c.Stable {
		sc.panicAt = time.Time{}
	}

	need := stable
	if !sc.panicAt.IsZero() {
		need = max(sudden, carried) // never down inside a panic
	}
	n := int(math.Ceil(need - 1e-9))
	if math.Abs(need/carried-1) <= deadBand {
		n = int(carried)
	}
	n = min(max(n, 1), c.Max)

	// Down only to the most that was asked for in the window: the first of a
	// queue of falling recommendations.
	for len(sc.recs) > 0 && sc.recs[len(sc.recs)-1].n <= n {
		sc.recs = sc.recs[:len(sc.recs)-1]
	}
	sc.recs = append(sc.recs, recommendation{now, n})
	return sc.recs[0].n
}

// need is the exact number of replicas, the larger of the two measures, for
// the average load of the window, or the last if that is older. There is one.
func (sc *scaler) need(now time.Time, c Scaling, window time.Duration) float64 {
	last := len(sc.samples) - 1
	first := last
	for first > 0 && now.Sub(sc.samples[first-1].at) < window {
		first--
	}
	var flows, stood float64
	for i := first; i <= last; i++ {
		d := max(now.Sub(sc.samples[last].at), least)
		if i < last {
			d = sc.samples[i+1].at.Sub(sc.samples[i].at)
		}
		flows += sc.samples[i].flows * d.Seconds()
		stood += d.Seconds()
	}
	var need float64
	if c.Flows > 0 {
		need = flows / stood / (float64(c.Flows) * c.Utilization)
	}
	if c.Rate > 0 {
		from := sc.samples[max(first-1, 0)]
		to := sc.samples[last]
		rate := float64(to.total-from.total) / max(to.at.Sub(from.at), least).Seconds()
		need = max(need, rate/(c.Rate*c.Utilization))
	}
	return need
}
