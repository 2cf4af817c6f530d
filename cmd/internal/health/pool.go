package health

import (
	"container/heap"
	"context"
	"sync"
	"time"
)

const (
	// atOnce is how many attempts, of those that are not urgent, may begin
	// together: enough to keep processors and a near network busy.
	atOnce = 64
	// quick is how long an attempt counts as one that has just begun. What
	// takes longer waits for an answer, and others need not wait with it.
	quick = 10 * time.Millisecond
	// share is how much time each backend that does not come up is given of
	// all time that is spent on such, so that many of them cost no more than
	// some do.
	share = 100 * time.Microsecond
)

// A Pool tries backends. Its methods may be called from several goroutines.
type Pool struct {
	mu      sync.Mutex
	urgent  queue // on the way up, and waited for
	others  queue
	busy    int // attempts of others that have just begun
	down    int // others on their way up
	closed  bool
	changed chan struct{} // holds one token if run has to look again
	work    sync.WaitGroup
}

// NewPool returns a pool of no backends, to be ended by Close.
func NewPool() *Pool {
	p := &Pool{changed: make(chan struct{}, 1)}
	p.work.Go(p.run)
	return p
}

// Close ends all trying and waits for what is in flight.
func (p *Pool) Close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.kick()
	p.work.Wait()
}

// Probe begins to try a backend and posts what changes: the first success on
// the way up at once, whatever Rise says; then each change of health; and while
// the backend is not healthy, what is wrong with it when that changes. A Target
// that starts healthy posts nothing until it is not.
//
// post is called by one goroutine at a time, and must not block: the next
// attempt waits for it. With [None] there is nothing to try: Probe posts that
// and returns nil.
func (p *Pool) Probe(c Check, t Target, post func(Result)) *Prober {
	if c.Type == None {
		if !t.Healthy {
			post(Result{Healthy: true})
		}
		return nil
	}
	b := &Prober{pool: p, check: c, target: t, post: post, at: -1}
	b.streak = streak{healthy: true, rise: c.Rise, fall: c.Fall}
	now := time.Now()
	b.due = now
	if t.Healthy {
		b.due = now.Add(b.anywhere())
	} else {
		b.since = now
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !b.up() && !b.target.Urgent {
		p.down++
	}
	p.put(b)
	return b
}

// queue returns the queue that a prober belongs to.
func (p *Pool) queue(b *Prober) *queue {
	if b.target.Urgent && !b.up() {
		return &p.urgent
	}
	return &p.others
}

// put and take are called with mu held.

func (p *Pool) put(b *Prober) {
	heap.Push(p.queue(b), b)
	if b.at == 0 {
		p.kick()
	}
}

func (p *Pool) kick() {
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// drop forgets a prober.
func (p *Pool) drop(b *Prober) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if b.stopped {
		return
	}
	b.stopped = true
	if b.cancel != nil {
		b.cancel() // and the attempt's end sees to the rest
		return
	}
	if b.at >= 0 {
		heap.Remove(p.queue(b), b.at)
	}
	p.gone(b)
}

// gone counts a prober out whose last attempt is over.
func (p *Pool) gone(b *Prober) {
	if !b.up() && !b.target.Urgent {
		p.down--
	}
}

func (p *Pool) has(b *Prober) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !b.stopped && !p.closed
}

// run begins attempts when they are due.
func (p *Pool) run() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		wait, ok := p.begin(ctx, time.Now())
		if !ok {
			return
		}
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-p.changed:
		}
	}
}

// begin begins what is due and says how long it is until there is more.
func (p *Pool) begin(ctx context.Context, now time.Time) (wait time.Duration, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return 0, false
	}
	wait = time.Hour
	for len(p.urgent) > 0 {
		if w := p.urgent[0].due.Sub(now); w > 0 {
			wait = w
			break
		}
		p.launch(ctx, heap.Pop(&p.urgent).(*Prober), false)
	}
	for len(p.others) > 0 && p.busy < atOnce { // else an end will kick
		if w := p.others[0].due.Sub(now); w > 0 {
			return min(wait, w), true
		}
		p.launch(ctx, heap.Pop(&p.others).(*Prober), true)
	}
	return wait, true
}

// launch makes one attempt on a goroutine of its own: connecting takes a deep
// stack, which nothing that only waits should have.
func (p *Pool) launch(ctx context.Context, b *Prober, counted bool) {
	ctx, b.cancel = context.WithCancel(ctx)
	var slow *time.Timer
	if counted {
		p.busy++
		slow = time.AfterFunc(quick, p.free)
	}
	p.work.Go(func() {
		wasUp := b.up()
		wait := b.try(ctx)
		if slow != nil && slow.Stop() {
			p.free()
		}
		p.ended(b, wasUp, wait)
	})
}

// free lets one more attempt begin.
func (p *Pool) free() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.busy--; p.busy == atOnce-1 {
		p.kick()
	}
}

// ended puts a prober back after an attempt.
func (p *Pool) ended(b *Prober, wasUp bool, wait time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b.cancel()
	b.cancel = nil
	if !wasUp && b.up() && !b.target.Urgent {
		p.down--
	}
	if b.stopped || p.closed {
		p.gone(b)
		return
	}
	if !b.up() && !b.target.Urgent {
		wait = max(wait, min(time.Duration(p.down)*share, b.check.Interval))
	}
	b.due = time.Now().Add(wait)
	p.put(b)
}

// queue orders probers by when they are due.
type queue []*Prober

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].due.Before(q[j].due) }
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].at, q[j].at = i, j
}
func (q *queue) Push(x any) {
	b := x.(*Prober)
	b.at = len(*q)
	*q = append(*q, b)
}
func (q *queue) Pop() any {
	old := *q
	last := len(old) - 1
	b := old[last]
	old[last], b.at = nil, -1
	*q = old[:last]
	return b
}
