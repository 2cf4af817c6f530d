package control

import (
	"container/heap"
	"time"
)

// deadlines orders services by when they want their next tick.
type deadlines []*service

func (d deadlines) Len() int           { return len(d) }
func (d deadlines) Less(i, j int) bool { return d[i].due.Before(d[j].due) }
func (d deadlines) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].heapIndex, d[j].heapIndex = i, j
}
func (d *deadlines) Push(x any) {
	s := x.(*service)
	s.heapIndex = len(*d)
	*d = append(*d, s)
}
func (d *deadlines) Pop() any {
	old := *d
	s := old[len(old)-1]
	*d = old[:len(old)-1]
	s.heapIndex = -1
	return s
}

// set moves a service to its new deadline; the zero time takes it out.
func (d *deadlines) set(s *service, at time.Time) {
	switch {
	case at.Equal(s.due) && (s.heapIndex >= 0) == !at.IsZero():
	case at.IsZero():
		s.due = at
		if s.heapIndex >= 0 {
			heap.Remove(d, s.heapIndex)
		}
	case s.heapIndex >= 0:
		s.due = at
		heap.Fix(d, s.heapIndex)
	default:
		s.due = at
		heap.Push(d, s)
	}
}

// next is the time until the first deadline, or limit.
func (d deadlines) next(now time.Time, limit time.Duration) time.Duration {
	if len(d) == 0 {
		return limit
	}
	return min(max(d[0].due.Sub(now), 0), limit)
}
