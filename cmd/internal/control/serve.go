package control

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"sluice/cmd/internal/relay"
	"sluice/policy"
)

// serving is a held connection on its way to a backend.
type serving struct {
	held    held
	replica *replica
}

const (
	dialTimeout = 5 * time.Second
	rehold      = 100 * time.Millisecond
)

// serve gives connections to the backends that the step in progress has
// chosen for them.
func (c *Control) serve(s *service) {
	for _, v := range s.todo {
		v.replica.relays++
		s.counts.relayed++
		c.talk.Go(func() { c.relay(s, v) })
	}
	s.todo = s.todo[:0]
}

// relay carries one connection for its whole life. A backend that cannot be
// reached gives the connection back to be held again, until its time is up:
// nothing has been read from it yet.
func (c *Control) relay(s *service, v serving) {
	addr := v.replica.addr
	backend, err := relay.Dial(c.ctx, addr, dialTimeout)
	if err != nil {
		s.log.Warn().Err(err).Str("backend", v.replica.name).Msg("backend not reached, connection held again")
		time.AfterFunc(rehold, func() {
			c.box.post(func(now time.Time) {
				c.released(s, now, v.replica)
				c.again(s, now, v.held)
			})
		})
		return
	}
	client, err := relay.FromFD(v.held.fd)
	if err != nil {
		s.log.Error().Err(err).Msg("connection lost")
		_ = backend.Close()
	} else {
		c.opt.Record.Handover("relay_forced")
		st, err := relay.Run(c.ctx, client, backend)
		if err != nil && !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, context.Canceled) {
			s.log.Debug().Err(err).Str("backend", v.replica.name).Int64("up", st.ToBackend).Int64("down", st.ToClient).Msg("relay ended")
		}
	}
	c.box.post(func(now time.Time) { c.released(s, now, v.replica) })
}

// released takes a relayed connection off its backend.
func (c *Control) released(s *service, now time.Time, r *replica) {
	r.relays--
	if r.relays == 0 {
		c.step(s, now, policy.Quiet{Index: r.index})
	}
}

// again holds a connection that no backend could take.
func (c *Control) again(s *service, now time.Time, h held) {
	if now.Sub(h.at) > s.cfg.Start.Timeout || c.services[s.name] != s || c.stopping {
		c.reset(h.fd)
		return
	}
	c.nextConn++
	s.held[c.nextConn] = h
	c.step(s, now, policy.Accepted{Conn: c.nextConn})
}
