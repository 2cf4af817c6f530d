package policy

import (
	"errors"
	"fmt"
	"maps"
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
	percent int       // the canary's part of it
	left    map[int]bool
	zeroed  map[int]bool // counted zero after the fence
	counts  []count
	named   map[int]int // how often a Map has named it anew
	drained map[int]time.Time
	flows   map[int]int
	barred  int // of these, of each backend
	begun   uint64
	moved   uint64

	known   bool           // the last load was
	ordered map[int]bool   // drained by order
	asleep  bool           // all of it was
	members bool           // there are some
	hash    map[int]string // what a replica was made from

	conns  map[uint64]time.Time // accepted, unanswered
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

// count is one that has been asked for and not been answered.
type count struct {
	index int
	seq   uint64
	taken bool
	flows int  // what it saw
	clean bool // taken while neither the kernel nor the last Map sent it flows
	named int  // as it was then
}

func newWorld(t testing.TB, spec Spec, adopt ...Replica) *world {
	w := &world{
		t: t, spec: spec, s: New(spec), now: time.Unix(1e9, 0),
		call: map[int]string{}, up: map[int]bool{}, inited: map[int]bool{}, healthy: map[int]bool{},
		frozen: map[int]bool{}, probed: map[int]bool{}, dead: map[int]bool{}, since: map[int]time.Time{}, left: map[int]bool{},
		zeroed: map[int]bool{}, drained: map[int]time.Time{}, flows: map[int]int{}, conns: map[uint64]time.Time{},
		named: map[int]int{}, ordered: map[int]bool{}, hash: map[int]string{},
	}
	for _, r := range adopt {
		w.up[r.Index], w.inited[r.Index], w.hash[r.Index] = r.Running, r.Prepared, r.Hash
		if r.Mapped {
			w.kernel = append(w.kernel, r.Index)
			w.asked = append(w.asked, r.Index)
			w.healthy[r.Index] = r.Running
		}
		w.left[r.Index] = r.Running || r.Paused // an earlier run may have sent it flows
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
	switch ev := ev.(type) {
	case Accepted:
		w.conns[ev.Conn] = w.now
		if w.mode == AcceptOne {
			w.mode = AcceptOff
		}
		w.asleep = false
	case Wake, Scale:
		w.asleep = false
	case Drain:
		w.asleep = w.asleep || ev.Index == 0
		w.ordered[ev.Index] = true
	case Load:
		w.known = ev.Known
	case Configure:
		w.spec = ev.Spec
	}
	for _, a := range w.s.Step(w.now, ev) {
		w.log = append(w.log, fmt.Sprintf("         -> %T%+v", a, a))
		w.do(a)
	}
	if d := w.s.Deadline(); !d.IsZero() && !d.After(w.now) {
		w.failf("deadline %v is not after now", d)
	}
	w.hold()
}

// hold checks what is true after each step.
func (w *world) hold() {
	w.t.Helper()
	for _, i := range w.asked {
		if !w.healthy[i] || w.dead[i] {
			w.failf("the map names %d, which is not healthy", i)
		}
	}
	d := w.s.Deadline()
	for id, at := range w.conns {
		end := at.Add(w.spec.StartTimeout)
		if !w.now.Before(end) {
			w.failf("connection %d is held since %s", id, w.now.Sub(at))
		}
		if d.IsZero() || d.After(end) {
			w.failf("connection %d ends at %v, the next deadline is %v", id, end, d)
		}
	}
	v := w.s.View()
	if v.Held != len(w.conns) {
		w.failf("%d connections are held, shown are %d", len(w.conns), v.Held)
	}
	for _, b := range v.Backends {
		switch b.State {
		case DrainingFlows:
			if w.drained[b.Index].IsZero() {
				w.drained[b.Index] = w.now
			}
			if t := w.spec.DrainTimeout; t > 0 && !slices.Contains(w.kernel, b.Index) && len(w.maps) == 0 && !w.now.Before(w.drained[b.Index].Add(t)) {
				w.failf("%d still drains after %s", b.Index, w.now.Sub(w.drained[b.Index]))
			}
		case Stopping:
		default:
			delete(w.drained, b.Index)
		}
	}
}

// mayDrain says whether there is a reason to take a healthy backend out.
func (w *world) mayDrain(i int) bool {
	c := w.spec.Canary
	replaced := w.hash[i] != w.spec.Hash && (w.hash[i] != c.Hash || c.Percent == 0) || w.hash[i] == w.spec.Hash && c.Percent == 100
	return w.known || w.asleep || w.ordered[i] || w.members || replaced || w.frozen[i] || !w.healthy[i] || w.dead[i]
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
		w.fresh(a.Index)
	case Pause:
		w.begin(a.Index, "pause")
		if w.frozen[a.Index] {
			w.failf("pause of %d, which is paused", a.Index)
		}
		if !w.known {
			w.failf("pause of %d, though nobody knows its load", a.Index)
		}
	case Thaw:
		w.begin(a.Index, "thaw")
		if !w.frozen[a.Index] {
			w.failf("thaw of %d, which is not paused", a.Index)
		}
	case Start:
		w.begin(a.Index, "start")
		if !w.inited[a.Index] {
			w.fresh(a.Index)
		}
		delete(w.dead, a.Index)
		delete(w.left, a.Index)
		if a.Canary {
			w.hash[a.Index] = w.spec.Canary.Hash
		}
		if a.Canary && (w.spec.Canary.Percent == 0 || len(w.kernel)+len(w.asked) == 0) {
			w.failf("start of a canary, %d, of a service that nothing serves or that is to have none", a.Index)
		}
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
			delete(w.zeroed, i)
			if !slices.Contains(w.asked, i) {
				w.named[i]++
			}
		}
		for _, i := range w.asked {
			if !slices.Contains(named, i) {
				if !w.mayDrain(i) {
					w.failf("%d is taken out, though nobody knows its load", i)
				}
				w.left[i] = true
			}
		}
		w.trial(a)
		w.asked, w.percent = named, a.Percent
		w.maps = append(w.maps, pending{a.Seq, named})
	case Count:
		if slices.Contains(w.kernel, a.Index) && !w.frozen[a.Index] {
			w.failf("count of %d before the fence", a.Index)
		}
		w.counts = append(w.counts, count{index: a.Index, seq: a.Seq})
	case Serve:
		if _, ok := w.conns[a.Conn]; !ok {
			w.failf("serve of connection %d, which is not held", a.Conn)
		}
		delete(w.conns, a.Conn)
		if !slices.Contains(w.kernel, a.Index) || !slices.Contains(w.asked, a.Index) || w.frozen[a.Index] {
			w.failf("serve by %d, which the kernel does not know yet, which is leaving or which is paused", a.Index)
		}
		w.served++
	case Reset:
		if _, ok := w.conns[a.Conn]; !ok {
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

// trial checks the two sides of a map: each has its part, unless one is all
// there is or all there should be.
func (w *world) trial(a Map) {
	w.t.Helper()
	var side, marked [2]int
	for _, sh := range a.Shares {
		for i, canary := range []bool{false, true} {
			if w.s.backend(sh.Index).canary == canary {
				side[i]++
			}
			if sh.Canary == canary {
				marked[i]++
			}
		}
	}
	both := side[0] > 0 && side[1] > 0
	if both && (a.Percent != w.spec.Canary.Percent || side != marked) || !both && marked[1]+a.Percent > 0 {
		w.failf("map of %d stable backends and %d canaries, %d marked so, with %d %%, the configuration has %d %%",
			side[0], side[1], marked[1], a.Percent, w.spec.Canary.Percent)
	}
}

// mixed says that the kernel's map names backends of both sides.
func (w *world) mixed() bool {
	canary := func(i int) bool { return w.s.backend(i).canary }
	stable := func(i int) bool { return !canary(i) }
	return slices.ContainsFunc(w.kernel, canary) && slices.ContainsFunc(w.kernel, stable)
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

// fresh forgets what was known of an earlier replica of this index.
func (w *world) fresh(i int) {
	w.hash[i] = w.spec.Hash
	delete(w.ordered, i)
}

// look lets a count see what is true now.
func (w *world) look(k int) {
	if k >= len(w.counts) || w.counts[k].taken {
		return
	}
	c := &w.counts[k]
	c.taken, c.flows, c.named = true, w.flows[c.index], w.named[c.index]
	c.clean = !slices.Contains(w.kernel, c.index) && !slices.Contains(w.asked, c.index)
}

// count answers a Count, with what is true now if it has not looked yet.
func (w *world) count(k int, known bool) bool {
	if k >= len(w.counts) {
		return false
	}
	w.look(k)
	c := w.counts[k]
	w.counts = slices.Delete(w.counts, k, k+1)
	if known && c.flows == 0 && c.clean && c.named == w.named[c.index] {
		w.zeroed[c.index] = true
	}
	w.step(Counted{Index: c.index, Seq: c.seq, Flows: c.flows, Barred: min(w.barred, c.flows), Known: known})
	return true
}

func (w *world) load() { w.report(true, 0) }

// report tells what is true, or that nobody knows it.
func (w *world) report(known bool, queued int) {
	w.step(Load{Known: known, Flows: maps.Clone(w.flows), New: w.begun, Bytes: w.moved, Queued: queued})
}

// calm lets everything that is pending succeed until nothing is.
func (w *world) calm() {
	w.t.Helper()
	for n := 0; ; n++ {
		if n > 10000 {
			w.failf("does not come to rest")
		}
		if w.ack() || w.count(0, true) {
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

// list lists two members, or as the bits of arg say.
func (w *world) list(arg int) {
	w.members = true
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
