package control

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"sluice/cmd/internal/config"
	"sluice/nft"
	"sluice/podman"
	"sluice/policy"
)

const (
	listRetryMin = 200 * time.Millisecond
	listRetryMax = 5 * time.Second
)

// adopt takes over what an earlier run left: table, replicas, flows. Until
// Podman answers nothing is guessed; flows through the table go on meanwhile
// and connections to sleeping services wait in their queues.
func (c *Control) adopt(ctx context.Context) error {
	var found []podman.Replica
	for retry := listRetryMin; ; retry = min(2*retry, listRetryMax) {
		var err error
		if found, err = c.opt.Replicas.List(ctx); err == nil {
			break
		}
		c.log.Error().Err(err).Dur("retry", retry).Msg("containers not listed, waiting for Podman")
		if !wait(ctx, retry) {
			return fmt.Errorf("adopt containers: %w", err)
		}
	}
	if c.opt.Commit != nil {
		if err := c.opt.Commit(); err != nil {
			return err
		}
	}
	table := c.opt.Table.Services()
	c.orphans(found, table)

	c.adopted = true
	c.lapse(c.opt.Config.Services)
	for _, l := range c.listeners {
		if l.dg != nil {
			l.dg.Resume()
		}
	}
	now := time.Now()
	for _, s := range c.services {
		var left []podman.Replica
		for _, p := range found {
			if p.Service == s.name {
				left = append(left, p)
			}
		}
		c.begin(s, now, left, table)
		if s.removed {
			c.retire(s, now)
		}
	}
	c.settle()
	return nil
}

// begin tells a service what is left of it and lets it go.
func (c *Control) begin(s *service, now time.Time, left []podman.Replica, table map[nft.Endpoint]nft.Service) {
	var replicas []policy.Replica
	var deaf []int
	for _, p := range left {
		r := policy.Replica{Index: p.Index, Hash: p.SpecHash, Started: p.StartedAt}
		switch p.State {
		case podman.Running:
			r.Running = true
		case podman.Initialized:
			r.Prepared = true
		case podman.Paused:
			r.Paused = true
		}
		if r.Running || r.Prepared || r.Paused {
			c.know(s, p)
		}
		if r.Paused {
			c.paused[s] = true
			s.replica(p.Index).asleep = true
			if err := c.watchFor(c.backends(s, s.replica(p.Index))); err != nil {
				deaf = append(deaf, p.Index)
				s.log.Warn().Err(err).Str("backend", p.Name).Msg("woken: packets to the replica would not be noticed")
			}
		}
		for _, ep := range s.endpoints {
			r.Mapped = r.Mapped || slices.Contains(table[ep].Slots, s.replica(p.Index).at(ep.Addr))
		}
		s.log.Info().Str("backend", p.Name).Stringer("state", p.State).Bool("mapped", r.Mapped).Msg("container adopted")
		replicas = append(replicas, r)
	}
	if len(replicas) > 0 && datagrams(s.cfg) {
		for _, network := range s.kinds.networks() {
			c.work.Go(func() { c.noteSubnets(c.ctx, network) })
		}
	}
	slices.SortFunc(replicas, func(a, b policy.Replica) int { return a.Index - b.Index })
	c.step(s, now, policy.Adopt{Replicas: replicas})
	for _, i := range deaf {
		c.step(s, now, policy.Alarm{Index: i})
	}
	if len(s.cfg.Backends) > 0 {
		c.resolve(s)
	}
}

// orphans makes a draining service of whatever is left of one that is not
// configured any more. Addresses in the table that belong to no container at
// all are dropped with the first change.
func (c *Control) orphans(found []podman.Replica, table map[nft.Endpoint]nft.Service) {
	known := map[nft.Endpoint]bool{}
	for _, s := range c.services {
		for _, ep := range s.endpoints {
			known[ep] = true
		}
	}
	for _, p := range found {
		s := c.services[p.Service]
		if s == nil {
			cfg := config.Service{
				Name:      p.Service,
				Container: &config.Container{Port: p.Port, StopTimeout: stopTimeout},
				Scale:     config.Scale{Max: 1, Utilization: 1, StableWindow: time.Minute, PanicWindow: 6 * time.Second},
				Start:     config.Start{Timeout: 30 * time.Second},
				Health:    config.Health{Type: config.HealthNone},
				Drain:     config.Drain{Timeout: time.Minute},
			}
			s = newService(cfg, kindsOf(cfg, ""), c.log)
			s.removed = true
			c.services[s.name] = s
			s.log.Warn().Msg("not configured any more, draining what is left of it")
		}
		if !s.removed {
			continue
		}
		for ep, sv := range table {
			if !known[ep] && slices.ContainsFunc(sv.Slots, func(a netip.AddrPort) bool {
				return a == netip.AddrPortFrom(p.Addr4, p.Port) || a == netip.AddrPortFrom(p.Addr6, p.Port)
			}) {
				known[ep] = true
				s.endpoints = append(s.endpoints, ep)
				c.endpoints[ep] = s
			}
		}
	}
	drop := change{endpoints: map[nft.Endpoint]*nft.Service{}}
	for ep := range table {
		if !known[ep] {
			drop.endpoints[ep] = nil
		}
	}
	if len(drop.endpoints) > 0 {
		c.log.Warn().Int("addresses", len(drop.endpoints)).Msg("addresses of no configured service removed from the table")
		c.app.apply(drop)
	}
}

// forget drops a removed service that has come to rest.
func (c *Control) forget(s *service) {
	c.due.set(s, time.Time{})
	c.silence(s)
	s.shares = nil
	c.app.apply(c.slotted(s, false))
	delete(c.services, s.name)
	for _, r := range s.replicas {
		c.part(r)
	}
	if s.unresolve != nil {
		s.unresolve()
	}
	delete(c.paused, s)
	delete(c.levelled, s)
	for _, ep := range s.endpoints {
		if c.endpoints[ep] == s {
			delete(c.endpoints, ep)
		}
	}
	s.log.Info().Msg("removed")
}
