package policy

import (
	"fmt"
	"slices"
	"time"
)

// settle compares what is with what should be and asks for the difference.
func (s *Service) settle() {
	s.expire()
	s.proven()
	s.decide()
	s.divide()
	s.scaleUp()
	s.scaleDown()
	s.fallAsleep()
	s.remap()
	s.serve()
	s.waking() // if the last that served is not in the map any more
	s.drain()
	s.prepare()
	s.report()
	s.accept()
}

// expire gives up what has taken too long.
func (s *Service) expire() {
	if !s.wakeAt.IsZero() && !s.now.Before(s.wakeAt.Add(s.spec.StartTimeout)) && !s.routable() {
		s.fail(s.lateness())
	}
	for _, b := range s.backends {
		if b.member && b.state == Probing {
			continue // it may come when it likes
		}
		late := !s.now.Before(b.startAt.Add(s.spec.StartTimeout))
		switch {
		case b.state == Probing && b.readyAt.IsZero() && late:
			s.retry(b, notReady(s.spec.StartTimeout, b.err))
			s.emit(Unprobe{b.index})
			s.leaveOrStop(b)
		case b.state == Probing && b.sick && !s.now.Before(b.sickAt.Add(s.spec.StartTimeout)):
			s.emit(Note{Kind: NoteDrain, Index: b.index, N: b.flows, Err: b.err})
			s.leave(b)
		case b.state == Stopping && !b.retryAt.IsZero() && !s.now.Before(b.retryAt):
			s.stop(b, 0)
		}
	}
}

// leaveOrStop ends a replica that has never been ready: at once, unless an
// earlier run may have sent it flows. It may have been killed during a drain.
func (s *Service) leaveOrStop(b *backend) {
	if b.adopted {
		s.leave(b)
		return
	}
	s.stop(b, 0)
}

func notReady(after time.Duration, err error) error {
	if err == nil {
		return fmt.Errorf("not ready after %s", after)
	}
	return fmt.Errorf("not ready after %s: %w", after, err)
}

// lateness says why a wake has not come to its end.
func (s *Service) lateness() error {
	for _, b := range s.backends {
		if b.state == Probing && b.err != nil {
			return notReady(s.spec.StartTimeout, b.err)
		}
	}
	return notReady(s.spec.StartTimeout, s.cause)
}

// decide sets how many replicas are wanted.
func (s *Service) decide() {
	before := s.want
	failed := s.now.Before(s.failedT)
	ready, old, active := 0, 0, false
	beside, ahead := 0, s.Outranked() // members that serve with the replicas, or instead of them
	for _, b := range s.backends {
		if b.member {
			if b.state == Ready && b.weight > 0 && b.priority == s.spec.Priority {
				beside++
			}
			continue
		}
		if b.state == Ready {
			ready++
			if s.outdated(b) {
				old++
			}
		}
		// Without an alarm what a paused one carries is no sign that anybody wants it.
		if b.state == Ready || b.state == DrainingFlows && !b.dead && (!b.frozen || b.alarm) || b.state == Probing {
			active = true
		}
	}
	if failed && !s.routable() {
		for _, c := range s.held {
			s.emit(Note{Kind: NoteRefused, Err: s.err})
			s.emit(Reset{c, s.err})
		}
		s.held = s.held[:0]
	}
	// What both sides have too much is no sign of load, nor is a replica that is
	// ready beside the one it is to replace.
	carried := max(ready-s.extra-min(old, ready-old), min(ready, s.want))
	s.beside = beside
	switch {
	case failed && ready == 0, s.spec.Max == 0:
		s.want = 0
	case ahead:
		s.want = s.spec.Min
	case s.now.Before(s.manualT):
		s.want = s.manual
	case s.sleep:
		s.want = 0
		if !slices.ContainsFunc(s.backends, func(b *backend) bool { return !b.member && b.state != Sleeping && b.state != Stopping }) {
			s.sleep = false
			s.want = s.spec.Min
		}
	case s.wanted || s.alarmed() || len(s.held) > 0 || !s.wakeAt.IsZero() || active && (s.now.Before(s.busyAt.Add(s.spec.Idle)) || s.carrying() && !s.spec.IdleBytes):
		// Members carry load too; with one of them no replica has to.
		s.want = max(s.scaler.desired(s.now, s.spec.Scaling, carried+beside)-beside, s.spec.Min)
		if beside == 0 {
			s.want = max(s.want, 1)
		}
		s.want = min(s.want, s.spec.Max)
	default:
		s.want = s.spec.Min
	}
	if len(s.held) > 0 && s.spec.Max > 0 && beside == 0 && !ahead {
		s.want = max(s.want, 1)
	}
	s.wanted = false
	if !s.waking() && s.want != before && before > 0 {
		s.emit(Note{Kind: NoteScale, N: s.want})
	}
}

