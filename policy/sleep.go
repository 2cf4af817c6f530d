package policy

import (
	"fmt"
	"slices"
)

func (s *Service) prepared(b *backend, err error) {
	if err != nil {
		s.retry(b, fmt.Errorf("prepare: %w", err))
		s.stop(b, 0)
		return
	}
	b.state, b.sleptAt = Sleeping, s.now
	if b.doomed {
		s.stop(b, 0)
	}
}

// pause freezes a ready replica; its slots stay.
func (s *Service) pause(b *backend) {
	b.state, b.alarm, b.left = Pausing, false, b.flows
	s.emit(Unprobe{b.index})
	s.emit(Pause{b.index})
}

func (s *Service) paused(b *backend, err error) {
	if err != nil {
		b.state, s.busyAt = Ready, s.now
		s.emit(Probe{Index: b.index, Assume: true})
		s.emit(Note{Kind: NoteRetry, Index: b.index, Err: fmt.Errorf("pause: %w", err), For: s.spec.Idle})
		if b.dead {
			s.emit(Unprobe{b.index})
			s.leave(b)
		}
		return
	}
	b.state, b.frozen, b.sleptAt = Sleeping, true, s.now
	s.emit(Note{Kind: NotePaused, Index: b.index, N: b.flows})
	if b.dead {
		s.leave(b)
		return
	}
	// What was sent before the alarm was set shows in a dump.
	s.count(b)
}

func (s *Service) thaw(b *backend) {
	b.state, b.startAt, b.alarm, b.counting = Thawing, s.now, false, 0
	s.emit(Thaw{b.index})
}

func (s *Service) thawed(b *backend, err error) {
	if err != nil {
		// Another replica serves from now on. This one's flows have until
		// the drain deadline, as always.
		s.retry(b, fmt.Errorf("unpause: %w", err))
		b.ordered, b.alarm = true, true
		s.leave(b)
		return
	}
	b.frozen = false
	if b.dead {
		s.leave(b)
		return
	}
	b.state = Ready
	s.recovered(b)
	s.emit(Probe{Index: b.index, Assume: true})
	s.emit(Note{Kind: NoteReady, Index: b.index, For: s.now.Sub(b.startAt)})
}

// freeze pauses what is to stay in memory while the service sleeps: replicas
// with flows that were left open, or else the first. A canary without flows is
// not kept, and no canary alone.
func (s *Service) freeze() {
	busy := s.carrying()
	var spare *backend
	stable, canary := false, false
	for _, b := range s.backends {
		switch {
		case b.state != Ready || !s.isComing(b):
		case busy && b.flows > 0:
			s.pause(b)
			stable, canary = stable || !b.canary, canary || b.canary
		case !b.canary && spare == nil:
			spare = b
		}
	}
	if spare != nil && (!busy || canary && !stable) {
		s.pause(spare)
	}
}

// fallAsleep ends what has slept for long enough.
func (s *Service) fallAsleep() {
	if s.want > 0 {
		s.deep = false
		return
	}
	for _, b := range s.backends {
		if b.member || b.state != Sleeping || s.spec.StopAfter == 0 || s.now.Before(b.sleptAt.Add(s.spec.StopAfter)) {
			continue
		}
		s.deep = true
		if b.frozen {
			s.leave(b)
		} else {
			s.stop(b, 0)
		}
	}
}

// prepare keeps one replica initialised while the service sleeps, and none
// where it should not.
func (s *Service) prepare() {
	if s.want > 0 {
		return
	}
	have := false
	for _, b := range s.backends {
		if b.member {
			continue
		}
		if b.state != Sleeping {
			have = have || b.state != Stopping // not asleep yet, or on its way
			continue
		}
		switch {
		case b.frozen && s.spec.Sleep != SleepPause:
			s.leave(b)
		case !b.frozen && (have || b.canary || s.spec.Sleep != SleepPrepared):
			s.stop(b, 0)
		}
		have = have || !b.canary
	}
	if have || s.deep || s.spec.Sleep != SleepPrepared || !s.mayStart(false) || s.replicas() > s.spec.Max {
		return
	}
	i := 1
	for s.backend(i) != nil {
		i++
	}
	s.add(&backend{index: i, hash: s.spec.Hash, state: Preparing, startAt: s.now})
	s.emit(Prepare{i})
}

// alarmed says that something was sent to a paused backend.
func (s *Service) alarmed() bool {
	return slices.ContainsFunc(s.backends, func(b *backend) bool {
		return b.alarm && (b.state == Pausing || b.state == Sleeping)
	})
}
