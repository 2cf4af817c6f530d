package policy

import (
	"errors"
	"slices"
	"time"
)

// Spec is what the configuration says of a service, as far as it matters here.
type Spec struct {
	Scaling
	Hash         string // of what replicas are made from
	Canary       Canary
	Idle         time.Duration // at zero load this long: down to Min
	StartTimeout time.Duration // from wake to ready
	DrainTimeout time.Duration // then flows are cut; 0: wait for ever
	Sleep        Sleep         // how to sleep
	StopAfter    time.Duration // asleep this long: stop for good; 0: never
	IdleBytes    bool          // a flow that moves nothing is no load
	Level        bool          // least-connections: shares follow the loads, see [Level]
	Priority     int           // of replicas among members; lower first
	SlowStart    time.Duration // a new replica's share grows for so long
}

const (
	failBase = time.Second            // first pause after a failed wake
	failMax  = 5 * time.Minute        //
	tryBase  = 250 * time.Millisecond // first pause after a failed start
	tryMax   = 30 * time.Second       //
	settled  = 10 * time.Second       // a replica that dies younger counts as a failed start
	recount  = time.Second            // between counts of a draining backend
	restop   = 2 * time.Second        // between attempts to remove a replica
)

const modeUnset AcceptMode = 255

// Service is the state machine of one service. The zero value is not usable.
type Service struct {
	spec     Spec
	phase    Phase
	backends []*backend // by index
	list     []Member
	held     []uint64 // connections, oldest first
	known    bool     // the last Load was
	want     int
	stable   int // of these; see divide
	canaries int
	extra    int // by which both are more than wanted
	beside   int // members that serve with them
	trial    trial
	mode     AcceptMode
	scaler   scaler

	seq, acked uint64
	counts     uint64  // asked for so far
	mapped     []Share // of the last Map
	percent    int
	levels     map[int]int // slots by index, if loads are levelled
	fresh      bool        // no Map has been asked for yet

	deep    bool      // slept so long that nothing is kept
	bytes   uint64    // as last known
	busyAt  time.Time // last sign of load
	wakeAt  time.Time // the wake in progress began; zero: none
	sleep   bool      // ordered to drain all
	wanted  bool      // ordered to wake
	manual  int
	manualT time.Time // the manual number holds until

	fails   int       // failed wakes in a row
	failedT time.Time // nothing is tried before
	tries   int       // failed starts in a row
	crashes int       // of these, replicas that were ready, but not for long
	crashT  time.Time // when the last of them ended
	tryT    time.Time // no start before
	err     error
	cause   error // of the last failed start in this wake

	now time.Time
	out []Action
}

// New returns a service that has no replicas. Its first event is [Adopt].
func New(spec Spec) *Service {
	s := &Service{mode: modeUnset, fresh: true}
	s.configure(spec)
	return s
}

// Step takes an event and answers what is to be done, in this order. A now
// that lies before that of an earlier step counts as that one: for a service
// time does not go back. The slice is valid until the next Step.
func (s *Service) Step(now time.Time, ev Event) []Action {
	if now.After(s.now) {
		s.now = now
	}
	s.out = s.out[:0]
	s.take(ev)
	s.settle()
	return s.out
}

func (s *Service) emit(a Action) { s.out = append(s.out, a) }

func (s *Service) backend(index int) *backend {
	i, ok := slices.BinarySearchFunc(s.backends, index, func(b *backend, i int) int { return b.index - i })
	if !ok {
		return nil
	}
	return s.backends[i]
}

func (s *Service) add(b *backend) *backend {
	i, _ := slices.BinarySearchFunc(s.backends, b.index, func(b *backend, i int) int { return b.index - i })
	s.backends = slices.Insert(s.backends, i, b)
	return b
}