// waking notes when a wake begins, and ends one that nobody wants any more. It
// reports whether there was either to do.
func (s *Service) waking() bool {
	switch {
	case s.want == 0 && len(s.held) == 0:
		s.wakeAt = time.Time{}
	case s.wakeAt.IsZero() && !s.routable() && !s.now.Before(s.failedT):
		s.wakeAt = s.now
		s.emit(Note{Kind: NoteWaking, N: s.want})
	default:
		return false
	}
	return true
}

// carrying says that some backend had flows when last counted.
func (s *Service) carrying() bool {
	return slices.ContainsFunc(s.backends, func(b *backend) bool { return b.flows > 0 && !b.dead })
}

func (s *Service) coming(canary bool) (n int) {
	for _, b := range s.backends {
		if b.canary == canary && s.isComing(b) {
			n++
		}
	}
	return n
}

// scaleUp starts what is missing, stable replicas first.
func (s *Service) scaleUp() {
	for _, canary := range []bool{false, true} {
		s.raise(canary, s.wants(canary)-s.coming(canary))
	}
}

// raise starts what is missing on one side: first what costs least.
func (s *Service) raise(canary bool, missing int) {
	take := func(ok func(*backend) bool, do func(*backend)) {
		for missing > 0 {
			var best *backend
			for _, b := range s.backends {
				if !b.member && b.canary == canary && ok(b) && (best == nil || b.flows > best.flows) {
					best = b
				}
			}
			if best == nil {
				return
			}
			do(best)
			missing--
		}
	}
	take(func(b *backend) bool {
		return b.state == Starting && b.doomed && !s.outdated(b) && s.mayStart(canary)
	}, func(b *backend) { b.doomed = false })
	for _, b := range s.backends {
		if b.canary == canary && b.state == Sleeping && b.frozen && (s.want > 0 || b.alarm) && !s.outdated(b) {
			s.thaw(b)
			missing--
		}
	}
	take(func(b *backend) bool {
		return b.state == DrainingFlows && !s.outdated(b) && !b.ordered && !b.sick && !b.dead && !b.readyAt.IsZero()
	}, func(b *backend) {
		s.emit(Note{Kind: NoteUndrain, Index: b.index, N: b.flows})
		if b.frozen {
			s.thaw(b)
			return
		}
		b.state, b.counting = Ready, 0
	})
	if !s.mayStart(canary) {
		return
	}
	take(func(b *backend) bool { return b.state == Sleeping && !b.frozen && !s.outdated(b) },
		func(b *backend) { s.start(b) })
	for _, b := range s.backends {
		if b.canary == canary && b.state == Preparing && !s.outdated(b) && missing > 0 {
			b.doomed = false
			missing-- // started as soon as it is prepared
		}
	}
	for missing > 0 && s.replicas() <= s.limit() { // one more while one leaves
		i := 1
		for s.backend(i) != nil {
			i++
		}
		b := &backend{index: i, hash: s.spec.Hash}
		if canary {
			b.hash, b.canary = s.spec.Canary.Hash, true
		}
		s.start(s.add(b))
		missing--
	}
}

// replicas counts containers in whatever state.
func (s *Service) replicas() (n int) {
	for _, b := range s.backends {
		if !b.member {
			n++
		}
	}
	return n
}

func (s *Service) mayStart(canary bool) bool {
	tryT := s.tryT
	if canary {
		tryT = s.trial.tryT
	}
	return !s.now.Before(tryT) && !s.now.Before(s.failedT)
}

func (s *Service) start(b *backend) {
	b.state, b.startAt, b.doomed = Starting, s.now, false
	s.emit(Start{b.index, b.canary})
}

// scaleDown ends what is too much.
func (s *Service) scaleDown() {
	if s.want == 0 && s.spec.Sleep == SleepPause && !s.sleep && !s.now.Before(s.manualT) && s.known {
		s.freeze()
	}
	for _, canary := range []bool{false, true} {
		s.lower(canary, s.coming(canary)-s.wants(canary))
	}
}

