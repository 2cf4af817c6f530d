package nft

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
)

// A state is the variable part of the table: who is keyed by what. It is a
// value in memory; nothing here talks to the kernel.
type state struct {
	at       map[Endpoint][]element
	backends map[Endpoint]element // kind backends; the key is the backend
	asleep   map[Endpoint]bool    // backends; none is false
	refs     map[Endpoint]int     // backend: how many services name it
	taken    map[seat]Endpoint
}

// A seat is a lane in one family: a lane's chain has a rule, and so a counter,
// for each.
type seat struct {
	ip6  bool
	lane lane
}

func newState() *state {
	return &state{
		at:       make(map[Endpoint][]element),
		backends: make(map[Endpoint]element),
		asleep:   make(map[Endpoint]bool),
		refs:     make(map[Endpoint]int),
		taken:    make(map[seat]Endpoint),
	}
}

// An entry is an element with its key: one thing to put into or take out of
// the kernel.
type entry struct {
	at Endpoint
	element
}

// A change takes the dels out and puts the adds in, in this order and in one
// transaction.
type change struct {
	dels, adds []entry
}

func (c change) empty() bool { return len(c.dels) == 0 && len(c.adds) == 0 }

// services returns what the entries make of each endpoint.
func (s *state) services() map[Endpoint]Service {
	m := make(map[Endpoint]Service, len(s.at))
	for at, es := range s.at {
		m[at], _ = service(es)
	}
	return m
}

// named returns the distinct backends that a service's entries name.
func named(at Endpoint, es []element) map[Endpoint]struct{} {
	m := make(map[Endpoint]struct{})
	for _, e := range es {
		if e.to.IsValid() {
			m[backendOf(at, e.to)] = struct{}{}
		}
	}
	return m
}

func backendOf(at Endpoint, b netip.AddrPort) Endpoint {
	return Endpoint{Addr: b.Addr(), Proto: at.Proto, Port: b.Port()}
}

// plan returns the change that makes each endpoint of want what want says; a
// nil service is removed. Endpoints that want does not name keep all they have.
func (s *state) plan(want map[Endpoint]*Service) change {
	order := slices.SortedFunc(maps.Keys(want), Endpoint.compare)
	free := make(map[seat]bool) // seats that change hands: true is free again

	// Those who leave a lane make room first.
	stays := func(at Endpoint, l lane) bool {
		w := want[at]
		return l.mod > 0 && w != nil && len(w.Slots) == int(l.mod) && w.Balance == l.by &&
			(l.by != RoundRobin || s.taken[seatOf(at, l)] == at)
	}
	for _, at := range order {
		if _, l := service(s.at[at]); l.mod > 0 && s.taken[seatOf(at, l)] == at && !stays(at, l) {
			free[seatOf(at, l)] = true
		}
	}

	var c change
	refs := make(map[Endpoint]int) // backends: change in the number of services that name them
	for _, at := range order {
		old := s.at[at]
		var now []element
		if w := want[at]; w != nil {
			_, l := service(old)
			if n := len(w.Slots); n < 2 {
				l = lane{}
			} else if !stays(at, l) {
				l = s.pick(at, n, w.Balance, free)
			}
			now = elements(at, *w, l)
		}
		for _, e := range difference(old, now) {
			c.dels = append(c.dels, entry{at, e})
		}
		for _, e := range difference(now, old) {
			c.adds = append(c.adds, entry{at, e})
		}
		for b := range named(at, old) {
			refs[b]--
		}
		for b := range named(at, now) {
			refs[b]++
		}
	}

	for _, b := range slices.SortedFunc(maps.Keys(refs), Endpoint.compare) {
		have, ok := s.backends[b]
		need := element{kind: backends, lingers: s.refs[b]+refs[b] <= 0}
		if ok && have == need || !ok && need.lingers {
			continue
		}
		if ok {
			c.dels = append(c.dels, entry{b, have})
		}
		c.adds = append(c.adds, entry{b, need})
	}
	return c
}

// lull returns the change that makes those backends sleepers that want says are.
func (s *state) lull(want map[Endpoint]bool) (c change) {
	for _, b := range slices.SortedFunc(maps.Keys(want), Endpoint.compare) {
		if e := (entry{b, element{kind: asleep}}); want[b] && !s.asleep[b] {
			c.adds = append(c.adds, e)
		} else if !want[b] && s.asleep[b] {
			c.dels = append(c.dels, e)
		}
	}
	return c
}

func (c change) and(d change) change {
	return change{append(c.dels, d.dels...), append(c.adds, d.adds...)}
}

func seatOf(at Endpoint, l lane) seat { return seat{at.Addr.Is6(), l} }

// pick returns a lane of n slots. Round robin needs one that serves nobody, and
// notes in free that it is gone; if all are taken it is the class's random chain.
func (s *state) pick(at Endpoint, n int, by Balance, free map[seat]bool) lane {
	if by != RoundRobin {
		return lane{mod: uint16(n), by: by}
	}
	for i := range lanes(n) {
		l := lane{mod: uint16(n), index: uint16(i)}
		st := seatOf(at, l)
		if isfree, moved := free[st]; moved && !isfree {
			continue
		} else if _, taken := s.taken[st]; taken && !moved {
			continue
		}
		free[st] = false
		return l
	}
	return lane{mod: uint16(n), by: Random}
}

// apply makes the state what the kernel's is after the change.
func (s *state) apply(c change) {
	gone := make(map[Endpoint][]element)
	for _, d := range c.dels {
		switch d.kind {
		case backends:
			delete(s.backends, d.at)
			continue
		case asleep:
			delete(s.asleep, d.at)
			continue
		}
		gone[d.at] = append(gone[d.at], d.element)
	}
	come := make(map[Endpoint][]element)
	for _, a := range c.adds {
		switch a.kind {
		case backends:
			s.backends[a.at] = a.element
			continue
		case asleep:
			s.asleep[a.at] = true
			continue
		}
		come[a.at] = append(come[a.at], a.element)
		if _, ok := gone[a.at]; !ok {
			gone[a.at] = nil
		}
	}
	for at := range gone {
		old := s.at[at]
		s.leave(at, old)
		if now := append(difference(old, gone[at]), come[at]...); len(now) > 0 {
			slices.SortFunc(now, element.compare)
			s.at[at] = now
		} else {
			delete(s.at, at)
		}
	}
	// Seats are taken after all are left, as a lane may pass from one to another.
	for at := range gone {
		s.enter(at, s.at[at])
	}
}

func (s *state) leave(at Endpoint, es []element) {
	for b := range named(at, es) {
		if s.refs[b]--; s.refs[b] <= 0 {
			delete(s.refs, b)
		}
	}
	if _, l := service(es); l.mod > 0 && s.taken[seatOf(at, l)] == at {
		delete(s.taken, seatOf(at, l))
	}
}

func (s *state) enter(at Endpoint, es []element) {
	for b := range named(at, es) {
		s.refs[b]++
	}
	if _, l := service(es); l.mod > 0 && l.by == RoundRobin {
		if _, ok := s.taken[seatOf(at, l)]; !ok {
			s.taken[seatOf(at, l)] = at
		}
	}
}

// compare orders elements as function elements makes them.
func (e element) compare(f element) int {
	if c := int(e.kind) - int(f.kind); c != 0 {
		return c
	}
	if c := int(e.lane.mod) - int(f.lane.mod); c != 0 {
		return c
	}
	if c := cmp.Compare(e.id, f.id); c != 0 {
		return c
	}
	if c := comparePrefix(e.from, f.from); c != 0 {
		return c
	}
	return int(e.slot) - int(f.slot)
}
