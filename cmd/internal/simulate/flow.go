package simulate

import "time"

// A Flow is one connection, or one client of UDP.
type Flow struct {
	Start  time.Duration // since the trace began
	Last   time.Duration // as long as the flow is live
	Silent bool          // it is known to have moved no byte
}

// A Source gives flows in the order of their starts, none that starts before
// zero; false when there are no more.
type Source interface{ Next() (Flow, bool) }

// Recorded is a source of flows that are known one by one, sorted by start.
type Recorded []Flow

// Next takes the first flow.
func (r *Recorded) Next() (Flow, bool) {
	if len(*r) == 0 {
		return Flow{}, false
	}
	f := (*r)[0]
	*r = (*r)[1:]
	return f, true
}

// Length is when the last flow has ended.
func (r *Recorded) Length() (end time.Duration) {
	for _, f := range *r {
		end = max(end, f.Start+f.Last)
	}
	return end
}
