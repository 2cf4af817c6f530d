package control

import (
	"context"
	"net/netip"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"sluice/conntrack"
	"sluice/nft"
	"sluice/policy"
)

// pause freezes a replica. The alarm is set before, so that nothing that is
// sent to it goes unnoticed.
func (c *Control) pause(s *service, r *replica, id string, patient bool, names []conntrack.Backend) {
	c.watchFor(patient, names)
	ctx, cancel := context.WithTimeout(c.ctx, pauseTimeout)
	defer cancel()
	err := c.opt.Replicas.Pause(ctx, id)
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

// watchFor has an alarm raised for the next new flow to a backend, by
// conntrack, and for data on flows that are open, by a rule that logs them. For
// a patient service this rule, which sees what carries data, is all there is.
func (c *Control) watchFor(patient bool, names []conntrack.Backend) {
	asleep := map[nft.Endpoint]bool{}
	for _, b := range names {
		if !patient || b.Proto == unix.IPPROTO_UDP {
			c.opt.Flows.Arm(b)
		} else {
			c.opt.Flows.Disarm(b)
		}
		asleep[key(b.Backend, b.Proto)] = true
	}
	if err := c.opt.Table.Asleep(asleep); err != nil {
		c.log.Warn().Err(err).Msg("data on open connections will not wake a paused replica")
	}
}

// alert sets the alarms of paused replicas as the configuration now is.
func (c *Control) alert(s *service) {
	patient := s.patient()
	for _, r := range s.replicas {
		if names := c.backends(s, r); r.asleep {
			c.work.Go(func() { c.watchFor(patient, names) })
		}
	}
}

// unwatch takes the alarms of a backend back.
func (c *Control) unwatch(log zerolog.Logger, name string, names []conntrack.Backend) {
	asleep := map[nft.Endpoint]bool{}
	for _, b := range names {
		c.opt.Flows.Disarm(b)
		asleep[key(b.Backend, b.Proto)] = false
	}
	if err := c.opt.Table.Asleep(asleep); err != nil {
		log.Warn().Err(err).Str("backend", name).Msg("packets to the backend are still logged")
	}
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
	c.box.post(func(now time.Time) {
		for s := range c.paused {
			for _, b := range s.policy.View().Backends {
				c.step(s, now, policy.Alarm{Index: b.Index})
			}
		}
	})
}
