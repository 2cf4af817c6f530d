package conntrack

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"github.com/ti-mo/netfilter"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// ErrLost is the reason given to Options.Resync when the kernel has dropped
// events for want of buffer space.
var ErrLost = errors.New("conntrack events lost")

// ErrClosed reports the use of a Watcher that has ended.
var ErrClosed = errors.New("conntrack watcher closed")

const (
	// DefaultReadBuffer holds some 40,000 events.
	DefaultReadBuffer = 32 << 20

	eventRoom  = 8 << 10 // more than the largest event
	eventBatch = 64 << 10

	retryMin = 10 * time.Millisecond
	retryMax = time.Second
)

// Options say what a Watcher counts and whom it tells. The functions may be
// nil. They are called one at a time on the goroutine that reads events, so
// they must be quick; they may use the Watcher except for Sync and Close.
type Options struct {
	Mark, Mask uint32 // count the entries whose ct mark is Mark under Mask; Mask 0 is all
	ReadBuffer int    // bytes, beyond rmem_max if need be; 0 is DefaultReadBuffer

	// Zero is told when the live flows of a backend have fallen to zero: a hint,
	// to be confirmed by a dump before the backend is harmed. Not called while
	// the counts are not known, but afterwards if it still holds.
	Zero func(Backend)

	// Resync is told the reason each time the counts have become unknown:
	// ErrLost, or the error of the dump that was to restore them. It is tried
	// again until it succeeds.
	Resync func(reason error)
}

// Watcher counts the live flows of each backend by conntrack's events, and by
// dumps where events do not suffice. Its methods are safe for concurrent use.
type Watcher struct {
	opt    Options
	cancel context.CancelFunc
	done   chan struct{}

	// The reader's own.
	events *netlink.Conn
	raw    syscall.RawConn
	dumps  *Conn
	buf    []byte
	end    int // of what fill has read
	ferr   error
	flow   Flow
	calls  []Backend
	retry  time.Time // of the next attempt to reconcile; zero: none is due
	delay  time.Duration

	// Method values, made once: one per call would escape to the heap.
	fillWait func(fd uintptr) bool
	fillNow  func(fd uintptr)

	mu      sync.Mutex
	table   *table
	known   bool
	lost    bool // since the last dump
	resyncs uint64
	err     error
	began   time.Time     // the last complete dump
	took    time.Duration // that dump

	wakeMu sync.Mutex // orders read deadlines with what they announce
	syncs  []chan error
}

// Watch begins to count in the network namespace it is called in, until ctx
// ends or Close. It returns once no event can be missed any more; the counts are
// known a little later, after a first dump, which Sync waits for. Needs
// CAP_NET_ADMIN, and [Tune] to have been called before the first flow.
func Watch(ctx context.Context, opt Options) (*Watcher, error) {
	w, err := newWatcher(opt)
	if err != nil {
		return nil, fmt.Errorf("watch conntrack: %w", err)
	}
	ctx, w.cancel = context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, w.interrupt)
	go func() {
		defer close(w.done)
		err := w.run(ctx)
		stop()
		w.finish(err)
	}()
	return w, nil
}

func newWatcher(opt Options) (*Watcher, error) {
	prog, err := eventFilter(opt.Mark, opt.Mask)
	if err != nil {
		return nil, err
	}
	w := &Watcher{
		opt:   opt,
		done:  make(chan struct{}),
		buf:   make([]byte, eventBatch),
		table: newTable(),
	}
	w.fillWait = func(fd uintptr) bool { return w.fill(fd) || w.ferr != nil }
	w.fillNow = func(fd uintptr) { w.fill(fd) }
	// Both sockets now: later the goroutine may be on a thread that is in
	// another namespace than the caller's.
	if w.dumps, err = Open(opt.Mark, opt.Mask); err != nil {
		return nil, err
	}
	if w.events, err = netlink.Dial(unix.NETLINK_NETFILTER, nil); err != nil {
		return nil, errors.Join(err, w.dumps.Close())
	}
	if err := w.subscribe(prog); err != nil {
		return nil, errors.Join(err, w.events.Close(), w.dumps.Close())
	}
	return w, nil
}

