package nft

import (
	"maps"
	"net/netip"
	"slices"
	"time"
)

// A kind names one of the sets and maps that hold services.
type kind uint8

const (
	known          kind = iota + 1 // set of every service
	limited                        // set of services with limits
	refused                        // set of these, with a counter of what was dropped
	rates                          // set of services, each with a limit of its own on new flows
	clientRates                    // verdict map of services to the chain of their limit per client
	flows                          // set of services, each with a limit of its own on live flows
	clientFlows                    // verdict map of services to the chain of their limit per client
	cold                           // set of services with no slots
	masked                         // set of services whose clients are masqueraded
	first                          // map of plain services of one slot to its backend
	spread                         // verdict map of plain services to lane
	spreadAny                      // the same of services at every local address
	rest                           // map of all others to the backend of slot 0
	spreadRuled                    // verdict map of services that are not plain to lane
	spreadRuledAny                 // the same of services at every local address
	sticky                         // set of services that remember their clients' backends
	keep                           // verdict map of these to the chain that remembers for their time
	members                        // map of these and a backend's number to the backend
	slots                          // maps, one for each class, of service and slot to backend
	backends                       // set of backends; keyed by backend, not by service
	asleep                         // set of backends whose packets are an alarm
	screened                       // set of services to which only allowed clients may come
	allowed                        // set of services and the clients that may
	patient                        // set of services whose backends only data wakes
)

// An element is one entry of a set or map, less the endpoint it is keyed by.
type element struct {
	kind kind
	is   traits         // of known
	slot uint16         // of slots
	to   netip.AddrPort // of first, rest and slots
	lane lane           // of those of spread; of slots, only mod, the class
	time time.Duration  // of keep
	id   uint32         // of members
	n    uint32         // of limits
	from netip.Prefix   // of allowed
	// lingers marks a backend that no service names any more. It stays for a
	// while, since flows to it may live on and want their packets guarded.
	lingers bool
}

// elements describes a service by the entries it needs, l being its lane if it
// has more than one slot.
//
// A plain service, without limits and affinity, is found by a packet's first
// looks. All but those of one slot have their slot 0 in rest as well, where a
// packet ends up that finds no slot: a packet looks into several maps one after
// the other, and a commit in between would otherwise let a packet that has seen
// the old lane miss the new slots and reach the host.
func elements(at Endpoint, s Service, l lane) []element {
	n := len(s.Slots)
	es := make([]element, 0, n+4)
	es = append(es, element{kind: known, is: s.traits()})
	es = append(es, s.Limits.round().elements()...)
	es = append(es, s.screenElements()...)
	if s.Patient {
		es = append(es, element{kind: patient})
	}
	if n == 0 {
		return append(es, element{kind: cold})
	}
	if s.Masquerade {
		es = append(es, element{kind: masked})
	}
	plain := affinityClass(s.Affinity) == 0 && !slices.ContainsFunc(es, func(e element) bool { return e.kind == limited })
	if plain && n == 1 {
		return append(es, element{kind: first, to: s.Slots[0]})
	}
	if n > 1 && plain {
		es = append(es, element{kind: ofPlace(at, spread, spreadAny), lane: l})
	}
	es = append(es, element{kind: rest, to: s.Slots[0]})
	if n > 1 && !plain {
		es = append(es, element{kind: ofPlace(at, spreadRuled, spreadRuledAny), lane: l})
	}
	if time := affinityClass(s.Affinity); time > 0 {
		es = append(es, element{kind: sticky}, element{kind: keep, time: time})
		es = append(es, membersOf(s.Slots)...)
	}
	if n == 1 {
		return es
	}
	for i, b := range s.Slots {
		es = append(es, element{kind: slots, slot: uint16(i), to: b, lane: lane{mod: uint16(n)}})
	}
	return es
}

// ofPlace chooses between the kind for a service at one address and that for
// one at every local address.
func ofPlace(at Endpoint, one, every kind) kind {
	if at.Addr.IsUnspecified() {
		return every
	}
	return one
}

// membersOf returns the distinct backends by number.
func membersOf(slots []netip.AddrPort) []element {
	to := make(map[uint32]netip.AddrPort)
	for _, b := range slots {
		// Of two with one number the choice must not depend on their order.
		if old, ok := to[memberID(b)]; !ok || b.Compare(old) < 0 {
			to[memberID(b)] = b
		}
	}
	var es []element
	for _, id := range slices.Sorted(maps.Keys(to)) {
		es = append(es, element{kind: members, id: id, to: to[id]})
	}
	return es
}

// service tells which service a set of entries makes, as a packet would see it.
func service(es []element) (s Service, l lane) {
	var single netip.AddrPort
	for _, e := range es {
		switch e.kind {
		case spread, spreadAny, spreadRuled, spreadRuledAny:
			l = e.lane
		}
	}
	byslot := make([]netip.AddrPort, l.mod)
	for _, e := range es {
		switch e.kind {
		case known:
			s.Balance, s.Masquerade, s.Affinity, s.Limits = e.is.balance, e.is.masquerade, e.is.affinity, e.is.limits
		case screened:
			s.Screen = true
		case allowed:
			s.Allow = append(s.Allow, e.from)
		case patient:
			s.Patient = true
		case first, rest:
			single = e.to
		case slots:
			if e.lane.mod == l.mod && e.slot < l.mod {
				byslot[e.slot] = e.to
			}
		}
	}
	for _, b := range byslot {
		if !b.IsValid() {
			// A packet that misses its slot goes by rest.
			b = single
		}
		s.Slots = append(s.Slots, b)
	}
	if l.mod == 0 && single.IsValid() {
		s.Slots = []netip.AddrPort{single}
	}
	if slices.Contains(s.Slots, netip.AddrPort{}) {
		s.Slots = nil
	}
	return s, l
}

// difference returns what is in a and not in b, in a's order.
func difference(a, b []element) []element {
	if slices.Equal(a, b) {
		return nil
	}
	in := make(map[element]struct{}, len(b))
	for _, e := range b {
		in[e] = struct{}{}
	}
	var d []element
	for _, e := range a {
		if _, ok := in[e]; !ok {
			d = append(d, e)
		}
	}
	return d
}
