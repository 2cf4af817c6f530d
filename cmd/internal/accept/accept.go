// Package accept takes connections from listening sockets one at a time or
// all, as told, for any number of listeners in one loop. What it does not
// take waits, completed, in the kernel's accept queue.
//
// The loop runs on io_uring, or on epoll where io_uring cannot be had; both
// behave the same.
package accept

import (
	"errors"
	"fmt"
	"net"
)

// Mode is what a loop does with one listener's connections.
type Mode uint8

// A listener starts Off. One falls back to Off by itself.
const (
	Off Mode = iota // leave them in the accept queue
	One             // take exactly one
	All             // take every one
)

func (m Mode) String() string {
	switch m {
	case Off:
		return "off"
	case One:
		return "one"
	case All:
		return "all"
	}
	return fmt.Sprintf("mode(%d)", uint8(m))
}

// Conn is an accepted connection. FD is non-blocking and close-on-exec and
// belongs to the receiver.
type Conn struct {
	Listener uint64 // the id the listener was added with
	FD       int
}

// Sentinel errors of a Loop.
var (
	ErrClosed   = fmt.Errorf("accept loop: %w", net.ErrClosed)
	ErrExists   = errors.New("listener id is in use")
	ErrNotFound = errors.New("no listener with this id")
	// ErrLoop marks errors that are about the whole loop, not one listener.
	ErrLoop = errors.New("accept loop")
)

// Loop accepts connections. Its methods may be called from any goroutine.
// Nothing but Close costs more with more listeners.
type Loop interface {
	// Name is the backend: "io_uring" or "epoll".
	Name() string
	// Add makes a listener known, Off. The listener stays the caller's, who
	// closes it only after Remove: a loop that still holds it would go on
	// accepting on the port.
	Add(id uint64, ln *Listener) error
	// Arm changes the mode and returns at once. One means one more
	// connection from now: if the listener is armed One already, nothing
	// changes, and a connection that comes while All gives way to One is
	// that one. Connections which the kernel had already handed over when
	// the mode took effect are delivered all the same.
	Arm(id uint64, m Mode) error
	// Remove forgets a listener. It waits until nothing more can be
	// delivered for the id; connections accepted meanwhile are delivered
	// before it returns. It must not be called from Deliver or Error.
	Remove(id uint64) error
	// Close removes every listener and ends the loop. It must not be called
	// from Deliver or Error.
	Close() error
}

// Backends for Config.
const (
	Auto  = "auto" // io_uring if it can be had, else epoll
	Uring = "io_uring"
	Epoll = "epoll"
)

// Config says how to Open a loop.
type Config struct {
	// Deliver gets each connection, on the loop's own goroutine: all others
	// wait until it returns, so it must not block. It may call Arm.
	Deliver func(Conn)
	// Error, if set, hears of listeners that cannot accept just now, such
	// as EMFILE, once per listener and errno until it works again; the loop
	// keeps trying by itself. With id 0 and an error that wraps ErrLoop the
	// trouble is the loop's own. Called like Deliver.
	Error func(id uint64, err error)
	// Backend is Auto (also when empty), Uring or Epoll.
	Backend string
	// Fallback, if set, is told at most once why Auto came down to epoll,
	// by Open or later, when io_uring has failed for good:
	// "epoll: io_uring_setup: operation not permitted (...)".
	Fallback func(why error)
}

// Open starts a loop.
func Open(cfg Config) (Loop, error) {
	if cfg.Deliver == nil {
		return nil, errors.New("open accept loop: no Deliver")
	}
	switch cfg.Backend {
	case Epoll:
		return open(cfg, &poller{})
	case Uring:
		return open(cfg, &ring{})
	case Auto, "":
		l, err := open(cfg, &ring{}, &poller{})
		if err == nil {
			return l, nil
		}
		if cfg.Fallback != nil {
			cfg.Fallback(fmt.Errorf("epoll: %w", errors.Unwrap(err)))
		}
		return open(cfg, &poller{})
	}
	return nil, fmt.Errorf("open accept loop: unknown backend %q", cfg.Backend)
}
