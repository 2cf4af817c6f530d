package datagram

import (
	"sync/atomic"
	"time"
)

// minCharge is what a datagram counts for at least, so that many empty ones
// are bounded too. clientCharge is what a client of whom something is held counts
// for in the group besides, so that many sources, which may be spoofed, are.
const (
	minCharge    = 64
	clientCharge = 1 << 10
)

// Limits bound what one listener holds. Zero fields stand for the defaults. What
// comes beyond is dropped: those who came first keep their place.
type Limits struct {
	Client  int // bytes of one client; 64 KiB
	Clients int // at most so many clients are known at a time; 1024
	Total   int // bytes of all clients; 4 MiB

	Exchanges int // carried at a time; 1024. For the next the longest silent ends
}

func (l Limits) filled() Limits {
	if l.Client <= 0 {
		l.Client = 64 << 10
	}
	if l.Clients <= 0 {
		l.Clients = 1024
	}
	if l.Total <= 0 {
		l.Total = 4 << 20
	}
	if l.Exchanges <= 0 {
		l.Exchanges = 1024
	}
	return l
}

// client is what is known of one client.
type client struct {
	id   uint64
	flow flow
	data []datagram
	size int // charge of data

	told     bool // the owner has heard of it, and not answered yet
	released bool // and has answered: to a backend
	done     []func(error)

	gone  bool // its cold entry was deleted
	tries int  // passes since then
	due   time.Time
	seen  time.Time // last pass
}

// room is what all listeners of a group may hold together. It is exceeded by no
// more than a datagram for each.
type room struct {
	limit int64
	used  atomic.Int64
}

// store keeps clients in the order in which they came. It is not for concurrent
// use.
type store struct {
	limits Limits
	shared *room
	by     map[flow]*client
	ids    map[uint64]*client
	order  []*client
	size   int
	count  int // datagrams
}

func newStore(l Limits, shared *room) *store {
	return &store{limits: l.filled(), shared: shared, by: map[flow]*client{}, ids: map[uint64]*client{}}
}

func charge(d datagram) int { return max(len(d.data), minCharge) }

func (s *store) full() bool { return len(s.by) >= s.limits.Clients }

// room tells whether a datagram of this length would be kept.
func (s *store) room(fl flow, n int) bool {
	n = max(n, minCharge)
	c := s.by[fl]
	all := n
	if c == nil || len(c.data) == 0 {
		all += clientCharge
	}
	if s.size+n > s.limits.Total || s.shared.used.Load()+int64(all) > s.shared.limit {
		return false
	}
	if c == nil {
		return !s.full() && n <= s.limits.Client
	}
	return c.size+n <= s.limits.Client
}

// add keeps a datagram there is room for, and returns its client.
func (s *store) add(fl flow, d datagram, id func() uint64) (c *client, fresh bool) {
	c = s.by[fl]
	if c == nil {
		c, fresh = &client{id: id(), flow: fl}, true
		s.by[fl], s.ids[c.id] = c, c
		s.order = append(s.order, c)
	}
	if len(c.data) == 0 {
		s.shared.used.Add(clientCharge)
	}
	c.data = append(c.data, d)
	c.size += charge(d)
	s.size += charge(d)
	s.shared.used.Add(int64(charge(d)))
	s.count++
	return c, fresh
}

// drop forgets the first n datagrams of a client.
func (s *store) drop(c *client, n int) {
	for _, d := range c.data[:n] {
		c.size -= charge(d)
		s.size -= charge(d)
		s.shared.used.Add(-int64(charge(d)))
	}
	s.count -= n
	if n > 0 && n == len(c.data) {
		s.shared.used.Add(-clientCharge)
	}
	if n == len(c.data) {
		c.data = nil
		return
	}
	clear(c.data[:n])
	c.data = c.data[n:]
}

// forget drops all clients that f picks, with what is held of them.
func (s *store) forget(f func(*client) bool) {
	kept := s.order[:0]
	for _, c := range s.order {
		if !f(c) {
			kept = append(kept, c)
			continue
		}
		s.drop(c, len(c.data))
		delete(s.by, c.flow)
		delete(s.ids, c.id)
	}
	clear(s.order[len(kept):])
	s.order = kept
	if len(kept) == 0 {
		// A map does not shrink.
		s.by, s.ids, s.order = map[flow]*client{}, map[uint64]*client{}, nil
	}
}
