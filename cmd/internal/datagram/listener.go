package datagram

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Mode is what a listener does with the datagrams that reach it.
type Mode uint8

const (
	// Hold: the service has no slots. A new client is delivered, what it
	// sends is held until it is released or refused.
	Hold Mode = iota
	// Pass: the service has slots. What reaches the socket nevertheless
	// belongs to a flow that began before, and is passed on at once.
	Pass
)

// Listener holds the datagrams of one service address. Its methods may be
// called from any goroutine; none but Close waits.
type Listener struct {
	g     *Group
	id    uint64
	addr  netip.AddrPort
	fd    int
	file  *os.File
	raw   syscall.RawConn
	done  chan struct{}
	count counters

	mu       sync.Mutex
	todo     []func() // for run
	finished bool     // takes no more of them

	// Owned by run.
	store    *store
	mode     Mode
	closing  bool
	dumpAt   time.Time // no dump before
	deaf     error     // the last receive failed so
	received int       // by the last fill
	fill     func(fd uintptr) bool

	journal   *journal // nil: there was nothing to write
	suspended bool

	exchanges map[flow]*Exchange
	talks     sync.WaitGroup // of these, also those that have just ended
}

func newListener(g *Group, id uint64, fd int, bound netip.AddrPort) (*Listener, error) {
	l := &Listener{
		g: g, id: id, addr: bound, fd: fd, done: make(chan struct{}), store: newStore(g.cfg.Limits, &g.room), exchanges: map[flow]*Exchange{},
		file: os.NewFile(uintptr(fd), bound.String()+"/udp"),
	}
	l.fill = func(uintptr) bool {
		if l.suspended {
			return false // until the deadline
		}
		l.received = l.receive()
		return l.received > 0 || l.deaf != nil
	}
	var err error
	if l.raw, err = l.file.SyscallConn(); err == nil {
		err = l.file.SetReadDeadline(time.Time{}) // fails if it cannot be waited for
	}
	if err != nil {
		return nil, errors.Join(err, l.file.Close())
	}
	return l, nil
}

// Addr is the address the socket is bound to, with the port the kernel chose if
// it was asked to.
func (l *Listener) Addr() netip.AddrPort { return l.addr }

// Set changes the mode, soon after it has returned, in turn with Release and
// Refuse: after Pass a client may still be delivered.
//
// Pass also passes on all that is held; it is for when the kernel has confirmed
// the slots. Clients that were delivered may still be released, or refused, and
// nothing happens to them.
//
// Hold is to be set before the last slot is taken out of the table. It forgets
// who was released: whatever comes afterwards is a new client's. If slots are
// still there then, what is held by that time reaches its backend with the next
// Pass or Release.
func (l *Listener) Set(m Mode) {
	l.post(func() {
		l.mode = m
		if m != Hold {
			return
		}
		l.store.forget(func(c *client) bool { return len(c.data) == 0 && !c.told })
		for _, c := range l.store.order {
			c.answer(nil) // of those whose last datagrams found no room on the way out
			c.released, c.gone, c.tries, c.due = false, false, 0, time.Time{}
			l.tell(c, time.Now())
		}
	})
}

// Release passes on what is held of a client, and what it still sends here, to
// a backend; the table has slots for the service. done, if not nil, is told
// once: nil when nothing is held under the id (any more), or why datagrams are
// lost. It is called like Deliver.
func (l *Listener) Release(id uint64, done func(error)) {
	if done == nil {
		done = func(error) {}
	}
	posted := l.post(func() {
		c := l.store.ids[id]
		if c == nil {
			done(nil)
			return
		}
		c.told, c.released = false, true
		if len(c.data) == 0 {
			done(nil)
			return
		}
		c.done = append(c.done, done)
	})
	if !posted {
		done(ErrClosed)
	}
}

// Refuse drops what is held of a client and forgets it: what it sends next is
// a new client's. In Pass it does nothing.
func (l *Listener) Refuse(id uint64) {
	l.post(func() {
		c := l.store.ids[id]
		if c == nil {
			return
		}
		if l.mode == Pass && !c.flow.loopback() {
			c.told = false
			return
		}
		l.count.refused.Add(uint64(len(c.data)))
		l.store.forget(func(x *client) bool { return x == c })
	})
}

// Close drops what is held (but not what is in a file of [Config.Journal]), waits until nothing more can be delivered, and
// closes the socket. It must not be called from Deliver, Error or done.
func (l *Listener) Close() error {
	if !l.post(func() { l.closing = true }) {
		<-l.done
		return ErrClosed
	}
	<-l.done
	l.g.remove(l)
	err := l.file.Close()
	if l.journal != nil && l.journal.fd >= 0 {
		err = errors.Join(err, unix.Close(l.journal.fd))
	}
	return err
}