func (s *Service) take(ev Event) {
	switch ev := ev.(type) {
	case Adopt:
		s.adopt(ev.Replicas)
	case Configure:
		s.configure(ev.Spec)
	case Members:
		s.members(ev.Members)
	case Accepted:
		if s.mode == AcceptOne {
			s.mode = modeUnset // used up, on one of the listeners
		}
		s.held = append(s.held, ev.Conn)
		s.busyAt = s.now
		s.sleep = false
		if s.manual == 0 {
			s.manualT = time.Time{}
		}
		if !s.routable() {
			s.scaler.observe(s.now, s.spec.Stable, len(s.held), ev.Queued, s.scaler.total)
		}
	case Prepared:
		if b := s.backend(ev.Index); b != nil && b.state == Preparing {
			s.prepared(b, ev.Err)
		}
	case Started:
		if b := s.backend(ev.Index); b != nil && b.state == Starting {
			s.started(b, ev)
		}
	case Paused:
		if b := s.backend(ev.Index); b != nil && b.state == Pausing {
			s.paused(b, ev.Err)
		}
	case Thawed:
		if b := s.backend(ev.Index); b != nil && b.state == Thawing {
			s.thawed(b, ev.Err)
		}
	case Alarm:
		if b := s.backend(ev.Index); b != nil && (b.frozen || b.state == Pausing) {
			b.alarm = true
			s.busyAt = s.now
		}
	case Doubt:
		if b := s.backend(ev.Index); b != nil && b.frozen && b.state == Sleeping {
			s.count(b)
		}
	case Stopped:
		if b := s.backend(ev.Index); b != nil && b.state == Stopping {
			s.stopped(b, ev.Err)
		}
	case Health:
		if b := s.backend(ev.Index); b != nil {
			s.health(b, ev)
		}
	case Died:
		if b := s.backend(ev.Index); b != nil {
			s.died(b, ev.Detail)
		}
	case Mapped:
		s.acked = max(s.acked, min(ev.Seq, s.seq))
	case Counted:
		if b := s.backend(ev.Index); b != nil && b.counting > 0 && b.counting == ev.Seq {
			s.counted(b, ev)
		}
	case Quiet:
		if b := s.backend(ev.Index); b != nil && b.state == DrainingFlows {
			b.recount = s.now
		}
	case Load:
		s.load(ev)
	case Wake:
		s.busyAt = s.now
		s.sleep = false
		s.failedT, s.tryT = time.Time{}, time.Time{}
		if s.manual == 0 {
			s.manualT = time.Time{}
		}
		s.wanted = true
		for _, b := range s.backends {
			if b.member && b.ordered && b.state == Sleeping {
				b.ordered, b.state, b.readyAt = false, Probing, time.Time{}
				s.emit(Probe{Index: b.index})
			}
		}
	case Scale:
		s.busyAt = s.now
		s.sleep = false
		s.failedT, s.tryT = time.Time{}, time.Time{}
		s.manual, s.manualT = min(max(ev.N, 0), s.spec.Max), s.now.Add(s.spec.Stable)
		s.emit(Note{Kind: NoteScale, N: s.manual})
	case Drain:
		s.drainOrder(ev.Index)
	}
}

func (s *Service) adopt(rs []Replica) {
	s.busyAt = s.now
	for _, r := range rs {
		b := s.add(&backend{index: r.Index, hash: r.Hash, startAt: s.now})
		s.cast(b)
		if r.Mapped {
			b.mapped = true
			s.mapped = append(s.mapped, Share{Index: r.Index})
		}
		switch {
		case r.Running && r.Mapped:
			b.state, b.readyAt, b.startAt = Ready, r.Started, r.Started
			if b.readyAt.IsZero() || b.readyAt.After(s.now) { // by another clock
				b.readyAt = s.now
			}
			s.emit(Probe{Index: b.index, Assume: true})
		case r.Running:
			b.state, b.adopted = Probing, true
			s.emit(Probe{Index: b.index})
		case r.Prepared && !s.outdated(b) && !b.mapped:
			b.state, b.sleptAt = Sleeping, s.now
		case r.Paused:
			b.state, b.sleptAt, b.frozen, b.readyAt = Sleeping, s.now, true, s.now
			if b.mapped {
				s.count(b) // nobody listened until now
			} else {
				s.leave(b)
			}
		default:
			b.state, b.dead = DrainingFlows, true
			b.drainAt = s.now
		}
		if s.outdated(b) {
			s.emit(Note{Kind: NoteOutdated, Index: b.index})
		}
	}
}

func (s *Service) started(b *backend, ev Started) {
	if ev.Err != nil {
		s.stop(b, 0)
		if b.doomed {
			return
		}
		if ev.Permanent && !b.canary && !s.routable() {
			s.fail(ev.Err)
			return
		}
		s.retry(b, ev.Err)
		return
	}
	b.state = Probing
	if b.doomed {
		s.stop(b, 0)
		return
	}
	s.emit(Probe{Index: b.index})
}

// retry notes a failed start and puts the next one off.
func (s *Service) retry(b *backend, err error) {
	if b.canary {
		s.retryCanary(b, err)
		return
	}
	wait := min(tryBase<<min(s.tries, 16), tryMax)
	s.tries++
	s.tryT = s.now.Add(wait)
	s.err, s.cause = err, err
	s.emit(Note{Kind: NoteRetry, Index: b.index, Err: err, For: wait})
}

func (s *Service) stopped(b *backend, err error) {
	if err != nil {
		b.retryAt = s.now.Add(restop)
		s.emit(Note{Kind: NoteStopFail, Index: b.index, Err: err, For: restop})
		return
	}
	if b.member && b.ordered {
		b.state = Sleeping // until it is woken
		return
	}
	s.backends = slices.DeleteFunc(s.backends, func(x *backend) bool { return x == b })
	if b.member {
		s.members(s.list) // it may be listed again
	}
}