func (w *Watcher) subscribe(prog []bpf.RawInstruction) error {
	if err := w.events.SetReadBuffer(cmp.Or(w.opt.ReadBuffer, DefaultReadBuffer)); err != nil {
		return fmt.Errorf("set read buffer: %w", err)
	}
	// The filter first: whatever the socket lets in passes it.
	if err := w.events.SetBPF(prog); err != nil {
		return fmt.Errorf("set event filter: %w", err)
	}
	for _, g := range []netfilter.NetlinkGroup{netfilter.GroupCTNew, netfilter.GroupCTUpdate, netfilter.GroupCTDestroy} {
		if err := w.events.JoinGroup(uint32(g)); err != nil {
			return fmt.Errorf("join group %d: %w", g, err)
		}
	}
	var err error
	if w.raw, err = w.events.SyscallConn(); err != nil {
		return fmt.Errorf("get file descriptor: %w", err)
	}
	return nil
}

// run reads events until ctx ends. Everything that changes the table happens
// here, one after the other.
func (w *Watcher) run(ctx context.Context) error {
	w.delay = retryMin
	for {
		syncs, due := w.take()
		if len(syncs) > 0 || due || !w.Known() && w.retry.IsZero() {
			w.reconcile(ctx, syncs)
		}
		if !w.arm(ctx) {
			continue
		}
		err := w.read(true)
		if ctx.Err() != nil {
			return ErrClosed
		}
		if err != nil && !errors.Is(err, ErrLost) {
			return fmt.Errorf("read events: %w", err)
		}
	}
}

// reconcile makes the table agree with the kernel's. See the package comment
// for the order of things.
func (w *Watcher) reconcile(ctx context.Context, syncs []chan error) {
	err := w.dump(ctx)
	if err == nil {
		w.retry, w.delay = time.Time{}, retryMin
		for _, c := range syncs {
			c <- nil
		}
		w.notify()
		return
	}
	if errors.Is(err, ErrLost) || ctx.Err() != nil {
		w.requeue(syncs) // they wait for an attempt that succeeds
	} else {
		for _, c := range syncs {
			c <- err
		}
		if !w.Known() && w.opt.Resync != nil {
			w.opt.Resync(err)
		}
	}
	// Until then go on reading: the buffer must not run over.
	w.retry = time.Now().Add(w.delay)
	w.delay = min(2*w.delay, retryMax)
}

func (w *Watcher) dump(ctx context.Context) error {
	// After a loss the kernel drops events, without saying so again, until the
	// socket is empty: a dump is of use only from then on.
	began := time.Now()
	drain := func() error { return w.drain(ctx) }
	if err := drain(); err != nil {
		return err
	}
	w.mu.Lock()
	w.table.begin()
	w.mu.Unlock()
	err := w.dumps.dump(drain, func(f *Flow) error {
		w.mu.Lock()
		w.table.dumped(f)
		w.mu.Unlock()
		return nil
	})
	if err != nil {
		return fmt.Errorf("dump conntrack: %w", err)
	}
	if err := drain(); err != nil {
		return err
	}
	w.mu.Lock()
	w.table.sweep()
	w.known, w.lost = true, false
	w.began, w.took = began, time.Since(began)
	w.mu.Unlock()
	return nil
}

func (w *Watcher) lose(reason error) {
	w.mu.Lock()
	w.known = false
	again := w.lost
	if !again {
		w.lost = true
		w.resyncs++
	}
	w.mu.Unlock()
	if !again && w.opt.Resync != nil {
		w.opt.Resync(reason)
	}
}

