package policy

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"
)

// world carries actions out in a simulated host, in whatever order the test
// asks for, and checks each action against the invariants of the package.
type world struct {
	t    testing.TB
	spec Spec
	s    *Service
	now  time.Time
	log  []string

	call    map[int]string // in flight, per index
	up      map[int]bool   // program runs
	inited  map[int]bool
	healthy map[int]bool // as last told to the service
	probed  map[int]bool
	frozen  map[int]bool
	dead    map[int]bool // and the service was told
	since   map[int]time.Time

	maps    []pending // not acknowledged yet
	kernel  []int     // what the kernel's map names
	asked   []int     // what the last Map names
	left    map[int]bool
	zeroed  map[int]bool // counted zero after the fence
	counts  []int
	drained map[int]time.Time
	flows   map[int]int

	conns  map[uint64]bool // accepted, unanswered
	next   uint64
	mode   AcceptMode
	resets int
	served int
	notes  []Note
}

// pending is a map that the kernel has not acknowledged.
type pending struct {
	seq   uint64
	named []int
}

func newWorld(t testing.TB, spec Spec, adopt ...Replica) *world {
	w := &world{
		t: t, spec: spec, s: New(spec), now: time.Unix(1e9, 0),
		call: map[int]string{}, up: map[int]bool{}, inited: map[int]bool{}, healthy: map[int]bool{},
		frozen: map[int]bool{}, probed: map[int]bool{}, dead: map[int]bool{}, since: map[int]time.Time{}, left: map[int]bool{},
		zeroed: map[int]bool{}, drained: map[int]time.Time{}, flows: map[int]int{}, conns: map[uint64]bool{},
	}
	for _, r := range adopt {
		w.up[r.Index], w.inited[r.Index] = r.Running, r.Prepared
		if r.Mapped {
			w.kernel = append(w.kernel, r.Index)
			w.asked = append(w.asked, r.Index)
			w.healthy[r.Index] = r.Running
		}
		w.dead[r.Index] = !r.Running && !r.Prepared && !r.Paused
		if r.Paused {
			w.frozen[r.Index], w.up[r.Index], w.healthy[r.Index] = true, true, true
		}
	}
	w.step(Adopt{adopt})
	return w
}

func (w *world) failf(format string, a ...any) {
	w.t.Helper()
	for _, l := range w.log[max(0, len(w.log)-60):] {
		w.t.Log(l)
	}
	w.t.Fatalf(format, a...)
}

func (w *world) step(ev Event) {
	w.t.Helper()
	w.log = append(w.log, fmt.Sprintf("%6.2f %T%+v", w.now.Sub(time.Unix(1e9, 0)).Seconds(), ev, ev))
	if a, ok := ev.(Accepted); ok {
		w.conns[a.Conn] = true
		if w.mode == AcceptOne {
			w.mode = AcceptOff
		}
	}
	for _, a := range w.s.Step(w.now, ev) {
		w.log = append(w.log, fmt.Sprintf("         -> %T%+v", a, a))
		w.do(a)
	}
	if d := w.s.Deadline(); !d.IsZero() && !d.After(w.now) {
		w.failf("deadline %v is not after now", d)
	}
}

func (w *world) begin(i int, what string) {
	w.t.Helper()
	if c := w.call[i]; c != "" {
		w.failf("%s of %d while its %s is in flight", what, i, c)
	}
	w.call[i] = what
}

func (w *world) do(a Action) {
	w.t.Helper()
	switch a := a.(type) {
	case Accept:
		w.mode = a.Mode
	case Prepare:
		w.begin(a.Index, "prepare")
	case Pause:
		w.begin(a.Index, "pause")
		if w.frozen[a.Index] {
			w.failf("pause of %d, which is paused", a.Index)
		}
	case Thaw:
		w.begin(a.Index, "thaw")
		if !w.frozen[a.Index] {
			w.failf("thaw of %d, which is not paused", a.Index)
		}
	case Start:
		w.begin(a.Index, "start")
		delete(w.dead, a.Index)
		delete(w.left, a.Index)
	case Stop:
		w.begin(a.Index, "stop")
		if slices.Contains(w.kernel, a.Index) || slices.Contains(w.asked, a.Index) {
			w.failf("stop of %d, which is in the map", a.Index)
		}
		late := w.spec.DrainTimeout > 0 && !w.drained[a.Index].IsZero() && !w.now.Before(w.drained[a.Index].Add(w.spec.DrainTimeout))
		if w.left[a.Index] && !w.zeroed[a.Index] && !w.dead[a.Index] && !late {
			w.failf("stop of %d without a count of zero after the fence", a.Index)
		}
	case Probe:
		if w.probed[a.Index] {
			w.failf("probe of %d twice", a.Index)
		}
		w.probed[a.Index] = true
	case Unprobe:
		delete(w.probed, a.Index)
	case Map:
		var named []int
		for _, sh := range a.Shares {
			named = append(named, sh.Index)
			if sh.Weight < 1 {
				w.failf("share %+v has no weight", sh)
			}
		}
		for _, i := range named {
			if !w.healthy[i] || w.dead[i] {
				w.failf("map names %d, which is not healthy", i)
			}
			delete(w.drained, i)
			delete(w.zeroed, i)
		}
		for _, i := range w.asked {
			if !slices.Contains(named, i) {
				w.drained[i] = w.now
				w.left[i] = true
			}
		}
		w.asked = named
		w.maps = append(w.maps, pending{a.Seq, named})
	case Count:
		if slices.Contains(w.kernel, a.Index) && !w.frozen[a.Index] {
			w.failf("count of %d before the fence", a.Index)
		}
		w.counts = append(w.counts, a.Index)
	case Serve:
		if !w.conns[a.Conn] {
			w.failf("serve of connection %d, which is not held", a.Conn)
		}
		delete(w.conns, a.Conn)
		if !slices.Contains(w.kernel, a.Index) || w.frozen[a.Index] {
			w.failf("serve by %d, which the kernel does not know yet or which is paused", a.Index)
		}
		w.served++
	case Reset:
		if !w.conns[a.Conn] {
			w.failf("reset of connection %d, which is not held", a.Conn)
		}
		if a.Err == nil {
			w.failf("reset without a reason")
		}
		delete(w.conns, a.Conn)
		w.resets++
	case Note:
		w.notes = append(w.notes, a)
	}
}

