package health

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"
)

// A Prober tries one backend of a pool's.
type Prober struct {
	pool   *Pool
	check  Check
	target Target
	post   func(Result)

	// Guarded by the pool's mutex.
	due     time.Time
	at      int                // place in its queue, -1: in none
	cancel  context.CancelFunc // of the attempt in flight
	stopped bool

	posting sync.Mutex // held while post runs

	// Of the attempt in flight; there is at most one.
	since  time.Time // on the way up since then; zero: it was up
	streak streak
	said   string    // the last error posted, "" after a success
	saidAt time.Time // when
}

// Stop ends the trying. An attempt in flight is cut short, and post is not
// called any more once Stop has returned. It must not be called from post. To
// stop what was stopped, or nil, is nothing.
func (b *Prober) Stop() {
	if b == nil {
		return
	}
	b.pool.drop(b)
	b.posting.Lock() // wait for one that runs
	defer b.posting.Unlock()
}

// up says that the backend was healthy once, or is believed to have been.
func (b *Prober) up() bool { return b.since.IsZero() }

// try makes one attempt, posts what is new, and says how long to wait until
// the next.
func (b *Prober) try(ctx context.Context) (wait time.Duration) {
	began := time.Now()
	if !b.up() {
		err := b.attempt(ctx, patience(began.Sub(b.since), b.check.Timeout))
		if ctx.Err() != nil {
			return 0
		}
		if err == nil {
			b.since = time.Time{}
			b.say(Result{Healthy: true})
			// The first wait is any part of the interval: thousands that
			// came up at one moment are not tried at one moment.
			return b.anywhere()
		}
		b.say(Result{Err: err})
		now := time.Now()
		wait := pause(now.Sub(b.since), b.check.Interval)
		if b.check.Type == Exec {
			// A command costs a process or two, next to an application
			// that is busy starting: half of the time is enough for it.
			wait = max(wait, now.Sub(began))
		}
		return wait
	}
	err := b.attempt(ctx, b.check.Timeout)
	if ctx.Err() != nil {
		return 0
	}
	if errors.Is(err, ErrUntried) {
		return jitter(b.check.Interval)
	}
	changed := b.streak.add(err == nil)
	switch {
	case b.streak.healthy && changed:
		b.say(Result{Healthy: true})
	case !b.streak.healthy && err != nil:
		b.say(Result{Err: err})
	}
	return jitter(b.check.Interval)
}

// pause is how long to wait between attempts after elapsed on the way up: a
// small part of it, so that noticing late never costs more than that part of
// the time that the application itself took. What takes more than a minute is
// down rather than on its way, and tried less and less, to once per interval.
func pause(elapsed, interval time.Duration) time.Duration {
	const short, starting = 50 * time.Millisecond, time.Minute
	wait := min(max(elapsed/32, time.Millisecond), short)
	return max(wait, min((elapsed-starting)/32, interval))
}

// patience is how long to wait for a connection after elapsed on the way up.
// A SYN that meets a network not yet up is lost, and the kernel sends the next
// only after a second (RFC 6298). To give up early and dial anew is quicker;
// a slow path gets its chance as time goes on.
func patience(elapsed, timeout time.Duration) time.Duration {
	return min(max(elapsed/4, 20*time.Millisecond), timeout)
}

// anywhere returns a time within the interval.
func (b *Prober) anywhere() time.Duration {
	return rand.N(max(b.check.Interval, 1)) //nolint:gosec // no secret
}

// jitter returns d give or take a tenth.
func jitter(d time.Duration) time.Duration {
	return d - d/10 + rand.N(max(d/5, 1)) //nolint:gosec // no secret
}

// A failing command may word its failure differently each time.
const sayEvery = 100 * time.Millisecond

// say posts r if it is news. A mere change of words within sayEvery is not;
// if it lasts, a later attempt will bring it up again.
func (b *Prober) say(r Result) {
	if r.Healthy {
		b.said = ""
		b.tell(r)
		return
	}
	text := r.Err.Error()
	now := time.Now()
	if text == b.said || b.said != "" && now.Sub(b.saidAt) < sayEvery {
		return
	}
	b.said, b.saidAt = text, now
	b.tell(r)
}

func (b *Prober) tell(r Result) {
	b.posting.Lock()
	defer b.posting.Unlock()
	if !b.pool.has(b) {
		return
	}
	b.post(r)
}

// streak turns single attempts into health.
type streak struct {
	healthy    bool
	rise, fall int
	n          int // attempts in a row that speak against healthy
}

// add counts an attempt and reports whether healthy changed.
func (s *streak) add(ok bool) bool {
	if ok == s.healthy {
		s.n = 0
		return false
	}
	s.n++
	limit := s.fall
	if !s.healthy {
		limit = s.rise
	}
	if s.n < limit {
		return false
	}
	s.healthy, s.n = ok, 0
	return true
}