// notify makes the calls that are due, with no lock held.
func (w *Watcher) notify() {
	w.mu.Lock()
	t := w.table
	if len(t.zeros) == 0 || !w.known {
		w.mu.Unlock()
		return
	}
	w.calls = w.calls[:0]
	for _, i := range t.zeros {
		b := &t.backends[i]
		if b.empty && b.count.Live == 0 {
			w.calls = append(w.calls, b.name)
		}
		b.empty = false
	}
	t.zeros = t.zeros[:0]
	w.mu.Unlock()
	if w.opt.Zero == nil {
		return
	}
	for _, b := range w.calls {
		w.opt.Zero(b)
	}
}

// interrupt wakes the reader.
func (w *Watcher) interrupt() {
	w.wakeMu.Lock()
	defer w.wakeMu.Unlock()
	_ = w.events.SetReadDeadline(time.Unix(1, 0))
}

// arm sets the read deadline to the next attempt to reconcile, unless there is
// something to do at once.
func (w *Watcher) arm(ctx context.Context) bool {
	w.wakeMu.Lock()
	defer w.wakeMu.Unlock()
	if ctx.Err() == nil && len(w.syncs) > 0 && w.retry.IsZero() {
		return false
	}
	if ctx.Err() == nil {
		_ = w.events.SetReadDeadline(w.retry)
	}
	return true
}

// take returns the requests to sync, and whether the time set for another
// attempt has come.
func (w *Watcher) take() (syncs []chan error, due bool) {
	w.wakeMu.Lock()
	defer w.wakeMu.Unlock()
	if !w.retry.IsZero() {
		if time.Now().Before(w.retry) {
			return nil, false
		}
		due = true
	}
	syncs, w.syncs = w.syncs, nil
	return syncs, due
}

func (w *Watcher) requeue(syncs []chan error) {
	w.wakeMu.Lock()
	defer w.wakeMu.Unlock()
	w.syncs = append(syncs, w.syncs...)
}

func (w *Watcher) finish(err error) {
	w.mu.Lock()
	w.known = false
	w.err = err
	w.mu.Unlock()
	_ = w.events.Close()
	_ = w.dumps.Close()
}

// Sync dumps the table and makes the counts agree with it. After it returns nil
// they hold all flows that began before it was called and were not finished by
// then. If events are lost meanwhile it tries again until ctx ends.
func (w *Watcher) Sync(ctx context.Context) error {
	c := make(chan error, 1)
	w.wakeMu.Lock()
	w.syncs = append(w.syncs, c)
	_ = w.events.SetReadDeadline(time.Unix(1, 0))
	w.wakeMu.Unlock()
	select {
	case err := <-c:
		if err != nil {
			return fmt.Errorf("sync conntrack: %w", err)
		}
		return nil
	case <-ctx.Done():
		w.withdraw(c)
		return fmt.Errorf("sync conntrack: %w", ctx.Err())
	case <-w.done:
		return fmt.Errorf("sync conntrack: %w", w.Err())
	}
}

// dumpShare is the part of the time, one in so many, that Refresh may dump.
const dumpShare = 10

// Refresh is Sync for those who can do with counts that a dump has put right no
// longer than age ago, and who ask at any rate: dumps for them take no more than
// a tenth of the time.
func (w *Watcher) Refresh(ctx context.Context, age time.Duration) error {
	w.mu.Lock()
	fresh := w.known && time.Since(w.began) < max(age, dumpShare*w.took)
	w.mu.Unlock()
	if fresh {
		return nil
	}
	return w.Sync(ctx)
}

func (w *Watcher) withdraw(c chan error) {
	w.wakeMu.Lock()
	defer w.wakeMu.Unlock()
	w.syncs = slices.DeleteFunc(w.syncs, func(o chan error) bool { return o == c })
}

// Close ends the Watcher and waits until no function of its Options runs any
// more.
func (w *Watcher) Close() error {
	w.cancel()
	<-w.done
	if err := w.Err(); !errors.Is(err, ErrClosed) {
		return err
	}
	return nil
}

// Done is closed when the Watcher has ended, by itself only on an error that
// Err then returns.
func (w *Watcher) Done() <-chan struct{} { return w.done }

// Err returns nil while the Watcher runs, ErrClosed after Close or the end of
// its context, or the error that ended it.
func (w *Watcher) Err() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}