func (w *world) tick() { w.step(Tick{}) }

// ack lets the kernel take the oldest pending map.
func (w *world) ack() bool {
	if len(w.maps) == 0 {
		return false
	}
	m := w.maps[0]
	w.maps = w.maps[1:]
	w.kernel = m.named
	w.step(Mapped{m.seq})
	return true
}

// finish lets the call in flight for an index return.
func (w *world) finish(i int, err error, permanent bool) {
	c := w.call[i]
	delete(w.call, i)
	switch c {
	case "prepare":
		w.inited[i] = err == nil
		w.step(Prepared{i, err})
	case "start":
		w.inited[i], w.up[i] = false, err == nil
		w.step(Started{i, err, permanent})
	case "pause":
		w.frozen[i] = err == nil
		w.step(Paused{i, err})
	case "thaw":
		w.frozen[i] = err != nil
		w.step(Thawed{i, err})
	case "stop":
		if err == nil {
			if i < FirstMember {
				delete(w.up, i)
			}
			for _, m := range []map[int]bool{w.frozen, w.inited, w.healthy, w.left, w.zeroed} {
				delete(m, i)
			}
			delete(w.flows, i)
			delete(w.drained, i)
		}
		w.step(Stopped{i, err})
	}
}

func (w *world) accept() {
	w.next++
	w.step(Accepted{Conn: w.next})
}

func (w *world) health(i int, ok bool) {
	w.healthy[i] = ok
	ev := Health{Index: i, Healthy: ok}
	if !ok {
		ev.Err = errors.New("connection refused")
	}
	w.step(ev)
}

func (w *world) die(i int) {
	w.up[i], w.dead[i] = false, true
	w.step(Died{i, "exited with code 1"})
}

// count answers the oldest Count with what is true.
func (w *world) count(known bool) bool {
	if len(w.counts) == 0 {
		return false
	}
	i := w.counts[0]
	w.counts = w.counts[1:]
	if slices.Contains(w.asked, i) { // taken back meanwhile
		w.step(Counted{Index: i, Flows: w.flows[i], Known: known})
		return true
	}
	if known && w.flows[i] == 0 {
		w.zeroed[i] = true
	}
	w.step(Counted{Index: i, Flows: w.flows[i], Known: known})
	return true
}

func (w *world) load() {
	f := map[int]int{}
	for i, n := range w.flows {
		f[i] = n
	}
	w.step(Load{Known: true, Flows: f})
}

// calm lets everything that is pending succeed until nothing is.
func (w *world) calm() {
	w.t.Helper()
	for n := 0; ; n++ {
		if n > 10000 {
			w.failf("does not come to rest")
		}
		if w.ack() || w.count(true) {
			continue
		}
		busy := false
		for _, i := range w.indices() {
			if w.call[i] != "" {
				w.finish(i, nil, false)
				busy = true
			} else if w.probed[i] && w.up[i] && !w.healthy[i] {
				w.health(i, true)
				busy = true
			}
		}
		if !busy {
			return
		}
	}
}

func (w *world) indices() (all []int) {
	for _, b := range w.s.backends {
		all = append(all, b.index)
	}
	return all
}

// members lists two members, or as the bits of arg say.
func (w *world) members(arg int) {
	var list []Member
	for i := range 2 {
		if arg>>i&1 != 0 {
			m := Member{Index: FirstMember + i, Weight: arg >> 2 & 3, Priority: arg >> 4 & 1}
			w.up[m.Index] = true
			list = append(list, m)
		}
	}
	w.step(Members{list})
}

// pass lets time go by with a load report each second.
func (w *world) pass(d time.Duration) {
	w.t.Helper()
	for end := w.now.Add(d); w.now.Before(end); {
		w.now = w.now.Add(time.Second)
		w.load()
		w.calm()
	}
}
