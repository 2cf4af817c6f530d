package policy

import "time"

// backend is one replica of a service.
type backend struct {
	index    int
	state    State
	member   bool   // sluice neither starts nor stops it
	canary   bool   // made from what is tried out
	weight   int    // of a member
	priority int    // of a member
	hash     string // of a replica: what it was made from
	adopted  bool   // made by an earlier run, which may have sent it flows
	doomed   bool   // stop it as soon as the call in flight has returned
	ordered  bool   // drained by command: not to be taken back
	sick     bool   // its checks fail
	dead     bool   // its program has ended
	frozen   bool   // paused: its slots stay in the map
	alarm    bool   // something was sent to it meanwhile
	flows    int    // as last known
	left     int    // of these, those that were open when it was paused, at most

	startAt  time.Time // Start was asked for
	readyAt  time.Time // first became ready; zero: never was
	sleptAt  time.Time // fell asleep
	sickAt   time.Time // checks began to fail
	drainAt  time.Time // drain began
	recount  time.Time // next Count is due
	retryAt  time.Time // next Stop is due; zero: one is in flight
	counting uint64    // the Count in flight; 0: none. Answers to others are of the past

	mapSeq uint64 // the Map that put it in; 0 with mapped: adopted
	fence  uint64 // the Map that took it out
	mapped bool   // the last Map names it
	share  int    // with this weight
	err    error  // what its check saw last
}

// isComing says that the replica will serve, or does, unless something fails.
func (s *Service) isComing(b *backend) bool {
	if b.member || s.outdated(b) || b.doomed || b.ordered {
		return false
	}
	switch b.state {
	case Starting, Ready, Thawing:
		return true
	case Probing:
		return b.readyAt.IsZero()
	}
	return false
}

// A Backend is what a person is shown of a backend.
type Backend struct {
	Index    int
	State    State
	Flows    int
	Weight   int // its share of new flows now
	Outdated bool
	Canary   bool
	Err      error
}

// A View is what a person is shown of a service.
type View struct {
	Phase    Phase
	Desired  int
	Ready    int
	Held     int
	Err      error // why it last failed; nil once it is ready again
	Trial    error // why the canary last failed
	Backends []Backend
}

// View shows the service as it is now.
func (s *Service) View() View {
	v := View{Phase: s.phase, Desired: s.stable + s.canaries, Held: len(s.held), Err: s.err, Trial: s.trial.err}
	for _, b := range s.backends {
		if b.state == Ready {
			v.Ready++
		}
		share := b.share
		if b.mapSeq > s.acked {
			share = 0 // not in the kernel yet
		}
		v.Backends = append(v.Backends, Backend{b.index, b.state, b.flows, share, s.outdated(b), b.canary, b.err})
	}
	return v
}

// Has says whether the service has a backend of this index, in whatever state.
func (s *Service) Has(index int) bool { return s.backend(index) != nil }

// Phase is where the service stands.
func (s *Service) Phase() Phase { return s.phase }
