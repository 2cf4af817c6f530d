package control

import (
	"context"
	"net/netip"
	"time"

	"github.com/rs/zerolog"

	"sluice/conntrack"
	"sluice/nft"
	"sluice/policy"
)

// pause freezes a replica. The alarm is set before, so that nothing that is
// sent to it goes unnoticed.
func (c *Control) pause(s *service, r *replica, id string, names []conntrack.Backend) {
	ctx, cancel := context.WithTimeout(c.ctx, pauseTimeout)
	defer cancel()
	err := c.watchFor(names)
	if err == nil {
		err = c.opt.Replicas.Pause(ctx, id)
	}
	if err != nil {
		c.unwatch(s.log, r.name, names)
	}
	c.box.post(func(now time.Time) {
		r.since = now
		if err != nil {
			r.asleep = false
			c.screen(s)
		}
		c.step(s, now, policy.Paused{Index: r.index, Err: err})
	})
}

func (c *Control) thaw(s *service, r *replica, id string, names []conntrack.Backend) {
	ctx, cancel := context.WithTimeout(c.ctx, pauseTimeout)
	defer cancel()
	err := c.opt.Replicas.Unpause(ctx, id)
	c.unwatch(s.log, r.name, names)
	c.box.post(func(now time.Time) {
		r.since = now
		if err == nil {
			r.asleep = false
			c.screen(s)
		}
		c.step(s, now, policy.Thawed{Index: r.index, Err: err})
	})
}

// key is an address and port as the table knows it.
func key(a netip.AddrPort, proto uint8) nft.Endpoint {
	return nft.Endpoint{Addr: a.Addr(), Proto: proto, Port: a.Port()}
}

// watchFor has an alarm raised for what is sent to a backend: a new flow, or data
// on one that is open. conntrack's events would tell of new flows too, but of
// connections before their handshake is complete, which anyone can begin in
// anyone's name.
func (c *Control) watchFor(names []conntrack.Backend) error { return c.mark(names, true) }

// unwatch takes the alarms of a backend back.
func (c *Control) unwatch(log zerolog.Logger, name string, names []conntrack.Backend) {
	if err := c.mark(names, false); err != nil {
		log.Warn().Err(err).Str("backend", name).Msg("packets to the backend are still logged")
	}
}

func (c *Control) mark(names []conntrack.Backend, asleep bool) error {
	changes := map[nft.Endpoint]bool{}
	for _, b := range names {
		changes[key(b.Backend, b.Proto)] = asleep
	}
	return c.opt.Table.Asleep(changes)
}

const pauseTimeout = 10 * time.Second

// Alarm takes the news that something was sent to a backend that is paused.
func (c *Control) Alarm(backend netip.AddrPort) {
	c.box.post(func(now time.Time) {
		for s := range c.paused {
			if r := s.byAddr(backend); r != nil {
				c.step(s, now, policy.Alarm{Index: r.index})
				return
			}
		}
	})
}

// AlarmAll takes the news that alarms were lost: anyone may have been called.
func (c *Control) AlarmAll() {
	c.everyPaused(func(i int) policy.Event { return policy.Alarm{Index: i} })
}

// Doubt takes the news that nobody has listened for alarms: new flows that came
// meanwhile show in a dump.
func (c *Control) Doubt() { c.everyPaused(func(i int) policy.Event { return policy.Doubt{Index: i} }) }

func (c *Control) everyPaused(about func(index int) policy.Event) {
	c.box.post(func(now time.Time) {
		for s := range c.paused {
			for _, b := range s.policy.View().Backends {
				c.step(s, now, about(b.Index))
			}
		}
	})
}