// lower drains what is too much on one side: one victim at a time, the least
// busy, the newest of equals. What has never served goes first.
func (s *Service) lower(canary bool, surplus int) {
	for i := len(s.backends) - 1; i >= 0 && surplus > 0; i-- {
		b := s.backends[i]
		if b.canary != canary || !s.isComing(b) || !b.readyAt.IsZero() {
			continue
		}
		surplus--
		if b.state == Starting {
			b.doomed = true
			continue
		}
		s.emit(Unprobe{b.index})
		s.leaveOrStop(b)
	}

	serving, draining := 0, false
	for _, b := range s.backends {
		if b.member || b.canary != canary {
			continue
		}
		if b.state == Ready {
			serving++
		}
		draining = draining || b.state == DrainingFlows && !b.dead
	}
	all := s.wants(canary) == 0    // the others serve, or nobody has to
	for _, b := range s.backends { // a new configuration replaces the old
		if b.canary != canary || !s.outdated(b) {
			continue
		}
		switch {
		case b.state == Sleeping && b.frozen:
			s.leave(b)
		case b.state == Sleeping:
			s.stop(b, 0)
		case b.state == Probing:
			s.victim(b)
		case b.state == Ready && serving > s.wants(canary) && (all && s.spared(b) || !all && !draining):
			s.victim(b)
			serving--
			draining = true
		}
	}
	for surplus > 0 && (all || !draining) && (s.known || s.sleep) {
		var victim *backend
		for _, b := range s.backends {
			if b.canary == canary && b.state == Ready && s.isComing(b) && (!all || s.spared(b)) &&
				(victim == nil || b.flows < victim.flows || b.flows == victim.flows && !b.readyAt.Before(victim.readyAt)) {
				victim = b
			}
		}
		if victim == nil {
			return
		}
		s.victim(victim)
		draining = true
		surplus--
	}
}

// Replicas weigh ReplicaWeight; a new one grows to it in steps.
const (
	ReplicaWeight = 100
	slowSteps     = 10
)

// report moves the phase and says so.
func (s *Service) report() {
	was := s.phase
	leaving := slices.ContainsFunc(s.backends, func(b *backend) bool {
		return b.state == DrainingFlows || b.state == Stopping
	})
	switch {
	case s.routable():
		s.phase = Warm
	case s.now.Before(s.failedT):
		s.phase = Failed
	case s.want > 0:
		s.phase = Waking
	case leaving:
		s.phase = Draining
	default:
		s.phase = Cold
	}
	if s.phase == Warm && !s.wakeAt.IsZero() {
		s.emit(Note{Kind: NoteWarm, For: s.now.Sub(s.wakeAt)})
		s.wakeAt, s.fails, s.busyAt = time.Time{}, 0, s.now
	}
	if s.phase == Cold && was != Cold && was != Failed {
		s.scaler.reset()
		s.crashes, s.tries = 0, 0
		s.emit(Note{Kind: NoteAsleep})
	}
}

// accept opens the listener as far as the phase allows. While a service wakes
// all but the first connection wait, completed, in the kernel's queue.
func (s *Service) accept() {
	mode := AcceptOne
	switch {
	case s.phase == Warm || s.phase == Failed:
		mode = AcceptAll
	case len(s.held) > 0:
		mode = AcceptOff
	}
	if mode != s.mode {
		s.mode = mode
		s.emit(Accept{mode})
	}
}

// Deadline is when the service wants its next [Tick], if nothing happens
// before. The zero time means never.
func (s *Service) Deadline() time.Time {
	var d time.Time
	due := func(t time.Time) {
		if !t.IsZero() && t.After(s.now) && (d.IsZero() || t.Before(d)) {
			d = t
		}
	}
	due(s.failedT)
	due(s.tryT)
	due(s.trial.tryT)
	due(s.manualT)
	if !s.wakeAt.IsZero() {
		due(s.wakeAt.Add(s.spec.StartTimeout))
	}
	for _, b := range s.backends {
		switch b.state {
		case Probing:
			if b.member {
				continue
			}
			if b.readyAt.IsZero() {
				due(b.startAt.Add(s.spec.StartTimeout))
			} else {
				due(b.sickAt.Add(s.spec.StartTimeout))
			}
		case Ready:
			if b.member {
				continue
			}
			due(s.busyAt.Add(s.spec.Idle))
			if step := s.spec.SlowStart / slowSteps; step > 0 && s.now.Before(b.readyAt.Add(s.spec.SlowStart)) {
				due(b.readyAt.Add((s.now.Sub(b.readyAt)/step + 1) * step))
			}
		case DrainingFlows:
			due(s.drainEnd(b))
			if b.counting == 0 {
				due(b.recount)
			}
		case Sleeping:
			if s.spec.StopAfter > 0 && !b.member {
				due(b.sleptAt.Add(s.spec.StopAfter))
			}
		case Stopping:
			due(b.retryAt)
		}
	}
	return d
}
