package control

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"sluice/cmd/internal/accept"
	"sluice/cmd/internal/config"
	"sluice/policy"
)

// A patient service (wake_after = "data") is not woken by a connection but by the
// first byte on one. While it is not awake its connections are all accepted, and
// those that have said nothing are silent: they are no load, wake nothing, and
// end with start.timeout, or when others come that have more right to the place.
// Once the service is awake they go to a backend like all others, and only then
// do they count like these.
//
// The kernel's TCP_DEFER_ACCEPT does not do: it gives a connection out all the
// same when its time is up, or when it was begun under SYN cookies, and until
// then the silent fill the queue in which all begin.

const (
	// silentMost is how many silent connections the daemon keeps, and
	// silentEach how many for one service.
	silentMost = 4096
	silentEach = 256
	// spokenMost is how many connections that have said something are accepted
	// while a service wakes: enough to tell how many replicas it takes. More of
	// them wait in the kernel's queue, among others that may be silent.
	spokenMost = 256
	// keepRate is how many silent connections the service manager is given to
	// keep in a second: whoever only connects and leaves is not to keep it busy.
	keepRate = 64
)

// Silence tells when a connection has said something.
type Silence interface {
	Add(fd int, id uint64) error
	Remove(fd int) error
}

// silents are silent connections in the order in which they came. Of an id that
// has gone, order still has the place.
type silents struct {
	by    map[uint64]held
	order []uint64
}

func (s *service) patient() bool { return s.cfg.WakeAfter == config.WakeAfterData }

// listening says that it takes data to be a connection.
func (s *service) listening() bool { return s.patient() && s.policy.Phase() != policy.Warm }

// mode is what the policy asks for, as far as a patient service goes by it.
func (s *service) acceptMode(m accept.Mode) accept.Mode {
	switch {
	case !s.patient() || m == accept.All:
		return m
	case len(s.held) < spokenMost:
		return accept.All
	}
	return accept.Off
}

// silent keeps a connection for as long as it has said nothing to a patient
// service that is not awake. If it is not, the connection is there for others.
func (c *Control) silent(s *service, h held) bool {
	if !s.listening() {
		return false
	}
	switch said, err := spoken(h.fd); {
	case said:
		return false
	case err != nil: // reset, or closed without a word
		c.refuse(h)
		return true
	}
	c.nextConn++
	id := c.nextConn
	if err := c.opt.Silence.Add(h.fd, id); err != nil {
		s.log.Warn().Err(err).Msg("silent connection reset")
		c.refuse(h)
		return true
	}
	if s.silents.by == nil {
		s.silents.by = map[uint64]held{}
	}
	s.silents.by[id] = h
	s.silents.order = append(s.silents.order, id)
	c.hushed[s] = true
	c.owners[id] = s
	c.keepSilent(s, id)
	for len(s.silents.by) > silentEach {
		c.oust(s)
	}
	for len(c.owners) > silentMost {
		most := s
		for o := range c.hushed {
			if len(o.silents.by) > len(most.silents.by) {
				most = o
			}
		}
		c.oust(most)
	}
	return true
}

// spoken says whether there is something to read. The end of the connection, in
// whatever way, is an error.
func spoken(fd int) (bool, error) {
	var b [1]byte
	n, _, err := unix.Recvfrom(fd, b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		return false, nil
	case err != nil:
		return false, err
	case n == 0:
		return false, errors.New("closed")
	}
	return true, nil
}

// Spoken takes the news that something can be read from a silent connection.
func (c *Control) Spoken(id uint64) {
	c.box.post(func(now time.Time) {
		s := c.owners[id]
		if s == nil {
			return
		}
		h := c.unhush(s, id)
		if c.silent(s, h) { // it has ended, or it was nothing
			return
		}
		c.hold(s, now, h)
	})
}

// unhush takes a connection from among the silent.
func (c *Control) unhush(s *service, id uint64) held {
	h := s.silents.by[id]
	delete(s.silents.by, id)
	delete(c.owners, id)
	if len(s.silents.by) == 0 {
		s.silents = silents{}
		delete(c.hushed, s)
	} else if len(s.silents.order) > 2*len(s.silents.by)+16 {
		s.silents.order = s.silents.sorted()
	}
	if err := c.opt.Silence.Remove(h.fd); err != nil {
		s.log.Debug().Err(err).Msg("silent connection")
	}
	return h
}

// sorted is order without those that have gone.
func (q *silents) sorted() []uint64 {
	list := make([]uint64, 0, len(q.by))
	for _, id := range q.order {
		if _, ok := q.by[id]; ok {
			list = append(list, id)
		}
	}
	return list
}

// oldest is the first of the silent that is still there.
func (q *silents) oldest() (id uint64, h held, ok bool) {
	for len(q.order) > 0 {
		id = q.order[0]
		if h, ok = q.by[id]; ok {
			return id, h, true
		}
		q.order = q.order[1:]
	}
	return 0, h, false
}

// oust resets the oldest silent connection: a client that has something to say
// does so at once.
func (c *Control) oust(s *service) {
	if id, _, ok := s.silents.oldest(); ok {
		c.refuse(c.unhush(s, id))
	}
}

// keepSilent leaves a silent connection to the next run, if there were not too
// many of late: then it is the next tick's.
func (c *Control) keepSilent(s *service, id uint64) {
	if h := s.silents.by[id]; h.kept == "" && c.opt.Keep != nil && c.hushKept < keepRate {
		c.hushKept++
		c.keep(&h)
		s.silents.by[id] = h
	}
}

// outwait resets the silent connections whose time is up.
func (c *Control) outwait(now time.Time) {
	c.hushKept = 0
	for s := range c.hushed {
		for _, id := range s.silents.order {
			if _, ok := s.silents.by[id]; ok {
				c.keepSilent(s, id)
			}
		}
		for {
			id, h, ok := s.silents.oldest()
			if !ok || now.Sub(h.at) < s.cfg.Start.Timeout {
				break
			}
			c.refuse(c.unhush(s, id))
		}
	}
}

// admit gives the silent connections of a service to backends, once it is awake
// or not patient any more.
func (c *Control) admit(s *service, now time.Time) {
	if s.listening() {
		return
	}
	for _, id := range s.silents.sorted() {
		h := c.unhush(s, id)
		if _, err := spoken(h.fd); err != nil {
			c.refuse(h)
			continue
		}
		c.hold(s, now, h)
	}
}

// silence resets all silent connections of a service.
func (c *Control) silence(s *service) {
	for len(s.silents.by) > 0 {
		c.oust(s)
	}
}

// bequeath leaves them to the next run, also those that came too fast to be kept.
func (c *Control) bequeath(s *service) {
	for _, id := range s.silents.sorted() {
		h := c.unhush(s, id)
		c.keep(&h)
		c.leave(h)
	}
}
