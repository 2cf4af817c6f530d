package policy

import "slices"

// inMap says that a backend may get new flows. A paused one does too: the
// kernel completes handshakes for it, and its first packet wakes it. But where
// a member is ready that one serves, and the paused one sleeps on.
func (s *Service) inMap(b *backend) bool {
	switch {
	case b.dead:
		return false
	case b.state == Ready:
		return true
	case b.state == Pausing || b.state == Thawing || b.state == Sleeping && b.frozen:
		return !slices.ContainsFunc(s.backends, func(m *backend) bool {
			return m.member && m.state == Ready && m.weight > 0
		})
	}
	return false
}

// tier is the priority of the backends that get new flows: the lowest number
// among those that are ready.
func (s *Service) tier() (tier int, ok bool) {
	for _, b := range s.backends {
		if s.inMap(b) && s.weight(b) > 0 && (!ok || s.priority(b) < tier) {
			tier, ok = s.priority(b), true
		}
	}
	return tier, ok
}

// Outranked says that a member serves instead of the replicas, of which there are
// Min meanwhile, whatever the load or the orders.
func (s *Service) Outranked() bool {
	return slices.ContainsFunc(s.backends, func(b *backend) bool {
		return b.member && b.state == Ready && b.weight > 0 && b.priority < s.spec.Priority
	})
}

func (s *Service) priority(b *backend) int {
	if b.member {
		return b.priority
	}
	return s.spec.Priority
}

// weight is the backend's share of new flows.
func (s *Service) weight(b *backend) int {
	if b.member {
		return b.weight
	}
	if at := b.readyAt.Add(s.spec.SlowStart); s.spec.SlowStart > 0 && s.now.Before(at) {
		step := int(slowSteps * s.now.Sub(b.readyAt) / s.spec.SlowStart)
		return ReplicaWeight * (1 + step) / slowSteps
	}
	return ReplicaWeight
}

// remap asks for the slots of the ready backends of the first tier.
func (s *Service) remap() {
	want, percent := s.shares()
	if s.spec.Level && len(want) > 1 {
		for i := range want {
			want[i].Weight = max(s.levels[want[i].Index], 1)
		}
	}
	if len(want) == 1 {
		want[0].Weight = ReplicaWeight // all of it, whatever it weighs
	}
	if slices.Equal(want, s.mapped) && percent == s.percent && !s.fresh {
		return
	}
	s.fresh = false
	s.seq++
	for _, b := range s.backends {
		i := slices.IndexFunc(want, func(w Share) bool { return w.Index == b.index })
		if b.mapped && i < 0 {
			b.fence = s.seq
		}
		if i >= 0 && !b.mapped {
			b.mapSeq = s.seq
		}
		b.mapped, b.share = i >= 0, 0
		if i >= 0 {
			b.share = want[i].Weight
		}
	}
	s.mapped, s.percent = want, percent
	s.emit(Map{Seq: s.seq, Shares: slices.Clone(want), Percent: percent})
}

// serve gives the held connections to backends that the map already names.
func (s *Service) serve() {
	for len(s.held) > 0 {
		best := s.leastBusy(s.turn())
		if best == nil {
			return
		}
		best.flows++
		s.busyAt = s.now
		s.emit(Serve{s.held[0], best.index})
		s.held = s.held[1:]
	}
	s.held = nil
}

// leastBusy is the backend among some that serves fewest flows for its weight,
// one more counted in.
func (s *Service) leastBusy(ok func(*backend) bool) (best *backend) {
	for _, b := range s.backends {
		if s.serves(b) && ok(b) && (best == nil || (b.flows+1)*s.weight(best) < (best.flows+1)*s.weight(b)) {
			best = b
		}
	}
	return best
}