func (s *Service) health(b *backend, ev Health) {
	b.err = ev.Err
	switch {
	case b.state == Probing && ev.Healthy:
		b.state, b.sick = Ready, false
		s.recovered(b)
		if b.readyAt.IsZero() {
			b.readyAt = s.now
			s.emit(Note{Kind: NoteReady, Index: b.index, For: s.now.Sub(b.startAt)})
		} else {
			s.emit(Note{Kind: NoteHealthy, Index: b.index})
		}
	case b.state == Ready && !ev.Healthy:
		b.state, b.sick, b.sickAt = Probing, true, s.now
		s.blame(b, ev.Err)
		s.emit(Note{Kind: NoteUnhealthy, Index: b.index, Err: ev.Err})
	case b.state == DrainingFlows:
		b.sick = !ev.Healthy
		if ev.Healthy && b.readyAt.IsZero() {
			b.readyAt = s.now
		}
	}
}

// recovered forgets the failures before a backend became ready. It may end as
// soon as others before it: how many did is forgotten when one has lived.
func (s *Service) recovered(b *backend) {
	s.failedT = time.Time{}
	if b.canary {
		s.trial.err = nil
		return
	}
	s.tries, s.tryT, s.err = s.crashes, time.Time{}, nil
}

func (s *Service) died(b *backend, detail string) {
	if b.dead {
		return
	}
	err := errors.New(detail)
	switch b.state {
	case Pausing, Thawing:
		b.dead = true // out of the map now, seen to when the call has returned
		s.emit(Note{Kind: NoteDied, Index: b.index, Err: err, N: b.flows})
	case Sleeping:
		s.retry(b, err)
		if b.frozen { // the kernel may still send to it, even if the last Map does not name it
			b.dead = true
			s.leave(b)
			return
		}
		s.stop(b, 0)
	case Probing, Ready, DrainingFlows:
		s.emit(Note{Kind: NoteDied, Index: b.index, Err: err, N: b.flows})
		s.emit(Unprobe{b.index})
		if b.readyAt.IsZero() || s.now.Sub(b.readyAt) < settled {
			if b.state != DrainingFlows {
				s.retry(b, err)
				s.crashed(b)
			}
		}
		b.dead = true
		s.blame(b, err)
		s.leave(b)
	}
}

// crashed counts a stable replica that has ended soon after it became ready.
func (s *Service) crashed(b *backend) {
	if !b.canary && !b.readyAt.IsZero() {
		s.crashes++
		s.crashT = s.now
	}
}

func (s *Service) load(l Load) {
	s.known = l.Known
	if !l.Known {
		s.busyAt = s.now
		return
	}
	total := 0
	for _, b := range s.backends {
		b.flows = l.Flows[b.index]
		b.left = min(b.left, b.flows)
		total += b.flows
	}
	waiting := len(s.held) + l.Queued
	s.level(l.New)
	begun := s.scaler.observe(s.now, s.spec.Stable, total, waiting, l.New)
	moved := l.Bytes != s.bytes
	s.bytes = l.Bytes
	if begun || waiting > 0 || total > 0 && (moved || !s.spec.IdleBytes) {
		s.busyAt = s.now
	}
}

// level divides the slots anew by what the backends carry, if they are to be
// levelled. total counts the flows begun so far.
func (s *Service) level(total uint64) {
	if !s.spec.Level {
		s.levels = nil
		return
	}
	arrivals := int(min(total-min(total, s.scaler.total), 1<<20)) //nolint:gosec // bounded
	s.levels = map[int]int{}
	for _, canary := range []bool{false, true} {
		var at, flows, weights []int
		for _, b := range s.backends {
			if b.canary == canary && s.inMap(b) && s.weight(b) > 0 {
				at, flows, weights = append(at, b.index), append(flows, b.flows), append(weights, s.weight(b))
			}
		}
		for i, n := range Level(flows, weights, arrivals) {
			s.levels[at[i]] = n
		}
	}
}

// fail ends a wake that led nowhere.
func (s *Service) fail(err error) {
	wait := min(failBase<<min(s.fails, 16), failMax)
	s.fails++
	s.failedT = s.now.Add(wait)
	s.tries, s.crashes, s.tryT = 0, 0, s.failedT
	s.wakeAt, s.err, s.cause = time.Time{}, err, nil
	s.manualT = time.Time{}
	s.emit(Note{Kind: NoteFailed, Err: err, For: wait, N: len(s.held)})
	for _, c := range s.held {
		s.emit(Reset{c, err})
	}
	s.held = s.held[:0]
	for _, b := range s.backends {
		switch {
		case b.member:
		case b.state == Starting || b.state == Preparing:
			b.doomed = true
		case b.state == Probing && b.readyAt.IsZero():
			s.emit(Unprobe{b.index})
			s.leaveOrStop(b)
		}
	}
}

// routable says that the kernel sends flows to at least one ready backend.
func (s *Service) routable() bool {
	return slices.ContainsFunc(s.backends, s.serves)
}

func (s *Service) serves(b *backend) bool {
	return b.state == Ready && b.mapped && b.mapSeq <= s.acked
}
