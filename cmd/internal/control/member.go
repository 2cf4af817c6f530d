package control

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"sluice/cmd/internal/resolve"
	"sluice/policy"
)

// A service's members are the backends that sluice does not start: fixed
// addresses, and those that SRV names stand for at the moment.

// resolve begins to follow the members of a service, after ending what it
// followed before.
func (c *Control) resolve(s *service) {
	if s.unresolve != nil {
		s.unresolve()
	}
	ctx, cancel := context.WithCancel(c.ctx)
	s.unresolve = cancel
	known := s.found
	s.found = map[string][]resolve.Target{}
	for _, b := range s.cfg.Backends {
		if b.SRV == "" {
			continue
		}
		s.found[b.SRV] = known[b.SRV] // until there is an answer
		c.work.Go(func() {
			resolve.Watch(ctx, b.SRV, resolve.Options{}, func(found []resolve.Target, err error) {
				c.box.post(func(time.Time) {
					if ctx.Err() != nil {
						return
					}
					e := s.log.Info()
					if err != nil {
						e = s.log.Warn().Err(err)
					}
					e.Str("srv", b.SRV).Int("backends", len(found)).Msg("backends resolved")
					if found != nil || !errors.Is(err, resolve.ErrNotFound) {
						s.found[b.SRV] = found
					}
					c.join(s)
				})
			})
		})
	}
	c.join(s)
}

// join tells a service its members. An address keeps its index until [Control.prune].
func (c *Control) join(s *service) {
	var list []policy.Member
	seen := map[netip.AddrPort]bool{}
	add := func(addr netip.AddrPort, weight, priority int) {
		if !seen[addr] {
			seen[addr] = true
			list = append(list, policy.Member{Index: s.member(addr).index, Weight: weight, Priority: priority})
		}
	}
	for _, b := range s.cfg.Backends {
		if b.SRV == "" {
			add(b.Addr, b.Weight, b.Priority)
			continue
		}
		for _, t := range s.found[b.SRV] {
			add(t.Addr, t.Weight, b.Priority+t.Priority)
		}
	}
	// At once: an index that the policy does not know yet would be pruned.
	c.step(s, time.Now(), policy.Members{Members: list})
	for _, r := range s.replicas {
		c.prune(s, r)
	}
}

// prune drops a member that has left, once nothing goes through it any more:
// names may stand for other addresses for ever. What it has carried stays in the
// sums of the service.
func (c *Control) prune(s *service, r *replica) {
	if r.index >= policy.FirstMember && r.carries == 0 && !s.policy.Has(r.index) {
		c.part(r)
		delete(s.replicas, r.index)
	}
}

// member returns the replica entry of an address.
func (s *service) member(addr netip.AddrPort) *replica {
	for _, r := range s.replicas {
		if (r.addr4 == addr || r.addr6 == addr) && r.index >= policy.FirstMember {
			return r
		}
	}
	s.members++
	r := &replica{index: policy.FirstMember + s.members, name: addr.String()}
	if addr.Addr().Is4() {
		r.addr4 = addr
	} else {
		r.addr6 = addr
	}
	s.replicas[r.index] = r
	return r
}
