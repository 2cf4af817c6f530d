package accept

import (
	"cmp"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// retryAfter is how long a listener that cannot accept is left alone. It has
// to be short: often one closed descriptor is all that it waits for.
const retryAfter = 50 * time.Millisecond

// backend is what the kernel is asked through. All its methods are called on
// the loop's thread.
type backend interface {
	name() string
	// open starts from nothing, and again after close. wake is an eventfd:
	// whenever it is written to, wait returns.
	open(l *loop, wake int) error
	// arm asks for what m says and sets e.live to it. It is only called
	// while e.live is Off.
	arm(e *entry, m Mode) error
	// disarm takes back what arm asked for. e.live is Off at once or as
	// soon as the kernel has confirmed it, by a call of loop.ended.
	disarm(e *entry) error
	// wait submits and blocks until something happens, at most timeout if
	// that is not negative. Its error means that only close and open help.
	wait(timeout time.Duration) error
	// dispatch reports what has happened, also after an error of wait, by
	// calls of loop.accepted and loop.ended. Its error means the same.
	dispatch() error
	close() error
}

// entry is one listener.
type entry struct {
	id uint64
	ln *Listener

	// Guarded by loop.mu.
	want  Mode
	dirty bool          // in loop.dirty
	gone  chan struct{} // not nil: to be removed, closed when done

	// The loop's goroutine only.
	live   Mode       // what the kernel has been asked for
	token  uint64     // names the request in the kernel
	ending bool       // the request is being cancelled
	broken unix.Errno // last error told, 0 after a success
}

// loop keeps what callers want and what the kernel does in step. Callers
// change what is wanted, mark the entry dirty and wake the loop's goroutine;
// it alone talks to the kernel.
type loop struct {
	cfg    Config
	spares []backend     // to go on with when back has failed, in turn; owned by run
	wake   int           // eventfd
	done   chan struct{} // closed when run has returned

	mu      sync.Mutex
	back    backend // changed by run alone
	entries map[uint64]*entry
	dirty   []*entry
	awake   bool // run will look at dirty before it blocks
	closed  bool

	// The loop's goroutine only.
	tokens  map[uint64]*entry // of entries that the kernel has been asked about
	last    uint64            // token given out
	retry   []*entry
	retryAt time.Time
}

func open(cfg Config, b backend, spares ...backend) (*loop, error) {
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("open accept loop: %w", fmt.Errorf("eventfd: %w", err))
	}
	l := &loop{
		cfg: cfg, back: b, spares: spares, wake: wake,
		done:    make(chan struct{}),
		entries: make(map[uint64]*entry),
		tokens:  make(map[uint64]*entry),
	}
	ready := make(chan error)
	go l.run(ready)
	if err := <-ready; err != nil {
		<-l.done
		return nil, fmt.Errorf("open accept loop: %w", err)
	}
	return l, nil
}

func (l *loop) Name() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.back.name()
}

func (l *loop) Add(id uint64, ln *Listener) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return ErrClosed
	}
	if _, ok := l.entries[id]; ok {
		return fmt.Errorf("add listener %d: %w", id, ErrExists)
	}
	l.entries[id] = &entry{id: id, ln: ln}
	return nil
}

