package policy

import (
	"slices"
)

// members takes the list of backends that sluice does not start.
func (s *Service) members(list []Member) {
	s.list = list
	listed := map[int]bool{}
	for _, m := range list {
		listed[m.Index] = true
		b := s.backend(m.Index)
		if b == nil {
			b = s.add(&backend{index: m.Index, member: true, state: Probing, startAt: s.now})
			s.emit(Probe{Index: b.index})
		}
		b.weight, b.priority = m.Weight, m.Priority
		if b.state == DrainingFlows && !b.ordered { // listed again
			b.state, b.counting = Probing, 0
			if !b.sick && !b.readyAt.IsZero() {
				b.state = Ready
			}
		}
	}
	s.backends = slices.DeleteFunc(s.backends, func(b *backend) bool {
		return b.member && !listed[b.index] && b.state == Sleeping
	})
	for _, b := range s.backends {
		if b.member && !listed[b.index] {
			b.ordered = false
			if b.state != Stopping {
				s.leave(b)
			}
		}
	}
}
