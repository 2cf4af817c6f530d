package datagram

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"sluice/conntrack"
)

// Held is a client whose first datagram has come in and waits for a backend.
type Held struct {
	ID       uint64 // for Release and Refuse; no other client of the group has it
	Listener uint64 // the id given to Listen
	Client   netip.AddrPort
	Service  netip.AddrPort // as the client dialled it, also at a listener for every address
	At       time.Time
	Carry    bool // it cannot be released, only carried, see [Listener.Carry]
}

// Tracker changes and lists the kernel's flows: a [conntrack.Conn] opened with
// mask 0, since flows to the host itself bear no mark. The cold ones are deleted
// through it, and a lengthy dump by another user of it delays that.
type Tracker interface {
	Do(*conntrack.Batch) ([]error, error)
	Snapshot(func(*conntrack.Flow) error) error
}

// Sentinel errors.
var (
	ErrClosed = fmt.Errorf("datagram listener: %w", net.ErrClosed)
	ErrExists = errors.New("listener id or address is in use")
)

// Config says how to Open a group.
type Config struct {
	// Deliver hears of each new client, once until it is released or
	// refused, on the listener's goroutine: it must not block. It may call
	// the methods of the listener except Close.
	Deliver func(Held)
	// Error, if set, hears of trouble that a listener goes on in spite of.
	// Called like Deliver.
	Error   func(listener uint64, err error)
	Tracker Tracker
	// Beside, if set, tells whether a client is on a network with backends.
	// Their answers may go to it without passing through this host's
	// translation, so what is passed on of it carries the packet mark Mark,
	// by which the table gives it this host's address.
	Beside func(client netip.Addr) bool
	Mark   int
	// Journal, if set, is given a file for each listener that holds datagrams,
	// as soon as it does: it always has what is held, for Adopt. The file stays
	// the listener's. Called like Deliver.
	Journal func(addr netip.AddrPort, fd int)
	Limits  Limits // of each listener
	Total   int    // bytes that all listeners may hold; 64 MiB if zero
}

// Group is what listeners have in common. Its methods may be called from any
// goroutine.
type Group struct {
	cfg    Config
	wire   *wire
	marked *wire         // of clients beside their backend
	last   atomic.Uint64 // id of a client
	buffer sync.Pool
	room   room

	mu        sync.Mutex
	listeners map[uint64]*Listener
	closed    bool
}

// Open makes a group in the calling thread's network namespace. Needs
// CAP_NET_RAW and CAP_NET_ADMIN.
func Open(cfg Config) (*Group, error) {
	if cfg.Deliver == nil || cfg.Tracker == nil {
		return nil, errors.New("open datagram group: no Deliver or no Tracker")
	}
	w, err := openWire(0)
	if err != nil {
		return nil, fmt.Errorf("open datagram group: %w", err)
	}
	marked, err := openWire(cfg.Mark)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open datagram group: %w", err), w.close())
	}
	g := &Group{
		cfg: cfg, wire: w, marked: marked, listeners: map[uint64]*Listener{},
		buffer: sync.Pool{New: func() any { return new(scratch) }},
	}
	g.room.limit = int64(cfg.Total)
	if cfg.Total <= 0 {
		g.room.limit = 64 << 20
	}
	return g, nil
}

// Listen opens a socket on addr, which need not be on this host yet, in the
// calling thread's network namespace, which must be the group's. An IPv6 one
// takes no IPv4 datagrams. The listener starts in Hold.
func (g *Group) Listen(id uint64, addr netip.AddrPort) (*Listener, error) {
	addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
	l, err := g.listen(id, addr)
	if err != nil {
		return nil, fmt.Errorf("listen on %v/udp: %w", addr, explain(err, addr))
	}
	return l, nil
}

func (g *Group) listen(id uint64, addr netip.AddrPort) (*Listener, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	shared, err := g.neighbours(id, addr)
	if err != nil {
		return nil, err
	}
	fd, bound, err := socket(addr, shared)
	if err != nil {
		return nil, err
	}
	return g.begin(id, fd, bound, nil)
}

// neighbours are the sockets that a new one has to share its port with. mu is
// held.
func (g *Group) neighbours(id uint64, addr netip.AddrPort) (shared []int, err error) {
	if !addr.Addr().IsValid() || addr.Addr().Zone() != "" {
		return nil, errors.New("no address, or one with a zone")
	}
	if g.closed {
		return nil, ErrClosed
	}
	if g.listeners[id] != nil {
		return nil, ErrExists
	}
	for _, l := range g.listeners {
		if l.addr.Port() != addr.Port() || l.addr.Addr().Is4() != addr.Addr().Is4() {
			continue
		}
		if l.addr == addr && addr.Port() != 0 {
			return nil, ErrExists
		}
		if l.addr.Addr().IsUnspecified() || addr.Addr().IsUnspecified() {
			shared = append(shared, l.fd)
		}
	}
	return shared, nil
}

// begin runs a listener on a socket, which is closed on an error, after start if
// that is set. mu is held.
func (g *Group) begin(id uint64, fd int, bound netip.AddrPort, start func(*Listener)) (*Listener, error) {
	l, err := newListener(g, id, fd, bound)
	if err != nil {
		return nil, err
	}
	g.listeners[id] = l
	if start != nil {
		start(l)
	}
	go l.run()
	return l, nil
}

func (g *Group) remove(l *Listener) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.listeners[l.id] == l {
		delete(g.listeners, l.id)
	}
}

// Close closes the listeners that are left, and the group. It must not be
// called from Deliver, Error or done.
func (g *Group) Close() error {
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		return ErrClosed
	}
	g.closed = true
	var left []*Listener
	for _, l := range g.listeners {
		left = append(left, l)
	}
	g.mu.Unlock()
	var errs []error
	for _, l := range left {
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, g.wire.close(), g.marked.close())...)
}
