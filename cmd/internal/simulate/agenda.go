package simulate

import (
	"container/heap"
	"time"
)

// agenda is what is going to happen, by time and then in the order in which it
// was asked for.
type agenda struct {
	list entries
	last uint64
}

type entry struct {
	at  time.Duration
	seq uint64
	do  func()
}

func (a *agenda) add(at time.Duration, do func()) {
	a.last++
	heap.Push(&a.list, entry{at, a.last, do})
}

func (a *agenda) take() (time.Duration, func()) {
	e := heap.Pop(&a.list).(entry)
	return e.at, e.do
}

type entries []entry

func (e entries) Len() int { return len(e) }
func (e entries) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].seq < e[j].seq
}
func (e entries) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *entries) Push(x any)   { *e = append(*e, x.(entry)) }
func (e *entries) Pop() any {
	old := *e
	x := old[len(old)-1]
	old[len(old)-1] = entry{}
	*e = old[:len(old)-1]
	return x
}
