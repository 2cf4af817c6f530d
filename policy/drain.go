package policy

import "time"

// drain sees backends out: fence, then a count of zero or the deadline.
func (s *Service) drain() {
	for _, b := range s.backends {
		if b.state != DrainingFlows || b.fence > s.acked {
			continue
		}
		deadline := s.drainEnd(b)
		switch {
		case b.dead:
			s.stop(b, 0)
		case !deadline.IsZero() && !s.now.Before(deadline):
			s.emit(Note{Kind: NoteDrained, Index: b.index, For: s.now.Sub(b.drainAt), N: b.flows})
			s.emit(Unprobe{b.index})
			s.stop(b, b.flows)
		case b.counting == 0 && !s.now.Before(b.recount):
			s.count(b)
		}
	}
}

func (s *Service) drainEnd(b *backend) time.Time {
	if s.spec.DrainTimeout == 0 {
		return time.Time{}
	}
	return b.drainAt.Add(s.spec.DrainTimeout)
}

func (s *Service) victim(b *backend) {
	s.emit(Note{Kind: NoteDrain, Index: b.index, N: b.flows})
	s.leave(b)
}

// leave takes the backend out of service; [Service.drain] sees it through.
func (s *Service) leave(b *backend) {
	if b.state == DrainingFlows {
		return
	}
	b.state, b.drainAt, b.recount, b.counting = DrainingFlows, s.now, s.now, 0
}

// count asks for a count that is begun after now.
func (s *Service) count(b *backend) {
	s.counts++
	b.counting = s.counts
	s.emit(Count{Index: b.index, Seq: s.counts})
}

func (s *Service) counted(b *backend, ev Counted) {
	b.counting = 0
	if b.state == Sleeping && (!ev.Known || ev.Flows-ev.Barred > b.left) {
		b.alarm, s.busyAt = true, s.now // something came while nobody listened
	}
	if b.state != DrainingFlows {
		return
	}
	b.recount = s.now.Add(recount)
	if !ev.Known {
		return
	}
	b.flows = ev.Flows
	if ev.Flows > 0 {
		if !s.spec.IdleBytes {
			s.busyAt = s.now
		}
		return
	}
	s.emit(Note{Kind: NoteDrained, Index: b.index, For: s.now.Sub(b.drainAt)})
	s.emit(Unprobe{b.index})
	s.stop(b, 0)
}

func (s *Service) drainOrder(index int) {
	if index == 0 {
		s.sleep = true
		s.manualT = time.Time{}
		return
	}
	b := s.backend(index)
	if b == nil {
		return
	}
	switch b.state {
	case Ready, Probing, DrainingFlows:
		if b.state != DrainingFlows {
			s.emit(Note{Kind: NoteDrain, Index: b.index, N: b.flows})
		}
		b.ordered = true
		s.leave(b)
	case Sleeping:
		switch {
		case b.member:
		case b.frozen:
			b.ordered = true
			s.leave(b)
		default:
			s.stop(b, 0)
		}
	case Starting, Preparing:
		b.doomed = true
	}
}

// stop asks to end a replica.
func (s *Service) stop(b *backend, cut int) {
	b.state, b.retryAt, b.counting = Stopping, time.Time{}, 0
	s.emit(Stop{Index: b.index, Cut: cut})
}