// post has run carry out f; it reports false after Close.
func (l *Listener) post(f func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.finished {
		return false
	}
	l.todo = append(l.todo, f)
	_ = l.file.SetReadDeadline(time.Unix(1, 0)) // wakes run; cannot fail before Close
	return true
}

func (l *Listener) run() {
	defer close(l.done)
	for {
		l.mu.Lock()
		todo := l.todo
		l.todo = nil
		l.mu.Unlock()
		for _, f := range todo {
			f()
		}
		if l.closing {
			break
		}
		var until time.Time
		if !l.suspended {
			now := time.Now()
			l.pass(now)
			l.tidy()
			until = l.next(now)
		}
		if l.wait(until) {
			l.listen()
		}
	}
	l.mu.Lock()
	l.finished = true
	todo := l.todo
	l.todo = nil
	l.mu.Unlock()
	for _, f := range todo {
		f()
	}
	for _, x := range l.exchanges {
		l.part(x)
	}
	l.talks.Wait()
	for _, c := range l.store.order {
		c.answer(ErrClosed)
	}
	l.count.refused.Add(uint64(l.store.count))
	l.store.forget(func(*client) bool { return true })
	l.measure()
}

// wait sets how long listen may take, unless there is something to do.
func (l *Listener) wait(until time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.todo) > 0 {
		return false
	}
	_ = l.file.SetReadDeadline(until)
	return true
}

// retryReceive is the pause after a receive that failed for lack of memory.
const retryReceive = 10 * time.Millisecond

// listen waits for datagrams and takes in what is there.
func (l *Listener) listen() {
	was := l.deaf
	l.deaf = nil
	err := l.raw.Read(l.fill)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		l.deaf = err
	}
	if l.deaf == nil {
		return
	}
	if was == nil || was.Error() != l.deaf.Error() {
		l.trouble(fmt.Errorf("receive on %v/udp: %w", l.addr, l.deaf))
	}
	time.Sleep(retryReceive)
}

func (l *Listener) trouble(err error) {
	if l.g.cfg.Error != nil {
		l.g.cfg.Error(l.id, err)
	}
}

// burst bounds what one call takes in, so that a flood keeps nothing else from
// being done.
const burst = 1024

// receive takes in what waits in the socket, and returns how many datagrams
// that were.
func (l *Listener) receive() (n int) {
	s := l.g.buffer.Get().(*scratch)
	defer l.g.buffer.Put(s)
	now := time.Now()
	for n < burst {
		size, oob, _, from, err := unix.Recvmsg(l.fd, s.data[:], s.oob[:], 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			l.measure()
			return n
		case err != nil:
			l.deaf = err
			return n
		}
		n++
		l.take(now, addrPort(from), s.data[:size], parse(s.oob[:oob]))
	}
	l.measure()
	return n
}

// take holds a datagram, if it may.
func (l *Listener) take(now time.Time, from netip.AddrPort, data []byte, a arrival) {
	l.count.received.Add(1)
	if a.overflowed > 0 {
		l.count.overflowed.Store(uint64(a.overflowed))
	}
	fl := flow{from, netip.AddrPortFrom(a.to, l.addr.Port())}
	if a.hops == 0 {
		a.hops = fallbackHops
	}
	if !a.to.IsValid() || !fl.usable() || a.hops == 1 {
		l.count.unusable.Add(1)
		return
	}
	if x := l.exchanges[fl]; x != nil {
		if !x.ended.Load() {
			x.send(data)
			return
		}
		l.part(x)
	}
	if l.store.full() {
		// Those that are kept only to know stragglers by can go.
		l.store.forget(l.spent)
	}
	if !l.store.room(fl, len(data)) {
		l.count.dropped.Add(1)
		return
	}
	// To pass it on is to forward it. That ends its life, too, if it should
	// come back here again and again.
	d := datagram{data: append([]byte(nil), data...), hops: a.hops - 1, tos: a.tos}
	c, fresh := l.store.add(fl, d, func() uint64 { return l.g.last.Add(1) })
	l.note(fl, d)
	if fresh && (l.mode == Hold || fl.loopback()) {
		l.tell(c, now)
	}
}

// tell delivers a client that the owner has not heard of.
func (l *Listener) tell(c *client, now time.Time) {
	if c.told {
		return
	}
	c.told = true
	l.g.cfg.Deliver(Held{
		ID: c.id, Listener: l.id, Client: c.flow.client, Service: c.flow.service, At: now, Carry: c.flow.loopback(),
	})
}

// answer tells those who wait for a client what has become of it.
func (c *client) answer(err error) {
	done := c.done
	c.done = nil
	for _, f := range done {
		f(err)
	}
}