func (l *loop) Arm(id uint64, m Mode) error {
	if m > All {
		return fmt.Errorf("arm listener %d: invalid %v", id, m)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	e, err := l.find(id)
	if err != nil {
		return fmt.Errorf("arm listener %d: %w", id, err)
	}
	if e.want != m {
		e.want = m
		l.touch(e)
	}
	return nil
}

func (l *loop) Remove(id uint64) error {
	l.mu.Lock()
	e, err := l.find(id)
	if err != nil {
		l.mu.Unlock()
		return fmt.Errorf("remove listener %d: %w", id, err)
	}
	l.expel(e)
	l.mu.Unlock()
	<-e.gone
	return nil
}

func (l *loop) Close() error {
	l.mu.Lock()
	if !l.closed {
		l.closed = true
		for _, e := range l.entries {
			l.expel(e)
		}
		l.rouse()
	}
	l.mu.Unlock()
	<-l.done
	return nil
}

// find, touch, expel and rouse are called with mu held.

func (l *loop) find(id uint64) (*entry, error) {
	if l.closed {
		return nil, ErrClosed
	}
	e := l.entries[id]
	if e == nil || e.gone != nil {
		return nil, ErrNotFound
	}
	return e, nil
}

func (l *loop) expel(e *entry) {
	if e.gone == nil {
		e.gone = make(chan struct{})
		e.want = Off
		l.touch(e)
	}
}

func (l *loop) touch(e *entry) {
	if e.dirty {
		return
	}
	e.dirty = true
	l.dirty = append(l.dirty, e)
	l.rouse()
}

func (l *loop) rouse() {
	if l.awake {
		return
	}
	l.awake = true
	// Can only fail at a count of 2^64-2, in which case the loop is awake.
	_, _ = unix.Write(l.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
}

// run is the loop. Its thread is its own, because an io_uring belongs to the
// thread that made it.
func (l *loop) run(ready chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(l.done)
	defer unix.Close(l.wake)

	err := l.back.open(l, l.wake)
	ready <- err
	if err != nil {
		return
	}
	defer func() { _ = l.back.close() }() // the descriptor is gone either way

	for l.settle() {
		err := l.back.wait(l.timeout())
		l.mu.Lock()
		l.awake = true
		l.mu.Unlock()
		if err = cmp.Or(l.back.dispatch(), err); err != nil {
			l.reopen(err)
		}
		if len(l.retry) > 0 && !time.Now().Before(l.retryAt) {
			l.mu.Lock()
			for _, e := range l.retry {
				l.touch(e)
			}
			l.mu.Unlock()
			l.retry = l.retry[:0]
		}
	}
}

// settle brings the kernel in step with what is wanted and says whether the
// loop goes on.
func (l *loop) settle() bool {
	for {
		l.mu.Lock()
		dirty := l.dirty
		l.dirty = nil
		if len(dirty) == 0 {
			more := !l.closed || len(l.entries) > 0
			l.awake = false
			l.mu.Unlock()
			return more
		}
		for _, e := range dirty {
			e.dirty = false
		}
		l.mu.Unlock()
		for _, e := range dirty {
			l.reconcile(e)
		}
	}
}

func (l *loop) reconcile(e *entry) {
	l.mu.Lock()
	want, gone := e.want, e.gone
	l.mu.Unlock()

	var err error
	// One under All needs nothing now: it ends with the next connection,
	// and what is armed then is All.
	if want < e.live {
		err = l.back.disarm(e)
	}
	if err == nil && e.live == Off {
		switch {
		case gone != nil:
			l.mu.Lock()
			if l.entries[e.id] == e {
				delete(l.entries, e.id)
				close(gone)
			}
			l.mu.Unlock()
		case want != Off:
			err = l.back.arm(e, want)
		}
	}
	if err != nil {
		l.failed(e, err)
	}
}

// accepted hands a connection on.
func (l *loop) accepted(e *entry, fd int) {
	e.broken = 0
	l.mu.Lock()
	if e.want == One {
		e.want = Off
		l.touch(e)
	}
	l.mu.Unlock()
	l.cfg.Deliver(Conn{Listener: e.id, FD: fd})
}

// ended takes note that the kernel does nothing for e any more. The entry is
// looked at again: at once, or after a while if err is not nil.
func (l *loop) ended(e *entry, err error) {
	e.live, e.ending = Off, false
	if err != nil {
		l.failed(e, err)
		return
	}
	l.again(e)
}

func (l *loop) again(e *entry) {
	l.mu.Lock()
	l.touch(e)
	l.mu.Unlock()
}

func (l *loop) failed(e *entry, err error) {
	l.defers(e)
	var errno unix.Errno
	if !errors.As(err, &errno) || errno != e.broken {
		e.broken = errno
		l.tell(e.id, fmt.Errorf("accept on %v: %w", e.ln.Addr(), err))
	}
}

// defers has e looked at again after a while.
func (l *loop) defers(e *entry) {
	if len(l.retry) == 0 {
		l.retryAt = time.Now().Add(retryAfter)
	}
	l.retry = append(l.retry, e)
}

func (l *loop) tell(id uint64, err error) {
	if l.cfg.Error != nil {
		l.cfg.Error(id, err)
	}
}

func (l *loop) timeout() time.Duration {
	if len(l.retry) == 0 {
		return -1
	}
	return max(0, time.Until(l.retryAt))
}

// reopen starts the backend afresh after an error that it cannot recover
// from, or a spare one instead: what was refused once is not asked for again.
// Connections that nobody took yet are in the accept queues still.
func (l *loop) reopen(err error) {
	for ; err != nil; err = l.back.open(l, l.wake) {
		_ = l.back.close() // why is told, and the descriptor is gone either way
		if len(l.spares) > 0 {
			l.mu.Lock()
			l.back, l.spares = l.spares[0], l.spares[1:]
			l.mu.Unlock()
			if l.cfg.Fallback != nil {
				l.cfg.Fallback(fmt.Errorf("%s: %w", l.back.name(), err))
			}
			continue
		}
		l.tell(0, fmt.Errorf("%w: %s: %w", ErrLoop, l.back.name(), err))
		time.Sleep(retryAfter)
	}
	clear(l.tokens)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.entries {
		e.live, e.ending = Off, false
		l.touch(e)
	}
}

// issue gives e a token that nothing in the kernel goes by yet.
func (l *loop) issue(e *entry) uint64 {
	l.last++
	e.token = l.last
	l.tokens[e.token] = e
	return e.token
}
