package health

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"time"
)

// Type is a way of trying a backend. The words are those of the configuration.
type Type string

const (
	TCP  Type = "tcp"  // a connection is established
	HTTP Type = "http" // GET is answered with a status of 200 to 399
	Exec Type = "exec" // a command exits with 0
	None Type = "none" // healthy without being tried
)

// Check is how backends of a service are tried.
type Check struct {
	Type     Type
	Path     string   // for HTTP, from the "/" on, as it goes on the wire
	Host     string   // for HTTP, the Host header; "" = the backend's address
	Command  []string // for Exec
	Header   []byte   // for HTTP, sent before the request: what a proxy tells of itself
	Interval time.Duration
	Timeout  time.Duration // of one attempt
	Rise     int           // successes in a row from unhealthy to healthy
	Fall     int           // failures in a row from healthy to unhealthy
}

// Execer runs argv where the backend is and returns its exit code and what it
// wrote. It must return soon after ctx is done. err is only for a command that
// could not be run.
type Execer func(ctx context.Context, argv []string) (code int, out string, err error)

// Target is the backend to be tried.
type Target struct {
	Addr netip.AddrPort // for TCP and HTTP
	Exec Execer         // for Exec

	// Healthy says that the backend was found running and is believed to be
	// healthy until it fails: a restarted daemon adopts it like this.
	Healthy bool
}

// Result is news about a backend.
type Result struct {
	Healthy bool
	// Err is what the latest failed attempt saw, such as "dial tcp
	// 10.88.0.5:80: connection refused", "HTTP 503" or "exec exited 1: …".
	// It is nil exactly when Healthy is true.
	Err error
}

// Run tries the backend until ctx is done and posts what changes: the first
// success on the way up at once, whatever Rise says; then each change of
// health; and while the backend is not healthy, what is wrong with it when that
// changes. A Target that starts healthy posts nothing until it is not.
//
// post is called by the goroutine that called Run, which goes on when post
// returns. An attempt that the end of ctx cut short is not posted. With [None],
// Run returns at once.
func Run(ctx context.Context, c Check, t Target, post func(Result)) {
	if c.Type == None {
		if !t.Healthy && ctx.Err() == nil {
			post(Result{Healthy: true})
		}
		return
	}
	p := &prober{check: c, target: t, post: post, timer: time.NewTimer(0), tried: make(chan error)}
	defer p.timer.Stop()
	if !t.Healthy && !p.eager(ctx) {
		return
	}
	p.steady(ctx)
}

type prober struct {
	check  Check
	target Target
	post   func(Result)
	timer  *time.Timer
	tried  chan error // what an attempt comes to

	said   string    // the last error posted, "" after a success
	saidAt time.Time // when
}

// eager tries until the first success. It returns false when ctx is done.
func (p *prober) eager(ctx context.Context) bool {
	start := time.Now()
	for {
		began := time.Now()
		err := p.try(ctx, patience(began.Sub(start), p.check.Timeout))
		switch {
		case ctx.Err() != nil:
			return false
		case err == nil:
			p.say(Result{Healthy: true})
			return true
		}
		p.say(Result{Err: err})
		now := time.Now()
		wait := pause(now.Sub(start))
		if p.check.Type == Exec {
			// A command costs a process or two, next to an application
			// that is busy starting: half of the time is enough for it.
			wait = max(wait, now.Sub(began))
		}
		if !p.sleep(ctx, wait) {
			return false
		}
	}
}

// try makes one attempt on a goroutine of its own and waits for it. To connect
// takes a deep stack, which a goroutine then keeps: thousands that wait most
// of the time should not have had one (10 KiB against 2.5).
func (p *prober) try(ctx context.Context, dial time.Duration) error {
	go func() { p.tried <- p.attempt(ctx, dial) }()
	return <-p.tried
}

// pause is how long to wait between attempts after elapsed on the way up: a
// small part of it, so that noticing late never costs more than that part of
// the time that the application itself took.
func pause(elapsed time.Duration) time.Duration {
	return min(max(elapsed/32, time.Millisecond), 50*time.Millisecond)
}

// patience is how long to wait for a connection after elapsed on the way up.
// A SYN that meets a network not yet up is lost, and the kernel sends the next
// only after a second (RFC 6298). To give up early and dial anew is quicker;
// a slow path gets its chance as time goes on.
func patience(elapsed, timeout time.Duration) time.Duration {
	return min(max(elapsed/4, 20*time.Millisecond), timeout)
}

// steady tries once per interval until ctx is done, from healthy on.
func (p *prober) steady(ctx context.Context) {
	s := streak{healthy: true, rise: p.check.Rise, fall: p.check.Fall}
	// The first wait is any part of the interval: thousands of backends that
	// are adopted at the same moment are not tried at the same moment.
	wait := rand.N(max(p.check.Interval, 1)) //nolint:gosec // no secret
	for p.sleep(ctx, wait) {
		err := p.try(ctx, p.check.Timeout)
		if ctx.Err() != nil {
			return
		}
		changed := s.add(err == nil)
		switch {
		case s.healthy && changed:
			p.say(Result{Healthy: true})
		case !s.healthy && err != nil:
			p.say(Result{Err: err})
		}
		wait = jitter(p.check.Interval)
	}
}

// jitter returns d give or take a tenth.
func jitter(d time.Duration) time.Duration {
	return d - d/10 + rand.N(max(d/5, 1)) //nolint:gosec // no secret
}

// A failing command may word its failure differently each time.
const sayEvery = 100 * time.Millisecond

// say posts r if it is news. A mere change of words within sayEvery is not;
// if it lasts, a later attempt will bring it up again.
func (p *prober) say(r Result) {
	if r.Healthy {
		p.said = ""
		p.post(r)
		return
	}
	text := r.Err.Error()
	now := time.Now()
	if text == p.said || p.said != "" && now.Sub(p.saidAt) < sayEvery {
		return
	}
	p.said, p.saidAt = text, now
	p.post(r)
}

// sleep waits for d. It returns false when ctx is done.
func (p *prober) sleep(ctx context.Context, d time.Duration) bool {
	p.timer.Reset(d)
	select {
	case <-p.timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
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
