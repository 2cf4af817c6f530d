package control

import (
	"slices"

	"sluice/conntrack"
)

// traffic sums up what was carried. It never falls. In is from clients, out to
// them.
type traffic struct {
	flows   uint64 // that the kernel carries or has carried
	in, out conntrack.Counter

	relays                uint64 // connections that the daemon relays or has relayed
	relayedIn, relayedOut uint64 // their payload in bytes; of those that have ended
}

// add takes over what a count has grown by.
func (t *traffic) add(was, now conntrack.Count) {
	t.flows += now.New - was.New
	t.in.Packets += now.In.Packets - was.In.Packets
	t.in.Bytes += now.In.Bytes - was.In.Bytes
	t.out.Packets += now.Out.Packets - was.Out.Packets
	t.out.Bytes += now.Out.Bytes - was.Out.Bytes
}

// tally is a count that conntrack keeps of an address, as last read and added to
// the sums of the replica that is there and of its service.
//
// Addresses come and go: a replica may return at another one, and another
// replica, even of another service, at this one. There is one tally for each, so
// that nothing is added twice. It is begun when there is something to count, and
// dropped together with conntrack's count when its replica has left and
// conntrack has announced the end of the last entry: until then there is
// something to be added.
type tally struct {
	name    conntrack.Backend
	service *service
	replica *replica
	last    conntrack.Count
}

func (t *tally) read(now conntrack.Count) {
	if now == (conntrack.Count{}) {
		return // dropped
	}
	t.service.counts.add(t.last, now)
	t.replica.carried().add(t.last, now)
	t.last = now
}

// carried is the sum of the backend of this index, in the life of the service.
func (r *replica) carried() *traffic {
	if r.sum == nil {
		r.sum = new(traffic)
	}
	return r.sum
}

// tally takes what conntrack has counted under a name of the replica.
func (c *Control) tally(s *service, r *replica, name conntrack.Backend, now conntrack.Count) {
	for _, t := range r.tallies {
		if t.name == name && t.replica == r {
			t.read(now)
			return
		}
	}
	if now == (conntrack.Count{}) {
		return
	}
	t := c.tallies[name]
	if t == nil {
		t = &tally{name: name}
		c.tallies[name] = t
	}
	delete(c.leaving, t)
	t.service, t.replica = s, r
	if !slices.Contains(r.tallies, t) {
		r.tallies = append(r.tallies, t)
	}
	t.read(now)
}

// part gives up the addresses of a replica.
func (c *Control) part(r *replica) {
	for _, t := range r.tallies {
		if t.replica == r {
			c.leaving[t] = true
		}
	}
	r.tallies = nil
}

// remove drops a replica and keeps its sum for the next of its index.
func (c *Control) remove(s *service, r *replica) {
	c.part(r)
	if r.sum != nil {
		if s.past == nil {
			s.past = map[int]*traffic{}
		}
		s.past[r.index] = r.sum
	}
	delete(s.replicas, r.index)
}

// dismiss reads the tallies of addresses that were left, and drops those that
// have come to their end.
func (c *Control) dismiss() {
	for t := range c.leaving {
		now, done := c.opt.Flows.Drop(t.name)
		t.read(now)
		if done {
			delete(c.leaving, t)
			delete(c.tallies, t.name)
		}
	}
}
